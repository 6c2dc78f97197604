//! Files in object stores: S3 and compatible ones, GCS, Azure.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bigsmall_format::ReadAt;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreScheme, RetryConfig};
use tokio::runtime::Runtime;

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::names::SHARD;
use crate::source::file::Source;
use crate::source::folder::{Folder, Input, RemoteFolder};
use crate::source::tail::{TAIL, Tail};

/// A file in an object store. Opening takes one request; two on Azure, which has no ranges counted
/// from the end. The last 256 KiB are kept in memory. Reads fetch only the requested bytes, with
/// several requests at a time. Every answer's ETag is compared with that of the opened object.
///
/// Requests run on this crate's own runtime. The calling thread blocks without entering a runtime,
/// so callers may have their own runtime or none. In asynchronous code, call it where blocking is
/// allowed.
///
/// ```no_run
/// use std::sync::Arc;
/// use bigsmall_io::{CloudFile, Model};
/// use object_store::aws::AmazonS3Builder;
/// let store = AmazonS3Builder::from_env().with_bucket_name("models").build()?;
/// let file = CloudFile::open(Arc::new(store), "llama/model.bs")?;
/// let norm = Model::from_source(file)?.tensor("model.norm.weight")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CloudFile {
    store: Arc<dyn ObjectStore>,
    path: Path,
    e_tag: Option<String>,
    tail: Tail,
}

/// Runs `work` on this crate's runtime and waits for it.
fn wait<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("bigsmall cloud").enable_all().build()
    });
    let runtime = runtime.as_ref().map_err(|e| Error::new(ErrorKind::Memory).found(e))?;
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    runtime.spawn(async move {
        let _ = send.send(work.await);
    });
    receive.recv().map_err(|_| Error::new(ErrorKind::Io).found("a request was given up"))
}

fn failed(error: object_store::Error) -> Error {
    match error {
        object_store::Error::Precondition { .. } => Error::new(ErrorKind::SourceChanged),
        object_store::Error::NotFound { path, .. } => Error::new(ErrorKind::Remote)
            .expected("an object")
            .found(format!("nothing at {path:?}")),
        other => Error::from(std::io::Error::other(other)),
    }
}

impl CloudFile {
    /// Opens the object `path` of `store`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], [`ErrorKind::Remote`] where there is no such object.
    pub fn open(store: Arc<dyn ObjectStore>, path: &str) -> Result<Self> {
        let path = Path::parse(path).map_err(|e| Error::new(ErrorKind::Argument).caused_by(e))?;
        Self::open_path(store, path)
    }

    fn open_path(store: Arc<dyn ObjectStore>, path: Path) -> Result<Self> {
        let named = path.to_string();
        Self::try_open(store, path).in_file(named)
    }

    fn try_open(store: Arc<dyn ObjectStore>, path: Path) -> Result<Self> {
        let request = GetOptions { range: Some(GetRange::Suffix(TAIL)), ..Default::default() };
        let (at, of) = (Arc::clone(&store), path.clone());
        let answer = wait(async move {
            let found = at.get_opts(&of, request).await?;
            let (meta, range) = (found.meta.clone(), found.range.clone());
            Ok((meta, range, found.bytes().await?))
        })?;
        match answer {
            Ok((meta, range, bytes)) => {
                let expected = meta.size - meta.size.min(TAIL)..meta.size;
                if range != expected || bytes.len() as u64 != range.end - range.start {
                    return Err(Error::new(ErrorKind::Remote)
                        .expected(format!("bytes {expected:?}"))
                        .found(format!("{} bytes of {range:?}", bytes.len())));
                }
                let tail = Tail { byte_len: meta.size, bytes: bytes.into() };
                Ok(CloudFile { store, path, e_tag: meta.e_tag, tail })
            }
            Err(error @ object_store::Error::NotFound { .. }) => Err(failed(error)),
            // No ranges counted from the end, or an empty object: ask for the length.
            Err(_) => {
                let (at, of) = (Arc::clone(&store), path.clone());
                let head = GetOptions { head: true, ..Default::default() };
                let answer = wait(async move { at.get_opts(&of, head).await.map(|r| r.meta) })?;
                let meta = answer.map_err(failed)?;
                let tail = Tail { byte_len: meta.size, bytes: Vec::new() };
                let mut file = CloudFile { store, path, e_tag: meta.e_tag, tail };
                let mut bytes = vec![0; meta.size.min(TAIL) as usize];
                file.fetch(meta.size - bytes.len() as u64, &mut bytes)?;
                file.tail.bytes = bytes;
                Ok(file)
            }
        }
    }

    fn fetch(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let range = offset..offset + buf.len() as u64;
        let request = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match: self.e_tag.clone(),
            ..Default::default()
        };
        let (at, of) = (Arc::clone(&self.store), self.path.clone());
        let answer = wait(async move {
            let found = at.get_opts(&of, request).await?;
            let (meta, range) = (found.meta.clone(), found.range.clone());
            Ok((meta, range, found.bytes().await?))
        })?;
        let (meta, found, bytes) = answer.map_err(|e| failed(e).at(offset))?;
        if meta.e_tag != self.e_tag || meta.size != self.tail.byte_len {
            return Err(Error::new(ErrorKind::SourceChanged).at(offset));
        }
        if found != range || bytes.len() != buf.len() {
            return Err(Error::new(ErrorKind::Remote)
                .at(offset)
                .expected(format!("bytes {range:?}"))
                .found(format!("{} bytes of {found:?}", bytes.len())));
        }
        buf.copy_from_slice(&bytes);
        Ok(())
    }
}

impl fmt::Debug for CloudFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudFile")
            .field("path", &self.path)
            .field("byte_len", &self.tail.byte_len)
            .finish_non_exhaustive()
    }
}

impl ReadAt for CloudFile {
    fn byte_len(&self) -> std::io::Result<u64> {
        Ok(self.tail.byte_len)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let found = self.tail.read_exact_at(offset, buf, |at, piece| self.fetch(at, piece));
        found.map_err(|e| e.in_file(self.path.as_ref()).into())
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        self.tail.bytes_at(range)
    }
}

/// Opens a URL: a shard if it ends with `.bs`, otherwise a folder.
pub(crate) fn open(url: &str) -> Result<Input> {
    let wrong = || Error::new(ErrorKind::Argument).found(url);
    let parsed = url::Url::parse(url).map_err(|e| wrong().caused_by(e))?;
    let (scheme, path) = ObjectStoreScheme::parse(&parsed).map_err(|e| wrong().caused_by(e))?;
    let retry = RetryConfig {
        max_retries: 5,
        retry_timeout: std::time::Duration::from_secs(60),
        ..Default::default()
    };
    // The first provider counts: one that the program has installed already stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store: object_store::Result<Arc<dyn ObjectStore>> = match scheme {
        ObjectStoreScheme::AmazonS3 => AmazonS3Builder::from_env()
            .with_url(url)
            .with_retry(retry)
            .build()
            .map(|s| Arc::new(s) as _),
        ObjectStoreScheme::GoogleCloudStorage => GoogleCloudStorageBuilder::from_env()
            .with_url(url)
            .with_retry(retry)
            .build()
            .map(|s| Arc::new(s) as _),
        ObjectStoreScheme::MicrosoftAzure => MicrosoftAzureBuilder::from_env()
            .with_url(url)
            .with_retry(retry)
            .build()
            .map(|s| Arc::new(s) as _),
        _ => return Err(wrong()),
    };
    let store = store.map_err(|e| wrong().caused_by(e))?;
    if path.as_ref().ends_with(SHARD) {
        return Ok(Input::File(Source::new(CloudFile::open_path(store, path)?)));
    }
    Ok(Input::Folder(Folder::remote(Objects { store, prefix: path })))
}

/// The objects below a prefix.
struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl RemoteFolder for Objects {
    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut folders = vec![self.prefix.clone()];
        while let Some(folder) = folders.pop() {
            let store = Arc::clone(&self.store);
            let answer = wait(async move { store.list_with_delimiter(Some(&folder)).await })?;
            let found = answer.map_err(failed)?;
            folders.extend(found.common_prefixes);
            let prefix = self.prefix.as_ref();
            for object in found.objects {
                let name = object.location.as_ref().strip_prefix(prefix);
                let name = name.map(|n| n.trim_start_matches('/')).filter(|n| !n.is_empty());
                names.extend(name.map(str::to_owned));
            }
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, name: &str) -> Result<Source> {
        let path = format!("{}/{name}", self.prefix);
        let path = Path::parse(path.trim_start_matches('/'));
        let path = path.map_err(|e| Error::new(ErrorKind::ModelPath).caused_by(e))?;
        Ok(Source::new(CloudFile::open_path(Arc::clone(&self.store), path)?))
    }
}
