//! x86-64.

/// The portable loops, compiled for the instructions `$features`. These are functions, not
/// closures: the compiler knows that function arguments do not overlap, but not that captured
/// values do not.
macro_rules! plain_loops {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        fn count_any(head: &Head, bitmaps: &[[u8; 8]], starts: &[Start]) -> Result<usize, usize> {
            portable::count(head, bitmaps, starts)
        }

        /// Decodes a last tile that is not whole.
        #[target_feature(enable = $features)]
        fn decode_any(tiles: &Tiles<'_>, out: &mut [u8]) {
            portable::decode_any(tiles, out);
        }
    };
}

pub(crate) mod avx2;
pub(crate) mod avx512;
mod stream;
