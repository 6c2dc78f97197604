//! The traits that every encoding implements.

use crate::{Ahead, Dtype, ReadAt, Result, TensorSpec};

/// The encoding of a payload (FORMAT.md section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EncodingId {
    /// The values, unchanged.
    Raw,
    /// ANS joint-entropy coding (`bigsmall-codec`).
    Ans,
    /// Triple bitmaps (`bigsmall-tbe`).
    Tbe,
    /// Differences from a base (`bigsmall-codec`).
    Delta,
}

impl EncodingId {
    /// The encoding's code in the index.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            EncodingId::Raw => 0,
            EncodingId::Ans => 1,
            EncodingId::Tbe => 2,
            EncodingId::Delta => 3,
        }
    }

    /// The encoding with that code; `None` for a code that a later version may define.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(EncodingId::Raw),
            1 => Some(EncodingId::Ans),
            2 => Some(EncodingId::Tbe),
            3 => Some(EncodingId::Delta),
            _ => None,
        }
    }

    /// The encoding's name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            EncodingId::Raw => "raw",
            EncodingId::Ans => "ans",
            EncodingId::Tbe => "tbe",
            EncodingId::Delta => "delta",
        }
    }

    /// Whether decoding needs the base that the tensor was encoded against.
    #[must_use]
    pub const fn needs_base(self) -> bool {
        matches!(self, EncodingId::Delta)
    }
}

impl std::fmt::Display for EncodingId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A way to store a tensor in fewer bytes. Implementations: [`Raw`](crate::Raw),
/// `bigsmall_codec::Ans`, `bigsmall_codec::Delta`, `bigsmall_tbe::Tbe`.
///
/// A tensor is cut into blocks (see [`TensorSpec::block_units`]), each encoded and decoded alone.
/// What the blocks share (tables, the window of exponents) is the *head*, decided once by
/// [`plan`](Self::plan). Planning and encoding by blocks is what keeps memory constant for a tensor
/// of any size.
pub trait TensorEncoding: Send + Sync {
    /// The code of this encoding in a shard's index.
    fn id(&self) -> EncodingId;

    /// Whether the encoding supports tensors of that dtype.
    fn supports(&self, dtype: Dtype) -> bool;

    /// Decides the head of the tensor `spec` with the original bytes `source` (little-endian).
    /// Reads all of the source or a sample. The same input gives the same plan on every machine and
    /// with any number of threads.
    ///
    /// # Errors
    /// Those of `source`; [`Rule::EncodingRefuses`](crate::Rule::EncodingRefuses) for a dtype that
    /// it does not take.
    fn plan(&self, spec: &TensorSpec, source: &dyn ReadAt) -> Result<Box<dyn BlockEncoder>>;

    /// [`plan`](Self::plan) for a tensor that is encoded against the base `base`, as long as
    /// `source` (see [`BaseTensor`](crate::BaseTensor)). An encoding without bases ignores it.
    ///
    /// # Errors
    /// Those of [`plan`](Self::plan) and of `base`.
    fn plan_with_base(
        &self,
        spec: &TensorSpec,
        source: &dyn ReadAt,
        base: &dyn ReadAt,
    ) -> Result<Box<dyn BlockEncoder>> {
        let _ = base;
        self.plan(spec, source)
    }

    /// Reads and validates a head.
    ///
    /// # Errors
    /// Of class [`Corrupt`](crate::Class::Corrupt), with the broken rule.
    fn open(&self, spec: &TensorSpec, head: &[u8]) -> Result<Box<dyn BlockDecoder>>;
}

/// Encodes blocks of one tensor.
pub trait BlockEncoder: Send + Sync {
    /// The head, stored once before the blocks.
    fn head(&self) -> &[u8];

    /// Encodes whole consecutive blocks of the tensor, from number `first_block` on: `units` holds
    /// their original bytes, each [`TensorSpec::block_units`] units but the tensor's last. Appends
    /// the encoded blocks to `out`, each padded with zeros to a multiple of 8 bytes, and their
    /// lengths without the padding to `lens`.
    ///
    /// # Errors
    /// [`Rule::Memory`](crate::Rule::Memory); the contents of `out` and `lens` are then
    /// unspecified.
    fn encode_blocks(
        &self,
        first_block: u64,
        units: &[u8],
        out: &mut Vec<u8>,
        lens: &mut Vec<u32>,
    ) -> Result<()>;

    /// [`encode_blocks`](Self::encode_blocks) against `base`, the base's bytes of the same blocks.
    /// An encoding without bases ignores them.
    ///
    /// # Errors
    /// Those of [`encode_blocks`](Self::encode_blocks).
    fn encode_blocks_with_base(
        &self,
        first_block: u64,
        units: &[u8],
        base: &[u8],
        out: &mut Vec<u8>,
        lens: &mut Vec<u32>,
    ) -> Result<()> {
        let _ = base;
        self.encode_blocks(first_block, units, out, lens)
    }
}

/// Decodes blocks of one tensor.
pub trait BlockDecoder: Send + Sync {
    /// Decodes whole consecutive blocks into `dst`, which must be as long as their original bytes.
    /// For an encoding that [needs a base](EncodingId::needs_base), `dst` holds the base's bytes of
    /// the same blocks, which the caller has checked
    /// ([`check_base`](crate::BlockTable::check_base)). After an error the contents of `dst` are
    /// unspecified.
    ///
    /// # Errors
    /// Of class [`Corrupt`](crate::Class::Corrupt), with the offset within the first broken block.
    fn decode_blocks(&self, blocks: &[&[u8]], dst: &mut [u8]) -> Result<()>;

    /// The same, and prefetches the encoded bytes that come next. The result does not depend on
    /// them.
    ///
    /// # Errors
    /// As [`decode_blocks`](Self::decode_blocks).
    #[doc(hidden)]
    fn decode_blocks_with(&self, blocks: &[&[u8]], dst: &mut [u8], ahead: Ahead<'_>) -> Result<()> {
        let _ = ahead;
        self.decode_blocks(blocks, dst)
    }

    /// The same for an encoding that needs a base, from the base's bytes elsewhere, as many as
    /// `dst` is long: `dst` need not hold them.
    ///
    /// # Errors
    /// As [`decode_blocks`](Self::decode_blocks).
    #[doc(hidden)]
    fn decode_blocks_from(
        &self,
        blocks: &[&[u8]],
        base: &[u8],
        dst: &mut [u8],
        ahead: Ahead<'_>,
    ) -> Result<()> {
        dst.copy_from_slice(base);
        self.decode_blocks_with(blocks, dst, ahead)
    }

    /// How many blocks it is best given at once, at most 4. The result does not depend on it.
    #[doc(hidden)]
    fn blocks_at_once(&self) -> usize {
        2
    }
}
