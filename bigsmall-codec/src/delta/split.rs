//! Values to symbols, low planes and extra bits, and the choice of tables: plain loops, which
//! backends compile for their instructions.

use super::bits::BitSink;
use super::head::{Head, Table};
use super::values::{Word, for_unit};
use crate::planes::{self, GROUP};

/// The cost of what a table does not code, in 2^-8 bits.
const OUTSIDE_COST: u32 = 32 << 8;

/// What splits the values of one tensor.
pub(crate) struct Splitter {
    tables: Vec<Coder>,
    /// For each class the tables that are considered.
    of_class: Vec<Vec<u8>>,
}

/// What encoding with a table needs.
struct Coder {
    shift: u32,
    lo: u64,
    /// For each symbol whether the table codes it.
    coded: [bool; 64],
    /// The near values that it does not code, a bit for each.
    not_coded: u32,
    /// What it costs, with its extra bits and the shifted ones, in 2^-8 bits.
    cost: [u32; 64],
}

impl Splitter {
    /// `of_class` says for each class which tables are considered.
    pub(crate) fn new(head: &Head, of_class: Vec<Vec<u8>>) -> Splitter {
        let tables = head.tables.iter().map(|table| Coder::new(head, table)).collect();
        Splitter { tables, of_class }
    }

    /// Splits the values of a block, which have the classes of `starts`, into the parts of a coded
    /// block. `at_least` says which of 32 bytes are at least a power of two.
    #[inline(always)]
    pub(crate) fn split(
        &self,
        head: &Head,
        values: &[u8],
        starts: &[usize; 8],
        parts: Parts<'_>,
        at_least: impl Fn(&[u8; 32], u32) -> u32,
    ) {
        for_unit!(head.unit_bytes, split(head, self, values, starts, parts, &at_least));
    }

    /// The table of a segment, whose values have the places `place` in the order of classes.
    #[inline(always)]
    fn choose_table<W: Word>(
        &self,
        head: &Head,
        values: &[W],
        place: std::ops::Range<usize>,
        (starts, n): (&[usize; 8], usize),
        at_least: &impl Fn(&[u8; 32], u32) -> u32,
    ) -> u8 {
        let mut candidates = 0u32;
        for class in 0..self.of_class.len() {
            let end = starts.get(class + 1).copied().unwrap_or(n);
            if starts[class] < place.end && end > place.start {
                for id in &self.of_class[class] {
                    candidates |= 1 << id;
                }
            }
        }
        if candidates.count_ones() <= 1 {
            return candidates.trailing_zeros() as u8 % 32;
        }
        // Tables that differ in their frequencies alone share the counts of symbols.
        let mut counts = [0; 64];
        let mut counted: Option<&Coder> = None;
        let mut least = (u32::MAX, 0);
        for (id, table) in (0..).zip(&self.tables) {
            if candidates >> id & 1 == 0 {
                continue;
            }
            if counted.is_none_or(|of| (of.shift, of.lo) != (table.shift, table.lo)) {
                counts = table.count(head, values, at_least);
                counted = Some(table);
            }
            // At most 2^16 values, each of less than 2^16.
            let cost = counts.iter().zip(&table.cost).map(|(n, cost)| n * cost).sum();
            if cost < least.0 {
                least = (cost, id);
            }
        }
        least.1
    }
}

/// What a block's values are split into.
pub(crate) struct Parts<'a> {
    /// One for each value.
    pub(crate) symbols: &'a mut [u8],
    pub(crate) table_ids: &'a mut Vec<u8>,
    pub(crate) group_tables: &'a mut Vec<u8>,
    pub(crate) lows: &'a mut Vec<u8>,
    pub(crate) extra: &'a mut BitSink,
}

#[inline(always)]
fn split<W: Word>(
    head: &Head,
    splitter: &Splitter,
    values: &[u8],
    starts: &[usize; 8],
    parts: Parts<'_>,
    at_least: &impl Fn(&[u8; 32], u32) -> u32,
) {
    let values: &[W] = bytemuck::cast_slice(values);
    let n = values.len();
    let Parts { symbols, table_ids, group_tables, lows, extra } = parts;
    table_ids.clear();
    group_tables.clear();
    lows.clear();
    extra.clear();
    let mut begin = 0;
    for (values, symbols) in values.chunks(head.segment).zip(symbols.chunks_mut(head.segment)) {
        let place = begin..begin + values.len();
        begin = place.end;
        let id = splitter.choose_table(head, values, place, (starts, n), at_least);
        table_ids.push(id);
        let table = &splitter.tables[usize::from(id)];
        for (values, symbols) in
            values.as_chunks::<GROUP>().0.iter().zip(symbols.as_chunks_mut::<GROUP>().0)
        {
            group_tables.push(id);
            table.split(head, values, symbols, extra, at_least);
            if table.shift > 0 {
                let lo = W::from_u64(table.lo);
                planes::pack_lows(|i| values[i].above(lo) as u64, table.shift, lows);
            }
        }
    }
}

/// The symbol of a value that is `y` steps above `lo`, and its extra bits; the last symbol is for
/// all that has no other.
#[inline(always)]
pub(crate) fn symbol_of(y: i64, near: u32, logs: u32) -> (u8, u32) {
    if (0..i64::from(near)).contains(&y) {
        return (y as u8, 0);
    }
    let (side, a) =
        if y < 0 { (logs, y.unsigned_abs()) } else { (0, (y as u64) - u64::from(near) + 1) };
    let log = a.ilog2();
    let symbol = near + side + log;
    if log < logs && symbol < near + 2 * logs - 1 {
        (symbol as u8, log)
    } else {
        ((near + 2 * logs - 1) as u8, u32::MAX)
    }
}

impl Coder {
    fn new(head: &Head, table: &Table) -> Coder {
        let (near, logs) = (head.n_near(), head.n_logs());
        let (mut coded, mut cost) = ([false; 64], [OUTSIDE_COST; 64]);
        let freqs = table.frequencies.freqs();
        for (s, (&f, bits)) in freqs.iter().zip(table.frequencies.costs()).enumerate() {
            let log = (s as u32).saturating_sub(near);
            let extra = match log {
                _ if s as u32 == near + 2 * logs - 1 => 8 * head.unit_bytes as u32 - table.shift,
                _ if log >= logs => log - logs,
                _ => log,
            };
            coded[s] = f > 0;
            cost[s] = if f > 0 { u32::from(bits) + (extra << 8) } else { OUTSIDE_COST };
            cost[s] += table.shift << 8;
        }
        let not_coded = (0..near).filter(|&s| !coded[s as usize]).map(|s| 1 << s).sum();
        Coder { shift: table.shift, lo: table.lo, coded, not_coded, cost }
    }

    /// How often each symbol stands for one of the values.
    #[inline(always)]
    fn count<W: Word>(
        &self,
        head: &Head,
        values: &[W],
        at_least: &impl Fn(&[u8; 32], u32) -> u32,
    ) -> [u32; 64] {
        let (near, logs) = (head.n_near(), head.n_logs());
        let lo = W::from_u64(self.lo);
        let mut counts = [[0u32; 64]; 2];
        let mut symbols = [0; 32];
        for values in values.as_chunks::<32>().0 {
            W::steps(values, lo, self.shift, &mut symbols);
            let mut outside = at_least(&symbols, near);
            while outside != 0 {
                let i = outside.trailing_zeros() as usize;
                outside &= outside - 1;
                symbols[i] = symbol_of(values[i].above(lo) >> self.shift, near, logs).0;
            }
            for pair in symbols.as_chunks::<2>().0 {
                counts[0][usize::from(pair[0] & 63)] += 1;
                counts[1][usize::from(pair[1] & 63)] += 1;
            }
        }
        let [mut sums, others] = counts;
        for s in 0..64 {
            sums[s] += others[s];
        }
        sums
    }

    /// The symbols of a group, and their extra bits.
    #[inline(always)]
    fn split<W: Word>(
        &self,
        head: &Head,
        values: &[W; GROUP],
        symbols: &mut [u8; GROUP],
        extra: &mut BitSink,
        at_least: &impl Fn(&[u8; 32], u32) -> u32,
    ) {
        let (near, logs) = (head.n_near(), head.n_logs());
        let lo = W::from_u64(self.lo);
        let last = near + 2 * logs - 1;
        for (values, symbols) in
            values.as_chunks::<32>().0.iter().zip(symbols.as_chunks_mut::<32>().0)
        {
            W::steps(values, lo, self.shift, symbols);
            let mut outside = at_least(symbols, near);
            if self.not_coded != 0 {
                for (i, &symbol) in symbols.iter().enumerate() {
                    outside |= (self.not_coded >> (symbol & 31) & 1) << i;
                }
            }
            while outside != 0 {
                let i = outside.trailing_zeros() as usize;
                outside &= outside - 1;
                let y = values[i].above(lo) >> self.shift;
                let (symbol, n) = symbol_of(y, near, logs);
                if n == u32::MAX || !self.coded[usize::from(symbol & 63)] {
                    symbols[i] = last as u8;
                    extra.push(y as u64, W::BITS - self.shift);
                } else {
                    symbols[i] = symbol;
                    let a = if y < 0 {
                        y.unsigned_abs()
                    } else {
                        (y as u64).wrapping_sub(u64::from(near) - 1)
                    };
                    extra.push(a, n);
                }
            }
        }
    }
}
