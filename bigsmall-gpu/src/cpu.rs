//! The CPU implementation.

use bigsmall_format::EncodedTensor;
use bigsmall_tbe::{Form, Resident};

use crate::backend::{MatmulBackend, check_len, encoding_of, matrix_shape};
use crate::error::Result;

/// Matrix products on the CPU, directly from compressed weights: for machines without a GPU, and
/// as a reference. Weights are kept in the form in which this machine multiplies them fastest (see
/// [`Form::best`]).
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
pub struct CpuWeights(Resident);

impl CpuWeights {
    /// The tensor's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.spec().name()
    }

    /// Rows: values of y for each column of x.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.0.rows()
    }

    /// Columns: values of x.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.0.cols()
    }

    /// The form in memory.
    #[must_use]
    pub fn form(&self) -> Form {
        self.0.form()
    }

    /// Bytes that the weights take.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.0.byte_len()
    }

    /// The weights, for products of several matrices at once.
    #[must_use]
    pub fn resident(&self) -> &Resident {
        &self.0
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
            .field("form", &self.form())
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

    fn upload(&self, tensor: &EncodedTensor) -> Result<CpuWeights> {
        matrix_shape(tensor.spec())?;
        Ok(CpuWeights(Resident::new(tensor, &*encoding_of(tensor)?)?))
    }

    fn matmul(&self, weights: &CpuWeights, x: &[f32], batch: usize, y: &mut [f32]) -> Result<()> {
        check_len("x", batch.checked_mul(weights.cols()), x.len())?;
        check_len("y", batch.checked_mul(weights.rows()), y.len())?;
        Ok(weights.0.matmul(x, batch, y)?)
    }

    fn decompress(&self, weights: &CpuWeights, dst: &mut [u8]) -> Result<()> {
        check_len("bytes", usize::try_from(weights.0.spec().byte_len()).ok(), dst.len())?;
        Ok(weights.0.decode_rows(0..weights.rows(), dst)?)
    }
}
