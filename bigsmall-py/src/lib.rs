//! The extension module `bigsmall_rs._bigsmall`: `bigsmall-io` for Python.
//!
//! Everything that users see is in `python/bigsmall_rs`; `_bigsmall.pyi` says what is here. Work
//! runs with the GIL released, in the pool of [`pool`]; long work looks for signals meanwhile.
#![deny(unsafe_code)]

mod buffer;
mod delta;
mod error;
mod job;
mod loader;
mod model;
mod pages;
mod pool;
mod save;

use pyo3::prelude::*;

/// Reads, writes and checks bigsmall shards.
#[pymodule(gil_used = true)]
mod _bigsmall {
    #[pymodule_export]
    use crate::delta::{apply_deltas, changes, decode_delta, delta_spec, encode_delta};
    #[pymodule_export]
    use crate::job::{compress, estimate, index, restore, transcode, verify};
    #[pymodule_export]
    use crate::loader::Loader;
    #[pymodule_export]
    use crate::model::{Model, layer_of};
    #[pymodule_export]
    use crate::pages::Pages;
    #[pymodule_export]
    use crate::save::{save, save_bytes};

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
