//! `y = W x` on weights that stay compressed: on any Vulkan, Metal or DX12 device through [wgpu](https://docs.rs/wgpu), and on
//! the CPU, under one trait, [`MatmulBackend`].
//!
//! Weights are uploaded once, as [`EncodedTensor`]s of any encoding, and lie in the memory of the
//! device at 11 to 12 bits instead of 16. The kernels rebuild each bf16 pattern exactly while they
//! multiply.
//!
//! # What the numbers promise
//! 1. Decoding is exact for all 65,536 bf16 patterns.
//! 2. On one device a product of compressed weights equals, bit for bit, the same product of plain
//!    ones.
//! 3. The order of the sums is a function of shape and batch alone.
//! 4. `|y - y64| <= (n + log2 L + 2) * 2^-24 * sum |w x|` against f64, with chains of `n <= 64`
//!    additions and `L` partial sums.
//!
//! Not promised: equality between devices, drivers or batch sizes, and NaN or infinity in a
//! product. On Metal, whose compiler may reorder, the second promise is checked by the self test of
//! the program `gpu_bench` and not given; so is the fourth with [`Cooperative`] matrices, which are
//! off unless asked for, since only the device knows how they round.
#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "wgpu")]
mod ans;
#[cfg(feature = "wgpu")]
mod backend;
mod cpu;
#[cfg(feature = "wgpu")]
mod decode;
#[cfg(feature = "wgpu")]
mod device;
#[cfg(feature = "wgpu")]
mod kernels;
#[cfg(feature = "wgpu")]
mod layout;
#[cfg(feature = "wgpu")]
mod pack;
#[cfg(feature = "wgpu")]
mod transformer;
#[cfg(feature = "wgpu")]
mod tuning;
#[cfg(feature = "wgpu")]
mod upload;
#[cfg(feature = "wgpu")]
mod weights;

#[cfg(feature = "wgpu")]
pub use backend::Wgpu;
pub use bigsmall_format::{Dtype, EncodedTensor, EncodingId, Error, Result, Rule, TensorSpec};
pub use cpu::{Cpu, CpuWeights};
#[cfg(feature = "wgpu")]
pub use decode::{AnsTensor, PreparedAns};
#[cfg(feature = "wgpu")]
pub use device::{Cooperative, WgpuOptions};
#[cfg(feature = "wgpu")]
pub use layout::Resident;
#[cfg(feature = "wgpu")]
pub use transformer::Heads;
#[cfg(feature = "wgpu")]
pub use tuning::{Tuning, Variant};
#[cfg(feature = "wgpu")]
pub use weights::WgpuWeights;
/// The version of wgpu whose `Device` and `Queue` [`Wgpu`] takes.
#[cfg(feature = "wgpu")]
pub use wgpu;

/// Multiplies vectors with matrices that stay compressed. Implementations: [`Cpu`], and [`Wgpu`]
/// with the feature `wgpu`.
///
/// A tensor of shape `[m, k]` is a matrix of m rows; one of higher rank has the first dimension as
/// rows and the product of the others as columns; one of rank 1 is a single row. The dtype is BF16.
pub trait MatmulBackend {
    /// A matrix where this backend multiplies it.
    type Weights;

    /// Takes a matrix of any encoding. The encoded bytes are validated before they are used.
    ///
    /// # Errors
    /// [`Rule::SpecMismatch`] for a dtype other than BF16; those of the decoder for a payload that
    /// is damaged; [`Rule::Memory`] where it does not fit.
    fn upload(&self, tensor: &EncodedTensor) -> Result<Self::Weights>;

    /// `y[b, m] = sum over k of W[m, k] x[b, k]` for `batch` rows of `x`, in f32. No columns or no
    /// batch are no error: the result is zero or empty.
    ///
    /// # Errors
    /// [`Rule::BufferLength`] unless `x` holds `batch * k` values and `y` `batch * m`.
    fn matmul(&self, weights: &Self::Weights, x: &[f32], batch: usize, y: &mut [f32])
    -> Result<()>;

    /// Writes the original bytes of the matrix to `dst`: bf16, little-endian, row-major.
    ///
    /// # Errors
    /// [`Rule::BufferLength`] unless `dst` holds `2 * m * k` bytes.
    fn decompress(&self, weights: &Self::Weights, dst: &mut [u8]) -> Result<()>;
}

/// Rows and columns of a tensor taken as a matrix; an error where it is not BF16.
fn matrix_shape(spec: &TensorSpec) -> Result<(usize, usize)> {
    if spec.dtype() != Dtype::BF16 {
        return Err(Error::new(Rule::SpecMismatch)
            .in_tensor(spec.name())
            .expected(Dtype::BF16)
            .found(spec.dtype()));
    }
    let (m, rest) = match spec.shape() {
        [] => (1, &[][..]),
        [k] => (1, std::slice::from_ref(k)),
        [m, rest @ ..] => (*m, rest),
    };
    // With no rows the other dimensions may have a product that does not fit.
    let k = rest.iter().try_fold(1u64, |k, &n| k.checked_mul(n));
    let too_large = || Error::new(Rule::Memory).in_tensor(spec.name()).found("a shape beyond 2^32");
    match (m, k) {
        (0, _) => Ok((0, k.and_then(|k| usize::try_from(k).ok()).ok_or_else(too_large)?)),
        (m, Some(k)) if m < 1 << 32 && k < 1 << 31 => Ok((m as usize, k as usize)),
        _ => Err(too_large()),
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

fn check_len(what: &str, expected: Option<usize>, found: usize) -> Result<()> {
    if expected == Some(found) {
        return Ok(());
    }
    let expected = expected.map_or("more than memory holds".into(), |n| n.to_string());
    Err(Error::new(Rule::BufferLength)
        .expected(format!("{expected} values of {what}"))
        .found(found))
}
