//! From safetensors to a shard.

pub(crate) mod transcode;
pub(crate) mod walk;
