//! This crate's error: what went wrong, in which file and tensor, where, and what caused it.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::Path;

use bigsmall_format::internal::{Chain, Line};
use bigsmall_format::{Class, Rule};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! kinds {
    ($($variant:ident: $class:ident, $text:literal;)*) => {
        /// What went wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorKind {
            /// A rule of the format, or of the crates that encode and decode, is broken.
            Format(Rule),
            $(#[doc = $text] $variant,)*
        }

        impl ErrorKind {
            /// What a caller can do about it.
            #[must_use]
            pub const fn class(self) -> Class {
                match self {
                    ErrorKind::Format(rule) => rule.class(),
                    $(ErrorKind::$variant => Class::$class,)*
                }
            }
        }

        impl fmt::Display for ErrorKind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    ErrorKind::Format(rule) => rule.fmt(f),
                    $(ErrorKind::$variant => f.write_str($text),)*
                }
            }
        }
    };
}

kinds! {
    Io: Io, "reading or writing failed";
    SourceChanged: Io, "the file changed while it was read";
    Remote: Io, "the server did not answer as it should";
    ReadBack: Io, "what was written does not decode to the original";
    NotARegularFile: Io, "not a regular file";
    Cancelled: Cancelled, "cancelled";
    // Model folders.
    ModelIndex: Corrupt, "the model's index file is wrong";
    ModelPath: Corrupt, "a shard's path leads out of the model's folder";
    ModelTensor: Corrupt, "the model's index file and the shards disagree about a tensor";
    Differs: Corrupt, "not the files of the repository";
    ModelIndexTooLarge: Limit, "the model's index file is larger than the limit";
    TooManyShards: Limit, "more shards than the limit";
    MetadataTooLarge: Limit, "more metadata than the limit";
    TooManyFiles: Limit, "more files in the folder than the limit";
    FolderTooDeep: Limit, "more folders in one another than the limit";
    // Weight sync.
    SyncManifest: Corrupt, "the manifest of a sync is wrong";
    SyncChain: Corrupt, "a step of a sync is missing or incomplete";
    SyncTooLarge: Limit, "a sync holds more than the limit";
    SyncVersion: Unsupported, "a newer version wrote the manifest of the sync; update bigsmall";
    SyncBusy: Io, "another publisher writes to this place";
    // Callers.
    Argument: Usage, "an argument is wrong";
    OutputExists: Usage, "the output exists";
    OutputHoldsMore: Usage, "the output folder holds files that are not replaced";
    SameFile: Usage, "input and output are the same, or one lies within the other";
    TensorMissing: Usage, "no tensor of that name";
    FeatureMissing: Unsupported, "this build lacks a feature";
    Memory: Limit, "not enough memory";
    Expansion: Limit, "restores to more bytes than the limit";
    Space: Io, "not enough free space for the output";
}

/// What both crates know is the same kind of error, whichever of them finds it.
impl From<Rule> for ErrorKind {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Io => ErrorKind::Io,
            Rule::SourceChanged => ErrorKind::SourceChanged,
            Rule::TensorMissing => ErrorKind::TensorMissing,
            Rule::Memory => ErrorKind::Memory,
            rule => ErrorKind::Format(rule),
        }
    }
}

/// An error of this crate: its [`ErrorKind`], in which file and tensor, where, what was expected
/// and what was found.
///
/// `Display` prints these facts in one line. What caused the error, if anything, is its
/// [`source`](StdError::source) and is not part of that line. To print both, follow the sources as
/// below; with the crate `anyhow`, print the error with `{:#}`. `Debug` prints the line and the
/// chain.
///
/// An error of [`bigsmall_format`] becomes one of this crate with all its facts: its rule is
/// [`ErrorKind::Format`], and its source stays the source.
///
/// ```
/// use std::error::Error as _;
/// use bigsmall_io::{ErrorKind, Model};
///
/// let error = Model::open("no/such/model.bs").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Io);
/// assert_eq!(error.file(), Some("no/such/model.bs"));
/// assert!(error.source().is_some_and(|e| e.is::<std::io::Error>()));
///
/// eprint!("{error}");
/// let mut cause = error.source();
/// while let Some(error) = cause {
///     eprint!(": {error}");
///     cause = error.source();
/// }
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    file: Option<Box<str>>,
    tensor: Option<Box<str>>,
    offset: Option<u64>,
    expected: Option<Box<str>>,
    found: Option<Box<str>>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of that kind; add what is known with the methods below.
    #[cold]
    #[must_use]
    pub fn new(kind: impl Into<ErrorKind>) -> Self {
        Error(Box::new(Inner {
            kind: kind.into(),
            file: None,
            tensor: None,
            offset: None,
            expected: None,
            found: None,
            source: None,
        }))
    }

    /// Names the file, unless one is named already.
    #[must_use]
    pub fn in_file(mut self, path: impl AsRef<Path>) -> Self {
        self.0.file.get_or_insert_with(|| path.as_ref().to_string_lossy().into());
        self
    }

    /// Names the input in an error about its bytes.
    pub(crate) fn in_input(self, path: impl AsRef<Path>) -> Self {
        match self.0.kind {
            ErrorKind::Format(_) | ErrorKind::SourceChanged => self.in_file(path),
            _ => self,
        }
    }

    /// Names the tensor, unless one is named already.
    #[must_use]
    pub fn in_tensor(mut self, name: &str) -> Self {
        self.0.tensor.get_or_insert_with(|| name.into());
        self
    }

    /// Names the byte offset in the file, unless one is named already.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// Says what was expected.
    #[must_use]
    pub fn expected(mut self, what: impl fmt::Display) -> Self {
        self.0.expected = Some(what.to_string().into());
        self
    }

    /// Says what was found.
    #[must_use]
    pub fn found(mut self, what: impl fmt::Display) -> Self {
        self.0.found = Some(what.to_string().into());
        self
    }

    /// Keeps `source` as the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The broken rule of the format, for an error of kind [`Format`](ErrorKind::Format).
    #[must_use]
    pub fn rule(&self) -> Option<Rule> {
        match self.0.kind {
            ErrorKind::Format(rule) => Some(rule),
            _ => None,
        }
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        self.0.kind.class()
    }

    /// The name or URL of the file, if known.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        self.0.file.as_deref()
    }

    /// The tensor's name, if any.
    #[must_use]
    pub fn tensor(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }

    /// The byte offset in the file, if any.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// What was expected, in words, if known.
    #[must_use]
    pub fn expected_text(&self) -> Option<&str> {
        self.0.expected.as_deref()
    }

    /// What was found, in words, if known.
    #[must_use]
    pub fn found_text(&self) -> Option<&str> {
        self.0.found.as_deref()
    }
}

/// An error of ours that a [`ReadAt`](crate::ReadAt) returned, and that the format passed on, comes
/// out as it was; what the format added (the tensor, the offset) is kept.
impl From<bigsmall_format::Error> for Error {
    fn from(error: bigsmall_format::Error) -> Self {
        let mut outer = Error::new(error.rule());
        outer.0.file = error.file().map(Into::into);
        outer.0.tensor = error.tensor().map(Into::into);
        outer.0.offset = error.offset();
        outer.0.expected = error.expected_text().map(Into::into);
        outer.0.found = error.found_text().map(Into::into);
        match error.into_source().map(io::Error::downcast::<Error>) {
            Some(Ok(mut inner)) => {
                inner.0.file = inner.0.file.or(outer.0.file);
                inner.0.tensor = inner.0.tensor.or(outer.0.tensor);
                inner.0.offset = inner.0.offset.or(outer.0.offset);
                inner
            }
            Some(Err(source)) => outer.caused_by(source),
            None => outer,
        }
    }
}

/// An error of ours or of the format's that a [`ReadAt`](crate::ReadAt) returned comes out as it
/// was; any other is the source of one of kind [`Io`](ErrorKind::Io).
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(ours) => ours,
            // Also takes apart what of the format's is inside.
            Err(other) => bigsmall_format::Error::from(other).into(),
        }
    }
}

/// For implementations of [`ReadAt`](crate::ReadAt) that stand on this crate.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let source = error.0.source.as_ref().and_then(|e| e.downcast_ref::<io::Error>());
        let kind = match (source, error.class()) {
            (Some(source), _) => source.kind(),
            (None, Class::Usage) => io::ErrorKind::InvalidInput,
            (None, Class::Corrupt) => io::ErrorKind::InvalidData,
            (None, Class::Unsupported) => io::ErrorKind::Unsupported,
            // Not `Interrupted` for what was cancelled: that would be tried again.
            (None, _) => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = Line {
            file: self.file(),
            tensor: self.tensor(),
            problem: &self.kind(),
            offset: self.offset(),
            expected: self.expected_text(),
            found: self.found_text(),
        };
        write!(f, "{line}")
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} [{:?}]: {}", self.kind(), self.class(), Chain(self))
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

/// Says in which file and tensor an error of this crate, of the format or of the system happened.
pub(crate) trait Context<T> {
    /// Names the file, unless one is named already.
    fn in_file(self, path: impl AsRef<Path>) -> Result<T>;
    /// Names the tensor, unless one is named already.
    fn in_tensor(self, name: &str) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn in_file(self, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| e.into().in_file(path))
    }

    fn in_tensor(self, name: &str) -> Result<T> {
        self.map_err(|e| e.into().in_tensor(name))
    }
}

#[cfg(test)]
mod tests {
    use bigsmall_format::internal::read_at;

    use super::*;
    use crate::ReadAt;

    /// A source whose every read fails.
    struct Failing(fn() -> io::Error);

    impl ReadAt for Failing {
        fn byte_len(&self) -> io::Result<u64> {
            Ok(1)
        }

        fn read_exact_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(self.0())
        }
    }

    /// What the format makes of the error of a source, and this crate of that.
    fn through_the_format(error: fn() -> io::Error) -> Error {
        let error = read_at(&Failing(error), 7, &mut [0]).unwrap_err().in_tensor("t");
        Error::from(error).in_file("f")
    }

    #[test]
    fn an_error_of_ours_goes_through_a_source_as_it_is() {
        let remote = || Error::new(ErrorKind::Remote).in_file("url").found("HTTP 404").into();
        let error = through_the_format(remote);
        assert_eq!((error.kind(), error.class()), (ErrorKind::Remote, Class::Io));
        assert_eq!((error.file(), error.tensor()), (Some("url"), Some("t")));
        assert_eq!((error.offset(), error.found_text()), (Some(7), Some("HTTP 404")));
        assert!(error.source().is_none());
        let cancelled = || Error::new(ErrorKind::Cancelled).into();
        let error = through_the_format(cancelled);
        assert_eq!((error.kind(), error.class()), (ErrorKind::Cancelled, Class::Cancelled));
        // As it is, too, where the format's error travels in a source in between.
        let nested = || bigsmall_format::Error::from(io::Error::from(fresh())).into();
        fn fresh() -> Error {
            Error::new(ErrorKind::Remote)
        }
        assert_eq!(through_the_format(nested).kind(), ErrorKind::Remote);
    }

    #[test]
    fn what_the_system_says_is_the_source_and_not_in_the_line() {
        let error = through_the_format(|| io::Error::new(io::ErrorKind::TimedOut, "too slow"));
        assert_eq!((error.kind(), error.class()), (ErrorKind::Io, Class::Io));
        assert_eq!(error.to_string(), r#"f: tensor "t": reading or writing failed (at byte 7)"#);
        let source = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
        assert_eq!(
            (source.kind(), source.to_string()),
            (io::ErrorKind::TimedOut, "too slow".into())
        );
        assert_eq!(format!("{error:?}").matches("too slow").count(), 1);
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn an_error_of_the_format_keeps_its_facts() {
        let format = bigsmall_format::Error::new(Rule::DataRange).in_tensor("t").at(3);
        let format = format.in_file("inner").expected("1").found("2");
        let (line, class) = (format.to_string(), format.class());
        let error = Error::from(format).in_file("outer");
        assert_eq!((error.to_string(), error.class()), (line, class));
        assert_eq!(error.rule(), Some(Rule::DataRange));
        assert_eq!(error.expected_text(), Some("1"));
        assert_eq!(Error::from(bigsmall_format::Error::memory(5)).kind(), ErrorKind::Memory);
    }
}
