//! What every walk over a file stands on: chunks, buffers, threads, digests, output.

pub(crate) mod atomic;
pub(crate) mod chunk;
pub(crate) mod digest;
pub(crate) mod thread;
