//! The safetensors header: parsed strictly and kept verbatim. It is the only source of names,
//! dtypes, shapes and order.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde_core::de::{DeserializeSeed, MapAccess, SeqAccess, Unexpected, Visitor};
use serde_json::value::RawValue;

use crate::arch::zeroed;
use crate::read_at::{len_of, read_at};
use crate::wire::{reserve, room_for};
use crate::{Dtype, Error, Limits, ReadAt, Result, Rule, TensorSpec};

/// A parsed safetensors header: the tensors in the order of their data.
///
/// Parsing is stricter than the safetensors format where that allows two readings: each key once,
/// integers written as integers, no hole and no overlap, and a data section exactly as long as the
/// tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    tensors: Vec<TensorSpec>,
    /// Where the data of each tensor ends. The data of the next one begins there.
    ends: Vec<u64>,
    /// Indices into `tensors`, sorted by name.
    by_name: Vec<u32>,
}

impl Header {
    /// Parses the JSON of a header whose data section has `data_len` bytes.
    ///
    /// # Errors
    /// One of the header rules of [`Rule`], naming the tensor, if any.
    ///
    /// ```
    /// use bigsmall_format::{Header, Limits};
    /// let json = br#"{"w":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}"#;
    /// let header = Header::parse(json, 12, &Limits::default())?;
    /// assert_eq!(header.tensors()[0].shape(), [2, 3]);
    /// # Ok::<(), bigsmall_format::Error>(())
    /// ```
    pub fn parse(json: &[u8], data_len: u64, limits: &Limits) -> Result<Self> {
        Self::parse_any(json, Some(data_len), limits, None)
    }

    /// Parses the header in an index of `count` records. The tensors determine the length of the
    /// data.
    pub(crate) fn parse_stored(json: &[u8], limits: &Limits, count: usize) -> Result<Self> {
        Self::parse_any(json, None, limits, Some(count))
    }

    /// Refuses a header of `len` bytes that is over the limit.
    pub(crate) fn check_len(len: u64, limits: &Limits) -> Result<()> {
        if len > limits.max_header_bytes {
            return Err(Error::new(Rule::HeaderTooLarge)
                .expected(format!("at most {} bytes", limits.max_header_bytes))
                .found(len));
        }
        Ok(())
    }

    fn parse_any(
        json: &[u8],
        data_len: Option<u64>,
        limits: &Limits,
        count: Option<usize>,
    ) -> Result<Self> {
        Self::check_len(json.len() as u64, limits)?;
        if json.first() != Some(&b'{') {
            return Err(Error::new(Rule::HeaderStart).at(0));
        }
        let context = Context { limits, broken: RefCell::default(), later: RefCell::default() };
        let mut de = serde_json::Deserializer::from_slice(json);
        let parsed = Top { context: &context, count }.deserialize(&mut de);
        let parsed = parsed.and_then(|tensors| de.end().map(|()| tensors));
        let (mut tensors, names) = parsed.map_err(|e| {
            context.broken.take().unwrap_or_else(|| Error::new(Rule::HeaderSyntax).found(e))
        })?;
        if let Some((_, error)) = context.later.take() {
            // Which tensors are missing here is unknown, but all names were seen.
            names.check()?;
            return Err(error);
        }
        drop(names);

        // Sort by the order of the data. The sort is stable, so empty tensors keep the header's
        // order.
        let place = |t: &Placed| (t.begin, t.begin.saturating_add(t.spec.byte_len()));
        if !tensors.is_sorted_by_key(place) {
            // A sort panics if it gets no memory, so the allocation is tried first.
            drop(std::hint::black_box(room_for::<Placed>(tensors.len())?));
            tensors.sort_by_key(place);
        }
        let mut ends = room_for(tensors.len())?;
        let mut at = 0;
        for t in &tensors {
            if t.begin != at {
                return Err(Error::new(Rule::DataRange)
                    .in_tensor(t.spec.name())
                    .expected(format!("data from {at} on"))
                    .found(t.begin));
            }
            at = at.saturating_add(t.spec.byte_len());
            ends.push(at);
        }
        if let Some(found) = data_len.filter(|&n| n != at) {
            return Err(Error::new(Rule::DataLength).expected(format!("{at} bytes")).found(found));
        }
        // In place: the vector is reused.
        let tensors: Vec<TensorSpec> = tensors.into_iter().map(|t| t.spec).collect();
        let mut by_name: Vec<u32> = room_for(tensors.len())?;
        by_name.extend(0..tensors.len() as u32);
        let name = |i: &u32| tensors.get(*i as usize).map_or("", |t| t.name());
        by_name.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        let mut neighbours = by_name.iter().zip(by_name.iter().skip(1));
        if let Some((a, _)) = neighbours.find(|(a, b)| name(a) == name(b)) {
            return Err(Error::new(Rule::HeaderDuplicate).in_tensor(name(a)));
        }
        Ok(Header { tensors, ends, by_name })
    }

    /// Reads the header of the safetensors file `source`: its JSON, unchanged, and the parsed
    /// header. The data begins at byte 8 + JSON length of the file.
    ///
    /// # Errors
    /// [`Rule::HeaderLength`], [`Rule::HeaderTooLarge`], those of [`parse`](Self::parse) and of
    /// `source`.
    pub fn read(source: &dyn ReadAt, limits: &Limits) -> Result<(Vec<u8>, Self)> {
        Self::read_any(source, limits).map_err(|error| match error.rule() {
            Rule::HeaderLength | Rule::HeaderTooLarge | Rule::HeaderStart => {
                crate::foreign::explain(source, error)
            }
            _ => error,
        })
    }

    fn read_any(source: &dyn ReadAt, limits: &Limits) -> Result<(Vec<u8>, Self)> {
        let byte_len = len_of(source)?;
        let mut prefix = [0; 8];
        if byte_len < 8 {
            return Err(Error::new(Rule::HeaderLength).expected("8 bytes or more").found(byte_len));
        }
        read_at(source, 0, &mut prefix)?;
        let len = u64::from_le_bytes(prefix);
        if let Some(rule) = crate::shard::recognise(&prefix) {
            return Err(Error::new(rule).at(0));
        }
        let data_len = byte_len.checked_sub(8).and_then(|n| n.checked_sub(len));
        let Some(data_len) = data_len.filter(|_| len > 0) else {
            return Err(Error::new(Rule::HeaderLength)
                .at(0)
                .expected(format!("1 to {} bytes", byte_len.saturating_sub(8)))
                .found(len));
        };
        Self::check_len(len, limits).map_err(|e| e.at(0))?;
        let mut json = zeroed(len)?;
        read_at(source, 8, &mut json)?;
        let header = Header::parse(&json, data_len, limits)?;
        Ok((json, header))
    }

    /// The JSON of a header for tensors that were never in a safetensors file. Their data follow
    /// each other in that order. Spaces at the end let the data of the file begin at a multiple of
    /// 8.
    ///
    /// # Errors
    /// [`Rule::ShapeOverflow`] if all tensors together exceed 2^63 bytes.
    pub fn synthesise(tensors: &[TensorSpec]) -> Result<Vec<u8>> {
        Self::synthesise_with(tensors, None)
    }

    /// The same with `metadata` as the header's `__metadata__`, with sorted keys.
    ///
    /// # Errors
    /// Those of [`synthesise`](Self::synthesise).
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use bigsmall_format::Header;
    /// let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    /// let json = Header::synthesise_with(&[], Some(&metadata))?;
    /// assert_eq!(json, br#"{"__metadata__":{"format":"pt"}}"#);
    /// # Ok::<(), bigsmall_format::Error>(())
    /// ```
    pub fn synthesise_with(
        tensors: &[TensorSpec],
        metadata: Option<&BTreeMap<String, String>>,
    ) -> Result<Vec<u8>> {
        use std::fmt::Write as _;
        let syntax = |e| Error::new(Rule::HeaderSyntax).found(e);
        let mut json = String::from("{");
        if let Some(metadata) = metadata {
            let metadata = serde_json::to_string(metadata).map_err(syntax)?;
            let _ = write!(json, "\"__metadata__\":{metadata}");
        }
        let mut at = 0u64;
        for t in tensors {
            let end = at.checked_add(t.byte_len()).filter(|&n| n < 1 << 63);
            let end = end.ok_or_else(|| Error::new(Rule::ShapeOverflow).in_tensor(t.name()))?;
            let name = serde_json::to_string(t.name()).map_err(syntax)?;
            let comma = if json.len() > 1 { "," } else { "" };
            let shape: Vec<String> = t.shape().iter().map(u64::to_string).collect();
            let _ = write!(
                json,
                "{comma}{name}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{at},{end}]}}",
                t.dtype(),
                shape.join(",")
            );
            at = end;
        }
        json.push('}');
        let mut json = json.into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        Ok(json)
    }

    /// The tensors in the order of their data.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// The index of the tensor `name` in [`tensors`](Self::tensors).
    #[must_use]
    pub fn index_of(&self, name: &str) -> Option<usize> {
        let found = self
            .by_name
            .binary_search_by(|&i| self.tensors.get(i as usize).map_or("", |t| t.name()).cmp(name));
        found.ok().and_then(|i| self.by_name.get(i)).map(|&i| i as usize)
    }

    /// Where the data of tensor `index` lies in the data section. Empty for an index beyond the
    /// last tensor.
    #[must_use]
    pub fn data_range(&self, index: usize) -> Range<u64> {
        let end = |i: usize| self.ends.get(i).copied();
        let begin = index.checked_sub(1).map_or(Some(0), end).unwrap_or(self.data_len());
        begin..end(index).unwrap_or(begin)
    }

    /// The index of the tensor that contains the byte `offset` of the data section.
    #[must_use]
    pub fn index_at(&self, offset: u64) -> Option<usize> {
        let index = self.ends.partition_point(|&end| end <= offset);
        (index < self.ends.len()).then_some(index)
    }

    /// Bytes of the data section.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }
}

/// What is checked after the whole text, in this order (FORMAT.md section 14).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Limits,
    Dtypes,
    Ranges,
}

/// Passes the limits down and the broken rule up: serde's errors carry only text.
struct Context<'a> {
    limits: &'a Limits,
    broken: RefCell<Option<Error>>,
    /// The first broken rule of the earliest step that has one. It counts only if the whole text is
    /// what it has to be.
    later: RefCell<Option<(Step, Error)>>,
}

impl Context<'_> {
    fn fail<E: serde_core::de::Error>(&self, error: Error) -> E {
        self.broken.borrow_mut().get_or_insert(error);
        E::custom("see the broken rule")
    }

    /// Keeps an error of a later step, and goes on with the text.
    #[cold]
    fn later(&self, step: Step, error: Error) {
        let mut found = self.later.borrow_mut();
        if found.as_ref().is_none_or(|(earliest, _)| step < *earliest) {
            *found = Some((step, error));
        }
    }
}

/// Leaves an unexpected string out of the error. serde would repeat it, and it may be as long as
/// the file. Works with `deserialize_any` only: serde_json then calls the visitor.
macro_rules! no_strings {
    () => {
        fn visit_str<E: serde_core::de::Error>(self, _: &str) -> Result<Self::Value, E> {
            Err(E::invalid_type(Unexpected::Other("a string"), &self))
        }
    };
}

/// The whole header: an object of tensors and `__metadata__`. Its value is the tensors, and the
/// names of all of them.
struct Top<'a> {
    context: &'a Context<'a>,
    /// How many tensors there have to be, if that is known.
    count: Option<usize>,
}

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = (Vec<Placed>, Keys);

    fn deserialize<D: serde_core::Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = (Vec<Placed>, Keys);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let context = self.context;
        let room = self.count.unwrap_or(0);
        let mut tensors = room_for(room).map_err(|e| context.fail::<A::Error>(e))?;
        let mut names = Keys::with_room(room).map_err(|e| context.fail::<A::Error>(e))?;
        let (most, over) = match self.count {
            Some(count) => (count, (Step::Ranges, Rule::EntryCount)),
            None => (context.limits.max_tensors, (Step::Limits, Rule::TooManyTensors)),
        };
        let mut metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            let longest = context.limits.max_name_bytes;
            if name.len() > longest {
                let error = Error::new(Rule::NameTooLong)
                    .expected(format!("at most {longest} bytes"))
                    .found(name.len());
                context.later(Step::Limits, error);
            }
            if name == "__metadata__" {
                if std::mem::replace(&mut metadata, true) {
                    let error = Error::new(Rule::HeaderDuplicate).in_tensor(&name);
                    return Err(context.fail(error));
                }
                map.next_value_seed(Metadata(context))?;
                continue;
            }
            names.add(&name).map_err(|e| context.fail::<A::Error>(e))?;
            let entry = map.next_value_seed(Entry { context, name: &name })?;
            if tensors.len() >= most {
                let error = Error::new(over.1).expected(format!("at most {most}"));
                context.later(over.0, error);
            } else if let Some(placed) = entry {
                reserve(&mut tensors, 1).map_err(|e| context.fail::<A::Error>(e))?;
                tensors.push(placed);
            }
        }
        Ok((tensors, names))
    }
}

/// A tensor with its position, from an entry.
struct Placed {
    spec: TensorSpec,
    /// Where its data begins in the data section.
    begin: u64,
}

/// The entry of one tensor.
struct Entry<'a> {
    context: &'a Context<'a>,
    name: &'a str,
}

impl Entry<'_> {
    fn wrong<E: serde_core::de::Error>(&self, found: impl fmt::Display) -> E {
        self.context.fail(Error::new(Rule::HeaderEntry).in_tensor(self.name).found(found))
    }
}

/// `None` if a rule of a later step is broken.
impl<'de> DeserializeSeed<'de> for Entry<'_> {
    type Value = Option<Placed>;

    fn deserialize<D: serde_core::Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Entry<'_> {
    type Value = Option<Placed>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    no_strings!();

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        let mut others = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let again = match key.as_str() {
                "dtype" => dtype.replace(map.next_value::<String>()?).is_some(),
                "shape" => {
                    let seed = Integers { most: self.context.limits.max_rank };
                    shape.replace(map.next_value_seed(seed)?).is_some()
                }
                "data_offsets" => {
                    let found = map.next_value_seed(Integers { most: 2 })?;
                    match found.as_deref() {
                        Some(&[begin, end]) => offsets.replace((begin, end)).is_some(),
                        _ => return Err(self.wrong("data_offsets is not a pair")),
                    }
                }
                _ => {
                    map.next_value_seed(Ignored { context: self.context, depth: 3 })?;
                    let again = others.contains(&key);
                    others.push(key.clone());
                    if others.len() > 64 {
                        return Err(self.wrong("more than 64 unknown fields"));
                    }
                    again
                }
            };
            if again {
                let error = Error::new(Rule::HeaderDuplicate)
                    .in_tensor(self.name)
                    .found(format!("{key:?} twice"));
                return Err(self.context.fail(error));
            }
        }
        let (Some(dtype), Some(shape), Some((begin, end))) = (dtype, shape, offsets) else {
            return Err(self.wrong("dtype, shape or data_offsets is missing"));
        };
        let later = |step, error: Error| {
            self.context.later(step, error.in_tensor(self.name));
            Ok(None)
        };
        let Some(shape) = shape else {
            let most = self.context.limits.max_rank;
            let error = Error::new(Rule::RankTooLarge).expected(format!("at most {most}"));
            return later(Step::Limits, error);
        };
        let dtype = match Dtype::from_name(&dtype) {
            Ok(dtype) => dtype,
            Err(error) => return later(Step::Dtypes, error),
        };
        let spec = match TensorSpec::new(self.name, dtype, &shape) {
            Ok(spec) => spec,
            Err(error) => return later(Step::Ranges, error),
        };
        if end.checked_sub(begin) != Some(spec.byte_len()) {
            let error = Error::new(Rule::DataRange)
                .expected(format!("{} bytes", spec.byte_len()))
                .found(format!("[{begin}, {end}]"));
            return later(Step::Ranges, error);
        }
        Ok(Some(Placed { spec, begin }))
    }
}

/// An array of at most `most` unsigned integers; `None` for a longer one.
struct Integers {
    most: usize,
}

impl<'de> DeserializeSeed<'de> for Integers {
    type Value = Option<Vec<u64>>;

    fn deserialize<D: serde_core::Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Integers {
    type Value = Option<Vec<u64>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of unsigned integers")
    }

    no_strings!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let (mut out, mut over) = (Vec::new(), false);
        while let Some(n) = seq.next_element::<&RawValue>()? {
            // Digits only. JSON also allows 1e3 and 1.0; parsers that accept these as integers
            // could read another file.
            let n = n.get();
            let n = if n.bytes().all(|b| b.is_ascii_digit()) { n.parse().ok() } else { None };
            let n = n.ok_or_else(|| {
                serde_core::de::Error::custom("expected an integer from 0 to 2^64 - 1")
            })?;
            // The rest of a longer array is read too, but not kept.
            match out.len() < self.most {
                true => out.push(n),
                false => over = true,
            }
        }
        Ok((!over).then_some(out))
    }
}

/// `__metadata__`: an object of strings, each key once, or `null`.
struct Metadata<'a>(&'a Context<'a>);

impl<'de> DeserializeSeed<'de> for Metadata<'_> {
    type Value = ();

    fn deserialize<D: serde_core::Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Metadata<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    no_strings!();

    /// `null` says the same as no metadata.
    fn visit_unit<E: serde_core::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = Keys::default();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value::<String>()?;
            keys.add(&key).map_err(|e| self.0.fail::<A::Error>(e))?;
        }
        keys.check().map_err(|e| self.0.fail(e.in_tensor("__metadata__")))
    }
}

/// The keys of one object, as 64-bit hashes, so that a million short keys take only a few times the
/// memory of their text. Two keys with the same hash count as one; among ten thousand keys the
/// probability is about 3 in 10^12.
#[derive(Default)]
struct Keys {
    hashes: Vec<u64>,
}

impl Keys {
    fn with_room(n: usize) -> Result<Keys> {
        Ok(Keys { hashes: room_for(n)? })
    }

    fn add(&mut self, key: &str) -> Result<()> {
        reserve(&mut self.hashes, 1)?;
        self.hashes.push(crate::xxh3(key.as_bytes()));
        Ok(())
    }

    fn check(mut self) -> Result<()> {
        self.hashes.sort_unstable();
        let mut neighbours = self.hashes.iter().zip(self.hashes.iter().skip(1));
        match neighbours.any(|(a, b)| a == b) {
            true => Err(Error::new(Rule::HeaderDuplicate)),
            false => Ok(()),
        }
    }
}

/// The deepest nesting that is accepted; the outermost object counts as 1. serde_json has a higher
/// limit of its own.
const MAX_DEPTH: usize = 100;

/// Any value; only its depth and duplicate keys are checked.
#[derive(Clone, Copy)]
struct Ignored<'a> {
    context: &'a Context<'a>,
    /// The depth that the value has if it is an array or an object.
    depth: usize,
}

impl<'a> Ignored<'a> {
    /// A value in this one.
    fn within<E: serde_core::de::Error>(self) -> Result<Ignored<'a>, E> {
        if self.depth > MAX_DEPTH {
            return Err(E::custom("nested too deeply"));
        }
        Ok(Ignored { depth: self.depth.saturating_add(1), ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Ignored<'_> {
    type Value = ();

    fn deserialize<D: serde_core::Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

macro_rules! accept {
    ($($method:ident: $type:ty),*) => {
        $(fn $method<E: serde_core::de::Error>(self, _: $type) -> Result<(), E> { Ok(()) })*
    };
}

impl<'de> Visitor<'de> for Ignored<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    accept!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

    fn visit_unit<E: serde_core::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let within = self.within()?;
        while seq.next_element_seed(within)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let within = self.within()?;
        let mut keys = Keys::default();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(within)?;
            keys.add(&key).map_err(|e| self.context.fail::<A::Error>(e))?;
        }
        keys.check().map_err(|e| self.context.fail(e))
    }
}
