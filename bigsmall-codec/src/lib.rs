//! Lossless compression of weights by asymmetric numeral systems: what is predictable in a float
//! (its exponent and the top of its mantissa) is entropy coded, the rest is stored as it is. A bf16
//! checkpoint shrinks to 66 %, below the entropy of exponent and mantissa taken apart, and every
//! bit comes back.
//!
//! ```
//! use half::bf16;
//! let wave = (0..100_000).map(|i| bf16::from_f32((i as f32).sin() * 0.02));
//! let weights: Vec<bf16> = wave.collect();
//! let small: Vec<u8> = bigsmall_codec::encode(&weights);
//! assert!(small.len() < weights.len() * 2 * 3 / 4);
//! let mut back = vec![bf16::ZERO; weights.len()];
//! bigsmall_codec::decode(&small, &mut back)?;
//! assert_eq!(weights, back);
//! # Ok::<(), bigsmall_codec::Error>(())
//! ```
//!
//! [`encode`] and [`decode`] speak frames: self-contained bytes with checksums. [`Ans`] is the
//! encoding behind them, for those who want shards (`bigsmall_format::ShardWriter`),
//! ranges ([`EncodedTensor::decode_bytes`]), or a level or backend of their choice. The bytes
//! depend on dtype, shape, values, [`Level`] and the version of the crate `miniz_oxide`, never on
//! threads, backend or machine.
//!
//! Source of the method: asymmetric numeral systems, J. Duda, arXiv 1311.2540; interleaving, F.
//! Giesen, arXiv 1402.3392; alias tables, M. Vose, 1991. The bitstream is specified in FORMAT.md,
//! section 7.
#![deny(unsafe_code)]

mod ans;
mod arch;
mod backend;
mod bits;
mod block;
mod columns;
mod deflate;
mod delta;
mod exceptions;
mod head;
mod kernels;
mod layout;
mod level;
mod pages;
mod plan;
mod planes;
#[cfg(feature = "reference")]
mod reference;
mod scratch;
mod slice;
#[cfg(feature = "stages")]
#[doc(hidden)]
pub mod stages;
mod table;
mod units;
mod view;
mod zeros;

/// The README's programs run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub use ans::Ans;
pub use backend::backends;
pub use bigsmall_format::{
    Backend, BaseTensor, Class, Decoded, Dtype, EncodedRef, EncodedTensor, EncodedView, Error,
    ReadAt, Result, Rule, TensorEncoding, TensorSpec, decode_range, decode_range_with_base,
    encode_tensor, encode_tensor_with_base, peek,
};
pub use delta::{
    Changes, Delta, apply_delta, apply_delta_bytes, apply_deltas_bytes, changes, decode_delta,
    decode_delta_bytes, encode_delta, encode_delta_bytes,
};
/// The crate of `bf16` and `f16`.
#[cfg(feature = "half")]
pub use half;
pub use level::Level;
pub use pages::Pages;
pub use slice::{Element, decode, decode_bytes, encode, encode_bytes, encode_into, encode_with};
pub use view::{
    AliasBucket, AliasEntry, AnsBlock, AnsException, AnsTable, AnsView, CodedBlock, ColumnsBlock,
    ZerosBlock, store_raw,
};
