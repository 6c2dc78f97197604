//! The threads that encode and decode.

use std::sync::Mutex;

use bigsmall_io::{Error, ErrorKind};
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::raise;

/// A pool of this process. A child made by `fork` has none of its parent's threads, so that the
/// pool remembers whose it is.
///
/// Only a thread that holds the GIL takes the lock, and `os.fork` holds the GIL: no child inherits
/// a locked one.
static POOL: Mutex<Option<(u32, &'static ThreadPool)>> = Mutex::new(None);

/// The most threads, as in the command. One thread hashes, so more would be idle.
const MOST_THREADS: usize = 256;

/// The pool: one thread for each core, or as many as `BIGSMALL_THREADS` says.
pub(crate) fn pool(py: Python<'_>) -> PyResult<&'static ThreadPool> {
    let mut current = match POOL.lock() {
        Ok(current) => current,
        // A thread that panicked has changed nothing: the pool is stored by the last line.
        Err(poisoned) => poisoned.into_inner(),
    };
    let process = std::process::id();
    if let Some((_, pool)) = current.filter(|(owner, _)| *owner == process) {
        return Ok(pool);
    }
    let threads = std::env::var("BIGSMALL_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let threads = threads.min(MOST_THREADS);
    let pool = match ThreadPoolBuilder::new().num_threads(threads).build() {
        Ok(pool) => pool,
        Err(e) => {
            // Making an exception may release the GIL, and another thread may want the lock then.
            drop(current);
            let error = Error::new(ErrorKind::Memory).expected("threads to work on");
            return Err(raise(py, &error.caused_by(e)));
        }
    };
    // Never dropped: it lives as long as the process, one for each.
    let pool: &'static ThreadPool = Box::leak(Box::new(pool));
    *current = Some((process, pool));
    Ok(pool)
}
