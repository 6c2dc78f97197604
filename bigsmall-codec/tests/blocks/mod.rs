//! Blocks that no tensor has.

use bigsmall_codec::{Ans, TensorEncoding, TensorSpec};

/// Encodes `units` by blocks of `spec.block_bytes()`, however many there are and however short the
/// last one is: those of a small tensor would be equal. The plan is made for the first units.
/// Returns the head and the blocks.
pub(crate) fn encode_blocks(ans: &Ans, spec: &TensorSpec, units: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let encoder = ans.plan(spec, &&units[..spec.byte_len() as usize]).unwrap();
    let (mut out, mut lens) = (Vec::new(), Vec::new());
    encoder.encode_blocks(0, units, &mut out, &mut lens).unwrap();
    let mut rest = &out[..];
    let mut next = |len: &u32| {
        let (block, after) = rest.split_at((*len as usize).next_multiple_of(8));
        rest = after;
        block[..*len as usize].to_vec()
    };
    let blocks = lens.iter().map(&mut next).collect();
    (encoder.head().to_vec(), blocks)
}
