//! Blocks to units: every section is checked before it is used.
#![warn(clippy::unwrap_used)]

use bigsmall_format::{Ahead, Error, Result, Rule, fetch_output};

use super::*;
use crate::backend::{EntropyBackend, Job};
use crate::bits::BitReader;
use crate::exceptions;
use crate::head::Head;
use crate::planes::packed_len;
use crate::units::low_len;

/// The sections of an ANS block, each of its exact length.
struct Sections<'a> {
    n_groups: usize,
    states: [u32; LANES],
    n_exceptions: usize,
    rice: u32,
    exceptions: &'a [u8],
    /// Everything from the words on, so that a backend may read ahead of them within the block.
    from_words: &'a [u8],
    n_words: usize,
    group_tables: [u8; MAX_GROUPS],
    group_widths: [u8; MAX_GROUPS],
    lows: &'a [u8],
    residual: &'a [u8],
    tail: &'a [u8],
}

impl<'a> Sections<'a> {
    fn read(head: &Head, block: &'a [u8], n_units: usize) -> Result<Sections<'a>> {
        let length = |expected: usize| {
            Error::new(Rule::AnsBlockLength)
                .expected(format!("{expected} bytes"))
                .found(block.len())
        };
        let layout = &head.layout;
        let n_groups = n_units / GROUP;
        let (fixed, mut rest) = block.split_at_checked(HEADER).ok_or_else(|| length(HEADER))?;
        let n_exceptions = usize::from(u16::from_le_bytes([fixed[2], fixed[3]]));
        let n_words = u32::from_le_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]) as usize;
        let rice = u32::from(fixed[1]);
        if rice > exceptions::MAX_RICE || n_words > n_groups * GROUP || n_groups == 0 {
            return Err(Error::new(Rule::AnsBlockHeader)
                .at(0)
                .expected(format!("at most {} words in {n_groups} groups", n_groups * GROUP))
                .found(n_words));
        }
        let mut take = |n: usize| {
            let (taken, after) =
                rest.split_at_checked(n).ok_or_else(|| length(block.len() - rest.len() + n))?;
            rest = after;
            Ok::<_, Error>((taken, after))
        };
        let (lengths, state_bits) = take(LANES / 2)?;
        let n_bits: usize =
            lengths.iter().map(|&b| 32 + usize::from(b >> 4) + usize::from(b & 15)).sum();
        let (_, from_words) = take(n_bits.div_ceil(8).next_multiple_of(4))?;
        let states = read_states(lengths, &state_bits[..state_bits.len() - from_words.len()])?;
        let (words, _) = take((2 * n_words).next_multiple_of(4))?;
        let n_segments = n_groups.div_ceil(head.segment_groups());
        let id_bits = n_segments * (head.table_id_bits() + head.low_id_bits()) as usize;
        let (ids, _) = take(id_bits.div_ceil(8).next_multiple_of(4))?;
        let (mut group_tables, mut group_widths) = ([0; MAX_GROUPS], [0; MAX_GROUPS]);
        let mut bits = BitReader::new(ids);
        let wrong = |what: &str| Error::new(Rule::AnsTableId).found(what);
        let mut read_ids = |n: u32, most: usize, what: &str, each: &mut dyn FnMut(usize, usize)| {
            for segment in 0..n_segments {
                let id = bits.pull(n).ok_or_else(|| wrong(what))? as usize;
                if id >= most {
                    return Err(wrong(what).expected(format!("below {most}")));
                }
                let from = segment * head.segment_groups();
                for group in from..n_groups.min(from + head.segment_groups()) {
                    each(group, id);
                }
            }
            Ok(())
        };
        let n_tables = head.tables.len();
        read_ids(head.table_id_bits(), n_tables, "a table", &mut |group, id| {
            group_tables[group] = id as u8;
        })?;
        if layout.low_bits() > 0 {
            let n_widths = head.low_widths.len();
            read_ids(head.low_id_bits(), n_widths, "a low width", &mut |group, id| {
                group_widths[group] = head.low_widths[id];
            })?;
        }
        let all_zero = |bytes: &[u8]| bytes.iter().all(|&b| b == 0);
        let ids_padding = ids.get(id_bits.div_ceil(8)..).is_some_and(all_zero);
        let last_bits = match id_bits % 8 {
            0 => true,
            used => ids[id_bits / 8] >> used == 0,
        };
        if !all_zero(&words[2 * n_words..]) || !ids_padding || !last_bits {
            return Err(Error::new(Rule::PaddingNotZero));
        }
        let low_total = group_widths[..n_groups].iter().map(|&w| low_len(u32::from(w))).sum();
        let (lows, _) = take(low_total)?;
        let residual_len = n_groups * packed_len(layout.residual_bits);
        let (residual, _) = take(residual_len - carried_len(residual_len))?;
        // The exceptions fill what is left before the tail.
        let tail_len = (n_units - n_groups * GROUP) * layout.unit_bytes;
        let exceptions_len = rest.len().checked_sub(tail_len);
        let exceptions_len =
            exceptions_len.ok_or_else(|| length(block.len() - rest.len() + tail_len))?;
        let (exceptions, tail) = rest.split_at(exceptions_len);
        Ok(Sections {
            n_groups,
            states,
            n_exceptions,
            rice,
            exceptions,
            from_words,
            n_words,
            group_tables,
            group_widths,
            lows,
            residual,
            tail,
        })
    }
}

/// Decodes `blocks`, whose units fill `dst`; all but the last have `block_bytes`.
pub(crate) fn decode(
    head: &Head,
    backend: &dyn EntropyBackend,
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
        match block.first() {
            Some(&KIND_RAW) => {
                let body = block.split_at_checked(HEADER);
                match body {
                    Some((header, body)) if body.len() == units.len() => {
                        check_header_zero(header)?;
                        units.copy_from_slice(body);
                    }
                    _ => {
                        return Err(Error::new(Rule::AnsBlockLength)
                            .expected(HEADER + units.len())
                            .found(block.len()));
                    }
                }
            }
            Some(&KIND_CONSTANT) => decode_constant(head.layout.unit_bytes, block, units)?,
            Some(&KIND_ANS) => {
                let n_units = units.len() / head.layout.unit_bytes;
                let sections = Sections::read(head, block, n_units)?;
                match pending.take() {
                    // Two blocks at once keep both halves of the machine busy; they must be of one
                    // length.
                    Some((first, first_units)) if first.n_groups == sections.n_groups => {
                        let ahead = std::mem::take(&mut ahead);
                        decode_ans(head, backend, [first, sections], [first_units, units], ahead)?;
                    }
                    Some((first, first_units)) => {
                        let ahead = std::mem::take(&mut ahead);
                        decode_ans(head, backend, [first], [first_units], ahead)?;
                        pending = Some((sections, units));
                    }
                    None => pending = Some((sections, units)),
                }
            }
            kind => {
                return Err(Error::new(Rule::AnsBlockHeader)
                    .at(0)
                    .expected("kind 0, 1 or 2")
                    .found(kind.map_or(-1, |&k| i32::from(k))));
            }
        }
    }
    if let Some((sections, units)) = pending {
        decode_ans(head, backend, [sections], [units], ahead)?;
    }
    match pieces.next() {
        None => Ok(()),
        Some(_) => Err(Error::new(Rule::BufferLength).expected("as many blocks as units")),
    }
}

fn check_header_zero(header: &[u8]) -> Result<()> {
    if header[1..].iter().any(|&b| b != 0) {
        return Err(Error::new(Rule::AnsBlockHeader).at(1).expected("zeros"));
    }
    Ok(())
}

fn decode_constant(unit_bytes: usize, block: &[u8], units: &mut [u8]) -> Result<()> {
    let wrong = |what: &str| Error::new(Rule::ConstantBlock).expected(what);
    if block.len() != CONSTANT_LEN || units.len() < CONSTANT_LEN {
        return Err(wrong("64 bytes for a block of 64 bytes or more"));
    }
    let (header, values) = block.split_at(HEADER);
    check_header_zero(header)?;
    if !is_constant(values, unit_bytes) {
        return Err(wrong("one unit repeated"));
    }
    for piece in units.chunks_mut(values.len()) {
        piece.copy_from_slice(&values[..piece.len()]);
    }
    Ok(())
}

fn decode_ans<const N: usize>(
    head: &Head,
    backend: &dyn EntropyBackend,
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
    let mut group = backend.decode_fused(head, &mut jobs, &residuals, &mut units, ahead.clone());
    // The last two groups at once, since the carried bytes lie among them; the others one by one,
    // so that memory is read and written at the pace of decoding.
    let mut symbols = [[0; 2 * GROUP]; N];
    let mut low_at = [0; N];
    let lines = ahead.lines_a_step(n_groups);
    while group < n_groups {
        let count = if n_groups - group <= 2 { n_groups - group } else { 1 };
        let piece = group * GROUP * unit_bytes..(group + count) * GROUP * unit_bytes;
        units.iter().for_each(|units| fetch_output(&units[piece.clone()]));
        let mut slices = symbols.each_mut().map(|s| &mut s[..count * GROUP]);
        backend.decode_symbols(head, &mut jobs, &mut slices);
        // Not together with the output: many lines at once take the places of what decoding itself
        // waits for.
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
            low_at[i] += backend.join(
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

fn read_states(lengths: &[u8], bytes: &[u8]) -> Result<[u32; LANES]> {
    let mut bits = BitReader::new(bytes);
    let mut states = [STATE_MIN; LANES];
    let lengths = lengths.iter().flat_map(|&b| [b & 15, b >> 4]);
    for (state, length) in states.iter_mut().zip(lengths) {
        let short = || Error::new(Rule::AnsBlockLength);
        let low = bits.pull(16).ok_or_else(short)?;
        let high = bits.pull(u32::from(length)).ok_or_else(short)?;
        *state = (1 << length | high) << 16 | low;
    }
    bits.finish(4, Rule::AnsBlockLength)?;
    Ok(states)
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
    let n = s.n_groups * GROUP;
    exceptions::read(head, s.exceptions, s.rice, s.n_exceptions, n, |position, field| {
        let table = &head.tables[usize::from(s.group_tables[position / GROUP])];
        if table.freqs().get(usize::from(head.symbol(field))).is_some_and(|&f| f > 0) {
            return Err(Error::new(Rule::AnsException)
                .expected("a field that the table has not")
                .found(format!("field {field} at unit {position}")));
        }
        let unit = &mut units[position * layout.unit_bytes..][..layout.unit_bytes];
        let (_, head_bytes) = unit.split_at_mut(layout.unit_bytes - layout.head_bytes);
        let mut bytes = [0; 2];
        bytes[..head_bytes.len()].copy_from_slice(head_bytes);
        let residual = layout.residual(u16::from_le_bytes(bytes));
        let bytes = layout.head(field, residual).to_le_bytes();
        head_bytes.copy_from_slice(&bytes[..head_bytes.len()]);
        Ok(())
    })
}
