#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod arch;
mod encode;
mod layout;
mod matmul;
mod transcode;
mod view;

pub use arch::Backend;
pub use encode::Tbe;
pub use layout::Width;
pub use matmul::Matmul;
pub use transcode::transcode;
pub use view::{TbeBlock, TbeTensor, TbeView};

pub use bigsmall_format::{
    BLOCK_UNITS, BlockDecoder, BlockEncoder, Class, Dtype, EncodedTensor, EncodingId, Error, Raw,
    ReadAt, Result, Rule, TensorEncoding, TensorSpec, encode_tensor,
};
