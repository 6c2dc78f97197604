#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod base;
#[cfg(feature = "candle")]
pub mod candle;
mod checkpoint;
mod compress;
mod element;
mod encodings;
mod error;
mod estimate;
mod extract;
#[cfg(test)]
mod faults;
mod folder;
mod jobs;
mod json;
mod limits;
mod metadata;
mod model;
mod model_index;
mod names;
mod os;
mod progress;
mod report;
mod restore;
mod save;
mod source;
mod stage;
mod sync;

pub use base::model::BaseModel;
pub use compress::options::CompressOptions;
pub use compress::transcode::{rebase, transcode};
pub use element::Element;
pub use encodings::{Encoding, encoding};
pub use error::{Error, ErrorKind, Result};
pub use estimate::{Estimate, estimate};
pub use extract::{ExtractOptions, Extracted, extract};
pub use folder::index::{IndexOptions, index};
pub use jobs::{compress, compress_from, restore, restore_to, verify};
pub use model::layer::Layer;
pub use model::layers::layer_of;
pub use model::open::Model;
pub use model::stream::{NextLayer, StreamOptions, StreamingLoader};
pub use model::tensor::{Stored, StoredBase, Tensor};
pub use progress::Progress;
pub use report::{FileReport, Report, hex};
pub use restore::options::RestoreOptions;
pub use save::options::SaveOptions;
pub use save::view::TensorView;
pub use save::writer::Writer;
pub use save::{save, save_to, save_with};
#[cfg(feature = "cloud")]
pub use source::cloud::CloudFile;
#[cfg(feature = "http")]
pub use source::http::{file::HttpFile, options::HttpOptions};
pub use source::listing::FolderOptions;
pub use sync::{PublishOptions, Published, Publisher, Subscriber, Update, Weights};

/// The version of `half` whose types are elements of tensors.
#[cfg(feature = "half")]
pub use half;

pub use bigsmall_codec::Level;
pub use bigsmall_format::{
    Base, BlockDecoder, BlockTable, Class, Dtype, EncodedTensor, EncodedView, EncodingId, Header,
    Limits, ReadAt, Rule, Shard, ShardEntry, TensorEncoding, TensorSpec,
};

/// What the command and the tests of this repository need. No promise holds for it.
#[doc(hidden)]
pub mod internal {
    pub use crate::checkpoint::{Checkpoint, Picked, Plain, PlainFile};
    pub use crate::folder::against::Compared;
    pub use crate::jobs::{restore_files, verify_against};
    pub use crate::json::json_line;
    pub use crate::metadata::metadata;
    pub use crate::model::layers::group;
    pub use crate::report::file_name;
    #[cfg(feature = "cloud")]
    pub use crate::source::cloud::{AmazonS3Builder, RetryConfig, s3_names};
    pub use crate::stage::atomic::{remove_temporaries, write_file};
}
