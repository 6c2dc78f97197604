//! Compresses the weights of a folder, translates its index files, copies everything else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bigsmall_format::internal::len_of;
use bigsmall_format::{Header, Limits};

use crate::base::model::BaseModel;
use crate::compress::file::compress_opened;
use crate::compress::walk::Against;
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::folder::card;
use crate::folder::check::{check_index, refuse_cards};
use crate::folder::out::{Out, check_apart, check_replaced, named};
use crate::model_index::{ModelIndex, translate};
use crate::names::{Role, SAFETENSORS, SHARD, renamed, role, weights};
use crate::source::folder::Folder;
use crate::source::local::Links;
use crate::stage::atomic::AtomicDir;
use crate::{CompressOptions, FileReport, Progress, Report};

/// Compresses every safetensors file of a folder; see [`compress`](crate::compress).
pub(crate) fn compress_folder(
    input: &Path,
    output: &Path,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<Report> {
    if !options.dry_run {
        check_apart(input, output)?;
    }
    let folder = Folder::open(input, Links::Own, progress.stop())?;
    let listing = folder.list(options.folder)?;
    let files = &listing.files;
    if let Some(shard) = files.iter().find(|f| role(f, SHARD) != Role::Other) {
        return Err(Error::new(ErrorKind::Argument)
            .expected("a folder without shards")
            .found(shard.display()));
    }
    refuse_cards(&folder, files)?;
    for name in weights(files, SAFETENSORS)? {
        progress.expect(len_of(&folder.open_file(name)?).in_file(name)?);
    }
    let mut indices = Vec::new();
    for name in files.iter().filter(|f| role(f, SAFETENSORS) == Role::Index) {
        let (text, index) = ModelIndex::read(&folder.open_file(name)?).in_file(name)?;
        check_index(name, &index, |path| {
            let (_, header) = Header::read(&folder.open_file(path)?, &Limits::default())?;
            Ok(header.tensors().to_vec())
        })?;
        indices.push((name, translate(&text, SAFETENSORS, SHARD).in_file(name)?));
    }
    let mut names: BTreeSet<PathBuf> =
        files.iter().map(|name| renamed(name, SAFETENSORS, SHARD)).collect();
    // An index file that cannot be translated back is copied too.
    names.extend(indices.iter().map(|(name, _)| PathBuf::clone(name)));
    let check_replaced = || match options.replace && !options.dry_run {
        true => check_replaced(output, &names),
        false => Ok(()),
    };
    check_replaced()?;
    let target = match options.dry_run {
        true => None,
        false => Some(AtomicDir::create(output, options.replace)?),
    };
    let to = target.as_ref().map_or(output, AtomicDir::path).to_owned();
    let mut out = Out::new(&folder, &to, progress);
    let inner = options.clone().replace(false);
    let base = BaseModel::open_all(&options.bases, options.folder, &progress.stop())?;
    let mut reports = Vec::new();
    for name in files {
        match role(name, SAFETENSORS) {
            Role::Weights => {
                let place = match options.dry_run {
                    true => to.clone(),
                    false => out.place(&renamed(name, SAFETENSORS, SHARD))?,
                };
                let parent = name.parent().unwrap_or(Path::new(""));
                let base = Against { base: &base, folder: parent };
                let source = folder.local_file(name)?;
                let report =
                    compress_opened(&source, name, base, &place, &inner, progress).in_file(name)?;
                reports.push(named(report, name));
            }
            Role::Other if !options.dry_run => out.copy(name)?,
            Role::Index | Role::Other => {}
        }
    }
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
    Ok(Report::of(reports).without(&listing.left_out))
}
