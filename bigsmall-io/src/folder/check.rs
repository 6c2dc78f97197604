//! Checks of a folder before anything is written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bigsmall_format::TensorSpec;

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::folder::card;
use crate::model_index::ModelIndex;
use crate::source::folder::Folder;

/// What an index file says of one of its files.
pub(crate) struct Said<'a> {
    shard: &'a str,
    tensors: BTreeSet<&'a str>,
}

/// What the index file `name` says of each of its files, by their names in the folder.
pub(crate) fn said<'a>(name: &Path, index: &'a ModelIndex) -> BTreeMap<PathBuf, Said<'a>> {
    let base = name.parent().unwrap_or(Path::new(""));
    let mut by_shard: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, shard) in &index.weight_map {
        by_shard.entry(shard).or_default().insert(tensor);
    }
    let by_shard = by_shard.into_iter();
    by_shard.map(|(shard, tensors)| (base.join(shard), Said { shard, tensors })).collect()
}

impl Said<'_> {
    /// Compares it with the tensors of the file, `path` in the folder: all of them must be in the
    /// index file, and no other for that file.
    pub(crate) fn check(mut self, path: &Path, tensors: &[TensorSpec]) -> Result<()> {
        let shard = self.shard;
        for spec in tensors {
            if !self.tensors.remove(spec.name()) {
                return Err(Error::new(ErrorKind::ModelTensor)
                    .in_file(path)
                    .in_tensor(spec.name())
                    .found(format!("in {shard:?}, but the index file says otherwise")));
            }
        }
        match self.tensors.first() {
            None => Ok(()),
            Some(missing) => Err(Error::new(ErrorKind::ModelTensor)
                .in_file(path)
                .in_tensor(missing)
                .expected(format!("in {shard:?}, as the index file says"))),
        }
    }
}

/// Compares an index file with the tensors of its files, as `tensors` returns them.
pub(crate) fn check_index(
    name: &Path,
    index: &ModelIndex,
    tensors: impl Fn(&Path) -> Result<Vec<TensorSpec>>,
) -> Result<()> {
    said(name, index)
        .into_iter()
        .try_for_each(|(path, said)| said.check(&path, &tensors(&path).in_file(&path)?))
}

/// The shards of models without an index file: `model-00001-of-00002.bs` and its siblings. A tensor
/// is in one of them.
#[derive(Default)]
pub(crate) struct Numbered {
    seen: BTreeMap<String, BTreeSet<Box<str>>>,
}

impl Numbered {
    /// Adds the shard `name`, if it has a number.
    ///
    /// # Errors
    /// [`ErrorKind::ModelTensor`] if a sibling has one of its tensors.
    pub(crate) fn add(&mut self, name: &Path, tensors: &[TensorSpec]) -> Result<()> {
        let Some(model) = numbered(&name.to_string_lossy()) else { return Ok(()) };
        let seen = self.seen.entry(model).or_default();
        for spec in tensors {
            if !seen.insert(spec.name().into()) {
                return Err(Error::new(ErrorKind::ModelTensor)
                    .in_file(name)
                    .in_tensor(spec.name())
                    .found("in two shards"));
            }
        }
        Ok(())
    }
}

/// The name of the model whose shard `name` is: `a/model of 00002` for
/// `a/model-00001-of-00002.bs`.
fn numbered(name: &str) -> Option<String> {
    let is_number = |n: &str| n.len() >= 5 && n.bytes().all(|b| b.is_ascii_digit());
    let (rest, total) = name.rsplit_once('.')?.0.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    (is_number(number) && is_number(total)).then(|| format!("{stem} of {total}"))
}

/// Refuses a folder with a card among the files to keep: restoring would leave that card out.
pub(crate) fn refuse_cards(folder: &Folder, files: &BTreeSet<PathBuf>) -> Result<()> {
    match card::all(folder, files)?.first() {
        None => Ok(()),
        Some(name) => Err(Error::new(ErrorKind::Argument)
            .in_file(name)
            .expected("a folder that is not compressed yet")
            .found("a model card written by bigsmall")),
    }
}
