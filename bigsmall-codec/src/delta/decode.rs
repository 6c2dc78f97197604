//! Blocks to units, from those of the base, which may be in their place.
#![warn(clippy::unwrap_used)]

use bigsmall_format::internal::{Ahead, reserve, set_len};
use bigsmall_format::{Error, Result, Rule};

use super::coded::Sections;
use super::head::Head;
use super::join::{EXTRA_ROOM, Merge, Parts};
use super::kinds::{KIND_CODED, KIND_RAW, KIND_SPARSE, KIND_SPARSE_BY_CLASS};
use super::sparse::{self, Change, GroupCounts};
use super::values::Word;
use crate::block::{finish_states, read_raw};
use crate::kernels::{Job, Kernels, MERGE_ROOM};
use crate::planes::GROUP;

/// Memory that is kept between calls.
#[derive(Default)]
pub(crate) struct Scratch {
    symbols: Vec<u8>,
    values: Vec<u64>,
    classes: Vec<u8>,
    counts: Vec<GroupCounts>,
    extra: Vec<u8>,
    changes: Vec<Change>,
}

/// The first `n` of `values`, whose contents are unspecified.
fn room<T: Clone + Default>(values: &mut Vec<T>, n: usize) -> Result<&mut [T]> {
    if values.len() < n {
        set_len(values, n)?;
    }
    Ok(&mut values[..n])
}

/// What a block is.
pub(crate) enum Block<'a> {
    Same,
    Raw(&'a [u8]),
    Coded(Box<Sections<'a>>),
    /// The bytes of the changes, and whether they are in the order of classes.
    Sparse(&'a [u8], bool),
}

impl<'a> Block<'a> {
    /// Reads the encoded form of `byte_len` original bytes.
    pub(crate) fn read(head: &Head, block: &'a [u8], byte_len: usize) -> Result<Block<'a>> {
        match block.first() {
            None => Ok(Block::Same),
            Some(&KIND_RAW) => read_raw(block, byte_len, [Rule::DeltaBlock; 2]).map(Block::Raw),
            Some(&KIND_CODED) => {
                let sections = Sections::read(head, block, byte_len / head.unit_bytes)?;
                Ok(Block::Coded(Box::new(sections)))
            }
            Some(&KIND_SPARSE) => Ok(Block::Sparse(&block[1..], false)),
            Some(&KIND_SPARSE_BY_CLASS) => Ok(Block::Sparse(&block[1..], true)),
            Some(&kind) => {
                Err(Error::new(Rule::DeltaBlock).at(0).expected("kind 0 to 3").found(kind))
            }
        }
    }
}

/// The base's units, if they are not in the place of the new ones, and that place.
pub(crate) type Place<'a> = (Option<&'a [u8]>, &'a mut [u8]);

/// Decodes blocks, as many as are best decoded at once.
pub(crate) fn decode<'a, W: Word>(
    head: &Head,
    kernels: &dyn Kernels,
    blocks: &[&'a [u8]],
    units: impl Iterator<Item = Place<'a>>,
    scratch: &mut Scratch,
) -> Result<()> {
    let copy = |base: Option<&[u8]>, units: &mut [u8]| {
        if let Some(base) = base {
            units.copy_from_slice(base);
        }
    };
    let mut coded = Vec::with_capacity(blocks.len());
    for (block, (base, units)) in blocks.iter().zip(units) {
        match Block::read(head, block, units.len())? {
            Block::Raw(body) => units.copy_from_slice(body),
            Block::Coded(sections) => coded.push((sections, Some((base, units)))),
            Block::Same => copy(base, units),
            Block::Sparse(bytes, by_class) => {
                copy(base, units);
                read_changes::<W>(head, kernels, bytes, by_class, units, scratch)?;
                for change in &scratch.changes {
                    let unit = &mut units[change.position as usize * size_of::<W>()..];
                    let unit = &mut unit[..size_of::<W>()];
                    sparse::apply(change, head.field.is_float(), W::read(unit)).write(unit);
                }
            }
        }
    }
    decode_coded::<W>(head, kernels, &mut coded, scratch)
}

/// The changes of a block that was checked, places and new values, so that it need not be decoded
/// again; `None` where they are too many.
pub(crate) type Kept = Option<Vec<(u32, u64)>>;

/// Changes are kept if no more than one unit in so many differs.
const KEPT_BELOW: usize = 24;

/// Checks that blocks decode, as many as are best decoded at once.
pub(crate) fn check<W: Word>(
    head: &Head,
    kernels: &dyn Kernels,
    blocks: &[&[u8]],
    bases: &[&[u8]],
    kept: &mut [Kept],
    scratch: &mut Scratch,
) -> Result<()> {
    let mut coded = Vec::with_capacity(blocks.len());
    for ((block, base), kept) in blocks.iter().zip(bases).zip(kept) {
        *kept = None;
        match Block::read(head, block, base.len())? {
            Block::Same => *kept = Some(Vec::new()),
            Block::Raw(_) => {}
            Block::Coded(sections) => coded.push((sections, None)),
            Block::Sparse(bytes, by_class) => {
                read_changes::<W>(head, kernels, bytes, by_class, base, scratch)?;
                if scratch.changes.len() * KEPT_BELOW <= base.len() / size_of::<W>() {
                    let mut changes = Vec::new();
                    push_changes::<W>(head, base, &scratch.changes, &mut changes)?;
                    *kept = Some(changes);
                }
            }
        }
    }
    decode_coded::<W>(head, kernels, &mut coded, scratch)
}

/// Makes changes that were kept.
pub(crate) fn patch<W: Word>(changes: &[(u32, u64)], units: &mut [u8]) {
    for &(position, value) in changes {
        let unit = &mut units[position as usize * size_of::<W>()..][..size_of::<W>()];
        W::from_u64(value).write(unit);
    }
}

/// Appends the places of changes and the new values.
fn push_changes<W: Word>(
    head: &Head,
    base: &[u8],
    changes: &[Change],
    out: &mut Vec<(u32, u64)>,
) -> Result<()> {
    reserve(out, changes.len())?;
    out.extend(changes.iter().map(|change| {
        let unit = &base[change.position as usize * size_of::<W>()..][..size_of::<W>()];
        let new = sparse::apply(change, head.field.is_float(), W::read(unit));
        (change.position, new.to_u64())
    }));
    Ok(())
}

/// The units that a block changes and their new values, if it is empty or sparse; false for a block
/// of another kind.
pub(crate) fn changes<W: Word>(
    head: &Head,
    kernels: &dyn Kernels,
    block: &[u8],
    base: &[u8],
    scratch: &mut Scratch,
    out: &mut Vec<(u32, u64)>,
) -> Result<bool> {
    match Block::read(head, block, base.len())? {
        Block::Same => {}
        Block::Sparse(bytes, by_class) => {
            read_changes::<W>(head, kernels, bytes, by_class, base, scratch)?;
            push_changes::<W>(head, base, &scratch.changes, out)?;
        }
        Block::Raw(_) | Block::Coded(_) => return Ok(false),
    }
    Ok(true)
}

/// Reads the changes of a sparse block into the scratch, in the order of classes.
fn read_changes<W: Word>(
    head: &Head,
    kernels: &dyn Kernels,
    bytes: &[u8],
    by_class: bool,
    base: &[u8],
    scratch: &mut Scratch,
) -> Result<()> {
    let Scratch { classes, counts, changes, .. } = scratch;
    if by_class && head.sparse.n > 1 {
        let n_units = base.len() / size_of::<W>();
        let n_groups = n_units.div_ceil(GROUP);
        let (classes, counts) = (room(classes, n_groups * GROUP)?, room(counts, n_groups)?);
        classes[n_units..].fill(u8::MAX);
        kernels.count_classes(head, base, &mut classes[..n_units], counts);
        let classes = classes.as_chunks().0;
        let find = |group: &_, class, n| kernels.find_in_class(group, class, n);
        sparse::read_by_class(head.sparse.n, bytes, (classes, counts), changes, find)
    } else {
        sparse::read(bytes, base.len() / size_of::<W>(), changes)
    }
}

/// A coded block, and where its units go; without a place it is checked alone.
type Coded<'a> = (Box<Sections<'a>>, Option<Place<'a>>);

fn job<'a>(s: &'a Sections<'_>) -> Job<'a> {
    Job::new(s.states, s.from_words, &s.group_tables[..s.n_groups])
}

/// Coded blocks wait for themselves, so several are decoded at once, as many as the kernels take.
fn decode_coded<W: Word>(
    head: &Head,
    kernels: &dyn Kernels,
    mut blocks: &mut [Coded<'_>],
    scratch: &mut Scratch,
) -> Result<()> {
    let mut symbols = std::mem::take(&mut scratch.symbols);
    let mut done = Ok(());
    while !blocks.is_empty() && done.is_ok() {
        let n = match blocks.len() {
            4.. => kernels.blocks_at_once(),
            2.. => 2,
            _ => 1,
        };
        let (these, rest) = std::mem::take(&mut blocks).split_at_mut(n);
        blocks = rest;
        done = decode_together::<W>(head, kernels, these, &mut symbols, scratch);
    }
    scratch.symbols = symbols;
    done
}

fn decode_together<W: Word>(
    head: &Head,
    kernels: &dyn Kernels,
    blocks: &mut [Coded<'_>],
    symbols: &mut Vec<u8>,
    scratch: &mut Scratch,
) -> Result<()> {
    let n = |s: &Sections<'_>| s.n_groups * GROUP;
    let total = blocks.iter().map(|(s, _)| n(s)).sum();
    let mut rest = room(symbols, total)?;
    let mut pieces = Vec::with_capacity(blocks.len());
    let mut jobs = Vec::with_capacity(blocks.len());
    let (sections, places): (Vec<_>, Vec<_>) =
        blocks.iter_mut().map(|(s, place)| (&**s, place.take())).unzip();
    for (s, place) in sections.iter().zip(&places) {
        let (piece, after) = rest.split_at_mut(n(s));
        pieces.push(piece);
        let soon = place.as_ref().map_or_else(Ahead::default, |(_, units)| Ahead::new(units));
        jobs.push(Job { soon, ..job(s) });
        rest = after;
    }
    kernels.decode_symbols(&head.ans, &mut jobs, &mut pieces);
    let carried =
        jobs.iter().zip(&sections).map(|(job, s)| finish_states(job, s.n_words, s.n_carried));
    let carried = carried.collect::<Result<Vec<_>>>()?;
    let all = sections.into_iter().zip(carried).zip(pieces).zip(places);
    for (((s, carried), symbols), place) in all {
        finish_block::<W>(head, kernels, (s, &carried[..s.n_carried]), symbols, place, scratch)?;
    }
    Ok(())
}

/// Units from decoded symbols.
fn finish_block<W: Word>(
    head: &Head,
    kernels: &dyn Kernels,
    (s, carried): (&Sections<'_>, &[u8]),
    symbols: &[u8],
    place: Option<Place<'_>>,
    scratch: &mut Scratch,
) -> Result<()> {
    let n = s.n_groups * GROUP;
    let Scratch { values, classes, extra, .. } = scratch;
    extra.clear();
    extra.extend_from_slice(s.extra);
    extra.extend_from_slice(carried);
    extra.extend_from_slice(&[0; EXTRA_ROOM]);
    let values = room(values, (n + MERGE_ROOM).div_ceil(8 / size_of::<W>()))?;
    let group_tables = &s.group_tables[..s.n_groups];
    kernels.values(head, &Parts { symbols, group_tables, lows: s.lows, extra }, values)?;
    let Some((base, units)) = place else { return Ok(()) };
    let (units, tail) = units.split_at_mut(n * size_of::<W>());
    let base = base.map(|base| &base[..units.len()]);
    kernels.merge(head, values, Merge { base, units, scratch: room(classes, 2 * n)? });
    tail.copy_from_slice(s.tail);
    Ok(())
}

#[cfg(test)]
mod tests {
    use bigsmall_format::Dtype;

    use super::*;
    use crate::backend::{backends, kernels};
    use crate::delta::classes::{Classes, Field};
    use crate::delta::sparse::count;
    use crate::delta::values::for_unit;

    /// What FORMAT.md says, unit by unit.
    fn merge_one_by_one<W: Word>(head: &Head, values: &[u64], units: &mut [u8]) {
        let values: &[W] = bytemuck::cast_slice(values);
        let bytes = size_of::<W>();
        let mut classes = vec![0; units.len() / bytes];
        W::classes(head.classes, head.field, units, &mut classes);
        let mut values = values.iter();
        for class in 0..8 {
            let places = (0..classes.len()).filter(|&i| classes[i] == class);
            for (i, &value) in places.zip(&mut values) {
                let unit = &mut units[i * bytes..][..bytes];
                let base = W::read(unit);
                let new = match head.is_turned(class) {
                    true => W::turned_back(base, value, head.field.is_float()),
                    false => W::add(base, value, head.field.is_float()),
                };
                new.write(unit);
            }
        }
    }

    #[test]
    fn backends_merge_and_count_alike() {
        let mut state = 7u64;
        let mut random = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            state ^ state >> 29
        };
        let floats =
            [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64, Dtype::F8_E4M3, Dtype::F8_E5M2];
        let others = [(Dtype::I8, 1), (Dtype::F4, 1)];
        let all = floats.iter().flat_map(|&dtype| (1..=8).map(move |k| (dtype, k)));
        for (dtype, k) in all.chain(others) {
            let rounds = [(1, 0), (3, 0xff), (6, 0x5a), (1, random() as u8), (5, 0), (7, 0)];
            for (n_groups, modes) in rounds {
                let modes = modes & ((1u16 << k) - 1) as u8;
                let mask = Field::of(dtype).mask;
                let top = match n_groups {
                    7 => random() as u32 & mask,
                    _ => (random() as u32 % 12 + 3) & mask,
                };
                let classes = Classes { n: k, top };
                let sparse = Classes { n: if mask == 0 { 1 } else { 2 * k }, top };
                let head = Head::new(dtype, 5, GROUP, (classes, modes), sparse, Vec::new());
                let n = n_groups * GROUP;
                let base: Vec<u8> = (0..n)
                    .flat_map(|_| {
                        // Also nearly all of one class: sums in narrow lanes must not overflow. And
                        // all exponents.
                        let exponent = match n_groups {
                            5 => u64::from(top).saturating_sub(u64::from(random() % 256 > 0)),
                            7 => random(),
                            _ => random() % 20,
                        };
                        let exponent = exponent & u64::from(mask);
                        let sign = random() << 63 >> (64 - 8 * head.unit_bytes);
                        let unit = exponent << head.field.shift | random() >> 61 | sign;
                        unit.to_le_bytes().into_iter().take(head.unit_bytes)
                    })
                    .collect();
                let room = (n + MERGE_ROOM) * head.unit_bytes / 8;
                let values: Vec<u64> = (0..room).map(|_| random()).collect();
                let mut expected = base.clone();
                for_unit!(head.unit_bytes, merge_one_by_one(&head, &values, &mut expected));
                // A part of a group at the end.
                let units = &base[..base.len() - 8 * head.unit_bytes];
                let mut found: Option<(Vec<u8>, Vec<GroupCounts>)> = None;
                for backend in backends() {
                    let kernels = kernels(backend).expect("one of this machine");
                    let (mut out, mut classes) = (vec![1; base.len()], vec![9; 2 * n]);
                    for from in [Some(&base[..]), None] {
                        if from.is_none() {
                            out.copy_from_slice(&base);
                        }
                        let (units, scratch) = (&mut out[..], &mut classes[..]);
                        kernels.merge(&head, &values, Merge { base: from, units, scratch });
                        assert!(out == expected, "{dtype} {k} {modes:#x} {backend}");
                    }
                    classes.truncate(n);
                    let sorted = &mut vec![0; out.len()];
                    kernels.partition(&head, &out, &base, sorted, &mut classes);
                    let values: &[u8] = bytemuck::cast_slice(&values);
                    assert!(*sorted == values[..out.len()], "{dtype} {k} {modes:#x} {backend}");
                    let mut counts = vec![[0; 16]; n_groups];
                    classes.truncate(n - 8);
                    kernels.count_classes(&head, units, &mut classes, &mut counts);
                    let plain = found.get_or_insert_with(|| (classes.clone(), counts.clone()));
                    assert!(*plain == (classes, counts), "{dtype} {k} {backend}");
                    let group: &[u8; GROUP] = plain.0[..].first_chunk().unwrap_or(&[15; GROUP]);
                    let mut ranks = [0; 256];
                    for (place, &class) in (0..).zip(group) {
                        let rank = &mut ranks[usize::from(class)];
                        assert_eq!(kernels.rank_in_class(group, class, place), *rank, "{backend}");
                        assert_eq!(kernels.find_in_class(group, class, *rank), place, "{backend}");
                        *rank += 1;
                    }
                }
                let (classes, counts) = found.expect("one backend");
                for (class, n) in counts[0].iter().enumerate() {
                    let group = &classes[..GROUP.min(classes.len())];
                    let of_class = group.iter().filter(|&&c| usize::from(c) == class).count();
                    assert_eq!(usize::from(*n), of_class);
                }
                assert_eq!(count(&[15; GROUP])[15], 256);
            }
        }
    }
}
