//! Restores or verifies the shards of a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bigsmall_format::internal::len_of;
use bigsmall_format::{Class, Shard};

use crate::base::find::find;
use crate::base::model::BaseModel;
use crate::base::tensor::Bases;
use crate::error::{Context as _, Result};
use crate::folder::card;
use crate::folder::check::Numbered;
use crate::folder::out::{Out, bytes_to_copy, check_apart, check_replaced, for_each_piece};
use crate::folder::out::{job, keep_finished, named, say_taken};
use crate::model_index::{IndexBytes, ModelIndex, Said, translate};
use crate::names::{Role, SAFETENSORS, SHARD, renamed, role, weights};
use crate::progress::Cancellable;
use crate::restore::bounds::Expansion;
use crate::restore::walk::{counted, restore_file, restore_shard};
use crate::source::file::Source;
use crate::source::folder::Folder;
use crate::source::listing::Listing;
use crate::stage::atomic::AtomicDir;
use crate::stage::digest::FileDigest;
use crate::{Progress, Report, RestoreOptions, os};

/// The name of an index file and its text.
type IndexFile = (PathBuf, String);

/// The files of a folder of shards, and its index files. Opens every shard once, so that what is
/// wrong, a base too, is an error before anything is written or decoded.
fn check_shards(
    folder: &Folder,
    base: &BaseModel,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<(Listing, Vec<IndexFile>, Expansion)> {
    let listing = folder.list(options.folder)?;
    let files = &listing.files;
    let shards = weights(files, SHARD)?;
    let (mut indices, mut bytes) = (Vec::new(), IndexBytes::default());
    for name in files.iter().filter(|f| role(f, SHARD) == Role::Index) {
        let index = ModelIndex::read(&folder.open_file(name)?, &mut bytes);
        indices.push((name, index.in_file(name)?));
    }
    let mut all_said: BTreeMap<PathBuf, Vec<Said<'_>>> = BTreeMap::new();
    for (name, (_, index)) in &indices {
        for (path, said) in index.said(name) {
            all_said.entry(path).or_default().push(said);
        }
    }
    let indexed: BTreeSet<Option<&Path>> = indices.iter().map(|(name, _)| name.parent()).collect();
    let mut numbered = Numbered::default();
    let mut expansion = Expansion::default();
    for name in shards {
        progress.check()?;
        let (shard, _) = open_shard(folder, name, base, progress).in_file(name)?;
        expansion.add(&shard, options.max_expansion).in_file(name)?;
        // An index file says more.
        if !indexed.contains(&name.parent()) {
            numbered.add(name, shard.tensors(), progress);
        }
        for said in all_said.remove(name).unwrap_or_default() {
            said.check(shard.tensors())?;
        }
        progress.expect(shard.original_len());
    }
    // What only an index file names.
    for (name, all) in all_said {
        let shard = Shard::open(folder.open_file(&name)?).in_file(&name)?;
        all.into_iter().try_for_each(|said| said.check(shard.tensors()))?;
    }
    let indices = indices.into_iter().map(|(name, (text, _))| (name.clone(), text)).collect();
    Ok((listing, indices, expansion))
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
    let base = BaseModel::open_all(&options.bases, options.folder, &progress.stop())?;
    let (listing, indices, mut expansion) = check_shards(folder, &base, options, progress)?;
    let files = &listing.files;
    let cards = card::all(folder, files)?;
    let restored = files.iter().filter(|name| !cards.contains(*name));
    let names = restored.map(|name| renamed(name, SHARD, SAFETENSORS)).collect();
    let check_replaced = || match options.replace {
        true => check_replaced(output, &names),
        false => Ok(()),
    };
    check_replaced()?;
    let is_copied = |name: &&PathBuf| role(name, SHARD) == Role::Other && !cards.contains(*name);
    expansion.add_copy(bytes_to_copy(folder, files.iter().filter(is_copied))?);
    expansion.check_room(output, options, progress)?;
    let target = AtomicDir::create(output, options.replace, &job("restore", &()))?;
    let mut out = Out::new(folder, target.path(), options.ignore_free_space, progress);
    let inner = options.clone().replace(false);
    let (mut reports, mut taken) = (Vec::new(), 0);
    let mut each = |name: &PathBuf| -> Result<()> {
        match role(name, SHARD) {
            Role::Weights => {
                let original = renamed(name, SHARD, SAFETENSORS);
                let place = out.place(&original)?;
                let left = target.left(&original).filter(|_| !options.md5);
                let report =
                    open_shard(folder, name, &base, progress).and_then(|(shard, bases)| {
                        if let Some(left) = left
                            && is_restored(&left, &shard, progress)?
                        {
                            std::fs::rename(&left, &place).in_file(&place)?;
                            taken += 1;
                            return counted(&shard);
                        }
                        restore_file(
                            &shard,
                            &bases,
                            folder.is_remote(),
                            name,
                            &place,
                            &inner,
                            progress,
                        )
                    });
                let report = report.in_file(name)?;
                reports.push(named(report, name));
            }
            Role::Other if cards.contains(name) => {}
            Role::Other => out.copy(name)?,
            Role::Index => {}
        }
        Ok(())
    };
    if let Err(error) = files.iter().try_for_each(&mut each) {
        keep_finished(Some(target), folder, &error, !reports.is_empty(), progress);
        return Err(error);
    }
    say_taken(taken, progress);
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
    let copies = out.copies;
    target.commit()?;
    Ok(Report::of(reports).with_copies(copies).with_list(&listing))
}

/// Whether `left`, which an earlier job left, is the file that `shard` restores to.
fn is_restored(left: &Path, shard: &Shard<Source>, progress: &Progress) -> Result<bool> {
    let digest = || -> Result<_> {
        let file = os::open_regular(left)?;
        if len_of(&file)? != shard.original_len() {
            return Ok(None);
        }
        let mut digest = FileDigest::new();
        for_each_piece(&Cancellable { source: &file, progress }, |_, piece| {
            digest.update(piece);
            progress.advance(piece.len() as u64);
            Ok(true)
        })?;
        Ok(Some(digest.finish()))
    };
    let found = digest();
    progress.check()?;
    Ok(found.is_ok_and(|found| found == Some(shard.sha256())))
}

/// Verifies every shard of a folder, also after a damaged one; see [`verify`](crate::verify).
pub(crate) fn verify_folder(
    folder: &Folder,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<Report> {
    let base = BaseModel::open_all(&options.bases, options.folder, &progress.stop())?;
    let (listing, _, _) = check_shards(folder, &base, options, progress)?;
    let (mut reports, mut damage) = (Vec::new(), None);
    for name in weights(&listing.files, SHARD)? {
        let report = open_shard(folder, name, &base, progress)
            .and_then(|(shard, bases)| {
                restore_shard(&shard, &bases, folder.is_remote(), None, options, progress)
            })
            .in_file(name);
        match report {
            Ok(report) => reports.push(named(report, name)),
            Err(error) if error.class() != Class::Corrupt => return Err(error),
            Err(error) if damage.is_none() => damage = Some(error),
            Err(error) => progress.warn(&format!("another damaged shard: {error}")),
        }
    }
    match damage {
        Some(error) => Err(error),
        None => Ok(Report::of(reports).with_list(&listing)),
    }
}
