//! Positioned reads without a cursor.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::wire::set_len;
use crate::{Error, Result, Rule};

/// A source of bytes that can be read at any offset from any thread: a file, a slice, an HTTP
/// resource, a fault injector.
///
/// It is implemented for slices, vectors and files, and for references, boxes and [`Arc`]s of
/// sources, `dyn ReadAt` included.
///
/// A read may run on a thread of the caller's rayon pool while other threads of the pool wait for
/// it. So it must not itself wait for work in that pool.
///
/// ```
/// use std::io;
/// use bigsmall_format::ReadAt;
///
/// /// A source of zeros.
/// struct Zeros(u64);
///
/// impl ReadAt for Zeros {
///     fn byte_len(&self) -> io::Result<u64> {
///         Ok(self.0)
///     }
///
///     fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
///         match offset.checked_add(buf.len() as u64) {
///             Some(end) if end <= self.0 => Ok(buf.fill(0)),
///             _ => Err(io::ErrorKind::UnexpectedEof.into()),
///         }
///     }
/// }
///
/// let source: Box<dyn ReadAt> = Box::new(Zeros(10));
/// assert_eq!(source.byte_len()?, 10);
/// # Ok::<(), io::Error>(())
/// ```
pub trait ReadAt: Send + Sync {
    /// Length in bytes.
    ///
    /// # Errors
    /// Those of the source.
    fn byte_len(&self) -> io::Result<u64>;

    /// Fills `buf` with the bytes from `offset` on. Short reads and interrupted calls are repeated
    /// inside: the result is all the bytes or an error, and then the contents of `buf` are
    /// unspecified.
    ///
    /// # Errors
    /// Those of the source; [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) when it ends early.
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// The bytes of `range` if the source holds them in memory, so that nothing need be copied.
    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        let _ = range;
        None
    }
}

/// The length of `source`, its error as ours.
pub fn len_of(source: &dyn ReadAt) -> Result<u64> {
    source.byte_len().map_err(Error::from)
}

/// Reads from `source`; the error names the offset.
pub fn read_at(source: &dyn ReadAt, offset: u64, buf: &mut [u8]) -> Result<()> {
    source.read_exact_at(offset, buf).map_err(|e| Error::from(e).at(offset))
}

/// The bytes of `range`, borrowed if `source` holds them, else read into `scratch`.
pub(crate) fn read_or_borrow<'a>(
    source: &'a dyn ReadAt,
    range: Range<u64>,
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8]> {
    match source.bytes_at(range.clone()) {
        Some(bytes) => Ok(bytes),
        None => {
            set_len(scratch, (range.end - range.start) as usize)?;
            read_at(source, range.start, scratch)?;
            Ok(scratch)
        }
    }
}

pub(crate) fn past_end(offset: u64, len: usize, byte_len: u64) -> io::Error {
    let text = format!("{len} bytes at byte {offset} of a source of {byte_len} bytes");
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}

impl ReadAt for [u8] {
    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        match end.and_then(|end| self.bytes_at(offset..end)) {
            Some(bytes) => buf.copy_from_slice(bytes),
            None => return Err(past_end(offset, buf.len(), self.len() as u64)),
        }
        Ok(())
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        self.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
    }
}

/// Implements the trait for what leads to a source.
macro_rules! forward {
    ($(($($generics:tt)*) $type:ty;)*) => {
        $(impl<$($generics)*> ReadAt for $type {
            fn byte_len(&self) -> io::Result<u64> {
                (**self).byte_len()
            }

            fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
                (**self).read_exact_at(offset, buf)
            }

            fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
                (**self).bytes_at(range)
            }
        })*
    };
}

forward! {
    () Vec<u8>;
    (T: ReadAt + ?Sized) &T;
    (T: ReadAt + ?Sized) Box<T>;
    (T: ReadAt + ?Sized) Arc<T>;
}

/// A part of another source, such as the data of one tensor in its file.
#[derive(Clone, Debug)]
pub struct Section<R> {
    inner: R,
    range: Range<u64>,
}

impl<R: ReadAt> Section<R> {
    /// The bytes of `range` within `inner`.
    ///
    /// # Errors
    /// [`Rule::RangeOutOfBounds`] when `inner` is shorter; that of its length.
    pub fn new(inner: R, range: Range<u64>) -> Result<Self> {
        let byte_len = len_of(&inner)?;
        if range.start > range.end || range.end > byte_len {
            return Err(Error::new(Rule::RangeOutOfBounds)
                .expected(format!("a range within 0..{byte_len}"))
                .found(format!("{range:?}")));
        }
        Ok(Section { inner, range })
    }

    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

impl<R: ReadAt> ReadAt for Section<R> {
    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.len())
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match offset.checked_add(buf.len() as u64) {
            // The error's offset is that in the whole source.
            Some(end) if end <= self.len() => {
                read_at(&self.inner, self.range.start + offset, buf).map_err(io::Error::from)
            }
            _ => Err(past_end(offset, buf.len(), self.len())),
        }
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        (range.start <= range.end && range.end <= self.len()).then_some(())?;
        self.inner.bytes_at(self.range.start + range.start..self.range.start + range.end)
    }
}

impl ReadAt for std::fs::File {
    fn byte_len(&self) -> io::Result<u64> {
        self.metadata().map(|m| m.len())
    }

    #[cfg(unix)]
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buf, offset)
    }

    #[cfg(windows)]
    fn read_exact_at(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        use std::os::windows::fs::FileExt;
        while !buf.is_empty() {
            match self.seek_read(buf, offset) {
                Ok(0) => return Err(past_end(offset, buf.len(), self.byte_len()?)),
                Ok(n) => {
                    offset += n as u64;
                    buf = &mut buf[n..];
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    /// A source of one byte whose every answer is an error.
    struct Failing(fn() -> io::Error);

    impl ReadAt for Failing {
        fn byte_len(&self) -> io::Result<u64> {
            Err(self.0())
        }

        fn read_exact_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(self.0())
        }
    }

    #[test]
    fn whatever_leads_to_a_source_is_one() {
        let bytes: Vec<u8> = (0..20).collect();
        let path = std::env::temp_dir().join(format!("bigsmall-read-at-{}", std::process::id()));
        std::fs::write(&path, &bytes).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let longer = [&[9; 3][..], &bytes, &[9; 2]].concat();
        let sources: [(bool, Box<dyn ReadAt>); 8] = [
            (true, Box::new(bytes.clone())),
            (true, Box::new(Arc::<[u8]>::from(&bytes[..]))),
            (true, Box::new(Box::<[u8]>::from(&bytes[..]))),
            (true, Box::new(Arc::new(bytes.clone()) as Arc<dyn ReadAt>)),
            (true, Box::new(Box::new(bytes.clone()) as Box<dyn ReadAt>)),
            (true, Box::new(Section::new(longer, 3..23).unwrap())),
            (false, Box::new(Section::new(Arc::new(file), 0..20).unwrap())),
            (true, Box::new(Section::new(bytes.clone(), 0..20).unwrap())),
        ];
        for (in_memory, source) in &sources {
            assert_eq!(source.byte_len().unwrap(), 20);
            let mut some = [0; 5];
            source.read_exact_at(7, &mut some).unwrap();
            assert_eq!(some, [7, 8, 9, 10, 11]);
            assert_eq!(source.bytes_at(7..12), in_memory.then_some(&some[..]));
            assert_eq!(source.bytes_at(19..21), None);
            for (offset, n) in [(18, 3), (21, 0), (u64::MAX, 1)] {
                let error = source.read_exact_at(offset, &mut some[..n]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset} {n}");
            }
        }
    }

    /// An error of ours that goes through a source comes out as it went in, one of the system as
    /// the source of ours; both keep their kind, and name the offset in the whole.
    #[test]
    fn errors_keep_what_they_are() {
        let source = Failing(|| Error::new(Rule::SourceChanged).in_file("x").into());
        let error = read_at(&source, 5, &mut [0]).unwrap_err();
        assert_eq!((error.rule(), error.offset()), (Rule::SourceChanged, Some(5)));
        assert_eq!(error.to_string().matches("x: ").count(), 1);
        assert_eq!(len_of(&source).unwrap_err().rule(), Rule::SourceChanged);
        assert_eq!(Section::new(source, 0..0).err().unwrap().rule(), Rule::SourceChanged);

        let source = Failing(|| io::ErrorKind::PermissionDenied.into());
        let error = read_at(&source, 5, &mut [0]).unwrap_err();
        assert_eq!((error.rule(), error.class()), (Rule::Io, Class::Io));
        let text = error.to_string();
        let error = io::Error::from(error);
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(Error::from(error).to_string(), text);
        assert_eq!(len_of(&source).unwrap_err().rule(), Rule::Io, "not an empty source");

        // The second read of a section within a section fails: byte 30 + 20 + 5.
        struct Later;
        impl ReadAt for Later {
            fn byte_len(&self) -> io::Result<u64> {
                Ok(100)
            }

            fn read_exact_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
                Err(io::ErrorKind::TimedOut.into())
            }
        }
        let section = Section::new(Section::new(Later, 30..90).unwrap(), 20..50).unwrap();
        let error = read_at(&section, 5, &mut [0]).unwrap_err();
        assert_eq!((error.rule(), error.offset()), (Rule::Io, Some(55)));
    }
}
