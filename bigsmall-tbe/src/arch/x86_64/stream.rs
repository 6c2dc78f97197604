//! Access to data larger than the caches. Output bypasses the caches, so that the processor does
//! not read it before it is overwritten. Input is prefetched.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::kernels::{NIBBLE_CELL, PAIR_CELL, Tiles};
use crate::layout::TILE;

/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes produced at a time. They must stay in the level 1 cache together with the input.
pub(super) const GROUP: usize = 4096;
/// Outputs of at least this length bypass the caches: full blocks of bf16, and larger ones of fp8.
pub(super) const LEAST: usize = 1 << 16;

/// Prefetches the plain weights `ahead` weights after `tile`. The processor's own prefetching stops
/// at the end of each page.
#[inline(always)]
pub(super) fn fetch_plain(tile: &[u8], ahead: usize) {
    let at = tile.as_ptr().wrapping_add(ahead * (tile.len() / TILE));
    for line in (0..tile.len()).step_by(LINE) {
        fetch(at.wrapping_add(line));
    }
}

/// Prefetches the nibbles `ahead` weights after `cell`, which is a line and a half.
#[inline(always)]
pub(super) fn fetch_nibbles(cell: &[u8; NIBBLE_CELL], ahead: usize) {
    let at = cell.as_ptr().wrapping_add(ahead / TILE * NIBBLE_CELL);
    fetch(at);
    fetch(at.wrapping_add(LINE));
}

/// Prefetches the pairs `ahead` weights after `cell`, which is nearly three lines.
#[inline(always)]
pub(super) fn fetch_pairs(cell: &[u8; PAIR_CELL], ahead: usize) {
    let at = cell.as_ptr().wrapping_add(ahead / (2 * TILE) * PAIR_CELL);
    (0..3).for_each(|line| fetch(at.wrapping_add(line * LINE)));
}

/// Prefetches the byte plane `ahead` weights after weight `at`.
#[inline(always)]
pub(super) fn fetch_plane(tiles: &Tiles<'_>, at: usize, ahead: usize) {
    fetch(tiles.plane.as_ptr().wrapping_add(at + ahead));
}

/// Prefetches the bitmaps `ahead` weights after `here`, where a tile has so many.
#[inline(always)]
pub(super) fn fetch_bitmaps(here: *const [u8; 8], per_tile: usize, ahead: usize) {
    fetch(here.wrapping_add(ahead / TILE * per_tile).cast());
}

/// Prefetches a cache line into the level 2 cache: prefetches to level 1 would use up its line-fill
/// buffers. The address need not be valid.
#[inline(always)]
fn fetch(line: *const u8) {
    // SAFETY: SSE is part of x86-64. A prefetch does not read or write for the program, and an
    // invalid address is not an error.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
}

#[repr(align(64))]
struct Staging([u8; LINE + GROUP]);

/// Fills `out` in pieces of [`GROUP`] bytes (the last one is shorter). `produce` writes each piece
/// to a staging buffer, from which whole cache lines are written that bypass the caches.
pub(super) fn fill(out: &mut [u8], mut produce: impl FnMut(&mut [u8])) {
    let mut staging = Staging([0; LINE + GROUP]);
    // The bytes before the first whole line of `out`, and those after the last one, are written by
    // ordinary stores.
    let mut held = out.as_ptr().align_offset(LINE).min(out.len());
    let mut rest = out;
    if held > 0 {
        // Begin in the middle of a line of the staging buffer, so that later lines are aligned with
        // those of `out`.
        held = LINE - held % LINE;
        if held == LINE {
            held = 0;
        }
    }
    let mut skip = held;
    while !rest.is_empty() {
        let n = GROUP.min(rest.len() - (held - skip));
        produce(&mut staging.0[held..held + n]);
        held += n;
        let last = held - skip == rest.len();
        if skip > 0 {
            // The line that begins before `out`.
            let n = (LINE.min(held)) - skip;
            let (head, after) = rest.split_at_mut(n);
            head.copy_from_slice(&staging.0[skip..skip + n]);
            rest = after;
            staging.0.copy_within(skip + n..held, 0);
            // The moved bytes are at the front now. From here on both are aligned.
            held -= skip + n;
            skip = 0;
        }
        let whole = held / LINE * LINE;
        let (lines, after) = rest.split_at_mut(whole);
        write_lines(&staging, lines);
        rest = after;
        staging.0.copy_within(whole..held, 0);
        held -= whole;
        if last {
            rest.copy_from_slice(&staging.0[..held]);
            rest = &mut [];
        }
    }
    // SAFETY: SSE is part of x86-64.
    unsafe { _mm_sfence() };
}

/// Copies the first `lines.len()` bytes, which are whole lines. If `lines` begins at a line, the
/// stores bypass the caches.
fn write_lines(staging: &Staging, lines: &mut [u8]) {
    let from = &staging.0[..lines.len()];
    if !lines.as_ptr().addr().is_multiple_of(LINE) {
        return lines.copy_from_slice(from);
    }
    for (line, from) in lines.as_chunks_mut::<LINE>().0.iter_mut().zip(from.as_chunks::<LINE>().0) {
        for i in 0..LINE / 16 {
            // SAFETY: both have 64 bytes; `line` begins at a multiple of 64. SSE2 is part of
            // x86-64.
            unsafe {
                let value = _mm_loadu_si128(from.as_ptr().cast::<__m128i>().add(i));
                _mm_stream_si128(line.as_mut_ptr().cast::<__m128i>().add(i), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alignment_and_length() {
        for offset in 0..LINE {
            for len in [0, 1, 15, 63, 64, 65, 127, 4095, 4096, 4097, 4159, 4160, 8192, 20_001] {
                let mut buffer = vec![0u8; offset + len + 100];
                let mut next = 0u32;
                fill(&mut buffer[offset..offset + len], |piece| {
                    for byte in piece {
                        *byte = (next % 251) as u8 + 1;
                        next += 1;
                    }
                });
                assert_eq!(next as usize, len);
                for (i, &byte) in buffer.iter().enumerate() {
                    let inside = (offset..offset + len).contains(&i);
                    let expected = if inside { ((i - offset) % 251) as u8 + 1 } else { 0 };
                    assert_eq!(byte, expected, "offset {offset} length {len} at {i}");
                }
            }
        }
    }
}
