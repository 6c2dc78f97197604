//! Encoding a whole tensor.

use std::ops::Range;

use crate::arch::reserve_large;
use crate::read_at::{len_of, read_or_borrow};
use crate::wire::{align8, pad8, reserve, room_for};
use crate::{
    EncodedTensor, Error, Raw, ReadAt, Result, Rule, TensorEncoding, TensorSpec,
    for_each_in_parallel, pool_size, xxh3,
};

/// How many blocks are given to an encoder at once. It may encode two side by side, so the number
/// is even: only at the end of a tensor one is left alone.
const ENCODING_RUN: usize = 8;
/// Runs that a thread encodes before they are put together: enough that waking threads costs
/// nothing beside them.
const RUNS_A_THREAD: usize = 2;

/// Encodes a tensor in memory with `encoding`, on the threads of the caller's rayon pool. The bytes
/// do not depend on the pool.
///
/// `source` holds the tensor's bytes, little-endian and row-major. It is a reference to anything
/// that is [`ReadAt`]: a vector, a file, a [`Decoded`](crate::Decoded) tensor. Where the bytes are
/// a slice, the reference is one to the slice: `&bytes` and not `bytes`.
///
/// ```
/// use bigsmall_format::{Dtype, Raw, TensorSpec, encode_tensor};
///
/// let spec = TensorSpec::new("w", Dtype::BF16, &[3])?;
/// let vector = vec![1, 2, 3, 4, 5, 6];
/// let tensor = encode_tensor(&Raw, &spec, &vector)?;
/// let bytes: &[u8] = &vector;
/// assert_eq!(encode_tensor(&Raw, &spec, &bytes)?, tensor);
/// # Ok::<(), bigsmall_format::Error>(())
/// ```
///
/// # Errors
/// Those of [`TensorEncoding::plan`] and of `source`; [`Rule::BufferLength`] when `source` is not
/// as long as the tensor.
pub fn encode_tensor(
    encoding: &dyn TensorEncoding,
    spec: &TensorSpec,
    source: &dyn ReadAt,
) -> Result<EncodedTensor> {
    encode(encoding, spec, source, None)
}

/// [`encode_tensor`], or raw if that is not smaller or `encoding` does not take the dtype.
///
/// # Errors
/// Those of [`encode_tensor`].
pub fn encode_or_raw(
    encoding: &dyn TensorEncoding,
    spec: &TensorSpec,
    source: &dyn ReadAt,
) -> Result<EncodedTensor> {
    if encoding.supports(spec.dtype()) && spec.byte_len() > 0 {
        let encoded = encode_tensor(encoding, spec, source)?;
        if encoded.byte_len() < align8(spec.byte_len()) {
            return Ok(encoded);
        }
    }
    encode_tensor(&Raw, spec, source)
}

/// [`encode_tensor`] against `base`, the base as the tensor sees it (see
/// [`BaseTensor`](crate::BaseTensor)). An encoding without bases ignores it.
///
/// # Errors
/// Those of [`encode_tensor`] and of `base`; [`Rule::BufferLength`] when `base` is not as long as
/// the tensor.
pub fn encode_tensor_with_base(
    encoding: &dyn TensorEncoding,
    spec: &TensorSpec,
    source: &dyn ReadAt,
    base: &dyn ReadAt,
) -> Result<EncodedTensor> {
    let base = encoding.id().needs_base().then_some(base);
    encode(encoding, spec, source, base)
}

/// What a run of blocks is encoded into.
#[derive(Clone, Default)]
struct Output {
    bytes: Vec<u8>,
    lens: Vec<u32>,
    /// Checksums of the base's bytes of the blocks.
    base: Vec<u64>,
}

fn encode(
    encoding: &dyn TensorEncoding,
    spec: &TensorSpec,
    source: &dyn ReadAt,
    base: Option<&dyn ReadAt>,
) -> Result<EncodedTensor> {
    for source in std::iter::once(source).chain(base) {
        let found = len_of(source)?;
        if found != spec.byte_len() {
            return Err(Error::new(Rule::BufferLength)
                .in_tensor(spec.name())
                .expected(format!(
                    "{} bytes of {} {:?}",
                    spec.byte_len(),
                    spec.dtype(),
                    spec.shape()
                ))
                .found(found));
        }
    }
    let encoder = match base {
        None => encoding.plan(spec, source)?,
        Some(base) => encoding.plan_with_base(spec, source, base)?,
    };
    // Encodes a run to the end of the output. The scratch holds what is read.
    let encode_run = |range: Range<u64>, scratch: &mut [Vec<u8>; 2], out: &mut Output| {
        let [units, of_base] = scratch;
        let units = read_or_borrow(source, range.clone(), units)?;
        let first = range.start / spec.block_bytes() as u64;
        let Some(base) = base else {
            return encoder.encode_blocks(first, units, &mut out.bytes, &mut out.lens);
        };
        let base = read_or_borrow(base, range, of_base)?;
        out.base.extend(base.chunks(spec.block_bytes()).map(xxh3));
        encoder.encode_blocks_with_base(first, units, base, &mut out.bytes, &mut out.lens)
    };
    let run_bytes = (spec.block_bytes() * ENCODING_RUN) as u64;
    let n_runs = spec.byte_len().div_ceil(run_bytes) as usize;
    let n_blocks = spec.n_blocks() as usize;
    let mut all = Output {
        bytes: encoder.head().to_vec(),
        lens: room_for(n_blocks)?,
        base: room_for(if base.is_some() { n_blocks } else { 0 })?,
    };
    pad8(&mut all.bytes);
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
        let mut scratch = Default::default();
        for run in 0..n_runs {
            encode_run(range(run), &mut scratch, &mut all)?;
            if run == 0 && n_runs > 1 {
                let encoded = all.bytes.len();
                reserve_large(&mut all.bytes, room(encoded, 1))?;
            }
        }
    } else {
        // A few runs for each thread go into memory that the next ones use again, then, in order,
        // into the payload.
        let at_once = n_runs.min(threads.saturating_mul(RUNS_A_THREAD));
        let mut outputs = vec![Output::default(); at_once];
        for first in (0..n_runs).step_by(at_once.max(1)) {
            let outputs = &mut outputs[..at_once.min(n_runs - first)];
            for_each_in_parallel(
                (first..).zip(outputs.iter_mut()).collect::<Vec<_>>().into_iter(),
                Default::default,
                |scratch, (run, out)| {
                    out.bytes.clear();
                    out.lens.clear();
                    out.base.clear();
                    encode_run(range(run), scratch, out)
                },
            )?;
            if first == 0 {
                let encoded = outputs.iter().map(|out| out.bytes.len()).sum();
                reserve_large(&mut all.bytes, room(encoded, outputs.len()))?;
            }
            for out in outputs {
                reserve(&mut all.bytes, out.bytes.len())?;
                all.bytes.extend_from_slice(&out.bytes);
                all.lens.extend_from_slice(&out.lens);
                all.base.extend_from_slice(&out.base);
            }
        }
    }
    let (spec, id, head_len) = (spec.clone(), encoding.id(), encoder.head().len() as u32);
    match base {
        None => EncodedTensor::new(spec, id, head_len, all.lens, all.bytes),
        Some(_) => EncodedTensor::new_with_base(spec, id, head_len, all.lens, all.bytes, all.base),
    }
}
