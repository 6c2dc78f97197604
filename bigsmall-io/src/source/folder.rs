//! A folder of files, local or remote. No name in it leads out of it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::model_index::{ModelIndex, check_name};
use crate::names::{INDEX, SHARD, weights};
use crate::os;
use crate::source::file::Source;

/// The files of a folder on another machine.
pub(crate) trait RemoteFolder: Send + Sync {
    /// The relative paths of all files, with `/` between components.
    fn names(&self) -> Result<Vec<String>>;

    /// Opens one of them.
    fn open(&self, name: &str) -> Result<Source>;
}

/// A folder. No name in it leads out of it.
pub(crate) struct Folder(Kind);

// Without these features there are no remote folders.
#[cfg_attr(not(any(feature = "http", feature = "cloud")), allow(dead_code))]
enum Kind {
    Local {
        root: PathBuf,
        /// Where links may lead: the folder itself. In a Hub cache, whose snapshots are links to
        /// blobs: the whole folder of the model.
        bounds: PathBuf,
    },
    Remote(Box<dyn RemoteFolder>),
}

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let named = |e: io::Error| Error::from(e).in_file(path);
        let root = path.canonicalize().map_err(named)?;
        let snapshots = root.parent().filter(|p| p.file_name() == Some(OsStr::new("snapshots")));
        let model = snapshots.and_then(Path::parent).filter(|m| m.join("blobs").is_dir());
        Ok(Folder(Kind::Local { bounds: model.unwrap_or(&root).to_owned(), root }))
    }

    #[cfg(any(feature = "http", feature = "cloud"))]
    pub(crate) fn remote(files: impl RemoteFolder + 'static) -> Self {
        Folder(Kind::Remote(Box::new(files)))
    }

    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.0, Kind::Remote(_))
    }

    /// The local file that `name`, a checked relative path, leads to. Links are followed as long as
    /// they stay in bounds.
    pub(crate) fn resolve(&self, name: &Path) -> Result<PathBuf> {
        let Kind::Local { root, bounds } = &self.0 else {
            return Err(Error::new(ErrorKind::Argument)
                .in_file(name)
                .expected("a file on this machine"));
        };
        let path = root.join(name);
        let found = path.canonicalize().in_file(&path)?;
        if !found.starts_with(bounds) {
            return Err(Error::new(ErrorKind::ModelPath).in_file(&path));
        }
        Ok(found)
    }

    /// Opens a regular file of the folder.
    pub(crate) fn open_file(&self, name: &Path) -> Result<Source> {
        match &self.0 {
            Kind::Local { .. } => Ok(Source::new(os::open_regular(&self.resolve(name)?)?)),
            Kind::Remote(files) => {
                let text = name.components().map(|c| c.as_os_str().to_string_lossy());
                files.open(&text.collect::<Vec<_>>().join("/"))
            }
        }
    }

    /// Every file with that ending, by its relative path.
    pub(crate) fn weights(&self, ending: &str) -> Result<Vec<PathBuf>> {
        Ok(weights(&self.files()?, ending)?.into_iter().cloned().collect())
    }

    /// The names in the folder itself, in order.
    pub(crate) fn names_in_root(&self) -> Result<Vec<PathBuf>> {
        let Kind::Local { root, .. } = &self.0 else {
            let in_root = |f: &PathBuf| f.components().count() == 1;
            return Ok(self.files()?.into_iter().filter(in_root).collect());
        };
        let named = |e: io::Error| Error::from(e).in_file(root);
        let entries = std::fs::read_dir(root).map_err(named)?;
        let names = entries.map(|entry| entry.map(|e| PathBuf::from(e.file_name())));
        let mut names = names.collect::<io::Result<Vec<_>>>().map_err(named)?;
        names.sort();
        Ok(names)
    }

    /// The shards of the folder's model: those in its index file, or its only shard.
    pub(crate) fn model(&self) -> Result<(Vec<String>, Option<ModelIndex>)> {
        let names = self.names_in_root()?;
        let ending = |end: &str| -> Vec<&PathBuf> {
            names.iter().filter(|n| n.to_string_lossy().ends_with(end)).collect()
        };
        let (shards, indices) = (ending(SHARD), ending(&format!("{SHARD}{INDEX}")));
        match (&indices[..], &shards[..]) {
            ([name], _) => {
                let read = ModelIndex::read(&self.open_file(name)?);
                let (_, index) = read.in_file(name)?;
                Ok((index.shards().into_iter().map(str::to_owned).collect(), Some(index)))
            }
            (_, [shard]) => Ok((vec![shard.to_string_lossy().into_owned()], None)),
            ([], []) => Err(Error::new(ErrorKind::ModelIndex)
                .found("no .bs file and no model.bs.index.json in this folder")),
            (found, shards) => Err(Error::new(ErrorKind::ModelIndex)
                .expected("one index file, or one shard")
                .found(format!("{} index files, {} shards", found.len(), shards.len()))),
        }
    }

    /// Every file, by its relative path, in the order of the names; `.git` is left out.
    pub(crate) fn files(&self) -> Result<BTreeSet<PathBuf>> {
        let root = match &self.0 {
            Kind::Local { root, .. } => root,
            Kind::Remote(files) => {
                let mut found = BTreeSet::new();
                for name in files.names()? {
                    // Untrusted names that become local paths.
                    check_name(&name)?;
                    found.insert(PathBuf::from(name));
                }
                return Ok(found);
            }
        };
        let mut files = BTreeSet::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let path = root.join(&folder);
            let named = |e: io::Error| Error::from(e).in_file(&path);
            for entry in std::fs::read_dir(&path).map_err(named)? {
                let entry = entry.map_err(named)?;
                let name = folder.join(entry.file_name());
                let kind = entry.file_type().map_err(named)?;
                if kind.is_dir() {
                    if entry.file_name() != ".git" {
                        folders.push(name);
                    }
                    continue;
                }
                // A link to a folder is refused, as a pipe is: it may form a cycle.
                if !self.resolve(&name)?.is_file() {
                    let path = root.join(&name);
                    return Err(Error::new(ErrorKind::NotARegularFile).in_file(&path));
                }
                files.insert(name);
            }
        }
        Ok(files)
    }
}

/// What a path or URL leads to.
pub(crate) enum Input {
    File(Source),
    Folder(Folder),
}
