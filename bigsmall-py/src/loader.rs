//! A model layer by layer, the next layers being read meanwhile.

use std::sync::{Arc, Mutex, MutexGuard};

use bigsmall_io::{StreamOptions, StreamingLoader};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::buffer::{Output, slices};
use crate::error::raise;
use crate::model::{Described, Model, describe};
use crate::pool::pool;

/// Streams the layers of a model. One thread at a time may use it.
#[pyclass(frozen, module = "bigsmall_rs._bigsmall")]
pub(crate) struct Loader {
    model: Arc<bigsmall_io::Model>,
    stream: Mutex<StreamingLoader>,
}

#[pymethods]
impl Loader {
    #[new]
    #[pyo3(signature = (model, budget=None))]
    fn new(py: Python<'_>, model: &Model, budget: Option<u64>) -> PyResult<Self> {
        let options = StreamOptions::default();
        let options = budget.map_or(options, |bytes| options.budget(bytes));
        let stream = StreamingLoader::new(Arc::clone(&model.0), &options);
        let stream = Mutex::new(stream.map_err(|e| raise(py, &e))?);
        Ok(Loader { model: Arc::clone(&model.0), stream })
    }

    fn peek<'py>(&'py self, py: Python<'py>) -> PyResult<Option<(String, Vec<Described<'py>>)>> {
        let stream = self.lock()?;
        let Some(layer) = stream.peek_layer() else { return Ok(None) };
        let specs = layer.tensors().iter().map(|spec| {
            let spec = self.model.spec(spec.name()).map_err(|e| raise(py, &e))?;
            describe(py, spec)
        });
        Ok(Some((layer.name().to_owned(), specs.collect::<PyResult<_>>()?)))
    }

    fn next_into(
        &self,
        py: Python<'_>,
        tensors: Vec<(String, Bound<'_, PyAny>)>,
    ) -> PyResult<bool> {
        let pool = pool(py)?;
        let outputs = tensors.iter().map(|(name, out)| Output::of(name, out));
        let mut outputs = outputs.collect::<PyResult<Vec<Output>>>()?;
        // Before the loader moves on, as a layer must not be lost; and before the slices exist, as
        // the handler of a signal may be code of Python.
        py.check_signals()?;
        let mut stream = self.lock()?;
        let stream = &mut *stream;
        let names = tensors.iter().map(|(name, _)| name.as_str());
        let pairs: Vec<(&str, &mut [u8])> = names.zip(slices(&mut outputs)?).collect();
        let more = py.detach(|| pool.install(|| stream.next_into_slices(pairs)));
        more.map_err(|e| raise(py, &e))
    }
}

impl Loader {
    fn lock(&self) -> PyResult<MutexGuard<'_, StreamingLoader>> {
        // Never waits: whoever holds it may wait for the GIL.
        let busy = |_| PyRuntimeError::new_err("another thread is using this loader");
        self.stream.try_lock().map_err(busy)
    }
}
