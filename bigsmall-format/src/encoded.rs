//! One encoded tensor: in memory, and as a self-contained frame of bytes.
#![warn(clippy::unwrap_used)]

use std::borrow::Cow;
use std::ops::Range;

use crate::wire::{Cursor, pad8, reserve, room_for, u64s};
use crate::{
    BlockDecoder, BlockTable, Dtype, EncodingId, Error, Limits, ReadAt, Result, Rule,
    TensorEncoding, TensorSpec, decode_range, decode_range_with_base, xxh3,
};

const FRAME_MAGIC: [u8; 8] = *b"\x89bsmlT\r\n";

/// A tensor in encoded form, in memory: what is uploaded to a GPU, multiplied without decoding, or
/// put into another engine's own container. One that exists has passed its checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedTensor {
    spec: TensorSpec,
    encoding: EncodingId,
    table: BlockTable,
    payload: Vec<u8>,
}

impl EncodedTensor {
    /// Puts a tensor together from what a [`BlockEncoder`](crate::BlockEncoder) produced: `payload`
    /// is the head padded to 8 bytes, then the padded blocks.
    ///
    /// # Errors
    /// [`Rule::BlockLength`] or [`Rule::PayloadLength`] when the parts do not fit together;
    /// [`Rule::BaseRecord`] for an encoding that needs a base.
    pub fn new(
        spec: TensorSpec,
        encoding: EncodingId,
        head_len: u32,
        lens: Vec<u32>,
        payload: Vec<u8>,
    ) -> Result<Self> {
        let table = BlockTable::of_payload(&spec, head_len, &lens, &payload, None)?;
        EncodedTensor { spec, encoding, table, payload }.with_or_without_base()
    }

    /// The same for an encoding that [needs a base](EncodingId::needs_base): `base` has the XXH3 of
    /// the base's bytes of each block.
    ///
    /// # Errors
    /// [`Rule::BlockLength`] or [`Rule::PayloadLength`] when the parts do not fit together;
    /// [`Rule::BaseRecord`] for an encoding that needs no base.
    pub fn new_with_base(
        spec: TensorSpec,
        encoding: EncodingId,
        head_len: u32,
        lens: Vec<u32>,
        payload: Vec<u8>,
        base: Vec<u64>,
    ) -> Result<Self> {
        let table = BlockTable::of_payload(&spec, head_len, &lens, &payload, Some(base.into()))?;
        EncodedTensor { spec, encoding, table, payload }.with_or_without_base()
    }

    /// Insists that the table is of a tensor with a base if the encoding needs one.
    fn with_or_without_base(self) -> Result<Self> {
        let text = |needs_base| if needs_base { "a base" } else { "no base" };
        match self.table.needs_base() == self.encoding.needs_base() {
            true => Ok(self),
            false => Err(Error::new(Rule::BaseRecord)
                .in_tensor(self.spec.name())
                .expected(format!(
                    "{} for encoding {}",
                    text(self.encoding.needs_base()),
                    self.encoding
                ))
                .found(text(self.table.needs_base()))),
        }
    }

    /// Puts a tensor together from a payload and the table that describes it, checking every
    /// checksum.
    ///
    /// # Errors
    /// [`Rule::HeadChecksum`], [`Rule::BlockChecksum`], [`Rule::PayloadLength`],
    /// [`Rule::PaddingNotZero`]; [`Rule::BaseRecord`] if only one of encoding and table has a base.
    pub fn from_parts(
        spec: TensorSpec,
        encoding: EncodingId,
        table: BlockTable,
        payload: Vec<u8>,
    ) -> Result<Self> {
        let tensor = EncodedTensor { spec, encoding, table, payload }.with_or_without_base()?;
        tensor.view().check()?;
        Ok(tensor)
    }

    /// The tensor, borrowed.
    #[must_use]
    pub fn view(&self) -> EncodedView<'_> {
        EncodedView {
            spec: Cow::Borrowed(&self.spec),
            encoding: self.encoding,
            table: Cow::Borrowed(&self.table),
            payload: &self.payload,
        }
    }

    /// The same tensor under another name, for a frame that was made without one.
    #[must_use]
    pub fn with_name(self, name: &str) -> Self {
        EncodedTensor { spec: self.spec.with_name(name), ..self }
    }

    /// Name, dtype and shape.
    #[must_use]
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// The encoding of the payload.
    #[must_use]
    pub fn encoding(&self) -> EncodingId {
        self.encoding
    }

    /// Where head and blocks lie in [`payload`](Self::payload).
    #[must_use]
    pub fn table(&self) -> &BlockTable {
        &self.table
    }

    /// Head and blocks, each padded to a multiple of 8 bytes.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// What the blocks share.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        EncodedRef::from(self).head()
    }

    /// The encoded block `index`, without padding.
    ///
    /// # Panics
    /// When there is no such block.
    #[must_use]
    pub fn block(&self, index: u64) -> &[u8] {
        EncodedRef::from(self).block(index)
    }

    /// Bytes of the payload: what this tensor costs in memory and, but for 12 bytes a block, on
    /// disk.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.payload.len() as u64
    }

    /// Reads the head with `encoding`, which must be this tensor's.
    ///
    /// # Errors
    /// [`Rule::SpecMismatch`] for another encoding; those of [`TensorEncoding::open`].
    pub fn open(&self, encoding: &dyn TensorEncoding) -> Result<Box<dyn BlockDecoder>> {
        EncodedRef::from(self).open(encoding)
    }

    /// Decodes the original bytes `range` into `dst`, on the threads of the caller's rayon pool.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) and [`decode_range`].
    pub fn decode_bytes(
        &self,
        encoding: &dyn TensorEncoding,
        range: Range<u64>,
        dst: &mut [u8],
    ) -> Result<()> {
        EncodedRef::from(self).decode_bytes(encoding, range, dst)
    }

    /// Writes the tensor as a frame (FORMAT.md section 9): one self-contained piece of bytes with
    /// checksums, for engines with a container of their own.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let description = self.description();
        let mut out = Vec::with_capacity(description.len() + self.payload.len());
        out.extend_from_slice(&description);
        out.extend_from_slice(&self.payload);
        out
    }

    /// Appends the same frame to `out`.
    ///
    /// # Errors
    /// [`Rule::Memory`]; `out` is then as it was.
    pub fn write_to(&self, out: &mut Vec<u8>) -> Result<()> {
        let description = self.description();
        reserve(out, description.len() + self.payload.len())?;
        out.extend_from_slice(&description);
        out.extend_from_slice(&self.payload);
        Ok(())
    }

    /// What a frame holds before the payload.
    fn description(&self) -> Vec<u8> {
        let name = self.spec.name().as_bytes();
        let dtype = self.spec.dtype().name().as_bytes();
        let mut out = Vec::with_capacity(12 * self.table.n_blocks() as usize + name.len() + 256);
        out.extend_from_slice(&FRAME_MAGIC);
        out.extend_from_slice(&[1, self.encoding.code(), dtype.len() as u8]);
        out.push(self.spec.shape().len() as u8);
        out.extend_from_slice(&(self.table.head_len() as u32).to_le_bytes());
        out.extend_from_slice(&(name.len() as u64).to_le_bytes());
        out.extend_from_slice(&self.table.head_hash().to_le_bytes());
        out.extend(self.spec.shape().iter().flat_map(|n| n.to_le_bytes()));
        out.extend_from_slice(dtype);
        out.extend_from_slice(name);
        pad8(&mut out);
        self.table.write(&mut out);
        let hash = xxh3(&out);
        out.extend_from_slice(&hash.to_le_bytes());
        out
    }

    /// Reads a frame, checking all of it. Memory: the payload and 28 bytes a block.
    ///
    /// # Errors
    /// Of class [`Corrupt`](crate::Class::Corrupt), [`Unsupported`](crate::Class::Unsupported) or
    /// [`Limit`](crate::Class::Limit), naming the rule that is broken.
    pub fn from_bytes(frame: &[u8]) -> Result<Self> {
        let view = EncodedView::parse(frame)?;
        let begin = frame.len() - view.payload.len();
        view.to_tensor().map_err(|e| e.in_part_at(begin as u64))
    }
}

/// A tensor in encoded form, borrowed: a frame in memory or in a memory map, without a copy.
///
/// The description and the table have passed their checksum; the head and the blocks are checked
/// when they are decoded, or all at once by [`check`](Self::check).
///
/// Memory: 24 bytes a block.
///
/// ```
/// use bigsmall_format::{Dtype, EncodedView, Raw, TensorSpec, encode_tensor};
/// let spec = TensorSpec::new("w", Dtype::U8, &[3])?;
/// let frame = encode_tensor(&Raw, &spec, &vec![1, 2, 3])?.to_bytes();
/// let view = EncodedView::parse(&frame)?;
/// assert_eq!(*view.spec(), spec);
/// let mut last = [0];
/// view.decode_bytes(&Raw, 2..3, &mut last)?;
/// assert_eq!(last, [3]);
/// # Ok::<(), bigsmall_format::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedView<'a> {
    spec: Cow<'a, TensorSpec>,
    encoding: EncodingId,
    table: Cow<'a, BlockTable>,
    payload: &'a [u8],
}

impl<'a> EncodedView<'a> {
    /// Reads the description and the table of a frame (FORMAT.md section 9).
    ///
    /// # Errors
    /// Of class [`Corrupt`](crate::Class::Corrupt), [`Unsupported`](crate::Class::Unsupported) or
    /// [`Limit`](crate::Class::Limit), naming the rule that is broken.
    pub fn parse(frame: &'a [u8]) -> Result<Self> {
        let mut cursor = Cursor::new(frame, Rule::FrameTruncated);
        let Description { spec, code, head_len, head_hash } = Description::read(&mut cursor)?;
        let table = BlockTable::read(&spec, code, head_len, head_hash, &mut cursor)?;
        let described = cursor.position() as usize;
        let hash = cursor.u64()?;
        if xxh3(&frame[..described]) != hash {
            return Err(Error::new(Rule::FrameChecksum).at(described as u64));
        }
        let encoding = EncodingId::from_code(code)
            .ok_or_else(|| Error::new(Rule::EncodingUnknown).at(9).found(code))?;
        let len = usize::try_from(table.payload_len()).unwrap_or(usize::MAX);
        let payload = cursor.take(len)?;
        if cursor.remaining() != 0 {
            return Err(Error::new(Rule::FrameTrailing).at(cursor.position()));
        }
        Ok(EncodedView { spec: Cow::Owned(spec), encoding, table: Cow::Owned(table), payload })
    }

    /// Name, dtype and shape.
    #[must_use]
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// The encoding of the payload.
    #[must_use]
    pub fn encoding(&self) -> EncodingId {
        self.encoding
    }

    /// Where head and blocks lie in [`payload`](Self::payload), and their checksums.
    #[must_use]
    pub fn table(&self) -> &BlockTable {
        &self.table
    }

    /// Head and blocks, each padded to a multiple of 8 bytes.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// What the blocks share, as it stands: [`check_head`](Self::check_head) checks it.
    #[must_use]
    pub fn head(&self) -> &'a [u8] {
        self.table.head(self.payload)
    }

    /// The encoded block `index` without padding, as it stands: [`check_block`](Self::check_block)
    /// checks it.
    ///
    /// # Panics
    /// When there is no such block.
    #[must_use]
    pub fn block(&self, index: u64) -> &'a [u8] {
        self.table.block_of(index, self.payload)
    }

    /// Compares the head with its checksum.
    ///
    /// # Errors
    /// [`Rule::HeadChecksum`], [`Rule::PaddingNotZero`].
    pub fn check_head(&self) -> Result<()> {
        EncodedRef::from(self).check_head()
    }

    /// Compares block `index` with its checksum.
    ///
    /// # Errors
    /// [`Rule::BlockChecksum`], [`Rule::PaddingNotZero`].
    ///
    /// # Panics
    /// When there is no such block.
    pub fn check_block(&self, index: u64) -> Result<()> {
        EncodedRef::from(self).check_block(index)
    }

    /// Compares head and blocks with their checksums.
    ///
    /// # Errors
    /// [`Rule::PayloadLength`], those of [`check_head`](Self::check_head) and
    /// [`check_block`](Self::check_block).
    pub fn check(&self) -> Result<()> {
        if self.table.payload_len() != self.payload.len() as u64 {
            return Err(Error::new(Rule::PayloadLength)
                .in_tensor(self.spec.name())
                .expected(self.table.payload_len())
                .found(self.payload.len()));
        }
        self.check_head()?;
        (0..self.table.n_blocks()).try_for_each(|index| self.check_block(index))
    }

    /// Checks all of it and copies it.
    ///
    /// # Errors
    /// Those of [`check`](Self::check); [`Rule::Memory`].
    pub fn to_tensor(&self) -> Result<EncodedTensor> {
        let mut payload = room_for(self.payload.len())?;
        payload.extend_from_slice(self.payload);
        let (spec, table) = (self.spec().clone(), self.table().clone());
        EncodedTensor::from_parts(spec, self.encoding, table, payload)
    }

    /// Checks the head and reads it with `encoding`, which must be this tensor's.
    ///
    /// # Errors
    /// [`Rule::SpecMismatch`] for another encoding; those of [`check_head`](Self::check_head) and
    /// [`TensorEncoding::open`].
    pub fn open(&self, encoding: &dyn TensorEncoding) -> Result<Box<dyn BlockDecoder>> {
        EncodedRef::from(self).open(encoding)
    }

    /// Decodes the original bytes `range` into `dst`, in parallel. The blocks that are touched
    /// are checked.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) and [`decode_range`].
    pub fn decode_bytes(
        &self,
        encoding: &dyn TensorEncoding,
        range: Range<u64>,
        dst: &mut [u8],
    ) -> Result<()> {
        EncodedRef::from(self).decode_bytes(encoding, range, dst)
    }
}

/// A tensor in encoded form by reference. Functions that take `impl Into<EncodedRef>` take a
/// reference to an [`EncodedTensor`] and one to an [`EncodedView`].
#[derive(Clone, Copy, Debug)]
pub struct EncodedRef<'a> {
    spec: &'a TensorSpec,
    encoding: EncodingId,
    table: &'a BlockTable,
    payload: &'a [u8],
    /// Whether the checksums are known to match.
    checked: bool,
}

impl<'a> From<&'a EncodedTensor> for EncodedRef<'a> {
    fn from(tensor: &'a EncodedTensor) -> Self {
        let EncodedTensor { spec, encoding, table, payload } = tensor;
        EncodedRef { spec, encoding: *encoding, table, payload, checked: true }
    }
}

impl<'a> From<&'a EncodedView<'_>> for EncodedRef<'a> {
    fn from(view: &'a EncodedView<'_>) -> Self {
        let EncodedView { spec, encoding, table, payload } = view;
        EncodedRef { spec, encoding: *encoding, table, payload, checked: false }
    }
}

impl<'a> EncodedRef<'a> {
    /// Name, dtype and shape.
    #[must_use]
    pub fn spec(&self) -> &'a TensorSpec {
        self.spec
    }

    /// The encoding of the payload.
    #[must_use]
    pub fn encoding(&self) -> EncodingId {
        self.encoding
    }

    /// Where head and blocks lie in [`payload`](Self::payload), and their checksums.
    #[must_use]
    pub fn table(&self) -> &'a BlockTable {
        self.table
    }

    /// Head and blocks, each padded to a multiple of 8 bytes.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// What the blocks share.
    #[must_use]
    pub fn head(&self) -> &'a [u8] {
        self.table.head(self.payload)
    }

    /// The encoded block `index` without padding.
    ///
    /// # Panics
    /// When there is no such block.
    #[must_use]
    pub fn block(&self, index: u64) -> &'a [u8] {
        self.table.block_of(index, self.payload)
    }

    /// Bytes of the payload.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.payload.len() as u64
    }

    /// Compares the head with its checksum. That of an [`EncodedTensor`] matches.
    ///
    /// # Errors
    /// [`Rule::HeadChecksum`], [`Rule::PaddingNotZero`].
    pub fn check_head(&self) -> Result<()> {
        if self.checked {
            return Ok(());
        }
        let named = |e: Error| e.in_tensor(self.spec.name());
        self.table.check_head(self.head()).map_err(named)?;
        let padding = self.table.head_len()..self.table.blocks_range(0..0).start as usize;
        if self.payload[padding.clone()].iter().any(|&b| b != 0) {
            return Err(named(Error::new(Rule::PaddingNotZero).at(padding.start as u64)));
        }
        Ok(())
    }

    /// Compares block `index` with its checksum. Those of an [`EncodedTensor`] match.
    ///
    /// # Errors
    /// [`Rule::BlockChecksum`], [`Rule::PaddingNotZero`].
    ///
    /// # Panics
    /// When there is no such block.
    pub fn check_block(&self, index: u64) -> Result<()> {
        if self.checked {
            return Ok(());
        }
        let range = self.table.padded_block_range(index);
        let padded = &self.payload[range.start as usize..range.end as usize];
        self.table.check_block(index, padded).map_err(|e| e.in_tensor(self.spec.name()))
    }

    /// Checks the head and reads it with `encoding`, which must be this tensor's.
    ///
    /// # Errors
    /// [`Rule::SpecMismatch`] for another encoding, [`Rule::EncodingDtype`]; those of
    /// [`check_head`](Self::check_head) and [`TensorEncoding::open`].
    pub fn open(&self, encoding: &dyn TensorEncoding) -> Result<Box<dyn BlockDecoder>> {
        self.expect(encoding.id())?;
        if !encoding.supports(self.spec.dtype()) {
            let error = Error::new(Rule::EncodingDtype).in_tensor(self.spec.name());
            return Err(error.found(self.spec.dtype()));
        }
        self.check_head()?;
        encoding.open(self.spec, self.head()).map_err(|e| e.in_tensor(self.spec.name()))
    }

    /// Insists on an encoding.
    ///
    /// # Errors
    /// [`Rule::SpecMismatch`] for another one.
    pub fn expect(&self, encoding: EncodingId) -> Result<()> {
        if encoding == self.encoding {
            return Ok(());
        }
        Err(Error::new(Rule::SpecMismatch)
            .in_tensor(self.spec.name())
            .expected(format!("encoding {encoding}"))
            .found(format!(
                "{}; to change it, encode the tensor again from `Decoded`",
                self.encoding
            )))
    }

    /// Decodes the original bytes `range` into `dst`, in parallel. The blocks that are touched
    /// are checked.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) and [`decode_range`].
    pub fn decode_bytes(
        &self,
        encoding: &dyn TensorEncoding,
        range: Range<u64>,
        dst: &mut [u8],
    ) -> Result<()> {
        let decoder = self.open(encoding)?;
        decode_range(&*decoder, self.spec, self.table, &self.payload, range, dst)
    }

    /// The same for a tensor that was encoded against `base`, the base as the tensor sees it (see
    /// [`BaseTensor`](crate::BaseTensor)). Only the blocks that `range` touches are read from it,
    /// and each is checked before anything is decoded from it.
    ///
    /// # Errors
    /// [`Rule::BaseMismatch`]; those of [`decode_bytes`](Self::decode_bytes) and of `base`.
    pub fn decode_bytes_with_base(
        &self,
        encoding: &dyn TensorEncoding,
        base: &dyn ReadAt,
        range: Range<u64>,
        dst: &mut [u8],
    ) -> Result<()> {
        let decoder = self.open(encoding)?;
        let (spec, table) = (self.spec, self.table);
        decode_range_with_base(&*decoder, spec, table, &self.payload, base, range, dst)
    }
}

/// What a frame begins with, before the table.
struct Description {
    spec: TensorSpec,
    /// Of the encoding.
    code: u8,
    head_len: u32,
    head_hash: u64,
}

impl Description {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        let limits = Limits::default();
        if cursor.bytes::<8>()? != FRAME_MAGIC {
            return Err(Error::new(Rule::FrameMagic).at(0));
        }
        match cursor.u8()? {
            0 => return Err(Error::new(Rule::VersionZero).at(8)),
            1 => {}
            v => return Err(Error::new(Rule::Version).at(8).expected("1 or less").found(v)),
        }
        let mut fixed = Cursor::new(cursor.take(23)?, Rule::FrameTruncated);
        let code = fixed.u8()?;
        let dtype_len = usize::from(fixed.u8()?);
        let rank = usize::from(fixed.u8()?);
        let head_len = fixed.u32()?;
        let name_len = fixed.u64()?;
        let head_hash = fixed.u64()?;
        if rank > limits.max_rank {
            return Err(Error::new(Rule::RankTooLarge).at(11).found(rank));
        }
        if name_len > limits.max_name_bytes as u64 {
            return Err(Error::new(Rule::NameTooLong).at(16).found(name_len));
        }
        let shape: Vec<u64> = u64s(cursor.take(8 * rank)?).collect();
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| Error::new(Rule::HeaderSyntax));
        let dtype = text(cursor.take(dtype_len)?)?;
        let name = text(cursor.take(name_len as usize)?)?;
        cursor.align8()?;
        let spec = TensorSpec::new(name, Dtype::from_name(dtype)?, &shape)?;
        Ok(Description { spec, code, head_len, head_hash })
    }
}

/// Name, dtype and shape of the tensor in a frame, from its first bytes alone: `frame` may end
/// after them. Nothing is compared with a checksum; [`EncodedView::parse`] does that.
///
/// # Errors
/// [`Rule::FrameMagic`], [`Rule::FrameTruncated`] and what else is wrong with those bytes.
pub fn peek(frame: &[u8]) -> Result<TensorSpec> {
    Ok(Description::read(&mut Cursor::new(frame, Rule::FrameTruncated))?.spec)
}
