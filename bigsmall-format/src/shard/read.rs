//! Opens a shard: reads trailer and index, and nothing else until a tensor is requested.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use std::ops::Range;

use super::bases::{self, Base, BaseRef};
use super::layout::{
    FEATURE_BASES, INDEX_FIXED, INDEX_SYNTHESISED, MAGIC, PRELUDE_LEN, RECORD_BASE, RECORD_FIXED,
    RECORD_INHERITED, RECORD_MD5, RECORD_RENAMED, RECORD_SHARED, TRAILER_CHECKED, TRAILER_LEN,
    VERSION, prelude, recognise,
};
use crate::arch::zeroed;
use crate::read_at::{len_of, read_at};
use crate::wire::{Cursor, room_for};
use crate::{
    BlockDecoder, BlockTable, EncodedTensor, EncodingId, Error, Header, Limits, ReadAt, Result,
    Rule, Section, TensorEncoding, TensorSpec, decode_here, decode_range, decode_range_with_base,
    xxh3,
};

/// The flags of a record that this version knows.
const RECORD_FLAGS: u8 =
    RECORD_SHARED | RECORD_MD5 | RECORD_BASE | RECORD_INHERITED | RECORD_RENAMED;

/// Bytes of the end that opening reads. An index that fits in them needs no second read.
const TAIL: u64 = 256 << 10;

/// An open shard. Opening reads the end of the file, in at most two reads, and checks the whole
/// index. Payloads are read and checked on request.
///
/// Memory: at most 4 times the bytes of the index, and 1 MiB.
#[derive(Debug)]
pub struct Shard<R> {
    source: R,
    /// The index, unchanged; it contains the stored header.
    index: Vec<u8>,
    header_range: Range<usize>,
    header: Header,
    bases: Vec<Base>,
    entries: Vec<ShardEntry>,
    sha256: [u8; 32],
    flags: u32,
}

/// The index's record of one tensor. It is small, because an index may have a million.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardEntry {
    payload: Payload,
    md5: Option<Box<[u8; 16]>>,
    base: Option<Box<BaseOf>>,
}

/// What a record says about the tensor's base.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BaseOf {
    place: u32,
    /// `None` for the name of the tensor itself.
    name: Option<Box<str>>,
    inherited: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Payload {
    Own {
        offset: u64,
        table: BlockTable,
        encoding: u8,
    },
    /// The payload of an earlier tensor, which has its own.
    Shared(u32),
}

impl ShardEntry {
    /// The index of the tensor whose payload this one shares.
    #[must_use]
    pub fn shares(&self) -> Option<usize> {
        match self.payload {
            Payload::Own { .. } => None,
            Payload::Shared(owner) => Some(owner as usize),
        }
    }

    /// Whether the tensor is that of its base, byte for byte, and has no payload.
    #[must_use]
    pub fn is_inherited(&self) -> bool {
        self.base.as_ref().is_some_and(|base| base.inherited)
    }

    /// MD5 of the original bytes, if it was stored when compressing.
    #[must_use]
    pub fn md5(&self) -> Option<[u8; 16]> {
        self.md5.as_deref().copied()
    }
}

/// A tensor and its own or shared payload.
struct Resolved<'a> {
    spec: &'a TensorSpec,
    offset: u64,
    table: &'a BlockTable,
    encoding: u8,
}

impl Resolved<'_> {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.table.payload_len())
    }

    fn encoding(&self) -> Result<EncodingId> {
        EncodingId::from_code(self.encoding).ok_or_else(|| {
            Error::new(Rule::EncodingUnknown).in_tensor(self.spec.name()).found(self.encoding)
        })
    }
}

impl<R: ReadAt> Shard<R> {
    /// Opens the shard in `source` with the default [`Limits`].
    ///
    /// # Errors
    /// See [`open_with`](Self::open_with).
    pub fn open(source: R) -> Result<Self> {
        Self::open_with(source, &Limits::default())
    }

    /// Opens the shard in `source`.
    ///
    /// # Errors
    /// A rule of the envelope, the index or the header; those of `source`.
    pub fn open_with(source: R, limits: &Limits) -> Result<Self> {
        let byte_len = len_of(&source)?;
        let tail_len = byte_len.min(TAIL);
        let tail_at = byte_len.saturating_sub(tail_len);
        let mut tail = zeroed(tail_len)?;
        read_at(&source, tail_at, &mut tail)?;
        let index_range = match read_trailer(&tail, byte_len) {
            Ok(found) => found,
            Err(error) if tail.ends_with(&MAGIC) => return Err(error),
            Err(error) => return Err(explain(&source, byte_len, error)),
        };
        let index_len = index_range.end.saturating_sub(index_range.start);
        if index_len > limits.max_index_bytes {
            return Err(Error::new(Rule::IndexTooLarge)
                .expected(format!("at most {} bytes", limits.max_index_bytes))
                .found(index_len));
        }
        // Index and trailer in one piece, without a second read if the tail contains them.
        let checked_len = index_len.saturating_add(TRAILER_LEN);
        let mut index = if checked_len <= tail_len {
            tail.split_off((tail_len.saturating_sub(checked_len)) as usize)
        } else {
            drop(tail);
            let mut index = zeroed(checked_len)?;
            read_at(&source, index_range.start, &mut index)?;
            index
        };
        let trailer_at = index.len().saturating_sub(TRAILER_LEN as usize);
        let mut stored = Cursor::new(
            index.get(trailer_at.saturating_add(TRAILER_CHECKED)..).unwrap_or(&[]),
            Rule::IndexTruncated,
        );
        let stored = stored.u64()?;
        let covered = index.get(..trailer_at.saturating_add(TRAILER_CHECKED)).unwrap_or(&[]);
        let found = xxh3(covered);
        if found != stored {
            return Err(Error::new(Rule::IndexChecksum)
                .at(index_range.start)
                .expected(format!("{stored:#018x}"))
                .found(format!("{found:#018x}")));
        }
        // Version and features are checked after the trailer's checksum: a flipped bit must be
        // reported as damage, not as a later version.
        let trailer = index.get(trailer_at..).unwrap_or(&[]);
        let features = check_trailer_fields(trailer)?;
        index.truncate(trailer_at);
        let parsed = parse_index(&index, index_range.start, features, limits)
            .map_err(|e| e.in_part_at(index_range.start))?;
        Ok(Shard {
            source,
            header_range: parsed.header_range,
            header: parsed.header,
            bases: parsed.bases,
            entries: parsed.entries,
            sha256: parsed.sha256,
            flags: parsed.flags,
            index,
        })
    }

    /// Checks the prelude, the only bytes outside payloads that opening does not read.
    ///
    /// # Errors
    /// [`Rule::ShardMagic`], [`Rule::ReservedNotZero`]; those of the source.
    pub fn check_prelude(&self) -> Result<()> {
        let mut found = [0; PRELUDE_LEN as usize];
        read_at(&self.source, 0, &mut found)?;
        if found != prelude() {
            let rule =
                if found.starts_with(&MAGIC) { Rule::ReservedNotZero } else { Rule::ShardMagic };
            return Err(Error::new(rule).at(0));
        }
        Ok(())
    }

    /// The tensors in the order of their data.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        self.header.tensors()
    }

    /// The parsed stored header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The stored safetensors header, byte for byte.
    #[must_use]
    pub fn header_json(&self) -> &[u8] {
        self.index.get(self.header_range.clone()).unwrap_or(&[])
    }

    /// The files that tensors of this shard are stored as differences from; none for a shard that
    /// stands alone.
    #[must_use]
    pub fn bases(&self) -> &[Base] {
        &self.bases
    }

    /// How many bases lie one behind the other: 0 for a shard that stands alone. Written in the
    /// shard, at most [`Limits::max_base_depth`].
    #[must_use]
    pub fn base_depth(&self) -> u32 {
        bases::depth(&self.bases)
    }

    /// The tensor that tensor `index` is stored as differences from; `None` if it stands alone. A
    /// tensor that shares the payload of another one has the base of that one.
    ///
    /// # Errors
    /// [`Rule::TensorMissing`].
    pub fn base_of(&self, index: usize) -> Result<Option<BaseRef<'_>>> {
        let owner = self.entry(index)?.shares().unwrap_or(index);
        let Some(base) = &self.entry(owner)?.base else { return Ok(None) };
        let own = self.tensors().get(owner).map_or("", TensorSpec::name);
        Ok(Some(BaseRef::new(base.place as usize, base.name.as_deref().unwrap_or(own))))
    }

    /// SHA-256 of the original safetensors file.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// Whether the writer made the header, for tensors that were never in a file.
    #[must_use]
    pub fn is_synthesised(&self) -> bool {
        self.flags & INDEX_SYNTHESISED != 0
    }

    /// Bytes of the original safetensors file.
    #[must_use]
    pub fn original_len(&self) -> u64 {
        self.header.data_len().saturating_add(8).saturating_add(self.header_range.len() as u64)
    }

    /// Bytes of the index.
    #[must_use]
    pub fn index_len(&self) -> u64 {
        self.index.len() as u64
    }

    /// The source that was opened.
    #[must_use]
    pub fn source(&self) -> &R {
        &self.source
    }

    /// The index of the tensor `name` in [`tensors`](Self::tensors).
    ///
    /// # Errors
    /// [`Rule::TensorMissing`].
    pub fn index_of(&self, name: &str) -> Result<usize> {
        self.header.index_of(name).ok_or_else(|| Error::new(Rule::TensorMissing).in_tensor(name))
    }

    /// The record of tensor `index`. For a shared payload, [`ShardEntry::shares`] says which record
    /// has it.
    ///
    /// # Errors
    /// [`Rule::TensorMissing`] for an index beyond the last tensor.
    pub fn entry(&self, index: usize) -> Result<&ShardEntry> {
        self.entries
            .get(index)
            .ok_or_else(|| Error::new(Rule::TensorMissing).found(format!("index {index}")))
    }

    fn resolve(&self, index: usize) -> Result<Resolved<'_>> {
        let spec = self.tensors().get(index);
        let spec = spec.ok_or_else(|| Error::new(Rule::TensorMissing))?;
        let entry = self.entry(index)?;
        let entry = match entry.shares() {
            Some(owner) => self.entry(owner)?,
            None => entry,
        };
        match &entry.payload {
            &Payload::Own { offset, ref table, encoding } => {
                Ok(Resolved { spec, offset, table, encoding })
            }
            Payload::Shared(_) => Err(Error::new(Rule::SharedPayload).in_tensor(spec.name())),
        }
    }

    /// Insists that the encoding of every tensor is known, before a whole file is read.
    ///
    /// # Errors
    /// [`Rule::EncodingUnknown`].
    pub fn check_encodings(&self) -> Result<()> {
        (0..self.entries.len()).try_for_each(|index| self.encoding(index).map(drop))
    }

    /// The encoding of tensor `index`.
    ///
    /// # Errors
    /// [`Rule::EncodingUnknown`] for an encoding of a later version. The other tensors stay
    /// readable.
    pub fn encoding(&self, index: usize) -> Result<EncodingId> {
        self.resolve(index)?.encoding()
    }

    /// Where the payload of tensor `index` lies in the file.
    ///
    /// # Errors
    /// [`Rule::TensorMissing`].
    pub fn payload_range(&self, index: usize) -> Result<Range<u64>> {
        Ok(self.resolve(index)?.range())
    }

    /// The block table of tensor `index`.
    ///
    /// # Errors
    /// [`Rule::TensorMissing`].
    pub fn table(&self, index: usize) -> Result<&BlockTable> {
        Ok(self.resolve(index)?.table)
    }

    /// Reads tensor `index` in its encoded form, in one read. Verifies every checksum. Memory: the
    /// payload.
    ///
    /// # Errors
    /// [`Rule::HeadChecksum`], [`Rule::BlockChecksum`]; those of the source.
    pub fn encoded(&self, index: usize) -> Result<EncodedTensor> {
        let resolved = self.resolve(index)?;
        let (spec, encoding, range) = (resolved.spec, resolved.encoding()?, resolved.range());
        let len = range.end.saturating_sub(range.start);
        let mut payload = zeroed(len).map_err(|e| e.in_tensor(spec.name()))?;
        read_at(&self.source, range.start, &mut payload).map_err(|e| e.in_tensor(spec.name()))?;
        EncodedTensor::from_parts(spec.clone(), encoding, resolved.table.clone(), payload)
            .map_err(|e| e.in_part_at(range.start))
    }

    /// Reads and checks the head of tensor `index`, and opens it with `encoding`, which must be the
    /// tensor's encoding.
    ///
    /// # Errors
    /// [`Rule::HeadChecksum`], [`Rule::EncodingDtype`], those of [`TensorEncoding::open`] and of
    /// the source.
    pub fn decoder(
        &self,
        index: usize,
        encoding: &dyn TensorEncoding,
    ) -> Result<Box<dyn BlockDecoder>> {
        let Resolved { spec, offset, table, .. } = self.resolve(index)?;
        let named = |e: Error| e.in_tensor(spec.name());
        let mut head = zeroed(table.blocks_range(0..0).start).map_err(named)?;
        read_at(&self.source, offset, &mut head).map_err(named)?;
        self.decoder_from(index, encoding, &head)
    }

    /// The same for a payload that is already in memory, at least up to its first block.
    ///
    /// # Errors
    /// Those of [`decoder`](Self::decoder), except the source's; [`Rule::BufferLength`] if
    /// `payload` ends before the first block.
    pub fn decoder_from(
        &self,
        index: usize,
        encoding: &dyn TensorEncoding,
        payload: &[u8],
    ) -> Result<Box<dyn BlockDecoder>> {
        let resolved = self.resolve(index)?;
        let Resolved { spec, offset, table, .. } = resolved;
        let named = |e: Error| e.in_tensor(spec.name());
        if encoding.id() != resolved.encoding()? {
            return Err(named(Error::new(Rule::SpecMismatch)));
        }
        if !encoding.supports(spec.dtype()) {
            return Err(named(Error::new(Rule::EncodingDtype)).found(spec.dtype()));
        }
        // The padding between the head and the first block has no checksum, so it is compared with
        // zeros.
        let padded = table.blocks_range(0..0).start as usize;
        let parts = payload.get(..padded).and_then(|p| p.split_at_checked(table.head_len()));
        let Some((head, padding)) = parts else {
            let error = Error::new(Rule::BufferLength).expected(format!("{padded} bytes"));
            return Err(named(error.found(payload.len())));
        };
        let in_file = |e: Error| named(e.in_part_at(offset).at(offset));
        table.check_head(head).map_err(in_file)?;
        if padding.iter().any(|&b| b != 0) {
            return Err(in_file(Error::new(Rule::PaddingNotZero)));
        }
        encoding.open(spec, head).map_err(in_file)
    }

    /// Decodes the original bytes `range` of tensor `index` into `dst`, on the threads of the
    /// caller's rayon pool, with the decoder from [`decoder`](Self::decoder). Reads only the needed
    /// blocks.
    ///
    /// # Errors
    /// Those of [`decode_range`].
    pub fn decode(
        &self,
        index: usize,
        decoder: &dyn BlockDecoder,
        range: Range<u64>,
        dst: &mut [u8],
    ) -> Result<()> {
        let resolved = self.resolve(index)?;
        let payload = self.payload(&resolved)?;
        decode_range(decoder, resolved.spec, resolved.table, &payload, range, dst)
            .map_err(|e| e.in_part_at(resolved.offset))
    }

    /// The same for a tensor with a [base](Self::base_of). `base` is the base as the tensor sees it
    /// (see [`BaseTensor`](crate::BaseTensor)); only the blocks that `range` touches are read from
    /// it, and each is checked before anything is decoded from it. Of a tensor without a base,
    /// nothing is read from `base`.
    ///
    /// # Errors
    /// Those of [`decode_range_with_base`].
    pub fn decode_with_base(
        &self,
        index: usize,
        decoder: &dyn BlockDecoder,
        base: &dyn ReadAt,
        range: Range<u64>,
        dst: &mut [u8],
    ) -> Result<()> {
        let resolved = self.resolve(index)?;
        let payload = self.payload(&resolved)?;
        let (spec, table) = (resolved.spec, resolved.table);
        decode_range_with_base(decoder, spec, table, &payload, base, range, dst)
            .map_err(|e| e.in_part_at(resolved.offset))
    }

    fn payload(&self, resolved: &Resolved<'_>) -> Result<Section<&R>> {
        Section::new(&self.source, resolved.range())
            .map_err(|e| match e.rule() {
                Rule::RangeOutOfBounds => Error::new(Rule::SourceChanged),
                _ => e,
            })
            .map_err(|e| e.in_tensor(resolved.spec.name()))
    }

    /// [`decode_with_base`](Self::decode_with_base) on this thread alone, for blocks that are
    /// already in memory. `payload` stands for the whole payload of tensor `index`, and must give
    /// the needed blocks.
    ///
    /// # Errors
    /// Those of [`decode_range_with_base`].
    pub fn decode_from(
        &self,
        index: usize,
        decoder: &dyn BlockDecoder,
        payload: &dyn ReadAt,
        base: &dyn ReadAt,
        range: Range<u64>,
        dst: &mut [u8],
    ) -> Result<()> {
        let Resolved { spec, offset, table, .. } = self.resolve(index)?;
        decode_here(decoder, spec, table, payload, Some(base), range, dst)
            .map_err(|e| e.in_part_at(offset))
    }
}

/// The range of the index. Checks only the fields that locate it.
fn read_trailer(tail: &[u8], byte_len: u64) -> Result<Range<u64>> {
    let too_short = || {
        Error::new(Rule::ShardTooShort)
            .expected(format!("{} bytes or more", PRELUDE_LEN.saturating_add(TRAILER_LEN)))
            .found(byte_len)
    };
    let trailer_at = byte_len.checked_sub(TRAILER_LEN).ok_or_else(too_short)?;
    let (_, trailer) = tail
        .split_at_checked(tail.len().saturating_sub(TRAILER_LEN as usize))
        .ok_or_else(too_short)?;
    if !trailer.ends_with(&MAGIC) {
        return Err(Error::new(Rule::ShardMagic).at(byte_len.saturating_sub(MAGIC.len() as u64)));
    }
    if byte_len < PRELUDE_LEN.saturating_add(TRAILER_LEN) {
        return Err(too_short());
    }
    let mut cursor = Cursor::new(trailer, Rule::ShardTooShort);
    let (offset, len) = (cursor.u64()?, cursor.u64()?);
    if offset < PRELUDE_LEN || offset.checked_add(len) != Some(trailer_at) {
        return Err(Error::new(Rule::IndexRange)
            .at(trailer_at)
            .expected(format!("offset + length = {trailer_at}"))
            .found(format!("{offset} + {len}")));
    }
    Ok(offset..trailer_at)
}

/// The feature bits of the trailer.
#[derive(Clone, Copy)]
struct Features {
    required: u32,
    ignorable: u32,
}

/// Checks version, required features and reserved bytes.
fn check_trailer_fields(trailer: &[u8]) -> Result<Features> {
    let mut cursor = Cursor::new(trailer, Rule::ShardTooShort);
    cursor.take(16)?;
    let required = cursor.u32()?;
    let ignorable = cursor.u32()?;
    let version = cursor.u16()?;
    if version == 0 {
        return Err(Error::new(Rule::VersionZero));
    }
    if version > VERSION {
        return Err(Error::new(Rule::Version)
            .expected(format!("version {VERSION} or less"))
            .found(version));
    }
    let unknown = required & !FEATURE_BASES;
    if unknown != 0 {
        return Err(Error::new(Rule::RequiredFeature).found(format!("bits {unknown:#x}")));
    }
    if cursor.bytes::<6>()? != [0; 6] {
        return Err(Error::new(Rule::ReservedNotZero).found("in the trailer"));
    }
    Ok(Features { required, ignorable })
}

/// The error for a file without the trailer's magic: its first bytes may show another kind of file.
fn explain(source: &dyn ReadAt, byte_len: u64, error: Error) -> Error {
    let mut start = [0; 9];
    let len = byte_len.min(start.len() as u64) as usize;
    if start.get_mut(..len).is_none_or(|start| read_at(source, 0, start).is_err()) {
        return error;
    }
    if let Some(rule) = recognise(&start) {
        return Error::new(rule);
    }
    if start.ends_with(b"{") {
        return Error::new(Rule::SafetensorsFile);
    }
    match error.rule() {
        Rule::ShardMagic if start.starts_with(&MAGIC) => {
            error.found("it begins as a shard but does not end as one; is it cut short?")
        }
        _ if start.starts_with(&MAGIC) => error,
        Rule::ShardMagic | Rule::ShardTooShort => crate::foreign::explain(source, error),
        _ => error,
    }
}

struct Parsed {
    header_range: Range<usize>,
    header: Header,
    bases: Vec<Base>,
    entries: Vec<ShardEntry>,
    sha256: [u8; 32],
    flags: u32,
}

/// Parses the index, which begins at `begin` in the file. With an ignorable feature, what follows
/// the last record is skipped. Offsets of errors are relative to the index.
fn parse_index(index: &[u8], begin: u64, features: Features, limits: &Limits) -> Result<Parsed> {
    let mut cursor = Cursor::new(index, Rule::IndexTruncated);
    let header_len = cursor.u64()?;
    let sha256 = cursor.bytes::<32>()?;
    let count = cursor.u32()? as usize;
    let flags = cursor.u32()?;
    if flags & !INDEX_SYNTHESISED != 0 {
        return Err(Error::new(Rule::ReservedNotZero).found("in the index flags"));
    }
    if count > limits.max_tensors {
        return Err(Error::new(Rule::TooManyTensors)
            .expected(format!("at most {}", limits.max_tensors))
            .found(count));
    }
    let json = cursor.take(usize::try_from(header_len).unwrap_or(usize::MAX))?;
    Header::check_len(header_len, limits)?;
    let header_range = INDEX_FIXED..INDEX_FIXED.saturating_add(json.len());
    cursor.align8()?;
    let bases = match features.required & FEATURE_BASES {
        0 => Vec::new(),
        _ => bases::read(&mut cursor)?,
    };
    // Every tensor has a record. A larger count is refused before memory is reserved for it.
    if count > cursor.remaining().checked_div(RECORD_FIXED).unwrap_or(0) {
        return Err(Error::new(Rule::IndexTruncated)
            .expected(format!("{count} records"))
            .found(format!("{} bytes", cursor.remaining())));
    }
    bases::check_depth(&bases, limits)?;
    let header = Header::parse_stored(json, limits, count)
        .map_err(|e| e.in_part_at(INDEX_FIXED as u64).at(INDEX_FIXED as u64))?;
    if header.tensors().len() != count {
        return Err(Error::new(Rule::EntryCount).expected(header.tensors().len()).found(count));
    }
    let mut entries: Vec<ShardEntry> = room_for(count)?;
    let mut at = PRELUDE_LEN;
    for spec in header.tensors() {
        let record_at = cursor.position();
        let before = (header.tensors(), &entries[..]);
        let entry = read_record(&mut cursor, spec, before, bases.len(), &mut at)
            .map_err(|e| e.in_tensor(spec.name()).at(record_at))?;
        entries.push(entry);
    }
    if cursor.remaining() != 0 && features.ignorable == 0 {
        return Err(Error::new(Rule::IndexTrailing)
            .at(cursor.position())
            .found(format!("{} bytes", cursor.remaining())));
    }
    if at != begin {
        return Err(Error::new(Rule::IndexRange)
            .at(0)
            .expected(format!("payloads up to {begin}"))
            .found(at));
    }
    Ok(Parsed { header_range, header, bases, entries, sha256, flags })
}

fn read_record(
    cursor: &mut Cursor<'_>,
    spec: &TensorSpec,
    (specs, before): (&[TensorSpec], &[ShardEntry]),
    n_bases: usize,
    at: &mut u64,
) -> Result<ShardEntry> {
    let encoding = cursor.u8()?;
    let flags = cursor.u8()?;
    let reserved = cursor.u16()?;
    if flags & !RECORD_FLAGS != 0 || reserved != 0 {
        return Err(Error::new(Rule::ReservedNotZero).found("in an index record"));
    }
    let head_len = cursor.u32()?;
    let place = cursor.u64()?;
    let length = cursor.u64()?;
    let head_hash = cursor.u64()?;
    let md5 = if flags & RECORD_MD5 != 0 { Some(Box::new(cursor.bytes::<16>()?)) } else { None };
    let has_base = flags & RECORD_BASE != 0;
    let needs_base = EncodingId::from_code(encoding).is_some_and(EncodingId::needs_base);
    let of_base = flags & (RECORD_INHERITED | RECORD_RENAMED) != 0;
    let shared = flags & RECORD_SHARED != 0;
    if has_base != needs_base || (of_base && !has_base) || (shared && has_base) {
        return Err(Error::new(Rule::BaseRecord)
            .expected("a base for encoding 3, and for no other")
            .found(format!("encoding {encoding}, flags {flags:#x}")));
    }
    let base = match has_base {
        true => Some(Box::new(read_base(cursor, flags, n_bases)?)),
        false => None,
    };
    if base.as_ref().is_some_and(|base| base.inherited) {
        if (head_len, place, length, head_hash) != (0, 0, 0, 0) {
            return Err(Error::new(Rule::ReservedNotZero).found("in an inherited record"));
        }
        let table = BlockTable::inherited(spec, BlockTable::read_base(spec, cursor)?)?;
        // As if it stood between two payloads.
        let payload = Payload::Own { offset: *at, table, encoding };
        return Ok(ShardEntry { payload, md5, base });
    }
    if shared {
        let owner = usize::try_from(place).ok().and_then(|i| Some((i, before.get(i)?)));
        let same = owner.filter(|(i, entry)| {
            entry.shares().is_none()
                && !entry.is_inherited()
                && specs.get(*i).is_some_and(|other| {
                    (other.dtype(), other.byte_len()) == (spec.dtype(), spec.byte_len())
                })
        });
        let Some((owner, _)) = same else {
            return Err(Error::new(Rule::SharedPayload).found(format!("index {place}")));
        };
        if (encoding, head_len, length, head_hash) != (0, 0, 0, 0) {
            return Err(Error::new(Rule::ReservedNotZero).found("in a shared record"));
        }
        return Ok(ShardEntry { payload: Payload::Shared(owner as u32), md5, base });
    }
    if place != *at {
        return Err(Error::new(Rule::PayloadRange).expected(*at).found(place));
    }
    let table = BlockTable::read(spec, encoding, head_len, head_hash, cursor)?;
    if table.payload_len() != length {
        return Err(Error::new(Rule::PayloadLength).expected(table.payload_len()).found(length));
    }
    *at = at.checked_add(length).ok_or_else(|| Error::new(Rule::PayloadRange).found(length))?;
    Ok(ShardEntry { payload: Payload::Own { offset: place, table, encoding }, md5, base })
}

/// Reads what a record says about the tensor's base.
fn read_base(cursor: &mut Cursor<'_>, flags: u8, n_bases: usize) -> Result<BaseOf> {
    let place = cursor.u32()?;
    let name_len = cursor.u32()? as usize;
    let renamed = flags & RECORD_RENAMED != 0;
    if place as usize >= n_bases || (!renamed && name_len != 0) {
        return Err(Error::new(Rule::BaseRecord)
            .expected(format!("one of {n_bases} bases, and a name only if it differs"))
            .found(format!("base {place}, a name of {name_len} bytes")));
    }
    let name = std::str::from_utf8(cursor.take(name_len)?)
        .map_err(|_| Error::new(Rule::BaseRecord).expected("a name of UTF-8"))?;
    cursor.align8()?;
    let inherited = flags & RECORD_INHERITED != 0;
    Ok(BaseOf { place, name: renamed.then(|| name.into()), inherited })
}
