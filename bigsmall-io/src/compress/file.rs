//! Compresses one local file.

use std::fs::File;
use std::path::Path;

use bigsmall_format::ReadAt;

use crate::compress::walk::{Against, compress_source};
use crate::error::{Error, ErrorKind, Result};
use crate::stage::atomic::AtomicFile;
use crate::stage::output::Discard;
use crate::{CompressOptions, FileReport, Progress, os};

/// Compresses one file.
pub(crate) fn compress_file(
    input: &Path,
    base: Against<'_>,
    output: &Path,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<FileReport> {
    let source = os::open_regular(input)?;
    let report = compress_opened(&source, input, base, output, options, progress)?;
    Ok(FileReport { name: crate::report::file_name(input), ..report })
}

/// Compresses the open file `source`, whose name in errors is `name`.
pub(crate) fn compress_opened(
    source: &File,
    name: &Path,
    base: Against<'_>,
    output: &Path,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<FileReport> {
    let metadata = source.metadata()?;
    let before = os::stamp(&metadata);
    let unchanged = || match os::stamp(&source.metadata()?) == before {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::SourceChanged).in_file(name)),
    };
    compress_to(source, os::mode(&metadata), base, output, options, progress, unchanged)
}

/// Compresses `source`. The output gets the permission bits `mode`, if any. Calls `unchanged`
/// before the output is renamed into place.
pub(crate) fn compress_to(
    source: &dyn ReadAt,
    mode: Option<u32>,
    base: Against<'_>,
    output: &Path,
    options: &CompressOptions,
    progress: &Progress,
    unchanged: impl FnOnce() -> Result<()>,
) -> Result<FileReport> {
    if options.dry_run {
        let report = compress_source(source, base, &Discard, options, progress)?;
        unchanged()?;
        return Ok(report);
    }
    let target = AtomicFile::create_with_mode(output, options.replace, mode)?;
    let report = compress_source(source, base, &target, options, progress)?;
    unchanged()?;
    target.commit()?;
    Ok(report)
}
