//! Decodes chunks.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bigsmall_format::internal::{decode_here, read_at};
use bigsmall_format::{BlockDecoder, ReadAt, Rule, Shard};

use crate::encoding;
use crate::error::{Error, ErrorKind, Result};
use crate::stage::chunk::{Chunk, Part};
use crate::stage::pool::{Buffer, set_len};
use crate::stage::promise::Promise;

/// The decoder of a tensor, opened by the first thread that needs it. `None` when that failed.
pub(crate) type Decoder = OnceLock<Option<Box<dyn BlockDecoder>>>;

/// One chunk on its way.
pub(crate) struct Job<'p> {
    pub(crate) chunk: Chunk,
    /// For a chunk of a large tensor: the decoder that its chunks share.
    pub(crate) large: Option<Arc<Decoder>>,
    /// The result of a decoding thread.
    pub(crate) decoded: Promise<Buffer<'p>>,
}

/// How many decoders of shared payloads a thread keeps.
const KEPT: usize = 8;

/// What a thread keeps from one chunk to the next.
#[derive(Default)]
pub(crate) struct Scratch {
    encoded: Vec<u8>,
    /// The decoders of payloads that small tensors shared last, with the tensor that has the
    /// payload. A small file may share a head that takes long to open with a million tensors.
    shared: VecDeque<(usize, Arc<dyn BlockDecoder>)>,
}

impl Scratch {
    fn decoder<R: ReadAt>(
        &mut self,
        shard: &Shard<R>,
        index: usize,
    ) -> Result<Arc<dyn BlockDecoder>> {
        let Some(owner) = shard.entry(index)?.shares() else {
            return Ok(decoder(shard, index)?.into());
        };
        if let Some((_, found)) = self.shared.iter().find(|(of, _)| *of == owner) {
            return Ok(Arc::clone(found));
        }
        let opened: Arc<dyn BlockDecoder> = decoder(shard, index)?.into();
        self.shared.truncate(KEPT - 1);
        self.shared.push_front((owner, Arc::clone(&opened)));
        Ok(opened)
    }
}

pub(crate) fn decode<R: ReadAt>(
    shard: &Shard<R>,
    job: &Job<'_>,
    room: &mut [u8],
    scratch: &mut Scratch,
) -> Result<()> {
    for part in &job.chunk.parts {
        let spec = &shard.tensors()[part.tensor];
        let dst = &mut room[part.within.clone()];
        let named = |e: Error| e.in_tensor(spec.name());
        match &job.large {
            None => {
                let decoder = scratch.decoder(shard, part.tensor).map_err(named)?;
                let encoded = &mut scratch.encoded;
                decode_part(shard, part, &*decoder, dst, encoded).map_err(named)?;
            }
            Some(shared) => {
                let mut failure = None;
                let found = shared.get_or_init(|| {
                    decoder(shard, part.tensor).map_err(|e| failure = Some(e)).ok()
                });
                let Some(found) = found else {
                    // The thread that tried to open it has the error.
                    return Err(named(failure.unwrap_or_else(|| Error::new(ErrorKind::Cancelled))));
                };
                decode_part(shard, part, &**found, dst, &mut scratch.encoded).map_err(named)?;
            }
        }
    }
    Ok(())
}

/// Opens the decoder of tensor `index`.
pub(crate) fn decoder<R: ReadAt>(shard: &Shard<R>, index: usize) -> Result<Box<dyn BlockDecoder>> {
    Ok(shard.decoder(index, encoding(shard.encoding(index)?)?)?)
}

/// Decodes one tensor's part of a chunk: one read into a reused buffer, then checksums, then
/// blocks.
fn decode_part<R: ReadAt>(
    shard: &Shard<R>,
    part: &Part,
    decoder: &dyn BlockDecoder,
    dst: &mut [u8],
    scratch: &mut Vec<u8>,
) -> Result<()> {
    let spec = &shard.tensors()[part.tensor];
    let table = shard.table(part.tensor)?;
    let blocks = table.blocks_range(part.blocks.clone());
    let payload = shard.payload_range(part.tensor)?.start;
    set_len(scratch, (blocks.end - blocks.start) as usize)?;
    read_at(shard.source(), payload + blocks.start, scratch)?;
    let window = Window { at: blocks.start, bytes: scratch };
    let decoded = decode_here(decoder, spec, table, &window, part.bytes.clone(), dst);
    Ok(decoded.map_err(|e| e.in_part_at(payload))?)
}

/// A piece of a payload in memory.
pub(crate) struct Window<'a> {
    /// Its offset in the payload.
    pub(crate) at: u64,
    pub(crate) bytes: &'a [u8],
}

impl ReadAt for Window<'_> {
    fn byte_len(&self) -> std::io::Result<u64> {
        Ok(self.at + self.bytes.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let offset =
            offset.checked_sub(self.at).ok_or_else(|| Error::new(Rule::RangeOutOfBounds))?;
        self.bytes.read_exact_at(offset, buf)
    }

    fn bytes_at(&self, range: std::ops::Range<u64>) -> Option<&[u8]> {
        self.bytes.bytes_at(range.start.checked_sub(self.at)?..range.end.checked_sub(self.at)?)
    }
}
