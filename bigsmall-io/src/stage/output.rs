//! The destination of a job's bytes.

use std::io::{self, Write};
use std::sync::Mutex;

use crate::error::Result;
use crate::stage::lock::lock;

/// The destination of a job's bytes: a file, nothing, or in tests a storage that fails.
pub(crate) trait Output: Sync {
    /// Appends `bytes`. Only one thread calls this.
    fn append(&self, bytes: &[u8]) -> io::Result<()>;

    /// Reads the bytes at `offset`. `false` if nothing is kept.
    fn read_back(&self, offset: u64, buf: &mut [u8]) -> Result<bool>;
}

/// Keeps nothing: for a dry run.
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

/// Any sink as an output; nothing can be read back.
pub(crate) struct Sink<W>(Mutex<W>);

impl<W: Write> Sink<W> {
    pub(crate) fn new(sink: W) -> Self {
        Sink(Mutex::new(sink))
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        lock(&self.0).flush()
    }
}

impl<W: Write + Send> Output for Sink<W> {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        lock(&self.0).write_all(bytes)
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
