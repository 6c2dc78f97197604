//! The output folder: files are written into it, or copied unchanged.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bigsmall_format::ReadAt;
use bigsmall_format::internal::{len_of, read_at};

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::source::folder::Folder;
use crate::stage::atomic::AtomicFile;
use crate::stage::output::Output as _;
use crate::stage::pool::set_len;
use crate::{FileReport, Progress, os};

/// Bytes to copy at a time.
const COPY: u64 = 8 << 20;

/// Refuses an output inside the input, and an input inside the output.
pub(crate) fn check_apart(input: &Path, output: &Path) -> Result<()> {
    let refuse = || Err(Error::new(ErrorKind::SameFile).in_file(output));
    let Ok(input) = input.canonicalize() else { return Ok(()) };
    let parent = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(parent) = parent.canonicalize() else { return Ok(()) };
    let output = parent.join(output.file_name().unwrap_or_default());
    if output.starts_with(&input) || input.starts_with(&output) { refuse() } else { Ok(()) }
}

/// Copies `source`, piece by piece.
pub(crate) fn copy(source: &dyn ReadAt, target: &AtomicFile) -> Result<()> {
    for_each_piece(source, |_, piece| {
        target.append(piece)?;
        Ok(true)
    })
    .map(drop)
}

/// Whether both have the same bytes.
pub(crate) fn same_bytes(a: &dyn ReadAt, b: &dyn ReadAt) -> Result<bool> {
    if len_of(a)? != len_of(b)? {
        return Ok(false);
    }
    let mut other = Vec::new();
    for_each_piece(a, |at, piece| {
        set_len(&mut other, piece.len())?;
        read_at(b, at, &mut other)?;
        Ok(piece == other)
    })
}

/// Reads `source` in pieces and calls `work` for each, with its offset, as long as that returns
/// `true`. Returns what `work` returned last.
fn for_each_piece(
    source: &dyn ReadAt,
    mut work: impl FnMut(u64, &[u8]) -> Result<bool>,
) -> Result<bool> {
    let byte_len = len_of(source)?;
    let (mut buffer, mut at) = (Vec::new(), 0);
    while at < byte_len {
        set_len(&mut buffer, COPY.min(byte_len - at) as usize)?;
        read_at(source, at, &mut buffer)?;
        if !work(at, &buffer)? {
            return Ok(false);
        }
        at += buffer.len() as u64;
    }
    Ok(true)
}

/// Writes the files of an output folder.
pub(crate) struct Out<'a> {
    from: &'a Folder,
    to: &'a Path,
    progress: &'a Progress,
    folders: BTreeSet<PathBuf>,
    names: BTreeSet<PathBuf>,
}

impl<'a> Out<'a> {
    pub(crate) fn new(from: &'a Folder, to: &'a Path, progress: &'a Progress) -> Self {
        Out { from, to, progress, folders: BTreeSet::from([to.to_owned()]), names: BTreeSet::new() }
    }

    /// The output path of the file `name`. Creates its folder, and refuses a name that another file
    /// has.
    pub(crate) fn place(&mut self, name: &Path) -> Result<PathBuf> {
        if self.progress.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled));
        }
        if !self.names.insert(name.to_owned()) {
            return Err(Error::new(ErrorKind::Argument)
                .found(format!("two files would become {:?}", name.display().to_string())));
        }
        let path = self.to.join(name);
        let mut folder = path.parent().unwrap_or(self.to);
        std::fs::create_dir_all(folder).in_file(folder)?;
        while folder != self.to && self.folders.insert(folder.to_owned()) {
            folder = folder.parent().unwrap_or(self.to);
        }
        Ok(path)
    }

    pub(crate) fn copy(&mut self, name: &Path) -> Result<()> {
        let target = AtomicFile::create(&self.place(name)?, false)?;
        let source = self.from.open_file(name)?;
        copy(&source, &target).in_file(name)?;
        target.commit()
    }

    pub(crate) fn text(&mut self, name: &Path, text: &str) -> Result<()> {
        let target = AtomicFile::create(&self.place(name)?, false)?;
        target.append(text.as_bytes()).in_file(name)?;
        target.commit()
    }

    /// Makes the names in every folder durable.
    pub(crate) fn sync(&self) -> Result<()> {
        let sync = |folder: &PathBuf| os::sync_dir(folder).in_file(folder);
        self.folders.iter().try_for_each(sync)
    }
}

pub(crate) fn named(mut report: FileReport, name: &Path) -> FileReport {
    report.name = name.to_string_lossy().into_owned();
    report
}
