//! The first failure of a job, and cancellation.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bigsmall_format::{Error, Result, Rule};

use crate::Progress;
use crate::stage::thread::lock;

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
