//! An encoded tensor as a source of its original bytes.

use std::io;

use crate::{
    BlockDecoder, EncodedRef, Error, ReadAt, Result, Rule, TensorEncoding, TensorSpec, decode_here,
};

/// The original bytes of an encoded tensor, decoded when they are read. Every block is checked
/// before it is decoded.
///
/// With it a tensor gets another encoding without being decoded as a whole. The bytes are those
/// that encoding the original gives:
///
/// ```
/// use bigsmall_format::{Decoded, Dtype, Raw, TensorSpec, encode_tensor};
///
/// let spec = TensorSpec::new("w", Dtype::BF16, &[3])?;
/// let (from, to) = (Raw, Raw); // or any other encodings
/// let tensor = encode_tensor(&from, &spec, &vec![1, 2, 3, 4, 5, 6])?;
/// assert_eq!(encode_tensor(&to, &spec, &Decoded::new(&tensor, &from)?)?, tensor);
/// # Ok::<(), bigsmall_format::Error>(())
/// ```
///
/// Memory: while a read runs, at most two decoded blocks, and only if it begins or ends within a
/// block. [`encode_tensor`](crate::encode_tensor) reads 8 blocks at a time on each thread.
pub struct Decoded<'a> {
    tensor: EncodedRef<'a>,
    decoder: Box<dyn BlockDecoder>,
}

impl<'a> Decoded<'a> {
    /// `tensor`, which has the encoding `encoding`: an [`EncodedTensor`](crate::EncodedTensor) or
    /// an [`EncodedView`](crate::EncodedView) by reference. Reads the head.
    ///
    /// # Errors
    /// [`Rule::SpecMismatch`] for another encoding; [`Rule::HeadChecksum`] and those of
    /// [`TensorEncoding::open`] for a damaged head. Reading a damaged block is an error that names
    /// the tensor and where the block begins in the payload.
    pub fn new(
        tensor: impl Into<EncodedRef<'a>>,
        encoding: &dyn TensorEncoding,
    ) -> Result<Decoded<'a>> {
        let tensor = tensor.into();
        Ok(Decoded { tensor, decoder: tensor.open(encoding)? })
    }

    /// Name, dtype and shape.
    #[must_use]
    pub fn spec(&self) -> &'a TensorSpec {
        self.tensor.spec()
    }
}

impl ReadAt for Decoded<'_> {
    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.spec().byte_len())
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let (spec, table) = (self.spec(), self.tensor.table());
        let range = match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= spec.byte_len() => offset..end,
            _ => {
                let error = Error::new(Rule::RangeOutOfBounds)
                    .in_tensor(spec.name())
                    .expected(format!("bytes within 0..{}", spec.byte_len()))
                    .found(format!("{} bytes from {offset}", buf.len()));
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, error));
            }
        };
        // On this thread: one of a pool that waits here would begin other work meanwhile.
        Ok(decode_here(&*self.decoder, spec, table, &self.tensor.payload(), None, range, buf)?)
    }
}

impl std::fmt::Debug for Decoded<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoded").field("tensor", &self.tensor).finish_non_exhaustive()
    }
}
