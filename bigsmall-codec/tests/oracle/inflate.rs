//! DEFLATE as RFC 1951 and FORMAT.md section 7.5 (kind 4) have it: one bit at a time.

/// The next bits of a stream.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// n bits, the first one lowest; `None` behind the end.
    fn pull(&mut self, n: u32) -> Option<usize> {
        (0..n).try_fold(0, |value, i| {
            let bit = self.bytes.get(self.at / 8)? >> (self.at % 8) & 1;
            self.at += 1;
            Some(value | usize::from(bit) << i)
        })
    }
}

/// A Huffman code: the length of the code of each symbol, 0 for a symbol without one.
struct Code(Vec<usize>);

impl Code {
    /// Complete; or, if `may_be_small`, without a code longer than one bit.
    fn new(lengths: Vec<usize>, may_be_small: bool) -> Option<Code> {
        let used: u32 = lengths.iter().filter(|&&l| l > 0).map(|&l| 1 << (15 - l)).sum();
        let is_small = lengths.iter().all(|&l| l <= 1);
        (used == 1 << 15 || used < 1 << 15 && may_be_small && is_small).then_some(Code(lengths))
    }

    fn pull(&self, bits: &mut Bits<'_>) -> Option<usize> {
        // Codes of a length follow those that are shorter, in the order of symbols.
        let (mut code, mut first) = (0, 0);
        for length in 1..=15 {
            code = code << 1 | bits.pull(1)?;
            let symbols = (0..self.0.len()).filter(|&s| self.0[s] == length);
            if let Some(symbol) = symbols.clone().nth(code - first) {
                return Some(symbol);
            }
            first = (first + symbols.count()) << 1;
            if code << 1 < first {
                return None;
            }
        }
        None
    }
}

const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

fn codes(bits: &mut Bits<'_>) -> Option<(Code, Code)> {
    let n_literals = bits.pull(5)? + 257;
    let n_distances = bits.pull(5)? + 1;
    let n_lengths = bits.pull(4)? + 4;
    if n_literals > 286 || n_distances > 30 {
        return None;
    }
    let mut lengths = vec![0; 19];
    for &symbol in &ORDER[..n_lengths] {
        lengths[symbol] = bits.pull(3)?;
    }
    let code = Code::new(lengths, false)?;
    let mut lengths: Vec<usize> = vec![];
    while lengths.len() < n_literals + n_distances {
        let (value, times) = match code.pull(bits)? {
            16 => (*lengths.last()?, 3 + bits.pull(2)?),
            17 => (0, 3 + bits.pull(3)?),
            18 => (0, 11 + bits.pull(7)?),
            length => (length, 1),
        };
        lengths.extend(vec![value; times]);
    }
    if lengths.len() > n_literals + n_distances {
        return None;
    }
    let distances = lengths.split_off(n_literals);
    Some((Code::new(lengths, true)?, Code::new(distances, true)?))
}

fn fixed() -> (Code, Code) {
    let literals = [vec![8; 144], vec![9; 112], vec![7; 24], vec![8; 8]].concat();
    (Code(literals), Code(vec![5; 32]))
}

/// The bytes of a stream, no more than `most`, and how long it is.
pub(super) fn inflate(stream: &[u8], most: usize) -> Option<(Vec<u8>, usize)> {
    let mut bits = Bits { bytes: stream, at: 0 };
    let mut out: Vec<u8> = vec![];
    loop {
        let is_last = bits.pull(1)? == 1;
        let (literals, distances) = match bits.pull(2)? {
            0 => {
                bits.at = bits.at.next_multiple_of(8);
                let (n, inverse) = (bits.pull(16)?, bits.pull(16)?);
                if n + inverse != 0xffff {
                    return None;
                }
                for _ in 0..n {
                    out.push(bits.pull(8)? as u8);
                }
                if out.len() > most {
                    return None;
                }
                if is_last {
                    break;
                }
                continue;
            }
            1 => fixed(),
            2 => codes(&mut bits)?,
            _ => return None,
        };
        loop {
            let symbol = literals.pull(&mut bits)?;
            match symbol {
                0..256 => out.push(symbol as u8),
                256 => break,
                257..286 => {
                    let length = match symbol - 257 {
                        28 => 258,
                        i @ 0..8 => 3 + i,
                        i => {
                            let extra = i / 4 - 1;
                            3 + ((4 + i % 4) << extra) + bits.pull(extra as u32)?
                        }
                    };
                    let distance = match distances.pull(&mut bits)? {
                        i @ 0..4 => 1 + i,
                        i @ 4..30 => {
                            let extra = i / 2 - 1;
                            1 + ((2 + i % 2) << extra) + bits.pull(extra as u32)?
                        }
                        _ => return None,
                    };
                    let from = out.len().checked_sub(distance)?;
                    for i in from..from + length {
                        out.push(out[i]);
                    }
                }
                _ => return None,
            }
            if out.len() > most {
                return None;
            }
        }
        if is_last {
            break;
        }
    }
    Some((out, bits.at.div_ceil(8)))
}
