//! Units and the base's units to blocks.

use bigsmall_format::Result;
use bigsmall_format::internal::{reserve, set_len};

use super::bits::BitSink;
use super::head::Head;
use super::kinds::{KIND_CODED, KIND_SPARSE, KIND_SPARSE_BY_CLASS};
use super::sparse::{Change, Form, GroupCounts};
use super::split::{Parts, Splitter};
use super::values::Word;
use crate::block::{CARRIED, HEADER, pad4, states_with, write_raw, write_states};
use crate::kernels::{EncodeJob, Kernels, LANES, ROOM};
use crate::planes::GROUP;

/// If more than one unit in so many differs from the base's, a sparse block is not tried: where
/// no block can be coded or trying costs little, where units differ in nearly all groups, and where
/// they are clustered. Then tables tell rows that were trained from others, which gaps do not.
const SPARSE_BELOW: [usize; 3] = [12, 20, 64];
/// If no more than one unit in so many differs, a coded block is not tried: in any case, and if
/// units differ in nearly all groups.
const CODED_ABOVE: [usize; 2] = [200, 28];
/// Units differ in nearly all groups if none does in one of so many, or fewer.
const SPREAD: usize = 8;
/// Up to so many units of a block trying costs little.
const SMALL: usize = 4096;
/// If changes of a sparse block take more bits than so many, a coded block is tried.
const DEAR: u64 = 16;

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
    sparse: BitSink,
    n_changed: Vec<u16>,
    /// The states of a coded block, and where its words begin.
    states: [u32; LANES],
    begin: usize,
}

impl Scratch {
    /// The block that was split last.
    fn job(&mut self) -> EncodeJob<'_> {
        EncodeJob {
            symbols: &self.symbols,
            group_tables: &self.group_tables,
            states: &mut self.states,
            words: &mut self.words,
            begin: &mut self.begin,
        }
    }
}

/// What is known of a block before it is coded.
struct Choice {
    /// The smaller form of a sparse block, and whether it is the one by classes.
    sparse: Option<(bool, Form)>,
    /// Whether it was split to be coded.
    is_split: bool,
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

    /// Appends one or two blocks of `units` against `base` to `out`, each padded to a multiple of 8
    /// bytes, and their lengths without the padding to `lens`.
    pub(crate) fn encode<W: Word>(
        &self,
        units: [&[u8]; 2],
        base: [&[u8]; 2],
        scratch: &mut [Scratch; 2],
        (out, lens): (&mut Vec<u8>, &mut Vec<u32>),
    ) -> Result<()> {
        let mut choices = [None, None];
        for (choice, (scratch, (units, base))) in
            choices.iter_mut().zip(scratch.iter_mut().zip(units.into_iter().zip(base)))
        {
            if units != base {
                *choice = Some(self.choose::<W>(units, base, scratch)?);
            }
        }
        // Blocks wait for each other's lookups: two at once.
        let is_split = |choice: &Option<Choice>| choice.as_ref().is_some_and(|c| c.is_split);
        let split = scratch.iter_mut().zip(&choices).filter(|(_, choice)| is_split(choice));
        let mut jobs: Vec<_> = split.map(|(scratch, _)| scratch.job()).collect();
        self.kernels.encode(&self.head.ans, &mut jobs);
        for (choice, (scratch, units)) in choices.into_iter().zip(scratch.iter_mut().zip(units)) {
            let begin = out.len();
            if let Some(choice) = choice {
                self.write::<W>(choice, units, scratch, out)?;
            }
            // There is no second one without units.
            if !units.is_empty() {
                lens.push((out.len() - begin) as u32);
            }
            out.resize(out.len().next_multiple_of(8), 0);
        }
        Ok(())
    }

    /// Finds what a block may become, and splits it if it may be coded.
    fn choose<W: Word>(&self, units: &[u8], base: &[u8], scratch: &mut Scratch) -> Result<Choice> {
        let n_units = units.len() / size_of::<W>();
        set_len(&mut scratch.n_changed, n_units.div_ceil(GROUP))?;
        W::count_changed(units, base, &mut scratch.n_changed);
        let of_groups = || scratch.n_changed[..n_units.div_ceil(GROUP)].iter();
        let n_changed: usize = of_groups().map(|&n| usize::from(n)).sum();
        let in_groups = GROUP * of_groups().filter(|&&n| n > 0).count();
        let can_code = n_units >= GROUP && !self.head.tables.is_empty();
        let small = n_units <= SMALL;
        let spread = !small && in_groups * SPREAD >= n_units * (SPREAD - 1);
        let kind = if small || !can_code { 0 } else { 2 - usize::from(spread) };
        let below = SPARSE_BELOW[kind];
        let mut sparse = None;
        if n_changed <= n_units / below + 4 {
            sparse = Some(self.find_changes::<W>(units, base, scratch)?);
        }
        let few = n_changed <= n_units / CODED_ABOVE[0];
        let surely_sparse = few || spread && n_changed <= n_units / CODED_ABOVE[1];
        let dear = sparse.is_none_or(|(_, form)| form.bits > DEAR * n_changed as u64);
        let is_split = can_code && (!surely_sparse || dear && !few);
        if is_split {
            self.split::<W>(units, base, scratch)?;
        }
        Ok(Choice { sparse, is_split })
    }

    /// Appends the smallest form of a block.
    fn write<W: Word>(
        &self,
        Choice { sparse, is_split }: Choice,
        units: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let begin = out.len();
        // At worst a raw block, and its padding.
        reserve(out, HEADER + units.len() + 8)?;
        if is_split {
            self.write_coded::<W>(units, scratch, out)?;
        }
        let coded = out.len() - begin;
        match sparse {
            Some((by_class, form))
                if 1 + form.bits.div_ceil(8) < (HEADER + units.len()) as u64
                    && (coded == 0 || form.bits.div_ceil(8) < coded as u64) =>
            {
                out.truncate(begin);
                let Scratch { sparse, changes, sorted, .. } = scratch;
                sparse.clear();
                if by_class {
                    out.push(KIND_SPARSE_BY_CLASS);
                    form.write_by_class(self.head.sparse.n, &sorted[..changes.len()], sparse);
                } else {
                    out.push(KIND_SPARSE);
                    form.write(changes, sparse);
                }
                out.extend_from_slice(sparse.finish());
            }
            _ if coded == 0 || coded >= HEADER + units.len() => {
                out.truncate(begin);
                write_raw(units, out);
            }
            _ => {}
        }
        Ok(())
    }

    /// Finds the changes of a block; returns its smaller form and whether that is the one by
    /// classes.
    fn find_changes<W: Word>(
        &self,
        units: &[u8],
        base: &[u8],
        scratch: &mut Scratch,
    ) -> Result<(bool, Form)> {
        let Scratch { classes, counts, changes, sorted, n_changed, .. } = scratch;
        let is_float = self.head.field.is_float();
        let by_class = self.head.sparse;
        changes.clear();
        let mut ranks = [0u32; 16];
        let piece = GROUP * size_of::<W>();
        let n_units = units.len() / size_of::<W>();
        let n_groups = n_units.div_ceil(GROUP);
        set_len(classes, n_groups * GROUP)?;
        set_len(counts, n_groups)?;
        classes[n_units..n_groups * GROUP].fill(u8::MAX);
        if by_class.n > 1 {
            let counts = &mut counts[..n_groups];
            self.kernels.count_classes(&self.head, base, &mut classes[..n_units], counts);
        }
        let groups = classes.as_chunks::<GROUP>().0.iter().zip(&*counts).zip(&*n_changed);
        let pieces = units.chunks(piece).zip(base.chunks(piece)).zip(groups);
        for (group, ((units, base), ((classes, counts), &n))) in (0..).zip(pieces) {
            if n > 0 {
                reserve(changes, usize::from(n))?;
                let mut differ = [0; GROUP];
                W::differ(units, base, &mut differ);
                for (at, word) in (0..).step_by(8).zip(differ.as_chunks::<8>().0) {
                    let mut word = u64::from_le_bytes(*word);
                    while word != 0 {
                        let i = at + word.trailing_zeros() / 8;
                        word &= word - 1;
                        let (mut class, mut rank) = (0, 0);
                        if by_class.n > 1 {
                            class = classes[i as usize];
                            let in_group = self.kernels.rank_in_class(classes, class, i);
                            rank = ranks[usize::from(class & 15)] + in_group;
                        }
                        let of = |units: &[u8]| {
                            W::read(&units[i as usize * size_of::<W>()..][..size_of::<W>()])
                        };
                        let value = W::difference(of(base), of(units), is_float);
                        let signed = value.above(W::default());
                        changes.push(Change {
                            position: group * GROUP as u32 + i,
                            rank,
                            class,
                            is_less: signed < 0,
                            distance: signed.unsigned_abs(),
                        });
                    }
                }
            }
            for (rank, &n) in ranks.iter_mut().zip(counts) {
                *rank += u32::from(n);
            }
        }
        let natural = Form::natural(changes);
        if by_class.n == 1 {
            return Ok((false, natural));
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
        let classed = Form::by_class(by_class.n, &sorted[..changes.len()]);
        // Whole bytes: of two that take as many, the one in natural order is read faster.
        let is_smaller = classed.bits.div_ceil(8) < natural.bits.div_ceil(8);
        Ok(if is_smaller { (true, classed) } else { (false, natural) })
    }

    /// Splits the groups of a block to be coded.
    fn split<W: Word>(&self, units: &[u8], base: &[u8], scratch: &mut Scratch) -> Result<()> {
        let Encoder { head, kernels, splitter } = self;
        let n = units.len() / size_of::<W>() / GROUP * GROUP;
        let units = &units[..n * size_of::<W>()];
        let base = &base[..units.len()];
        let Scratch { classes, values, symbols, table_ids, group_tables, lows, extra, .. } =
            scratch;
        set_len(classes, n)?;
        set_len(values, n.div_ceil(8 / size_of::<W>()))?;
        let values = &mut bytemuck::cast_slice_mut(values)[..units.len()];
        let starts = kernels.partition(head, units, base, values, &mut classes[..n]);
        set_len(symbols, n)?;
        let parts = Parts { symbols, table_ids, group_tables, lows, extra };
        kernels.split(head, splitter, values, &starts, parts);
        let extra = extra.finish();
        scratch.states = states_with(&extra[extra.len().saturating_sub(CARRIED)..]);
        set_len(&mut scratch.words, n + ROOM)
    }

    /// Appends the block that was split and coded last.
    fn write_coded<W: Word>(
        &self,
        units: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let Scratch { table_ids, words, begin, states, lows, extra, symbols, .. } = scratch;
        let tail = &units[symbols.len() * size_of::<W>()..];
        let extra = extra.finish();
        let kept = &extra[..extra.len().saturating_sub(CARRIED)];
        let words = &mut words[*begin..];
        reserve(out, 2 * words.len() + lows.len() + kept.len() + tail.len() + 4096)?;
        out.extend_from_slice(&[KIND_CODED, (extra.len() - kept.len()) as u8, 0, 0]);
        out.extend_from_slice(&(words.len() as u32).to_le_bytes());
        write_states(states, out);
        words.iter_mut().for_each(|w| *w = w.to_le());
        out.extend_from_slice(bytemuck::cast_slice(words));
        pad4(out);
        let mut bits = BitSink::default();
        table_ids.iter().for_each(|&id| bits.push(u64::from(id), self.head.table_id_bits()));
        out.extend_from_slice(bits.finish());
        pad4(out);
        out.extend_from_slice(lows);
        out.extend_from_slice(tail);
        out.extend_from_slice(kept);
        Ok(())
    }
}
