//! The CPU implementation.

use bigsmall_format::{Decoded, EncodedTensor, EncodingId, TensorSpec, encode_tensor};
use bigsmall_tbe::{Matrix, Plain, Tbe, Width};

use crate::backend::{MatmulBackend, check_len, encoding_of, matrix_shape};
use crate::error::Result;

/// Matrix products on the CPU, directly from the triple-bitmap encoding: for machines without a
/// GPU, and as a reference.
///
/// ```
/// use bigsmall_gpu::{Cpu, MatmulBackend, TensorSpec, Dtype};
/// use bigsmall_format::{Raw, encode_tensor};
/// let spec = TensorSpec::new("w", Dtype::BF16, &[2, 2])?;
/// let identity = [0x80, 0x3f, 0, 0, 0, 0, 0x80, 0x3f];
/// let tensor = encode_tensor(&Raw, &spec, &identity[..].to_vec())?;
/// let cpu = Cpu::new();
/// let weights = cpu.upload(&tensor)?;
/// let mut y = [0.0; 2];
/// cpu.matmul(&weights, &[3.0, 4.0], 1, &mut y)?;
/// assert_eq!(y, [3.0, 4.0]);
/// # Ok::<(), bigsmall_gpu::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Cpu;

/// A matrix in the memory of the CPU.
pub struct CpuWeights {
    /// The tensor as a matrix: two dimensions.
    spec: TensorSpec,
    held: Held,
}

enum Held {
    /// Validated when it was made.
    Tbe(Matrix),
    Plain(Vec<u8>),
}

impl CpuWeights {
    /// The tensor's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.spec.name()
    }

    /// Rows: values of y for each column of x.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.spec.shape()[0] as usize
    }

    /// Columns: values of x.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.spec.shape()[1] as usize
    }

    /// Bytes that the weights take.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        match &self.held {
            Held::Tbe(tensor) => tensor.view().tensor().byte_len(),
            Held::Plain(bytes) => bytes.len() as u64,
        }
    }
}

impl Cpu {
    /// Uses the fastest kernels of this machine, and the threads of the caller's rayon pool.
    #[must_use]
    pub fn new() -> Self {
        Cpu
    }
}

impl std::fmt::Debug for CpuWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuWeights")
            .field("name", &self.name())
            .field("shape", &(self.rows(), self.cols()))
            .field("byte_len", &self.byte_len())
            .finish_non_exhaustive()
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Cpu::new()
    }
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cpu")
    }
}

impl MatmulBackend for Cpu {
    type Weights = CpuWeights;

    /// A TBE tensor is used unchanged, an ANS tensor is transcoded to TBE, raw values stay plain.
    fn upload(&self, tensor: &EncodedTensor) -> Result<CpuWeights> {
        let (m, k) = matrix_shape(tensor.spec())?;
        let dtype = tensor.spec().dtype();
        let spec = TensorSpec::new(tensor.spec().name(), dtype, &[m as u64, k as u64])?;
        let tbe = match tensor.encoding() {
            EncodingId::Tbe => Some(tensor.clone()),
            EncodingId::Raw => None,
            _ => {
                let source = Decoded::new(tensor, &*encoding_of(tensor)?)?;
                Some(encode_tensor(&Tbe::new(Width::Three), source.spec(), &source)?)
                    .filter(|tbe| tbe.byte_len() < spec.byte_len())
            }
        };
        let held = match tbe {
            Some(tbe) => Held::Tbe(Matrix::new(tbe)?),
            None => {
                let mut bytes = vec![0; spec.byte_len() as usize];
                tensor.decode_bytes(&*encoding_of(tensor)?, 0..spec.byte_len(), &mut bytes)?;
                Held::Plain(bytes)
            }
        };
        Ok(CpuWeights { spec, held })
    }

    fn matmul(&self, weights: &CpuWeights, x: &[f32], batch: usize, y: &mut [f32]) -> Result<()> {
        check_len("x", batch.checked_mul(weights.cols()), x.len())?;
        check_len("y", batch.checked_mul(weights.rows()), y.len())?;
        match &weights.held {
            Held::Tbe(tensor) => tensor.matmul(x, batch, y)?,
            Held::Plain(bytes) => Plain::new(&weights.spec, bytes)?.matmul(x, batch, y)?,
        }
        Ok(())
    }

    fn decompress(&self, weights: &CpuWeights, dst: &mut [u8]) -> Result<()> {
        check_len("bytes", usize::try_from(weights.spec.byte_len()).ok(), dst.len())?;
        match &weights.held {
            Held::Tbe(tensor) => {
                tensor.view().decode(0..weights.spec.n_elements(), dst)?;
            }
            Held::Plain(bytes) => dst.copy_from_slice(bytes),
        }
        Ok(())
    }
}
