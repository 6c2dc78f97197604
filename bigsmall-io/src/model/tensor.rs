//! A decoded tensor.

use bigsmall_format::{Rule, TensorSpec};

use crate::Element;
use crate::error::{Error, ErrorKind, Result};

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

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The values as elements of the type `T`, row-major.
    ///
    /// # Errors
    /// [`Rule::SpecMismatch`] when the tensor has another dtype, [`ErrorKind::Memory`].
    ///
    /// ```
    /// use bigsmall_io::{Model, Progress, Rule, SaveOptions, TensorView, save_to};
    /// let mut shard = Vec::new();
    /// let tensors = [("w", TensorView::from_slice(&[2], &[0.5f32, 4.0]))];
    /// save_to(&mut shard, tensors, None, &SaveOptions::default(), &Progress::default())?;
    /// let tensor = Model::from_source(shard)?.tensor("w")?;
    /// assert_eq!(tensor.to_vec::<f32>()?, [0.5, 4.0]);
    /// assert_eq!(tensor.to_vec::<u32>().unwrap_err().rule(), Some(Rule::SpecMismatch));
    /// # Ok::<(), bigsmall_io::Error>(())
    /// ```
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if self.spec.dtype() != T::DTYPE {
            return Err(Error::new(Rule::SpecMismatch)
                .in_tensor(self.spec.name())
                .expected(T::DTYPE)
                .found(self.spec.dtype()));
        }
        let elements = self.bytes.chunks_exact(size_of::<T>());
        let mut values = Vec::new();
        values.try_reserve_exact(elements.len()).map_err(|_| {
            let error = Error::new(ErrorKind::Memory).in_tensor(self.spec.name());
            error.expected(format!("room for {} elements", elements.len()))
        })?;
        values.extend(elements.map(T::from_le));
        Ok(values)
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
    /// The encoding's name: `raw`, `ans`, `tbe` or `delta`; `unknown` for one that this
    /// version does not know.
    pub encoding: &'static str,
    /// Bytes of the payload; 0 if the tensor shares another one's payload.
    pub compressed_bytes: u64,
    /// The tensor whose payload this one shares.
    pub shares: Option<String>,
    /// The tensor that this one is stored as differences from, if any; `None` if it shares another
    /// one's payload.
    pub base: Option<StoredBase>,
    /// MD5 of the original bytes, if it was stored when compressing.
    pub md5: Option<[u8; 16]>,
}

/// The base of a tensor, as its shard names it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredBase {
    /// The base's place in [`Shard::bases`](crate::Shard::bases).
    pub base: usize,
    /// The name of the tensor in the base.
    pub tensor: String,
    /// Blocks of the tensor.
    pub n_blocks: u64,
    /// How many of them are those of the base. If all are, nothing is stored for the tensor.
    pub n_same_blocks: u64,
}
