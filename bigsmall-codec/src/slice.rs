//! The shortest way in and out: a slice of values, one line.

use bigsmall_format::{
    Dtype, EncodedTensor, EncodedView, Error, Result, Rule, TensorSpec, encode_tensor,
};
use bytemuck::{AnyBitPattern, NoUninit};

use crate::{Ans, Level};

/// Values that a tensor can hold. Implemented for the floats and integers of Rust and of the crate
/// `half`.
pub trait Element: AnyBitPattern + NoUninit + private::Sealed {
    /// The dtype of a tensor of such values.
    const DTYPE: Dtype;
}

mod private {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($type:ty = $dtype:ident),*) => {
        $(impl private::Sealed for $type {}
        impl Element for $type { const DTYPE: Dtype = Dtype::$dtype; })*
    };
}

elements!(
    f32 = F32,
    f64 = F64,
    u8 = U8,
    i8 = I8,
    u16 = U16,
    i16 = I16,
    u32 = U32,
    i32 = I32,
    u64 = U64,
    i64 = I64
);
#[cfg(feature = "half")]
elements!(half::bf16 = BF16, half::f16 = F16);

/// Encodes values into a frame on all cores, at [`Level::Default`]. Memory: the frame and its
/// payload once more.
///
/// A frame is one encoded tensor as bytes: dtype, shape, payload and checksums. [`decode`] needs
/// nothing else.
///
/// ```
/// let frame = bigsmall_codec::encode(&[1.0f32, 2.0, 3.0]);
/// assert_eq!(bigsmall_codec::peek(&frame)?.shape(), [3]);
/// # Ok::<(), bigsmall_codec::Error>(())
/// ```
///
/// # Panics
/// Where an allocation is refused; [`encode_into`] returns an error.
#[must_use]
pub fn encode<T: Element>(values: &[T]) -> Vec<u8> {
    encode_with(values, Level::Default)
}

/// Encodes values into a frame on all cores, with the effort `level`. Memory: the frame and its
/// payload once more.
///
/// ```
/// use bigsmall_codec::{Level, decode, encode, encode_with};
/// let weights: Vec<f32> = (0..10_000).map(|i| (i as f32).sin()).collect();
/// let frame = encode_with(&weights, Level::Small);
/// assert!(frame.len() <= encode(&weights).len());
/// let mut back = vec![0.0; weights.len()];
/// decode(&frame, &mut back)?;
/// assert_eq!(back, weights);
/// # Ok::<(), bigsmall_codec::Error>(())
/// ```
///
/// # Panics
/// Where an allocation is refused; [`encode_into`] returns an error.
#[must_use]
pub fn encode_with<T: Element>(values: &[T], level: Level) -> Vec<u8> {
    let tensor = encoded(values, level).expect("a slice has the length of its shape");
    tensor.to_bytes()
}

/// Encodes values on all cores, at [`Level::Default`], and appends the frame to `out`. Memory: the
/// payload, and what `out` has no room for.
///
/// For another level call [`encode_tensor`] with [`Ans::new(level)`](Ans::new), then
/// [`EncodedTensor::write_to`].
///
/// ```
/// use bigsmall_codec::{decode, encode_into};
/// let mut file = b"a container".to_vec();
/// encode_into(&[1.0f32, 2.0, 3.0], &mut file)?;
/// let mut back = [0.0f32; 3];
/// decode(&file[11..], &mut back)?;
/// assert_eq!(back, [1.0, 2.0, 3.0]);
/// # Ok::<(), bigsmall_codec::Error>(())
/// ```
///
/// # Errors
/// [`Rule::Memory`]; `out` is then as it was.
pub fn encode_into<T: Element>(values: &[T], out: &mut Vec<u8>) -> Result<()> {
    encoded(values, Level::Default)?.write_to(out)
}

fn encoded<T: Element>(values: &[T], level: Level) -> Result<EncodedTensor> {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let spec = TensorSpec::new("", T::DTYPE, &[values.len() as u64])?;
    if cfg!(target_endian = "little") {
        encode_tensor(&Ans::new(level), &spec, &bytes)
    } else {
        let mut swapped = bytes.to_vec();
        swap_bytes::<T>(&mut swapped);
        encode_tensor(&Ans::new(level), &spec, &swapped)
    }
}

/// Turns the values of this machine into little-endian ones, or those back, where it has the bytes
/// of a value in the other order.
pub(crate) fn swap_bytes<T: Element>(bytes: &mut [u8]) {
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(size_of::<T>()).for_each(<[u8]>::reverse);
    }
}

/// Decodes a frame made of values of type `T` into `values`, on all cores. The frame holds
/// `peek(frame)?.n_elements()` of them; see [`peek`](crate::peek).
///
/// ```
/// use bigsmall_codec::{decode, encode, peek};
/// let frame = encode(&[1.0f32, 2.0, 3.0]);
/// let mut values = vec![0.0f32; peek(&frame)?.n_elements() as usize];
/// decode(&frame, &mut values)?;
/// assert_eq!(values, [1.0, 2.0, 3.0]);
/// # Ok::<(), bigsmall_codec::Error>(())
/// ```
///
/// # Errors
/// [`Rule::SpecMismatch`] when the frame holds another dtype, [`Rule::BufferLength`] when `values`
/// has another length, and every error of a damaged frame.
pub fn decode<T: Element>(frame: &[u8], values: &mut [T]) -> Result<()> {
    let tensor = EncodedView::parse(frame)?;
    check_dtype::<T>(tensor.spec())?;
    let bytes = bytemuck::cast_slice_mut(values);
    decode_all(&tensor, bytes)?;
    swap_bytes::<T>(bytes);
    Ok(())
}

/// Encodes the little-endian bytes of a tensor of any dtype into a frame, on all cores, at
/// [`Level::Default`]. For another level call [`encode_tensor`]:
///
/// ```
/// use bigsmall_codec::{Ans, Dtype, Level, TensorSpec, decode_bytes, encode_bytes, encode_tensor};
/// let bytes = [1, 2, 3, 4];
/// let frame = encode_bytes(Dtype::F8_E4M3, &[2, 2], &bytes)?;
/// let spec = TensorSpec::new("w", Dtype::F8_E4M3, &[2, 2])?;
/// let small = encode_tensor(&Ans::new(Level::Small), &spec, &bytes.as_slice())?.to_bytes();
/// for frame in [frame, small] {
///     let mut back = [0; 4];
///     decode_bytes(&frame, &mut back)?;
///     assert_eq!(back, bytes);
/// }
/// # Ok::<(), bigsmall_codec::Error>(())
/// ```
///
/// # Errors
/// [`Rule::BufferLength`] when `bytes` is not as long as dtype and shape say; those of
/// [`TensorSpec::new`].
pub fn encode_bytes(dtype: Dtype, shape: &[u64], bytes: &[u8]) -> Result<Vec<u8>> {
    let spec = TensorSpec::new("", dtype, shape)?;
    Ok(encode_tensor(&Ans::default(), &spec, &bytes)?.to_bytes())
}

/// Decodes a frame of any dtype into `bytes`, little-endian, on all cores. The frame holds
/// `peek(frame)?.byte_len()` of them; see [`peek`](crate::peek).
///
/// # Errors
/// [`Rule::BufferLength`] when `bytes` has another length, and every error of a damaged frame.
pub fn decode_bytes(frame: &[u8], bytes: &mut [u8]) -> Result<()> {
    decode_all(&EncodedView::parse(frame)?, bytes)
}

fn decode_all(tensor: &EncodedView<'_>, bytes: &mut [u8]) -> Result<()> {
    check_len(tensor.spec(), bytes.len())?;
    tensor.decode_bytes(&Ans::default(), 0..bytes.len() as u64, bytes)
}

/// Checks that a frame holds values of type `T`.
pub(crate) fn check_dtype<T: Element>(spec: &TensorSpec) -> Result<()> {
    if spec.dtype() != T::DTYPE {
        return Err(Error::new(Rule::SpecMismatch)
            .in_tensor(spec.name())
            .expected(T::DTYPE)
            .found(spec.dtype()));
    }
    Ok(())
}

/// Checks that a buffer has the length of the tensor.
pub(crate) fn check_len(spec: &TensorSpec, found: usize) -> Result<()> {
    if spec.byte_len() != found as u64 {
        return Err(Error::new(Rule::BufferLength)
            .in_tensor(spec.name())
            .expected(format!("{} bytes", spec.byte_len()))
            .found(found));
    }
    Ok(())
}
