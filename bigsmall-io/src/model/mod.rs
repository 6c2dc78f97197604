//! Reads tensors from shards.

mod feed;
pub(crate) mod layer;
pub(crate) mod layers;
pub(crate) mod open;
mod shards;
pub(crate) mod stream;
pub(crate) mod tensor;
