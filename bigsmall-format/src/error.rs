//! One error type: which rule was broken, in which tensor, where, what was expected and what was
//! found.

use std::error::Error as StdError;
use std::fmt;

use crate::line::Line;
use crate::shown::Shown;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error; the command's exit codes follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Class {
    /// The storage failed (exit code 1).
    Io,
    /// The caller asked the work to stop (exit code 1). No rule of this crate is of this class.
    Cancelled,
    /// The caller asked for something that makes no sense (exit code 2).
    Usage,
    /// The bytes break the format: damaged, truncated or forged (exit code 3).
    Corrupt,
    /// Valid perhaps, but not for this version of the program (exit code 4).
    Unsupported,
    /// More than [`Limits`](crate::Limits) or the machine allows (exit code 5).
    Limit,
}

macro_rules! rules {
    ($($variant:ident: $class:ident, $text:literal;)*) => {
        /// The rules that can be broken, one for each check of the format.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Rule {
            $(#[doc = $text] $variant,)*
        }
        impl Rule {
            /// Every rule, in the order of the declaration.
            pub const ALL: &'static [Rule] = &[$(Rule::$variant),*];
            /// What a caller can do about it.
            #[must_use]
            pub const fn class(self) -> Class {
                match self { $(Rule::$variant => Class::$class,)* }
            }
            const fn text(self) -> &'static str {
                match self { $(Rule::$variant => $text,)* }
            }
        }
    };
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

rules! {
    Io: Io, "reading or writing failed";
    SourceChanged: Io, "the file changed while it was read";
    // Envelope.
    ShardTooShort: Corrupt, "too short to be a shard";
    ShardMagic: Corrupt, "not a bigsmall shard";
    PythonPackageFile: Unsupported, "a file of the Python package `bigsmall`, which is another \
        container; restore it with that package and compress the safetensors file with this \
        program";
    SafetensorsFile: Unsupported, "a safetensors file, not a shard: it must be compressed first";
    Version: Unsupported, "written by a newer version of the format; update bigsmall";
    VersionZero: Corrupt, "format version 0 does not exist";
    RequiredFeature: Unsupported, "needs a feature of the format that this version does not know; \
        update bigsmall";
    ReservedNotZero: Corrupt, "a reserved field is not zero";
    IndexRange: Corrupt, "the index does not lie between the payloads and the trailer";
    IndexChecksum: Corrupt, "the checksum of index and trailer differs";
    IndexTooLarge: Limit, "the index is larger than the limit";
    IndexTruncated: Corrupt, "the index ends before its last field";
    IndexTrailing: Corrupt, "the index goes on after its last field";
    // Entries.
    EntryCount: Corrupt, "the index and the stored header count different tensors";
    PayloadRange: Corrupt, "a payload is not where the one before it ends";
    PayloadLength: Corrupt, "a payload is not as long as its head and blocks";
    BlockLength: Corrupt, "an encoded block has an impossible length";
    SharedPayload: Corrupt, "a shared payload must name an earlier tensor of the same dtype and \
        length that has its own";
    BaseSection: Corrupt, "the section of bases is wrong";
    BaseRecord: Corrupt, "a record does not match the bases of the shard";
    BaseMismatch: Corrupt, "the base is not the one that this tensor was encoded against; give \
        that one";
    BaseDepth: Limit, "the chain of bases is longer than the limit";
    EncodingUnknown: Unsupported, "an encoding that this version does not know; update bigsmall";
    EncodingDtype: Corrupt, "the encoding does not take this dtype";
    HeadChecksum: Corrupt, "the checksum of a tensor's head differs";
    BlockChecksum: Corrupt, "the checksum of a block differs";
    ContentDigest: Corrupt, "the restored bytes are not the original ones";
    // Frames.
    FrameMagic: Corrupt, "not an encoded tensor";
    FrameTruncated: Corrupt, "an encoded tensor is cut short";
    FrameTrailing: Corrupt, "bytes follow the encoded tensor";
    FrameChecksum: Corrupt, "the checksum of an encoded tensor's description differs";
    // Pages.
    PageChecksum: Corrupt, "the checksum of a page differs";
    PageTables: Corrupt, "not the tables that the pages were encoded with";
    PageLength: Corrupt, "a page is not as long as its header and blocks";
    // safetensors header.
    HeaderLength: Corrupt, "the safetensors header is longer than the file, or empty";
    HeaderTooLarge: Limit, "the safetensors header is larger than the limit";
    HeaderStart: Corrupt, "the safetensors header does not begin with `{`";
    HeaderSyntax: Corrupt, "the safetensors header is not the JSON it should be";
    HeaderDuplicate: Corrupt, "a key appears twice in the safetensors header";
    HeaderEntry: Corrupt, "a tensor's entry in the safetensors header is wrong";
    DtypeUnknown: Unsupported, "an unknown dtype";
    ShapeOverflow: Corrupt, "the product of a shape overflows";
    SubByteTotal: Corrupt, "a sub-byte tensor does not fill whole bytes";
    DataRange: Corrupt, "a tensor's data_offsets do not match its shape, or leave a hole, or \
        overlap";
    DataLength: Corrupt, "the data section is not as long as the header says";
    TooManyTensors: Limit, "more tensors than the limit";
    RankTooLarge: Limit, "more dimensions than the limit";
    NameTooLong: Limit, "a tensor name longer than the limit";
    // ANS payloads.
    AnsHead: Corrupt, "an ANS head field is out of range";
    FrequencyTable: Corrupt, "a frequency table is invalid";
    AnsBlockHeader: Corrupt, "an ANS block's header is out of range";
    AnsBlockLength: Corrupt, "an ANS block's sections do not fill it exactly";
    AnsTableId: Corrupt, "a segment names a frequency table or a low width that does not exist";
    AnsWords: Corrupt, "the word stream is exhausted early or not used up";
    AnsEndState: Corrupt, "a lane does not end in a valid state";
    AnsException: Corrupt, "an exception is out of order or out of range";
    PaddingNotZero: Corrupt, "padding is not zero";
    ConstantBlock: Corrupt, "a constant block does not repeat one unit";
    ZeroMask: Corrupt, "a mask of zeros does not match the units beside it";
    AnsDeflate: Corrupt, "a DEFLATE stream is not valid, or not as long as the block";
    // Delta payloads.
    DeltaHead: Corrupt, "a delta head field is out of range";
    DeltaBlock: Corrupt, "a delta block's header is out of range, or its sections do not fill it";
    DeltaChanges: Corrupt, "the changes of a sparse block are out of range, or do not fill it";
    // TBE payloads.
    TbeHead: Corrupt, "a TBE head field is out of range";
    TbeBlockLength: Corrupt, "a TBE block's sections do not fill it exactly";
    TbeEscapeStarts: Corrupt, "escape starts do not match the escape codes";
    TbeEscapeInWindow: Corrupt, "an escaped exponent lies inside the window";
    TbeEscapeField: Corrupt, "an escaped exponent does not fit the dtype's exponent field";
    // Callers.
    TensorMissing: Usage, "no tensor of that name";
    RangeOutOfBounds: Usage, "the range ends after the tensor";
    BufferLength: Usage, "a buffer has the wrong length";
    SpecMismatch: Usage, "the tensor is not of the dtype or shape that was asked for";
    UnalignedRange: Usage, "a range of a sub-byte tensor does not begin and end at a byte";
    EncodingRefuses: Unsupported, "this encoding does not take that dtype";
    BaseMissing: Usage, "this tensor is stored as differences from a base, which must be given";
    BackendMissing: Unsupported, "this machine or build lacks that backend";
    WriterMisuse: Usage, "the shard writer was called out of order";
    Memory: Limit, "not enough memory";
}

/// An error: which [`Rule`] was broken, in which tensor, where, what was expected and what was
/// found.
///
/// `Display` prints these facts in one line. What caused the error, if anything, is its
/// [`source`](StdError::source) and is not part of that line; `Debug` prints both.
///
/// To print an error with its causes, follow the sources. With the crate `anyhow`, print the error
/// with `{:#}`.
///
/// ```
/// use std::error::Error as _;
/// use bigsmall_format::Error;
///
/// let error = Error::io(std::io::Error::other("the disk is gone")).in_file("m.bs");
/// let mut text = error.to_string();
/// let mut cause = error.source();
/// while let Some(error) = cause {
///     text += &format!(": {error}");
///     cause = error.source();
/// }
/// assert_eq!(text, "m.bs: reading or writing failed: the disk is gone");
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    rule: Rule,
    file: Option<Box<str>>,
    tensor: Option<Box<str>>,
    offset: Option<u64>,
    expected: Option<Box<str>>,
    found: Option<Box<str>>,
    source: Option<std::io::Error>,
}

impl Error {
    /// An error about `rule`; add what is known with the methods below.
    #[cold]
    #[must_use]
    pub fn new(rule: Rule) -> Self {
        Error(Box::new(Inner {
            rule,
            file: None,
            tensor: None,
            offset: None,
            expected: None,
            found: None,
            source: None,
        }))
    }

    /// An I/O error.
    #[cold]
    #[must_use]
    pub fn io(source: std::io::Error) -> Self {
        let mut error = Error::new(Rule::Io);
        error.0.source = Some(source);
        error
    }

    /// There is no memory for so many more bytes ([`Rule::Memory`]).
    #[cold]
    #[must_use]
    pub fn memory(bytes: usize) -> Self {
        Error::new(Rule::Memory).expected(format!("{bytes} more bytes"))
    }

    /// Names the file, unless one is named already.
    #[must_use]
    pub fn in_file(mut self, path: impl AsRef<std::path::Path>) -> Self {
        self.0.file.get_or_insert_with(|| path.as_ref().to_string_lossy().into());
        self
    }

    /// Names the tensor, unless one is named already; the empty name of a frame is none.
    #[must_use]
    pub fn in_tensor(mut self, name: &str) -> Self {
        if self.0.tensor.as_deref().is_none_or(str::is_empty) {
            self.0.tensor = Some(name.into());
        }
        self
    }

    /// Names the byte offset in the file or payload, unless one is named already.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// Moves the offset of something corrupt from a part to the whole, in which the part begins at
    /// `begin`. The offsets of sources are those of the whole already.
    #[doc(hidden)]
    #[must_use]
    pub fn in_part_at(mut self, begin: u64) -> Self {
        if self.class() == Class::Corrupt
            && let Some(offset) = &mut self.0.offset
        {
            *offset = offset.saturating_add(begin);
        }
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

    /// The rule that was broken.
    #[must_use]
    pub fn rule(&self) -> Rule {
        self.0.rule
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        self.0.rule.class()
    }

    /// The file's name, if any.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        self.0.file.as_deref()
    }

    /// The tensor's name, if any.
    #[must_use]
    pub fn tensor(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }

    /// The byte offset, if any: in the file or frame that was read, or in the payload
    /// for an [`EncodedTensor`](crate::EncodedTensor) and
    /// [`decode_range`](crate::decode_range), which know no file.
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

    /// The I/O error that caused this one, if any.
    #[must_use]
    pub fn into_source(self) -> Option<std::io::Error> {
        self.0.source
    }
}

/// An error and its causes in one line, each text once: some errors of other crates repeat their
/// cause's text in their own. The texts of causes are untrusted: a server may have written them.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn StdError + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut printed = self.0.to_string();
        f.write_str(&printed)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !printed.contains(&text) {
                write!(f, ": {}", Shown::message(&text))?;
                printed = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

/// An error of ours that a [`ReadAt`](crate::ReadAt) returned as an `io::Error` comes out as it
/// was.
impl From<std::io::Error> for Error {
    fn from(source: std::io::Error) -> Self {
        source.downcast().unwrap_or_else(Error::io)
    }
}

/// For implementations of [`ReadAt`](crate::ReadAt) that stand on this crate.
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind;
        let kind = match (&error.0.source, error.class()) {
            (Some(source), _) => source.kind(),
            (None, Class::Usage) => ErrorKind::InvalidInput,
            (None, Class::Corrupt) => ErrorKind::InvalidData,
            (None, Class::Unsupported) => ErrorKind::Unsupported,
            // Not `Interrupted` for what was cancelled: that would be tried again.
            (None, Class::Io | Class::Cancelled | Class::Limit) => ErrorKind::Other,
        };
        std::io::Error::new(kind, error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = Line {
            file: self.file(),
            tensor: self.tensor(),
            problem: &self.rule(),
            offset: self.offset(),
            expected: self.expected_text(),
            found: self.found_text(),
        };
        write!(f, "{line}")
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} [{:?}]: {}", self.rule(), self.class(), Chain(self))
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A cause whose text repeats that of its own cause, as some crates write them.
    #[derive(Debug)]
    struct Repeats(io::Error);

    impl fmt::Display for Repeats {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "the store failed: {}", self.0)
        }
    }

    impl StdError for Repeats {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn a_cause_is_the_source_and_is_printed_once() {
        let plain = || io::Error::other("the disk is gone");
        for (source, text) in [
            (plain(), "m.bs: reading or writing failed (at byte 7): the disk is gone"),
            (
                io::Error::other(Repeats(plain())),
                "m.bs: reading or writing failed (at byte 7): the store failed: the disk is gone",
            ),
        ] {
            let error = Error::io(source).at(7).in_file("m.bs");
            assert!(error.source().unwrap().is::<io::Error>());
            assert_eq!(error.to_string(), "m.bs: reading or writing failed (at byte 7)");
            assert_eq!(Chain(&error).to_string(), text);
            assert_eq!(format!("{error:?}"), format!("Io [Io]: {text}"));
        }
        assert!(Error::new(Rule::Version).source().is_none());
    }

    #[test]
    fn a_tensor_without_a_name_is_not_printed() {
        let text = |name| Error::new(Rule::FrameMagic).in_tensor(name).to_string();
        assert_eq!(text(""), "not an encoded tensor");
        assert_eq!(text("w"), "tensor \"w\": not an encoded tensor");
    }

    #[test]
    fn an_error_gives_back_its_facts() {
        let error = Error::new(Rule::BlockChecksum).in_file("m.bs").in_tensor("w").at(9);
        let error = error.expected("1").found("2");
        assert_eq!((error.rule(), error.class()), (Rule::BlockChecksum, Class::Corrupt));
        assert_eq!((error.file(), error.tensor()), (Some("m.bs"), Some("w")));
        assert_eq!(error.offset(), Some(9));
        assert_eq!((error.expected_text(), error.found_text()), (Some("1"), Some("2")));
    }
}
