//! Decoding: the upper and the lower halves of the states of 32 lanes as two vectors of 16-bit
//! numbers each, two blocks interleaved. The buckets of 32 or 64 symbols are looked up by shuffles,
//! one byte of all 32 lanes at a time: processors with slow gathers take less time for that, and
//! others no more. For more symbols the slots are gathered.
//!
//! Bytes of a row are in the order in which packing two vectors of 16 bits leaves them and
//! unpacking takes them: elements 0 to 7, 16 to 23, 8 to 15, 24 to 31.
//!
//! The functions that a row consists of are always inlined. So they have no target features of
//! their own, and their callers must have them.

use std::arch::x86_64::*;

use bigsmall_format::internal::Ahead;

use crate::arch::fused::{Group, ROWS, each_block, high_bytes, residual_mask, walk, walk_symbols};
use crate::arch::tables::UNPACK16;
use crate::head::Head;
use crate::kernels::{Job, LANES, Planes, halves, whole};
use crate::planes::GROUP;
use crate::table::{BucketBytes, Shuffled, Slots, TOTAL, shuffled};

/// The states of all lanes: their upper and their lower halves, those of 16 lanes in a vector.
struct States {
    upper: [__m256i; 2],
    lower: [__m256i; 2],
}

impl States {
    #[target_feature(enable = "avx2")]
    fn load(states: &[u32; LANES]) -> States {
        let [upper, lower] = halves(states);
        // SAFETY: 32 halves are two vectors.
        let load = |halves: [u16; LANES]| unsafe {
            [0, 16].map(|lane| _mm256_loadu_si256(halves.as_ptr().add(lane).cast()))
        };
        States { upper: load(upper), lower: load(lower) }
    }

    #[target_feature(enable = "avx2")]
    fn store(&self, states: &mut [u32; LANES]) {
        let mut halves = [[0; LANES]; 2];
        for (half, vectors) in halves.iter_mut().zip([self.upper, self.lower]) {
            for (to, vector) in half.as_chunks_mut::<16>().0.iter_mut().zip(vectors) {
                // SAFETY: 16 halves are one vector.
                unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), vector) };
            }
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
    unsafe fn step(&mut self, freq: [__m256i; 2], rank: [__m256i; 2], words: &mut *const u16) {
        // SAFETY: the caller vouches for 32 words: each vector of 8 reads as many, and those before
        // it have taken at most as many. The shuffle is one of 256.
        unsafe {
            let (mut upper, mut lower, mut low) = (self.upper, self.lower, self.upper);
            for v in 0..2 {
                let top = _mm256_and_si256(self.lower[v], _mm256_set1_epi16(0xf000_u16 as i16));
                let rank = _mm256_add_epi16(rank[v], _mm256_mulhi_epu16(freq[v], top));
                let product = _mm256_mullo_epi16(freq[v], self.upper[v]);
                upper[v] = _mm256_mulhi_epu16(freq[v], self.upper[v]);
                lower[v] = _mm256_add_epi16(product, rank);
                // -1 unless the sum was too large for 16 bits.
                let no_carry = _mm256_cmpeq_epi16(_mm256_adds_epu16(product, rank), lower[v]);
                let more = _mm256_add_epi16(no_carry, _mm256_set1_epi16(1));
                upper[v] = _mm256_add_epi16(upper[v], more);
                low[v] = _mm256_cmpeq_epi16(upper[v], _mm256_setzero_si256());
            }
            // Elements 0 to 7, 16 to 23, 8 to 15, 24 to 31.
            let sets = _mm256_movemask_epi8(_mm256_packs_epi16(low[0], low[1])) as u32;
            let mut next = [_mm_setzero_si128(); 4];
            for (next, shift) in next.iter_mut().zip([0, 16, 8, 24]) {
                let set = (sets >> shift) as u8;
                let order = _mm_loadu_si128(UNPACK16[usize::from(set)].as_ptr().cast());
                *next = _mm_shuffle_epi8(_mm_loadu_si128((*words).cast()), order);
                *words = words.add(set.count_ones() as usize);
            }
            let next = [_mm256_set_m128i(next[1], next[0]), _mm256_set_m128i(next[3], next[2])];
            for v in 0..2 {
                // Where `low` is set `upper` is 0, elsewhere `next`.
                self.upper[v] = _mm256_or_si256(upper[v], _mm256_and_si256(low[v], lower[v]));
                self.lower[v] = _mm256_or_si256(_mm256_andnot_si256(low[v], lower[v]), next[v]);
            }
        }
    }
}

/// Parts of 16 numbers of a table that is looked up by shuffles.
const PARTS: usize = 4;

/// Numbers of `BITS` bits as indices for [`look_up`]: for each part of a table the place in it, or
/// a byte with its highest bit set, of which a shuffle makes 0.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn index<const BITS: u32>(numbers: __m256i) -> [__m256i; PARTS] {
    // SAFETY: as the caller promises.
    unsafe {
        let above = _mm256_set1_epi8(0x70);
        if BITS == 5 {
            let low = _mm256_adds_epu8(numbers, above);
            let high = _mm256_sub_epi8(numbers, _mm256_set1_epi8(16));
            return [low, high, low, high];
        }
        // For a part the numbers that are not in it have bits above the lowest four.
        let mut index = [numbers; PARTS];
        for (index, part) in index.iter_mut().zip([0, 16, 32, 48]) {
            *index = _mm256_adds_epu8(_mm256_xor_si256(numbers, _mm256_set1_epi8(part)), above);
        }
        index
    }
}

/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn look_up<const BITS: u32>(table: &Shuffled, index: &[__m256i; PARTS]) -> __m256i {
    // SAFETY: twice 16 bytes are one vector.
    unsafe {
        let mut found = _mm256_setzero_si256();
        for (table, index) in table.iter().zip(index).take(1 << (BITS - 4)) {
            let part = _mm256_loadu_si256(table.as_ptr().cast());
            found = _mm256_or_si256(found, _mm256_shuffle_epi8(part, *index));
        }
        found
    }
}

/// Two vectors of lower and upper bytes as two of 16 bits.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn unpack(low: __m256i, high: __m256i) -> [__m256i; 2] {
    // SAFETY: as the caller promises.
    unsafe { [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)] }
}

/// One step of all lanes, by the bytes of 2^`BITS` buckets, 5 or 6. Returns the symbols.
///
/// # Safety
/// 32 words can be read at `words`. The machine must have the instructions.
#[inline(always)]
unsafe fn step_by_bytes<const BITS: u32>(
    x: &mut States,
    table: &BucketBytes,
    words: &mut *const u16,
) -> __m256i {
    // SAFETY: as the caller promises.
    unsafe {
        let in_bucket = _mm256_set1_epi16((1 << (12 - BITS)) - 1);
        let (mut buckets, mut places) = (x.lower, x.lower);
        for v in 0..2 {
            let slot = _mm256_and_si256(x.lower[v], _mm256_set1_epi16(TOTAL as i16 - 1));
            places[v] = _mm256_and_si256(slot, in_bucket);
            buckets[v] = match BITS {
                5 => _mm256_srli_epi16::<7>(slot),
                _ => _mm256_srli_epi16::<6>(slot),
            };
        }
        let bucket = _mm256_packus_epi16(buckets[0], buckets[1]);
        let place = _mm256_packus_epi16(places[0], places[1]);
        let of_bucket = index::<BITS>(bucket);
        let donated = _mm256_cmpgt_epi8(place, look_up::<BITS>(&table.last, &of_bucket));
        let donor = look_up::<BITS>(&table.donor, &of_bucket);
        let symbols = _mm256_blendv_epi8(bucket, donor, donated);
        let low = _mm256_and_si256(look_up::<BITS>(&table.donated[0], &of_bucket), donated);
        let high = _mm256_and_si256(look_up::<BITS>(&table.donated[1], &of_bucket), donated);
        let mut rank = unpack(low, high);
        for (rank, place) in rank.iter_mut().zip(places) {
            *rank = _mm256_add_epi16(*rank, place);
        }
        let of_symbol = index::<BITS>(symbols);
        let low = look_up::<BITS>(&table.freq[0], &of_symbol);
        let freq = unpack(low, look_up::<BITS>(&table.freq[1], &of_symbol));
        x.step(freq, rank, words);
        symbols
    }
}

/// The same by slots in memory, for any number of symbols.
///
/// # Safety
/// As [`step_by_bytes`].
#[inline(always)]
unsafe fn step_by_slots(x: &mut States, slots: &Slots, words: &mut *const u16) -> __m256i {
    // SAFETY: as the caller promises; a slot of 12 bits lies within the 4096 entries.
    unsafe {
        let low12 = _mm256_set1_epi32(TOTAL as i32 - 1);
        let (mut freq, mut rank, mut symbols) = (x.lower, x.lower, x.lower);
        for v in 0..2 {
            let slot = _mm256_and_si256(x.lower[v], _mm256_set1_epi16(TOTAL as i16 - 1));
            // Unpacked and packed again, elements are in their order.
            let zero = _mm256_setzero_si256();
            let a = _mm256_unpacklo_epi16(slot, zero);
            let b = _mm256_unpackhi_epi16(slot, zero);
            let a = _mm256_i32gather_epi32::<4>(slots.as_ptr().cast(), a);
            let b = _mm256_i32gather_epi32::<4>(slots.as_ptr().cast(), b);
            let of = _mm256_packus_epi32(_mm256_and_si256(a, low12), _mm256_and_si256(b, low12));
            freq[v] = _mm256_slli_epi16::<4>(of);
            let (c, d) = (_mm256_srli_epi32::<12>(a), _mm256_srli_epi32::<12>(b));
            rank[v] = _mm256_packus_epi32(_mm256_and_si256(c, low12), _mm256_and_si256(d, low12));
            symbols[v] =
                _mm256_packus_epi32(_mm256_srli_epi32::<24>(a), _mm256_srli_epi32::<24>(b));
        }
        x.step(freq, rank, words);
        _mm256_packus_epi16(symbols[0], symbols[1])
    }
}

/// Bytes from the order of elements to that of packed ones, or back.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn reorder(bytes: __m256i) -> __m256i {
    // SAFETY: as the caller promises.
    unsafe { _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes) }
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
            let bit = _mm256_and_si256(moved, _mm256_set1_epi8((1u8 << to) as i8));
            residual = _mm256_or_si256(residual, bit);
        }
        residual
    }
}

/// The fields of symbols at their places in the high bits.
#[repr(align(64))]
struct Fields {
    /// For high bits of two bytes: of each symbol, the lower byte first.
    bytes: [Shuffled; 2],
    /// For high bits of one byte: that of symbol `s` is `base` and `s`, shifted, but for symbol 0.
    base: u8,
    first: u8,
}

impl Fields {
    fn new(head: &Head) -> Fields {
        let shift = head.layout.field_shift();
        let field = |s: usize| head.field(s as u8) << shift;
        let bytes = [0, 1].map(|byte| shuffled(|s| field(s).to_le_bytes()[byte]));
        let [base, first] = [head.base, head.first].map(|field| (field << shift) as u8);
        Fields { bytes, base, first }
    }
}

/// Puts the units of a row together.
///
/// # Safety
/// `group` is one of [`walk`]'s, and `row` one of its rows. The machine must have the instructions.
#[inline(always)]
unsafe fn join<const UNIT: usize, const RESIDUAL: u32, const BITS: u32, const WHOLE: bool>(
    symbols: __m256i,
    fields: &Fields,
    group: &Group<'_>,
    row: usize,
) {
    // SAFETY: a group has as many residuals, low bits and units as its type says.
    unsafe {
        let mask = residual_mask(RESIDUAL);
        let residual = reorder(residuals::<RESIDUAL, WHOLE>(group.residual, row));
        let units: *mut __m256i = group.units.add(row * LANES * UNIT).cast();
        if high_bytes(RESIDUAL) == 1 {
            // No bit of a symbol crosses its byte.
            let field = match RESIDUAL {
                1 => symbols,
                2 => _mm256_slli_epi16::<1>(symbols),
                _ => _mm256_slli_epi16::<2>(symbols),
            };
            let field = _mm256_add_epi8(field, _mm256_set1_epi8(fields.base as i8));
            let is_first = _mm256_cmpeq_epi8(symbols, _mm256_setzero_si256());
            let field = _mm256_blendv_epi8(field, _mm256_set1_epi8(fields.first as i8), is_first);
            let residual = _mm256_and_si256(residual, _mm256_set1_epi8(mask as i8));
            let high = _mm256_or_si256(field, residual);
            if UNIT == 1 {
                _mm256_storeu_si256(units, reorder(high));
            } else {
                let low = _mm256_loadu_si256(group.lows.add(row * LANES).cast());
                let [a, b] = unpack(reorder(low), high);
                _mm256_storeu_si256(units, a);
                _mm256_storeu_si256(units.add(1), b);
            }
            return;
        }
        let of_symbol = index::<BITS>(symbols);
        let below = _mm256_and_si256(residual, _mm256_set1_epi8((mask & 0x7f) as i8));
        let sign = _mm256_and_si256(residual, _mm256_set1_epi8(0x80u8 as i8));
        let lower = _mm256_or_si256(look_up::<BITS>(&fields.bytes[0], &of_symbol), below);
        let upper = _mm256_or_si256(look_up::<BITS>(&fields.bytes[1], &of_symbol), sign);
        let high = unpack(lower, upper);
        if UNIT == 2 {
            _mm256_storeu_si256(units, high[0]);
            _mm256_storeu_si256(units.add(1), high[1]);
            return;
        }
        let lows = group.lows.add(row * LANES);
        let low = unpack(
            reorder(_mm256_loadu_si256(lows.cast())),
            reorder(_mm256_loadu_si256(lows.add(GROUP).cast())),
        );
        for i in 0..2 {
            let a = _mm256_unpacklo_epi16(low[i], high[i]);
            let b = _mm256_unpackhi_epi16(low[i], high[i]);
            _mm256_storeu_si256(units.add(2 * i), _mm256_permute2x128_si256::<0x20>(a, b));
            _mm256_storeu_si256(units.add(2 * i + 1), _mm256_permute2x128_si256::<0x31>(a, b));
        }
    }
}

/// Decodes one row of a block.
///
/// # Safety
/// `group` is one of [`walk`]'s, `row` one of its rows, and 32 words can be read at its words. The
/// machine must have the instructions.
#[inline(always)]
unsafe fn decode_row<const UNIT: usize, const RESIDUAL: u32, const BITS: u32, const WHOLE: bool>(
    fields: &Fields,
    x: &mut States,
    group: &mut Group<'_>,
    row: usize,
) {
    // SAFETY: as the caller promises.
    unsafe {
        group.prefetch(row * LANES * UNIT, LANES * UNIT);
        let symbols = step_by_bytes::<BITS>(x, &group.table.bytes, &mut group.words);
        join::<UNIT, RESIDUAL, BITS, WHOLE>(symbols, fields, group, row);
    }
}

/// [`Kernels::decode_fused`](crate::kernels::Kernels::decode_fused) for `N` blocks of one form.
#[target_feature(enable = "avx2,popcnt")]
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
    let mut states: [_; N] = std::array::from_fn(|i| States::load(&jobs[i].states));
    let n = walk::<UNIT, RESIDUAL, N>(
        &head.alias,
        jobs,
        planes,
        units,
        ahead,
        |groups, ahead, lines| {
            macro_rules! rows {
                ($rows:expr, $whole:literal) => {
                    for row in $rows {
                        ahead.fetch(lines);
                        // SAFETY: a group of `walk` has planes, units, and a word for each of them;
                        // the machine has the instructions.
                        each_block!(N, |i| unsafe {
                            let (x, group) = (&mut states[i], &mut groups[i]);
                            decode_row::<UNIT, RESIDUAL, BITS, $whole>(&fields, x, group, row);
                        });
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
#[target_feature(enable = "avx2,popcnt")]
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
        macro_rules! rows {
            ($step:expr, |$table:ident| $of:expr) => {
                for row in 0..ROWS {
                    each_block!(N, |i| {
                        let $table = tables[i];
                        soon[i].fetch(lines[i]);
                        // SAFETY: there is a word for each symbol; a row is 32 bytes.
                        unsafe {
                            let symbols = $step(&mut states[i], $of, &mut words[i]);
                            let to = groups[i][done][row].as_mut_ptr();
                            _mm256_storeu_si256(to.cast(), reorder(symbols));
                        }
                    });
                }
            };
        }
        match head.symbol_bits {
            5 => rows!(step_by_bytes::<5>, |table| &table.buckets().bytes),
            6 => rows!(step_by_bytes::<6>, |table| &table.buckets().bytes),
            _ => rows!(step_by_slots, |table| table.slots()),
        }
    });
    for ((job, states), soon) in jobs.iter_mut().zip(states).zip(soon) {
        states.store(&mut job.states);
        job.soon = soon;
    }
    done
}
