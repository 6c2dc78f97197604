//! How often each value is in a sample, and the tables that are cheapest for these counts. All
//! arithmetic is in integers, because the decisions determine the bytes.

use bigsmall_format::Result;
use bigsmall_format::internal::set_len;

use super::classes::Classes;
use super::head::Table;
use super::sample::Sample;
use super::values::Word;
use crate::table::{FrequencyTable, log2};

/// Symbol bits of the head.
pub(super) const SYMBOL_BITS: u32 = 5;
/// Symbols that are values of their own, and symbols of logarithms for each side.
pub(super) const NEAR_SYMBOLS: u32 = 1 << (SYMBOL_BITS - 1);
pub(super) const LOGS: u32 = 1 << (SYMBOL_BITS - 2);
/// Exponents that are told apart, downwards from the highest in the sample.
const EXPONENTS: usize = 16;
/// Differences that are counted one by one, after they were shifted.
const NEAR: usize = 4096;
/// Values of mode 1 that are counted one by one: their upper 8 bits.
const TURNED: usize = 256;

/// The mode and the table of some units, and what they cost in bits.
pub(super) type Priced = (u64, u8, Table);

/// How often each value is in the sample, for each exponent.
pub(super) struct Counts<'a, W> {
    sample: &'a Sample<W>,
    /// The highest exponent.
    highest: u32,
    /// Low bits of differences that are not looked at.
    shift: u32,
    /// Where the counts of differences are that are not 0.
    range: std::ops::Range<usize>,
    /// For each exponent those of the range.
    near: Vec<u32>,
    /// Counted when a class needs them.
    turned: Option<Vec<[u32; TURNED]>>,
    /// What is known of classes: other numbers of classes have the same highest ones.
    known: Vec<((u32, u32), Option<Priced>)>,
}

impl<'a, W: Word> Counts<'a, W> {
    pub(super) fn new(sample: &'a Sample<W>) -> Result<Self> {
        let highest = u32::from(sample.exponents().max().unwrap_or(0));
        let half = NEAR as i64 / 2;
        // Nearly all differences are counted one by one.
        let zero = W::default();
        let differences = || sample.differences.iter().map(|d| d.above(zero));
        let mut shift = 0;
        let (least, most) = (W::from_u64(half as u64 - 1), W::from_u64(2 * (half as u64 - 1)));
        let is_large = |d: &&W| d.plus_shifted(least.to_u64(), 0) > most;
        let n_large = match W::BITS {
            8 => 0,
            _ => sample.differences.iter().filter(is_large).count(),
        };
        if n_large * 64 >= sample.differences.len() {
            let mut logs = [0usize; 65];
            for d in differences() {
                logs[(u64::BITS - d.unsigned_abs().leading_zeros()) as usize] += 1;
            }
            let (mut bits, mut above) = (64, 0);
            while bits > 0 && (above + logs[bits]) * 64 < sample.differences.len() {
                above += logs[bits];
                bits -= 1;
            }
            shift = (bits as u32).saturating_sub(NEAR.ilog2() - 1).min(W::BITS - 6);
        }
        let place = |d: i64| ((d >> shift).clamp(-half, half - 1) + half) as usize;
        let (least, most) =
            differences().fold((i64::MAX, i64::MIN), |(a, b), d| (a.min(d), b.max(d)));
        let (first, end) =
            if least > most { (NEAR, NEAR) } else { (place(least), place(most) + 1) };
        let (mut near, width) = (Vec::new(), end - first);
        set_len(&mut near, EXPONENTS * width)?;
        for (e, d) in sample.exponents().zip(differences()) {
            if let Some(n) = near.get_mut(row(highest, e) * width + place(d) - first) {
                *n += 1;
            }
        }
        let (turned, known) = (None, Vec::new());
        Ok(Counts { sample, highest, shift, range: first..end, near, turned, known })
    }

    /// The cheapest mode and table of a class, and what its units cost in bits; `None` if it has
    /// none.
    pub(super) fn of_class(&mut self, classes: Classes, class: u8) -> Option<Priced> {
        let key = match class {
            0 => (classes.n, 0),
            _ => (0, classes.n - u32::from(class)),
        };
        if let Some((_, priced)) = self.known.iter().find(|(known, _)| *known == key) {
            return priced.clone();
        }
        let priced = self.price(classes, class);
        self.known.push((key, priced.clone()));
        priced
    }

    fn price(&mut self, classes: Classes, class: u8) -> Option<Priced> {
        let (range, highest, sample) = (self.range.clone(), self.highest, self.sample);
        let mut rows = [false; EXPONENTS];
        for (e, is_of_class) in rows.iter_mut().enumerate() {
            let below = (EXPONENTS - 1 - e) as u32;
            let of = highest.checked_sub(below).map_or(0, |e| classes.of(e as u16));
            *is_of_class = of == class;
        }
        let rows = || rows.iter().zip(0..EXPONENTS).filter(|(of, _)| **of).map(|(_, e)| e);
        let mut near = vec![0; range.len()];
        for e in rows() {
            let counts = &self.near[e * range.len()..];
            near.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
        }
        let n: u64 = near.iter().map(|&n| u64::from(n)).sum();
        if n == 0 {
            return None;
        }
        let half = NEAR as i64 / 2;
        let (of_near, near) = best_table::<W>(near, (range.start, NEAR), -half, self.shift);
        // In mode 1 units keep their low bits as they are.
        if of_near <= n * u64::from(W::BITS - 8) {
            return Some((of_near, 0, near));
        }
        let all = self.turned.get_or_insert_with(|| {
            let mut all = vec![[0; TURNED]; EXPONENTS];
            for (e, t) in sample.exponents().zip(sample.turned()) {
                let high = (t.to_u64() >> (W::BITS - 8)) as usize;
                all[row(highest, e)][high & (TURNED - 1)] += 1;
            }
            all
        });
        let mut turned = vec![0; TURNED];
        for e in rows() {
            turned.iter_mut().zip(&all[e]).for_each(|(sum, n)| *sum += n);
        }
        let (of_turned, turned) = best_table::<W>(turned, (0, TURNED), 0, W::BITS - 8);
        Some(if of_turned < of_near { (of_turned, 1, turned) } else { (of_near, 0, near) })
    }
}

/// The row of counts of an exponent.
fn row(highest: u32, exponent: u16) -> usize {
    EXPONENTS - 1 - (highest as usize - usize::from(exponent)).min(EXPONENTS - 1)
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
    let near = NEAR_SYMBOLS as usize;
    let n_symbols = 2 * near;
    let mut sums = Vec::new();
    for shift in shift..W::BITS {
        let zeros = counts.iter().take_while(|n| **n == 0).count();
        counts.drain(..zeros);
        begin += zeros;
        // The window with the most values, the first of equal ones. Windows before the first
        // value have none.
        let last_window = len.saturating_sub(near);
        let from = begin.saturating_sub(near - 1).min(last_window);
        let end = last_window.min(begin + counts.len());
        sums.clear();
        sums.resize(end + near - from, 0);
        let place = begin - from;
        let n = counts.len().min(sums.len().saturating_sub(place));
        sums[place..][..n].copy_from_slice(&counts[..n]);
        let mut step = 1;
        while step < near {
            for i in 0..sums.len() - step {
                sums[i] += sums[i + step];
            }
            step *= 2;
        }
        let sums = &sums[..=end - from];
        let most = sums.iter().copied().max().unwrap_or(0);
        let window = from + sums.iter().position(|&sum| sum == most).unwrap_or(0);
        let mut symbols = vec![0u32; n_symbols];
        let total: u32 = counts.iter().sum();
        // Symbols of logarithms stand for ranges.
        let in_range = |first: usize, end: usize| -> u32 {
            let place = |i: usize| i.saturating_sub(begin).min(counts.len());
            counts[place(first)..place(end)].iter().sum()
        };
        for (i, symbol) in symbols[..near].iter_mut().enumerate() {
            *symbol = in_range(window + i, window + i + 1);
        }
        let (mut cost, mut rest) = (0u64, total - symbols.iter().sum::<u32>());
        for log in 0..LOGS {
            let (least, next) = (1usize << log, 2usize << log);
            let above = window + near - 1;
            let below = |a: usize| (window + 1).saturating_sub(a);
            let mut add = |symbol: u32, n: u32| {
                symbols[symbol as usize] = n;
                cost += u64::from(n) * u64::from(log);
                rest -= n;
            };
            add(NEAR_SYMBOLS + log, in_range(above + least, above + next));
            if log < LOGS - 1 {
                add(NEAR_SYMBOLS + LOGS + log, in_range(below(next), below(least)));
            }
        }
        symbols[n_symbols - 1] = rest;
        cost += u64::from(rest) * u64::from(W::BITS - shift);
        cost += u64::from(total) * u64::from(shift);
        let entropy: u64 = symbols
            .iter()
            .filter(|&&n| n > 0)
            .map(|&n| u64::from(n) * (log2(total) - log2(n)))
            .sum();
        cost += entropy >> 20;
        if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
            best = Some((cost, shift, first + window as i64, symbols));
        }
        if len <= near || shift + 5 > W::BITS {
            break;
        }
        if begin % 2 == 1 {
            counts.insert(0, 0);
        }
        if counts.len() % 2 == 1 {
            counts.push(0);
        }
        for i in 0..counts.len() / 2 {
            counts[i] = counts[2 * i] + counts[2 * i + 1];
        }
        counts.truncate(counts.len() / 2);
        (begin, len, first) = (begin / 2, len.div_ceil(2), first >> 1);
    }
    let Some((cost, shift, lo, symbols)) = best else {
        unreachable!("at least one shift is tried")
    };
    let lo = W::from_u64((lo << shift) as u64).to_u64();
    let frequencies = FrequencyTable::from_counts(&symbols).with_symbol(n_symbols - 1);
    (cost, Table { shift, lo, frequencies })
}
