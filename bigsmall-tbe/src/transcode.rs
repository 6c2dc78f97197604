//! From one encoding to another without the original.

use bigsmall_format::internal::{decode_here, for_each_in_parallel, pool_size, reserve, set_len};
use bigsmall_format::{BlockDecoder, EncodedTensor, ReadAt, Result, TensorEncoding};

/// Encodes a tensor again: `tensor`, which is in the encoding `from`, becomes one in the encoding
/// `to`, on the threads of the caller's rayon pool. Every block is checked before it is decoded.
/// The bytes are those that encoding the original would give.
///
/// Memory beside the result: for each thread 16 blocks, encoded, and one decoded.
///
/// # Errors
/// Those of decoding `tensor`; [`Rule::EncodingRefuses`](crate::Rule::EncodingRefuses) when `to`
/// does not take the dtype.
///
/// ```
/// use bigsmall_tbe::{Dtype, Raw, Tbe, TensorSpec, Width, encode_tensor, transcode};
///
/// let weights: Vec<u8> = (0..4096u16).flat_map(|i| (0x3c00 + i % 512).to_le_bytes()).collect();
/// let spec = TensorSpec::new("w", Dtype::BF16, &[64, 64])?;
/// let raw = encode_tensor(&Raw, &spec, &weights)?;
/// let tbe = Tbe::new(Width::Four);
/// assert_eq!(transcode(&raw, &Raw, &tbe)?, encode_tensor(&tbe, &spec, &weights)?);
/// # Ok::<(), bigsmall_tbe::Error>(())
/// ```
pub fn transcode(
    tensor: &EncodedTensor,
    from: &dyn TensorEncoding,
    to: &dyn TensorEncoding,
) -> Result<EncodedTensor> {
    let spec = tensor.spec();
    let source = Decoded { tensor, decoder: tensor.open(from)? };
    let encoder = to.plan(spec, &source)?;
    let head_len = encoder.head().len();
    let mut payload = Vec::new();
    reserve(&mut payload, spec.byte_len() as usize / 4 * 3 + head_len + 8)?;
    payload.extend_from_slice(encoder.head());
    payload.resize(head_len.next_multiple_of(8), 0);
    let mut lens = Vec::with_capacity(spec.n_blocks() as usize);

    let mut slots = vec![(Vec::new(), Vec::new()); 16 * pool_size()];
    let mut next = 0;
    while next < spec.n_blocks() {
        let n = (spec.n_blocks() - next).min(slots.len() as u64) as usize;
        for_each_in_parallel(
            slots[..n].iter_mut().enumerate(),
            Vec::new,
            |values, (slot, (bytes, lens))| {
                let index = next + slot as u64;
                set_len(values, spec.block_byte_len(index))?;
                source.read_exact_at(index * spec.block_bytes() as u64, values)?;
                bytes.clear();
                lens.clear();
                encoder.encode_blocks(values, bytes, lens)
            },
        )?;
        for (bytes, block_lens) in &slots[..n] {
            reserve(&mut payload, bytes.len())?;
            payload.extend_from_slice(bytes);
            lens.extend_from_slice(block_lens);
        }
        next += n as u64;
    }
    payload.shrink_to_fit();
    EncodedTensor::new(spec.clone(), to.id(), head_len as u32, lens, payload)
}

/// The original bytes of a tensor, decoded where they are read.
struct Decoded<'a> {
    tensor: &'a EncodedTensor,
    decoder: Box<dyn BlockDecoder>,
}

impl ReadAt for Decoded<'_> {
    fn byte_len(&self) -> std::io::Result<u64> {
        Ok(self.tensor.spec().byte_len())
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        // An end that overflows is a range that the tensor does not have.
        let range = offset..offset.saturating_add(buf.len() as u64);
        let (spec, table) = (self.tensor.spec(), self.tensor.table());
        decode_here(&*self.decoder, spec, table, &self.tensor.payload(), range, buf)?;
        Ok(())
    }
}
