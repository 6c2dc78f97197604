//! Units and the base's units to blocks.

use bigsmall_format::Result;
use bigsmall_format::internal::{Ahead, reserve, set_len};

use super::bits::BitSink;
use super::classes::Classes;
use super::head::{Head, Table};
use super::kinds::{KIND_CODED, KIND_SPARSE, KIND_SPARSE_BY_CLASS};
use super::sparse::{self, Change};
use super::values::Word;
use crate::block::{CARRIED, HEADER, pad4, states_with, write_raw, write_states};
use crate::kernels::{EncodeJob, Kernels, ROOM};
use crate::planes::{self, GROUP};

/// If more than one unit in so many differs from the base's, a sparse block is not tried.
const SPARSE_ABOVE: usize = 12;
/// If no more than one unit in so many differs, a coded block is not tried.
const CODED_BELOW: usize = 200;
/// The cost of what a table does not code, in 2^-8 bits.
const OUTSIDE_COST: u32 = 32 << 8;

/// Encodes the blocks of one tensor.
pub(crate) struct Encoder {
    pub(crate) head: Head,
    kernels: &'static dyn Kernels,
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
    /// Whether it codes all near values.
    all_near: bool,
    /// What it costs, with its extra bits and the shifted ones, in 2^-8 bits.
    cost: [u32; 64],
}

/// Memory that is kept between calls.
#[derive(Default)]
pub(crate) struct Scratch {
    classes: Vec<u8>,
    values: Vec<u64>,
    symbols: Vec<u8>,
    table_ids: Vec<u8>,
    group_tables: Vec<u8>,
    words: Vec<u16>,
    lows: Vec<u8>,
    extra: BitSink,
    changes: Vec<Change>,
    sparse: [BitSink; 2],
}

impl Encoder {
    /// `of_class` says for each class which tables are considered.
    pub(crate) fn new(
        head: Head,
        of_class: Vec<Vec<u8>>,
        kernels: &'static dyn Kernels,
    ) -> Encoder {
        let tables = head.tables.iter().map(|table| Coder::new(&head, table)).collect();
        Encoder { head, kernels, tables, of_class }
    }

    /// Appends the block of `units` against `base` to `out`, padded to a multiple of 8 bytes;
    /// returns its length without the padding.
    pub(crate) fn encode<W: Word>(
        &self,
        units: &[u8],
        base: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Result<u32> {
        let begin = out.len();
        if units == base {
            return Ok(0);
        }
        let n_units = units.len() / size_of::<W>();
        let n_changed = W::count_changed(units, base);
        // At worst a raw block, and its padding.
        reserve(out, HEADER + units.len() + 8)?;
        let mut sparse = None;
        if n_changed <= n_units / SPARSE_ABOVE + 4 {
            let by_class = self.find_changes::<W>(units, base, scratch)?;
            sparse = Some((by_class, scratch.sparse[usize::from(by_class)].bytes.len()));
        }
        let tried = n_units >= GROUP && !self.head.tables.is_empty();
        if tried && (sparse.is_none() || n_changed > n_units / CODED_BELOW) {
            self.write_coded::<W>(units, base, scratch, out)?;
        }
        let coded = out.len() - begin;
        match sparse {
            Some((by_class, len))
                if 1 + len < HEADER + units.len() && (coded == 0 || len < coded) =>
            {
                out.truncate(begin);
                out.push(if by_class { KIND_SPARSE_BY_CLASS } else { KIND_SPARSE });
                out.extend_from_slice(&scratch.sparse[usize::from(by_class)].bytes);
            }
            _ if coded == 0 || coded >= HEADER + units.len() => {
                out.truncate(begin);
                write_raw(units, out);
            }
            _ => {}
        }
        let len = (out.len() - begin) as u32;
        out.resize(out.len().next_multiple_of(8), 0);
        Ok(len)
    }

    /// Writes both forms of a sparse block into the scratch; returns whether that by classes is
    /// the smaller one.
    fn find_changes<W: Word>(
        &self,
        units: &[u8],
        base: &[u8],
        scratch: &mut Scratch,
    ) -> Result<bool> {
        let Scratch { classes, changes, sparse, .. } = scratch;
        let is_float = self.head.field.is_float();
        changes.clear();
        sparse.iter_mut().for_each(BitSink::clear);
        let by_class = self.head.sparse;
        let mut ranks = [0u32; 16];
        let piece = GROUP * size_of::<W>();
        set_len(classes, GROUP)?;
        for (group, (units, base)) in units.chunks(piece).zip(base.chunks(piece)).enumerate() {
            let n = units.len() / size_of::<W>();
            let classes = &mut classes[..n];
            W::classes(by_class, self.head.field, base, classes);
            if units == base {
                let mut counts = [[0u8; 2]; 16];
                for pair in classes.chunks(2) {
                    // A byte can count half a group.
                    for (i, &class) in pair.iter().enumerate() {
                        counts[usize::from(class & 15)][i] += 1;
                    }
                }
                for (rank, of_class) in ranks.iter_mut().zip(counts) {
                    *rank += u32::from(of_class[0]) + u32::from(of_class[1]);
                }
                continue;
            }
            reserve(changes, n)?;
            let pairs = units.chunks_exact(size_of::<W>()).zip(base.chunks_exact(size_of::<W>()));
            for (i, ((unit, base), &class)) in pairs.zip(&*classes).enumerate() {
                let rank = &mut ranks[usize::from(class & 15)];
                let (unit, base) = (W::read(unit), W::read(base));
                if unit != base {
                    let signed = W::difference(base, unit, is_float).above(W::default());
                    changes.push(Change {
                        position: (group * GROUP + i) as u32,
                        rank: *rank,
                        class,
                        is_less: signed < 0,
                        distance: signed.unsigned_abs(),
                    });
                }
                *rank += 1;
            }
        }
        let [natural, classed] = sparse;
        sparse::write(changes, natural);
        natural.finish();
        if by_class.n == 1 {
            return Ok(false);
        }
        changes.sort_unstable_by_key(|change| (change.class, change.position));
        sparse::write_by_class(by_class.n, changes, classed);
        classed.finish();
        Ok(classed.bytes.len() < natural.bytes.len())
    }

    fn write_coded<W: Word>(
        &self,
        units: &[u8],
        base: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let Encoder { head, kernels, .. } = self;
        let n_groups = units.len() / size_of::<W>() / GROUP;
        let n = n_groups * GROUP;
        let (units, tail) = units.split_at(n * size_of::<W>());
        let base = &base[..units.len()];
        let Scratch {
            classes, values, symbols, table_ids, group_tables, words, lows, extra, ..
        } = scratch;
        set_len(classes, n)?;
        W::classes(head.classes, head.field, base, classes);
        let classes = &classes[..n];
        let starts = Classes::starts(classes);
        set_len(values, n.div_ceil(8 / size_of::<W>()))?;
        let values: &mut [W] = &mut bytemuck::cast_slice_mut(values)[..n];
        W::partition(head, classes, &mut starts.clone(), units, base, values);
        let starts = starts[0];

        set_len(symbols, n)?;
        table_ids.clear();
        group_tables.clear();
        lows.clear();
        extra.clear();
        for (i, (values, symbols)) in
            values.chunks(head.segment).zip(symbols[..n].chunks_mut(head.segment)).enumerate()
        {
            let place = i * head.segment..i * head.segment + values.len();
            let id = self.choose_table(values, place, (&starts, n));
            table_ids.push(id);
            group_tables.extend(values.chunks(GROUP).map(|_| id));
            let table = &self.tables[usize::from(id)];
            for (values, symbols) in
                values.as_chunks::<GROUP>().0.iter().zip(symbols.as_chunks_mut::<GROUP>().0)
            {
                table.split(head, values, symbols, extra);
                let lo = W::from_u64(table.lo);
                planes::pack_lows(|i| values[i].above(lo) as u64, table.shift, lows);
            }
        }
        extra.finish();
        let n_carried = extra.bytes.len().min(CARRIED);
        let (kept, carried) = extra.bytes.split_at(extra.bytes.len() - n_carried);
        let mut states = states_with(carried);
        set_len(words, n + ROOM)?;
        let mut begin = 0;
        let mut jobs = [EncodeJob {
            symbols: &symbols[..n],
            group_tables,
            states: &mut states,
            words: &mut words[..n + ROOM],
            begin: &mut begin,
            ahead: Ahead::default(),
        }];
        kernels.encode(&head.ans, &mut jobs);

        let words = &mut words[begin..n + ROOM];
        reserve(out, 2 * words.len() + lows.len() + kept.len() + tail.len() + 4096)?;
        out.extend_from_slice(&[KIND_CODED, n_carried as u8, 0, 0]);
        out.extend_from_slice(&(words.len() as u32).to_le_bytes());
        write_states(&states, out);
        words.iter_mut().for_each(|w| *w = w.to_le());
        out.extend_from_slice(bytemuck::cast_slice(words));
        pad4(out);
        let mut bits = BitSink::default();
        table_ids.iter().for_each(|&id| bits.push(u64::from(id), head.table_id_bits()));
        out.extend_from_slice(bits.finish());
        pad4(out);
        out.extend_from_slice(lows);
        out.extend_from_slice(tail);
        out.extend_from_slice(kept);
        Ok(())
    }

    /// The table of a segment, whose values have the places `place` in the order of classes.
    fn choose_table<W: Word>(
        &self,
        values: &[W],
        place: std::ops::Range<usize>,
        (starts, n): (&[usize; 8], usize),
    ) -> u8 {
        let end = |class: usize| starts.get(class + 1).copied().unwrap_or(n);
        let touched = |&class: &usize| starts[class] < place.end && end(class) > place.start;
        let mut candidates = 0u32;
        for class in (0..self.of_class.len()).filter(touched) {
            self.of_class[class].iter().for_each(|&id| candidates |= 1 << id);
        }
        let ids = (0..self.tables.len() as u8).filter(|&id| candidates >> id & 1 == 1);
        if candidates.count_ones() == 1 {
            return candidates.trailing_zeros() as u8;
        }
        // Tables that differ in their frequencies alone share the counts of symbols.
        let mut counted: Option<(&Coder, [u32; 64])> = None;
        let cost = |id: u8| {
            let table = &self.tables[usize::from(id)];
            let counts = match counted.take() {
                Some((of, counts)) if (of.shift, of.lo) == (table.shift, table.lo) => counts,
                _ => table.count(&self.head, values),
            };
            counted = Some((table, counts));
            counts.iter().zip(&table.cost).map(|(&n, &cost)| u64::from(n) * u64::from(cost)).sum()
        };
        ids.clone().map(cost).zip(ids).min().map_or(0, |(_, id): (u64, u8)| id)
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
        let all_near = coded[..near as usize].iter().all(|&coded| coded);
        Coder { shift: table.shift, lo: table.lo, coded, all_near, cost }
    }

    /// How often each symbol stands for one of the values.
    fn count<W: Word>(&self, head: &Head, values: &[W]) -> [u32; 64] {
        let (near, logs) = (head.n_near(), head.n_logs());
        let lo = W::from_u64(self.lo);
        let mut counts = [[0u32; 64]; 2];
        let mut symbols = [0; 32];
        for values in values.as_chunks::<32>().0 {
            let mut outside = W::steps(values, lo, self.shift, near, &mut symbols);
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
        let [a, b] = counts;
        std::array::from_fn(|s| a[s] + b[s])
    }

    /// The symbols of a group, and their extra bits.
    #[inline(always)]
    fn split<W: Word>(
        &self,
        head: &Head,
        values: &[W; GROUP],
        symbols: &mut [u8; GROUP],
        extra: &mut BitSink,
    ) {
        let (near, logs) = (head.n_near(), head.n_logs());
        let lo = W::from_u64(self.lo);
        let last = near + 2 * logs - 1;
        for (values, symbols) in
            values.as_chunks::<32>().0.iter().zip(symbols.as_chunks_mut::<32>().0)
        {
            let mut outside = W::steps(values, lo, self.shift, near, symbols);
            if !self.all_near {
                outside = u32::MAX;
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
