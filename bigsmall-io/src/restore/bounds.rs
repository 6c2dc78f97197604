//! Before a shard is restored: how much it restores to, and whether there is room for it.

use std::path::Path;

use bigsmall_format::internal::len_of;
use bigsmall_format::{ReadAt, Shard};

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::{Progress, RestoreOptions, os};

/// Restored bytes for each byte of the shard, by default.
///
/// Blocks of one repeated value restore to 18,725 times their bytes. Equal tensors are stored once,
/// so a checkpoint of nothing but zeros restores to a few hundred thousand times its bytes.
const MAX_EXPANSION: u64 = 1 << 20;

/// The user is told before a job writes more than this many times what it reads, and more than
/// [`WARN_BYTES`].
const WARN_EXPANSION: u64 = 100;
const WARN_BYTES: u64 = 1 << 30;

/// The bytes of some shards, and of what they restore to.
#[derive(Clone, Copy, Default)]
pub(crate) struct Expansion {
    stored: u64,
    restored: u64,
}

impl Expansion {
    /// Adds a shard.
    ///
    /// # Errors
    /// [`ErrorKind::Expansion`] if it restores to more than `most` times its bytes, by default
    /// [`MAX_EXPANSION`].
    pub(crate) fn add(&mut self, shard: &Shard<impl ReadAt>, most: Option<u64>) -> Result<()> {
        self.add_bytes(len_of(shard.source())?, shard.original_len(), most)
    }

    /// Adds `restored` bytes that are made from `stored` bytes.
    ///
    /// # Errors
    /// Those of [`add`](Self::add).
    pub(crate) fn add_bytes(
        &mut self,
        stored: u64,
        restored: u64,
        most: Option<u64>,
    ) -> Result<()> {
        let most = most.unwrap_or(MAX_EXPANSION);
        if restored / stored.max(1) >= most {
            return Err(Error::new(ErrorKind::Expansion)
                .expected(format!("less than {most} times the {stored} bytes of the shard"))
                .found(format!("{restored} bytes")));
        }
        self.stored = self.stored.saturating_add(stored);
        self.restored = self.restored.saturating_add(restored);
        Ok(())
    }

    /// Adds `bytes` that are copied as they are.
    pub(crate) fn add_copy(&mut self, bytes: u64) {
        self.stored = self.stored.saturating_add(bytes);
        self.restored = self.restored.saturating_add(bytes);
    }

    /// Called before the first byte is written to `output`. Tells the user if much more is written
    /// than read.
    ///
    /// # Errors
    /// Those of [`check_space`].
    pub(crate) fn check_room(
        &self,
        output: &Path,
        options: &RestoreOptions,
        progress: &Progress,
    ) -> Result<()> {
        let Expansion { stored, restored } = *self;
        check_space(restored, output, options.ignore_free_space).in_file(output)?;
        if restored > WARN_BYTES && restored / stored.max(1) > WARN_EXPANSION {
            progress.warn(&format!("{stored} bytes restore to {restored} bytes"));
        }
        Ok(())
    }
}

/// Called before `bytes` are written to `output`.
///
/// # Errors
/// [`ErrorKind::Space`] if the file system has less free space than that, unless it is to be
/// ignored.
pub(crate) fn check_space(bytes: u64, output: &Path, ignore: bool) -> Result<()> {
    let parent = output.parent().filter(|p| !p.as_os_str().is_empty());
    match os::free_space(parent.unwrap_or(Path::new("."))) {
        Some(free) if free < bytes && !ignore => Err(Error::new(ErrorKind::Space)
            .expected(format!("{bytes} bytes"))
            .found(format!("{free} bytes"))),
        _ => Ok(()),
    }
}
