//! From buffers to a shard.

use std::collections::HashMap;
use std::path::PathBuf;

use bigsmall_io::{Dtype, Error, FileReport, Progress, Result, SaveOptions, TensorView};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::Input;
use crate::error::raise;
use crate::job::{encoding, run};

/// Name, dtype, shape and buffer of a tensor.
type Given<'py> = (String, String, Vec<u64>, Bound<'py, PyAny>);

#[pyfunction]
#[pyo3(signature = (path, tensors, metadata, encoding, level, replace, progress=None))]
#[expect(clippy::too_many_arguments, reason = "keywords in Python")]
pub(crate) fn save(
    py: Python<'_>,
    path: PathBuf,
    tensors: Vec<Given<'_>>,
    metadata: Option<HashMap<String, String>>,
    encoding: &str,
    level: &str,
    replace: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<(u64, u64)> {
    let options = SaveOptions::default().encoding(self::encoding(encoding, level)?);
    let options = options.replace(replace);
    let report = with_views(py, tensors, progress.as_ref(), |views, progress| {
        bigsmall_io::save_with(&path, views, metadata, &options, progress)
    })?;
    Ok((report.original_bytes, report.compressed_bytes))
}

#[pyfunction]
#[pyo3(signature = (tensors, metadata, encoding, level))]
pub(crate) fn save_bytes<'py>(
    py: Python<'py>,
    tensors: Vec<Given<'_>>,
    metadata: Option<HashMap<String, String>>,
    encoding: &str,
    level: &str,
) -> PyResult<Bound<'py, PyBytes>> {
    let options = SaveOptions::default().encoding(self::encoding(encoding, level)?);
    let mut shard = Vec::new();
    with_views(py, tensors, None, |views, progress| {
        bigsmall_io::save_to(&mut shard, views, metadata, &options, progress)
    })?;
    Ok(PyBytes::new(py, &shard))
}

/// Does `work` with the tensors.
fn with_views(
    py: Python<'_>,
    tensors: Vec<Given<'_>>,
    callback: Option<&Py<PyAny>>,
    work: impl FnOnce(Vec<(&str, TensorView<'_>)>, &Progress) -> Result<FileReport> + Send,
) -> PyResult<FileReport> {
    let inputs = tensors.iter().map(|(name, .., buffer)| Input::of(name, buffer));
    let inputs = inputs.collect::<PyResult<Vec<Input>>>()?;
    let mut views = Vec::new();
    for ((name, dtype, shape, _), input) in tensors.iter().zip(&inputs) {
        let dtype =
            Dtype::from_name(dtype).map_err(|e| raise(py, &Error::from(e).in_tensor(name)))?;
        views.push((name.as_str(), TensorView::new(dtype, shape, input.bytes())));
    }
    run(py, callback, |progress| work(views, progress))
}
