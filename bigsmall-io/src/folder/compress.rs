//! Compresses the weights of a folder, translates its index files, copies everything else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use bigsmall_format::internal::len_of;
use bigsmall_format::{Header, Limits, Shard};

use crate::base::find::find;
use crate::base::matches::Against;
use crate::base::model::BaseModel;
use crate::base::names::NamesOfFiles;
use crate::compress::file::compress_opened;
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::folder::card;
use crate::folder::check::refuse_cards;
use crate::folder::out::{Out, Same, bytes_to_copy, check_apart, check_replaced, keep_finished};
use crate::folder::out::{job, named, say_taken};
use crate::folder::twins::Twins;
use crate::model_index::{IndexBytes, ModelIndex, translate};
use crate::names::{Role, SAFETENSORS, SHARD, renamed, role, weights};
use crate::restore::bounds::check_space;
use crate::restore::walk::restore_shard;
use crate::source::file::Source;
use crate::source::folder::Folder;
use crate::stage::atomic::AtomicDir;
use crate::stage::output::Output;
use crate::{CompressOptions, FileReport, Progress, Report, RestoreOptions, os};

/// Compresses every safetensors file of a folder; see [`compress`](crate::compress).
pub(crate) fn compress_folder(
    input: &Path,
    folder: &Folder,
    output: &Path,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<Report> {
    if !options.dry_run {
        check_apart(input, output)?;
    }
    let listing = folder.list(options.folder)?.without_downloads();
    let files = &listing.files;
    if let Some(cache) = listing.hub_cache() {
        return Err(Error::new(ErrorKind::Argument).in_file(input.join(cache)).found(
            "a cache of the Hub, which has every file twice: compress one of its snapshots",
        ));
    }
    if let Some(shard) = files.iter().find(|f| role(f, SHARD) != Role::Other) {
        return Err(Error::new(ErrorKind::Argument)
            .expected("a folder without shards (move them elsewhere, or compress single files)")
            .found(shard.display()));
    }
    refuse_cards(folder, files)?;
    let mut twins = Twins::default();
    let mut base_names = NamesOfFiles::new(&options.base_names);
    for name in weights(files, SAFETENSORS)? {
        progress.check()?;
        let source = folder.open_file(name)?;
        let (json, header) = Header::read(&source, &Limits::default()).in_file(name)?;
        progress.expect(len_of(&source).in_file(name)?);
        base_names.add(name, &header);
        // It is only for a hint, and every sample of another machine is a request.
        if options.bases.is_empty() && source.is_local() {
            twins.add(folder, name, &header, 8 + json.len() as u64).in_file(name)?;
        }
    }
    twins.say(progress);
    let (mut indices, mut bytes) = (Vec::new(), IndexBytes::default());
    for name in files.iter().filter(|f| role(f, SAFETENSORS) == Role::Index) {
        if let Some(translated) = translated(folder, files, name, &mut bytes, progress)? {
            indices.push((name, translated));
        }
    }
    let is_translated = |name: &PathBuf| indices.iter().any(|(index, _)| *index == name);
    let mut names: BTreeSet<PathBuf> =
        files.iter().map(|name| renamed(name, SAFETENSORS, SHARD)).collect();
    // An index file that cannot be translated, or not back, is copied.
    names.extend(files.iter().filter(|f| role(f, SAFETENSORS) == Role::Index).cloned());
    let check_replaced = || match options.replace && !options.dry_run {
        true => check_replaced(output, &names),
        false => Ok(()),
    };
    check_replaced()?;
    if !options.dry_run {
        let is_copied =
            |name: &&PathBuf| role(name, SAFETENSORS) != Role::Weights && !is_translated(name);
        let copied = bytes_to_copy(folder, files.iter().filter(is_copied))?;
        check_space(copied, output, options.ignore_free_space).in_file(output)?;
    }
    let how = (options.encoding, options.md5, &options.bases, &options.base_names);
    let target = match options.dry_run {
        true => None,
        false => Some(AtomicDir::create(output, options.replace, &job("compress", &how))?),
    };
    let to = target.as_ref().map_or(output, AtomicDir::path).to_owned();
    let mut out = Out::new(folder, &to, options.ignore_free_space, progress);
    let inner = options.clone().replace(false);
    let base = BaseModel::open_all(&options.bases, options.folder, &progress.stop())?;
    base_names.check(&base)?;
    let (mut reports, mut taken) = (Vec::new(), 0);
    let mut each = |name: &PathBuf| -> Result<()> {
        if role(name, SAFETENSORS) != Role::Weights {
            if !is_translated(name) {
                match options.dry_run {
                    true => out.copied(len_of(&folder.open_file(name)?).in_file(name)?),
                    false => out.copy(name)?,
                }
            }
            return Ok(());
        }
        let to_shard = renamed(name, SAFETENSORS, SHARD);
        let place = match options.dry_run {
            true => to.clone(),
            false => out.place(&to_shard)?,
        };
        let parent = name.parent().unwrap_or(Path::new(""));
        let against = Against { base: &base, names: base_names.of(name), folder: parent };
        let source = folder.open_file(name)?;
        if let Some(left) = target.as_ref().and_then(|target| target.left(&to_shard))
            && let Some(report) = take_over(&left, &source, &base, options, progress)?
        {
            std::fs::rename(&left, &place).in_file(&place)?;
            reports.push(named(report, name));
            taken += 1;
            return Ok(());
        }
        let report = compress_opened(&source, name, against, &place, &inner, progress);
        reports.push(named(report.in_file(name)?, name));
        Ok(())
    };
    if let Err(error) = files.iter().try_for_each(&mut each) {
        keep_finished(target, folder, &error, !reports.is_empty(), progress);
        return Err(error);
    }
    say_taken(taken, progress);
    reports.sort_by(|a: &FileReport, b| a.name.cmp(&b.name));
    if let Some(target) = target {
        if let Some(name) = card::name(files) {
            out.text(Path::new(name), &card::text(&reports))?;
        }
        for (name, (text, exact)) in &indices {
            out.text(&renamed(name, SAFETENSORS, SHARD), text)?;
            if !exact {
                out.copy(name)?;
            }
        }
        for name in &listing.folders {
            out.folder(name)?;
        }
        out.sync()?;
        check_replaced()?;
        target.commit()?;
    }
    Ok(Report::of(reports).with_copies(out.copies).with_list(&listing))
}

/// The text of an index file of shards, and whether it can be translated back exactly. `None` if
/// the index file is not one of this model: then it is carried over as it is.
pub(crate) fn translated(
    folder: &Folder,
    files: &BTreeSet<PathBuf>,
    name: &Path,
    bytes: &mut IndexBytes,
    progress: &Progress,
) -> Result<Option<(String, bool)>> {
    let mut translated = || -> Result<_> {
        let (text, index) = ModelIndex::read(&folder.open_file(name)?, bytes)?;
        index.check(name, |path| {
            if !files.contains(path) || role(path, SAFETENSORS) != Role::Weights {
                return Ok(None);
            }
            let (_, header) = Header::read(&folder.open_file(path)?, &Limits::default())?;
            Ok(Some(header.tensors().to_vec()))
        })?;
        translate(&text, SAFETENSORS, SHARD)
    };
    match translated().in_file(name) {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_of_index(error.kind()) => {
            progress.warn(&format!("{error}; the index file is carried over as it is"));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether an index file, and nothing else, is at fault.
fn is_of_index(kind: ErrorKind) -> bool {
    use ErrorKind::{ModelIndex, ModelIndexTooLarge, ModelPath, ModelTensor, TooManyShards};
    matches!(kind, ModelIndex | ModelIndexTooLarge | ModelPath | ModelTensor | TooManyShards)
}

/// Verifies a shard that an earlier job left: it must restore to the file `source`. `None` if not.
/// If the SHA-256 of the source is known, no more of it is read.
fn take_over(
    left: &Path,
    source: &Source,
    base: &BaseModel,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<Option<FileReport>> {
    let verified = || -> Result<FileReport> {
        let shard = Shard::open(Source::local(os::open_regular(left)?)?)?;
        let bases = find(&shard, base.files(), progress)?;
        let same = Same { original: source, at: AtomicU64::new(0) };
        let how = RestoreOptions::new().md5(options.md5);
        let same: Option<&dyn Output> = match source.sha256() {
            Some(sha256) if sha256 != shard.sha256() => {
                return Err(Error::new(ErrorKind::SourceChanged));
            }
            Some(_) => None,
            None => Some(&same),
        };
        restore_shard(&shard, &bases, false, same, &how, progress)
    };
    let found = verified();
    progress.check()?;
    Ok(found.ok().filter(|report| len_of(source).is_ok_and(|len| len == report.original_bytes)))
}
