//! Decides the head of a tensor from a sample of it and of its base: classes, modes, tables. All
//! arithmetic is in integers, because the decisions determine the bytes.

use bigsmall_format::internal::{read_at, reserve, set_len};
use bigsmall_format::{ReadAt, Result, TensorSpec};

use super::classes::{Classes, Field};
use super::head::{Head, MAX_SPARSE_CLASSES, Table};
use super::split::symbol_of;
use super::values::Word;
use crate::head::MAX_TABLES;
use crate::plan::{Histograms, cluster};
use crate::planes::GROUP;
use crate::table::{COST_FRACTION, FrequencyTable, log2};

/// Units in one read.
const RUN: u64 = 1024;
/// The sample is a quarter of the tensor, within these bounds.
const SAMPLE: (u64, u64) = (1 << 15, 1 << 16);
/// If in no run of the sample more than one unit in so many differs, no table is made.
const CODED_FROM: usize = 250;
/// The highest class of coded blocks holds at least one unit in so many.
const TOP_SHARE: usize = 48;
/// Numbers of classes to try.
const CLASSES: [u32; 4] = [1, 2, 4, 8];
/// Bits of a table in the head.
const TABLE_BITS: u64 = 220;
/// Exponents that are told apart, downwards from the highest in the sample.
const EXPONENTS: usize = 16;
/// Differences that are counted one by one, after they were shifted.
const NEAR: usize = 4096;
/// Values of mode 1 that are counted one by one: their upper 8 bits.
const TURNED: usize = 256;
/// Symbol bits of the head.
const SYMBOL_BITS: u32 = 5;
/// Symbols that are values of their own, and symbols of logarithms for each side.
const NEAR_SYMBOLS: u32 = 1 << (SYMBOL_BITS - 1);
const LOGS: u32 = 1 << (SYMBOL_BITS - 2);
/// Units of a segment if each class has one table.
const SEGMENT: usize = 1024;
/// If classes have several tables, segments are as short as they can be: rows that were trained lie
/// between rows that were not.
const SHORT_SEGMENT: usize = GROUP;
/// Numbers of classes for which several tables a class are tried.
const SEVERAL_TABLES: u32 = 2;
/// Rounds of clustering.
const ROUNDS: usize = 4;

/// A plan: the head, and for each class the tables that are considered.
pub(crate) type Plan = (Head, Vec<Vec<u8>>);

/// The sampled units.
#[derive(Default)]
struct Sample {
    /// The exponents of the bases' units, the differences, and the values of mode 1.
    exponents: Vec<u16>,
    differences: Vec<i64>,
    turned: Vec<u64>,
    /// The number of units after each run.
    ends: Vec<usize>,
    /// The most units of a run that differ.
    most_changed: usize,
}

impl Sample {
    fn add<W: Word>(&mut self, field: Field, units: &[u8], base: &[u8]) -> Result<()> {
        let n = units.len() / size_of::<W>();
        reserve(&mut self.exponents, n)?;
        reserve(&mut self.differences, n)?;
        reserve(&mut self.turned, n)?;
        let is_float = field.is_float();
        let bases = base.chunks_exact(size_of::<W>()).map(W::read);
        let pairs = || units.chunks_exact(size_of::<W>()).map(W::read).zip(bases.clone());
        // One after the other, so that each loop is one of vectors.
        self.exponents.extend(bases.clone().map(|base| base.exponent(field)));
        self.differences.extend(
            pairs().map(|(unit, base)| W::difference(base, unit, is_float).above(W::default())),
        );
        self.turned.extend(pairs().map(|(unit, base)| W::turned(base, unit, is_float).to_u64()));
        let changed = pairs().filter(|(unit, base)| unit != base).count();
        self.ends.push(self.exponents.len());
        self.most_changed = self.most_changed.max(changed);
        Ok(())
    }
}

/// Decides the head of `spec`.
pub(crate) fn plan<W: Word>(
    spec: &TensorSpec,
    source: &dyn ReadAt,
    base: &dyn ReadAt,
) -> Result<Plan> {
    let field = Field::of(spec.dtype());
    let sample = sample::<W>(spec, source, base, field)?;
    let highest = exponent_above(&sample.exponents, 256);
    let n_sparse = if field.is_float() { MAX_SPARSE_CLASSES } else { 1 };
    // Exponents below 0 are none.
    let sparse = Classes { n: n_sparse.min(highest + 1), top: highest };
    let head = |segment, classes, tables| {
        Head::new(spec.dtype(), SYMBOL_BITS, segment, classes, sparse, tables)
    };
    let none = || (head(SEGMENT, (Classes { n: 1, top: 0 }, 0), Vec::new()), Vec::new());
    if sample.most_changed * CODED_FROM <= RUN as usize || spec.n_units() < GROUP as u64 {
        return Ok(none());
    }
    let counts = Counts::new::<W>(&sample);
    let top = exponent_above(&sample.exponents, TOP_SHARE);
    // Costs are those of the sample; a head costs as much for any number of units.
    let share = spec.n_units().div_ceil(sample.differences.len() as u64).max(1);
    let mut best: Option<Candidate> = None;
    for n in CLASSES {
        if n > 1 && (!field.is_float() || n > top + 1) {
            break;
        }
        let classes = Classes { n, top };
        let one = Candidate::new::<W>(&counts, classes, share);
        let several = match &one {
            Some(one) if n <= SEVERAL_TABLES => one.with_several_tables::<W>(&sample, share)?,
            _ => None,
        };
        for candidate in one.into_iter().chain(several) {
            // More classes take longer to decode.
            if best.as_ref().is_none_or(|best| candidate.cost < best.cost - best.cost / 150) {
                best = Some(candidate);
            }
        }
    }
    Ok(best.map_or_else(none, |best| {
        let head = head(best.segment, (best.classes, best.modes), best.tables);
        (head, best.of_class)
    }))
}

/// A way to encode the tensor.
struct Candidate {
    /// What the sample costs, in bits.
    cost: u64,
    classes: Classes,
    modes: u8,
    segment: usize,
    tables: Vec<Table>,
    /// For each class the numbers of its tables.
    of_class: Vec<Vec<u8>>,
}

impl Candidate {
    /// One table for each class; `None` if there are no units.
    fn new<W: Word>(counts: &Counts, classes: Classes, share: u64) -> Option<Candidate> {
        let (mut cost, mut modes, mut tables) = (0, 0, Vec::new());
        for class in 0..classes.n as u8 {
            let Some((of_class, mode, table)) = counts.of_class::<W>(classes, class) else {
                tables.push(None);
                continue;
            };
            cost += of_class + TABLE_BITS / share;
            modes |= mode << class;
            tables.push(Some(table));
        }
        // A class without units has the table of another one.
        let any = tables.iter().flatten().next()?.clone();
        let tables: Vec<_> =
            tables.into_iter().map(|table| table.unwrap_or_else(|| any.clone())).collect();
        let of_class = (0..tables.len() as u8).map(|id| vec![id]).collect();
        Some(Candidate { cost, classes, modes, segment: SEGMENT, tables, of_class })
    }

    /// The same with several tables for each class, which differ in their frequencies.
    fn with_several_tables<W: Word>(
        &self,
        sample: &Sample,
        share: u64,
    ) -> Result<Option<Candidate>> {
        let n = self.classes.n;
        let mut out = Candidate { cost: 0, tables: Vec::new(), of_class: Vec::new(), ..*self };
        out.segment = SHORT_SEGMENT;
        // Most values are near their `lo`.
        let small: [u8; 256] =
            std::array::from_fn(|y| symbol_of(y as i64 - 128, NEAR_SYMBOLS, LOGS).0);
        for (class, table) in (0..n as u8).zip(&self.tables) {
            let lo = W::from_u64(table.lo);
            let values = match self.modes >> class & 1 {
                0 => bytemuck::cast_slice(&sample.differences),
                _ => &sample.turned[..],
            };
            let (mut symbols, mut total) = (Vec::new(), 0u64);
            let mut begin = 0;
            for &end in &sample.ends {
                let whole = symbols.len();
                symbols.resize(whole + end - begin, 0);
                let mut n = whole;
                for (&value, &exponent) in values[begin..end].iter().zip(&sample.exponents[begin..])
                {
                    let y = W::from_u64(value).above(lo) >> table.shift;
                    symbols[n] = match small.get((y as usize).wrapping_add(128)) {
                        Some(&symbol) => symbol,
                        None => symbol_of(y, NEAR_SYMBOLS, LOGS).0,
                    };
                    // The next one takes the place of one of another class.
                    n += usize::from(self.classes.of(exponent) == class);
                }
                total += (n - whole) as u64;
                symbols.truncate(n);
                begin = end;
                // Whole segments alone.
                symbols.truncate(whole + (symbols.len() - whole) / SHORT_SEGMENT * SHORT_SEGMENT);
            }
            if symbols.is_empty() {
                return Ok(None);
            }
            let zero = W::default().above(W::from_u64(table.lo)) >> table.shift;
            let (order, rank) = by_distance(symbol_of(zero, NEAR_SYMBOLS, LOGS).0);
            let n_symbols = order.len();
            let mut histograms = Histograms { counts: Vec::new(), n_symbols };
            set_len(&mut histograms.counts, symbols.len() / SHORT_SEGMENT * n_symbols)?;
            let segments = histograms.counts.chunks_exact_mut(n_symbols);
            let mut extra = 0u64;
            for (counts, symbols) in segments.zip(symbols.chunks_exact(SHORT_SEGMENT)) {
                for &symbol in symbols {
                    counts[usize::from(rank[usize::from(symbol)])] += 1;
                    extra += u64::from(extra_bits(symbol, W::BITS - table.shift));
                }
            }
            let (cost, clusters) = cluster(&histograms, MAX_TABLES / n as usize, ROUNDS);
            let n_tables = clusters.len() as u64;
            let cost = (cost >> COST_FRACTION).saturating_sub(n_tables * TABLE_BITS) + extra;
            // What was left out costs as much as the rest.
            out.cost += cost * total / symbols.len() as u64
                + total * u64::from(table.shift)
                + n_tables * TABLE_BITS / share;
            let first = out.tables.len() as u8;
            out.of_class.push((first..first + clusters.len() as u8).collect());
            out.tables.extend(clusters.into_iter().map(|frequencies| Table {
                frequencies: frequencies.reordered(&order).with_symbol(n_symbols - 1),
                ..table.clone()
            }));
        }
        Ok(Some(out))
    }
}

/// The symbols by their distance from `center`, and the place of each among them.
fn by_distance(center: u8) -> (Vec<u8>, Vec<u8>) {
    let distance = |&symbol: &u8| match u32::from(symbol) {
        near @ 0..NEAR_SYMBOLS => near.abs_diff(u32::from(center)),
        log => NEAR_SYMBOLS + (log - NEAR_SYMBOLS) % LOGS,
    };
    let mut order: Vec<u8> = (0..2 * NEAR_SYMBOLS as u8).collect();
    order.sort_by_key(distance);
    let mut rank = vec![0; order.len()];
    order.iter().zip(0..).for_each(|(&symbol, place)| rank[usize::from(symbol)] = place);
    (order, rank)
}

/// Bits that follow a symbol; `all` follow the last one.
fn extra_bits(symbol: u8, all: u32) -> u32 {
    match u32::from(symbol) {
        0..NEAR_SYMBOLS => 0,
        last if last == 2 * NEAR_SYMBOLS - 1 => all,
        log => (log - NEAR_SYMBOLS) % LOGS,
    }
}

/// Reads runs of units, spread over the tensor.
fn sample<W: Word>(
    spec: &TensorSpec,
    source: &dyn ReadAt,
    base: &dyn ReadAt,
    field: Field,
) -> Result<Sample> {
    let (n, unit) = (spec.n_units(), size_of::<W>() as u64);
    let all_runs = n.div_ceil(RUN);
    let n_runs = all_runs.min((n / 4).clamp(SAMPLE.0, SAMPLE.1).div_ceil(RUN));
    let mut sample = Sample::default();
    let mut buffers = [Vec::new(), Vec::new()];
    for i in 0..n_runs {
        let begin = (i * all_runs / n_runs) * RUN;
        let range = begin * unit..n.min(begin + RUN) * unit;
        for (buffer, source) in buffers.iter_mut().zip([source, base]) {
            set_len(buffer, (range.end - range.start) as usize)?;
            buffer.truncate((range.end - range.start) as usize);
            match source.bytes_at(range.clone()) {
                Some(bytes) => buffer.copy_from_slice(bytes),
                None => read_at(source, range.start, buffer)?,
            }
        }
        sample.add::<W>(field, &buffers[0], &buffers[1])?;
    }
    Ok(sample)
}

/// The highest exponent that at least one unit in `share` has or exceeds.
fn exponent_above(exponents: &[u16], share: usize) -> u32 {
    let mut counts = [0usize; 2048];
    exponents.iter().for_each(|&e| counts[usize::from(e & 2047)] += 1);
    let mut sum = 0;
    for (exponent, n) in counts.iter().enumerate().rev() {
        sum += n;
        if sum * share >= exponents.len().max(1) {
            return exponent as u32;
        }
    }
    0
}

/// How often each value is in the sample, for each exponent.
struct Counts {
    /// The highest exponent.
    highest: u32,
    /// Low bits of differences that are not looked at.
    shift: u32,
    /// Where the counts of differences are that are not 0.
    range: std::ops::Range<usize>,
    near: Vec<[u32; NEAR]>,
    turned: Vec<[u32; TURNED]>,
}

impl Counts {
    fn new<W: Word>(sample: &Sample) -> Counts {
        let highest = sample.exponents.iter().copied().max().unwrap_or(0);
        // Nearly all differences are counted one by one.
        let mut logs = [0usize; 65];
        for d in &sample.differences {
            logs[(u64::BITS - d.unsigned_abs().leading_zeros()) as usize] += 1;
        }
        let (mut bits, mut above) = (64, 0);
        while bits > 0 && (above + logs[bits]) * 64 < sample.differences.len() {
            above += logs[bits];
            bits -= 1;
        }
        let shift = (bits as u32).saturating_sub(NEAR.ilog2() - 1).min(W::BITS - 6);
        let mut counts = Counts {
            highest: u32::from(highest),
            shift,
            range: 0..0,
            near: vec![[0; NEAR]; EXPONENTS],
            turned: vec![[0; TURNED]; EXPONENTS],
        };
        let half = NEAR as i64 / 2;
        let (mut first, mut end) = (NEAR, 0);
        for ((&e, &d), &t) in sample.exponents.iter().zip(&sample.differences).zip(&sample.turned) {
            let e = EXPONENTS - 1 - usize::from(highest - e).min(EXPONENTS - 1);
            let place = ((d >> shift).clamp(-half, half - 1) + half) as usize;
            first = first.min(place);
            end = end.max(place + 1);
            counts.near[e][place & (NEAR - 1)] += 1;
            counts.turned[e][(t >> (W::BITS - 8)) as usize & (TURNED - 1)] += 1;
        }
        counts.range = first.min(end)..end;
        counts
    }

    /// The cheapest mode and table of a class, and what its units cost in bits; `None` if it has
    /// none.
    fn of_class<W: Word>(&self, classes: Classes, class: u8) -> Option<(u64, u8, Table)> {
        let range = self.range.clone();
        let (mut near, mut turned) = (vec![0; range.len()], vec![0; TURNED]);
        for e in 0..EXPONENTS {
            let below = (EXPONENTS - 1 - e) as u32;
            let of = self.highest.checked_sub(below).map_or(0, |e| classes.of(e as u16));
            if of == class {
                near.iter_mut().zip(&self.near[e][range.clone()]).for_each(|(sum, n)| *sum += n);
                turned.iter_mut().zip(&self.turned[e]).for_each(|(sum, n)| *sum += n);
            }
        }
        if near.iter().all(|&n| n == 0) {
            return None;
        }
        let half = NEAR as i64 / 2;
        let (of_near, near) = best_table::<W>(near, (range.start, NEAR), -half, self.shift);
        let (of_turned, turned) = best_table::<W>(turned, (0, TURNED), 0, W::BITS - 8);
        Some(if of_turned < of_near { (of_turned, 1, turned) } else { (of_near, 0, near) })
    }
}

/// The cheapest table for values and what they cost in bits. Of `len` counts those from `begin` on
/// are `counts`, not all 0, and the others are 0. The first of all counts `first << shift`.
fn best_table<W: Word>(
    mut counts: Vec<u32>,
    (mut begin, mut len): (usize, usize),
    mut first: i64,
    shift: u32,
) -> (u64, Table) {
    let mut best: Option<(u64, u32, i64, Vec<u32>)> = None;
    let (near, logs) = (NEAR_SYMBOLS as usize, LOGS);
    let n_symbols = 2 * near;
    for shift in shift..W::BITS {
        let zeros = counts.iter().take_while(|n| **n == 0).count();
        counts.drain(..zeros);
        begin += zeros;
        // The window with the most values, the first of equal ones. Windows before the first
        // value have none.
        let last_window = len.saturating_sub(near);
        let at = |i: usize| i.checked_sub(begin).and_then(|i| counts.get(i)).copied().unwrap_or(0);
        let from = begin.saturating_sub(near - 1).min(last_window);
        let mut sum: u32 = (from..from + near).map(at).sum();
        let mut most = (sum, from);
        for window in from + 1..=last_window.min(begin + counts.len()) {
            sum += at(window + near - 1);
            sum -= at(window - 1);
            if sum > most.0 {
                most = (sum, window);
            }
        }
        let mut symbols = vec![0u32; n_symbols];
        let mut cost = 0u64;
        let total: u32 = counts.iter().sum();
        for (i, &n) in (begin..).zip(&counts).filter(|(_, n)| **n > 0) {
            let (symbol, extra) = symbol_of(i as i64 - most.1 as i64, near as u32, logs);
            let extra = if extra == u32::MAX { W::BITS - shift } else { extra };
            symbols[usize::from(symbol)] += n;
            cost += u64::from(n) * u64::from(extra + shift);
        }
        let entropy: u64 = symbols
            .iter()
            .filter(|&&n| n > 0)
            .map(|&n| u64::from(n) * (log2(total) - log2(n)))
            .sum();
        cost += entropy >> 20;
        if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
            best = Some((cost, shift, first + most.1 as i64, symbols));
        }
        if len <= near || shift + 5 > W::BITS {
            break;
        }
        if begin % 2 == 1 {
            counts.insert(0, 0);
        }
        counts = counts.chunks(2).map(|pair| pair.iter().sum()).collect();
        (begin, len, first) = (begin / 2, len.div_ceil(2), first >> 1);
    }
    let Some((cost, shift, lo, symbols)) = best else {
        unreachable!("at least one shift is tried")
    };
    let lo = W::from_u64((lo << shift) as u64).to_u64();
    let frequencies = FrequencyTable::from_counts(&symbols).with_symbol(n_symbols - 1);
    (cost, Table { shift, lo, frequencies })
}
