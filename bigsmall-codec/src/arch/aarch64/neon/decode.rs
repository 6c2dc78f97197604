//! Decoding. Two blocks are interleaved, because a row waits for itself: from the states to the
//! words that they take. The buckets of 32 or 64 symbols are looked up by `tbl`; for more symbols
//! the slots are loaded one by one.
//!
//! As in [`states`](super::states), the functions that a row consists of are always inlined, and
//! their callers must have the instructions.

use std::arch::aarch64::*;

use bigsmall_format::internal::Ahead;

use crate::arch::aarch64::neon::states::{States, look_up, sets, zip};
use crate::arch::fused::{
    Group, ROWS, check_fields, each_block, high_bytes, residual_mask, symbols_are_fields, walk,
    walk_symbols,
};
use crate::arch::tables::UNPACK16;
use crate::head::Head;
use crate::kernels::{Job, LANES, Planes};
use crate::planes::GROUP;
use crate::table::{BucketBytes, Shuffled, Slots, TOTAL, shuffled};

impl States {
    /// Moves the states on: `freq` is 16 times the frequency of their slots, `rank` their rank.
    /// Lanes that fell below the bound take a word.
    ///
    /// With the halves `u` and `l` of a state, freq / 16 * (state >> 12) + rank is freq * u +
    /// (freq / 16 * (l >> 12) + rank); the sum in brackets is less than freq, so it fits 16 bits.
    ///
    /// # Safety
    /// 32 words can be read at `words`. The machine must have the instructions.
    #[inline(always)]
    unsafe fn step(
        &mut self,
        freq: [uint16x8_t; 4],
        rank: [uint16x8_t; 4],
        words: &mut *const u16,
    ) {
        // SAFETY: the caller vouches for 32 words: each vector of 8 reads as many, and those before
        // it have taken at most as many. The shuffle is one of 256.
        unsafe {
            let (mut upper, mut lower, mut below) = (self.upper, self.lower, self.upper);
            for v in 0..4 {
                let (f, u, l) = (freq[v], self.upper[v], self.lower[v]);
                let rest = vmlaq_u16(rank[v], vshrq_n_u16::<4>(f), vshrq_n_u16::<12>(l));
                let low = vmovl_u16(vget_low_u16(rest));
                let low = vmlal_u16(low, vget_low_u16(f), vget_low_u16(u));
                let high = vmlal_high_u16(vmovl_high_u16(rest), f, u);
                let (low, high) = (vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high));
                (lower[v], upper[v]) = (vuzp1q_u16(low, high), vuzp2q_u16(low, high));
                below[v] = vceqzq_u16(upper[v]);
            }
            let (sets, ends) = sets(below);
            let mut begin = 0;
            for v in 0..4 {
                let set = (sets >> (8 * v)) as u8;
                let order = vld1q_u8(UNPACK16[usize::from(set)].as_ptr());
                let next = vqtbl1q_u8(vld1q_u8(words.add(begin).cast()), order);
                begin = usize::from((ends >> (8 * v)) as u8);
                self.upper[v] = vbslq_u16(below[v], lower[v], upper[v]);
                self.lower[v] = vbslq_u16(below[v], vreinterpretq_u16_u8(next), lower[v]);
            }
            *words = words.add(begin);
        }
    }
}

/// What the slots of a row hold.
struct Found {
    symbols: [uint8x16_t; 2],
    /// 16 times the frequencies.
    freq: [uint16x8_t; 4],
    rank: [uint16x8_t; 4],
}

/// Finds it by the bytes of 2^`BITS` buckets, 5 or 6.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn find<const BITS: u32>(x: &States, table: &BucketBytes) -> Found {
    // SAFETY: as the caller promises.
    unsafe {
        let (mut symbols, mut freq, mut rank) = ([vdupq_n_u8(0); 2], x.lower, x.lower);
        for i in 0..2 {
            let [a, b] = [x.lower[2 * i], x.lower[2 * i + 1]].map(|v| vreinterpretq_u8_u16(v));
            let (low, high) = (vuzp1q_u8(a, b), vuzp2q_u8(a, b));
            // The slot is the lower half of the high byte, and the low byte. Its upper bits are the
            // number of the bucket.
            let bucket = match BITS {
                5 => vsriq_n_u8::<7>(vshlq_n_u8::<1>(high), low),
                _ => vsriq_n_u8::<6>(vshlq_n_u8::<2>(high), low),
            };
            let bucket = vandq_u8(bucket, vdupq_n_u8((1 << BITS) - 1));
            let place = vandq_u8(low, vdupq_n_u8((1 << (12 - BITS)) - 1));
            let last = vreinterpretq_s8_u8(look_up::<BITS>(&table.last, bucket));
            let own = vcleq_s8(vreinterpretq_s8_u8(place), last);
            symbols[i] = vbslq_u8(own, bucket, look_up::<BITS>(&table.donor, bucket));
            // Nothing is added to the places of a bucket's own symbol.
            let of_donated = vorrq_u8(bucket, own);
            let [a, b] = zip(
                look_up::<BITS>(&table.donated[0], of_donated),
                look_up::<BITS>(&table.donated[1], of_donated),
            );
            rank[2 * i] = vaddw_u8(a, vget_low_u8(place));
            rank[2 * i + 1] = vaddw_high_u8(b, place);
            [freq[2 * i], freq[2 * i + 1]] = zip(
                look_up::<BITS>(&table.freq[0], symbols[i]),
                look_up::<BITS>(&table.freq[1], symbols[i]),
            );
        }
        Found { symbols, freq, rank }
    }
}

/// Finds it by slots in memory, for any number of symbols.
///
/// # Safety
/// As [`find`].
#[inline(always)]
unsafe fn find_slots(x: &States, slots: &Slots) -> Found {
    // SAFETY: four or eight numbers are one vector.
    unsafe {
        let low12 = vdupq_n_u16(TOTAL as u16 - 1);
        let (mut freq, mut rank, mut symbols) = (x.lower, x.lower, [vdup_n_u8(0); 4]);
        for v in 0..4 {
            let mut at = [0u16; 8];
            vst1q_u16(at.as_mut_ptr(), vandq_u16(x.lower[v], low12));
            let entries = at.map(|slot| slots[usize::from(slot)]);
            let (a, b) = (vld1q_u32(entries.as_ptr()), vld1q_u32(entries[4..].as_ptr()));
            let (low, high) = (vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b));
            freq[v] = vshlq_n_u16::<4>(vuzp1q_u16(low, high));
            rank[v] = vandq_u16(vcombine_u16(vshrn_n_u32::<12>(a), vshrn_n_u32::<12>(b)), low12);
            symbols[v] = vshrn_n_u16::<8>(vuzp2q_u16(low, high));
        }
        let [a, b, c, d] = symbols;
        Found { symbols: [vcombine_u8(a, b), vcombine_u8(c, d)], freq, rank }
    }
}

/// 16 residuals of row `row`, from the column `column` on, one byte each; bits that are not the
/// residual's mean nothing. `WHOLE` says whether the row is stored byte by byte: the first
/// `RESIDUAL` ones are, and the last ones lie bit by bit in the room that these leave.
///
/// # Safety
/// `packed` must be valid for reads of a group. The machine must have the instructions.
#[inline(always)]
unsafe fn residuals<const RESIDUAL: u32, const WHOLE: bool>(
    packed: *const u8,
    row: usize,
    column: usize,
) -> uint8x16_t {
    // SAFETY: as the caller promises: a group has RESIDUAL rows of 32 bytes.
    unsafe {
        if WHOLE {
            return vld1q_u8(packed.add(row * LANES + column));
        }
        // One bit from each byte row. A negative shift is one to the right.
        let mut residual = vdupq_n_u8(0);
        for k in 0..RESIDUAL as usize {
            let to = if k as u32 == RESIDUAL - 1 { 7 } else { k as i8 };
            let bytes = vld1q_u8(packed.add(k * LANES + column));
            let moved = vshlq_u8(bytes, vdupq_n_s8(to - (row as i8 - 1)));
            residual = vbslq_u8(vdupq_n_u8(1 << to), moved, residual);
        }
        residual
    }
}

/// The field of each symbol at its place in the high bits; of two bytes the lower one first.
struct Fields([Shuffled; 2]);

impl Fields {
    fn new(head: &Head) -> Fields {
        let shift = head.layout.field_shift();
        let n = 1 << head.symbol_bits;
        let field = |s: usize| if s < n { head.field(s as u8) << shift } else { 0 };
        Fields([0, 1].map(|byte| shuffled(|s| field(s).to_le_bytes()[byte])))
    }
}

/// Writes the units of a row.
///
/// # Safety
/// `group` is one of [`walk`]'s, and `row` one of its rows. The machine must have the instructions.
#[inline(always)]
unsafe fn join<const UNIT: usize, const RESIDUAL: u32, const BITS: u32, const WHOLE: bool>(
    fields: &Fields,
    symbols: [uint8x16_t; 2],
    group: &Group<'_>,
    row: usize,
) {
    // SAFETY: a group has as many residuals, low bits and units as its type says.
    unsafe {
        let mask = residual_mask(RESIDUAL);
        for (i, symbols) in symbols.into_iter().enumerate() {
            let column = 16 * i;
            let residual = residuals::<RESIDUAL, WHOLE>(group.residual, row, column);
            let units = group.units.add((row * LANES + column) * UNIT);
            let low = |plane: usize| vld1q_u8(group.lows.add(plane * GROUP + row * LANES + column));
            if high_bytes(RESIDUAL) == 1 {
                let field = if symbols_are_fields(UNIT, RESIDUAL, BITS) {
                    vshlq_u8(symbols, vdupq_n_s8(RESIDUAL as i8 - 1))
                } else {
                    look_up::<BITS>(&fields.0[0], symbols)
                };
                let high = vbslq_u8(vdupq_n_u8(mask), residual, field);
                if UNIT == 1 {
                    vst1q_u8(units, high);
                } else {
                    vst2q_u8(units, uint8x16x2_t(low(0), high));
                }
                continue;
            }
            let [lower, upper] = [0, 1].map(|byte| look_up::<BITS>(&fields.0[byte], symbols));
            let lower = vbslq_u8(vdupq_n_u8(mask & 0x7f), residual, lower);
            let upper = vbslq_u8(vdupq_n_u8(0x80), residual, upper);
            if UNIT == 2 {
                vst2q_u8(units, uint8x16x2_t(lower, upper));
            } else {
                vst4q_u8(units, uint8x16x4_t(low(0), low(1), lower, upper));
            }
        }
    }
}

/// [`Kernels::decode_fused`](crate::kernels::Kernels::decode_fused) for `N` blocks of one form.
#[target_feature(enable = "neon")]
#[allow(clippy::undocumented_unsafe_blocks)] // not seen through macros
pub(super) fn decode_fused<
    const UNIT: usize,
    const RESIDUAL: u32,
    const BITS: u32,
    const N: usize,
>(
    head: &Head,
    jobs: &mut [Job<'_>; N],
    planes: &[Planes<'_>],
    units: &mut [&mut [u8]],
    ahead: Ahead<'_>,
) -> usize {
    let fields = Fields::new(head);
    check_fields::<UNIT, RESIDUAL, BITS>(head);
    let mut states: [_; N] = std::array::from_fn(|i| States::load(&jobs[i].states));
    let n = walk::<UNIT, RESIDUAL, N>(&head.alias, jobs, planes, units, ahead, |groups, _, _| {
        macro_rules! rows {
            ($rows:expr, $whole:literal) => {
                for row in $rows {
                    // SAFETY: a group of `walk` has planes, units, and a word for each of them;
                    // the machine has the instructions.
                    unsafe {
                        each_block!(N, |i| {
                            let (x, group) = (&mut states[i], &mut groups[i]);
                            group.prefetch(row * LANES * UNIT, LANES * UNIT);
                            let Found { symbols, freq, rank } = find::<BITS>(x, &group.table.bytes);
                            x.step(freq, rank, &mut group.words);
                            join::<UNIT, RESIDUAL, BITS, $whole>(&fields, symbols, group, row);
                        });
                    }
                }
            };
        }
        rows!(0..RESIDUAL as usize, true);
        rows!(RESIDUAL as usize..ROWS, false);
    });
    for (job, states) in jobs.iter_mut().zip(states) {
        states.store(&mut job.states);
    }
    n
}

/// Decodes symbols of `N` jobs as long as no kernel would read past a block; returns the groups
/// done.
#[target_feature(enable = "neon")]
#[allow(clippy::undocumented_unsafe_blocks)] // not seen through macros
pub(super) fn decode_symbols<const N: usize>(
    head: &Head,
    jobs: &mut [Job<'_>; N],
    groups: &mut [&mut [[[u8; LANES]; ROWS]]; N],
) -> usize {
    let n = groups.iter().map(|g| g.len()).min().unwrap_or(0);
    let mut states: [_; N] = std::array::from_fn(|i| States::load(&jobs[i].states));
    let done = walk_symbols(&head.alias, jobs, n, |done, tables, words| {
        macro_rules! rows {
            (|$table:ident, $x:ident| $find:expr) => {
                for row in 0..ROWS {
                    each_block!(N, |i| {
                        let ($table, $x) = (tables[i], &mut states[i]);
                        // SAFETY: there is a word for each symbol; a row is 32 bytes.
                        unsafe {
                            let Found { symbols, freq, rank } = $find;
                            $x.step(freq, rank, &mut words[i]);
                            let to = groups[i][done][row].as_mut_ptr();
                            vst1q_u8(to, symbols[0]);
                            vst1q_u8(to.add(16), symbols[1]);
                        }
                    });
                }
            };
        }
        match head.symbol_bits {
            5 => rows!(|table, x| find::<5>(x, &table.buckets().bytes)),
            6 => rows!(|table, x| find::<6>(x, &table.buckets().bytes)),
            _ => rows!(|table, x| find_slots(x, table.slots())),
        }
    });
    for (job, states) in jobs.iter_mut().zip(states) {
        states.store(&mut job.states);
    }
    done
}
