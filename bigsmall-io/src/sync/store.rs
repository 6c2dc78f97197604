//! Where the files of a sync lie: a folder, or a prefix of an object store.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::path::PathBuf;

use bigsmall_format::internal::{set_len, xxh3};

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::os;
use crate::stage::atomic::AtomicFile;
use crate::stage::output::Output as _;

pub(crate) const MANIFEST: &str = "manifest.json";
const LOCK: &str = "publisher.lock";

/// What a manifest is known by, so that it is replaced only if nobody else did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) e_tag: String,
    /// Of stores that count the versions of an object.
    pub(crate) version: Option<String>,
}

impl Version {
    /// That of a file: a checksum.
    pub(crate) fn of(bytes: &[u8]) -> Version {
        Version { e_tag: format!("{:016x}", xxh3(bytes)), version: None }
    }
}

/// A place for files that are whole or absent. Names are made by this crate, never read from a
/// file.
pub(crate) trait Store: Send + Sync {
    /// The bytes of a file, at most `most`; `None` if there is no such file.
    fn get(&self, name: &str, most: u64) -> Result<Option<(Vec<u8>, Version)>>;

    /// Writes a file, durably; others see all of it or none.
    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()>;

    /// Replaces the manifest if it is still the one of `version`; `None` if there was none.
    fn replace_manifest(&self, bytes: &[u8], version: Option<&Version>) -> Result<()>;

    /// The names of all files.
    fn names(&self) -> Result<Vec<String>>;

    /// Deletes a file; it may be gone already.
    fn delete(&self, name: &str) -> Result<()>;

    /// Keeps other publishers out until the result is dropped.
    fn lock(&self) -> Result<Option<File>>;

    /// Where a file is, for people.
    fn shown(&self, name: &str) -> String;
}

/// A folder of this machine, or one that is mounted.
pub(crate) struct LocalFolder(pub(crate) PathBuf);

impl Store for LocalFolder {
    fn get(&self, name: &str, most: u64) -> Result<Option<(Vec<u8>, Version)>> {
        let path = self.0.join(name);
        let mut file = match os::open_regular(&path) {
            Ok(file) => file,
            // Any other error says nothing about whether the file is there.
            Err(error) => match io::Error::from(error) {
                error if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                error => return Err(error.into()),
            },
        };
        let byte_len = file.metadata().in_file(&path)?.len();
        check_len(byte_len, most).map_err(|e| e.in_file(&path))?;
        let mut bytes = Vec::new();
        set_len(&mut bytes, byte_len as usize)?;
        file.read_exact(&mut bytes).in_file(&path)?;
        let version = Version::of(&bytes);
        Ok(Some((bytes, version)))
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let path = self.0.join(name);
        let file = AtomicFile::create(&path, true)?;
        file.append(&bytes).in_file(&path)?;
        file.commit()
    }

    fn replace_manifest(&self, bytes: &[u8], version: Option<&Version>) -> Result<()> {
        // The lock keeps other publishers out; whoever ignores it is noticed here.
        let found = self.get(MANIFEST, u64::MAX)?.map(|(_, version)| version);
        if found.as_ref() != version {
            return Err(changed().in_file(self.0.join(MANIFEST)));
        }
        self.put(MANIFEST, bytes.to_vec())
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.0).in_file(&self.0)?;
        let names = entries.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()));
        names.collect::<io::Result<_>>().in_file(&self.0)
    }

    fn delete(&self, name: &str) -> Result<()> {
        let path = self.0.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::from(error).in_file(&path))
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> Result<Option<File>> {
        let path = self.0.join(LOCK);
        let file = File::options().create(true).append(true).open(&path).in_file(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Err(Error::new(ErrorKind::SyncBusy).in_file(&path)),
            Err(TryLockError::Error(error)) => Err(Error::from(error).in_file(&path)),
        }
    }

    fn shown(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

pub(crate) fn check_len(byte_len: u64, most: u64) -> Result<()> {
    match byte_len <= most && usize::try_from(byte_len).is_ok() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::SyncTooLarge)
            .expected(format!("at most {most} bytes"))
            .found(byte_len)),
    }
}

pub(crate) fn changed() -> Error {
    Error::new(ErrorKind::SyncBusy).found("another publisher replaced the manifest")
}
