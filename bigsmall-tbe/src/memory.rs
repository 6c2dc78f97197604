//! Allocation whose failure is an error.

use bigsmall_format::{Error, Result};

/// Makes room for `more` bytes; an error if there is no memory for them.
pub(crate) fn reserve(bytes: &mut Vec<u8>, more: usize) -> Result<()> {
    bytes.try_reserve(more).map_err(|_| Error::memory(more))
}

/// Makes `bytes` hold `n` bytes of unspecified values; an error if there is no memory for them.
pub(crate) fn set_len(bytes: &mut Vec<u8>, n: usize) -> Result<()> {
    reserve(bytes, n.saturating_sub(bytes.len()))?;
    bytes.resize(n, 0);
    Ok(())
}
