//! Products with several columns: a few rows at a time become f32 once, and then meet all columns,
//! a block of rows and columns after the other.

use super::kept::Floats;
use super::order::COLUMNS;
use super::rows::Rows;
use super::sums::{CHUNK, ROWS, Trees};
use crate::kernels::{Chains, Panels};
use crate::layout::TILE;

/// Memory of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    bytes: Vec<u8>,
    weights: Floats,
    chains: Vec<Chains>,
    trees: Trees,
}

/// Writes the products of some rows from `first` on, `batch` of each row. `x` are all columns as
/// [`panels`](super::order::panels) leaves them.
pub(super) fn multiply(
    w: &Rows<'_>,
    first: usize,
    x: &[f32],
    batch: usize,
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    for (i, out) in out.chunks_mut(ROWS * batch).enumerate() {
        block(w, first + i * ROWS, x, batch, out, scratch);
    }
}

fn block(
    w: &Rows<'_>,
    first: usize,
    x: &[f32],
    batch: usize,
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let Scratch { bytes, weights, chains, trees } = scratch;
    let n = out.len() / batch;
    chains.resize(n * batch.min(COLUMNS), [0.0; TILE]);
    // Sums of a group of columns follow those of the group before.
    trees.clear(out.len());
    let mut x = x;
    for begin in (0..w.k).step_by(CHUNK) {
        let len = (w.k - begin).min(CHUNK);
        let tiles = len.div_ceil(TILE);
        let weights = weights.of_len(Panels::len_of(n, tiles));
        for i in 0..n {
            let bytes = w.bytes(first + i, begin..begin + len, bytes);
            widen(w, bytes, n, i, weights);
        }
        let weights = Panels { floats: weights, n, tiles };
        for columns in (0..batch).step_by(COLUMNS) {
            let columns = (batch - columns).min(COLUMNS);
            let (floats, after) = x.split_at(Panels::len_of(columns, tiles));
            x = after;
            let chains = &mut chains[..n * columns];
            (w.kernels.multiply)(&weights, &Panels { floats, n: columns, tiles }, chains);
            trees.extend(chains.iter_mut().map(w.kernels.take_sum));
        }
        trees.end_row();
    }
    // From groups of columns to rows of columns.
    let mut sums = trees.sums();
    for columns in (0..batch).step_by(COLUMNS) {
        let of_group = (batch - columns).min(COLUMNS);
        let (group, rest) = sums.split_at(n * of_group);
        sums = rest;
        for (out, group) in out.chunks_mut(batch).zip(group.chunks(of_group)) {
            out[columns..][..of_group].copy_from_slice(group);
        }
    }
}

/// Writes the weights of a row as row `i` of `n`.
fn widen(w: &Rows<'_>, bytes: &[u8], n: usize, i: usize, out: &mut [f32]) {
    let dtype = w.spec.dtype();
    let tile = dtype.unit_bytes() * TILE;
    if bytes.len().is_multiple_of(tile) {
        return (w.kernels.widen)(dtype, bytes, n, i, out);
    }
    let mut padded = [0; 2 * CHUNK];
    padded[..bytes.len()].copy_from_slice(bytes);
    (w.kernels.widen)(dtype, &padded[..bytes.len().next_multiple_of(tile)], n, i, out);
}
