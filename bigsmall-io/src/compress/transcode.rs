//! From one encoding to another without the original: the compress walk reads the shard as if it
//! were the restored file.

use std::path::{Path, PathBuf};

use bigsmall_format::{Rule, Shard};

use crate::base::find::find;
use crate::base::matches::Against;
use crate::base::model::BaseModel;
use crate::compress::walk::compress_source;
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::restore::bounds::Expansion;
use crate::restore::original::Original;
use crate::source::file::Source;
use crate::stage::atomic::AtomicFile;
use crate::stage::output::Discard;
use crate::{CompressOptions, Progress, Report, hex, os};

/// Encodes the shard `input` again, with the encoding of `options`, and writes it as `output`. The
/// new shard restores to the identical file: the SHA-256 of the decoded bytes is compared with that
/// of the original. MD5 sums are kept.
///
/// Memory: at most 256 MiB and 6 times the index.
///
/// # Errors
/// Those of [`restore`](crate::restore) and [`compress`](crate::compress).
pub fn transcode(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<Report> {
    again(input.as_ref(), &BaseModel::default(), output.as_ref(), options, progress)
}

/// Encodes the shard `input` again as differences from `onto`, a file, a folder or a URL as in
/// [`BaseModel::open`]. `input` may stand alone or have bases; these are the
/// [`bases`](CompressOptions::bases) of `options`. So a chain of shards becomes one shard with one
/// base.
///
/// Everything else is as in [`transcode`].
///
/// # Errors
/// Those of [`transcode`].
pub fn rebase(
    input: impl AsRef<Path>,
    onto: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<Report> {
    let (input, onto, output) = (input.as_ref(), onto.as_ref(), output.as_ref());
    if os::same_file(onto, output) {
        return Err(Error::new(ErrorKind::SameFile).in_file(output));
    }
    // What lies behind it may be among the bases of the input.
    let paths: Vec<PathBuf> = [onto.to_owned()].into_iter().chain(options.bases.clone()).collect();
    let onto = BaseModel::open_all(&paths, options.folder, &progress.stop())?;
    again(input, &onto, output, options, progress)
}

fn again(
    input: &Path,
    onto: &BaseModel,
    output: &Path,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<Report> {
    let onto = Against::new(onto);
    if os::same_file(input, output) {
        return Err(Error::new(ErrorKind::SameFile).in_file(output));
    }
    options.check_output(output)?;
    let shard = Shard::open(Source::local(os::open_regular(input)?)?).in_file(input)?;
    Expansion::default().add(&shard, options.max_expansion).in_file(input)?;
    progress.expect(shard.original_len());
    let base = BaseModel::open_all(&options.bases, options.folder, &progress.stop())?;
    let bases = find(&shard, base.files(), progress).in_file(input)?;
    let had_md5 =
        (0..shard.tensors().len()).any(|i| shard.entry(i).is_ok_and(|e| e.md5().is_some()));
    let options = options.clone().md5(options.md5 || had_md5);
    let source = Original::new(&shard, &bases);
    let target = match options.dry_run {
        true => None,
        false => {
            Some(AtomicFile::create_with_mode(output, options.replace, shard.source().mode())?)
        }
    };
    let mut report = match &target {
        Some(target) => compress_source(&source, onto, target, &options, progress),
        None => compress_source(&source, onto, &Discard, &options, progress),
    }
    .map_err(|e| e.in_input(input))?;
    if report.sha256 != shard.sha256() {
        return Err(Error::new(Rule::ContentDigest)
            .in_file(input)
            .expected(hex(&shard.sha256()))
            .found(hex(&report.sha256)));
    }
    if let Some(target) = target {
        target.commit()?;
    }
    report.name = crate::report::file_name(input);
    Ok(Report::of(vec![report]))
}
