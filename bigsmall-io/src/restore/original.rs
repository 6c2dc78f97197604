//! A shard, read as if it were the restored safetensors file.

use std::sync::{Arc, Mutex};

use bigsmall_format::{ReadAt, Shard};

use crate::base::tensor::{Bases, Opened, Scratch};
use crate::error::{Error, Result};
use crate::stage::lock::lock;

/// The safetensors file of a shard. Reading decodes only the requested bytes.
pub(crate) struct Original<'a, R> {
    shard: &'a Shard<R>,
    bases: &'a Bases,
    /// The length of the header, as the file begins.
    header_len: [u8; 8],
    /// The tensor that was read last. The next read is usually of the same tensor.
    last: Mutex<Option<(usize, Arc<Opened>)>>,
}

impl<'a, R: ReadAt> Original<'a, R> {
    pub(crate) fn new(shard: &'a Shard<R>, bases: &'a Bases) -> Self {
        let header_len = (shard.header_json().len() as u64).to_le_bytes();
        Original { shard, bases, header_len, last: Mutex::new(None) }
    }

    fn opened(&self, index: usize) -> Result<Arc<Opened>> {
        if let Some((at, found)) = &*lock(&self.last)
            && *at == index
        {
            return Ok(Arc::clone(found));
        }
        let found = Arc::new(Opened::new(self.shard, self.bases, index)?);
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
        let mut at = offset;
        let mut begin = 0;
        for part in [&self.header_len[..], self.shard.header_json()] {
            if let Some(rest) = usize::try_from(at - begin).ok().and_then(|i| part.get(i..)) {
                let (start, after) = buf.split_at_mut(buf.len().min(rest.len()));
                start.copy_from_slice(&rest[..start.len()]);
                at += start.len() as u64;
                buf = after;
            }
            begin += part.len() as u64;
            if at < begin {
                return Ok(());
            }
        }
        let mut data = at - begin;
        let header = self.shard.header();
        let mut index = header.index_at(data).unwrap_or(header.tensors().len());
        while !buf.is_empty() {
            let range = header.data_range(index);
            let n = buf.len().min((range.end - data) as usize);
            let (piece, rest) = buf.split_at_mut(n);
            let from = data - range.start;
            let wanted = from..from + n as u64;
            let named = |e: Error| e.in_tensor(header.tensors()[index].name());
            let opened = self.opened(index).map_err(named)?;
            let scratch = &mut Scratch::default();
            opened.decode_part(self.shard, index, wanted, piece, scratch).map_err(named)?;
            buf = rest;
            data += n as u64;
            index += 1;
        }
        Ok(())
    }
}
