//! Products with a single column, straight from the form that the weights are stored in.

use super::rows::{Rows, Weights};
use super::sums::{CHUNK, ROWS, Trees};
use crate::codes::Code;
use crate::kernels::{Chains, Column, DotTbe, Tiles};
use crate::layout::TILE;
use crate::view::View;

/// How many weights ahead products prefetch, where the next row follows. For plain weights and
/// codes that is 6 or 7 KiB.
fn ahead(w: &Rows<'_>) -> usize {
    match w.weights {
        Weights::Plain(_) => 6144 / w.spec.dtype().unit_bytes(),
        Weights::Codes(matrix) if matrix.code() == Code::Pair => 5120,
        Weights::Codes(_) => 4608,
        Weights::Encoded(_) => 8192,
    }
}

/// A column of more values than these leaves too little of a level 1 cache of 32 KiB to the
/// weights: it would come from the level 2 cache for every row.
const SHORT: usize = 6144;

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
    // Bitmaps stay in order: the processor prefetches their escapes by itself, but not those of the
    // next row.
    let in_order = w.k <= SHORT || matches!(w.weights, Weights::Encoded(_));
    let (at_a_time, ahead) = if in_order { (1, ahead(w)) } else { (ROWS, w.k) };
    // Zeros before each chunk.
    let Lines(chains) = &mut Lines([0.0; TILE]);
    let mut of_chunk = |row: usize, begin: usize| {
        let n = (w.k - begin).min(CHUNK);
        let column = Column { x: &x[begin..][..n.next_multiple_of(TILE)], ahead };
        match (w.weights, w.kernels.dot_tbe) {
            (Weights::Encoded(view), Some(dot)) => {
                let position = row as u64 * w.k as u64 + begin as u64;
                bitmaps(&view, position, n, column, dot, &mut next, chains);
            }
            (Weights::Codes(matrix), _) => {
                return matrix.sum(row, begin..begin + n, column, chains, w.kernels, bytes);
            }
            _ => {
                let weights = w.bytes(row, begin..begin + n, bytes);
                let tile = TILE * dtype.unit_bytes();
                let (whole, rest) = weights.split_at(n / TILE * tile);
                (w.kernels.dot_plain)(dtype, whole, column, chains);
                if !rest.is_empty() {
                    let mut last = [0; 2 * TILE];
                    last[..rest.len()].copy_from_slice(rest);
                    let column = column.skip_tiles(n / TILE);
                    (w.kernels.dot_plain)(dtype, &last[..tile], column, chains);
                }
            }
        }
        (w.kernels.take_sum)(chains)
    };
    if w.k <= CHUNK {
        for (row, out) in (first..).zip(out) {
            *out = of_chunk(row, 0);
        }
        return;
    }
    for (first, out) in (first..).step_by(at_a_time).zip(out.chunks_mut(at_a_time)) {
        trees.clear(out.len());
        for begin in (0..w.k).step_by(CHUNK) {
            trees.push((first..first + out.len()).map(|row| of_chunk(row, begin)));
        }
        out.copy_from_slice(trees.sums());
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
        let (block, in_block) = view.place_of(first);
        let block = view.block(block);
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
    column: Column<'_>,
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
            let column = column.skip_tiles(at / TILE).first_tiles(1);
            (kernels.dot_plain)(dtype, &tile[..unit * TILE], column, chains);
            at += len;
        } else {
            let column = column.skip_tiles(at / TILE).first_tiles(whole / TILE);
            let used = dot(&run.tiles, run.shift, column, chains);
            *next = Some(run.after(whole, used));
            at += whole;
        }
    }
}
