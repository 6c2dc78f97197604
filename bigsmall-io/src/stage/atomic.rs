//! Output that is absent, old or complete: written under a temporary name beside its target, made
//! durable, then renamed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bigsmall_format::internal::{read_at, xxh3};
use tempfile::TempPath;

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::os;
use crate::stage::leftovers::{self, SUFFIX};
use crate::stage::lock::lock;
use crate::stage::output::Output;
use crate::stage::thread::start;

/// After this many bytes the system is asked to write them to the disk, while the work continues.
const WRITE_BEHIND: u64 = 16 << 20;

/// Random letters of a temporary name.
const RANDOM: usize = 6;

/// A file that is renamed into place when it is complete.
pub(crate) struct AtomicFile {
    file: File,
    temp: TempPath,
    listed: Temporary,
    target: PathBuf,
    replace: bool,
    written: AtomicU64,
    write_behind: Option<WriteBehind>,
}

/// Refuses a target that must not be written.
fn check_target(target: &Path, replace: bool) -> Result<()> {
    match std::fs::symlink_metadata(target) {
        Ok(_) if !replace => Err(Error::new(ErrorKind::OutputExists).in_file(target)),
        Ok(found) if !found.is_file() && !found.is_symlink() => {
            Err(Error::new(ErrorKind::NotARegularFile).in_file(target))
        }
        _ => Ok(()),
    }
}

fn parent(target: &Path) -> &Path {
    target.parent().unwrap_or(Path::new(""))
}

/// The folder of `target`, to make files in.
fn folder_of(target: &Path) -> &Path {
    let dir = parent(target);
    if dir.as_os_str().is_empty() { Path::new(".") } else { dir }
}

/// Renames the new file or folder at `path` to another temporary name, and returns that. Where
/// nothing can be renamed, this is an error before the work and not after it.
fn probe(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // The random letters, turned around.
    let rest = name.strip_suffix(SUFFIX).unwrap_or(&name);
    let at = rest.len().saturating_sub(RANDOM);
    let (start, random) = rest.split_at_checked(at).unwrap_or((rest, ""));
    let random: String = random.chars().rev().collect();
    let other = path.with_file_name(format!("{start}{random}{SUFFIX}"));
    std::fs::rename(path, &other)?;
    Ok(other)
}

/// Removes a file that was just closed. A mount in user space learns of that a moment later; until
/// then it may refuse to remove the file.
fn remove_closed(path: &Path) {
    for _ in 0..100 {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {}
            _ => return,
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The temporary files and folders of this process.
static TEMPORARIES: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// One of them. Dropped when it has got its name, or is removed.
struct Temporary(PathBuf);

impl Temporary {
    fn new(path: &Path) -> Self {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        lock(&TEMPORARIES).insert(path.clone());
        Temporary(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        lock(&TEMPORARIES).remove(&self.0);
    }
}

/// Removes the temporary files and folders of every job of this process, which is about to end
/// while jobs still run.
#[doc(hidden)]
pub fn remove_temporaries() {
    // A job may be writing into a folder: then it is not empty when it is removed.
    for _ in 0..3 {
        for path in lock(&TEMPORARIES).iter() {
            let _ = match path.is_dir() {
                true => std::fs::remove_dir_all(path),
                false => std::fs::remove_file(path),
            };
        }
    }
}

/// Writes a whole file, which is renamed into place.
#[doc(hidden)]
pub fn write_file(target: &Path, bytes: &[u8], replace: bool) -> Result<()> {
    let file = AtomicFile::create(target, replace)?;
    file.append(bytes).in_file(target)?;
    file.commit()
}

impl AtomicFile {
    /// Begins the file `target`. An existing file stays until [`commit`](Self::commit), and is an
    /// error without `replace`.
    pub(crate) fn create(target: &Path, replace: bool) -> Result<Self> {
        Self::create_with_mode(target, replace, None)
    }

    /// The same for a file that is made from one with the permission bits `mode`. It gets those of
    /// them that the umask leaves. A file that is replaced passes its own on.
    pub(crate) fn create_with_mode(
        target: &Path,
        replace: bool,
        mode: Option<u32>,
    ) -> Result<Self> {
        check_target(target, replace)?;
        let dir = folder_of(target);
        leftovers::sweep(target);
        let prefix = leftovers::prefix(target);
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(SUFFIX);
        let own = leftovers::is_own(dir);
        let (file, temp) = loop {
            let temp = os::plain_mode(&mut builder, mode.unwrap_or(0o666)).tempfile_in(dir);
            let (file, temp) = temp.in_file(target)?.into_parts();
            // Dropped the other way round, so closed before it is removed.
            let (mut temp, file) = (temp, file);
            // First: what nobody holds, another job removes.
            if !leftovers::claim(&file, &temp) {
                continue;
            }
            if !own {
                let renamed = match probe(&temp).and_then(TempPath::try_from_path) {
                    Ok(renamed) => renamed,
                    Err(error) => {
                        drop(file);
                        remove_closed(&temp);
                        return Err(error).in_file(target);
                    }
                };
                // There is nothing under the name that is removed.
                drop(std::mem::replace(&mut temp, renamed));
            }
            break (file, temp);
        };
        let listed = Temporary::new(&temp);
        // Not from a link or a file of somebody else, who could then write to ours.
        if let Ok(replaced) = std::fs::symlink_metadata(target)
            && replaced.is_file()
            && os::is_ours(&replaced)
            && let Some(mode) = os::mode(&replaced)
        {
            os::set_mode(&file, mode).in_file(target)?;
        }
        let write_behind = file.try_clone().ok().and_then(WriteBehind::start);
        Ok(AtomicFile {
            file,
            temp,
            listed,
            target: target.to_owned(),
            replace: replace || own,
            written: AtomicU64::new(0),
            write_behind,
        })
    }

    /// Bytes written so far.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Makes the file durable and gives it its name.
    pub(crate) fn commit(self) -> Result<()> {
        let named = |e: io::Error| Error::from(e).in_file(&self.target);
        if let Some(write_behind) = self.write_behind {
            write_behind.finish().map_err(named)?;
        }
        self.file.sync_all().map_err(named)?;
        if self.replace {
            self.temp.persist(&self.target).map_err(|e| named(e.error))?;
        } else {
            os::rename_new(self.temp, &self.target).map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => {
                    Error::new(ErrorKind::OutputExists).in_file(&self.target)
                }
                _ => named(e),
            })?;
        }
        drop((self.listed, self.file));
        os::sync_dir(parent(&self.target)).map_err(named)
    }
}

impl Output for AtomicFile {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.file).write_all(bytes)?;
        let before = self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let after = before + bytes.len() as u64;
        if before / WRITE_BEHIND != after / WRITE_BEHIND
            && let Some(write_behind) = &self.write_behind
        {
            write_behind.wake();
        }
        Ok(())
    }

    fn read_back(&self, offset: u64, buf: &mut [u8]) -> Result<bool> {
        read_at(&self.file, offset, buf)?;
        Ok(true)
    }
}

/// A thread that asks the system to write bytes to the disk while the next ones are made.
struct WriteBehind {
    wake: Sender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl WriteBehind {
    /// `None` if the system gives no thread: all bytes are then written at the end.
    fn start(file: File) -> Option<Self> {
        let (wake, woken) = channel();
        let thread = start("write-behind", |builder| {
            builder.spawn(move || {
                while woken.recv().is_ok() {
                    while woken.try_recv().is_ok() {}
                    // The system reports an error only once, to the first caller. It must not be
                    // lost here.
                    file.sync_data()?;
                }
                Ok(())
            })
        });
        Some(WriteBehind { wake, thread: thread.ok()? })
    }

    fn wake(&self) {
        // After an error the thread has ended; `finish` returns the error.
        let _ = self.wake.send(());
    }

    fn finish(self) -> io::Result<()> {
        drop(self.wake);
        self.thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the write-behind thread failed")))
    }
}

/// A temporary directory. Removed with all that is in it when dropped.
struct OwnDir {
    path: PathBuf,
    /// Says that this process lives.
    _lock: Option<File>,
    _listed: Temporary,
    kept: bool,
}

impl OwnDir {
    fn new(path: PathBuf, lock: Option<File>) -> Self {
        let listed = Temporary::new(&path);
        OwnDir { path, _lock: lock, _listed: listed, kept: false }
    }
}

impl Drop for OwnDir {
    fn drop(&mut self) {
        // After it was renamed there is nothing under that name.
        if !self.kept {
            leftovers::remove(&self.path);
        }
    }
}

/// A directory that is renamed into place when it is complete.
pub(crate) struct AtomicDir {
    temp: OwnDir,
    /// Those of the same job that it left behind.
    left: Vec<OwnDir>,
    target: PathBuf,
    replace: bool,
}

impl AtomicDir {
    /// Begins the directory `target`. An existing directory stays until [`commit`](Self::commit),
    /// and is an error without `replace`.
    ///
    /// `job` says what makes the directory, and how. What the same job had finished when it was
    /// killed or [gave up](Self::keep), [`left`](Self::left) finds.
    pub(crate) fn create(target: &Path, replace: bool, job: &str) -> Result<Self> {
        match std::fs::symlink_metadata(target) {
            Ok(_) if !replace => {
                return Err(Error::new(ErrorKind::OutputExists).in_file(target));
            }
            Ok(found) if !found.is_dir() => {
                return Err(Error::new(ErrorKind::Argument)
                    .expected("the output of a folder to be a folder")
                    .in_file(target));
            }
            _ => {}
        }
        let job = xxh3(job.as_bytes()) as u32;
        let left = leftovers::sweep_others(target, job).into_iter();
        let left = left.map(|(path, lock)| OwnDir::new(path, Some(lock))).collect();
        let prefix = format!("{}{job:08x}-", leftovers::prefix(target));
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(SUFFIX).rand_bytes(RANDOM);
        let temp = loop {
            let temp = os::plain_mode(&mut builder, 0o777).tempdir_in(folder_of(target));
            let temp = temp.in_file(target)?;
            // Where a directory cannot be opened, nobody else locks it either.
            let lock = match File::open(temp.path()) {
                Ok(lock) if !leftovers::claim(&lock, temp.path()) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                lock => lock.ok(),
            };
            let path = probe(temp.path()).in_file(target)?;
            drop(temp.keep());
            break OwnDir::new(path, lock);
        };
        Ok(AtomicDir { temp, left, target: target.to_owned(), replace })
    }

    /// The path of the directory until it is renamed into place.
    pub(crate) fn path(&self) -> &Path {
        &self.temp.path
    }

    /// The file `name` as the same job left it. Such a file was complete, but it may have been made
    /// from other input.
    pub(crate) fn left(&self, name: &Path) -> Option<PathBuf> {
        let mut paths = self.left.iter().map(|left| left.path.join(name));
        paths.find(|path| {
            std::fs::symlink_metadata(path)
                .is_ok_and(|found| found.is_file() && os::is_ours(&found))
        })
    }

    /// Gives up, and leaves what is finished for the next such job: in this directory, if `any` is,
    /// and in those that were left before. Returns the path of one.
    pub(crate) fn keep(mut self, any: bool) -> Option<PathBuf> {
        self.temp.kept = any;
        self.left.iter_mut().for_each(|left| left.kept = true);
        let kept = std::iter::once(&self.temp).chain(&self.left).find(|dir| dir.kept);
        kept.map(|dir| dir.path.clone())
    }

    /// Gives the directory its name and makes the name durable. The files in it are durable
    /// already.
    pub(crate) fn commit(self) -> Result<()> {
        let named = |e: io::Error| Error::from(e).in_file(&self.target);
        os::set_made(&self.temp.path);
        os::rename_dir(&self.temp.path, &self.target, self.replace).map_err(|e| {
            match e.kind() {
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                    Error::new(ErrorKind::OutputExists).in_file(&self.target)
                }
                _ => named(e),
            }
        })?;
        drop((self.temp, self.left));
        os::sync_dir(parent(&self.target)).map_err(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    // I-19
    fn every_name_that_a_file_can_have_has_a_temporary_one() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["大".repeat(84), "x".repeat(255), "é".repeat(127), "a".into()] {
            let path = dir.path().join(&name);
            let file = AtomicFile::create(&path, false).unwrap();
            assert!(lock(&TEMPORARIES).iter().any(|t| t.starts_with(dir.path())));
            file.append(b"1").unwrap();
            file.commit().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"1");
        }
        assert!(!lock(&TEMPORARIES).iter().any(|t| t.starts_with(dir.path())));
    }

    #[test]
    // I-09
    fn jobs_with_one_target_remove_nothing_of_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        std::thread::scope(|scope| {
            for job in ["a", "a", "b"] {
                let target = &target;
                scope.spawn(move || {
                    for _ in 0..300 {
                        AtomicFile::create(target, true).unwrap();
                        AtomicDir::create(target, true, job).unwrap();
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
