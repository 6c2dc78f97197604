//! The index file of a model in several shards: `model.safetensors.index.json` and its twin
//! `model.bs.index.json`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use bigsmall_format::internal::{len_of, read_at, zeroed};
use bigsmall_format::{Limits, ReadAt, TensorSpec};
use serde_core::de::{DeserializeSeed as _, Error as _, IgnoredAny, MapAccess};

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::json::{Fields, Object, Text};
use crate::limits::{RAISE, raised};
use crate::source::listing::check_name;

/// Shards of one model at the most.
const MAX_SHARDS: usize = 1 << 16;

/// How many bytes of index files a job may read: as many files as there are, one behind the other.
#[derive(Default)]
pub(crate) struct IndexBytes(u64);

impl IndexBytes {
    fn add(&mut self, len: u64) -> Result<()> {
        let limit = raised(Limits::default().max_header_bytes);
        self.0 = self.0.saturating_add(len);
        if self.0 > limit {
            return Err(Error::new(ErrorKind::ModelIndexTooLarge)
                .expected(format!("at most {limit} bytes of index files together {RAISE}"))
                .found(self.0));
        }
        Ok(())
    }
}

/// Which shard contains which tensor. It takes the names of tensors and shards, and 12 bytes for
/// each tensor.
#[derive(Debug, Default)]
pub(crate) struct ModelIndex {
    /// The names of all tensors, one behind the other.
    names: String,
    shards: Vec<String>,
    /// Sorted by tensor.
    entries: Vec<Entry>,
}

/// A tensor, by its place in the names, and its shard.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u32,
    len: u32,
    shard: u32,
}

impl ModelIndex {
    /// Reads an index file and returns its text and its contents. Every shard's name is checked.
    pub(crate) fn read(source: &dyn ReadAt, bytes: &mut IndexBytes) -> Result<(String, Self)> {
        let len = len_of(source)?;
        bytes.add(len)?;
        let mut text = zeroed(len)?;
        read_at(source, 0, &mut text)?;
        let text = String::from_utf8(text).map_err(|e| wrong(e.to_string()))?;
        let index = Self::parse(&text)?;
        Ok((text, index))
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut building = Building::default();
        let mut de = serde_json::Deserializer::from_str(text);
        let parsed = Object(&mut building).deserialize(&mut de).and_then(|()| de.end());
        if building.too_many {
            return Err(Error::new(ErrorKind::TooManyShards)
                .expected(format!("at most {MAX_SHARDS}"))
                .found(format!("{} or more", MAX_SHARDS + 1)));
        }
        parsed.map_err(|e| wrong(e.to_string()))?;
        if !building.has_map {
            return Err(wrong("there is no weight_map".into()));
        }
        building.index.sorted()
    }

    /// The index of a model of these tensors and shards.
    pub(crate) fn of<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut building = Building::default();
        for (tensor, shard) in pairs {
            building.tensor(tensor).and_then(|()| building.shard(shard)).map_err(wrong)?;
        }
        building.index.sorted()
    }

    fn sorted(self) -> Result<Self> {
        let ModelIndex { names, shards, mut entries } = self;
        let name = |entry: &Entry| &names[entry.at as usize..][..entry.len as usize];
        entries.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        if let Some(pair) = entries.windows(2).find(|pair| name(&pair[0]) == name(&pair[1])) {
            return Err(Error::new(ErrorKind::ModelTensor)
                .in_tensor(name(&pair[0]))
                .found("two entries"));
        }
        let index = ModelIndex { names, shards, entries };
        index.shards().into_iter().try_for_each(check_name)?;
        Ok(index)
    }

    fn pair(&self, entry: &Entry) -> (&str, &str) {
        let name = &self.names[entry.at as usize..][..entry.len as usize];
        (name, &self.shards[entry.shard as usize])
    }

    fn name(&self, place: u32) -> &str {
        self.pair(&self.entries[place as usize]).0
    }

    /// Pairs of tensor and shard, sorted by tensor.
    pub(crate) fn pairs(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.entries.iter().map(|entry| self.pair(entry))
    }

    /// The shards' names, each once.
    pub(crate) fn shards(&self) -> BTreeSet<&str> {
        self.shards.iter().map(String::as_str).collect()
    }

    /// What the index file `name` says of each of its shards, by their names in the folder.
    pub(crate) fn said<'a>(&'a self, name: &'a Path) -> BTreeMap<PathBuf, Said<'a>> {
        let beside = name.parent().unwrap_or(Path::new(""));
        let mut by_shard: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for (place, entry) in self.entries.iter().enumerate() {
            by_shard.entry(self.pair(entry).1).or_default().push(place as u32);
        }
        let said = |(shard, tensors)| {
            (beside.join(shard), Said { index: self, file: name, shard, tensors })
        };
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
                    let tensor = said.tensors.first().map_or("", |place| self.name(*place));
                    Err(said.wrong(tensor, &format!("names {:?}, which is missing", said.shard)))
                }
            }
        })
    }

    /// The same with the shards' ending `from` replaced by `to`.
    pub(crate) fn renamed(mut self, from: &str, to: &str) -> Self {
        for name in &mut self.shards {
            if let Some(stem) = name.strip_suffix(from) {
                *name = format!("{stem}{to}");
            }
        }
        self
    }

    /// An index file as Hugging Face's programs write it. `total_size`: the bytes of all tensors.
    pub(crate) fn to_json(&self, total_size: u64) -> String {
        let map = self.pairs().map(|(t, s)| (t.to_owned(), s.into()));
        let map: serde_json::Map<String, serde_json::Value> = map.collect();
        let metadata = serde_json::json!({ "total_size": total_size });
        let value = serde_json::json!({ "metadata": metadata, "weight_map": map });
        format!("{value:#}\n")
    }

    fn map_to_json(&self) -> String {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let mut out = String::from("{\"weight_map\":{");
        for (i, (tensor, shard)) in self.pairs().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            for part in [comma, &quoted(tensor), ":", &quoted(shard)] {
                out += part;
            }
        }
        out + "}}"
    }
}

/// An index while its file is read.
#[derive(Default)]
struct Building {
    index: ModelIndex,
    places: HashMap<String, u32>,
    has_map: bool,
    too_many: bool,
}

impl Building {
    /// Adds a tensor, whose shard follows.
    fn tensor(&mut self, name: &str) -> Result<(), String> {
        let ModelIndex { names, entries, .. } = &mut self.index;
        let (at, len) = (u32::try_from(names.len()), u32::try_from(name.len()));
        let (Ok(at), Ok(len)) = (at, len) else { return Err("names of 4 GiB".into()) };
        let room = names.try_reserve(name.len()).and_then(|()| entries.try_reserve(1));
        room.map_err(|e| e.to_string())?;
        names.push_str(name);
        entries.push(Entry { at, len, shard: 0 });
        Ok(())
    }

    /// The shard of the last tensor.
    fn shard(&mut self, name: &str) -> Result<(), String> {
        let shards = &mut self.index.shards;
        let place = match self.places.get(name) {
            Some(place) => *place,
            None if shards.len() == MAX_SHARDS => {
                self.too_many = true;
                return Err("too many shards".into());
            }
            None => {
                self.places.insert(name.to_owned(), shards.len() as u32);
                shards.push(name.to_owned());
                shards.len() as u32 - 1
            }
        };
        if let Some(last) = self.index.entries.last_mut() {
            last.shard = place;
        }
        Ok(())
    }
}

/// What an index file says of one of its shards.
pub(crate) struct Said<'a> {
    index: &'a ModelIndex,
    file: &'a Path,
    shard: &'a str,
    /// Their places in the index, and so sorted by name.
    tensors: Vec<u32>,
}

impl Said<'_> {
    /// Compares it with the tensors of the shard: all of them must be in the index file, and no
    /// other for that shard.
    pub(crate) fn check(self, tensors: &[TensorSpec]) -> Result<()> {
        let shard = self.shard;
        let has = |name: &str| {
            self.tensors.binary_search_by(|place| self.index.name(*place).cmp(name)).is_ok()
        };
        if let Some(spec) = tensors.iter().find(|spec| !has(spec.name())) {
            return Err(self.wrong(spec.name(), &format!("does not say that it is in {shard:?}")));
        }
        if self.tensors.len() == tensors.len() {
            return Ok(());
        }
        let there: BTreeSet<&str> = tensors.iter().map(TensorSpec::name).collect();
        let mut said = self.tensors.iter().map(|place| self.index.name(*place));
        match said.find(|name| !there.contains(name)) {
            None => Ok(()),
            Some(missing) => {
                Err(self.wrong(missing, &format!("says that it is in {shard:?}, but it is not")))
            }
        }
    }

    fn wrong(&self, tensor: &str, what: &str) -> Error {
        let error = Error::new(ErrorKind::ModelTensor).in_file(self.file).in_tensor(tensor);
        error.found(format!("the index file {what}"))
    }
}

/// The text of an index file, with the ending `from` of the shards' names replaced by `to`. `true`
/// if translating back gives the identical text; otherwise the original must be kept beside it.
pub(crate) fn translate(text: &str, from: &str, to: &str) -> Result<(String, bool)> {
    let wanted = ModelIndex::parse(text)?.renamed(from, to);
    let (from_end, to_end) = (format!("{from}\""), format!("{to}\""));
    let translated = text.replace(&from_end, &to_end);
    let same = ModelIndex::parse(&translated).is_ok_and(|found| found.pairs().eq(wanted.pairs()));
    if same && translated.replace(&to_end, &from_end) == text {
        return Ok((translated, true));
    }
    Ok((if same { translated } else { wanted.map_to_json() }, false))
}

fn wrong(found: String) -> Error {
    Error::new(ErrorKind::ModelIndex).found(found)
}

/// The whole file.
impl Fields for Building {
    const EXPECTED: &'static str = "an object with a weight_map";

    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        if key != "weight_map" {
            return map.next_value::<IgnoredAny>().map(drop);
        }
        if std::mem::replace(&mut self.has_map, true) {
            return Err(A::Error::custom("weight_map appears twice"));
        }
        map.next_value_seed(Object(&mut WeightMap(self)))
    }
}

/// An object from tensors to shards. Duplicate keys stay in the result.
struct WeightMap<'a>(&'a mut Building);

impl Fields for WeightMap<'_> {
    const EXPECTED: &'static str = "an object from tensors to shards";

    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        self.0.tensor(key).map_err(A::Error::custom)?;
        map.next_value_seed(Text(|name: &str| self.0.shard(name)))
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
        let rule =
            |len| ModelIndex::read(&Zeros(len), &mut IndexBytes::default()).unwrap_err().kind();
        assert_eq!(rule(100_000_000), ErrorKind::ModelIndex);
        assert_eq!(rule(100_000_001), ErrorKind::ModelIndexTooLarge);
        assert_eq!(rule(u64::MAX), ErrorKind::ModelIndexTooLarge);
    }

    #[test]
    // M-10
    fn the_index_files_of_a_folder_have_one_limit() {
        let source =
            |len: usize| format!("{{\"weight_map\":{{}}{}}}", " ".repeat(len - 17)).into_bytes();
        let mut bytes = IndexBytes::default();
        let files = [source(60_000_000), source(40_000_000), source(20)];
        for (n, file) in files.iter().enumerate() {
            let read = ModelIndex::read(file, &mut bytes);
            assert_eq!(read.is_ok(), n < 2);
            if let Err(error) = read {
                assert_eq!(error.kind(), ErrorKind::ModelIndexTooLarge);
                let told = error.to_string();
                assert!(told.contains("100000000") && told.contains("100000020"), "{told}");
                assert!(told.contains("BIGSMALL_RAISE_LIMITS"), "{told}");
            }
        }
    }

    #[test]
    // M-10
    fn an_entry_takes_12_bytes_and_its_name() {
        // The shortest text of one, `"a":"b",`, has 8.
        assert_eq!(size_of::<Entry>(), 12);
        let index =
            ModelIndex::parse(r#"{"weight_map":{"b":"x.bs","a":"y.bs","c":"x.bs"}}"#).unwrap();
        let expected = [("a", "y.bs"), ("b", "x.bs"), ("c", "x.bs")];
        assert!(index.pairs().eq(expected));
        assert_eq!(index.names, "bac");
        assert_eq!(index.shards().len(), 2);
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
            let index = ModelIndex::parse(&there).unwrap();
            assert_eq!(index.pairs().next().unwrap().1, "x.bs", "{text}");
        }
    }
}
