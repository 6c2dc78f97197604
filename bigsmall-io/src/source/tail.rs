//! Shared by all remote files: their last bytes, kept in memory, and reads in parallel pieces.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::source::file::REMOTE_THREADS;
use crate::stage::lock::lock;
use crate::stage::thread::side_by_side;

/// Bytes of the end that opening fetches and keeps: trailer and index of all but very large shards.
pub(crate) const TAIL: u64 = 256 << 10;

/// The most bytes of one request. A longer read becomes several parallel requests.
const REQUEST: usize = 4 << 20;

/// The most bytes that all open files keep together. A file that is opened beyond this keeps its
/// last bytes only until they are read once, as opening a shard does.
const KEPT: usize = 64 << 20;

/// Bytes that are kept now.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// A file's length and its last bytes.
pub(crate) struct Tail {
    pub(crate) byte_len: u64,
    /// Kept as long as the file is open.
    bytes: Vec<u8>,
    /// Kept until they are read.
    once: Mutex<Vec<u8>>,
}

impl Drop for Tail {
    fn drop(&mut self) {
        HELD.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

impl Tail {
    /// The last bytes of a file of `byte_len` bytes.
    pub(crate) fn new(byte_len: u64, bytes: Vec<u8>) -> Self {
        Self::within(KEPT, byte_len, bytes)
    }

    fn within(most: usize, byte_len: u64, bytes: Vec<u8>) -> Self {
        let held = HELD.fetch_add(bytes.len(), Ordering::Relaxed);
        if held.saturating_add(bytes.len()) <= most {
            return Tail { byte_len, bytes, once: Mutex::default() };
        }
        HELD.fetch_sub(bytes.len(), Ordering::Relaxed);
        Tail { byte_len, bytes: Vec::new(), once: Mutex::new(bytes) }
    }

    /// Fills `buf` from the bytes that are kept until they are read, if they have all of it.
    fn take(&self, offset: u64, buf: &mut [u8]) -> bool {
        let mut once = lock(&self.once);
        let at = offset.checked_sub(self.byte_len.saturating_sub(once.len() as u64));
        let found = at.and_then(|at| once.get(usize::try_from(at).ok()?..)?.get(..buf.len()));
        let Some(found) = found.filter(|found| !found.is_empty()) else { return false };
        buf.copy_from_slice(found);
        *once = Vec::new();
        true
    }

    /// Where the kept bytes begin.
    fn at(&self) -> u64 {
        self.byte_len - self.bytes.len() as u64
    }

    /// Fills `buf` with the bytes from `offset` on. Kept bytes are copied; `fetch` gets the others.
    pub(crate) fn read_exact_at(
        &self,
        offset: u64,
        buf: &mut [u8],
        fetch: impl Fn(u64, &mut [u8]) -> Result<()> + Sync,
    ) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.byte_len);
        let Some(end) = end else {
            return Err(Error::new(ErrorKind::Io)
                .at(offset)
                .expected(format!("{} bytes", buf.len()))
                .found(format!("a source of {} bytes", self.byte_len)));
        };
        if self.take(offset, buf) {
            return Ok(());
        }
        let n_fetched = self.at().clamp(offset, end) - offset;
        let (fetched, kept) = buf.split_at_mut(n_fetched as usize);
        if !kept.is_empty() {
            let from = (offset + n_fetched - self.at()) as usize;
            kept.copy_from_slice(&self.bytes[from..from + kept.len()]);
        }
        let pieces = fetched.chunks_mut(REQUEST).enumerate();
        side_by_side(REMOTE_THREADS, pieces, |(n, piece)| {
            fetch(offset + (n * REQUEST) as u64, piece)
        })
    }

    /// The bytes of `range`, if all of them are kept.
    pub(crate) fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        let (start, end) = (range.start.checked_sub(self.at())?, range.end.checked_sub(self.at())?);
        self.bytes.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_has_its_bytes_and_kept_ones_are_not_fetched() {
        let file: Vec<u8> = (0..40).collect();
        for n_kept in [0, 1, 17, 40] {
            let tail = Tail::new(40, file[40 - n_kept..].to_vec());
            for begin in 0..=40usize {
                for end in begin..=40 {
                    let mut buf = vec![0xFF; end - begin];
                    let fetch = |offset: u64, piece: &mut [u8]| {
                        assert!(offset as usize + piece.len() <= 40 - n_kept);
                        piece.copy_from_slice(&file[offset as usize..][..piece.len()]);
                        Ok(())
                    };
                    tail.read_exact_at(begin as u64, &mut buf, fetch).unwrap();
                    assert_eq!(buf, file[begin..end]);
                    let kept = tail.bytes_at(begin as u64..end as u64);
                    assert_eq!(kept.is_some(), begin >= 40 - n_kept);
                    assert!(kept.is_none_or(|kept| kept == &file[begin..end]));
                }
            }
            for (offset, len) in [(40, 1), (0, 41), (u64::MAX, 1)] {
                assert!(tail.read_exact_at(offset, &mut vec![0; len], |_, _| Ok(())).is_err());
            }
        }
        // Long reads come in pieces.
        let tail = Tail::new(10 << 20, Vec::new());
        let mut buf = vec![0; 9 << 20];
        let fetch = |offset: u64, piece: &mut [u8]| {
            piece.fill((offset >> 20) as u8);
            Ok(())
        };
        tail.read_exact_at(1 << 20, &mut buf, fetch).unwrap();
        assert_eq!([buf[0], buf[(4 << 20) - 1], buf[4 << 20], buf[(9 << 20) - 1]], [1, 1, 5, 9]);
    }
    #[test]
    // M-08
    fn beyond_the_limit_the_last_bytes_are_kept_until_they_are_read() {
        let file: Vec<u8> = (0..40).collect();
        let fetched = AtomicUsize::new(0);
        let fetch = |offset: u64, piece: &mut [u8]| {
            fetched.fetch_add(1, Ordering::SeqCst);
            piece.copy_from_slice(&file[offset as usize..][..piece.len()]);
            Ok(())
        };
        let tail = Tail::within(0, 40, file[20..].to_vec());
        assert_eq!(tail.bytes_at(30..40), None);
        let read = |begin: usize, end: usize| {
            let mut buf = vec![0xFF; end - begin];
            tail.read_exact_at(begin as u64, &mut buf, fetch).unwrap();
            assert_eq!(buf, file[begin..end]);
            fetched.load(Ordering::SeqCst)
        };
        assert_eq!(read(3, 3), 0);
        assert_eq!(read(10, 25), 1, "not all of it is kept");
        assert_eq!(read(20, 40), 1, "what opening reads");
        assert_eq!(read(20, 40), 2, "it is kept no longer");
    }
}
