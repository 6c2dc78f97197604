//! Independent implementations of the encodings, written from FORMAT.md. The backends, the fuzz
//! targets and the test vectors are compared with them.
#![allow(missing_docs, dead_code, clippy::unwrap_used)]

// This file is in the codec's tests, because they also run inside the published package, where
// this crate does not exist.
#[path = "../../../bigsmall-codec/tests/oracle/mod.rs"]
pub mod ans;
pub mod tbe;
