//! bf16 matrices with high bytes as codes: forms for memory, never stored in files.
//!
//! The high byte of a weight is its sign and its exponent without the lowest bit. A row chooses 16
//! of them, its most frequent ones, which are 16 exponents as weights are distributed. A code
//! stands for one of them, or for a pair of them ([`Code`]); the low bytes stay as they are. One
//! look-up finds the high bytes of a vector of codes, and unpacking puts them beside the low ones,
//! where bitmaps need dozens of instructions. A weight whose high byte its code does not give is an
//! escape: a list beside the codes has its place in the row and its high byte.

use std::ops::Range;

use bigsmall_format::internal::for_each_in_parallel;
use bigsmall_format::{Dtype, Result};

use crate::aligned::Aligned;
use crate::kernels::{
    Chains, Column, Escape, Kernels, NIBBLE_CELL, Nibbles, PAIR_CELL, PAIRS, Pairs,
};
use crate::layout::TILE;

/// Weights that are packed at a time.
const PIECE: usize = 1 << 20;

/// What a code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// Four bits: one of the 16 high bytes.
    Nibble,
    /// Seven bits: the high bytes of two weights, one of [`PAIRS`].
    Pair,
}

impl Code {
    /// The weights of a cell, the smallest part of a row that kernels read.
    const fn cell(self) -> usize {
        match self {
            Code::Nibble => TILE,
            Code::Pair => 2 * TILE,
        }
    }

    /// Whether rows of so many weights take fewer bytes than with the other code.
    pub(crate) fn is_smaller(self, cols: usize) -> bool {
        let bytes = |code: Code| cols.div_ceil(code.cell()) * code.cell_bytes();
        let other = if self == Code::Pair { Code::Nibble } else { Code::Pair };
        bytes(self) < bytes(other)
    }

    /// The bytes of a cell.
    const fn cell_bytes(self) -> usize {
        match self {
            Code::Nibble => NIBBLE_CELL,
            Code::Pair => PAIR_CELL,
        }
    }
}

/// A matrix of bf16 weights. Only [`pack`](Self::pack) makes one.
#[derive(Clone)]
pub(crate) struct CodeMatrix {
    code: Code,
    /// Cells of a row; the last one is filled up.
    cells: usize,
    /// The cells of all rows.
    bytes: Aligned,
    /// The high bytes that have codes, for each row.
    high: Vec<[u8; 16]>,
    /// In the order of the weights.
    escapes: Vec<Escape>,
    /// For each row the number of escapes before it, and at the end the number of all.
    starts: Vec<u32>,
}

impl CodeMatrix {
    /// Packs a matrix in one pass: `read` fills a buffer with whole rows from the given one on.
    /// `None` if more than this share of the weights are escapes, or 2^32 of them, or if a row is
    /// too long for the places of its escapes.
    pub(crate) fn pack(
        code: Code,
        rows: usize,
        cols: usize,
        most_escapes: f64,
        read: impl Fn(usize, &mut [u8]) -> Result<()> + Sync,
    ) -> Result<Option<Self>> {
        let cells = cols.div_ceil(code.cell());
        if cols > Escape::MOST_PLACES {
            return Ok(None);
        }
        let len = cells * code.cell_bytes();
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
                    high[i] = pack_row(code, weights.as_chunks().0, out, escapes);
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
        let mut sum = 0;
        let sums = counts.iter().map(|n| {
            sum += n;
            u32::try_from(sum)
        });
        let Ok(starts) = std::iter::once(Ok(0)).chain(sums).collect() else {
            return Ok(None);
        };
        let escapes = of_pieces.concat();
        Ok(Some(CodeMatrix { code, cells, bytes, high, escapes, starts }))
    }

    pub(crate) fn code(&self) -> Code {
        self.code
    }

    /// Bytes that the matrix takes.
    pub(crate) fn byte_len(&self) -> u64 {
        let escapes = size_of_val(&self.escapes[..]) + size_of_val(&self.starts[..]);
        (self.bytes.len() + size_of_val(&self.high[..]) + escapes) as u64
    }

    /// The bytes of some cells of a row.
    fn bytes_of(&self, row: usize, cells: Range<usize>) -> &[u8] {
        let cell = self.code.cell_bytes();
        &self.bytes[(row * self.cells + cells.start) * cell..][..cells.len() * cell]
    }

    fn nibbles(&self, row: usize, cells: Range<usize>) -> Nibbles<'_> {
        Nibbles { high: &self.high[row], cells: self.bytes_of(row, cells).as_chunks().0 }
    }

    fn pairs(&self, row: usize, cells: Range<usize>) -> Pairs<'_> {
        Pairs { high: &self.high[row], cells: self.bytes_of(row, cells).as_chunks().0 }
    }

    /// The escapes among some weights of a row.
    fn escapes(&self, row: usize, range: Range<usize>) -> &[Escape] {
        let of_row = self.starts[row] as usize..self.starts[row + 1] as usize;
        let escapes = &self.escapes[of_row];
        let begin = escapes.partition_point(|e| e.place() < range.start);
        let end = escapes.partition_point(|e| e.place() < range.end);
        &escapes[begin..end]
    }

    /// The sum of the products of the weights `range` of a row, whole cells but at the end of the
    /// row, with a column, of at most 64 tiles. `chains` are zeros before and after; `buffer` is
    /// memory for weights.
    pub(crate) fn sum(
        &self,
        row: usize,
        range: Range<usize>,
        column: Column<'_>,
        chains: &mut Chains,
        kernels: &Kernels,
        buffer: &mut Vec<u8>,
    ) -> f32 {
        let cell = self.code.cell();
        let cells = range.start / cell..range.end.div_ceil(cell);
        match (self.code, kernels.sum_of_pairs) {
            (Code::Nibble, _) => self.dot_nibbles(row, range, column, chains, kernels),
            (Code::Pair, Some(sum)) => {
                let first = range.start;
                return sum(&self.pairs(row, cells), self.escapes(row, range), first, column);
            }
            (Code::Pair, None) => {
                buffer.resize(cells.len() * 2 * cell, 0);
                self.unpack(row, cells, buffer, kernels);
                (kernels.dot_plain)(Dtype::BF16, &buffer[..2 * column.x.len()], column, chains);
            }
        }
        (kernels.take_sum)(chains)
    }

    /// The kernel multiplies the tiles up to one with escapes, which is unpacked.
    fn dot_nibbles(
        &self,
        row: usize,
        range: Range<usize>,
        column: Column<'_>,
        chains: &mut Chains,
        kernels: &Kernels,
    ) {
        let first = range.start / TILE;
        let tiles = first..range.end.div_ceil(TILE);
        let mut next = tiles.start;
        let mut escapes = self.escapes(row, range);
        while let Some(escape) = escapes.first() {
            let tile = escape.place() / TILE;
            let of_tile = escapes.partition_point(|e| e.place() / TILE == tile);
            escapes = &escapes[of_tile..];
            (kernels.dot_nibbles)(
                &self.nibbles(row, next..tile),
                column.skip_tiles(next - first).first_tiles(tile - next),
                chains,
            );
            let mut weights = [0; 2 * TILE];
            self.unpack(row, tile..tile + 1, &mut weights, kernels);
            let column = column.skip_tiles(tile - first).first_tiles(1);
            (kernels.dot_plain)(Dtype::BF16, &weights, column, chains);
            next = tile + 1;
        }
        (kernels.dot_nibbles)(
            &self.nibbles(row, next..tiles.end),
            column.skip_tiles(next - first),
            chains,
        );
    }

    /// Writes the weights of some cells of a row.
    fn unpack(&self, row: usize, cells: Range<usize>, out: &mut [u8], kernels: &Kernels) {
        match self.code {
            Code::Nibble => (kernels.unpack_nibbles)(&self.nibbles(row, cells.clone()), out),
            Code::Pair => (kernels.unpack_pairs)(&self.pairs(row, cells.clone()), out),
        }
        let cell = self.code.cell();
        let first = cells.start * cell;
        for escape in self.escapes(row, first..cells.end * cell) {
            out[2 * (escape.place() - first) + 1] = escape.high();
        }
    }

    /// Writes the weights `range` of a row, which begins with a cell, to `dst`.
    pub(crate) fn decode(
        &self,
        row: usize,
        range: Range<usize>,
        dst: &mut [u8],
        kernels: &Kernels,
    ) {
        let size = self.code.cell();
        let first = range.start / size;
        let whole = first + range.len() / size;
        let (out, rest) = dst.split_at_mut(2 * size * (whole - first));
        self.unpack(row, first..whole, out, kernels);
        if !rest.is_empty() {
            let mut weights = [0; 2 * Code::Pair.cell()];
            self.unpack(row, whole..whole + 1, &mut weights[..2 * size], kernels);
            rest.copy_from_slice(&weights[..rest.len()]);
        }
    }
}

/// Instead of the number of a high byte in the table of its row: it is not in the table.
const NONE: u8 = 16;

/// Packs the weights of a row into its cells, which are zeros before. Returns the table of its high
/// bytes.
fn pack_row(
    code: Code,
    weights: &[[u8; 2]],
    out: &mut [u8],
    escapes: &mut Vec<Escape>,
) -> [u8; 16] {
    let mut counts = [0u32; 256];
    weights.iter().for_each(|&[_, high]| counts[usize::from(high)] += 1);
    let mut by_count: [u8; 256] = std::array::from_fn(|i| i as u8);
    // Stable, so equal counts have the same order on every machine.
    by_count.sort_by_key(|&high| std::cmp::Reverse(counts[usize::from(high)]));
    let mut table: [u8; 16] = std::array::from_fn(|number| by_count[number]);
    if !weights.len().is_multiple_of(code.cell()) {
        // What fills up the last cell has number 0. It is positive, as zeros are that fill up plain
        // weights: a sum of -0.0 becomes +0.0. Its low bytes are 0, so it is neither infinite nor
        // NaN.
        let positive = table.iter().position(|&high| high < 0x80).unwrap_or_else(|| {
            table[15] = 0;
            15
        });
        table.swap(0, positive);
    }
    let mut numbers = [NONE; 256];
    (0..).zip(table).for_each(|(number, high)| numbers[usize::from(high)] = number);
    let cells = out.chunks_exact_mut(code.cell_bytes()).zip(weights.chunks(code.cell()));
    for (cell, (out, weights)) in cells.enumerate() {
        let first = cell * code.cell();
        match code {
            Code::Nibble => pack_nibbles(weights, first, &numbers, out, escapes),
            Code::Pair => pack_pairs(weights, first, &numbers, out, escapes),
        }
    }
    table
}

/// Packs a cell. `first` is the place of its first weight in the row.
fn pack_nibbles(
    weights: &[[u8; 2]],
    first: usize,
    numbers: &[u8; 256],
    cell: &mut [u8],
    escapes: &mut Vec<Escape>,
) {
    let (codes, lows) = cell.split_at_mut(TILE / 2);
    for (i, &[low, high]) in weights.iter().enumerate() {
        lows[i] = low;
        let mut code = numbers[usize::from(high)];
        if code == NONE {
            escapes.push(Escape::new(first + i, high));
            code = 0;
        }
        codes[i % (TILE / 2)] |= code << (i / (TILE / 2) * 4);
    }
}

/// The same for pairs.
fn pack_pairs(
    weights: &[[u8; 2]],
    first: usize,
    numbers: &[u8; 256],
    cell: &mut [u8],
    escapes: &mut Vec<Escape>,
) {
    let (codes, lows) = cell.split_at_mut(PAIR_CELL - 2 * TILE);
    lows.iter_mut().zip(weights).for_each(|(out, &[low, _])| *out = low);
    let begin = escapes.len();
    for i in 0..TILE {
        let places = [i, TILE + i];
        let mut pair =
            places.map(|i| weights.get(i).map_or(0, |&[_, high]| numbers[usize::from(high)]));
        let code = loop {
            if let Some(code) = code_of_pair(pair) {
                break code;
            }
            // The rarer one becomes an escape, with number 0 instead. Mostly the other one has a
            // code then.
            let rare = usize::from(pair[1] > pair[0]);
            pair[rare] = 0;
            escapes.push(Escape::new(first + places[rare], weights[places[rare]][1]));
        };
        let bit = 7 * i;
        let shifted = (u16::from(code) << (bit % 8)).to_le_bytes();
        codes[bit / 8] |= shifted[0];
        if shifted[1] != 0 {
            codes[bit / 8 + 1] |= shifted[1];
        }
    }
    escapes[begin..].sort_unstable();
}

/// The code of two numbers, if [`PAIRS`] has them.
fn code_of_pair([a, b]: [u8; 2]) -> Option<u8> {
    const NOT: u8 = 255;
    const CODES: [[u8; 16]; 16] = {
        let mut codes = [[NOT; 16]; 16];
        let mut code = 0;
        while code < PAIRS[0].len() {
            codes[PAIRS[0][code] as usize][PAIRS[1][code] as usize] = code as u8;
            code += 1;
        }
        codes
    };
    let code = *CODES.get(usize::from(a))?.get(usize::from(b))?;
    (code != NOT).then_some(code)
}
