//! The progress of a job, and its cancellation.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use bigsmall_format::ReadAt;

use crate::error::{Error, ErrorKind, Result};

/// How often a wait looks whether the job is cancelled.
const LOOK: Duration = Duration::from_millis(50);

/// What is called with a warning.
struct Warn(Box<dyn Fn(&str) + Send + Sync>);

impl fmt::Debug for Warn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Warn")
    }
}

/// The progress of a job, for another thread to read, and its cancellation.
///
/// A caller who wants neither passes `&Progress::default()`.
///
/// ```
/// let progress = bigsmall_io::Progress::default();
/// assert_eq!((progress.done_bytes(), progress.total_bytes()), (0, 0));
/// progress.cancel();
/// assert!(progress.is_cancelled());
/// ```
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: Arc<AtomicBool>,
    warn: Option<Warn>,
    /// A stage that a test breaks.
    #[cfg(test)]
    pub(crate) fault: Option<crate::faults::StageFault>,
}

impl Progress {
    /// Has the job call `warn` with what a user should know while the job goes on: that it will
    /// write far more than it reads, or that another shard is damaged. One line of text.
    ///
    /// ```
    /// let progress = bigsmall_io::Progress::default().on_warning(|text| eprintln!("{text}"));
    /// ```
    #[must_use]
    pub fn on_warning(mut self, warn: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.warn = Some(Warn(Box::new(warn)));
        self
    }

    pub(crate) fn warn(&self, text: &str) {
        if let Some(Warn(warn)) = &self.warn {
            warn(text);
        }
    }

    /// Original bytes processed so far.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Original bytes to process; 0 until the headers have been read.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Asks the job to stop: it ends soon with
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) and leaves nothing behind.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the job was asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// The flag behind [`cancel`](Self::cancel), for a signal handler to set.
    #[must_use]
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    /// What ends every wait of the job.
    pub(crate) fn stop(&self) -> Stop {
        Stop(Some(self.cancel_flag()))
    }

    /// An error once the job is cancelled.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::new(ErrorKind::Cancelled)) } else { Ok(()) }
    }

    pub(crate) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A source whose reads fail once the job is cancelled.
pub(crate) struct Cancellable<'a> {
    pub(crate) source: &'a dyn ReadAt,
    pub(crate) progress: &'a Progress,
}

impl ReadAt for Cancellable<'_> {
    fn byte_len(&self) -> io::Result<u64> {
        self.source.byte_len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.progress.check()?;
        self.source.read_exact_at(offset, buf)
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        self.source.bytes_at(range)
    }
}

/// Ends every wait once a job is cancelled. Whatever waits for another machine waits here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Option<Arc<AtomicBool>>);

#[cfg_attr(not(any(feature = "http", feature = "cloud")), allow(dead_code))]
impl Stop {
    /// An error once the job is cancelled.
    pub(crate) fn check(&self) -> Result<()> {
        match self.0.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            true => Err(Error::new(ErrorKind::Cancelled)),
            false => Ok(()),
        }
    }

    pub(crate) fn sleep(&self, time: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            self.check()?;
            let left = time.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    /// Waits for a message; `None` if the other side has ended.
    pub(crate) fn receive<T>(&self, from: &Receiver<T>) -> Result<Option<T>> {
        loop {
            self.check()?;
            match from.recv_timeout(LOOK) {
                Ok(message) => return Ok(Some(message)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Does `work`, which may block in the system for long. If it can be cancelled, a thread of its
    /// own does it, and is left behind when it is.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        if self.0.is_none() {
            return Ok(work());
        }
        self.check()?;
        let (send, receive) = sync_channel(1);
        let started =
            std::thread::Builder::new().name("bigsmall request".into()).spawn(move || {
                let _ = send.send(work());
            });
        started
            .map_err(|e| Error::new(ErrorKind::Memory).expected("one more thread").caused_by(e))?;
        let ended = || Error::new(ErrorKind::Io).found("a thread ended before its work was done");
        self.receive(&receive)?.ok_or_else(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    // X-01
    fn whatever_waits_ends_when_the_job_is_cancelled() {
        // A wait that goes on has an end, so that this test has one.
        const LONG: Duration = Duration::from_secs(30);
        let progress = Progress::default();
        let stop = progress.stop();
        assert!(stop.check().is_ok() && stop.sleep(Duration::from_millis(1)).is_ok());
        assert_eq!(stop.run(|| 7).unwrap(), 7);
        assert!(stop.run(|| panic!("as a test")).map(|(): ()| ()).is_err());
        let (late, nothing) = sync_channel::<u8>(1);
        std::thread::spawn(move || {
            std::thread::sleep(LONG);
            drop(late);
        });
        std::thread::scope(|scope| {
            let waits: [Box<dyn Fn() -> Result<()> + Send>; 3] = [
                Box::new(|| stop.sleep(LONG)),
                Box::new(|| stop.run(|| std::thread::sleep(LONG))),
                Box::new({
                    let stop = stop.clone();
                    move || stop.receive(&nothing).map(drop)
                }),
            ];
            let threads = waits.map(|wait| scope.spawn(move || wait().unwrap_err().kind()));
            progress.cancel();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), ErrorKind::Cancelled);
            }
        });
        // Without anybody who could cancel, this thread does the work itself.
        let here = std::thread::current().id();
        assert_eq!(Stop::default().run(|| std::thread::current().id()).unwrap(), here);
    }
}
