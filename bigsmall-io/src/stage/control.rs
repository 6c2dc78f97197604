//! The first failure of a job, and cancellation.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Progress;
use crate::error::{Error, ErrorKind, Result};
use crate::stage::lock::lock;
use crate::stage::promise::Promise;

/// A stage ended, or panicked, before its work was done.
pub(crate) fn ended_early() -> Error {
    Error::new(ErrorKind::Io).found("a thread ended before its work was done")
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
    /// that was given up because of another ([`ErrorKind::Cancelled`]) counts for nothing.
    pub(crate) fn fail(&self, position: u64, error: Error) {
        let mut first = lock(&self.failure);
        if error.kind() != ErrorKind::Cancelled
            && first.as_ref().is_none_or(|(at, _)| position < *at)
        {
            *first = Some((position, error));
        }
        self.stop.store(true, Ordering::Release);
    }

    /// Records that a stage ended before its work was done. An error from a stage takes precedence.
    pub(crate) fn give_up(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Waits for the result of another stage. If that stage has ended without it, the job fails.
    /// The returned [`Rule::Cancelled`] never replaces the error of that stage.
    pub(crate) fn owed<'p, T>(&self, promise: &'p Promise<T>) -> Result<&'p T> {
        promise.wait().ok_or_else(|| {
            self.give_up();
            Error::new(ErrorKind::Cancelled)
        })
    }

    /// Whether there is no more work to do: something failed, or the caller cancelled the job.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.progress.is_cancelled()
    }

    /// The failure, if there was one.
    pub(crate) fn outcome(&self) -> Result<()> {
        match lock(&self.failure).take() {
            Some((_, error)) => Err(error),
            None if self.progress.is_cancelled() => Err(Error::new(ErrorKind::Cancelled)),
            None if self.stopped() => Err(ended_early()),
            None => Ok(()),
        }
    }

    /// Called by every stage before every message. A test can end the stage here.
    pub(crate) fn before_message(&self, _stage: &str) {
        #[cfg(test)]
        if let Some(fault) = &self.progress.fault {
            fault.before_message(_stage);
        }
    }
}
