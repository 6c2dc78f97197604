#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod atomic;
#[cfg(feature = "candle")]
pub mod candle;
mod card;
mod chunk;
#[cfg(feature = "cloud")]
mod cloud;
mod compress;
mod digest;
mod encodings;
mod estimate;
#[cfg(test)]
mod faults;
mod folder;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "hub")]
mod hub;
mod layers;
mod measure;
mod model;
mod model_index;
mod os;
mod pipeline;
mod progress;
mod report;
mod restore;
mod source;
mod stream;
#[cfg(any(feature = "http", feature = "cloud"))]
mod tail;
mod transcode;

#[cfg(feature = "cloud")]
pub use cloud::CloudFile;
pub use compress::{CompressOptions, compress};
pub use encodings::{Encoding, encoding};
pub use estimate::{Estimate, estimate};
pub use folder::index;
#[cfg(feature = "http")]
pub use http::{HttpFile, HttpOptions};
pub use layers::layer_of;
pub use measure::{Matvec, MeasureOptions, Measurement, measure};
pub use model::{Model, Stored, Tensor};
pub use progress::Progress;
pub use report::{FileReport, Report};
pub use restore::{RestoreOptions, hex, restore, verify};
pub use stream::{Layer, StreamOptions, StreamingLoader};
pub use transcode::transcode;

pub use bigsmall_codec::Level;
pub use bigsmall_format::{
    Class, Dtype, EncodedTensor, EncodingId, Error, Header, Limits, ReadAt, Result, Rule, Shard,
    TensorSpec,
};
