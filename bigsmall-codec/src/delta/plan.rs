//! Decides the head of a tensor from a sample of it and of its base: classes, modes, tables. All
//! arithmetic is in integers, because the decisions determine the bytes.

use bigsmall_format::internal::{reserve, set_len};
use bigsmall_format::{ReadAt, Result, TensorSpec};

use super::classes::{Classes, Field};
use super::counts::{Counts, LOGS, NEAR_SYMBOLS, SYMBOL_BITS};
use super::head::{Head, MAX_SPARSE_CLASSES, Table};
use super::sample::{RUN, Sample, sample};
use super::split::symbol_of;
use super::values::{Word, symbols_of};
use crate::bits::at_least;
use crate::head::MAX_TABLES;
use crate::plan::{Histograms, cluster};
use crate::planes::GROUP;
use crate::table::COST_FRACTION;

/// If in no run of the sample more than one unit in so many differs, no table is made.
const CODED_FROM: usize = 250;
/// The highest class of coded blocks holds at least one unit in so many.
const TOP_SHARE: usize = 48;
/// Numbers of classes to try.
const CLASSES: [u32; 4] = [1, 2, 4, 8];
/// Bits of a table in the head.
const TABLE_BITS: u64 = 220;
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

/// Decides the head of `spec`.
pub(crate) fn plan<W: Word>(
    spec: &TensorSpec,
    source: &dyn ReadAt,
    base: &dyn ReadAt,
) -> Result<Plan> {
    let field = Field::of(spec.dtype());
    let sample = sample::<W>(spec, source, base, field)?;
    let [highest, top] = exponents_above(&sample, [256, TOP_SHARE]);
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
    let mut counts = Counts::new(&sample)?;
    // Costs are those of the sample; a head costs as much for any number of units.
    let share = spec.n_units().div_ceil(sample.differences.len() as u64).max(1);
    let (mut best, mut alike): (Option<Candidate>, _) = (None, false);
    for n in CLASSES {
        if n > 1 && (!field.is_float() || n > top + 1) {
            break;
        }
        let classes = Classes { n, top };
        let one = Candidate::new(&mut counts, classes, share);
        let several = match &one {
            Some(one) if n <= SEVERAL_TABLES && !alike => {
                one.with_several_tables(&sample, share)?
            }
            _ => None,
        };
        // Segments that are alike are so in each class.
        alike |= several.as_ref().zip(one.as_ref()).is_some_and(|(a, b)| a.cost >= b.cost);
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
    fn new<W: Word>(counts: &mut Counts<'_, W>, classes: Classes, share: u64) -> Option<Candidate> {
        let (mut cost, mut modes, mut tables) = (0, 0, Vec::new());
        for class in 0..classes.n as u8 {
            let Some((of_class, mode, table)) = counts.of_class(classes, class) else {
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
        sample: &Sample<W>,
        share: u64,
    ) -> Result<Option<Candidate>> {
        let n = self.classes.n;
        let mut out = Candidate { cost: 0, tables: Vec::new(), of_class: Vec::new(), ..*self };
        out.segment = SHORT_SEGMENT;
        let turned: Vec<W> = match self.modes {
            0 => Vec::new(),
            _ => sample.turned().collect(),
        };
        for (class, table) in (0..n as u8).zip(&self.tables) {
            let values = match self.modes >> class & 1 {
                0 => &sample.differences,
                _ => &turned,
            };
            let (mut symbols, mut total) = (Vec::new(), 0u64);
            reserve(&mut symbols, values.len())?;
            let mut begin = 0;
            for &end in &sample.ends {
                let whole = symbols.len();
                let mut bases = sample.bases[begin..end].iter();
                for values in values[begin..end].chunks(GROUP) {
                    let mut group = [W::default(); GROUP];
                    group[..values.len()].copy_from_slice(values);
                    let mut row = [0; GROUP];
                    let steps = (W::from_u64(table.lo), table.shift);
                    symbols_of(&group, steps, (NEAR_SYMBOLS, LOGS), &mut row, &at_least);
                    if n == 1 {
                        symbols.extend_from_slice(&row[..values.len()]);
                        continue;
                    }
                    let (mut kept, mut n_kept) = ([0; 2 * GROUP], 0);
                    for (symbol, base) in row.iter().zip(bases.by_ref().take(values.len())) {
                        // The next one takes the place of one of another class.
                        kept[n_kept % GROUP] = *symbol;
                        let of = self.classes.of(base.exponent(sample.field));
                        n_kept += usize::from(of == class);
                    }
                    // At most GROUP; said so that no bound is checked.
                    symbols.extend_from_slice(&kept[..n_kept % (2 * GROUP)]);
                }
                total += (symbols.len() - whole) as u64;
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
            let (mut extra, all) = (0u64, W::BITS - table.shift);
            for (counts, symbols) in segments.zip(symbols.chunks_exact(SHORT_SEGMENT)) {
                // Four counts, so that equal neighbours do not wait for each other.
                let mut fours = [[0u8; 2 * NEAR_SYMBOLS as usize]; 4];
                for four in symbols.as_chunks::<4>().0 {
                    for (counts, &symbol) in fours.iter_mut().zip(four) {
                        counts[usize::from(symbol) % (2 * NEAR_SYMBOLS as usize)] += 1;
                    }
                }
                for (symbol, &place) in (0..).zip(&rank) {
                    let n: u16 = fours.iter().map(|counts| u16::from(counts[symbol])).sum();
                    counts[usize::from(place)] = n;
                    extra += u64::from(n) * u64::from(extra_bits(symbol as u8, all));
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

/// For each of `shares` the highest exponent that at least one unit in so many has or exceeds.
fn exponents_above<W: Word>(sample: &Sample<W>, shares: [usize; 2]) -> [u32; 2] {
    // Two histograms, so that equal neighbours do not wait for each other.
    let mut counts = [[0u32; 2048]; 2];
    for (i, e) in sample.exponents().enumerate() {
        counts[i & 1][usize::from(e & 2047)] += 1;
    }
    shares.map(|share| {
        let mut sum = 0;
        let counts = counts[0].iter().zip(&counts[1]).map(|(a, b)| (a + b) as usize);
        for (exponent, n) in counts.enumerate().rev() {
            sum += n;
            if sum * share >= sample.bases.len().max(1) {
                return exponent as u32;
            }
        }
        0
    })
}
