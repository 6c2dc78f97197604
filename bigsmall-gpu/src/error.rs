//! The errors of this crate.

pub use bigsmall_format::{Error, Result, Rule};
