//! Compresses one local file.

use std::path::Path;

use bigsmall_format::ReadAt;

use crate::compress::walk::compress_source;
use crate::error::{Error, ErrorKind, Result};
use crate::stage::atomic::AtomicFile;
use crate::stage::output::Discard;
use crate::{CompressOptions, FileReport, Progress, os};

/// Compresses one file.
pub(crate) fn compress_file(
    input: &Path,
    output: &Path,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<FileReport> {
    let source = os::open_regular(input)?;
    let before = os::stamp(&source.metadata()?);
    let unchanged = || match os::stamp(&source.metadata()?) == before {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::SourceChanged).in_file(input)),
    };
    let mut report = compress_to(&source, output, options, progress, unchanged)?;
    report.name = crate::report::file_name(input);
    Ok(report)
}

/// Compresses `source`. Calls `unchanged` before the output is renamed into place.
pub(crate) fn compress_to(
    source: &dyn ReadAt,
    output: &Path,
    options: &CompressOptions,
    progress: &Progress,
    unchanged: impl FnOnce() -> Result<()>,
) -> Result<FileReport> {
    if options.dry_run {
        let report = compress_source(source, &Discard, options, progress)?;
        unchanged()?;
        return Ok(report);
    }
    let target = AtomicFile::create(output, options.replace)?;
    let report = compress_source(source, &target, options, progress)?;
    unchanged()?;
    target.commit()?;
    Ok(report)
}
