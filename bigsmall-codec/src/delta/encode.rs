//! Units and the base's units to blocks.

use bigsmall_format::Result;
use bigsmall_format::internal::{Ahead, reserve, set_len};

use super::bits::BitSink;
use super::head::Head;
use super::kinds::{KIND_CODED, KIND_SPARSE, KIND_SPARSE_BY_CLASS};
use super::sparse::{self, Change, GroupCounts};
use super::split::{Parts, Splitter};
use super::values::Word;
use crate::block::{CARRIED, HEADER, pad4, states_with, write_raw, write_states};
use crate::kernels::{EncodeJob, Kernels, ROOM};
use crate::planes::GROUP;

/// If more than one unit in so many differs from the base's, a sparse block is not tried.
const SPARSE_ABOVE: usize = 12;
/// If no more than one unit in so many differs, a coded block is not tried.
const CODED_BELOW: usize = 200;
/// Encodes the blocks of one tensor.
pub(crate) struct Encoder {
    pub(crate) head: Head,
    kernels: &'static dyn Kernels,
    splitter: Splitter,
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
    counts: Vec<GroupCounts>,
    changes: Vec<Change>,
    sorted: Vec<Change>,
    sparse: [BitSink; 2],
}

impl Encoder {
    /// `of_class` says for each class which tables are considered.
    pub(crate) fn new(
        head: Head,
        of_class: Vec<Vec<u8>>,
        kernels: &'static dyn Kernels,
    ) -> Encoder {
        let splitter = Splitter::new(&head, of_class);
        Encoder { head, kernels, splitter }
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
        let Scratch { classes, counts, changes, sorted, sparse, .. } = scratch;
        let is_float = self.head.field.is_float();
        changes.clear();
        sparse.iter_mut().for_each(BitSink::clear);
        let by_class = self.head.sparse;
        let mut ranks = [0u32; 16];
        let piece = GROUP * size_of::<W>();
        let n_units = units.len() / size_of::<W>();
        set_len(classes, n_units)?;
        set_len(counts, n_units.div_ceil(GROUP))?;
        let classes = &mut classes[..n_units];
        let n_groups = n_units.div_ceil(GROUP);
        self.kernels.count_classes(&self.head, base, classes, &mut counts[..n_groups]);
        for (group, (units, base)) in units.chunks(piece).zip(base.chunks(piece)).enumerate() {
            let n = units.len() / size_of::<W>();
            if units == base {
                for (rank, &n) in ranks.iter_mut().zip(&counts[group]) {
                    *rank += u32::from(n);
                }
                continue;
            }
            let classes = &classes[group * GROUP..][..n];
            reserve(changes, n)?;
            let pairs = units.chunks_exact(size_of::<W>()).zip(base.chunks_exact(size_of::<W>()));
            for (i, ((unit, base), &class)) in pairs.zip(classes).enumerate() {
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
        let mut places = [0; 16];
        for change in &*changes {
            places[usize::from(change.class & 15)] += 1;
        }
        let mut sum = 0;
        for place in &mut places {
            sum += std::mem::replace(place, sum);
        }
        set_len(sorted, changes.len())?;
        for change in &*changes {
            let place = &mut places[usize::from(change.class & 15)];
            sorted[*place] = *change;
            *place += 1;
        }
        sparse::write_by_class(by_class.n, &sorted[..changes.len()], classed);
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
        let Encoder { head, kernels, splitter } = self;
        let n_groups = units.len() / size_of::<W>() / GROUP;
        let n = n_groups * GROUP;
        let (units, tail) = units.split_at(n * size_of::<W>());
        let base = &base[..units.len()];
        let Scratch {
            classes, values, symbols, table_ids, group_tables, words, lows, extra, ..
        } = scratch;
        set_len(classes, n)?;
        set_len(values, n.div_ceil(8 / size_of::<W>()))?;
        let values = &mut bytemuck::cast_slice_mut(values)[..units.len()];
        let starts = kernels.partition(head, units, base, values, &mut classes[..n]);

        set_len(symbols, n)?;
        let parts = Parts { symbols: &mut symbols[..n], table_ids, group_tables, lows, extra };
        kernels.split(head, splitter, values, &starts, parts);
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
}
