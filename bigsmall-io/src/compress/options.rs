//! How to compress.

use crate::Encoding;

/// How to compress. The output depends on `encoding` and `md5` alone, never on `threads`.
///
/// ```
/// let options = bigsmall_io::CompressOptions { threads: 1, ..Default::default() };
/// assert!(!options.replace);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompressOptions {
    /// The encoding to try; a tensor that it does not make smaller, or does not take, is stored
    /// raw.
    pub encoding: Encoding,
    /// Threads that encode; 0: as many as the machine offers. Reading, hashing and writing have
    /// threads of their own.
    pub threads: usize,
    /// Keep an MD5 of every tensor's original bytes (runs at 0.6 GB/s, slower than everything
    /// else).
    pub md5: bool,
    /// Replace an existing output.
    pub replace: bool,
    /// Do all the work but write nothing.
    pub dry_run: bool,
}
