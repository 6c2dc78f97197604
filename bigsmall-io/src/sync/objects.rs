//! A prefix of an object store.

use std::fs::File;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, MultipartUpload as _, ObjectStore, ObjectStoreExt as _, PutMode,
    PutOptions, PutPayload, UpdateVersion,
};

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::progress::Stop;
use crate::source::cloud::{self, failed, store_of};
use crate::sync::store::{MANIFEST, Store, Version, changed, check_len};

/// Objects of more bytes are written in parts.
const PART: usize = 32 << 20;

/// The end of every range that is asked for, at most: some stores refuse larger numbers.
const MOST_RANGE: u64 = 1 << 44;

/// The objects below a prefix.
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Pages of a list, which the connection counts.
    pages: Arc<AtomicU64>,
}

fn wait<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T> {
    cloud::wait(&Stop::default(), work)
}

impl Objects {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, prefix: &str) -> Result<Objects> {
        let prefix = Path::parse(prefix);
        let prefix = prefix.map_err(|e| Error::new(ErrorKind::Argument).caused_by(e))?;
        Ok(Objects { store, prefix, pages: Arc::default() })
    }

    pub(crate) fn open(url: &str) -> Result<Objects> {
        let (store, prefix, pages) = store_of(url)?;
        Ok(Objects { store, prefix, pages })
    }

    fn path(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }
}

impl Store for Objects {
    fn get(&self, name: &str, most: u64) -> Result<Option<(Vec<u8>, Version)>> {
        let (store, path) = (Arc::clone(&self.store), self.path(name));
        // A range bounds what a server may send.
        let range = GetRange::Bounded(0..most.clamp(1, MOST_RANGE));
        let request = GetOptions { range: Some(range), ..Default::default() };
        let answer = wait(async move {
            let found = store.get_opts(&path, request).await?;
            let meta = found.meta.clone();
            // Larger objects are not fetched.
            let bytes = if meta.size <= most { found.bytes().await? } else { Default::default() };
            Ok((meta, bytes))
        })?;
        let (meta, bytes) = match answer {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(error).in_file(self.shown(name))),
        };
        check_len(meta.size, most).in_file(self.shown(name))?;
        if bytes.len() as u64 != meta.size {
            return Err(Error::new(ErrorKind::Remote)
                .in_file(self.shown(name))
                .expected(format!("{} bytes", meta.size))
                .found(bytes.len()));
        }
        let version = Version { e_tag: meta.e_tag.unwrap_or_default(), version: meta.version };
        Ok(Some((bytes.into(), version)))
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let (store, path) = (Arc::clone(&self.store), self.path(name));
        let answer = wait(async move {
            let payload = PutPayload::from(bytes);
            if payload.content_length() <= PART {
                return store.put(&path, payload).await.map(|_| ());
            }
            // One piece of memory, of which the parts are slices.
            let parts = payload.iter().flat_map(|bytes| {
                let begins = (0..bytes.len()).step_by(PART);
                begins.map(|at| bytes.slice(at..bytes.len().min(at + PART)).into())
            });
            let parts: Vec<PutPayload> = parts.collect();
            let mut upload = store.put_multipart(&path).await?;
            for part in parts {
                if let Err(error) = upload.put_part(part).await {
                    let _ = upload.abort().await;
                    return Err(error);
                }
            }
            upload.complete().await.map(|_| ())
        })?;
        answer.map_err(failed).in_file(self.shown(name))
    }

    fn replace_manifest(&self, bytes: &[u8], version: Option<&Version>) -> Result<()> {
        let mode = match version {
            None => PutMode::Create,
            Some(Version { e_tag, version }) => PutMode::Update(UpdateVersion {
                e_tag: Some(e_tag.clone()),
                version: version.clone(),
            }),
        };
        let options = PutOptions { mode, ..Default::default() };
        let (store, path, bytes) = (Arc::clone(&self.store), self.path(MANIFEST), bytes.to_vec());
        let answer = wait(async move { store.put_opts(&path, bytes.into(), options).await })?;
        match answer {
            Ok(_) => Ok(()),
            Err(
                object_store::Error::Precondition { .. }
                | object_store::Error::AlreadyExists { .. },
            ) => Err(changed().in_file(self.shown(MANIFEST))),
            Err(error) => Err(failed(error).in_file(self.shown(MANIFEST))),
        }
    }

    fn names(&self) -> Result<Vec<String>> {
        let (store, prefix) = (Arc::clone(&self.store), self.prefix.clone());
        self.pages.store(0, Ordering::Relaxed);
        let answer = wait(async move { store.list_with_delimiter(Some(&prefix)).await })?;
        let found = answer.map_err(failed).in_file(self.shown(""))?;
        let names = found.objects.iter().filter_map(|object| object.location.filename());
        Ok(names.map(str::to_owned).collect())
    }

    fn delete(&self, name: &str) -> Result<()> {
        let (store, path) = (Arc::clone(&self.store), self.path(name));
        match wait(async move { store.delete(&path).await })? {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(error).in_file(self.shown(name))),
        }
    }

    /// The manifest is replaced on condition instead.
    fn lock(&self) -> Result<Option<File>> {
        Ok(None)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).to_string()
    }
}
