//! Errors of bigsmall as exceptions of Python.

use bigsmall_io::{Error, ErrorKind};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// `bigsmall_rs.BigsmallError` with what is known about `error`.
pub(crate) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    static CLASSES: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();
    let classes = CLASSES.get_or_try_init(py, || {
        let module = py.import("bigsmall_rs._errors")?;
        PyResult::Ok((
            module.getattr("BigsmallError")?.unbind(),
            module.getattr("BigsmallFileNotFoundError")?.unbind(),
        ))
    });
    let (other, not_found) = match classes {
        Ok(classes) => classes,
        Err(e) => return e,
    };
    let class = if is_not_found(error) { not_found } else { other };
    let rule = match error.kind() {
        ErrorKind::Format(rule) => format!("{rule:?}"),
        kind => format!("{kind:?}"),
    };
    let message = with_causes(error);
    let arguments = (message.as_str(), rule, error.file(), error.tensor(), error.offset());
    match class.bind(py).call1(arguments) {
        Ok(value) => PyErr::from_value(value),
        Err(_) => PyRuntimeError::new_err(message),
    }
}

/// The error's text and those of its causes.
fn with_causes(error: &Error) -> String {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(found) = cause {
        message += &format!(": {found}");
        cause = found.source();
    }
    message
}

fn is_not_found(error: &Error) -> bool {
    let source = std::error::Error::source(error);
    let source = source.and_then(|s| s.downcast_ref::<std::io::Error>());
    error.kind() == ErrorKind::Io
        && source.is_some_and(|s| s.kind() == std::io::ErrorKind::NotFound)
}
