//! The ground that every bigsmall crate stands on: the vocabulary ([`Dtype`], [`TensorSpec`],
//! [`EncodedTensor`]), the two traits everybody meets at ([`TensorEncoding`], [`ReadAt`]) and the
//! `.bs` shard ([`Shard`], [`ShardWriter`]).
//!
//! The bytes are specified in `FORMAT.md` at the root of the repository; section numbers in these
//! docs refer to it.
//!
//! Most programs do not need this crate by name: `bigsmall-codec` and `bigsmall-tbe` re-export what
//! their users need, and `bigsmall-io` opens and writes files.
//!
//! # Memory and safety
//! Everything that comes from a file is checked before it is used: lengths before allocation,
//! checksums before decoding. Checksums detect accidents. They do not stop an attacker who
//! recomputes them.
#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod arch;
mod backend;
mod base;
mod checksum;
mod decode;
mod decoded;
mod dtype;
mod encode;
mod encoded;
mod encoding;
mod error;
#[cfg(feature = "shard")]
mod foreign;
#[cfg(feature = "shard")]
mod header;
mod limits;
mod line;
mod parallel;
mod raw;
mod read_at;
#[cfg(feature = "shard")]
mod shard;
mod shown;
mod spec;
mod table;
mod wire;

pub use backend::Backend;
pub use base::BaseTensor;
pub use decode::{decode_range, decode_range_with_base};
pub use decoded::Decoded;
pub use dtype::Dtype;
pub use encode::{encode_tensor, encode_tensor_with_base};
pub use encoded::{EncodedRef, EncodedTensor, EncodedView, peek};
pub use encoding::{BlockDecoder, BlockEncoder, EncodingId, TensorEncoding};
pub use error::{Class, Error, Result, Rule};
#[cfg(feature = "shard")]
pub use header::Header;
pub use limits::Limits;
pub use raw::Raw;
pub use read_at::ReadAt;
#[cfg(feature = "shard")]
pub use shard::{Base, BaseRef, Shard, ShardEntry, ShardWriter};
pub use spec::{MAX_BLOCK_UNITS, TensorSpec};
pub use table::BlockTable;

pub(crate) use internal::Ahead;

#[cfg(feature = "shard")]
pub(crate) use internal::{Section, encode_or_raw};
pub(crate) use internal::{decode_here, for_each_in_parallel, pool_size, xxh3};

/// What the other crates of bigsmall need beside the public API. No promise holds for it.
#[doc(hidden)]
pub mod internal {
    pub use crate::arch::{Ahead, prefetch, zeroed};
    pub use crate::checksum::xxh3;
    pub use crate::decode::decode_here;
    pub use crate::encode::encode_or_raw;
    pub use crate::error::Chain;
    pub use crate::line::Line;
    pub use crate::parallel::{for_each_in_parallel, pool_size, run_in_pool};
    pub use crate::read_at::{Section, len_of, read_at};
    #[cfg(feature = "shard")]
    pub use crate::shard::Assembler;
    pub use crate::shown::{Shown, without_secrets};
    pub use crate::spec::blocks_within;
    pub use crate::wire::{reserve, set_len};
}

/// The README's program runs as a test.
#[cfg(all(doctest, feature = "shard"))]
#[doc = include_str!("../README.md")]
mod readme {}
