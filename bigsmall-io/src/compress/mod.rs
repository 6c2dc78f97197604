//! From safetensors to a shard.

mod check;
mod encode;
pub(crate) mod file;
mod job;
pub(crate) mod options;
mod plan;
mod shared;
mod sink;
pub(crate) mod transcode;
pub(crate) mod walk;
