//! Positioned reads without a cursor.

use std::ops::Range;

use crate::{Error, Result, Rule};

/// A source of bytes that can be read anywhere, from any thread: a file, a slice, an HTTP resource,
/// a fault injector.
///
/// Implementations return exactly the bytes asked for or an error; short reads and interrupted
/// calls are theirs to repeat.
pub trait ReadAt: Send + Sync {
    /// Length in bytes.
    fn byte_len(&self) -> u64;

    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`Rule::Io`](crate::Rule::Io), also where the source ends early.
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// The bytes of `range` where the source holds them in memory, so that nothing need be copied.
    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        let _ = range;
        None
    }
}

fn past_end(offset: u64, len: usize, byte_len: u64) -> Error {
    Error::new(Rule::Io)
        .at(offset)
        .expected(format!("{len} bytes"))
        .found(format!("a source of {byte_len} bytes"))
}

impl ReadAt for [u8] {
    fn byte_len(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        match end.and_then(|end| self.bytes_at(offset..end)) {
            Some(bytes) => buf.copy_from_slice(bytes),
            None => return Err(past_end(offset, buf.len(), self.byte_len())),
        }
        Ok(())
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        self.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
    }
}

impl ReadAt for Vec<u8> {
    fn byte_len(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self[..].read_exact_at(offset, buf)
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        self[..].bytes_at(range)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn byte_len(&self) -> u64 {
        (**self).byte_len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        (**self).read_exact_at(offset, buf)
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        (**self).bytes_at(range)
    }
}

/// A window of another source: a tensor's data within its file, say.
#[derive(Clone, Debug)]
pub struct Section<R> {
    inner: R,
    range: Range<u64>,
}

impl<R: ReadAt> Section<R> {
    /// The bytes of `range` within `inner`.
    ///
    /// # Errors
    /// [`Rule::RangeOutOfBounds`] when `inner` is shorter.
    pub fn new(inner: R, range: Range<u64>) -> Result<Self> {
        if range.start > range.end || range.end > inner.byte_len() {
            return Err(Error::new(Rule::RangeOutOfBounds)
                .expected(format!("a range within 0..{}", inner.byte_len()))
                .found(format!("{range:?}")));
        }
        Ok(Section { inner, range })
    }
}

impl<R: ReadAt> ReadAt for Section<R> {
    fn byte_len(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.byte_len() => {
                self.inner.read_exact_at(self.range.start + offset, buf)
            }
            _ => Err(past_end(offset, buf.len(), self.byte_len())),
        }
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        (range.start <= range.end && range.end <= self.byte_len()).then_some(())?;
        self.inner.bytes_at(self.range.start + range.start..self.range.start + range.end)
    }
}

#[cfg(unix)]
impl ReadAt for std::fs::File {
    fn byte_len(&self) -> u64 {
        self.metadata().map_or(0, |m| m.len())
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buf, offset)
            .map_err(|e| Error::io(e).at(offset))
    }
}

#[cfg(windows)]
impl ReadAt for std::fs::File {
    fn byte_len(&self) -> u64 {
        self.metadata().map_or(0, |m| m.len())
    }

    fn read_exact_at(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        use std::os::windows::fs::FileExt;
        while !buf.is_empty() {
            match self.seek_read(buf, offset) {
                Ok(0) => return Err(past_end(offset, buf.len(), self.byte_len())),
                Ok(n) => {
                    offset += n as u64;
                    buf = &mut buf[n..];
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(e).at(offset)),
            }
        }
        Ok(())
    }
}
