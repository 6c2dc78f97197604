//! Compares a folder of shards with the list of a repository of the Hub. Nothing of the repository
//! but the list is read.

use std::collections::BTreeSet;
use std::path::Path;

use bigsmall_format::Shard;
use bigsmall_format::internal::Shown;

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::folder::card;
use crate::folder::out::for_each_piece;
use crate::model_index::{IndexBytes, ModelIndex, translate};
use crate::names::{Role, SAFETENSORS, SHARD, renamed, role};
use crate::progress::Cancellable;
use crate::report::with_slashes;
use crate::source::folder::{Folder, Names};
use crate::source::listing::{FolderOptions, Listing};
use crate::stage::digest::{FileDigest, sha256};
use crate::{Progress, hex};

/// What a comparison found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Files with the same SHA-256.
    pub same: u64,
    /// Files that are there, for which the Hub lists no SHA-256.
    pub not_listed: u64,
}

/// The most differences that an error names.
const NAMED: usize = 5;

/// Compares what `folder` restores to, as its shards say, with the files `theirs`.
pub(crate) fn compare(
    folder: &Folder,
    theirs: &Names,
    options: FolderOptions,
    progress: &Progress,
) -> Result<Compared> {
    let files = folder.list(options)?.files;
    let cards = card::all(folder, &files)?;
    let (mut ours, mut differences) = (BTreeSet::new(), Vec::new());
    let mut compared = Compared::default();
    for name in files.iter().filter(|name| !cards.contains(*name)) {
        progress.check()?;
        let original = with_slashes(&renamed(name, SHARD, SAFETENSORS));
        let shown = format!("{:?}", Shown::name(&original));
        let is_shard = role(name, SHARD) == Role::Weights;
        let listed = theirs.get(&original);
        if ours.insert(original) {
            match listed {
                Some(Some(listed)) => {
                    let found = restored(folder, name, progress).in_file(name)?;
                    match found == *listed {
                        true => compared.same += 1,
                        false => differences.push(format!(
                            "{shown} has the SHA-256 {}, and there {}",
                            hex(&found),
                            hex(listed)
                        )),
                    }
                }
                Some(None) => compared.not_listed += 1,
                None if is_shard => differences.push(format!("{shown} is not there")),
                None => {}
            }
        }
    }
    let mut listing = Listing::new(options);
    let lacks = theirs.keys().filter(|name| listing.wants(Path::new(name)));
    let lacks = lacks.filter(|name| !ours.contains(*name));
    differences.extend(lacks.map(|name| format!("{:?} is lacking here", Shown::name(name))));
    if differences.is_empty() {
        return Ok(compared);
    }
    let mut found = differences.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    if differences.len() > NAMED {
        found += &format!("; and {} more differences", differences.len() - NAMED);
    }
    Err(Error::new(ErrorKind::Differs).found(found))
}

/// The SHA-256 of what the file `name` becomes when the folder is restored.
fn restored(folder: &Folder, name: &Path, progress: &Progress) -> Result<[u8; 32]> {
    let source = folder.open_file(name)?;
    match role(name, SHARD) {
        Role::Weights => Ok(Shard::open(source)?.sha256()),
        Role::Index => {
            let (text, _) = ModelIndex::read(&source, &mut IndexBytes::default())?;
            Ok(sha256(translate(&text, SHARD, SAFETENSORS)?.0.as_bytes()))
        }
        Role::Other => {
            let mut digest = FileDigest::new();
            for_each_piece(&Cancellable { source: &source, progress }, |_, piece| {
                digest.update(piece);
                Ok(true)
            })?;
            Ok(digest.finish())
        }
    }
}
