//! How to restore.

use std::path::PathBuf;

use crate::source::listing::FolderOptions;

/// How to restore or verify.
///
/// ```
/// let options = bigsmall_io::RestoreOptions::new().md5(true);
/// assert!(!options.replace);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreOptions {
    /// Report the MD5 of every tensor's original bytes.
    pub md5: bool,
    /// Replace an existing output.
    pub replace: bool,
    /// Restored bytes for each byte of the shard, from which on a shard is refused; `None` for
    /// 1,048,576. Only a file that was made to be refused, or one of nothing but a few repeated
    /// values, comes near.
    pub max_expansion: Option<u64>,
    /// Begin even if the file system says that it has too little free space: one that compresses
    /// may have enough.
    pub ignore_free_space: bool,
    /// Which files of a folder are taken.
    pub folder: FolderOptions,
    /// Files, folders or URLs with the bases of shards that are stored as differences, and with the
    /// bases of these bases; see [`BaseModel::open`](crate::BaseModel::open).
    pub bases: Vec<PathBuf>,
}

impl RestoreOptions {
    /// No MD5; an existing output is an error.
    #[must_use]
    pub fn new() -> Self {
        RestoreOptions::default()
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

    /// Sets [`max_expansion`](Self#structfield.max_expansion).
    #[must_use]
    pub fn max_expansion(mut self, max_expansion: impl Into<Option<u64>>) -> Self {
        self.max_expansion = max_expansion.into();
        self
    }

    /// Adds one of the [`bases`](Self#structfield.bases).
    #[must_use]
    pub fn base(mut self, path: impl Into<PathBuf>) -> Self {
        self.bases.push(path.into());
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
