//! Everything that differs between Linux, macOS and Windows, except positioned reads
//! (`bigsmall-format`).

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

/// Opens a regular file for reading. A pipe, a device or a directory is an error and never blocks.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let named = |e: io::Error| Error::from(e).in_file(path);
    let refuse = || Error::new(ErrorKind::NotARegularFile).in_file(path);
    // Looked at before it is opened, since opening a device may do something; and after, since it
    // may have been replaced.
    if !std::fs::metadata(path).map_err(named)?.is_file() {
        return Err(refuse());
    }
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    }
    let file = options.open(path).map_err(named)?;
    if !file.metadata().map_err(named)?.is_file() {
        return Err(refuse());
    }
    Ok(file)
}

/// The text of a small regular file; `None` if there is none. Longer ones are cut off.
pub(crate) fn small_text(path: &Path) -> Option<String> {
    const MOST: u64 = 64 << 10;
    let mut text = String::new();
    open_regular(path).ok()?.take(MOST).read_to_string(&mut text).ok()?;
    Some(text)
}

/// What a name in a directory stands for. A link is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    File(Id),
    Dir,
    /// A symbolic link; `own` if this user or the superuser made it.
    Link {
        own: bool,
    },
    /// A pipe, a device, a socket.
    Other,
}

/// Which file or directory it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id(u64, u64);

/// An open directory. Its methods take the name of one entry, and follow no link.
#[derive(Debug)]
pub(crate) struct Dir {
    #[cfg(unix)]
    fd: std::os::fd::OwnedFd,
    #[cfg(not(unix))]
    path: std::path::PathBuf,
}

#[cfg(unix)]
mod dir {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    use std::path::PathBuf;

    use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, open, openat, readlinkat, statat};

    use super::{Dir, Entry, File, Id, Path, io};

    const READ: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
    /// On the way to a file, a directory need not be readable.
    #[cfg(target_os = "linux")]
    const DIR: OFlags = READ.union(OFlags::PATH);
    #[cfg(not(target_os = "linux"))]
    const DIR: OFlags = READ;
    const FILE: OFlags = OFlags::RDONLY
        .union(OFlags::NONBLOCK)
        .union(OFlags::NOCTTY)
        .union(OFlags::NOFOLLOW)
        .union(OFlags::CLOEXEC);

    impl Dir {
        pub(crate) fn open(path: &Path) -> io::Result<Self> {
            Ok(Dir { fd: open(path, DIR, Mode::empty())? })
        }

        pub(crate) fn id(&self) -> io::Result<Id> {
            let found = fstat(&self.fd)?;
            Ok(Id(found.st_dev as u64, found.st_ino as u64))
        }

        pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
            let mut names = Vec::new();
            let readable = openat(&self.fd, ".", READ, Mode::empty())?;
            for entry in rustix::fs::Dir::new(readable)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if name != b"." && name != b".." {
                    names.push(OsString::from_vec(name));
                }
            }
            Ok(names)
        }

        pub(crate) fn entry(&self, name: &OsStr) -> io::Result<Entry> {
            let found = statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(match FileType::from_raw_mode(found.st_mode) {
                FileType::RegularFile => Entry::File(Id(found.st_dev as u64, found.st_ino as u64)),
                FileType::Directory => Entry::Dir,
                FileType::Symlink => {
                    let user = rustix::process::geteuid().as_raw();
                    Entry::Link { own: found.st_uid == user || found.st_uid == 0 }
                }
                _ => Entry::Other,
            })
        }

        pub(crate) fn dir(&self, name: &OsStr) -> io::Result<Dir> {
            Ok(Dir { fd: openat(&self.fd, name, DIR | OFlags::NOFOLLOW, Mode::empty())? })
        }

        /// Whatever it is by now: the caller looks.
        pub(crate) fn file(&self, name: &OsStr) -> io::Result<File> {
            Ok(openat(&self.fd, name, FILE, Mode::empty())?.into())
        }

        /// Where a link leads.
        pub(crate) fn link(&self, name: &OsStr) -> io::Result<PathBuf> {
            let target = readlinkat(&self.fd, name, Vec::new())?;
            Ok(PathBuf::from(OsStr::from_bytes(target.to_bytes())))
        }
    }
}

#[cfg(not(unix))]
mod dir {
    use std::ffi::{OsStr, OsString};
    use std::path::PathBuf;

    use super::{Dir, Entry, File, Id, Path, io};

    impl Dir {
        pub(crate) fn open(path: &Path) -> io::Result<Self> {
            let path = path.canonicalize()?;
            match path.is_dir() {
                true => Ok(Dir { path }),
                false => Err(io::ErrorKind::NotADirectory.into()),
            }
        }

        pub(crate) fn id(&self) -> io::Result<Id> {
            use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
            // Two directories are different if their paths are.
            Ok(Id(0, BuildHasherDefault::<DefaultHasher>::new().hash_one(&self.path)))
        }

        pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
            std::fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name())).collect()
        }

        pub(crate) fn entry(&self, name: &OsStr) -> io::Result<Entry> {
            let metadata = std::fs::symlink_metadata(self.path.join(name))?;
            let found = metadata.file_type();
            Ok(match () {
                () if found.is_symlink() => Entry::Link { own: true },
                () if found.is_dir() => Entry::Dir,
                () if found.is_file() => Entry::File(super::id_of(&metadata)?),
                () => Entry::Other,
            })
        }

        pub(crate) fn dir(&self, name: &OsStr) -> io::Result<Dir> {
            Ok(Dir { path: self.path.join(name) })
        }

        pub(crate) fn file(&self, name: &OsStr) -> io::Result<File> {
            File::open(self.path.join(name))
        }

        pub(crate) fn link(&self, name: &OsStr) -> io::Result<PathBuf> {
            std::fs::read_link(self.path.join(name))
        }
    }
}

/// Which file that is.
pub(crate) fn id(file: &File) -> io::Result<Id> {
    id_of(&file.metadata()?)
}

fn id_of(metadata: &Metadata) -> io::Result<Id> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        Ok(Id(metadata.dev(), metadata.ino()))
    }
    #[cfg(not(unix))]
    {
        // Stable Rust has no better: one file in place of another of the same length and time is
        // not noticed.
        let since = metadata.modified()?.duration_since(std::time::UNIX_EPOCH);
        Ok(Id(metadata.len(), since.map_or(0, |t| t.as_nanos() as u64)))
    }
}

/// The permission bits of a file, without those that give the rights of another user; `None` where
/// there are none.
pub(crate) fn mode(metadata: &Metadata) -> Option<u32> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        Some(metadata.permissions().mode() & 0o777)
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        None
    }
}

/// Gives a file exactly these permission bits.
pub(crate) fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(std::fs::Permissions::from_mode(mode))
    }
    #[cfg(not(unix))]
    {
        let _ = (file, mode);
        Ok(())
    }
}

/// Whether both paths are the same file or directory. `false` if one of them does not exist.
pub(crate) fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if let (Ok(a), Ok(b)) = (std::fs::metadata(a), std::fs::metadata(b)) {
            return (a.dev(), a.ino()) == (b.dev(), b.ino());
        }
        false
    }
    #[cfg(not(unix))]
    {
        matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
    }
}

/// Whether the open file or directory `file` is the one at `path`.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    let Ok(there) = std::fs::symlink_metadata(path) else { return false };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        file.metadata().is_ok_and(|here| (here.dev(), here.ino()) == (there.dev(), there.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = (file, there);
        true
    }
}

/// A value that changes when someone writes to the file.
pub(crate) type Stamp = (u64, Option<std::time::SystemTime>);

pub(crate) fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.len(), metadata.modified().ok())
}

/// Bytes that this user may still write into the file system of the directory `dir`; `None` if the
/// system does not say.
pub(crate) fn free_space(dir: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let found = rustix::fs::statvfs(dir).ok()?;
        (found.f_blocks > 0).then(|| found.f_bavail.saturating_mul(found.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = dir;
        None
    }
}

/// Gives a temporary file or directory the mode of any other new file: `mode` without the bits of
/// the umask.
pub(crate) fn plain_mode<'a, 'b>(
    builder: &'a mut tempfile::Builder<'b, 'b>,
    mode: u32,
) -> &'a mut tempfile::Builder<'b, 'b> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(mode))
    }
    #[cfg(not(unix))]
    {
        let _ = mode;
        builder
    }
}

/// Makes the names in a directory durable. Windows has no such call; a rename there is durable once
/// the file system's journal is written.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match File::open(path)?.sync_all() {
            // Some file systems, such as buckets that are mounted, cannot do this.
            Err(e)
                if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
            {
                Ok(())
            }
            synced => synced,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        Ok(())
    }
}

/// Renames the file `new` to `target`, which must not exist.
///
/// Where the file system has neither hard links nor such a rename, it is looked for just before:
/// what another process makes in between is lost.
pub(crate) fn rename_new(new: tempfile::TempPath, target: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    let new = match new.persist_noclobber(target) {
        Ok(()) => return Ok(()),
        Err(e) if matches!(e.error.kind(), InvalidInput | PermissionDenied | Unsupported) => e.path,
        Err(e) => return Err(e.error),
    };
    match std::fs::symlink_metadata(target) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => new.persist(target).map_err(|e| e.error),
        _ => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

/// Whether the file or directory is this user's.
pub(crate) fn is_ours(metadata: &Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        metadata.uid() == rustix::process::geteuid().as_raw()
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        true
    }
}

/// When a file was changed, or got its name: nanoseconds, on the clock of its file system.
pub(crate) fn changed(metadata: &Metadata) -> Option<i128> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        Some(i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()))
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        None
    }
}

/// The attribute of a directory that says until when bigsmall has written the files in it.
#[cfg(any(target_os = "linux", target_os = "macos"))]
const MADE: &str = "user.bigsmall.made";

/// Notes on the directory `dir` that all files in it are bigsmall's, as they are now. Where file
/// systems cannot note it, nothing is noted.
pub(crate) fn set_made(dir: &Path) {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    if let Ok(Some(last)) = last_changed(dir) {
        let last = last.to_string();
        let _ = rustix::fs::setxattr(dir, MADE, last.as_bytes(), rustix::fs::XattrFlags::empty());
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    let _ = dir;
}

/// When the last of the files in `dir` and below was changed.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn last_changed(dir: &Path) -> io::Result<Option<i128>> {
    let (mut last, mut dirs) = (None, vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let found = entry?;
            let metadata = found.metadata()?;
            match metadata.is_dir() {
                true => dirs.push(found.path()),
                false => last = last.max(changed(&metadata)),
            }
        }
    }
    Ok(last)
}

/// What [`set_made`] noted. A file that was changed later is another's, or another's change.
pub(crate) fn made(dir: &Path) -> Option<i128> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        let mut text = [0; 40];
        let len = rustix::fs::getxattr(dir, MADE, &mut text).ok()?;
        std::str::from_utf8(text.get(..len)?).ok()?.parse().ok()
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    {
        let _ = dir;
        None
    }
}

/// Renames the directory `new` to `target`. With `replace` an existing directory is removed. Linux
/// and macOS exchange the two names in one step; elsewhere `target` is missing for a moment.
pub(crate) fn rename_dir(new: &Path, target: &Path, replace: bool) -> io::Result<()> {
    if !replace || std::fs::symlink_metadata(target).is_err() {
        // A rename replaces an empty directory and no other.
        return std::fs::rename(new, target);
    }
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        if renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE).is_ok() {
            return std::fs::remove_dir_all(new);
        }
    }
    let mut aside = new.as_os_str().to_owned();
    aside.push(".old");
    std::fs::rename(target, &aside)?;
    if let Err(error) = std::fs::rename(new, target) {
        std::fs::rename(&aside, target)?;
        return Err(error);
    }
    std::fs::remove_dir_all(&aside)
}
