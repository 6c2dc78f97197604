//! A shard, read as if it were the restored safetensors file.

use std::sync::{Arc, Mutex};

use bigsmall_format::internal::Section;
use bigsmall_format::{BlockDecoder, ReadAt, Shard};

use crate::error::Result;
use crate::restore::decode::decoder;
use crate::stage::lock::lock;

/// The safetensors file of a shard. Reading decodes only the requested bytes.
pub(crate) struct Original<'a, R> {
    shard: &'a Shard<R>,
    prefix: Vec<u8>,
    /// The decoder of the tensor that was read last. The next read is usually of the same tensor.
    last: Mutex<Option<(usize, Arc<dyn BlockDecoder>)>>,
}

impl<'a, R: ReadAt> Original<'a, R> {
    pub(crate) fn new(shard: &'a Shard<R>) -> Self {
        let json = shard.header_json();
        let prefix = [&(json.len() as u64).to_le_bytes()[..], json].concat();
        Original { shard, prefix, last: Mutex::new(None) }
    }

    fn decoder(&self, index: usize) -> Result<Arc<dyn BlockDecoder>> {
        if let Some((at, found)) = &*lock(&self.last)
            && *at == index
        {
            return Ok(Arc::clone(found));
        }
        let found: Arc<dyn BlockDecoder> = decoder(self.shard, index)?.into();
        *lock(&self.last) = Some((index, Arc::clone(&found)));
        Ok(found)
    }
}

impl<R: ReadAt> ReadAt for Original<'_, R> {
    fn byte_len(&self) -> std::io::Result<u64> {
        Ok(self.shard.original_len())
    }

    fn read_exact_at(&self, offset: u64, mut buf: &mut [u8]) -> std::io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.shard.original_len()) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let prefix_len = self.prefix.len() as u64;
        let mut at = offset;
        if at < prefix_len {
            let n = buf.len().min((prefix_len - at) as usize);
            let (start, rest) = buf.split_at_mut(n);
            start.copy_from_slice(&self.prefix[at as usize..at as usize + n]);
            buf = rest;
            at += n as u64;
        }
        // `at` is still before the data only if the buffer is full.
        let mut data = at.saturating_sub(prefix_len);
        let header = self.shard.header();
        let mut index = header.index_at(data).unwrap_or(header.tensors().len());
        while !buf.is_empty() {
            let range = header.data_range(index);
            let n = buf.len().min((range.end - data) as usize);
            let (piece, rest) = buf.split_at_mut(n);
            let from = data - range.start;
            let decoder = self.decoder(index)?;
            let payload = Section::new(self.shard.source(), self.shard.payload_range(index)?)?;
            let wanted = from..from + n as u64;
            self.shard.decode_from(index, &*decoder, &payload, wanted, piece)?;
            buf = rest;
            data += n as u64;
            index += 1;
        }
        Ok(())
    }
}
