//! How to restore.

use std::path::Path;

use crate::source::url::url;

/// How to restore or verify.
///
/// ```
/// let options = bigsmall_io::RestoreOptions { md5: true, ..Default::default() };
/// assert!(!options.replace);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Report the MD5 of every tensor's original bytes.
    pub md5: bool,
    /// Replace an existing output.
    pub replace: bool,
}

/// Whether reading a chunk takes long and no processor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    No,
    /// Chunks are read and decoded by threads of their own, so that many requests are under way
    /// and the caller's pool is not kept waiting.
    ForAnotherMachine,
}

impl Waits {
    /// Whether reading from `input` waits for another machine.
    pub(crate) fn of(input: &Path) -> Self {
        if url(input).is_some() { Waits::ForAnotherMachine } else { Waits::No }
    }
}
