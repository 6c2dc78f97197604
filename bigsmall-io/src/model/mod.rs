//! Tensors out of shards.

pub(crate) mod layers;
pub(crate) mod open;
pub(crate) mod stream;
