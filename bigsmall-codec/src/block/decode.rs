//! Blocks to units.
#![warn(clippy::unwrap_used)]

use bigsmall_format::internal::{Ahead, prefetch_output};
use bigsmall_format::{Error, Result, Rule};

use crate::block::sections::{Block, CARRIED, Sections, carried_len};
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
    mut ahead: Ahead<'_>,
) -> Result<()> {
    let unit_bytes = head.layout.unit_bytes;
    if !dst.len().is_multiple_of(unit_bytes) {
        return Err(Error::new(Rule::BufferLength)
            .expected(format!("a multiple of {unit_bytes} bytes"))
            .found(dst.len()));
    }
    let mut pending: Option<(Sections<'_>, &mut [u8])> = None;
    let mut pieces = dst.chunks_mut(block_bytes);
    for block in blocks {
        let Some(units) = pieces.next() else {
            return Err(Error::new(Rule::BufferLength).expected("as many blocks as units"));
        };
        match Block::read(head, block, units.len())? {
            Block::Raw(body) => units.copy_from_slice(body),
            Block::Constant(values) => {
                for piece in units.chunks_mut(values.len()) {
                    piece.copy_from_slice(&values[..piece.len()]);
                }
            }
            Block::Ans(sections) => match pending.take() {
                // Two blocks at once keep both halves of the machine busy; they must be of one
                // length.
                Some((first, first_units)) if first.n_groups == sections.n_groups => {
                    let ahead = std::mem::take(&mut ahead);
                    decode_ans(head, kernels, [first, sections], [first_units, units], ahead)?;
                }
                Some((first, first_units)) => {
                    let ahead = std::mem::take(&mut ahead);
                    decode_ans(head, kernels, [first], [first_units], ahead)?;
                    pending = Some((sections, units));
                }
                None => pending = Some((sections, units)),
            },
        }
    }
    if let Some((sections, units)) = pending {
        decode_ans(head, kernels, [sections], [units], ahead)?;
    }
    match pieces.next() {
        None => Ok(()),
        Some(_) => Err(Error::new(Rule::BufferLength).expected("as many blocks as units")),
    }
}

fn decode_ans<const N: usize>(
    head: &Head,
    kernels: &dyn Kernels,
    sections: [Sections<'_>; N],
    mut units: [&mut [u8]; N],
    mut ahead: Ahead<'_>,
) -> Result<()> {
    let n_groups = sections.first().map_or(0, |s| s.n_groups);
    let unit_bytes = head.layout.unit_bytes;
    let mut jobs: [Job<'_>; N] = std::array::from_fn(|i| {
        let s = &sections[i];
        Job::new(s.states, s.from_words, &s.group_tables[..s.n_groups])
    });
    let residuals = sections.each_ref().map(|s| s.residual);
    let mut group = kernels.decode_fused(head, &mut jobs, &residuals, &mut units, ahead.clone());
    // The last two groups at once, since the carried bytes lie among them; the others one by one,
    // so that memory is read and written at the pace of decoding.
    let mut symbols = [[0; 2 * GROUP]; N];
    let mut low_at = [0; N];
    let lines = ahead.lines_a_step(n_groups);
    while group < n_groups {
        let count = if n_groups - group <= 2 { n_groups - group } else { 1 };
        let piece = group * GROUP * unit_bytes..(group + count) * GROUP * unit_bytes;
        units.iter().for_each(|units| prefetch_output(&units[piece.clone()]));
        let mut slices = symbols.each_mut().map(|s| &mut s[..count * GROUP]);
        kernels.decode_symbols(head, &mut jobs, &mut slices);
        // Not together with the output: many lines at once use up the line-fill buffers that
        // decoding needs.
        ahead.fetch(lines);
        for i in 0..N {
            let s = &sections[i];
            let last = (group + count == n_groups)
                .then(|| finish_states(head, &jobs[i], s))
                .transpose()?;
            let each = packed_len(head.layout.residual_bits);
            // The last groups end in what the states carried.
            let whole;
            let residual = match last {
                None => &s.residual[group * each..],
                Some(carried) => {
                    let missing = n_groups * each - s.residual.len();
                    whole = [&s.residual[group * each..], &carried[..missing]].concat();
                    &whole
                }
            };
            low_at[i] += kernels.join(
                head,
                &symbols[i].as_chunks().0[..count],
                residual,
                &s.lows[low_at[i]..],
                &s.group_widths[group..group + count],
                &mut units[i][piece.clone()],
            );
        }
        group += count;
    }
    for (s, units) in sections.iter().zip(&mut units) {
        let (grouped, tail) = units.split_at_mut(n_groups * GROUP * unit_bytes);
        patch_exceptions(head, s, grouped)?;
        tail.copy_from_slice(s.tail);
    }
    Ok(())
}

/// Checks that the words were used up and that every lane ended as an encoder begins; returns the
/// carried bytes.
fn finish_states(head: &Head, job: &Job<'_>, s: &Sections<'_>) -> Result<[u8; CARRIED]> {
    if job.position() != s.n_words {
        return Err(Error::new(Rule::AnsWords)
            .expected(format!("{} words", s.n_words))
            .found(job.position()));
    }
    let carried_lanes = carried_len(s.n_groups * packed_len(head.layout.residual_bits)) / 2;
    let mut carried = [0; CARRIED];
    for (lane, (&state, bytes)) in job.states.iter().zip(carried.as_chunks_mut::<2>().0).enumerate()
    {
        if state >> 16 != 1 || (lane >= carried_lanes && state != STATE_MIN) {
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
        let (_, head_bytes) = unit.split_at_mut(layout.unit_bytes - layout.head_bytes);
        let mut bytes = [0; 2];
        bytes[..head_bytes.len()].copy_from_slice(head_bytes);
        let residual = layout.residual(u16::from_le_bytes(bytes));
        let bytes = layout.head(field, residual).to_le_bytes();
        head_bytes.copy_from_slice(&bytes[..head_bytes.len()]);
    }
    Ok(())
}
