//! The output folder: files are written into it, or copied unchanged.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bigsmall_format::internal::{Shown, len_of, read_at, set_len};
use bigsmall_format::{Class, ReadAt};

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::folder::card;
use crate::progress::Cancellable;
use crate::report::with_slashes;
use crate::restore::bounds::check_space;
use crate::source::folder::Folder;
use crate::stage::atomic::{AtomicDir, AtomicFile};
use crate::stage::digest::FileDigest;
use crate::stage::output::Output;
use crate::{FileReport, Progress, os};

/// A job that makes a folder, for [`AtomicDir::create`](crate::stage::atomic::AtomicDir::create).
pub(crate) fn job(what: &str, how: &dyn std::fmt::Debug) -> String {
    format!("{what} {} {how:?}", env!("CARGO_PKG_VERSION"))
}

/// Says how many files of an earlier job were taken over.
pub(crate) fn say_taken(taken: u64, progress: &Progress) {
    if taken > 0 {
        progress.warn(&format!(
            "an earlier job like this one was killed or cut off; {taken} of its finished files \
             were verified and taken over"
        ));
    }
}

/// After an error while files come from another machine: keeps the finished ones, which took long
/// to fetch, for the next job like this one. `any`: this job has finished some.
pub(crate) fn keep_finished(
    target: Option<AtomicDir>,
    from: &Folder,
    error: &Error,
    any: bool,
    progress: &Progress,
) {
    if from.is_remote()
        && error.class() == Class::Io
        && let Some(kept) = target.and_then(|target| target.keep(any))
    {
        progress.warn(&format!(
            "finished files are kept in {:?}; the same command goes on with them",
            Shown::name(&kept.to_string_lossy())
        ));
    }
}

/// Whether `output` has the bytes of `original`. Nothing is written: what would be is compared.
pub(crate) struct Same<'a> {
    pub(crate) original: &'a dyn ReadAt,
    pub(crate) at: AtomicU64,
}

impl Output for Same<'_> {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let at = self.at.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut original = Vec::new();
        set_len(&mut original, bytes.len())?;
        self.original.read_exact_at(at, &mut original)?;
        match original == bytes {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::SourceChanged).at(at).into()),
        }
    }

    fn read_back(&self, _: u64, _: &mut [u8]) -> Result<bool> {
        Ok(false)
    }
}

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
pub(crate) fn for_each_piece(
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

/// The bytes of the files that are copied as they are, on this machine. A file on another one is
/// asked for its length when its turn comes.
pub(crate) fn bytes_to_copy<'a>(
    folder: &Folder,
    files: impl Iterator<Item = &'a PathBuf>,
) -> Result<u64> {
    if folder.is_remote() {
        return Ok(0);
    }
    let len = |name: &PathBuf| len_of(&folder.open_file(name)?).in_file(name);
    files.map(len).try_fold(0u64, |sum, len| Ok(sum.saturating_add(len?)))
}

/// Refuses to replace the folder `output` where it has files that the new one, with the files
/// `names`, has not, or that bigsmall has not written there, or that were changed since. They are
/// not bigsmall's to remove.
///
/// Bigsmall has written the files that were there when it noted so, and in a folder with its card,
/// where it noted nothing, all of them.
pub(crate) fn check_replaced(output: &Path, names: &BTreeSet<PathBuf>) -> Result<()> {
    if !std::fs::symlink_metadata(output).is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    let made = os::made(output);
    let card = |name: &Path| -> Result<bool> {
        Ok(card::may_be(name) && card::is_card(&os::open_regular(&output.join(name))?)?)
    };
    let has_card = || {
        let is_card = |name: &&str| card(Path::new(name)).unwrap_or(false);
        card::NAMES.iter().any(is_card)
    };
    let all_ours = made.is_none() && has_card();
    let (mut in_the_way, mut n) = (Vec::new(), 0u64);
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = output.join(&folder);
        for entry in std::fs::read_dir(&path).in_file(&path)? {
            let entry = entry.in_file(&path)?;
            let name = folder.join(entry.file_name());
            if entry.file_type().in_file(&path)?.is_dir() {
                folders.push(name);
                continue;
            }
            let changed = os::changed(&entry.metadata().in_file(&path)?);
            let as_made = made.is_some_and(|made| changed.is_some_and(|at| at <= made));
            let is_ours = names.contains(&name) && (all_ours || as_made);
            if !is_ours && !card(&name)? {
                n += 1;
                if in_the_way.len() < 5 {
                    in_the_way.push(format!("{:?}", name.display().to_string()));
                }
            }
        }
    }
    if n == 0 {
        return Ok(());
    }
    in_the_way.sort();
    let mut found = in_the_way.join(", ");
    if n > in_the_way.len() as u64 {
        found += &format!(" and {} more", n - in_the_way.len() as u64);
    }
    Err(Error::new(ErrorKind::OutputHoldsMore).in_file(output).found(found))
}

/// The folder is new, and yet there is something under that name: the file system does not tell it
/// from another one, which differs in case or in the form of an accent.
fn collision(name: &Path) -> Error {
    Error::new(ErrorKind::Argument)
        .in_file(name)
        .found("this file system does not tell its name from that of another file or folder")
}

/// Writes the files of an output folder.
pub(crate) struct Out<'a> {
    from: &'a Folder,
    to: &'a Path,
    progress: &'a Progress,
    ignore_free_space: bool,
    folders: BTreeSet<PathBuf>,
    names: BTreeSet<PathBuf>,
    /// How many files were copied, and how many bytes.
    pub(crate) copies: (u64, u64),
}

impl<'a> Out<'a> {
    pub(crate) fn new(
        from: &'a Folder,
        to: &'a Path,
        ignore_free_space: bool,
        progress: &'a Progress,
    ) -> Self {
        let (folders, names) = (BTreeSet::from([to.to_owned()]), BTreeSet::new());
        Out { from, to, progress, ignore_free_space, folders, names, copies: (0, 0) }
    }

    /// The output path of the file `name`. Creates its folder, and refuses a name that another file
    /// has.
    pub(crate) fn place(&mut self, name: &Path) -> Result<PathBuf> {
        self.progress.check()?;
        if !self.names.insert(name.to_owned()) {
            return Err(Error::new(ErrorKind::Argument)
                .found(format!("two files would become {:?}", name.display().to_string())));
        }
        self.folder(name.parent().unwrap_or(Path::new("")))?;
        let path = self.to.join(name);
        match std::fs::symlink_metadata(&path) {
            Ok(_) => Err(collision(name)),
            Err(_) => Ok(path),
        }
    }

    /// Creates the folder `name` and those that contain it.
    pub(crate) fn folder(&mut self, name: &Path) -> Result<()> {
        let mut path = self.to.to_owned();
        for part in name {
            path.push(part);
            if self.folders.insert(path.clone()) {
                std::fs::create_dir(&path).map_err(|e| match e.kind() {
                    std::io::ErrorKind::AlreadyExists => collision(name),
                    _ => Error::from(e).in_file(&path),
                })?;
            }
        }
        Ok(())
    }

    pub(crate) fn copy(&mut self, name: &Path) -> Result<()> {
        let place = self.place(name)?;
        let source = self.from.open_file(name)?;
        check_space(len_of(&source).in_file(name)?, &place, self.ignore_free_space)
            .in_file(name)?;
        let target = AtomicFile::create_with_mode(&place, false, source.mode())?;
        let read = Cancellable { source: &source, progress: self.progress };
        let mut digest = source.sha256().map(|_| FileDigest::new());
        for_each_piece(&read, |_, piece| {
            digest.iter_mut().for_each(|digest| digest.update(piece));
            target.append(piece)?;
            Ok(true)
        })
        .in_file(name)?;
        if let Some(digest) = digest {
            source.check_read(digest.finish()).in_file(name)?;
        }
        self.copied(target.written());
        target.commit()
    }

    /// Counts a file that is copied.
    pub(crate) fn copied(&mut self, bytes: u64) {
        self.copies = (self.copies.0 + 1, self.copies.1 + bytes);
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
    report.name = with_slashes(name);
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Stop;
    use crate::source::local::Links;

    #[test]
    // N-06
    fn names_that_the_file_system_does_not_tell_apart_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let from = Folder::open(dir.path(), Links::Within, Stop::default()).unwrap();
        let (to, progress) = (dir.path().join("to"), Progress::default());
        std::fs::create_dir(&to).unwrap();
        let mut out = Out::new(&from, &to, false, &progress);
        out.text(Path::new("a/x"), "1").unwrap();
        assert_eq!(out.text(Path::new("a/x"), "2").unwrap_err().kind(), ErrorKind::Argument);
        // As in a file system without cases: `B` and `b/y` are there as soon as `b` and `B/y` are.
        std::fs::write(to.join("B"), "1").unwrap();
        std::fs::create_dir(to.join("A")).unwrap();
        for name in ["B", "A/y"] {
            let error = out.text(Path::new(name), "2").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
            assert!(error.to_string().contains("does not tell"), "{error}");
        }
        assert_eq!(std::fs::read(to.join("B")).unwrap(), b"1");
    }
}
