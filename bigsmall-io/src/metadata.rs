//! The `__metadata__` of safetensors headers.

use std::collections::BTreeMap;

use bigsmall_format::Rule;
use serde_core::de::{DeserializeSeed as _, IgnoredAny, MapAccess};

use crate::error::{Error, ErrorKind, Result};
use crate::json::{Fields, Object, OrNull};
use crate::limits::{RAISE, raised};

/// The most entries of one file's metadata: as many as a file has tensors.
const MAX_KEYS: u64 = 1 << 20;

/// The `__metadata__` of a parsed header, by key. Empty if there is none.
///
/// # Errors
/// [`ErrorKind::MetadataTooLarge`] for more than 1,048,576 keys; [`Rule::HeaderSyntax`], which no
/// parsed header has.
pub fn metadata(header_json: &[u8]) -> Result<BTreeMap<String, String>> {
    let mut found = Found { most: raised(MAX_KEYS), ..Found::default() };
    let mut de = serde_json::Deserializer::from_slice(header_json);
    let parsed = Object(&mut found).deserialize(&mut de);
    if found.n_keys > found.most {
        return Err(Error::new(ErrorKind::MetadataTooLarge)
            .expected(format!("at most {} keys {RAISE}", found.most))
            .found(found.n_keys));
    }
    parsed.map_err(|e| Error::new(Rule::HeaderSyntax).caused_by(e))?;
    Ok(found.entries)
}

/// The header.
#[derive(Default)]
struct Found {
    entries: BTreeMap<String, String>,
    n_keys: u64,
    most: u64,
}

impl Fields for Found {
    const EXPECTED: &'static str = "an object";

    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "__metadata__" => map.next_value_seed(OrNull(Object(&mut Strings(self)))),
            _ => map.next_value::<IgnoredAny>().map(drop),
        }
    }
}

/// The metadata.
struct Strings<'a>(&'a mut Found);

impl Fields for Strings<'_> {
    const EXPECTED: &'static str = "an object of strings";

    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let value: String = map.next_value()?;
        // Counted before they are kept.
        self.0.n_keys += 1;
        if self.0.n_keys <= self.0.most {
            self.0.entries.insert(key.to_owned(), value);
        }
        Ok(())
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
