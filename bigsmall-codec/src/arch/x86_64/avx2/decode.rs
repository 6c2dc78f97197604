//! Decoding: 32 lanes as four vectors of 8, two blocks interleaved. The entries of 32 buckets are
//! looked up by shuffles, one byte of all 32 lanes at a time: processors with slow gathers take
//! less time for that, and others no more. For more symbols the slots are gathered.
//!
//! Bytes of a row are in the order in which packing two vectors of 16 bits leaves them and
//! unpacking takes them: elements 0 to 7, 16 to 23, 8 to 15, 24 to 31.
//!
//! The functions that a row consists of are always inlined. So they have no target features of
//! their own, and their callers must have them.

use std::arch::x86_64::*;

use bigsmall_format::internal::Ahead;

use crate::arch::x86_64::fused::{Group, ROWS, each_block, high_bytes, residual_mask, walk};
use crate::arch::x86_64::tables::EXPAND;
use crate::head::Head;
use crate::kernels::{Job, LANES, Planes};
use crate::planes::GROUP;
use crate::table::{AliasTable, BucketBytes, Shuffled, Slots, TOTAL, shuffled};

/// Vectors of 8 lanes.
pub(super) const VECTORS: usize = LANES / 8;

#[target_feature(enable = "avx2")]
pub(super) fn load_states(states: &[u32; LANES]) -> [__m256i; VECTORS] {
    // SAFETY: 32 states are four vectors.
    std::array::from_fn(|i| unsafe { _mm256_loadu_si256(states.as_ptr().add(8 * i).cast()) })
}

#[target_feature(enable = "avx2")]
pub(super) fn store_states(vectors: [__m256i; VECTORS], states: &mut [u32; LANES]) {
    for (vector, to) in vectors.into_iter().zip(states.as_chunks_mut::<8>().0) {
        // SAFETY: 8 states are one vector.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), vector) };
    }
}

/// Takes a word for every lane of `y` that fell below the bound.
///
/// # Safety
/// 8 words can be read at `words`. The machine must have the instructions.
#[inline(always)]
unsafe fn refill(y: __m256i, words: &mut *const u16) -> __m256i {
    // SAFETY: the caller vouches for 8 words, of which at most as many are used; the permutation is
    // one row of 8 of the table.
    unsafe {
        let low = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(y), _mm256_setzero_si256());
        let mask = _mm256_movemask_ps(_mm256_castsi256_ps(low)) as u8;
        let next = _mm256_cvtepu16_epi32(_mm_loadu_si128((*words).cast()));
        let order = _mm256_loadu_si256(EXPAND[usize::from(mask)].as_ptr().cast());
        *words = words.add(mask.count_ones() as usize);
        let next = _mm256_permutevar8x32_epi32(next, order);
        _mm256_blendv_epi8(y, _mm256_or_si256(_mm256_slli_epi32::<16>(y), next), low)
    }
}

/// Numbers of 5 bits as indices for [`look_up`]: for each half of a table the place in it, or a
/// byte with its highest bit set, of which a shuffle makes 0.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn index(numbers: __m256i) -> [__m256i; 2] {
    // SAFETY: as the caller promises.
    unsafe {
        let low = _mm256_adds_epu8(numbers, _mm256_set1_epi8(0x70));
        [low, _mm256_sub_epi8(numbers, _mm256_set1_epi8(16))]
    }
}

/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn look_up(table: &Shuffled, index: &[__m256i; 2]) -> __m256i {
    // SAFETY: twice 16 bytes are one vector.
    unsafe {
        let low = _mm256_loadu_si256(table[0].as_ptr().cast());
        let high = _mm256_loadu_si256(table[1].as_ptr().cast());
        let (low, high) = (_mm256_shuffle_epi8(low, index[0]), _mm256_shuffle_epi8(high, index[1]));
        _mm256_or_si256(low, high)
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

/// One step of all lanes, by the bytes of 32 buckets. Returns the symbols.
///
/// # Safety
/// 32 words can be read at `words`. The machine must have the instructions.
#[inline(always)]
unsafe fn step_by_bytes(
    x: &mut [__m256i; VECTORS],
    table: &BucketBytes,
    words: &mut *const u16,
) -> __m256i {
    // SAFETY: as the caller promises.
    unsafe {
        let lower = _mm256_set1_epi32(0xffff);
        let (low12, low7) = (_mm256_set1_epi16(TOTAL as i16 - 1), _mm256_set1_epi16(127));
        // The first two vectors hold the even elements.
        let a = _mm256_blend_epi16::<0xaa>(x[0], _mm256_slli_epi32::<16>(x[2]));
        let b = _mm256_blend_epi16::<0xaa>(x[1], _mm256_slli_epi32::<16>(x[3]));
        let (a, b) = (_mm256_and_si256(a, low12), _mm256_and_si256(b, low12));
        let bucket = _mm256_packus_epi16(_mm256_srli_epi16::<7>(a), _mm256_srli_epi16::<7>(b));
        let place = _mm256_packus_epi16(_mm256_and_si256(a, low7), _mm256_and_si256(b, low7));
        let of_bucket = index(bucket);
        let donated = _mm256_cmpgt_epi8(place, look_up(&table.last, &of_bucket));
        let symbols = _mm256_blendv_epi8(bucket, look_up(&table.symbol, &of_bucket), donated);
        let of_symbol = index(symbols);
        let mut delta = [donated; 2];
        for (byte, delta) in delta.iter_mut().enumerate() {
            let own = look_up(&table.own[byte], &of_bucket);
            *delta = _mm256_blendv_epi8(own, look_up(&table.donor[byte], &of_bucket), donated);
        }
        let delta = unpack(delta[0], delta[1]);
        let freq = look_up(&table.freq[0], &of_symbol);
        let freq = unpack(freq, look_up(&table.freq[1], &of_symbol));
        for (v, slots) in [a, b].into_iter().enumerate() {
            let rank = _mm256_add_epi16(slots, delta[v]);
            let q = _mm256_srli_epi32::<12>(x[v]);
            let even = _mm256_mullo_epi32(_mm256_and_si256(freq[v], lower), q);
            x[v] = _mm256_add_epi32(even, _mm256_and_si256(rank, lower));
            let q = _mm256_srli_epi32::<12>(x[v + 2]);
            let odd = _mm256_mullo_epi32(_mm256_srli_epi32::<16>(freq[v]), q);
            x[v + 2] = _mm256_add_epi32(odd, _mm256_srli_epi32::<16>(rank));
        }
        for x in x.iter_mut() {
            *x = refill(*x, words);
        }
        symbols
    }
}

/// The same by slots in memory, for any number of symbols.
///
/// # Safety
/// As [`step_by_bytes`].
#[inline(always)]
unsafe fn step_by_slots(
    x: &mut [__m256i; VECTORS],
    slots: &Slots,
    words: &mut *const u16,
) -> __m256i {
    // SAFETY: as the caller promises; a slot of 12 bits lies within the 4096 entries.
    unsafe {
        let low12 = _mm256_set1_epi32(TOTAL as i32 - 1);
        let mut entries = *x;
        for entry in &mut entries {
            let slot = _mm256_and_si256(*entry, low12);
            *entry = _mm256_i32gather_epi32::<4>(slots.as_ptr().cast(), slot);
        }
        for (x, entry) in x.iter_mut().zip(&mut entries) {
            let q = _mm256_srli_epi32::<12>(*x);
            let rank = _mm256_and_si256(_mm256_srli_epi32::<12>(*entry), low12);
            let product = _mm256_mullo_epi32(_mm256_and_si256(*entry, low12), q);
            *x = refill(_mm256_add_epi32(_mm256_add_epi32(product, q), rank), words);
            *entry = _mm256_srli_epi32::<24>(*entry);
        }
        let a = _mm256_or_si256(entries[0], _mm256_slli_epi32::<16>(entries[2]));
        let b = _mm256_or_si256(entries[1], _mm256_slli_epi32::<16>(entries[3]));
        _mm256_packus_epi16(a, b)
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
            let bit = _mm256_and_si256(moved, _mm256_set1_epi8((1u8 << to) as i8));
            residual = _mm256_or_si256(residual, bit);
        }
        residual
    }
}

/// The fields of symbols at their places in the high bits.
struct Fields {
    /// For high bits of two bytes: of each of 32 symbols, the lower byte first.
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
/// The machine must have the instructions.
#[inline(always)]
unsafe fn join<const UNIT: usize, const RESIDUAL: u32>(
    symbols: __m256i,
    fields: &Fields,
    group: &Group<'_>,
    row: usize,
) {
    // SAFETY: a group has as many residuals, low bits and units as its type says.
    unsafe {
        let mask = residual_mask(RESIDUAL);
        let residual = reorder(residuals::<RESIDUAL>(group.residual, row));
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
        let of_symbol = index(symbols);
        let below = _mm256_and_si256(residual, _mm256_set1_epi8((mask & 0x7f) as i8));
        let sign = _mm256_and_si256(residual, _mm256_set1_epi8(0x80u8 as i8));
        let lower = _mm256_or_si256(look_up(&fields.bytes[0], &of_symbol), below);
        let upper = _mm256_or_si256(look_up(&fields.bytes[1], &of_symbol), sign);
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

/// What all blocks of a fused kernel share.
struct Shared<'a> {
    fields: Fields,
    /// Of all tables, if there are 32 symbols, else none.
    bytes: Vec<&'a BucketBytes>,
    /// The same if there are more.
    slots: Vec<&'a Slots>,
}

/// Decodes one row of a block.
///
/// # Safety
/// 32 words can be read at the group's words. The machine must have the instructions.
#[inline(always)]
unsafe fn decode_row<const UNIT: usize, const RESIDUAL: u32, const BITS: u32>(
    shared: &Shared<'_>,
    x: &mut [__m256i; VECTORS],
    group: &mut Group<'_>,
    row: usize,
) {
    group.prefetch(row * LANES * UNIT, LANES * UNIT);
    // SAFETY: as the caller promises.
    unsafe {
        let symbols = match BITS {
            5 => step_by_bytes(x, shared.bytes[group.table], &mut group.words),
            _ => step_by_slots(x, shared.slots[group.table], &mut group.words),
        };
        join::<UNIT, RESIDUAL>(symbols, &shared.fields, group, row);
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
    let (small, large) = head.alias.split_at(if BITS == 5 { head.alias.len() } else { 0 });
    let shared = Shared {
        fields: Fields::new(head),
        bytes: small.iter().map(|table| &table.buckets().bytes).collect(),
        slots: large.iter().map(AliasTable::slots).collect(),
    };
    let mut states: [_; N] = std::array::from_fn(|i| load_states(&jobs[i].states));
    let n = walk::<UNIT, RESIDUAL, N>(jobs, planes, units, ahead, |groups, ahead, lines| {
        for row in 0..ROWS {
            ahead.fetch(lines);
            // SAFETY: `walk` saw a word for each symbol of the group; the machine has the
            // instructions.
            each_block!(N, |i| unsafe {
                let (x, group) = (&mut states[i], &mut groups[i]);
                decode_row::<UNIT, RESIDUAL, BITS>(&shared, x, group, row);
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
#[target_feature(enable = "avx2,popcnt")]
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
        macro_rules! rows {
            ($step:ident, |$table:ident| $of:expr) => {
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
            5 => rows!(step_by_bytes, |table| &table.buckets().bytes),
            _ => rows!(step_by_slots, |table| table.slots()),
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
