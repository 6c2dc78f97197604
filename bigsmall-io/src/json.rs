//! Lines of JSON for terminals and logs, and texts in JSON that others wrote.

use std::fmt;
use std::io::{self, Write};

use bigsmall_format::internal::Shown;
use serde_core::Deserializer;
use serde_core::Serialize;
use serde_core::de::{DeserializeSeed, Error, MapAccess, Visitor};
use serde_json::ser::Formatter;

/// A line of JSON. What a terminal would not show as it is, is escaped: every parser of JSON reads
/// the same text.
pub fn json_line(value: &impl Serialize) -> String {
    let mut line = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut line, Visible);
    // Writing a value to memory does not fail.
    let _ = value.serialize(&mut serializer);
    line.push(b'\n');
    String::from_utf8_lossy(&line).into_owned()
}

struct Visible;

impl Formatter for Visible {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        to: &mut W,
        text: &str,
    ) -> io::Result<()> {
        let mut rest = text;
        while let Some(at) = rest.find(|c| !Shown::is_plain(c)) {
            let (plain, after) = rest.split_at(at);
            to.write_all(plain.as_bytes())?;
            let mut chars = after.chars();
            if let Some(c) = chars.next() {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(to, "\\u{unit:04x}")?;
                }
            }
            rest = chars.as_str();
        }
        to.write_all(rest.as_bytes())
    }
}

/// A text, which is looked at where it lies, and not kept.
pub(crate) struct Text<F>(pub(crate) F);

impl<'de, T, F: FnOnce(&str) -> Result<T, String>> DeserializeSeed<'de> for Text<F> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<T, D::Error> {
        d.deserialize_str(self)
    }
}

impl<T, F: FnOnce(&str) -> Result<T, String>> Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
}

/// What is read of a JSON object. Nothing else of it is kept: a text of others can have millions of
/// values, each of which would take far more memory than its text.
pub(crate) trait Fields {
    /// What errors say was expected.
    const EXPECTED: &'static str;

    /// Takes the value of a key from `map`.
    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error>;
}

/// An object.
pub(crate) struct Object<'a, T>(pub(crate) &'a mut T);

impl<'de, T: Fields> DeserializeSeed<'de> for Object<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de, T: Fields> Visitor<'de> for Object<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            self.0.field(&key, &mut map)?;
        }
        Ok(())
    }
}

/// An object, or `null`, which has no fields.
pub(crate) struct OrNull<'a, T>(pub(crate) Object<'a, T>);

impl<'de, T: Fields> DeserializeSeed<'de> for OrNull<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_option(self)
    }
}

impl<'de, T: Fields> Visitor<'de> for OrNull<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} or null", T::EXPECTED)
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        self.0.deserialize(d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    // U-01, U-02
    fn every_character_is_seen_or_escaped_and_comes_back() {
        let all: String =
            ('\0'..=char::MAX).step_by(7).chain("\u{7f}\u{9b}\u{202e}".chars()).collect();
        let line = json_line(&serde_json::json!({ &all: [&all] }));
        assert!(line.trim_end().chars().all(Shown::is_plain));
        let back: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(back[&all][0], all);
    }
}
