//! The loop over a mask of zeros that instruction sets with shuffles of 16 bytes share.

use crate::arch::tables::{UNPACK8, UNPACK16, UNPACK32, UNPACK64};
use crate::zeros;

/// [`zeros::expand`] by shuffles. `put` reads 16 bytes, brings them into the order that it gets,
/// where the highest bit makes a zero, and writes as many of them as it is told, 16 or 8, not
/// more: other units may lie behind.
///
/// # Safety
/// `put` does as described.
#[inline(always)]
pub(super) unsafe fn expand(
    unit_bytes: usize,
    mask: &[u8],
    units: &mut [u8],
    begin: usize,
    put: impl Fn(*const u8, &[u8; 16], *mut u8, usize),
) {
    // SAFETY: the tables have 2^8, 2^8, 2^4 and 2^2 entries for 8, 8, 4 and 2 units, which are 8 or
    // 16 bytes; as the caller promises.
    let (at, next) = unsafe {
        match unit_bytes {
            1 => expand_units::<1, 8>(&UNPACK8, mask, units, begin, put),
            2 => expand_units::<2, 8>(&UNPACK16, mask, units, begin, put),
            4 => expand_units::<4, 4>(&UNPACK32, mask, units, begin, put),
            _ => expand_units::<8, 2>(&UNPACK64, mask, units, begin, put),
        }
    };
    zeros::expand_rest(unit_bytes, mask, units, at, next);
}

/// [`expand`] for whole words of the mask, as far as no vector would read or write past the units;
/// returns where it stopped: the bytes done, and where the next unit that is not zero lies.
/// `others` is where the first of these lies. `BITS` bits of the mask are one shuffle.
///
/// # Safety
/// The table has an entry for every value of `BITS` bits, and `BITS` units are 8 or 16 bytes. `put`
/// does as described at [`expand`].
#[inline(always)]
unsafe fn expand_units<const BYTES: usize, const BITS: usize>(
    table: &[[u8; 16]],
    mask: &[u8],
    units: &mut [u8],
    others: usize,
    put: impl Fn(*const u8, &[u8; 16], *mut u8, usize),
) -> (usize, usize) {
    let (mut at, mut next) = (0, others);
    for mask in mask.as_chunks().0 {
        // The last of the vectors ends up to 16 bytes after the units of this word.
        if next.max(at) + 64 * BYTES + 16 > units.len() {
            break;
        }
        let mask = u64::from_le_bytes(*mask);
        for part in 0..64 / BITS {
            let set = (mask >> (part * BITS)) as usize & ((1 << BITS) - 1);
            // SAFETY: 16 bytes from `next` and from `at` lie within the units, as just compared;
            // the table has every set.
            unsafe {
                let units = units.as_mut_ptr();
                put(units.add(next), table.get_unchecked(set), units.add(at), BYTES * BITS);
            }
            at += BYTES * BITS;
            next += BYTES * set.count_ones() as usize;
        }
    }
    (at, next)
}
