//! A base as a caller gives it: a file, a folder or a URL.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use bigsmall_format::internal::without_secrets;
use bigsmall_format::{Header, Limits, ReadAt, Rule, Shard};

use crate::base::tensor::{BaseFile, Bases, Content};
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::names::SHARD;
use crate::os;
use crate::progress::Stop;
use crate::report::with_slashes;
use crate::source::file::Source;
use crate::source::folder::Input;
use crate::source::listing::FolderOptions;
use crate::source::open::open;
use crate::source::url::{shown, url};

/// A model that others are stored as differences from: safetensors files or shards, and the bases
/// of these shards.
///
/// Opening reads headers and indices. Of the tensors, only the blocks that are needed are read, and
/// each is compared with its checksum before it is used. To compress against a safetensors file,
/// all of it is read, for its SHA-256.
///
/// ```no_run
/// use bigsmall_io::{BaseModel, Model};
/// let base = BaseModel::open("base.safetensors")?;
/// let model = Model::open("fine-tune.bs")?.with_base(base)?;
/// // A chain: the fine-tune was stored against a shard that has a base itself.
/// let chain = BaseModel::open("step-100.bs")?.with_base(BaseModel::open("base.safetensors")?);
/// let model = Model::open("step-200.bs")?.with_base(chain)?;
/// # Ok::<(), bigsmall_io::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct BaseModel {
    /// The model itself first, then the bases of its shards.
    files: Vec<Arc<BaseFile>>,
    /// How many of the files are the model itself.
    n_own: usize,
}

impl fmt::Debug for BaseModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: Vec<&str> = self.files.iter().map(|file| &*file.shown).collect();
        f.debug_struct("BaseModel").field("files", &files).finish_non_exhaustive()
    }
}

impl BaseModel {
    /// Opens a safetensors file, a shard, a folder of either, or a URL of these as in
    /// [`Model::open`](crate::Model::open). In a folder with an index file, the files that it names
    /// are the model; otherwise all `.safetensors` files are, or all `.bs` files if there are none.
    ///
    /// # Errors
    /// Header rules of [`Rule`], those of [`Shard::open`] and of
    /// [`Model::open`](crate::Model::open);
    /// [`ErrorKind::ModelTensor`] for a tensor that is in two files.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path.as_ref(), FolderOptions::new(), &Stop::default())
    }

    fn open_with(path: &Path, options: FolderOptions, stop: &Stop) -> Result<Self> {
        let remote = url(path).is_some();
        let (shown, hint) = (shown(path), hint(path));
        if !remote && !path.is_dir() {
            let about = About { shown, hint, ..About::default() };
            return Ok(BaseModel::of(vec![about.open_local(os::open_regular(path)?)?]));
        }
        let folder = match open(path, stop)? {
            Input::File(source) => {
                let about = About { shown: shown.clone(), hint, remote, ..About::default() };
                return Ok(BaseModel::of(vec![about.open(source, None).in_file(&shown)?]));
            }
            Input::Folder(folder) => folder,
        };
        let mut files = Vec::new();
        for name in folder.base_files(options).in_file(&shown)? {
            let within = with_slashes(&name);
            let about = About {
                shown: format!("{}/{within}", shown.trim_end_matches('/')),
                hint: format!("{}/{within}", hint.trim_end_matches('/')),
                folder: name.parent().unwrap_or(Path::new("")).to_owned(),
                remote: folder.is_remote(),
            };
            let named = about.shown.clone();
            let opened = match folder.is_remote() {
                true => folder.open_file(&name).and_then(|source| about.open(source, None)),
                false => folder.local_file(&name).and_then(|file| about.open_local(file)),
            };
            files.push(opened.in_file(named)?);
        }
        check_names(&files).in_file(&shown)?;
        Ok(BaseModel::of(files))
    }

    /// Opens the safetensors file or the shard in `source`: bytes in memory, a remote file.
    ///
    /// # Errors
    /// Header rules of [`Rule`], those of [`Shard::open`].
    pub fn from_source(source: impl ReadAt + 'static) -> Result<Self> {
        // What lies in memory can be borrowed.
        let remote = source.bytes_at(0..0).is_none();
        let about = About { remote, ..About::default() };
        Ok(BaseModel::of(vec![about.open(Source::new(source), None)?]))
    }

    /// Adds the base of this model's shards. Call it once for each base behind the other, in any
    /// order.
    #[must_use]
    pub fn with_base(mut self, base: impl Into<BaseModel>) -> Self {
        self.files.extend(base.into().files);
        self
    }

    /// Opens the first path, and the others as the bases behind it. Empty without paths.
    /// `options` say which files of their folders are taken.
    pub(crate) fn open_all(paths: &[PathBuf], options: FolderOptions, stop: &Stop) -> Result<Self> {
        let mut all = BaseModel::default();
        for path in paths {
            let model = BaseModel::open_with(path, options, stop)?;
            all = if all.files.is_empty() { model } else { all.with_base(model) };
        }
        Ok(all)
    }

    fn of(files: Vec<BaseFile>) -> Self {
        BaseModel { n_own: files.len(), files: files.into_iter().map(Arc::new).collect() }
    }

    /// The shards of an open model, each with its name in errors and its bases.
    pub(crate) fn of_shards(
        shards: Vec<(String, Arc<Shard<Source>>, Bases)>,
        remote: bool,
    ) -> Self {
        let files = shards.into_iter().map(|(shown, shard, bases)| {
            let about = About { hint: shown.clone(), shown, folder: PathBuf::new(), remote };
            // Those that were not given may still be.
            let unset = bases.is_empty() && !shard.bases().is_empty();
            let bases = if unset { OnceLock::new() } else { OnceLock::from(bases) };
            about.file(Content::Shard { shard, bases }, None)
        });
        BaseModel::of(files.collect())
    }

    /// Whether the model itself has a tensor of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files[..self.n_own].iter().any(|file| file.header().index_of(name).is_some())
    }

    /// All files, of the model and of the bases behind it.
    pub(crate) fn files(&self) -> &[Arc<BaseFile>] {
        &self.files
    }

    /// The files of the model itself that a file in the folder `folder` is compared with: those of
    /// the same folder within the model, or all if the model has one folder only.
    pub(crate) fn files_for(&self, folder: &Path) -> Vec<&Arc<BaseFile>> {
        let own = &self.files[..self.n_own];
        let same: Vec<_> = own.iter().filter(|file| file.folder == folder).collect();
        let one = own.iter().all(|file| Some(&file.folder) == own.first().map(|f| &f.folder));
        if same.is_empty() && one { own.iter().collect() } else { same }
    }
}

type Stamp = Box<dyn Fn() -> bool + Send + Sync>;

/// What is known of a file before it is opened.
#[derive(Default)]
struct About {
    shown: String,
    hint: String,
    folder: PathBuf,
    remote: bool,
}

impl About {
    /// Opens a file on this machine.
    fn open_local(self, file: File) -> Result<BaseFile> {
        let named = self.shown.clone();
        let opened = move || -> Result<BaseFile> {
            let again = file.try_clone()?;
            let before = os::stamp(&file.metadata()?);
            let unchanged = move || again.metadata().is_ok_and(|now| os::stamp(&now) == before);
            self.open(Source::local(file)?, Some(Box::new(unchanged)))
        };
        opened().in_file(named)
    }

    fn open(self, source: Source, stamp: Option<Stamp>) -> Result<BaseFile> {
        let of_shard = |shard| Content::Shard { shard: Arc::new(shard), bases: OnceLock::new() };
        if self.shown.ends_with(SHARD) {
            let shard = Shard::open(source)?;
            return Ok(self.file(of_shard(shard), stamp));
        }
        let content = match Header::read(&source, &Limits::default()) {
            Ok((json, header)) => {
                Content::Safetensors { source, header, data_at: 8 + json.len() as u64 }
            }
            // A shard begins with what would be a header of many exabytes.
            Err(error) if error.rule() == Rule::HeaderLength => match Shard::open(source) {
                Ok(shard) => of_shard(shard),
                Err(other) if other.rule() == Rule::ShardMagic => return Err(error.into()),
                Err(other) => return Err(other.into()),
            },
            Err(error) => return Err(error.into()),
        };
        Ok(self.file(content, stamp))
    }

    fn file(self, content: Content, stamp: Option<Stamp>) -> BaseFile {
        let About { shown, hint, folder, remote } = self;
        let is_unchanged = stamp.unwrap_or_else(|| Box::new(|| true));
        let (depth, sha256) = (content.depth(), Mutex::new(None));
        BaseFile { shown, hint, folder, remote, depth, content, is_unchanged, sha256 }
    }
}

/// Where a base is, for people: the name of a file or folder of this machine, or a URL.
fn hint(path: &Path) -> String {
    match url(path) {
        Some(_) => without_secrets(&shown(path)).into_owned(),
        None => crate::report::file_name(path),
    }
}

/// Refuses a tensor in two files of a model.
fn check_names(files: &[BaseFile]) -> Result<()> {
    let mut seen: HashMap<(&Path, &str), &BaseFile> = HashMap::new();
    for file in files {
        for spec in file.tensors() {
            if let Some(other) = seen.insert((&file.folder, spec.name()), file) {
                let error = Error::new(ErrorKind::ModelTensor).in_tensor(spec.name());
                return Err(error.found(format!("in {:?} and {:?}", other.shown, file.shown)));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::base::matches::Against;
    use crate::compress::walk::compress_source;
    use crate::stage::output::Discard;
    use crate::{CompressOptions, Progress};

    #[test]
    // T-05
    fn a_base_that_somebody_writes_to_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base");
        let json = br#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
        let file = |data: [u8; 4]| [&(json.len() as u64).to_le_bytes(), &json[..], &data].concat();
        std::fs::write(&path, file([1, 2, 3, 4])).unwrap();
        let base = BaseModel::open(&path).unwrap();
        let compress = || {
            let (new, options) = (file([1, 2, 3, 5]), CompressOptions::default());
            compress_source(&new, Against::new(&base), &Discard, &options, &Progress::default())
        };
        compress().unwrap();
        let mut open = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        open.write_all(&[0]).unwrap();
        let error = compress().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceChanged, "{error}");
        assert!(error.file().unwrap().ends_with("base"));
    }

    #[test]
    fn only_files_that_are_needed_are_hashed() {
        let file = |name: &str| {
            let json = format!(r#"{{"{name}":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}}"#);
            [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &[1, 2, 3, 4]].concat()
        };
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            let path = dir.path().join(name).with_extension("safetensors");
            std::fs::write(path, file(name)).unwrap();
        }
        let (base, options) = (BaseModel::open(dir.path()).unwrap(), CompressOptions::default());
        let (new, progress) = (file("b"), Progress::default());
        let report = compress_source(&new, Against::new(&base), &Discard, &options, &progress);
        assert_eq!(report.unwrap().n_inherited, 1);
        let known = base.files().iter().map(|file| file.known_sha256().is_some());
        assert_eq!(known.collect::<Vec<_>>(), [false, true]);
    }
}
