//! Decoding: 32 lanes as two vectors of 16, four blocks interleaved. A row waits for itself, from
//! the states to their entries, from these by a product to new states, and to the words of those
//! that fell below the bound: two and a half times as long as it computes.
//!
//! The entries of 32 buckets are looked up as words of 32 bits, those of 64 for all 32 lanes at
//! once, as numbers of 16 bits; for more symbols the slots are gathered.
//!
//! The functions that a row consists of are always inlined. So they have no target features of
//! their own, and their callers must have them.

use std::arch::x86_64::*;

use bigsmall_format::internal::Ahead;

use crate::arch::x86_64::fused::{Group, ROWS, each_block, high_bytes, residual_mask, walk};
use crate::head::Head;
use crate::kernels::{Job, LANES, Planes, STATE_MIN};
use crate::planes::GROUP;
use crate::table::{Buckets, Buckets32, Slots, TOTAL};

#[target_feature(enable = "avx512f")]
pub(super) fn load_states(states: &[u32; LANES]) -> [__m512i; 2] {
    // SAFETY: 32 states are two vectors.
    unsafe {
        [
            _mm512_loadu_si512(states.as_ptr().cast()),
            _mm512_loadu_si512(states.as_ptr().add(16).cast()),
        ]
    }
}

#[target_feature(enable = "avx512f")]
pub(super) fn store_states(vectors: [__m512i; 2], states: &mut [u32; LANES]) {
    // SAFETY: 32 states are two vectors.
    unsafe {
        _mm512_storeu_si512(states.as_mut_ptr().cast(), vectors[0]);
        _mm512_storeu_si512(states.as_mut_ptr().add(16).cast(), vectors[1]);
    }
}

/// Looks up 32 indices of `BITS` bits, 5 or 6, whose upper bits do not matter, in a table of 16-bit
/// numbers.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn look_up<const BITS: u32>(table: &[u16; 64], index: __m512i) -> __m512i {
    // SAFETY: 64 numbers of 16 bits are two vectors.
    unsafe {
        let first = _mm512_loadu_si512(table.as_ptr().cast());
        if BITS == 5 {
            return _mm512_permutexvar_epi16(index, first);
        }
        let second = _mm512_loadu_si512(table.as_ptr().add(32).cast());
        _mm512_permutex2var_epi16(first, index, second)
    }
}

/// Looks up 16 indices of 5 bits, whose upper bits do not matter, in a table of 32-bit numbers.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn look_up32(table: &[u32; 32], index: __m512i) -> __m512i {
    // SAFETY: 32 numbers of 32 bits are two vectors.
    unsafe {
        let first = _mm512_loadu_si512(table.as_ptr().cast());
        let second = _mm512_loadu_si512(table.as_ptr().add(16).cast());
        _mm512_permutex2var_epi32(first, index, second)
    }
}

/// Takes a word for every lane of the two vectors `y` that fell below the bound. The words of both
/// are put in place at once, so that the second vector does not wait for the number of those that
/// the first takes.
///
/// # Safety
/// 32 words can be read at `words`. The machine must have the instructions.
#[inline(always)]
unsafe fn refill(y: [__m512i; 2], words: &mut *const u16) -> [__m512i; 2] {
    // SAFETY: the caller vouches for 32 words, 64 bytes, of which at most as many are used.
    unsafe {
        let low = y.map(|y| _mm512_cmplt_epu32_mask(y, _mm512_set1_epi32(STATE_MIN as i32)));
        let both = _mm512_kunpackw(low[1].into(), low[0].into());
        let next = _mm512_maskz_expand_epi16(both, _mm512_loadu_si512((*words).cast()));
        *words = words.add(both.count_ones() as usize);
        let next = [_mm512_castsi512_si256(next), _mm512_extracti64x4_epi64::<1>(next)];
        std::array::from_fn(|i| {
            let next = _mm512_cvtepu16_epi32(next[i]);
            _mm512_mask_or_epi32(y[i], low[i], _mm512_slli_epi32::<16>(y[i]), next)
        })
    }
}

/// One step of all lanes with 32 buckets. Returns the symbols of a row in order, 16 bits each.
///
/// # Safety
/// 32 words can be read at `words`. The machine must have the instructions.
#[inline(always)]
unsafe fn step32(x: &mut [__m512i; 2], table: &Buckets32, words: &mut *const u16) -> __m512i {
    // SAFETY: as the caller promises.
    unsafe {
        let mut entries = *x;
        for (x, entry) in x.iter_mut().zip(&mut entries) {
            let slot = _mm512_and_si512(*x, _mm512_set1_epi32(TOTAL as i32 - 1));
            // The permutations look at the low 5 bits alone.
            let bucket = _mm512_srli_epi32::<7>(*x);
            let donated = _mm512_cmpge_epu32_mask(slot, look_up32(&table.split, bucket));
            let (own, donor) = (look_up32(&table.own, bucket), look_up32(&table.donor, bucket));
            *entry = _mm512_mask_blend_epi32(donated, own, donor);
            let freq = _mm512_and_si512(*entry, _mm512_set1_epi32(0x1fff));
            let rank = _mm512_add_epi32(slot, _mm512_srai_epi32::<19>(*entry));
            let product = _mm512_mullo_epi32(freq, _mm512_srli_epi32::<12>(*x));
            *x = _mm512_add_epi32(product, rank);
        }
        *x = refill(*x, words);
        let even = _mm512_and_si512(_mm512_srli_epi32::<13>(entries[0]), _mm512_set1_epi32(31));
        let odd = _mm512_slli_epi32::<3>(entries[1]);
        // even | (odd & mask): lanes 0 to 15 hold the even elements, the others the odd ones.
        _mm512_ternarylogic_epi32::<0xf8>(even, odd, _mm512_set1_epi32(31 << 16))
    }
}

/// The same with 64 buckets; the symbols' bits above the lowest 6 mean nothing.
///
/// # Safety
/// As [`step32`].
#[inline(always)]
unsafe fn step64(x: &mut [__m512i; 2], table: &Buckets, words: &mut *const u16) -> __m512i {
    // SAFETY: as the caller promises.
    unsafe {
        let lower = _mm512_set1_epi32(0xffff);
        let slot_mask = _mm512_set1_epi32(TOTAL as i32 - 1);
        // The lower 16 bits of all states: lower ? x[0] : x[1] << 16.
        let slots = _mm512_ternarylogic_epi32::<0xca>(lower, x[0], _mm512_slli_epi32::<16>(x[1]));
        let bucket = _mm512_srli_epi16::<6>(slots);
        let sides = look_up::<6>(&table.sides, bucket);
        // The place in the bucket in the bits of a split, ones below it: (slots << 6 & mask) | 63.
        let place = _mm512_ternarylogic_epi32::<0xea>(
            _mm512_slli_epi16::<6>(slots),
            _mm512_set1_epi16(63 << 6),
            _mm512_set1_epi16(63),
        );
        let donated = _mm512_cmpge_epu16_mask(place, sides);
        let symbols = _mm512_mask_blend_epi16(donated, bucket, sides);
        let freq = look_up::<6>(&table.freq, symbols);
        let (own, donor) = (look_up::<6>(&table.own, bucket), look_up::<6>(&table.donor, bucket));
        let rank = _mm512_add_epi16(slots, _mm512_mask_blend_epi16(donated, own, donor));
        let even = _mm512_mullo_epi32(_mm512_and_si512(freq, lower), _mm512_srli_epi32::<12>(x[0]));
        let odd = _mm512_mullo_epi32(_mm512_srli_epi32::<16>(freq), _mm512_srli_epi32::<12>(x[1]));
        let of_even = _mm512_and_si512(rank, slot_mask);
        let of_odd = _mm512_and_si512(_mm512_srli_epi32::<16>(rank), slot_mask);
        *x = refill([_mm512_add_epi32(even, of_even), _mm512_add_epi32(odd, of_odd)], words);
        symbols
    }
}

/// The same by slots in memory, for any number of symbols.
///
/// # Safety
/// As [`step32`].
#[inline(always)]
unsafe fn step_by_slots(x: &mut [__m512i; 2], slots: &Slots, words: &mut *const u16) -> __m512i {
    // SAFETY: as the caller promises; a slot of 12 bits lies within the 4096 entries.
    unsafe {
        let low12 = _mm512_set1_epi32(TOTAL as i32 - 1);
        let mut entries = *x;
        for (x, entry) in x.iter_mut().zip(&mut entries) {
            let slot = _mm512_and_si512(*x, low12);
            *entry = _mm512_i32gather_epi32::<4>(slot, slots.as_ptr().cast());
            let q = _mm512_srli_epi32::<12>(*x);
            let rank = _mm512_and_si512(_mm512_srli_epi32::<12>(*entry), low12);
            let product = _mm512_mullo_epi32(_mm512_and_si512(*entry, low12), q);
            *x = _mm512_add_epi32(_mm512_add_epi32(product, q), rank);
        }
        *x = refill(*x, words);
        let odd = _mm512_slli_epi32::<16>(_mm512_srli_epi32::<24>(entries[1]));
        _mm512_or_si512(_mm512_srli_epi32::<24>(entries[0]), odd)
    }
}

/// The residuals of row `row`, one byte each; bits that are not the residual's mean nothing.
///
/// # Safety
/// `packed` must be valid for reads of a group. The machine must have the instructions.
#[inline(always)]
unsafe fn residuals<const RESIDUAL: u32>(packed: *const u8, row: usize) -> __m256i {
    // SAFETY: as the caller promises: a group has RESIDUAL rows of 32 bytes.
    unsafe {
        if row < RESIDUAL as usize {
            return _mm256_loadu_si256(packed.add(row * LANES).cast());
        }
        // One bit from each byte row. No bit crosses a byte.
        let mut residual = _mm256_setzero_si256();
        for k in 0..RESIDUAL as usize {
            let to = if k as u32 == RESIDUAL - 1 { 7 } else { k as i32 };
            let by = to - (row as i32 - 1);
            let bytes = _mm256_loadu_si256(packed.add(k * LANES).cast());
            let moved = if by >= 0 {
                _mm256_sll_epi16(bytes, _mm_cvtsi32_si128(by))
            } else {
                _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(-by))
            };
            let bit = _mm256_set1_epi8((1u8 << to) as i8);
            residual = _mm256_ternarylogic_epi32::<0xf8>(residual, moved, bit);
        }
        residual
    }
}

/// For each half of a row of four-byte units the places of their lower and upper 16 bits.
static PLACES: [[u16; 32]; 2] = {
    let mut places = [[0; 32]; 2];
    let mut i = 0;
    while i < 64 {
        places[i / 32][i % 32] = (i / 2 + i % 2 * 32) as u16;
        i += 1;
    }
    places
};

/// Puts the units of a row together: `fields` are their fields at their places in the high bits,
/// and those at the top of 16 bits for units of more than one byte.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn join<const UNIT: usize, const RESIDUAL: u32>(
    fields: __m512i,
    group: &Group<'_>,
    row: usize,
) {
    // SAFETY: a group has as many residuals, low bits and units as its type says.
    unsafe {
        let mask = residual_mask(RESIDUAL);
        let residual = residuals::<RESIDUAL>(group.residual, row);
        let units = group.units.add(row * LANES * UNIT);
        if UNIT == 1 {
            let fields = _mm512_cvtepi16_epi8(fields);
            let mask = _mm256_set1_epi8(mask as i8);
            let high = _mm256_ternarylogic_epi32::<0xf8>(fields, residual, mask);
            _mm256_storeu_si256(units.cast(), high);
            return;
        }
        // fields | (residual & mask). For high bits of two bytes the sign is at bit 7, and its
        // copies reach bit 15.
        let (residual, mask) = if high_bytes(RESIDUAL) == 2 {
            (_mm512_cvtepi8_epi16(residual), 0x8000 | u16::from(mask & 0x7f))
        } else {
            (_mm512_slli_epi16::<8>(_mm512_cvtepu8_epi16(residual)), u16::from(mask) << 8)
        };
        let mask = _mm512_set1_epi16(mask as i16);
        let high = _mm512_ternarylogic_epi32::<0xf8>(fields, residual, mask);
        if UNIT == high_bytes(RESIDUAL) {
            _mm512_storeu_si512(units.cast(), high);
            return;
        }
        let lows = group.lows.add(row * LANES);
        let low = _mm512_cvtepu8_epi16(_mm256_loadu_si256(lows.cast()));
        if UNIT == 2 {
            _mm512_storeu_si512(units.cast(), _mm512_or_si512(high, low));
            return;
        }
        let second = _mm512_cvtepu8_epi16(_mm256_loadu_si256(lows.add(GROUP).cast()));
        let low = _mm512_or_si512(low, _mm512_slli_epi16::<8>(second));
        for (i, places) in PLACES.iter().enumerate() {
            let places = _mm512_loadu_si512(places.as_ptr().cast());
            let half = _mm512_permutex2var_epi16(low, places, high);
            _mm512_storeu_si512(units.add(64 * i).cast(), half);
        }
    }
}

/// What all blocks of a fused kernel share.
struct Shared<'a> {
    /// The fields of all symbols where they go.
    fields: [u16; 64],
    tables: Vec<&'a Buckets>,
}

/// Decodes one row of a block.
///
/// # Safety
/// 32 words can be read at the group's words. The machine must have the instructions.
#[inline(always)]
unsafe fn decode_row<const UNIT: usize, const RESIDUAL: u32, const BITS: u32>(
    shared: &Shared<'_>,
    x: &mut [__m512i; 2],
    group: &mut Group<'_>,
    row: usize,
) {
    let table = shared.tables[group.table];
    group.prefetch(row * LANES * UNIT, LANES * UNIT);
    // SAFETY: as the caller promises.
    unsafe {
        let symbols = match BITS {
            5 => step32(x, &table.first32, &mut group.words),
            _ => step64(x, table, &mut group.words),
        };
        join::<UNIT, RESIDUAL>(look_up::<BITS>(&shared.fields, symbols), group, row);
    }
}

/// [`Kernels::decode_fused`](crate::kernels::Kernels::decode_fused) for `N` blocks of one form.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,popcnt")]
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
    let in_upper = UNIT > 1 && high_bytes(RESIDUAL) == 1;
    let shift = head.layout.field_shift() + if in_upper { 8 } else { 0 };
    let field = |s: usize| if s < 1 << BITS { head.field(s as u8) << shift } else { 0 };
    let tables: Option<Vec<_>> = head.alias.iter().map(|t| t.buckets.as_deref()).collect();
    let Some(tables) = tables else { return 0 };
    let shared = Shared { fields: std::array::from_fn(field), tables };
    let mut states: [_; N] = std::array::from_fn(|i| load_states(&jobs[i].states));
    let n = walk::<UNIT, RESIDUAL, N>(jobs, planes, units, ahead, |groups, ahead, lines| {
        for row in 0..ROWS {
            ahead.fetch(lines);
            // SAFETY: `walk` saw a word for each symbol of the group; the machine has the
            // instructions.
            each_block!(N, |i| unsafe {
                decode_row::<UNIT, RESIDUAL, BITS>(&shared, &mut states[i], &mut groups[i], row)
            });
        }
    });
    for (job, states) in jobs.iter_mut().zip(states) {
        store_states(states, &mut job.states);
    }
    n
}

/// Decodes symbols of `N` jobs as long as no kernel would read past a block; returns the groups
/// done.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
#[allow(clippy::undocumented_unsafe_blocks)] // not seen through macros
pub(super) fn decode_symbols<const N: usize>(
    head: &Head,
    jobs: &mut [Job<'_>; N],
    groups: &mut [&mut [[[u8; LANES]; ROWS]]; N],
) -> usize {
    let n = groups.iter().map(|g| g.len()).min().unwrap_or(0);
    let mut states: [_; N] = std::array::from_fn(|i| load_states(&jobs[i].states));
    let lines: [_; N] = std::array::from_fn(|i| jobs[i].soon.lines_a_step(groups[i].len() * ROWS));
    let mut soon: [_; N] = std::array::from_fn(|i| std::mem::take(&mut jobs[i].soon));
    let mut done = 0;
    while done < n && jobs.iter().all(Job::has_group) {
        let tables: [_; N] =
            std::array::from_fn(|i| &head.alias[usize::from(jobs[i].group_tables[jobs[i].group])]);
        let mut words: [*const u16; N] =
            std::array::from_fn(|i| jobs[i].words[2 * jobs[i].position..].as_ptr().cast());
        let mask = _mm512_set1_epi16(((1u32 << head.symbol_bits) - 1) as i16);
        macro_rules! rows {
            (|$table:ident, $x:ident, $words:ident| $step:expr) => {
                for row in 0..ROWS {
                    each_block!(N, |i| {
                        let ($table, $x, $words) = (tables[i], &mut states[i], &mut words[i]);
                        soon[i].fetch(lines[i]);
                        // SAFETY: there is a word for each symbol; a row is 32 bytes.
                        unsafe {
                            let symbols = _mm512_and_si512($step, mask);
                            let symbols = _mm512_cvtepi16_epi8(symbols);
                            _mm256_storeu_si256(groups[i][done][row].as_mut_ptr().cast(), symbols);
                        }
                    });
                }
            };
        }
        match head.symbol_bits {
            5 => rows!(|table, x, words| step32(x, &table.buckets().first32, words)),
            6 => rows!(|table, x, words| step64(x, table.buckets(), words)),
            _ => rows!(|table, x, words| step_by_slots(x, table.slots(), words)),
        }
        for (job, words) in jobs.iter_mut().zip(words) {
            job.position = (words as usize - job.words.as_ptr() as usize) / 2;
            job.group += 1;
        }
        done += 1;
    }
    for ((job, states), soon) in jobs.iter_mut().zip(states).zip(soon) {
        store_states(states, &mut job.states);
        job.soon = soon;
    }
    done
}
