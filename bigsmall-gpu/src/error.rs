//! The error type of this crate.

use std::error::Error as StdError;
use std::fmt;

use bigsmall_format::internal::{Chain, Line};
use bigsmall_format::{Class, Error as FormatError, Rule};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no adapter, or none with the requested name.
    NoAdapter,
    /// The device refused a command, or the adapter could not be opened. The source says why.
    Device,
    /// The device was lost. Everything on it is gone.
    DeviceLost,
    /// There is not enough memory on the device or the host.
    OutOfMemory,
    /// The limits of the device are exceeded.
    TooLarge,
    /// A tensor belongs to another device.
    WrongDevice,
    /// A buffer has the wrong length.
    BufferLength,
    /// A row does not exist.
    RowOutOfRange,
    /// A tensor has the wrong dtype, shape or form.
    Mismatch,
    /// Another argument is wrong.
    Argument,
    /// The encoded tensor cannot be decoded. [`Error::format`] says why.
    Encoded,
}

impl ErrorKind {
    const fn text(self) -> &'static str {
        match self {
            ErrorKind::NoAdapter => "no such GPU adapter",
            ErrorKind::Device => "the device refused a command or could not be opened",
            ErrorKind::DeviceLost => "the device was lost",
            ErrorKind::OutOfMemory => "not enough memory",
            ErrorKind::TooLarge => "too large for this device",
            ErrorKind::WrongDevice => "the tensor belongs to another device",
            ErrorKind::BufferLength => "a buffer has the wrong length",
            ErrorKind::RowOutOfRange => "the row does not exist",
            ErrorKind::Mismatch => "the tensor has the wrong dtype, shape or form",
            ErrorKind::Argument => "an argument is wrong",
            ErrorKind::Encoded => "the encoded tensor cannot be decoded",
        }
    }
}

/// An error: its [`kind`](Self::kind), the tensor, what was expected and what was found. The cause,
/// if any, is its [`source`](StdError::source); `Display` leaves it out, `Debug` prints it.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    tensor: Option<Box<str>>,
    expected: Option<Box<str>>,
    found: Option<Box<str>>,
    source: Option<Source>,
}

enum Source {
    Format(FormatError),
    #[cfg(feature = "wgpu")]
    Other(Box<dyn StdError + Send + Sync>),
}

impl Error {
    #[cold]
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Error(Box::new(Inner { kind, tensor: None, expected: None, found: None, source: None }))
    }

    /// Adds the name of the tensor, unless the error has one.
    pub(crate) fn in_tensor(mut self, name: &str) -> Self {
        if self.tensor().is_none() {
            self.0.tensor = Some(name.into());
        }
        self
    }

    pub(crate) fn expected(mut self, what: impl fmt::Display) -> Self {
        self.0.expected = Some(what.to_string().into());
        self
    }

    pub(crate) fn found(mut self, what: impl fmt::Display) -> Self {
        self.0.found = Some(what.to_string().into());
        self
    }

    #[cfg(feature = "wgpu")]
    pub(crate) fn caused_by(mut self, cause: impl StdError + Send + Sync + 'static) -> Self {
        self.0.source = Some(Source::Other(Box::new(cause)));
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self.0.kind {
            ErrorKind::NoAdapter | ErrorKind::Device => Class::Unsupported,
            ErrorKind::DeviceLost => Class::Io,
            ErrorKind::OutOfMemory | ErrorKind::TooLarge => Class::Limit,
            ErrorKind::WrongDevice
            | ErrorKind::BufferLength
            | ErrorKind::RowOutOfRange
            | ErrorKind::Mismatch
            | ErrorKind::Argument => Class::Usage,
            ErrorKind::Encoded => self.format().map_or(Class::Corrupt, FormatError::class),
        }
    }

    /// The name of the tensor, if known.
    #[must_use]
    pub fn tensor(&self) -> Option<&str> {
        self.0.tensor.as_deref().or_else(|| self.format()?.tensor())
    }

    /// Writes the error in one line, without its cause.
    fn write_line(&self, f: &mut fmt::Formatter<'_>, tensor: Option<&str>) -> fmt::Result {
        let line = Line {
            file: None,
            tensor,
            problem: &self.0.kind.text(),
            offset: None,
            expected: self.0.expected.as_deref(),
            found: self.0.found.as_deref(),
        };
        write!(f, "{line}")
    }

    /// The decoder's error: which rule of the format is broken, and where.
    #[must_use]
    pub fn format(&self) -> Option<&FormatError> {
        match &self.0.source {
            Some(Source::Format(error)) => Some(error),
            #[cfg(feature = "wgpu")]
            Some(Source::Other(_)) => None,
            None => None,
        }
    }
}

impl From<FormatError> for Error {
    fn from(error: FormatError) -> Self {
        let kind = match error.rule() {
            Rule::Memory => ErrorKind::OutOfMemory,
            _ => ErrorKind::Encoded,
        };
        let mut ours = Error::new(kind);
        ours.0.source = Some(Source::Format(error));
        ours
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_line(f, self.tensor())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} [{:?}]: ", self.kind(), self.class())?;
        // If only the cause knows the tensor, the cause prints its name.
        self.write_line(f, self.0.tensor.as_deref())?;
        match self.source() {
            Some(cause) => write!(f, ": {}", Chain(cause)),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self.0.source.as_ref()? {
            Source::Format(error) => Some(error),
            #[cfg(feature = "wgpu")]
            Source::Other(error) => Some(&**error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_names_a_tensor_once() {
        let cause = FormatError::new(Rule::BlockChecksum).in_tensor("w").at(9);
        let error = Error::from(cause).in_tensor("w");
        assert_eq!(error.tensor(), Some("w"));
        assert!(error.to_string().starts_with(r#"tensor "w": "#), "{error}");
        let text = format!("{error:?}");
        assert_eq!(text.matches(r#""w""#).count(), 1, "{text}");
        assert!(text.contains(&Rule::BlockChecksum.to_string()), "{text}");
    }
}
