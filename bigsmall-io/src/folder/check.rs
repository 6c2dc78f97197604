//! Checks of a folder before anything is written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bigsmall_format::TensorSpec;

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::folder::card;
use crate::model_index::ModelIndex;
use crate::source::folder::Folder;

/// Compares an index file with the tensors of its files, as `tensors` returns them. Every tensor in
/// the map must be in its file, and every tensor of these files must be in the map.
pub(crate) fn check_index(
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
        for spec in tensors(&path).in_file(&path)? {
            if !wanted.remove(spec.name()) {
                return Err(Error::new(ErrorKind::ModelTensor)
                    .in_file(&path)
                    .in_tensor(spec.name())
                    .found(format!("in {shard:?}, but the index file says otherwise")));
            }
        }
        if let Some(missing) = wanted.first() {
            return Err(Error::new(ErrorKind::ModelTensor)
                .in_file(&path)
                .in_tensor(missing)
                .expected(format!("in {shard:?}, as the index file says")));
        }
    }
    Ok(())
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
    for name in files.iter().filter(|f| card::may_be(f)) {
        if card::is_card(&folder.open_file(name)?).in_file(name)? {
            return Err(Error::new(ErrorKind::Argument)
                .in_file(name)
                .expected("a folder that is not compressed yet")
                .found("a model card written by bigsmall"));
        }
    }
    Ok(())
}
