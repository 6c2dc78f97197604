//! A tensor that was read.

use bigsmall_format::TensorSpec;

/// A tensor's original bytes, or some of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    spec: TensorSpec,
    bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn new(spec: TensorSpec, bytes: Vec<u8>) -> Self {
        Tensor { spec, bytes }
    }

    /// Name, dtype and shape; for a range of rows the shape is that of the range.
    #[must_use]
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// The values, little-endian and row-major, as they were in the safetensors file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The values, to keep.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// How a tensor is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stored {
    /// The shard's name within the folder.
    pub shard: String,
    /// The encoding's name.
    pub encoding: &'static str,
    /// Bytes of the payload; 0 where the payload is that of another tensor.
    pub compressed_bytes: u64,
    /// The tensor whose payload this one shares.
    pub shares: Option<String>,
    /// MD5 of the original bytes, where it was asked for when compressing.
    pub md5: Option<[u8; 16]>,
}
