//! An open model.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use bigsmall_io::{Error, ReadAt as _, Result, Rule, TensorSpec, hex};
use pyo3::prelude::*;
use pyo3::types::{PyAny, PyDict, PyTuple};

use crate::buffer::{Input, Output, slices};
use crate::error::raise;
use crate::pool::pool;

/// Original bytes that are decoded before signals are looked for and progress is reported.
const BATCH: u64 = 256 << 20;

/// A shard or a folder of shards, open. Any thread may use it.
#[pyclass(frozen, module = "bigsmall_rs._bigsmall")]
pub(crate) struct Model(pub(crate) Arc<bigsmall_io::Model>);

/// Name, dtype, shape and bytes of a tensor.
pub(crate) type Described<'a> = (&'a str, &'static str, Bound<'a, PyTuple>, u64);

/// A tensor as `Described`.
pub(crate) fn describe<'a>(py: Python<'a>, spec: &'a TensorSpec) -> PyResult<Described<'a>> {
    let shape = PyTuple::new(py, spec.shape())?;
    Ok((spec.name(), spec.dtype().name(), shape, spec.byte_len()))
}

/// The layer that the tensor `name` is a part of.
#[pyfunction]
pub(crate) fn layer_of(name: &str) -> &str {
    bigsmall_io::layer_of(name)
}

#[pymethods]
impl Model {
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let model = py.detach(|| bigsmall_io::Model::open(path));
        Ok(Model(Arc::new(model.map_err(|e| raise(py, &e))?)))
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<Self> {
        let data = Input::new(data)?.bytes().to_vec();
        let model = py.detach(|| bigsmall_io::Model::from_source(data));
        Ok(Model(Arc::new(model.map_err(|e| raise(py, &e))?)))
    }

    fn tensors<'py>(&'py self, py: Python<'py>) -> PyResult<Vec<Described<'py>>> {
        self.0.tensors().map(|spec| describe(py, spec)).collect()
    }

    fn layers(&self) -> Vec<&str> {
        self.0.layers()
    }

    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let all = PyDict::new(py);
        for (key, value) in self.0.metadata().map_err(|e| raise(py, &e))? {
            all.set_item(key, value)?;
        }
        Ok(all)
    }

    fn shards(&self, py: Python<'_>) -> PyResult<Vec<(&str, u64, u64, String)>> {
        let mut all = Vec::new();
        for (name, shard) in self.0.shards() {
            let stored = shard.source().byte_len().map_err(|e| raise(py, &Error::from(e)))?;
            all.push((name, shard.original_len(), stored, hex(&shard.sha256())));
        }
        Ok(all)
    }

    #[expect(clippy::type_complexity, reason = "a tuple in Python")]
    fn stored(
        &self,
        py: Python<'_>,
        name: &str,
    ) -> PyResult<(String, &'static str, u64, Option<String>, Option<String>)> {
        let found = self.0.stored(name).map_err(|e| raise(py, &e))?;
        let md5 = found.md5.map(|sum| hex(&sum));
        Ok((found.shard, found.encoding, found.compressed_bytes, found.shares, md5))
    }

    fn read_into(&self, py: Python<'_>, name: &str, out: &Bound<'_, PyAny>) -> PyResult<()> {
        self.one(py, out, |model, dst| model.tensor_into(name, dst))
    }

    fn read_rows_into(
        &self,
        py: Python<'_>,
        name: &str,
        begin: u64,
        end: u64,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.one(py, out, |model, dst| model.rows_into(name, begin..end, dst))
    }

    #[pyo3(signature = (tensors, progress=None))]
    fn read_many_into(
        &self,
        py: Python<'_>,
        tensors: Vec<(String, Bound<'_, PyAny>)>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let pool = pool(py)?;
        let outputs = tensors.iter().map(|(_, out)| Output::new(out));
        let mut outputs = outputs.collect::<PyResult<Vec<Output>>>()?;
        let total: u64 = outputs.iter().map(|out| out.len() as u64).sum();
        let names = tensors.iter().map(|(name, _)| name.as_str());
        let mut pairs: Vec<(&str, &mut [u8])> = names.zip(slices(&mut outputs)?).collect();
        // A name or a length that is wrong is found before anything is read.
        for (name, slice) in &pairs {
            let spec = self.0.spec(name).map_err(|e| raise(py, &e))?;
            if slice.len() as u64 != spec.byte_len() {
                let error = Error::new(Rule::BufferLength).in_tensor(name);
                let error = error.expected(format!("{} bytes", spec.byte_len()));
                return Err(raise(py, &error.found(slice.len())));
            }
        }
        // Those that lie together go into one batch.
        let places = self.0.tensors().map(TensorSpec::name).zip(0..);
        let places: HashMap<&str, usize> = places.collect();
        pairs.sort_by_key(|(name, _)| places.get(name));
        let (mut done, mut pairs) = (0, pairs.into_iter().peekable());
        while pairs.peek().is_some() {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while let Some(pair) =
                pairs.next_if(|(_, slice)| bytes == 0 || bytes + slice.len() as u64 <= BATCH)
            {
                bytes += pair.1.len() as u64;
                batch.push(pair);
            }
            py.detach(|| pool.install(|| self.0.tensors_into(batch))).map_err(|e| raise(py, &e))?;
            done += bytes;
            py.check_signals()?;
            if let Some(progress) = &progress {
                progress.call1(py, (done, total))?;
            }
        }
        Ok(())
    }
}

impl Model {
    /// Decodes into one buffer.
    fn one(
        &self,
        py: Python<'_>,
        out: &Bound<'_, PyAny>,
        work: impl FnOnce(&bigsmall_io::Model, &mut [u8]) -> Result<()> + Send,
    ) -> PyResult<()> {
        let pool = pool(py)?;
        let mut output = [Output::new(out)?];
        let Some(slice) = slices(&mut output)?.pop() else { return Ok(()) };
        py.detach(|| pool.install(|| work(&self.0, slice))).map_err(|e| raise(py, &e))
    }
}
