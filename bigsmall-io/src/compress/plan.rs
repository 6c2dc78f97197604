//! How each tensor is encoded. Large tensors are planned one ahead.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use bigsmall_format::{BlockDecoder, BlockEncoder, EncodingId, ReadAt, TensorEncoding, TensorSpec};

use crate::base::tensor::TensorBase;
use crate::compress::shared::Shared;
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::stage::chunk::CHUNK;

/// An encoding's plan for one tensor.
pub(crate) struct Plan {
    pub(crate) id: EncodingId,
    pub(crate) encoder: Box<dyn BlockEncoder>,
    pub(crate) decoder: Box<dyn BlockDecoder>,
    /// For an encoding that needs a base: the base as the tensor sees it.
    pub(crate) base: Option<TensorBase>,
}

impl Plan {
    pub(crate) fn new(
        encoding: &dyn TensorEncoding,
        spec: &TensorSpec,
        source: &dyn ReadAt,
    ) -> Result<Arc<Self>> {
        Self::with(encoding, spec, encoding.plan(spec, source).in_tensor(spec.name())?, None)
    }

    /// A plan for differences from `base`.
    pub(crate) fn with_base(
        encoding: &dyn TensorEncoding,
        spec: &TensorSpec,
        source: &dyn ReadAt,
        base: TensorBase,
    ) -> Result<Arc<Self>> {
        let encoder = encoding.plan_with_base(spec, source, &base).in_tensor(spec.name())?;
        Self::with(encoding, spec, encoder, Some(base))
    }

    pub(crate) fn with(
        encoding: &dyn TensorEncoding,
        spec: &TensorSpec,
        encoder: Box<dyn BlockEncoder>,
        base: Option<TensorBase>,
    ) -> Result<Arc<Self>> {
        // Opened from the bytes that will be stored: what does not open here is never written.
        let decoder =
            encoding.open(spec, encoder.head()).map_err(|e| read_back(spec).caused_by(e))?;
        Ok(Arc::new(Plan { id: encoding.id(), encoder, decoder, base }))
    }

    pub(crate) fn padded_head(&self) -> usize {
        self.encoder.head().len().next_multiple_of(8)
    }
}

/// Shared by the chunks of one large tensor.
#[derive(Default)]
pub(crate) struct Large {
    /// `None` when planning failed.
    pub(crate) plan: OnceLock<Option<Arc<Plan>>>,
    /// Set once raw is known to be smaller: the rest need not be encoded.
    pub(crate) raw: AtomicBool,
}

/// Hands out the [`Large`] of each large tensor, and has the next tensor planned meanwhile.
pub(crate) struct Larges<'a> {
    pub(crate) tensors: &'a [TensorSpec],
    pub(crate) shared: &'a Shared,
    pub(crate) ahead: Option<(usize, Arc<Large>)>,
}

impl<'a> Larges<'a> {
    pub(crate) fn new(tensors: &'a [TensorSpec], shared: &'a Shared) -> Self {
        Larges { tensors, shared, ahead: None }
    }

    /// The [`Large`] of the tensor that begins now. Calls `plan` for the next large tensor.
    pub(crate) fn begin(&mut self, tensor: usize, plan: impl Fn(usize, Arc<Large>)) -> Arc<Large> {
        let ahead = self.ahead.take_if(|(at, _)| *at == tensor);
        let large = ahead.map_or_else(Arc::default, |(_, large)| large);
        let is_next =
            |&i: &usize| self.tensors[i].byte_len() > CHUNK && self.shared.owner(i).is_none();
        if self.ahead.is_none()
            && let Some(next) = (tensor + 1..self.tensors.len()).find(is_next)
        {
            let next_large = Arc::default();
            plan(next, Arc::clone(&next_large));
            self.ahead = Some((next, next_large));
        }
        large
    }
}

pub(crate) fn read_back(spec: &TensorSpec) -> Error {
    Error::new(ErrorKind::ReadBack).in_tensor(spec.name())
}
