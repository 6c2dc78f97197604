//! What cannot be had without `unsafe`.

mod ahead;

pub use ahead::Ahead;
