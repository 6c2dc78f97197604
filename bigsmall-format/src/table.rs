//! Where the parts of one payload lie.
#![warn(clippy::unwrap_used)]

use std::ops::Range;

use crate::wire::{Cursor, align8, pad8, room_for, u32s, u64s};
use crate::{EncodingId, Error, Result, Rule, TensorSpec, xxh3};

/// Where the head and the blocks of a payload lie, and their checksums (FORMAT.md section 5.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockTable {
    head_len: u32,
    head_hash: u64,
    /// None if all are empty and have a base: so a tensor that is its base costs the checksums.
    blocks: Box<[Block]>,
    /// The checksum of the base's bytes of each block, for an encoding that needs a base.
    base: Option<Box<[u64]>>,
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

    fn is_empty(&self) -> bool {
        self.len == 0 && self.hash == xxh3(&[])
    }
}

/// Insists on one entry a block.
fn check_count(spec: &TensorSpec, what: &str, found: usize) -> Result<()> {
    if found as u64 == spec.n_blocks() {
        return Ok(());
    }
    Err(Error::new(Rule::BlockLength)
        .in_tensor(spec.name())
        .expected(format!("{what} of {} blocks", spec.n_blocks()))
        .found(found))
}

impl BlockTable {
    /// Checks the lengths against what `spec` allows. `lens`, `hashes` and `base`, if any, have one
    /// entry a block.
    pub(crate) fn new(
        spec: &TensorSpec,
        head_len: u32,
        head_hash: u64,
        lens: impl ExactSizeIterator<Item = u32>,
        hashes: impl ExactSizeIterator<Item = u64>,
        base: Option<Box<[u64]>>,
    ) -> Result<Self> {
        let wrong = |rule| Error::new(rule).in_tensor(spec.name());
        check_count(spec, "lengths", lens.len())?;
        check_count(spec, "checksums", hashes.len())?;
        if let Some(base) = &base {
            check_count(spec, "checksums of the base", base.len())?;
        }
        let mut blocks = room_for(lens.len())?;
        let mut begin = align8(u64::from(head_len));
        for (index, (len, hash)) in lens.zip(hashes).enumerate() {
            // At least 56 bytes, or all of a smaller block: this caps what a small file can swell
            // to; what has a base is as large as the base. At most a little more than the values
            // themselves.
            let original = spec.block_byte_len(index as u64) as u64;
            let least = if base.is_some() { 0 } else { original.min(56) };
            let most = 2 * original + 4096;
            if u64::from(len) < least || u64::from(len) > most {
                return Err(wrong(Rule::BlockLength)
                    .expected(format!("{least} to {most} bytes in block {index}"))
                    .found(len));
            }
            let block = Block { begin, hash, len };
            begin = block.end();
            blocks.push(block);
        }
        if base.is_some() && blocks.iter().all(Block::is_empty) {
            blocks = Vec::new();
        }
        Ok(BlockTable { head_len, head_hash, blocks: blocks.into(), base })
    }

    /// The table of a payload that is known to be what an encoder made, with its checksums.
    pub(crate) fn of_payload(
        spec: &TensorSpec,
        head_len: u32,
        lens: &[u32],
        payload: &[u8],
        base: Option<Box<[u64]>>,
    ) -> Result<Self> {
        let part = |begin: u64, len: u64| {
            let range = usize::try_from(begin).ok()?..usize::try_from(begin + len).ok()?;
            payload.get(range)
        };
        let mut end = align8(u64::from(head_len));
        let hashes = lens.iter().map(|&len| {
            let (begin, len) = (end, align8(len.into()));
            end += len;
            xxh3(part(begin, len).unwrap_or(&[]))
        });
        let head_hash = xxh3(part(0, head_len.into()).unwrap_or(&[]));
        let lens = lens.iter().copied();
        let table = BlockTable::new(spec, head_len, head_hash, lens, hashes, base)?;
        if table.payload_len() != payload.len() as u64 {
            return Err(Error::new(Rule::PayloadLength)
                .in_tensor(spec.name())
                .expected(table.payload_len())
                .found(payload.len()));
        }
        Ok(table)
    }

    /// The table of a tensor that is its base: without a payload, every block empty.
    #[cfg(feature = "shard")]
    pub(crate) fn inherited(spec: &TensorSpec, base: Box<[u64]>) -> Result<Self> {
        check_count(spec, "checksums of the base", base.len())?;
        Ok(BlockTable { head_len: 0, head_hash: xxh3(&[]), blocks: [].into(), base: Some(base) })
    }

    /// Whether the tensor is its base: there are no bytes but a head.
    #[doc(hidden)]
    #[must_use]
    pub fn is_base(&self) -> bool {
        self.base.is_some() && self.blocks.is_empty()
    }

    fn block(&self, index: usize) -> Block {
        match &self.base {
            Some(base) if self.blocks.is_empty() && index < base.len() => {
                Block { begin: align8(self.head_len.into()), hash: xxh3(&[]), len: 0 }
            }
            _ => self.blocks[index],
        }
    }

    fn blocks(&self) -> impl Iterator<Item = Block> {
        (0..self.n_blocks() as usize).map(|index| self.block(index))
    }

    /// Where block `index` begins in the payload; for the number of blocks, where the payload ends.
    fn begin(&self, index: usize) -> u64 {
        match index.checked_sub(1) {
            None => align8(u64::from(self.head_len)),
            Some(before) => self.block(before).end(),
        }
    }

    /// Bytes of the payload: head and blocks with their padding.
    #[must_use]
    pub fn payload_len(&self) -> u64 {
        self.begin(self.n_blocks() as usize)
    }

    /// Number of blocks.
    #[must_use]
    pub fn n_blocks(&self) -> u64 {
        self.base.as_ref().map_or(self.blocks.len(), |base| base.len()) as u64
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
        self.block(index as usize).len as usize
    }

    /// Where block `index` lies in the payload, padding included.
    ///
    /// # Panics
    /// When there is no such block.
    #[must_use]
    pub fn padded_block_range(&self, index: u64) -> Range<u64> {
        let block = self.block(index as usize);
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
        let block = self.block(index as usize);
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

    /// The head of `payload`.
    pub(crate) fn head<'p>(&self, payload: &'p [u8]) -> &'p [u8] {
        &payload[..self.head_len()]
    }

    /// Block `index` of `payload`, without padding.
    pub(crate) fn block_of<'p>(&self, index: u64, payload: &'p [u8]) -> &'p [u8] {
        let Block { begin, len, .. } = self.block(index as usize);
        &payload[begin as usize..][..len as usize]
    }

    /// Whether decoding needs a base.
    #[must_use]
    pub fn needs_base(&self) -> bool {
        self.base.is_some()
    }

    /// The checksums of the base's blocks; none without a base.
    #[cfg(feature = "shard")]
    pub(crate) fn base_hashes(&self) -> &[u64] {
        self.base.as_deref().unwrap_or(&[])
    }

    /// Compares `bytes`, the base's bytes of block `index`, with their checksum.
    ///
    /// # Errors
    /// [`Rule::BaseMismatch`]; [`Rule::RangeOutOfBounds`] when the tensor has no base or no such
    /// block.
    pub fn check_base(&self, index: u64, bytes: &[u8]) -> Result<()> {
        let expected = self.base.as_ref().and_then(|base| base.get(index as usize));
        let expected = *expected.ok_or_else(|| Error::new(Rule::RangeOutOfBounds).found(index))?;
        let found = xxh3(bytes);
        if found != expected {
            return Err(Error::new(Rule::BaseMismatch)
                .expected(format!("{expected:#018x} for the base's block {index}"))
                .found(format!("{found:#018x}")));
        }
        Ok(())
    }

    /// Writes lengths (padded to 8 bytes), checksums, and those of the base.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.blocks().flat_map(|b| b.len.to_le_bytes()));
        pad8(out);
        out.extend(self.blocks().flat_map(|b| b.hash.to_le_bytes()));
        self.write_base(out);
    }

    /// Writes the checksums of the base.
    pub(crate) fn write_base(&self, out: &mut Vec<u8>) {
        out.extend(self.base.iter().flatten().flat_map(|hash| hash.to_le_bytes()));
    }

    /// Reads what [`write`](Self::write) wrote, for the encoding of that code. The number of blocks
    /// follows from `spec`; nothing is allocated before that many entries are known to be there.
    pub(crate) fn read(
        spec: &TensorSpec,
        code: u8,
        head_len: u32,
        head_hash: u64,
        cursor: &mut Cursor<'_>,
    ) -> Result<Self> {
        let n = usize::try_from(spec.n_blocks()).unwrap_or(usize::MAX);
        let lens = cursor.take(n.saturating_mul(4))?;
        cursor.align8()?;
        let hashes = cursor.take(n.saturating_mul(8))?;
        let has_base = EncodingId::from_code(code).is_some_and(EncodingId::needs_base);
        let base = if has_base { Some(Self::read_base(spec, cursor)?) } else { None };
        BlockTable::new(spec, head_len, head_hash, u32s(lens), u64s(hashes), base)
    }

    /// Reads what [`write_base`](Self::write_base) wrote.
    pub(crate) fn read_base(spec: &TensorSpec, cursor: &mut Cursor<'_>) -> Result<Box<[u64]>> {
        let n = usize::try_from(spec.n_blocks()).unwrap_or(usize::MAX);
        let hashes = u64s(cursor.take(n.saturating_mul(8))?);
        let mut base = room_for(hashes.len())?;
        base.extend(hashes);
        Ok(base.into())
    }

    pub(crate) fn head_hash(&self) -> u64 {
        self.head_hash
    }
}
