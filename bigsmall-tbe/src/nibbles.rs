//! bf16 matrices with high bytes as nibbles: a form for memory, never stored in files.
//!
//! The high byte of a weight is its sign and its exponent without the lowest bit. A row chooses 16
//! of them, its most frequent ones, which are 16 exponents as weights are distributed. Every weight
//! has a code of four bits for one of them, and its low byte as it is. A byte shuffle finds the
//! high bytes, and unpacking puts them beside the low ones, where bitmaps need dozens of
//! instructions. A weight with another high byte is an escape: a list beside the codes has its
//! place in the row. So tiles without escapes need no test.

use std::ops::Range;

use bigsmall_format::internal::for_each_in_parallel;
use bigsmall_format::{Dtype, Result};

use crate::aligned::Aligned;
use crate::kernels::{Chains, Kernels, NIBBLE_TILE, Nibbles};
use crate::layout::TILE;

/// Weights that are packed at a time.
const PIECE: usize = 1 << 20;

/// A matrix of bf16 weights. Only [`pack`](Self::pack) makes one.
#[derive(Clone)]
pub(crate) struct NibbleMatrix {
    /// Tiles of a row; the last one is filled up.
    tiles: usize,
    /// The tiles of all rows.
    bytes: Aligned,
    /// The high bytes of the codes, for each row.
    high: Vec<[u8; 16]>,
    /// In the order of the weights.
    escapes: Vec<Escape>,
    /// For each row the number of escapes before it, and at the end the number of all.
    starts: Vec<usize>,
}

/// A weight whose high byte has no code.
#[derive(Clone, Copy)]
struct Escape {
    /// Its place in the row.
    at: u32,
    high: u8,
}

impl NibbleMatrix {
    /// Packs a matrix in one pass: `read` fills a buffer with whole rows from the given one on.
    /// `None` if more than one of `1 / most_escapes` weights is an escape, or if a row is too long.
    pub(crate) fn pack(
        rows: usize,
        cols: usize,
        most_escapes: f64,
        read: impl Fn(usize, &mut [u8]) -> Result<()> + Sync,
    ) -> Result<Option<Self>> {
        let tiles = cols.div_ceil(TILE);
        if u32::try_from(cols).is_err() {
            return Ok(None);
        }
        let len = tiles * NIBBLE_TILE;
        let mut bytes = Aligned::zeroed(rows * len)?;
        let mut high = vec![[0; 16]; rows];
        let mut counts = vec![0; rows];
        let at_a_time = (PIECE / cols.max(1)).clamp(1, rows.max(1));
        let mut of_pieces = vec![Vec::new(); rows.div_ceil(at_a_time)];
        if len > 0 {
            let pieces = bytes
                .chunks_mut(at_a_time * len)
                .zip(high.chunks_mut(at_a_time))
                .zip(counts.chunks_mut(at_a_time))
                .zip(&mut of_pieces)
                .enumerate();
            for_each_in_parallel(pieces, Vec::new, |weights, (piece, parts)| {
                let (((out, high), counts), escapes) = parts;
                weights.resize(2 * cols * high.len(), 0);
                read(piece * at_a_time, weights)?;
                let rows = weights.chunks_exact(2 * cols).zip(out.chunks_exact_mut(len));
                for (i, (weights, out)) in rows.enumerate() {
                    let before = escapes.len();
                    high[i] = pack_row(weights.as_chunks().0, out, escapes);
                    counts[i] = escapes.len() - before;
                    if escapes.len() as f64 > most_escapes * (cols * high.len()) as f64 {
                        // Too many for this piece; the others count as well.
                        escapes.truncate(0);
                        counts.fill(usize::MAX);
                        break;
                    }
                }
                Ok::<_, bigsmall_format::Error>(())
            })?;
        }
        if counts.contains(&usize::MAX) {
            return Ok(None);
        }
        let mut starts = Vec::with_capacity(rows + 1);
        starts.push(0);
        starts.extend(counts.iter().scan(0, |sum, n| {
            *sum += n;
            Some(*sum)
        }));
        let escapes = of_pieces.concat();
        Ok(Some(NibbleMatrix { tiles, bytes, high, escapes, starts }))
    }

    /// Bytes that the matrix takes.
    pub(crate) fn byte_len(&self) -> u64 {
        let escapes = size_of_val(&self.escapes[..]) + size_of_val(&self.starts[..]);
        (self.bytes.len() + size_of_val(&self.high[..]) + escapes) as u64
    }

    /// Some tiles of a row.
    fn tiles(&self, row: usize, tiles: Range<usize>) -> Nibbles<'_> {
        let first = (row * self.tiles + tiles.start) * NIBBLE_TILE;
        let bytes = &self.bytes[first..][..tiles.len() * NIBBLE_TILE];
        Nibbles { high: &self.high[row], tiles: bytes.as_chunks().0 }
    }

    /// The escapes among some weights of a row.
    fn escapes(&self, row: usize, range: Range<usize>) -> &[Escape] {
        let escapes = &self.escapes[self.starts[row]..self.starts[row + 1]];
        let begin = escapes.partition_point(|e| (e.at as usize) < range.start);
        let end = escapes.partition_point(|e| (e.at as usize) < range.end);
        &escapes[begin..end]
    }

    /// Adds the products of the weights `range` of a row, whole tiles but at the end of the row,
    /// with `x`, to the chains.
    pub(crate) fn dot(
        &self,
        row: usize,
        range: Range<usize>,
        x: &[f32],
        chains: &mut Chains,
        kernels: &Kernels,
    ) {
        let first = range.start / TILE;
        let tiles = first..range.end.div_ceil(TILE);
        let mut next = tiles.start;
        let mut escapes = self.escapes(row, range);
        while let Some(escape) = escapes.first() {
            let tile = escape.at as usize / TILE;
            let of_tile = escapes.partition_point(|e| e.at as usize / TILE == tile);
            let (these, after) = escapes.split_at(of_tile);
            escapes = after;
            (kernels.dot_nibbles)(
                &self.tiles(row, next..tile),
                &x[(next - first) * TILE..(tile - first) * TILE],
                chains,
            );
            let mut weights = [0; 2 * TILE];
            (kernels.unpack)(&self.tiles(row, tile..tile + 1), &mut weights);
            patch(these, tile * TILE, &mut weights);
            (kernels.dot_plain)(Dtype::BF16, &weights, &x[(tile - first) * TILE..][..TILE], chains);
            next = tile + 1;
        }
        (kernels.dot_nibbles)(
            &self.tiles(row, next..tiles.end),
            &x[(next - first) * TILE..],
            chains,
        );
    }

    /// Writes the weights `range` of a row to `dst`.
    pub(crate) fn decode(
        &self,
        row: usize,
        range: Range<usize>,
        dst: &mut [u8],
        kernels: &Kernels,
    ) {
        let (mut at, mut rest) = (range.start, dst);
        while at < range.end {
            let tile = at / TILE;
            let skip = at % TILE;
            if skip == 0 && range.end - at >= TILE {
                let whole = (range.end - at) / TILE;
                let (out, after) = rest.split_at_mut(2 * TILE * whole);
                (kernels.unpack)(&self.tiles(row, tile..tile + whole), out);
                (at, rest) = (at + whole * TILE, after);
                patch(self.escapes(row, tile * TILE..at), tile * TILE, out);
            } else {
                let n = (TILE - skip).min(range.end - at);
                let mut weights = [0; 2 * TILE];
                (kernels.unpack)(&self.tiles(row, tile..tile + 1), &mut weights);
                patch(self.escapes(row, tile * TILE..at + n), tile * TILE, &mut weights);
                let (out, after) = rest.split_at_mut(2 * n);
                out.copy_from_slice(&weights[2 * skip..][..2 * n]);
                (at, rest) = (at + n, after);
            }
        }
    }
}

/// Gives the escapes their high bytes, in plain weights from weight `first` on.
fn patch(escapes: &[Escape], first: usize, weights: &mut [u8]) {
    for escape in escapes {
        weights[2 * (escape.at as usize - first) + 1] = escape.high;
    }
}

/// Packs the weights of a row into its tiles, which are zeros before. Returns the high bytes of the
/// codes.
fn pack_row(weights: &[[u8; 2]], out: &mut [u8], escapes: &mut Vec<Escape>) -> [u8; 16] {
    const NONE: u8 = 16;
    let mut counts = [0u32; 256];
    weights.iter().for_each(|&[_, high]| counts[usize::from(high)] += 1);
    let mut by_count: [u8; 256] = std::array::from_fn(|i| i as u8);
    // Stable, so equal counts have the same order on every machine.
    by_count.sort_by_key(|&high| std::cmp::Reverse(counts[usize::from(high)]));
    let table: [u8; 16] = std::array::from_fn(|code| by_count[code]);
    let mut code_of = [NONE; 256];
    (0..).zip(table).for_each(|(code, high)| code_of[usize::from(high)] = code);
    // What fills up the last tile has low bytes of 0. So it is neither infinite nor NaN, whatever
    // its high bytes are, and its products with zeros of x are zeros.
    let tiles = out.as_chunks_mut::<NIBBLE_TILE>().0;
    for (t, (tile, weights)) in tiles.iter_mut().zip(weights.chunks(TILE)).enumerate() {
        let (codes, lows) = tile.split_at_mut(TILE / 2);
        for (i, &[low, high]) in weights.iter().enumerate() {
            lows[i] = low;
            let mut code = code_of[usize::from(high)];
            if code == NONE {
                escapes.push(Escape { at: (t * TILE + i) as u32, high });
                code = 0;
            }
            codes[i % (TILE / 2)] |= code << (i / (TILE / 2) * 4);
        }
    }
    table
}
