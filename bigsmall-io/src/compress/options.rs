//! How to compress.

use crate::Encoding;

/// How to compress. The output depends on `encoding` and `md5` alone, never on the pool of threads.
///
/// ```
/// let options = bigsmall_io::CompressOptions { md5: true, ..Default::default() };
/// assert!(!options.replace);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompressOptions {
    /// The encoding to try; a tensor that it does not make smaller, or does not take, is stored
    /// raw.
    pub encoding: Encoding,
    /// Keep an MD5 of every tensor's original bytes (runs at 0.6 GB/s, slower than everything
    /// else).
    pub md5: bool,
    /// Replace an existing output.
    pub replace: bool,
    /// Do all the work but write nothing.
    pub dry_run: bool,
}
