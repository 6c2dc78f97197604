//! Files behind HTTP servers that answer requests for ranges (RFC 9110, section 14).

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Read as _;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bigsmall_format::{Error, ReadAt, Result, Rule, zeroed};
use ureq::http::{HeaderMap, Response, header};
use ureq::{Agent, Body};

use crate::model_index::ModelIndex;
use crate::source::open::{Input, REMOTE_THREADS, RemoteFolder, Source};
use crate::source::tail::{TAIL, Tail};

/// Fetched from the end where the length had to be asked for first: a third request must not be
/// followed by a fourth.
const LONG_TAIL: u64 = 4 << 20;

/// Redirects of one request at the most.
const REDIRECTS: usize = 10;

/// Bytes of a text (a listing) at the most.
#[cfg(feature = "hub")]
const TEXT: u64 = 64 << 20;

/// How to talk to a server.
///
/// ```
/// let options = bigsmall_io::HttpOptions { attempts: 1, ..Default::default() };
/// assert!(options.token.is_none());
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct HttpOptions {
    /// Sent as `Authorization: Bearer`, to the scheme, host and port of the file's own URL and to
    /// no other.
    pub token: Option<String>,
    /// How often a request is tried that fails for a reason that may pass: no connection, a body
    /// cut short, a status of 408, 429 or from 500 on.
    pub attempts: u32,
    /// The wait before the second attempt; it doubles with every further one. A server's
    /// `Retry-After` counts where it is longer, up to a minute.
    pub backoff: Duration,
    /// How long one request may take, its body included.
    pub timeout: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        HttpOptions {
            token: None,
            attempts: 5,
            backoff: Duration::from_millis(500),
            timeout: Duration::from_secs(120),
        }
    }
}

impl fmt::Debug for HttpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpOptions")
            .field("token", &self.token.as_ref().map(|_| "not shown"))
            .field("attempts", &self.attempts)
            .field("backoff", &self.backoff)
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// A file behind an HTTP server. Opening takes one request where the server knows ranges counted
/// from the end, two or three where it does not; the last 256 KiB are kept. Reads fetch the bytes
/// that were asked for and no others, several at a time.
///
/// Every answer must be of the file that was opened: its ETag (or date) and length are compared.
/// Redirects are followed for every request, since their targets may expire.
///
/// ```no_run
/// use bigsmall_io::{HttpFile, HttpOptions, Model};
/// let file = HttpFile::open("https://example.org/model.bs", &HttpOptions::default())?;
/// let norm = Model::from_source(file)?.tensor("model.norm.weight")?;
/// # Ok::<(), bigsmall_io::Error>(())
/// ```
pub struct HttpFile {
    client: Arc<Client>,
    url: String,
    validator: Option<String>,
    tail: Tail,
}

/// Connections and options that the files of a model share.
pub(crate) struct Client {
    agent: Agent,
    options: HttpOptions,
}

/// What is asked for.
#[derive(Clone, Copy)]
enum Want {
    #[cfg(feature = "hub")]
    All,
    Head,
    Last(u64),
    /// First and last byte.
    Bytes(u64, u64),
}

/// Why a request failed, and whether it may be tried again.
enum Failure {
    Final(Error),
    Passing(Error, Option<Duration>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Final(error)
    }
}

fn remote(expected: impl fmt::Display, found: impl fmt::Display) -> Error {
    Error::new(Rule::Remote).expected(expected).found(found)
}

impl Client {
    pub(crate) fn new(options: HttpOptions) -> Arc<Self> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(options.timeout))
            .timeout_connect(Some(options.timeout.min(Duration::from_secs(20))))
            .max_idle_connections_per_host(REMOTE_THREADS)
            .max_idle_connections(2 * REMOTE_THREADS)
            .user_agent(concat!("bigsmall/", env!("CARGO_PKG_VERSION")))
            .build();
        Arc::new(Client { agent: config.into(), options })
    }

    /// Does `work` until it succeeds, fails for good or was tried often enough.
    fn tried<T>(&self, work: impl Fn() -> std::result::Result<T, Failure>) -> Result<T> {
        let mut wait = self.options.backoff;
        let mut attempt = 1;
        loop {
            match work() {
                Ok(found) => return Ok(found),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(error, _)) if attempt >= self.options.attempts => {
                    return Err(error);
                }
                Err(Failure::Passing(_, asked)) => {
                    // Up to a half more, so that a thousand clients do not come back at once.
                    let more = RandomState::new().hash_one(attempt) % 512;
                    let wait_now = wait + wait * more as u32 / 1024;
                    let asked = asked.unwrap_or_default().min(Duration::from_secs(60));
                    std::thread::sleep(wait_now.max(asked));
                }
            }
            attempt += 1;
            wait = wait.saturating_mul(2);
        }
    }

    /// Sends one request, following redirects. Its status is that of an answer or of an error that
    /// [`refusal`] explains.
    fn send(&self, url: &str, want: Want) -> std::result::Result<Response<Body>, Failure> {
        let mut target = url.to_owned();
        for _ in 0..=REDIRECTS {
            let mut request = match want {
                Want::Head => self.agent.head(&target),
                _ => self.agent.get(&target),
            };
            request = request.header(header::ACCEPT_ENCODING, "identity");
            request = match want {
                #[cfg(feature = "hub")]
                Want::All => request,
                Want::Head => request,
                Want::Last(n) => request.header(header::RANGE, format!("bytes=-{n}")),
                Want::Bytes(a, b) => request.header(header::RANGE, format!("bytes={a}-{b}")),
            };
            if let Some(token) = &self.options.token
                && origin(&target) == origin(url)
            {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let answer = request.call().map_err(broken)?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let location = text(answer.headers(), header::LOCATION);
            let next = location.and_then(|location| joined(&target, location));
            let Some(next) = next else {
                return Err(remote("a redirect to a URL", location.unwrap_or("none")).into());
            };
            if target.starts_with("https:") && !next.starts_with("https:") {
                return Err(remote("a redirect that stays with https", "http").into());
            }
            target = next;
        }
        Err(remote(format!("at most {REDIRECTS} redirects"), "more").into())
    }

    /// Fetches a text.
    #[cfg(feature = "hub")]
    pub(crate) fn text(&self, url: &str) -> Result<String> {
        let bytes = self.tried(|| {
            let answer = self.send(url, Want::All)?;
            if answer.status() != 200 {
                return Err(refusal(&answer, "a text"));
            }
            let mut bytes = Vec::new();
            let mut body = answer.into_body().into_reader().take(TEXT + 1);
            body.read_to_end(&mut bytes).map_err(cut)?;
            Ok(bytes)
        })?;
        if bytes.len() as u64 > TEXT {
            return Err(remote(format!("a text of at most {TEXT} bytes"), "a longer one"));
        }
        String::from_utf8(bytes).map_err(|_| remote("a text", "no Unicode"))
    }
}

/// An error before there was an answer.
fn broken(error: ureq::Error) -> Failure {
    let passing = matches!(
        error,
        ureq::Error::Io(_)
            | ureq::Error::Timeout(_)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::BodyStalled
            | ureq::Error::Protocol(_)
    );
    let error = Error::io(error.into_io());
    if passing { Failure::Passing(error, None) } else { Failure::Final(error) }
}

/// An error in the middle of a body.
fn cut(error: std::io::Error) -> Failure {
    Failure::Passing(Error::io(error), None)
}

/// What a status says that is not the one that was hoped for.
fn refusal(answer: &Response<Body>, expected: &str) -> Failure {
    let status = answer.status();
    let error = remote(expected, format!("HTTP {status}"));
    match status.as_u16() {
        408 | 429 | 500 | 502 | 503 | 504 => {
            let seconds = text(answer.headers(), header::RETRY_AFTER).and_then(|s| s.parse().ok());
            Failure::Passing(error, seconds.map(Duration::from_secs))
        }
        _ => Failure::Final(error),
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// What tells one state of a file from another.
fn validator(headers: &HeaderMap) -> Option<String> {
    let found = text(headers, header::ETAG).or_else(|| text(headers, header::LAST_MODIFIED));
    found.map(str::to_owned)
}

/// What `Content-Range` says; `None` where it says `*`.
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    /// First and last byte.
    bytes: Option<(u64, u64)>,
    /// Length of the file.
    len: Option<u64>,
}

fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let (range, len) =
        text(headers, header::CONTENT_RANGE)?.trim().strip_prefix("bytes ")?.split_once('/')?;
    let digits = |s: &str| s.parse::<u64>().ok().filter(|_| s.bytes().all(|b| b.is_ascii_digit()));
    let len = if len == "*" { None } else { Some(digits(len)?) };
    if range == "*" {
        return Some(ContentRange { bytes: None, len });
    }
    let (first, last) = range.split_once('-')?;
    let (first, last) = (digits(first)?, digits(last)?);
    let valid = first <= last && len.is_none_or(|n| last < n);
    valid.then_some(ContentRange { bytes: Some((first, last)), len })
}

/// An answer's bytes must be those of the file.
fn check_plain(headers: &HeaderMap) -> Result<()> {
    match text(headers, header::CONTENT_ENCODING) {
        None | Some("identity" | "") => Ok(()),
        Some(other) => Err(remote("a body as it is stored", format!("one encoded as {other:?}"))),
    }
}

/// Reads the body of an answer, which must be exactly as long as `buf`.
fn body_into(answer: Response<Body>, buf: &mut [u8]) -> std::result::Result<(), Failure> {
    if let Some(len) = text(answer.headers(), header::CONTENT_LENGTH)
        && len.trim() != buf.len().to_string()
    {
        return Err(remote(format!("a body of {} bytes", buf.len()), len).into());
    }
    let mut body = answer.into_body().into_reader();
    body.read_exact(buf).map_err(cut)?;
    // Also lets the connection be used again.
    match body.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(remote(format!("a body of {} bytes", buf.len()), "a longer one").into()),
        Err(error) => Err(cut(error)),
    }
}

/// Scheme, host and port: what a token is for.
fn origin(url: &str) -> Option<(String, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let scheme = scheme.to_ascii_lowercase();
    let host = host.to_ascii_lowercase();
    let standard = if scheme == "https" { ":443" } else { ":80" };
    Some((scheme, host.strip_suffix(standard).unwrap_or(&host).to_owned()))
}

/// The URL that `location` means on a page of `base`.
fn joined(base: &str, location: &str) -> Option<String> {
    let location = location.split('#').next().unwrap_or(location);
    let (scheme, rest) = base.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let path = rest[authority.len()..].split(['?', '#']).next()?;
    let lower = location.to_ascii_lowercase();
    if lower.starts_with("http://") || lower.starts_with("https://") {
        let (scheme, rest) = location.split_once("://")?;
        return Some(format!("{}://{rest}", scheme.to_ascii_lowercase()));
    }
    let before_path = location.split(['/', '?']).next().unwrap_or(location);
    if location.is_empty() || before_path.contains(':') {
        return None;
    }
    Some(if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{path}{location}")
    } else {
        let folder = path.rfind('/').map_or("/", |n| &path[..=n]);
        format!("{scheme}://{authority}{folder}{location}")
    })
}

impl HttpFile {
    /// Opens the file at `url`.
    ///
    /// # Errors
    /// [`Rule::Remote`] where the server refuses, knows no ranges or contradicts itself;
    /// [`Rule::Io`] where it cannot be reached.
    pub fn open(url: &str, options: &HttpOptions) -> Result<Self> {
        Self::open_with(&Client::new(options.clone()), url)
    }

    pub(crate) fn open_with(client: &Arc<Client>, url: &str) -> Result<Self> {
        let named = |e: Error| e.in_file(url.split('?').next().unwrap_or(url));
        client.tried(|| Self::try_open(client, url)).map_err(named)
    }

    fn try_open(client: &Arc<Client>, url: &str) -> std::result::Result<Self, Failure> {
        let file = |byte_len, validator, bytes| HttpFile {
            client: Arc::clone(client),
            url: url.to_owned(),
            validator,
            tail: Tail { byte_len, bytes },
        };
        let answer = client.send(url, Want::Last(TAIL))?;
        let headers = answer.headers();
        let status = answer.status().as_u16();
        // That of an error page says nothing about the file.
        let known = validator(headers).filter(|_| status < 400);
        let (byte_len, tail_len) = match status {
            206 => {
                check_plain(headers)?;
                let range = content_range(headers);
                let Some(ContentRange { bytes: Some((first, last)), len: Some(byte_len) }) = range
                else {
                    return Err(remote("a Content-Range with a length", "none").into());
                };
                if last + 1 != byte_len || last - first + 1 != byte_len.min(TAIL) {
                    let expected = format!("the last {TAIL} bytes");
                    return Err(remote(expected, format!("{first}-{last}/{byte_len}")).into());
                }
                let mut tail = zeroed(byte_len.min(TAIL))?;
                body_into(answer, &mut tail)?;
                return Ok(file(byte_len, known, tail));
            }
            // All of it: no ranges from the end, perhaps none at all.
            200 => {
                check_plain(headers)?;
                let byte_len =
                    text(headers, header::CONTENT_LENGTH).and_then(|n| n.trim().parse().ok());
                match byte_len {
                    Some(n) if n > TAIL => (n, TAIL),
                    _ => {
                        let mut all = Vec::new();
                        let mut body = answer.into_body().into_reader().take(TAIL + 1);
                        body.read_to_end(&mut all).map_err(cut)?;
                        let len = all.len() as u64;
                        if len > TAIL || byte_len.is_some_and(|n| n != len) {
                            return Err(remote("a length", "a body without one").into());
                        }
                        return Ok(file(len, known, all));
                    }
                }
            }
            416 => match content_range(headers) {
                Some(ContentRange { bytes: None, len: Some(0) }) => {
                    return Ok(file(0, known, Vec::new()));
                }
                Some(ContentRange { bytes: None, len: Some(n) }) => (n, TAIL),
                _ => Self::asked(client, url)?,
            },
            400 | 405 | 501 => Self::asked(client, url)?,
            _ => return Err(refusal(&answer, "a file")),
        };
        let mut opened = file(byte_len, known, Vec::new());
        let mut tail = zeroed(byte_len.min(tail_len))?;
        if !tail.is_empty() {
            let found = opened.fetch(byte_len - tail.len() as u64, &mut tail)?;
            opened.validator = opened.validator.or(found);
        }
        opened.tail.bytes = tail;
        Ok(opened)
    }

    /// The length, asked for by a HEAD request, and how much of the end to fetch then.
    fn asked(client: &Client, url: &str) -> std::result::Result<(u64, u64), Failure> {
        let answer = client.send(url, Want::Head)?;
        if answer.status() != 200 {
            return Err(refusal(&answer, "a file"));
        }
        check_plain(answer.headers())?;
        let len =
            text(answer.headers(), header::CONTENT_LENGTH).and_then(|n| n.trim().parse().ok());
        let len = len.ok_or_else(|| remote("a Content-Length", "none"))?;
        Ok((len, LONG_TAIL))
    }

    /// Fetches a range that is known to lie in the file; returns what tells this state of the file
    /// from another.
    fn fetch(&self, offset: u64, buf: &mut [u8]) -> std::result::Result<Option<String>, Failure> {
        let last = offset + buf.len() as u64 - 1;
        let answer = self.client.send(&self.url, Want::Bytes(offset, last))?;
        let headers = answer.headers();
        let found = validator(headers);
        let changed = || Error::new(Rule::SourceChanged).at(offset);
        let status = answer.status().as_u16();
        if matches!(status, 200 | 206 | 416)
            && let (Some(known), Some(found)) = (&self.validator, &found)
            && known != found
        {
            return Err(changed().expected(known).found(found).into());
        }
        match status {
            206 => {
                check_plain(headers)?;
                let range = content_range(headers);
                let len = range.as_ref().and_then(|r| r.len);
                if let Some(len) = len.filter(|&n| n != self.tail.byte_len) {
                    return Err(changed().expected(self.tail.byte_len).found(len).into());
                }
                if range.and_then(|r| r.bytes) != Some((offset, last)) {
                    let found = text(headers, header::CONTENT_RANGE).unwrap_or("no Content-Range");
                    return Err(remote(format!("bytes {offset}-{last}"), found).into());
                }
            }
            200 if (offset, last + 1) == (0, self.tail.byte_len) => check_plain(headers)?,
            200 => {
                let found = "the whole file: it knows no ranges";
                return Err(remote(format!("bytes {offset}-{last}"), found).into());
            }
            416 => return Err(changed().found("a range past its end").into()),
            _ => return Err(refusal(&answer, "a range")),
        }
        body_into(answer, buf)?;
        Ok(found)
    }
}

impl ReadAt for HttpFile {
    fn byte_len(&self) -> u64 {
        self.tail.byte_len
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let fetch = |offset, piece: &mut [u8]| {
            // `tried` takes what can be called again; the buffer is the same each time.
            let piece = std::cell::RefCell::new(piece);
            let fetch = || self.fetch(offset, &mut piece.borrow_mut());
            self.client.tried(fetch).map(|_| ()).map_err(|e| e.at(offset))
        };
        let named = |e: Error| e.in_file(self.url.split('?').next().unwrap_or(&self.url));
        self.tail.read_exact_at(offset, buf, fetch).map_err(named)
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        self.tail.bytes_at(range)
    }
}

/// A URL: of a shard, or of the index file of a model in shards beside it.
pub(crate) fn open(url: &str) -> Result<Input> {
    let client = Client::new(HttpOptions::default());
    let (path, query) =
        url.split_once('?').map_or((url, None), |(path, query)| (path, Some(query)));
    if !path.ends_with(".index.json") {
        return Ok(Input::File(Source::new(HttpFile::open_with(&client, url)?)));
    }
    let (base, index) = path.rsplit_once('/').unwrap_or(("", path));
    let suffix = query.map_or(String::new(), |query| format!("?{query}"));
    let files = Files { client, base: format!("{base}/"), suffix, index: index.to_owned() };
    Ok(Input::Folder(crate::folder::walk::Folder::remote(files)))
}

/// An index file and the shards that it names.
struct Files {
    client: Arc<Client>,
    base: String,
    suffix: String,
    index: String,
}

impl RemoteFolder for Files {
    fn names(&self) -> Result<Vec<String>> {
        let (_, index) = ModelIndex::read(&self.open(&self.index)?)?;
        let shards = index.shards().into_iter().map(str::to_owned);
        Ok(std::iter::once(self.index.clone()).chain(shards).collect())
    }

    fn open(&self, name: &str) -> Result<Source> {
        let url = format!("{}{}{}", self.base, encoded(name), self.suffix);
        Ok(Source::new(HttpFile::open_with(&self.client, &url)?))
    }
}

/// A path as a URL has it.
pub(crate) fn encoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved_as_a_browser_does() {
        let base = "https://h.org:8443/a/b?x=1#f";
        for (location, expected) in [
            ("https://other/c", Some("https://other/c")),
            ("HTTP://other/c", Some("http://other/c")),
            ("//other/c", Some("https://other/c")),
            ("/c?y", Some("https://h.org:8443/c?y")),
            ("c", Some("https://h.org:8443/a/c")),
            ("?y=2", Some("https://h.org:8443/a/b?y=2")),
            ("c#fragment", Some("https://h.org:8443/a/c")),
            ("c/d:e", Some("https://h.org:8443/a/c/d:e")),
            ("", None),
            ("#top", None),
            ("ftp://other/c", None),
            ("file:/etc/passwd", None),
        ] {
            assert_eq!(joined(base, location).as_deref(), expected, "{location}");
        }
        assert_eq!(joined("http://h", "c").as_deref(), Some("http://h/c"));
    }

    #[test]
    fn a_token_is_for_one_scheme_host_and_port() {
        let same = |a, b| origin(a) == origin(b);
        assert!(same("https://h/a", "https://H:443/b?c"));
        assert!(same("http://h/a", "http://u:p@h:80"));
        assert!(!same("https://h/a", "http://h/a"));
        assert!(!same("https://h/a", "https://h:8443/a"));
        assert!(!same("https://h/a", "https://h.evil.org/a"));
        assert!(!same("https://h/a", "https://h@evil.org/a"));
    }

    #[test]
    fn content_ranges_are_read_strictly() {
        let parse = |s: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, s.parse().unwrap());
            content_range(&headers)
        };
        let range = |bytes, len| Some(ContentRange { bytes, len });
        assert_eq!(parse("bytes 0-9/10"), range(Some((0, 9)), Some(10)));
        assert_eq!(parse("bytes 5-9/*"), range(Some((5, 9)), None));
        assert_eq!(parse("bytes */10"), range(None, Some(10)));
        for bad in [
            "bytes 9-5/10",
            "bytes 0-10/10",
            "bytes 0-9",
            "items 0-9/10",
            "bytes +0-9/10",
            "bytes a-9/10",
            "bytes 0-9/",
            "bytes -9/10",
            "bytes 0-99999999999999999999/*",
            "",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn tokens_are_not_shown() {
        let options = HttpOptions { token: Some("hf_secret".into()), ..Default::default() };
        assert!(!format!("{options:?}").contains("secret"));
    }
}
