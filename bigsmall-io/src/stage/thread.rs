//! What the stages of a job share: buffers that are used again, the first failure, threads that may
//! not be had.
//!
//! Every job is a row of stages joined by channels. The number of buffers bounds the memory, and so
//! the channels need no bound of their own. After a failure every stage goes on emptying its
//! channel without doing any work, so nothing waits for ever.

use std::cell::Cell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Barrier, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::Duration;

use bigsmall_format::{Error, Result, Rule, address_space, available_threads};

use crate::Progress;

/// A lock whose holder panicked holds data that is still sound here: counters, spare buffers, an
/// error.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first failure of a job, in the order of the data.
pub(crate) struct Control<'a> {
    pub(crate) progress: &'a Progress,
    failure: Mutex<Option<(u64, Error)>>,
    stop: AtomicBool,
}

impl<'a> Control<'a> {
    pub(crate) fn new(progress: &'a Progress) -> Self {
        Control { progress, failure: Mutex::new(None), stop: AtomicBool::new(false) }
    }

    /// Notes that the chunk which begins at `position` failed; the earliest one counts. A chunk
    /// that was given up because of another ([`Rule::Cancelled`]) counts for nothing.
    pub(crate) fn fail(&self, position: u64, error: Error) {
        let mut first = lock(&self.failure);
        if error.rule() != Rule::Cancelled && first.as_ref().is_none_or(|(at, _)| position < *at) {
            *first = Some((position, error));
        }
        self.stop.store(true, Ordering::Release);
    }

    /// Whether there is no more work to do, after a failure or at the caller's wish.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.progress.is_cancelled()
    }

    /// The failure, if there was one.
    pub(crate) fn outcome(&self) -> Result<()> {
        match lock(&self.failure).take() {
            Some((_, error)) => Err(error),
            None if self.stopped() => Err(Error::new(Rule::Cancelled)),
            None => Ok(()),
        }
    }
}

/// A bounded number of buffers.
pub(crate) struct Pool {
    state: Mutex<Spare>,
    returned: Condvar,
}

struct Spare {
    buffers: Vec<Vec<u8>>,
    /// How many more may be made.
    unmade: usize,
}

impl Pool {
    pub(crate) fn new(limit: usize) -> Self {
        let spare = Spare { buffers: Vec::new(), unmade: limit };
        Pool { state: Mutex::new(spare), returned: Condvar::new() }
    }

    /// Waits for a buffer and gives it `len` bytes of any value.
    pub(crate) fn take(&self, len: usize) -> Result<Buffer<'_>> {
        let mut state = lock(&self.state);
        let bytes = loop {
            if let Some(bytes) = state.buffers.pop() {
                break bytes;
            }
            if state.unmade > 0 {
                state.unmade -= 1;
                break Vec::new();
            }
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        let mut buffer = Buffer { bytes, pool: self };
        set_len(&mut buffer, len)?;
        Ok(buffer)
    }
}

/// A buffer that goes back to its pool.
pub(crate) struct Buffer<'a> {
    bytes: Vec<u8>,
    pool: &'a Pool,
}

impl Deref for Buffer<'_> {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        lock(&self.pool.state).buffers.push(std::mem::take(&mut self.bytes));
        self.pool.returned.notify_one();
    }
}

/// Makes `buffer` hold `len` bytes of any value; an error where there is no memory for them.
pub(crate) fn set_len(buffer: &mut Vec<u8>, len: usize) -> Result<()> {
    reserve(buffer, len)?;
    buffer.resize(len, 0);
    Ok(())
}

/// Makes room for `len` bytes in all; an error where there is no memory for them.
pub(crate) fn reserve(buffer: &mut Vec<u8>, len: usize) -> Result<()> {
    buffer
        .try_reserve_exact(len.saturating_sub(buffer.len()))
        .map_err(|_| Error::new(Rule::Memory).expected(format!("{len} bytes for a buffer")))
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
