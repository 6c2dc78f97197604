//! Shared by all remote files: their last bytes, kept in memory, and reads in parallel pieces.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::source::file::REMOTE_THREADS;
use crate::stage::thread::side_by_side;

/// Bytes of the end that opening fetches and keeps: trailer and index of all but very large shards.
pub(crate) const TAIL: u64 = 256 << 10;

/// The most bytes of one request. A longer read becomes several parallel requests.
const REQUEST: usize = 4 << 20;

/// A file's length and its last bytes.
#[derive(Default)]
pub(crate) struct Tail {
    pub(crate) byte_len: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Tail {
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
            let tail = Tail { byte_len: 40, bytes: file[40 - n_kept..].to_vec() };
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
        let tail = Tail { byte_len: 10 << 20, bytes: Vec::new() };
        let mut buf = vec![0; 9 << 20];
        let fetch = |offset: u64, piece: &mut [u8]| {
            piece.fill((offset >> 20) as u8);
            Ok(())
        };
        tail.read_exact_at(1 << 20, &mut buf, fetch).unwrap();
        assert_eq!([buf[0], buf[(4 << 20) - 1], buf[4 << 20], buf[(9 << 20) - 1]], [1, 1, 5, 9]);
    }
}
