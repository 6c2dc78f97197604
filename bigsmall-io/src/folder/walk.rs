//! Whole model folders: weights compressed or restored, the index file translated, everything else
//! carried over untouched.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use bigsmall_format::{Error, Header, Limits, ReadAt as _, Result, Rule, Shard, TensorSpec};

use crate::compress::walk::compress_file;
use crate::folder::card;
use crate::model_index::{ModelIndex, check_name, translate};
use crate::restore::walk::{restore_file, restore_shard};
use crate::source::open::{RemoteFolder, Source};
use crate::stage::atomic::{AtomicDir, AtomicFile, Output};
use crate::{CompressOptions, FileReport, Progress, Report, RestoreOptions, os};

pub(crate) const SAFETENSORS: &str = ".safetensors";
pub(crate) const SHARD: &str = ".bs";
const INDEX: &str = ".index.json";
/// Bytes of other files that are copied at a time.
const COPY: u64 = 8 << 20;

/// A folder in which nothing leads out.
pub(crate) struct Folder(Kind);

// Without any of the features there is nothing remote.
#[cfg_attr(not(any(feature = "http", feature = "cloud")), allow(dead_code))]
enum Kind {
    Local {
        root: PathBuf,
        /// Where links may lead: the folder itself, or all of the model in a Hub cache, whose
        /// snapshots are links to its blobs.
        bounds: PathBuf,
    },
    Remote(Box<dyn RemoteFolder>),
}

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let named = |e: io::Error| Error::io(e).in_file(path);
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

    /// The file behind `name` on this machine, a relative path that has been checked. Links are
    /// followed as long as they stay in bounds.
    pub(crate) fn resolve(&self, name: &Path) -> Result<PathBuf> {
        let Kind::Local { root, bounds } = &self.0 else {
            return Err(Error::new(Rule::Argument)
                .in_file(name)
                .expected("a file on this machine"));
        };
        let path = root.join(name);
        let found = path.canonicalize().map_err(|e| Error::io(e).in_file(&path))?;
        if !found.starts_with(bounds) {
            return Err(Error::new(Rule::ModelPath).in_file(&path));
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
        let named = |e: io::Error| Error::io(e).in_file(root);
        let entries = std::fs::read_dir(root).map_err(named)?;
        let names = entries.map(|entry| entry.map(|e| PathBuf::from(e.file_name())));
        let mut names = names.collect::<io::Result<Vec<_>>>().map_err(named)?;
        names.sort();
        Ok(names)
    }

    /// Every file, by its relative path, in the order of the names; `.git` is left out.
    fn files(&self) -> Result<BTreeSet<PathBuf>> {
        let root = match &self.0 {
            Kind::Local { root, .. } => root,
            Kind::Remote(files) => {
                let mut found = BTreeSet::new();
                for name in files.names()? {
                    // A stranger's words, which become paths on this machine.
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
            let named = |e: io::Error| Error::io(e).in_file(&path);
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
                // A link to a folder is refused like a pipe: it may lead round in a circle.
                if !self.resolve(&name)?.is_file() {
                    let path = root.join(&name);
                    return Err(Error::new(Rule::NotARegularFile).in_file(&path));
                }
                files.insert(name);
            }
        }
        Ok(files)
    }
}

/// What becomes of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Weights,
    Index,
    Other,
}

fn role(name: &Path, ending: &str) -> Role {
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    let index = format!("{ending}{INDEX}");
    if name.ends_with(ending) {
        Role::Weights
    } else if name.ends_with(&index) {
        Role::Index
    } else {
        Role::Other
    }
}

/// `name` with the ending `to` in place of `from`, before `.index.json` where it has that.
fn renamed(name: &Path, from: &str, to: &str) -> PathBuf {
    let file = name.file_name().unwrap_or_default().as_encoded_bytes();
    for tail in ["", INDEX] {
        let ending = format!("{from}{tail}");
        if let Some(stem) = file.strip_suffix(ending.as_bytes()) {
            // `weights` has refused names that are no Unicode.
            let mut new = String::from_utf8_lossy(stem).into_owned();
            new.push_str(to);
            new.push_str(tail);
            return name.with_file_name(new);
        }
    }
    name.to_owned()
}

/// What `tensors` of a weights file says must agree with an index file: every tensor of the map is
/// where the map says, and no tensor of a mapped file is anywhere else.
fn check_index(
    folder: &Folder,
    name: &Path,
    index: &ModelIndex,
    tensors: impl Fn(&Path) -> Result<Vec<TensorSpec>>,
) -> Result<()> {
    let base = name.parent().unwrap_or(Path::new(""));
    let mut wanted: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, shard) in &index.weight_map {
        wanted.entry(shard).or_default().insert(tensor);
    }
    for (shard, mut wanted) in wanted {
        let path = base.join(shard);
        if !folder.is_remote() {
            folder.resolve(&path)?;
        }
        for spec in tensors(&path)? {
            if !wanted.remove(spec.name()) {
                return Err(Error::new(Rule::ModelTensor)
                    .in_tensor(spec.name())
                    .found(format!("in {shard:?}, which the index file does not say")));
            }
        }
        if let Some(missing) = wanted.first() {
            return Err(Error::new(Rule::ModelTensor)
                .in_tensor(missing)
                .expected(format!("it to be in {shard:?}")));
        }
    }
    Ok(())
}

/// Where a job would write into its own input.
fn check_apart(input: &Path, output: &Path) -> Result<()> {
    let refuse = || Err(Error::new(Rule::SameFile).in_file(output));
    let Ok(input) = input.canonicalize() else { return Ok(()) };
    let parent = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(parent) = parent.canonicalize() else { return Ok(()) };
    let output = parent.join(output.file_name().unwrap_or_default());
    if output.starts_with(&input) || input.starts_with(&output) { refuse() } else { Ok(()) }
}

/// Writes the files of an output folder.
struct Out<'a> {
    from: &'a Folder,
    to: &'a Path,
    progress: &'a Progress,
    folders: BTreeSet<PathBuf>,
    names: BTreeSet<PathBuf>,
}

impl<'a> Out<'a> {
    fn new(from: &'a Folder, to: &'a Path, progress: &'a Progress) -> Self {
        Out { from, to, progress, folders: BTreeSet::from([to.to_owned()]), names: BTreeSet::new() }
    }

    /// Where the file `name` goes; its folder exists then, and no other file has the name.
    fn place(&mut self, name: &Path) -> Result<PathBuf> {
        if self.progress.is_cancelled() {
            return Err(Error::new(Rule::Cancelled));
        }
        if !self.names.insert(name.to_owned()) {
            return Err(Error::new(Rule::Argument)
                .found(format!("two files would become {:?}", name.display().to_string())));
        }
        let path = self.to.join(name);
        let mut folder = path.parent().unwrap_or(self.to);
        std::fs::create_dir_all(folder).map_err(|e| Error::io(e).in_file(folder))?;
        while folder != self.to && self.folders.insert(folder.to_owned()) {
            folder = folder.parent().unwrap_or(self.to);
        }
        Ok(path)
    }

    fn copy(&mut self, name: &Path) -> Result<()> {
        let target = AtomicFile::create(&self.place(name)?, false)?;
        let source = self.from.open_file(name)?;
        let mut buffer = vec![0; COPY.min(source.byte_len()) as usize];
        let mut at = 0;
        while at < source.byte_len() {
            let piece = &mut buffer[..COPY.min(source.byte_len() - at) as usize];
            source.read_exact_at(at, piece).map_err(|e| e.in_file(name))?;
            target.append(piece)?;
            at += piece.len() as u64;
        }
        target.commit()
    }

    fn text(&mut self, name: &Path, text: &str) -> Result<()> {
        let target = AtomicFile::create(&self.place(name)?, false)?;
        target.append(text.as_bytes())?;
        target.commit()
    }

    /// Makes the names in every folder durable.
    fn sync(&self) -> Result<()> {
        let sync =
            |folder: &PathBuf| os::sync_dir(folder).map_err(|e| Error::io(e).in_file(folder));
        self.folders.iter().try_for_each(sync)
    }
}

fn named(mut report: FileReport, name: &Path) -> FileReport {
    report.name = name.to_string_lossy().into_owned();
    report
}

fn weights<'a>(files: &'a BTreeSet<PathBuf>, ending: &str) -> Result<Vec<&'a PathBuf>> {
    let mut found = Vec::new();
    for name in files.iter().filter(|f| role(f, ending) != Role::Other) {
        if name.to_str().is_none() {
            return Err(Error::new(Rule::Argument).in_file(name).expected("a name in Unicode"));
        }
        if role(name, ending) == Role::Weights {
            found.push(name);
        }
    }
    if found.is_empty() {
        return Err(Error::new(Rule::Argument).found(format!("no {ending} file in the folder")));
    }
    Ok(found)
}

/// Compresses every safetensors file of a folder; see [`compress`](crate::compress).
pub(crate) fn compress_folder(
    input: &Path,
    output: &Path,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<Report> {
    check_apart(input, output)?;
    let folder = Folder::open(input)?;
    let files = folder.files()?;
    if let Some(shard) = files.iter().find(|f| role(f, SHARD) != Role::Other) {
        return Err(Error::new(Rule::Argument)
            .expected("a folder without shards")
            .found(shard.display()));
    }
    refuse_cards(&folder, &files)?;
    for name in weights(&files, SAFETENSORS)? {
        progress.expect(folder.open_file(name)?.byte_len());
    }
    let mut indices = Vec::new();
    for name in files.iter().filter(|f| role(f, SAFETENSORS) == Role::Index) {
        let in_file = |e: Error| e.in_file(name);
        let (text, index) = ModelIndex::read(&folder.open_file(name)?).map_err(in_file)?;
        check_index(&folder, name, &index, |path| {
            let (_, header) = Header::read(&folder.open_file(path)?, &Limits::default())?;
            Ok(header.tensors().to_vec())
        })?;
        indices.push((name, translate(&text, SAFETENSORS, SHARD)?));
    }
    let target = match options.dry_run {
        true => None,
        false => Some(AtomicDir::create(output, options.replace)?),
    };
    let to = target.as_ref().map_or(output, AtomicDir::path).to_owned();
    let mut out = Out::new(&folder, &to, progress);
    let inner = CompressOptions { replace: false, ..*options };
    let mut reports = Vec::new();
    for name in &files {
        match role(name, SAFETENSORS) {
            Role::Weights => {
                let place = match options.dry_run {
                    true => to.clone(),
                    false => out.place(&renamed(name, SAFETENSORS, SHARD))?,
                };
                let report = compress_file(&folder.resolve(name)?, &place, &inner, progress)
                    .map_err(|e| e.in_file(name))?;
                reports.push(named(report, name));
            }
            Role::Other if !options.dry_run => out.copy(name)?,
            Role::Index | Role::Other => {}
        }
    }
    reports.sort_by(|a: &FileReport, b| a.name.cmp(&b.name));
    if let Some(target) = target {
        if let Some(name) = card::name(&files) {
            out.text(Path::new(name), &card::text(&reports))?;
        }
        for (name, (text, exact)) in &indices {
            out.text(&renamed(name, SAFETENSORS, SHARD), text)?;
            if !exact {
                out.copy(name)?;
            }
        }
        out.sync()?;
        target.commit()?;
    }
    Ok(Report::of(reports))
}

/// A card would be left out when the folder is restored: there must not be one among the files to
/// be kept.
fn refuse_cards(folder: &Folder, files: &BTreeSet<PathBuf>) -> Result<()> {
    for name in files.iter().filter(|f| card::may_be(f)) {
        if card::is_card(&folder.open_file(name)?)? {
            return Err(Error::new(Rule::Argument)
                .in_file(name)
                .expected("a folder that was not compressed yet")
                .found("a model card written by bigsmall"));
        }
    }
    Ok(())
}

/// Makes one model of the shards that several machines wrote into the folder `dir`: writes the
/// index file and the model card. With `original`, the folder that the shards were made from,
/// everything else is carried over too, and `dir` becomes what compressing `original` at once would
/// have made it, byte by byte. Without it the index file is made from the shards.
///
/// The shards are opened and not decoded. Files that are there already and say the same are left
/// alone; others are replaced only with `replace`.
///
/// # Errors
/// Those of [`Shard::open`]; [`Rule::ModelTensor`] for a tensor in two shards, [`Rule::ModelIndex`]
/// for a shard that is missing or was made from another file, [`Rule::OutputExists`], [`Rule::Io`].
pub fn index(dir: &Path, original: Option<&Path>, replace: bool) -> Result<Report> {
    let folder = Folder::open(dir)?;
    let files = folder.files()?;
    let mut reports = Vec::new();
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    let mut total = 0;
    let shards = weights(&files, SHARD)?;
    for name in &shards {
        let in_file = |e: Error| e.in_file(name);
        let shard = Shard::open(folder.open_file(name)?).map_err(in_file)?;
        reports.push(FileReport {
            name: renamed(name, SHARD, SAFETENSORS).to_string_lossy().into_owned(),
            original_bytes: shard.original_len(),
            compressed_bytes: shard.source().byte_len(),
            sha256: shard.sha256(),
            n_tensors: shard.tensors().len() as u64,
            ..Default::default()
        });
        // An index file speaks of the shards beside it; those in folders below are models of their
        // own.
        if name.components().count() > 1 {
            continue;
        }
        for spec in shard.tensors() {
            total += spec.byte_len();
            let place = name.to_string_lossy().into_owned();
            if places.insert(spec.name().to_owned(), place).is_some() {
                let error = Error::new(Rule::ModelTensor).in_tensor(spec.name());
                return Err(in_file(error.found("in two shards")));
            }
        }
    }
    reports.sort_by(|a, b| a.name.cmp(&b.name));
    let mut others: BTreeSet<PathBuf> = files.clone();
    let put = |name: &Path, text: &[u8]| put(&folder, dir, &files, name, text, replace);
    match original {
        Some(original) => others = carry_over(&folder, original, put)?,
        None if shards.iter().filter(|s| s.components().count() == 1).count() > 1 => {
            let found = files.iter().find(|f| role(f, SAFETENSORS) == Role::Index);
            let text = match found {
                // Carried over by hand: translated as compressing the whole folder does.
                Some(name) => {
                    let (text, _) = ModelIndex::read(&folder.open_file(name)?)?;
                    translate(&text, SAFETENSORS, SHARD)?.0
                }
                None => ModelIndex { weight_map: places.into_iter().collect() }.to_json(total),
            };
            let base = found.and_then(|f| f.to_str()).unwrap_or("model.safetensors.index.json");
            put(&renamed(Path::new(base), SAFETENSORS, SHARD), text.as_bytes())?;
        }
        None => {}
    }
    for name in files.iter().filter(|f| card::may_be(f)) {
        if card::is_card(&folder.open_file(name)?)? {
            others.remove(name);
        }
    }
    if let Some(name) = card::name(&others) {
        put(Path::new(name), card::text(&reports).as_bytes())?;
    }
    os::sync_dir(dir).map_err(|e| Error::io(e).in_file(dir))?;
    Ok(Report::of(reports))
}

/// Carries all but the weights of `original` over, its index files translated; returns its files.
fn carry_over(
    folder: &Folder,
    original: &Path,
    put: impl Fn(&Path, &[u8]) -> Result<()>,
) -> Result<BTreeSet<PathBuf>> {
    let from = Folder::open(original)?;
    let files = from.files()?;
    refuse_cards(&from, &files)?;
    for name in &files {
        let in_file = |e: Error| e.in_file(name);
        match role(name, SAFETENSORS) {
            Role::Weights => {
                // Cheap and enough to find a shard of another file; `verify` compares the rest.
                let source = from.open_file(name)?;
                let (json, _) = Header::read(&source, &Limits::default()).map_err(in_file)?;
                let shard = renamed(name, SAFETENSORS, SHARD);
                let opened = folder.open_file(&shard).and_then(Shard::open);
                let opened = opened.map_err(|e| e.in_file(&shard))?;
                if opened.header_json() != json || opened.original_len() != source.byte_len() {
                    let error = Error::new(Rule::ModelIndex).in_file(&shard);
                    return Err(error.found(format!("made from another {:?}", name.display())));
                }
            }
            Role::Index => {
                let (text, _) = ModelIndex::read(&from.open_file(name)?).map_err(in_file)?;
                let (translated, exact) = translate(&text, SAFETENSORS, SHARD)?;
                let (_, index) = (&text, ModelIndex::parse(&translated)?);
                let to = renamed(name, SAFETENSORS, SHARD);
                check_index(folder, &to, &index, |path| {
                    Ok(Shard::open(folder.open_file(path)?)?.tensors().to_vec())
                })?;
                put(&to, translated.as_bytes())?;
                if !exact {
                    put(name, text.as_bytes())?;
                }
            }
            Role::Other => {
                let source = from.open_file(name)?;
                let mut bytes = bigsmall_format::zeroed(source.byte_len())?;
                source.read_exact_at(0, &mut bytes).map_err(in_file)?;
                put(name, &bytes)?;
            }
        }
    }
    Ok(files)
}

/// Writes the file `name` of `dir`, unless it holds `text` already.
fn put(
    folder: &Folder,
    dir: &Path,
    files: &BTreeSet<PathBuf>,
    name: &Path,
    text: &[u8],
    replace: bool,
) -> Result<()> {
    let mut replace = replace;
    if files.contains(name) {
        let found = folder.open_file(name)?;
        if found.byte_len() == text.len() as u64 {
            let mut bytes = vec![0; text.len()];
            found.read_exact_at(0, &mut bytes)?;
            if bytes == text {
                return Ok(());
            }
        }
        // A card of an earlier run is ours to replace.
        replace |= card::may_be(name) && card::is_card(&found)?;
    }
    let path = dir.join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| Error::io(e).in_file(parent))?;
    }
    let target = AtomicFile::create(&path, replace)?;
    target.append(text)?;
    target.commit()
}

/// The name of an index file and its text.
type IndexFile = (PathBuf, String);

/// The files of a folder of shards, its shards and its index files checked.
fn open_shards(
    folder: &Folder,
    progress: &Progress,
) -> Result<(BTreeSet<PathBuf>, Vec<IndexFile>)> {
    let files = folder.files()?;
    for name in weights(&files, SHARD)? {
        let shard = Shard::open(folder.open_file(name)?).map_err(|e| e.in_file(name))?;
        progress.expect(shard.original_len());
    }
    let mut indices = Vec::new();
    for name in files.iter().filter(|f| role(f, SHARD) == Role::Index) {
        let (text, index) =
            ModelIndex::read(&folder.open_file(name)?).map_err(|e| e.in_file(name))?;
        check_index(folder, name, &index, |path| {
            Ok(Shard::open(folder.open_file(path)?)?.tensors().to_vec())
        })?;
        indices.push((name.clone(), text));
    }
    Ok((files, indices))
}

/// Restores every shard of a folder; see [`restore`](crate::restore).
pub(crate) fn restore_folder(
    input: &Path,
    folder: &Folder,
    output: &Path,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<Report> {
    check_apart(input, output)?;
    let (files, indices) = open_shards(folder, progress)?;
    let target = AtomicDir::create(output, options.replace)?;
    let mut out = Out::new(folder, target.path(), progress);
    let inner = RestoreOptions { replace: false, ..*options };
    let mut reports = Vec::new();
    for name in &files {
        match role(name, SHARD) {
            Role::Weights => {
                let place = out.place(&renamed(name, SHARD, SAFETENSORS))?;
                let report = Shard::open(folder.open_file(name)?)
                    .and_then(|shard| restore_file(&shard, name, &place, &inner, progress))
                    .map_err(|e| e.in_file(name))?;
                reports.push(named(report, name));
            }
            Role::Other if card::may_be(name) && card::is_card(&folder.open_file(name)?)? => {}
            Role::Other => out.copy(name)?,
            Role::Index => {}
        }
    }
    for (name, text) in &indices {
        let original = renamed(name, SHARD, SAFETENSORS);
        // One that could not be translated back exactly was carried along.
        if !files.contains(&original) {
            out.text(&original, &translate(text, SHARD, SAFETENSORS)?.0)?;
        }
    }
    out.sync()?;
    target.commit()?;
    Ok(Report::of(reports))
}

/// Verifies every shard of a folder; see [`verify`](crate::verify).
pub(crate) fn verify_folder(
    folder: &Folder,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<Report> {
    let (files, _) = open_shards(folder, progress)?;
    let mut reports = Vec::new();
    for name in weights(&files, SHARD)? {
        let report = Shard::open(folder.open_file(name)?)
            .and_then(|shard| restore_shard(&shard, None, options, progress))
            .map_err(|e| e.in_file(name))?;
        reports.push(named(report, name));
    }
    Ok(Report::of(reports))
}
