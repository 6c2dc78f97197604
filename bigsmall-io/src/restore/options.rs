//! How to restore.

use std::path::Path;

use bigsmall_format::available_threads;

use crate::source::file::REMOTE_THREADS;
use crate::source::url::url;

/// How to restore or verify.
///
/// ```
/// let options = bigsmall_io::RestoreOptions { threads: 1, ..Default::default() };
/// assert!(!options.replace);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Threads that decode; 0: as many as the machine offers. Hashing and writing have threads of
    /// their own.
    pub threads: usize,
    /// Report the MD5 of every tensor's original bytes.
    pub md5: bool,
    /// Replace an existing output.
    pub replace: bool,
}

/// The options for `input`: more threads where each of them will wait for another machine.
pub(crate) fn patient(input: &Path, options: &RestoreOptions) -> RestoreOptions {
    match (url(input), options.threads) {
        (Some(_), 0) => {
            RestoreOptions { threads: available_threads().max(REMOTE_THREADS), ..*options }
        }
        _ => *options,
    }
}
