//! Little-endian fields: a cursor that never panics, and its counterpart for writing.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::{Error, Result, Rule};

/// Rounds up to the alignment of everything in a shard, 8 bytes.
pub(crate) const fn align8(n: u64) -> u64 {
    n.saturating_add(7) & !7
}

/// Reads fields from the front of a slice; running out is `rule`.
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
    rule: Rule,
    consumed: u64,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8], rule: Rule) -> Self {
        Cursor { rest: bytes, rule, consumed: 0 }
    }

    /// Bytes consumed so far.
    pub(crate) fn position(&self) -> u64 {
        self.consumed
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let Some((head, rest)) = self.rest.split_at_checked(n) else {
            return Err(Error::new(self.rule)
                .at(self.consumed)
                .expected(format!("{n} more bytes"))
                .found(self.rest.len()));
        };
        self.rest = rest;
        self.consumed = self.consumed.saturating_add(n as u64);
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[b]| b)
    }

    #[cfg(feature = "shard")]
    pub(crate) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.array()
    }

    /// Skips to the next multiple of 8 and insists on zeros.
    pub(crate) fn align8(&mut self) -> Result<()> {
        let at = self.consumed;
        let gap = align8(at).saturating_sub(at) as usize;
        if self.take(gap)?.iter().any(|&b| b != 0) {
            return Err(Error::new(Rule::PaddingNotZero).at(at));
        }
        Ok(())
    }
}

/// `n` little-endian u32 at the front of `bytes`.
pub(crate) fn u32s(bytes: &[u8]) -> impl ExactSizeIterator<Item = u32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b))
}

/// Little-endian u64s of `bytes`.
pub(crate) fn u64s(bytes: &[u8]) -> impl ExactSizeIterator<Item = u64> + '_ {
    bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b))
}

/// Room for `n` values; an error where there is no memory for them.
pub(crate) fn room_for<T>(n: usize) -> Result<Vec<T>> {
    let mut out = Vec::new();
    out.try_reserve_exact(n)
        .map_err(|_| Error::new(Rule::Memory).expected(format!("room for {n} entries")))?;
    Ok(out)
}

/// Gives `values` the length `n`; the contents of what is new are unspecified. Takes no more memory
/// than that: who appends piece after piece calls [`reserve`] before. An error if there is none.
pub fn set_len<T: Clone + Default>(values: &mut Vec<T>, n: usize) -> Result<()> {
    let more = n.saturating_sub(values.len());
    values.try_reserve_exact(more).map_err(|_| no_room::<T>(more))?;
    values.resize(n, T::default());
    Ok(())
}

/// Reserves memory for `more` values, or for more than that if they are not the first; an error if
/// there is none.
pub fn reserve<T>(values: &mut Vec<T>, more: usize) -> Result<()> {
    values.try_reserve(more).map_err(|_| no_room::<T>(more))
}

fn no_room<T>(more: usize) -> Error {
    Error::memory(more.saturating_mul(size_of::<T>()))
}

/// Pads `out` with zeros to a multiple of 8.
pub(crate) fn pad8(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(8), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_that_cannot_be_had_is_an_error() {
        assert!(room_for::<u64>(3).unwrap().capacity() >= 3);
        assert_eq!(room_for::<u64>(usize::MAX / 8).unwrap_err().rule(), Rule::Memory);
        let mut bytes = vec![1];
        reserve(&mut bytes, 100).unwrap();
        assert!(bytes.capacity() > 100);
        assert_eq!(reserve(&mut bytes, isize::MAX as usize).unwrap_err().rule(), Rule::Memory);
        // A buffer that grows a little does not double.
        let n = bytes.capacity() + 1;
        set_len(&mut bytes, n).unwrap();
        assert!(bytes.capacity() < n + 16);
        assert_eq!(set_len(&mut bytes, isize::MAX as usize + 1).unwrap_err().rule(), Rule::Memory);
    }
}
