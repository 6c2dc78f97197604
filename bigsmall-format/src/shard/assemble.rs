//! The bytes of a shard, front to back, from tensors that are encoded and hashed already.

use std::fmt;
use std::io::Write;

use super::layout::{INDEX_SYNTHESISED, MAGIC, RECORD_MD5, RECORD_SHARED, VERSION, prelude};
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
/// Memory: the stored header and 12 bytes a block.
pub struct Assembler<W> {
    sink: W,
    position: u64,
    header_json: Vec<u8>,
    header: Header,
    flags: u32,
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
}

impl<W: Write> Assembler<W> {
    /// Begins a shard that restores to the safetensors file with the header `header_json` (its
    /// exact bytes).
    ///
    /// # Errors
    /// Those of the sink and of [`Header::parse`].
    pub fn new(sink: W, header_json: Vec<u8>, data_len: u64) -> Result<Self> {
        let header = Header::parse(&header_json, data_len, &Limits::default())?;
        Self::start(sink, header_json, header, 0)
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
        Self::start(sink, header_json, header, INDEX_SYNTHESISED)
    }

    fn start(mut sink: W, header_json: Vec<u8>, header: Header, flags: u32) -> Result<Self> {
        let prelude = prelude();
        sink.write_all(&prelude)?;
        Ok(Assembler {
            sink,
            position: prelude.len() as u64,
            header_json,
            header,
            flags,
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
        let misuse = self.misuse("blocks of an open tensor, padded to 8 bytes");
        let Some(open) = &mut self.open else { return Err(misuse) };
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
        let table = BlockTable::new(spec, open.head_len, open.head_hash, lens, hashes)
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
    ) {
        let out = &mut self.records;
        out.extend_from_slice(&[
            encoding,
            flags | if md5.is_some() { RECORD_MD5 } else { 0 },
            0,
            0,
        ]);
        out.extend_from_slice(&head_len.to_le_bytes());
        out.extend_from_slice(&place.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&hash.to_le_bytes());
        out.extend_from_slice(md5.as_ref().map_or(&[][..], |m| m));
        self.done += 1;
    }

    /// Writes the next tensor whole. `md5` is the MD5 of its original bytes, if it is to be kept.
    ///
    /// # Errors
    /// Those of the sink; [`Rule::WriterMisuse`] when `tensor` has not the blocks that are due.
    pub fn tensor(&mut self, tensor: &EncodedTensor, md5: Option<[u8; 16]>) -> Result<()> {
        let table = tensor.table();
        self.begin(tensor.encoding(), tensor.head())?;
        let lens: Vec<u32> = (0..table.n_blocks()).map(|i| table.block_len(i) as u32).collect();
        let blocks = table.blocks_range(0..table.n_blocks());
        self.blocks(&tensor.payload()[blocks.start as usize..], &lens)?;
        self.end(md5)
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
        self.record(0, RECORD_SHARED, 0, earlier as u64, 0, 0, md5);
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
        let mut index = Vec::with_capacity(64 + self.header_json.len() + self.records.len());
        index.extend_from_slice(&(self.header_json.len() as u64).to_le_bytes());
        index.extend_from_slice(&sha256);
        index.extend_from_slice(&(self.done as u32).to_le_bytes());
        index.extend_from_slice(&self.flags.to_le_bytes());
        index.extend_from_slice(&self.header_json);
        pad8(&mut index);
        index.extend_from_slice(&self.records);

        let mut trailer = Vec::with_capacity(48);
        trailer.extend_from_slice(&self.position.to_le_bytes());
        trailer.extend_from_slice(&(index.len() as u64).to_le_bytes());
        trailer.extend_from_slice(&[0; 8]); // feature bits: none
        trailer.extend_from_slice(&VERSION.to_le_bytes());
        trailer.extend_from_slice(&[0; 6]);
        index.extend_from_slice(&trailer);
        let checksum = xxh3(&index);
        index.extend_from_slice(&checksum.to_le_bytes());
        index.extend_from_slice(&MAGIC);
        self.write(&index)?;
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
