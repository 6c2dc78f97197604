//! Everything that differs between Linux, macOS and Windows, except positioned reads
//! (`bigsmall-format`).

use std::fs::{File, Metadata, OpenOptions};
use std::io;
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
pub(crate) fn stamp(metadata: &Metadata) -> impl PartialEq + use<> {
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
        File::open(path)?.sync_all()
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        Ok(())
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
