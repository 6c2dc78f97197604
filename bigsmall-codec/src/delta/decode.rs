//! Blocks to units, in place of the base's.
#![warn(clippy::unwrap_used)]

use bigsmall_format::internal::{reserve, set_len};
use bigsmall_format::{Error, Result, Rule};

use super::bits::Bits;
use super::classes::Classes;
use super::coded::Sections;
use super::head::Head;
use super::kinds::{KIND_CODED, KIND_RAW, KIND_SPARSE, KIND_SPARSE_BY_CLASS};
use super::sparse::{self, Change};
use super::values::{Word, at_least};
use crate::block::{finish_states, read_raw};
use crate::kernels::{Job, Kernels, MERGE_ROOM};
use crate::planes::{self, GROUP, packed_len};
use crate::units::low_len;

/// Memory that is kept between calls.
#[derive(Default)]
pub(crate) struct Scratch {
    symbols: Vec<u8>,
    values: Vec<u64>,
    classes: Vec<u8>,
    extra: Vec<u8>,
    pub(crate) changes: Vec<Change>,
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

/// Decodes one or two blocks; `units` hold those of the base.
pub(crate) fn decode<W: Word>(
    head: &Head,
    kernels: &dyn Kernels,
    blocks: &[&[u8]],
    units: [&mut [u8]; 2],
    scratch: &mut Scratch,
) -> Result<()> {
    // Coded blocks wait for each other: two at once keep both halves of the machine busy.
    let mut coded: [Option<(Box<Sections<'_>>, &mut [u8])>; 2] = [None, None];
    for ((block, units), coded) in blocks.iter().zip(units).zip(&mut coded) {
        match Block::read(head, block, units.len())? {
            Block::Same => {}
            Block::Raw(body) => units.copy_from_slice(body),
            Block::Coded(sections) => *coded = Some((sections, units)),
            Block::Sparse(bytes, by_class) => {
                read_changes::<W>(head, bytes, by_class, units, scratch)?;
                for change in &scratch.changes {
                    let unit = &mut units[change.position as usize * size_of::<W>()..];
                    let unit = &mut unit[..size_of::<W>()];
                    sparse::apply(change, head.field.is_float(), W::read(unit)).write(unit);
                }
            }
        }
    }
    let mut symbols = std::mem::take(&mut scratch.symbols);
    let done = decode_coded::<W>(head, kernels, coded, &mut symbols, scratch);
    scratch.symbols = symbols;
    done
}

/// The units that a block changes and their new values, if it is empty or sparse; false for a block
/// of another kind.
pub(crate) fn changes<W: Word>(
    head: &Head,
    block: &[u8],
    base: &[u8],
    scratch: &mut Scratch,
    out: &mut Vec<(u32, u64)>,
) -> Result<bool> {
    match Block::read(head, block, base.len())? {
        Block::Same => {}
        Block::Sparse(bytes, by_class) => {
            read_changes::<W>(head, bytes, by_class, base, scratch)?;
            reserve(out, scratch.changes.len())?;
            for change in &scratch.changes {
                let unit = &base[change.position as usize * size_of::<W>()..];
                let unit = W::read(&unit[..size_of::<W>()]);
                let new = sparse::apply(change, head.field.is_float(), unit);
                out.push((change.position, new.to_u64()));
            }
        }
        Block::Raw(_) | Block::Coded(_) => return Ok(false),
    }
    Ok(true)
}

/// Reads the changes of a sparse block into the scratch, in the order of classes.
pub(crate) fn read_changes<W: Word>(
    head: &Head,
    bytes: &[u8],
    by_class: bool,
    base: &[u8],
    scratch: &mut Scratch,
) -> Result<()> {
    let classes = if by_class { head.sparse } else { Classes { n: 1, top: 0 } };
    let Scratch { classes: of_units, changes, .. } = scratch;
    sparse::read::<W>((classes, head.field), bytes, base, of_units, changes)
}

fn decode_coded<W: Word>(
    head: &Head,
    kernels: &dyn Kernels,
    blocks: [Option<(Box<Sections<'_>>, &mut [u8])>; 2],
    symbols: &mut Vec<u8>,
    scratch: &mut Scratch,
) -> Result<()> {
    match blocks {
        [Some((a, units_a)), Some((b, units_b))] if a.n_groups == b.n_groups => {
            let n = a.n_groups * GROUP;
            set_len(symbols, 2 * n)?;
            let (first, second) = symbols.split_at_mut(n);
            let mut jobs =
                [&a, &b].map(|s| Job::new(s.states, s.from_words, &s.group_tables[..s.n_groups]));
            kernels.decode_symbols(&head.ans, &mut jobs, &mut [&mut *first, &mut second[..n]]);
            let [job_a, job_b] = jobs;
            finish_block::<W>(head, kernels, (&a, job_a), first, units_a, scratch)?;
            finish_block::<W>(head, kernels, (&b, job_b), &second[..n], units_b, scratch)
        }
        blocks => blocks.into_iter().flatten().try_for_each(|(s, units)| {
            let n = s.n_groups * GROUP;
            set_len(symbols, n)?;
            let mut jobs = [Job::new(s.states, s.from_words, &s.group_tables[..s.n_groups])];
            kernels.decode_symbols(&head.ans, &mut jobs, &mut [&mut symbols[..n]]);
            let [job] = jobs;
            finish_block::<W>(head, kernels, (&s, job), &symbols[..n], units, scratch)
        }),
    }
}

/// Units from decoded symbols.
fn finish_block<W: Word>(
    head: &Head,
    kernels: &dyn Kernels,
    (s, job): (&Sections<'_>, Job<'_>),
    symbols: &[u8],
    units: &mut [u8],
    scratch: &mut Scratch,
) -> Result<()> {
    let n = s.n_groups * GROUP;
    let Scratch { values, classes, extra, .. } = scratch;
    let carried = finish_states(&job, s.n_words, s.n_carried)?;
    extra.clear();
    extra.extend_from_slice(s.extra);
    extra.extend_from_slice(&carried[..s.n_carried]);
    set_len(values, (n + MERGE_ROOM).div_ceil(8 / size_of::<W>()))?;
    let values: &mut [W] = &mut bytemuck::cast_slice_mut(values)[..n + MERGE_ROOM];
    join(head, s, symbols, extra, &mut values[..n])?;
    let (grouped, tail) = units.split_at_mut(n * size_of::<W>());
    if !kernels.merge(head, bytemuck::cast_slice(values), grouped) {
        set_len(classes, n)?;
        let classes = &mut classes[..n];
        W::classes(head.classes, head.field, grouped, classes);
        W::merge(head, classes, &mut Classes::starts(classes), values, grouped);
    }
    tail.copy_from_slice(s.tail);
    Ok(())
}

/// Values from symbols, low planes and extra bits, group by group.
fn join<W: Word>(
    head: &Head,
    s: &Sections<'_>,
    symbols: &[u8],
    extra: &[u8],
    values: &mut [W],
) -> Result<()> {
    let mut lows = s.lows;
    let mut bits = Bits::new(extra);
    let groups = symbols.as_chunks::<GROUP>().0.iter().zip(values.as_chunks_mut::<GROUP>().0);
    for ((symbols, values), &id) in groups.zip(&s.group_tables) {
        let table = &head.tables[usize::from(id)];
        let (packed, rest) = lows.split_at(low_len(table.shift));
        lows = rest;
        let lo = W::from_u64(table.lo);
        W::near(symbols, table.shift, lo, values);
        if table.shift > 0 {
            add_lows(packed, table.shift, values);
        }
        for (symbols, values) in
            symbols.as_chunks::<32>().0.iter().zip(values.as_chunks_mut::<32>().0)
        {
            let logs = at_least(symbols, head.n_near());
            if logs != 0 {
                add_extra(head, table.shift, (symbols, logs), &mut bits, values);
            }
        }
    }
    bits.finish(Rule::DeltaBlock)
}

/// Replaces the symbols of logarithms, those at the set bits of `which`: they were taken for near
/// values.
#[inline(never)]
fn add_extra<W: Word>(
    head: &Head,
    shift: u32,
    (symbols, mut which): (&[u8; 32], u32),
    bits: &mut Bits<'_>,
    values: &mut [W; 32],
) {
    let (near, logs) = (head.n_near(), head.n_logs());
    while which != 0 {
        let i = which.trailing_zeros() as usize;
        which &= which - 1;
        let (symbol, value) = (u32::from(symbols[i]), &mut values[i]);
        let log = symbol - near;
        let y = if log == 2 * logs - 1 {
            bits.pull(W::BITS - shift)
        } else if log < logs {
            let a = 1 << log | bits.pull(log);
            u64::from(near) - 1 + a
        } else {
            let a = 1 << (log - logs) | bits.pull(log - logs);
            a.wrapping_neg()
        };
        *value = value.plus_shifted(y.wrapping_sub(u64::from(symbol)), shift);
    }
}

/// Adds the low bits of one group.
fn add_lows<W: Word>(packed: &[u8], shift: u32, values: &mut [W; GROUP]) {
    let (planes, rest) = packed.split_at((shift / 8) as usize * GROUP);
    for (byte, plane) in (0..).zip(planes.chunks_exact(GROUP)) {
        for (value, &b) in values.iter_mut().zip(plane) {
            *value = value.plus_shifted(u64::from(b), 8 * byte);
        }
    }
    let bits = shift % 8;
    if bits > 0 {
        let mut top = [0; GROUP];
        planes::unpack(&rest[..packed_len(bits)], bits, &mut top);
        for (value, &b) in values.iter_mut().zip(&top) {
            *value = value.plus_shifted(u64::from(planes::unspread(b, bits)), shift - bits);
        }
    }
}
