//! Files in and out of bigsmall.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod atomic;
mod chunk;
mod compress;
mod digest;
mod encodings;
mod folder;
mod model;
mod model_index;
mod os;
mod pipeline;
mod progress;
mod report;
mod restore;

pub use compress::{CompressOptions, compress};
pub use encodings::{Encoding, encoding};
pub use model::{Model, Stored, Tensor};
pub use progress::Progress;
pub use report::{FileReport, Report};
pub use restore::{RestoreOptions, hex, restore, verify};

pub use bigsmall_codec::Level;
pub use bigsmall_format::{
    Class, Dtype, EncodedTensor, EncodingId, Error, Header, Limits, ReadAt, Result, Rule, Shard,
    TensorSpec,
};
