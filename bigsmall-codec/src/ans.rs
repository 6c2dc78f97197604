//! The encoding, as the rest of the workspace knows it.

use bigsmall_format::internal::{Ahead, read_at, set_len};
use bigsmall_format::{
    Backend, BlockDecoder, BlockEncoder, Dtype, EncodingId, ReadAt, Result, TensorEncoding,
    TensorSpec,
};

use crate::backend::{self, kernels};
use crate::head::Head;
use crate::kernels::Kernels;
use crate::level::Level;
use crate::scratch::{Pool, with_scratch};
use crate::{block, plan};

/// The ANS encoding of tensors (FORMAT.md section 7). Takes every dtype: floats by their fields,
/// everything else byte by byte.
///
/// Memory: encoding takes about 1 MB for each thread, which the process keeps for the next tensor,
/// and 320 kB more once a block has repeated itself. Decoding such a block takes 11 kB. Where the
/// level *small* has put columns together, coding takes two to four blocks more for each thread,
/// which the process keeps too.
///
/// ```
/// use bigsmall_codec::*;
/// let spec = TensorSpec::new("w", Dtype::F32, &[100, 100])?;
/// let bytes: Vec<u8> = (0..10_000u32).flat_map(|i| ((i as f32) * 0.001).to_le_bytes()).collect();
/// let tensor = encode_tensor(&Ans::new(Level::Small), &spec, &bytes)?;
/// let mut row = vec![0; 400];
/// tensor.decode_bytes(&Ans::default(), spec.row_bytes(7..8)?, &mut row)?;
/// assert_eq!(row, bytes[2800..3200]);
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Ans {
    level: Level,
    backend: Backend,
    /// Whether plans look at a sample of the tensor alone.
    by_sample: bool,
}

impl Default for Ans {
    fn default() -> Self {
        Ans::new(Level::Default)
    }
}

impl Ans {
    /// The encoding at `level` with the fastest backend of this machine.
    #[must_use]
    pub fn new(level: Level) -> Ans {
        Ans { level, backend: backend::best(), by_sample: false }
    }

    fn encoder(&self, spec: &TensorSpec, head: Head) -> Result<Encoder> {
        Ok(Encoder {
            head_bytes: head.write(),
            blocks: block::Encoder::new(head, kernels(self.backend)?).with_deflate(row_bytes(spec)),
            block_bytes: spec.block_bytes(),
        })
    }

    /// The same encoding with the kernels of `backend`; the bytes do not change.
    ///
    /// # Errors
    /// [`Rule::BackendMissing`](crate::Rule::BackendMissing) if this machine or build lacks it.
    pub fn with_backend(self, backend: Backend) -> Result<Ans> {
        kernels(backend)?;
        Ok(Ans { backend, ..self })
    }

    /// The same encoding, whose plans look at a sample of a tensor alone: for estimates. At the
    /// level *small*, a tensor may then come out larger than by default.
    #[must_use]
    pub fn by_sample(self) -> Ans {
        Ans { by_sample: true, ..self }
    }

    /// The backend that does the work.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }
}

struct Encoder {
    blocks: block::Encoder,
    head_bytes: Vec<u8>,
    block_bytes: usize,
}

/// Blocks of a sample, spread over the tensor: all blocks of most tensors.
const SAMPLED: u64 = 16;

/// Bytes of the payloads of two encoders, by at most `most` blocks of the tensor.
fn sizes(
    encoders: [&Encoder; 2],
    spec: &TensorSpec,
    source: &dyn ReadAt,
    most: u64,
) -> Result<[u64; 2]> {
    let (all, n) = (spec.n_blocks(), spec.n_blocks().min(most));
    let block_bytes = spec.block_bytes() as u64;
    let (mut units, mut out, mut lens) = (Vec::new(), Vec::new(), Vec::new());
    let mut sums = [0u64; 2];
    // On this thread alone: a plan may be made while the threads of the pool wait for it.
    for i in 0..n {
        let block = (u128::from(i) * u128::from(all) / u128::from(n)) as u64;
        let begin = block * block_bytes;
        let end = spec.byte_len().min(begin + block_bytes);
        set_len(&mut units, (end - begin) as usize)?;
        read_at(source, begin, &mut units)?;
        for (encoder, sum) in encoders.iter().zip(&mut sums) {
            out.clear();
            encoder.encode_blocks(block, &units, &mut out, &mut lens)?;
            *sum += out.len() as u64;
        }
        lens.clear();
    }
    Ok(std::array::from_fn(|i| {
        let blocks = u128::from(sums[i]) * u128::from(all) / u128::from(n.max(1));
        blocks as u64 + encoders[i].head_bytes.len().next_multiple_of(8) as u64
    }))
}

static SCRATCH: Pool<block::Scratch> = Pool::new(Vec::new());

struct Decoder {
    head: Head,
    kernels: &'static dyn Kernels,
    block_bytes: usize,
}

impl TensorEncoding for Ans {
    fn id(&self) -> EncodingId {
        EncodingId::Ans
    }

    fn supports(&self, _: Dtype) -> bool {
        true
    }

    fn plan(&self, spec: &TensorSpec, source: &dyn ReadAt) -> Result<Box<dyn BlockEncoder>> {
        let kernels = kernels(self.backend)?;
        let of_level = |level| self.encoder(spec, plan::plan(kernels, spec, source, level)?);
        let mut encoder = of_level(self.level)?;
        if self.level != Level::Small {
            return Ok(Box::new(encoder));
        }
        if !encoder.blocks.has_masks()
            && let Some(head) = plan::plan_with_columns(kernels, spec, source)?
        {
            let columns = self.encoder(spec, head)?;
            let [plain, ordered] = sizes([&encoder, &columns], spec, source, SAMPLED)?;
            if ordered <= plain - plain / plan::COLUMN_GAIN {
                encoder = columns;
            }
        }
        // More effort is not always smaller: a plan knows costs by a sample, and finer symbols have
        // larger tables and more exceptions.
        let default = of_level(Level::Default)?;
        if default.head_bytes != encoder.head_bytes {
            let most = if self.by_sample { SAMPLED } else { u64::MAX };
            let [small, plain] = sizes([&encoder, &default], spec, source, most)?;
            if plain < small {
                encoder = default;
            }
        }
        Ok(Box::new(encoder))
    }

    fn open(&self, spec: &TensorSpec, head: &[u8]) -> Result<Box<dyn BlockDecoder>> {
        let head = Head::read(spec.dtype(), head).map_err(|e| e.in_tensor(spec.name()))?;
        let kernels = kernels(self.backend)?;
        Ok(Box::new(Decoder { head, kernels, block_bytes: spec.block_bytes() }))
    }
}

/// Bytes of a row, of a matrix of rows and so on: where tensors repeat themselves.
fn row_bytes(spec: &TensorSpec) -> impl Iterator<Item = u64> {
    let bits = u64::from(spec.dtype().bits());
    let inner = spec.shape().iter().skip(1).rev().scan(bits, |bits, &n| {
        *bits = bits.saturating_mul(n);
        Some(*bits)
    });
    inner.filter(|bits| *bits >= 64 && bits % 8 == 0).map(|bits| bits / 8)
}

impl BlockEncoder for Encoder {
    fn head(&self) -> &[u8] {
        &self.head_bytes
    }

    fn encode_blocks(
        &self,
        first_block: u64,
        units: &[u8],
        out: &mut Vec<u8>,
        lens: &mut Vec<u32>,
    ) -> Result<()> {
        with_scratch(&SCRATCH, |scratch| {
            self.blocks.encode_at(first_block, units, self.block_bytes, scratch, out, lens)
        })
    }
}

impl BlockDecoder for Decoder {
    fn blocks_at_once(&self) -> usize {
        self.kernels.blocks_at_once()
    }

    fn decode_blocks(&self, blocks: &[&[u8]], dst: &mut [u8]) -> Result<()> {
        self.decode_blocks_with(blocks, dst, Ahead::default())
    }

    fn decode_blocks_with(&self, blocks: &[&[u8]], dst: &mut [u8], ahead: Ahead<'_>) -> Result<()> {
        block::decode(&self.head, self.kernels, blocks, self.block_bytes, dst, ahead)
    }
}
