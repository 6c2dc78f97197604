//! Writing a shard whose contents are known to be right.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;

use sha2::{Digest as _, Sha256};

use super::assemble::Assembler;
use super::bases::{Base, BaseRef};
use crate::spec::blocks_within;
use crate::wire::set_len;
use crate::{
    EncodedTensor, Error, Header, ReadAt, Result, Rule, TensorEncoding, TensorSpec, decode_range,
    encode_or_raw, encode_tensor_with_base,
};

/// Bytes that are decoded and hashed at once: a few blocks for each thread.
const DECODED_AT_ONCE: u64 = 16 << 20;

/// Writes a shard, tensor by tensor in the order of the header, into a sink that needs no seeking.
///
/// The writer computes the SHA-256 of the file that the shard restores to, and it compares the
/// name, dtype and shape of each tensor with those of the tensor that is due. What was written
/// before [`finish`](Self::finish) returned is not a shard; after an error the writer is of no
/// further use.
///
/// Memory: the stored header, 40 bytes a tensor and 12 bytes a block.
///
/// ```
/// use bigsmall_format::*;
/// let spec = TensorSpec::new("w", Dtype::U8, &[3])?;
/// let mut writer = ShardWriter::synthesised(Vec::new(), std::slice::from_ref(&spec))?;
/// writer.write(&spec, &[1, 2, 3], &Raw)?;
/// let shard = Shard::open(writer.finish()?)?;
/// assert_eq!(shard.tensors()[0], spec);
/// let mut values = [0; 3];
/// shard.encoded(0)?.decode_bytes(&Raw, 0..3, &mut values)?;
/// assert_eq!(values, [1, 2, 3]);
/// # Ok::<(), Error>(())
/// ```
pub struct ShardWriter<W> {
    assembler: Assembler<W>,
    /// Of the restored file up to the tensor that is due.
    sha256: Sha256,
    written: Vec<Written>,
}

/// What is kept of a tensor for those that share its payload.
struct Written {
    /// SHA-256 of the original bytes: for a shorter hash somebody may make two tensors with the
    /// same.
    content: [u8; 32],
    /// The place of the tensor with the payload: its own, or that of the one it shares with.
    owner: usize,
}

impl<W: Write> ShardWriter<W> {
    /// Begins a shard that restores to the safetensors file with the header `header_json` (its
    /// exact bytes) and `data_len` bytes of data.
    ///
    /// # Errors
    /// Those of the sink and of [`Header::parse`](crate::Header::parse).
    pub fn new(sink: W, header_json: Vec<u8>, data_len: u64) -> Result<Self> {
        Assembler::new(sink, header_json, data_len).map(Self::start)
    }

    /// Begins a shard of tensors that never were in a file. They restore to a safetensors file with
    /// a plain header.
    ///
    /// # Errors
    /// Those of the sink, of [`Header::synthesise`](crate::Header::synthesise) and of
    /// [`Header::parse`](crate::Header::parse).
    pub fn synthesised(sink: W, tensors: &[TensorSpec]) -> Result<Self> {
        Self::synthesised_with(sink, tensors, None)
    }

    /// The same with `metadata` as the header's `__metadata__`.
    ///
    /// # Errors
    /// Those of [`synthesised`](Self::synthesised).
    pub fn synthesised_with(
        sink: W,
        tensors: &[TensorSpec],
        metadata: Option<&BTreeMap<String, String>>,
    ) -> Result<Self> {
        let header_json = Header::synthesise_with(tensors, metadata)?;
        let data_len = tensors.iter().map(TensorSpec::byte_len).sum();
        Assembler::with_synthesised(sink, header_json, data_len).map(Self::start)
    }

    fn start(assembler: Assembler<W>) -> Self {
        let json = assembler.header_json();
        let sha256 = Sha256::new().chain_update((json.len() as u64).to_le_bytes());
        let sha256 = sha256.chain_update(json);
        ShardWriter { assembler, sha256, written: Vec::new() }
    }

    /// The tensors to write, in that order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        self.assembler.header().tensors()
    }

    /// Encodes `bytes`, the little-endian values of the tensor `spec`, and writes them. A tensor
    /// that does not shrink, or whose dtype `encoding` does not take, is stored raw.
    ///
    /// Memory: the encoded tensor.
    ///
    /// # Errors
    /// [`Rule::WriterMisuse`] when `spec` is not the tensor that is due, naming both;
    /// [`Rule::BufferLength`] when `bytes` is not as long as the tensor; those of the encoding and
    /// of the sink.
    pub fn write(
        &mut self,
        spec: &TensorSpec,
        bytes: &[u8],
        encoding: &dyn TensorEncoding,
    ) -> Result<()> {
        self.check_due(spec, bytes)?;
        self.assembler.tensor(&encode_or_raw(encoding, spec, &bytes)?, None)?;
        self.finish_tensor(bytes);
        Ok(())
    }

    /// Adds a base and returns its place, for [`BaseRef`].
    pub fn add_base(&mut self, base: Base) -> usize {
        self.assembler.add_base(base)
    }

    /// Writes the tensor `spec` as differences from the tensor `base`, if that is smaller than what
    /// [`write`](Self::write) would write. `bytes` are its little-endian values, `base_bytes` those
    /// of the base as the tensor sees it (see [`BaseTensor`](crate::BaseTensor)), and `delta` is an
    /// encoding that needs a base. A tensor that is its base has no payload.
    ///
    /// Memory: the tensor in both encodings.
    ///
    /// # Errors
    /// Those of [`write`](Self::write) and of `base_bytes`; [`Rule::WriterMisuse`] for a base that
    /// was not added.
    pub fn write_with_base(
        &mut self,
        spec: &TensorSpec,
        bytes: &[u8],
        encoding: &dyn TensorEncoding,
        delta: &dyn TensorEncoding,
        base: BaseRef<'_>,
        base_bytes: &dyn ReadAt,
    ) -> Result<()> {
        self.check_due(spec, bytes)?;
        let encoded = encode_tensor_with_base(delta, spec, &bytes, base_bytes)?;
        let table = encoded.table();
        let alone = match table.is_base() {
            true => None,
            false => Some(encode_or_raw(encoding, spec, &bytes)?),
        };
        let of_record = 8 * table.n_blocks() + 16 + base.name.len() as u64;
        match alone.filter(|alone| alone.byte_len() <= encoded.byte_len() + of_record) {
            Some(alone) => self.assembler.tensor(&alone, None)?,
            None => self.assembler.tensor_with_base(&encoded, base, None)?,
        }
        self.finish_tensor(bytes);
        Ok(())
    }

    fn finish_tensor(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.written.push(Written { content: sha256(bytes), owner: self.written.len() });
    }

    /// Writes a tensor that is encoded already, as it is. `encoding` must be the one that encoded
    /// it: the tensor is decoded, block by block, since the SHA-256 is that of the values.
    ///
    /// Memory: 16 MiB.
    ///
    /// # Errors
    /// [`Rule::WriterMisuse`] when it is not the tensor that is due, naming both;
    /// [`Rule::SpecMismatch`] when it has another encoding; those of decoding and of the sink.
    pub fn write_encoded(
        &mut self,
        tensor: &EncodedTensor,
        encoding: &dyn TensorEncoding,
    ) -> Result<()> {
        let spec = tensor.spec();
        self.check_spec(spec)?;
        let decoder = tensor.open(encoding)?;
        let (mut sha256, mut content) = (self.sha256.clone(), Sha256::new());
        let step = blocks_within(spec, DECODED_AT_ONCE) * spec.block_bytes() as u64;
        let mut values = Vec::new();
        for begin in (0..spec.byte_len()).step_by(step as usize) {
            let end = spec.byte_len().min(begin + step);
            set_len(&mut values, (end - begin) as usize)?;
            let (table, payload) = (tensor.table(), &tensor.payload());
            decode_range(&*decoder, spec, table, payload, begin..end, &mut values)?;
            sha256.update(&values);
            content.update(&values);
        }
        self.assembler.tensor(tensor, None)?;
        self.sha256 = sha256;
        self.written
            .push(Written { content: content.finalize().into(), owner: self.written.len() });
        Ok(())
    }

    /// Writes that the tensor `spec` has the same values as the tensor `earlier`, which is written
    /// already: its payload is stored once. `bytes` are the values.
    ///
    /// # Errors
    /// [`Rule::WriterMisuse`] when `spec` is not the tensor that is due, or when dtype or values
    /// are not those of `earlier`; [`Rule::TensorMissing`] when no tensor has that name.
    pub fn share(&mut self, spec: &TensorSpec, bytes: &[u8], earlier: &str) -> Result<()> {
        self.check_due(spec, bytes)?;
        let content = sha256(bytes);
        let written = self.written_as(earlier)?.filter(|e| e.content == content);
        let owner = written.map(|e| e.owner).ok_or_else(|| {
            Error::new(Rule::WriterMisuse)
                .in_tensor(spec.name())
                .expected(format!("the values of the earlier tensor {earlier:?}"))
        })?;
        self.assembler.share(owner, None)?;
        self.sha256.update(bytes);
        self.written.push(Written { content, owner });
        Ok(())
    }

    /// Whether the tensor `earlier` is written already and has the values `bytes`, by their
    /// SHA-256.
    ///
    /// # Errors
    /// [`Rule::TensorMissing`] when no tensor has that name.
    pub fn has_values(&self, earlier: &str, bytes: &[u8]) -> Result<bool> {
        Ok(self.written_as(earlier)?.is_some_and(|e| e.content == sha256(bytes)))
    }

    /// What is kept of the tensor `earlier`, if it is written already.
    fn written_as(&self, earlier: &str) -> Result<Option<&Written>> {
        let place = self.assembler.header().index_of(earlier);
        let place = place.ok_or_else(|| Error::new(Rule::TensorMissing).in_tensor(earlier))?;
        Ok(self.written.get(place))
    }

    /// Writes the index and the trailer, flushes the sink and returns it.
    ///
    /// # Errors
    /// [`Rule::WriterMisuse`] when tensors are missing; those of the sink.
    pub fn finish(self) -> Result<W> {
        self.assembler.finish(self.sha256.finalize().into())
    }

    fn check_spec(&self, spec: &TensorSpec) -> Result<()> {
        let due = self.assembler.next_tensor().map_err(|e| e.in_tensor(spec.name()))?;
        let parts = |spec: &TensorSpec| {
            format!("tensor {:?}, {} {:?}", spec.name(), spec.dtype(), spec.shape())
        };
        match due == spec {
            true => Ok(()),
            false => Err(Error::new(Rule::WriterMisuse).expected(parts(due)).found(parts(spec))),
        }
    }

    fn check_due(&self, spec: &TensorSpec, bytes: &[u8]) -> Result<()> {
        self.check_spec(spec)?;
        if bytes.len() as u64 != spec.byte_len() {
            return Err(Error::new(Rule::BufferLength)
                .in_tensor(spec.name())
                .expected(format!("{} bytes", spec.byte_len()))
                .found(bytes.len()));
        }
        Ok(())
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

impl<W> fmt::Debug for ShardWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardWriter").field("assembler", &self.assembler).finish_non_exhaustive()
    }
}
