//! Encodes chunks.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bigsmall_format::internal::Section;
use bigsmall_format::{Header, Raw, ReadAt, TensorEncoding, TensorSpec};

use crate::compress::job::{Encoded, EncodedPart, Job};
use crate::compress::plan::{Large, Plan};
use crate::compress::shared::Shared;
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::stage::digest::sha256;
use crate::stage::pool::Pool;

/// Encodes chunks of a file.
pub(crate) struct Coder<'a> {
    pub(crate) encoding: &'a dyn TensorEncoding,
    pub(crate) header: &'a Header,
    pub(crate) shared: &'a Shared,
    pub(crate) source: &'a dyn ReadAt,
    pub(crate) data_at: u64,
    pub(crate) spare: &'a Pool,
}

impl<'a> Coder<'a> {
    pub(crate) fn encode(&self, job: &Job<'a>) -> Result<Encoded<'a>> {
        let mut out = Encoded { bytes: self.spare.take(0)?, lens: Vec::new(), parts: Vec::new() };
        for part in &job.chunk.parts {
            let spec = &self.header.tensors()[part.tensor];
            let bytes = job.part_bytes(part);
            let (at, lens_at) = (out.bytes.len(), out.lens.len());
            out.reserve_for(bytes)?;
            let mut plan = None;
            if self.shared.owner(part.tensor).is_none() {
                plan = match &job.large {
                    Some(large) => self.encode_large(large, part.tensor, bytes, &mut out)?,
                    None => Some(self.encode_small(spec, bytes, &mut out)?),
                };
            }
            let (end, lens_end) = (out.bytes.len(), out.lens.len());
            let digest = self.shared.is_one_of_several(part.tensor).then(|| sha256(bytes));
            out.parts.push(EncodedPart { plan, bytes: at..end, lens: lens_at..lens_end, digest });
        }
        Ok(out)
    }

    /// The plan of a large tensor, made by the first thread that asks; `None` if the encoding does
    /// not support the dtype.
    pub(crate) fn plan<'l>(
        &self,
        large: &'l Large,
        tensor: usize,
    ) -> Result<Option<&'l Arc<Plan>>> {
        let spec = &self.header.tensors()[tensor];
        if !self.encoding.supports(spec.dtype()) {
            return Ok(None);
        }
        let mut failure = None;
        let plan = large.plan.get_or_init(|| {
            let range = self.header.data_range(tensor);
            Section::new(self.source, self.data_at + range.start..self.data_at + range.end)
                .map_err(Error::from)
                .and_then(|source| Plan::new(self.encoding, spec, &source))
                .in_tensor(spec.name())
                .map_err(|e| failure = Some(e))
                .ok()
        });
        match plan {
            Some(plan) => Ok(Some(plan)),
            // The thread that planned has the error.
            None => Err(failure.unwrap_or_else(|| Error::new(ErrorKind::Cancelled))),
        }
    }

    /// Encodes some blocks of a large tensor; `None` if it is stored raw.
    fn encode_large(
        &self,
        large: &Large,
        tensor: usize,
        bytes: &[u8],
        out: &mut Encoded<'_>,
    ) -> Result<Option<Arc<Plan>>> {
        if large.raw.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Some(plan) = self.plan(large, tensor)? else { return Ok(None) };
        out.reserve_for(bytes)?;
        plan.encoder.encode_blocks(bytes, &mut out.bytes, &mut out.lens)?;
        Ok(Some(Arc::clone(plan)))
    }

    /// Encodes a whole tensor, or stores it raw if the encoding does not make it smaller.
    fn encode_small(
        &self,
        spec: &TensorSpec,
        bytes: &[u8],
        out: &mut Encoded<'_>,
    ) -> Result<Arc<Plan>> {
        let (at, lens_at) = (out.bytes.len(), out.lens.len());
        if !bytes.is_empty() && self.encoding.supports(spec.dtype()) {
            let plan = Plan::new(self.encoding, spec, &bytes)?;
            plan.encoder.encode_blocks(bytes, &mut out.bytes, &mut out.lens)?;
            let encoded = plan.padded_head() + out.bytes.len() - at;
            if encoded < bytes.len().next_multiple_of(8) {
                return Ok(plan);
            }
            out.bytes.truncate(at);
            out.lens.truncate(lens_at);
        }
        let plan = Plan::new(&Raw, spec, &bytes)?;
        plan.encoder.encode_blocks(bytes, &mut out.bytes, &mut out.lens)?;
        Ok(plan)
    }
}
