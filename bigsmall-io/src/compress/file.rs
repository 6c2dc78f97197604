//! Compresses one file of this machine.

use std::path::Path;

use bigsmall_format::{Error, Result, Rule};

use crate::compress::walk::compress_source;
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
        false => Err(Error::new(Rule::SourceChanged).in_file(input)),
    };
    let mut report = if options.dry_run {
        let report = compress_source(&source, &Discard, options, progress)?;
        unchanged()?;
        report
    } else {
        let target = AtomicFile::create(output, options.replace)?;
        let report = compress_source(&source, &target, options, progress)?;
        unchanged()?;
        target.commit()?;
        report
    };
    report.name = crate::report::file_name(input);
    Ok(report)
}
