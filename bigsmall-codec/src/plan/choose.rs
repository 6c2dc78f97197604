//! Chooses the head for a sample: symbols, window, segments, tables. Plain loops that backends
//! compile for their instructions.

use bigsmall_format::internal::reserve;
use bigsmall_format::{Dtype, Result};

use crate::head::{Head, MAX_LOW_WIDTHS, id_bits};
use crate::layout::Layout;
use crate::plan::cluster::{Histograms, cluster};
use crate::planes::GROUP;
use crate::table::COST_FRACTION;
use crate::units::{low_width, symbol_of};

/// The cost of a unit outside the window, for any table. Like all costs here, it is in the units of
/// [`FrequencyTable::costs`](crate::table::FrequencyTable::costs).
const OUTSIDE_COST: u64 = 20 << COST_FRACTION;

/// Windows that are tried before all fields are counted.
const TRIED: usize = 8;

/// How much work a level puts into the plan.
pub(crate) struct Effort {
    /// The least and the most units of the sample. It is a quarter of the tensor, within these
    /// bounds.
    pub(super) sample: (u64, u64),
    /// Numbers of mantissa bits in the field to try.
    pub(super) mantissa: &'static [u32],
    /// Segment lengths to try.
    pub(super) segments: &'static [usize],
    /// Rounds of clustering.
    pub(super) rounds: usize,
    /// The most tables.
    pub(super) tables: usize,
    /// The most symbol bits.
    pub(super) symbol_bits: u32,
}

/// The sampled high bits, and for each group of 256 how many low bits it needs.
#[derive(Default)]
pub(crate) struct Sample {
    pub(super) highs: Vec<u16>,
    pub(super) group_widths: Vec<u8>,
}

impl Sample {
    /// Begins with no units, and room for so many.
    pub(super) fn clear(&mut self, n_units: usize) -> Result<()> {
        self.highs.clear();
        self.group_widths.clear();
        if self.highs.capacity() < n_units {
            // To grow would take up to twice the memory.
            self.highs = Vec::new();
        }
        reserve(&mut self.highs, n_units)
    }

    /// Adds whole groups of units.
    pub(super) fn add(&mut self, layout: &Layout, units: &[u8]) {
        let at = self.highs.len();
        self.highs.resize(at + units.len() / layout.unit_bytes, 0);
        layout.split_highs(units, &mut self.highs[at..]);
        if layout.low_bits() > 0 {
            let groups = units.chunks_exact(GROUP * layout.unit_bytes);
            self.group_widths.extend(groups.map(|group| low_width(layout, group)));
        }
    }
}

/// What a plan costs, in the units of
/// [`FrequencyTable::costs`](crate::table::FrequencyTable::costs), and the head that it is.
pub(crate) type Plan = (u64, Head);

/// Chooses the head for a sample.
#[inline(always)]
pub(crate) fn plan_of(dtype: Dtype, sample: &Sample, effort: &Effort) -> Result<Plan> {
    let mut best: Option<Plan> = None;
    let n_units = sample.highs.len() as u64;
    for &m in effort.mantissa {
        let Some(layout) = Layout::new(dtype, m) else { continue };
        let symbol_bits = effort.symbol_bits.min(layout.field_bits).min(4 + m.max(1));
        let symbol_bits = if Layout::is_float(dtype) { symbol_bits } else { 8 };
        let window = window(&sample.highs, &layout, symbol_bits);
        let symbol = |&high: &u16| symbol_of(layout.field(high), window, 1 << symbol_bits);
        let groups = Histograms::of_groups(&sample.highs, symbol, 1 << symbol_bits)?;
        let outside = n_units - groups.total();
        for &segment in effort.segments {
            let histograms = groups.merged(segment / GROUP)?;
            let (mut cost, tables) = cluster(&histograms, effort.tables, effort.rounds);
            cost += outside * OUTSIDE_COST;
            cost += (n_units * u64::from(layout.residual_bits)) << COST_FRACTION;
            let (low_cost, low_widths) = low_widths(&sample.group_widths, segment, &layout);
            cost += low_cost;
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                let head = Head::new(m, layout, symbol_bits, window, segment, low_widths, tables);
                best = Some((cost, head));
            }
        }
    }
    let Some(best) = best else { unreachable!("every dtype has a layout for the first m") };
    Ok(best)
}

/// The window of 2^`symbol_bits` fields that covers the most units (the lowest of equal ones), and
/// the field of its symbol 0. That is the window's first field, or field 0 (zeros and subnormals)
/// if it lies outside and is more common.
#[inline(always)]
pub(super) fn window(highs: &[u16], layout: &Layout, symbol_bits: u32) -> (u16, u16) {
    if symbol_bits == layout.field_bits {
        return (0, 0);
    }
    let found = window_from_top(highs, layout, 1 << symbol_bits, TRIED);
    found.unwrap_or_else(|| window_by_counts(highs, layout, symbol_bits))
}

/// [`window`] of `width` fields, tried from the greatest field down. Few weights are near the
/// greatest one, so that a window soon leaves out more units above it than the best one in all.
/// Each step counts the units of two fields, which takes much less time than counting those of
/// every field. `None` where more than `most` windows had to be tried, as in samples with an
/// infinity.
#[inline(always)]
fn window_from_top(highs: &[u16], layout: &Layout, width: u16, most: usize) -> Option<(u16, u16)> {
    let greatest = highs.iter().map(|&high| layout.field(high)).max().unwrap_or(0);
    let mut begin = greatest.saturating_sub(width - 1);
    let [n_zeros, mut below, mut first] =
        count_units(highs, layout, |field| [field == 0, field < begin, field == begin]);
    let mut above = 0;
    // The fewest units outside, and where that window begins; the same for zero in place of the
    // window's first field.
    let (mut plain, mut with_zero) = ((u32::MAX, 0), (u32::MAX, 0));
    for _ in 0..most {
        if below + above <= plain.0 {
            plain = (below + above, begin);
        }
        if begin > 0 && below - n_zeros + first + above <= with_zero.0 {
            with_zero = (below - n_zeros + first + above, begin);
        }
        let [last, before] = count_units(highs, layout, |field| {
            [field.wrapping_sub(begin) == width - 1, field.wrapping_add(1) == begin]
        });
        above += last;
        // No window further down is as good.
        if begin == 0 || above > plain.0.min(with_zero.0) {
            let zero_instead = with_zero.0 < plain.0;
            return Some(if zero_instead { (with_zero.1, 0) } else { (plain.1, plain.1) });
        }
        (begin, below, first) = (begin - 1, below - before, before);
    }
    None
}

/// `is` has conditions on the field of a unit. For each, how many units it holds for.
#[inline(always)]
fn count_units<const N: usize>(
    highs: &[u16],
    layout: &Layout,
    is: impl Fn(u16) -> [bool; N],
) -> [u32; N] {
    let mut counts = [0; N];
    // In 16 bits, so that a vector has as many sums as units.
    for highs in highs.chunks(usize::from(u16::MAX)) {
        let mut few = [0u16; N];
        for &high in highs {
            let holds = is(layout.field(high));
            few.iter_mut().zip(holds).for_each(|(sum, holds)| *sum += u16::from(holds));
        }
        counts.iter_mut().zip(few).for_each(|(sum, n)| *sum += u32::from(n));
    }
    counts
}

/// [`window`] by counting.
#[inline(always)]
fn window_by_counts(highs: &[u16], layout: &Layout, symbol_bits: u32) -> (u16, u16) {
    // Four histograms, so that equal neighbours do not wait for each other.
    let mut four = vec![[0u32; 4]; 1 << layout.field_bits];
    let mut fields = [0; GROUP];
    for highs in highs.chunks(GROUP) {
        let fields = &mut fields[..highs.len()];
        fields.iter_mut().zip(highs).for_each(|(field, &high)| *field = layout.field(high));
        // The sample consists of a multiple of 4 units.
        for fields in fields.as_chunks::<4>().0 {
            for (i, &field) in fields.iter().enumerate() {
                four[usize::from(field)][i] += 1;
            }
        }
    }
    let counts: Vec<u64> = four.iter().map(|of| of.iter().map(|&n| u64::from(n)).sum()).collect();
    let width = 1usize << symbol_bits;
    let mut covered: u64 = counts[..width].iter().sum();
    // The best window, and the best one with field 0 as its symbol 0.
    let (mut plain, mut with_zero) = ((covered, 0), (0, 0));
    for begin in 1..=counts.len() - width {
        covered += counts[begin + width - 1];
        covered -= counts[begin - 1];
        if covered > plain.0 {
            plain = (covered, begin);
        }
        let zero_instead = covered - counts[begin] + counts[0];
        if zero_instead > with_zero.0 {
            with_zero = (zero_instead, begin);
        }
    }
    if with_zero.0 > plain.0 { (with_zero.1 as u16, 0) } else { (plain.1 as u16, plain.1 as u16) }
}

/// Chooses the low widths that segments may have. Returns the cost of the low bits, and the widths.
fn low_widths(group_widths: &[u8], segment: usize, layout: &Layout) -> (u64, Vec<u8>) {
    let all = layout.low_bits();
    if all == 0 {
        return (0, Vec::new());
    }
    // For each number of bits, how many segments need it.
    let mut needs = vec![0u64; all as usize + 1];
    for groups in group_widths.chunks(segment / GROUP) {
        needs[usize::from(groups.iter().copied().max().unwrap_or(0))] += 1;
    }
    let bits = |widths: &[u8]| -> u64 {
        let each = needs.iter().enumerate().map(|(need, &n)| {
            let width = widths.iter().copied().filter(|&w| usize::from(w) >= need).min();
            n * u64::from(width.unwrap_or(all as u8)) * segment as u64
        });
        let ids = needs.iter().sum::<u64>() * u64::from(id_bits(widths.len()));
        each.sum::<u64>() + ids
    };
    let mut widths = vec![all as u8];
    while widths.len() < MAX_LOW_WIDTHS {
        let with = |w: u8| {
            let mut with = widths.clone();
            with.push(w);
            with
        };
        let candidate =
            (0..all as u8).filter(|w| !widths.contains(w)).map(|w| (bits(&with(w)), w)).min();
        match candidate {
            Some((cost, w)) if cost < bits(&widths) => widths.push(w),
            _ => break,
        }
    }
    widths.sort_unstable_by(|a, b| b.cmp(a));
    (bits(&widths) << COST_FRACTION, widths)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // Few units, so that many windows are equally good.
        #[test]
        fn windows_from_the_top_are_those_by_counts(
            n_zeros in 0usize..6,
            width in 5u32..=8,
            base in 0u16..512,
            runs in prop::collection::vec((0u16..42, -1i16..=1, 1usize..4), 0..8),
        ) {
            let layout = Layout::new(Dtype::BF16, 1).expect("a layout");
            let mut fields = vec![0; n_zeros];
            for (at, widths, n) in runs {
                let field = base.wrapping_add(at).wrapping_add_signed(widths << width);
                fields.extend(std::iter::repeat_n(field % 512, n));
            }
            fields.truncate(fields.len() / 4 * 4);
            let highs: Vec<u16> = fields.iter().map(|&field| layout.high(field, 0)).collect();
            let counted = window_by_counts(&highs, &layout, width);
            prop_assert_eq!(window_from_top(&highs, &layout, 1 << width, 512), Some(counted));
            prop_assert_eq!(window(&highs, &layout, width), counted);
        }
    }

    #[test]
    fn as_many_equal_units_as_a_sample_has() {
        let layout = Layout::new(Dtype::BF16, 1).expect("a layout");
        let highs = vec![layout.high(260, 0); 1 << 17];
        assert_eq!(count_units(&highs, &layout, |field| [field == 260, field == 0]), [1 << 17, 0]);
        assert_eq!(window(&highs, &layout, 5), window_by_counts(&highs, &layout, 5));
    }

    #[test]
    fn weights_take_few_windows() {
        let layout = Layout::new(Dtype::BF16, 1).expect("a layout");
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        for n_zeros in [0, 1 << 12] {
            // A bell: the sum of many random numbers.
            let weights = (n_zeros..1 << 16).map(|_| (0..12).map(|_| random() - 0.5).sum::<f32>());
            let mut highs: Vec<u16> = weights.map(|w| (w.to_bits() >> 16) as u16).collect();
            highs.resize(1 << 16, 0);
            let found = window_from_top(&highs, &layout, 32, TRIED).expect("few windows");
            assert_eq!(found, window_by_counts(&highs, &layout, 5));
            assert_eq!(found.1 == 0, n_zeros > 0);
        }
    }
}
