//! Units to blocks.

use bigsmall_format::Result;
use bigsmall_format::internal::{reserve, set_len};

use crate::bits::BitWriter;
use crate::block::sections::{
    CONSTANT_LEN, DEFLATE_LEAST, HEADER, KIND_ANS, KIND_CONSTANT, KIND_DEFLATE, KIND_RAW,
    KIND_ZEROS, carried_len, columns_header, is_constant,
};
use crate::columns::Columns;
use crate::deflate::{Deflater, Screen, WINDOW};
use crate::exceptions;
use crate::head::Head;
use crate::kernels::{EncodeJob, Kernels, LANES, ROOM, STATE_MIN};
use crate::planes::{GROUP, packed_len};
use crate::units::{CostTable, StandIns, pack_lows};
use crate::zeros;

/// Blocks with columns that are encoded at once.
const WITH_COLUMNS: usize = 2;
/// Blocks that are encoded at once, at most.
const MOST: usize = 4;

/// Zeros from which on a block has a mask: with fewer, the exceptions that they are otherwise take
/// about as much as the mask's states.
const FEWEST_ZEROS: usize = 64;

/// More than header, states, table and width numbers of a block take.
const SMALL_SECTIONS: usize = 4096;

/// Encodes the blocks of one tensor.
pub(crate) struct Encoder {
    pub(crate) head: Head,
    costs: CostTable,
    stand_ins: StandIns,
    kernels: &'static dyn Kernels,
    /// Which blocks may be worth a general compressor, if any.
    screen: Option<Screen>,
    /// The encoder of masks, if the head has one for them.
    masks: Option<Box<Encoder>>,
}

/// Memory that is kept between calls: fresh memory costs as much as coding.
#[derive(Default)]
pub(crate) struct Scratch {
    parts: [Parts; MOST],
    /// Mask and other units of a block of kind *zeros*.
    mask: Vec<u8>,
    others: Vec<u8>,
    /// Units in the order of the classes of their columns, and blocks of them.
    ordered: Vec<u8>,
    within: Vec<u8>,
    deflater: Deflater,
}

/// The parts of a block before its sections are written.
#[derive(Default)]
struct Parts {
    symbols: Vec<u8>,
    table_ids: Vec<u8>,
    group_tables: Vec<u8>,
    exceptions: Vec<(u32, u16)>,
    residual: Vec<u8>,
    /// How many low bits each group needs.
    widths: Vec<u8>,
    states: [u32; LANES],
    words: Vec<u16>,
    /// Where the words begin.
    begin: usize,
}

impl Encoder {
    pub(crate) fn new(mut head: Head, kernels: &'static dyn Kernels) -> Encoder {
        let masks = head.mask.take().map(|mask| Box::new(Encoder::new(*mask, kernels)));
        let (costs, stand_ins) = (CostTable::new(&head), StandIns::new(&head));
        Encoder { head, costs, stand_ins, kernels, screen: None, masks }
    }

    /// Whether blocks may be of kind *zeros*.
    pub(crate) fn has_masks(&self) -> bool {
        self.masks.is_some()
    }

    /// The same with blocks of kind *deflate* where they win. `row_bytes` has the distances at
    /// which the tensor may repeat itself.
    pub(crate) fn with_deflate(self, row_bytes: impl IntoIterator<Item = u64>) -> Encoder {
        let strides = row_bytes.into_iter().filter(|&bytes| bytes <= WINDOW as u64);
        let strides = strides.map(|bytes| bytes as usize).collect();
        let layout = &self.head.layout;
        let screen = Screen::new(layout.unit_bytes, layout.residual_bits > 0, strides);
        let masks = self.masks.map(|masks| Box::new(masks.with_deflate([])));
        Encoder { screen: Some(screen), masks, ..self }
    }

    /// Encodes `units`, blocks of `block_bytes` of which the last may be shorter; appends them to
    /// `out`, each padded to a multiple of 8 bytes, and their lengths without the padding to
    /// `lens`. An error if there is no memory.
    pub(crate) fn encode(
        &self,
        units: &[u8],
        block_bytes: usize,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
        lens: &mut Vec<u32>,
    ) -> Result<()> {
        let Some(masks) = &self.masks else {
            return self.encode_plain(units, block_bytes, scratch, out, lens);
        };
        // Blocks that have no mask wait, so that several of them are encoded at once.
        let mut waiting = 0;
        for (index, block) in units.chunks(block_bytes).enumerate() {
            let n_zeros = zeros::count(self.head.layout.unit_bytes, block);
            let n_units = block.len() / self.head.layout.unit_bytes;
            if n_units < GROUP || !(FEWEST_ZEROS..n_units).contains(&n_zeros) {
                continue;
            }
            let begin = index * block_bytes;
            self.encode_plain(&units[waiting..begin], block_bytes, scratch, out, lens)?;
            waiting = begin;
            if self.encode_with_mask(masks, block, n_zeros, scratch, out, lens)? {
                waiting += block.len();
            }
        }
        self.encode_plain(&units[waiting..], block_bytes, scratch, out, lens)
    }

    /// [`encode`](Self::encode) for the blocks of the tensor from number `first_block` on: where
    /// the head has columns, they are of kind *columns*.
    pub(crate) fn encode_at(
        &self,
        first_block: u64,
        units: &[u8],
        block_bytes: usize,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
        lens: &mut Vec<u32>,
    ) -> Result<()> {
        let Some(columns) = &self.head.columns else {
            return self.encode(units, block_bytes, scratch, out, lens);
        };
        for (i, units) in units.chunks(WITH_COLUMNS * block_bytes).enumerate() {
            let block = first_block.wrapping_add((i * WITH_COLUMNS) as u64);
            self.encode_ordered(columns, block, units, block_bytes, scratch, out, lens)?;
        }
        Ok(())
    }

    /// [`encode_at`](Self::encode_at) for at most [`WITH_COLUMNS`] blocks.
    #[allow(clippy::too_many_arguments)] // those of `encode`, and which columns the units are in
    fn encode_ordered(
        &self,
        columns: &Columns,
        first_block: u64,
        units: &[u8],
        block_bytes: usize,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
        lens: &mut Vec<u32>,
    ) -> Result<()> {
        let unit_bytes = self.head.layout.unit_bytes;
        let (mut ordered, mut within) =
            (std::mem::take(&mut scratch.ordered), std::mem::take(&mut scratch.within));
        set_len(&mut ordered, units.len())?;
        within.clear();
        let block_units = block_bytes / unit_bytes;
        let firsts = [0, 1].map(|i| columns.of_block(first_block.wrapping_add(i), block_units));
        let blocks = || firsts.into_iter().zip(units.chunks(block_bytes));
        for ((first, from), to) in blocks().zip(ordered.chunks_mut(block_bytes)) {
            columns.put_in_order(unit_bytes, first, from, to);
        }
        let mut within_lens = Vec::new();
        self.encode_plain(&ordered, block_bytes, scratch, &mut within, &mut within_lens)?;
        let mut rest = &within[..];
        for ((first, units), len) in blocks().zip(within_lens) {
            let (block, after) = rest.split_at((len as usize).next_multiple_of(8));
            let block = &block[..len as usize];
            rest = after;
            if block.first() != Some(&KIND_ANS) || HEADER + block.len() >= HEADER + units.len() {
                self.encode_plain(units, block_bytes, scratch, out, lens)?;
                continue;
            }
            let begin = out.len();
            reserve(out, HEADER + block.len() + 8)?;
            out.extend_from_slice(&columns_header(first));
            out.extend_from_slice(block);
            self.try_deflate(units, begin, &mut scratch.deflater, out)?;
            lens.push((out.len() - begin) as u32);
            out.resize(out.len().next_multiple_of(8), 0);
        }
        (scratch.ordered, scratch.within) = (ordered, within);
        Ok(())
    }

    /// [`encode`](Self::encode) for one block, as one of kind *zeros*; false, and nothing is
    /// appended, where that is not smaller than a raw one.
    fn encode_with_mask(
        &self,
        masks: &Encoder,
        units: &[u8],
        n_zeros: usize,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
        lens: &mut Vec<u32>,
    ) -> Result<bool> {
        let unit_bytes = self.head.layout.unit_bytes;
        let n_units = units.len() / unit_bytes;
        let (mut mask, mut others) =
            (std::mem::take(&mut scratch.mask), std::mem::take(&mut scratch.others));
        set_len(&mut mask, n_units.div_ceil(8))?;
        set_len(&mut others, units.len())?;
        let n_others = n_units - n_zeros;
        self.kernels.split_zeros(unit_bytes, units, &mut mask, &mut others);
        others.truncate(n_others * unit_bytes);
        let begin = out.len();
        reserve(out, HEADER)?;
        out.resize(begin + HEADER, 0);
        let mut part_lens = Vec::new();
        masks.encode_plain(&mask, mask.len(), scratch, out, &mut part_lens)?;
        self.encode_plain(&others, others.len(), scratch, out, &mut part_lens)?;
        (scratch.mask, scratch.others) = (mask, others);
        let &[mask_len, others_len] = &part_lens[..] else { unreachable!("two blocks") };
        let len = HEADER + (mask_len as usize).next_multiple_of(8) + others_len as usize;
        if len >= HEADER + units.len() {
            out.truncate(begin);
            return Ok(false);
        }
        let (header, _) = out[begin..].split_at_mut(HEADER);
        header[0] = KIND_ZEROS;
        // At most 8 bytes and those of a mask: 16,392.
        header[2..4].copy_from_slice(&(mask_len as u16).to_le_bytes());
        header[4..].copy_from_slice(&(n_others as u32).to_le_bytes());
        out.truncate(begin + len);
        self.try_deflate(units, begin, &mut scratch.deflater, out)?;
        lens.push((out.len() - begin) as u32);
        out.resize(out.len().next_multiple_of(8), 0);
        Ok(true)
    }

    /// [`encode`](Self::encode) without masks.
    fn encode_plain(
        &self,
        units: &[u8],
        block_bytes: usize,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
        lens: &mut Vec<u32>,
    ) -> Result<()> {
        let unit_bytes = self.head.layout.unit_bytes;
        let at_once = self.kernels.blocks_at_once().min(MOST);
        for units in units.chunks(at_once * block_bytes) {
            let mut kinds = [KIND_RAW; MOST];
            let blocks = || units.chunks(block_bytes);
            for ((kind, units), parts) in kinds.iter_mut().zip(blocks()).zip(&mut scratch.parts) {
                if is_constant(units, unit_bytes) && units.len() >= CONSTANT_LEN {
                    *kind = KIND_CONSTANT;
                } else if self.take_apart(units, parts)? {
                    *kind = KIND_ANS;
                }
            }
            let coded = scratch.parts.iter_mut().zip(kinds).filter(|(_, kind)| *kind == KIND_ANS);
            let mut jobs: Vec<_> = coded.map(|(parts, _)| parts.job()).collect();
            self.kernels.encode(&self.head, &mut jobs);
            for ((kind, units), parts) in kinds.into_iter().zip(blocks()).zip(&mut scratch.parts) {
                let begin = out.len();
                if kind == KIND_ANS {
                    self.write(units, parts, out)?;
                }
                // For one of the other kinds, or for the padding.
                reserve(out, HEADER + units.len() + 8)?;
                if kind == KIND_CONSTANT {
                    out.extend_from_slice(&[KIND_CONSTANT, 0, 0, 0, 0, 0, 0, 0]);
                    out.extend_from_slice(&units[..CONSTANT_LEN - HEADER]);
                } else if kind == KIND_RAW || out.len() - begin >= HEADER + units.len() {
                    out.truncate(begin);
                    write_raw(units, out);
                }
                if kind != KIND_CONSTANT {
                    self.try_deflate(units, begin, &mut scratch.deflater, out)?;
                }
                lens.push((out.len() - begin) as u32);
                out.resize(out.len().next_multiple_of(8), 0);
            }
        }
        Ok(())
    }

    /// Replaces the block of `units`, which is `out` from `begin` on, by one of kind *deflate* if
    /// that is shorter by far.
    #[inline(never)]
    fn try_deflate(
        &self,
        units: &[u8],
        begin: usize,
        deflater: &mut Deflater,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let coded = out.len() - begin;
        if coded <= DEFLATE_LEAST || !self.screen.as_ref().is_some_and(|s| s.passes(units)) {
            return Ok(());
        }
        if let Some(stream) = deflater.shorter(units, coded - HEADER)? {
            out.truncate(begin);
            out.extend_from_slice(&[KIND_DEFLATE, 0, 0, 0, 0, 0, 0, 0]);
            out.extend_from_slice(stream);
            out.resize(out.len().max(begin + DEFLATE_LEAST), 0);
        }
        Ok(())
    }

    /// Everything before the entropy coder; false if the block cannot be coded.
    fn take_apart(&self, units: &[u8], parts: &mut Parts) -> Result<bool> {
        let Encoder { head, kernels, .. } = self;
        let layout = &head.layout;
        let n_groups = units.len() / layout.unit_bytes / GROUP;
        if n_groups == 0 {
            return Ok(false);
        }
        let Parts {
            symbols,
            table_ids,
            group_tables,
            exceptions,
            residual,
            widths,
            states,
            words,
            ..
        } = parts;
        let n = n_groups * GROUP;
        let units = &units[..n * layout.unit_bytes];
        set_len(symbols, n)?;
        set_len(residual, n_groups * packed_len(layout.residual_bits))?;
        set_len(widths, n_groups)?;
        kernels.split_units(head, units, symbols, residual, widths);
        kernels.choose_tables(head, &self.costs, symbols, table_ids);
        let stand_ins = &self.stand_ins;
        if !kernels.replace_exceptions(head, stand_ins, table_ids, units, symbols, exceptions)? {
            return Ok(false);
        }
        group_tables.clear();
        for &id in &*table_ids {
            group_tables.resize(n_groups.min(group_tables.len() + head.segment_groups()), id);
        }
        // The end states carry its last bytes, 16 bits a lane, at no cost.
        let stored = residual.len() - carried_len(residual.len());
        *states = states_with(&residual[stored..]);
        residual.truncate(stored);
        set_len(words, n + ROOM)?;
        Ok(true)
    }

    /// The sections, in order.
    fn write(&self, units: &[u8], parts: &mut Parts, out: &mut Vec<u8>) -> Result<()> {
        let head = &self.head;
        let layout = &head.layout;
        let Parts { table_ids, exceptions, residual, widths, states, words, begin, .. } = parts;
        let n_groups = units.len() / layout.unit_bytes / GROUP;
        let (units, tail) = units.split_at(n_groups * GROUP * layout.unit_bytes);
        let words = &mut words[*begin..];
        let rice = exceptions::rice_parameter(n_groups * GROUP, exceptions.len());
        // Words, residuals and low bits. If coding would take more bytes than the units, the block
        // is stored raw.
        reserve(out, 2 * words.len() + units.len() + SMALL_SECTIONS)?;
        out.extend_from_slice(&[KIND_ANS, rice as u8]);
        out.extend_from_slice(&(exceptions.len() as u16).to_le_bytes());
        out.extend_from_slice(&(words.len() as u32).to_le_bytes());
        write_states(states, out);
        words.iter_mut().for_each(|w| *w = w.to_le());
        out.extend_from_slice(bytemuck::cast_slice(words));
        pad4(out);
        let mut low_ids = Vec::new();
        if layout.low_bits() > 0 {
            for widths in widths.chunks(head.segment_groups()) {
                let need = widths.iter().copied().max().unwrap_or(0);
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
            for (units, &id) in units.chunks(head.segment * layout.unit_bytes).zip(&low_ids) {
                let width = u32::from(head.low_widths[usize::from(id)]);
                pack_lows(layout, units, width, out);
            }
        }
        out.extend_from_slice(residual);
        let exceptions = exceptions::write(head, exceptions, rice)?;
        reserve(out, exceptions.len() + tail.len())?;
        out.extend(exceptions);
        out.extend_from_slice(tail);
        Ok(())
    }
}

impl Parts {
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

/// Appends a raw block, whose kind is 0 in every encoding, without padding.
pub(crate) fn write_raw(units: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; HEADER]);
    out.extend_from_slice(units);
}

/// The states with which lanes begin that carry these bytes, at most 16 bits a lane.
pub(crate) fn states_with(carried: &[u8]) -> [u32; LANES] {
    let mut states = [STATE_MIN; LANES];
    for (state, pair) in states.iter_mut().zip(carried.chunks(2)) {
        *state |= u32::from(pair[0]) | u32::from(*pair.get(1).unwrap_or(&0)) << 8;
    }
    states
}

/// Writes the first states of the decoder. They lie in 2^16..2^32, small ones as likely as large
/// ones: for each 4 bits for its length, then the bits below the leading one.
pub(crate) fn write_states(states: &[u32; LANES], out: &mut Vec<u8>) {
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

pub(crate) fn pad4(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}
