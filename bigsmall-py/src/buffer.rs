//! Memory of Python objects as slices: the only place with `unsafe`.
#![allow(unsafe_code)]

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;

/// A buffer to read from: bytes that nobody may write to while a call runs.
pub(crate) struct Input(PyUntypedBuffer);

impl Input {
    /// The buffer of `object`, which must be C-contiguous.
    pub(crate) fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        contiguous(object).map(Input)
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        let len = self.0.len_bytes();
        if len == 0 {
            return &[];
        }
        // SAFETY: the buffer protocol promises `len` bytes at this address, contiguous as `new`
        // checked, that stay allocated and in place while the `Py_buffer` is held, which outlives
        // the slice. No other part of this module writes to them: `outputs` takes another buffer.
        // That no other thread of Python writes to them is a condition in the documentation of
        // each function, as it is for NumPy's own operations that release the GIL.
        unsafe { std::slice::from_raw_parts(self.0.buf_ptr().cast(), len) }
    }
}

/// A buffer to write to.
pub(crate) struct Output(PyUntypedBuffer);

impl Output {
    /// The buffer of `object`, which must be C-contiguous and writable.
    pub(crate) fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = contiguous(object)?;
        if buffer.readonly() {
            return Err(PyBufferError::new_err("the buffer is read-only"));
        }
        Ok(Output(buffer))
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len_bytes()
    }
}

/// The slices of buffers, which may not overlap.
pub(crate) fn slices(outputs: &mut [Output]) -> PyResult<Vec<&mut [u8]>> {
    let mut ranges: Vec<(usize, usize)> = outputs
        .iter()
        .filter(|output| output.len() > 0)
        .map(|output| (output.0.buf_ptr() as usize, output.len()))
        .collect();
    ranges.sort_unstable();
    if ranges.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        return Err(PyValueError::new_err("buffers overlap"));
    }
    Ok(outputs
        .iter_mut()
        .map(|output| match output.len() {
            0 => &mut [][..],
            // SAFETY: the buffer protocol promises `len` bytes at this address, writable and
            // contiguous as `new` checked, that stay allocated and in place while the `Py_buffer`
            // is held, which the slice borrows. The check above says that no two slices overlap.
            // That no other thread of Python uses them meanwhile is a condition in the
            // documentation of each function, as it is for `readinto` of Python's files.
            len => unsafe { std::slice::from_raw_parts_mut(output.0.buf_ptr().cast(), len) },
        })
        .collect())
}

fn contiguous(object: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let buffer = PyUntypedBuffer::get(object)?;
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer is not C-contiguous"));
    }
    Ok(buffer)
}
