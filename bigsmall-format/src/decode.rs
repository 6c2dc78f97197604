//! Decoding any part of a tensor.

use std::ops::Range;

use crate::read_at::{read_at, read_or_borrow};
use crate::wire::set_len;
use crate::{
    Ahead, BlockDecoder, BlockTable, Error, ReadAt, Result, Rule, TensorSpec, for_each_in_parallel,
    pool_size,
};

/// How many blocks are decoded at once, at most: as many as kernels interleave, and few enough that
/// what is checked, what is decoded and what is fetched ahead stay in a level 2 cache.
const MOST_OF_RUN: usize = 4;
/// Runs that a thread decodes one after the other, where there are enough for all: it fetches only
/// what it decodes itself.
const RUNS_AT_A_TIME: usize = 8;

/// Decodes the original bytes `range` of a tensor into `dst`, on the threads of the caller's rayon
/// pool. `payload` holds the head and the blocks; every block that is touched is checked against
/// its checksum before it is decoded.
///
/// Memory: for each thread one run of at most four encoded blocks where `payload` is not in memory,
/// and one decoded block where `range` does not begin or end with a block.
///
/// # Errors
/// [`Rule::BlockChecksum`], those of the decoder, those of `payload`; [`Rule::BufferLength`] or
/// [`Rule::RangeOutOfBounds`] for a caller's mistake; [`Rule::BaseMissing`] for a tensor with a
/// base.
pub fn decode_range(
    decoder: &dyn BlockDecoder,
    spec: &TensorSpec,
    table: &BlockTable,
    payload: &dyn ReadAt,
    range: Range<u64>,
    dst: &mut [u8],
) -> Result<()> {
    let source = Blocks { decoder, spec, table, payload, base: None };
    source.decode_in_pool(range, dst)
}

/// [`decode_range`] of a tensor that was encoded against `base`, the base as the tensor sees it
/// (see [`BaseTensor`](crate::BaseTensor)). Only the blocks that `range` touches are read from it;
/// each is compared with its checksum before anything is decoded from it. A tensor without a base
/// is decoded as well, and `base` is not read.
///
/// Memory: as [`decode_range`]; a base that is not in memory is read into `dst`.
///
/// # Errors
/// [`Rule::BaseMismatch`], those of [`decode_range`] and of `base`.
pub fn decode_range_with_base(
    decoder: &dyn BlockDecoder,
    spec: &TensorSpec,
    table: &BlockTable,
    payload: &dyn ReadAt,
    base: &dyn ReadAt,
    range: Range<u64>,
    dst: &mut [u8],
) -> Result<()> {
    let source = Blocks { decoder, spec, table, payload, base: Some(base) };
    source.decode_in_pool(range, dst)
}

impl Blocks<'_> {
    /// Blocks of a run.
    fn run(&self) -> usize {
        self.decoder.blocks_at_once().clamp(1, MOST_OF_RUN)
    }

    fn decode_in_pool(&self, range: Range<u64>, dst: &mut [u8]) -> Result<()> {
        let spec = self.spec;
        self.check_range(&range, dst)?;
        // Cut `dst` where runs of blocks begin; only the first and the last piece can hold part of
        // a block.
        let run_bytes = (spec.block_bytes() * self.run()) as u64;
        let n_runs = range.end.div_ceil(run_bytes) - range.start / run_bytes;
        let threads = if n_runs > 1 { pool_size() } else { 1 };
        if threads == 1 {
            return self.decode(range.start, dst, &mut Default::default());
        }
        let runs = (n_runs / threads as u64).clamp(1, RUNS_AT_A_TIME as u64);
        for_each_in_parallel(
            pieces(range.start, dst, runs * run_bytes).into_iter(),
            Default::default,
            |scratch, (begin, piece)| self.decode(begin, piece, scratch),
        )
    }

    fn check_range(&self, range: &Range<u64>, dst: &[u8]) -> Result<()> {
        let spec = self.spec;
        if self.table.needs_base() && self.base.is_none() {
            return Err(Error::new(Rule::BaseMissing).in_tensor(spec.name()));
        }
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
}

/// [`decode_range`] or, with a base, [`decode_range_with_base`] on this thread alone. It is for
/// work that already runs in a pool and for sources that decode what is read from them: a thread of
/// a pool that waits begins other work meanwhile, which must not happen while others wait for it.
///
/// # Errors
/// Those of [`decode_range_with_base`].
pub fn decode_here(
    decoder: &dyn BlockDecoder,
    spec: &TensorSpec,
    table: &BlockTable,
    payload: &dyn ReadAt,
    base: Option<&dyn ReadAt>,
    range: Range<u64>,
    dst: &mut [u8],
) -> Result<()> {
    let source = Blocks { decoder, spec, table, payload, base };
    source.check_range(&range, dst)?;
    source.decode(range.start, dst, &mut Default::default())
}

/// The encoded blocks of a tensor.
struct Blocks<'a> {
    decoder: &'a dyn BlockDecoder,
    spec: &'a TensorSpec,
    table: &'a BlockTable,
    payload: &'a dyn ReadAt,
    base: Option<&'a dyn ReadAt>,
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
        let Blocks { decoder, spec, table, payload, base } = *self;
        let base = base.filter(|_| table.needs_base());
        let block_bytes = spec.block_bytes() as u64;
        let n_run = self.run() as u64;
        let run_bytes = block_bytes * n_run;
        let end = begin + dst.len() as u64;
        // The blocks of the run that begins at `at`.
        let blocks_of = |at: u64| {
            let run = at / run_bytes * n_run;
            let first = at / block_bytes;
            first..(run + n_run).min(end.div_ceil(block_bytes))
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
            let mut slices = [&bytes[..0]; MOST_OF_RUN];
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
                let mut in_memory = None;
                if let Some(base) = base {
                    let begin = blocks.start * block_bytes;
                    let named = |e: Error| e.in_tensor(spec.name());
                    in_memory = base
                        .bytes_at(begin..begin + dst.len() as u64)
                        .filter(|bytes| bytes.len() == dst.len());
                    if in_memory.is_none() {
                        read_at(base, begin, dst).map_err(named)?;
                    }
                    let bytes = in_memory.unwrap_or(dst).chunks(block_bytes as usize);
                    for (index, bytes) in blocks.clone().zip(bytes) {
                        table.check_base(index, bytes).map_err(named)?;
                    }
                }
                let decoded = match in_memory {
                    Some(base) => decoder.decode_blocks_from(&slices[..n], base, dst, ahead),
                    None => decoder.decode_blocks_with(&slices[..n], dst, ahead),
                };
                decoded.map_err(|error| {
                    // What was the base's is overwritten.
                    let refill = |index: u64, dst: &mut [u8]| match base {
                        Some(base) => base.read_exact_at(index * block_bytes, dst).is_ok(),
                        None => true,
                    };
                    let pieces = dst.chunks_mut(block_bytes as usize);
                    let located = slices[..n].iter().zip(pieces).zip(starts.zip(blocks.clone()));
                    let located = locate(decoder, located, refill);
                    located.unwrap_or(error).in_tensor(spec.name())
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

/// The error of the first block that does not decode, its offset that in the payload. `blocks` has
/// for each its bytes, its units, where it begins in the payload, and its number.
#[cold]
fn locate<'a>(
    decoder: &dyn BlockDecoder,
    mut blocks: impl Iterator<Item = ((&'a &'a [u8], &'a mut [u8]), (u64, u64))>,
    refill: impl Fn(u64, &mut [u8]) -> bool,
) -> Option<Error> {
    blocks.find_map(|((block, dst), (start, index))| {
        if !refill(index, dst) {
            return None;
        }
        let error = decoder.decode_blocks(&[*block], dst).err()?;
        Some(error.in_part_at(start).at(start))
    })
}
