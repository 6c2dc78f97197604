//! Reads back the written bytes and compares them with the original.

use bigsmall_format::internal::set_len;
use bigsmall_format::{EncodingId, TensorSpec};

use crate::compress::job::{Job, Written};
use crate::compress::plan::read_back;
use crate::error::Result;
use crate::stage::output::Output;

/// Buffers that a thread reuses.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) encoded: Vec<u8>,
    pub(crate) decoded: Vec<u8>,
}

/// Reads the written bytes, decodes them and compares them with the original.
pub(crate) fn check(
    output: &dyn Output,
    spec: &TensorSpec,
    job: &Job<'_>,
    written: &Written,
    scratch: &mut Scratch,
) -> Result<()> {
    let part = &job.chunk.parts[written.part];
    let original = job.part_bytes(part);
    let head = written.plan.encoder.head();
    let head_len = if written.head { written.plan.padded_head() } else { 0 };
    let blocks_len: usize = written.lens.iter().map(|&n| (n as usize).next_multiple_of(8)).sum();
    set_len(&mut scratch.encoded, head_len + blocks_len)?;
    let kept = output.read_back(written.at - head_len as u64, &mut scratch.encoded)?;
    let (found_head, blocks) = scratch.encoded.split_at(head_len);
    let mut rest = blocks;
    if kept {
        if head_len > 0 && found_head.get(..head.len()) != Some(head) {
            return Err(read_back(spec).at(written.at - head_len as u64));
        }
    } else {
        // A dry run: check the encoded bytes in memory. Raw ones are the original itself.
        let encoded = job.encoded.get();
        let encoded = encoded.and_then(|e| Some((e, e.parts.get(written.part)?)));
        match encoded {
            Some((encoded, found)) if written.plan.id != EncodingId::Raw => {
                rest = &encoded.bytes[found.bytes.clone()];
            }
            _ => return Ok(()),
        }
    }
    let mut blocks = Vec::with_capacity(written.lens.len());
    for &len in &written.lens {
        let (block, after) = rest
            .split_at_checked((len as usize).next_multiple_of(8))
            .ok_or_else(|| read_back(spec))?;
        blocks.push(&block[..len as usize]);
        rest = after;
    }
    set_len(&mut scratch.decoded, original.len())?;
    if written.plan.base.is_some()
        && let Some(encoded) = job.encoded.get()
    {
        // Decoded in place.
        scratch.decoded.copy_from_slice(&encoded.base[part.within.clone()]);
    }
    written
        .plan
        .decoder
        .decode_blocks(&blocks, &mut scratch.decoded)
        .map_err(|e| read_back(spec).at(written.at).caused_by(e))?;
    if scratch.decoded != original {
        return Err(read_back(spec).at(written.at));
    }
    Ok(())
}
