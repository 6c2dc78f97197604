//! What cannot be had without `unsafe`.

mod ahead;
mod pages;

pub use ahead::{Ahead, prefetch_output};
pub use pages::zeroed;
