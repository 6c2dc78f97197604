//! Lossless compression of weights by asymmetric numeral systems: what is predictable in a float
//! (its exponent and the top of its mantissa) is entropy coded, the rest is stored as it is. A bf16
//! checkpoint shrinks to 66 %, below the entropy of exponent and mantissa taken apart, and every
//! bit comes back.
//!
//! ```
//! use half::bf16;
//! let weights: Vec<bf16> = (0..100_000).map(|i| bf16::from_f32((i as f32).sin() * 0.02)).collect();
//! let small: Vec<u8> = bigsmall_codec::encode(&weights);
//! assert!(small.len() < weights.len() * 2 * 3 / 4);
//! let mut back = vec![bf16::ZERO; weights.len()];
//! bigsmall_codec::decode(&small, &mut back)?;
//! assert_eq!(weights, back);
//! # Ok::<(), bigsmall_codec::Error>(())
//! ```
//!
//! [`encode`] and [`decode`] speak frames: self-contained bytes with checksums. [`Ans`] is the
//! encoding behind them, for those who want shards ([`ShardWriter`](bigsmall_format::ShardWriter)),
//! ranges ([`EncodedTensor::decode_bytes`]), or a level or backend of their choice. The bytes
//! depend on the values and the [`Level`] alone, never on threads, backend or machine.
//!
//! Source of the method: asymmetric numeral systems, J. Duda, arXiv 1311.2540; interleaving, F.
//! Giesen, arXiv 1402.3392; alias tables, M. Vose, 1991. The bitstream is specified in FORMAT.md,
//! section 7.
#![deny(unsafe_code)]

mod arch;
mod backend;
mod bits;
mod block;
mod exceptions;
mod head;
mod layout;
mod plan;
mod planes;
mod slice;
#[cfg(feature = "stages")]
#[doc(hidden)]
pub mod stages;
mod table;
mod units;
mod view;

/// The README's programs run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

use std::sync::Mutex;

use bits::BitWriter;

pub use backend::Backend;
pub use bigsmall_format::{
    Class, Dtype, EncodedTensor, Error, ReadAt, Result, Rule, TensorEncoding, TensorSpec,
    decode_range, encode_tensor,
};
pub use slice::{Element, decode, decode_bytes, encode, encode_bytes};
pub use view::{AliasBucket, AliasEntry, AnsBlock, AnsException, AnsTable, AnsView, CodedBlock};

use bigsmall_format::{Ahead, BlockDecoder, BlockEncoder, EncodingId};

/// How much effort goes into size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Level {
    /// A smaller sample, longer segments, fewer symbols: encodes faster, heads of one byte (F16,
    /// FP8) by a half, and decodes those by a fifth faster.
    Fast,
    /// Decodes at full speed.
    #[default]
    Default,
    /// Finer symbols and a larger sample: smaller, at a third of the decoding speed.
    Small,
}

impl Level {
    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Level::Fast => "fast",
            Level::Default => "default",
            Level::Small => "small",
        }
    }
}

/// The ANS encoding of tensors (FORMAT.md section 7). Takes every dtype: floats by their fields,
/// everything else byte by byte.
///
/// Memory: encoding takes about 1 MB for each thread, which the process keeps for the next tensor.
///
/// ```
/// use bigsmall_codec::*;
/// let spec = TensorSpec::new("w", Dtype::F32, &[100, 100])?;
/// let bytes: Vec<u8> = (0..10_000u32).flat_map(|i| ((i as f32) * 0.001).to_le_bytes()).collect();
/// let tensor = encode_tensor(&Ans::new(Level::Small), &spec, &bytes, 0)?;
/// let mut row = vec![0; 400];
/// tensor.decode_bytes(&Ans::default(), spec.row_bytes(7..8)?, &mut row, 1)?;
/// assert_eq!(row, bytes[2800..3200]);
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Ans {
    level: Level,
    backend: Backend,
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
        Ans { level, backend: Backend::best() }
    }

    /// The same with another backend.
    ///
    /// # Errors
    /// [`Rule::BackendMissing`] when this machine or build lacks it.
    pub fn with_backend(self, backend: Backend) -> Result<Ans> {
        if !backend.is_available() {
            return Err(Error::new(Rule::BackendMissing).found(backend.name()));
        }
        Ok(Ans { backend, ..self })
    }

    /// The backend that does the work.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }
}

/// Makes room for `more` values; an error where there is no memory for them.
fn reserve<T>(values: &mut Vec<T>, more: usize) -> Result<()> {
    values.try_reserve(more).map_err(|_| Error::memory(more * size_of::<T>()))
}

/// Makes `values` hold `n` of any value; an error where there is no memory for them.
fn set_len<T: Clone + Default>(values: &mut Vec<T>, n: usize) -> Result<()> {
    reserve(values, n.saturating_sub(values.len()))?;
    values.resize(n, T::default());
    Ok(())
}

struct Encoder {
    blocks: block::Encoder,
    head_bytes: Vec<u8>,
    block_bytes: usize,
}

/// Memory of earlier calls, for the next ones, whatever their tensor: as many as threads have
/// encoded at once.
static SCRATCH: Mutex<Vec<block::Scratch>> = Mutex::new(Vec::new());

struct Decoder {
    head: head::Head,
    backend: &'static dyn backend::EntropyBackend,
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
        let head = plan::plan(spec, source, self.level)?;
        Ok(Box::new(Encoder {
            head_bytes: head.write(),
            blocks: block::Encoder::new(head, self.backend.implementation()?),
            block_bytes: spec.block_bytes(),
        }))
    }

    fn open(&self, spec: &TensorSpec, head: &[u8]) -> Result<Box<dyn BlockDecoder>> {
        let head = head::Head::read(spec.dtype(), head).map_err(|e| e.in_tensor(spec.name()))?;
        let backend = self.backend.implementation()?;
        Ok(Box::new(Decoder { head, backend, block_bytes: spec.block_bytes() }))
    }
}

impl BlockEncoder for Encoder {
    fn head(&self) -> &[u8] {
        &self.head_bytes
    }

    fn encode_blocks(&self, units: &[u8], out: &mut Vec<u8>, lens: &mut Vec<u32>) -> Result<()> {
        let lock = "no thread panics while it holds this lock";
        let mut scratch = SCRATCH.lock().expect(lock).pop().unwrap_or_default();
        let done = self.blocks.encode(units, self.block_bytes, &mut scratch, out, lens);
        SCRATCH.lock().expect(lock).push(scratch);
        done
    }
}

impl BlockDecoder for Decoder {
    fn decode_blocks(&self, blocks: &[&[u8]], dst: &mut [u8]) -> Result<()> {
        self.decode_blocks_with(blocks, dst, Ahead::default())
    }

    fn decode_blocks_with(&self, blocks: &[&[u8]], dst: &mut [u8], ahead: Ahead<'_>) -> Result<()> {
        block::decode(&self.head, self.backend, blocks, self.block_bytes, dst, ahead)
    }
}
