//! Checks of a folder before anything is written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bigsmall_format::TensorSpec;
use bigsmall_format::internal::Shown;

use crate::Progress;
use crate::error::{Error, ErrorKind, Result};
use crate::folder::card;
use crate::names::numbered;
use crate::source::folder::Folder;

/// The shards of models without an index file: `model-00001-of-00002.bs` and its siblings. A tensor
/// is in one of them.
#[derive(Default)]
pub(crate) struct Numbered {
    seen: BTreeMap<String, BTreeSet<Box<str>>>,
}

impl Numbered {
    /// Adds the shard `name`, if it has a number. Tells the user if a sibling has one of its
    /// tensors: the files come back, but the model is none.
    pub(crate) fn add(&mut self, name: &Path, tensors: &[TensorSpec], progress: &Progress) {
        let shown = name.to_string_lossy();
        let Some((stem, total)) = numbered(&shown) else { return };
        let seen = self.seen.entry(format!("{stem} of {total}")).or_default();
        // All of them are seen.
        let twice = tensors.iter().filter(|spec| !seen.insert(spec.name().into()));
        let twice: Vec<_> = twice.collect();
        if let Some(first) = twice.first() {
            progress.warn(&format!(
                "{}: the tensor {:?} is in another shard of the model too",
                Shown::message(&shown),
                Shown::name(first.name())
            ));
        }
    }
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
