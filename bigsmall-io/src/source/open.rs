//! Where files come from: the disk, or another machine.

use std::ops::Range;
use std::path::Path;

use bigsmall_format::{Error, ReadAt, Result, Rule, available_threads};

use crate::folder::walk::Folder;
use crate::{RestoreOptions, os};

/// Whatever a file is read from.
pub(crate) struct Source(Box<dyn ReadAt>);

impl Source {
    pub(crate) fn new(source: impl ReadAt + 'static) -> Self {
        Source(Box::new(source))
    }
}

impl ReadAt for Source {
    fn byte_len(&self) -> u64 {
        self.0.byte_len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(offset, buf)
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        self.0.bytes_at(range)
    }
}

/// The files of a folder on another machine.
pub(crate) trait RemoteFolder: Send + Sync {
    /// The relative paths of all files, with `/` between components.
    fn names(&self) -> Result<Vec<String>>;

    /// Opens one of them.
    fn open(&self, name: &str) -> Result<Source>;
}

/// What a path or URL leads to.
pub(crate) enum Input {
    File(Source),
    Folder(Folder),
}

/// How many requests are under way at once: enough to hide that each takes its time.
pub(crate) const REMOTE_THREADS: usize = 8;

/// The URL that `path` is, where it is one; anything else is a path on this machine.
pub(crate) fn url(path: &Path) -> Option<&str> {
    let text = path.to_str()?;
    let (scheme, _) = text.split_once("://")?;
    let letters = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    // A single letter is a drive of Windows.
    (scheme.len() > 1 && scheme.chars().all(letters)).then_some(text)
}

/// Opens a file, a folder, a URL.
pub(crate) fn open(path: &Path) -> Result<Input> {
    let named = |e: Error| e.in_file(shown(path));
    if let Some(url) = url(path) {
        return open_url(url).map_err(named);
    }
    match path.is_dir() {
        true => Ok(Input::Folder(Folder::open(path)?)),
        false => Ok(Input::File(Source::new(os::open_regular(path)?))),
    }
}

/// The options for `input`: more threads where each of them will wait for another machine.
pub(crate) fn patient(input: &Path, options: &RestoreOptions) -> RestoreOptions {
    match (url(input), options.threads) {
        (Some(_), 0) => {
            RestoreOptions { threads: available_threads().max(REMOTE_THREADS), ..*options }
        }
        _ => *options,
    }
}

/// A path as errors show it: without a query, which may be a signature.
fn shown(path: &Path) -> &str {
    let text = path.to_str().unwrap_or_default();
    if url(path).is_some() { text.split('?').next().unwrap_or(text) } else { text }
}

fn open_url(url: &str) -> Result<Input> {
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
    match &*scheme {
        "http" | "https" => {
            #[cfg(feature = "http")]
            return crate::source::http::open(url);
            #[cfg(not(feature = "http"))]
            missing("http")
        }
        "hf" => {
            #[cfg(feature = "hub")]
            return crate::source::hub::open(url);
            #[cfg(not(feature = "hub"))]
            missing("hub")
        }
        "s3" | "s3a" | "gs" | "az" | "adl" | "azure" | "abfs" | "abfss" => {
            #[cfg(feature = "cloud")]
            return crate::source::cloud::open(url);
            #[cfg(not(feature = "cloud"))]
            missing("cloud")
        }
        _ => Err(Error::new(Rule::Argument)
            .expected("a path, http://, https://, hf://, s3://, gs:// or az://")
            .found(format!("{scheme:?}"))),
    }
}

#[cfg(not(all(feature = "http", feature = "hub", feature = "cloud")))]
fn missing(feature: &str) -> Result<Input> {
    Err(Error::new(Rule::BackendMissing).expected(format!("a build with the feature `{feature}`")))
}
