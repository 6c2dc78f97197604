//! Decodes chunks.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bigsmall_format::{ReadAt, Shard};

use crate::base::tensor::{Bases, Opened, Scratch};
use crate::error::{Error, ErrorKind, Result};
use crate::stage::chunk::Chunk;
use crate::stage::pool::Buffer;
use crate::stage::promise::Promise;

/// A tensor, opened by the first thread that needs it. `None` when that failed.
pub(crate) type Shared = OnceLock<Option<Opened>>;

/// One chunk on its way.
pub(crate) struct Job<'p> {
    pub(crate) chunk: Chunk,
    /// For a chunk of a large tensor: the tensor that its chunks share.
    pub(crate) large: Option<Arc<Shared>>,
    /// The result of a decoding thread.
    pub(crate) decoded: Promise<Buffer<'p>>,
}

/// How many tensors with shared payloads a thread keeps open.
const KEPT: usize = 8;

/// What a thread keeps from one chunk to the next.
#[derive(Default)]
pub(crate) struct Kept {
    scratch: Scratch,
    /// The payloads that small tensors shared last, with the tensor that has the payload. A small
    /// file may share a head that takes long to open with a million tensors.
    shared: VecDeque<(usize, Arc<Opened>)>,
}

impl Kept {
    fn open<R: ReadAt>(
        &mut self,
        shard: &Shard<R>,
        bases: &Bases,
        index: usize,
    ) -> Result<Arc<Opened>> {
        let Some(owner) = shard.entry(index)?.shares() else {
            return Ok(Arc::new(Opened::new(shard, bases, index)?));
        };
        if let Some((_, found)) = self.shared.iter().find(|(of, _)| *of == owner) {
            return Ok(Arc::clone(found));
        }
        let opened = Arc::new(Opened::new(shard, bases, index)?);
        self.shared.truncate(KEPT - 1);
        self.shared.push_front((owner, Arc::clone(&opened)));
        Ok(opened)
    }
}

pub(crate) fn decode<R: ReadAt>(
    shard: &Shard<R>,
    bases: &Bases,
    job: &Job<'_>,
    room: &mut [u8],
    kept: &mut Kept,
) -> Result<()> {
    for part in &job.chunk.parts {
        let (index, range) = (part.tensor, part.bytes.clone());
        let dst = &mut room[part.within.clone()];
        let named = |e: Error| e.in_tensor(shard.tensors()[index].name());
        match &job.large {
            None => {
                let opened = kept.open(shard, bases, index).map_err(named)?;
                let scratch = &mut kept.scratch;
                opened.decode_part(shard, index, range, dst, scratch).map_err(named)?;
            }
            Some(shared) => {
                let mut failure = None;
                let found = shared.get_or_init(|| {
                    Opened::new(shard, bases, index).map_err(|e| failure = Some(e)).ok()
                });
                let Some(found) = found else {
                    // The thread that tried to open it has the error.
                    return Err(named(failure.unwrap_or_else(|| Error::new(ErrorKind::Cancelled))));
                };
                let scratch = &mut kept.scratch;
                found.decode_part(shard, index, range, dst, scratch).map_err(named)?;
            }
        }
    }
    Ok(())
}
