//! What every walk over a file stands on.
//!
//! Every job is a row of stages joined by channels. The number of buffers bounds the memory, so
//! the channels need no bound of their own. After a failure every stage goes on emptying its
//! channel without doing any work, so nothing waits for ever.

pub(crate) mod atomic;
pub(crate) mod chunk;
pub(crate) mod control;
pub(crate) mod digest;
pub(crate) mod lock;
pub(crate) mod output;
pub(crate) mod pool;
pub(crate) mod promise;
pub(crate) mod thread;
