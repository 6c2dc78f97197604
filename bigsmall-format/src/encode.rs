//! Encoding a whole tensor.

use crate::read_at::{len_of, read_or_borrow};
use crate::wire::{pad8, reserve, room_for};
use crate::{
    EncodedTensor, Error, ReadAt, Result, Rule, TensorEncoding, TensorSpec, for_each_in_parallel,
    pool_size,
};

/// How many blocks are given to an encoder at once: it has the next ones fetched while it encodes,
/// but knows of no more than it is given.
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
    pad8(&mut payload);
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
