//! Paths that are URLs, and URLs as text.

use std::path::Path;

/// The URL that `path` is, where it is one; anything else is a path on this machine.
pub(crate) fn url(path: &Path) -> Option<&str> {
    let text = path.to_str()?;
    let (scheme, _) = text.split_once("://")?;
    let letters = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    // A single letter is a drive of Windows.
    (scheme.len() > 1 && scheme.chars().all(letters)).then_some(text)
}

/// A path as errors show it: without a query, which may be a signature.
pub(crate) fn shown(path: &Path) -> &str {
    let text = path.to_str().unwrap_or_default();
    if url(path).is_some() { text.split('?').next().unwrap_or(text) } else { text }
}

/// Scheme, host and port: what a token is for.
#[cfg(feature = "http")]
pub(crate) fn origin(url: &str) -> Option<(String, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let scheme = scheme.to_ascii_lowercase();
    let host = host.to_ascii_lowercase();
    let standard = if scheme == "https" { ":443" } else { ":80" };
    Some((scheme, host.strip_suffix(standard).unwrap_or(&host).to_owned()))
}

/// The URL that `location` means on a page of `base`.
#[cfg(feature = "http")]
pub(crate) fn joined(base: &str, location: &str) -> Option<String> {
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

/// A path as a URL has it.
#[cfg(feature = "http")]
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

#[cfg(all(test, feature = "http"))]
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
}
