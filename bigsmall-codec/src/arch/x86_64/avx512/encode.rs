//! Encoding: the halves of the states of 32 lanes as in decoding, two blocks interleaved. States
//! are divided as floats. What takes longest is looking up 32 slots in memory.
//!
//! As in decoding, the functions that a row consists of are always inlined, and their callers must
//! have the instructions.

use std::arch::x86_64::*;
use std::sync::LazyLock;

use crate::arch::fused::{ROWS, each_block};
use crate::arch::x86_64::avx512::decode::{States, look_up, lower_halves};
use crate::head::Head;
use crate::kernels::{EncodeJob, LANES};
use crate::table::{EncodeTable, TOTAL};

/// Whether loads one by one are faster than gathers, as measured on Zen 4.
static SLOW_GATHERS: LazyLock<bool> = LazyLock::new(|| {
    #[allow(unused_unsafe)] // safe since Rust 1.92
    // SAFETY: every processor with AVX-512 has the instruction.
    let id = unsafe { __cpuid(0) };
    [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
});

/// What coding a row of symbols needs of its table.
struct Row {
    /// 16 times the frequencies.
    freq: __m512i,
    /// Where the slots begin.
    first: __m512i,
    /// 1 / frequency as floats, in the order of [`unpack`].
    inverse: [__m512i; 2],
}

/// Puts lower and upper halves together to 32-bit numbers: lanes 0 to 3 of each 8 in the first
/// vector, the others in the second one.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn unpack(lower: __m512i, upper: __m512i) -> [__m512i; 2] {
    // SAFETY: as the caller promises.
    unsafe { [_mm512_unpacklo_epi16(lower, upper), _mm512_unpackhi_epi16(lower, upper)] }
}

/// The lower and the upper halves of the vectors of [`unpack`].
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn pack(of: [__m512i; 2]) -> [__m512i; 2] {
    HALVES.each_ref().map(|places| {
        // SAFETY: as the caller promises; 32 places are one vector.
        unsafe {
            let places = _mm512_loadu_si512(places.as_ptr().cast());
            _mm512_permutex2var_epi16(of[0], places, of[1])
        }
    })
}

/// Where the lower halves of the lanes are in the vectors of [`unpack`], and the upper ones.
static HALVES: [[u16; LANES]; 2] = {
    let mut places = [[0; LANES]; 2];
    let mut lane = 0;
    while lane < LANES {
        let place = (lane / 8 * 8 + lane % 4 * 2 + lane / 4 % 2 * LANES) as u16;
        places[0][lane] = place;
        places[1][lane] = place + 1;
        lane += 1;
    }
    places
};

/// Looks a row of symbols up. More than 64 are gathered on every processor: they are rare (bytes,
/// and the level `small`).
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn look_up_row<const BITS: u32>(table: &EncodeTable, symbols: __m256i) -> Row {
    // SAFETY: as the caller promises; the columns for any symbol have 256 entries.
    unsafe {
        if BITS <= 6 {
            let symbols = _mm512_cvtepu8_epi16(symbols);
            let columns = &table.words64;
            let [lower, upper] = columns.inverse.each_ref();
            let lower = look_up::<BITS>(lower, symbols);
            return Row {
                freq: look_up::<BITS>(&columns.freq, symbols),
                first: look_up::<BITS>(&columns.first, symbols),
                inverse: unpack(lower, look_up::<BITS>(upper, symbols)),
            };
        }
        let symbols = unpack(_mm512_cvtepu8_epi16(symbols), _mm512_setzero_si512());
        let gather = |column: &[u32; 256]| {
            symbols.map(|symbols| _mm512_i32gather_epi32::<4>(symbols, column.as_ptr().cast()))
        };
        let [lower, upper] = pack(gather(&table.fields));
        Row {
            freq: _mm512_slli_epi16::<4>(lower),
            first: _mm512_srli_epi16::<1>(upper),
            inverse: gather(&table.inverse_float),
        }
    }
}

/// Looks 32 slots up, at places of which the upper bits do not matter.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn look_up_slots<const GATHER: bool>(table: &EncodeTable, at: __m512i) -> __m512i {
    // SAFETY: as the caller promises. There is one slot more than 2 * TOTAL, so 4 bytes can be read
    // at each place.
    unsafe {
        let at = _mm512_and_si512(at, _mm512_set1_epi16(2 * TOTAL as i16 - 1));
        let slots = table.slots.as_ptr();
        if GATHER {
            let at = [_mm512_castsi512_si256(at), _mm512_extracti64x4_epi64::<1>(at)];
            let at = at.map(|at| _mm512_cvtepu16_epi32(at));
            return lower_halves(at.map(|at| _mm512_i32gather_epi32::<2>(at, slots.cast())));
        }
        let quarters = [
            _mm512_castsi512_si128(at),
            _mm512_extracti32x4_epi32::<1>(at),
            _mm512_extracti32x4_epi32::<2>(at),
            _mm512_extracti32x4_epi32::<3>(at),
        ];
        let [a, b, c, d] = quarters.map(|at| {
            let halves = [_mm_cvtsi128_si64(at), _mm_extract_epi64::<1>(at)];
            let slot = |lane: usize| {
                let at = (halves[lane / 4] >> (16 * (lane % 4))) as u16;
                i32::from(*slots.add(usize::from(at)))
            };
            let found = _mm_cvtsi32_si128(slot(0));
            let found = _mm_insert_epi16::<1>(found, slot(1));
            let found = _mm_insert_epi16::<2>(found, slot(2));
            let found = _mm_insert_epi16::<3>(found, slot(3));
            let found = _mm_insert_epi16::<4>(found, slot(4));
            let found = _mm_insert_epi16::<5>(found, slot(5));
            let found = _mm_insert_epi16::<6>(found, slot(6));
            _mm_insert_epi16::<7>(found, slot(7))
        });
        let (lower, upper) = (_mm256_set_m128i(b, a), _mm256_set_m128i(d, c));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(lower), upper)
    }
}

/// Encodes one row. The first `room` of `words` are free.
///
/// # Safety
/// 32 words must be free, or as many as there are symbols left. The machine must have the
/// instructions.
#[inline(always)]
unsafe fn encode_row<const BITS: u32, const GATHER: bool>(
    x: &mut States,
    table: &EncodeTable,
    symbols: __m256i,
    words: *mut u16,
    room: &mut usize,
) {
    // SAFETY: as the caller promises.
    unsafe {
        let Row { freq, first, inverse } = look_up_row::<BITS>(table, symbols);
        // Lanes whose state would grow too large give a word.
        let full = _mm512_cmpge_epu16_mask(x.upper, freq);
        let n = full.count_ones() as usize;
        *room -= n;
        _mm512_mask_storeu_epi16(
            words.add(*room).cast(),
            ((1u64 << n) - 1) as u32,
            _mm512_maskz_compress_epi16(full, x.lower),
        );
        let lower = _mm512_mask_mov_epi16(x.lower, full, x.upper);
        let upper = _mm512_maskz_mov_epi16(!full, x.upper);
        let whole = unpack(lower, upper);
        // At most one too small.
        let quotient: [_; 2] = std::array::from_fn(|i| {
            let whole = _mm512_cvtepu32_ps(whole[i]);
            _mm512_cvttps_epu32(_mm512_mul_ps(whole, _mm512_castsi512_ps(inverse[i])))
        });
        let [low, high] = pack(quotient);
        let product = _mm512_mullo_epi16(low, _mm512_srli_epi16::<4>(freq));
        let at = _mm512_add_epi16(first, _mm512_sub_epi16(lower, product));
        // The new state is quotient * 2^12 + slot; where the quotient is one too small, the entry
        // of the slot has 2^12 more.
        let slot = look_up_slots::<GATHER>(table, at);
        let top = _mm512_slli_epi16::<12>(low);
        x.lower = _mm512_add_epi16(top, slot);
        // There is a carry where the top bit was set and is not any more.
        let carry = _mm512_srli_epi16::<15>(_mm512_andnot_si512(x.lower, top));
        x.upper = _mm512_add_epi16(_mm512_shldi_epi16::<12>(high, low), carry);
    }
}

/// Encodes one group of each of `N` blocks, last row to first.
///
/// # Safety
/// Of the words as many must be free as the groups have symbols.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
#[allow(clippy::undocumented_unsafe_blocks)] // not seen through macros
unsafe fn encode_group<const N: usize, const BITS: u32, const GATHER: bool>(
    states: &mut [States; N],
    words: &[*mut u16; N],
    room: &mut [usize; N],
    tables: &[&EncodeTable; N],
    groups: &[&[[u8; LANES]; ROWS]; N],
) {
    for row in (0..ROWS).rev() {
        // SAFETY: as the caller promises; a row is 32 bytes.
        each_block!(N, |i| unsafe {
            let symbols = _mm256_loadu_si256(groups[i][row].as_ptr().cast());
            let (x, room) = (&mut states[i], &mut room[i]);
            encode_row::<BITS, GATHER>(x, tables[i], symbols, words[i], room);
        });
    }
}

/// Encodes blocks that all have the same number of groups.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
pub(super) fn encode<const N: usize>(head: &Head, jobs: &mut [EncodeJob<'_>; N]) {
    if *SLOW_GATHERS {
        encode_by::<N, false>(head, jobs);
    } else {
        encode_by::<N, true>(head, jobs);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
fn encode_by<const N: usize, const GATHER: bool>(head: &Head, jobs: &mut [EncodeJob<'_>; N]) {
    assert!(jobs.iter().all(|job| job.words.len() >= job.symbols.len()), "a word a symbol");
    let groups = jobs.each_ref().map(|job| {
        let rows = job.symbols.as_chunks::<LANES>().0;
        rows.as_chunks::<ROWS>().0
    });
    let group_tables = jobs.each_ref().map(|job| job.group_tables);
    let mut states = jobs.each_ref().map(|job| States::load(job.states));
    let mut room = jobs.each_ref().map(|job| job.words.len());
    let words = jobs.each_mut().map(|job| job.words.as_mut_ptr());
    assert!(groups.iter().all(|of| of.len() == groups[0].len()), "the same number of groups");
    for group in (0..groups[0].len()).rev() {
        let tables = group_tables.map(|tables| head.encode_table(tables[group]));
        let groups = groups.map(|groups| &groups[group]);
        // SAFETY: there is a word for each symbol.
        unsafe {
            match head.symbol_bits {
                5 => encode_group::<N, 5, GATHER>(&mut states, &words, &mut room, &tables, &groups),
                6 => encode_group::<N, 6, GATHER>(&mut states, &words, &mut room, &tables, &groups),
                _ => encode_group::<N, 8, GATHER>(&mut states, &words, &mut room, &tables, &groups),
            }
        }
    }
    for ((job, states), room) in jobs.iter_mut().zip(states).zip(room) {
        states.store(job.states);
        *job.begin = room;
    }
}

#[cfg(test)]
mod tests {
    use bigsmall_format::Dtype;

    use super::*;
    use crate::arch::portable::Portable;
    use crate::arch::x86_64::avx512::Avx512;
    use crate::kernels::{Kernels as _, ROOM};
    use crate::layout::Layout;
    use crate::planes::GROUP;
    use crate::table::FrequencyTable;

    /// States and words of both blocks.
    type Encoded = [([u32; LANES], Vec<u16>); 2];

    /// Both ways to look slots up, though the backend takes one of them on a machine.
    #[test]
    fn blocks_are_the_same_gathered_and_loaded() {
        if Avx512::new().is_none() {
            return;
        }
        for bits in [5, 6, 8] {
            let counts = |by: u32| -> Vec<u32> {
                (0..1 << bits).map(|s: u32| (s * by % 61).pow(3)).collect()
            };
            let tables = [counts(7), counts(11)].map(|counts| FrequencyTable::from_counts(&counts));
            let coded = tables.each_ref().map(|table| {
                let freqs = table.freqs().iter().zip(0..=u8::MAX);
                freqs.filter_map(|(&f, s)| (f > 0).then_some(s)).collect::<Vec<_>>()
            });
            let layout = Layout::new(Dtype::BF16, 1).unwrap();
            let head = Head::new(1, layout, bits, (0, 0), GROUP, vec![], tables.to_vec());
            let group_tables = [0, 1, 1, 0, 1];
            let symbols: [Vec<u8>; 2] = std::array::from_fn(|block| {
                let n = group_tables.len() * GROUP;
                (0..n)
                    .map(|i| {
                        let of = &coded[usize::from(group_tables[i / GROUP])];
                        of[(i + 1).wrapping_mul(2_654_435_761 + block) / 1024 % of.len()]
                    })
                    .collect()
            });
            let by = |encode: fn(&Head, &mut [EncodeJob<'_>; 2])| -> Encoded {
                let mut states = [[0x1_0000; LANES], [0xffff_ffff; LANES]];
                let mut words = [0, 1].map(|i| vec![0; symbols[i].len() + ROOM]);
                let mut begins = [0; 2];
                let mut begin = begins.iter_mut();
                let mut jobs = states.iter_mut().zip(&mut words).zip(&symbols);
                let mut next = || {
                    let ((states, words), symbols) = jobs.next().unwrap();
                    let begin = begin.next().unwrap();
                    EncodeJob { symbols, group_tables: &group_tables, states, words, begin }
                };
                encode(&head, &mut [next(), next()]);
                std::array::from_fn(|i| (states[i], words[i][begins[i]..].to_vec()))
            };
            let expected = by(|head, jobs| Portable.encode(head, jobs));
            assert!(expected.iter().all(|(_, words)| words.len() > GROUP));
            // SAFETY: the machine has the instructions.
            let gathered = by(|head, jobs| unsafe { encode_by::<2, true>(head, jobs) });
            assert!(gathered == expected, "gathered, {bits} bits");
            // SAFETY: as above.
            let loaded = by(|head, jobs| unsafe { encode_by::<2, false>(head, jobs) });
            assert!(loaded == expected, "loaded, {bits} bits");
        }
    }
}
