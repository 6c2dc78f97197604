//! Tables of shuffles and permutations.

/// For every set of `UNITS` places the byte shuffle that moves as many packed units of `BYTES`
/// there, and zeros to the other places.
pub(super) const fn unpacking<const BYTES: usize, const UNITS: usize, const SETS: usize>()
-> [[u8; 16]; SETS] {
    let mut table = [[0x80; 16]; SETS];
    let mut mask = 0;
    while mask < SETS {
        let (mut place, mut from) = (0, 0);
        while place < UNITS {
            if mask >> place & 1 == 1 {
                let mut byte = 0;
                while byte < BYTES {
                    table[mask][place * BYTES + byte] = (from * BYTES + byte) as u8;
                    byte += 1;
                }
                from += 1;
            }
            place += 1;
        }
        mask += 1;
    }
    table
}

pub(super) static UNPACK16: [[u8; 16]; 256] = unpacking::<2, 8, 256>();
