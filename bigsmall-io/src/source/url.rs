//! Paths that are URLs, and URLs as text.

use std::path::Path;

use bigsmall_format::internal::without_secrets;

/// `path` as a URL, if it is one. Anything else is a path on this machine.
pub(crate) fn url(path: &Path) -> Option<&str> {
    let text = path.to_str()?;
    let (scheme, _) = text.split_once("://")?;
    let letters = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    // A single letter is a drive of Windows.
    (scheme.len() > 1 && scheme.chars().all(letters)).then_some(text)
}

/// A path as errors show it: a URL without its query and its password.
pub(crate) fn shown(path: &Path) -> String {
    url(path).map_or_else(|| path.to_string_lossy().into_owned(), without_query)
}

/// A URL as errors show it. Its query may contain a signature, and before its host may be a
/// password.
pub(crate) fn without_query(url: &str) -> String {
    let url = without_secrets(url);
    url.split('?').next().unwrap_or(&url).to_owned()
}

/// Whether two URLs have the same scheme, host and port. A token is for one of them only. `false`
/// if one is not a URL.
#[cfg(feature = "http")]
pub(crate) fn same_origin(a: &str, b: &str) -> bool {
    let origin = |text| ::url::Url::parse(text).map(|url| url.origin());
    matches!((origin(a), origin(b)), (Ok(a), Ok(b)) if a == b)
}

/// The HTTP URL of `location`, relative to `base`.
#[cfg(feature = "http")]
pub(crate) fn joined(base: &str, location: &str) -> Option<String> {
    if location.is_empty() || location.starts_with('#') {
        return None;
    }
    let mut url = ::url::Url::parse(base).ok()?.join(location).ok()?;
    url.set_fragment(None);
    matches!(url.scheme(), "http" | "https").then(|| url.into())
}

/// A path as it is written in a URL.
#[cfg(feature = "http")]
pub(crate) fn encoded(path: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const RESERVED: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
    utf8_percent_encode(path, RESERVED).to_string()
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
    // U-04
    fn what_may_be_secret_in_a_url_is_not_shown() {
        for url in ["https://u:p4ss@h/a/m.bs?X-Sig=s3cret", "https://h/a/m.bs#s3cret"] {
            assert_eq!(shown(Path::new(url)), "https://h/a/m.bs");
        }
        assert_eq!(shown(Path::new("a?b#c")), "a?b#c");
    }

    #[test]
    fn a_token_is_for_one_scheme_host_and_port() {
        let same = same_origin;
        assert!(same("https://h/a", "https://H:443/b?c"));
        assert!(same("http://h/a", "http://u:p@h:80"));
        assert!(!same("https://h/a", "http://h/a"));
        assert!(!same("https://h/a", "https://h:8443/a"));
        assert!(!same("https://h/a", "https://h.evil.org/a"));
        assert!(!same("https://h/a", "https://h@evil.org/a"));
        assert!(!same("https://h/a", "https://evil.org\\@h/a"));
        assert!(!same("not a URL", "not a URL"));
    }
}
