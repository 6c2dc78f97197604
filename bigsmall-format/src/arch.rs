//! What cannot be had without `unsafe`.

mod ahead;
mod pages;

pub use ahead::{Ahead, prefetch};
pub(crate) use pages::reserve_large;
pub use pages::zeroed;
