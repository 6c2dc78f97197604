//! All weights at one moment.

use std::collections::HashMap;
use std::fmt;

use bigsmall_format::internal::{read_at, set_len};
use bigsmall_format::{Header, Limits, ReadAt as _, TensorSpec};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, ErrorKind, Result};
use crate::save::InMemory;
use crate::{TensorView, hex};

/// All weights at one moment, in memory: the bytes of a safetensors file, checked.
///
/// ```
/// use bigsmall_io::{TensorView, Weights};
/// let tensors = [("fc.weight", TensorView::from_slice(&[2], &[0.5f32, 1.0]))];
/// let weights = Weights::from_tensors(tensors, None)?;
/// assert_eq!(weights.tensor("fc.weight")?.len(), 8);
/// let again = Weights::from_safetensors(weights.as_bytes().to_vec())?;
/// assert_eq!(again.sha256(), weights.sha256());
/// # Ok::<(), bigsmall_io::Error>(())
/// ```
pub struct Weights {
    bytes: Vec<u8>,
    /// Where the data begin.
    data: usize,
    header: Header,
    sha256: [u8; 32],
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights")
            .field("byte_len", &self.bytes.len())
            .field("sha256", &hex(&self.sha256))
            .finish_non_exhaustive()
    }
}

impl Weights {
    /// Takes the bytes of a safetensors file. Memory: those bytes and the header.
    ///
    /// # Errors
    /// Those of [`Header::read`].
    pub fn from_safetensors(bytes: Vec<u8>) -> Result<Weights> {
        let (json, header) = Header::read(&bytes, &Limits::default())?;
        let sha256 = Sha256::digest(&bytes).into();
        Ok(Weights { data: 8 + json.len(), bytes, header, sha256 })
    }

    /// Copies tensors in memory, in the form that [`save`](crate::save) stores them in.
    ///
    /// # Errors
    /// Those of [`save`](crate::save), except for writing.
    pub fn from_tensors<'a, N: AsRef<str>, T: Into<TensorView<'a>>>(
        tensors: impl IntoIterator<Item = (N, T)>,
        metadata: Option<HashMap<String, String>>,
    ) -> Result<Weights> {
        let source = InMemory::new(tensors, metadata)?;
        let mut bytes = Vec::new();
        set_len(&mut bytes, source.byte_len()? as usize)?;
        read_at(&source, 0, &mut bytes)?;
        Weights::from_safetensors(bytes)
    }

    /// The bytes of the safetensors file.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same without a copy.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The SHA-256 of those bytes, which names the weights.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// Name, dtype and shape of every tensor, in the order of the data.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        self.header.tensors()
    }

    /// The values of a tensor, little-endian and row-major.
    ///
    /// # Errors
    /// [`ErrorKind::TensorMissing`].
    pub fn tensor(&self, name: &str) -> Result<&[u8]> {
        match self.find(name) {
            Some((_, values)) => Ok(values),
            None => Err(Error::new(ErrorKind::TensorMissing).in_tensor(name)),
        }
    }

    /// The tensor with that name.
    pub(crate) fn find(&self, name: &str) -> Option<(&TensorSpec, &[u8])> {
        let index = self.header.index_of(name)?;
        Some((&self.tensors()[index], self.values(index)))
    }

    /// The values of tensor `index`.
    pub(crate) fn values(&self, index: usize) -> &[u8] {
        let range = self.header.data_range(index);
        &self.bytes[self.data..][range.start as usize..range.end as usize]
    }

    /// The JSON of the header.
    pub(crate) fn header_json(&self) -> &[u8] {
        &self.bytes[8..self.data]
    }

    /// Bytes of all tensors.
    pub(crate) fn data_len(&self) -> u64 {
        self.header.data_len()
    }
}
