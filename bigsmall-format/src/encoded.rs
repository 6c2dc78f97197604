//! One encoded tensor: in memory, and as a self-contained frame of bytes.
#![warn(clippy::unwrap_used)]

use std::borrow::Cow;
use std::ops::Range;

use crate::wire::{Cursor, align8, pad8, reserve, room_for, u32s, u64s};
use crate::{
    BlockDecoder, Dtype, EncodingId, Error, Limits, Result, Rule, TensorEncoding, TensorSpec,
    decode_range, xxh3,
};

const FRAME_MAGIC: [u8; 8] = *b"\x89bsmlT\r\n";

/// Where the head and the blocks of a payload lie, and their checksums (FORMAT.md section 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockTable {
    head_len: u32,
    head_hash: u64,
    blocks: Box<[Block]>,
}

/// One block's place in the payload; 24 bytes for 12 in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    begin: u64,
    hash: u64,
    /// Without padding.
    len: u32,
}

impl Block {
    fn end(&self) -> u64 {
        self.begin + align8(u64::from(self.len))
    }
}

impl BlockTable {
    /// Checks the lengths against what `spec` allows. `lens` and `hashes` have one entry a block.
    pub(crate) fn new(
        spec: &TensorSpec,
        head_len: u32,
        head_hash: u64,
        lens: impl ExactSizeIterator<Item = u32>,
        hashes: impl ExactSizeIterator<Item = u64>,
    ) -> Result<Self> {
        let wrong = |rule| Error::new(rule).in_tensor(spec.name());
        if lens.len() as u64 != spec.n_blocks() || hashes.len() != lens.len() {
            return Err(wrong(Rule::BlockLength)
                .expected(format!("{} blocks", spec.n_blocks()))
                .found(lens.len()));
        }
        let mut blocks = room_for(lens.len())?;
        let mut begin = align8(u64::from(head_len));
        for (index, (len, hash)) in lens.zip(hashes).enumerate() {
            // At least 56 bytes, or all of a smaller block: this caps what a small file can swell
            // to. At most a little more than the values themselves.
            let original = spec.block_byte_len(index as u64) as u64;
            let (least, most) = (original.min(56), 2 * original + 4096);
            if u64::from(len) < least || u64::from(len) > most {
                return Err(wrong(Rule::BlockLength)
                    .expected(format!("{least} to {most} bytes in block {index}"))
                    .found(len));
            }
            let block = Block { begin, hash, len };
            begin = block.end();
            blocks.push(block);
        }
        Ok(BlockTable { head_len, head_hash, blocks: blocks.into() })
    }

    /// Where block `index` begins in the payload; for the number of blocks, where the payload ends.
    fn begin(&self, index: usize) -> u64 {
        match index.checked_sub(1) {
            None => align8(u64::from(self.head_len)),
            Some(before) => self.blocks[before].end(),
        }
    }

    /// Bytes of the payload: head and blocks with their padding.
    #[must_use]
    pub fn payload_len(&self) -> u64 {
        self.begin(self.blocks.len())
    }

    /// Number of blocks.
    #[must_use]
    pub fn n_blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Bytes of the head, without padding.
    #[must_use]
    pub fn head_len(&self) -> usize {
        self.head_len as usize
    }

    /// Bytes of block `index` without padding.
    ///
    /// # Panics
    /// When there is no such block.
    #[must_use]
    pub fn block_len(&self, index: u64) -> usize {
        self.blocks[index as usize].len as usize
    }

    /// Where block `index` lies in the payload, padding included.
    ///
    /// # Panics
    /// When there is no such block.
    #[must_use]
    pub fn padded_block_range(&self, index: u64) -> Range<u64> {
        let block = &self.blocks[index as usize];
        block.begin..block.end()
    }

    /// Where the blocks of `indices` lie in the payload, padding included.
    ///
    /// # Panics
    /// When there are no such blocks.
    #[must_use]
    pub fn blocks_range(&self, indices: Range<u64>) -> Range<u64> {
        self.begin(indices.start as usize)..self.begin(indices.end as usize)
    }

    /// Compares the head with its checksum.
    ///
    /// # Errors
    /// [`Rule::HeadChecksum`].
    pub fn check_head(&self, head: &[u8]) -> Result<()> {
        let found = xxh3(head);
        if head.len() != self.head_len as usize || found != self.head_hash {
            return Err(Error::new(Rule::HeadChecksum)
                .at(0)
                .expected(format!("{:#018x}", self.head_hash))
                .found(format!("{found:#018x}")));
        }
        Ok(())
    }

    /// Compares block `index`, padding included, with its checksum, and insists that the padding is
    /// zero.
    ///
    /// # Errors
    /// [`Rule::BlockChecksum`], [`Rule::PaddingNotZero`].
    pub fn check_block(&self, index: u64, padded: &[u8]) -> Result<()> {
        let block = &self.blocks[index as usize];
        let found = xxh3(padded);
        if found != block.hash {
            return Err(Error::new(Rule::BlockChecksum)
                .at(block.begin)
                .expected(format!("{:#018x} for block {index}", block.hash))
                .found(format!("{found:#018x}")));
        }
        let padding = padded.get(block.len as usize..).unwrap_or(&[]);
        if padding.iter().any(|&b| b != 0) {
            return Err(Error::new(Rule::PaddingNotZero).at(block.begin));
        }
        Ok(())
    }

    /// Writes lengths (padded to 8 bytes) and checksums.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.blocks.iter().flat_map(|b| b.len.to_le_bytes()));
        pad8(out);
        out.extend(self.blocks.iter().flat_map(|b| b.hash.to_le_bytes()));
    }

    /// Reads what [`write`](Self::write) wrote. The number of blocks follows from `spec`; nothing
    /// is allocated before that many entries are known to be there.
    pub(crate) fn read(
        spec: &TensorSpec,
        head_len: u32,
        head_hash: u64,
        cursor: &mut Cursor<'_>,
    ) -> Result<Self> {
        let n = usize::try_from(spec.n_blocks()).unwrap_or(usize::MAX);
        let lens = cursor.take(n.saturating_mul(4))?;
        cursor.align8()?;
        let hashes = cursor.take(n.saturating_mul(8))?;
        BlockTable::new(spec, head_len, head_hash, u32s(lens), u64s(hashes))
    }

    #[cfg(feature = "shard")]
    pub(crate) fn head_hash(&self) -> u64 {
        self.head_hash
    }
}

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
    /// [`Rule::BlockLength`] or [`Rule::PayloadLength`] when the parts do not fit together.
    pub fn new(
        spec: TensorSpec,
        encoding: EncodingId,
        head_len: u32,
        lens: Vec<u32>,
        payload: Vec<u8>,
    ) -> Result<Self> {
        let hashes = lens.iter().map(|_| 0);
        let mut table = BlockTable::new(&spec, head_len, 0, lens.iter().copied(), hashes)?;
        if table.payload_len() != payload.len() as u64 {
            return Err(Error::new(Rule::PayloadLength)
                .in_tensor(spec.name())
                .expected(table.payload_len())
                .found(payload.len()));
        }
        table.head_hash = xxh3(&payload[..head_len as usize]);
        for block in &mut table.blocks {
            block.hash = xxh3(&payload[block.begin as usize..block.end() as usize]);
        }
        Ok(EncodedTensor { spec, encoding, table, payload })
    }

    /// Puts a tensor together from a payload and the table that describes it, checking every
    /// checksum.
    ///
    /// # Errors
    /// [`Rule::HeadChecksum`], [`Rule::BlockChecksum`], [`Rule::PayloadLength`],
    /// [`Rule::PaddingNotZero`].
    pub fn from_parts(
        spec: TensorSpec,
        encoding: EncodingId,
        table: BlockTable,
        payload: Vec<u8>,
    ) -> Result<Self> {
        let tensor = EncodedTensor { spec, encoding, table, payload };
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
        &self.payload[..self.table.head_len as usize]
    }

    /// The encoded block `index`, without padding.
    ///
    /// # Panics
    /// When there is no such block.
    #[must_use]
    pub fn block(&self, index: u64) -> &[u8] {
        let start = self.table.padded_block_range(index).start as usize;
        &self.payload[start..start + self.table.block_len(index)]
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
        self.view().open(encoding)
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
        self.view().decode_bytes(encoding, range, dst)
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
        let mut out = Vec::with_capacity(12 * self.table.blocks.len() + name.len() + 256);
        out.extend_from_slice(&FRAME_MAGIC);
        out.extend_from_slice(&[1, self.encoding.code(), dtype.len() as u8]);
        out.push(self.spec.shape().len() as u8);
        out.extend_from_slice(&self.table.head_len.to_le_bytes());
        out.extend_from_slice(&(name.len() as u64).to_le_bytes());
        out.extend_from_slice(&self.table.head_hash.to_le_bytes());
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
        let table = BlockTable::read(&spec, head_len, head_hash, &mut cursor)?;
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
        &self.payload[..self.table.head_len as usize]
    }

    /// The encoded block `index` without padding, as it stands: [`check_block`](Self::check_block)
    /// checks it.
    ///
    /// # Panics
    /// When there is no such block.
    #[must_use]
    pub fn block(&self, index: u64) -> &'a [u8] {
        let start = self.table.padded_block_range(index).start as usize;
        &self.payload[start..start + self.table.block_len(index)]
    }

    /// Compares the head with its checksum.
    ///
    /// # Errors
    /// [`Rule::HeadChecksum`], [`Rule::PaddingNotZero`].
    pub fn check_head(&self) -> Result<()> {
        let named = |e: Error| e.in_tensor(self.spec.name());
        self.table.check_head(self.head()).map_err(named)?;
        let padding = self.table.head_len()..self.table.begin(0) as usize;
        if self.payload[padding.clone()].iter().any(|&b| b != 0) {
            return Err(named(Error::new(Rule::PaddingNotZero).at(padding.start as u64)));
        }
        Ok(())
    }

    /// Compares block `index` with its checksum.
    ///
    /// # Errors
    /// [`Rule::BlockChecksum`], [`Rule::PaddingNotZero`].
    ///
    /// # Panics
    /// When there is no such block.
    pub fn check_block(&self, index: u64) -> Result<()> {
        let range = self.table.padded_block_range(index);
        let padded = &self.payload[range.start as usize..range.end as usize];
        self.table.check_block(index, padded).map_err(|e| e.in_tensor(self.spec.name()))
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
        if encoding.id() != self.encoding {
            return Err(Error::new(Rule::SpecMismatch)
                .in_tensor(self.spec.name())
                .expected(format!("encoding {}", encoding.id()))
                .found(self.encoding));
        }
        self.check_head()?;
        encoding.open(&self.spec, self.head()).map_err(|e| e.in_tensor(self.spec.name()))
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
        decode_range(&*decoder, &self.spec, &self.table, &self.payload, range, dst)
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
        let code = cursor.u8()?;
        let dtype_len = usize::from(cursor.u8()?);
        let rank = usize::from(cursor.u8()?);
        if rank > limits.max_rank {
            return Err(Error::new(Rule::RankTooLarge).at(11).found(rank));
        }
        let head_len = cursor.u32()?;
        let name_len = cursor.u64()?;
        if name_len > limits.max_name_bytes as u64 {
            return Err(Error::new(Rule::NameTooLong).at(16).found(name_len));
        }
        let head_hash = cursor.u64()?;
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
