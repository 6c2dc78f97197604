//! The resident forms of a matrix: how its weights are laid out in device memory. They are made
//! during an upload and are never written to a file.
//!
//! A row is divided into blocks of 1024 weights, which 32 lanes share. In block b, lane l holds at
//! step s the weights k = b * 1024 + s * 128 + l * 4 + j, with j = 0 to 3. The weights after the
//! last whole block are the tail, in steps of 128. The shaders in `shaders/` read this layout;
//! `shaders/params.wgsl` describes it from their side.

/// Weights in a block of a row.
pub(crate) const BLOCK: usize = 1024;
/// Weights in a step of a row.
pub(crate) const STEP: usize = 128;
/// Blocks in a segment of a row. Each segment has its own list of escapes.
pub(crate) const SEGMENT_BLOCKS: usize = 16;
/// Lanes that share a row.
pub(crate) const LANES: usize = 32;

/// The form of a matrix in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resident {
    /// bf16, not compressed: 16 bits per weight.
    Plain,
    /// For each weight a byte of sign and mantissa, and a code of 3 bits for the exponent. A
    /// separate list holds the exponents without a code (escapes). About 11.3 bits per weight.
    Dense3,
    /// Like [`Dense3`](Self::Dense3), with codes of 4 bits: about 12.1 bits per weight, and the
    /// fastest of the two to decode.
    Dense4,
}

impl Resident {
    /// Every resident form.
    pub const ALL: [Resident; 3] = [Resident::Plain, Resident::Dense3, Resident::Dense4];

    /// The name in tables: `"plain"`, `"dense3"`, `"dense4"`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Resident::Plain => "plain",
            Resident::Dense3 => "dense3",
            Resident::Dense4 => "dense4",
        }
    }

    /// Bits of a code; 0 for the form without codes.
    pub(crate) const fn width(self) -> u32 {
        match self {
            Resident::Plain => 0,
            Resident::Dense3 => 3,
            Resident::Dense4 => 4,
        }
    }
}

/// The shape of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowShape {
    pub(crate) cols: usize,
    /// Number of whole blocks.
    pub(crate) blocks: usize,
    /// Number of steps in the tail.
    pub(crate) tail: usize,
    /// Number of segments. The tail counts as one block.
    pub(crate) segments: usize,
}

impl RowShape {
    pub(crate) fn new(cols: usize) -> Self {
        let blocks = cols / BLOCK;
        let tail = (cols % BLOCK).div_ceil(STEP);
        let segments = (blocks + usize::from(tail != 0)).div_ceil(SEGMENT_BLOCKS);
        RowShape { cols, blocks, tail, segments }
    }

    /// Words per row in the plain form.
    pub(crate) fn plain_words(&self) -> usize {
        self.blocks * (BLOCK / 2) + self.tail * (STEP / 2)
    }

    /// Words of signs and mantissas per row.
    pub(crate) fn byte_words(&self) -> usize {
        self.blocks * (BLOCK / 4) + self.tail * (STEP / 4)
    }

    /// Words of codes per row.
    pub(crate) fn code_words(&self, width: u32) -> usize {
        let tail_words =
            if width == 3 { self.tail.div_ceil(2).min(3) } else { self.tail.div_ceil(2) };
        self.blocks * LANES * width as usize + tail_words * LANES
    }

    /// Words that the resident form takes for `rows` rows with `escapes` escapes.
    pub(crate) fn resident_words(&self, form: Resident, rows: u64, escapes: u64) -> u64 {
        match form {
            Resident::Plain => rows * self.plain_words() as u64,
            Resident::Dense3 | Resident::Dense4 => {
                let row = self.byte_words() + self.code_words(form.width()) + self.segments * 17;
                rows * row as u64 + escapes.div_ceil(4)
            }
        }
    }
}

/// The number of weights with each exponent.
pub(crate) type Histogram = [u64; 256];

/// Adds the exponents of `weights` (bf16) to `counts`.
pub(crate) fn count_exponents(weights: &[u16], counts: &mut Histogram) {
    // Four tables: neighbouring weights often have the same exponent, and the increments of one
    // counter would wait for each other.
    let mut tables = [[0u32; 256]; 4];
    // The size of a piece keeps the u32 counters from overflowing.
    for piece in weights.chunks(1 << 30) {
        let (fours, rest) = piece.as_chunks::<4>();
        for four in fours {
            for (table, w) in tables.iter_mut().zip(four) {
                table[usize::from((w >> 7) & 0xff)] += 1;
            }
        }
        for w in rest {
            tables[0][usize::from((w >> 7) & 0xff)] += 1;
        }
        for table in &mut tables {
            for (sum, n) in counts.iter_mut().zip(table) {
                *sum += u64::from(*n);
                *n = 0;
            }
        }
    }
}

/// Chooses the window of 2^width - 1 exponents that covers the most weights. Returns its first
/// exponent (base) and the number of weights outside it (escapes). If several windows cover the
/// same number of weights, the smallest base is taken. The base plus the escape code, which is the
/// largest code, is at most 255. So the kernels can add the base to four packed codes at once
/// without a carry between bytes.
pub(crate) fn choose_window(counts: &Histogram, width: u32) -> (u8, u64) {
    let span = (1usize << width) - 1;
    let total: u64 = counts.iter().sum();
    let mut covered: u64 = counts[..span].iter().sum();
    let (mut best, mut base) = (covered, 0);
    for first in 1..=255 - span {
        covered = covered - counts[first - 1] + counts[first + span - 1];
        if covered > best {
            (best, base) = (covered, first);
        }
    }
    (base as u8, total - best)
}

/// The number of weights outside the window that begins at `base`.
pub(crate) fn escapes_outside(counts: &Histogram, base: u8, width: u32) -> u64 {
    let first = usize::from(base);
    let inside = first..first + (1 << width) - 1;
    counts.iter().sum::<u64>() - counts[inside].iter().sum::<u64>()
}

/// The range of the magnitudes of nonzero weights, from `least + 1` to `most`. A magnitude is the
/// bf16 pattern without its sign bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Binades {
    least: u16,
    most: u16,
}

impl Binades {
    /// The range of an empty set of weights.
    pub(crate) const NONE: Binades = Binades { least: u16::MAX, most: 0 };

    /// The range from `least + 1` to `most`, both included.
    pub(crate) const fn between(least: u16, most: u16) -> Self {
        Binades { least, most }
    }

    /// Extends the range to cover `weights`.
    pub(crate) fn and(self, weights: &[u16]) -> Self {
        weights.iter().fold(self, |Binades { least, most }, w| {
            let magnitude = w & 0x7fff;
            // Zero is exact in any form. It wraps to the largest value, so `min` ignores it.
            let nonzero = magnitude.wrapping_sub(1);
            Binades { least: least.min(nonzero), most: most.max(magnitude) }
        })
    }

    /// The offset to add to bf16 exponents to get f16 exponents. With it, every weight times one
    /// common power of two is exact in f16. A bf16 significand has 8 bits. f16 has 30 binades of
    /// 11 bits and, below them, binades of 10, 9 and 8 bits: 33 in all. `None` if the weights span
    /// more binades, or include denormals, infinities or NaN. At most 1, since the kernels count on
    /// it for zeros: only weights below 2^-97 could have more.
    pub(crate) fn half_offset(self) -> Option<i32> {
        if self.most == 0 {
            return Some(0);
        }
        let (least, most) = (i32::from((self.least + 1) >> 7), i32::from(self.most >> 7));
        // The power of two itself must be a normal f32.
        (least >= 1 && (16..255).contains(&most) && most - least < 33).then_some((30 - most).min(1))
    }
}

/// Writes rows in the plain form. Padding is zero.
pub(crate) fn pack_plain(weights: &[u16], shape: &RowShape, out: &mut [u32]) {
    out.fill(0);
    if shape.cols == 0 {
        return;
    }
    let rows = weights.chunks_exact(shape.cols).zip(out.chunks_exact_mut(shape.plain_words()));
    for (row, out) in rows {
        let whole = shape.blocks * BLOCK;
        for (i, four) in row.chunks(4).enumerate() {
            let w = |j: usize| four.get(j).map_or(0, |&w| u32::from(w));
            let (step, lane) = (i / LANES, i % LANES);
            let at = if i * 4 < whole {
                // Two steps share a vec4 of the lane.
                (step / 2) * LANES * 4 + lane * 4 + (step % 2) * 2
            } else {
                i * 2
            };
            out[at] = w(0) | w(2) << 16;
            out[at + 1] = w(1) | w(3) << 16;
        }
    }
}

/// Rows in one of the dense forms.
#[derive(Default)]
pub(crate) struct Dense {
    /// Signs and mantissas, four per word, as `shaders/dense.wgsl` describes.
    pub(crate) bytes: Vec<u32>,
    pub(crate) codes: Vec<u32>,
    /// Exponents of escaped weights.
    pub(crate) escapes: Vec<u8>,
    /// For each (row, segment), the index of its first escape in `escapes`.
    pub(crate) bases: Vec<u32>,
    /// For each (row, segment) and lane, the index of the lane's first escape relative to `bases`:
    /// 32 values of 16 bits in 16 words.
    pub(crate) starts: Vec<u32>,
}

/// Packs rows into the dense form with codes of `width` bits, for the window that begins at
/// `base`.
pub(crate) fn pack_dense(weights: &[u16], shape: &RowShape, width: u32, base: u8) -> Dense {
    let mut dense = Dense::default();
    if shape.cols == 0 {
        return dense;
    }
    let n_rows = weights.len() / shape.cols;
    dense.bytes = vec![0; n_rows * shape.byte_words()];
    dense.codes = vec![0; n_rows * shape.code_words(width)];
    dense.bases.reserve_exact(n_rows * shape.segments);
    dense.starts.reserve_exact(n_rows * shape.segments * 16);
    let all_ones = (1u8 << width) - 1;
    // The escapes of one segment as (lane, exponent), in the order of k.
    let mut found: Vec<(u8, u8)> = Vec::new();
    let rows = weights
        .chunks_exact(shape.cols)
        .zip(dense.bytes.chunks_exact_mut(shape.byte_words()))
        .zip(dense.codes.chunks_exact_mut(shape.code_words(width)));
    for ((row, bytes), codes) in rows {
        for (s, segment) in row.chunks(SEGMENT_BLOCKS * BLOCK).enumerate() {
            found.clear();
            let mut in_lane = [0u16; LANES];
            for (b, block) in segment.chunks(BLOCK).enumerate() {
                let b = s * SEGMENT_BLOCKS + b;
                let whole = block.len() == BLOCK;
                for (i, four) in block.chunks(4).enumerate() {
                    let (step, lane) = (i / LANES, i % LANES);
                    let (mut pair, mut code4) = ([0u32; 2], 0);
                    for (j, &w) in four.iter().enumerate() {
                        let exponent = (w >> 7) as u8;
                        let mut code = exponent.wrapping_sub(base);
                        if code >= all_ones {
                            code = all_ones;
                            found.push((lane as u8, exponent));
                            in_lane[lane] += 1;
                        }
                        pair[j % 2] |= u32::from(w & 0x807f) << (8 * (j & 2));
                        code4 |= u32::from(code) << (8 * j);
                    }
                    bytes[b * (BLOCK / 4) + byte_place(whole, step, lane)] =
                        pair[0] | pair[1].rotate_right(8);
                    let block_codes = &mut codes[b * LANES * width as usize..];
                    put_codes(block_codes, width, whole, step, lane, code4);
                }
            }
            let mut next = [0u32; LANES];
            let mut sum = 0;
            for (next, n) in next.iter_mut().zip(in_lane) {
                *next = sum;
                sum += u32::from(n);
            }
            let first = dense.escapes.len();
            dense.bases.push(first as u32);
            dense.starts.extend(next.as_chunks::<2>().0.iter().map(|[a, b]| a | b << 16));
            dense.escapes.resize(first + found.len(), 0);
            for &(lane, exponent) in &found {
                let next = &mut next[usize::from(lane)];
                dense.escapes[first + *next as usize] = exponent;
                *next += 1;
            }
        }
    }
    dense
}

/// The word, relative to the block, that holds the four bytes of a step and lane. In a whole block
/// one vec4 holds four steps of one lane; in the tail it holds one step of four lanes.
fn byte_place(whole: bool, step: usize, lane: usize) -> usize {
    if whole { (step / 4) * LANES * 4 + lane * 4 + step % 4 } else { step * LANES + lane }
}

/// Stores the four codes of a step and lane in the layout that the shaders read.
fn put_codes(codes: &mut [u32], width: u32, whole: bool, step: usize, lane: usize, code4: u32) {
    match (width, step) {
        (4, _) => {
            let at = if whole { lane * 4 + step / 2 } else { (step / 2) * LANES + lane };
            codes[at] |= code4 << (4 * (step % 2));
        }
        (_, 0..6) => codes[(step / 2) * LANES + lane] |= code4 << (4 * (step % 2)),
        (_, _) => {
            for bit in 0..3 {
                codes[bit * LANES + lane] |= ((code4 >> bit) & 0x0101_0101) << (4 * step - 21);
            }
        }
    }
}
