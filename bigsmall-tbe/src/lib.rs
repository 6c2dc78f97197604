#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod aligned;
mod arch;
mod backend;
mod codes;
mod encode;
mod floats;
mod kernels;
mod layout;
mod matmul;
mod plain;
mod resident;
mod view;

pub use backend::backends;
pub use encode::Tbe;
pub use layout::Width;
pub use matmul::{Factor, matmul_many};
pub use plain::Plain;
pub use resident::{Form, Resident};
pub use view::{Block, Matrix, View};

pub use bigsmall_format::{
    Backend, BlockDecoder, BlockEncoder, Class, Decoded, Dtype, EncodedRef, EncodedTensor,
    EncodedView, EncodingId, Error, MAX_BLOCK_UNITS, Raw, ReadAt, Result, Rule, TensorEncoding,
    TensorSpec, encode_tensor,
};
