//! The bytes of a shard, front to back, from tensors that are encoded and hashed already.

use std::fmt;
use std::hash::Hasher as _;
use std::io::Write;
use std::sync::Arc;

use twox_hash::XxHash3_64;

use super::bases::{self, Base, BaseRef};
use super::layout::{
    FEATURE_BASES, INDEX_FIXED, INDEX_SYNTHESISED, MAGIC, RECORD_BASE, RECORD_INHERITED,
    RECORD_MD5, RECORD_RENAMED, RECORD_SHARED, TRAILER_LEN, VERSION, prelude,
};
use crate::wire::pad8;
use crate::{
    BlockTable, EncodedTensor, EncodingId, Error, Header, Limits, Result, Rule, TensorSpec, xxh3,
};

/// Writes the bytes of a shard into a sink that needs no seeking: [`new`](Self::new), for every
/// tensor of the header in the order of the data [`share`](Self::share) or [`begin`](Self::begin),
/// [`blocks`](Self::blocks) and [`end`](Self::end), then [`finish`](Self::finish).
///
/// It checks the order of the calls and the lengths, not the contents: a pipeline that encodes and
/// hashes on threads of its own gives it what it made. Everybody else takes
/// [`ShardWriter`](crate::ShardWriter).
///
/// For a tensor with a base [`begin_with_base`](Self::begin_with_base) and
/// [`blocks_with_base`](Self::blocks_with_base), or [`inherit`](Self::inherit), stand for
/// `begin`, `blocks` and `end`; [`add_base`](Self::add_base) comes first.
///
/// Memory: the stored header and 12 bytes a block, 20 with a base.
pub struct Assembler<W> {
    sink: W,
    position: u64,
    header_json: Vec<u8>,
    header: Arc<Header>,
    flags: u32,
    bases: Vec<Base>,
    records: Vec<u8>,
    /// Tensors whose record is complete.
    done: usize,
    /// For every finished tensor whether it has a payload of its own.
    own_payload: Vec<bool>,
    open: Option<Open>,
}

/// The tensor that is being written.
struct Open {
    encoding: EncodingId,
    offset: u64,
    head_len: u32,
    head_hash: u64,
    lens: Vec<u32>,
    hashes: Vec<u64>,
    /// The place of the base and the name of its tensor, and the checksums of its blocks.
    base: Option<(BaseName, Vec<u64>)>,
}

/// A [`BaseRef`] that owns the name; `None` where the names are equal.
type BaseName = (u32, Option<Box<str>>);

impl<W: Write> Assembler<W> {
    /// Begins a shard that restores to the safetensors file with the header `header_json` (its
    /// exact bytes).
    ///
    /// # Errors
    /// Those of the sink and of [`Header::parse`].
    pub fn new(sink: W, header_json: Vec<u8>, data_len: u64) -> Result<Self> {
        let header = Header::parse(&header_json, data_len, &Limits::default())?;
        Self::parsed(sink, header_json, Arc::new(header))
    }

    /// The same with the header that `header_json` was parsed to, so that there is one in memory.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn parsed(sink: W, header_json: Vec<u8>, header: Arc<Header>) -> Result<Self> {
        Self::start(sink, header_json, header, 0)
    }

    /// The same for a header that [`Header::synthesise`] made.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn synthesised_parsed(sink: W, header_json: Vec<u8>, header: Arc<Header>) -> Result<Self> {
        Self::start(sink, header_json, header, INDEX_SYNTHESISED)
    }

    /// Begins a shard of tensors that never were in a file; they will restore to a safetensors file
    /// with a plain header.
    ///
    /// # Errors
    /// Those of the sink, of [`Header::synthesise`] and of [`Header::parse`].
    pub fn synthesised(sink: W, tensors: &[TensorSpec]) -> Result<Self> {
        let header_json = Header::synthesise(tensors)?;
        let data_len = tensors.iter().map(TensorSpec::byte_len).sum();
        Self::with_synthesised(sink, header_json, data_len)
    }

    /// The same with the header that [`Header::synthesise`] or [`Header::synthesise_with`] made.
    ///
    /// # Errors
    /// Those of the sink and of [`Header::parse`].
    pub fn with_synthesised(sink: W, header_json: Vec<u8>, data_len: u64) -> Result<Self> {
        let header = Header::parse(&header_json, data_len, &Limits::default())?;
        Self::start(sink, header_json, Arc::new(header), INDEX_SYNTHESISED)
    }

    fn start(mut sink: W, header_json: Vec<u8>, header: Arc<Header>, flags: u32) -> Result<Self> {
        let prelude = prelude();
        sink.write_all(&prelude)?;
        Ok(Assembler {
            sink,
            position: prelude.len() as u64,
            header_json,
            header,
            flags,
            bases: Vec::new(),
            records: Vec::new(),
            done: 0,
            own_payload: Vec::new(),
            open: None,
        })
    }

    /// The stored header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The stored header as JSON, byte for byte.
    #[must_use]
    pub fn header_json(&self) -> &[u8] {
        &self.header_json
    }

    /// Bytes written so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The sink, for flushing and for starting the write-back early.
    pub fn sink(&mut self) -> &mut W {
        &mut self.sink
    }

    fn misuse(&self, expected: &str) -> Error {
        Error::new(Rule::WriterMisuse).expected(expected)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.sink.write_all(bytes).map_err(|e| Error::io(e).at(self.position))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// The tensor that is due.
    ///
    /// # Errors
    /// [`Rule::WriterMisuse`] when all are written, or one is not ended yet.
    pub fn next_tensor(&self) -> Result<&TensorSpec> {
        if self.open.is_some() {
            return Err(self.misuse("the open tensor to be ended first"));
        }
        let spec = self.header.tensors().get(self.done);
        spec.ok_or_else(|| self.misuse("no more tensors than the header has"))
    }

    /// Begins the next tensor with the head of its encoding; [`blocks`](Self::blocks) and
    /// [`end`](Self::end) follow.
    ///
    /// # Errors
    /// Those of the sink; [`Rule::WriterMisuse`].
    pub fn begin(&mut self, encoding: EncodingId, head: &[u8]) -> Result<()> {
        if encoding.needs_base() {
            return Err(self.misuse("a base for this encoding"));
        }
        self.begin_any(encoding, head, None)
    }

    /// The same for an encoding that needs a base.
    ///
    /// # Errors
    /// Those of the sink; [`Rule::WriterMisuse`].
    pub fn begin_with_base(
        &mut self,
        encoding: EncodingId,
        head: &[u8],
        base: BaseRef<'_>,
    ) -> Result<()> {
        if !encoding.needs_base() {
            return Err(self.misuse("an encoding that needs a base"));
        }
        let base = self.base_name(base)?;
        self.begin_any(encoding, head, Some((base, Vec::new())))
    }

    /// Adds a base and returns its place, for [`BaseRef`].
    pub fn add_base(&mut self, base: Base) -> usize {
        self.bases.push(base);
        self.bases.len() - 1
    }

    /// The bases that were added, by their places.
    pub fn bases(&self) -> &[Base] {
        &self.bases
    }

    /// Replaces the SHA-256 of a base that was added, for a writer that learns it late.
    ///
    /// # Errors
    /// [`Rule::WriterMisuse`] for a base that was not added.
    pub fn set_base_sha256(&mut self, place: usize, sha256: [u8; 32]) -> Result<()> {
        match self.bases.get_mut(place) {
            Some(base) => base.sha256 = sha256,
            None => return Err(self.misuse("a base that was added")),
        }
        Ok(())
    }

    fn base_name(&self, base: BaseRef<'_>) -> Result<BaseName> {
        let due = self.next_tensor()?.name();
        match u32::try_from(base.base) {
            Ok(place) if base.base < self.bases.len() => {
                Ok((place, (due != base.name).then(|| base.name.into())))
            }
            _ => Err(self.misuse("a base that was added")),
        }
    }

    fn begin_any(
        &mut self,
        encoding: EncodingId,
        head: &[u8],
        base: Option<(BaseName, Vec<u64>)>,
    ) -> Result<()> {
        let n_blocks = self.next_tensor()?.n_blocks() as usize;
        let offset = self.position;
        let mut padded = head.to_vec();
        pad8(&mut padded);
        self.write(&padded)?;
        self.open = Some(Open {
            encoding,
            offset,
            head_len: head.len() as u32,
            head_hash: xxh3(head),
            lens: Vec::with_capacity(n_blocks),
            hashes: Vec::with_capacity(n_blocks),
            base,
        });
        Ok(())
    }

    /// Appends blocks as [`BlockEncoder::encode_blocks`](crate::BlockEncoder::encode_blocks) left
    /// them: each padded to a multiple of 8 bytes in `bytes`, its length without the padding in
    /// `lens`.
    ///
    /// # Errors
    /// Those of the sink; [`Rule::WriterMisuse`].
    pub fn blocks(&mut self, bytes: &[u8], lens: &[u32]) -> Result<()> {
        self.blocks_with_base(bytes, lens, &[])
    }

    /// The same for blocks of a tensor with a base, and the XXH3 of the base's bytes of each block.
    ///
    /// # Errors
    /// Those of the sink; [`Rule::WriterMisuse`].
    pub fn blocks_with_base(&mut self, bytes: &[u8], lens: &[u32], base: &[u64]) -> Result<()> {
        let misuse = self.misuse("blocks of an open tensor, padded to 8 bytes");
        let Some(open) = &mut self.open else { return Err(misuse) };
        if let Some((_, hashes)) = &mut open.base {
            hashes.extend_from_slice(base);
        }
        let mut rest = bytes;
        for &len in lens {
            let Some((block, after)) = rest.split_at_checked((len as usize).next_multiple_of(8))
            else {
                return Err(misuse);
            };
            open.lens.push(len);
            open.hashes.push(xxh3(block));
            rest = after;
        }
        if !rest.is_empty() {
            return Err(misuse);
        }
        self.write(bytes)
    }

    /// Ends the open tensor. `md5` is the MD5 of its original bytes, if it is to be kept.
    ///
    /// # Errors
    /// [`Rule::WriterMisuse`] when blocks are missing.
    pub fn end(&mut self, md5: Option<[u8; 16]>) -> Result<()> {
        let open = self.open.take().ok_or_else(|| self.misuse("an open tensor"))?;
        let spec = self.next_tensor()?;
        let (lens, hashes) = (open.lens.into_iter(), open.hashes.into_iter());
        let (base, of_base) = open.base.unzip();
        let of_base = of_base.map(Vec::into_boxed_slice);
        let table = BlockTable::new(spec, open.head_len, open.head_hash, lens, hashes, of_base)
            .map_err(|e| self.misuse(&format!("{e}")))?;
        let length = table.payload_len();
        self.record(
            open.encoding.code(),
            0,
            open.head_len,
            open.offset,
            length,
            table.head_hash(),
            md5,
            base.as_ref(),
        );
        table.write(&mut self.records);
        self.own_payload.push(true);
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // one for each field of the record, in order
    fn record(
        &mut self,
        encoding: u8,
        flags: u8,
        head_len: u32,
        place: u64,
        length: u64,
        hash: u64,
        md5: Option<[u8; 16]>,
        base: Option<&BaseName>,
    ) {
        let of_base = match base {
            None => 0,
            Some((_, None)) => RECORD_BASE,
            Some((_, Some(_))) => RECORD_BASE | RECORD_RENAMED,
        };
        let flags = flags | of_base | if md5.is_some() { RECORD_MD5 } else { 0 };
        let out = &mut self.records;
        out.extend_from_slice(&[encoding, flags, 0, 0]);
        out.extend_from_slice(&head_len.to_le_bytes());
        out.extend_from_slice(&place.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&hash.to_le_bytes());
        out.extend_from_slice(md5.as_ref().map_or(&[][..], |m| m));
        if let Some((place, name)) = base {
            let name = name.as_deref().unwrap_or("");
            out.extend_from_slice(&place.to_le_bytes());
            out.extend_from_slice(&(name.len() as u32).to_le_bytes());
            out.extend_from_slice(name.as_bytes());
            pad8(out);
        }
        self.done += 1;
    }

    /// Writes the next tensor whole, which has a base; one that is its base is
    /// [inherited](Self::inherit). `md5` is the MD5 of its original bytes, if it is to be kept.
    ///
    /// # Errors
    /// Those of the sink; [`Rule::WriterMisuse`] when `tensor` has not the blocks that are due.
    pub fn tensor_with_base(
        &mut self,
        tensor: &EncodedTensor,
        base: BaseRef<'_>,
        md5: Option<[u8; 16]>,
    ) -> Result<()> {
        if tensor.table().is_base() {
            return self.inherit(base, tensor.table().base_hashes(), md5);
        }
        self.begin_with_base(tensor.encoding(), tensor.head(), base)?;
        self.all_blocks(tensor)?;
        self.end(md5)
    }

    /// Writes the next tensor whole. `md5` is the MD5 of its original bytes, if it is to be kept.
    ///
    /// # Errors
    /// Those of the sink; [`Rule::WriterMisuse`] when `tensor` has not the blocks that are due.
    pub fn tensor(&mut self, tensor: &EncodedTensor, md5: Option<[u8; 16]>) -> Result<()> {
        self.begin(tensor.encoding(), tensor.head())?;
        self.all_blocks(tensor)?;
        self.end(md5)
    }

    fn all_blocks(&mut self, tensor: &EncodedTensor) -> Result<()> {
        let table = tensor.table();
        let lens: Vec<u32> = (0..table.n_blocks()).map(|i| table.block_len(i) as u32).collect();
        let blocks = table.blocks_range(0..table.n_blocks());
        self.blocks_with_base(
            &tensor.payload()[blocks.start as usize..],
            &lens,
            table.base_hashes(),
        )
    }

    /// Says that the next tensor has the same bytes as the earlier tensor `earlier` (its place in
    /// the order).
    ///
    /// # Errors
    /// [`Rule::WriterMisuse`] when dtype or length differ, or `earlier` has no payload of its own.
    pub fn share(&mut self, earlier: usize, md5: Option<[u8; 16]>) -> Result<()> {
        let spec = self.next_tensor()?;
        let same = self.header.tensors().get(earlier).is_some_and(|other| {
            (other.dtype(), other.byte_len()) == (spec.dtype(), spec.byte_len())
        });
        if !same || self.own_payload.get(earlier) != Some(&true) {
            return Err(self.misuse("an earlier tensor of the same dtype and length"));
        }
        self.record(0, RECORD_SHARED, 0, earlier as u64, 0, 0, md5, None);
        self.own_payload.push(false);
        Ok(())
    }

    /// Says that the next tensor is the tensor `base` as it sees it, byte for byte. `hashes` has
    /// the XXH3 of the bytes of each block.
    ///
    /// # Errors
    /// [`Rule::WriterMisuse`].
    pub fn inherit(
        &mut self,
        base: BaseRef<'_>,
        hashes: &[u64],
        md5: Option<[u8; 16]>,
    ) -> Result<()> {
        let base = self.base_name(base)?;
        let spec = self.next_tensor()?;
        let table =
            BlockTable::inherited(spec, hashes.into()).map_err(|e| self.misuse(&format!("{e}")))?;
        let code = EncodingId::Delta.code();
        self.record(code, RECORD_INHERITED, 0, 0, 0, 0, md5, Some(&base));
        table.write_base(&mut self.records);
        self.own_payload.push(false);
        Ok(())
    }

    /// Writes index and trailer and returns the flushed sink. `sha256` is the SHA-256 of the
    /// safetensors file that the shard restores to: length prefix, header and data.
    ///
    /// # Errors
    /// Those of the sink; [`Rule::WriterMisuse`] when tensors are missing.
    pub fn finish(mut self, sha256: [u8; 32]) -> Result<W> {
        if self.open.is_some() || self.done != self.header.tensors().len() {
            return Err(self.misuse("every tensor of the header"));
        }
        // Written in parts: index and stored header may be large, and are in memory once.
        let mut fixed = Vec::with_capacity(INDEX_FIXED);
        fixed.extend_from_slice(&(self.header_json.len() as u64).to_le_bytes());
        fixed.extend_from_slice(&sha256);
        fixed.extend_from_slice(&(self.done as u32).to_le_bytes());
        fixed.extend_from_slice(&self.flags.to_le_bytes());
        let (json, records) =
            (std::mem::take(&mut self.header_json), std::mem::take(&mut self.records));
        let padding = &[0; 8][..json.len().next_multiple_of(8) - json.len()];
        let (mut features, mut bases) = (0, Vec::new());
        if !self.bases.is_empty() {
            features |= FEATURE_BASES;
            bases::write(&self.bases, &mut bases);
        }
        let offset = self.position;
        let mut checksum = XxHash3_64::new();
        for part in [&fixed, &json, padding, &bases, &records] {
            checksum.write(part);
            self.write(part)?;
        }
        let mut trailer = Vec::with_capacity(TRAILER_LEN as usize);
        trailer.extend_from_slice(&offset.to_le_bytes());
        trailer.extend_from_slice(&(self.position - offset).to_le_bytes());
        trailer.extend_from_slice(&features.to_le_bytes());
        trailer.extend_from_slice(&[0; 4]); // ignorable features: none
        trailer.extend_from_slice(&VERSION.to_le_bytes());
        trailer.extend_from_slice(&[0; 6]);
        checksum.write(&trailer);
        trailer.extend_from_slice(&checksum.finish().to_le_bytes());
        trailer.extend_from_slice(&MAGIC);
        self.write(&trailer)?;
        self.sink.flush()?;
        Ok(self.sink)
    }
}

impl<W> fmt::Debug for Assembler<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assembler")
            .field("position", &self.position)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}
