//! Products with a single column, straight from the form that the weights are stored in.

use bigsmall_format::BLOCK_UNITS;

use super::rows::{Rows, Weights};
use super::sums::{CHUNK, Trees};
use crate::kernels::{Chains, DotTbe, Tiles};
use crate::layout::TILE;
use crate::view::View;

/// Writes the products of `out.len()` rows from `first` on. `x` is the column in the order of the
/// lanes.
pub(super) fn multiply(
    w: &Rows<'_>,
    first: usize,
    x: &[f32],
    out: &mut [f32],
    trees: &mut Trees,
    bytes: &mut Vec<u8>,
) {
    let dtype = w.spec.dtype();
    // The weights after the last tile that was multiplied in encoded form.
    let mut next = None;
    let mut of_chunk = |row: usize, begin: usize| {
        let n = (w.k - begin).min(CHUNK);
        let x = &x[begin..][..n.next_multiple_of(TILE)];
        let Lines(chains) = &mut Lines([0.0; TILE]);
        match (w.weights, w.kernels.dot_tbe) {
            (Weights::Encoded(view), Some(dot)) => {
                let position = row as u64 * w.k as u64 + begin as u64;
                bitmaps(&view, position, n, x, dot, &mut next, chains);
            }
            (Weights::Nibbles(matrix), _) => {
                matrix.dot(row, begin..begin + n, x, chains, w.kernels);
            }
            _ => {
                let weights = w.bytes(row, begin..begin + n, bytes);
                let tile = TILE * dtype.unit_bytes();
                let (whole, rest) = weights.split_at(n / TILE * tile);
                (w.kernels.dot_plain)(dtype, whole, x, chains);
                if !rest.is_empty() {
                    let mut last = [0; 2 * TILE];
                    last[..rest.len()].copy_from_slice(rest);
                    let x = &x[n / TILE * TILE..];
                    (w.kernels.dot_plain)(dtype, &last[..tile], x, chains);
                }
            }
        }
        (w.kernels.sum)(chains)
    };
    for (row, out) in (first..).zip(out) {
        if w.k <= CHUNK {
            *out = of_chunk(row, 0);
            continue;
        }
        trees.clear(1);
        for begin in (0..w.k).step_by(CHUNK) {
            trees.push(std::iter::once(of_chunk(row, begin)));
        }
        *out = trees.sums()[0];
    }
}

/// Chains at the beginning of a cache line, so that no vector of them lies in two: a load that
/// waits for such a store takes several times as long.
#[repr(align(64))]
struct Lines(Chains);

/// Encoded weights up to the end of their block.
struct Run<'a> {
    /// The index of the first weight in the matrix.
    first: u64,
    /// The number of weights.
    len: usize,
    tiles: Tiles<'a>,
    /// The position of the first weight in its tile.
    shift: u32,
}

impl<'a> Run<'a> {
    fn at(view: &View<'a>, first: u64) -> Self {
        let block = view.block(first / BLOCK_UNITS as u64);
        let in_block = (first % BLOCK_UNITS as u64) as usize;
        let (tiles, shift) = block.tiles_at(in_block);
        Run { first, len: block.n_elements() - in_block, tiles, shift }
    }

    /// The weights after the first `n`, which are whole tiles with `used` escapes.
    fn after(self, n: usize, used: usize) -> Self {
        let tiles = self.tiles.after(n / TILE, used);
        Run { first: self.first + n as u64, len: self.len - n, tiles, ..self }
    }
}

/// Products of the weights `first..first + n` with one column, directly from the encoded tiles.
/// Only a tile that crosses the end of a block or of the row is decoded separately.
fn bitmaps<'a>(
    view: &View<'a>,
    first: u64,
    n: usize,
    x: &[f32],
    dot: DotTbe,
    next: &mut Option<Run<'a>>,
    chains: &mut Chains,
) {
    let mut at = 0;
    while at < n {
        let position = first + at as u64;
        // Rows of whole tiles follow each other, so reuse the position: finding it again would take
        // as long as several tiles.
        let run = next.take().filter(|run| run.first == position && run.len > 0);
        let run = run.unwrap_or_else(|| Run::at(view, position));
        let whole = (n - at).min(run.len) / TILE * TILE;
        if whole == 0 {
            let mut tile = [0; 2 * TILE];
            let len = (n - at).min(TILE);
            let (dtype, kernels) = (view.dtype(), view.kernels());
            let unit = dtype.unit_bytes();
            view.decode_here(position, &mut tile[..unit * len], kernels);
            (kernels.dot_plain)(dtype, &tile[..unit * TILE], &x[at..at + TILE], chains);
            at += len;
        } else {
            let used = dot(&run.tiles, run.shift, &x[at..at + whole], chains);
            *next = Some(run.after(whole, used));
            at += whole;
        }
    }
}
