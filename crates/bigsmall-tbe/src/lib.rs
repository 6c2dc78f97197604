#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod arch;
mod encode;
mod layout;
mod view;

pub use arch::Backend;
pub use encode::Tbe;
pub use layout::Width;
pub use view::{TbeBlock, TbeView};

pub use bigsmall_format::{
    BLOCK_UNITS, BlockDecoder, BlockEncoder, Class, Dtype, EncodedTensor, EncodingId, Error,
    ReadAt, Result, Rule, TensorEncoding, TensorSpec, encode_tensor,
};
