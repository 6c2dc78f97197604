//! The common ground of every walk over a file.
//!
//! A job is a chain of stages, connected by channels. The number of buffers bounds the memory, so
//! the channels are unbounded. After a failure every stage still empties its channel, without
//! working, so that no stage waits forever.

pub(crate) mod atomic;
pub(crate) mod chunk;
pub(crate) mod control;
pub(crate) mod digest;
pub(crate) mod leftovers;
pub(crate) mod lock;
pub(crate) mod output;
pub(crate) mod pool;
pub(crate) mod promise;
pub(crate) mod thread;
