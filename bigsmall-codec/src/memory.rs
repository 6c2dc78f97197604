//! Allocation whose failure is an error.

use bigsmall_format::{Error, Result};

/// Makes room for `more` values; an error if there is no memory for them.
pub(crate) fn reserve<T>(values: &mut Vec<T>, more: usize) -> Result<()> {
    values.try_reserve(more).map_err(|_| Error::memory(more * size_of::<T>()))
}

/// Makes `values` hold `n` elements of unspecified values; an error if there is no memory for them.
pub(crate) fn set_len<T: Clone + Default>(values: &mut Vec<T>, n: usize) -> Result<()> {
    reserve(values, n.saturating_sub(values.len()))?;
    values.resize(n, T::default());
    Ok(())
}
