//! Where weights come from: the shards of a model, or random numbers.

use std::sync::Arc;

use bigsmall_format::{Dtype, EncodedTensor, TensorSpec};
use bigsmall_io::Model;
use half::{bf16, f16};

use crate::Result;
use crate::made::Made;

/// The tensors of a model.
#[derive(Clone)]
pub(crate) enum Source {
    Shards(Arc<Model>),
    Made(Arc<Made>),
}

impl Source {
    pub(crate) fn encoded(&self, name: &str) -> Result<EncodedTensor> {
        match self {
            Source::Shards(model) => Ok(model.encoded(name)?),
            Source::Made(made) => made.encoded(name),
        }
    }

    /// A matrix, whose shape must be the expected one.
    pub(crate) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<EncodedTensor> {
        let tensor = self.encoded(name)?;
        check_shape(tensor.spec(), &shape.map(|n| n as u64))?;
        Ok(tensor)
    }

    /// A vector of `n` values as f32.
    pub(crate) fn vector(&self, name: &str, n: usize) -> Result<Vec<f32>> {
        let tensor = self.encoded(name)?;
        check_shape(tensor.spec(), &[n as u64])?;
        to_f32(tensor.spec().dtype(), &decoded(&tensor)?).map_err(|e| format!("{name}: {e}").into())
    }

    /// Bytes that a matrix takes where it is stored.
    pub(crate) fn stored_bytes(&self, name: &str, shape: [usize; 2]) -> Result<u64> {
        let Source::Shards(model) = self else {
            return Ok(self.matrix(name, shape)?.byte_len());
        };
        let spec = model.spec(name)?;
        check_shape(spec, &shape.map(|n| n as u64))?;
        let stored = model.stored(name)?;
        match stored.shares {
            Some(other) => self.stored_bytes(&other, shape),
            // One with a base is encoded anew.
            None if stored.base.is_some() => Ok(spec.byte_len()),
            None => Ok(stored.compressed_bytes),
        }
    }

    /// The descriptions of all tensors.
    #[cfg(feature = "candle")]
    pub(crate) fn specs(&self) -> Result<Vec<TensorSpec>> {
        match self {
            Source::Shards(model) => Ok(model.tensors().cloned().collect()),
            Source::Made(made) => made.tensors(),
        }
    }
}

/// The original bytes.
pub(crate) fn decoded(tensor: &EncodedTensor) -> Result<Vec<u8>> {
    let len = tensor.spec().byte_len();
    let mut bytes = vec![0; len as usize];
    tensor.decode_bytes(bigsmall_io::encoding(tensor.encoding())?, 0..len, &mut bytes)?;
    Ok(bytes)
}

/// The values of a dtype.
pub(crate) fn to_f32(dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>> {
    let two = |f: fn([u8; 2]) -> f32| bytes.as_chunks().0.iter().map(|b| f(*b)).collect();
    Ok(match dtype {
        Dtype::BF16 => two(|b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F16 => two(|b| f16::from_le_bytes(b).to_f32()),
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        other => return Err(format!("{other} is not supported").into()),
    })
}

fn check_shape(spec: &TensorSpec, expected: &[u64]) -> Result<()> {
    if spec.shape() == expected {
        return Ok(());
    }
    let (name, found) = (spec.name(), spec.shape());
    Err(format!("{name}: the shape is {found:?}, config.json says {expected:?}").into())
}
