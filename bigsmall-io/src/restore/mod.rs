//! From a shard to safetensors.

pub(crate) mod bounds;
pub(crate) mod decode;
pub(crate) mod options;
pub(crate) mod original;
pub(crate) mod walk;
