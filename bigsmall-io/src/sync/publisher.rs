//! The side that writes: the trainer.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::hex;
use crate::sync::manifest::{Entry, Kind, MOST_BYTES, MOST_ENTRIES, Manifest, is_ours};
use crate::sync::open::open;
use crate::sync::step::{Before, encode, rebuild};
use crate::sync::store::{MANIFEST, Store, Version};
use crate::sync::subscriber::newest;
use crate::sync::weights::Weights;

/// How often a [`Publisher`] writes all weights, and how many of the old files it keeps.
#[derive(Clone, Debug)]
pub struct PublishOptions {
    anchor_every: u64,
    keep_anchors: usize,
}

impl Default for PublishOptions {
    fn default() -> Self {
        PublishOptions { anchor_every: 32, keep_anchors: 2 }
    }
}

impl PublishOptions {
    /// 32 steps from anchor to anchor, of which 2 are kept.
    #[must_use]
    pub fn new() -> Self {
        PublishOptions::default()
    }

    /// Writes all weights every so many steps, at least 1 and at most 16,384: a subscriber that
    /// begins, or that was away for long, starts from there.
    #[must_use]
    pub fn anchor_every(mut self, steps: u64) -> Self {
        self.anchor_every = steps.clamp(1, MOST_ENTRIES as u64 / 4);
        self
    }

    /// Keeps so many anchors, at least 1, and the deltas after the oldest of them, but at most
    /// 65,536 files. What is older is deleted.
    #[must_use]
    pub fn keep_anchors(mut self, anchors: usize) -> Self {
        self.keep_anchors = anchors.max(1);
        self
    }
}

/// A step that subscribers can see.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// Its number: one more than the step before.
    pub step: u64,
    /// The SHA-256 of the weights.
    pub sha256: [u8; 32],
    /// Bytes of the weights as an anchor, if one was written.
    pub anchor_bytes: Option<u64>,
    /// Bytes of the differences from the step before, if there was one.
    pub delta_bytes: Option<u64>,
}

/// Publishes the weights of a training run, step by step, in a folder or object store.
///
/// A step is visible only when all of it is written: the manifest, which names it, is replaced
/// last. After an error, and after a kill at any moment, the steps before it are as they were, and
/// the next step is encoded against the last one that is visible. What is written was rebuilt and
/// compared first. There is one publisher at a time: a folder is locked, and the manifest of an
/// object store is replaced only if nobody else replaced it.
///
/// Memory: the weights three times (those of the step before, the new ones, and what is rebuilt to
/// compare), and the encoded step.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("bigsmall-doc-sync-{}", std::process::id()));
/// use bigsmall_io::{PublishOptions, Publisher, Subscriber, TensorView, Weights};
/// let weights = |bias: f32| {
///     let values = [bias, 1.0];
///     let tensors = [("bias", TensorView::from_slice(&[2], &values))];
///     Weights::from_tensors(tensors, None)
/// };
/// let mut publisher = Publisher::open(&dir, &PublishOptions::default())?;
/// publisher.publish(weights(0.5)?)?;
///
/// let mut worker = Subscriber::open(&dir)?;
/// let update = worker.prepare()?.expect("there is a first step");
/// worker.commit(update)?;
///
/// publisher.publish(weights(0.25)?)?;
/// let update = worker.prepare()?.expect("there is a second step");
/// assert_eq!(update.changed(), ["bias"]);
/// worker.commit(update)?; // the only moment at which generation has to pause
/// assert_eq!(worker.weights().unwrap().sha256(), weights(0.25)?.sha256());
/// assert!(worker.prepare()?.is_none());
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Publisher {
    store: Box<dyn Store>,
    options: PublishOptions,
    /// What is visible, and how it is known; `None` before the first step.
    manifest: Option<(Manifest, Version)>,
    /// The weights of the newest visible step.
    snapshot: Option<Weights>,
    /// Set while it is unknown what is visible: after an error of replacing the manifest.
    unknown: bool,
    _lock: Option<File>,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("step", &self.step()).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Opens a folder (which is made if it is missing) or a prefix in an object store (`s3://`,
    /// `gs://`, `az://`; feature `cloud`), and goes on after the newest step there.
    ///
    /// # Errors
    /// [`ErrorKind::SyncBusy`] if another publisher has locked the folder; [`ErrorKind::Io`]; those
    /// of a manifest that cannot be read. Steps that cannot be rebuilt are no error: the next one
    /// is written whole.
    pub fn open(place: impl AsRef<Path>, options: &PublishOptions) -> Result<Publisher> {
        Publisher::with_store(open(place.as_ref(), true)?, options)
    }

    /// Opens a prefix in an object store. The store must be able to replace an object on condition
    /// of its ETag.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    #[cfg(feature = "cloud")]
    pub fn in_store(
        store: std::sync::Arc<dyn object_store::ObjectStore>,
        prefix: &str,
        options: &PublishOptions,
    ) -> Result<Publisher> {
        let objects = crate::sync::objects::Objects::new(store, prefix)?;
        Publisher::with_store(Box::new(objects), options)
    }

    pub(crate) fn with_store(store: Box<dyn Store>, options: &PublishOptions) -> Result<Publisher> {
        let lock = store.lock()?;
        let mut publisher = Publisher {
            store,
            options: options.clone(),
            manifest: None,
            snapshot: None,
            unknown: true,
            _lock: lock,
        };
        publisher.reload()?;
        Ok(publisher)
    }

    /// Reads what is visible.
    fn reload(&mut self) -> Result<()> {
        let place = self.store.shown(MANIFEST);
        self.snapshot = None;
        self.manifest = match self.store.get(MANIFEST, MOST_BYTES)? {
            None => None,
            Some((bytes, version)) => Some((Manifest::read(&bytes).in_file(place)?, version)),
        };
        if let Some((manifest, _)) = &self.manifest {
            self.snapshot = match newest(&*self.store, manifest, None, u64::MAX) {
                Ok(found) => found.map(|found| found.weights),
                Err(error) if error.class() == crate::Class::Corrupt => None,
                Err(error) => return Err(error),
            };
        }
        self.unknown = false;
        Ok(())
    }

    /// Deletes the files of `names` whose steps are not visible: old ones, and those of a publisher
    /// that was killed. The names are from before the manifest was replaced: whoever wrote such a
    /// file cannot make it visible any more. A file that came later may belong to the next step of
    /// another publisher.
    fn clean(&self, names: Vec<String>) -> Result<()> {
        let entries = self.manifest.iter().flat_map(|(manifest, _)| &manifest.entries);
        let kept: BTreeSet<String> = entries.map(Entry::name).collect();
        for name in names {
            if is_ours(&name) && !kept.contains(&name) {
                self.store.delete(&name)?;
            }
        }
        Ok(())
    }

    /// The newest step that is visible.
    #[must_use]
    pub fn step(&self) -> Option<u64> {
        self.manifest.as_ref().and_then(|(manifest, _)| manifest.newest()).map(|(step, _)| step)
    }

    /// The weights of that step; `None` if they cannot be rebuilt.
    #[must_use]
    pub fn weights(&self) -> Option<&Weights> {
        self.snapshot.as_ref()
    }

    /// Publishes `weights` as the next step.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], [`ErrorKind::SyncBusy`], [`ErrorKind::Memory`], [`ErrorKind::ReadBack`].
    /// The step is then not visible, unless the error came after the manifest was replaced; either
    /// way the next call begins with what is visible, and nothing has to be done.
    pub fn publish(&mut self, weights: Weights) -> Result<Published> {
        if self.unknown {
            self.reload()?;
        }
        let old = self.manifest.as_ref().map(|(manifest, _)| manifest);
        let step = self.step().map_or(0, |step| step + 1);
        let sha256 = weights.sha256();
        let mut entries = Vec::new();
        let depth = old.filter(|_| step > 0).map_or(0, |old| old.depth(step - 1));
        if self.snapshot.is_none() || depth + 1 >= self.options.anchor_every {
            entries.push(self.put(step, Kind::Anchor, &weights, None)?);
        }
        if let Some(before) = &self.snapshot {
            let depth = depth.min(u64::from(u32::MAX)) as u32;
            let kind = Kind::Delta { base: before.sha256() };
            let before = Before { weights: before, depth };
            entries.push(self.put(step, kind, &weights, Some(before))?);
        }
        let bytes_of = |is_anchor: bool| {
            let of = |e: &&Entry| (e.kind == Kind::Anchor) == is_anchor;
            entries.iter().find(of).map(|e| e.byte_len)
        };
        let published =
            Published { step, sha256, anchor_bytes: bytes_of(true), delta_bytes: bytes_of(false) };
        let mut manifest =
            old.cloned().unwrap_or_else(|| Manifest { run: new_run(&sha256), entries: Vec::new() });
        manifest.entries.extend(entries);
        manifest.prune(self.options.keep_anchors);
        let bytes = manifest.write();
        let version = self.manifest.as_ref().map(|(_, version)| version);
        // Old files do no harm: if they cannot be listed or deleted, the next step tries again.
        let names = self.store.names().unwrap_or_default();
        // From here on the step may be visible, whatever is reported.
        self.unknown = true;
        self.store.replace_manifest(&bytes, version)?;
        let place = self.store.shown(MANIFEST);
        let missing = || Error::new(ErrorKind::SyncBusy).found("the manifest was deleted");
        let (found, version) =
            self.store.get(MANIFEST, MOST_BYTES)?.ok_or_else(|| missing().in_file(&place))?;
        if found != bytes {
            return Err(crate::sync::store::changed().in_file(place));
        }
        self.manifest = Some((manifest, version));
        self.snapshot = Some(weights);
        self.unknown = false;
        let _ = self.clean(names);
        Ok(published)
    }

    /// Writes one file, after it was rebuilt and compared.
    fn put(
        &self,
        step: u64,
        kind: Kind,
        weights: &Weights,
        before: Option<Before<'_>>,
    ) -> Result<Entry> {
        let bytes = encode(weights, before)?;
        let entry = Entry::new(step, kind, &bytes, weights.sha256());
        let place = self.store.shown(&entry.name());
        let again = rebuild(&bytes, before.map(|before| before.weights), u64::MAX);
        if !again.is_ok_and(|again| again.as_bytes() == weights.as_bytes()) {
            return Err(Error::new(ErrorKind::ReadBack).in_file(place));
        }
        self.store.put(&entry.name(), bytes)?;
        Ok(entry)
    }
}

/// A name for a new history.
fn new_run(sha256: &[u8; 32]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    let unique = Sha256::new()
        .chain_update(sha256)
        .chain_update(now.to_le_bytes())
        .chain_update(std::process::id().to_le_bytes());
    hex(&unique.finalize()[..8])
}
