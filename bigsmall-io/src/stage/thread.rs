//! Threads of a job: how many, how they start, how they get their work.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{Builder, Scope};
use std::time::Duration;

use bigsmall_format::{Error, Result, Rule, address_space, pool_size, run_in_pool};
use crossbeam_channel::{Receiver, Sender};

use crate::stage::control::Control;
use crate::stage::lock::lock;

/// How many threads of the caller's pool code and how many chunks may be under way. One thread
/// hashes, so that more than some hundred have nothing to do.
pub(crate) fn sizes() -> (usize, usize) {
    let threads = pool_size().min(256);
    (threads, in_flight(threads))
}

/// How many chunks may be under way where so many threads code.
pub(crate) fn in_flight(threads: usize) -> usize {
    (24 + 4 * threads).min(64)
}

/// Calls `work` for every item on up to `n` threads of its own: for work that waits for another
/// machine and would keep the caller's pool from doing anything else. The error is that of the
/// earliest item that failed.
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
            // If the system gives no more threads, those that there are do the work.
            if Builder::new().spawn_scoped(scope, run).is_err() {
                break;
            }
        }
        run();
    });
    let first = lock(&failure).take();
    first.map_or(Ok(()), |(_, error)| Err(error))
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

/// Starts a stage of a job. If it panics, the job fails.
pub(crate) fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    control: &'scope Control<'_>,
    name: &str,
    work: impl FnOnce() + Send + 'scope,
) -> Result<()> {
    start(name, |builder, begun| {
        builder.spawn_scoped(scope, move || {
            begun.here();
            guarded(control, work);
        })
    })
    .map(|_| ())
}

/// Runs a stage on this thread and on others of the caller's pool, `n` in all at the most. If it
/// panics, the job fails. Calls may begin late, so none may wait for another one to begin.
pub(crate) fn in_pool(control: &Control<'_>, n: usize, work: impl Fn() + Sync) {
    run_in_pool(n, || guarded(control, &work));
}

fn guarded(control: &Control<'_>, work: impl FnOnce()) {
    // What the stage held is dropped by then, and every promise it had not kept is broken.
    if let Err(_panic) = catch_unwind(AssertUnwindSafe(work)) {
        #[cfg(test)]
        if _panic.is::<crate::faults::Returned>() {
            return;
        }
        control.give_up();
    }
}

/// The messages that the stage `stage` receives, until nobody sends any more.
pub(crate) fn received<'a, T>(
    control: &'a Control<'_>,
    stage: &'a str,
    channel: &'a Receiver<T>,
) -> impl Iterator<Item = T> + 'a {
    channel.iter().inspect(move |_| control.before_message(stage))
}

/// Sends `message`. If the stage that should receive it has ended, the job fails.
pub(crate) fn send<T>(control: &Control<'_>, channel: &Sender<T>, message: T) {
    if channel.send(message).is_err() {
        control.give_up();
    }
}
