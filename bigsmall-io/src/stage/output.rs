//! Where the bytes of a job go.

use std::io::{self, Write};

use crate::error::Result;

/// Where a job's bytes go: a file, nothing at all, or in tests a storage that fails.
pub(crate) trait Output: Sync {
    /// Appends `bytes`. One thread alone calls this.
    fn append(&self, bytes: &[u8]) -> io::Result<()>;

    /// Reads what stands at `offset`. `false` where nothing is kept.
    fn read_back(&self, offset: u64, buf: &mut [u8]) -> Result<bool>;
}

/// Counts the bytes and keeps none: for a dry run.
#[derive(Default)]
pub(crate) struct Discard;

impl Output for Discard {
    fn append(&self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn read_back(&self, _: u64, _: &mut [u8]) -> Result<bool> {
        Ok(false)
    }
}

/// [`Write`] for an [`Output`].
pub(crate) struct Appender<'a> {
    output: &'a dyn Output,
    written: u64,
}

impl<'a> Appender<'a> {
    pub(crate) fn new(output: &'a dyn Output) -> Self {
        Appender { output, written: 0 }
    }

    /// Bytes written.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }
}

impl Write for Appender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.append(bytes)?;
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
