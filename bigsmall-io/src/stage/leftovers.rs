//! Temporary files of processes that were killed: the next job with the same target removes them.
//!
//! A job locks its temporary file or folder. The system drops the lock when the process ends, in
//! whatever way. So what can be locked belongs to nobody.

use std::ffi::OsStr;
use std::fs::{File, Metadata, TryLockError};
use std::path::{Path, PathBuf};

use crate::os;

/// Stands before the random part of a temporary name.
const MARK: &str = ".bigsmall-";
/// Ends a temporary name.
pub(crate) const SUFFIX: &str = ".tmp";

/// The start of the temporary names for `target`: hidden, and containing the target's name, or its
/// first characters.
pub(crate) fn prefix(target: &Path) -> String {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    // A name has at most 255 bytes.
    let within = |(at, c): (usize, char)| (at + c.len_utf8() <= 100).then_some(c);
    format!(".{}{MARK}", name.char_indices().map_while(within).collect::<String>())
}

/// Locks the new file or folder at `path`, open as `file`. `false` if another job holds it or has
/// removed it in the moment before: then it has to be made anew.
pub(crate) fn claim(file: &File, path: &Path) -> bool {
    match file.try_lock() {
        Ok(()) => os::is_at(file, path),
        Err(TryLockError::WouldBlock) => false,
        // A file system without locks keeps what is left behind.
        Err(TryLockError::Error(_)) => true,
    }
}

/// Whether the folder `dir` is a temporary one, or lies in one. There is nothing of others in it.
pub(crate) fn is_own(dir: &Path) -> bool {
    let is_temporary = |name: &str| name.contains(MARK) && name.ends_with(SUFFIX);
    dir.components().any(|c| is_temporary(&c.as_os_str().to_string_lossy()))
}

/// Removes the temporary files and folders of earlier jobs with this target that were killed.
pub(crate) fn sweep(target: &Path) {
    for path in left(target) {
        if let Some((held, _)) = hold(&path) {
            remove(&path);
            drop(held);
        }
    }
}

/// The same, but keeps the user's own folders of the job `job`, and holds them.
pub(crate) fn sweep_others(target: &Path, job: u32) -> Vec<(PathBuf, File)> {
    let start = format!("{}{job:08x}-", prefix(target));
    let mut kept = Vec::new();
    for path in left(target) {
        let Some((held, metadata)) = hold(&path) else { continue };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(&start) && metadata.is_dir() && os::is_ours(&metadata) {
            kept.push((path, held));
        } else {
            remove(&path);
            drop(held);
        }
    }
    kept
}

/// The temporary files and folders for this target, whether somebody holds them or not.
fn left(target: &Path) -> Vec<PathBuf> {
    let dir = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let prefix = prefix(target);
    let is_left = |name: &OsStr| {
        let name = name.to_str().and_then(|n| n.strip_prefix(&*prefix)?.strip_suffix(SUFFIX));
        let (job, random) = name.map(|n| n.rsplit_once('-').unwrap_or(("", n))).unwrap_or_default();
        random.len() == 6
            && random.bytes().all(|b| b.is_ascii_alphanumeric())
            && matches!(job.len(), 0 | 8)
            && job.bytes().all(|b| b.is_ascii_hexdigit())
            && name.is_some_and(|n| matches!(n.len(), 6 | 15))
    };
    if is_own(dir) {
        return Vec::new();
    }
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let entries = entries.flatten().filter(|entry| is_left(&entry.file_name()));
    entries.map(|entry| entry.path()).collect()
}

/// Opens and locks a temporary file or folder. `None` if somebody else holds it, or it cannot be
/// opened.
fn hold(path: &Path) -> Option<(File, Metadata)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    // Nothing else is opened: a pipe would block.
    let opened = match (found.is_file(), found.is_dir()) {
        (true, _) => os::open_regular(path).ok(),
        (_, true) => File::open(path).ok(),
        _ => None,
    };
    let held = opened.filter(|file| file.try_lock().is_ok())?;
    Some((held, found))
}

/// Removes a temporary file or folder. What cannot be removed stays.
pub(crate) fn remove(path: &Path) {
    let _ = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    // I-13
    fn only_what_nobody_holds_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model.bs");
        let held = File::create(dir.path().join(".model.bs.bigsmall-aaaaaa.tmp")).unwrap();
        assert!(claim(&held, &dir.path().join(".model.bs.bigsmall-aaaaaa.tmp")));
        assert!(!claim(&held, &dir.path().join("removed")));
        let others = [
            ".model.bs.bigsmall-aaaaaaa.tmp",
            ".model.bs.bigsmall-aaa-aa.tmp",
            ".model.bs.bigsmall-aaaaaaa-aaaaaa.tmp",
            ".model.bs.bigsmall-aaaaaaag-aaaaaa.tmp",
            ".model.bs.bigsmall--aaaaaa.tmp",
            ".model.bs.backup.tmp",
            ".other.bs.bigsmall-aaaaaa.tmp",
            ".model.bs.x.bs.bigsmall-aaaaaa.tmp",
            "model.bs.bigsmall-aaaaaa.tmp",
            "model.bs",
        ];
        others.iter().for_each(|name| std::fs::write(dir.path().join(name), "").unwrap());
        std::fs::write(dir.path().join(".model.bs.bigsmall-b0B0b0.tmp"), "left").unwrap();
        let folder = dir.path().join(".model.bs.bigsmall-cccccc.tmp");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("file"), "left").unwrap();
        let n = || std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(n(), others.len() + 3);
        sweep(&target);
        assert_eq!(n(), others.len() + if cfg!(unix) { 1 } else { 2 });
        drop(held);
        sweep(&target);
        assert!(!dir.path().join(".model.bs.bigsmall-aaaaaa.tmp").exists());
        // Within a temporary folder nothing is looked for.
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(".a.bigsmall-aaaaaa.tmp"), "").unwrap();
        sweep(&folder.join("a"));
        assert!(folder.join(".a.bigsmall-aaaaaa.tmp").exists());
    }
}
