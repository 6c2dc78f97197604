//! The trait that every encoding implements, and the loops that drive it.

use std::ops::Range;

use crate::read_at::{len_of, read_at};
use crate::wire::{reserve, room_for, set_len};
use crate::{
    Ahead, BLOCK_UNITS, BlockTable, Dtype, EncodedTensor, Error, ReadAt, Result, Rule, TensorSpec,
    for_each_in_parallel, pool_size,
};

/// Which encoding a payload has (FORMAT.md section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EncodingId {
    /// The values as they are.
    Raw,
    /// ANS joint-entropy coding (`bigsmall-codec`).
    Ans,
    /// Triple bitmaps (`bigsmall-tbe`).
    Tbe,
}

impl EncodingId {
    /// The code in the index.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            EncodingId::Raw => 0,
            EncodingId::Ans => 1,
            EncodingId::Tbe => 2,
        }
    }

    /// The encoding of that code; `None` for one that a later version may define.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(EncodingId::Raw),
            1 => Some(EncodingId::Ans),
            2 => Some(EncodingId::Tbe),
            _ => None,
        }
    }

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            EncodingId::Raw => "raw",
            EncodingId::Ans => "ans",
            EncodingId::Tbe => "tbe",
        }
    }
}

impl std::fmt::Display for EncodingId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A way to write a tensor in fewer bytes. Implementations: [`Raw`](crate::Raw),
/// `bigsmall_codec::Ans`, `bigsmall_tbe::Tbe`.
///
/// A tensor is cut into blocks of [`BLOCK_UNITS`] units that are encoded and decoded alone. What
/// the blocks share (tables, the window of exponents) is the *head*, decided once by
/// [`plan`](Self::plan). Planning and encoding by blocks is what keeps memory constant for a tensor
/// of any size.
pub trait TensorEncoding: Send + Sync {
    /// The code of this encoding in a shard's index.
    fn id(&self) -> EncodingId;

    /// Whether tensors of that dtype can be encoded.
    fn supports(&self, dtype: Dtype) -> bool;

    /// Decides the head for the tensor `spec`, whose original bytes are `source` (little-endian).
    /// Reads the whole source or a sample of it. The same input gives the same plan on every
    /// machine and for every number of threads.
    ///
    /// # Errors
    /// Those of `source`; [`Rule::EncodingRefuses`] for a dtype that it does not take.
    fn plan(&self, spec: &TensorSpec, source: &dyn ReadAt) -> Result<Box<dyn BlockEncoder>>;

    /// Reads a head, validating all of it.
    ///
    /// # Errors
    /// Of class [`Corrupt`](crate::Class::Corrupt), naming the rule that is broken.
    fn open(&self, spec: &TensorSpec, head: &[u8]) -> Result<Box<dyn BlockDecoder>>;
}

/// Encodes blocks of one tensor.
pub trait BlockEncoder: Send + Sync {
    /// The head, stored once before the blocks.
    fn head(&self) -> &[u8];

    /// Encodes whole consecutive blocks: `units` holds their original bytes, each [`BLOCK_UNITS`]
    /// units but the tensor's last. Appends the encoded blocks to `out`, each padded with zeros
    /// to a multiple of 8 bytes, and their lengths without the padding to `lens`.
    ///
    /// # Errors
    /// [`Rule::Memory`]; the contents of `out` and `lens` are then unspecified.
    fn encode_blocks(&self, units: &[u8], out: &mut Vec<u8>, lens: &mut Vec<u32>) -> Result<()>;
}

/// Decodes blocks of one tensor.
pub trait BlockDecoder: Send + Sync {
    /// Decodes whole consecutive blocks into `dst`, whose length is that of their original bytes.
    /// On an error the contents of `dst` are unspecified.
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
}

/// How many blocks are decoded at once: as many as kernels interleave, and few enough that what is
/// checked, what is decoded and what is fetched ahead stay in a level 2 cache.
const RUN: usize = 2;
/// Runs that a thread decodes one after the other, where there are enough for all: it fetches only
/// what it decodes itself.
const RUNS_AT_A_TIME: usize = 8;
/// How many blocks are given to an encoder at once: it has the next ones fetched while it encodes,
/// but knows of no more than it is given.
const ENCODING_RUN: usize = 8;
/// Runs that a thread encodes before they are put together: enough that waking threads costs
/// nothing beside them.
const RUNS_A_THREAD: usize = 2;

/// Encodes a tensor in memory with `encoding`, on the threads of the caller's rayon pool. The bytes
/// do not depend on the pool.
///
/// # Errors
/// Those of [`TensorEncoding::plan`] and of `source`; [`Rule::BufferLength`] when `source` is not
/// as long as the tensor.
pub fn encode_tensor(
    encoding: &dyn TensorEncoding,
    spec: &TensorSpec,
    source: &dyn ReadAt,
) -> Result<EncodedTensor> {
    let found = len_of(source)?;
    if found != spec.byte_len() {
        return Err(Error::new(Rule::BufferLength)
            .in_tensor(spec.name())
            .expected(format!("{} bytes of {} {:?}", spec.byte_len(), spec.dtype(), spec.shape()))
            .found(found));
    }
    let encoder = encoding.plan(spec, source)?;
    let run_bytes = (spec.block_bytes() * ENCODING_RUN) as u64;
    let n_runs = spec.byte_len().div_ceil(run_bytes) as usize;
    let mut payload = encoder.head().to_vec();
    crate::wire::pad8(&mut payload);
    let mut lens = room_for(spec.n_blocks() as usize)?;
    let range = |run: usize| {
        let begin = run as u64 * run_bytes;
        begin..spec.byte_len().min(begin + run_bytes)
    };
    // What follows will not differ much from what comes first: growing step by step would copy the
    // payload several times. An encoder asks for room for blocks that do not get smaller.
    let room = |encoded: usize, runs: usize| {
        let all = (encoded / runs).saturating_mul(n_runs);
        all.saturating_add(all / 64).saturating_add(run_bytes as usize)
    };
    let threads = if n_runs > 1 { pool_size() } else { 1 };
    if threads == 1 {
        let mut scratch = Vec::new();
        for run in 0..n_runs {
            let units = read_or_borrow(source, range(run), &mut scratch)?;
            encoder.encode_blocks(units, &mut payload, &mut lens)?;
            if run == 0 && n_runs > 1 {
                let encoded = payload.len();
                reserve(&mut payload, room(encoded, 1))?;
            }
        }
    } else {
        // A few runs for each thread go into memory that the next ones use again, then, in order,
        // into the payload.
        let at_once = n_runs.min(threads.saturating_mul(RUNS_A_THREAD));
        let mut outputs = vec![(Vec::new(), Vec::new()); at_once];
        for first in (0..n_runs).step_by(at_once.max(1)) {
            let outputs = &mut outputs[..at_once.min(n_runs - first)];
            for_each_in_parallel(
                (first..).zip(outputs.iter_mut()).collect::<Vec<_>>().into_iter(),
                Vec::new,
                |scratch, (run, (bytes, lens))| {
                    bytes.clear();
                    lens.clear();
                    encoder.encode_blocks(read_or_borrow(source, range(run), scratch)?, bytes, lens)
                },
            )?;
            if first == 0 {
                let encoded = outputs.iter().map(|(bytes, _)| bytes.len()).sum();
                reserve(&mut payload, room(encoded, outputs.len()))?;
            }
            for (bytes, run_lens) in outputs {
                reserve(&mut payload, bytes.len())?;
                payload.extend_from_slice(bytes);
                lens.extend_from_slice(run_lens);
            }
        }
    }
    EncodedTensor::new(spec.clone(), encoding.id(), encoder.head().len() as u32, lens, payload)
}

fn read_or_borrow<'a>(
    source: &'a dyn ReadAt,
    range: Range<u64>,
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8]> {
    match source.bytes_at(range.clone()) {
        Some(bytes) => Ok(bytes),
        None => {
            set_len(scratch, (range.end - range.start) as usize)?;
            read_at(source, range.start, scratch)?;
            Ok(scratch)
        }
    }
}

/// Decodes the original bytes `range` of a tensor into `dst`, on the threads of the caller's rayon
/// pool. `payload` holds the head and the blocks; every block that is touched is checked against
/// its checksum before it is decoded.
///
/// Memory: for each thread one run of two encoded blocks where `payload` is not in memory, and one
/// decoded block where `range` does not begin or end with a block.
///
/// # Errors
/// [`Rule::BlockChecksum`], those of the decoder, those of `payload`; [`Rule::BufferLength`] or
/// [`Rule::RangeOutOfBounds`] for a caller's mistake.
pub fn decode_range(
    decoder: &dyn BlockDecoder,
    spec: &TensorSpec,
    table: &BlockTable,
    payload: &dyn ReadAt,
    range: Range<u64>,
    dst: &mut [u8],
) -> Result<()> {
    check_range(spec, &range, dst)?;
    // Cut `dst` where runs of blocks begin; only the first and the last piece can hold part of a
    // block.
    let run_bytes = (spec.block_bytes() * RUN) as u64;
    let n_runs = range.end.div_ceil(run_bytes) - range.start / run_bytes;
    let threads = if n_runs > 1 { pool_size() } else { 1 };
    if threads == 1 {
        return decode_here(decoder, spec, table, payload, range, dst);
    }
    let runs = (n_runs / threads as u64).clamp(1, RUNS_AT_A_TIME as u64);
    let source = Blocks { decoder, spec, table, payload };
    for_each_in_parallel(
        pieces(range.start, dst, runs * run_bytes).into_iter(),
        Default::default,
        |scratch, (begin, piece)| source.decode(begin, piece, scratch),
    )
}

/// The same on this thread alone. It is for work that already runs in a pool and for sources that
/// decode what is read from them: a thread of a pool that waits begins other work meanwhile, which
/// must not happen while others wait for it.
///
/// # Errors
/// Those of [`decode_range`].
pub fn decode_here(
    decoder: &dyn BlockDecoder,
    spec: &TensorSpec,
    table: &BlockTable,
    payload: &dyn ReadAt,
    range: Range<u64>,
    dst: &mut [u8],
) -> Result<()> {
    check_range(spec, &range, dst)?;
    Blocks { decoder, spec, table, payload }.decode(range.start, dst, &mut Default::default())
}

fn check_range(spec: &TensorSpec, range: &Range<u64>, dst: &[u8]) -> Result<()> {
    if range.start > range.end || range.end > spec.byte_len() {
        return Err(Error::new(Rule::RangeOutOfBounds)
            .in_tensor(spec.name())
            .expected(format!("bytes within 0..{}", spec.byte_len()))
            .found(format!("{range:?}")));
    }
    if dst.len() as u64 != range.end - range.start {
        return Err(Error::new(Rule::BufferLength)
            .in_tensor(spec.name())
            .expected(format!("{} bytes", range.end - range.start))
            .found(dst.len()));
    }
    Ok(())
}

/// The encoded blocks of a tensor.
struct Blocks<'a> {
    decoder: &'a dyn BlockDecoder,
    spec: &'a TensorSpec,
    table: &'a BlockTable,
    payload: &'a dyn ReadAt,
}

/// What a thread reuses for every run: encoded blocks, and decoded ones of which only a part is
/// wanted.
#[derive(Default)]
struct Scratch {
    encoded: Vec<u8>,
    decoded: Vec<u8>,
}

impl Blocks<'_> {
    /// Decodes the original bytes from `begin` on, as many as `dst` holds.
    fn decode(&self, begin: u64, dst: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        let Blocks { decoder, spec, table, payload } = *self;
        let block_bytes = spec.block_bytes() as u64;
        let run_bytes = block_bytes * RUN as u64;
        let end = begin + dst.len() as u64;
        // The blocks of the run that begins at `at`.
        let blocks_of = |at: u64| {
            let run = at / run_bytes * RUN as u64;
            let first = at / block_bytes;
            first..(run + RUN as u64).min(end.div_ceil(block_bytes))
        };
        for (at, piece) in pieces(begin, dst, run_bytes) {
            let blocks = blocks_of(at);
            let place = table.blocks_range(blocks.clone());
            let bytes = read_or_borrow(payload, place.clone(), &mut scratch.encoded)?;
            let next = at + piece.len() as u64;
            let ahead = (next < end)
                .then(|| payload.bytes_at(table.blocks_range(blocks_of(next))))
                .flatten()
                .map_or_else(Ahead::default, Ahead::new);
            let mut slices = [&bytes[..0]; RUN];
            let mut n = 0;
            for index in blocks.clone() {
                let padded = table.padded_block_range(index);
                let from = (padded.start - place.start) as usize;
                let padded = &bytes[from..(padded.end - place.start) as usize];
                table.check_block(index, padded).map_err(|e| e.in_tensor(spec.name()))?;
                slices[n] = &padded[..table.block_len(index)];
                n += 1;
            }
            let starts = blocks.clone().map(|index| table.padded_block_range(index).start);
            let decode = |dst: &mut [u8]| {
                decoder.decode_blocks_with(&slices[..n], dst, ahead).map_err(|error| {
                    locate(decoder, &slices[..n], starts, dst, block_bytes as usize)
                        .unwrap_or(error)
                        .in_tensor(spec.name())
                })
            };
            let covered =
                blocks.start * block_bytes..(blocks.end * block_bytes).min(spec.byte_len());
            if covered == (at..next) {
                decode(piece)?;
            } else {
                set_len(&mut scratch.decoded, (covered.end - covered.start) as usize)?;
                decode(&mut scratch.decoded)?;
                let from = (at - covered.start) as usize;
                piece.copy_from_slice(&scratch.decoded[from..from + piece.len()]);
            }
        }
        Ok(())
    }
}

/// Cuts `dst`, whose first byte has the position `begin`, at the multiples of `every`.
fn pieces(begin: u64, dst: &mut [u8], every: u64) -> Vec<(u64, &mut [u8])> {
    if dst.is_empty() {
        return Vec::new();
    }
    let first = ((begin / every + 1).saturating_mul(every) - begin).min(dst.len() as u64) as usize;
    let (head, rest) = dst.split_at_mut(first);
    let every = usize::try_from(every).unwrap_or(usize::MAX);
    let begins = (0..).map(|i: u64| begin + first as u64 + i * every as u64);
    std::iter::once((begin, head)).chain(begins.zip(rest.chunks_mut(every))).collect()
}

/// The error of the first of `blocks` that does not decode, its offset that in the payload.
#[cold]
fn locate(
    decoder: &dyn BlockDecoder,
    blocks: &[&[u8]],
    starts: impl Iterator<Item = u64>,
    dst: &mut [u8],
    block_bytes: usize,
) -> Option<Error> {
    blocks.iter().zip(dst.chunks_mut(block_bytes)).zip(starts).find_map(|((block, dst), start)| {
        let error = decoder.decode_blocks(&[block], dst).err()?;
        Some(error.in_part_at(start).at(start))
    })
}

const _: () = assert!(BLOCK_UNITS.is_power_of_two());
