//! Jobs over files and folders, which report progress and can be interrupted.

use std::ffi::CString;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use bigsmall_io::{
    CompressOptions, Encoding, FolderOptions, IndexOptions, Level, Progress, Report,
    RestoreOptions, Result, hex,
};
use pyo3::exceptions::{PyRuntimeError, PyUserWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::error::raise;
use crate::pool::pool;

/// How often a job looks for signals and reports progress.
const TICK: Duration = Duration::from_millis(50);

/// Does `work` in the pool with the GIL released, while this thread looks for signals, gives
/// warnings and calls `callback(done, total)`. What any of them raises cancels the work and is
/// raised in the end.
pub(crate) fn run<T: Send>(
    py: Python<'_>,
    callback: Option<&Py<PyAny>>,
    work: impl FnOnce(&Progress) -> Result<T> + Send,
) -> PyResult<T> {
    let pool = pool(py)?;
    let (warn, warnings) = channel::<String>();
    let progress = Progress::default().on_warning(move |text| {
        // Received by this function, which outlives the work.
        let _ = warn.send(text.to_owned());
    });
    let progress = &progress;
    let report = move |py: Python<'_>| {
        for text in warnings.try_iter() {
            // Of the function of Python that called `bigsmall_rs`.
            PyErr::warn(py, &py.get_type::<PyUserWarning>(), &CString::new(text)?, 2)?;
        }
        match callback {
            Some(f) => f.call1(py, (progress.done_bytes(), progress.total_bytes())).map(drop),
            None => Ok(()),
        }
    };
    let (done, raised, report) = py.detach(move || {
        std::thread::scope(|scope| {
            let (sender, receiver) = channel();
            let builder = std::thread::Builder::new().name("bigsmall job".into());
            let job = builder.spawn_scoped(scope, move || {
                // Dropped at the end, also when the work panics: that ends the wait below.
                let _ended: Sender<()> = sender;
                pool.install(|| work(progress))
            });
            let job = match job {
                Ok(job) => job,
                Err(e) => return (Err(PyRuntimeError::new_err(e.to_string())), None, report),
            };
            let mut raised = None;
            while let Err(RecvTimeoutError::Timeout) = receiver.recv_timeout(TICK) {
                if raised.is_some() {
                    continue;
                }
                raised = Python::attach(|py| py.check_signals().and_then(|()| report(py)).err());
                if raised.is_some() {
                    progress.cancel();
                }
            }
            let panicked = |_| PyRuntimeError::new_err("a job panicked");
            (job.join().map_err(panicked), raised, report)
        })
    });
    if let Some(raised) = raised {
        return Err(raised);
    }
    let done = done?.map_err(|e| raise(py, &e))?;
    py.check_signals()?;
    report(py)?;
    Ok(done)
}

/// The level of that name.
pub(crate) fn level(name: &str) -> PyResult<Level> {
    match name {
        "fast" => Ok(Level::Fast),
        "default" => Ok(Level::Default),
        "small" => Ok(Level::Small),
        _ => Err(PyValueError::new_err("level must be \"fast\", \"default\" or \"small\"")),
    }
}

/// The encoding of that name.
pub(crate) fn encoding(name: &str, level: &str) -> PyResult<Encoding> {
    let level = self::level(level)?;
    match name {
        "ans" => Ok(Encoding::Ans(level)),
        "raw" => Ok(Encoding::Raw),
        "tbe3" => Ok(Encoding::Tbe3),
        "tbe4" => Ok(Encoding::Tbe4),
        _ => Err(PyValueError::new_err("encoding must be \"ans\", \"raw\", \"tbe3\" or \"tbe4\"")),
    }
}

/// Which files of a folder are taken: `hidden`, `max_files` and `max_depth`.
type Folder = (bool, Option<u64>, Option<usize>);

fn folder((hidden, max_files, max_depth): Folder) -> FolderOptions {
    let default = FolderOptions::new();
    let options = default.hidden(hidden).max_files(max_files.unwrap_or(default.max_files));
    options.max_depth(max_depth.unwrap_or(default.max_depth))
}

#[pyfunction]
#[pyo3(signature = (input, output, encoding, level, base, md5, replace, dry_run, folder, progress))]
#[expect(clippy::too_many_arguments, reason = "keywords in Python")]
pub(crate) fn compress<'py>(
    py: Python<'py>,
    input: PathBuf,
    output: PathBuf,
    encoding: &str,
    level: &str,
    base: Vec<PathBuf>,
    md5: bool,
    replace: bool,
    dry_run: bool,
    folder: Folder,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let options = CompressOptions::new().encoding(self::encoding(encoding, level)?);
    let options = options.md5(md5).replace(replace).dry_run(dry_run).folder(self::folder(folder));
    let options = base.into_iter().fold(options, CompressOptions::base);
    let report = run(py, progress.as_ref(), |progress| {
        bigsmall_io::compress(&input, &output, &options, progress)
    })?;
    to_dict(py, &report)
}

#[pyfunction]
#[pyo3(signature = (
    input, output, base, replace, max_expansion, ignore_free_space, folder, progress
))]
#[expect(clippy::too_many_arguments, reason = "keywords in Python")]
pub(crate) fn restore<'py>(
    py: Python<'py>,
    input: PathBuf,
    output: PathBuf,
    base: Vec<PathBuf>,
    replace: bool,
    max_expansion: Option<u64>,
    ignore_free_space: bool,
    folder: Folder,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let options = RestoreOptions::new().replace(replace).max_expansion(max_expansion);
    let options = options.ignore_free_space(ignore_free_space).folder(self::folder(folder));
    let options = base.into_iter().fold(options, RestoreOptions::base);
    let report = run(py, progress.as_ref(), |progress| {
        bigsmall_io::restore(&input, &output, &options, progress)
    })?;
    to_dict(py, &report)
}

#[pyfunction]
#[pyo3(signature = (input, base, md5, max_expansion, folder, progress))]
pub(crate) fn verify<'py>(
    py: Python<'py>,
    input: PathBuf,
    base: Vec<PathBuf>,
    md5: bool,
    max_expansion: Option<u64>,
    folder: Folder,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let options = RestoreOptions::new().md5(md5).max_expansion(max_expansion);
    let options = options.folder(self::folder(folder));
    let options = base.into_iter().fold(options, RestoreOptions::base);
    let report =
        run(py, progress.as_ref(), |progress| bigsmall_io::verify(&input, &options, progress))?;
    to_dict(py, &report)
}

/// Rewrites a shard: as differences from `onto`, or without a base.
#[pyfunction]
#[pyo3(signature = (
    input, output, onto, encoding, level, base, md5, replace, max_expansion, progress
))]
#[expect(clippy::too_many_arguments, reason = "keywords in Python")]
pub(crate) fn transcode<'py>(
    py: Python<'py>,
    input: PathBuf,
    output: PathBuf,
    onto: Option<PathBuf>,
    encoding: &str,
    level: &str,
    base: Vec<PathBuf>,
    md5: bool,
    replace: bool,
    max_expansion: Option<u64>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let options = CompressOptions::new().encoding(self::encoding(encoding, level)?);
    let options = options.md5(md5).replace(replace).max_expansion(max_expansion);
    let options = base.into_iter().fold(options, CompressOptions::base);
    let report = run(py, progress.as_ref(), |progress| match &onto {
        Some(onto) => bigsmall_io::rebase(&input, onto, &output, &options, progress),
        None => bigsmall_io::transcode(&input, &output, &options, progress),
    })?;
    to_dict(py, &report)
}

/// Makes one model from the shards in a folder.
#[pyfunction]
#[pyo3(signature = (dir, original, replace, folder))]
pub(crate) fn index<'py>(
    py: Python<'py>,
    dir: PathBuf,
    original: Option<PathBuf>,
    replace: bool,
    folder: Folder,
) -> PyResult<Bound<'py, PyDict>> {
    let options = IndexOptions::new().replace(replace).folder(self::folder(folder));
    let options = original.into_iter().fold(options, IndexOptions::original);
    let report = run(py, None, |progress| bigsmall_io::index(&dir, &options, progress))?;
    to_dict(py, &report)
}

/// Original bytes, estimated bytes, the ratio of both, and estimated seconds.
#[pyfunction]
#[pyo3(signature = (input, encoding, level, folder, progress))]
pub(crate) fn estimate(
    py: Python<'_>,
    input: PathBuf,
    encoding: &str,
    level: &str,
    folder: Folder,
    progress: Option<Py<PyAny>>,
) -> PyResult<(u64, u64, f64, f64)> {
    let options = CompressOptions::new().encoding(self::encoding(encoding, level)?);
    let options = options.folder(self::folder(folder));
    let found =
        run(py, progress.as_ref(), |progress| bigsmall_io::estimate(&input, &options, progress))?;
    Ok((found.original_bytes, found.compressed_bytes, found.ratio(), found.seconds))
}

/// A report as `bigsmall_rs.Report` describes it.
fn to_dict<'py>(py: Python<'py>, report: &Report) -> PyResult<Bound<'py, PyDict>> {
    let files = PyList::empty(py);
    for file in &report.files {
        let entry = PyDict::new(py);
        entry.set_item("name", &file.name)?;
        entry.set_item("original_bytes", file.original_bytes)?;
        entry.set_item("compressed_bytes", file.compressed_bytes)?;
        entry.set_item("sha256", hex(&file.sha256))?;
        entry.set_item("tensors", file.n_tensors)?;
        entry.set_item("shared_tensors", file.n_shared)?;
        entry.set_item("delta_tensors", file.n_deltas)?;
        entry.set_item("inherited_tensors", file.n_inherited)?;
        let md5 = PyDict::new(py);
        for (name, sum) in &file.md5s {
            md5.set_item(name, hex(sum))?;
        }
        entry.set_item("md5", md5)?;
        files.append(entry)?;
    }
    let all = PyDict::new(py);
    all.set_item("original_bytes", report.original_bytes)?;
    all.set_item("compressed_bytes", report.compressed_bytes)?;
    all.set_item("ratio", report.ratio())?;
    all.set_item("files", files)?;
    all.set_item("left_out", &report.left_out)?;
    all.set_item("links_out", &report.links_out)?;
    Ok(all)
}
