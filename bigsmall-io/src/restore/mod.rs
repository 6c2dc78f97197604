//! From a shard to safetensors.

pub(crate) mod walk;
