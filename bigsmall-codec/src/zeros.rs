//! Units come apart into a mask, which says which of them are zero, and the others; and together
//! again (FORMAT.md section 7.5, kind 3).

/// Calls the plain loop for units of that many bytes.
macro_rules! for_unit_bytes {
    ($unit_bytes:expr, $function:ident, $($argument:expr),*) => {
        match $unit_bytes {
            1 => $function::<1>($($argument),*),
            2 => $function::<2>($($argument),*),
            4 => $function::<4>($($argument),*),
            _ => $function::<8>($($argument),*),
        }
    };
}
pub(crate) use for_unit_bytes;

/// Moves the units from byte `begin` to the end of `units` to the places whose bits in `mask` are
/// set, and sets the other units to zero. The mask has as many ones as there are units to be moved:
/// since they lie at the end, none is overwritten before it is moved.
pub(crate) fn expand(unit_bytes: usize, mask: &[u8], units: &mut [u8], begin: usize) {
    expand_rest(unit_bytes, mask, units, 0, begin);
}

/// The rest of [`expand`] after the first `at` bytes, a multiple of 8 units; the next of the units
/// that are to be moved lies at byte `next`.
pub(crate) fn expand_rest(
    unit_bytes: usize,
    mask: &[u8],
    units: &mut [u8],
    at: usize,
    next: usize,
) {
    for_unit_bytes!(unit_bytes, expand_units, mask, units, at, next);
}

/// For each byte of a mask where its 8 units come from: the first, second, … of the others, or
/// number 8, which is zero.
static SOURCES: [[u8; 8]; 256] = {
    let mut sources = [[8; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut unit, mut next) = (0, 0);
        while unit < 8 {
            if mask >> unit & 1 == 1 {
                sources[mask][unit] = next;
                next += 1;
            }
            unit += 1;
        }
        mask += 1;
    }
    sources
};

fn expand_units<const N: usize>(mask: &[u8], units: &mut [u8], at: usize, next: usize) {
    let units = units.as_chunks_mut::<N>().0;
    let (mut at, mut next) = (at / N, next / N);
    // Eight units by one byte of the mask, without a branch on its bits: which units are zero
    // cannot be predicted.
    let mut others = [[0; N]; 16];
    while let (Some(eight), Some(&mask)) =
        (units.get(next..).and_then(|rest| rest.first_chunk::<8>()), mask.get(at / 8))
    {
        others[..8].copy_from_slice(eight);
        let Some(to) = units[at..].first_chunk_mut::<8>() else { break };
        for (to, &from) in to.iter_mut().zip(&SOURCES[usize::from(mask)]) {
            *to = others[usize::from(from % 16)];
        }
        at += 8;
        next += mask.count_ones() as usize;
    }
    // The last few of the others, with nothing behind them.
    for i in at..units.len() {
        let is_set = mask[i / 8] >> (i % 8) & 1;
        let unit = units.get(next).copied().unwrap_or([0; N]);
        units[i] = unit.map(|byte| byte & is_set.wrapping_neg());
        next += usize::from(is_set);
    }
}

/// Writes for each unit a bit to `mask`, which says whether it is not zero, and the units that are
/// not zero to the front of `others`, one after the other; `others` is at least as long as `units`.
/// Returns the number of bytes of the others.
pub(crate) fn split(unit_bytes: usize, units: &[u8], mask: &mut [u8], others: &mut [u8]) -> usize {
    for_unit_bytes!(unit_bytes, split_units, units, mask, others)
}

fn split_units<const N: usize>(units: &[u8], mask: &mut [u8], others: &mut [u8]) -> usize {
    let others = others.as_chunks_mut::<N>().0;
    let mut next = 0;
    for (byte, units) in mask.iter_mut().zip(units.as_chunks::<N>().0.chunks(8)) {
        *byte = 0;
        for (i, unit) in units.iter().enumerate() {
            let is_set = u8::from(*unit != [0; N]);
            others[next] = *unit;
            next += usize::from(is_set);
            *byte |= is_set << i;
        }
    }
    next * N
}

/// How many bits of a mask are set.
#[inline(always)]
pub(crate) fn count_ones(mask: &[u8]) -> usize {
    let (words, rest) = mask.as_chunks::<8>();
    let in_words: u32 = words.iter().map(|word| u64::from_le_bytes(*word).count_ones()).sum();
    let in_rest: u32 = rest.iter().map(|byte| byte.count_ones()).sum();
    (in_words + in_rest) as usize
}

/// How many of the units are zero.
pub(crate) fn count(unit_bytes: usize, units: &[u8]) -> usize {
    for_unit_bytes!(unit_bytes, count_units, units)
}

fn count_units<const N: usize>(units: &[u8]) -> usize {
    // Sums of bytes: more of them fit a vector.
    let sum = |units: &[[u8; N]]| units.iter().map(|unit| u8::from(*unit == [0; N])).sum::<u8>();
    units.as_chunks::<N>().0.chunks(255).map(|units| usize::from(sum(units))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend;

    /// Every backend, every length around its vectors, few and many zeros.
    #[test]
    fn units_come_apart_and_together() {
        let mut state = 1u64;
        let mut bits = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for unit_bytes in [1, 2, 4, 8] {
            for n in (1..140).chain([1000, 4099]) {
                for often in [0, 1, 8, 15, 16] {
                    let mut unit = || match bits() >> 32 & 15 < often {
                        // A zero with a sign is not zero, nor is one whose last byte alone is set.
                        true if bits() >> 60 == 0 => 1 << (8 * unit_bytes - 1),
                        true => bits() << 8 | 1,
                        false => 0,
                    };
                    let units: Vec<u8> =
                        (0..n).flat_map(|_| unit().to_le_bytes()[..unit_bytes].to_vec()).collect();
                    let n_mask = usize::div_ceil(n, 8);
                    let (mut mask, mut others) = (vec![0xff; n_mask], units.clone());
                    let len = split(unit_bytes, &units, &mut mask, &mut others);
                    assert_eq!(len / unit_bytes, n - count(unit_bytes, &units));
                    for backend in backend::backends() {
                        let kernels = backend::kernels(backend).unwrap();
                        // The others may have more room than they need.
                        let room = units.len() + often as usize * 9;
                        let (mut found, mut rest) = (vec![0xff; n_mask], vec![0x5a; room]);
                        let found_len =
                            kernels.split_zeros(unit_bytes, &units, &mut found, &mut rest);
                        assert!(found_len == len && found == mask, "{backend:?} {n} {often}");
                        assert_eq!(rest[..len], others[..len], "{backend:?} {n} {often}");
                        let mut back = vec![0x5a; units.len()];
                        let begin = back.len() - len;
                        back[begin..].copy_from_slice(&others[..len]);
                        kernels.expand(unit_bytes, &mask, &mut back, begin);
                        assert_eq!(back, units, "{backend:?} {unit_bytes} {n} {often}");
                    }
                }
            }
        }
    }
}
