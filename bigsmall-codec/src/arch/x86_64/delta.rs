//! Units from values in the order of classes: each class's next values go to the places of its
//! units in a vector, and what comes out is added to the base's units.

use std::arch::x86_64::*;

use bigsmall_format::Result;

use crate::delta::head::Head;
use crate::delta::join::{Merge, Parts};
use crate::delta::sparse::GroupCounts;
use crate::kernels::MERGE_ROOM;
use crate::planes::GROUP;

mod merge256;
mod merge512;
mod values512;

pub(super) use values512::values512;

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

#[inline]
#[target_feature(enable = "avx512f")]
fn subs512_epu32(a: __m512i, b: __m512i) -> __m512i {
    _mm512_sub_epi32(_mm512_max_epu32(a, b), b)
}

/// Chooses the kernel by width and number of classes.
macro_rules! choose {
    ($name:ident, $features:literal, $scratch:literal) => {
        /// Merges if there is a kernel for such units: returns whether there is.
        #[target_feature(enable = $features)]
        pub(super) fn $name(head: &Head, values: &[u8], place: &mut Merge<'_>) -> bool {
            let Merge { base, units, scratch } = place;
            let n = units.len() / head.unit_bytes;
            let room = values.len() >= units.len() + MERGE_ROOM * head.unit_bytes
                && scratch.len() >= $scratch * n
                && base.is_none_or(|base| base.len() == units.len());
            if !n.is_multiple_of(64) || !room || !head.field.is_float() {
                return false;
            }
            let (values, scratch, units) =
                (values.as_ptr(), scratch.as_mut_ptr(), units.as_mut_ptr());
            let base = base.map_or(units.cast_const(), <[u8]>::as_ptr);
            macro_rules! kernel {
                ($bytes:literal, $k:literal) => {
                    // SAFETY: the lengths were just compared.
                    unsafe {
                        match head.modes {
                            0 => $name::merge::<$bytes, $k, false>(
                                head, values, base, units, scratch, n,
                            ),
                            _ => $name::merge::<$bytes, $k, true>(
                                head, values, base, units, scratch, n,
                            ),
                        }
                    }
                };
            }
            match (head.unit_bytes, head.classes.n) {
                (2, 1) => kernel!(2, 1),
                (2, 2..=4) => kernel!(2, 4),
                (2, _) => kernel!(2, 8),
                (4, 1) => kernel!(4, 1),
                (4, 2..=4) => kernel!(4, 4),
                (4, _) => kernel!(4, 8),
                _ => return false,
            }
            true
        }
    };
}

choose!(merge512, "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,gfni", 1);
choose!(merge256, "avx2", 2);

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

/// AVX2 compiles the plain loop.
pub(super) fn values256(_: &Head, _: &Parts<'_>, _: &mut [u64]) -> Option<Result<()>> {
    None
}

/// AVX2 compiles the plain loop: vectors of it have no masked stores of 16 bits.
pub(super) fn partition256(_: &Head, _: &[u8], _: &[u8], _: &mut [u8]) -> Option<[usize; 8]> {
    None
}
