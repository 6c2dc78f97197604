//! What cannot be had without `unsafe`.

mod allocator;

pub(crate) use allocator::{WithReserve, is_exhausted, keep_reserve};
