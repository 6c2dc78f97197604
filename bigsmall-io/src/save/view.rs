//! A tensor in memory, to be saved.

use std::borrow::Cow;
use std::fmt;

use bigsmall_format::Dtype;

use crate::{Element, Tensor};

/// A tensor in memory: its dtype, its shape and its values, borrowed or owned.
///
/// Creating a view checks nothing. [`save`](crate::save) and the other functions that save check
/// that the values have the length of the shape; their errors name the tensor.
///
/// ```
/// use bigsmall_io::{Dtype, TensorView};
/// let from_values = TensorView::from_slice(&[2, 2], &[1f32, 2., 3., 4.]);
/// let bytes: Vec<u8> = [1f32, 2., 3., 4.].into_iter().flat_map(f32::to_le_bytes).collect();
/// assert_eq!(TensorView::new(Dtype::F32, &[2, 2], bytes), from_values);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct TensorView<'a> {
    dtype: Dtype,
    shape: Box<[u64]>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> TensorView<'a> {
    /// A tensor of that dtype and shape (row-major; an empty shape is a scalar) with the
    /// little-endian values `bytes`, a slice or a vector.
    #[must_use]
    pub fn new(dtype: Dtype, shape: &[u64], bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        TensorView { dtype, shape: shape.into(), bytes: bytes.into() }
    }

    /// A tensor of that shape with these elements. On little-endian machines nothing is copied.
    #[must_use]
    pub fn from_slice<T: Element>(shape: &[u64], values: &'a [T]) -> Self {
        if cfg!(target_endian = "little") {
            return TensorView::new(T::DTYPE, shape, bytemuck::cast_slice(values));
        }
        let values: Vec<T> = values.iter().map(|value| value.to_le()).collect();
        TensorView::new(T::DTYPE, shape, bytemuck::cast_slice(&values).to_vec())
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape, row-major.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// The values, little-endian and row-major.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn into_bytes(self) -> Cow<'a, [u8]> {
        self.bytes
    }
}

impl<'a> From<&'a Tensor> for TensorView<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        TensorView::new(tensor.spec().dtype(), tensor.spec().shape(), tensor.bytes())
    }
}

impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorView")
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .field("byte_len", &self.bytes.len())
            .finish()
    }
}
