//! Restores or verifies the shards of a folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bigsmall_format::Shard;

use crate::base::find::find;
use crate::base::model::BaseModel;
use crate::base::tensor::Bases;
use crate::error::{Context as _, Result};
use crate::folder::card;
use crate::folder::check::{Numbered, check_index};
use crate::folder::out::{Out, check_apart, check_replaced, named};
use crate::model_index::{ModelIndex, translate};
use crate::names::{Role, SAFETENSORS, SHARD, renamed, role, weights};
use crate::restore::bounds::Expansion;
use crate::restore::options::Waits;
use crate::restore::walk::{restore_file, restore_shard};
use crate::source::file::Source;
use crate::source::folder::Folder;
use crate::source::listing::Listing;
use crate::stage::atomic::AtomicDir;
use crate::{Progress, Report, RestoreOptions};

/// The name of an index file and its text.
type IndexFile = (PathBuf, String);

/// The files of a folder of shards, and its index files. Checks the shards and the index files.
fn open_shards(
    folder: &Folder,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<(Listing, Vec<IndexFile>, Expansion)> {
    let listing = folder.list(options.folder)?;
    let files = &listing.files;
    let mut expansion = Expansion::default();
    let indexed: BTreeSet<Option<&Path>> =
        files.iter().filter(|f| role(f, SHARD) == Role::Index).map(|f| f.parent()).collect();
    let mut numbered = Numbered::default();
    for name in weights(files, SHARD)? {
        progress.check()?;
        let shard = Shard::open(folder.open_file(name)?).in_file(name)?;
        expansion.add(&shard, options.max_expansion).in_file(name)?;
        // An index file says more: it is compared with the shards below.
        if !indexed.contains(&name.parent()) {
            numbered.add(name, shard.tensors())?;
        }
        progress.expect(shard.original_len());
    }
    let mut indices = Vec::new();
    for name in files.iter().filter(|f| role(f, SHARD) == Role::Index) {
        let (text, index) = ModelIndex::read(&folder.open_file(name)?).in_file(name)?;
        check_index(name, &index, |path| {
            Ok(Shard::open(folder.open_file(path)?)?.tensors().to_vec())
        })?;
        indices.push((name.clone(), text));
    }
    Ok((listing, indices, expansion))
}

/// Whether reading from the folder waits for another machine.
fn waits(folder: &Folder) -> Waits {
    if folder.is_remote() { Waits::ForAnotherMachine } else { Waits::No }
}

/// Opens a shard of a folder, and finds its bases.
fn open_shard(
    folder: &Folder,
    name: &Path,
    base: &BaseModel,
    progress: &Progress,
) -> Result<(Shard<Source>, Bases)> {
    let shard = Shard::open(folder.open_file(name)?)?;
    let bases = find(&shard, base.files(), progress)?;
    Ok((shard, bases))
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
    let (listing, indices, expansion) = open_shards(folder, options, progress)?;
    let files = &listing.files;
    let mut cards = BTreeSet::new();
    for name in files.iter().filter(|name| card::may_be(name)) {
        if card::is_card(&folder.open_file(name)?).in_file(name)? {
            cards.insert(name);
        }
    }
    let restored = files.iter().filter(|name| !cards.contains(name));
    let names = restored.map(|name| renamed(name, SHARD, SAFETENSORS)).collect();
    let check_replaced = || match options.replace {
        true => check_replaced(output, &names),
        false => Ok(()),
    };
    check_replaced()?;
    let base = BaseModel::open_all(&options.bases, &progress.stop())?;
    // A wrong base is an error before anything is written.
    for name in weights(files, SHARD)? {
        open_shard(folder, name, &base, progress).in_file(name)?;
    }
    expansion.check_room(output, options, progress)?;
    let target = AtomicDir::create(output, options.replace)?;
    let mut out = Out::new(folder, target.path(), progress);
    let inner = options.clone().replace(false);
    let waits = waits(folder);
    let mut reports = Vec::new();
    for name in files {
        match role(name, SHARD) {
            Role::Weights => {
                let place = out.place(&renamed(name, SHARD, SAFETENSORS))?;
                let report =
                    open_shard(folder, name, &base, progress).and_then(|(shard, bases)| {
                        restore_file(&shard, &bases, waits, name, &place, &inner, progress)
                    });
                let report = report.in_file(name)?;
                reports.push(named(report, name));
            }
            Role::Other if cards.contains(name) => {}
            Role::Other => out.copy(name)?,
            Role::Index => {}
        }
    }
    for (name, text) in &indices {
        let original = renamed(name, SHARD, SAFETENSORS);
        // An index file that cannot be translated back exactly was copied unchanged.
        if !files.contains(&original) {
            out.text(&original, &translate(text, SHARD, SAFETENSORS).in_file(name)?.0)?;
        }
    }
    for name in &listing.folders {
        out.folder(name)?;
    }
    out.sync()?;
    check_replaced()?;
    target.commit()?;
    Ok(Report::of(reports).without(&listing.left_out))
}

/// Verifies every shard of a folder; see [`verify`](crate::verify).
pub(crate) fn verify_folder(
    folder: &Folder,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<Report> {
    let (listing, _, _) = open_shards(folder, options, progress)?;
    let base = BaseModel::open_all(&options.bases, &progress.stop())?;
    let waits = waits(folder);
    let mut reports = Vec::new();
    for name in weights(&listing.files, SHARD)? {
        let report = open_shard(folder, name, &base, progress)
            .and_then(|(shard, bases)| {
                restore_shard(&shard, &bases, waits, None, options, progress)
            })
            .in_file(name)?;
        reports.push(named(report, name));
    }
    Ok(Report::of(reports).without(&listing.left_out))
}
