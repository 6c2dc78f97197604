//! The side that reads: an inference worker.

use std::fmt;
use std::path::Path;

use bigsmall_format::internal::xxh3;

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::sync::manifest::{MOST_BYTES, Manifest};
use crate::sync::open::open;
use crate::sync::step::rebuild;
use crate::sync::store::{MANIFEST, Store};
use crate::sync::weights::Weights;
use crate::{Rule, hex};

/// How often a way to the newest step is looked for, while the publisher deletes old files.
const ATTEMPTS: usize = 8;

/// Where a subscriber is: the run, the step, and the digest of its weights.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    run: String,
    step: u64,
    sha256: [u8; 32],
}

/// Follows the weights that a [`Publisher`](crate::Publisher) publishes.
///
/// [`prepare`](Self::prepare) fetches the newest step, rebuilds it beside the current weights, and
/// verifies it: generation goes on meanwhile. [`commit`](Self::commit) exchanges the two. Whatever
/// happens in between, the current weights stay as they are: killed or failed, a subscriber holds
/// the old weights or the new ones, all of them.
///
/// A step that was deleted before it was read is no error: the next anchor leads to the newest
/// step. Many subscribers can read one place; nothing is written there.
///
/// Memory: the weights twice, and one encoded step; three times while several steps are followed,
/// one after the other.
pub struct Subscriber {
    store: Box<dyn Store>,
    max_bytes: u64,
    current: Option<(Place, Weights)>,
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber").field("step", &self.step()).finish_non_exhaustive()
    }
}

/// The weights of a newer step, rebuilt and verified.
pub struct Update {
    from: Option<Place>,
    to: Place,
    weights: Weights,
    fetched: u64,
    n_files: usize,
    changed: Vec<String>,
}

impl fmt::Debug for Update {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Update")
            .field("step", &self.to.step)
            .field("sha256", &hex(&self.to.sha256))
            .finish_non_exhaustive()
    }
}

impl Update {
    /// The number of the step.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.to.step
    }

    /// The new weights.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The names of the tensors that are new, or that differ from the current ones.
    #[must_use]
    pub fn changed(&self) -> &[String] {
        &self.changed
    }

    /// Bytes of the files that were fetched.
    #[must_use]
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched
    }

    /// Number of these files.
    #[must_use]
    pub fn fetched_files(&self) -> usize {
        self.n_files
    }
}

impl Subscriber {
    /// Follows a folder or a prefix in an object store (`s3://`, `gs://`, `az://`; feature
    /// `cloud`). Nothing is read yet.
    ///
    /// # Errors
    /// [`ErrorKind::FeatureMissing`], [`ErrorKind::Argument`] for a URL of another kind.
    pub fn open(place: impl AsRef<Path>) -> Result<Subscriber> {
        Ok(Subscriber::with_store(open(place.as_ref(), false)?))
    }

    /// Follows a prefix in an object store.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] for a prefix that cannot be one.
    #[cfg(feature = "cloud")]
    pub fn in_store(
        store: std::sync::Arc<dyn object_store::ObjectStore>,
        prefix: &str,
    ) -> Result<Subscriber> {
        let objects = crate::sync::objects::Objects::new(store, prefix)?;
        Ok(Subscriber::with_store(Box::new(objects)))
    }

    pub(crate) fn with_store(store: Box<dyn Store>) -> Subscriber {
        Subscriber { store, max_bytes: 1 << 40, current: None }
    }

    /// Refuses weights, and files, of more bytes. By default 2^40.
    #[must_use]
    pub fn max_bytes(mut self, max_bytes: u64) -> Subscriber {
        self.max_bytes = max_bytes;
        self
    }

    /// The current weights; `None` before the first [`commit`](Self::commit).
    #[must_use]
    pub fn weights(&self) -> Option<&Weights> {
        self.current.as_ref().map(|(_, weights)| weights)
    }

    /// The step of the current weights.
    #[must_use]
    pub fn step(&self) -> Option<u64> {
        self.current.as_ref().map(|(place, _)| place.step)
    }

    /// Takes weights that were kept from an earlier process, if a step of the manifest has them:
    /// then only the steps after it are fetched. `false` if none has, and nothing is taken.
    ///
    /// # Errors
    /// Those of reading the manifest.
    pub fn resume(&mut self, weights: Weights) -> Result<bool> {
        let Some(manifest) = read_manifest(&*self.store)? else { return Ok(false) };
        let sha256 = weights.sha256();
        let Some(step) = manifest.step_of(sha256) else { return Ok(false) };
        self.current = Some((Place { run: manifest.run, step, sha256 }, weights));
        Ok(true)
    }

    /// Fetches, rebuilds and verifies the newest step. `None` if there is none, or if it is the
    /// current one. The current weights are not touched.
    ///
    /// # Errors
    /// [`ErrorKind::SyncChain`] if neither the current weights nor an anchor lead to the newest
    /// step; [`ErrorKind::SourceChanged`] if the manifest names fewer steps than it did;
    /// [`ErrorKind::SyncManifest`], [`ErrorKind::SyncTooLarge`]; those of a damaged file, naming it
    /// and the tensor; [`ErrorKind::Io`].
    pub fn prepare(&self) -> Result<Option<Update>> {
        let mut before: Option<Manifest> = None;
        for _ in 0..ATTEMPTS {
            let Some(manifest) = read_manifest(&*self.store)? else { return Ok(None) };
            self.check_newer(&manifest)?;
            match self.update(&manifest) {
                // Deleted while it was read, if the manifest has changed too.
                Err(error) if is_missing(&error) && before.as_ref() != Some(&manifest) => {
                    before = Some(manifest);
                }
                other => return other,
            }
        }
        Err(Error::new(ErrorKind::SourceChanged)
            .in_file(self.store.shown(MANIFEST))
            .found("steps are deleted faster than they are read"))
    }

    /// The manifest of this run must not have gone back.
    fn check_newer(&self, manifest: &Manifest) -> Result<()> {
        let Some((place, _)) = &self.current else { return Ok(()) };
        let newest = manifest.newest().map_or(0, |(step, _)| step);
        if manifest.run == place.run && newest < place.step {
            return Err(Error::new(ErrorKind::SourceChanged)
                .in_file(self.store.shown(MANIFEST))
                .expected(format!("step {} or a later one", place.step))
                .found(format!("step {newest}")));
        }
        Ok(())
    }

    fn update(&self, manifest: &Manifest) -> Result<Option<Update>> {
        let here = self.current.as_ref().filter(|(place, _)| place.run == manifest.run);
        let here = here.map(|(place, weights)| (place.step, weights));
        let Some(found) = newest(&*self.store, manifest, here, self.max_bytes)? else {
            return Ok(None);
        };
        let current = self.current.as_ref().map(|(_, weights)| weights);
        let differs = |(i, spec): &(usize, &bigsmall_format::TensorSpec)| {
            let of_current = current.and_then(|current| current.find(spec.name()));
            of_current
                .is_none_or(|(old, values)| old != *spec || values != found.weights.values(*i))
        };
        let tensors = found.weights.tensors().iter().enumerate();
        let changed = tensors.filter(differs).map(|(_, spec)| spec.name().to_owned()).collect();
        let sha256 = found.weights.sha256();
        Ok(Some(Update {
            from: self.current.as_ref().map(|(place, _)| place.clone()),
            to: Place { run: manifest.run.clone(), step: found.step, sha256 },
            weights: found.weights,
            fetched: found.fetched,
            n_files: found.n_files,
            changed,
        }))
    }

    /// Makes the weights of `update` the current ones, and returns the old ones.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if another update was committed since this one was prepared.
    pub fn commit(&mut self, update: Update) -> Result<Option<Weights>> {
        if self.current.as_ref().map(|(place, _)| place) != update.from.as_ref() {
            return Err(Error::new(ErrorKind::Argument)
                .expected("an update that was prepared from the current weights"));
        }
        let old = self.current.replace((update.to, update.weights));
        Ok(old.map(|(_, weights)| weights))
    }
}

fn read_manifest(store: &dyn Store) -> Result<Option<Manifest>> {
    match store.get(MANIFEST, MOST_BYTES)? {
        None => Ok(None),
        Some((bytes, _)) => Ok(Some(Manifest::read(&bytes).in_file(store.shown(MANIFEST))?)),
    }
}

/// What [`newest`] rebuilt.
pub(crate) struct Rebuilt {
    pub(crate) step: u64,
    pub(crate) weights: Weights,
    fetched: u64,
    n_files: usize,
}

/// Rebuilds the weights of the newest step, from those of the step `here` or from an anchor;
/// `None` if `here` is the newest one.
pub(crate) fn newest(
    store: &dyn Store,
    manifest: &Manifest,
    here: Option<(u64, &Weights)>,
    most: u64,
) -> Result<Option<Rebuilt>> {
    let path = manifest.path(here.map(|(step, weights)| (step, weights.sha256())))?;
    let mut rebuilt: Option<Rebuilt> = None;
    for entry in path {
        let place = store.shown(&entry.name());
        let step = || -> Result<(Weights, u64)> {
            let Some((bytes, _)) = store.get(&entry.name(), most)? else {
                return Err(missing());
            };
            if bytes.len() as u64 != entry.byte_len || xxh3(&bytes) != entry.checksum {
                return Err(Error::new(ErrorKind::SyncChain)
                    .expected(format!("{} bytes with the manifest's checksum", entry.byte_len))
                    .found(format!("{} bytes", bytes.len())));
            }
            let before = match &rebuilt {
                Some(rebuilt) => Some(&rebuilt.weights),
                None => here.map(|(_, weights)| weights),
            };
            let weights = rebuild(&bytes, before, most)?;
            if weights.sha256() != entry.sha256 {
                return Err(Error::new(Rule::ContentDigest)
                    .expected(hex(&entry.sha256))
                    .found(hex(&weights.sha256())));
            }
            Ok((weights, bytes.len() as u64))
        };
        let (weights, byte_len) = step().in_file(place)?;
        let (fetched, n_files) = rebuilt.as_ref().map_or((0, 0), |r| (r.fetched, r.n_files));
        let (fetched, n_files) = (fetched + byte_len, n_files + 1);
        rebuilt = Some(Rebuilt { step: entry.step, weights, fetched, n_files });
    }
    Ok(rebuilt)
}

const MISSING: &str = "no such file";

/// A file that the manifest names is not there.
fn missing() -> Error {
    Error::new(ErrorKind::SyncChain).found(MISSING)
}

fn is_missing(error: &Error) -> bool {
    error.kind() == ErrorKind::SyncChain && error.found_text() == Some(MISSING)
}
