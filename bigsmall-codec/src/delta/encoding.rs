//! The encoding and its backends; the API for tensors in memory is in `slice.rs`.

use bigsmall_format::internal::Ahead;
use bigsmall_format::{
    Backend, BlockDecoder, BlockEncoder, Dtype, EncodingId, Error, ReadAt, Result, Rule,
    TensorEncoding, TensorSpec,
};

use super::decode::Kept;
use super::head::Head;
use super::values::{Word, for_unit};
use super::{decode, encode, plan};
use crate::backend::{self, kernels};
use crate::kernels::Kernels;
use crate::scratch::{Pool, with_scratch};

/// The encoding of tensors as differences from a base (FORMAT.md section 10): checkpoints beside
/// the one they were trained from, weights after a step of training. Takes every dtype: floats by
/// their fields, everything else byte by byte.
///
/// The base has the tensor's dtype and length; [`BaseTensor`](bigsmall_format::BaseTensor) makes it
/// so. A tensor that has little to do with its base may be smaller without one: compare with
/// [`Ans`](crate::Ans).
///
/// Memory: encoding takes about 4 MB for each thread, decoding 1 to 2 MB, which the process keeps
/// for the next tensor.
///
/// ```
/// use bigsmall_codec::*;
/// let spec = TensorSpec::new("w", Dtype::F32, &[100, 100])?;
/// let base: Vec<u8> = (0..10_000u32).flat_map(|i| (i as f32).sin().to_le_bytes()).collect();
/// let new: Vec<u8> = base.iter().enumerate().map(|(i, b)| b ^ u8::from(i % 40 == 0)).collect();
/// let delta = encode_tensor_with_base(&Delta::default(), &spec, &new, &base)?;
/// assert!(delta.byte_len() < 1000);
/// let mut row = vec![0; 400];
/// let view = EncodedRef::from(&delta);
/// view.decode_bytes_with_base(&Delta::default(), &base, spec.row_bytes(7..8)?, &mut row)?;
/// assert_eq!(row, new[2800..3200]);
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Delta {
    backend: Backend,
}

impl Default for Delta {
    fn default() -> Self {
        Delta { backend: backend::best() }
    }
}

impl Delta {
    /// The same encoding with the kernels of `backend`; the bytes do not change.
    ///
    /// # Errors
    /// [`Rule::BackendMissing`](crate::Rule::BackendMissing) if this machine or build lacks it.
    pub fn with_backend(self, backend: Backend) -> Result<Delta> {
        kernels(backend)?;
        Ok(Delta { backend })
    }

    /// The backend that does the work.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }
}

struct Encoder {
    blocks: encode::Encoder,
    head_bytes: Vec<u8>,
    block_bytes: usize,
}

pub(super) struct Decoder {
    head: Head,
    kernels: &'static dyn Kernels,
    block_bytes: usize,
}

static ENCODING: Pool<[encode::Scratch; 2]> = Pool::new(Vec::new());
pub(super) static DECODING: Pool<decode::Scratch> = Pool::new(Vec::new());

impl TensorEncoding for Delta {
    fn id(&self) -> EncodingId {
        EncodingId::Delta
    }

    fn supports(&self, _: Dtype) -> bool {
        true
    }

    fn plan(&self, spec: &TensorSpec, _: &dyn ReadAt) -> Result<Box<dyn BlockEncoder>> {
        Err(Error::new(Rule::BaseMissing).in_tensor(spec.name()))
    }

    fn plan_with_base(
        &self,
        spec: &TensorSpec,
        source: &dyn ReadAt,
        base: &dyn ReadAt,
    ) -> Result<Box<dyn BlockEncoder>> {
        let (head, of_class) =
            for_unit!(spec.dtype().unit_bytes(), plan::plan(spec, source, base))?;
        let head_bytes = head.write();
        let blocks = encode::Encoder::new(head, of_class, kernels(self.backend)?);
        Ok(Box::new(Encoder { blocks, head_bytes, block_bytes: spec.block_bytes() }))
    }

    fn open(&self, spec: &TensorSpec, head: &[u8]) -> Result<Box<dyn BlockDecoder>> {
        Ok(Box::new(self.decoder(spec, head)?))
    }
}

impl Delta {
    pub(super) fn decoder(&self, spec: &TensorSpec, head: &[u8]) -> Result<Decoder> {
        let head = Head::read(spec.dtype(), head).map_err(|e| e.in_tensor(spec.name()))?;
        Ok(Decoder { head, kernels: kernels(self.backend)?, block_bytes: spec.block_bytes() })
    }
}

impl BlockEncoder for Encoder {
    fn head(&self) -> &[u8] {
        &self.head_bytes
    }

    fn encode_blocks(&self, _: u64, _: &[u8], _: &mut Vec<u8>, _: &mut Vec<u32>) -> Result<()> {
        Err(Error::new(Rule::BaseMissing))
    }

    fn encode_blocks_with_base(
        &self,
        _: u64,
        units: &[u8],
        base: &[u8],
        out: &mut Vec<u8>,
        lens: &mut Vec<u32>,
    ) -> Result<()> {
        check_lengths(units.len(), base.len())?;
        with_scratch(&ENCODING, |scratch| {
            let pairs = units.chunks(2 * self.block_bytes).zip(base.chunks(2 * self.block_bytes));
            for (units, base) in pairs {
                let Encoder { blocks, .. } = self;
                let cut = |bytes| <[u8]>::split_at(bytes, bytes.len().min(self.block_bytes)).into();
                let (units, base, to) = (cut(units), cut(base), (&mut *out, &mut *lens));
                for_unit!(blocks.head.unit_bytes, encode_some(blocks, units, base, scratch, to))?;
            }
            Ok(())
        })
    }
}

/// Encodes one or two blocks.
fn encode_some<W: Word>(
    blocks: &encode::Encoder,
    units: [&[u8]; 2],
    base: [&[u8]; 2],
    scratch: &mut [encode::Scratch; 2],
    to: (&mut Vec<u8>, &mut Vec<u32>),
) -> Result<()> {
    blocks.encode::<W>(units, base, scratch, to)
}

fn check_lengths(expected: usize, found: usize) -> Result<()> {
    if expected != found {
        return Err(Error::new(Rule::BufferLength)
            .expected(format!("{expected} bytes of the base"))
            .found(found));
    }
    Ok(())
}

impl Decoder {
    /// Checks that blocks decode, as many as are best decoded at once, without touching the units
    /// of the base. `kept` are the changes of blocks that have few.
    pub(super) fn check_some(
        &self,
        blocks: &[&[u8]],
        bases: &[&[u8]],
        kept: &mut [Kept],
        scratch: &mut decode::Scratch,
    ) -> Result<()> {
        let Decoder { head, kernels, .. } = self;
        for_unit!(head.unit_bytes, decode::check(head, *kernels, blocks, bases, kept, scratch))
    }

    /// Makes changes that were kept.
    pub(super) fn patch(&self, changes: &[(u32, u64)], units: &mut [u8]) {
        for_unit!(self.head.unit_bytes, decode::patch(changes, units));
    }

    /// The units that a block changes and their new values, if it is empty or sparse; false for a
    /// block of another kind.
    pub(super) fn changes(
        &self,
        block: &[u8],
        base: &[u8],
        scratch: &mut decode::Scratch,
        out: &mut Vec<(u32, u64)>,
    ) -> Result<bool> {
        let Decoder { head, kernels, .. } = self;
        for_unit!(head.unit_bytes, decode::changes(head, *kernels, block, base, scratch, out))
    }
}

impl Decoder {
    /// Decodes blocks from those of the base, which are in `dst` if they are not given.
    fn decode(&self, blocks: &[&[u8]], base: Option<&[u8]>, dst: &mut [u8]) -> Result<()> {
        let unit_bytes = self.head.unit_bytes;
        if !dst.len().is_multiple_of(unit_bytes)
            || dst.len().div_ceil(self.block_bytes) != blocks.len()
        {
            return Err(Error::new(Rule::BufferLength).expected("as many blocks as units"));
        }
        with_scratch(&DECODING, |scratch| {
            let (head, at_once) = (&self.head, self.blocks_at_once());
            let mut bases = base.map(|base| base.chunks(self.block_bytes));
            let mut places = dst
                .chunks_mut(self.block_bytes)
                .map(|units| (bases.as_mut().and_then(Iterator::next), units));
            blocks.chunks(at_once).try_for_each(|blocks| {
                let places = places.by_ref().take(blocks.len());
                for_unit!(unit_bytes, decode::decode(head, self.kernels, blocks, places, scratch))
            })
        })
    }
}

impl BlockDecoder for Decoder {
    fn blocks_at_once(&self) -> usize {
        self.kernels.blocks_at_once()
    }

    fn decode_blocks(&self, blocks: &[&[u8]], dst: &mut [u8]) -> Result<()> {
        self.decode(blocks, None, dst)
    }

    fn decode_blocks_from(
        &self,
        blocks: &[&[u8]],
        base: &[u8],
        dst: &mut [u8],
        _: Ahead<'_>,
    ) -> Result<()> {
        check_lengths(dst.len(), base.len())?;
        self.decode(blocks, Some(base), dst)
    }
}
