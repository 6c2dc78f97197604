//! Units from values in the order of classes: each class's next values go to the places of its
//! units in a vector, and what comes out is added to the base's units.

use std::arch::x86_64::*;

use crate::arch::x86_64::tables::{EXPAND, UNPACK16};
use crate::delta::head::Head;
use crate::delta::sparse::GroupCounts;
use crate::kernels::MERGE_ROOM;
use crate::planes::GROUP;

/// [`at_least`](crate::delta::values::at_least).
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn at_least(bytes: &[u8; 32], power: u32) -> u32 {
    // SAFETY: 32 bytes are one vector.
    let bytes = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
    let above = _mm256_max_epu8(bytes, _mm256_set1_epi8(power as u8 as i8));
    _mm256_movemask_epi8(_mm256_cmpeq_epi8(above, bytes)) as u32
}

/// [`count`](crate::delta::sparse::count).
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn count256(group: &[u8; GROUP]) -> GroupCounts {
    let zero = _mm256_setzero_si256();
    // SAFETY: eight vectors.
    let group: [_; GROUP / 32] =
        std::array::from_fn(|i| unsafe { _mm256_loadu_si256(group.as_ptr().add(32 * i).cast()) });
    let mut counts = GroupCounts::default();
    for (class, count) in (0..).zip(&mut counts) {
        let mut sums = zero;
        for classes in group {
            sums = _mm256_sub_epi8(sums, _mm256_cmpeq_epi8(classes, _mm256_set1_epi8(class)));
        }
        let sums = _mm256_sad_epu8(sums, zero);
        let sums = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        *count = (_mm_cvtsi128_si32(sums) + _mm_extract_epi32::<2>(sums)) as u16;
    }
    counts
}

/// [`count`](crate::delta::sparse::count).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,popcnt")]
pub(super) fn count512(group: &[u8; GROUP]) -> GroupCounts {
    // SAFETY: four vectors.
    let group: [_; GROUP / 64] =
        std::array::from_fn(|i| unsafe { _mm512_loadu_si512(group.as_ptr().add(64 * i).cast()) });
    let mut counts = GroupCounts::default();
    for (class, count) in (0..).zip(&mut counts) {
        for classes in group {
            let mask = _mm512_cmpeq_epi8_mask(classes, _mm512_set1_epi8(class));
            *count += mask.count_ones() as u16;
        }
    }
    counts
}

/// Which bytes of a group are `class`, a bit for each.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn equal256(group: &[u8; GROUP], class: u8) -> [u64; 4] {
    let class = _mm256_set1_epi8(class as i8);
    std::array::from_fn(|i| {
        // SAFETY: two vectors of the group's eight.
        let halves = [2 * i, 2 * i + 1]
            .map(|i| unsafe { _mm256_loadu_si256(group.as_ptr().add(32 * i).cast()) });
        let masks = halves.map(|half| _mm256_movemask_epi8(_mm256_cmpeq_epi8(half, class)) as u32);
        u64::from(masks[0]) | u64::from(masks[1]) << 32
    })
}

/// The same.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn equal512(group: &[u8; GROUP], class: u8) -> [u64; 4] {
    let class = _mm512_set1_epi8(class as i8);
    std::array::from_fn(|i| {
        // SAFETY: one vector of the group's four.
        let bytes = unsafe { _mm512_loadu_si512(group.as_ptr().add(64 * i).cast()) };
        _mm512_cmpeq_epi8_mask(bytes, class)
    })
}

/// [`find`](crate::delta::sparse::find), given which bytes are of the class.
#[inline]
#[target_feature(enable = "bmi1,bmi2,popcnt")]
pub(super) fn find(equal: [u64; 4], n: u32) -> u32 {
    // Without branches: which mask has it cannot be predicted.
    let [a, b, c, _] = equal.map(u64::count_ones);
    let ends = [a, a + b, a + b + c];
    let i = ends.iter().map(|&end| u32::from(n >= end)).sum::<u32>() as usize & 3;
    let first = [0, ends[0], ends[1], ends[2]][i];
    64 * i as u32 + _pdep_u64(1 << ((n - first) & 63), equal[i]).trailing_zeros()
}

/// [`rank`](crate::delta::sparse::rank), given which bytes are of the class.
#[inline]
#[target_feature(enable = "bmi1,bmi2,popcnt")]
pub(super) fn rank(equal: [u64; 4], end: u32) -> u32 {
    let below = |i: u32, mask: u64| match end.saturating_sub(64 * i) {
        n @ 0..64 => mask & ((1 << n) - 1),
        _ => mask,
    };
    (0..).zip(equal).map(|(i, mask)| below(i, mask).count_ones()).sum()
}

/// Where the first value of each class is, from how many units the classes have.
fn starts(counts: [usize; 8]) -> [usize; 8] {
    let mut sum = 0;
    counts.map(|n| {
        sum += n;
        sum - n
    })
}

/// A kernel that merges, for units of one width and `K` classes or fewer.
macro_rules! merge_512 {
    ($name:ident, $type:ident, $lanes:literal, $set:ident, $srl:ident, $add:ident, $sub:ident,
     $subs:ident, $min:ident, $eq:ident, $mask_sub:ident, $expand:ident, $sra:expr, $blend:ident,
     $turn:expr) => {
        /// # Safety
        /// There are [`MERGE_ROOM`] values more than units.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,popcnt")]
        unsafe fn $name<const K: usize>(head: &Head, values: &[u8], units: &mut [u8]) {
            const TOP: $type = 1 << ($type::BITS - 1);
            const BYTES: usize = size_of::<$type>();
            let n = units.len() / BYTES;
            let last = head.classes.n - 1;
            let (field, top) = ($set(head.field.mask as _), $set(head.classes.top as _));
            let (last_class, sign) = ($set(last as _), $set(TOP as _));
            let shift = _mm_cvtsi32_si128(head.field.shift as i32);
            let class = |base| {
                let exponent = _mm512_and_si512($srl(base, shift), field);
                $min($subs($add(exponent, last_class), top), last_class)
            };
            let mut counts = [0; 8];
            if K > 1 {
                let mut sums = [_mm512_setzero_si512(); K];
                for units in units.as_chunks::<64>().0 {
                    // SAFETY: 64 bytes are one vector.
                    let class = class(unsafe { _mm512_loadu_si512(units.as_ptr().cast()) });
                    for c in 0..K - 1 {
                        let mask = $eq(class, $set(c as _));
                        // A lane counts to at most 2^17 / 32.
                        sums[c] = $mask_sub(sums[c], mask, sums[c], $set(!0));
                    }
                }
                for (n, sums) in counts.iter_mut().zip(sums) {
                    let mut lanes = [0 as $type; $lanes];
                    // SAFETY: one vector.
                    unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), sums) };
                    *n = lanes.iter().map(|&n| n as usize).sum();
                }
            }
            let mut at: [usize; K] = starts(counts)[..K].try_into().expect("8 or fewer");
            let from = values.as_ptr();
            for unit in (0..n).step_by($lanes) {
                // SAFETY: the units are whole vectors.
                let place: *mut __m512i = unsafe { units.as_mut_ptr().add(unit * BYTES).cast() };
                // SAFETY: as above.
                let base = unsafe { _mm512_loadu_si512(place.cast()) };
                let (mut value, mut turned) = (_mm512_setzero_si512(), 0);
                if K == 1 {
                    // SAFETY: there are more values than units.
                    value = unsafe { _mm512_loadu_si512(from.add(unit * BYTES).cast()) };
                    turned = if head.modes == 0 { 0 } else { !0 };
                } else {
                    let class = class(base);
                    for c in 0..K {
                        let mask = $eq(class, $set(c as _));
                        // SAFETY: a class has at most as many values as units, so that a vector
                        // from its next value on ends within the room behind the values.
                        let next = unsafe { _mm512_loadu_si512(from.add(at[c] * BYTES).cast()) };
                        value = $expand(value, mask, next);
                        at[c] += mask.count_ones() as usize;
                        if head.modes >> c & 1 == 1 {
                            turned |= mask;
                        }
                    }
                }
                let ordered = $add(value, _mm512_or_si512(base, sign));
                // All bits change where the number is negative, else the highest alone. Then the
                // base's sign.
                let rest = _mm512_andnot_si512(sign, $sra(ordered));
                let plain =
                    _mm512_xor_si512(ordered, _mm512_xor_si512(rest, _mm512_set1_epi32(-1)));
                let both = $blend(turned, plain, $turn(value));
                let new = _mm512_xor_si512(both, _mm512_and_si512(base, sign));
                // SAFETY: as above.
                unsafe { _mm512_storeu_si512(place.cast(), new) };
            }
        }
    };
}

#[inline]
#[target_feature(enable = "avx512f")]
fn subs512_epu32(a: __m512i, b: __m512i) -> __m512i {
    _mm512_sub_epi32(_mm512_max_epu32(a, b), b)
}

#[inline]
#[target_feature(enable = "avx512bw")]
fn turn_back512_16(value: __m512i) -> __m512i {
    _mm512_or_si512(_mm512_srli_epi16::<1>(value), _mm512_slli_epi16::<15>(value))
}

merge_512!(
    merge512_16,
    u16,
    32,
    _mm512_set1_epi16,
    _mm512_srl_epi16,
    _mm512_add_epi16,
    _mm512_sub_epi16,
    _mm512_subs_epu16,
    _mm512_min_epu16,
    _mm512_cmpeq_epi16_mask,
    _mm512_mask_sub_epi16,
    _mm512_mask_expand_epi16,
    _mm512_srai_epi16::<15>,
    _mm512_mask_blend_epi16,
    turn_back512_16
);
merge_512!(
    merge512_32,
    u32,
    16,
    _mm512_set1_epi32,
    _mm512_srl_epi32,
    _mm512_add_epi32,
    _mm512_sub_epi32,
    subs512_epu32,
    _mm512_min_epu32,
    _mm512_cmpeq_epi32_mask,
    _mm512_mask_sub_epi32,
    _mm512_mask_expand_epi32,
    _mm512_srai_epi32::<31>,
    _mm512_mask_blend_epi32,
    _mm512_ror_epi32::<1>
);

/// The same for AVX2. `$put` takes values of a class to their places in a vector that is zero
/// elsewhere, for the class `$class` of 32 bytes of units; it counts them in `$at`.
macro_rules! merge_256 {
    ($name:ident, $type:ident, $set:ident, $srl:ident, $add:ident, $sub:ident, $subs:ident,
     $min:ident, $eq:ident, $put:ident, $sra:expr, $shift_right:expr, $shift_left:expr) => {
        /// # Safety
        /// There are [`MERGE_ROOM`] values more than units.
        #[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
        unsafe fn $name<const K: usize>(head: &Head, values: &[u8], units: &mut [u8]) {
            const TOP: $type = 1 << ($type::BITS - 1);
            const BYTES: usize = size_of::<$type>();
            const LANES: usize = 32 / BYTES;
            let n = units.len() / BYTES;
            let last = head.classes.n - 1;
            let (field, top) = ($set(head.field.mask as _), $set(head.classes.top as _));
            let (last_class, sign) = ($set(last as _), $set(TOP as _));
            let shift = _mm_cvtsi32_si128(head.field.shift as i32);
            let class = |base| {
                let exponent = _mm256_and_si256($srl(base, shift), field);
                $min($subs($add(exponent, last_class), top), last_class)
            };
            let mut counts = [0; 8];
            if K > 1 {
                let mut sums = [_mm256_setzero_si256(); K];
                for units in units.as_chunks::<32>().0 {
                    // SAFETY: 32 bytes are one vector.
                    let class = class(unsafe { _mm256_loadu_si256(units.as_ptr().cast()) });
                    for c in 0..K - 1 {
                        // A lane counts to at most 2^17 / 16.
                        sums[c] = $sub(sums[c], $eq(class, $set(c as _)));
                    }
                }
                for (n, sums) in counts.iter_mut().zip(sums) {
                    let mut lanes = [0 as $type; LANES];
                    // SAFETY: one vector.
                    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums) };
                    *n = lanes.iter().map(|&n| n as usize).sum();
                }
            }
            let mut at: [usize; K] = starts(counts)[..K].try_into().expect("8 or fewer");
            let from = values.as_ptr();
            for unit in (0..n).step_by(LANES) {
                // SAFETY: the units are whole vectors.
                let place: *mut __m256i = unsafe { units.as_mut_ptr().add(unit * BYTES).cast() };
                // SAFETY: as above.
                let base = unsafe { _mm256_loadu_si256(place) };
                let (mut value, mut turned) = (_mm256_setzero_si256(), _mm256_setzero_si256());
                if K == 1 {
                    // SAFETY: there are more values than units.
                    value = unsafe { _mm256_loadu_si256(from.add(unit * BYTES).cast()) };
                    turned = $set(if head.modes == 0 { 0 } else { !0 });
                } else {
                    let class = class(base);
                    for c in 0..K {
                        let is_class = $eq(class, $set(c as _));
                        // SAFETY: a class has at most as many values as units, so that a vector
                        // from its next value on ends within the room behind the values.
                        let put = unsafe { $put(is_class, from, &mut at[c]) };
                        value = _mm256_or_si256(value, put);
                        if head.modes >> c & 1 == 1 {
                            turned = _mm256_or_si256(turned, is_class);
                        }
                    }
                }
                let ordered = $add(value, _mm256_or_si256(base, sign));
                let rest = _mm256_andnot_si256(sign, $sra(ordered));
                let plain =
                    _mm256_xor_si256(ordered, _mm256_xor_si256(rest, _mm256_set1_epi32(-1)));
                let turned_back = _mm256_or_si256($shift_right(value), $shift_left(value));
                let both = _mm256_blendv_epi8(plain, turned_back, turned);
                let new = _mm256_xor_si256(both, _mm256_and_si256(base, sign));
                // SAFETY: as above.
                unsafe { _mm256_storeu_si256(place, new) };
            }
        }
    };
}

/// The values from `at` on at the lanes of `is_class`, zeros elsewhere.
///
/// # Safety
/// 16 values can be read from `at` on.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
unsafe fn put16(is_class: __m256i, values: *const u8, at: &mut usize) -> __m256i {
    let halves = _mm256_packs_epi16(is_class, is_class);
    let mask = _mm256_movemask_epi8(halves) as u32;
    let (low, high) = ((mask & 0xff) as usize, (mask >> 24) as usize);
    // SAFETY: the caller vouches for 16 values, of which the first half takes at most 8; the
    // table has every set of 8 lanes.
    unsafe {
        let first = _mm_loadu_si128(values.add(2 * *at).cast());
        *at += low.count_ones() as usize;
        let second = _mm_loadu_si128(values.add(2 * *at).cast());
        *at += high.count_ones() as usize;
        let order = |mask: usize| _mm_loadu_si128(UNPACK16[mask].as_ptr().cast());
        let first = _mm_shuffle_epi8(first, order(low));
        _mm256_inserti128_si256::<1>(
            _mm256_castsi128_si256(first),
            _mm_shuffle_epi8(second, order(high)),
        )
    }
}

/// The values from `at` on at the lanes of `is_class`, zeros elsewhere.
///
/// # Safety
/// 8 values can be read from `at` on.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
unsafe fn put32(is_class: __m256i, values: *const u8, at: &mut usize) -> __m256i {
    let mask = _mm256_movemask_ps(_mm256_castsi256_ps(is_class)) as usize & 0xff;
    // SAFETY: the caller vouches for 8 values; the table has every set of 8 lanes.
    let put = unsafe {
        let next = _mm256_loadu_si256(values.add(4 * *at).cast());
        let order = _mm256_loadu_si256(EXPAND[mask].as_ptr().cast());
        _mm256_permutevar8x32_epi32(next, order)
    };
    *at += mask.count_ones() as usize;
    _mm256_and_si256(put, is_class)
}

#[inline]
#[target_feature(enable = "avx2")]
fn subs256_epu32(a: __m256i, b: __m256i) -> __m256i {
    _mm256_sub_epi32(_mm256_max_epu32(a, b), b)
}

merge_256!(
    merge256_16,
    u16,
    _mm256_set1_epi16,
    _mm256_srl_epi16,
    _mm256_add_epi16,
    _mm256_sub_epi16,
    _mm256_subs_epu16,
    _mm256_min_epu16,
    _mm256_cmpeq_epi16,
    put16,
    _mm256_srai_epi16::<15>,
    _mm256_srli_epi16::<1>,
    _mm256_slli_epi16::<15>
);
merge_256!(
    merge256_32,
    u32,
    _mm256_set1_epi32,
    _mm256_srl_epi32,
    _mm256_add_epi32,
    _mm256_sub_epi32,
    subs256_epu32,
    _mm256_min_epu32,
    _mm256_cmpeq_epi32,
    put32,
    _mm256_srai_epi32::<31>,
    _mm256_srli_epi32::<1>,
    _mm256_slli_epi32::<31>
);

/// Chooses the kernel by width and number of classes.
macro_rules! choose {
    ($name:ident, $features:literal, $of16:ident, $of32:ident) => {
        /// Merges if there is a kernel for such units: returns whether there is.
        #[target_feature(enable = $features)]
        pub(super) fn $name(head: &Head, values: &[u8], units: &mut [u8]) -> bool {
            let room = values.len() >= units.len() + MERGE_ROOM * head.unit_bytes;
            if !units.len().is_multiple_of(64) || !room || !head.field.is_float() {
                return false;
            }
            // SAFETY: the room was just seen.
            unsafe {
                match (head.unit_bytes, head.classes.n) {
                    (2, 1) => $of16::<1>(head, values, units),
                    (2, 2) => $of16::<2>(head, values, units),
                    (2, 3..=4) => $of16::<4>(head, values, units),
                    (2, _) => $of16::<8>(head, values, units),
                    (4, 1) => $of32::<1>(head, values, units),
                    (4, 2) => $of32::<2>(head, values, units),
                    (4, 3..=4) => $of32::<4>(head, values, units),
                    (4, _) => $of32::<8>(head, values, units),
                    _ => return false,
                }
            }
            true
        }
    };
}

choose!(
    merge512,
    "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,popcnt",
    merge512_16,
    merge512_32
);
choose!(merge256, "avx2,bmi1,bmi2,popcnt", merge256_16, merge256_32);

/// The values of units in the order of classes, with AVX-512, for units of one width and `K`
/// classes or fewer.
macro_rules! partition_512 {
    ($name:ident, $type:ident, $lanes:literal, $mask:ident, $set:ident, $srl:ident, $add:ident,
     $sub:ident, $subs:ident, $min:ident, $eq:ident, $mask_sub:ident, $compress:ident, $store:ident,
     $sra:expr, $blend:ident, $turn:expr) => {
        /// # Safety
        /// The units are whole vectors; `base` and `values` are as long.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,popcnt")]
        unsafe fn $name<const K: usize>(
            head: &Head,
            units: &[u8],
            base: &[u8],
            values: &mut [u8],
        ) -> [usize; 8] {
            const TOP: $type = 1 << ($type::BITS - 1);
            const BYTES: usize = size_of::<$type>();
            let n = units.len() / BYTES;
            let last = head.classes.n - 1;
            let (field, top) = ($set(head.field.mask as _), $set(head.classes.top as _));
            let (last_class, sign) = ($set(last as _), $set(TOP as _));
            let shift = _mm_cvtsi32_si128(head.field.shift as i32);
            let class = |base| {
                let exponent = _mm512_and_si512($srl(base, shift), field);
                $min($subs($add(exponent, last_class), top), last_class)
            };
            let mut counts = [0; 8];
            let mut sums = [_mm512_setzero_si512(); K];
            for base in base.as_chunks::<64>().0 {
                // SAFETY: 64 bytes are one vector.
                let class = class(unsafe { _mm512_loadu_si512(base.as_ptr().cast()) });
                for c in 0..K {
                    let mask = $eq(class, $set(c as _));
                    // A lane counts to at most 2^17 / 32.
                    sums[c] = $mask_sub(sums[c], mask, sums[c], $set(!0));
                }
            }
            for (n, sums) in counts.iter_mut().zip(sums) {
                let mut lanes = [0 as $type; $lanes];
                // SAFETY: one vector.
                unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), sums) };
                *n = lanes.iter().map(|&n| n as usize).sum();
            }
            let starts = starts(counts);
            let mut at: [usize; K] = starts[..K].try_into().expect("8 or fewer");
            let to = values.as_mut_ptr();
            for unit in (0..n).step_by($lanes) {
                // SAFETY: a vector from `unit` on lies within the units and the base's.
                let (new, base) = unsafe {
                    (
                        _mm512_loadu_si512(units.as_ptr().add(unit * BYTES).cast()),
                        _mm512_loadu_si512(base.as_ptr().add(unit * BYTES).cast()),
                    )
                };
                let new = _mm512_xor_si512(new, _mm512_and_si512(base, sign));
                // All bits change where the number is negative, else the highest alone.
                let ordered = _mm512_xor_si512(new, _mm512_or_si512($sra(new), sign));
                let plain = $sub(ordered, _mm512_or_si512(base, sign));
                let class = class(base);
                let mut turned = 0;
                let masks: [$mask; K] = std::array::from_fn(|c| $eq(class, $set(c as _)));
                for c in 0..K {
                    if head.modes >> c & 1 == 1 {
                        turned |= masks[c];
                    }
                }
                let value = $blend(turned, plain, $turn(new));
                for c in 0..K {
                    let n = masks[c].count_ones();
                    let first = ((1u64 << n) - 1) as $mask;
                    // SAFETY: as many values as the class still has, which end where those of the
                    // next one begin.
                    unsafe {
                        let to = to.add(at[c] * BYTES).cast();
                        $store(to, first, $compress(masks[c], value));
                    }
                    at[c] += n as usize;
                }
            }
            starts
        }
    };
}

#[inline]
#[target_feature(enable = "avx512bw")]
fn turn512_16(unit: __m512i) -> __m512i {
    _mm512_or_si512(_mm512_slli_epi16::<1>(unit), _mm512_srli_epi16::<15>(unit))
}

partition_512!(
    partition512_16,
    u16,
    32,
    u32,
    _mm512_set1_epi16,
    _mm512_srl_epi16,
    _mm512_add_epi16,
    _mm512_sub_epi16,
    _mm512_subs_epu16,
    _mm512_min_epu16,
    _mm512_cmpeq_epi16_mask,
    _mm512_mask_sub_epi16,
    _mm512_maskz_compress_epi16,
    _mm512_mask_storeu_epi16,
    _mm512_srai_epi16::<15>,
    _mm512_mask_blend_epi16,
    turn512_16
);
partition_512!(
    partition512_32,
    u32,
    16,
    u16,
    _mm512_set1_epi32,
    _mm512_srl_epi32,
    _mm512_add_epi32,
    _mm512_sub_epi32,
    subs512_epu32,
    _mm512_min_epu32,
    _mm512_cmpeq_epi32_mask,
    _mm512_mask_sub_epi32,
    _mm512_maskz_compress_epi32,
    _mm512_mask_storeu_epi32,
    _mm512_srai_epi32::<31>,
    _mm512_mask_blend_epi32,
    _mm512_rol_epi32::<1>
);

/// Partitions if there is a kernel for such units; returns where the values of each class begin.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(super) fn partition512(
    head: &Head,
    units: &[u8],
    base: &[u8],
    values: &mut [u8],
) -> Option<[usize; 8]> {
    let fits = base.len() == units.len() && values.len() == units.len();
    if !units.len().is_multiple_of(64) || !fits || !head.field.is_float() {
        return None;
    }
    // SAFETY: the lengths were just compared.
    unsafe {
        Some(match (head.unit_bytes, head.classes.n) {
            (2, 1) => partition512_16::<1>(head, units, base, values),
            (2, 2) => partition512_16::<2>(head, units, base, values),
            (2, 3..=4) => partition512_16::<4>(head, units, base, values),
            (2, _) => partition512_16::<8>(head, units, base, values),
            (4, 1) => partition512_32::<1>(head, units, base, values),
            (4, 2) => partition512_32::<2>(head, units, base, values),
            (4, 3..=4) => partition512_32::<4>(head, units, base, values),
            (4, _) => partition512_32::<8>(head, units, base, values),
            _ => return None,
        })
    }
}

/// AVX2 compiles the plain loop: vectors of it have no masked stores of 16 bits.
pub(super) fn partition256(_: &Head, _: &[u8], _: &[u8], _: &mut [u8]) -> Option<[usize; 8]> {
    None
}
