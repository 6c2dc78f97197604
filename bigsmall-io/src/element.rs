//! Element types of Rust, and their dtypes.

use bigsmall_format::Dtype;

/// An element type of Rust for saving and reading tensors: the integers of 8 to 64 bits, `f32` and
/// `f64`, and with the feature `half` also `half::bf16` and `half::f16`.
///
/// Tensors of other dtypes, such as the 8-bit floats, are saved and read as bytes.
///
/// ```
/// use bigsmall_io::{Dtype, Element};
/// assert_eq!(<f32 as Element>::DTYPE, Dtype::F32);
/// ```
pub trait Element: sealed::Sealed {
    /// The dtype of a tensor with these elements.
    const DTYPE: Dtype;
}

pub(crate) mod sealed {
    /// Elements whose every bit pattern is a value. Only this crate implements it.
    pub trait Sealed: bytemuck::Pod {
        /// The element with these little-endian bytes, as many as it has.
        fn from_le(bytes: &[u8]) -> Self;
        /// The element in little-endian order.
        fn to_le(self) -> Self;
    }
}

macro_rules! elements {
    ($($type:ty: $dtype:ident;)*) => {$(
        impl sealed::Sealed for $type {
            fn from_le(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<$type>()];
                own.copy_from_slice(bytes);
                <$type>::from_le_bytes(own)
            }

            fn to_le(self) -> Self {
                <$type>::from_ne_bytes(self.to_le_bytes())
            }
        }

        impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;
        }
    )*};
}

elements! {
    u8: U8;
    i8: I8;
    u16: U16;
    i16: I16;
    u32: U32;
    i32: I32;
    u64: U64;
    i64: I64;
    f32: F32;
    f64: F64;
}

#[cfg(feature = "half")]
elements! {
    half::f16: F16;
    half::bf16: BF16;
}
