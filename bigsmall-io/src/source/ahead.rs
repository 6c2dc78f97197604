//! Reads ahead: a file on another machine that is read in order, in pieces smaller than a request.

use std::io;
use std::ops::Range;
use std::sync::Mutex;

use bigsmall_format::ReadAt;
use bigsmall_format::internal::set_len;

use crate::stage::lock::lock;

/// Bytes that are fetched at once, with several requests at a time.
const AHEAD: u64 = 16 << 20;

/// A source that fetches the next [`AHEAD`] bytes whenever a read begins where the one before
/// ended. Other reads, such as samples, go through.
pub(crate) struct Ahead<'a> {
    source: &'a dyn ReadAt,
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    at: u64,
    bytes: Vec<u8>,
    /// Where the last read ended that went through.
    ended: u64,
}

impl Window {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    /// Copies the first bytes of `buf` from the window. Returns how many.
    fn copy(&self, offset: u64, buf: &mut [u8]) -> usize {
        let at = offset.checked_sub(self.at).and_then(|at| usize::try_from(at).ok());
        let kept = at.and_then(|at| self.bytes.get(at..)).unwrap_or_default();
        let n = kept.len().min(buf.len());
        buf[..n].copy_from_slice(&kept[..n]);
        n
    }
}

impl<'a> Ahead<'a> {
    pub(crate) fn new(source: &'a dyn ReadAt) -> Self {
        Ahead { source, window: Mutex::default() }
    }
}

impl ReadAt for Ahead<'_> {
    fn byte_len(&self) -> io::Result<u64> {
        self.source.byte_len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut window = lock(&self.window);
        let n = window.copy(offset, buf);
        let (offset, buf) = (offset + n as u64, &mut buf[n..]);
        if buf.is_empty() {
            return Ok(());
        }
        let goes_on = offset == window.end() || offset == window.ended;
        let left = self.source.byte_len()?.saturating_sub(offset).min(AHEAD);
        if !goes_on || (buf.len() as u64) >= left {
            window.ended = offset + buf.len() as u64;
            drop(window);
            return self.source.read_exact_at(offset, buf);
        }
        let mut bytes = std::mem::take(&mut window.bytes);
        set_len(&mut bytes, left as usize)?;
        self.source.read_exact_at(offset, &mut bytes)?;
        (window.at, window.bytes) = (offset, bytes);
        window.copy(offset, buf);
        Ok(())
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        self.source.bytes_at(range)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts its reads.
    struct Counted(Vec<u8>, AtomicUsize);

    impl ReadAt for Counted {
        fn byte_len(&self) -> io::Result<u64> {
            Ok(self.0.len() as u64)
        }

        fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.read_exact_at(offset, buf)
        }
    }

    #[test]
    fn reads_in_order_are_few_and_every_read_has_its_bytes() {
        let bytes: Vec<u8> = (0..70u32 << 18).flat_map(u32::to_le_bytes).collect();
        let source = Counted(bytes, AtomicUsize::new(0));
        let ahead = Ahead::new(&source);
        let mut buf = vec![0; 1_000_000];
        let mut read = |at: usize, len: usize| {
            ahead.read_exact_at(at as u64, &mut buf[..len]).unwrap();
            assert!(buf[..len] == source.0[at..][..len], "{len} at {at}");
        };
        read(0, 8);
        read(8, 99);
        let begin = 107;
        for at in (begin..source.0.len() - 1_000_000).step_by(1_000_000) {
            // A sample in between.
            read(source.0.len() - 5000 - at / 1000, 4096);
            read(at, 1_000_000);
        }
        let n = source.1.load(Ordering::Relaxed);
        // 72 samples, the header, and five windows.
        assert!(n <= 72 + 2 + 6, "{n}");
        // Two places in turn: nothing is fetched in vain.
        let (source, mut buf) = (Counted(vec![7; 64 << 20], AtomicUsize::new(0)), vec![0; 1 << 20]);
        let ahead = Ahead::new(&source);
        for i in 1..9u64 {
            ahead.read_exact_at(i << 20, &mut buf).unwrap();
            ahead.read_exact_at((i + 30) << 20, &mut buf).unwrap();
        }
        assert!(lock(&ahead.window).bytes.is_empty());
    }
}
