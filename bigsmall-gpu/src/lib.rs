//! `y = W x` on weights that stay compressed: on any Vulkan, Metal or DX12 device through
//! [wgpu](https://docs.rs/wgpu), and on the CPU, under one trait, [`MatmulBackend`].
//!
//! Weights are uploaded once, as [`EncodedTensor`]s of any encoding. On the device they take 11 to
//! 12 bits instead of 16. The kernels rebuild each bf16 pattern exactly while they multiply.
//!
//! # What the numbers promise
//! 1. Decoding is exact for all 65,536 bf16 patterns.
//! 2. On one device, the product of compressed weights equals the product of the plain weights, bit
//!    for bit.
//! 3. The order of the sums depends only on shape and batch.
//! 4. `|y - y64| <= (n + log2 L + 2) * 2^-24 * sum |w x|` against f64, with chains of `n <= 64`
//!    additions and `L` partial sums.
//!
//! Not promised: equality between devices, drivers or batch sizes, and the result of products with
//! NaN or infinity. Two exceptions: the second promise is not given on Metal, whose compiler may
//! reorder additions, and the fourth is not given with [`Cooperative`] matrices (off by default),
//! because their rounding is not specified. The self test of the program `gpu_bench` checks both on
//! a given device.
#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod cpu;
mod error;

#[cfg(feature = "wgpu")]
mod adapter;
#[cfg(feature = "wgpu")]
mod ans;
#[cfg(feature = "wgpu")]
mod ans_tensor;
#[cfg(feature = "wgpu")]
mod context;
#[cfg(feature = "wgpu")]
mod device;
#[cfg(feature = "wgpu")]
mod dispatch;
#[cfg(feature = "wgpu")]
mod groups;
#[cfg(feature = "wgpu")]
mod kernels;
#[cfg(feature = "transformer")]
mod layer_kernels;
#[cfg(feature = "wgpu")]
mod layout;
#[cfg(feature = "wgpu")]
mod matmul;
#[cfg(feature = "wgpu")]
mod matrix;
#[cfg(feature = "wgpu")]
mod multiply;
#[cfg(feature = "wgpu")]
mod options;
#[cfg(feature = "wgpu")]
mod pack_device;
#[cfg(feature = "wgpu")]
mod pack_host;
#[cfg(feature = "wgpu")]
mod recorder;
#[cfg(feature = "wgpu")]
mod rows;
#[cfg(feature = "wgpu")]
mod scratch;
#[cfg(feature = "transformer")]
mod transformer;
#[cfg(feature = "wgpu")]
mod tune;
#[cfg(feature = "wgpu")]
mod tuning;
#[cfg(feature = "wgpu")]
mod upload;
#[cfg(feature = "wgpu")]
mod weights;
#[cfg(feature = "wgpu")]
mod writer;

pub use backend::MatmulBackend;
pub use bigsmall_format::{
    Class, Dtype, EncodedTensor, EncodingId, Error as FormatError, Rule, TensorSpec,
};
pub use cpu::{Cpu, CpuWeights};
pub use error::{Error, ErrorKind, Result};

#[cfg(feature = "wgpu")]
pub use ans_tensor::{AnsTensor, PreparedAns};
#[cfg(feature = "wgpu")]
pub use context::Wgpu;
#[cfg(feature = "wgpu")]
pub use layout::Resident;
#[cfg(feature = "wgpu")]
pub use options::{Cooperative, WgpuOptions};
#[cfg(feature = "wgpu")]
pub use recorder::Recorder;
#[cfg(feature = "transformer")]
pub use transformer::Heads;
#[cfg(feature = "wgpu")]
pub use tuning::{Tuning, Variant};
#[cfg(feature = "wgpu")]
pub use upload::UploadOptions;
#[cfg(feature = "wgpu")]
pub use weights::WgpuWeights;
/// The version of wgpu whose `Device` and `Queue` [`Wgpu`] takes.
#[cfg(feature = "wgpu")]
pub use wgpu;

/// For the tools of this repository; no part of the interface.
#[cfg(feature = "wgpu")]
#[doc(hidden)]
pub mod internal {
    pub use crate::kernels::{KernelSource, kernel_sources};
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
