//! Makes one model from shards that several machines wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bigsmall_format::internal::len_of;
use bigsmall_format::{Header, Limits, ReadAt, Shard, TensorSpec};

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::folder::card;
use crate::folder::check::refuse_cards;
use crate::folder::compress::translated;
use crate::folder::out::{copy, same_bytes};
use crate::model_index::{IndexBytes, ModelIndex, translate};
use crate::names::{Role, SAFETENSORS, SHARD, model_of, numbered, renamed, role, weights};
use crate::progress::Cancellable;
use crate::report::with_slashes;
use crate::source::folder::Folder;
use crate::source::listing::{FolderOptions, Listing};
use crate::source::local::Links;
use crate::stage::atomic::AtomicFile;
use crate::{FileReport, Progress, Report, os};

/// How to make one model from shards.
///
/// ```
/// let options = bigsmall_io::IndexOptions::new().original("model");
/// assert!(!options.replace);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct IndexOptions {
    /// The folder that the shards were made from. With it, all its other files are copied too, and
    /// every file is identical, byte by byte, to that of compressing it on one machine. (Empty
    /// folders and permission bits are not carried over.) Without it,
    /// the index file is made from the shards.
    pub original: Option<PathBuf>,
    /// Replace existing files that have other contents.
    pub replace: bool,
    /// Which files of a folder are taken.
    pub folder: FolderOptions,
}

impl IndexOptions {
    /// No original; an existing file with other contents is an error.
    #[must_use]
    pub fn new() -> Self {
        IndexOptions::default()
    }

    /// Sets [`original`](Self#structfield.original).
    #[must_use]
    pub fn original(mut self, original: impl Into<PathBuf>) -> Self {
        self.original = Some(original.into());
        self
    }

    /// Sets [`replace`](Self#structfield.replace).
    #[must_use]
    pub fn replace(mut self, replace: bool) -> Self {
        self.replace = replace;
        self
    }

    /// Sets [`folder`](Self#structfield.folder).
    #[must_use]
    pub fn folder(mut self, folder: FolderOptions) -> Self {
        self.folder = folder;
        self
    }
}

/// Makes one model from the shards that several machines wrote into the folder `dir`: writes the
/// index file and the model card, and copies the other files of the original, if it is given.
///
/// The shards are opened, not decoded. Existing files with the same contents are left alone; others
/// are replaced only with [`replace`](IndexOptions#structfield.replace). `progress` serves to
/// cancel: each file is then absent, old or complete, and the next run makes what is missing.
///
/// # Errors
/// Those of [`Shard::open`]; [`ErrorKind::ModelTensor`] for a tensor in two shards, and for an
/// index file in `dir` that disagrees with the shards; [`ErrorKind::ModelIndex`] for a shard that
/// was made from another file; [`ErrorKind::OutputExists`], [`ErrorKind::TooManyFiles`],
/// [`ErrorKind::Cancelled`]; [`ErrorKind::Io`], also for a shard that the original has and `dir`
/// has not.
pub fn index(dir: impl AsRef<Path>, options: &IndexOptions, progress: &Progress) -> Result<Report> {
    let dir = dir.as_ref();
    let folder = Folder::open(dir, Links::Within, progress.stop())?;
    let files = folder.list(options.folder)?.files;
    // Found before anything is written in their place.
    let cards = card::all(&folder, &files)?;
    let mut reports = Vec::new();
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    let mut total = 0;
    let shards = weights(&files, SHARD)?;
    let members = members(&shards);
    for name in &shards {
        progress.check()?;
        let shard = Shard::open(folder.open_file(name)?).in_file(name)?;
        reports.push(FileReport {
            name: with_slashes(&renamed(name, SHARD, SAFETENSORS)),
            original_bytes: shard.original_len(),
            compressed_bytes: len_of(shard.source()).in_file(name)?,
            sha256: shard.sha256(),
            n_tensors: shard.tensors().len() as u64,
            bases: shard.bases().to_vec(),
            ..Default::default()
        });
        // The index file of the original says where tensors are.
        if options.original.is_some() || !members.contains(name) {
            continue;
        }
        for spec in shard.tensors() {
            total += spec.byte_len();
            let place = name.to_string_lossy().into_owned();
            if places.insert(spec.name().to_owned(), place).is_some() {
                let error = Error::new(ErrorKind::ModelTensor).in_tensor(spec.name());
                return Err(error.found("in two shards").in_file(name));
            }
        }
    }
    reports.sort_by(|a, b| a.name.cmp(&b.name));
    let (mut kept, mut list) = (&files - &cards, Listing::default());
    let replace = options.replace;
    let out = Out { folder: &folder, dir, files: &files, cards: &cards, replace, progress };
    match &options.original {
        Some(original) => {
            let from = Folder::open(original, Links::Own, progress.stop())?;
            list = from.list(options.folder)?.without_downloads();
            carry_over(&from, &list.files, &out)?;
            kept.clone_from(&list.files);
        }
        None if members.len() > 1 => {
            let found = files.iter().find(|f| role(f, SAFETENSORS) == Role::Index);
            let text = match found {
                // Copied by hand: translated as compressing the whole folder does.
                Some(name) => {
                    let mut bytes = IndexBytes::default();
                    let read = ModelIndex::read(&folder.open_file(name)?, &mut bytes);
                    let (text, index) = read.in_file(name)?;
                    index.renamed(SAFETENSORS, SHARD).check(name, |shard| {
                        let is_member = members.iter().any(|member| **member == shard);
                        is_member.then(|| tensors_of(&folder, shard)).transpose()
                    })?;
                    translate(&text, SAFETENSORS, SHARD).in_file(name)?.0
                }
                None => {
                    let pairs = places.iter().map(|(tensor, shard)| (&**tensor, &**shard));
                    ModelIndex::of(pairs)?.to_json(total)
                }
            };
            let base = found.and_then(|f| f.to_str()).unwrap_or("model.safetensors.index.json");
            out.put(&renamed(Path::new(base), SAFETENSORS, SHARD), &text.as_bytes())?;
        }
        // An index file of an earlier run stays, so it must be right.
        None => {
            let mut bytes = IndexBytes::default();
            for name in files.iter().filter(|f| role(f, SHARD) == Role::Index) {
                let read = ModelIndex::read(&folder.open_file(name)?, &mut bytes);
                read.in_file(name)?.1.check(name, |shard| {
                    files.contains(shard).then(|| tensors_of(&folder, shard)).transpose()
                })?;
            }
        }
    }
    if let Some(name) = card::name(&kept) {
        out.put(Path::new(name), &card::text(&reports).as_bytes())?;
    }
    os::sync_dir(dir).in_file(dir)?;
    Ok(Report::of(reports).with_list(&list))
}

/// The tensors of a shard of the folder.
fn tensors_of(folder: &Folder, shard: &Path) -> Result<Vec<TensorSpec>> {
    Ok(Shard::open(folder.open_file(shard)?)?.tensors().to_vec())
}

/// The shards of one model directly in a folder: those with a number, without variants; or all but
/// adapters, if no two have a number.
fn members<'a>(shards: &[&'a PathBuf]) -> Vec<&'a PathBuf> {
    // An index file lists the shards beside it. Shards in subfolders are other models.
    let beside = shards.iter().filter(|name| name.components().count() == 1).copied();
    let (mut series, alone): (Vec<_>, Vec<_>) =
        beside.partition(|name| numbered(&name.to_string_lossy()).is_some());
    if series.len() < 2 {
        let is_adapter = |name: &&PathBuf| name.to_string_lossy().starts_with("adapter_");
        return series.into_iter().chain(alone).filter(|name| !is_adapter(name)).collect();
    }
    let model = |name: &PathBuf| model_of(&name.to_string_lossy());
    let first = series.iter().map(|name| model(name)).min();
    series.retain(|name| Some(model(name)) == first);
    series
}

/// The folder of shards, which files are written into.
struct Out<'a> {
    folder: &'a Folder,
    dir: &'a Path,
    /// The files that it has already.
    files: &'a BTreeSet<PathBuf>,
    /// Those of them that are cards of an earlier run: ours to replace.
    cards: &'a BTreeSet<PathBuf>,
    replace: bool,
    progress: &'a Progress,
}

/// Copies all `files` of the original folder `from` except the weights, and translates its index
/// files.
fn carry_over(from: &Folder, files: &BTreeSet<PathBuf>, out: &Out<'_>) -> Result<()> {
    let folder = out.folder;
    let mut bytes = IndexBytes::default();
    refuse_cards(from, files)?;
    for name in files {
        out.progress.check()?;
        match role(name, SAFETENSORS) {
            Role::Weights => {
                // Cheap, and enough to detect a shard of another file; `verify` compares the rest.
                let source = from.open_file(name)?;
                let (json, _) = Header::read(&source, &Limits::default()).in_file(name)?;
                let shard = renamed(name, SAFETENSORS, SHARD);
                let opened = folder.open_file(&shard).and_then(|source| Ok(Shard::open(source)?));
                let opened = opened.in_file(&shard)?;
                if opened.header_json() != json
                    || opened.original_len() != len_of(&source).in_file(name)?
                {
                    let error = Error::new(ErrorKind::ModelIndex).in_file(&shard);
                    return Err(error.found(format!("made from another {:?}", name.display())));
                }
            }
            Role::Index => match translated(from, files, name, &mut bytes, out.progress)? {
                Some((text, exact)) => {
                    out.put(&renamed(name, SAFETENSORS, SHARD), &text.as_bytes())?;
                    if !exact {
                        out.put(name, &from.open_file(name)?)?;
                    }
                }
                None => out.put(name, &from.open_file(name)?)?,
            },
            Role::Other => out.put(name, &from.open_file(name)?)?,
        }
    }
    Ok(())
}

impl Out<'_> {
    /// Writes the bytes of `source` to the file `name`, unless it has them already.
    fn put(&self, name: &Path, source: &dyn ReadAt) -> Result<()> {
        let source = Cancellable { source, progress: self.progress };
        if self.files.contains(name) {
            let found = self.folder.open_file(name)?;
            if same_bytes(&found, &source).in_file(name)? {
                return Ok(());
            }
        }
        let path = self.dir.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).in_file(parent)?;
        }
        let target = AtomicFile::create(&path, self.replace || self.cards.contains(name))?;
        copy(&source, &target).in_file(&path)?;
        target.commit()
    }
}
