//! XXH3-64, the checksum of blocks, heads and the index (FORMAT.md section 2).

/// XXH3-64 of `bytes` with seed 0.
///
/// ```
/// assert_eq!(bigsmall_format::xxh3(b""), 0x2d06800538d394c2);
/// ```
#[must_use]
pub fn xxh3(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}
