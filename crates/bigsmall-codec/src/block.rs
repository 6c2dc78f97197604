//! One block: sections, exceptions, what the end states carry (FORMAT.md sections 7.4 and 7.5).
#![warn(clippy::unwrap_used)]

use bigsmall_format::{Error, Result, Rule};

use crate::backend::{EntropyBackend, Job, LANES};
use crate::bits::{BitReader, BitWriter};
use crate::exceptions;
use crate::head::Head;
use crate::planes::{GROUP, packed_len};
use crate::units::{CostTable, low_len, low_width, pack_lows};

const KIND_RAW: u8 = 0;
const KIND_CONSTANT: u8 = 1;
const KIND_ANS: u8 = 2;
/// Kind, Rice parameter of the exceptions, their number, number of words.
const HEADER: usize = 8;
/// Bytes of a constant block: small, but large enough that a small file cannot swell without bound.
const CONSTANT_LEN: usize = 64;
/// Lower bound of a lane's state.
pub(crate) const STATE_MIN: u32 = 1 << 16;
/// Bytes that the end states carry, at most: 16 bits a lane.
const CARRIED: usize = 2 * LANES;
/// Groups that are decoded before they are put together, so that symbols stay in the level 1 cache. One more than a power of
/// two: the last piece always holds the last two groups, among which the carried bytes lie.
const PIECE: usize = 16;

/// Encodes one block of at most [`BLOCK_UNITS`](bigsmall_format::BLOCK_UNITS) units, appending it to `out`. Scratch memory
/// is kept between blocks.
#[derive(Default)]
pub(crate) struct BlockScratch {
    symbols: Vec<u8>,
    table_ids: Vec<u8>,
    low_ids: Vec<u8>,
    exceptions: Vec<(u32, u16)>,
    words: Vec<u16>,
    residual: Vec<u8>,
}

/// Encodes `units` as one block; returns its length, padding excluded.
pub(crate) fn encode(
    head: &Head,
    backend: &dyn EntropyBackend,
    tables: (&CostTable, &StandIns),
    units: &[u8],
    scratch: &mut BlockScratch,
    out: &mut Vec<u8>,
) -> usize {
    let begin = out.len();
    if is_constant(units, head.layout.unit_bytes) && units.len() >= CONSTANT_LEN {
        out.extend_from_slice(&[KIND_CONSTANT, 0, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&units[..CONSTANT_LEN - HEADER]);
        return CONSTANT_LEN;
    }
    let fits = encode_ans(head, backend, tables, units, scratch, out);
    if !fits || out.len() - begin >= HEADER + units.len() {
        out.truncate(begin);
        out.extend_from_slice(&[KIND_RAW, 0, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(units);
    }
    out.len() - begin
}

fn is_constant(units: &[u8], unit_bytes: usize) -> bool {
    units.len() > unit_bytes && units[unit_bytes..] == units[..units.len() - unit_bytes]
}

/// For each table, what the encoder makes of a symbol: itself, or the most frequent one in its place. The symbols from `first` to
/// `last` stay themselves; where others do too, or none, they are looked up.
pub(crate) struct StandIns(Vec<StandIn>);

struct StandIn {
    map: [u8; 256],
    first: u8,
    last: u8,
}

impl StandIns {
    pub(crate) fn new(head: &Head) -> StandIns {
        let each = head.tables.iter().map(|table| {
            let freqs = table.freqs();
            let coded = |s: usize| freqs.get(s).is_some_and(|&f| f > 0);
            let common = table.most_frequent();
            let map = std::array::from_fn(|s| if coded(s) { s as u8 } else { common });
            let below = (0..usize::from(common)).rev().take_while(|&s| coded(s)).count();
            let above = (usize::from(common) + 1..256).take_while(|&s| coded(s)).count();
            StandIn { map, first: common - below as u8, last: common + above as u8 }
        });
        StandIns(each.collect())
    }
}

/// Replaces symbols that their table has not, listing them as exceptions.
fn replace_exceptions(
    head: &Head,
    stand_ins: &StandIns,
    table_ids: &[u8],
    units: &[u8],
    symbols: &mut [u8],
    exceptions: &mut Vec<(u32, u16)>,
) {
    const PIECE: usize = 64;
    exceptions.clear();
    let unit_bytes = head.layout.unit_bytes;
    for (i, symbols) in symbols.as_chunks_mut::<PIECE>().0.iter_mut().enumerate() {
        let table = &stand_ins.0[usize::from(table_ids[i * PIECE / head.segment])];
        let span = table.last - table.first;
        if symbols.iter().fold(true, |all, s| all & (s.wrapping_sub(table.first) <= span)) {
            continue;
        }
        for (j, symbol) in symbols.iter_mut().enumerate() {
            let coded = table.map[usize::from(*symbol)];
            if coded != *symbol {
                let position = i * PIECE + j;
                let unit = &units[position * unit_bytes..][..unit_bytes];
                let mut h = [0];
                head.layout.split_heads(unit, &mut h);
                exceptions.push((position as u32, head.layout.field(h[0])));
                *symbol = coded;
            }
        }
    }
}

fn encode_ans(
    head: &Head,
    backend: &dyn EntropyBackend,
    (costs, stand_ins): (&CostTable, &StandIns),
    units: &[u8],
    scratch: &mut BlockScratch,
    out: &mut Vec<u8>,
) -> bool {
    let BlockScratch { symbols, table_ids, low_ids, exceptions, words, residual } = scratch;
    let layout = &head.layout;
    let n_groups = units.len() / layout.unit_bytes / GROUP;
    if n_groups == 0 {
        return false;
    }
    let n = n_groups * GROUP;
    let (units, tail) = units.split_at(n * layout.unit_bytes);
    symbols.resize(n, 0);
    residual.clear();
    residual.resize(n_groups * packed_len(layout.residual_bits), 0);
    backend.split(head, units, symbols, residual);
    backend.choose_tables(head, costs, symbols, table_ids);
    replace_exceptions(head, stand_ins, table_ids, units, symbols, exceptions);
    if exceptions.len() > usize::from(u16::MAX) {
        return false;
    }
    // The last bytes of the residual travel in the end states, 16 bits a lane, for nothing.
    let carried = residual.split_off(residual.len() - carried_len(residual.len()));
    let mut states = [STATE_MIN; LANES];
    for (state, pair) in states.iter_mut().zip(carried.as_chunks::<2>().0) {
        *state |= u32::from(u16::from_le_bytes(*pair));
    }
    // One more than there can be: a backend may write a word and not keep it.
    words.resize(n + 1, 0);
    let groups_of = |ids: &[u8], out: &mut [u8]| {
        for (group, out) in out.iter_mut().enumerate() {
            *out = ids[group / head.segment_groups()];
        }
    };
    let mut group_tables = [0; MAX_GROUPS];
    groups_of(table_ids, &mut group_tables[..n_groups]);
    let from = backend.encode(head, symbols, &group_tables[..n_groups], &mut states, words);
    let words = &words[from..];

    // Sections, in order.
    let rice = exceptions::rice_parameter(n, exceptions.len());
    out.extend_from_slice(&[KIND_ANS, rice as u8]);
    out.extend_from_slice(&(exceptions.len() as u16).to_le_bytes());
    out.extend_from_slice(&(words.len() as u32).to_le_bytes());
    write_states(&states, out);
    out.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    pad4(out);
    low_ids.clear();
    if layout.low_bits() > 0 {
        for units in units.chunks(head.segment * layout.unit_bytes) {
            let need = low_width(layout, units);
            // The narrowest width that keeps everything; the first keeps all bits.
            let id = head.low_widths.iter().rposition(|&w| w >= need).unwrap_or(0);
            low_ids.push(id as u8);
        }
    }
    let mut bits = BitWriter::default();
    table_ids.iter().for_each(|&id| bits.push(u32::from(id), head.table_id_bits()));
    low_ids.iter().for_each(|&id| bits.push(u32::from(id), head.low_id_bits()));
    out.extend(bits.finish());
    pad4(out);
    if layout.low_bits() > 0 {
        for (units, &id) in units.chunks(head.segment * layout.unit_bytes).zip(&*low_ids) {
            let width = u32::from(head.low_widths[usize::from(id)]);
            pack_lows(layout, units, width, out);
        }
    }
    out.extend_from_slice(residual);
    out.extend(exceptions::write(head, exceptions, rice));
    out.extend_from_slice(tail);
    true
}

/// Writes the first states of the decoder. They lie in 2^16..2^32, small ones as likely as large ones: for each 4 bits for its
/// length, then the bits below the leading one.
fn write_states(states: &[u32; LANES], out: &mut Vec<u8>) {
    let length = |s: u32| s.ilog2() - 16;
    for pair in states.as_chunks::<2>().0 {
        out.push((length(pair[0]) | length(pair[1]) << 4) as u8);
    }
    let mut bits = BitWriter::default();
    for &s in states {
        bits.push(s & ((1 << s.ilog2()) - 1), s.ilog2());
    }
    out.extend(bits.finish());
    pad4(out);
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
    if !bits.only_padding_left(4) {
        return Err(Error::new(Rule::PaddingNotZero).found("after the states"));
    }
    Ok(states)
}

/// Groups of a full block.
const MAX_GROUPS: usize = bigsmall_format::BLOCK_UNITS / GROUP;

fn carried_len(residual_len: usize) -> usize {
    residual_len.min(CARRIED)
}

fn pad4(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

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
                    // Two blocks at once keep both halves of the machine busy; they must be of one length.
                    Some((first, first_units)) if first.n_groups == sections.n_groups => {
                        decode_ans(head, backend, [first, sections], [first_units, units])?;
                    }
                    Some((first, first_units)) => {
                        decode_ans(head, backend, [first], [first_units])?;
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
        decode_ans(head, backend, [sections], [units])?;
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
) -> Result<()> {
    let n_groups = sections.first().map_or(0, |s| s.n_groups);
    let unit_bytes = head.layout.unit_bytes;
    let mut jobs: [Job<'_>; N] = std::array::from_fn(|i| {
        let s = &sections[i];
        Job::new(s.states, s.from_words, &s.group_tables[..s.n_groups])
    });
    let residuals = sections.each_ref().map(|s| s.residual);
    let mut group = backend.decode_fused(head, &mut jobs, &residuals, &mut units);
    if group < n_groups {
        let mut symbols = [[0; (PIECE + 1) * GROUP]; N];
        let mut low_at = [0; N];
        while group < n_groups {
            let left = n_groups - group;
            let count = if left <= PIECE + 1 { left } else { PIECE };
            let mut slices = symbols.each_mut().map(|s| &mut s[..count * GROUP]);
            backend.decode_symbols(head, &mut jobs, &mut slices);
            for i in 0..N {
                let s = &sections[i];
                let last = (group + count == n_groups)
                    .then(|| finish_states(head, &jobs[i], s))
                    .transpose()?;
                let piece = group * GROUP * unit_bytes..(group + count) * GROUP * unit_bytes;
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
                    &mut units[i][piece],
                );
            }
            group += count;
        }
    }
    for (s, units) in sections.iter().zip(&mut units) {
        let (grouped, tail) = units.split_at_mut(n_groups * GROUP * unit_bytes);
        patch_exceptions(head, s, grouped)?;
        tail.copy_from_slice(s.tail);
    }
    Ok(())
}

/// Checks that the words were used up and that every lane ended as an encoder begins; returns the carried bytes.
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
