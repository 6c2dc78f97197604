//! Blocks to units.
#![warn(clippy::unwrap_used)]

use std::ops::Range;

use bigsmall_format::internal::{Ahead, prefetch_output};
use bigsmall_format::{Error, Result, Rule};

use crate::block::sections::{
    Block, CARRIED, KIND_ZEROS, MAX_MASK, Sections, Zeros, carried_len, check_deflate_end,
    check_mask,
};
use crate::deflate::inflate;
use crate::head::Head;
use crate::kernels::{Job, Kernels, STATE_MIN};
use crate::planes::{GROUP, packed_len};

/// Decodes `blocks`, whose units fill `dst`; all but the last have `block_bytes`.
pub(crate) fn decode(
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
    decode_blocks(head, kernels, blocks, block_bytes, dst, ahead, &mut [&mut [], &mut []])
}

/// The masks lie on the stack: no allocation, and nothing is paid where there are none.
#[inline(never)]
fn decode_with_masks(
    head: &Head,
    kernels: &dyn Kernels,
    blocks: &[&[u8]],
    block_bytes: usize,
    dst: &mut [u8],
    ahead: Ahead<'_>,
) -> Result<()> {
    let (mut a, mut b) = ([0; MAX_MASK], [0; MAX_MASK]);
    decode_blocks(head, kernels, blocks, block_bytes, dst, ahead, &mut [&mut a, &mut b])
}

/// An ANS block that waits for another one, to be decoded together with it.
struct Pending<'a, 'd> {
    sections: Sections<'a>,
    /// Where its units go: the whole block.
    units: &'d mut [u8],
    /// Which of the masks is that of the block, if it is one of kind *zeros*; the coded units are
    /// then the others.
    mask: Option<usize>,
}

fn decode_blocks(
    head: &Head,
    kernels: &dyn Kernels,
    blocks: &[&[u8]],
    block_bytes: usize,
    dst: &mut [u8],
    mut ahead: Ahead<'_>,
    masks: &mut [&mut [u8]; 2],
) -> Result<()> {
    let unit_bytes = head.layout.unit_bytes;
    if !dst.len().is_multiple_of(unit_bytes) {
        return Err(Error::new(Rule::BufferLength)
            .expected(format!("a multiple of {unit_bytes} bytes"))
            .found(dst.len()));
    }
    let mut pending: Option<Pending<'_, '_>> = None;
    let mut pieces = dst.chunks_mut(block_bytes);
    for block in blocks {
        let Some(units) = pieces.next() else {
            return Err(Error::new(Rule::BufferLength).expected("as many blocks as units"));
        };
        let mut read = Block::read(head, block, units.len())?;
        let mut mask = None;
        // The others are decoded to the end of the block, and moved to their places from there.
        let mut begin = 0;
        if let Block::Zeros(zeros) = read {
            let slot = usize::from(pending.as_ref().is_some_and(|p| p.mask == Some(0)));
            decode_mask(head, kernels, &zeros, units.len() / unit_bytes, masks[slot])?;
            begin = units.len() - zeros.n_others * unit_bytes;
            read = zeros.read_others(head)?;
            mask = Some(slot);
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
                // Two blocks at once keep both halves of the machine busy. Without masks they must
                // be of one length.
                let ahead = match &pending {
                    None => Ahead::default(),
                    Some(_) => std::mem::take(&mut ahead),
                };
                pending = match pending {
                    None => Some(this),
                    Some(first)
                        if first.sections.n_groups == this.sections.n_groups
                            || first.mask.is_some() && this.mask.is_some() =>
                    {
                        finish(head, kernels, [first, this], masks, ahead)?;
                        None
                    }
                    Some(first) => {
                        finish(head, kernels, [first], masks, ahead)?;
                        Some(this)
                    }
                };
                continue;
            }
            Block::Deflate(stream) => {
                let used = inflate(stream, &mut units[begin..])?;
                check_deflate_end(stream, used)?;
            }
            // The others of a block of this kind are of another kind.
            Block::Zeros(_) => return Err(Error::new(Rule::AnsBlockHeader)),
        }
        if let Some(slot) = mask {
            kernels.expand(unit_bytes, masks[slot], units, begin);
        }
    }
    if let Some(last) = pending {
        finish(head, kernels, [last], masks, ahead)?;
    }
    match pieces.next() {
        None => Ok(()),
        Some(_) => Err(Error::new(Rule::BufferLength).expected("as many blocks as units")),
    }
}

/// Decodes pending blocks, and moves the units of those with masks to their places.
fn finish<const N: usize>(
    head: &Head,
    kernels: &dyn Kernels,
    mut blocks: [Pending<'_, '_>; N],
    masks: &[&mut [u8]; 2],
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
        if let Some(slot) = block.mask {
            let begin = begin(&block);
            kernels.expand(unit_bytes, masks[slot], block.units, begin);
        }
    }
    Ok(())
}

/// Decodes the mask of a block of `n_units`, and compares it with the number of others.
fn decode_mask(
    head: &Head,
    kernels: &dyn Kernels,
    zeros: &Zeros<'_>,
    n_units: usize,
    mask: &mut [u8],
) -> Result<()> {
    let Some(mask_head) = &head.mask else { return Err(Error::new(Rule::AnsBlockHeader)) };
    let mask = &mut mask[..n_units.div_ceil(8)];
    decode(mask_head, kernels, &[zeros.mask], mask.len(), mask, Ahead::default())?;
    check_mask(mask, n_units, zeros.n_others)
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
    let residuals = sections.map(|s| s.residual);
    let mut group = kernels.decode_fused(head, &mut jobs, &residuals, &mut units, ahead.clone());
    let mut symbols = [[0; 2 * GROUP]; N];
    let mut low_at = [0; N];
    let lines = ahead.lines_a_step(least);
    // Of blocks of different lengths the last groups are decoded one block after the other.
    let together = if equal { least } else { least.saturating_sub(2) };
    while group < together {
        let count = if equal { groups_at_once(least - group) } else { 1 };
        let range = group..group + count;
        let blocks = (&sections, &mut jobs, &mut units, &mut low_at);
        decode_groups(head, kernels, blocks, range, &mut symbols, || {
            // Not together with the output: many lines at once use up the line-fill buffers that
            // decoding needs.
            ahead.fetch(lines);
        })?;
        group += count;
    }
    if !equal {
        for (i, s) in sections.into_iter().enumerate() {
            // The backend's kernel once more, from here on.
            let job = std::array::from_mut(&mut jobs[i]);
            job[0].group_tables = &s.group_tables[group..s.n_groups];
            job[0].group = 0;
            let residual = &s.residual[group * packed_len(head.layout.residual_bits)..];
            let rest = &mut units[i][group * GROUP * unit_bytes..];
            let (residual, rest) = (&[residual], &mut [rest]);
            let mut at = group + kernels.decode_fused(head, job, residual, rest, ahead.clone());
            while at < s.n_groups {
                let range = at..at + groups_at_once(s.n_groups - at);
                at = range.end;
                let units = std::array::from_mut(&mut units[i]);
                let low_at = std::array::from_mut(&mut low_at[i]);
                let symbols = std::array::from_mut(&mut symbols[i]);
                decode_groups(head, kernels, (&[s], job, units, low_at), range, symbols, || {})?;
            }
        }
    }
    for (s, units) in sections.into_iter().zip(&mut units) {
        let (grouped, tail) = units.split_at_mut(s.n_groups * GROUP * unit_bytes);
        patch_exceptions(head, s, grouped)?;
        tail.copy_from_slice(s.tail);
    }
    Ok(())
}

/// Blocks on their way: their sections, states, units, and how many bytes of their low planes are
/// used.
type Coding<'s, 'a, const N: usize> = (
    &'s [&'a Sections<'a>; N],
    &'s mut [Job<'a>; N],
    &'s mut [&'a mut [u8]; N],
    &'s mut [usize; N],
);

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
    units.iter().for_each(|units| prefetch_output(&units[piece.clone()]));
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
