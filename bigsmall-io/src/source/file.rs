//! One file, local or remote.

use std::fs::File;
use std::io;
use std::ops::Range;

use bigsmall_format::ReadAt;

use crate::os;

/// The source of one file.
pub(crate) struct Source {
    bytes: Box<dyn ReadAt>,
    /// The permission bits of a file on this machine.
    mode: Option<u32>,
}

impl Source {
    pub(crate) fn new(source: impl ReadAt + 'static) -> Self {
        Source { bytes: Box::new(source), mode: None }
    }

    /// A file on this machine.
    pub(crate) fn local(file: File) -> io::Result<Self> {
        let mode = os::mode(&file.metadata()?);
        Ok(Source { bytes: Box::new(file), mode })
    }

    /// The permission bits that a file made from this one gets; `None` for the usual ones.
    pub(crate) fn mode(&self) -> Option<u32> {
        self.mode
    }
}

impl ReadAt for Source {
    fn byte_len(&self) -> io::Result<u64> {
        self.bytes.byte_len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.bytes.read_exact_at(offset, buf)
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        self.bytes.bytes_at(range)
    }
}

/// How many requests run at once: enough to hide their latency.
pub(crate) const REMOTE_THREADS: usize = 8;
