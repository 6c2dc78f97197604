//! Bytes that begin a cache line.

use bigsmall_format::Result;
use bigsmall_format::internal::zeroed;

/// Bytes whose first one begins a cache line, so that as few vectors as possible lie in two lines.
#[derive(Clone)]
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    begin: usize,
}

impl Aligned {
    const LINE: usize = 64;

    pub(crate) fn zeroed(len: usize) -> Result<Self> {
        let bytes = zeroed(len as u64 + Self::LINE as u64)?;
        let begin = bytes.as_ptr().align_offset(Self::LINE).min(Self::LINE);
        Ok(Aligned { bytes, begin })
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.begin..][..self.bytes.len() - Self::LINE]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.bytes.len() - Self::LINE;
        &mut self.bytes[self.begin..][..len]
    }
}
