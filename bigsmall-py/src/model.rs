//! An open model.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use bigsmall_io::{BaseModel, Error, ReadAt as _, Result, Rule, Stored, TensorSpec, hex};
use pyo3::prelude::*;
use pyo3::types::{PyAny, PyDict, PyTuple};
use rayon::prelude::*;

use crate::buffer::{Input, Output, check_apart, map_pages, slices};
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
    fn open(py: Python<'_>, path: PathBuf, base: Vec<PathBuf>) -> PyResult<Self> {
        let model = py.detach(|| with_bases(bigsmall_io::Model::open(path)?, &base));
        Ok(Model(Arc::new(model.map_err(|e| raise(py, &e))?)))
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &Bound<'_, PyAny>, base: Vec<PathBuf>) -> PyResult<Self> {
        let data = Input::new(data)?.bytes().to_vec();
        let model = py.detach(|| with_bases(bigsmall_io::Model::from_source(data)?, &base));
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

    /// What `inspect` says of each shard.
    fn shards<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let mut all = Vec::new();
        for (name, shard) in self.0.shards() {
            let stored = shard.source().byte_len().map_err(|e| raise(py, &Error::from(e)))?;
            let bases = shard.bases().iter().map(|found| {
                let base = PyDict::new(py);
                base.set_item("sha256", hex(&found.sha256))?;
                base.set_item("hint", &found.hint)?;
                base.set_item("bases_behind", found.depth)?;
                PyResult::Ok(base)
            });
            let file = PyDict::new(py);
            file.set_item("name", name)?;
            file.set_item("original_bytes", shard.original_len())?;
            file.set_item("compressed_bytes", stored)?;
            file.set_item("sha256", hex(&shard.sha256()))?;
            file.set_item("bases", bases.collect::<PyResult<Vec<_>>>()?)?;
            all.push(file);
        }
        Ok(all)
    }

    /// What `inspect` says of a tensor beside its name, dtype, shape and bytes.
    fn stored<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyDict>> {
        let Stored { shard, encoding, compressed_bytes, shares, base, md5, .. } =
            self.0.stored(name).map_err(|e| raise(py, &e))?;
        let base = base.filter(|_| shares.is_none()).map(|found| {
            let base = PyDict::new(py);
            base.set_item("base", found.base)?;
            base.set_item("tensor", found.tensor)?;
            base.set_item("blocks", found.n_blocks)?;
            base.set_item("same_blocks", found.n_same_blocks)?;
            PyResult::Ok(base)
        });
        let all = PyDict::new(py);
        all.set_item("encoding", encoding)?;
        all.set_item("compressed_bytes", compressed_bytes)?;
        all.set_item("shares", shares)?;
        all.set_item("base", base.transpose()?)?;
        all.set_item("shard", shard)?;
        all.set_item("md5", md5.map(|sum| hex(&sum)))?;
        Ok(all)
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
        let outputs = tensors.iter().map(|(name, out)| Output::of(name, out));
        let outputs = outputs.collect::<PyResult<Vec<Output>>>()?;
        check_apart(&outputs, &[])?;
        let total: u64 = outputs.iter().map(|out| out.len() as u64).sum();
        // A name or a length that is wrong is found before anything is read.
        for ((name, _), output) in tensors.iter().zip(&outputs) {
            let spec = self.0.spec(name).map_err(|e| raise(py, &e))?;
            if output.len() as u64 != spec.byte_len() {
                let error = Error::new(Rule::BufferLength).in_tensor(name);
                let error = error.expected(format!("{} bytes", spec.byte_len()));
                return Err(raise(py, &error.found(output.len())));
            }
        }
        // Those that lie together go into one batch.
        let places = self.0.tensors().map(TensorSpec::name).zip(0..);
        let places: HashMap<&str, usize> = places.collect();
        let names = tensors.iter().map(|(name, _)| name.as_str());
        let mut pairs: Vec<(&str, Output)> = names.zip(outputs).collect();
        pairs.sort_by_key(|(name, _)| places.get(name));
        let (names, mut outputs): (Vec<&str>, Vec<Output>) = pairs.into_iter().unzip();
        let (mut names, mut rest, mut done) = (&names[..], &mut outputs[..], 0);
        while !rest.is_empty() {
            let (mut n, mut bytes) = (1, rest[0].len() as u64);
            while n < rest.len() && bytes + rest[n].len() as u64 <= BATCH {
                bytes += rest[n].len() as u64;
                n += 1;
            }
            let (batch, after) = rest.split_at_mut(n);
            let (of_batch, names_after) = names.split_at(n);
            // The slices live for this statement only: code of Python runs below, and may look at
            // the buffers.
            let mut batch: Vec<_> = of_batch.iter().copied().zip(slices(batch)?).collect();
            let read = py.detach(|| {
                pool.install(|| {
                    batch.par_iter_mut().for_each(|(_, slice)| map_pages(slice));
                    self.0.tensors_into(batch)
                })
            });
            read.map_err(|e| raise(py, &e))?;
            (names, rest, done) = (names_after, after, done + bytes);
            py.check_signals()?;
            if let Some(progress) = &progress {
                progress.call1(py, (done, total))?;
            }
        }
        Ok(())
    }
}

/// The model with its base, and the bases behind that: files, folders or shards.
fn with_bases(model: bigsmall_io::Model, paths: &[PathBuf]) -> Result<bigsmall_io::Model> {
    let Some((first, others)) = paths.split_first() else { return Ok(model) };
    let mut all = BaseModel::open(first)?;
    for path in others {
        all = all.with_base(BaseModel::open(path)?);
    }
    model.with_base(all)
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
