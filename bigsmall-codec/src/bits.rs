//! Bits, least significant first.

use bigsmall_format::{Error, Result, Rule};

use bigsmall_format::internal::reserve;

use crate::planes::ONES;

/// Appends bits to bytes.
#[derive(Default)]
pub(crate) struct BitWriter {
    bytes: Vec<u8>,
    pending: u64,
    n_pending: u32,
}

impl BitWriter {
    /// A writer with room for `n` bytes.
    pub(crate) fn with_room(n: usize) -> Result<BitWriter> {
        let mut writer = BitWriter::default();
        reserve(&mut writer.bytes, n)?;
        Ok(writer)
    }

    /// Appends the low `n` bits of `value`, n at most 32.
    pub(crate) fn push(&mut self, value: u32, n: u32) {
        self.pending |= u64::from(value) << self.n_pending;
        self.n_pending += n;
        while self.n_pending >= 8 {
            self.bytes.push(self.pending as u8);
            self.pending >>= 8;
            self.n_pending -= 8;
        }
    }

    /// The bytes, the last one filled up with zeros.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        if self.n_pending > 0 {
            self.bytes.push(self.pending as u8);
        }
        self.bytes
    }
}

/// Takes bits out of bytes.
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    /// Bits consumed.
    at: usize,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        BitReader { bytes, at: 0 }
    }

    /// The next 57 bits or more, zeros after the end.
    #[inline(always)]
    fn window(&self) -> u64 {
        let rest = self.bytes.get(self.at / 8..).unwrap_or(&[]);
        let word = rest.first_chunk().copied().unwrap_or_else(|| {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            last
        });
        u64::from_le_bytes(word) >> (self.at % 8)
    }

    /// The next `n` bits, at most 16; `None` at the end.
    #[inline(always)]
    pub(crate) fn pull(&mut self, n: u32) -> Option<u32> {
        let value = self.window() as u32 & ((1 << n) - 1);
        self.at += n as usize;
        (self.at <= self.bytes.len() * 8).then_some(value)
    }

    /// Fills `out` with the next numbers of `n` bits, at most 3; `None` at the end.
    pub(crate) fn pull_each(&mut self, n: u32, out: &mut [u8]) -> Option<()> {
        for out in out.chunks_mut(16) {
            let mut window = self.window();
            self.at += n as usize * out.len();
            for out in out {
                *out = (window & ((1 << n) - 1)) as u8;
                window >>= n;
            }
        }
        (self.at <= self.bytes.len() * 8).then_some(())
    }

    /// Counts ones up to the next zero and takes them and it; `None` at the end, or if there are
    /// more than `most`.
    #[inline(always)]
    pub(crate) fn pull_ones(&mut self, most: u32) -> Option<u32> {
        let mut ones = 0;
        loop {
            let in_window = u64::BITS - (self.at % 8) as u32;
            let run = self.window().trailing_ones();
            ones += run;
            self.at += run as usize;
            if ones > most {
                return None;
            }
            if run < in_window {
                self.at += 1;
                return (self.at <= self.bytes.len() * 8).then_some(ones);
            }
        }
    }

    /// Checks that the bits left over in the last byte are zero; returns the bytes after it.
    pub(crate) fn finish_prefix(&self) -> Result<&'a [u8]> {
        let (used, rest) = self.bytes.split_at(self.at.div_ceil(8));
        BitReader { bytes: used, at: self.at }.finish(1, Rule::PaddingNotZero)?;
        Ok(rest)
    }

    /// Checks that only the zero padding to a multiple of `align` bytes is left; more bytes break
    /// the rule `longer`.
    pub(crate) fn finish(&self, align: usize, longer: Rule) -> Result<()> {
        check_end(self.bytes, self.at, align, longer)
    }
}

/// Checks that `used` bits fill `bytes` but for zeros up to a multiple of `align` bytes; another
/// length breaks the rule `length`.
pub(crate) fn check_end(bytes: &[u8], used: usize, align: usize, length: Rule) -> Result<()> {
    let expected = used.div_ceil(8).next_multiple_of(align);
    if bytes.len() != expected {
        return Err(Error::new(length)
            .expected(format!("{expected} bytes of bits"))
            .found(bytes.len()));
    }
    let rest = &bytes[used / 8..];
    let of_last_byte = rest.first().is_some_and(|last| last >> (used % 8) != 0);
    if of_last_byte || rest.iter().skip(1).any(|&b| b != 0) {
        return Err(Error::new(Rule::PaddingNotZero).found("a bit after the last one"));
    }
    Ok(())
}

/// Which of the bytes are at least `power`, a power of two: bit i is set for byte i.
#[inline(always)]
pub(crate) fn at_least(bytes: &[u8; 32], power: u32) -> u32 {
    let above = (!(u64::from(power) - 1) & 0xff) * ONES;
    let words = || bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word) & above);
    if words().fold(0, |any, word| any | word) == 0 {
        return 0;
    }
    let mut mask = 0;
    for (i, high) in words().enumerate() {
        // The highest bit of each byte that is not zero, then these bits side by side.
        let set = (((high & (0x7f * ONES)) + 0x7f * ONES) | high) >> 7 & ONES;
        mask |= ((set.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32) << (8 * i);
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_compared() {
        let bytes =
            std::array::from_fn(|i| [0u8, 15, 16, 31, 32, 128, 252, 47][i % 8] + i as u8 / 8);
        assert_eq!(at_least(&[15; 32], 16), 0);
        for power in [1, 16, 32, 128] {
            let mask = at_least(&bytes, power);
            for (i, &byte) in bytes.iter().enumerate() {
                assert_eq!(mask >> i & 1 == 1, u32::from(byte) >= power, "{byte} {power}");
            }
        }
    }
}
