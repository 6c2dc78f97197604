//! Threads of a job: how many, how they start, how they get their work.

use std::cell::Cell;
use std::io;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::Duration;

use bigsmall_format::{Error, Result, Rule, address_space, available_threads};

/// A lock whose holder panicked holds data that is still sound here: counters, spare buffers, an
/// error.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many threads code and how many chunks may be under way. One thread hashes, so that more than
/// some hundred have nothing to do.
pub(crate) fn sizes(threads: usize) -> (usize, usize) {
    let threads = if threads == 0 { available_threads() } else { threads }.min(256);
    (threads, (24 + 4 * threads).min(64))
}

/// More than a thread takes to start: two MiB for its stack.
const THREAD: usize = 4 << 20;

/// Has the C library make room for what this thread tidies up at its end, for which it ends the
/// process where there is no memory: a thread that has once waited for a channel needs no more.
fn settle() {
    thread_local!(static SETTLED: Cell<bool> = const { Cell::new(false) });
    if !SETTLED.replace(true) {
        // A channel without room waits before it looks at the time.
        let (_sender, nothing) = std::sync::mpsc::sync_channel::<()>(0);
        let _ = nothing.recv_timeout(Duration::ZERO);
    }
}

/// A thread that is being started says with this that it has what it needs.
pub(crate) struct Begun(Arc<Barrier>);

impl Begun {
    /// The first that the thread does.
    pub(crate) fn here(self) {
        settle();
        self.0.wait();
    }
}

/// Starts a thread by `start`; that there is none to be had is an error and no panic.
pub(crate) fn start<H>(
    name: &str,
    start: impl FnOnce(Builder, Begun) -> io::Result<H>,
) -> Result<H> {
    // What the system needs to start a thread, it takes or ends the process: so there must be
    // enough, and nobody may take it first.
    address_space(THREAD)?;
    settle();
    let begun = Arc::new(Barrier::new(2));
    let handle = start(Builder::new().name(name.into()), Begun(Arc::clone(&begun)))
        .map_err(|e| Error::new(Rule::Memory).expected("one more thread").found(e))?;
    begun.wait();
    Ok(handle)
}

/// Starts a thread of `scope`, as [`start`] does.
pub(crate) fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    start(name, |builder, begun| {
        builder.spawn_scoped(scope, move || {
            begun.here();
            work()
        })
    })
}

/// The next message of a channel that several threads empty.
pub(crate) fn next<T>(queue: &Mutex<Receiver<T>>) -> Option<T> {
    lock(queue).recv().ok()
}
