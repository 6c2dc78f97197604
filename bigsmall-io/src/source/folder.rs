//! A folder of files, local or remote. No name in it leads out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use bigsmall_format::Shard;

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::model_index::{IndexBytes, ModelIndex};
use crate::names::{INDEX, Role, SAFETENSORS, SHARD, model_of, numbered, role, weights};
use crate::progress::Stop;
use crate::report::with_slashes;
use crate::source::file::Source;
use crate::source::listing::{FolderOptions, Listing, check_name, is_hidden};
use crate::source::local::{Links, Local};

/// The files of a repository of the Hub, and the SHA-256 of those that Git LFS keeps.
pub(crate) type Names = BTreeMap<String, Option<[u8; 32]>>;

/// The files of a folder on another machine.
pub(crate) trait RemoteFolder: Send + Sync {
    /// The relative paths of all files, with `/` between components: untrusted. An error if there
    /// are more than `most`.
    fn names(&self, most: u64) -> Result<Vec<String>>;

    /// Opens one of them.
    fn open(&self, name: &str) -> Result<Source>;
}

/// The files of a model in a folder.
pub(crate) struct ModelFiles {
    pub(crate) shards: Vec<String>,
    /// The index file, by its name.
    pub(crate) index: Option<(PathBuf, ModelIndex)>,
}

/// A folder. No name in it leads out of it.
pub(crate) struct Folder(Kind);

enum Kind {
    Local(Local),
    Remote(Box<dyn RemoteFolder>),
}

impl Folder {
    /// Opens a folder on this machine.
    pub(crate) fn open(path: &Path, links: Links, stop: Stop) -> Result<Self> {
        Ok(Folder(Kind::Local(Local::open(path, links, stop)?)))
    }

    pub(crate) fn remote(files: impl RemoteFolder + 'static) -> Self {
        Folder(Kind::Remote(Box::new(files)))
    }

    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.0, Kind::Remote(_))
    }

    /// Opens a regular file of a folder on this machine. `name` is a checked relative path.
    pub(crate) fn local_file(&self, name: &Path) -> Result<File> {
        match &self.0 {
            Kind::Local(folder) => folder.open_file(name),
            Kind::Remote(_) => Err(Error::new(ErrorKind::Argument)
                .in_file(name)
                .expected("a file on this machine")),
        }
    }

    /// Opens a regular file of the folder. `name` is a checked relative path.
    pub(crate) fn open_file(&self, name: &Path) -> Result<Source> {
        match &self.0 {
            Kind::Local(folder) => Source::local(folder.open_file(name)?).in_file(name),
            Kind::Remote(files) => files.open(&with_slashes(name)),
        }
    }

    /// Every file with that ending, by its relative path.
    pub(crate) fn weights(&self, ending: &str, options: FolderOptions) -> Result<Vec<PathBuf>> {
        Ok(weights(&self.list(options)?.files, ending)?.into_iter().cloned().collect())
    }

    /// The names in the folder itself, in order, without hidden ones.
    fn names_in_root(&self) -> Result<Vec<PathBuf>> {
        let mut names: Vec<PathBuf> = match &self.0 {
            Kind::Local(folder) => folder.names_in_root()?.into_iter().map(PathBuf::from).collect(),
            Kind::Remote(_) => self.list(FolderOptions::new())?.files.into_iter().collect(),
        };
        names.retain(|name| name.components().count() == 1 && !is_hidden(&name.to_string_lossy()));
        names.sort();
        Ok(names)
    }

    /// The shards of the folder's model: those in its index file, or its only shard. Beside a model
    /// may lie its variants.
    pub(crate) fn model(&self) -> Result<ModelFiles> {
        let names = self.names_in_root()?;
        let of = |wanted| names.iter().filter(move |name| role(name, SHARD) == wanted);
        let is_plain =
            |name: &&PathBuf| name.to_string_lossy().ends_with(&format!("{SHARD}{INDEX}"));
        let plain: Vec<_> = of(Role::Index).filter(is_plain).collect();
        let shards: Vec<_> = of(Role::Weights).collect();
        let name = match (&plain[..], &shards[..]) {
            ([name], _) | (_, [name]) => name,
            _ => {
                // By model; an index file in place of the shards that it names.
                let all = of(Role::Weights).chain(of(Role::Index));
                let all = all.filter_map(|name| Some((model_of(name.to_str()?)?, name)));
                let models: BTreeMap<String, &PathBuf> = all.collect();
                let is_variant = |of: &str, other: &str| {
                    other.strip_prefix(of).is_some_and(|v| v.is_empty() || v.starts_with('.'))
                };
                let first = models.iter().find(|(model, name)| {
                    numbered(&name.to_string_lossy()).is_none()
                        && models.keys().all(|other| is_variant(model, other))
                });
                *first.ok_or_else(|| self.no_model(&names, &models))?.1
            }
        };
        if role(name, SHARD) == Role::Weights {
            return Ok(ModelFiles { shards: vec![name.to_string_lossy().into()], index: None });
        }
        let mut bytes = IndexBytes::default();
        let (_, index) = ModelIndex::read(&self.open_file(name)?, &mut bytes).in_file(name)?;
        let shards = index.shards().into_iter().map(str::to_owned).collect();
        Ok(ModelFiles { shards, index: Some((name.clone(), index)) })
    }

    /// Why the folder is not one model.
    fn no_model(&self, names: &[PathBuf], models: &BTreeMap<String, &PathBuf>) -> Error {
        let wrong = |found: String| Error::new(ErrorKind::ModelIndex).found(found);
        if models.is_empty() {
            let is_weights = |name: &&PathBuf| {
                role(name, SAFETENSORS) == Role::Weights || role(name, SHARD) == Role::Weights
            };
            if let Some(plain) = names.iter().find(is_weights) {
                return wrong(format!(
                    "{:?} is a safetensors file; `bigsmall compress` makes a shard of it",
                    plain.display().to_string()
                ));
            }
            let below = self.list(FolderOptions::new()).map(|listing| listing.files);
            let below = below.unwrap_or_default().into_iter().find(|name| is_weights(&name));
            return match below.as_deref().and_then(Path::parent) {
                Some(folder) => wrong(format!(
                    "no model in this folder itself, but below it, as in {:?}: open one of those",
                    folder.display().to_string()
                )),
                None => wrong("no .bs file and no model.bs.index.json in this folder".into()),
            };
        }
        // An index file that disagrees with the shards was kept as it was.
        let is_shard = |shard: &Path| {
            role(shard, SHARD) == Role::Weights && names.iter().any(|name| name == shard)
        };
        let mut bytes = IndexBytes::default();
        for name in names.iter().filter(|name| role(name, SAFETENSORS) == Role::Index) {
            let checked = self.open_file(name).and_then(|file| {
                let index = ModelIndex::read(&file, &mut bytes)?.1.renamed(SAFETENSORS, SHARD);
                index.check(name, |shard| match is_shard(shard) {
                    true => Ok(Some(Shard::open(self.open_file(shard)?)?.tensors().to_vec())),
                    false => Ok(None),
                })
            });
            if let Err(error) = checked {
                return error.in_file(name);
            }
        }
        let mut several: Vec<String> =
            models.values().take(4).map(|n| format!("{:?}", n.display().to_string())).collect();
        if models.len() > 4 {
            several.truncate(3);
            several.push(format!("{} more", models.len() - 3));
        }
        match &several[..] {
            [_] => wrong("shards without an index file; `bigsmall index` makes it".into()),
            _ => wrong(format!("several models: {}; open one by its path", several.join(", "))),
        }
    }

    /// Whether the folder itself has shards, or those below it have, and no safetensors files.
    pub(crate) fn has_shards(&self) -> Result<bool> {
        let names = self.names_in_root()?;
        if names.iter().any(|name| role(name, SHARD) != Role::Other) {
            return Ok(true);
        }
        let files = self.list(FolderOptions::new())?.files;
        let any = |ending| files.iter().any(|name| role(name, ending) == Role::Weights);
        Ok(any(SHARD) && !any(SAFETENSORS))
    }

    /// The weights of all models in the folder and below, to be a base: the safetensors files, or
    /// the shards if there are none. Where there is an index file, only those that it names.
    pub(crate) fn base_files(&self, options: FolderOptions) -> Result<Vec<PathBuf>> {
        let files = self.list(options)?.files;
        let any = files.iter().any(|name| role(name, SAFETENSORS) == Role::Weights);
        let ending = if any { SAFETENSORS } else { SHARD };
        let mut named: BTreeMap<&Path, BTreeSet<PathBuf>> = BTreeMap::new();
        let mut bytes = IndexBytes::default();
        for name in files.iter().filter(|name| role(name, ending) == Role::Index) {
            let (_, index) = ModelIndex::read(&self.open_file(name)?, &mut bytes).in_file(name)?;
            let parent = name.parent().unwrap_or(Path::new(""));
            named.entry(parent).or_default().extend(index.shards().iter().map(|s| parent.join(s)));
        }
        let in_model = |name: &&PathBuf| {
            let parent = name.parent().unwrap_or(Path::new(""));
            named.get(parent).is_none_or(|names| names.contains(*name))
        };
        Ok(weights(&files, ending)?.into_iter().filter(in_model).cloned().collect())
    }

    /// Every file, by its relative path. What is in a `.git` never belongs to it; what is hidden
    /// only if it is wanted.
    pub(crate) fn list(&self, options: FolderOptions) -> Result<Listing> {
        let files = match &self.0 {
            Kind::Local(folder) => return folder.list(options),
            Kind::Remote(files) => files,
        };
        let mut listing = Listing::new(options);
        for name in files.names(options.max_files)? {
            // Untrusted names that become local paths.
            if listing.wants(Path::new(&name)) {
                check_name(&name)?;
                listing.add(PathBuf::from(name))?;
            }
        }
        Ok(listing.without_repositories())
    }
}

/// What a path or URL leads to.
pub(crate) enum Input {
    File(Source),
    Folder(Folder),
}
