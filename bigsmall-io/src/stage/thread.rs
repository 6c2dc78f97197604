//! Threads of a job: how many there are, how they start, how they get work.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread::{Builder, Scope};

use bigsmall_format::internal::{pool_size, run_in_pool};
use crossbeam_channel::{Receiver, Sender};

use crate::error::{Error, ErrorKind, Result};
use crate::stage::control::Control;
use crate::stage::lock::lock;

/// How many threads of the caller's pool code, and how many chunks may be in flight. One thread
/// hashes, so more than a few hundred coding threads would be idle.
pub(crate) fn sizes() -> (usize, usize) {
    let threads = pool_size().min(256);
    (threads, in_flight(threads))
}

/// How many chunks may be in flight for this many coding threads.
pub(crate) fn in_flight(threads: usize) -> usize {
    (24 + 4 * threads).min(64)
}

/// Calls `work` for every item, on up to `n` separate threads: for work that waits for another
/// machine and would block the caller's pool. Returns the error of the earliest item that failed.
pub(crate) fn side_by_side<I: ExactSizeIterator + Send>(
    n: usize,
    items: I,
    work: impl Fn(I::Item) -> Result<()> + Sync,
) -> Result<()> {
    let n = n.min(items.len());
    let queue = Mutex::new(items.enumerate());
    let failure = Mutex::new(None::<(usize, Error)>);
    let run = || {
        while lock(&failure).is_none() {
            let Some((index, item)) = lock(&queue).next() else { return };
            if let Err(error) = work(item) {
                let mut first = lock(&failure);
                if first.as_ref().is_none_or(|(i, _)| index < *i) {
                    *first = Some((index, error));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..n {
            // If the system gives no more threads, the existing ones do the work.
            if Builder::new().spawn_scoped(scope, run).is_err() {
                break;
            }
        }
        run();
    });
    let first = lock(&failure).take();
    first.map_or(Ok(()), |(_, error)| Err(error))
}

/// Starts a thread by `start`. If the system gives none, it is an error, not a panic.
pub(crate) fn start<H>(name: &str, start: impl FnOnce(Builder) -> io::Result<H>) -> Result<H> {
    start(Builder::new().name(name.into()))
        .map_err(|e| Error::new(ErrorKind::Memory).expected("one more thread").caused_by(e))
}

/// Starts a stage of a job. If it panics, the job fails.
pub(crate) fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    control: &'scope Control<'_>,
    name: &str,
    work: impl FnOnce() + Send + 'scope,
) -> Result<()> {
    start(name, |builder| builder.spawn_scoped(scope, move || guarded(control, work))).map(drop)
}

/// Runs a stage on this thread and on others of the caller's pool, at most `n` in all. If it
/// panics, the job fails. Calls may start late, so none may wait for another one to start.
pub(crate) fn in_pool(control: &Control<'_>, n: usize, work: impl Fn() + Sync) {
    run_in_pool(n, || guarded(control, &work));
}

fn guarded(control: &Control<'_>, work: impl FnOnce()) {
    // The stage's values are dropped by now, so every promise it had not kept is broken.
    if let Err(_panic) = catch_unwind(AssertUnwindSafe(work)) {
        #[cfg(test)]
        if _panic.is::<crate::faults::Returned>() {
            return;
        }
        control.give_up();
    }
}

/// The messages that the stage `stage` receives, until the channel closes.
pub(crate) fn received<'a, T>(
    control: &'a Control<'_>,
    stage: &'a str,
    channel: &'a Receiver<T>,
) -> impl Iterator<Item = T> + 'a {
    channel.iter().inspect(move |_| control.before_message(stage))
}

/// Sends `message`. If the receiving stage has ended, the job fails.
pub(crate) fn send<T>(control: &Control<'_>, channel: &Sender<T>, message: T) {
    if channel.send(message).is_err() {
        control.give_up();
    }
}
