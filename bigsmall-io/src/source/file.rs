//! One file, wherever it is.

use std::ops::Range;

use bigsmall_format::ReadAt;

/// Whatever a file is read from.
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

/// How many requests are under way at once: enough to hide that each takes its time.
pub(crate) const REMOTE_THREADS: usize = 8;
