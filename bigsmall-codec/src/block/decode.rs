//! Blocks to units.
#![warn(clippy::unwrap_used)]

use std::ops::Range;

use bigsmall_format::internal::{Ahead, prefetch, set_len};
use bigsmall_format::{Error, Result, Rule};

use crate::block::sections::{
    Block, CARRIED, HEADER, KIND_COLUMNS, KIND_ZEROS, MAX_MASK, Ordered, Sections, carried_len,
    check_deflate_end, check_mask,
};
use crate::columns::Columns;
use crate::deflate::inflate;
use crate::head::Head;
use crate::kernels::{Job, Kernels, STATE_MIN, go_together};
use crate::planes::{GROUP, packed_len};
use crate::scratch::{Pool, with_scratch};
use crate::units::low_len;

/// Blocks with columns that are decoded at once.
const WITH_COLUMNS: usize = 2;
/// Blocks that are decoded at once, at most.
const MOST: usize = 4;

/// Decodes `blocks`, whose units fill `dst`; all but the last have `block_bytes`.
pub(crate) fn decode(
    head: &Head,
    kernels: &dyn Kernels,
    blocks: &[&[u8]],
    block_bytes: usize,
    dst: &mut [u8],
    ahead: Ahead<'_>,
) -> Result<()> {
    let unit_bytes = head.layout.unit_bytes;
    if !dst.len().is_multiple_of(unit_bytes) {
        return Err(Error::new(Rule::BufferLength)
            .expected(format!("a multiple of {unit_bytes} bytes"))
            .found(dst.len()));
    }
    if dst.len().div_ceil(block_bytes) != blocks.len() {
        return Err(Error::new(Rule::BufferLength).expected("as many blocks as units"));
    }
    if let Some(columns) = &head.columns
        && blocks.iter().any(is_ordered)
    {
        return with_scratch(&UNITS, |units| {
            decode_ordered(head, columns, kernels, blocks, block_bytes, dst, ahead, units)
        });
    }
    decode_in_place(head, kernels, blocks, block_bytes, dst, ahead)
}

/// Units in the order of the classes of their columns.
static UNITS: Pool<Vec<u8>> = Pool::new(Vec::new());

fn is_ordered(block: &&[u8]) -> bool {
    block.first() == Some(&KIND_COLUMNS)
}

/// [`decode`] for blocks of which some are of kind *columns*: they are decoded to `units`, and
/// from there their units go to their places.
#[allow(clippy::too_many_arguments)] // what to decode, and memory to do it in
fn decode_ordered(
    head: &Head,
    columns: &Columns,
    kernels: &dyn Kernels,
    mut blocks: &[&[u8]],
    block_bytes: usize,
    mut dst: &mut [u8],
    mut ahead: Ahead<'_>,
    units: &mut Vec<u8>,
) -> Result<()> {
    let unit_bytes = head.layout.unit_bytes;
    while let [first, ..] = blocks {
        let ordered = is_ordered(first);
        let alike = blocks.iter().take_while(|block| is_ordered(block) == ordered).count();
        // More of them would not stay in a level 2 cache until their units are put back.
        let run = if ordered { alike.min(WITH_COLUMNS) } else { alike };
        let (of_run, rest) = blocks.split_at(run);
        let (to, rest_of_dst) = dst.split_at_mut(dst.len().min(run * block_bytes));
        (blocks, dst) = (rest, rest_of_dst);
        let ahead = std::mem::take(&mut ahead);
        if !ordered {
            decode_in_place(head, kernels, of_run, block_bytes, to, ahead)?;
            continue;
        }
        let (mut firsts, mut within) = ([0; WITH_COLUMNS], [&[][..]; WITH_COLUMNS]);
        for (i, block) in of_run.iter().enumerate() {
            let block = Ordered::read(head, block)?;
            (firsts[i], within[i]) = (block.first, block.within);
        }
        set_len(units, to.len())?;
        decode_blocks(head, kernels, &within[..run], block_bytes, units, ahead, &[])
            .map_err(|e| e.in_part_at(HEADER as u64))?;
        for ((from, to), first) in
            units.chunks(block_bytes).zip(to.chunks_mut(block_bytes)).zip(firsts)
        {
            columns.put_back(unit_bytes, first, from, to);
        }
    }
    Ok(())
}

/// [`decode`] once the lengths are checked, for blocks of kinds other than *columns*.
fn decode_in_place(
    head: &Head,
    kernels: &dyn Kernels,
    blocks: &[&[u8]],
    block_bytes: usize,
    dst: &mut [u8],
    ahead: Ahead<'_>,
) -> Result<()> {
    if head.mask.is_some() && blocks.iter().any(|block| block.first() == Some(&KIND_ZEROS)) {
        return decode_with_masks(head, kernels, blocks, block_bytes, dst, ahead);
    }
    decode_blocks(head, kernels, blocks, block_bytes, dst, ahead, &[])
}

/// The masks lie on the stack: no allocation, and nothing is paid where there are none.
#[inline(never)]
fn decode_with_masks(
    head: &Head,
    kernels: &dyn Kernels,
    blocks: &[&[u8]],
    block_bytes: usize,
    dst: &mut [u8],
    mut ahead: Ahead<'_>,
) -> Result<()> {
    let mask_bytes = (block_bytes / head.layout.unit_bytes).div_ceil(8);
    let mut masks = [0; MOST * MAX_MASK];
    let at_once = kernels.blocks_at_once().min(MOST);
    for (blocks, dst) in blocks.chunks(at_once).zip(dst.chunks_mut(at_once * block_bytes)) {
        decode_masks(head, kernels, blocks, block_bytes, dst.len(), &mut masks)?;
        let masks: [_; MOST] = std::array::from_fn(|i| &masks[i * mask_bytes..][..mask_bytes]);
        let ahead = std::mem::take(&mut ahead);
        decode_blocks(head, kernels, blocks, block_bytes, dst, ahead, &masks)?;
    }
    Ok(())
}

/// Decodes the masks of at most [`MOST`] blocks of `byte_len` original bytes, together where all
/// have one; checks that each has as many ones as there are others.
fn decode_masks(
    head: &Head,
    kernels: &dyn Kernels,
    blocks: &[&[u8]],
    block_bytes: usize,
    byte_len: usize,
    masks: &mut [u8],
) -> Result<()> {
    let unit_bytes = head.layout.unit_bytes;
    let mask_bytes = (block_bytes / unit_bytes).div_ceil(8);
    let Some(mask_head) = &head.mask else { return Err(Error::new(Rule::AnsBlockHeader)) };
    let mut parts = [None; MOST];
    let mut coded: [&[u8]; MOST] = [&[]; MOST];
    let mut together = true;
    let mut masks_len = 0;
    for (i, (block, part)) in blocks.iter().zip(&mut parts).enumerate() {
        let len = block_bytes.min(byte_len - i * block_bytes);
        if block.first() == Some(&KIND_ZEROS)
            && let Block::Zeros(zeros) = Block::read(head, block, len)?
        {
            coded[i] = zeros.mask;
            *part = Some((zeros, len / unit_bytes));
        }
        together &= part.is_some();
        masks_len = i * mask_bytes + (len / unit_bytes).div_ceil(8);
    }
    let decode = |blocks: &[&[u8]], masks: &mut [u8]| {
        decode_blocks(mask_head, kernels, blocks, mask_bytes, masks, Ahead::default(), &[])
    };
    if together {
        decode(&coded[..blocks.len()], &mut masks[..masks_len])?;
    }
    for (part, mask) in parts.into_iter().zip(masks.chunks_mut(mask_bytes)) {
        let Some((zeros, n_units)) = part else { continue };
        let mask = &mut mask[..n_units.div_ceil(8)];
        if !together {
            decode(&[zeros.mask], mask)?;
        }
        check_mask(kernels, mask, n_units, zeros.n_others)?;
    }
    Ok(())
}

/// An ANS block that waits for another one, to be decoded together with it.
struct Pending<'a, 'd> {
    sections: Sections<'a>,
    /// Where its units go: the whole block.
    units: &'d mut [u8],
    /// The mask of the block, if it is one of kind *zeros*; the coded units are then the others.
    mask: Option<&'d [u8]>,
}

/// [`decode_in_place`] once the masks of the blocks are decoded.
fn decode_blocks(
    head: &Head,
    kernels: &dyn Kernels,
    blocks: &[&[u8]],
    block_bytes: usize,
    dst: &mut [u8],
    mut ahead: Ahead<'_>,
    masks: &[&[u8]],
) -> Result<()> {
    let unit_bytes = head.layout.unit_bytes;
    let at_once = kernels.blocks_at_once().min(MOST);
    let mut pending: [Option<Pending<'_, '_>>; MOST] = [const { None }; MOST];
    let mut n_pending = 0;
    for (i, (block, units)) in blocks.iter().zip(dst.chunks_mut(block_bytes)).enumerate() {
        let mut read = Block::read(head, block, units.len())?;
        let mut mask = None;
        // The others are decoded to the end of the block, and moved to their places from there.
        let mut begin = 0;
        if let Block::Zeros(zeros) = read {
            begin = units.len() - zeros.n_others * unit_bytes;
            read = zeros.read_others(head)?;
            mask = masks.get(i).map(|mask| &mask[..(units.len() / unit_bytes).div_ceil(8)]);
        }
        match read {
            Block::Raw(body) => units[begin..].copy_from_slice(body),
            Block::Constant(values) => {
                for piece in units[begin..].chunks_mut(values.len()) {
                    piece.copy_from_slice(&values[..piece.len()]);
                }
            }
            Block::Ans(sections) => {
                let this = Pending { sections, units, mask };
                let others = &mut pending[..n_pending];
                if let [Some(first), ..] = others
                    && !first.goes_with(&this)
                {
                    finish_all(head, kernels, others, std::mem::take(&mut ahead))?;
                    n_pending = 0;
                }
                pending[n_pending] = Some(this);
                n_pending += 1;
                if n_pending == at_once {
                    let all = &mut pending[..n_pending];
                    finish_all(head, kernels, all, std::mem::take(&mut ahead))?;
                    n_pending = 0;
                }
                continue;
            }
            Block::Deflate(stream) => {
                let used = inflate(stream, &mut units[begin..])?;
                check_deflate_end(stream, used)?;
            }
            // The others of a block of kind *zeros* are of another kind, and blocks of kind
            // *columns* do not come here.
            Block::Zeros(_) | Block::Ordered(_) => return Err(Error::new(Rule::AnsBlockHeader)),
        }
        if let Some(mask) = mask {
            kernels.expand(unit_bytes, mask, units, begin);
        }
    }
    finish_all(head, kernels, &mut pending[..n_pending], ahead)
}

impl Pending<'_, '_> {
    /// [`go_together`].
    fn goes_with(&self, other: &Self) -> bool {
        let [a, b] = [self, other].map(|block| block.sections.n_groups);
        go_together(a.min(b), a.max(b))
    }
}

/// Decodes the blocks that are pending, at most [`MOST`], as many at once as kernels take.
fn finish_all(
    head: &Head,
    kernels: &dyn Kernels,
    mut pending: &mut [Option<Pending<'_, '_>>],
    mut ahead: Ahead<'_>,
) -> Result<()> {
    loop {
        let ahead = std::mem::take(&mut ahead);
        let n = match pending {
            [a @ Some(_), b @ Some(_), c @ Some(_), d @ Some(_)] => {
                let blocks = [a, b, c, d].map(|block| block.take());
                let [Some(a), Some(b), Some(c), Some(d)] = blocks else { return Ok(()) };
                finish(head, kernels, [a, b, c, d], ahead)?;
                4
            }
            [a @ Some(_), b @ Some(_), ..] => {
                let (Some(a), Some(b)) = (a.take(), b.take()) else { return Ok(()) };
                finish(head, kernels, [a, b], ahead)?;
                2
            }
            [a @ Some(_), ..] => {
                let Some(a) = a.take() else { return Ok(()) };
                finish(head, kernels, [a], ahead)?;
                1
            }
            _ => return Ok(()),
        };
        pending = &mut pending[n..];
    }
}

/// Decodes pending blocks, and moves the units of those with masks to their places.
fn finish<const N: usize>(
    head: &Head,
    kernels: &dyn Kernels,
    mut blocks: [Pending<'_, '_>; N],
    ahead: Ahead<'_>,
) -> Result<()> {
    let unit_bytes = head.layout.unit_bytes;
    // Where the coded units begin: those of a block with a mask go to its end first.
    let begin = |block: &Pending<'_, '_>| {
        let s = &block.sections;
        block.units.len() - s.n_groups * GROUP * unit_bytes - s.tail.len()
    };
    let parts = blocks.each_mut().map(|block| {
        let begin = begin(block);
        (&block.sections, &mut block.units[begin..])
    });
    decode_ans(head, kernels, parts, ahead)?;
    for block in blocks {
        if let Some(mask) = block.mask {
            let begin = begin(&block);
            kernels.expand(unit_bytes, mask, block.units, begin);
        }
    }
    Ok(())
}

/// Decodes blocks to units, each from its first group to its tail.
fn decode_ans<const N: usize>(
    head: &Head,
    kernels: &dyn Kernels,
    blocks: [(&Sections<'_>, &mut [u8]); N],
    mut ahead: Ahead<'_>,
) -> Result<()> {
    let sections = blocks.each_ref().map(|block| block.0);
    let mut units = blocks.map(|block| block.1);
    let unit_bytes = head.layout.unit_bytes;
    let least = sections.iter().map(|s| s.n_groups).min().unwrap_or(0);
    let equal = sections.iter().all(|s| s.n_groups == least);
    let mut jobs: [Job<'_>; N] = std::array::from_fn(|i| {
        let s = sections[i];
        Job::new(s.states, s.from_words, &s.group_tables[..s.n_groups])
    });
    let lines = ahead.lines_a_step(least);
    let mut group = 0;
    if head.is_of_bytes() {
        let n = least.saturating_sub(2);
        group = decode_bytes(head, kernels, &mut jobs, &mut units, n, |groups| {
            ahead.fetch(groups * lines);
        });
    }
    let mut low_at = [0; N];
    let blocks = (&sections, &mut jobs, &mut units, &mut low_at);
    // Of blocks of different lengths the last groups are decoded one block after the other.
    let together = if equal { least } else { least.saturating_sub(2) };
    group = decode_run(head, kernels, blocks, group..together, (&mut ahead, lines))?;
    if !equal {
        for (i, s) in sections.into_iter().enumerate() {
            let (job, units) = (&mut jobs[i], &mut units[i]);
            let (job, units) = (std::array::from_mut(job), std::array::from_mut(units));
            let blocks = (&[s], job, units, std::array::from_mut(&mut low_at[i]));
            decode_run(head, kernels, blocks, group..s.n_groups, (&mut ahead, lines))?;
        }
    }
    for (s, units) in sections.into_iter().zip(&mut units) {
        let (grouped, tail) = units.split_at_mut(s.n_groups * GROUP * unit_bytes);
        patch_exceptions(head, s, grouped)?;
        tail.copy_from_slice(s.tail);
    }
    Ok(())
}

/// Decodes the first `n` groups of blocks of bytes straight to units. Calls `between` after some
/// groups with their number. Returns `n`.
fn decode_bytes(
    head: &Head,
    kernels: &dyn Kernels,
    jobs: &mut [Job<'_>],
    units: &mut [&mut [u8]],
    n: usize,
    mut between: impl FnMut(usize),
) -> usize {
    const STEP: usize = 4;
    for group in (0..n).step_by(STEP) {
        let count = STEP.min(n - group);
        let mut pieces: [&mut [u8]; MOST] = Default::default();
        for (piece, units) in pieces.iter_mut().zip(&mut *units) {
            *piece = &mut units[group * GROUP..(group + count) * GROUP];
            prefetch(piece);
        }
        kernels.decode_symbols(head, jobs, &mut pieces[..jobs.len()]);
        between(count);
    }
    n
}

/// Blocks on their way: their sections, states, units, and how many bytes of their low planes are
/// used.
type Coding<'s, 'a, const N: usize> = (
    &'s [&'a Sections<'a>; N],
    &'s mut [Job<'a>; N],
    &'s mut [&'a mut [u8]; N],
    &'s mut [usize; N],
);

/// Decodes a range of groups of every block, by the backend's kernel for units where it has one.
/// Returns the first group that is not decoded: the end of the range, or one after it. Fetches
/// `ahead` meanwhile, so many lines a group.
fn decode_run<const N: usize>(
    head: &Head,
    kernels: &dyn Kernels,
    (sections, jobs, units, low_at): Coding<'_, '_, N>,
    groups: Range<usize>,
    (ahead, lines): (&mut Ahead<'_>, usize),
) -> Result<usize> {
    let unit_bytes = head.layout.unit_bytes;
    let mut symbols = [[0; 2 * GROUP]; N];
    let mut group = groups.start;
    if !head.is_of_bytes() && group < groups.end {
        let planes = |i: usize| sections[i].planes(head, group, low_at[i]);
        let planes: [_; N] = std::array::from_fn(planes);
        let mut rest = units.each_mut().map(|units| &mut units[group * GROUP * unit_bytes..]);
        let mut later = ahead.clone();
        let now = later.take_lines(groups.len() * lines);
        let n = kernels.decode_fused(head, jobs, &planes, &mut rest, now);
        if n > 0 {
            *ahead = later;
        }
        for (at, planes) in low_at.iter_mut().zip(&planes) {
            *at += planes.widths[..n].iter().map(|&width| low_len(width.into())).sum::<usize>();
        }
        group += n;
    }
    while group < groups.end {
        let range = group..group + groups_at_once(groups.end - group);
        group = range.end;
        let blocks = (sections, &mut *jobs, &mut *units, &mut *low_at);
        decode_groups(head, kernels, blocks, range, &mut symbols, || {
            // Not together with the output: many lines at once use up the line-fill buffers that
            // decoding needs.
            ahead.fetch(lines);
        })?;
    }
    Ok(group)
}

/// The last two groups at once, since the carried bytes lie among them; the others one by one, so
/// that memory is read and written at the pace of decoding.
fn groups_at_once(left: usize) -> usize {
    if left <= 2 { left } else { 1 }
}

/// Decodes a range of at most two groups of every block. Calls `between` after the first step.
#[inline(always)]
fn decode_groups<const N: usize>(
    head: &Head,
    kernels: &dyn Kernels,
    (sections, jobs, units, low_at): Coding<'_, '_, N>,
    groups: Range<usize>,
    symbols: &mut [[u8; 2 * GROUP]; N],
    between: impl FnOnce(),
) -> Result<()> {
    let bytes = GROUP * head.layout.unit_bytes;
    let piece = groups.start * bytes..groups.end * bytes;
    units.iter().for_each(|units| prefetch(&units[piece.clone()]));
    let mut slices = symbols.each_mut().map(|s| &mut s[..groups.len() * GROUP]);
    kernels.decode_symbols(head, jobs, &mut slices);
    between();
    for i in 0..N {
        let s = sections[i];
        let each = packed_len(head.layout.residual_bits);
        let end = || finish_states(&jobs[i], s.n_words, carried_len(s.n_groups * each));
        let last = (groups.end == s.n_groups).then(end).transpose()?;
        // The last groups end in what the states carried.
        let mut whole;
        let mut residual = &s.residual[groups.start * each..];
        if let Some(carried) = last {
            whole = [0; 2 * GROUP];
            let whole = &mut whole[..groups.len() * each];
            let (stored, rest) = whole.split_at_mut(residual.len());
            stored.copy_from_slice(residual);
            rest.copy_from_slice(&carried[..rest.len()]);
            residual = whole;
        }
        low_at[i] += kernels.join(
            head,
            &symbols[i].as_chunks().0[..groups.len()],
            residual,
            &s.lows[low_at[i]..],
            &s.group_widths[groups.clone()],
            &mut units[i][piece.clone()],
        );
    }
    Ok(())
}

/// Checks that the words were used up and that every lane ended as an encoder begins; returns the
/// `n_carried` bytes that the states carry, and zeros.
pub(crate) fn finish_states(
    job: &Job<'_>,
    n_words: usize,
    n_carried: usize,
) -> Result<[u8; CARRIED]> {
    if job.position() != n_words {
        return Err(Error::new(Rule::AnsWords)
            .expected(format!("{n_words} words"))
            .found(job.position()));
    }
    let mut carried = [0; CARRIED];
    for (lane, (&state, bytes)) in job.states.iter().zip(carried.as_chunks_mut::<2>().0).enumerate()
    {
        let carries = [0, 0xff, 0xffff][n_carried.saturating_sub(2 * lane).min(2)];
        if state & !carries != STATE_MIN {
            return Err(Error::new(Rule::AnsEndState)
                .expected("65536 and what the lane carries")
                .found(format!("{state} in lane {lane}")));
        }
        *bytes = (state as u16).to_le_bytes();
    }
    Ok(carried)
}

fn patch_exceptions(head: &Head, s: &Sections<'_>, units: &mut [u8]) -> Result<()> {
    let layout = &head.layout;
    for exception in s.exceptions(head) {
        let (position, field) = exception?;
        let unit = &mut units[position * layout.unit_bytes..][..layout.unit_bytes];
        let (_, high) = unit.split_at_mut(layout.unit_bytes - layout.high_bytes);
        let mut bytes = [0; 2];
        bytes[..high.len()].copy_from_slice(high);
        let residual = layout.residual(u16::from_le_bytes(bytes));
        let bytes = layout.high(field, residual).to_le_bytes();
        high.copy_from_slice(&bytes[..high.len()]);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::block::states_with;

    #[test]
    fn lanes_carry_what_is_carried_and_nothing_else() {
        let bytes: [u8; CARRIED] = std::array::from_fn(|i| i as u8 + 1);
        for n in 0..=CARRIED {
            let job = Job::new(states_with(&bytes[..n]), &[], &[]);
            let carried = finish_states(&job, 0, n).unwrap();
            assert!(carried[..n] == bytes[..n] && carried[n..].iter().all(|&b| b == 0));
            if let Some(fewer) = n.checked_sub(1) {
                let rule = finish_states(&job, 0, fewer).unwrap_err().rule();
                assert_eq!(rule, Rule::AnsEndState, "{n} bytes");
            }
        }
    }
}
