//! Compresses one file, of this machine or another one.

use std::path::Path;

use bigsmall_format::ReadAt;

use crate::base::matches::Against;
use crate::compress::walk::compress_source;
use crate::error::{Context as _, Result};
use crate::source::ahead::Ahead;
use crate::source::file::Source;
use crate::stage::atomic::AtomicFile;
use crate::stage::output::Discard;
use crate::{CompressOptions, FileReport, Progress};

/// Compresses the open file `source`, whose name in errors is `name`.
pub(crate) fn compress_opened(
    source: &Source,
    name: &Path,
    base: Against<'_>,
    output: &Path,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<FileReport> {
    let ahead;
    let read: &dyn ReadAt = match source.is_local() {
        true => source,
        false => {
            ahead = Ahead::new(source);
            &ahead
        }
    };
    let checked = |report: &FileReport| source.check_read(report.sha256).in_file(name);
    compress_to(read, source.mode(), base, output, options, progress, checked)
}

/// Compresses `source`. The output gets the permission bits `mode`, if any. Calls `check` before
/// the output is renamed into place.
pub(crate) fn compress_to(
    source: &dyn ReadAt,
    mode: Option<u32>,
    base: Against<'_>,
    output: &Path,
    options: &CompressOptions,
    progress: &Progress,
    check: impl FnOnce(&FileReport) -> Result<()>,
) -> Result<FileReport> {
    if options.dry_run {
        let report = compress_source(source, base, &Discard, options, progress)?;
        check(&report)?;
        return Ok(report);
    }
    let target = AtomicFile::create_with_mode(output, options.replace, mode)?;
    let report = compress_source(source, base, &target, options, progress)?;
    check(&report)?;
    target.commit()?;
    Ok(report)
}
