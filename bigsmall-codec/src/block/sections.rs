//! The parts of a block (FORMAT.md section 7.5): the only parser of encoded blocks. Every part is
//! checked before it is used, except the words and end states, which only decoding can check.
#![warn(clippy::unwrap_used)]

use bigsmall_format::{Error, Result, Rule};

use crate::bits::{BitReader, check_end};
use crate::exceptions;
use crate::head::Head;
use crate::kernels::{Kernels, LANES, Planes, STATE_MIN};
use crate::planes::{GROUP, packed_len};
use crate::units::low_len;

pub(super) const KIND_RAW: u8 = 0;
pub(super) const KIND_CONSTANT: u8 = 1;
pub(super) const KIND_ANS: u8 = 2;
pub(super) const KIND_ZEROS: u8 = 3;
pub(super) const KIND_DEFLATE: u8 = 4;
pub(super) const KIND_COLUMNS: u8 = 5;
/// Kind, Rice parameter of the exceptions, their number, number of words.
pub(crate) const HEADER: usize = 8;
/// Bytes of a constant block: small, but large enough that a small file cannot swell without bound.
pub(super) const CONSTANT_LEN: usize = 64;
/// The least bytes of a block of kind *deflate*, for the same reason.
pub(super) const DEFLATE_LEAST: usize = 56;
/// Bytes that the end states carry, at most: 16 bits a lane.
pub(crate) const CARRIED: usize = 2 * LANES;

/// Bytes of the mask of a full block.
pub(crate) const MAX_MASK: usize = bigsmall_format::MAX_BLOCK_UNITS / 8;

/// Groups of a full block.
pub(crate) const MAX_GROUPS: usize = bigsmall_format::MAX_BLOCK_UNITS / GROUP;

pub(crate) fn carried_len(residual_len: usize) -> usize {
    residual_len.min(CARRIED)
}

pub(super) fn is_constant(units: &[u8], unit_bytes: usize) -> bool {
    units.len() > unit_bytes && units[unit_bytes..] == units[..units.len() - unit_bytes]
}

/// An encoded block.
#[allow(clippy::large_enum_variant)] // lives on the stack for one call; boxing would allocate
pub(crate) enum Block<'a> {
    /// The original bytes.
    Raw(&'a [u8]),
    /// One unit repeated, in 56 bytes.
    Constant(&'a [u8]),
    Ans(Sections<'a>),
    Zeros(Zeros<'a>),
    /// A stream, and the zeros that may follow it.
    Deflate(&'a [u8]),
    Ordered(Ordered<'a>),
}

impl<'a> Block<'a> {
    /// Reads the encoded form of `byte_len` original bytes, a multiple of the unit and at most one
    /// block. The exceptions are read by [`Sections::exceptions`].
    pub(crate) fn read(head: &Head, block: &'a [u8], byte_len: usize) -> Result<Block<'a>> {
        let unit_bytes = head.layout.unit_bytes;
        match block.first() {
            Some(&KIND_RAW) => {
                let rules = [Rule::AnsBlockLength, Rule::AnsBlockHeader];
                read_raw(block, byte_len, rules).map(Block::Raw)
            }
            Some(&KIND_CONSTANT) => read_constant(block, unit_bytes, byte_len).map(Block::Constant),
            Some(&KIND_ANS) => Sections::read(head, block, byte_len / unit_bytes).map(Block::Ans),
            Some(&KIND_ZEROS) => Zeros::read(head, block, byte_len / unit_bytes).map(Block::Zeros),
            Some(&KIND_DEFLATE) => read_deflate(block, byte_len).map(Block::Deflate),
            Some(&KIND_COLUMNS) => Ordered::read(head, block).map(Block::Ordered),
            kind => Err(Error::new(Rule::AnsBlockHeader)
                .at(0)
                .expected("kind 0, 1, 2, 3, 4 or 5")
                .found(kind.map_or(-1, |&k| i32::from(k)))),
        }
    }
}

/// The parts of a block of kind *zeros*: two blocks. What they hold is not read here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zeros<'a> {
    /// Units that are not zero, fewer than the block has.
    pub(crate) n_others: usize,
    /// The encoded mask.
    pub(crate) mask: &'a [u8],
    /// The encoded units that are not zero, and where they begin in the block.
    pub(crate) others: &'a [u8],
    pub(crate) others_at: usize,
}

impl<'a> Zeros<'a> {
    fn read(head: &Head, block: &'a [u8], n_units: usize) -> Result<Zeros<'a>> {
        let wrong = |at: u64, expected: &str, found: usize| {
            Error::new(Rule::AnsBlockHeader).at(at).expected(expected).found(found)
        };
        if head.mask.is_none() {
            return Err(wrong(0, "a kind other than 3, as the head has no masks", 3));
        }
        let (&[_, reserved, len0, len1, n0, n1, n2, n3], rest) =
            block.split_first_chunk::<HEADER>().ok_or_else(|| {
                Error::new(Rule::AnsBlockLength).expected("8 bytes").found(block.len())
            })?;
        let n_others = u32::from_le_bytes([n0, n1, n2, n3]) as usize;
        if reserved != 0 || n_units < GROUP {
            return Err(wrong(0, "a zero, and 256 units or more", n_units));
        }
        if !(1..n_units).contains(&n_others) {
            return Err(wrong(4, "1 to all but one of the units", n_others));
        }
        let mask_len = usize::from(u16::from_le_bytes([len0, len1]));
        let length = || Error::new(Rule::AnsBlockLength).expected(mask_len).found(rest.len());
        let (mask, _) = rest.split_at_checked(mask_len).ok_or_else(length)?;
        let (padded, others) =
            rest.split_at_checked(mask_len.next_multiple_of(8)).ok_or_else(length)?;
        if padded[mask_len..].iter().any(|&b| b != 0) {
            return Err(Error::new(Rule::PaddingNotZero).at((HEADER + mask_len) as u64));
        }
        // One kind more would be a block in a block in a block.
        for (part, at) in [(mask, HEADER), (others, HEADER + padded.len())] {
            if part.first().is_none_or(|&kind| kind == KIND_ZEROS || kind > KIND_DEFLATE) {
                return Err(Error::new(Rule::AnsBlockHeader)
                    .at(at.min(block.len() - 1) as u64)
                    .expected("kind 0, 1, 2 or 4"));
            }
        }
        Ok(Zeros { n_others, mask, others, others_at: HEADER + padded.len() })
    }

    /// Reads the block of the units that are not zero.
    pub(crate) fn read_others(&self, head: &Head) -> Result<Block<'a>> {
        let byte_len = self.n_others * head.layout.unit_bytes;
        Block::read(head, self.others, byte_len).map_err(|e| e.in_part_at(self.others_at as u64))
    }
}

/// A block of kind *columns*: a block of kind 2 of its units in the order of the classes of their
/// columns. What that holds is not read here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ordered<'a> {
    /// The column of the first unit.
    pub(crate) first: usize,
    /// The block within, which follows the header.
    pub(crate) within: &'a [u8],
}

impl<'a> Ordered<'a> {
    pub(super) fn read(head: &Head, block: &'a [u8]) -> Result<Ordered<'a>> {
        let wrong = |at: u64, expected: &str, found: usize| {
            Error::new(Rule::AnsBlockHeader).at(at).expected(expected).found(found)
        };
        let Some(columns) = &head.columns else {
            return Err(wrong(0, "a kind other than 5, as the head has no columns", 5));
        };
        let (&[_, reserved, first0, first1, ref rest @ ..], within) =
            block.split_first_chunk::<HEADER>().ok_or_else(|| {
                Error::new(Rule::AnsBlockLength).expected("8 bytes").found(block.len())
            })?;
        let first = usize::from(u16::from_le_bytes([first0, first1]));
        if reserved != 0 || *rest != [0; 4] {
            return Err(wrong(1, "zeros", usize::from(reserved)));
        }
        if first >= columns.classes().len() {
            return Err(wrong(2, "a column that the head has", first));
        }
        if within.first() != Some(&KIND_ANS) {
            return Err(wrong(HEADER.min(block.len() - 1) as u64, "kind 2", within.len()));
        }
        Ok(Ordered { first, within })
    }

    /// Reads the block within, of `byte_len` original bytes.
    pub(crate) fn read_within(&self, head: &Head, byte_len: usize) -> Result<Sections<'a>> {
        let sections = Sections::read(head, self.within, byte_len / head.layout.unit_bytes);
        sections.map_err(|e| e.in_part_at(HEADER as u64))
    }
}

/// The header of a block of kind *columns* whose first unit is in the column `first`.
pub(super) fn columns_header(first: usize) -> [u8; HEADER] {
    // There are at most 2^16 columns.
    let [first0, first1] = (first as u16).to_le_bytes();
    [KIND_COLUMNS, 0, first0, first1, 0, 0, 0, 0]
}

/// Checks a decoded mask of `n_units` bits, of which `n_others` are set.
pub(crate) fn check_mask(
    kernels: &dyn Kernels,
    mask: &[u8],
    n_units: usize,
    n_others: usize,
) -> Result<()> {
    check_end(mask, n_units, 1, Rule::ZeroMask)?;
    let ones = kernels.count_ones(mask);
    if ones != n_others {
        return Err(Error::new(Rule::ZeroMask)
            .expected(format!("{n_others} units that are not zero"))
            .found(ones));
    }
    Ok(())
}

/// The sections of an ANS block, each of its exact length.
#[derive(Clone)]
pub(crate) struct Sections<'a> {
    /// Bytes of the block.
    pub(crate) len: usize,
    pub(crate) n_groups: usize,
    pub(crate) states: [u32; LANES],
    pub(crate) n_exceptions: usize,
    pub(crate) rice: u32,
    pub(crate) exceptions: &'a [u8],
    /// Everything from the words to the end of the block, so that a backend may read past the last
    /// word.
    pub(crate) from_words: &'a [u8],
    pub(crate) n_words: usize,
    pub(crate) group_tables: [u8; MAX_GROUPS],
    pub(crate) group_widths: [u8; MAX_GROUPS],
    pub(crate) lows: &'a [u8],
    pub(crate) residual: &'a [u8],
    pub(crate) tail: &'a [u8],
}

impl<'a> Sections<'a> {
    fn read(head: &Head, block: &'a [u8], n_units: usize) -> Result<Sections<'a>> {
        let layout = &head.layout;
        let n_groups = n_units / GROUP;
        let mut cut = Cut::new(block, Rule::AnsBlockLength);
        let fixed = cut.take(HEADER)?;
        let n_exceptions = usize::from(u16::from_le_bytes([fixed[2], fixed[3]]));
        let n_words = u32::from_le_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]) as usize;
        let rice = u32::from(fixed[1]);
        if rice > exceptions::MAX_RICE || n_words > n_groups * GROUP || n_groups == 0 {
            return Err(Error::new(Rule::AnsBlockHeader)
                .at(0)
                .expected(format!("at most {} words in {n_groups} groups", n_groups * GROUP))
                .found(n_words));
        }
        let states = cut.take_states()?;
        let from_words = cut.take_words(n_words)?;
        let n_segments = n_groups.div_ceil(head.segment_groups());
        let id_bits = n_segments * (head.table_id_bits() + head.low_id_bits()) as usize;
        let mut bits = cut.take_bits(id_bits)?;
        let (mut group_tables, mut group_widths) = ([0; MAX_GROUPS], [0; MAX_GROUPS]);
        let each = head.segment_groups();
        let n_tables = head.tables.len();
        let tables = &mut group_tables[..n_groups];
        read_ids(&mut bits, head.table_id_bits(), n_tables, "a table", each, tables)?;
        if layout.low_bits() > 0 {
            let n_widths = head.low_widths.len();
            let widths = &mut group_widths[..n_groups];
            read_ids(&mut bits, head.low_id_bits(), n_widths, "a low width", each, widths)?;
            widths.iter_mut().for_each(|id| *id = head.low_widths[usize::from(*id)]);
        }
        let low_total = group_widths[..n_groups].iter().map(|&w| low_len(u32::from(w))).sum();
        let lows = cut.take(low_total)?;
        let residual_len = n_groups * packed_len(layout.residual_bits);
        let residual = cut.take(residual_len - carried_len(residual_len))?;
        // The exceptions fill what is left before the tail.
        let tail_len = (n_units - n_groups * GROUP) * layout.unit_bytes;
        let exceptions = cut.take(cut.rest.len().saturating_sub(tail_len))?;
        let tail = cut.take(tail_len)?;
        Ok(Sections {
            len: block.len(),
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

    /// What a kernel for units needs of the groups from `group` on, whose low bits begin at
    /// `low_at`.
    pub(super) fn planes(&self, head: &Head, group: usize, low_at: usize) -> Planes<'_> {
        Planes {
            residual: &self.residual[group * packed_len(head.layout.residual_bits)..],
            widths: &self.group_widths[group..self.n_groups],
            lows: &self.lows[low_at..],
        }
    }

    /// The units in groups whose field is not coded, in order: position and field of each. After an
    /// error there are no more.
    pub(crate) fn exceptions<'s>(
        &'s self,
        head: &'s Head,
    ) -> impl Iterator<Item = Result<(usize, u16)>> + use<'s, 'a> {
        let n = self.n_groups * GROUP;
        exceptions::Reader::new(head, self.exceptions, self.rice, self.n_exceptions, n).map(
            |read| {
                let (position, field) = read?;
                let table = &head.tables[usize::from(self.group_tables[position / GROUP])];
                if table.freqs().get(usize::from(head.symbol(field))).is_some_and(|&f| f > 0) {
                    return Err(Error::new(Rule::AnsException)
                        .expected("a field that the table does not code")
                        .found(format!("field {field} at unit {position}")));
                }
                Ok((position, field))
            },
        )
    }
}

/// Reads a number of `n_bits` bits, less than `most`, for each segment of `each` groups, and writes
/// it for every group.
fn read_ids(
    bits: &mut BitReader<'_>,
    n_bits: u32,
    most: usize,
    what: &str,
    each: usize,
    groups: &mut [u8],
) -> Result<()> {
    if n_bits == 0 {
        // There is only one, and its number is 0.
        groups.fill(0);
        return Ok(());
    }
    let wrong = || Error::new(Rule::AnsTableId).found(what);
    let n = groups.len().div_ceil(each);
    bits.pull_each(n_bits, &mut groups[..n]).ok_or_else(wrong)?;
    if groups[..n].iter().any(|&id| usize::from(id) >= most) {
        return Err(wrong().expected(format!("below {most}")));
    }
    if each > 1 {
        // From the last to the first: no number is overwritten before it was spread.
        for segment in (0..n).rev() {
            let (id, begin) = (groups[segment], segment * each);
            let end = groups.len().min(begin + each);
            groups[begin..end].fill(id);
        }
    }
    Ok(())
}

/// The body of a raw block: as long as the original bytes. Another length breaks the first rule, a
/// header that is not zero the second.
pub(crate) fn read_raw(block: &[u8], byte_len: usize, [length, zeros]: [Rule; 2]) -> Result<&[u8]> {
    match block.split_at_checked(HEADER) {
        Some((header, body)) if body.len() == byte_len => {
            check_header_zero(header, zeros)?;
            Ok(body)
        }
        _ => Err(Error::new(length).expected(HEADER + byte_len).found(block.len())),
    }
}

/// The body of a constant block: one unit repeated.
fn read_constant(block: &[u8], unit_bytes: usize, byte_len: usize) -> Result<&[u8]> {
    let wrong = |what: &str| Error::new(Rule::ConstantBlock).expected(what);
    if block.len() != CONSTANT_LEN || byte_len < CONSTANT_LEN {
        return Err(wrong("64 bytes for a block of 64 bytes or more"));
    }
    let (header, values) = block.split_at(HEADER);
    check_header_zero(header, Rule::AnsBlockHeader)?;
    if !is_constant(values, unit_bytes) {
        return Err(wrong("one unit repeated"));
    }
    Ok(values)
}

/// The stream of a block of kind *deflate*, which is shorter than a raw one.
fn read_deflate(block: &[u8], byte_len: usize) -> Result<&[u8]> {
    match block.split_at_checked(HEADER) {
        Some((header, stream)) if (DEFLATE_LEAST..HEADER + byte_len).contains(&block.len()) => {
            check_header_zero(header, Rule::AnsBlockHeader)?;
            Ok(stream)
        }
        _ => Err(Error::new(Rule::AnsBlockLength)
            .expected(format!("{DEFLATE_LEAST} to {} bytes", HEADER + byte_len - 1))
            .found(block.len())),
    }
}

/// Checks that the stream of a block of kind *deflate*, which has `used` of its bytes, is followed
/// by nothing but the zeros of a very short block.
pub(super) fn check_deflate_end(stream: &[u8], used: usize) -> Result<()> {
    if HEADER + stream.len() != (HEADER + used).max(DEFLATE_LEAST) {
        return Err(Error::new(Rule::AnsDeflate)
            .at((HEADER + used) as u64)
            .expected(format!("a stream of {used} bytes"))
            .found(stream.len()));
    }
    if stream[used..].iter().any(|&b| b != 0) {
        return Err(Error::new(Rule::PaddingNotZero).at((HEADER + used) as u64));
    }
    Ok(())
}

fn check_header_zero(header: &[u8], rule: Rule) -> Result<()> {
    if header[1..].iter().any(|&b| b != 0) {
        return Err(Error::new(rule).at(1).expected("zeros"));
    }
    Ok(())
}

/// Cuts a block into its sections, one after the other.
pub(crate) struct Cut<'a> {
    block: &'a [u8],
    /// What is left.
    pub(crate) rest: &'a [u8],
    /// The rule that a block breaks that is too short.
    length: Rule,
}

impl<'a> Cut<'a> {
    pub(crate) fn new(block: &'a [u8], length: Rule) -> Cut<'a> {
        Cut { block, rest: block, length }
    }

    /// The next `n` bytes.
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or_else(|| {
            Error::new(self.length)
                .expected(format!("{} bytes or more", self.block.len() - self.rest.len() + n))
                .found(self.block.len())
        })?;
        self.rest = rest;
        Ok(taken)
    }

    /// The states of lanes.
    pub(crate) fn take_states(&mut self) -> Result<[u32; LANES]> {
        let lens = self.take(LANES / 2)?.iter().flat_map(|&b| [b & 15, b >> 4]);
        let n_bits = lens.clone().map(|len| 16 + usize::from(len)).sum::<usize>();
        let mut bits = BitReader::new(self.take(n_bits.div_ceil(8).next_multiple_of(4))?);
        let mut states = [STATE_MIN; LANES];
        for (state, len) in states.iter_mut().zip(lens) {
            let short = || Error::new(self.length);
            let low = bits.pull(16).ok_or_else(short)?;
            let high = bits.pull(u32::from(len)).ok_or_else(short)?;
            *state = (1 << len | high) << 16 | low;
        }
        bits.finish(4, self.length)?;
        Ok(states)
    }

    /// Everything from the `n` words on; what is left begins after them.
    pub(crate) fn take_words(&mut self, n: usize) -> Result<&'a [u8]> {
        let from_words = self.rest;
        let words = self.take((2 * n).next_multiple_of(4))?;
        check_end(words, 16 * n, 4, self.length)?;
        Ok(from_words)
    }

    /// `n_bits` bits, filled up to a multiple of 4 bytes.
    pub(crate) fn take_bits(&mut self, n_bits: usize) -> Result<BitReader<'a>> {
        let bytes = self.take(n_bits.div_ceil(8).next_multiple_of(4))?;
        check_end(bytes, n_bits, 4, self.length)?;
        Ok(BitReader::new(bytes))
    }
}
