//! Independent implementations of the encodings, written from FORMAT.md. The backends, the fuzz
//! targets and the test vectors are compared with them.
#![allow(missing_docs, dead_code, clippy::unwrap_used)]

// This one stands with the tests of the codec: they run inside the published package too, where
// this crate does not exist.
#[path = "../../../bigsmall-codec/tests/oracle/mod.rs"]
pub mod ans;
pub mod tbe;
