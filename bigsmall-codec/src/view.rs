//! Encoded tensors as they are, for those who decode them elsewhere (FORMAT.md section 7).
#![warn(clippy::unwrap_used, clippy::indexing_slicing)]

use std::borrow::Cow;

use bigsmall_format::internal::reserve;
use bigsmall_format::{
    Dtype, EncodedRef, EncodedTensor, EncodingId, Error, Result, Rule, TensorEncoding, TensorSpec,
};

use crate::ans::Ans;
use crate::block::{Block, HEADER, Ordered, Sections, Zeros, carried_len};
use crate::head::Head;
use crate::kernels::LANES;
use crate::planes::{GROUP, packed_len};
use crate::table::TOTAL;

/// A borrowed view of a tensor in encoding ANS: what FORMAT.md section 7 calls the head, and the
/// parts of each block. For programs that decode somewhere else, such as on a GPU.
///
/// The head is valid if the view exists; a block is valid if an [`AnsBlock`] of it exists. Only
/// decoding can check the words and the end states of the lanes ([`Rule::AnsWords`],
/// [`Rule::AnsEndState`]), streams of DEFLATE ([`Rule::AnsDeflate`]) and masks of zeros
/// ([`Rule::ZeroMask`]).
///
/// Memory: a few kilobytes for each frequency table; nothing that grows with the tensor.
///
/// ```
/// use bigsmall_codec::{Ans, AnsBlock, AnsView, Dtype, TensorSpec, encode_tensor};
///
/// let weights: Vec<u8> = (0..70_000u32)
///     .flat_map(|i| half::bf16::from_f32((i as f32).sin()).to_le_bytes())
///     .collect();
/// let spec = TensorSpec::new("w", Dtype::BF16, &[700, 100])?;
/// let encoded = encode_tensor(&Ans::default(), &spec, &weights)?;
///
/// let view = AnsView::new(&encoded)?;
/// let sum = |frequencies: &[u16]| frequencies.iter().map(|&f| u32::from(f)).sum::<u32>();
/// assert!(view.tables().all(|table| sum(table.frequencies()) == 4096));
/// for index in 0..view.n_blocks() {
///     match view.block(index)? {
///         AnsBlock::Raw { units, .. } => println!("{} bytes as they are", units.len()),
///         AnsBlock::Constant { unit } => println!("{unit:?} repeated"),
///         AnsBlock::Coded(block) => println!("{} words", block.words().len()),
///         AnsBlock::Zeros(block) => println!("{} units are not zero", block.n_others()),
///         AnsBlock::Deflate { stream, .. } => println!("{} bytes of DEFLATE", stream.len()),
///         AnsBlock::Columns(block) => println!("{} words", block.within()?.words().len()),
///         _ => println!("a kind that is newer than this program"),
///     }
/// }
/// # Ok::<(), bigsmall_codec::Error>(())
/// ```
pub struct AnsView<'a> {
    tensor: EncodedRef<'a>,
    head: Head,
}

impl<'a> AnsView<'a> {
    /// Reads the head of `tensor`: an [`EncodedTensor`](crate::EncodedTensor), or an
    /// [`EncodedView`](crate::EncodedView) of a frame in memory or in a memory map, by reference.
    /// Blocks are read by [`block`](Self::block). The checksums of an `EncodedView` are compared
    /// when a part is read; those of an `EncodedTensor` have been.
    ///
    /// # Errors
    /// [`Rule::SpecMismatch`] for an encoding other than ANS; of class
    /// [`Corrupt`](crate::Class::Corrupt) for a head that breaks the format.
    pub fn new(tensor: impl Into<EncodedRef<'a>>) -> Result<AnsView<'a>> {
        let tensor = tensor.into();
        let spec = tensor.spec();
        tensor.expect(EncodingId::Ans)?;
        tensor.check_head()?;
        let head = Head::read(spec.dtype(), tensor.head()).map_err(|e| e.in_tensor(spec.name()))?;
        Ok(AnsView { tensor, head })
    }

    /// The encoded tensor.
    #[must_use]
    pub fn tensor(&self) -> EncodedRef<'a> {
        self.tensor
    }

    /// Name, dtype and shape.
    #[must_use]
    pub fn spec(&self) -> &'a TensorSpec {
        self.tensor.spec()
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.spec().dtype()
    }

    /// m, the mantissa bits in the field: 0 to 7 (section 7.1).
    #[must_use]
    pub fn mantissa_bits(&self) -> u32 {
        self.head.m
    }

    /// r, the bits of a residual: 1 to 8 for floats, 0 for other dtypes (section 7.1).
    #[must_use]
    pub fn residual_bits(&self) -> u32 {
        self.head.layout.residual_bits
    }

    /// Low bits of a unit, those below its high bits: 0, 8, 16 or 48 (section 7.1).
    #[must_use]
    pub fn low_bits(&self) -> u32 {
        self.head.layout.low_bits()
    }

    /// w: there are 2^w symbols; 5 to 8 (section 7.2).
    #[must_use]
    pub fn symbol_bits(&self) -> u32 {
        self.head.symbol_bits
    }

    /// Symbol s > 0 stands for the field `base + s` (section 7.2).
    #[must_use]
    pub fn base(&self) -> u16 {
        self.head.base
    }

    /// The field that symbol 0 stands for (section 7.2).
    #[must_use]
    pub fn first(&self) -> u16 {
        self.head.first
    }

    /// Units of a segment: a power of two, 256 to 65,536 (section 7.2).
    #[must_use]
    pub fn segment_units(&self) -> usize {
        self.head.segment
    }

    /// The frequency tables, 1 to 8, in the order of their numbers (section 7.3).
    pub fn tables(&self) -> impl ExactSizeIterator<Item = AnsTable<'_>> {
        (0..self.head.tables.len()).map(|id| AnsTable { head: &self.head, id })
    }

    /// The class of each column, 0 to 7; none if no block is of kind *columns* (section 7.5.5).
    #[must_use]
    pub fn column_classes(&self) -> &[u8] {
        self.head.columns.as_ref().map_or(&[], |columns| columns.classes())
    }

    /// Number of blocks.
    #[must_use]
    pub fn n_blocks(&self) -> u64 {
        self.tensor.table().n_blocks()
    }

    /// Reads block `index`, exceptions included: a pass over everything but words and planes.
    /// Allocates nothing.
    ///
    /// # Errors
    /// [`Rule::RangeOutOfBounds`] if there is no such block; of class
    /// [`Corrupt`](crate::Class::Corrupt) for a block that breaks the format, with the offset in
    /// the payload.
    pub fn block(&self, index: u64) -> Result<AnsBlock<'_>> {
        let name = self.spec().name();
        if index >= self.n_blocks() {
            return Err(Error::new(Rule::RangeOutOfBounds)
                .in_tensor(name)
                .expected(format!("a block below {}", self.n_blocks()))
                .found(index));
        }
        self.tensor.check_block(index)?;
        let offset = self.tensor.table().padded_block_range(index).start;
        let byte_len = self.spec().block_byte_len(index);
        self.view_of(&self.head, self.tensor.block(index), byte_len, offset)
            .map_err(|e| e.in_part_at(offset).at(offset).in_tensor(name))
    }

    /// `offset` is where the block begins in the payload.
    fn view_of<'v>(
        &'v self,
        head: &'v Head,
        block: &'v [u8],
        byte_len: usize,
        offset: u64,
    ) -> Result<AnsBlock<'v>> {
        Ok(match Block::read(head, block, byte_len)? {
            Block::Raw(units) => AnsBlock::Raw { units, offset: offset + HEADER as u64 },
            Block::Constant(units) => {
                let unit_bytes = head.layout.unit_bytes;
                AnsBlock::Constant { unit: units.get(..unit_bytes).unwrap_or(units) }
            }
            Block::Ans(sections) => {
                sections.exceptions(head).try_for_each(|e| e.map(drop))?;
                AnsBlock::Coded(CodedBlock { head, sections, offset })
            }
            Block::Deflate(stream) => AnsBlock::Deflate { stream, offset: offset + HEADER as u64 },
            Block::Zeros(zeros) => {
                let block = ZerosBlock { view: self, zeros, byte_len, offset };
                block.mask()?;
                block.others()?;
                AnsBlock::Zeros(block)
            }
            Block::Ordered(ordered) => {
                let block = ColumnsBlock { head, ordered, byte_len, offset };
                block.within()?;
                AnsBlock::Columns(block)
            }
        })
    }
}

/// The tensor, in which every block for which `reads` is false is decoded and stored raw. For
/// programs that decode elsewhere and do not support every kind of block.
///
/// Memory: the payload of the result.
///
/// ```
/// use bigsmall_codec::{Ans, AnsBlock, AnsView, Dtype, TensorSpec, encode_tensor, store_raw};
///
/// let mask: Vec<u8> = (0..40_000).map(|i| u8::from(i % 200 <= i / 200)).collect();
/// let spec = TensorSpec::new("mask", Dtype::BOOL, &[200, 200])?;
/// let tensor = encode_tensor(&Ans::default(), &spec, &mask)?;
/// let plain = store_raw(&tensor, |block| matches!(block, AnsBlock::Coded(_)))?;
/// let view = AnsView::new(&*plain)?;
/// assert!(matches!(view.block(0)?, AnsBlock::Raw { units, .. } if units == mask));
/// # Ok::<(), bigsmall_codec::Error>(())
/// ```
///
/// # Errors
/// Those of [`AnsView::new`], [`AnsView::block`] and of decoding.
pub fn store_raw(
    tensor: &EncodedTensor,
    reads: impl Fn(&AnsBlock<'_>) -> bool,
) -> Result<Cow<'_, EncodedTensor>> {
    let view = AnsView::new(tensor)?;
    let read = (0..view.n_blocks()).map(|index| Ok(reads(&view.block(index)?)));
    let read = read.collect::<Result<Vec<bool>>>()?;
    if !read.contains(&false) {
        return Ok(Cow::Borrowed(tensor));
    }
    let spec = tensor.spec();
    let decoder = Ans::default().open(spec, tensor.head())?;
    let mut payload = tensor.head().to_vec();
    payload.resize(payload.len().next_multiple_of(8), 0);
    let mut lens = Vec::new();
    for (index, is_read) in (0..).zip(read) {
        let begin = payload.len();
        let block = tensor.block(index);
        if is_read {
            reserve(&mut payload, block.len() + 8)?;
            payload.extend_from_slice(block);
        } else {
            let n = spec.block_byte_len(index);
            reserve(&mut payload, HEADER + n + 8)?;
            payload.resize(begin + HEADER + n, 0);
            let (_, units) = payload.split_at_mut(begin + HEADER);
            decoder.decode_blocks(&[block], units).map_err(|e| e.in_tensor(spec.name()))?;
        }
        lens.push((payload.len() - begin) as u32);
        payload.resize(payload.len().next_multiple_of(8), 0);
    }
    let head_len = tensor.head().len() as u32;
    EncodedTensor::new(spec.clone(), EncodingId::Ans, head_len, lens, payload).map(Cow::Owned)
}

impl std::fmt::Debug for AnsView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnsView")
            .field("spec", self.spec())
            .field("mantissa_bits", &self.mantissa_bits())
            .field("symbol_bits", &self.symbol_bits())
            .field("base", &self.base())
            .field("first", &self.first())
            .field("segment_units", &self.segment_units())
            .finish_non_exhaustive()
    }
}

/// A frequency table of a tensor (FORMAT.md section 7.3).
#[derive(Clone, Copy)]
pub struct AnsTable<'a> {
    head: &'a Head,
    id: usize,
}

impl<'a> AnsTable<'a> {
    /// The frequency of each symbol. They sum to 4096.
    #[must_use]
    pub fn frequencies(&self) -> &'a [u16] {
        self.head.tables.get(self.id).map_or(&[], |table| table.freqs())
    }

    /// The buckets of the alias layout, one for each symbol.
    pub fn buckets(&self) -> impl ExactSizeIterator<Item = AliasBucket> + use<'a> {
        let alias = self.head.alias.get(self.id);
        let (split, own, donor) =
            alias.map_or((&[][..], &[][..], &[][..]), |a| (&a.split, &a.own, &a.donor));
        let sides = own.iter().zip(donor);
        split.iter().zip(sides).map(|(&split, (&own, &donor))| AliasBucket { split, own, donor })
    }
}

impl std::fmt::Debug for AnsTable<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnsTable").field("frequencies", &self.frequencies()).finish()
    }
}

/// One bucket of the alias layout (FORMAT.md section 7.3). Bucket b has the slots from `C b` to
/// `C (b + 1) - 1`, C = 4096 / number of symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AliasBucket {
    /// The first slot that belongs to the donor, `C b + keep[b]`; where the bucket ends if none
    /// does.
    pub split: u32,
    /// The slots before `split`: those of symbol b itself.
    pub own: AliasEntry,
    /// The slots from `split` on: those of its donor.
    pub donor: AliasEntry,
}

pub use crate::table::AliasEntry;

/// A block of an ANS tensor (FORMAT.md section 7.5). One that exists is valid, except for what only
/// decoding can check: words, end states, streams of DEFLATE and masks of zeros.
///
/// Offsets are in bytes from the start of the payload
/// ([`EncodedRef::payload`]).
#[derive(Clone, Debug)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant)] // lives on the stack; boxing would allocate for each block
pub enum AnsBlock<'a> {
    /// The block is not compressed.
    Raw {
        /// The original bytes.
        units: &'a [u8],
        /// Where they begin.
        offset: u64,
    },
    /// All units of the block are the same.
    Constant {
        /// The unit, little-endian: 1, 2, 4 or 8 bytes.
        unit: &'a [u8],
    },
    /// The block is entropy coded.
    Coded(CodedBlock<'a>),
    /// Many units are zero: two blocks say which, and hold the others.
    Zeros(ZerosBlock<'a>),
    /// The block repeats itself: a stream of DEFLATE (RFC 1951). Only decoding can check it
    /// ([`Rule::AnsDeflate`]).
    Deflate {
        /// The stream, and the zeros that follow it if it is shorter than 48 bytes.
        stream: &'a [u8],
        /// Where it begins.
        offset: u64,
    },
    /// The units stand in the order of the classes of their columns, and are then entropy coded.
    Columns(ColumnsBlock<'a>),
}

/// A block of kind *columns* (FORMAT.md section 7.5).
#[derive(Clone, Copy)]
pub struct ColumnsBlock<'a> {
    head: &'a Head,
    ordered: Ordered<'a>,
    byte_len: usize,
    offset: u64,
}

impl<'a> ColumnsBlock<'a> {
    /// The column of the block's first unit: unit i of the block is in column `(first + i) mod n`
    /// of the n that [`AnsView::column_classes`] has.
    #[must_use]
    pub fn first_column(&self) -> usize {
        self.ordered.first
    }

    /// The units in the order of classes: those in columns of class 0 in the order of their
    /// numbers, then those of class 1, and so on.
    ///
    /// # Errors
    /// None if the [`AnsBlock`] came from [`AnsView::block`].
    pub fn within(&self) -> Result<CodedBlock<'a>> {
        let begin = HEADER as u64;
        let sections = self.ordered.read_within(self.head, self.byte_len)?;
        let checked = sections.exceptions(self.head).try_for_each(|e| e.map(drop));
        checked.map_err(|e| e.in_part_at(begin))?;
        Ok(CodedBlock { head: self.head, sections, offset: self.offset + begin })
    }
}

impl std::fmt::Debug for ColumnsBlock<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ColumnsBlock")
            .field("first_column", &self.ordered.first)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

/// A block of kind *zeros* (FORMAT.md section 7.5): two blocks of other kinds. Whether they match
/// each other can only be seen when the mask is decoded ([`Rule::ZeroMask`]).
#[derive(Clone, Copy, Debug)]
pub struct ZerosBlock<'a> {
    view: &'a AnsView<'a>,
    zeros: Zeros<'a>,
    byte_len: usize,
    offset: u64,
}

impl<'a> ZerosBlock<'a> {
    /// How many units are not zero.
    #[must_use]
    pub fn n_others(&self) -> usize {
        self.zeros.n_others
    }

    /// The mask: a block of bytes. Bit i mod 8 of byte i / 8, rounded down, is set if unit i is not
    /// zero. It is coded with the tables of the mask's own head.
    ///
    /// # Errors
    /// None if the [`AnsBlock`] came from [`AnsView::block`].
    pub fn mask(&self) -> Result<AnsBlock<'a>> {
        let view = self.view;
        let Some(head) = &view.head.mask else { return Err(Error::new(Rule::AnsBlockHeader)) };
        let n_units = self.byte_len / view.head.layout.unit_bytes;
        let begin = HEADER as u64;
        view.view_of(head, self.zeros.mask, n_units.div_ceil(8), self.offset + begin)
            .map_err(|e| e.in_part_at(begin))
    }

    /// The units that are not zero, one after the other: a block of [`n_others`](Self::n_others)
    /// units.
    ///
    /// # Errors
    /// None if the [`AnsBlock`] came from [`AnsView::block`].
    pub fn others(&self) -> Result<AnsBlock<'a>> {
        let view = self.view;
        let byte_len = self.n_others() * view.head.layout.unit_bytes;
        let begin = self.zeros.others_at as u64;
        view.view_of(&view.head, self.zeros.others, byte_len, self.offset + begin)
            .map_err(|e| e.in_part_at(begin))
    }
}

/// The sections of an entropy-coded block (FORMAT.md section 7.5).
#[derive(Clone)]
pub struct CodedBlock<'a> {
    head: &'a Head,
    sections: Sections<'a>,
    offset: u64,
}

/// A unit whose field is not coded: the decoded field is replaced, residual and low bits stay
/// (FORMAT.md section 7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AnsException {
    /// The unit's number in the block, from 0; less than 256 times the number of groups.
    pub position: usize,
    /// The field of the unit.
    pub field: u16,
}

impl<'a> CodedBlock<'a> {
    /// Groups of 256 units, 1 to 512. The units after the last group are the
    /// [`tail`](Self::tail).
    #[must_use]
    pub fn n_groups(&self) -> usize {
        self.sections.n_groups
    }

    /// The decoder's first state of each lane, at least 2^16.
    #[must_use]
    pub fn states(&self) -> &[u32; LANES] {
        &self.sections.states
    }

    /// The words, little-endian, at most one for each unit.
    #[must_use]
    pub fn words(&self) -> &'a [[u8; 2]] {
        let (words, _) = self.sections.from_words.as_chunks();
        words.get(..self.sections.n_words).unwrap_or(words)
    }

    /// Where the words begin in the payload: a multiple of 4.
    #[must_use]
    pub fn words_offset(&self) -> u64 {
        self.offset_before(self.sections.from_words.len())
    }

    /// The number of the frequency table of each group, less than the number of
    /// [tables](AnsView::tables). In the mask of a block of zeros it is a number of the tables of
    /// the mask's own head, which a view does not show: decode such a block.
    #[must_use]
    pub fn group_tables(&self) -> &[u8] {
        let tables = &self.sections.group_tables;
        tables.get(..self.n_groups()).unwrap_or(tables)
    }

    /// The low width of each group: how many of its low bits are stored. All 0 for dtypes without
    /// low bits.
    #[must_use]
    pub fn group_low_widths(&self) -> &[u8] {
        let widths = &self.sections.group_widths;
        widths.get(..self.n_groups()).unwrap_or(widths)
    }

    /// The low planes of all groups (section 7.4): 32 times its low width bytes for each.
    #[must_use]
    pub fn low_planes(&self) -> &'a [u8] {
        self.sections.lows
    }

    /// Where the low planes begin in the payload: a multiple of 4.
    #[must_use]
    pub fn low_planes_offset(&self) -> u64 {
        self.offset_before(self.sections.lows.len() + self.residual_to_end())
    }

    /// The packed residuals of all groups (section 7.4), `32 * residual_bits` bytes for each,
    /// without the last [`carried_len`](Self::carried_len) bytes.
    #[must_use]
    pub fn residual(&self) -> &'a [u8] {
        self.sections.residual
    }

    /// Where the residuals begin in the payload: a multiple of 4.
    #[must_use]
    pub fn residual_offset(&self) -> u64 {
        self.offset_before(self.residual_to_end())
    }

    /// Bytes of the residuals that the end states carry, two in each lane: at most 64.
    #[must_use]
    pub fn carried_len(&self) -> usize {
        carried_len(self.n_groups() * packed_len(self.head.layout.residual_bits))
    }

    /// Number of exceptions.
    #[must_use]
    pub fn n_exceptions(&self) -> usize {
        self.sections.n_exceptions
    }

    /// The exceptions, positions rising.
    pub fn exceptions(&self) -> impl Iterator<Item = AnsException> {
        // There are no errors: they have been read once when the block was.
        let read = self.sections.exceptions(self.head).map_while(Result::ok);
        read.map(|(position, field)| AnsException { position, field })
    }

    /// The original bytes of the units after the last group, fewer than 256 units.
    #[must_use]
    pub fn tail(&self) -> &'a [u8] {
        self.sections.tail
    }

    /// Where a section begins in the payload if `rest` bytes of the block are left there.
    fn offset_before(&self, rest: usize) -> u64 {
        self.offset + (self.sections.len - rest) as u64
    }

    /// Bytes from the residuals to the end of the block.
    fn residual_to_end(&self) -> usize {
        let s = &self.sections;
        s.residual.len() + s.exceptions.len() + s.tail.len()
    }
}

impl std::fmt::Debug for CodedBlock<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CodedBlock")
            .field("n_groups", &self.n_groups())
            .field("n_words", &self.words().len())
            .field("n_exceptions", &self.n_exceptions())
            .field("tail", &self.tail().len())
            .finish_non_exhaustive()
    }
}

const _: () = assert!(TOTAL == 4096 && GROUP == 256, "as the documentation says");
