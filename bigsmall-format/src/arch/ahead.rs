//! Memory that is prefetched while something else is computed.
#![allow(unsafe_code)]

/// Bytes of a cache line.
const LINE: usize = 64;

/// Encoded bytes that will be checked and decoded next. A decoder computes more than it reads, so
/// it prefetches them into the level 2 cache meanwhile, a few lines at a time, since the first step
/// on them, a checksum, is limited by memory alone. No more than a hint.
#[derive(Clone, Debug, Default)]
pub struct Ahead<'a> {
    rest: &'a [u8],
}

impl<'a> Ahead<'a> {
    /// `bytes` come next; none are known with `Ahead::default()`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Ahead { rest: bytes }
    }

    /// The lines to [`fetch`](Self::fetch) at each of `steps` steps, so that the last step
    /// prefetches the last line.
    #[must_use]
    pub fn lines_a_step(&self, steps: usize) -> usize {
        self.rest.len().div_ceil(LINE).div_ceil(steps.max(1))
    }

    /// Takes the next `lines` cache lines, to be fetched by somebody else.
    #[must_use]
    #[inline(always)]
    pub fn take_lines(&mut self, lines: usize) -> Ahead<'a> {
        let (now, rest) = self.rest.split_at(lines.saturating_mul(LINE).min(self.rest.len()));
        self.rest = rest;
        Ahead { rest: now }
    }

    /// Prefetches the next `lines` cache lines and does not wait for them.
    #[inline(always)]
    pub fn fetch(&mut self, lines: usize) {
        self.take_lines(lines).rest.chunks(LINE).for_each(prefetch_line::<2>);
    }
}

/// Prefetches the cache lines of `bytes`, which will be read or written soon, into the level 1
/// cache and does not wait for them. Stores to lines that are in no cache fill the store buffer,
/// and then the core stalls until memory has answered. No more than a hint.
#[inline(always)]
pub fn prefetch(bytes: &[u8]) {
    bytes.chunks(LINE).for_each(prefetch_line::<1>);
}

/// Prefetches a line into the cache of that level.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch_line<const LEVEL: u32>(line: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
    let line = line.as_ptr().cast();
    // SAFETY: SSE is part of x86-64; nothing is read or written.
    unsafe {
        match LEVEL {
            1 => _mm_prefetch::<_MM_HINT_T0>(line),
            _ => _mm_prefetch::<_MM_HINT_T1>(line),
        }
    }
}

// Elsewhere there is no stable intrinsic for it.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn prefetch_line<const LEVEL: u32>(_: &[u8]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lines_are_fetched_in_as_many_steps() {
        for len in [0, 1, 63, 64, 65, 1000, 4096] {
            for steps in [0, 1, 2, 7, 64, 5000] {
                let bytes = vec![0; len];
                let mut ahead = Ahead::new(&bytes);
                let lines = ahead.lines_a_step(steps);
                (0..steps.max(1)).for_each(|_| ahead.fetch(lines));
                assert!(ahead.rest.is_empty(), "{len} bytes in {steps} steps");
            }
        }
    }
}
