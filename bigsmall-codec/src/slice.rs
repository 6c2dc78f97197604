//! The shortest way in and out: a slice of values, one line.

use bigsmall_format::{Dtype, EncodedTensor, Error, Result, Rule, TensorSpec, encode_tensor};
use bytemuck::{AnyBitPattern, NoUninit};

use crate::Ans;

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
    half::bf16 = BF16,
    half::f16 = F16,
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

/// Encodes values into a frame on all cores. Memory: the frame and its payload once more.
///
/// # Panics
/// Never: a slice in memory is shorter than the 2^63 bytes that a tensor may have.
#[must_use]
pub fn encode<T: Element>(values: &[T]) -> Vec<u8> {
    let bytes = bytemuck::cast_slice(values);
    let shape = [values.len() as u64];
    if cfg!(target_endian = "little") {
        encode_bytes(T::DTYPE, &shape, bytes)
    } else {
        let mut swapped = bytes.to_vec();
        swap_bytes::<T>(&mut swapped);
        encode_bytes(T::DTYPE, &shape, &swapped)
    }
    .expect("a slice has the length of its shape")
}

/// Turns the values of this machine into little-endian ones, or those back, where it has the bytes
/// of a value in the other order.
fn swap_bytes<T: Element>(bytes: &mut [u8]) {
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(size_of::<T>()).for_each(<[u8]>::reverse);
    }
}

/// Decodes a frame made of values of type `T` into `values`, on all cores.
///
/// # Errors
/// [`Rule::SpecMismatch`] when the frame holds another dtype, [`Rule::BufferLength`] when `values`
/// has another length, and every error of a damaged frame.
pub fn decode<T: Element>(frame: &[u8], values: &mut [T]) -> Result<()> {
    let tensor = EncodedTensor::from_bytes(frame)?;
    if tensor.spec().dtype() != T::DTYPE {
        return Err(Error::new(Rule::SpecMismatch)
            .in_tensor(tensor.spec().name())
            .expected(T::DTYPE)
            .found(tensor.spec().dtype()));
    }
    let bytes = bytemuck::cast_slice_mut(values);
    decode_all(&tensor, bytes)?;
    swap_bytes::<T>(bytes);
    Ok(())
}

/// Encodes the little-endian bytes of a tensor of any dtype into a frame, on all cores.
///
/// # Errors
/// [`Rule::BufferLength`] when `bytes` is not as long as dtype and shape say; those of
/// [`TensorSpec::new`].
pub fn encode_bytes(dtype: Dtype, shape: &[u64], bytes: &[u8]) -> Result<Vec<u8>> {
    let spec = TensorSpec::new("", dtype, shape)?;
    Ok(encode_tensor(&Ans::default(), &spec, &bytes)?.to_bytes())
}

/// Decodes a frame of any dtype into `bytes`, little-endian, on all cores.
///
/// # Errors
/// [`Rule::BufferLength`] when `bytes` has another length, and every error of a damaged frame.
pub fn decode_bytes(frame: &[u8], bytes: &mut [u8]) -> Result<()> {
    decode_all(&EncodedTensor::from_bytes(frame)?, bytes)
}

fn decode_all(tensor: &EncodedTensor, bytes: &mut [u8]) -> Result<()> {
    let n = tensor.spec().byte_len();
    if bytes.len() as u64 != n {
        return Err(Error::new(Rule::BufferLength)
            .in_tensor(tensor.spec().name())
            .expected(format!("{n} bytes"))
            .found(bytes.len()));
    }
    tensor.decode_bytes(&Ans::default(), 0..n, bytes)
}
