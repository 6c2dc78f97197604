//! One file, local or remote.

use std::ops::Range;

use bigsmall_format::ReadAt;

/// The source of one file.
pub(crate) struct Source(Box<dyn ReadAt>);

impl Source {
    pub(crate) fn new(source: impl ReadAt + 'static) -> Self {
        Source(Box::new(source))
    }
}

impl ReadAt for Source {
    fn byte_len(&self) -> std::io::Result<u64> {
        self.0.byte_len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(offset, buf)
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        self.0.bytes_at(range)
    }
}

/// How many requests run at once: enough to hide their latency.
pub(crate) const REMOTE_THREADS: usize = 8;
