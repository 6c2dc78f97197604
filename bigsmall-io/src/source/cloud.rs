//! Files in object stores: S3 and compatible ones, GCS, Azure.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bigsmall_format::ReadAt;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, Limited};
pub use object_store::RetryConfig;
pub use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService, ReqwestConnector,
};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreScheme,
};
use tokio::runtime::Runtime;

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::limits::{RAISE, raised};
use crate::names::{SAFETENSORS, SHARD};
use crate::progress::Stop;
use crate::source::file::Source;
use crate::source::folder::{Folder, Input, RemoteFolder};
use crate::source::listing::{FolderOptions, too_many};
use crate::source::tail::{TAIL, Tail};

/// A file in an object store. Opening takes one request; two on Azure, which has no ranges counted
/// from the end. The last 256 KiB are kept in memory (64 MiB of all open files together). Reads
/// fetch only the requested bytes, with several requests at a time. Every answer's ETag is compared
/// with that of the opened object.
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
    stop: Stop,
}

/// Runs `work` on this crate's runtime and waits for it. If the job is cancelled, the work is given
/// up.
pub(crate) fn wait<T: Send + 'static>(
    stop: &Stop,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("bigsmall cloud").enable_all().build()
    });
    let runtime = runtime.as_ref().map_err(|e| Error::new(ErrorKind::Memory).found(e))?;
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    let task = runtime.spawn(async move {
        let _ = send.send(work.await);
    });
    let found = stop.receive(&receive).inspect_err(|_| task.abort())?;
    found.ok_or_else(|| Error::new(ErrorKind::Io).found("a request was given up"))
}

/// Asks for a part of an object, and collects at most `most` bytes of it.
async fn body(
    store: &dyn ObjectStore,
    path: &Path,
    request: GetOptions,
    most: u64,
) -> object_store::Result<(ObjectMeta, Range<u64>, Vec<u8>)> {
    let found = store.get_opts(path, request).await?;
    let (meta, range) = (found.meta.clone(), found.range.clone());
    let mut bytes = Vec::new();
    let mut stream = found.into_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        if piece.len() as u64 > most - bytes.len() as u64 {
            let found = format!("{} or more", bytes.len() as u64 + piece.len() as u64);
            return Err(too_long(most, found));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok((meta, range, bytes))
}

fn too_long(most: u64, found: impl fmt::Display) -> object_store::Error {
    let error = Error::new(ErrorKind::Remote);
    let error = error.expected(format!("a body of at most {most} bytes")).found(found);
    object_store::Error::Generic { store: "remote", source: error.into() }
}

pub(crate) fn failed(error: object_store::Error) -> Error {
    match error {
        object_store::Error::Precondition { .. } => Error::new(ErrorKind::SourceChanged),
        object_store::Error::NotFound { path, .. } => Error::new(ErrorKind::Remote)
            .expected("an object")
            .found(format!("nothing at {path:?}")),
        other => {
            let source: &(dyn std::error::Error + 'static) = &other;
            let ours = std::iter::successors(Some(source), |e| e.source());
            // A body of another length, refused on its way.
            let ours = ours.filter_map(|e| e.downcast_ref::<Error>());
            match ours.last().map(Error::kind) {
                Some(kind) => Error::new(kind).caused_by(other),
                None => Error::from(std::io::Error::other(other)),
            }
        }
    }
}

impl CloudFile {
    /// Opens the object `path` of `store`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], [`ErrorKind::Remote`] where there is no such object.
    pub fn open(store: Arc<dyn ObjectStore>, path: &str) -> Result<Self> {
        let path = Path::parse(path).map_err(|e| Error::new(ErrorKind::Argument).caused_by(e))?;
        Self::open_path(store, path, Stop::default())
    }

    fn open_path(store: Arc<dyn ObjectStore>, path: Path, stop: Stop) -> Result<Self> {
        let named = path.to_string();
        Self::try_open(store, path, stop).in_file(named)
    }

    fn try_open(store: Arc<dyn ObjectStore>, path: Path, stop: Stop) -> Result<Self> {
        let request = GetOptions { range: Some(GetRange::Suffix(TAIL)), ..Default::default() };
        let (at, of) = (Arc::clone(&store), path.clone());
        let answer = wait(&stop, async move { body(&*at, &of, request, TAIL).await })?;
        match answer {
            Ok((meta, range, bytes)) => {
                let expected = meta.size - meta.size.min(TAIL)..meta.size;
                if range != expected || bytes.len() as u64 != range.end - range.start {
                    return Err(Error::new(ErrorKind::Remote)
                        .expected(format!("bytes {expected:?}"))
                        .found(format!("{} bytes of {range:?}", bytes.len())));
                }
                let tail = Tail::new(meta.size, bytes);
                Ok(CloudFile { store, path, e_tag: meta.e_tag, tail, stop })
            }
            Err(error @ object_store::Error::NotFound { .. }) => Err(failed(error)),
            // No ranges counted from the end, or an empty object: ask for the length.
            Err(_) => {
                let (at, of) = (Arc::clone(&store), path.clone());
                let head = GetOptions { head: true, ..Default::default() };
                let answer =
                    wait(&stop, async move { at.get_opts(&of, head).await.map(|r| r.meta) })?;
                let meta = answer.map_err(failed)?;
                let tail = Tail::new(meta.size, Vec::new());
                let mut file = CloudFile { store, path, e_tag: meta.e_tag, tail, stop };
                let mut bytes = vec![0; meta.size.min(TAIL) as usize];
                file.fetch(meta.size - bytes.len() as u64, &mut bytes)?;
                file.tail = Tail::new(meta.size, bytes);
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
        let (at, of, most) = (Arc::clone(&self.store), self.path.clone(), buf.len() as u64);
        let answer = wait(&self.stop, async move { body(&*at, &of, request, most).await })?;
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

/// The most bytes of an answer that is neither a part of a file nor a list: what a server says of
/// an error. Only its first words are shown.
const ANSWER: u64 = 1 << 20;

/// The most bytes of one page of a list. No store sends more: S3 and Google send 1000 names of 1024
/// bytes, Azure 5000 of 1024 characters, XML takes at most 6 bytes for each, and the rest of an
/// entry has about 1 KiB. That makes 37 MiB.
const PAGE: u64 = 64 << 20;

/// The most pages of a list, one after the other, that name no object.
const EMPTY_PAGES: u64 = 100;

/// A client whose answers have a bound, whatever the server sends: `object_store` collects pages of
/// lists and the bodies of errors before anybody can look at them.
#[derive(Debug)]
struct Bounded {
    client: HttpClient,
    /// Pages since the last one that named an object.
    pages: Arc<AtomicU64>,
}

/// Makes [`Bounded`] clients.
#[derive(Debug)]
struct Connector(Arc<AtomicU64>);

/// Connects a store, and counts its pages.
fn connector() -> (Connector, Arc<AtomicU64>) {
    // The first provider counts: one that the program has installed already stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let pages = Arc::default();
    (Connector(Arc::clone(&pages)), pages)
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Bounded { client, pages: Arc::clone(&self.0) }))
    }
}

/// How many bytes the request header `Range` asks for.
fn asked_for(range: &str) -> Option<u64> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let last: u64 = last.parse().ok()?;
    match first.parse::<u64>() {
        Ok(first) => (last.checked_sub(first)?).checked_add(1),
        Err(_) => Some(last),
    }
}

impl HttpService for Bounded {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = std::result::Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let refused = |error| HttpError::new(HttpErrorKind::Decode, error);
            let range = request.headers().get("range").and_then(|v| asked_for(v.to_str().ok()?));
            let is_list = request.uri().query().is_some_and(|query| query.contains("list"));
            if is_list && self.pages.fetch_add(1, Ordering::Relaxed) >= raised(EMPTY_PAGES) {
                let most = raised(EMPTY_PAGES);
                return Err(refused(
                    Error::new(ErrorKind::Remote)
                        .expected(format!("at most {most} pages of a list with no file {RAISE}"))
                        .found(format!("{} or more", most.saturating_add(1))),
                ));
            }
            let (what, most) = match (is_list, range) {
                (true, _) => ("a page of a list", raised(PAGE)),
                (_, Some(range)) => ("a part of a file", raised(ANSWER).max(range)),
                _ => ("an answer", raised(ANSWER)),
            };
            let too_long = move |found: &dyn fmt::Display| {
                let expected = format!("{what} of at most {most} bytes {RAISE}");
                refused(Error::new(ErrorKind::Remote).expected(expected).found(found))
            };
            let has_body = request.method() != "HEAD";
            let (parts, body) = self.client.execute(request).await?.into_parts();
            let said = parts.headers.get("content-length").and_then(|v| v.to_str().ok());
            let said = said.and_then(|len| len.parse::<u64>().ok()).filter(|_| has_body);
            if let Some(said) = said.filter(|said| *said > most) {
                return Err(too_long(&said));
            }
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let body = Limited::new(body, most).map_err(move |e| match e.downcast::<HttpError>() {
                Ok(error) => *error,
                Err(_) => too_long(&"a longer one"),
            });
            Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
        })
    }
}

/// Opens a URL: a file if it ends with `.bs` or `.safetensors`, otherwise a folder.
pub(crate) fn open(url: &str, stop: &Stop) -> Result<Input> {
    let (store, path, pages) = store_of(url)?;
    if [SHARD, SAFETENSORS].iter().any(|ending| path.as_ref().ends_with(ending)) {
        return Ok(Input::File(Source::new(CloudFile::open_path(store, path, stop.clone())?)));
    }
    Ok(Input::Folder(Folder::remote(Objects { store, prefix: path, pages, stop: stop.clone() })))
}

/// What a URL names: a store, a path in it, and the count of [`Bounded`].
type Place = (Arc<dyn ObjectStore>, Path, Arc<AtomicU64>);

/// The store that a URL names.
pub(crate) fn store_of(url: &str) -> Result<Place> {
    let wrong = || Error::new(ErrorKind::Argument).found(url);
    let parsed = url::Url::parse(url).map_err(|e| wrong().caused_by(e))?;
    let (scheme, path) = ObjectStoreScheme::parse(&parsed).map_err(|e| wrong().caused_by(e))?;
    let retry = RetryConfig {
        max_retries: 5,
        retry_timeout: std::time::Duration::from_secs(60),
        ..Default::default()
    };
    let (connector, pages) = connector();
    let store: object_store::Result<Arc<dyn ObjectStore>> = match scheme {
        ObjectStoreScheme::AmazonS3 => AmazonS3Builder::from_env()
            .with_url(url)
            .with_retry(retry)
            .with_http_connector(connector)
            .build()
            .map(|s| Arc::new(s) as _),
        ObjectStoreScheme::GoogleCloudStorage => GoogleCloudStorageBuilder::from_env()
            .with_url(url)
            .with_retry(retry)
            .with_http_connector(connector)
            .build()
            .map(|s| Arc::new(s) as _),
        ObjectStoreScheme::MicrosoftAzure => MicrosoftAzureBuilder::from_env()
            .with_url(url)
            .with_retry(retry)
            .with_http_connector(connector)
            .build()
            .map(|s| Arc::new(s) as _),
        _ => return Err(wrong()),
    };
    Ok((store.map_err(|e| wrong().caused_by(e))?, path, pages))
}

/// The objects below a prefix.
struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Of [`Bounded`].
    pages: Arc<AtomicU64>,
    stop: Stop,
}

/// The names below `prefix` of the store of `builder`, as a folder is listed: for tests.
///
/// # Errors
/// Those of reading a folder.
pub fn s3_names(builder: AmazonS3Builder, prefix: &str, most: u64) -> Result<Vec<PathBuf>> {
    let (connector, pages) = connector();
    let store = Arc::new(builder.with_http_connector(connector).build().map_err(failed)?);
    let (prefix, stop) = (Path::from(prefix), Stop::default());
    let folder = Folder::remote(Objects { store, prefix, pages, stop });
    Ok(folder.list(FolderOptions::new().max_files(most))?.files.into_iter().collect())
}

/// The bytes of a name, on the average, that a list of many files may have. Fewer files may have
/// longer names: as many as one page holds.
const NAME: u64 = 256;

impl RemoteFolder for Objects {
    fn names(&self, most: u64) -> Result<Vec<String>> {
        let (store, prefix) = (Arc::clone(&self.store), self.prefix.clone());
        let pages = Arc::clone(&self.pages);
        wait(&self.stop, async move {
            let (mut names, mut n_bytes) = (BTreeSet::new(), 0);
            let most_bytes = most.saturating_mul(NAME).max(raised(PAGE));
            pages.store(0, Ordering::Relaxed);
            let mut objects = store.list(Some(&prefix));
            while let Some(object) = objects.next().await {
                pages.store(0, Ordering::Relaxed);
                let object = object.map_err(failed)?;
                let name = object.location.as_ref().strip_prefix(prefix.as_ref());
                let name = name.map(|n| n.trim_start_matches('/')).filter(|n| !n.is_empty());
                let Some(name) = name else { continue };
                n_bytes += name.len() as u64;
                if names.len() as u64 >= most {
                    return Err(too_many(most));
                }
                if n_bytes > most_bytes {
                    return Err(Error::new(ErrorKind::TooManyFiles)
                        .expected(format!("names of at most {most_bytes} bytes together"))
                        .found(format!("{n_bytes} or more")));
                }
                // A store that sends a page again and again does not end by itself.
                if !names.insert(name.to_owned()) {
                    return Err(Error::new(ErrorKind::Remote)
                        .expected("a list that names every file once")
                        .found(format!("{name:?} twice")));
                }
            }
            Ok(names.into_iter().collect())
        })?
    }

    fn open(&self, name: &str) -> Result<Source> {
        let path = format!("{}/{name}", self.prefix);
        let path = Path::parse(path.trim_start_matches('/'));
        let path = path.map_err(|e| Error::new(ErrorKind::ModelPath).caused_by(e))?;
        let store = Arc::clone(&self.store);
        Ok(Source::new(CloudFile::open_path(store, path, self.stop.clone())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requested_range_has_its_length() {
        for (range, len) in [
            ("bytes=0-9", Some(10)),
            ("bytes=-256", Some(256)),
            ("bytes=5-4", None),
            ("bytes=5-", None),
            ("items=1-2", None),
            ("bytes=0-18446744073709551615", None),
        ] {
            assert_eq!(asked_for(range), len, "{range}");
        }
    }
}
