//! The shaders in Rust, function by function, on the same words. So a kernel can be debugged and
//! tested without a GPU.

use crate::layout::{self, Resident, RowShape, SEGMENT_BLOCKS};

/// A matrix in resident form, with the contents of a shader's bindings.
pub struct Twin {
    rows: usize,
    shape: RowShape,
    form: Resident,
    /// Binding 3: plain weights or sign-mantissa bytes.
    main: Vec<u32>,
    codes: Vec<u32>,
    escapes: Vec<u32>,
    starts: Vec<u32>,
    base: u32,
    /// The implementation of `fma`, fused or not: WGSL leaves this to the device.
    fma: fn(f32, f32, f32) -> f32,
}

/// `fma` with one rounding.
pub fn fused(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}

/// `fma` with two roundings.
pub fn unfused(a: f32, b: f32, c: f32) -> f32 {
    a * b + c
}

type Pair = [u32; 2];

impl Twin {
    pub fn new(
        weights: &[u16],
        rows: usize,
        cols: usize,
        form: Resident,
        fma: fn(f32, f32, f32) -> f32,
    ) -> Self {
        let shape = RowShape::new(cols);
        let mut twin = Twin {
            rows,
            shape,
            form,
            main: Vec::new(),
            codes: Vec::new(),
            escapes: Vec::new(),
            starts: Vec::new(),
            base: 0,
            fma,
        };
        if form == Resident::Plain {
            twin.main = vec![0; rows * shape.plain_words()];
            layout::pack_plain(weights, &shape, &mut twin.main);
        } else {
            let mut counts = [0; 256];
            layout::count_exponents(weights, &mut counts);
            let (base, n_escapes) = layout::choose_window(&counts, form.width());
            assert_eq!(n_escapes, layout::escapes_outside(&counts, base, form.width()));
            let dense = layout::pack_dense(weights, &shape, form.width(), base);
            assert_eq!(dense.escapes.len() as u64, n_escapes);
            twin.base = u32::from(base) * 0x0101_0101;
            twin.main = dense.bytes;
            twin.codes = dense.codes;
            twin.starts = dense.bases;
            twin.starts.extend(dense.starts);
            let mut escapes = dense.escapes;
            escapes.resize(escapes.len().next_multiple_of(4), 0);
            twin.escapes =
                escapes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        }
        let words = twin.main.len() + twin.codes.len() + twin.starts.len() + twin.escapes.len();
        let escapes = 4 * twin.escapes.len() as u64;
        assert_eq!(words as u64, shape.resident_words(form, rows as u64, escapes));
        twin
    }

    fn open_segment(&self, row: usize, segment: usize, lane: usize) -> u32 {
        if self.form == Resident::Plain {
            return 0;
        }
        let i = row * self.shape.segments + segment;
        let two = self.starts[self.rows * self.shape.segments + i * 16 + (lane >> 1)];
        self.starts[i] + ((two >> ((lane & 1) * 16)) & 0xffff)
    }

    fn escape_at(&self, i: u32) -> u32 {
        (self.escapes[(i >> 2) as usize] >> ((i & 3) * 8)) & 0xff
    }

    fn patch_exponents(&self, mut e: u32, mut marks: u32, cursor: &mut u32) -> u32 {
        while marks != 0 {
            let shift = marks.trailing_zeros() & 24;
            marks &= marks - 1;
            e = (e & !(0xff << shift)) | (self.escape_at(*cursor) << shift);
            *cursor += 1;
        }
        e
    }

    fn tail_code_words(&self) -> usize {
        let words = (self.shape.tail + 1) >> 1;
        if self.form == Resident::Dense3 { words.min(3) } else { words }
    }

    /// The eight steps of a whole block.
    fn load_block(&self, row: usize, block: usize, lane: usize, cursor: &mut u32) -> [Pair; 8] {
        let RowShape { blocks, tail, .. } = self.shape;
        if self.form == Resident::Plain {
            let at = (row * (blocks * 128 + tail * 16) + block * 128 + lane) * 4;
            return std::array::from_fn(|s| {
                let at = at + (s / 2) * 128 + (s % 2) * 2;
                [self.main[at], self.main[at + 1]]
            });
        }
        let sm = |step: usize| {
            self.main[(row * (blocks * 64 + tail * 8) + block * 64 + (step >> 2) * 32 + lane) * 4
                + (step & 3)]
        };
        if self.form == Resident::Dense4 {
            let at = (row * (blocks * 32 + self.tail_code_words() * 8) + block * 32 + lane) * 4;
            return std::array::from_fn(|step| {
                let c = (self.codes[at + step / 2] >> (4 * (step % 2))) & 0x0f0f_0f0f;
                let marks = (c + 0x0101_0101) & 0x1010_1010;
                join(sm(step), self.patch_exponents(c + self.base, marks, cursor))
            });
        }
        let at = row * (blocks * 96 + self.tail_code_words() * 32) + block * 96 + lane;
        let (w0, w1, w2) = (self.codes[at], self.codes[at + 32], self.codes[at + 64]);
        let twos = [w0 & 0x7777_7777, w1 & 0x7777_7777, w2 & 0x7777_7777, last_codes(w0, w1, w2)];
        let mut slots: [u32; 8] = std::array::from_fn(|step| {
            ((twos[step / 2] >> (4 * (step % 2))) & 0x0f0f_0f0f) + self.base
        });
        let mut marks = find_escapes(twos);
        while marks != 0 {
            let bit = marks.trailing_zeros();
            marks &= marks - 1;
            let slot = &mut slots[(bit >> 2) as usize];
            let shift = (bit & 3) * 8;
            *slot = (*slot & !(0xff << shift)) | (self.escape_at(*cursor) << shift);
            *cursor += 1;
        }
        std::array::from_fn(|step| join(sm(step), slots[step]))
    }

    /// One step, of a whole block or of the tail.
    fn load_step(
        &self,
        row: usize,
        block: usize,
        step: usize,
        lane: usize,
        cursor: &mut u32,
    ) -> Pair {
        let RowShape { blocks, tail, .. } = self.shape;
        let whole = block < blocks;
        if self.form == Resident::Plain {
            let at = row * (blocks * 128 + tail * 16) + block * 128;
            let at = if whole {
                (at + (step >> 1) * 32 + lane) * 4 + (step & 1) * 2
            } else {
                (at + step * 16 + (lane >> 1)) * 4 + (lane & 1) * 2
            };
            return [self.main[at], self.main[at + 1]];
        }
        let at = row * (blocks * 64 + tail * 8) + block * 64;
        let sm = if whole {
            self.main[(at + (step >> 2) * 32 + lane) * 4 + (step & 3)]
        } else {
            self.main[(at + step * 8 + (lane >> 2)) * 4 + (lane & 3)]
        };
        let (c, marks);
        if self.form == Resident::Dense4 {
            let at = row * (blocks * 32 + self.tail_code_words() * 8) + block * 32;
            let w = if whole {
                self.codes[(at + lane) * 4 + (step >> 1)]
            } else {
                self.codes[(at + (step >> 1) * 8 + (lane >> 2)) * 4 + (lane & 3)]
            };
            c = (w >> ((step & 1) * 4)) & 0x0f0f_0f0f;
            marks = (c + 0x0101_0101) & 0x1010_1010;
        } else {
            let at = row * (blocks * 96 + self.tail_code_words() * 32) + block * 96 + lane;
            let two = if step < 6 {
                self.codes[at + (step >> 1) * 32]
            } else {
                last_codes(self.codes[at], self.codes[at + 32], self.codes[at + 64])
            };
            c = (two >> ((step & 1) * 4)) & 0x0707_0707;
            marks = (c + 0x0101_0101) & 0x0808_0808;
        }
        join(sm, self.patch_exponents(c + self.base, marks, cursor))
    }

    /// Row-major bf16 by `decode_rows`, with `load_block` for whole blocks.
    pub fn decode(&self) -> Vec<u16> {
        self.decode_by(|t, row, block, lane, cursor| t.load_block(row, block, lane, cursor))
    }

    /// The same step by step, as `gather` and `gemm` read.
    pub fn decode_by_steps(&self) -> Vec<u16> {
        self.decode_by(|t, row, block, lane, cursor| {
            std::array::from_fn(|step| t.load_step(row, block, step, lane, cursor))
        })
    }

    fn decode_by(
        &self,
        load: impl Fn(&Self, usize, usize, usize, &mut u32) -> [Pair; 8],
    ) -> Vec<u16> {
        let cols = self.shape.cols;
        let mut out = vec![0; self.rows * cols];
        for row in 0..self.rows {
            let out = &mut out[row * cols..(row + 1) * cols];
            for segment in 0..self.shape.segments {
                for lane in 0..32 {
                    let mut cursor = self.open_segment(row, segment, lane);
                    let end = self.shape.blocks.min((segment + 1) * SEGMENT_BLOCKS);
                    let mut write = |k: usize, [x, y]: Pair| {
                        for (j, w) in [x, y, x >> 16, y >> 16].into_iter().enumerate() {
                            if k + j < cols {
                                out[k + j] = w as u16;
                            }
                        }
                    };
                    for block in segment * SEGMENT_BLOCKS..end {
                        let pairs = load(self, row, block, lane, &mut cursor);
                        for (step, pair) in pairs.into_iter().enumerate() {
                            write(block * 1024 + step * 128 + lane * 4, pair);
                        }
                    }
                    if segment + 1 == self.shape.segments {
                        let block = self.shape.blocks;
                        for step in 0..self.shape.tail {
                            let pair = self.load_step(row, block, step, lane, &mut cursor);
                            write(block * 1024 + step * 128 + lane * 4, pair);
                        }
                    }
                }
            }
        }
        out
    }

    /// `x[k4]` of a column, zero after its end.
    fn x4(x: &[f32], k4: usize) -> [f32; 4] {
        std::array::from_fn(|j| x.get(k4 * 4 + j).copied().unwrap_or(0.0))
    }

    /// One column of `matvec`.
    pub fn matvec(&self, x: &[f32]) -> Vec<f32> {
        let x_stride = self.shape.cols.div_ceil(4);
        let row = |row: usize| {
            let mut partial: [f32; 32] = std::array::from_fn(|lane| {
                let mut total = 0.0;
                for segment in 0..self.shape.segments {
                    let mut cursor = self.open_segment(row, segment, lane);
                    let mut sum = 0.0;
                    let end = self.shape.blocks.min((segment + 1) * SEGMENT_BLOCKS);
                    for block in segment * SEGMENT_BLOCKS..end {
                        let pairs = self.load_block(row, block, lane, &mut cursor);
                        let mut chains = [0.0; 4];
                        for (step, pair) in pairs.into_iter().enumerate() {
                            let x = Self::x4(x, block * 256 + step * 32 + lane);
                            self.multiply(&mut chains, pair, x);
                        }
                        sum += (chains[0] + chains[1]) + (chains[2] + chains[3]);
                    }
                    if segment + 1 == self.shape.segments && self.shape.tail != 0 {
                        let mut chains = [0.0; 4];
                        let block = self.shape.blocks;
                        for step in 0..self.shape.tail {
                            let pair = self.load_step(row, block, step, lane, &mut cursor);
                            let k4 = block * 256 + step * 32 + lane;
                            if k4 < x_stride {
                                self.multiply(&mut chains, pair, Self::x4(x, k4));
                            }
                        }
                        sum += (chains[0] + chains[1]) + (chains[2] + chains[3]);
                    }
                    total += sum;
                }
                total
            });
            let mut half = 16;
            while half > 0 {
                for lane in 0..half {
                    partial[lane] += partial[lane + half];
                }
                half /= 2;
            }
            partial[0]
        };
        (0..self.rows).map(row).collect()
    }

    fn multiply(&self, chains: &mut [f32; 4], pair: Pair, x: [f32; 4]) {
        for ((chain, w), x) in chains.iter_mut().zip(weights(pair)).zip(x) {
            *chain = (self.fma)(w, x, *chain);
        }
    }

    /// One column of `gemm`.
    pub fn gemm(&self, x: &[f32]) -> Vec<f32> {
        let x_stride = self.shape.cols.next_multiple_of(16) / 4;
        let blocks = self.shape.blocks + usize::from(self.shape.tail != 0);
        let row = |row: usize| {
            let (mut total, mut part) = (0.0, 0.0);
            let mut cursors = [0; 32];
            for block in 0..blocks {
                if block % SEGMENT_BLOCKS == 0 {
                    let segment = block / SEGMENT_BLOCKS;
                    cursors = std::array::from_fn(|lane| self.open_segment(row, segment, lane));
                }
                let steps = if block < self.shape.blocks { 8 } else { self.shape.tail };
                for step in 0..steps {
                    let tile: [Pair; 32] = std::array::from_fn(|lane| {
                        self.load_step(row, block, step, lane, &mut cursors[lane])
                    });
                    let k4 = block * 256 + step * 32;
                    let mut sum = 0.0;
                    for run in 0..8.min((x_stride - k4) / 4) {
                        let mut chain = 0.0;
                        for (i, pair) in tile[run * 4..run * 4 + 4].iter().enumerate() {
                            let x = Self::x4(x, k4 + run * 4 + i);
                            for (w, x) in weights(*pair).into_iter().zip(x) {
                                chain = (self.fma)(w, x, chain);
                            }
                        }
                        sum += chain;
                    }
                    part += sum;
                }
                if block % 2 == 1 || block + 1 == blocks {
                    total += part;
                    part = 0.0;
                }
            }
            total
        };
        (0..self.rows).map(row).collect()
    }

    /// One column of `cooperative`, with emulated matrices, for a matrix whose exponents allow it.
    pub fn cooperative(&self, x: &[f32], half_offset: i32) -> Vec<f32> {
        let (halves, x_scale) = split_x(x);
        let scale = f32::from_bits(((15 - half_offset) as u32) << 23);
        let blocks = self.shape.blocks + usize::from(self.shape.tail != 0);
        let row = |row: usize| {
            let (mut total, mut part) = (0.0, 0.0);
            let mut cursors = [0; 32];
            for block in 0..blocks {
                if block % SEGMENT_BLOCKS == 0 {
                    let segment = block / SEGMENT_BLOCKS;
                    cursors = std::array::from_fn(|lane| self.open_segment(row, segment, lane));
                }
                let steps = if block < self.shape.blocks { 8 } else { self.shape.tail };
                for step in 0..steps {
                    let mut tile = [0; 128];
                    for (lane, four) in tile.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                        let [x, y] = self.load_step(row, block, step, lane, &mut cursors[lane]);
                        *four = [x & 0xffff, y & 0xffff, x >> 16, y >> 16]
                            .map(|w| weight_as_half(w, half_offset));
                    }
                    let mut sum = 0.0;
                    let mut x = halves.iter().skip(block * 1024 + step * 128);
                    for run in tile.as_chunks::<16>().0 {
                        let (mut high, mut low) = (0.0, 0.0);
                        for w in run.map(value_of) {
                            let [h, l] = x.next().copied().unwrap_or_default();
                            high = (self.fma)(w, value_of(h), high);
                            low = (self.fma)(w, value_of(l), low);
                        }
                        sum += high;
                        sum += low;
                    }
                    part += sum;
                }
                if block % 2 == 1 || block + 1 == blocks {
                    total += part;
                    part = 0.0;
                }
            }
            total * scale * x_scale
        };
        (0..self.rows).map(row).collect()
    }

    /// The longest chain of dependent additions, and the number of partial sums, of a batch.
    pub fn chains(cols: usize, batch: usize) -> (usize, usize) {
        let shape = RowShape::new(cols);
        let blocks = shape.blocks + usize::from(shape.tail != 0);
        if batch <= 16 {
            // Additions: steps, two to join the chains, blocks, segments. The lanes are partial
            // sums.
            (8 + 2 + blocks.min(SEGMENT_BLOCKS) + shape.segments, 32)
        } else {
            (16 + 8 + 16 + blocks.div_ceil(2), 1)
        }
    }
}

/// `half_of` of `half.wgsl`.
pub fn half_of(v: f32) -> u32 {
    let magnitude = v.to_bits() & 0x7fff_ffff;
    let half = if magnitude < 0x3880_0000 {
        (f32::from_bits(magnitude) * 16_777_216.0 + 0.5) as u32
    } else {
        ((magnitude - 0x3800_0000 + 0x1000) >> 13).min(0x7c00)
    };
    (v.to_bits() >> 16) & 0x8000 | half
}

/// `value_of` of `half.wgsl`.
pub fn value_of(half: u32) -> f32 {
    let magnitude = half & 0x7fff;
    let v = if magnitude < 0x400 {
        magnitude as f32 * 5.960_464_5e-8
    } else {
        f32::from_bits((magnitude << 13) + 0x3800_0000)
    };
    f32::from_bits(v.to_bits() | (half & 0x8000) << 16)
}

/// `weight_of` of `cooperative.wgsl`.
pub fn weight_as_half(w: u32, half_offset: i32) -> u32 {
    let exponent = (w >> 7) & 0xff;
    let significand = w & 0x7f | exponent.min(1) << 7;
    let e = exponent as i32 + half_offset + 2;
    let shift = e.min(3);
    let half = significand.wrapping_shl(shift as u32) + (((e - shift) as u32) << 10);
    half | w & 0x8000
}

/// One column of `split_x`: high and low of each value, and the scale.
pub fn split_x(x: &[f32]) -> (Vec<[u32; 2]>, f32) {
    let largest = x.iter().map(|x| x.to_bits() & 0x7f80_0000).max().unwrap_or(0);
    let field = (268 - (largest >> 23)).min(253);
    let scale = f32::from_bits(field << 23);
    let split = |x: &f32| {
        let high = half_of(x * scale);
        [high, half_of(x * scale - value_of(high))]
    };
    (x.iter().map(split).collect(), f32::from_bits((254 - field) << 23))
}

fn last_codes(w0: u32, w1: u32, w2: u32) -> u32 {
    ((w0 >> 3) & 0x1111_1111) | ((w1 >> 2) & 0x2222_2222) | ((w2 >> 1) & 0x4444_4444)
}

fn find_escapes(twos: [u32; 4]) -> u32 {
    let bits = |i: usize| ((twos[i] + 0x1111_1111) & 0x8888_8888) >> (3 - i);
    let mut m = bits(0) | bits(1) | bits(2) | bits(3);
    let mut t = (m ^ (m >> 14)) & 0x0000_cccc;
    m ^= t ^ (t << 14);
    t = (m ^ (m >> 7)) & 0x00aa_00aa;
    m ^ t ^ (t << 7)
}

fn join(sm: u32, e: u32) -> Pair {
    let exponents = [e << 7, e >> 1].map(|e| e & 0x7f80_7f80);
    [sm & 0x807f_807f | exponents[0], sm.rotate_left(8) & 0x807f_807f | exponents[1]]
}

fn weights([x, y]: Pair) -> [f32; 4] {
    [x << 16, y << 16, x & 0xffff_0000, y & 0xffff_0000].map(f32::from_bits)
}
