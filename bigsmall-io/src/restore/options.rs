//! How to restore.

use std::path::Path;

use crate::source::url::url;

/// How to restore or verify.
///
/// ```
/// let options = bigsmall_io::RestoreOptions::new().md5(true);
/// assert!(!options.replace);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreOptions {
    /// Report the MD5 of every tensor's original bytes.
    pub md5: bool,
    /// Replace an existing output.
    pub replace: bool,
}

impl RestoreOptions {
    /// No MD5; an existing output is an error.
    #[must_use]
    pub fn new() -> Self {
        RestoreOptions::default()
    }

    /// Sets [`md5`](Self#structfield.md5).
    #[must_use]
    pub fn md5(mut self, md5: bool) -> Self {
        self.md5 = md5;
        self
    }

    /// Sets [`replace`](Self#structfield.replace).
    #[must_use]
    pub fn replace(mut self, replace: bool) -> Self {
        self.replace = replace;
        self
    }
}

/// Whether reading a chunk waits long without using the processor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    No,
    /// Separate threads read and decode the chunks. Many requests run at once, and the caller's
    /// pool does not wait.
    ForAnotherMachine,
}

impl Waits {
    /// Whether reading from `input` waits for another machine.
    pub(crate) fn of(input: &Path) -> Self {
        if url(input).is_some() { Waits::ForAnotherMachine } else { Waits::No }
    }
}
