//! What must hold of a folder before anything is written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bigsmall_format::TensorSpec;

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::folder::card;
use crate::model_index::ModelIndex;
use crate::source::folder::Folder;

/// What `tensors` of a weights file says must agree with an index file: every tensor of the map is
/// where the map says, and no tensor of a mapped file is anywhere else.
pub(crate) fn check_index(
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
        for spec in tensors(&path).in_file(&path)? {
            if !wanted.remove(spec.name()) {
                return Err(Error::new(ErrorKind::ModelTensor)
                    .in_file(&path)
                    .in_tensor(spec.name())
                    .found(format!("in {shard:?}, which the index file does not say")));
            }
        }
        if let Some(missing) = wanted.first() {
            return Err(Error::new(ErrorKind::ModelTensor)
                .in_file(&path)
                .in_tensor(missing)
                .expected(format!("it to be in {shard:?}")));
        }
    }
    Ok(())
}

/// A card would be left out when the folder is restored: there must not be one among the files to
/// be kept.
pub(crate) fn refuse_cards(folder: &Folder, files: &BTreeSet<PathBuf>) -> Result<()> {
    for name in files.iter().filter(|f| card::may_be(f)) {
        if card::is_card(&folder.open_file(name)?).in_file(name)? {
            return Err(Error::new(ErrorKind::Argument)
                .in_file(name)
                .expected("a folder that was not compressed yet")
                .found("a model card written by bigsmall"));
        }
    }
    Ok(())
}
