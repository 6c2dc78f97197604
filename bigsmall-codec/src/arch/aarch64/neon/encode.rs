//! Encoding, one block after the other. States are divided as floats. What takes longest is looking
//! up 32 slots in memory.
//!
//! As in [`states`](super::states), the functions that a row consists of are always inlined, and
//! their callers must have the instructions.

use std::arch::aarch64::*;

use crate::arch::aarch64::neon::states::{States, look_up, sets, zip};
use crate::arch::fused::ROWS;
use crate::arch::tables::COMPACT;
use crate::head::Head;
use crate::kernels::{EncodeJob, LANES, ROOM};
use crate::table::{EncodeBytes, EncodeTable, Shuffled, TOTAL};

/// What coding a row of symbols needs of its table.
struct Row {
    /// 16 times the frequencies.
    freq: [uint16x8_t; 4],
    /// Where the slots begin.
    first: [uint16x8_t; 4],
    /// The lower and the upper halves of 1 / frequency, a float.
    inverse: [[uint16x8_t; 4]; 2],
}

/// Looks a row of symbols up in a table of 2^`BITS`, 5 or 6.
///
/// # Safety
/// `bytes` must be valid for reads. It is a pointer because compilers would load more of what a
/// reference leads to before all rows than there are registers for. The machine must have the
/// instructions.
#[inline(always)]
unsafe fn look_up_row<const BITS: u32>(bytes: *const EncodeBytes, symbols: &[u8; LANES]) -> Row {
    // SAFETY: as the caller promises; 16 symbols are one vector.
    unsafe {
        let symbols = [0, 16].map(|i| vld1q_u8(symbols[i..][..16].as_ptr()));
        let column = |column: &[Shuffled; 2]| {
            let [[a, b], [c, d]] = symbols.map(|symbols| {
                let [low, high] = column.each_ref().map(|bytes| look_up::<BITS>(bytes, symbols));
                zip(low, high)
            });
            [a, b, c, d]
        };
        Row {
            freq: column(&(*bytes).freq),
            first: column(&(*bytes).first),
            inverse: [column(&(*bytes).inverse[0]), column(&(*bytes).inverse[1])],
        }
    }
}

/// Looks a row of symbols up in a table of any size.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn load_row(table: &EncodeTable, symbols: &[u8; LANES]) -> Row {
    // SAFETY: eight entries are two vectors.
    unsafe {
        let column = |column: &[u32; 256]| {
            let mut halves = [[vdupq_n_u16(0); 4]; 2];
            for (v, symbols) in symbols.as_chunks::<8>().0.iter().enumerate() {
                let entries = symbols.map(|symbol| column[usize::from(symbol)]);
                let [a, b] = [0, 4].map(|i| vld1q_u32(entries[i..][..4].as_ptr()));
                let (a, b) = (vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b));
                (halves[0][v], halves[1][v]) = (vuzp1q_u16(a, b), vuzp2q_u16(a, b));
            }
            halves
        };
        let [lower, upper] = column(&table.fields);
        Row {
            freq: lower.map(|v| vshlq_n_u16::<4>(v)),
            first: upper.map(|v| vshrq_n_u16::<1>(v)),
            inverse: column(&table.inverse_float),
        }
    }
}

/// Looks 8 slots up, at places of which the upper bits do not matter.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn look_up_slots(table: &EncodeTable, at: uint16x8_t) -> uint16x8_t {
    // SAFETY: as the caller promises. A place is below 2 * TOTAL, so there is a slot at it.
    unsafe {
        let at = vreinterpretq_u64_u16(vandq_u16(at, vdupq_n_u16(2 * TOTAL as u16 - 1)));
        let four = |at: u64| {
            let slot = |i: u32| {
                let at = usize::from((at >> (16 * i)) as u16);
                u64::from(*table.slots.get_unchecked(at)) << (16 * i)
            };
            vcreate_u16(slot(0) | slot(1) | slot(2) | slot(3))
        };
        vcombine_u16(four(vgetq_lane_u64::<0>(at)), four(vgetq_lane_u64::<1>(at)))
    }
}

/// Encodes one row. The first `room` of `words` are free.
///
/// # Safety
/// 40 words must be free. The machine must have the instructions.
#[inline(always)]
unsafe fn encode_row(
    x: &mut States,
    table: &EncodeTable,
    row: &Row,
    words: *mut u16,
    room: &mut usize,
) {
    // SAFETY: as the caller promises: at most 32 words are kept, and a vector begins at most 8
    // before its end. The shuffle is one of 256.
    unsafe {
        // Lanes whose state would grow too large give a word.
        let mut full = x.upper;
        for (full, freq) in full.iter_mut().zip(row.freq) {
            *full = vcgeq_u16(*full, freq);
        }
        let (sets, ends) = sets(full);
        *room -= (ends >> 24) as usize;
        // Last lanes first: what a vector writes before its words, the next one replaces.
        for v in (0..4).rev() {
            let order = vld1q_u8(COMPACT[usize::from((sets >> (8 * v)) as u8)].as_ptr());
            let given = vqtbl1q_u8(vreinterpretq_u8_u16(x.lower[v]), order);
            let end = *room + usize::from((ends >> (8 * v)) as u8);
            vst1q_u8(words.add(end - 8).cast(), given);
        }
        for v in 0..4 {
            let lower = vbslq_u16(full[v], x.upper[v], x.lower[v]);
            let upper = vbicq_u16(x.upper[v], full[v]);
            let whole = [vzip1q_u16(lower, upper), vzip2q_u16(lower, upper)];
            let [a, b] = row.inverse.map(|half| half[v]);
            let inverse = [vzip1q_u16(a, b), vzip2q_u16(a, b)];
            // At most one too small.
            let quotient: [_; 2] = std::array::from_fn(|i| {
                let whole = vcvtq_f32_u32(vreinterpretq_u32_u16(whole[i]));
                vcvtq_u32_f32(vmulq_f32(whole, vreinterpretq_f32_u16(inverse[i])))
            });
            let [a, b] = quotient.map(|v| vreinterpretq_u16_u32(v));
            let freq = vshrq_n_u16::<4>(row.freq[v]);
            let rank = vmlsq_u16(lower, vuzp1q_u16(a, b), freq);
            // Where the quotient is one too small, the entry of the slot has 2^12 more.
            let slot = look_up_slots(table, vaddq_u16(row.first[v], rank));
            let a = vaddw_u16(vshlq_n_u32::<12>(quotient[0]), vget_low_u16(slot));
            let b = vaddw_high_u16(vshlq_n_u32::<12>(quotient[1]), slot);
            let (a, b) = (vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b));
            (x.lower[v], x.upper[v]) = (vuzp1q_u16(a, b), vuzp2q_u16(a, b));
        }
    }
}

/// Encodes one group, last row to first.
///
/// # Safety
/// As many words must be free as the group has symbols, and 8 more.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn encode_group<const BITS: u32>(
    x: &mut States,
    table: &EncodeTable,
    group: &[[u8; LANES]; ROWS],
    words: *mut u16,
    room: &mut usize,
) {
    for symbols in group.iter().rev() {
        // SAFETY: as the caller promises.
        unsafe {
            let row = match BITS {
                ..=6 => look_up_row::<BITS>(&table.bytes64, symbols),
                _ => load_row(table, symbols),
            };
            encode_row(x, table, &row, words, room);
        }
    }
}

/// Encodes a block.
#[target_feature(enable = "neon")]
pub(super) fn encode(head: &Head, job: &mut EncodeJob<'_>) {
    assert!(job.words.len() >= job.symbols.len() + ROOM, "a word a symbol, and more");
    let groups = job.symbols.as_chunks::<LANES>().0.as_chunks::<ROWS>().0;
    let words = job.words.as_mut_ptr();
    let mut room = job.words.len();
    let mut x = States::load(job.states);
    for (group, &table) in groups.iter().zip(job.group_tables).rev() {
        let table = head.encode_table(table);
        // SAFETY: there is a word for each symbol, and `ROOM` more.
        unsafe {
            match head.symbol_bits {
                5 => encode_group::<5>(&mut x, table, group, words, &mut room),
                6 => encode_group::<6>(&mut x, table, group, words, &mut room),
                _ => encode_group::<8>(&mut x, table, group, words, &mut room),
            }
        }
    }
    x.store(job.states);
    *job.begin = room;
}
