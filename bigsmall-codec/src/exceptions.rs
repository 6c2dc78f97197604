//! Units whose field the table of their segment does not code: their positions and fields, in about
//! 18 bits each (FORMAT.md section 7.5).
//!
//! Each is a gap (Rice code) and a field: `0` and its distance below the window, `10` and its
//! distance above (exponential Golomb codes of order 1: the two fields of a binade are about
//! equally rare, each binade half as common as the one before), or `11` and its place in the
//! window.
#![warn(clippy::unwrap_used, clippy::indexing_slicing)]

use bigsmall_format::{Error, Result, Rule};

use crate::bits::{BitReader, BitWriter};
use crate::head::Head;

/// Largest parameter of the Rice code.
pub(crate) const MAX_RICE: u32 = 15;

/// The best parameter for `n_exceptions` in `n` units: the logarithm of the mean gap.
pub(crate) fn rice_parameter(n: usize, n_exceptions: usize) -> u32 {
    match n_exceptions {
        0 => 0,
        count => (n / count).max(1).ilog2().min(MAX_RICE),
    }
}

/// Writes `exceptions`, positions rising.
pub(crate) fn write(head: &Head, exceptions: &[(u32, u16)], rice: u32) -> Result<Vec<u8>> {
    // Two bits of the unary gaps, at most 15 below them, 2 + 22 of the field.
    let mut out = BitWriter::with_room(8 + 6 * exceptions.len())?;
    let mut next = 0;
    for &(position, field) in exceptions {
        let gap = position - next;
        next = position + 1;
        for _ in 0..gap >> rice {
            out.push(1, 1);
        }
        out.push(0, 1);
        out.push(gap & ((1 << rice) - 1), rice);
        let n_symbols = 1u16 << head.symbol_bits;
        if field < head.base {
            out.push(0, 1);
            write_distance(&mut out, u32::from(head.base - 1 - field));
        } else if field - head.base >= n_symbols {
            out.push(1, 2);
            write_distance(&mut out, u32::from(field - head.base - n_symbols));
        } else {
            out.push(3, 2);
            out.push(u32::from(field - head.base), head.symbol_bits);
        }
    }
    Ok(out.finish())
}

/// Exponential Golomb code of order 1: the length of `distance / 2 + 1` in unary, its bits below
/// the leading one, then the last bit of the distance.
fn write_distance(out: &mut BitWriter, distance: u32) {
    let value = distance / 2 + 1;
    let len = value.ilog2();
    for _ in 0..len {
        out.push(1, 1);
    }
    out.push(0, 1);
    out.push(value & ((1 << len) - 1), len);
    out.push(distance & 1, 1);
}

fn read_distance(bits: &mut BitReader<'_>) -> Option<u32> {
    let len = bits.pull_ones(12)?;
    let value = 1 << len | bits.pull(len)?;
    Some((value - 1) * 2 + bits.pull(1)?)
}

/// Reads `left` exceptions among `n` units, which must fill their bytes: position and field of
/// each, in order. Ends after the first error.
pub(crate) struct Reader<'a> {
    head: &'a Head,
    bits: BitReader<'a>,
    rice: u32,
    left: Option<usize>,
    /// The lowest position that the next one can have.
    next: usize,
    n: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(
        head: &'a Head,
        bytes: &'a [u8],
        rice: u32,
        count: usize,
        n: usize,
    ) -> Reader<'a> {
        Reader { head, bits: BitReader::new(bytes), rice, left: Some(count), next: 0, n }
    }

    fn read(&mut self) -> Result<(usize, u16)> {
        let wrong = |what: &str| Error::new(Rule::AnsException).found(what);
        let short = || wrong("fewer than the block counts");
        let Reader { head, bits, rice, .. } = self;
        let quotient = bits.pull_ones((self.n >> *rice) as u32).ok_or_else(short)?;
        let gap = (quotient << *rice | bits.pull(*rice).ok_or_else(short)?) as usize;
        let position = self.next + gap;
        if position >= self.n {
            return Err(wrong("a position beyond the last group"));
        }
        self.next = position + 1;
        let n_symbols = 1u32 << head.symbol_bits;
        let base = u32::from(head.base);
        let field = if bits.pull(1).ok_or_else(short)? == 0 {
            let distance = read_distance(bits).ok_or_else(short)?;
            base.checked_sub(1 + distance)
        } else if bits.pull(1).ok_or_else(short)? == 0 {
            Some(base + n_symbols + read_distance(bits).ok_or_else(short)?)
        } else {
            Some(base + bits.pull(head.symbol_bits).ok_or_else(short)?)
        };
        match field.filter(|f| f >> head.layout.field_bits == 0) {
            Some(field) => Ok((position, field as u16)),
            None => Err(wrong("a field outside the dtype")),
        }
    }
}

impl Iterator for Reader<'_> {
    type Item = Result<(usize, u16)>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.left.take()? {
            0 => self.bits.finish(1, Rule::AnsException).err().map(Err),
            left => {
                let read = self.read();
                self.left = read.is_ok().then_some(left - 1);
                Some(read)
            }
        }
    }
}
