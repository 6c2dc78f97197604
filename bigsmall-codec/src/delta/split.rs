//! Values to symbols, low planes and extra bits, and the choice of tables: plain loops, which
//! backends compile for their instructions.

use super::bits::BitSink;
use super::head::{Head, Table};
use super::values::{Word, for_unit, symbols_of};
use crate::head::MAX_TABLES;
use crate::planes::{self, GROUP};

/// The cost of what a table does not code, in 2^-8 bits.
const OUTSIDE_COST: u32 = 32 << 8;

/// What splits the values of one tensor.
pub(crate) struct Splitter {
    tables: Vec<Coder>,
    /// For each class the tables that are considered.
    of_class: Vec<Vec<u8>>,
    /// What symbols cost, with their extra bits and the shifted ones, in 2^-8 bits, by each table.
    costs: Box<[[u32; MAX_TABLES]; 64]>,
}

/// What encoding with a table needs.
struct Coder {
    shift: u32,
    lo: u64,
    /// For each symbol whether the table codes it.
    coded: [bool; 64],
    /// All near values from `first` to `first + span` are coded.
    first: u8,
    span: u8,
    /// For each symbol its extra bits: their number, and what they are counted from, up or down.
    extra: [(u32, u64, u64); 64],
}

impl Splitter {
    /// `of_class` says for each class which tables are considered.
    pub(crate) fn new(head: &Head, of_class: Vec<Vec<u8>>) -> Splitter {
        let mut costs = Box::new([[0; MAX_TABLES]; 64]);
        let tables = (0..).zip(&head.tables);
        let tables = tables.map(|(id, table)| Coder::new(head, table, id, &mut costs)).collect();
        Splitter { tables, of_class, costs }
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

    /// The table of a segment, whose values have the places `place` in the order of classes, and
    /// their symbols, whether or not it codes them.
    #[inline(always)]
    fn choose_table<W: Word>(
        &self,
        head: &Head,
        values: &[W],
        symbols: &mut [u8],
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
        let mut id = candidates.trailing_zeros() as usize % MAX_TABLES;
        self.tables[id].find_symbols(head, values, symbols, at_least);
        if candidates.count_ones() <= 1 {
            return id as u8;
        }
        // Tables that differ in their frequencies alone share symbols.
        let mut least = (u32::MAX, 0);
        loop {
            let table = &self.tables[id];
            let sums = self.sum(symbols);
            for (other, sum) in (0..).zip(sums) {
                if candidates >> other & 1 == 1 && table.is_like(&self.tables[other]) {
                    candidates &= !(1 << other);
                    least = least.min((sum, other));
                }
            }
            let best = &self.tables[least.1];
            if candidates == 0 {
                if !best.is_like(table) {
                    best.find_symbols(head, values, symbols, at_least);
                }
                return least.1 as u8;
            }
            id = candidates.trailing_zeros() as usize;
            self.tables[id].find_symbols(head, values, symbols, at_least);
        }
    }

    /// What symbols cost by each table: at most 2^16 of them, each of less than 2^16. Inlined, the
    /// sums are not kept in vectors.
    #[inline(never)]
    fn sum(&self, symbols: &[u8]) -> [u32; MAX_TABLES] {
        let mut sums = [0; MAX_TABLES];
        for &symbol in symbols {
            let costs = &self.costs[usize::from(symbol & 63)];
            for t in 0..MAX_TABLES {
                sums[t] += costs[t];
            }
        }
        sums
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
    // A sink of its own stays in registers.
    let mut bits = std::mem::take(extra);
    bits.clear();
    let mut begin = 0;
    for (values, symbols) in values.chunks(head.segment).zip(symbols.chunks_mut(head.segment)) {
        let place = begin..begin + values.len();
        begin = place.end;
        let classes = (starts, n);
        let id = splitter.choose_table(head, values, symbols, place, classes, at_least);
        table_ids.push(id);
        let table = &splitter.tables[usize::from(id)];
        for (values, symbols) in
            values.as_chunks::<GROUP>().0.iter().zip(symbols.as_chunks_mut::<GROUP>().0)
        {
            group_tables.push(id);
            table.push_extra(head, values, symbols, &mut bits, at_least);
            if table.shift > 0 {
                let lo = W::from_u64(table.lo);
                planes::pack_lows(|i| values[i].above(lo) as u64, table.shift, lows);
            }
        }
    }
    *extra = bits;
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

/// What a symbol that is no near value stands for: a number of extra bits, added to or subtracted
/// from a first step.
#[derive(Clone, Copy)]
pub(crate) struct Large {
    /// Extra bits; `u32::MAX` for all bits of a step.
    pub(crate) n: u32,
    pub(crate) first: u64,
    /// All ones if the bits are subtracted.
    pub(crate) minus: u64,
}

impl Large {
    /// Zeros for a near value.
    pub(crate) fn of(head: &Head, symbol: u32) -> Large {
        let (near, logs) = (head.n_near(), head.n_logs());
        let (n, first, minus) = match symbol.checked_sub(near) {
            None => (0, 0, 0),
            Some(log) if log < logs => (log, u64::from(near) - 1 + (1 << log), 0),
            Some(log) if log < 2 * logs - 1 => {
                (log - logs, (1u64 << (log - logs)).wrapping_neg(), u64::MAX)
            }
            // Behind the last symbol there is none.
            Some(_) => (u32::MAX, 0, 0),
        };
        Large { n, first, minus }
    }
}

impl Coder {
    /// `costs` are those of all tables.
    fn new(head: &Head, table: &Table, id: usize, costs: &mut [[u32; MAX_TABLES]; 64]) -> Coder {
        let near = head.n_near();
        let (mut coded, mut extra) = ([false; 64], [(0, 0, 0); 64]);
        let freqs = table.frequencies.freqs();
        for (s, (&f, bits)) in freqs.iter().zip(table.frequencies.costs()).enumerate() {
            let Large { n, first, minus } = Large::of(head, s as u32);
            let all = 8 * head.unit_bytes as u32 - table.shift;
            extra[s] = (if n == u32::MAX { all } else { n }, first, minus);
            coded[s] = f > 0;
            let cost = if f > 0 { u32::from(bits) + (extra[s].0 << 8) } else { OUTSIDE_COST };
            costs[s][id] = cost + (table.shift << 8);
        }
        let is_coded = |s: &usize| coded[*s];
        let common = (0..near as usize).max_by_key(|&s| freqs[s]).unwrap_or(0);
        let below = (0..common).rev().take_while(is_coded).count();
        let above = (common + 1..near as usize).take_while(is_coded).count();
        let (first, span) = ((common - below) as u8, (below + above) as u8);
        Coder { shift: table.shift, lo: table.lo, coded, first, span, extra }
    }

    /// Whether the tables have the same symbols.
    fn is_like(&self, other: &Coder) -> bool {
        (self.shift, self.lo) == (other.shift, other.lo)
    }

    /// The symbols of values, whether or not the table codes them.
    #[inline(always)]
    fn find_symbols<W: Word>(
        &self,
        head: &Head,
        values: &[W],
        symbols: &mut [u8],
        at_least: &impl Fn(&[u8; 32], u32) -> u32,
    ) {
        let steps = (W::from_u64(self.lo), self.shift);
        symbols_of(values, steps, (head.n_near(), head.n_logs()), symbols, at_least);
    }

    /// Appends the extra bits of a group, and replaces symbols that the table does not code.
    #[inline(always)]
    fn push_extra<W: Word>(
        &self,
        head: &Head,
        values: &[W; GROUP],
        symbols: &mut [u8; GROUP],
        extra: &mut BitSink,
        at_least: &impl Fn(&[u8; 32], u32) -> u32,
    ) {
        let last = 2 * head.n_near() as u8 - 1;
        let lo = W::from_u64(self.lo);
        for (values, symbols) in
            values.as_chunks::<32>().0.iter().zip(symbols.as_chunks_mut::<32>().0)
        {
            // Those that have extra bits or may not be coded.
            let mut far = [0; 32];
            for (far, symbol) in far.iter_mut().zip(&*symbols) {
                *far = u8::from(symbol.wrapping_sub(self.first) > self.span);
            }
            let mut which = at_least(&far, 1);
            while which != 0 {
                let i = which.trailing_zeros() as usize;
                which &= which - 1;
                let y = values[i].above(lo) >> self.shift;
                let symbol = &mut symbols[i];
                if !self.coded[usize::from(*symbol & 63)] {
                    *symbol = last;
                }
                let (n, first, minus) = self.extra[usize::from(*symbol & 63)];
                extra.push(((y as u64).wrapping_sub(first) ^ minus).wrapping_sub(minus), n);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare<W: Word>(random: &mut impl FnMut() -> u64) {
        for (near, logs) in [(16, 8), (32, 16)] {
            for shift in [0, 1, 3, W::BITS - 6, W::BITS - 1] {
                let lo = W::from_u64(random());
                let values: [W; GROUP] = std::array::from_fn(|i| {
                    // Near ones, far ones, and the borders of logarithms.
                    let d = random() >> (random() % 64);
                    let d = if i % 4 == 0 { 1 << (random() % 20) } else { d } + random() % 3;
                    let d = d.wrapping_sub(1) << shift;
                    lo.plus_shifted(if i % 2 == 0 { d } else { d.wrapping_neg() }, 0)
                });
                let (mut steps, mut symbols) = ([0; GROUP], [0; GROUP]);
                W::steps(&values, lo, shift, &mut steps);
                for (values, symbols) in values.as_chunks().0.iter().zip(symbols.as_chunks_mut().0)
                {
                    W::symbols(values, lo, shift, (near, logs), symbols);
                }
                for ((value, step), found) in values.iter().zip(steps).zip(symbols) {
                    let expected = symbol_of(value.above(lo) >> shift, near, logs).0;
                    assert_eq!(found, expected, "{value:?} {lo:?} {shift} {near}");
                    let is_near = u32::from(expected) < near;
                    assert_eq!(is_near, u32::from(step) < near, "{value:?} {lo:?} {shift}");
                    assert!(!is_near || step == expected);
                }
            }
        }
    }

    #[test]
    fn symbols_of_vectors_are_those_of_values() {
        let mut state = 3u64;
        let mut random = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            state >> 32 ^ state << 32
        };
        for _ in 0..100 {
            compare::<u8>(&mut random);
            compare::<u16>(&mut random);
            compare::<u32>(&mut random);
            compare::<u64>(&mut random);
        }
    }
}
