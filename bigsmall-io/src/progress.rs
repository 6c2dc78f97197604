//! The progress of a job, and its cancellation.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
    /// Has the job call `warn` with what a user should know before the job goes on: that it will
    /// write far more than it reads. One line of text.
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

    pub(crate) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}
