//! Pages: many small buffers of one kind, coded with tables that they share.

use bigsmall_codec::Result;
use bigsmall_io::{Dtype, Error};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::{Input, Output, check_apart, slices};
use crate::error::raise;
use crate::job::level;

/// Tables for pages. Any number of threads may use them at once.
#[pyclass(frozen, module = "bigsmall_rs._bigsmall")]
pub(crate) struct Pages(bigsmall_codec::Pages);

#[pymethods]
impl Pages {
    #[staticmethod]
    fn train(
        py: Python<'_>,
        dtype: &str,
        samples: Vec<Bound<'_, PyAny>>,
        level: &str,
    ) -> PyResult<Self> {
        let level = self::level(level)?;
        let dtype = in_python(py, Dtype::from_name(dtype))?;
        let samples = samples.iter().map(Input::new).collect::<PyResult<Vec<Input>>>()?;
        let samples: Vec<&[u8]> = samples.iter().map(Input::bytes).collect();
        let trained = py.detach(|| bigsmall_codec::Pages::train_with(dtype, &samples, level));
        Ok(Pages(in_python(py, trained)?))
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, tables: &Bound<'_, PyAny>) -> PyResult<Self> {
        let tables = Input::new(tables)?;
        let bytes = tables.bytes();
        let read = py.detach(|| bigsmall_codec::Pages::from_bytes(bytes));
        Ok(Pages(in_python(py, read)?))
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.to_bytes())
    }

    fn dtype(&self) -> &'static str {
        self.0.dtype().name()
    }

    fn max_encoded_len(&self, byte_len: usize) -> usize {
        self.0.max_encoded_len(byte_len)
    }

    fn page_len(&self, py: Python<'_>, encoded: &Bound<'_, PyAny>) -> PyResult<usize> {
        in_python(py, self.0.page_len(Input::new(encoded)?.bytes()))
    }

    fn encode_into(
        &self,
        py: Python<'_>,
        page: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<usize> {
        code(py, page, out, |page, out| self.0.encode_page(page, out))
    }

    fn decode_into(
        &self,
        py: Python<'_>,
        encoded: &Bound<'_, PyAny>,
        page: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        code(py, encoded, page, |encoded, page| self.0.decode_page(encoded, page))
    }
}

/// Does `work` on this thread with the GIL released.
fn code<T: Send>(
    py: Python<'_>,
    input: &Bound<'_, PyAny>,
    output: &Bound<'_, PyAny>,
    work: impl FnOnce(&[u8], &mut [u8]) -> Result<T> + Send,
) -> PyResult<T> {
    let (input, mut output) = ([Input::new(input)?], [Output::new(output)?]);
    check_apart(&output, &input)?;
    let bytes = input[0].bytes();
    let mut slices = slices(&mut output)?;
    let done = py.detach(|| work(bytes, slices[0]));
    drop(slices);
    in_python(py, done)
}

/// An error of the codec as an exception.
pub(crate) fn in_python<T>(py: Python<'_>, result: Result<T>) -> PyResult<T> {
    result.map_err(|e| raise(py, &Error::from(e)))
}
