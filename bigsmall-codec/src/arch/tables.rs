//! Tables of shuffles and permutations.

/// For every set of `UNITS` places the byte shuffle that moves as many packed units of `BYTES`
/// there, and zeros to the other places.
const fn unpacking<const BYTES: usize, const UNITS: usize, const SETS: usize>() -> [[u8; 16]; SETS]
{
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

pub(super) static UNPACK8: [[u8; 16]; 256] = unpacking::<1, 8, 256>();
pub(super) static UNPACK16: [[u8; 16]; 256] = unpacking::<2, 8, 256>();
pub(super) static UNPACK32: [[u8; 16]; 16] = unpacking::<4, 4, 16>();
pub(super) static UNPACK64: [[u8; 16]; 4] = unpacking::<8, 2, 4>();

/// For every set of 8 lanes the byte shuffle that moves their words of 16 bits to the end.
pub(super) static COMPACT: [[u8; 16]; 256] = {
    let mut table = [[0x80; 16]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut to) = (8, 8);
        while lane > 0 {
            lane -= 1;
            if mask >> lane & 1 == 1 {
                to -= 1;
                table[mask][2 * to] = 2 * lane as u8;
                table[mask][2 * to + 1] = 2 * lane as u8 + 1;
            }
        }
        mask += 1;
    }
    table
};
