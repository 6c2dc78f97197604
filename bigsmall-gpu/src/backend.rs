//! What every backend can do with a matrix.

use bigsmall_codec::Ans;
use bigsmall_format::{
    Dtype, EncodedTensor, EncodingId, Error as FormatError, Raw, Rule, TensorEncoding, TensorSpec,
};
use bigsmall_tbe::Tbe;

use crate::error::{Error, ErrorKind, Result};

/// Multiplies vectors with matrices that stay compressed. Implementations: [`Cpu`](crate::Cpu),
/// and `Wgpu` with the feature `wgpu`.
///
/// A tensor of shape `[m, k]` is a matrix of m rows and k columns. In a tensor of higher rank, the
/// first dimension is the rows and the product of the others the columns. A tensor of rank 1 is a
/// single row. The dtype is BF16.
pub trait MatmulBackend {
    /// A matrix in the memory of this backend.
    type Weights;

    /// Uploads a matrix of any encoding. The encoded bytes are validated before they are used.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] for a dtype other than BF16; [`ErrorKind::Encoded`] for a damaged
    /// payload; [`ErrorKind::TooLarge`] or [`ErrorKind::OutOfMemory`] if the matrix does not fit.
    fn upload(&self, tensor: &EncodedTensor) -> Result<Self::Weights>;

    /// `y[b, m] = sum over k of W[m, k] x[b, k]` for `batch` rows of `x`, in f32. A matrix without
    /// columns gives zeros; a batch of 0 does nothing.
    ///
    /// # Errors
    /// [`ErrorKind::BufferLength`] unless `x` holds `batch * k` values and `y` `batch * m`.
    fn matmul(&self, weights: &Self::Weights, x: &[f32], batch: usize, y: &mut [f32])
    -> Result<()>;

    /// Writes the original bytes of the matrix to `dst`: bf16, little-endian, row-major.
    ///
    /// # Errors
    /// [`ErrorKind::BufferLength`] unless `dst` holds `2 * m * k` bytes.
    fn decompress(&self, weights: &Self::Weights, dst: &mut [u8]) -> Result<()>;
}

/// The rows and columns of a tensor as a matrix. An error if its dtype is not BF16.
pub(crate) fn matrix_shape(spec: &TensorSpec) -> Result<(usize, usize)> {
    if spec.dtype() != Dtype::BF16 {
        return Err(Error::new(ErrorKind::Mismatch)
            .in_tensor(spec.name())
            .expected(Dtype::BF16)
            .found(spec.dtype()));
    }
    let (m, rest) = match spec.shape() {
        [] => (1, &[][..]),
        [k] => (1, std::slice::from_ref(k)),
        [m, rest @ ..] => (*m, rest),
    };
    // If there are no rows, the product of the other dimensions may overflow.
    let k = rest.iter().try_fold(1u64, |k, &n| k.checked_mul(n));
    let too_large = || {
        Error::new(ErrorKind::TooLarge)
            .in_tensor(spec.name())
            .found("rows or columns of 2^32 or more")
    };
    match (m, k) {
        (0, _) => Ok((0, k.and_then(|k| usize::try_from(k).ok()).ok_or_else(too_large)?)),
        (m, Some(k)) if m < 1 << 32 && k < 1 << 31 => Ok((m as usize, k as usize)),
        _ => Err(too_large()),
    }
}

/// An error if `found` is not `expected`. `None` means that the expected number overflows.
pub(crate) fn check_len(what: &str, expected: Option<usize>, found: usize) -> Result<()> {
    if expected == Some(found) {
        return Ok(());
    }
    let expected = expected.map_or("more than memory holds".into(), |n| n.to_string());
    Err(Error::new(ErrorKind::BufferLength)
        .expected(format!("{expected} values of {what}"))
        .found(found))
}

/// The encoding that decodes `tensor`.
pub(crate) fn encoding_of(tensor: &EncodedTensor) -> Result<Box<dyn TensorEncoding>> {
    match tensor.encoding() {
        EncodingId::Raw => Ok(Box::new(Raw)),
        EncodingId::Tbe => Ok(Box::new(Tbe::default())),
        EncodingId::Ans => Ok(Box::new(Ans::default())),
        other => Err(FormatError::new(Rule::EncodingUnknown)
            .in_tensor(tensor.spec().name())
            .found(format!("encoding {other}"))
            .into()),
    }
}
