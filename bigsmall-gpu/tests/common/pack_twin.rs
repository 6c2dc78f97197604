//! `count_exponents.wgsl`, `pack_dense.wgsl` and `pack_escapes.wgsl` in Rust, on the same words.

use crate::layout::{RowShape, SEGMENT_BLOCKS};

/// One dispatch: the parameters and the contents of binding 1.
pub struct PackTwin {
    /// Rows of this shard.
    pub rows: usize,
    pub first_row: usize,
    pub all_rows: usize,
    pub shape: RowShape,
    pub width: u32,
    pub base: u32,
    flat: Vec<u32>,
}

impl PackTwin {
    /// A whole matrix, or the rows of one shard.
    pub fn new(weights: &[u16], cols: usize, shard: std::ops::Range<usize>, width: u32) -> Self {
        let word = |two: &[u16]| {
            two.iter().enumerate().fold(0, |word, (j, w)| word | u32::from(*w) << (16 * j))
        };
        PackTwin {
            rows: shard.len(),
            first_row: shard.start,
            all_rows: weights.len() / cols,
            shape: RowShape::new(cols),
            width,
            base: 0,
            flat: weights.chunks(2).map(word).collect(),
        }
    }

    /// Reads a word. Beyond the end a device returns an unspecified value; here it is all ones.
    fn flat(&self, at: usize) -> u32 {
        self.flat.get(at).copied().unwrap_or(u32::MAX)
    }

    fn columns_at(&self, k: usize) -> usize {
        if k < self.shape.cols { (self.shape.cols - k).min(4) } else { 0 }
    }

    fn four_weights(&self, row: usize, k: usize) -> [u32; 2] {
        let have = self.columns_at(k);
        if have == 0 {
            return [0; 2];
        }
        let i = (self.first_row + row) * self.shape.cols + k;
        let at = i >> 1;
        let mut four = [self.flat(at), self.flat(at + 1)];
        if i & 1 != 0 {
            four = [four[0] >> 16 | four[1] << 16, four[1] >> 16 | self.flat(at + 2) << 16];
        }
        let x = if have > 1 { u32::MAX } else { 0xffff };
        let y = [0, 0xffff, u32::MAX][have.saturating_sub(2)];
        [four[0] & x, four[1] & y]
    }

    fn exponents([x, y]: [u32; 2]) -> u32 {
        low_bytes([(x >> 7) & 0x00ff_00ff, (y >> 7) & 0x00ff_00ff])
    }

    fn sign_mantissas(four: [u32; 2]) -> u32 {
        let [x, y] = four;
        let even = ((x & 0xffff) | (y << 16)) & 0x807f_807f;
        let odd = ((x >> 16) | (y & 0xffff_0000)) & 0x807f_807f;
        even | odd.rotate_right(8)
    }

    /// The number of weights with each exponent; 0xffff - (m - 1), where m is the smallest nonzero
    /// magnitude; the largest magnitude.
    pub fn count(&self) -> [u32; 258] {
        const WORDS: usize = 16_384;
        let weights = self.all_rows * self.shape.cols;
        let mut found = [0u32; 258];
        for workgroup in 0..self.flat.len().div_ceil(WORDS) {
            let mut tables = [0u32; 2048];
            let (mut above, mut largest) = (0, 0);
            for thread in 0..256 {
                for i in (0..WORDS).step_by(256) {
                    let at = workgroup * WORDS + thread + i;
                    let exists = at < (weights >> 1) + (weights & 1);
                    let have = if exists { 2.min(weights - 2 * at) } else { 0 };
                    for j in 0..have {
                        let magnitude = (self.flat(at) >> (j * 16)) & 0x7fff;
                        tables[(magnitude >> 7) as usize * 8 + (thread & 7)] += 1;
                        above = above.max(0xffff - (magnitude.wrapping_sub(1) & 0xffff));
                        largest = largest.max(magnitude);
                    }
                }
            }
            for (found, eight) in found.iter_mut().zip(tables.as_chunks::<8>().0) {
                *found += eight.iter().sum::<u32>();
            }
            found[256] = found[256].max(above);
            found[257] = found[257].max(largest);
        }
        found
    }

    fn all_ones(&self) -> u32 {
        (1 << self.width) - 1
    }

    fn tail_words(&self) -> usize {
        let words = (self.shape.tail + 1) >> 1;
        if self.width == 3 { words.min(3) } else { words }
    }

    fn codes_at(&self, row: usize, block: usize) -> usize {
        let block_words = 32 * self.width as usize;
        row * (self.shape.blocks * block_words + self.tail_words() * 32) + block * block_words
    }

    fn with_codes(&self, mut words: [u32; 4], step: usize, four: u32) -> [u32; 4] {
        if self.width == 4 || step < 6 {
            words[step >> 1] |= four << ((step as u32 & 1) * 4);
            return words;
        }
        for (i, word) in words.iter_mut().enumerate().take(3) {
            *word |= ((four >> i) & 0x0101_0101) << (3 + (step & 1) * 4);
        }
        words
    }

    fn write_codes(&self, codes: &mut [u32], at: usize, lane: usize, whole: bool, words: [u32; 4]) {
        let n = if whole { self.width as usize } else { self.tail_words() };
        let side_by_side = whole && self.width == 4;
        let (first, next) = if side_by_side { (at + lane * 4, 1) } else { (at + lane, 32) };
        for (i, word) in words.into_iter().take(n).enumerate() {
            codes[first + i * next] = word;
        }
    }

    fn blocks_of(&self, segment: usize) -> std::ops::Range<usize> {
        let all = self.shape.blocks + usize::from(self.shape.tail != 0);
        segment * SEGMENT_BLOCKS..all.min((segment + 1) * SEGMENT_BLOCKS)
    }

    /// Bytes, codes, and starts, which begin with the number of escapes of each (row, segment).
    pub fn pack_dense(&self) -> [Vec<u32>; 3] {
        // Words that the kernel does not write keep this value, and a comparison finds them.
        const NOTHING: u32 = 0xdead_beef;
        let RowShape { blocks, tail, segments, .. } = self.shape;
        let mut bytes = vec![NOTHING; self.rows * self.shape.byte_words()];
        let mut codes = vec![NOTHING; self.rows * self.shape.code_words(self.width)];
        let mut starts = vec![NOTHING; self.rows * segments * 17];
        for i in 0..self.rows * segments {
            let (row, segment) = (i / segments, i % segments);
            let mut escaped = [0u32; 32];
            for (lane, n) in escaped.iter_mut().enumerate() {
                for block in self.blocks_of(segment) {
                    let whole = block < blocks;
                    let bytes_at = row * (blocks * 256 + tail * 32) + block * 256;
                    let mut words = [0; 4];
                    for step in 0..if whole { 8 } else { tail } {
                        let k = block * 1024 + step * 128 + lane * 4;
                        let four = self.four_weights(row, k);
                        let e = Self::exponents(four);
                        let mut four_codes = 0;
                        for j in 0..self.columns_at(k) {
                            let exponent = (e >> (j * 8)) & 0xff;
                            let code =
                                (exponent.wrapping_sub(self.base) & 0xff).min(self.all_ones());
                            four_codes |= code << (j * 8);
                            *n += u32::from(code == self.all_ones());
                        }
                        let place = if whole {
                            (step >> 2) * 128 + lane * 4 + (step & 3)
                        } else {
                            step * 32 + lane
                        };
                        bytes[bytes_at + place] = Self::sign_mantissas(four);
                        words = self.with_codes(words, step, four_codes);
                    }
                    self.write_codes(&mut codes, self.codes_at(row, block), lane, whole, words);
                }
            }
            for lane in (0..32).step_by(2) {
                let before: u32 = escaped[..lane].iter().sum();
                starts[self.rows * segments + i * 16 + lane / 2] =
                    before | (before + escaped[lane]) << 16;
            }
            starts[i] = escaped.iter().sum();
        }
        [bytes, codes, starts]
    }

    /// `words` words of escapes.
    pub fn pack_escapes(&self, starts: &[u32], words: usize) -> Vec<u32> {
        let mut escapes = vec![0u32; words];
        let segments = self.shape.segments;
        for i in 0..self.rows * segments {
            let (row, segment) = (i / segments, i % segments);
            for lane in 0..32 {
                let two = starts[self.rows * segments + i * 16 + lane / 2];
                let mut next = starts[i] + ((two >> ((lane as u32 & 1) * 16)) & 0xffff);
                for block in self.blocks_of(segment) {
                    for step in 0..if block < self.shape.blocks { 8 } else { self.shape.tail } {
                        let k = block * 1024 + step * 128 + lane * 4;
                        let e = Self::exponents(self.four_weights(row, k));
                        for j in 0..self.columns_at(k) {
                            let exponent = (e >> (j * 8)) & 0xff;
                            if exponent.wrapping_sub(self.base) & 0xff >= self.all_ones() {
                                escapes[next as usize >> 2] |= exponent << ((next & 3) * 8);
                                next += 1;
                            }
                        }
                    }
                }
            }
        }
        escapes
    }
}

fn low_bytes([x, y]: [u32; 2]) -> u32 {
    (x & 0xff) | ((x >> 8) & 0xff00) | ((y & 0xff) << 16) | ((y & 0x00ff_0000) << 8)
}
