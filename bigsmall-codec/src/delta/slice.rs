//! The shortest way in and out: slices of values and their base, one line.

use bigsmall_format::internal::{for_each_in_parallel, reserve, set_len};
use bigsmall_format::{
    BaseTensor, BlockDecoder, Dtype, EncodedRef, EncodedTensor, EncodedView, EncodingId, Error,
    Result, TensorSpec, encode_tensor, encode_tensor_with_base,
};

use super::decode::Kept;
use super::encoding::{DECODING, Decoder, Delta};
use crate::scratch::with_scratch;
use crate::slice::{check_dtype, check_len, swap_bytes};
use crate::{Ans, Element};

/// If a delta takes less than this part of the tensor, no encoding without a base is tried.
const WITHOUT_COMPARISON: u64 = 1000;

/// Encodes values as differences from `base`, on all cores, into a frame; without the base where
/// that is smaller. [`decode_delta`] needs the frame and the same base.
///
/// If one of both slices is longer, the common values are the first ones.
///
/// ```
/// use bigsmall_codec::{decode_delta, encode_delta};
/// let base: Vec<f32> = (0..100_000).map(|i| (i as f32).sin()).collect();
/// let mut new = base.clone();
/// new[70_000] += 1e-6;
/// let frame = encode_delta(&new, &base);
/// assert!(frame.len() < 200);
/// let mut back = vec![0.0; new.len()];
/// decode_delta(&frame, &base, &mut back)?;
/// assert_eq!(back, new);
/// # Ok::<(), bigsmall_codec::Error>(())
/// ```
///
/// # Panics
/// Where an allocation is refused; [`encode_delta_bytes`] returns an error.
#[must_use]
pub fn encode_delta<T: Element>(new: &[T], base: &[T]) -> Vec<u8> {
    let (new, base) = (little_endian(new), little_endian(base));
    let shape = [(new.len() / size_of::<T>()) as u64];
    let of_base = [(base.len() / size_of::<T>()) as u64];
    let spec = |shape: &[u64]| TensorSpec::new("", T::DTYPE, shape);
    let tensor = spec(&shape).and_then(|new_spec| encode(&new_spec, &new, &spec(&of_base)?, &base));
    tensor.expect("slices have the lengths of their shapes").to_bytes()
}

/// The little-endian bytes of values.
fn little_endian<T: Element>(values: &[T]) -> std::borrow::Cow<'_, [u8]> {
    let mut bytes = std::borrow::Cow::Borrowed(bytemuck::cast_slice::<T, u8>(values));
    if cfg!(target_endian = "big") {
        swap_bytes::<T>(bytes.to_mut());
    }
    bytes
}

/// Encodes the little-endian bytes of a tensor of any dtype as differences from the bytes of its
/// base, which has the same dtype and shape, on all cores, into a frame; without the base where
/// that is smaller.
///
/// # Errors
/// [`Rule::BufferLength`](crate::Rule::BufferLength) when `new` or `base` is not as long as dtype
/// and shape say; [`Rule::Memory`](crate::Rule::Memory); those of [`TensorSpec::new`].
pub fn encode_delta_bytes(dtype: Dtype, shape: &[u64], new: &[u8], base: &[u8]) -> Result<Vec<u8>> {
    let spec = TensorSpec::new("", dtype, shape)?;
    Ok(encode(&spec, new, &spec, base)?.to_bytes())
}

/// The smaller one of the tensor as differences from `base`, and without a base.
fn encode(
    spec: &TensorSpec,
    new: &[u8],
    base_spec: &TensorSpec,
    base: &[u8],
) -> Result<EncodedTensor> {
    let base = BaseTensor::new(spec, base_spec, base)?;
    let delta = encode_tensor_with_base(&Delta::default(), spec, &new, &base)?;
    let size = |tensor: &EncodedTensor| tensor.byte_len() + 12 * tensor.table().n_blocks();
    // Where a delta is that small, an encoding without a base could save next to nothing.
    if size(&delta) < new.len() as u64 / WITHOUT_COMPARISON {
        return Ok(delta);
    }
    let alone = encode_tensor(&Ans::default(), spec, &new)?;
    Ok(if size(&alone) < size(&delta) + 8 * delta.table().n_blocks() { alone } else { delta })
}

/// Decodes a frame of [`encode_delta`] into `values`, on all cores.
///
/// # Errors
/// [`Rule::BaseMismatch`](crate::Rule::BaseMismatch) when `base` is not the one that the frame was
/// made against; each block of it is checked before anything is decoded from it. A frame that was
/// stored without its base, because that was smaller, fits any weights of its length.
/// [`Rule::SpecMismatch`](crate::Rule::SpecMismatch) when the frame holds another dtype,
/// [`Rule::BufferLength`](crate::Rule::BufferLength) when `values` has another length,
/// [`Rule::Memory`](crate::Rule::Memory), and every error of a damaged frame. After an error the
/// contents of `values` are unspecified.
pub fn decode_delta<T: Element>(frame: &[u8], base: &[T], values: &mut [T]) -> Result<()> {
    let tensor = EncodedView::parse(frame)?;
    check_dtype::<T>(tensor.spec())?;
    let base_spec = TensorSpec::new("", T::DTYPE, &[base.len() as u64])?;
    let flat = TensorSpec::new("", T::DTYPE, &[tensor.spec().n_elements()])?;
    let base = little_endian(base);
    let base = BaseTensor::new(&flat, &base_spec, &*base)?;
    let bytes = bytemuck::cast_slice_mut(values);
    decode(&tensor, &base, bytes)?;
    swap_bytes::<T>(bytes);
    Ok(())
}

/// Decodes a frame of any dtype into `bytes`, on all cores; all bytes are little-endian. `base` is
/// as long as `bytes`.
///
/// # Errors
/// Those of [`decode_delta`].
pub fn decode_delta_bytes(frame: &[u8], base: &[u8], bytes: &mut [u8]) -> Result<()> {
    let tensor = EncodedView::parse(frame)?;
    check_len(tensor.spec(), base.len())?;
    decode(&tensor, &base, bytes)
}

fn decode(
    tensor: &EncodedView<'_>,
    base: &dyn bigsmall_format::ReadAt,
    bytes: &mut [u8],
) -> Result<()> {
    check_len(tensor.spec(), bytes.len())?;
    let all = 0..bytes.len() as u64;
    if tensor.encoding() != EncodingId::Delta {
        return tensor.decode_bytes(&Ans::default(), all, bytes);
    }
    EncodedRef::from(tensor).decode_bytes_with_base(&Delta::default(), base, all, bytes)
}

/// Applies a frame of [`encode_delta`] to its base in place, on all cores: weights that are in use
/// become the new ones. Everything is checked before the first weight changes; after an error all
/// weights are as they were, unless it is [`Rule::Memory`](crate::Rule::Memory): where memory ends
/// in the second pass, blocks that were applied before stay applied.
///
/// The weights are read once, to compare them with the checksums of the base, and of sparse blocks
/// no others than those that change are written. Blocks in which many weights change are decoded
/// twice.
///
/// Memory: four decoded blocks for each thread, and 16 bytes for each weight that changes in blocks
/// in which at most one in 24 does.
///
/// ```
/// use bigsmall_codec::{Rule, apply_delta, encode_delta};
/// let old: Vec<f32> = (0..100_000).map(|i| (i as f32).sin()).collect();
/// let new: Vec<f32> = old.iter().map(|w| w * 1.001).collect();
/// let frame = encode_delta(&new, &old);
/// let mut live = old.clone();
/// apply_delta(&frame, &mut live)?;
/// assert_eq!(live, new);
/// // The weights are no longer those that the frame was made against.
/// assert_eq!(apply_delta(&frame, &mut live).unwrap_err().rule(), Rule::BaseMismatch);
/// assert_eq!(live, new);
/// # Ok::<(), bigsmall_codec::Error>(())
/// ```
///
/// # Errors
/// Those of [`decode_delta`]. A frame that was stored without its base, because that was smaller,
/// fits any weights of its length.
pub fn apply_delta<T: Element>(frame: &[u8], live: &mut [T]) -> Result<()> {
    let tensor = EncodedView::parse(frame)?;
    check_dtype::<T>(tensor.spec())?;
    let bytes = bytemuck::cast_slice_mut(live);
    swap_bytes::<T>(bytes);
    let applied = apply(&tensor, bytes);
    swap_bytes::<T>(bytes);
    applied
}

/// The same for the little-endian bytes of a tensor of any dtype.
///
/// # Errors
/// Those of [`apply_delta`].
pub fn apply_delta_bytes(frame: &[u8], live: &mut [u8]) -> Result<()> {
    apply(&EncodedView::parse(frame)?, live)
}

/// The same for several tensors, each with its name for errors: all of them become the new ones, or
/// none does. Each frame is checked once.
///
/// # Errors
/// Those of [`apply_delta`].
pub fn apply_deltas_bytes(tensors: &mut [(&str, &[u8], &mut [u8])]) -> Result<()> {
    let mut checked = Vec::new();
    for (name, frame, live) in tensors.iter() {
        let one = || {
            let tensor = EncodedView::parse(frame)?;
            let checked = check(&tensor, live)?;
            Ok((tensor, checked))
        };
        reserve(&mut checked, 1)?;
        checked.push(one().map_err(|e: Error| e.in_tensor(name))?);
    }
    for ((tensor, checked), (name, _, live)) in checked.iter().zip(tensors) {
        replace(tensor, checked, live).map_err(|e| e.in_tensor(name))?;
    }
    Ok(())
}

fn apply(tensor: &EncodedView<'_>, live: &mut [u8]) -> Result<()> {
    let checked = check(tensor, live)?;
    replace(tensor, &checked, live)
}

/// What replaces the weights of a tensor that was checked.
#[allow(clippy::large_enum_variant)] // one for each tensor of a call; boxing would allocate
enum Checked {
    Alone(Box<dyn BlockDecoder>),
    /// With what was kept of each block.
    Delta(Decoder, Vec<Kept>),
}

/// Blocks that are decoded at a time.
const RUN: usize = 4;

/// Checks and decodes everything aside.
fn check(tensor: &EncodedView<'_>, live: &[u8]) -> Result<Checked> {
    check_len(tensor.spec(), live.len())?;
    tensor.check_head()?;
    let named = |e: Error| e.in_tensor(tensor.spec().name());
    let block_bytes = tensor.spec().block_bytes();
    let first = (0..).step_by(RUN);
    let runs = first.zip(live.chunks(RUN * block_bytes)).collect::<Vec<_>>();
    if tensor.encoding() != EncodingId::Delta {
        let decoder = tensor.open(&Ans::default())?;
        let check = |aside: &mut Vec<u8>, (first, live): (u64, &[u8])| {
            let (blocks, n) = blocks(tensor, first);
            (first..first + n as u64).try_for_each(|index| tensor.check_block(index))?;
            set_len(aside, live.len())?;
            decoder.decode_blocks(&blocks[..n], &mut aside[..live.len()])
        };
        for_each_in_parallel(runs.into_iter(), Vec::new, check).map_err(named)?;
        return Ok(Checked::Alone(decoder));
    }
    let decoder = Delta::default().decoder(tensor.spec(), tensor.head())?;
    let mut kept = Vec::new();
    set_len(&mut kept, tensor.table().n_blocks() as usize)?;
    let runs = runs.into_iter().zip(kept.chunks_mut(RUN)).collect::<Vec<_>>();
    for_each_in_parallel(
        runs.into_iter(),
        || (),
        |(), ((first, live), kept)| {
            let (blocks, n) = blocks(tensor, first);
            let mut bases = [&live[..0]; RUN];
            for ((index, live), base) in (first..).zip(live.chunks(block_bytes)).zip(&mut bases) {
                tensor.check_block(index)?;
                tensor.table().check_base(index, live)?;
                *base = live;
            }
            with_scratch(&DECODING, |scratch| {
                decoder.check_some(&blocks[..n], &bases[..n], kept, scratch)
            })
        },
    )
    .map_err(named)?;
    Ok(Checked::Delta(decoder, kept))
}

/// The blocks of a run, and how many they are.
fn blocks<'a>(tensor: &'a EncodedView<'_>, first: u64) -> ([&'a [u8]; RUN], usize) {
    let n = (tensor.table().n_blocks() - first).min(RUN as u64) as usize;
    let of = |i: usize| if i < n { tensor.block(first + i as u64) } else { &[] };
    (std::array::from_fn(of), n)
}

/// Decodes in place what [`check`] has checked.
fn replace(tensor: &EncodedView<'_>, checked: &Checked, live: &mut [u8]) -> Result<()> {
    let block_bytes = tensor.spec().block_bytes();
    let first = (0..).step_by(RUN);
    let runs = first.zip(live.chunks_mut(RUN * block_bytes)).collect::<Vec<_>>();
    let replace = |(): &mut (), (first, live): (u64, &mut [u8])| {
        let (blocks, n) = blocks(tensor, first);
        let blocks = &blocks[..n];
        let (decoder, kept) = match checked {
            Checked::Alone(decoder) => return decoder.decode_blocks(blocks, live),
            Checked::Delta(decoder, kept) => (decoder, &kept[first as usize..][..n]),
        };
        if kept.iter().all(Option::is_none) {
            return decoder.decode_blocks(blocks, live);
        }
        let pieces = blocks.iter().zip(live.chunks_mut(block_bytes));
        kept.iter().zip(pieces).try_for_each(|(kept, (block, live))| match kept {
            Some(changes) => {
                decoder.patch(changes, live);
                Ok(())
            }
            None => decoder.decode_blocks(&[*block], live),
        })
    };
    for_each_in_parallel(runs.into_iter(), || (), replace)
        .map_err(|e| e.in_tensor(tensor.spec().name()))
}

/// The values that a frame changes, as sparse patches are given: the places in the tensor, counted
/// in elements and rising, and the new values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changes<T> {
    /// The place of each change.
    pub indices: Vec<u64>,
    /// The new value at each of these places.
    pub values: Vec<T>,
}

/// The values that a frame of [`encode_delta`] changes in `base`, for programs that take places and
/// new values. Sparse blocks are read without decoding the others of their units.
///
/// Memory: the result, while it grows twice that, and one decoded block.
///
/// ```
/// use bigsmall_codec::{changes, encode_delta};
/// let base = vec![1.0f32; 50_000];
/// let mut new = base.clone();
/// (new[7], new[40_000]) = (2.0, 3.0);
/// let changes = changes(&encode_delta(&new, &base), &base)?;
/// assert_eq!((changes.indices, changes.values), (vec![7, 40_000], vec![2.0, 3.0]));
/// # Ok::<(), bigsmall_codec::Error>(())
/// ```
///
/// # Errors
/// Those of [`decode_delta`]; [`Rule::BufferLength`](crate::Rule::BufferLength) when `base` has
/// another length.
pub fn changes<T: Element>(frame: &[u8], base: &[T]) -> Result<Changes<T>> {
    let tensor = EncodedView::parse(frame)?;
    check_dtype::<T>(tensor.spec())?;
    let base = little_endian(base);
    check_len(tensor.spec(), base.len())?;
    let (spec, width) = (tensor.spec(), size_of::<T>());
    let named = |e: Error| e.in_tensor(spec.name());
    let mut found = Changes { indices: Vec::new(), values: Vec::new() };
    let make_room = |found: &mut Changes<T>, n: usize| {
        reserve(&mut found.indices, n)?;
        reserve(&mut found.values, n)
    };
    let push = |found: &mut Changes<T>, index: usize, bytes: &[u8]| {
        let mut value = T::zeroed();
        let place = bytemuck::bytes_of_mut(&mut value);
        place.copy_from_slice(bytes);
        swap_bytes::<T>(place);
        found.indices.push(index as u64);
        found.values.push(value);
    };
    tensor.check_head()?;
    let delta = match tensor.encoding() {
        EncodingId::Delta => Some(Delta::default().decoder(spec, tensor.head())?),
        _ => None,
    };
    let alone;
    let decoder: &dyn BlockDecoder = match &delta {
        Some(delta) => delta,
        None => {
            alone = tensor.open(&Ans::default())?;
            &*alone
        }
    };
    let mut aside = Vec::new();
    let mut of_block = Vec::new();
    for (index, base) in (0..).zip(base.chunks(spec.block_bytes())) {
        tensor.check_block(index)?;
        let block = tensor.block(index);
        let first = index as usize * spec.block_bytes() / width;
        if let Some(delta) = &delta {
            tensor.table().check_base(index, base).map_err(named)?;
            of_block.clear();
            let is_sparse = with_scratch(&DECODING, |scratch| {
                delta.changes(block, base, scratch, &mut of_block)
            });
            if is_sparse.map_err(named)? {
                // Units are elements, or bytes of elements.
                let unit = spec.dtype().unit_bytes();
                let element = |&(position, _): &(u32, u64)| position as usize * unit / width;
                of_block.sort_unstable_by_key(|&(position, _)| position);
                make_room(&mut found, of_block.len())?;
                for units in of_block.chunk_by(|a, b| element(a) == element(b)) {
                    let place = element(&units[0]);
                    let old = &base[place * width..][..width];
                    let mut new = [0; 8];
                    let new = &mut new[..width];
                    new.copy_from_slice(old);
                    for &(position, value) in units {
                        let at = position as usize * unit % width;
                        new[at..at + unit].copy_from_slice(&value.to_le_bytes()[..unit]);
                    }
                    if new != old {
                        push(&mut found, first + place, new);
                    }
                }
                continue;
            }
        }
        set_len(&mut aside, base.len())?;
        aside.copy_from_slice(base);
        decoder.decode_blocks(&[block], &mut aside).map_err(named)?;
        make_room(&mut found, base.len() / width)?;
        for (i, (new, base)) in aside.chunks_exact(width).zip(base.chunks_exact(width)).enumerate()
        {
            if new != base {
                push(&mut found, first + i, new);
            }
        }
    }
    Ok(found)
}
