//! Tensors as differences from a base (FORMAT.md section 10).

pub(crate) mod bits;
pub(crate) mod classes;
mod coded;
mod counts;
mod decode;
mod encode;
mod encoding;
pub(crate) mod head;
pub(crate) mod join;
mod kinds;
mod plan;
mod sample;
mod slice;
pub(crate) mod sparse;
pub(crate) mod split;
pub(crate) mod values;

pub use encoding::Delta;
pub use slice::{
    Changes, apply_delta, apply_delta_bytes, apply_deltas_bytes, changes, decode_delta,
    decode_delta_bytes, encode_delta, encode_delta_bytes,
};
