//! Answers of servers: status, length, range (RFC 9110, section 14), body.

use std::fmt;
use std::io::Read as _;
use std::time::Duration;

use ureq::Body;
use ureq::http::{HeaderMap, Response, header};

use crate::error::{Error, ErrorKind, Result};

/// Why a request failed, and whether it may be tried again.
pub(crate) enum Failure {
    Final(Error),
    Passing(Error, Option<Duration>),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Final(error.into())
    }
}

pub(crate) fn remote(expected: impl fmt::Display, found: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Remote).expected(expected).found(found)
}

/// An error before there was an answer.
pub(crate) fn broken(error: ureq::Error) -> Failure {
    let passing = matches!(
        error,
        ureq::Error::Io(_)
            | ureq::Error::Timeout(_)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::BodyStalled
            | ureq::Error::Protocol(_)
    );
    let error = Error::from(error.into_io());
    if passing { Failure::Passing(error, None) } else { Failure::Final(error) }
}

/// An error in the middle of a body.
pub(crate) fn cut(error: std::io::Error) -> Failure {
    Failure::Passing(Error::from(error), None)
}

/// How long the server asks to wait.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    text(headers, header::RETRY_AFTER)?.parse().ok().map(Duration::from_secs)
}

pub(crate) fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// A value that changes when the file changes: its ETag, or its date.
pub(crate) fn validator(headers: &HeaderMap) -> Option<String> {
    let found = headers.get(header::ETAG).or_else(|| headers.get(header::LAST_MODIFIED));
    // An ETag may have any bytes from 0x80 on.
    found.map(|value| value.as_bytes().escape_ascii().to_string())
}

/// A parsed `Content-Range`; `None` for `*`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    /// First and last byte.
    pub(crate) bytes: Option<(u64, u64)>,
    /// Length of the file.
    pub(crate) len: Option<u64>,
}

pub(crate) fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
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

/// The body must be the file's bytes, without a content encoding.
pub(crate) fn check_plain(headers: &HeaderMap) -> Result<()> {
    match text(headers, header::CONTENT_ENCODING) {
        None | Some("identity" | "") => Ok(()),
        Some(other) => {
            Err(remote("a body without a content encoding", format!("one encoded as {other:?}")))
        }
    }
}

/// Reads the body of an answer. It must be exactly as long as `buf`.
pub(crate) fn body_into(
    answer: Response<Body>,
    buf: &mut [u8],
) -> std::result::Result<(), Failure> {
    if let Some(len) = text(answer.headers(), header::CONTENT_LENGTH)
        && len.trim() != buf.len().to_string()
    {
        return Err(remote(format!("a body of {} bytes", buf.len()), len).into());
    }
    let mut body = answer.into_body().into_reader();
    body.read_exact(buf).map_err(cut)?;
    // Reading to the end also lets the connection be reused.
    match body.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(remote(format!("a body of {} bytes", buf.len()), "a longer one").into()),
        Err(error) => Err(cut(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    //
    fn an_etag_of_any_bytes_tells_files_apart() {
        let etag = |bytes: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ETAG, ureq::http::HeaderValue::from_bytes(bytes).unwrap());
            headers.insert(header::LAST_MODIFIED, "today".parse().unwrap());
            validator(&headers).unwrap()
        };
        assert_eq!(etag(b"\"a-1\""), etag(b"\"a-1\""));
        assert_ne!(etag(b"\"\xe9\""), etag(b"\"\xe8\""));
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
}
