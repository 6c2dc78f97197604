//! Decoding: the upper and the lower halves of the states of 32 lanes as one vector of 16-bit
//! numbers each, four blocks interleaved. A row waits for itself, from the states to their buckets,
//! from these by two products to new states, and to the words of those that fell below the bound:
//! three times as long as it computes. So the symbols of a row are found for every block
//! first, then all states move on, then the units are written: instructions that do not wait for
//! each other are neighbours.
//!
//! The buckets are looked up for all lanes at once, 64 symbols with one instruction.
//!
//! The functions that a row consists of are always inlined. So they have no target features of
//! their own, and their callers must have them.

use std::arch::x86_64::*;

use bigsmall_format::internal::Ahead;

use crate::arch::fused::{
    Group, ROWS, check_fields, each_block, high_bytes, residual_mask, symbols_are_fields, walk,
    walk_symbols,
};
use crate::head::Head;
use crate::kernels::{Job, LANES, Planes, halves, whole};
use crate::planes::GROUP;
use crate::table::{AliasTable, Buckets};

/// Loads 64 bytes for an instruction that expands them. Compilers would make this load a part of
/// that instruction, a form of it that takes twice as long on AMD's Zen 5.
///
/// # Safety
/// 64 bytes can be read at `from`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn load(from: *const u8) -> __m512i {
    let vector;
    // SAFETY: as the caller promises; nothing else is read or written.
    unsafe {
        std::arch::asm!(
            "vmovdqu64 {}, zmmword ptr [{}]",
            out(zmm_reg) vector,
            in(reg) from,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    vector
}

/// The states of all lanes: their upper and their lower halves.
pub(super) struct States {
    pub(super) upper: __m512i,
    pub(super) lower: __m512i,
}

impl States {
    #[target_feature(enable = "avx512f")]
    pub(super) fn load(states: &[u32; LANES]) -> States {
        let [upper, lower] = halves(states);
        // SAFETY: 32 halves are one vector.
        unsafe {
            States {
                upper: _mm512_loadu_si512(upper.as_ptr().cast()),
                lower: _mm512_loadu_si512(lower.as_ptr().cast()),
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn store(&self, states: &mut [u32; LANES]) {
        let mut halves = [[0; LANES]; 2];
        for (half, vector) in halves.iter_mut().zip([self.upper, self.lower]) {
            // SAFETY: 32 halves are one vector.
            unsafe { _mm512_storeu_si512(half.as_mut_ptr().cast(), vector) };
        }
        *states = whole(halves);
    }

    /// Moves the states on: `freq` is 16 times the frequency of their slots, `rank` their rank.
    /// Lanes that fell below the bound take a word.
    ///
    /// With the halves `u` and `l` of a state, freq / 16 * (state >> 12) + rank is freq * u +
    /// (freq / 16 * (l >> 12) + rank); the sum in brackets is less than freq, so it fits 16 bits.
    ///
    /// # Safety
    /// 32 words can be read at `words`. The machine must have the instructions.
    #[inline(always)]
    unsafe fn step(&mut self, freq: __m512i, rank: __m512i, words: &mut *const u16) {
        // SAFETY: the caller vouches for 32 words, of which at most as many are used.
        unsafe {
            let top = _mm512_and_si512(self.lower, _mm512_set1_epi16(0xf000_u16 as i16));
            let rank = _mm512_add_epi16(rank, _mm512_mulhi_epu16(freq, top));
            let product = _mm512_mullo_epi16(freq, self.upper);
            let lower = _mm512_add_epi16(product, rank);
            // (rank & product) | ((rank | product) & !lower): its top bits are the carries.
            let carry = _mm512_ternarylogic_epi32::<0xd4>(rank, product, lower);
            let upper = _mm512_mulhi_epu16(freq, self.upper);
            let upper = _mm512_add_epi16(upper, _mm512_srli_epi16::<15>(carry));
            let low = _mm512_testn_epi16_mask(upper, upper);
            self.upper = _mm512_mask_mov_epi16(upper, low, lower);
            let next = load((*words).cast());
            self.lower = _mm512_mask_expand_epi16(lower, low, next);
            *words = words.add(low.count_ones() as usize);
        }
    }
}

/// Looks up 32 indices of `BITS` bits, 5 to 8, whose upper bits do not matter, in a table of 16-bit
/// numbers.
///
/// # Safety
/// The table has 2^`BITS` numbers. The machine must have the instructions.
#[inline(always)]
pub(super) unsafe fn look_up<const BITS: u32, const N: usize>(
    table: &[u16; N],
    index: __m512i,
) -> __m512i {
    debug_assert!(1 << BITS <= N);
    // SAFETY: 2^BITS numbers of 16 bits, of which 32 are a vector.
    unsafe {
        let part = |i: usize| _mm512_loadu_si512(table.as_ptr().add(32 * i).cast());
        // Of 64 numbers; two and four times as many are chosen from by the next bits.
        let of_64 = |i: usize| _mm512_permutex2var_epi16(part(2 * i), index, part(2 * i + 1));
        let bit = |i: u32| _mm512_test_epi16_mask(index, _mm512_set1_epi16(1 << i));
        match BITS {
            5 => _mm512_permutexvar_epi16(index, part(0)),
            6 => of_64(0),
            7 => _mm512_mask_mov_epi16(of_64(0), bit(6), of_64(1)),
            _ => {
                let lower = _mm512_mask_mov_epi16(of_64(0), bit(6), of_64(1));
                let upper = _mm512_mask_mov_epi16(of_64(2), bit(6), of_64(3));
                _mm512_mask_mov_epi16(lower, bit(7), upper)
            }
        }
    }
}

/// A row of symbols of 16 bits each, of which those above the lowest `BITS` mean nothing, and their
/// ranks, found with 2^`BITS` buckets, 5 to 8.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn find<const BITS: u32>(x: &States, table: &Buckets) -> [__m512i; 2] {
    // SAFETY: as the caller promises.
    unsafe {
        let bucket = match BITS {
            5 => _mm512_srli_epi16::<7>(x.lower),
            6 => _mm512_srli_epi16::<6>(x.lower),
            7 => _mm512_srli_epi16::<5>(x.lower),
            _ => _mm512_srli_epi16::<4>(x.lower),
        };
        let place = _mm512_and_si512(x.lower, _mm512_set1_epi16((1 << (12 - BITS)) - 1));
        let last_and_donor = look_up::<BITS, _>(&table.last_and_donor, bucket);
        // With equal high bytes the place is not greater, whatever the donor: its low byte is zero.
        let place8 = _mm512_slli_epi16::<8>(place);
        let donated = _mm512_cmpgt_epi16_mask(place8, last_and_donor);
        let symbols = _mm512_mask_mov_epi16(bucket, donated, last_and_donor);
        let more = look_up::<BITS, _>(&table.donated, bucket);
        [symbols, _mm512_mask_add_epi16(place, donated, place, more)]
    }
}

/// The residuals of row `row`, one byte each; bits that are not the residual's mean nothing.
/// `WHOLE` says whether the row is stored byte by byte: the first `RESIDUAL` ones are, and the last
/// ones lie bit by bit in the room that these leave.
///
/// # Safety
/// `packed` must be valid for reads of a group. The machine must have the instructions.
#[inline(always)]
unsafe fn residuals<const RESIDUAL: u32, const WHOLE: bool>(
    packed: *const u8,
    row: usize,
) -> __m256i {
    // SAFETY: as the caller promises: a group has RESIDUAL rows of 32 bytes.
    unsafe {
        if WHOLE {
            return _mm256_loadu_si256(packed.add(row * LANES).cast());
        }
        // One bit from each byte row. It does not leave its byte.
        let mut residual = _mm256_setzero_si256();
        for k in 0..RESIDUAL as usize {
            let to = if k as u32 == RESIDUAL - 1 { 7 } else { k as i32 };
            let by = _mm256_set1_epi32(to - (row as i32 - 1));
            let bytes = _mm256_loadu_si256(packed.add(k * LANES).cast());
            let bit = _mm256_set1_epi8((1u8 << to) as i8);
            let moved = _mm256_rolv_epi32(bytes, by);
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

/// The field of each symbol, shifted to its place in the high bits, and these to the top of 16
/// bits for units of more than one byte. Aligned as [`Buckets`] are.
#[repr(align(64))]
struct Fields([u16; 128]);

/// Writes the units of a row.
///
/// # Safety
/// `group` is one of [`walk`]'s, and `row` one of its rows. The machine must have the instructions.
#[inline(always)]
unsafe fn join<const UNIT: usize, const RESIDUAL: u32, const BITS: u32, const WHOLE: bool>(
    fields: &Fields,
    symbols: __m512i,
    group: &Group<'_>,
    row: usize,
) {
    // SAFETY: a group has as many residuals, low bits and units as its type says.
    unsafe {
        let mask = residual_mask(RESIDUAL);
        let residual = residuals::<RESIDUAL, WHOLE>(group.residual, row);
        let units = group.units.add(row * LANES * UNIT);
        if UNIT == 1 {
            let fields = if symbols_are_fields(UNIT, RESIDUAL, BITS) {
                // What is above the symbol comes to lie on bits of the residual, which the mask
                // replaces.
                let shift = _mm_cvtsi32_si128(RESIDUAL as i32 - 1);
                _mm256_sll_epi16(_mm512_cvtepi16_epi8(symbols), shift)
            } else {
                _mm512_cvtepi16_epi8(look_up::<BITS, _>(&fields.0, symbols))
            };
            // residual & mask | fields & !mask
            let mask = _mm256_set1_epi8(mask as i8);
            let high = _mm256_ternarylogic_epi32::<0xca>(mask, residual, fields);
            _mm256_storeu_si256(units.cast(), high);
            return;
        }
        let fields = look_up::<BITS, _>(&fields.0, symbols);
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
    let fields = Fields(std::array::from_fn(field));
    check_fields::<UNIT, RESIDUAL, BITS>(head);
    let mut states: [_; N] = std::array::from_fn(|i| States::load(&jobs[i].states));
    let n = walk::<UNIT, RESIDUAL, N>(
        &head.alias,
        jobs,
        planes,
        units,
        ahead,
        |groups, ahead, lines| {
            let mut symbols = [_mm512_setzero_si512(); N];
            let mut ranks = symbols;
            macro_rules! rows {
                ($rows:expr, $whole:literal) => {
                    for row in $rows {
                        ahead.fetch(lines);
                        // SAFETY: a group of `walk` has planes, units, and a word for each of them;
                        // the machine has the instructions.
                        unsafe {
                            each_block!(N, |i| {
                                groups[i].prefetch(row * LANES * UNIT, LANES * UNIT);
                                [symbols[i], ranks[i]] = find::<BITS>(&states[i], groups[i].table);
                            });
                            each_block!(N, |i| {
                                let freq = look_up::<BITS, _>(&groups[i].table.freq, symbols[i]);
                                states[i].step(freq, ranks[i], &mut groups[i].words);
                            });
                            each_block!(N, |i| {
                                join::<UNIT, RESIDUAL, BITS, $whole>(
                                    &fields, symbols[i], &groups[i], row,
                                );
                            });
                        }
                    }
                };
            }
            rows!(0..RESIDUAL as usize, true);
            rows!(RESIDUAL as usize..ROWS, false);
        },
    );
    for (job, states) in jobs.iter_mut().zip(states) {
        states.store(&mut job.states);
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
    let mut states: [_; N] = std::array::from_fn(|i| States::load(&jobs[i].states));
    let lines: [_; N] = std::array::from_fn(|i| jobs[i].soon.lines_a_step(groups[i].len() * ROWS));
    let mut soon: [_; N] = std::array::from_fn(|i| std::mem::take(&mut jobs[i].soon));
    let done = walk_symbols(&head.alias, jobs, n, |done, tables, words| {
        let mask = _mm512_set1_epi16(((1u32 << head.symbol_bits) - 1) as i16);
        let buckets = tables.map(AliasTable::buckets);
        macro_rules! rows {
            ($bits:literal) => {
                for row in 0..ROWS {
                    let mut symbols = [_mm512_setzero_si512(); N];
                    let mut ranks = symbols;
                    // SAFETY: there is a word for each symbol; a row is 32 bytes.
                    unsafe {
                        each_block!(N, |i| {
                            soon[i].fetch(lines[i]);
                            [symbols[i], ranks[i]] = find::<$bits>(&states[i], buckets[i]);
                        });
                        each_block!(N, |i| {
                            let freq = look_up::<$bits, _>(&buckets[i].freq, symbols[i]);
                            states[i].step(freq, ranks[i], &mut words[i]);
                        });
                        each_block!(N, |i| {
                            let symbols = _mm512_and_si512(symbols[i], mask);
                            let symbols = _mm512_cvtepi16_epi8(symbols);
                            _mm256_storeu_si256(groups[i][done][row].as_mut_ptr().cast(), symbols);
                        });
                    }
                }
            };
        }
        match head.symbol_bits {
            5 => rows!(5),
            6 => rows!(6),
            7 => rows!(7),
            _ => rows!(8),
        }
    });
    for ((job, states), soon) in jobs.iter_mut().zip(states).zip(soon) {
        states.store(&mut job.states);
        job.soon = soon;
    }
    done
}
