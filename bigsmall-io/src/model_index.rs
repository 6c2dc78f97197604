//! The index file of a model in several shards: `model.safetensors.index.json` and its twin
//! `model.bs.index.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use bigsmall_format::internal::{len_of, read_at};
use bigsmall_format::{Limits, ReadAt, TensorSpec};
use serde_core::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::source::listing::check_name;

/// Shards of one model at the most.
const MAX_SHARDS: usize = 1 << 16;

/// Which shard contains which tensor.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ModelIndex {
    /// Pairs of tensor and shard, sorted by tensor.
    pub(crate) weight_map: Vec<(String, String)>,
}

impl ModelIndex {
    /// Reads an index file and returns its text and its contents. Every shard's name is checked.
    pub(crate) fn read(source: &dyn ReadAt) -> Result<(String, Self)> {
        let limit = Limits::default().max_header_bytes;
        let len = len_of(source)?;
        if len > limit {
            return Err(Error::new(ErrorKind::ModelIndexTooLarge)
                .expected(format!("at most {limit} bytes"))
                .found(len));
        }
        let mut text = vec![0; len as usize];
        read_at(source, 0, &mut text)?;
        let text = String::from_utf8(text).map_err(|e| wrong(e.to_string()))?;
        let index = Self::parse(&text)?;
        Ok((text, index))
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut de = serde_json::Deserializer::from_str(text);
        let parsed = Top.deserialize(&mut de);
        let mut weight_map =
            parsed.and_then(|found| de.end().map(|()| found)).map_err(|e| wrong(e.to_string()))?;
        weight_map.sort();
        if let Some(pair) = weight_map.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Error::new(ErrorKind::ModelTensor)
                .in_tensor(&pair[0].0)
                .found("two entries"));
        }
        let index = ModelIndex { weight_map };
        let shards = index.shards();
        if shards.len() > MAX_SHARDS {
            return Err(Error::new(ErrorKind::TooManyShards)
                .expected(format!("at most {MAX_SHARDS}"))
                .found(shards.len()));
        }
        shards.into_iter().try_for_each(check_name)?;
        Ok(index)
    }

    /// The shards' names, each once.
    pub(crate) fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.iter().map(|(_, shard)| shard.as_str()).collect()
    }

    /// What the index file `name` says of each of its shards, by their names in the folder.
    pub(crate) fn said<'a>(&'a self, name: &'a Path) -> BTreeMap<PathBuf, Said<'a>> {
        let beside = name.parent().unwrap_or(Path::new(""));
        let mut by_shard: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (tensor, shard) in &self.weight_map {
            by_shard.entry(shard).or_default().insert(tensor);
        }
        let said = |(shard, tensors)| (beside.join(shard), Said { index: name, shard, tensors });
        by_shard.into_iter().map(said).collect()
    }

    /// Compares the index file `name` with the tensors of its shards, as `tensors` returns them by
    /// path; `None` for one that is not there.
    pub(crate) fn check(
        &self,
        name: &Path,
        tensors: impl Fn(&Path) -> Result<Option<Vec<TensorSpec>>>,
    ) -> Result<()> {
        self.said(name).into_iter().try_for_each(|(path, said)| {
            match tensors(&path).in_file(&path)? {
                Some(tensors) => said.check(&tensors),
                None => {
                    let tensor = said.tensors.first().copied().unwrap_or_default();
                    Err(said.wrong(tensor, &format!("names {:?}, which is missing", said.shard)))
                }
            }
        })
    }

    /// The same with the shards' ending `from` replaced by `to`.
    pub(crate) fn renamed(&self, from: &str, to: &str) -> Self {
        let rename = |name: &str| match name.strip_suffix(from) {
            Some(stem) => format!("{stem}{to}"),
            None => name.to_owned(),
        };
        let weight_map = self.weight_map.iter().map(|(t, s)| (t.clone(), rename(s))).collect();
        ModelIndex { weight_map }
    }

    /// An index file as Hugging Face's programs write it. `total_size`: the bytes of all tensors.
    pub(crate) fn to_json(&self, total_size: u64) -> String {
        let map = self.weight_map.iter().cloned().map(|(t, s)| (t, s.into()));
        let map: serde_json::Map<String, serde_json::Value> = map.collect();
        let metadata = serde_json::json!({ "total_size": total_size });
        let value = serde_json::json!({ "metadata": metadata, "weight_map": map });
        format!("{value:#}\n")
    }

    fn map_to_json(&self) -> String {
        let map = self.weight_map.iter().cloned().map(|(t, s)| (t, s.into()));
        let map: serde_json::Map<String, serde_json::Value> = map.collect();
        serde_json::json!({ "weight_map": map }).to_string()
    }
}

/// What an index file says of one of its shards.
pub(crate) struct Said<'a> {
    index: &'a Path,
    shard: &'a str,
    tensors: BTreeSet<&'a str>,
}

impl Said<'_> {
    /// Compares it with the tensors of the shard: all of them must be in the index file, and no
    /// other for that shard.
    pub(crate) fn check(mut self, tensors: &[TensorSpec]) -> Result<()> {
        let shard = self.shard;
        if let Some(spec) = tensors.iter().find(|spec| !self.tensors.remove(spec.name())) {
            return Err(self.wrong(spec.name(), &format!("does not say that it is in {shard:?}")));
        }
        match self.tensors.first() {
            None => Ok(()),
            Some(missing) => {
                Err(self.wrong(missing, &format!("says that it is in {shard:?}, but it is not")))
            }
        }
    }

    fn wrong(&self, tensor: &str, what: &str) -> Error {
        let error = Error::new(ErrorKind::ModelTensor).in_file(self.index).in_tensor(tensor);
        error.found(format!("the index file {what}"))
    }
}

/// The text of an index file, with the ending `from` of the shards' names replaced by `to`. `true`
/// if translating back gives the identical text; otherwise the original must be kept beside it.
pub(crate) fn translate(text: &str, from: &str, to: &str) -> Result<(String, bool)> {
    let index = ModelIndex::parse(text)?;
    let (from_end, to_end) = (format!("{from}\""), format!("{to}\""));
    let translated = text.replace(&from_end, &to_end);
    let wanted = index.renamed(from, to);
    let same = ModelIndex::parse(&translated).is_ok_and(|found| found == wanted);
    if same && translated.replace(&to_end, &from_end) == text {
        return Ok((translated, true));
    }
    Ok((if same { translated } else { wanted.map_to_json() }, false))
}

fn wrong(found: String) -> Error {
    Error::new(ErrorKind::ModelIndex).found(found)
}

/// The whole file: an object that has a `weight_map`.
struct Top;

impl<'de> DeserializeSeed<'de> for Top {
    type Value = Vec<(String, String)>;

    fn deserialize<D: serde_core::Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a weight_map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != "weight_map" {
                map.next_value::<IgnoredAny>()?;
            } else if found.replace(map.next_value_seed(WeightMap)?).is_some() {
                return Err(A::Error::custom("weight_map appears twice"));
            }
        }
        found.ok_or_else(|| A::Error::custom("there is no weight_map"))
    }
}

/// An object from tensors to shards. Duplicate keys stay in the result.
struct WeightMap;

impl<'de> DeserializeSeed<'de> for WeightMap {
    type Value = Vec<(String, String)>;

    fn deserialize<D: serde_core::Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for WeightMap {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from tensors to shards")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(entry) = map.next_entry()? {
            found.push(entry);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    // F-01, F-02, F-03, F-04, F-05, F-06
    fn names_that_lead_out_are_refused() {
        let bad = [
            "../s.bs",
            "/s.bs",
            "C:\\s.bs",
            "C:s.bs",
            "\\\\host\\s.bs",
            "",
            ".",
            "..",
            "a/../s.bs",
            "a//s.bs",
            "./s.bs",
            "s.bs/",
            "a\\..\\s.bs",
            "s\0.bs",
            "//host/s.bs",
            ".git/s.bs",
            "a/.GIT/s.bs",
        ];
        for name in bad {
            let text = serde_json::json!({"weight_map": {"t": name}}).to_string();
            assert_eq!(
                ModelIndex::parse(&text).unwrap_err().kind(),
                ErrorKind::ModelPath,
                "{name:?}"
            );
        }
        for name in ["s.bs", "model-00001-of-00002.bs", "a/b.bs", "..s", "ä.bs"] {
            let text = serde_json::json!({"weight_map": {"t": name}}).to_string();
            assert!(ModelIndex::parse(&text).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn malformed_index_files_are_refused() {
        let deep = format!("{{\"metadata\":{}", "[".repeat(200_000));
        let cases = [
            ("", ErrorKind::ModelIndex),
            ("[]", ErrorKind::ModelIndex),
            ("{}", ErrorKind::ModelIndex),
            ("{\"weight_map\":{}}x", ErrorKind::ModelIndex),
            ("{\"weight_map\":{\"a\":1}}", ErrorKind::ModelIndex),
            ("{\"weight_map\":[]}", ErrorKind::ModelIndex),
            ("{\"weight_map\":{},\"weight_map\":{}}", ErrorKind::ModelIndex),
            ("{\"weight_map\":{\"t\":\"a.bs\",\"t\":\"b.bs\"}}", ErrorKind::ModelTensor),
            ("{\"weight_map\":{\"t\":\"a.bs\",\"\\u0074\":\"a.bs\"}}", ErrorKind::ModelTensor),
            (&deep, ErrorKind::ModelIndex),
        ];
        for (text, rule) in cases {
            let shown = &text[..text.len().min(60)];
            assert_eq!(ModelIndex::parse(text).unwrap_err().kind(), rule, "{shown}");
        }
        let told = |text| ModelIndex::parse(text).unwrap_err().to_string();
        assert!(told("[]").contains("an object with a weight_map"));
        assert!(told("{\"weight_map\":[]}").contains("an object from tensors to shards"));
        assert!(ModelIndex::parse("{\"weight_map\":{},\"other\":[1,{\"a\":null}]}").is_ok());
    }

    #[test]
    // F-14
    fn a_million_shards_are_over_the_limit() {
        let parse = |shards: usize| {
            let entries: Vec<String> =
                (0..shards).map(|i| format!("\"t{i}\":\"{i}.bs\"")).collect();
            ModelIndex::parse(&format!("{{\"weight_map\":{{{}}}}}", entries.join(",")))
        };
        assert_eq!(parse(1_000_000).unwrap_err().kind(), ErrorKind::TooManyShards);
        assert_eq!(parse(65_537).unwrap_err().kind(), ErrorKind::TooManyShards);
        assert_eq!(parse(65_536).unwrap().shards().len(), 65_536);
    }

    #[test]
    fn a_file_over_the_limit_is_not_read() {
        struct Zeros(u64);
        impl ReadAt for Zeros {
            fn byte_len(&self) -> std::io::Result<u64> {
                Ok(self.0)
            }
            fn read_exact_at(&self, _: u64, _: &mut [u8]) -> std::io::Result<()> {
                assert!(self.0 <= 100_000_000, "read all the same");
                Ok(())
            }
        }
        let rule = |len| ModelIndex::read(&Zeros(len)).unwrap_err().kind();
        assert_eq!(rule(100_000_000), ErrorKind::ModelIndex);
        assert_eq!(rule(100_000_001), ErrorKind::ModelIndexTooLarge);
        assert_eq!(rule(u64::MAX), ErrorKind::ModelIndexTooLarge);
    }

    #[test]
    fn translation_is_undone_exactly_or_says_that_it_is_not() {
        let text = "{\n \"metadata\": {\"total_size\": 7},\n \"weight_map\": \
                    {\"a\": \"x-1.safetensors\", \"b\":\"x-2.safetensors\"}}\n";
        let (there, exact) = translate(text, ".safetensors", ".bs").unwrap();
        assert!(exact && there.contains("\"x-1.bs\"") && !there.contains("safetensors"));
        assert_eq!(translate(&there, ".bs", ".safetensors").unwrap().0, text);
        // A tensor whose own name has the ending, a foreign value with the new ending, an escaped
        // letter in the ending.
        for text in [
            "{\"weight_map\":{\"a.safetensors\":\"x.safetensors\"}}",
            "{\"weight_map\":{\"a\":\"x.safetensors\"},\"note\":\"y.bs\"}",
            "{\"weight_map\":{\"a\":\"x.safetensor\\u0073\"}}",
        ] {
            let (there, exact) = translate(text, ".safetensors", ".bs").unwrap();
            assert!(!exact, "{text}");
            assert_eq!(ModelIndex::parse(&there).unwrap().weight_map[0].1, "x.bs", "{text}");
        }
    }
}
