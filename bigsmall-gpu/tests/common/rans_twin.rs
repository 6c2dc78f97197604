//! `rans.wgsl` and `rans_patch.wgsl` in Rust, on the same words.

use crate::ans::{AnsPlan, BLOCK_WORDS};

/// One dispatch: the bindings that do not change.
pub struct RansTwin<'a> {
    pub plan: &'a AnsPlan,
    /// The payload as little-endian words.
    pub payload: Vec<u32>,
}

impl RansTwin<'_> {
    fn payload_byte(&self, at: u32) -> u32 {
        (self.payload[(at >> 2) as usize] >> ((at & 3) * 8)) & 0xff
    }

    fn residual_byte(&self, at: u32, place: u32, stored: u32, carried: &[u32; 32]) -> u32 {
        if at < stored {
            return self.payload_byte(place + at);
        }
        let i = at - stored;
        (carried[(i >> 1) as usize] >> ((i & 1) * 8)) & 0xff
    }

    /// `residual` for row `i` of a block.
    fn residual(&self, i: u32, column: u32, place: u32, stored: u32, carried: &[u32; 32]) -> u32 {
        let (group, row) = (i >> 3, i & 7);
        let bits = 8 - self.plan.m;
        let at = group * bits * 32 + column;
        let byte = |k: u32| self.residual_byte(at + k * 32, place, stored, carried);
        if row < bits {
            return byte(row) & (0x80 | ((1 << (bits - 1)) - 1));
        }
        let bit = bits - 1 + row - bits;
        (0..bits).fold(0, |value, k| {
            let to = if k == bits - 1 { 7 } else { k };
            value | ((byte(k) >> bit) & 1) << to
        })
    }

    fn unit_of(&self, field: u32, r: u32) -> u32 {
        (field << (7 - self.plan.m)) | (r & 0x7f) | ((r & 0x80) << 8)
    }

    /// Runs the workgroup of one block. Returns its verdict.
    fn block(&self, block: usize, decoded: &mut [u32]) -> u32 {
        let plan = self.plan;
        let words = &plan.blocks[block * BLOCK_WORDS..(block + 1) * BLOCK_WORDS];
        let [kind, n_groups, words_at, n_words, place, n_units] = std::array::from_fn(|i| words[i]);
        let out = block * plan.block_units / 2;
        if kind != 2 {
            for i in 0..n_units.div_ceil(2) {
                decoded[out + i as usize] = if kind == 0 {
                    self.payload[((place >> 2) + i) as usize]
                } else {
                    place | place << 16
                };
            }
        }
        let total = n_groups * (8 - plan.m) * 32;
        let stored = total - total.min(64);
        let held_from = n_groups - n_groups.min(2);
        let mut x: [u32; 32] = std::array::from_fn(|lane| words[8 + lane]);
        let mut position = 0;
        let mut fields = [0; 512];
        let mut carried = [0; 32];
        let write = |decoded: &mut [u32], i: u32, units: [u32; 32]| {
            for (l, [a, b]) in units.as_chunks::<2>().0.iter().enumerate() {
                decoded[out + i as usize * 16 + l] = a | b << 16;
            }
        };
        for i in 0..n_groups * 8 {
            let group = i >> 3;
            let table = (words[40 + (group >> 2) as usize] >> ((group & 3) * 8)) & 0xff;
            let mut units = [0; 32];
            let mut needs = [false; 32];
            for lane in 0..32 {
                let slot = x[lane] & 4095;
                let bucket = (table << plan.symbol_bits) + (slot >> (12 - plan.symbol_bits));
                let bucket = bucket as usize * 5;
                let side = bucket + if slot >= plan.tables[bucket] { 3 } else { 1 };
                let entry = plan.tables[side];
                x[lane] = (x[lane] >> 12)
                    .wrapping_mul(entry & 0xffff)
                    .wrapping_add(slot)
                    .wrapping_add(plan.tables[side + 1]);
                let symbol = entry >> 16;
                let field = if symbol == 0 { plan.first } else { plan.base + symbol };
                needs[lane] = x[lane] < 65_536;
                if group < held_from {
                    let r = self.residual(i, lane as u32, place, stored, &carried);
                    units[lane] = self.unit_of(field, r);
                } else {
                    fields[((i - held_from * 8) * 32) as usize + lane] = field;
                }
            }
            for lane in 0..32 {
                if needs[lane] {
                    if position < n_words {
                        let word = (words_at >> 1) + position;
                        let two = self.payload[(word >> 1) as usize];
                        x[lane] = x[lane] << 16 | (two >> ((word & 1) * 16)) & 0xffff;
                    }
                    position += 1;
                }
            }
            if group < held_from {
                write(decoded, i, units);
            }
        }
        let carrying = total.min(64) / 2;
        let mut wrong = false;
        for lane in 0..32 {
            carried[lane] = x[lane] & 0xffff;
            wrong |= x[lane] >> 16 != 1 || (lane as u32 >= carrying && x[lane] != 65_536);
        }
        for i in held_from * 8..n_groups * 8 {
            let units = std::array::from_fn(|c| {
                let field = fields[((i - held_from * 8) * 32) as usize + c];
                self.unit_of(field, self.residual(i, c as u32, place, stored, &carried))
            });
            write(decoded, i, units);
        }
        match kind == 2 {
            true if position != n_words => 1,
            true if wrong => 2,
            _ => 0,
        }
    }

    /// All units, and the verdict on each block.
    pub fn decode(&self) -> (Vec<u16>, Vec<u32>) {
        let n = self.plan.n_units as usize;
        let n_blocks = self.plan.blocks.len() / BLOCK_WORDS;
        // Like the device's buffer, with space for the padding of the last row.
        let mut decoded = vec![0; n_blocks * self.plan.block_units / 2];
        let verdicts = (0..n_blocks).map(|block| self.block(block, &mut decoded)).collect();
        for &[unit, value] in &self.plan.patches {
            let (mask, value) = if value >> 31 == 0 {
                let shift = 7 - self.plan.m;
                (((1 << (8 + self.plan.m)) - 1) << shift, value << shift)
            } else {
                (0xffff, value & 0xffff)
            };
            let word = &mut decoded[(unit >> 1) as usize];
            *word &= !(mask << ((unit & 1) * 16));
            *word |= value << ((unit & 1) * 16);
        }
        let units = decoded.iter().flat_map(|w| [*w as u16, (*w >> 16) as u16]).take(n).collect();
        (units, verdicts)
    }
}
