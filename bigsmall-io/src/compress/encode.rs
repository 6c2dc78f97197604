//! Encodes chunks.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bigsmall_format::internal::{Section, read_at, set_len, xxh3};
use bigsmall_format::{Header, Raw, ReadAt, TensorEncoding, TensorSpec};

use crate::base::matches::Matches;
use crate::base::tensor::TensorBase;
use crate::compress::job::{Encoded, EncodedPart, Job};
use crate::compress::plan::{Large, Plan};
use crate::compress::shared::Shared;
use crate::encodings::delta;
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::stage::chunk::Part;
use crate::stage::digest::sha256;
use crate::stage::pool::Pool;

/// Encodes chunks of a file.
pub(crate) struct Coder<'a> {
    pub(crate) encoding: &'a dyn TensorEncoding,
    pub(crate) header: &'a Header,
    pub(crate) shared: &'a Shared,
    pub(crate) matches: &'a Matches,
    pub(crate) source: &'a dyn ReadAt,
    pub(crate) data_at: u64,
    pub(crate) spare: &'a Pool,
}

/// How many blocks of a large tensor are encoded with and without its base, to choose between them.
const SAMPLES: u64 = 16;

/// Bytes of an encoded block at the least, where there is no base.
const LEAST: usize = 56;

impl<'a> Coder<'a> {
    /// `scratch` is reused from call to call.
    pub(crate) fn encode(&self, job: &Job<'a>, scratch: &mut Vec<u8>) -> Result<Encoded<'a>> {
        let with_base = job.chunk.parts.iter().any(|part| self.matches.of(part.tensor).is_some());
        let mut out = Encoded {
            bytes: self.spare.take(0)?,
            lens: Vec::new(),
            parts: Vec::new(),
            base: self.spare.take(if with_base { job.bytes.len() } else { 0 })?,
            hashes: Vec::new(),
        };
        for part in &job.chunk.parts {
            let bytes = job.part_bytes(part);
            let (at, lens_at, hashes_at) = (out.bytes.len(), out.lens.len(), out.hashes.len());
            out.reserve_for(bytes)?;
            let (mut plan, mut inherited) = (None, false);
            if self.shared.owner(part.tensor).is_none() {
                match &job.large {
                    Some(large) => plan = self.encode_large(large, part, bytes, &mut out)?,
                    None => {
                        plan = self.encode_small(part, bytes, &mut out, scratch)?;
                        inherited = plan.is_none();
                    }
                }
            }
            out.parts.push(EncodedPart {
                plan,
                inherited,
                bytes: at..out.bytes.len(),
                lens: lens_at..out.lens.len(),
                hashes: hashes_at..out.hashes.len(),
                digest: self.shared.is_one_of_several(part.tensor).then(|| sha256(bytes)),
            });
        }
        Ok(out)
    }

    /// The plan of a large tensor, made by the first thread that asks.
    pub(crate) fn plan<'l>(&self, large: &'l Large, tensor: usize) -> Result<&'l Arc<Plan>> {
        let name = self.header.tensors()[tensor].name();
        let mut failure = None;
        let plan = large.plan.get_or_init(|| {
            self.plan_large(large, tensor).in_tensor(name).map_err(|e| failure = Some(e)).ok()
        });
        // The thread that planned has the error.
        plan.as_ref().ok_or_else(|| failure.unwrap_or_else(|| Error::new(ErrorKind::Cancelled)))
    }

    fn plan_large(&self, large: &Large, tensor: usize) -> Result<Arc<Plan>> {
        let spec = &self.header.tensors()[tensor];
        let range = self.header.data_range(tensor);
        let source =
            Section::new(self.source, self.data_at + range.start..self.data_at + range.end)?;
        let supported = self.encoding.supports(spec.dtype());
        let encoding = if supported { self.encoding } else { &Raw };
        let alone = Plan::new(encoding, spec, &source)?;
        if let Some(base) = self.matches.open(tensor, spec)? {
            let against = Plan::with_base(delta(), spec, &source, base)?;
            if is_smaller(&against, &alone, spec, &source)? {
                return Ok(against);
            }
        }
        large.raw.fetch_or(!supported, Ordering::Relaxed);
        Ok(alone)
    }

    /// Encodes some blocks of a large tensor; `None` if it is stored raw.
    fn encode_large(
        &self,
        large: &Large,
        part: &Part,
        bytes: &[u8],
        out: &mut Encoded<'_>,
    ) -> Result<Option<Arc<Plan>>> {
        let plan = self.plan(large, part.tensor)?;
        if large.raw.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let spec = &self.header.tensors()[part.tensor];
        let first = part.bytes.start / spec.block_bytes() as u64;
        match &plan.base {
            None => plan.encoder.encode_blocks(first, bytes, &mut out.bytes, &mut out.lens)?,
            Some(base) => {
                let Encoded { bytes: to, lens, base: of_base, hashes, .. } = out;
                let of_base = &mut of_base[part.within.clone()];
                read_base(base, spec, part.bytes.start, of_base, hashes)?;
                plan.encoder.encode_blocks_with_base(first, bytes, of_base, to, lens)?;
            }
        }
        Ok(Some(Arc::clone(plan)))
    }

    /// Encodes a whole tensor: as differences from its base, or alone if that is smaller. `None` if
    /// it is that of its base.
    fn encode_small(
        &self,
        part: &Part,
        bytes: &[u8],
        out: &mut Encoded<'_>,
        scratch: &mut Vec<u8>,
    ) -> Result<Option<Arc<Plan>>> {
        let spec = &self.header.tensors()[part.tensor];
        let Some(base) = self.matches.open(part.tensor, spec)? else {
            return self.encode_alone(spec, bytes, out).map(Some);
        };
        let (at, lens_at, hashes_at) = (out.bytes.len(), out.lens.len(), out.hashes.len());
        let of_base = &mut out.base[part.within.clone()];
        read_base(&base, spec, 0, of_base, &mut out.hashes)?;
        if of_base == bytes {
            return Ok(None);
        }
        let encoder = delta().plan_with_base(spec, &bytes, &&*of_base).in_tensor(spec.name())?;
        let against = Plan::with(delta(), spec, encoder, Some(base))?;
        let mut lens = Vec::new();
        scratch.clear();
        against.encoder.encode_blocks_with_base(0, bytes, of_base, scratch, &mut lens)?;
        let encoded = against.padded_head() + scratch.len() + of_record(lens.len());
        if encoded > LEAST * lens.len() {
            let alone = self.encode_alone(spec, bytes, out)?;
            if encoded >= alone.padded_head() + out.bytes.len() - at {
                out.hashes.truncate(hashes_at);
                return Ok(Some(alone));
            }
            out.bytes.truncate(at);
            out.lens.truncate(lens_at);
        }
        out.bytes.extend_from_slice(scratch);
        out.lens.extend_from_slice(&lens);
        Ok(Some(against))
    }

    /// Encodes a whole tensor, or stores it raw if the encoding does not make it smaller.
    fn encode_alone(
        &self,
        spec: &TensorSpec,
        bytes: &[u8],
        out: &mut Encoded<'_>,
    ) -> Result<Arc<Plan>> {
        let (at, lens_at) = (out.bytes.len(), out.lens.len());
        if !bytes.is_empty() && self.encoding.supports(spec.dtype()) {
            let plan = Plan::new(self.encoding, spec, &bytes)?;
            plan.encoder.encode_blocks(0, bytes, &mut out.bytes, &mut out.lens)?;
            let encoded = plan.padded_head() + out.bytes.len() - at;
            if encoded < bytes.len().next_multiple_of(8) {
                return Ok(plan);
            }
            out.bytes.truncate(at);
            out.lens.truncate(lens_at);
        }
        let plan = Plan::new(&Raw, spec, &bytes)?;
        plan.encoder.encode_blocks(0, bytes, &mut out.bytes, &mut out.lens)?;
        Ok(plan)
    }
}

/// Reads the base's bytes from `at` on, and computes the checksums of their blocks.
fn read_base(
    base: &TensorBase,
    spec: &TensorSpec,
    at: u64,
    bytes: &mut [u8],
    hashes: &mut Vec<u64>,
) -> Result<()> {
    read_at(base, at, bytes).in_tensor(spec.name())?;
    hashes.extend(bytes.chunks(spec.block_bytes()).map(xxh3));
    Ok(())
}

/// Bytes that a tensor with a base and so many blocks has in the index more than one without.
fn of_record(n_blocks: usize) -> usize {
    8 + 8 * n_blocks
}

/// Whether `against`, with a base, makes a sample of the tensor's blocks smaller than `alone` does.
fn is_smaller(
    against: &Plan,
    alone: &Plan,
    spec: &TensorSpec,
    source: &dyn ReadAt,
) -> Result<bool> {
    let Some(base) = &against.base else { return Ok(false) };
    let block = spec.block_bytes() as u64;
    let samples = SAMPLES.min(spec.n_blocks());
    let (mut units, mut of_base) = (Vec::new(), Vec::new());
    let (mut out, mut lens) = (Vec::new(), Vec::new());
    let (mut with_base, mut without, mut raw) = (0, 0, 0);
    for i in 0..samples {
        let first = i * spec.n_blocks() / samples;
        let at = first * block;
        let len = block.min(spec.byte_len() - at) as usize;
        set_len(&mut units, len)?;
        set_len(&mut of_base, len)?;
        read_at(source, at, &mut units)?;
        read_at(base, at, &mut of_base)?;
        out.clear();
        against.encoder.encode_blocks_with_base(first, &units, &of_base, &mut out, &mut lens)?;
        with_base += out.len() + of_record(1);
        out.clear();
        alone.encoder.encode_blocks(first, &units, &mut out, &mut lens)?;
        without += out.len();
        raw += len;
    }
    Ok(with_base < without.min(raw))
}
