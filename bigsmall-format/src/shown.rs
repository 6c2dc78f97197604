//! Untrusted text, as a terminal, a log or a page may show it.

use std::borrow::Cow;
use std::fmt;

/// The most characters of a name that an error or a table shows.
const NAME: usize = 200;
/// The most characters of a message that an error shows.
const MESSAGE: usize = 1000;

/// Untrusted text for people: the name of a tensor or a file, the answer of a server, a message of
/// another library. Control characters, line ends, marks that change the direction of writing and
/// everything else that is not visible are escaped. Long text is cut, and says how long it is.
///
/// `Debug` adds quotation marks, and escapes those within the text.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    text: &'a str,
    most: usize,
    is_message: bool,
}

impl<'a> Shown<'a> {
    /// A name.
    #[must_use]
    pub fn name(text: &'a str) -> Self {
        Shown { text, most: NAME, is_message: false }
    }

    /// A message. The queries and passwords of URLs in it are left out: they may be secret.
    #[must_use]
    pub fn message(text: &'a str) -> Self {
        Shown { text, most: MESSAGE, is_message: true }
    }

    /// Any text, of which nothing is left out.
    #[must_use]
    pub fn whole(text: &'a str) -> Self {
        Shown { text, most: usize::MAX, is_message: false }
    }

    /// Whether a character is shown as it is.
    #[must_use]
    pub fn is_plain(c: char) -> bool {
        if c.is_ascii() {
            return matches!(c, ' '..='~');
        }
        // A character that extends the one before it is plain only behind one, so `a` is put there.
        let mut bytes = [b'a', 0, 0, 0, 0];
        let n = c.encode_utf8(&mut bytes[1..]).len();
        std::str::from_utf8(&bytes[..=n]).is_ok_and(|text| text.escape_debug().count() == 2)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, quoted: bool) -> fmt::Result {
        let text = match self.is_message {
            true => without_secrets(self.text),
            false => Cow::Borrowed(self.text),
        };
        let escaped = |f: &mut fmt::Formatter<'_>, part: &str| {
            let mut rest = part;
            let special = |c| !Shown::is_plain(c) || quoted && matches!(c, '"' | '\\');
            while let Some(at) = rest.find(special) {
                let (plain, after) = rest.split_at(at);
                f.write_str(plain)?;
                let mut chars = after.chars();
                chars.next().map_or(Ok(()), |c| match c.escape_debug().count() {
                    // Plain for `char`, and special here: nothing is.
                    1 => write!(f, "{}", c.escape_unicode()),
                    _ => write!(f, "{}", c.escape_debug()),
                })?;
                rest = chars.as_str();
            }
            f.write_str(rest)
        };
        // As many bytes are at least a quarter as many characters.
        if text.len() <= self.most || text.chars().nth(self.most).is_none() {
            return escaped(f, &text);
        }
        let mut chars = text.char_indices();
        let head = chars.nth(self.most / 2).map_or(0, |(at, _)| at);
        let tail = chars.nth_back(self.most / 4).map_or(text.len(), |(at, _)| at);
        escaped(f, text.get(..head).unwrap_or_default())?;
        write!(f, "... ({} bytes) ...", self.text.len())?;
        escaped(f, text.get(tail..).unwrap_or_default())
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        self.write(f, true)?;
        f.write_str("\"")
    }
}

/// `text` with `?...` in place of every URL's query and fragment, and without users and passwords.
#[must_use]
pub fn without_secrets(text: &str) -> Cow<'_, str> {
    if !text.contains("://") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        out.push_str(before);
        let ends = |c: char| c.is_whitespace() || c == '"' || c == '`';
        let (url, after) = url.split_at(url.find(ends).unwrap_or(url.len()));
        rest = after;
        let (place, secret) = url.split_at(url.find(['?', '#']).unwrap_or(url.len()));
        let host = place.find(['/', '\\']).unwrap_or(place.len());
        let host_at = place.get(..host).and_then(|host| host.rfind('@')).map_or(0, |at| at + 1);
        out.push_str(place.get(host_at..).unwrap_or_default());
        if !secret.is_empty() {
            out.push_str("?...");
            // What the sentence around it ends with.
            let end = secret.trim_end_matches([')', ':', ',', ';', '.', '\'', '>']).len();
            out.push_str(secret.get(end..).unwrap_or_default());
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    // D-04, U-01, U-02
    fn only_what_is_visible_is_shown_as_it_is() {
        for (text, expected) in [
            ("model.layers.0", "model.layers.0"),
            ("größe, 大小, שלום, e\u{301}", "größe, 大小, שלום, e\u{301}"),
            ("\u{1b}[31m", "\\u{1b}[31m"),
            ("a\nb\r\tc\0", "a\\nb\\r\\tc\\0"),
            ("\u{7f}\u{9b}31m\u{85}", "\\u{7f}\\u{9b}31m\\u{85}"),
            ("\u{202e}gpj.exe\u{2066}", "\\u{202e}gpj.exe\\u{2066}"),
            ("\u{200b}\u{feff}\u{2028}\u{e0041}", "\\u{200b}\\u{feff}\\u{2028}\\u{e0041}"),
            ("C:\\x \"y\"", "C:\\x \"y\""),
        ] {
            assert_eq!(Shown::name(text).to_string(), expected);
            assert_eq!(Shown::message(text).to_string(), expected);
        }
        assert_eq!(format!("{:?}", Shown::name("C:\\x \"y\"\n")), r#""C:\\x \"y\"\n""#);
        for c in '\0'..=char::MAX {
            let shown = Shown::whole(c.encode_utf8(&mut [0; 4])).to_string();
            assert_eq!(Shown::is_plain(c), shown == c.to_string());
            assert!(!shown.chars().any(char::is_control));
        }
    }

    #[test]
    // U-03
    fn what_is_long_is_cut_and_says_so() {
        let long = "大".repeat(20_000_000);
        for shown in [Shown::name(&long), Shown::message(&long)] {
            let text = shown.to_string();
            assert!(text.len() < 4000, "{}", text.len());
            assert!(text.contains("... (60000000 bytes) ..."), "{text}");
            assert!(text.starts_with("大大") && text.ends_with("大大"));
        }
        let name = "x".repeat(NAME);
        assert_eq!(Shown::name(&name).to_string(), name);
        assert_eq!(Shown::whole(&long).to_string(), long);
    }

    #[test]
    // U-04
    fn queries_and_passwords_of_urls_are_left_out() {
        for (text, expected) in [
            ("https://h/a.bs?X-Sig=s3cret", "https://h/a.bs?..."),
            ("for url (https://h/a?sig=s3cret): broken", "for url (https://h/a?...): broken"),
            ("https://user:s3cret@h:8/a", "https://h:8/a"),
            ("http://user:s3@cret@h?q, then ftp://s3cret@x", "http://h?..., then ftp://x"),
            ("https://h/#s3cret", "https://h/?..."),
            ("https://h/mail@home/x", "https://h/mail@home/x"),
            ("a?b and c@d", "a?b and c@d"),
        ] {
            assert_eq!(Shown::message(text).to_string(), expected);
        }
    }
}
