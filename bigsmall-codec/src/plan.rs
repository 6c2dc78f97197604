//! Plans a tensor: takes a sample of it, chooses a head, and decides whether masks of zeros or
//! classes of columns make it smaller. All arithmetic is in integers, because the decisions
//! determine the bytes.

use bigsmall_format::internal::{read_at, reserve, set_len};
use bigsmall_format::{Dtype, ReadAt, Result, TensorSpec};

use crate::columns::{CLASSES, Columns, MAX_COLUMNS};
use crate::head::{Head, MAX_TABLES, id_bits};
use crate::kernels::Kernels;
use crate::layout::Layout;
use crate::level::Level;
use crate::planes::GROUP;
use crate::scratch::{Pool, with_scratch};
use crate::table::COST_FRACTION;
use crate::units::symbol_of;
use crate::zeros;

pub(crate) mod choose;
mod cluster;

use choose::{Effort, Sample, window};
pub(crate) use cluster::{Histograms, cluster};
use cluster::{by_mean, lloyd};

/// Units in one read.
const RUN: u64 = 4096;
/// If at least one unit in so many of the sample is zero, masks are considered.
const SOME_ZEROS: usize = 256;
/// Masks must make the tensor smaller by at least one part in this many: with fewer zeros than a
/// fifth, AVX-512 would decode it at less than 0.8 of the rate (`cargo bench --bench zeros`).
const MASK_GAIN: u64 = 8;
/// The same at the level *small*, where size is all that counts.
const SMALL_MASK_GAIN: u64 = 100;
/// Bytes of the head of masks without its tables.
const HEAD_COST: u64 = 14;
/// Bytes that a block with a mask takes beyond mask and units: a header, and header and states of
/// one ANS block more.
const BLOCK_COST: u64 = 140;

/// Fewer columns have no classes: a row would be as short as a filter of a convolution.
const FEWEST_COLUMNS: u64 = 64;
/// Blocks that a plan with columns is made from.
const COLUMN_BLOCKS: u64 = 8;
/// With more columns than so many, more blocks are counted, so that each column has enough units.
const COLUMNS_A_SAMPLE: u64 = 8192;
/// Classes of columns must make the tensor smaller by at least one part in this many: putting units
/// back takes time.
pub(crate) const COLUMN_GAIN: u64 = 500;
/// Rounds of clustering of columns.
const COLUMN_ROUNDS: usize = 8;

fn effort(level: Level, is_float: bool, high_bytes: usize) -> Effort {
    match (level, is_float) {
        (_, false) => Effort {
            sample: (1 << 16, 1 << 17),
            mantissa: &[0],
            segments: &[1024],
            rounds: 3,
            tables: 4,
            symbol_bits: 8,
        },
        (Level::Fast, _) => Effort {
            sample: (1 << 15, 1 << 16),
            mantissa: &[1],
            segments: &[1024],
            rounds: 2,
            tables: MAX_TABLES,
            symbol_bits: 5,
        },
        (Level::Default, _) => Effort {
            sample: (1 << 16, 1 << 17),
            // With high bits of one byte, a second mantissa bit costs no speed with AVX-512, which
            // looks up 64 buckets as fast as 32.
            mantissa: if high_bytes == 1 { &[2] } else { &[1] },
            segments: &[256, 1024],
            rounds: 3,
            tables: MAX_TABLES,
            symbol_bits: 6,
        },
        (Level::Small, _) => Effort {
            sample: (1 << 20, 1 << 20),
            mantissa: &[1, 2, 3],
            segments: &[256, 512, 1024, 4096],
            rounds: 8,
            tables: MAX_TABLES,
            symbol_bits: 8,
        },
    }
}

/// Samples of earlier plans: to use fresh memory takes as long as the rest of a plan.
static SAMPLES: Pool<Sample> = Pool::new(Vec::new());

/// The places of a sample: runs of [`RUN`] units, spread over the tensor, whole groups.
fn each_run(
    spec: &TensorSpec,
    source: &dyn ReadAt,
    unit_bytes: usize,
    (least, most): (u64, u64),
    mut see: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let n = spec.n_units() / GROUP as u64 * GROUP as u64;
    let unit = unit_bytes as u64;
    let all_runs = n.div_ceil(RUN);
    let n_runs = all_runs.min((n / 4).clamp(least, most).div_ceil(RUN));
    let mut buffer = Vec::new();
    for i in 0..n_runs {
        let begin = (i * all_runs / n_runs) * RUN;
        let end = n.min(begin + RUN);
        let range = begin * unit..end * unit;
        match source.bytes_at(range.clone()) {
            Some(units) => see(units)?,
            None => {
                set_len(&mut buffer, (range.end - range.start) as usize)?;
                read_at(source, range.start, &mut buffer)?;
                see(&buffer)?;
            }
        }
    }
    Ok(())
}

/// Samples units, whether they are zero or not.
fn sample_all(
    spec: &TensorSpec,
    source: &dyn ReadAt,
    layout: &Layout,
    bounds: (u64, u64),
    sample: &mut Sample,
) -> Result<()> {
    sample.clear(bounds.1.min(spec.n_units()) as usize)?;
    each_run(spec, source, layout.unit_bytes, bounds, |units| {
        sample.add(layout, units);
        Ok(())
    })
}

/// Samples the units that are not zero; returns the mask of all.
fn sample_others(
    kernels: &dyn Kernels,
    spec: &TensorSpec,
    source: &dyn ReadAt,
    layout: &Layout,
    bounds: (u64, u64),
    sample: &mut Sample,
) -> Result<Vec<u8>> {
    let unit_bytes = layout.unit_bytes;
    let (mut masks, mut others) = (Vec::new(), Vec::new());
    let mut used = 0;
    each_run(spec, source, unit_bytes, bounds, |units| {
        let at = masks.len();
        let n_masks = units.len() / unit_bytes / 8;
        reserve(&mut masks, n_masks)?;
        set_len(&mut masks, at + n_masks)?;
        reserve(&mut others, units.len())?;
        set_len(&mut others, used + units.len())?;
        let (masks, others) = (&mut masks[at..], &mut others[used..]);
        used += kernels.split_zeros(unit_bytes, units, masks, others);
        Ok(())
    })?;
    let whole = used - used % (GROUP * unit_bytes);
    sample.clear(whole / unit_bytes)?;
    sample.add(layout, &others[..whole]);
    Ok(masks)
}

/// Plans the tensor `spec`.
pub(crate) fn plan(
    kernels: &dyn Kernels,
    spec: &TensorSpec,
    source: &dyn ReadAt,
    level: Level,
) -> Result<Head> {
    with_scratch(&SAMPLES, |sample| plan_from(kernels, spec, source, level, sample))
}

/// [`plan`] with memory for a sample.
fn plan_from(
    kernels: &dyn Kernels,
    spec: &TensorSpec,
    source: &dyn ReadAt,
    level: Level,
    sample: &mut Sample,
) -> Result<Head> {
    let dtype = spec.dtype();
    let high_bytes = Layout::new(dtype, 0).map_or(1, |l| l.high_bytes);
    let effort = effort(level, Layout::is_float(dtype), high_bytes);
    let Some(layout) = effort.mantissa.iter().find_map(|&m| Layout::new(dtype, m)) else {
        unreachable!("every dtype has a layout for the first m")
    };
    sample_all(spec, source, &layout, effort.sample, sample)?;
    let plan = kernels.plan_of(dtype, sample, &effort)?;
    let n_units = sample.highs.len();
    let n_zeros = zeros::count(2, bytemuck::cast_slice(&sample.highs));
    if n_zeros * SOME_ZEROS < n_units || n_zeros == 0 {
        return Ok(plan.1);
    }
    let masks = sample_others(kernels, spec, source, &layout, effort.sample, sample)?;
    let (mut cost, mut head) = kernels.plan_of(dtype, sample, &effort)?;
    let of_masks = self::effort(level, false, 1);
    let n_blocks = (n_units as u64).div_ceil(spec.block_units() as u64);
    let Some(byte_layout) = Layout::new(Dtype::U8, 0) else { unreachable!("bytes have a layout") };
    sample.clear(masks.len())?;
    sample.add(&byte_layout, &masks);
    let (mask_cost, mask_head) = kernels.plan_of(Dtype::U8, sample, &of_masks)?;
    // Where coding does not pay, masks are stored raw.
    cost += mask_cost.min((8 * masks.len() as u64) << COST_FRACTION);
    cost += (8 * (HEAD_COST + n_blocks * BLOCK_COST)) << COST_FRACTION;
    // Small blocks may be stored raw, whatever the plan: then the head of masks would be in vain.
    let raw = (n_units * layout.unit_bytes) as u64;
    let most = (8 * raw.saturating_sub(n_blocks * BLOCK_COST)) << COST_FRACTION;
    let plain = plan.0.min(most);
    let gain = if level == Level::Small { SMALL_MASK_GAIN } else { MASK_GAIN };
    if cost >= plain - plain / gain {
        return Ok(plan.1);
    }
    head.mask = Some(Box::new(mask_head));
    Ok(head)
}

/// The plan of a tensor with classes of columns at the level *small*; none for a tensor without
/// columns, and where they seem to differ too little.
pub(crate) fn plan_with_columns(
    kernels: &dyn Kernels,
    spec: &TensorSpec,
    source: &dyn ReadAt,
) -> Result<Option<Head>> {
    let dtype = spec.dtype();
    let Some(layout) = Layout::new(dtype, 1).filter(|_| Layout::is_float(dtype)) else {
        return Ok(None);
    };
    // A float is one unit.
    let Some((&n_rows, inner)) = spec.shape().split_first() else { return Ok(None) };
    let n_columns = inner.iter().fold(1u64, |n, &of| n.saturating_mul(of));
    if n_rows < 2 || !(FEWEST_COLUMNS..=MAX_COLUMNS as u64).contains(&n_columns) {
        return Ok(None);
    }
    let n_blocks = COLUMN_BLOCKS * n_columns.div_ceil(COLUMNS_A_SAMPLE);
    let Some(classes) = classes(spec, source, &layout, n_columns as usize, n_blocks)? else {
        return Ok(None);
    };
    let columns = Columns::new(classes)?;
    let (mut sample, mut ordered) = (Sample::default(), Vec::new());
    each_block(spec, source, COLUMN_BLOCKS, |block, units| {
        set_len(&mut ordered, units.len())?;
        let first = columns.of_block(block, spec.block_units());
        columns.put_in_order(layout.unit_bytes, first, units, &mut ordered);
        reserve(&mut sample.highs, units.len() / layout.unit_bytes)?;
        sample.add(&layout, &ordered[..units.len() - units.len() % (GROUP * layout.unit_bytes)]);
        Ok(())
    })?;
    let effort = effort(Level::Small, true, layout.high_bytes);
    let mut head = kernels.plan_of(dtype, &sample, &effort)?.1;
    head.columns = Some(columns);
    Ok(Some(head))
}

/// Reads at most `most` blocks at equal distances; calls `see` with the number and the units
/// of each.
fn each_block(
    spec: &TensorSpec,
    source: &dyn ReadAt,
    most: u64,
    mut see: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let (all, block_bytes) = (spec.n_blocks(), spec.block_bytes() as u64);
    let n = all.min(most);
    let mut buffer = Vec::new();
    for i in 0..n {
        let block = i * all / n;
        let begin = block * block_bytes;
        let len = spec.byte_len().min(begin + block_bytes) - begin;
        set_len(&mut buffer, len as usize)?;
        read_at(source, begin, &mut buffer)?;
        see(block, &buffer)?;
    }
    Ok(())
}

/// The class of each column, from a sample of `n_blocks` blocks; none where tables for the classes
/// make the sample smaller by too little.
fn classes(
    spec: &TensorSpec,
    source: &dyn ReadAt,
    layout: &Layout,
    n_columns: usize,
    n_blocks: u64,
) -> Result<Option<Vec<u8>>> {
    let symbol_bits = layout.field_bits.min(5);
    let n_symbols = 1usize << symbol_bits;
    let mut place = None;
    let (mut highs, mut n_units) = (Vec::new(), 0);
    let mut counts: Vec<u16> = Vec::new();
    set_len(&mut counts, n_columns * n_symbols)?;
    each_block(spec, source, n_blocks, |block, units| {
        let n = units.len() / layout.unit_bytes / GROUP * GROUP;
        set_len(&mut highs, n)?;
        layout.split_highs(&units[..n * layout.unit_bytes], &mut highs);
        n_units += n as u64;
        // Of the first block: it has units of all columns, or of many.
        let place = *place.get_or_insert_with(|| window(&highs, layout, symbol_bits));
        let begin = (block * spec.block_units() as u64 % n_columns as u64) as usize;
        let of_columns = (0..n_columns).cycle().skip(begin);
        for (&high, column) in highs.iter().zip(of_columns) {
            let symbol = usize::from(symbol_of(layout.field(high), place, n_symbols as u16));
            if let Some(count) = counts[column * n_symbols..][..n_symbols].get_mut(symbol) {
                *count = count.saturating_add(1).min(i16::MAX as u16);
            }
        }
        Ok(())
    })?;
    let histograms = Histograms { counts, n_symbols };
    let order = by_mean(&histograms);
    let mut assigned = vec![0; n_columns];
    let one = lloyd(&histograms, &mut assigned, 1, 1).0;
    for (rank, &column) in order.iter().enumerate() {
        assigned[column] = rank * CLASSES / n_columns;
    }
    let several = lloyd(&histograms, &mut assigned, CLASSES, COLUMN_ROUNDS).0;
    let rest = (n_units * u64::from(layout.residual_bits + layout.low_bits())) << COST_FRACTION;
    // The numbers of classes are counted once more by those who compare sizes.
    let ids = (n_columns as u64 * u64::from(id_bits(CLASSES))) << COST_FRACTION;
    if one.saturating_sub(several.saturating_sub(ids)) < (one + rest) / COLUMN_GAIN {
        return Ok(None);
    }
    Ok(Some(assigned.into_iter().map(|class| class as u8).collect()))
}
