#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod arch;
mod backend;
mod encode;
mod kernels;
mod layout;
mod matmul;
mod transcode;
mod view;

pub use backend::backends;
pub use encode::Tbe;
pub use layout::Width;
pub use matmul::{Plain, matmul_many};
pub use transcode::transcode;
pub use view::{Block, Matrix, View};

pub use bigsmall_format::{
    BLOCK_UNITS, Backend, BlockDecoder, BlockEncoder, Class, Dtype, EncodedTensor, EncodingId,
    Error, Raw, ReadAt, Result, Rule, TensorEncoding, TensorSpec, encode_tensor,
};

/// Reserves memory for `more` bytes; an error if there is none.
fn reserve(bytes: &mut Vec<u8>, more: usize) -> Result<()> {
    bytes.try_reserve(more).map_err(|_| Error::memory(more))
}

/// Gives `bytes` the length `n`; the contents are unspecified. An error if there is no memory.
fn set_len(bytes: &mut Vec<u8>, n: usize) -> Result<()> {
    reserve(bytes, n.saturating_sub(bytes.len()))?;
    bytes.resize(n, 0);
    Ok(())
}
