//! A chunk on its way from the source into the shard.

use std::ops::Range;
use std::sync::Arc;

use bigsmall_format::MAX_BLOCK_UNITS;

use crate::compress::plan::{Large, Plan};
use crate::error::{Error, ErrorKind, Result};
use crate::stage::chunk::{Chunk, Part};
use crate::stage::pool::Buffer;
use crate::stage::promise::{Answer, Promise};

/// One chunk on its way.
pub(crate) struct Job<'p> {
    pub(crate) chunk: Chunk,
    pub(crate) bytes: Buffer<'p>,
    /// For a chunk of a large tensor.
    pub(crate) large: Option<Arc<Large>>,
    /// The result of a coding thread.
    pub(crate) encoded: Promise<Encoded<'p>>,
    /// The MD5s of the tensors that end in this chunk: the result of the MD5 stage, if any.
    pub(crate) md5s: Promise<Vec<[u8; 16]>>,
}

impl Job<'_> {
    pub(crate) fn part_bytes(&self, part: &Part) -> &[u8] {
        &self.bytes[part.within.clone()]
    }
}

pub(crate) struct Encoded<'p> {
    pub(crate) bytes: Buffer<'p>,
    pub(crate) lens: Vec<u32>,
    pub(crate) parts: Vec<EncodedPart>,
    /// The base's bytes, each part's at the place that it has in the chunk. Empty without bases.
    pub(crate) base: Buffer<'p>,
    /// Checksums of the base's blocks.
    pub(crate) hashes: Vec<u64>,
}

impl Encoded<'_> {
    /// Makes room for `original`, encoded or raw; an error if there is no memory.
    pub(crate) fn reserve_for(&mut self, original: &[u8]) -> Result<()> {
        // For each block at most its values and a header. Blocks have a quarter of the most units
        // at least, where there are several.
        let most = original.len() + 16 * (original.len() / (MAX_BLOCK_UNITS / 4) + 1);
        let room = self.bytes.try_reserve(most);
        room.map_err(|_| {
            Error::new(ErrorKind::Memory).expected(format!("{most} bytes for a buffer"))
        })
    }
}

pub(crate) struct EncodedPart {
    /// `None` if the tensor shares another one's payload, is known to be stored raw, or is that of
    /// its base.
    pub(crate) plan: Option<Arc<Plan>>,
    /// Whether a small tensor is that of its base.
    pub(crate) inherited: bool,
    pub(crate) bytes: Range<usize>,
    pub(crate) lens: Range<usize>,
    pub(crate) hashes: Range<usize>,
    /// The SHA-256 of the part's original bytes, if another tensor has the same.
    pub(crate) digest: Option<[u8; 32]>,
}

/// Work for the coding threads.
pub(crate) enum Task<'p> {
    /// Plan the large tensor with that index. Sent one tensor ahead, so that no thread waits for a
    /// plan.
    Plan(usize, Arc<Large>),
    Encode(Arc<Job<'p>>, Answer<Encoded<'p>>),
    Check(Arc<Job<'p>>, Vec<Written>),
}

/// Where a part's blocks were written.
pub(crate) struct Written {
    pub(crate) part: usize,
    pub(crate) plan: Arc<Plan>,
    /// Where its blocks begin.
    pub(crate) at: u64,
    /// Whether the tensor's head ends there.
    pub(crate) head: bool,
    pub(crate) lens: Vec<u32>,
}
