//! One file, local or remote.

use std::fs::File;
use std::io;
use std::ops::Range;

use bigsmall_format::ReadAt;

use crate::error::{Error, ErrorKind, Result};
use crate::{hex, os};

/// The source of one file.
pub(crate) struct Source {
    bytes: Bytes,
    /// The SHA-256 that the file has, where its server says so.
    sha256: Option<[u8; 32]>,
}

enum Bytes {
    /// A file on this machine, its permission bits, and its state when it was opened.
    Local(File, Option<u32>, os::Stamp),
    Other(Box<dyn ReadAt>),
}

impl Source {
    pub(crate) fn new(source: impl ReadAt + 'static) -> Self {
        Source { bytes: Bytes::Other(Box::new(source)), sha256: None }
    }

    /// A file on this machine.
    pub(crate) fn local(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let bytes = Bytes::Local(file, os::mode(&metadata), os::stamp(&metadata));
        Ok(Source { bytes, sha256: None })
    }

    /// With the SHA-256 that the file must have.
    #[cfg(feature = "hub")]
    pub(crate) fn with_sha256(self, sha256: Option<[u8; 32]>) -> Self {
        Source { sha256, ..self }
    }

    /// The SHA-256 that the file must have, if it is known.
    pub(crate) fn sha256(&self) -> Option<[u8; 32]> {
        self.sha256
    }

    pub(crate) fn is_local(&self) -> bool {
        matches!(self.bytes, Bytes::Local(..))
    }

    /// The permission bits that a file made from this one gets; `None` for the usual ones.
    pub(crate) fn mode(&self) -> Option<u32> {
        match self.bytes {
            Bytes::Local(_, mode, _) => mode,
            Bytes::Other(_) => None,
        }
    }

    /// An error if what was read, with the SHA-256 `found`, is not the file: it changed meanwhile,
    /// or its server says that it has another SHA-256.
    pub(crate) fn check_read(&self, found: [u8; 32]) -> Result<()> {
        if let Bytes::Local(file, _, before) = &self.bytes
            && os::stamp(&file.metadata()?) != *before
        {
            return Err(Error::new(ErrorKind::SourceChanged));
        }
        match self.sha256 {
            Some(sha256) if sha256 != found => Err(Error::new(ErrorKind::Remote)
                .expected(format!("the SHA-256 {} of the server's list", hex(&sha256)))
                .found(hex(&found))),
            _ => Ok(()),
        }
    }
}

impl ReadAt for Source {
    fn byte_len(&self) -> io::Result<u64> {
        match &self.bytes {
            Bytes::Local(file, ..) => file.byte_len(),
            Bytes::Other(bytes) => bytes.byte_len(),
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match &self.bytes {
            Bytes::Local(file, ..) => file.read_exact_at(offset, buf),
            Bytes::Other(bytes) => bytes.read_exact_at(offset, buf),
        }
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        match &self.bytes {
            Bytes::Local(..) => None,
            Bytes::Other(bytes) => bytes.bytes_at(range),
        }
    }
}

/// How many requests run at once: enough to hide their latency.
pub(crate) const REMOTE_THREADS: usize = 8;
