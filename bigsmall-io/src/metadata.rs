//! The `__metadata__` of safetensors headers.

use std::collections::BTreeMap;
use std::fmt;

use bigsmall_format::Rule;
use serde_core::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, ErrorKind, Result};
use crate::json::Text;
use crate::limits::{RAISE, raised};

/// The most entries of one file's metadata: as many as a file has tensors.
const MAX_KEYS: u64 = 1 << 20;

/// The `__metadata__` of a parsed header, by key. Empty if there is none.
///
/// # Errors
/// [`ErrorKind::MetadataTooLarge`] for more than 1,048,576 keys; [`Rule::HeaderSyntax`], which no
/// parsed header has.
pub fn metadata(header_json: &[u8]) -> Result<BTreeMap<String, String>> {
    let mut found = Found::default();
    let mut de = serde_json::Deserializer::from_slice(header_json);
    let parsed = Top(&mut found).deserialize(&mut de);
    if found.n_keys > raised(MAX_KEYS) {
        return Err(Error::new(ErrorKind::MetadataTooLarge)
            .expected(format!("at most {} keys {RAISE}", raised(MAX_KEYS)))
            .found(found.n_keys));
    }
    parsed.map_err(|e| Error::new(Rule::HeaderSyntax).caused_by(e))?;
    Ok(found.entries)
}

#[derive(Default)]
struct Found {
    entries: BTreeMap<String, String>,
    n_keys: u64,
}

/// The whole header.
struct Top<'a>(&'a mut Found);

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = ();

    fn deserialize<D: serde_core::Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(is_metadata) =
            map.next_key_seed(Text(|key: &str| Ok(key == "__metadata__")))?
        {
            match is_metadata {
                true => map.next_value_seed(Strings(self.0))?,
                false => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// An object of strings, or `null`.
struct Strings<'a>(&'a mut Found);

impl<'de> DeserializeSeed<'de> for Strings<'_> {
    type Value = ();

    fn deserialize<D: serde_core::Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strings<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_unit<E: serde_core::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let most = raised(MAX_KEYS);
        // Counted before they are kept.
        while let Some(key) = map.next_key_seed(Text(|key: &str| Ok(key.to_owned())))? {
            let value: String = map.next_value()?;
            self.0.n_keys += 1;
            if self.0.n_keys <= most {
                self.0.entries.insert(key, value);
            }
        }
        match self.0.n_keys <= most {
            true => Ok(()),
            false => Err(A::Error::custom("too many keys")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    // M-09
    fn metadata_of_too_many_keys_is_refused() {
        let header = |n: u64| {
            let keys: Vec<String> = (0..n).map(|i| format!("\"{i}\":\"\"")).collect();
            format!("{{\"a\":{{}},\"__metadata__\":{{{}}}}}", keys.join(","))
        };
        assert_eq!(metadata(header(MAX_KEYS).as_bytes()).unwrap().len() as u64, MAX_KEYS);
        let error = metadata(header(MAX_KEYS + 2).as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MetadataTooLarge);
        let told = error.to_string();
        assert!(told.contains("1048576") && told.contains("1048578"), "{told}");
        assert_eq!(metadata(br#"{"__metadata__":null}"#).unwrap().len(), 0);
        let found = metadata(br#"{"\u005f_metadata__":{"\u0061":"b"},"x":[{}]}"#).unwrap();
        assert_eq!(found, BTreeMap::from([("a".into(), "b".into())]));
    }
}
