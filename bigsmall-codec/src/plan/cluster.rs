//! Segments to tables: which segments are alike, by their histograms.

use bigsmall_format::Result;
use bigsmall_format::internal::set_len;

use crate::bits::BitWriter;
use crate::head::id_bits;
use crate::planes::GROUP;
use crate::table::{COST_FRACTION, FrequencyTable};

/// Tables have a multiple of so many symbols. Loops over them are unrolled.
const ROW: usize = 32;

/// The counts of the symbols in each segment, one segment after the other.
pub(crate) struct Histograms {
    pub(crate) counts: Vec<u16>,
    pub(crate) n_symbols: usize,
}

impl Histograms {
    /// Those of all groups of a sample, which has a multiple of 4 units. Symbols from `n_symbols`
    /// on are not counted.
    #[inline(always)]
    pub(super) fn of_groups(
        highs: &[u16],
        symbol: impl Fn(&u16) -> u8,
        n_symbols: usize,
    ) -> Result<Histograms> {
        let mut counts = Vec::new();
        set_len(&mut counts, highs.len().div_ceil(GROUP).max(1) * n_symbols)?;
        let mut symbols = [0; GROUP];
        for (highs, counts) in highs.chunks(GROUP).zip(counts.chunks_exact_mut(n_symbols)) {
            let symbols = &mut symbols[..highs.len()];
            symbols.iter_mut().zip(highs).for_each(|(to, high)| *to = symbol(high));
            // Four histograms, so that equal neighbours do not wait for each other. A byte can
            // count a quarter of a group.
            let mut four = [[0u8; 256]; 4];
            for &[a, b, c, d] in symbols.as_chunks().0 {
                four[0][usize::from(a)] += 1;
                four[1][usize::from(b)] += 1;
                four[2][usize::from(c)] += 1;
                four[3][usize::from(d)] += 1;
            }
            let four = four.each_ref().map(|counts| counts.as_chunks::<ROW>().0);
            for (row, counts) in counts.as_chunks_mut::<ROW>().0.iter_mut().enumerate() {
                *counts =
                    std::array::from_fn(|s| four.iter().map(|of| u16::from(of[row][s])).sum());
            }
        }
        Ok(Histograms { counts, n_symbols })
    }

    /// Those of segments of `groups` groups.
    #[inline(always)]
    pub(super) fn merged(&self, groups: usize) -> Result<Histograms> {
        let n_symbols = self.n_symbols;
        let mut counts = Vec::new();
        set_len(&mut counts, self.len().div_ceil(groups) * n_symbols)?;
        let segments = counts.chunks_exact_mut(n_symbols);
        for (to, from) in segments.zip(self.counts.chunks(groups * n_symbols)) {
            for from in from.chunks_exact(n_symbols) {
                to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
            }
        }
        Ok(Histograms { counts, n_symbols })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u16]> {
        self.counts.chunks_exact(self.n_symbols)
    }

    pub(super) fn total(&self) -> u64 {
        self.counts.iter().map(|&n| u64::from(n)).sum()
    }

    pub(super) fn len(&self) -> usize {
        self.counts.len() / self.n_symbols
    }
}

/// Assigns the segments to tables so that the coding cost is low, by Lloyd's algorithm. It starts
/// from the segments in the order of their mean symbol. Makes at most `most` tables in `rounds`
/// rounds. Returns the cost, including the tables.
#[inline(always)]
pub(crate) fn cluster(
    histograms: &Histograms,
    most: usize,
    rounds: usize,
) -> (u64, Vec<FrequencyTable>) {
    debug_assert!(histograms.n_symbols.is_multiple_of(ROW), "whole rows of symbols");
    let n = histograms.len();
    let order = by_mean(histograms);
    // A table takes at least 32 * 4 bits in the head. A cluster of fewer than two segments cannot
    // save that.
    let most = most.min(n / 2).max(1);
    let mut best: Option<(u64, Vec<FrequencyTable>)> = None;
    for k in [1, 1 << most.ilog2()] {
        let mut assigned = vec![0usize; n];
        for (rank, &i) in order.iter().enumerate() {
            assigned[i] = rank * k / n;
        }
        let (cost, tables) = lloyd(histograms, &mut assigned, k, rounds);
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, tables));
        }
        if most == 1 {
            break;
        }
    }
    best.unwrap_or_else(|| (0, vec![FrequencyTable::from_counts(&vec![0; histograms.n_symbols])]))
}

/// The numbers of the segments, in the order of their mean symbol.
#[inline(always)]
pub(super) fn by_mean(histograms: &Histograms) -> Vec<usize> {
    let means: Vec<u64> = histograms
        .iter()
        .map(|h| {
            let total: u64 = h.iter().map(|&c| u64::from(c)).sum();
            let sum: u64 = h.iter().zip(0..).map(|(&c, s)| u64::from(c) * s).sum();
            (sum << 16) / total.max(1)
        })
        .collect();
    let mut order: Vec<usize> = (0..histograms.len()).collect();
    order.sort_by_key(|&i| means[i]);
    order
}

#[inline(always)]
pub(super) fn lloyd(
    histograms: &Histograms,
    assigned: &mut [usize],
    k: usize,
    rounds: usize,
) -> (u64, Vec<FrequencyTable>) {
    let mut k = k;
    let rounds = if k == 1 { 1 } else { rounds };
    for round in 0.. {
        let mut counts = vec![vec![0u32; histograms.n_symbols]; k];
        for (h, &c) in histograms.iter().zip(&*assigned) {
            counts[c].iter_mut().zip(h).for_each(|(sum, &n)| *sum += u32::from(n));
        }
        counts.retain(|c| c.iter().any(|&n| n > 0));
        if counts.is_empty() {
            counts.push(vec![0; histograms.n_symbols]);
        }
        k = counts.len();
        let tables: Vec<_> = counts.iter().map(|c| FrequencyTable::from_counts(c)).collect();
        let costs: Vec<_> = tables.iter().map(FrequencyTable::costs).collect();
        let mut total = 0;
        for (h, c) in histograms.iter().zip(&mut *assigned) {
            // Both fit in 15 bits, so that one vector instruction multiplies and adds them.
            let row = |(h, table): (&[u16; ROW], &[u16; ROW])| -> i32 {
                let each = h.iter().zip(table);
                each.map(|(&n, &cost)| i32::from(n as i16) * i32::from(cost as i16)).sum()
            };
            let rows = h.as_chunks().0;
            let cost =
                |table: &Vec<u16>| rows.iter().zip(table.as_chunks().0).map(row).sum::<i32>();
            let (least, at) =
                costs.iter().enumerate().map(|(i, table)| (cost(table), i)).min().unwrap_or((0, 0));
            total += least as u64;
            *c = at;
        }
        if round + 1 >= rounds {
            let mut bits = BitWriter::default();
            tables.iter().for_each(|t| t.write(&mut bits));
            total += (bits.finish().len() as u64 * 8) << COST_FRACTION;
            total += (histograms.len() as u64 * u64::from(id_bits(k))) << COST_FRACTION;
            return (total, tables);
        }
    }
    unreachable!("the loop returns after the last round")
}
