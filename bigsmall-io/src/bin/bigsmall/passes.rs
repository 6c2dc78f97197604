//! What all measurements share.

use bigsmall_format::{BlockDecoder, EncodedTensor};
use bigsmall_io::{Error, ErrorKind, Progress, Result};

/// Passes; the median counts.
pub(crate) const PASSES: usize = 9;

/// A tensor, encoded once more for each repetition.
pub(crate) struct Copy<'a> {
    pub(crate) original: &'a [u8],
    pub(crate) encoded: EncodedTensor,
    pub(crate) decoder: Box<dyn BlockDecoder>,
}

/// The median rate of passes over `bytes` bytes.
pub(crate) fn rate(bytes: u64, seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    bytes as f64 / 1e9 / seconds[seconds.len() / 2].max(1e-9)
}

pub(crate) fn stop(progress: &Progress) -> Result<()> {
    if progress.is_cancelled() { Err(Error::new(ErrorKind::Cancelled)) } else { Ok(()) }
}
