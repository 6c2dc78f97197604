//! XXH3-64, the checksum of blocks, heads and the index (FORMAT.md section 2).

/// XXH3-64 of `bytes` with seed 0.
///
/// ```
/// assert_eq!(bigsmall_format::internal::xxh3(b""), 0x2d06800538d394c2);
/// ```
#[must_use]
pub fn xxh3(bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn another_implementation_says_the_same() {
        let bytes: Vec<u8> =
            (0..5000u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 11) as u8).collect();
        for len in (0..600).chain([1023, 1024, 1025, 2048, 4096, 5000]) {
            let expected = xxhash_rust::xxh3::xxh3_64(&bytes[..len]);
            assert_eq!(super::xxh3(&bytes[..len]), expected, "{len} bytes");
        }
    }
}
