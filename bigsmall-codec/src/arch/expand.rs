//! The loop over a mask of zeros that instruction sets with shuffles of 16 bytes share.

/// [`zeros::expand`](crate::zeros::expand) for whole words of the mask, as far as no vector would
/// read or write past the units; returns where it stopped: the bytes done, and where the next unit
/// that is not zero lies. `others` is where the first of these lies. `BITS` bits of the mask are
/// one shuffle of bytes: `put` reads 16 bytes, brings them into the order of the table, where the
/// highest bit makes a zero, and writes the first `BITS * BYTES` of them, not more: others may lie
/// behind.
///
/// # Safety
/// The table has an entry for every value of `BITS` bits, and `BITS` units are at most 16 bytes.
/// `put` does as described.
#[inline(always)]
pub(super) unsafe fn expand_units<const BYTES: usize, const BITS: usize>(
    table: &[[u8; 16]],
    mask: &[u8],
    units: &mut [u8],
    others: usize,
    put: impl Fn(*const u8, &[u8; 16], *mut u8),
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
                put(units.add(next), table.get_unchecked(set), units.add(at));
            }
            at += BYTES * BITS;
            next += BYTES * set.count_ones() as usize;
        }
    }
    (at, next)
}
