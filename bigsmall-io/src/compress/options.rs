//! How to compress.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::source::listing::FolderOptions;
use crate::{Encoding, os};

/// How to compress. The output depends on `encoding`, `md5`, `bases` and `base_names` alone, never
/// on the pool of threads.
///
/// ```
/// let options = bigsmall_io::CompressOptions::new().md5(true);
/// assert!(!options.replace);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompressOptions {
    /// The encoding to try. A tensor is stored raw if the encoding does not support it or does not
    /// make it smaller.
    pub encoding: Encoding,
    /// Store the MD5 of every tensor's original bytes. MD5 runs at 0.6 GB/s, slower than the other
    /// stages.
    pub md5: bool,
    /// Replace an existing output.
    pub replace: bool,
    /// Do all the work but write nothing.
    pub dry_run: bool,
    /// For [`transcode`](crate::transcode): as
    /// [`RestoreOptions::max_expansion`](crate::RestoreOptions#structfield.max_expansion).
    pub max_expansion: Option<u64>,
    /// Begin even if the output's file system has less free space than the files of a folder need
    /// that are copied as they are.
    pub ignore_free_space: bool,
    /// Which files of a folder are taken.
    pub folder: FolderOptions,
    /// The base that the input is compared with: a file, a folder or a URL as in
    /// [`BaseModel::open`](crate::BaseModel::open). Each tensor is then stored as differences from
    /// that of the base, if this makes it smaller. After it come the bases of the base, if it is a
    /// shard with a base.
    ///
    /// [`transcode`](crate::transcode) reads its input with these, and writes a shard without a
    /// base.
    pub bases: Vec<PathBuf>,
    /// What tensors of the input are called in the base, where that is another name. Without it,
    /// renamed tensors are found if the names differ by a prefix, or if they have kept a sample of
    /// their values.
    ///
    /// It is an error if no file of the input has a tensor of such a name, or if the base has none
    /// of the other name.
    pub base_names: BTreeMap<String, String>,
}

impl CompressOptions {
    /// The default encoding, no MD5; an existing output is an error.
    #[must_use]
    pub fn new() -> Self {
        CompressOptions::default()
    }

    /// Sets [`encoding`](Self#structfield.encoding).
    #[must_use]
    pub fn encoding(mut self, encoding: Encoding) -> Self {
        self.encoding = encoding;
        self
    }

    /// Sets [`md5`](Self#structfield.md5).
    #[must_use]
    pub fn md5(mut self, md5: bool) -> Self {
        self.md5 = md5;
        self
    }

    /// Sets [`replace`](Self#structfield.replace).
    #[must_use]
    pub fn replace(mut self, replace: bool) -> Self {
        self.replace = replace;
        self
    }

    /// Adds the base, or one of the bases behind it, to [`bases`](Self#structfield.bases).
    #[must_use]
    pub fn base(mut self, path: impl Into<PathBuf>) -> Self {
        self.bases.push(path.into());
        self
    }

    /// Adds the name that a tensor has in the base to [`base_names`](Self#structfield.base_names).
    #[must_use]
    pub fn base_name(mut self, name: impl Into<String>, of_base: impl Into<String>) -> Self {
        self.base_names.insert(name.into(), of_base.into());
        self
    }

    /// Refuses an output that would replace one of the bases.
    pub(crate) fn check_output(&self, output: &Path) -> Result<()> {
        match self.bases.iter().any(|base| os::same_file(base, output)) {
            true => Err(Error::new(ErrorKind::SameFile).in_file(output).found("it is a base")),
            false => Ok(()),
        }
    }

    /// Sets [`dry_run`](Self#structfield.dry_run).
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Sets [`max_expansion`](Self#structfield.max_expansion).
    #[must_use]
    pub fn max_expansion(mut self, max_expansion: impl Into<Option<u64>>) -> Self {
        self.max_expansion = max_expansion.into();
        self
    }

    /// Sets [`ignore_free_space`](Self#structfield.ignore_free_space).
    #[must_use]
    pub fn ignore_free_space(mut self, ignore_free_space: bool) -> Self {
        self.ignore_free_space = ignore_free_space;
        self
    }

    /// Sets [`folder`](Self#structfield.folder).
    #[must_use]
    pub fn folder(mut self, folder: FolderOptions) -> Self {
        self.folder = folder;
        self
    }
}
