//! Bit strings that are read many bits at a time.

use bigsmall_format::{Result, Rule};

use super::values::Word;
use crate::bits::check_end;

/// Takes bits out of bytes. Beyond the end there are zeros; [`finish`](Bits::finish) refuses them.
#[derive(Clone)]
pub(crate) struct Bits<'a> {
    bytes: &'a [u8],
    /// Bits taken.
    at: usize,
}

impl<'a> Bits<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Bits { bytes, at: 0 }
    }

    /// Takes `n` bits without looking at them.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) fn skip(&mut self, n: usize) {
        self.at += n;
    }

    /// Checks that the bits taken fill the bytes, the last one filled up with zeros; another
    /// length breaks the rule `length`.
    pub(crate) fn finish(&self, length: Rule) -> Result<()> {
        check_end(self.bytes, self.at, 1, length)
    }

    /// At least 57 bits from the next one on.
    #[inline(always)]
    fn peek(&self) -> u64 {
        let at = self.at / 8;
        let word = match self.bytes.get(at..at + 8).and_then(|b| b.first_chunk::<8>()) {
            Some(word) => *word,
            None => self.last(at),
        };
        u64::from_le_bytes(word) >> (self.at % 8)
    }

    #[cold]
    fn last(&self, at: usize) -> [u8; 8] {
        let mut word = [0; 8];
        let rest = self.bytes.get(at..).unwrap_or(&[]);
        word.iter_mut().zip(rest).for_each(|(to, &byte)| *to = byte);
        word
    }

    /// The next `n` bits, at most 64.
    #[inline(always)]
    pub(crate) fn pull(&mut self, n: u32) -> u64 {
        if n > 56 {
            let low = self.pull_word(32);
            return low | self.pull_word(n - 32) << 32;
        }
        self.pull_word(n)
    }

    /// The next `n` bits, at most 56 or as many as a unit has.
    #[inline(always)]
    pub(crate) fn pull_of<W: Word>(&mut self, n: u32) -> u64 {
        if W::BITS > 56 { self.pull(n) } else { self.pull_word(n) }
    }

    /// The next `n` bits, at most 56.
    #[inline(always)]
    fn pull_word(&mut self, n: u32) -> u64 {
        let value = self.peek() & ((1 << n) - 1);
        self.at += n as usize;
        value
    }

    /// Counts ones up to the next zero and takes them and it. No more than `most` are taken; then
    /// no zero is.
    #[inline(always)]
    pub(crate) fn pull_ones(&mut self, most: u32) -> u32 {
        let mut ones = 0;
        loop {
            let more = self.peek().trailing_ones().min(56);
            if ones + more > most {
                self.at += (most - ones) as usize;
                return most;
            }
            ones += more;
            self.at += more as usize;
            if more < 56 {
                self.at += 1;
                return ones;
            }
        }
    }

    /// A Rice code: at most `most` ones and a zero, then `q` bits.
    #[inline(always)]
    pub(crate) fn pull_rice(&mut self, q: u32, most: u32) -> u64 {
        u64::from(self.pull_ones(most)) << q | self.pull(q)
    }

    /// An exponential Golomb code of order `g`; `None` for one that begins with more than 63 ones.
    #[inline(always)]
    pub(crate) fn pull_golomb(&mut self, g: u32) -> Option<u64> {
        let len = self.pull_ones(64);
        if len > 63 {
            return None;
        }
        let high = (1 << len | self.pull(len)) - 1;
        let low = self.pull(g);
        Some(high << g | low)
    }
}

/// Appends bits to bytes.
#[derive(Default)]
pub(crate) struct BitSink {
    /// The bytes, and room for more.
    bytes: Vec<u8>,
    /// Whole bytes.
    len: usize,
    /// The bits after them, fewer than 8.
    pending: u64,
    n_pending: u32,
}

impl BitSink {
    /// Appends the low `n` bits of `value`, at most 64.
    #[inline(always)]
    pub(crate) fn push(&mut self, value: u64, n: u32) {
        if n > 56 {
            self.push_word(value, 32);
            return self.push_word(value >> 32, n - 32);
        }
        self.push_word(value, n);
    }

    /// Appends the low `n` bits of `value`, at most 56.
    #[inline(always)]
    fn push_word(&mut self, value: u64, n: u32) {
        self.pending |= (value & ((1 << n) - 1)) << self.n_pending;
        self.n_pending += n;
        if self.len + 8 > self.bytes.len() {
            self.grow();
        }
        // All of them, whether they are whole bytes or not: without a branch.
        self.bytes[self.len..self.len + 8].copy_from_slice(&self.pending.to_le_bytes());
        self.len += self.n_pending as usize / 8;
        self.pending >>= self.n_pending & !7;
        self.n_pending &= 7;
    }

    #[cold]
    fn grow(&mut self) {
        self.bytes.resize(2 * self.bytes.len() + 256, 0);
    }

    /// Appends `n` ones and a zero.
    #[inline(always)]
    pub(crate) fn push_ones(&mut self, n: u64) {
        for _ in 0..n / 32 {
            self.push(u64::MAX, 32);
        }
        let rest = (n % 32) as u32;
        self.push((1 << rest) - 1, rest + 1);
    }

    #[inline(always)]
    pub(crate) fn push_rice(&mut self, value: u64, q: u32) {
        self.push_ones(value >> q);
        self.push(value, q);
    }

    /// The code that [`Bits::pull_golomb`] reads. `value >> g` is less than 2^63.
    #[inline(always)]
    pub(crate) fn push_golomb(&mut self, value: u64, g: u32) {
        let high = (value >> g) + 1;
        let len = high.ilog2();
        self.push_ones(u64::from(len));
        self.push(high, len);
        self.push(value, g);
    }

    /// Forgets the bits and keeps the memory.
    pub(crate) fn clear(&mut self) {
        (self.len, self.pending, self.n_pending) = (0, 0, 0);
    }

    /// Fills up the last byte with zeros.
    pub(crate) fn finish(&mut self) -> &[u8] {
        // It was stored with the bytes before it.
        self.len += usize::from(self.n_pending > 0);
        (self.pending, self.n_pending) = (0, 0);
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_back() {
        let mut sink = BitSink::default();
        let values = [0u64, 1, 2, 5, 31, 32, 100, 4095, 1 << 20, (1 << 40) + 3, 1 << 62];
        for (i, &value) in values.iter().enumerate() {
            let q = i as u32 * 5;
            sink.push_rice(value.min(3000), q % 12);
            sink.push_golomb(value, q % 7);
            sink.push(value, 64);
        }
        let bytes = sink.finish().to_vec();
        let mut bits = Bits::new(&bytes);
        for (i, &value) in values.iter().enumerate() {
            let q = i as u32 * 5;
            assert_eq!(bits.pull_rice(q % 12, 5000), value.min(3000));
            assert_eq!(bits.pull_golomb(q % 7), Some(value));
            assert_eq!(bits.pull(64), value);
        }
        bits.finish(Rule::DeltaBlock).unwrap();
        let rules = |bits: &Bits<'_>| bits.finish(Rule::DeltaBlock).unwrap_err().rule();
        bits.pull(8);
        assert_eq!(rules(&bits), Rule::DeltaBlock);
        let mut bits = Bits::new(&[0x0f, 0x10]);
        assert_eq!(rules(&bits), Rule::DeltaBlock);
        bits.pull(12);
        assert_eq!(rules(&bits), Rule::PaddingNotZero);
        bits.pull(1);
        bits.finish(Rule::DeltaBlock).unwrap();
    }

    #[test]
    fn no_more_ones_than_asked_for() {
        let mut bits = Bits::new(&[0xff; 30]);
        assert_eq!((bits.pull_ones(100), bits.at), (100, 100));
        assert_eq!((bits.pull_ones(1000), bits.at), (140, 241));
        assert_eq!(Bits::new(&[0xff; 30]).pull_golomb(0), None);
    }
}
