//! x86-64.

use std::arch::x86_64::*;

/// The plain loops, compiled for the instructions `$features`. Functions, not closures: the
/// compiler knows that arguments do not overlap, and loses that for what a closure captures; `join`
/// took half as long again.
macro_rules! plain_loops {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        fn split_units(
            head: &Head,
            units: &[u8],
            symbols: &mut [u8],
            residual: &mut [u8],
            widths: &mut [u8],
        ) {
            units::split_units(head, units, symbols, residual, widths);
        }

        #[target_feature(enable = $features)]
        fn plan_of(dtype: Dtype, sample: &Sample, effort: &Effort) -> Result<Plan> {
            choose::plan_of(dtype, sample, effort)
        }

        #[target_feature(enable = $features)]
        fn replace_exceptions(
            head: &Head,
            stand_ins: &StandIns,
            table_ids: &[u8],
            units: &[u8],
            symbols: &mut [u8],
            exceptions: &mut Vec<(u32, u16)>,
        ) -> Result<bool> {
            let at_least = |bytes: &[u8; 32], power| crate::arch::x86_64::at_least(bytes, power);
            units::replace_exceptions(
                head, stand_ins, table_ids, units, symbols, exceptions, at_least,
            )
        }

        #[target_feature(enable = $features)]
        fn join(
            head: &Head,
            symbols: &[[u8; GROUP]],
            residual: &[u8],
            lows: &[u8],
            widths: &[u8],
            units: &mut [u8],
        ) -> usize {
            units::join(head, symbols, residual, lows, widths, units)
        }

        #[target_feature(enable = $features)]
        fn count_ones(mask: &[u8]) -> usize {
            zeros::count_ones(mask)
        }
    };
}

/// The plain loops of deltas, compiled for the instructions `$features`.
macro_rules! plain_delta_loops {
    ($features:literal, $count:ident, $equal:ident) => {
        #[target_feature(enable = $features)]
        fn values(head: &DeltaHead, parts: &Parts<'_>, values: &mut [u64]) -> Result<()> {
            delta::join::join(head, parts, values, |symbols, power| {
                crate::arch::x86_64::at_least(symbols, power)
            })
        }

        #[target_feature(enable = $features)]
        fn plain_merge(head: &DeltaHead, values: &[u64], place: Merge<'_>) {
            delta::join::merge(head, values, place);
        }

        #[target_feature(enable = $features)]
        fn plain_partition(
            head: &DeltaHead,
            units: &[u8],
            base: &[u8],
            values: &mut [u8],
            classes: &mut [u8],
        ) -> [usize; 8] {
            delta::join::partition(head, units, base, values, classes)
        }

        #[target_feature(enable = $features)]
        fn split(
            head: &DeltaHead,
            splitter: &Splitter,
            values: &[u8],
            starts: &[usize; 8],
            parts: SplitParts<'_>,
        ) {
            splitter.split(head, values, starts, parts, |symbols, power| {
                crate::arch::x86_64::at_least(symbols, power)
            });
        }

        #[target_feature(enable = $features)]
        fn count_classes(
            head: &DeltaHead,
            base: &[u8],
            classes: &mut [u8],
            counts: &mut [GroupCounts],
        ) {
            delta::sparse::count_classes(head, base, classes, counts, |group| {
                crate::arch::x86_64::delta::$count(group)
            });
        }

        #[target_feature(enable = $features)]
        fn find_in_class(group: &[u8; GROUP], class: u8, n: u32) -> u32 {
            crate::arch::x86_64::delta::find(crate::arch::x86_64::delta::$equal(group, class), n)
        }

        #[target_feature(enable = $features)]
        fn rank_in_class(group: &[u8; GROUP], class: u8, end: u32) -> u32 {
            crate::arch::x86_64::delta::rank(crate::arch::x86_64::delta::$equal(group, class), end)
        }
    };
}

/// Those methods of `Kernels`, from the functions of [`plain_delta_loops`] and a function that
/// merges, or returns false.
macro_rules! delta_methods {
    ($values:path, $merge:path, $partition:path) => {
        fn values(&self, head: &DeltaHead, parts: &Parts<'_>, out: &mut [u64]) -> Result<()> {
            // SAFETY: `self` is the proof that the machine has the instructions.
            unsafe {
                match $values(head, parts, out) {
                    Some(done) => done,
                    None => values(head, parts, out),
                }
            }
        }

        fn merge(&self, head: &DeltaHead, values: &[u64], mut place: Merge<'_>) {
            // SAFETY: `self` is the proof that the machine has the instructions.
            unsafe {
                if !$merge(head, bytemuck::cast_slice(values), &mut place) {
                    plain_merge(head, values, place);
                }
            }
        }

        fn partition(
            &self,
            head: &DeltaHead,
            units: &[u8],
            base: &[u8],
            values: &mut [u8],
            classes: &mut [u8],
        ) -> [usize; 8] {
            // SAFETY: `self` is the proof that the machine has the instructions.
            unsafe {
                $partition(head, units, base, values)
                    .unwrap_or_else(|| plain_partition(head, units, base, values, classes))
            }
        }

        fn split(
            &self,
            head: &DeltaHead,
            splitter: &Splitter,
            values: &[u8],
            starts: &[usize; 8],
            parts: SplitParts<'_>,
        ) {
            // SAFETY: `self` is the proof that the machine has the instructions.
            unsafe { split(head, splitter, values, starts, parts) }
        }

        fn count_classes(
            &self,
            head: &DeltaHead,
            base: &[u8],
            classes: &mut [u8],
            counts: &mut [GroupCounts],
        ) {
            // SAFETY: `self` is the proof that the machine has the instructions.
            unsafe { count_classes(head, base, classes, counts) }
        }

        fn find_in_class(&self, group: &[u8; GROUP], class: u8, n: u32) -> u32 {
            // SAFETY: `self` is the proof that the machine has the instructions.
            unsafe { find_in_class(group, class, n) }
        }

        fn rank_in_class(&self, group: &[u8; GROUP], class: u8, end: u32) -> u32 {
            // SAFETY: `self` is the proof that the machine has the instructions.
            unsafe { rank_in_class(group, class, end) }
        }
    };
}

pub(crate) mod avx2;
pub(crate) mod avx512;
mod delta;

/// [`at_least`](crate::bits::at_least).
#[inline]
#[target_feature(enable = "avx2")]
fn at_least(bytes: &[u8; 32], power: u32) -> u32 {
    // SAFETY: 32 bytes are one vector.
    let bytes = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
    let above = _mm256_max_epu8(bytes, _mm256_set1_epi8(power as u8 as i8));
    _mm256_movemask_epi8(_mm256_cmpeq_epi8(above, bytes)) as u32
}
