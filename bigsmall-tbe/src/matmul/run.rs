//! Divides a product among threads.

use std::cell::RefCell;

use bigsmall_format::internal::{for_each_in_parallel, pool_size};
use bigsmall_format::{Error, Result, Rule};

use super::kept::{Floats, Kept};
use super::rows::{Rows, expect};
use super::sums::{ROWS, Trees};
use super::{columns, order, vector};
use crate::layout::TILE;

/// The most weights that a thread multiplies at a time, with one column. At the beginning of a
/// piece nothing is prefetched.
const MOST: usize = 1 << 21;
/// The fewest. At the end of a product threads wait for the last piece.
const FEWEST: usize = 1 << 15;

/// Memory of a product that all threads share.
#[derive(Default)]
struct Shared {
    /// A single column in the order of the lanes, or several as panels.
    floats: Floats,
    /// The products, row by row.
    values: Vec<f32>,
}

/// Memory of one thread of a product.
#[derive(Default)]
struct Scratch {
    trees: Trees,
    bytes: Vec<u8>,
    columns: columns::Scratch,
}

thread_local! {
    static SHARED: RefCell<Shared> = RefCell::default();
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The products of `matrices` with the columns x: one y for each.
pub(crate) fn multiply(
    matrices: &[Rows<'_>],
    x: &[f32],
    batch: usize,
    y: &mut [&mut [f32]],
) -> Result<()> {
    if matrices.len() != y.len() {
        return Err(Error::new(Rule::BufferLength)
            .expected(format!("{} y, one for each matrix", matrices.len()))
            .found(y.len()));
    }
    for (w, y) in matrices.iter().zip(&*y) {
        expect(w.spec, "x", x.len(), w.k.checked_mul(batch))?;
        expect(w.spec, "y", y.len(), w.rows.len().checked_mul(batch))?;
    }
    // All matrices have the same k, since they share x.
    let k = matrices.first().map_or(0, |w| w.k);
    if batch == 0 || k == 0 || matrices.iter().all(|w| w.rows.is_empty()) {
        y.iter_mut().for_each(|y| y.fill(0.0));
        return Ok(());
    }
    let n_rows: usize = matrices.iter().map(|w| w.rows.len()).sum();
    let mut shared = Kept::take(&SHARED);
    let Shared { floats, values } = &mut shared.value;
    let padded = k.next_multiple_of(TILE);
    let ordered = floats.of_len(batch * padded);
    if batch == 1 {
        order::lanes(x, ordered);
    } else {
        order::panels(x, k, ordered);
    }
    let product = Product { matrices, batch, x: ordered };
    if let ([y], 1) = (&mut *y, batch) {
        return product.run(n_rows, k, y);
    }
    // Row by row, with all columns of each row. So a run of rows is one slice, also across
    // matrices.
    values.resize(n_rows * batch, 0.0);
    product.run(n_rows, k, values)?;
    let mut values = &values[..];
    for (w, y) in matrices.iter().zip(y) {
        let (of_matrix, after) = values.split_at(y.len());
        values = after;
        if batch == 1 {
            y.copy_from_slice(of_matrix);
            continue;
        }
        for (i, values) in of_matrix.chunks_exact(batch).enumerate() {
            for (column, value) in values.iter().enumerate() {
                y[column * w.rows.len() + i] = *value;
            }
        }
    }
    Ok(())
}

/// Products of some matrices with the same columns.
struct Product<'a> {
    matrices: &'a [Rows<'a>],
    batch: usize,
    x: &'a [f32],
}

impl Product<'_> {
    /// Writes all products, `batch` of each row, row by row.
    fn run(&self, n_rows: usize, k: usize, out: &mut [f32]) -> Result<()> {
        // Long pieces first, and shorter and shorter ones. Whole blocks, so that none is divided
        // without need.
        let [fewest, most] = [FEWEST, MOST].map(|weights| weights / k / self.batch);
        let (mut first, mut rest) = (0, out);
        let mut pieces = Vec::new();
        while first < n_rows {
            let share = (n_rows - first) / (4 * pool_size());
            let n = share.clamp(fewest, most).max(1).next_multiple_of(ROWS).min(n_rows - first);
            let (piece, after) = rest.split_at_mut(n * self.batch);
            pieces.push((first, piece));
            (first, rest) = (first + n, after);
        }
        for_each_in_parallel(
            pieces.into_iter(),
            || Kept::take(&SCRATCH),
            |scratch, (first, out)| {
                self.run_piece(first, out, &mut scratch.value);
                Ok(())
            },
        )
    }

    /// The rows from `first` on, counted through all matrices.
    fn run_piece(&self, first: usize, out: &mut [f32], scratch: &mut Scratch) {
        let (mut skip, mut rest) = (first, out);
        for w in self.matrices {
            let skipped = skip.min(w.rows.len());
            skip -= skipped;
            let n = (w.rows.len() - skipped).min(rest.len() / self.batch);
            let (out, after) = rest.split_at_mut(n * self.batch);
            rest = after;
            let first = w.rows.start + skipped;
            let Scratch { trees, bytes, columns } = scratch;
            if self.batch == 1 {
                vector::multiply(w, first, self.x, out, trees, bytes);
            } else {
                columns::multiply(w, first, self.x, self.batch, out, columns);
            }
        }
    }
}
