//! Cuts the data section into chunks. A chunk is read, coded, hashed and written in one piece.

use std::ops::Range;

use bigsmall_format::internal::blocks_within;
use bigsmall_format::{MAX_BLOCK_UNITS, TensorSpec};

/// The most bytes of a chunk: a block of any dtype fits, and the chunk fits a level 2 cache.
pub(crate) const CHUNK: u64 = 1 << 20;
const _: () = assert!(CHUNK >= 8 * MAX_BLOCK_UNITS as u64);

/// The most tensors in one chunk. It limits the memory for the records of empty or tiny tensors.
const PARTS: usize = 1024;

/// A piece of the data section: either some blocks of one large tensor, or several whole small
/// ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// The bytes in the data section.
    pub(crate) data: Range<u64>,
    pub(crate) parts: Vec<Part>,
}

/// One tensor's part of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Index of the tensor in the order of the data.
    pub(crate) tensor: usize,
    pub(crate) blocks: Range<u64>,
    /// The bytes within the tensor.
    pub(crate) bytes: Range<u64>,
    /// The bytes within the chunk.
    pub(crate) within: Range<usize>,
}

impl Part {
    /// Whether this is the whole tensor.
    pub(crate) fn is_whole(&self, spec: &TensorSpec) -> bool {
        self.bytes == (0..spec.byte_len())
    }
}

/// The chunks of `tensors` in the order of the data, without gaps.
pub(crate) fn chunks(tensors: &[TensorSpec]) -> Chunks<'_> {
    Chunks { tensors, tensor: 0, at: 0, data: 0 }
}

pub(crate) struct Chunks<'a> {
    tensors: &'a [TensorSpec],
    tensor: usize,
    /// Bytes of `tensor` in earlier chunks.
    at: u64,
    /// Bytes of the data section in earlier chunks.
    data: u64,
}

impl Iterator for Chunks<'_> {
    type Item = Chunk;

    fn next(&mut self) -> Option<Chunk> {
        let first = self.tensors.get(self.tensor)?;
        let begin = self.data;
        if first.byte_len() > CHUNK {
            let block = first.block_bytes() as u64;
            let len = blocks_within(first, CHUNK) * block;
            let bytes = self.at..first.byte_len().min(self.at + len);
            let part = Part {
                tensor: self.tensor,
                blocks: bytes.start / block..bytes.end.div_ceil(block),
                within: 0..(bytes.end - bytes.start) as usize,
                bytes: bytes.clone(),
            };
            self.at = bytes.end;
            if self.at == first.byte_len() {
                self.tensor += 1;
                self.at = 0;
            }
            self.data += bytes.end - bytes.start;
            return Some(Chunk { data: begin..self.data, parts: vec![part] });
        }
        let mut parts = Vec::new();
        let mut len = 0;
        while let Some(spec) = self.tensors.get(self.tensor) {
            let end = len + spec.byte_len();
            if end > CHUNK || parts.len() == PARTS {
                break;
            }
            parts.push(Part {
                tensor: self.tensor,
                blocks: 0..spec.n_blocks(),
                bytes: 0..spec.byte_len(),
                within: len as usize..end as usize,
            });
            len = end;
            self.tensor += 1;
        }
        self.data += len;
        Some(Chunk { data: begin..self.data, parts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bigsmall_format::Dtype;

    #[test]
    fn chunks_cover_every_byte_once_in_order() {
        let lens = [3, 0, 1 << 20, (1 << 20) + 1, 5 << 20, 0, 7, 900_000, 200_000, 0];
        let specs: Vec<TensorSpec> = (0..2000)
            .map(|i| lens.get(i % 100).copied().unwrap_or(0))
            .map(|len| TensorSpec::new("t", Dtype::U8, &[len]).unwrap())
            .collect();
        let mut seen = vec![0; specs.len()];
        let mut touched = vec![false; specs.len()];
        let mut position = 0;
        for chunk in chunks(&specs) {
            assert_eq!(chunk.data.start, position);
            position = chunk.data.end;
            assert!(chunk.data.end - chunk.data.start <= CHUNK && chunk.parts.len() <= PARTS);
            let mut within = 0;
            for part in &chunk.parts {
                let spec = &specs[part.tensor];
                assert_eq!(part.bytes.start, seen[part.tensor]);
                assert_eq!(part.within.start, within);
                assert_eq!(part.within.len() as u64, part.bytes.end - part.bytes.start);
                assert!(part.is_whole(spec) || chunk.parts.len() == 1);
                let covered = part.blocks.clone().map(|b| spec.block_byte_len(b) as u64);
                assert_eq!(covered.sum::<u64>(), part.bytes.end - part.bytes.start);
                within = part.within.end;
                seen[part.tensor] = part.bytes.end;
                touched[part.tensor] = true;
            }
            assert_eq!(within as u64, chunk.data.end - chunk.data.start);
        }
        assert_eq!(position, specs.iter().map(TensorSpec::byte_len).sum::<u64>());
        assert!(touched.iter().all(|&t| t));
        assert!(specs.iter().zip(&seen).all(|(s, &n)| s.byte_len() == n));
    }
}
