//! The raw encoding: the values, unchanged.

use crate::wire::{pad8, reserve};
use crate::{
    BlockDecoder, BlockEncoder, Dtype, EncodingId, Error, ReadAt, Result, Rule, TensorEncoding,
    TensorSpec,
};

/// The values, unchanged, in blocks (FORMAT.md section 6). For tensors that no other encoding
/// makes smaller.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw;

struct RawBlocks {
    block_bytes: usize,
}

impl TensorEncoding for Raw {
    fn id(&self) -> EncodingId {
        EncodingId::Raw
    }

    fn supports(&self, _: Dtype) -> bool {
        true
    }

    fn plan(&self, spec: &TensorSpec, _: &dyn ReadAt) -> Result<Box<dyn BlockEncoder>> {
        Ok(Box::new(RawBlocks { block_bytes: spec.block_bytes() }))
    }

    fn open(&self, spec: &TensorSpec, head: &[u8]) -> Result<Box<dyn BlockDecoder>> {
        if !head.is_empty() {
            return Err(Error::new(Rule::PayloadLength)
                .in_tensor(spec.name())
                .expected("no head")
                .found(format!("{} bytes", head.len())));
        }
        Ok(Box::new(RawBlocks { block_bytes: spec.block_bytes() }))
    }
}

impl BlockEncoder for RawBlocks {
    fn head(&self) -> &[u8] {
        &[]
    }

    fn encode_blocks(
        &self,
        _: u64,
        units: &[u8],
        out: &mut Vec<u8>,
        lens: &mut Vec<u32>,
    ) -> Result<()> {
        // Only the last block can have a length that is not a multiple of 8.
        reserve(out, units.len() + 8)?;
        for block in units.chunks(self.block_bytes) {
            out.extend_from_slice(block);
            pad8(out);
            lens.push(block.len() as u32);
        }
        Ok(())
    }
}

impl BlockDecoder for RawBlocks {
    fn decode_blocks(&self, blocks: &[&[u8]], dst: &mut [u8]) -> Result<()> {
        let mut pieces = dst.chunks_mut(self.block_bytes);
        for block in blocks {
            match pieces.next() {
                Some(piece) if piece.len() == block.len() => piece.copy_from_slice(block),
                piece => {
                    return Err(Error::new(Rule::BlockLength)
                        .expected(piece.map_or(0, |p| p.len()))
                        .found(block.len()));
                }
            }
        }
        Ok(())
    }
}
