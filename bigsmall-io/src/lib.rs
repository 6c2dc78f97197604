#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "candle")]
pub mod candle;
mod compress;
mod encodings;
mod estimate;
#[cfg(test)]
mod faults;
mod folder;
mod measure;
mod model;
mod model_index;
mod os;
mod progress;
mod report;
mod restore;
mod source;
mod stage;

pub use compress::transcode::transcode;
pub use compress::walk::{CompressOptions, compress};
pub use encodings::{Encoding, encoding};
pub use estimate::{Estimate, estimate};
pub use folder::walk::index;
pub use measure::{Matvec, MeasureOptions, Measurement, measure};
pub use model::layers::layer_of;
pub use model::open::{Model, Stored, Tensor};
pub use model::stream::{Layer, StreamOptions, StreamingLoader};
pub use progress::Progress;
pub use report::{FileReport, Report};
pub use restore::walk::{RestoreOptions, hex, restore, verify};
#[cfg(feature = "cloud")]
pub use source::cloud::CloudFile;
#[cfg(feature = "http")]
pub use source::http::{HttpFile, HttpOptions};

pub use bigsmall_codec::Level;
pub use bigsmall_format::{
    Class, Dtype, EncodedTensor, EncodingId, Error, Header, Limits, ReadAt, Result, Rule, Shard,
    TensorSpec,
};
