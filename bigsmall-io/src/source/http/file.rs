//! A file on an HTTP server that supports range requests.

use std::fmt;
use std::io::Read as _;
use std::ops::Range;
use std::sync::Arc;

use bigsmall_format::ReadAt;
use bigsmall_format::internal::zeroed;
use ureq::http::header;

use crate::error::{Error, ErrorKind, Result};
use crate::progress::Stop;
use crate::source::http::answer::{
    ContentRange, Failure, body_into, check_plain, content_range, cut, remote, text, validator,
};
use crate::source::http::client::{Address, Client, Want};
use crate::source::http::options::HttpOptions;
use crate::source::tail::{TAIL, Tail};
use crate::source::url::without_query;

/// Fetched from the end if opening had to ask for the length first. It saves a fourth request.
const LONG_TAIL: u64 = 4 << 20;

/// A file on an HTTP server. Opening takes one request if the server supports ranges counted from
/// the end, otherwise two or three. The last 256 KiB are kept in memory (64 MiB of all open files
/// together). Reads fetch only the requested bytes, with several requests at a time.
///
/// Every answer's ETag (or date) and length are compared with those of the opened file. Where
/// redirects led to is asked directly until it fails, as an address that expires does; then they
/// are followed anew.
///
/// ```no_run
/// use bigsmall_io::{HttpFile, HttpOptions, Model};
/// let file = HttpFile::open("https://example.org/model.bs", &HttpOptions::default())?;
/// let norm = Model::from_source(file)?.tensor("model.norm.weight")?;
/// # Ok::<(), bigsmall_io::Error>(())
/// ```
pub struct HttpFile {
    client: Arc<Client>,
    address: Arc<Address>,
    validator: Option<String>,
    tail: Tail,
}

impl HttpFile {
    /// Opens the file at `url`.
    ///
    /// # Errors
    /// [`ErrorKind::Remote`] where the server refuses, knows no ranges or contradicts itself;
    /// [`ErrorKind::Io`] where it cannot be reached.
    pub fn open(url: &str, options: &HttpOptions) -> Result<Self> {
        Self::open_with(&Client::new(options.clone(), Stop::default()), url)
    }

    pub(crate) fn open_with(client: &Arc<Client>, url: &str) -> Result<Self> {
        let named = |e: Error| e.in_file(without_query(url));
        let address = Arc::new(Address::new(url));
        client.tried(move |client| Self::try_open(client, &address)).map_err(named)
    }

    fn try_open(
        client: &Arc<Client>,
        address: &Arc<Address>,
    ) -> std::result::Result<Self, Failure> {
        let file = |byte_len, validator, bytes| HttpFile {
            client: Arc::clone(client),
            address: Arc::clone(address),
            validator,
            tail: Tail::new(byte_len, bytes),
        };
        let answer = client.send(address, Want::Last(TAIL))?;
        let headers = answer.headers();
        let status = answer.status().as_u16();
        // The ETag of an error page says nothing about the file.
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
            // The whole file: the server does not support ranges from the end, perhaps none at all.
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
                _ => Self::asked(client, address)?,
            },
            400 | 405 | 501 => Self::asked(client, address)?,
            _ => return Err(client.refusal(answer, "a file")),
        };
        let mut opened = file(byte_len, known, Vec::new());
        let kept = byte_len.min(tail_len);
        if kept > 0 {
            let (tail, found) = opened.range(byte_len - kept, kept as usize).fetch(client)?;
            opened.validator = opened.validator.or(found);
            opened.tail = Tail::new(byte_len, tail);
        }
        Ok(opened)
    }

    /// Asks for the length by a HEAD request. Returns it, and how many bytes of the end to fetch
    /// next.
    fn asked(client: &Client, address: &Address) -> std::result::Result<(u64, u64), Failure> {
        let answer = client.send(address, Want::Head)?;
        if answer.status() != 200 {
            return Err(client.refusal(answer, "a file"));
        }
        check_plain(answer.headers())?;
        let len =
            text(answer.headers(), header::CONTENT_LENGTH).and_then(|n| n.trim().parse().ok());
        let len = len.ok_or_else(|| remote("a Content-Length", "none"))?;
        Ok((len, LONG_TAIL))
    }

    /// The request for a range within the file.
    fn range(&self, offset: u64, len: usize) -> Wanted {
        let (address, validator) = (Arc::clone(&self.address), self.validator.clone());
        Wanted { address, validator, byte_len: self.tail.byte_len, offset, len }
    }
}

/// A range of a file, and what the answer must agree with. Whoever waits for it may have given up
/// when it comes.
struct Wanted {
    address: Arc<Address>,
    validator: Option<String>,
    /// The length of the file.
    byte_len: u64,
    offset: u64,
    len: usize,
}

impl Wanted {
    /// Returns the bytes, and the answer's ETag or date.
    fn fetch(&self, client: &Client) -> std::result::Result<(Vec<u8>, Option<String>), Failure> {
        let offset = self.offset;
        let last = offset + self.len as u64 - 1;
        let answer = client.send(&self.address, Want::Bytes(offset, last))?;
        let headers = answer.headers();
        let found = validator(headers);
        let changed = || Error::new(ErrorKind::SourceChanged).at(offset);
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
                if let Some(len) = len.filter(|&n| n != self.byte_len) {
                    return Err(changed().expected(self.byte_len).found(len).into());
                }
                if range.and_then(|r| r.bytes) != Some((offset, last)) {
                    let found = text(headers, header::CONTENT_RANGE).unwrap_or("no Content-Range");
                    return Err(remote(format!("bytes {offset}-{last}"), found).into());
                }
            }
            200 if (offset, last + 1) == (0, self.byte_len) => check_plain(headers)?,
            200 => {
                let found = "the whole file: the server does not support ranges";
                return Err(remote(format!("bytes {offset}-{last}"), found).into());
            }
            416 => return Err(changed().found("a range past its end").into()),
            _ => return Err(client.refusal(answer, "a range")),
        }
        let mut bytes = zeroed(self.len as u64)?;
        body_into(answer, &mut bytes)?;
        Ok((bytes, found))
    }
}

impl fmt::Debug for HttpFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpFile")
            .field("url", &without_query(&self.address.url))
            .field("byte_len", &self.tail.byte_len)
            .finish_non_exhaustive()
    }
}

impl ReadAt for HttpFile {
    fn byte_len(&self) -> std::io::Result<u64> {
        Ok(self.tail.byte_len)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let fetch = |offset, piece: &mut [u8]| {
            let wanted = self.range(offset, piece.len());
            let fetched = self.client.tried(move |client| wanted.fetch(client));
            let (bytes, _) = fetched.map_err(|e| e.at(offset))?;
            piece.copy_from_slice(&bytes);
            Ok(())
        };
        let named = |e: Error| e.in_file(without_query(&self.address.url)).into();
        self.tail.read_exact_at(offset, buf, fetch).map_err(named)
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        self.tail.bytes_at(range)
    }
}
