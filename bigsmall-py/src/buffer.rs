//! Memory of Python objects as slices: the only place with `unsafe`.
#![allow(unsafe_code)]

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;

/// A buffer to read from: bytes that nobody may write to while a call runs.
pub(crate) struct Input {
    buffer: PyUntypedBuffer,
    /// Of which tensor; empty if that is not known.
    name: String,
}

impl Input {
    /// The buffer of `object`, which must be C-contiguous.
    pub(crate) fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Input { buffer: contiguous(object)?, name: String::new() })
    }

    /// The same for a tensor, which errors name.
    pub(crate) fn of(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let new = Self::new(object).map_err(|e| in_tensor(name, e, object.py()))?;
        Ok(Input { name: name.to_owned(), ..new })
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        let len = self.buffer.len_bytes();
        if len == 0 {
            return &[];
        }
        // SAFETY: the buffer protocol promises `len` bytes at this address, contiguous as `new`
        // checked, that stay allocated and in place while the `Py_buffer` is held, which outlives
        // the slice. No other part of this module writes to them: `outputs` takes another buffer.
        // That no other thread of Python writes to them is a condition in the documentation of
        // each function, as it is for NumPy's own operations that release the GIL.
        unsafe { std::slice::from_raw_parts(self.buffer.buf_ptr().cast(), len) }
    }
}

/// A buffer to write to.
pub(crate) struct Output {
    buffer: PyUntypedBuffer,
    /// As in `Input`.
    name: String,
}

impl Output {
    /// The buffer of `object`, which must be C-contiguous and writable.
    pub(crate) fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = contiguous(object)?;
        if buffer.readonly() {
            return Err(PyBufferError::new_err("the buffer is read-only"));
        }
        Ok(Output { buffer, name: String::new() })
    }

    /// The same for a tensor, which errors name.
    pub(crate) fn of(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let new = Self::new(object).map_err(|e| in_tensor(name, e, object.py()))?;
        Ok(Output { name: name.to_owned(), ..new })
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len_bytes()
    }
}

/// An error where two of the buffers have bytes in common, unless both are only read.
pub(crate) fn check_apart(outputs: &[Output], inputs: &[Input]) -> PyResult<()> {
    let outputs = outputs.iter().map(|o| (&o.buffer, o.name.as_str(), true));
    let inputs = inputs.iter().map(|i| (&i.buffer, i.name.as_str(), false));
    let mut ranges: Vec<(usize, usize, bool, &str)> = outputs
        .chain(inputs)
        .filter(|(buffer, ..)| buffer.len_bytes() > 0)
        .map(|(buffer, name, written)| {
            let begin = buffer.buf_ptr() as usize;
            (begin, begin + buffer.len_bytes(), written, name)
        })
        .collect();
    ranges.sort_unstable();
    // How far the buffers before reach, and those of them that are written to; whose that is.
    let (mut all, mut written_to) = ((0, ""), (0, ""));
    for (begin, end, written, name) in ranges {
        let (before, other) = if written { all } else { written_to };
        if begin < before {
            return Err(PyValueError::new_err(match (other, name) {
                ("", _) | (_, "") => "buffers overlap".to_owned(),
                _ => format!("buffers overlap: those of the tensors {other:?} and {name:?}"),
            }));
        }
        all = all.max((end, name));
        written_to = if written { written_to.max((end, name)) } else { written_to };
    }
    Ok(())
}

/// The slices of buffers, which may not overlap. No code of Python may run while they exist.
pub(crate) fn slices(outputs: &mut [Output]) -> PyResult<Vec<&mut [u8]>> {
    check_apart(outputs, &[])?;
    Ok(outputs
        .iter_mut()
        .map(|output| match output.len() {
            0 => &mut [][..],
            // SAFETY: the buffer protocol promises `len` bytes at this address, writable and
            // contiguous as `new` checked, that stay allocated and in place while the `Py_buffer`
            // is held, which the slice borrows. The check above says that no two slices overlap;
            // callers with inputs have compared those, too. That no other thread of Python uses
            // the bytes meanwhile is a condition in the documentation of each function, as it is
            // for `readinto` of Python's files.
            len => unsafe { std::slice::from_raw_parts_mut(output.buffer.buf_ptr().cast(), len) },
        })
        .collect())
}

/// Has the system map the pages of memory that is about to be written. One call for many pages
/// takes less time than a page fault for each, which is most of the time of loading.
pub(crate) fn map_pages(memory: &mut [u8]) {
    #[cfg(target_os = "linux")]
    {
        use rustix::mm::{Advice, madvise};
        const PAGE: usize = 4096;
        let begin = (memory.as_ptr() as usize).next_multiple_of(PAGE);
        let end = (memory.as_ptr() as usize + memory.len()) / PAGE * PAGE;
        if begin < end {
            // SAFETY: the range lies inside `memory`. This advice changes nothing that the memory
            // contains; its pages could be written to anyway.
            let mapped = unsafe {
                madvise(begin as *mut std::ffi::c_void, end - begin, Advice::LinuxPopulateWrite)
            };
            // Systems that do not know the advice map each page when it is written to.
            let _ = mapped;
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// A `BufferError` with the name of the tensor.
fn in_tensor(name: &str, error: PyErr, py: Python<'_>) -> PyErr {
    match error.is_instance_of::<PyBufferError>(py) {
        true => PyBufferError::new_err(format!("tensor {name:?}: {}", error.value(py))),
        false => error,
    }
}

fn contiguous(object: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let buffer = PyUntypedBuffer::get(object)?;
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer is not C-contiguous"));
    }
    Ok(buffer)
}
