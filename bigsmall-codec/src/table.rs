//! Frequency tables: made from counts by integer arithmetic, written in about 10 bits a symbol,
//! laid out as alias buckets (FORMAT.md section 7.3).

use std::sync::OnceLock;

use bigsmall_format::{Error, Result, Rule};

use crate::bits::{BitReader, BitWriter};

/// Bits of a probability.
pub(crate) const PRECISION: u32 = 12;
/// Sum of all frequencies.
pub(crate) const TOTAL: u32 = 1 << PRECISION;

/// Fraction bits of [`log2`].
const LOG_FRACTION: u32 = 20;
/// About what an exception costs, in bits: gap, field and the symbol that stands in.
const EXCEPTION_BITS: u64 = 20;

/// Fraction bits of a cost.
pub(crate) const COST_FRACTION: u32 = 8;

/// `LOG2[f]` is log2(f) times 2^20, rounded down, for f in 1..=4096. Integer arithmetic: costs
/// decide bytes.
static LOG2: [u32; TOTAL as usize + 1] = {
    let mut table = [0; TOTAL as usize + 1];
    let mut f = 1;
    while f < table.len() {
        // x in [1, 2) with 31 fraction bits; squaring doubles the logarithm, one bit of it a step.
        let whole = (f as u32).ilog2();
        let mut x = (f as u64) << (31 - whole);
        let mut log = whole;
        let mut i = 0;
        while i < LOG_FRACTION {
            x = (x * x) >> 31;
            log <<= 1;
            if x >= 1 << 32 {
                x >>= 1;
                log |= 1;
            }
            i += 1;
        }
        table[f] = log;
        f += 1;
    }
    table
};

/// log2(n) times 2^20, about: that of its upper 12 bits.
pub(crate) fn log2(n: u32) -> u64 {
    let dropped = n.max(1).ilog2().saturating_sub(PRECISION - 1);
    u64::from(LOG2[(n.max(1) >> dropped) as usize]) + (u64::from(dropped) << LOG_FRACTION)
}

/// Frequencies of the symbols of a window; they sum to 4096, so at least two are not 0: none is
/// 4096, which 16 times would not fit 16 bits. One that exists is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FrequencyTable {
    /// One for each symbol of the window; 0 for a symbol that only exceptions have.
    freqs: Vec<u16>,
}

impl FrequencyTable {
    /// Divides 4096 among the symbols so that coding `counts` costs least, leaving out symbols so
    /// rare that exceptions are cheaper. If only one symbol has counts, it gets 4095, and the first
    /// of the others 1; without any counts the first symbol counts as that one.
    pub(crate) fn from_counts(counts: &[u32]) -> FrequencyTable {
        let n: u64 = counts.iter().map(|&c| u64::from(c)).sum();
        // A symbol in the table takes at least 1/4096 from all others, n * log2(e) / 4096 bits,
        // about 10 bits in the head and 12 bits each time; an exception about 20 bits each
        // time.
        let entry_bits_4096 = n * 1477 / 1024 + 10 * u64::from(TOTAL);
        let worth = |c: u32| {
            u64::from(c) * (EXCEPTION_BITS - u64::from(PRECISION)) * u64::from(TOTAL)
                > entry_bits_4096
        };
        let most = counts.iter().copied().max().unwrap_or(0);
        let kept: Vec<u64> = counts
            .iter()
            .map(|&c| if c > 0 && (worth(c) || c == most) { u64::from(c) } else { 0 })
            .collect();
        let n: u64 = kept.iter().sum();
        let mut freqs: Vec<u16> = kept
            .iter()
            .map(|&c| if c == 0 { 0 } else { ((c * u64::from(TOTAL) + n / 2) / n).max(1) as u16 })
            .collect();
        if n == 0 {
            freqs[0] = TOTAL as u16;
        }
        // Rounding misses 4096 by a few: mend it one step at a time where it costs least or gains
        // most.
        let log = |f: u16| u64::from(LOG2[f as usize]);
        loop {
            let sum: u32 = freqs.iter().map(|&f| u32::from(f)).sum();
            if sum == TOTAL {
                return FrequencyTable { freqs }.of_two_symbols();
            }
            let symbols = || (0..freqs.len()).filter(|&s| kept[s] > 0);
            if sum > TOTAL {
                let loss = |&s: &usize| kept[s] * (log(freqs[s]) - log(freqs[s] - 1));
                let cheapest = symbols().filter(|&s| freqs[s] > 1).min_by_key(loss);
                // More than 4096 symbols do not exist, so one of them can give.
                if let Some(s) = cheapest {
                    freqs[s] -= 1;
                }
            } else {
                let gain = |&s: &usize| kept[s] * (log(freqs[s] + 1) - log(freqs[s]));
                // The last of equals in `max_by_key`, the first in `min_by_key`: fixed by the
                // standard library.
                if let Some(s) = symbols().max_by_key(gain) {
                    freqs[s] += 1;
                }
            }
        }
    }

    /// The same table, or, if one symbol has all of it, one where the first of the others has one
    /// in 4096.
    fn of_two_symbols(self) -> FrequencyTable {
        let other = usize::from(self.freqs[0] > 0);
        if self.freqs.contains(&(TOTAL as u16)) { self.with_symbol(other) } else { self }
    }

    /// The table in which symbol `order[i]` has the frequency of symbol i.
    pub(crate) fn reordered(&self, order: &[u8]) -> FrequencyTable {
        let mut freqs = vec![0; self.freqs.len()];
        for (&symbol, &f) in order.iter().zip(&self.freqs) {
            freqs[usize::from(symbol)] = f;
        }
        FrequencyTable { freqs }
    }

    /// The same table, `symbol` coded at least once in 4096: the most frequent one gives a part.
    pub(crate) fn with_symbol(mut self, symbol: usize) -> FrequencyTable {
        if self.freqs[symbol] == 0 {
            let most = usize::from(self.most_frequent(|_| true));
            self.freqs[most] -= 1;
            self.freqs[symbol] = 1;
        }
        self
    }

    /// The frequencies, one for each symbol of the window.
    pub(crate) fn freqs(&self) -> &[u16] {
        &self.freqs
    }

    /// What each symbol costs in units of 2^-[`COST_FRACTION`] bit; less than 2^15.
    pub(crate) fn costs(&self) -> Vec<u16> {
        let cost = |&f: &u16| match f {
            0 => (EXCEPTION_BITS as u16) << COST_FRACTION,
            f => {
                (((PRECISION << LOG_FRACTION) - LOG2[f as usize]) >> (LOG_FRACTION - COST_FRACTION))
                    as u16
            }
        };
        self.freqs.iter().map(cost).collect()
    }

    /// The most frequent symbol of those for which `counts` holds, the smallest among equals: it
    /// stands in for exceptions.
    pub(crate) fn most_frequent(&self, counts: impl Fn(usize) -> bool) -> u8 {
        // Of equals `max_by_key` returns the last.
        let symbols = (0..self.freqs.len()).rev().filter(|&s| counts(s));
        symbols.max_by_key(|&s| self.freqs[s]).unwrap_or(0) as u8
    }

    /// Appends the table: for each symbol the bit length of its frequency in 4 bits, then the bits
    /// below the leading one.
    pub(crate) fn write(&self, out: &mut BitWriter) {
        for &f in &self.freqs {
            let len = u16::BITS - f.leading_zeros();
            out.push(u32::from(len as u16), 4);
            if len > 1 {
                out.push(u32::from(f) & ((1 << (len - 1)) - 1), len - 1);
            }
        }
    }

    /// Reads a table of `n_symbols` symbols.
    pub(crate) fn read(bits: &mut BitReader<'_>, n_symbols: usize) -> Result<FrequencyTable> {
        let short = || Error::new(Rule::FrequencyTable).found("the head ends within a table");
        let mut freqs = Vec::with_capacity(n_symbols);
        let mut sum = 0u32;
        for symbol in 0..n_symbols {
            let len = bits.pull(4).ok_or_else(short)?;
            let f = match len {
                0 => 0,
                1..=PRECISION => 1 << (len - 1) | bits.pull(len - 1).ok_or_else(short)?,
                _ => u32::MAX,
            };
            if f >= TOTAL {
                return Err(Error::new(Rule::FrequencyTable)
                    .expected("a frequency of at most 4095")
                    .found(format!("length {len} for symbol {symbol}")));
            }
            sum += f;
            freqs.push(f as u16);
        }
        if sum != TOTAL {
            return Err(Error::new(Rule::FrequencyTable)
                .expected("frequencies that sum to 4096")
                .found(sum));
        }
        Ok(FrequencyTable { freqs })
    }
}

/// A table laid out in slots: what a backend decodes with. `n` buckets of `4096 / n` slots, `n` the
/// number of symbols. The first slots of bucket `b` belong to symbol `b`, the others to its donor.
#[derive(Clone, Debug)]
pub(crate) struct AliasTable {
    /// For each bucket the first slot that is the donor's (may be the end of the bucket).
    pub(crate) split: Vec<u32>,
    /// For each bucket the entry of its own symbol.
    pub(crate) own: Vec<AliasEntry>,
    /// For each bucket the entry of its donor.
    pub(crate) donor: Vec<AliasEntry>,
    #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
    buckets: OnceLock<Box<Buckets>>,
    slots: OnceLock<Box<Slots>>,
    encode: OnceLock<Box<EncodeTable>>,
    #[cfg(target_arch = "x86_64")]
    encode_words: OnceLock<Box<EncodeWords>>,
}

/// What encoding with a table needs, made for vectors that divide by multiplying: quotients may
/// come out one too small, remainders then one frequency too large; looking a slot up corrects
/// both.
#[derive(Clone, Debug)]
pub(crate) struct EncodeTable {
    /// For each symbol floor((2^(32 + k) - 1) / freq) with k = floor(log2(freq)).
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // for AVX2
    pub(crate) reciprocal: [u32; 256],
    /// For each symbol `freq | k << 13 | first << 17`.
    pub(crate) fields: [u32; 256],
    /// For each symbol floor((2^64 - 1) / freq), for machines that multiply 64 bits at a time.
    inverse: [u64; 256],
    /// The first 32 entries byte by byte: those of the reciprocals, the lowest first, then those
    /// of the fields.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // for tables in registers
    pub(crate) bytes32: [[u8; 32]; 8],
    /// For each symbol a little less than 1 / freq, as the bits of an `f32`: [`float_inverse`].
    #[cfg(target_arch = "aarch64")]
    pub(crate) inverse_float: [u32; 256],
    /// The first 64 entries byte by byte.
    #[cfg(target_arch = "aarch64")]
    pub(crate) bytes64: EncodeBytes,
    /// At `first + r` the slot of the symbol's rank `r` below freq; at `first + freq + r` the same
    /// and 4096, what the quotient lacks.
    pub(crate) slots: Box<RankedSlots>,
}

/// The slots of the ranks of all symbols, twice. One more entry, because gathers of AVX2 read two
/// at each.
pub(crate) type RankedSlots = [u16; 2 * TOTAL as usize + 1];

/// [`EncodeTable`] for AVX-512, which looks up columns of 16 bits in registers. Aligned, so that no
/// vector of a column lies in two cache lines.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct EncodeWords {
    /// For each symbol 16 times the frequency.
    pub(crate) freq: [u16; 256],
    /// The lower and the upper halves of a little less than 1 / freq as an `f32`:
    /// [`float_inverse`].
    pub(crate) inverse: [[u16; 256]; 2],
    /// Where the slots of a symbol begin in `slots`.
    pub(crate) first: [u16; 256],
    /// What finds slots in registers; empty if there are more than 64 symbols.
    pub(crate) ranks: RankSlots,
    /// [`EncodeTable::slots`] if there are more than 64 symbols.
    pub(crate) slots: Option<Box<RankedSlots>>,
}

/// The first 64 entries as tables of bytes; of two bytes the lower one first.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Debug)]
pub(crate) struct EncodeBytes {
    /// 16 times the frequency.
    pub(crate) freq: [Shuffled; 2],
    /// Where the slots begin.
    pub(crate) first: [Shuffled; 2],
    /// The lower and the upper halves of `inverse_float`.
    pub(crate) inverse: [[Shuffled; 2]; 2],
}

#[cfg(target_arch = "aarch64")]
impl EncodeBytes {
    fn new(fields: &[u32; 256], inverse: &[u32; 256]) -> EncodeBytes {
        let of =
            |column: &dyn Fn(usize) -> u32| both_bytes(&std::array::from_fn(|s| column(s) as u16));
        EncodeBytes {
            freq: of(&|s| 16 * (fields[s] & 0x1fff)),
            first: of(&|s| fields[s] >> 17),
            inverse: [0, 16].map(|by| of(&|s| inverse[s] >> by)),
        }
    }
}

/// The slots of ranks, in tables that fit registers. The first ranks of a symbol are the first
/// slots of its bucket. Its others are runs of slots at the ends of other buckets, one in each.
/// These other ranks are numbered consecutively, symbol by symbol. So each run is a range of
/// numbers, and the run of a rank is found by its number.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct RankSlots {
    /// For each symbol how many ranks lie in its bucket.
    pub(crate) own: [u16; Buckets::FEW],
    /// For each symbol what is added to one of its other ranks: then it is the number.
    pub(crate) to_number: [u16; Buckets::FEW],
    /// For each run what is added to a number: then it is the slot.
    pub(crate) to_slot: [u16; Buckets::FEW],
    /// For each number without its lowest [`Self::SHIFT`] bits the run of the first such number,
    /// where the search begins.
    pub(crate) runs: [u8; TOTAL as usize >> Self::SHIFT],
    /// For each run where 1, 2, 4, 8, 16 and 32 runs from it on end: the first number after them,
    /// or `u16::MAX` if there are fewer.
    pub(crate) ends: [[u16; Buckets::FEW]; 6],
    /// How many of these columns a search takes, the last of them first.
    pub(crate) rounds: usize,
}

#[cfg(target_arch = "x86_64")]
impl RankSlots {
    /// Numbers are below [`TOTAL`]: so there are 128 entries, which fill two vectors.
    pub(crate) const SHIFT: u32 = 5;

    fn new(alias: &AliasTable) -> RankSlots {
        let mut ranks = RankSlots {
            own: [0; Buckets::FEW],
            to_number: [0; Buckets::FEW],
            to_slot: [0; Buckets::FEW],
            runs: [0; TOTAL as usize >> Self::SHIFT],
            ends: [[u16::MAX; Buckets::FEW]; 6],
            rounds: 0,
        };
        let n = alias.split.len();
        if n > Buckets::FEW {
            return ranks;
        }
        let cap = TOTAL / n as u32;
        let mut of_runs: Vec<(u8, u32, u32)> = (0..n)
            .map(|b| (alias.donor[b].symbol, alias.split[b], (b as u32 + 1) * cap))
            .filter(|(_, begin, end)| begin < end)
            .collect();
        of_runs.sort();
        for (b, own) in ranks.own.iter_mut().enumerate().take(n) {
            *own = (alias.split[b] - b as u32 * cap) as u16;
        }
        let (mut ends, mut number) = (Vec::with_capacity(n), 0);
        for (run, &(symbol, begin, end)) in of_runs.iter().enumerate() {
            if run == 0 || of_runs[run - 1].0 != symbol {
                let s = usize::from(symbol);
                ranks.to_number[s] = (number as u16).wrapping_sub(ranks.own[s]);
            }
            ranks.to_slot[run] = (begin as u16).wrapping_sub(number as u16);
            number += end - begin;
            ends.push(number as u16);
        }
        let mut most = 0;
        for (i, run) in (0..).zip(&mut ranks.runs) {
            let ended =
                |numbers: u32| ends.iter().filter(|&&end| u32::from(end) <= numbers).count();
            let (first, last) = (ended(i << Self::SHIFT), ended(((i + 1) << Self::SHIFT) - 1));
            *run = first as u8;
            most = most.max(last - first);
        }
        ranks.rounds = (usize::BITS - most.leading_zeros()) as usize;
        for (k, column) in ranks.ends.iter_mut().enumerate() {
            let after = ends.iter().skip((1 << k) - 1);
            column.iter_mut().zip(after).for_each(|(to, &end)| *to = end);
        }
        ranks
    }
}

/// The fifth greatest `f32` that is at most 1 / `freq`, as its bits; 0 for a frequency of 0.
///
/// It is less than 1 / `freq` by 2^-22 to 10 * 2^-24 of that. A state as a float, and its product
/// with this one, are each wrong by at most 2^-23, however the processor rounds. So the product is
/// never more than the quotient, and less by at most 14 * 2^-24 of it. Quotients are less than
/// 2^20, so whole parts are at most one too small.
#[cfg(any(test, target_arch = "x86_64", target_arch = "aarch64"))]
fn float_inverse(freq: u16) -> u32 {
    if freq == 0 {
        return 0;
    }
    let nearest = 1.0 / f32::from(freq);
    // Exact: a product of 24 and 12 bits.
    let above = f64::from(nearest) * f64::from(freq) > 1.0;
    nearest.to_bits() - u32::from(above) - 4
}

/// Where the slots of each symbol begin in [`RankedSlots`].
fn first_slots(freqs: &[u16]) -> Vec<u16> {
    let mut sum = 0;
    let first = |&f: &u16| {
        sum += 2 * f;
        sum - 2 * f
    };
    freqs.iter().map(first).collect()
}

/// [`RankedSlots`], of symbols whose slots begin at `first`.
fn ranked_slots(first: &[u16], alias: &AliasTable) -> Box<RankedSlots> {
    let mut slots = Box::new([0; 2 * TOTAL as usize + 1]);
    alias.for_each_slot(|slot, entry, rank| {
        let at = usize::from(first[usize::from(entry.symbol)]) + rank as usize;
        slots[at] = slot as u16;
        slots[at + usize::from(entry.freq)] = (slot + TOTAL) as u16;
    });
    slots
}

#[cfg(target_arch = "x86_64")]
impl EncodeWords {
    fn new(freqs: &[u16], alias: &AliasTable) -> EncodeWords {
        let first = first_slots(freqs);
        let mut words = EncodeWords {
            freq: [0; 256],
            inverse: [[0; 256]; 2],
            first: [0; 256],
            ranks: RankSlots::new(alias),
            slots: (freqs.len() > Buckets::FEW).then(|| ranked_slots(&first, alias)),
        };
        words.first[..first.len()].copy_from_slice(&first);
        for (s, &f) in freqs.iter().enumerate() {
            words.freq[s] = 16 * f;
            let inverse = float_inverse(f);
            (words.inverse[0][s], words.inverse[1][s]) = (inverse as u16, (inverse >> 16) as u16);
        }
        words
    }
}

impl EncodeTable {
    fn new(freqs: &[u16], alias: &AliasTable) -> EncodeTable {
        let first_slots = first_slots(freqs);
        // A symbol without a frequency is never encoded. Its entry stays within the slots all the
        // same.
        let (mut reciprocal, mut fields) = ([u32::MAX; 256], [TOTAL | PRECISION << 13; 256]);
        let mut inverse = [u64::MAX / u64::from(TOTAL); 256];
        let entries = reciprocal.iter_mut().zip(&mut fields).zip(&mut inverse);
        for ((((reciprocal, fields), inverse), &f), &first) in entries.zip(freqs).zip(&first_slots)
        {
            if f > 0 {
                *inverse = u64::MAX / u64::from(f);
                let (f, k) = (u32::from(f), f.ilog2());
                *reciprocal = (((1u64 << (32 + k)) - 1) / u64::from(f)) as u32;
                *fields = f | k << 13 | u32::from(first) << 17;
            }
        }
        let bytes32 = std::array::from_fn(|j| {
            let column = if j < 4 { &reciprocal } else { &fields };
            std::array::from_fn(|symbol| column[symbol].to_le_bytes()[j % 4])
        });
        #[cfg(target_arch = "aarch64")]
        let inverse_float = std::array::from_fn(|s| freqs.get(s).map_or(0, |&f| float_inverse(f)));
        EncodeTable {
            reciprocal,
            fields,
            inverse,
            bytes32,
            #[cfg(target_arch = "aarch64")]
            bytes64: EncodeBytes::new(&fields, &inverse_float),
            #[cfg(target_arch = "aarch64")]
            inverse_float,
            slots: ranked_slots(&first_slots, alias),
        }
    }

    /// The frequency of a symbol.
    pub(crate) fn freq(&self, symbol: u8) -> u32 {
        self.fields[usize::from(symbol)] & 0x1fff
    }

    /// One step of one lane that has given its word already: x / freq << 12 | slot.
    pub(crate) fn step(&self, x: u32, symbol: u8) -> u32 {
        let (q, at) = self.divide(x, symbol);
        (q << PRECISION) + u32::from(self.slots[at])
    }

    /// The quotient, which may be one too small, and the place in the slots.
    fn divide(&self, x: u32, symbol: u8) -> (u32, usize) {
        let (fields, inverse) =
            (self.fields[usize::from(symbol)], self.inverse[usize::from(symbol)]);
        let q = ((u128::from(x) * u128::from(inverse)) >> 64) as u32;
        let r = x - q * (fields & 0x1fff);
        (q, ((fields >> 17) + r) as usize)
    }
}

/// The buckets in the forms that vector kernels look up. Aligned, so that no vector of a table lies
/// in two cache lines.
#[derive(Clone, Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // for tables in registers
#[repr(align(64))]
pub(crate) struct Buckets {
    /// For each bucket, in the high byte, how many of its slots belong to its own symbol, less one
    /// (-1 for none); in the low byte the symbol that the others belong to.
    pub(crate) last_and_donor: [u16; Buckets::MOST],
    /// What is added to the place of a donor's slot in its bucket: then it is the rank.
    pub(crate) donated: [u16; Buckets::MOST],
    /// For each symbol 16 times its frequency: what the upper half of a state is multiplied by.
    pub(crate) freq: [u16; Buckets::MOST],
    /// The first [`Buckets::FEW`] of them byte by byte.
    pub(crate) bytes: BucketBytes,
}

/// A table of 64 bytes, of which each 16 stand there twice, as shuffles within lanes of 128 bits
/// take them.
pub(crate) type Shuffled = [[[u8; 16]; 2]; Buckets::FEW / 16];

/// What [`Buckets`] holds as tables of bytes; of two bytes the lower one first.
#[derive(Clone, Debug)]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
pub(crate) struct BucketBytes {
    /// How many of the bucket's slots belong to its own symbol, less one; -1 for none.
    pub(crate) last: Shuffled,
    pub(crate) donor: Shuffled,
    pub(crate) donated: [Shuffled; 2],
    pub(crate) freq: [Shuffled; 2],
}

/// A table for shuffles.
pub(crate) fn shuffled(bytes: impl Fn(usize) -> u8) -> Shuffled {
    std::array::from_fn(|part| [std::array::from_fn(|i| bytes(16 * part + i)); 2])
}

/// The lower and the upper bytes of a column as tables.
fn both_bytes(column: &[u16; Buckets::FEW]) -> [Shuffled; 2] {
    [0, 1].map(|byte| shuffled(|i| column[i].to_le_bytes()[byte]))
}

impl Buckets {
    /// Buckets at most.
    const MOST: usize = 256;
    /// The most buckets for which there are tables of bytes, and [`RankSlots`].
    const FEW: usize = 64;

    fn new(table: &AliasTable) -> Buckets {
        let n = table.split.len();
        let cap = TOTAL / n as u32;
        let mut last = [0; Buckets::FEW];
        let mut donor = [0; Buckets::FEW];
        let [mut last_and_donor, mut donated, mut freq] = [[0; Buckets::MOST]; 3];
        for b in 0..n {
            let begin = b as u32 * cap;
            let last_of_own = ((table.split[b] - begin) as u8).wrapping_sub(1);
            let AliasEntry { symbol, delta, .. } = table.donor[b];
            last_and_donor[b] = u16::from_le_bytes([symbol, last_of_own]);
            donated[b] = (delta as u16).wrapping_add(begin as u16);
            freq[b] = 16 * table.own[b].freq;
            if b < Buckets::FEW {
                (last[b], donor[b]) = (last_of_own, symbol);
            }
        }
        let few = |column: &[u16; Buckets::MOST]| {
            both_bytes(column.first_chunk::<{ Buckets::FEW }>().expect("more than a few"))
        };
        let bytes = BucketBytes {
            last: shuffled(|b| last[b]),
            donor: shuffled(|b| donor[b]),
            donated: few(&donated),
            freq: few(&freq),
        };
        Buckets { last_and_donor, donated, freq, bytes }
    }
}

/// For every slot `freq | rank << 12 | symbol << 24`.
pub(crate) type Slots = [u32; TOTAL as usize];

/// The slots of a bucket that belong to one symbol (FORMAT.md section 7.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AliasEntry {
    /// The symbol.
    pub symbol: u8,
    /// Its frequency, 0 to 4095.
    pub freq: u16,
    /// Rank minus slot, the same for all of these slots.
    pub delta: i16,
}

impl AliasTable {
    /// Lays out `table`, whose number of symbols is a power of two. Vose's construction with two
    /// stacks, in a fixed order (FORMAT.md section 7.3).
    pub(crate) fn new(table: &FrequencyTable) -> AliasTable {
        let freqs = &table.freqs;
        let n = freqs.len();
        let cap = TOTAL / n as u32;
        let mut left: Vec<u32> = freqs.iter().map(|&f| u32::from(f)).collect();
        let (mut small, mut large) = (Vec::new(), Vec::new());
        for (symbol, &f) in left.iter().enumerate() {
            if f < cap { small.push(symbol) } else { large.push(symbol) }
        }
        let mut keep = vec![cap; n];
        let mut donor: Vec<usize> = (0..n).collect();
        while let (Some(s), Some(&l)) = (small.pop(), large.last()) {
            keep[s] = left[s];
            donor[s] = l;
            left[l] -= cap - left[s];
            if left[l] < cap {
                large.pop();
                small.push(l);
            }
        }
        let mut out = AliasTable {
            split: Vec::with_capacity(n),
            own: Vec::with_capacity(n),
            donor: Vec::with_capacity(n),
            buckets: OnceLock::new(),
            slots: OnceLock::new(),
            encode: OnceLock::new(),
            #[cfg(target_arch = "x86_64")]
            encode_words: OnceLock::new(),
        };
        // The first ranks of a symbol are the slots of its own bucket: so a kernel needs no table
        // to find them. The others follow in the order of their slots.
        let mut next_rank = keep.clone();
        for b in 0..n {
            let begin = b as u32 * cap;
            let split = begin + keep[b];
            let entry = |symbol: usize, rank: u32, slot: u32| AliasEntry {
                symbol: symbol as u8,
                freq: freqs[symbol],
                delta: (rank as i32 - slot as i32) as i16,
            };
            out.split.push(split);
            out.own.push(entry(b, 0, begin));
            out.donor.push(entry(donor[b], next_rank[donor[b]], split));
            next_rank[donor[b]] += cap - keep[b];
        }
        out
    }

    /// Calls `each` with every slot, its entry and its rank.
    fn for_each_slot(&self, mut each: impl FnMut(u32, AliasEntry, u32)) {
        let cap = TOTAL / self.split.len() as u32;
        for (b, &split) in (0..).zip(&self.split) {
            let (own, donor) = (self.own[b as usize], self.donor[b as usize]);
            for (entry, slots) in [(own, b * cap..split), (donor, split..(b + 1) * cap)] {
                for slot in slots {
                    each(slot, entry, (slot as i32 + i32::from(entry.delta)) as u32);
                }
            }
        }
    }

    /// The buckets in the forms that vector kernels load; made when first asked for.
    #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
    pub(crate) fn buckets(&self) -> &Buckets {
        self.buckets.get_or_init(|| Box::new(Buckets::new(self)))
    }

    /// What decoding one slot needs, in one word; made when first asked for.
    pub(crate) fn slots(&self) -> &Slots {
        self.slots.get_or_init(|| {
            let mut slots = Box::new([0; TOTAL as usize]);
            self.for_each_slot(|slot, entry, rank| {
                slots[slot as usize] =
                    u32::from(entry.freq) | rank << 12 | u32::from(entry.symbol) << 24;
            });
            slots
        })
    }

    /// What encoding with `table`, the one that this was made of, needs; made when first asked for.
    pub(crate) fn encode(&self, table: &FrequencyTable) -> &EncodeTable {
        self.encode.get_or_init(|| Box::new(EncodeTable::new(&table.freqs, self)))
    }

    /// [`encode`](Self::encode) for AVX-512.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn encode_words(&self, table: &FrequencyTable) -> &EncodeWords {
        self.encode_words.get_or_init(|| Box::new(EncodeWords::new(&table.freqs, self)))
    }
}

#[cfg(test)]
impl FrequencyTable {
    /// A table of `n` symbols with about as many short runs of slots one after the other as there
    /// can be: buckets that one slot of the last symbol completes, and empty ones that it fills.
    pub(crate) fn of_short_runs(n: usize) -> FrequencyTable {
        let cap = TOTAL as usize / n;
        let mut freqs = vec![0; n];
        freqs[..n / 2 - 2].fill(cap as u16 - 1);
        freqs[n - 1] = (TOTAL as usize - (n / 2 - 2) * (cap - 1)) as u16;
        FrequencyTable { freqs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> Vec<FrequencyTable> {
        let mut out = Vec::new();
        for n in [32, 64, 128, 256] {
            out.push(FrequencyTable::of_short_runs(n as usize));
            for shape in 0..6u32 {
                let counts: Vec<u32> = (0..n)
                    .map(|s: u32| match shape {
                        0 => 0,
                        1 => u32::from(s == 5) * 1000,
                        2 => 100,
                        3 => 1 << (s % 24),
                        4 => s.wrapping_mul(2654435761) >> 12,
                        _ => u32::from(s.is_multiple_of(7)) * (s + 1),
                    })
                    .collect();
                out.push(FrequencyTable::from_counts(&counts));
            }
        }
        out
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn searches_of_few_and_of_many_steps_are_tested() {
        let small = tables().into_iter().filter(|table| table.freqs.len() <= Buckets::FEW);
        let mut rounds: Vec<_> =
            small.map(|table| AliasTable::new(&table).encode_words(&table).ranks.rounds).collect();
        rounds.sort();
        rounds.dedup();
        assert_eq!(rounds, [0, 1, 2, 4, 5]);
    }

    #[test]
    fn frequencies_sum_to_4096_and_round_trip() {
        for table in tables() {
            assert_eq!(table.freqs.iter().map(|&f| u32::from(f)).sum::<u32>(), TOTAL);
            assert!(table.freqs.iter().all(|&f| u32::from(f) < TOTAL));
            let mut out = BitWriter::default();
            table.write(&mut out);
            let bytes = out.finish();
            let back = FrequencyTable::read(&mut BitReader::new(&bytes), table.freqs.len());
            assert_eq!(back.unwrap(), table);
        }
    }

    #[test]
    fn every_slot_belongs_to_one_rank() {
        for table in tables() {
            let alias = AliasTable::new(&table);
            let cap = 4096 / table.freqs.len() as u32;
            let own = |b: usize| alias.split[b] - b as u32 * cap;
            let mut seen: Vec<u32> = (0..table.freqs.len()).map(own).collect();
            for slot in 0..TOTAL {
                let (bucket, place) = ((slot / cap) as usize, slot % cap);
                let is_own = slot < alias.split[bucket];
                let entry = if is_own { alias.own[bucket] } else { alias.donor[bucket] };
                let rank = (slot as i32 + i32::from(entry.delta)) as u32;
                let packed = alias.slots()[slot as usize];
                assert_eq!(packed & 0xfff, u32::from(entry.freq));
                assert_eq!(packed >> 12 & 0xfff, rank);
                assert_eq!((packed >> 24) as u8, entry.symbol);
                if is_own {
                    assert_eq!((usize::from(entry.symbol), rank), (bucket, place));
                } else {
                    let seen = &mut seen[usize::from(entry.symbol)];
                    assert_eq!(rank, *seen, "ranks rise with the slots of donors");
                    *seen += 1;
                }
                let buckets = alias.buckets();
                let [donor, last] = buckets.last_and_donor[bucket].to_le_bytes();
                assert_eq!(is_own, place as i32 <= i32::from(last as i8));
                assert_eq!(
                    u32::from(buckets.freq[usize::from(entry.symbol)]),
                    16 * u32::from(entry.freq)
                );
                if !is_own {
                    assert_eq!(donor, entry.symbol);
                    let sum = (place as u16).wrapping_add(buckets.donated[bucket]);
                    assert_eq!(u32::from(sum), rank);
                }
                #[cfg(target_arch = "x86_64")]
                if table.freqs.len() <= Buckets::FEW {
                    let ranks = &alias.encode_words(&table).ranks;
                    // A search may take more steps than it has to.
                    for rounds in [ranks.rounds, ranks.ends.len()] {
                        let found = find_slot(ranks, rounds, table.freqs.len(), entry.symbol, rank);
                        assert_eq!(found, slot);
                    }
                }
                // Encoding undoes it: every quotient, the least and greatest among them.
                let (freq, encode) = (u32::from(entry.freq), alias.encode(&table));
                for q in [16, 17, 1000, 0xf_ffff] {
                    let x = q * freq + rank;
                    assert_eq!(encode.step(x, entry.symbol), q << PRECISION | slot);
                    let (q_found, at) = divide_like_vectors(gathered(encode, entry.symbol), x);
                    let found = (q_found << PRECISION) + u32::from(encode.slots[at]);
                    assert_eq!(found, q << PRECISION | slot);
                }
            }
            for (s, &f) in table.freqs.iter().enumerate() {
                assert_eq!(seen[s], u32::from(f));
            }
        }
    }

    /// The slot of a rank as vectors find it.
    #[cfg(target_arch = "x86_64")]
    fn find_slot(ranks: &RankSlots, rounds: usize, n_symbols: usize, symbol: u8, rank: u32) -> u32 {
        let (s, rank) = (usize::from(symbol), rank as u16);
        if rank < ranks.own[s] {
            return u32::from(symbol) * (TOTAL / n_symbols as u32) + u32::from(rank);
        }
        let number = rank.wrapping_add(ranks.to_number[s]);
        let mut run = usize::from(ranks.runs[usize::from(number >> RankSlots::SHIFT)]);
        for k in (0..rounds).rev() {
            run += usize::from(number >= ranks.ends[k][run]) << k;
        }
        number.wrapping_add(ranks.to_slot[run]).into()
    }

    /// Reciprocal and fields of a symbol as vectors gather them.
    fn gathered(table: &EncodeTable, symbol: u8) -> [u32; 2] {
        [&table.reciprocal, &table.fields].map(|column| column[usize::from(symbol)])
    }

    /// The same as shuffles put them together, which look at the low 5 bits of a symbol.
    fn shuffled(table: &EncodeTable, symbol: u8) -> [u32; 2] {
        let bytes = table.bytes32.map(|bytes| bytes[usize::from(symbol % 32)]);
        let (reciprocal, fields) = bytes.split_at(4);
        [reciprocal, fields].map(|word| u32::from_le_bytes(word.try_into().unwrap()))
    }

    /// [`EncodeTable::divide`] by a product of 32 bits.
    fn divide_like_vectors([reciprocal, fields]: [u32; 2], x: u32) -> (u32, usize) {
        let high = (u64::from(x) * u64::from(reciprocal)) >> 32;
        let q = (high >> (fields >> 13 & 15)) as u32;
        (q, ((fields >> 17) + (x - q * (fields & 0x1fff))) as usize)
    }

    /// The number as a float, rounded down, to the nearest, and up.
    fn rounded(number: f64) -> [f64; 3] {
        let nearest = number as f32;
        let [down, up] = [f64::from(nearest) > number, f64::from(nearest) < number];
        let moved = [nearest.to_bits() - u32::from(down), nearest.to_bits() + u32::from(up)];
        let [down, up] = moved.map(|bits| f64::from(f32::from_bits(bits)));
        [down, nearest.into(), up]
    }

    /// The quotient as a product of floats, both rounded in each way.
    fn divide_like_floats(inverse: u32, x: u32) -> [u32; 3] {
        let states = rounded(x.into());
        // Products of two numbers of 24 bits are exact here.
        let product = |i: usize| states[i] * f64::from(f32::from_bits(inverse));
        std::array::from_fn(|i| rounded(product(i))[i] as u32)
    }

    #[test]
    fn quotients_of_floats_are_at_most_one_too_small() {
        for freq in 1..TOTAL {
            let inverse = float_inverse(freq as u16);
            let [fourth, fifth] = [4, 5].map(|i| f64::from(f32::from_bits(inverse + i)));
            assert!(fourth * f64::from(freq) <= 1.0 && fifth * f64::from(freq) > 1.0);
            // Around multiples, where the quotient changes: the least, the greatest, and some
            // between them.
            for q in (16..32).chain((5..20).map(|k| 1 << k)).chain((1 << 20) - 16..1 << 20) {
                for x in (q * freq).saturating_sub(1)..=q * freq + 1 {
                    for found in divide_like_floats(inverse, x) {
                        let q = x / freq;
                        assert!(found == q || found + 1 == q, "{x} / {freq}: {found}");
                    }
                }
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn words_are_those_of_the_table() {
        for table in tables() {
            let alias = AliasTable::new(&table);
            let (encode, words) = (alias.encode(&table), alias.encode_words(&table));
            for (s, &freq) in table.freqs.iter().enumerate() {
                assert_eq!(words.freq[s], 16 * freq);
                let [lower, upper] = words.inverse.map(|half| u32::from(half[s]));
                assert_eq!(upper << 16 | lower, float_inverse(freq));
                assert!(freq == 0 || u32::from(words.first[s]) == encode.fields[s] >> 17);
            }
            let expected = (table.freqs.len() > 64).then_some(&encode.slots);
            assert!(words.slots.as_ref() == expected);
        }
    }

    /// Vectors look slots up without a check.
    #[test]
    fn no_state_and_no_symbol_leads_out_of_the_slots() {
        for table in tables() {
            let alias = AliasTable::new(&table);
            let encode = alias.encode(&table);
            for symbol in 0..=255 {
                if symbol < 32 {
                    assert_eq!(shuffled(encode, symbol), gathered(encode, symbol));
                }
                let powers = (0..32).flat_map(|i| [(1 << i) - 1, 1 << i, 3 << i]);
                for x in powers.chain([u32::MAX, u32::MAX - 4095, u32::MAX - 4096]) {
                    // What the lane keeps after it gave a word where it had to.
                    let kept = |freq| if x >> (32 - PRECISION) >= freq { x >> 16 } else { x };
                    let (_, at) = encode.divide(kept(encode.freq(symbol)), symbol);
                    assert!(at < encode.slots.len() - 1, "symbol {symbol}, state {x}");
                    for entry in [gathered(encode, symbol), shuffled(encode, symbol)] {
                        let (_, at) = divide_like_vectors(entry, kept(entry[1] & 0x1fff));
                        assert!(at < encode.slots.len() - 1, "symbol {symbol}, state {x}");
                    }
                }
            }
        }
    }

    #[test]
    fn logarithms_are_within_one_unit() {
        for f in 1..=TOTAL {
            let exact = f64::from(f).log2() * f64::from(1 << LOG_FRACTION);
            let ours = f64::from(LOG2[f as usize]);
            assert!(ours <= exact + 1e-6 && exact - ours < 2.0, "{f}: {ours} {exact}");
        }
    }
}
