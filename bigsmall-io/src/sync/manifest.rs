//! The manifest: which steps there are, and how each is reached. It is the last file that a
//! publisher writes, so a step that it names is whole.

use std::borrow::Cow;
use std::collections::HashMap;

use bigsmall_format::internal::xxh3;
use serde_core::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::error::{Error, ErrorKind, Result};
use crate::hex;
use crate::sync::store::MANIFEST;

/// Bytes of a manifest, at most.
pub(crate) const MOST_BYTES: u64 = 16 << 20;
/// Entries of a manifest, at most.
pub(crate) const MOST_ENTRIES: usize = 1 << 16;
/// Steps are integers that every reader of JSON can hold.
const MOST_STEP: u64 = 1 << 53;
const VERSION: u64 = 1;

pub(crate) type Sha256 = [u8; 32];

/// How a file holds the weights of its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Whole.
    Anchor,
    /// As differences from the step before, which has that digest.
    Delta { base: Sha256 },
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) step: u64,
    pub(crate) kind: Kind,
    /// Bytes of the file.
    pub(crate) byte_len: u64,
    /// Their XXH3.
    pub(crate) checksum: u64,
    /// Of the weights.
    pub(crate) sha256: Sha256,
}

impl Entry {
    /// The entry of the file `bytes`.
    pub(crate) fn new(step: u64, kind: Kind, bytes: &[u8], sha256: Sha256) -> Entry {
        Entry { step, kind, byte_len: bytes.len() as u64, checksum: xxh3(bytes), sha256 }
    }

    /// The file's name. It follows from the other fields: a manifest holds no names. Files of
    /// other contents have other names, so no publisher overwrites what another one made visible.
    pub(crate) fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Anchor => "anchor",
            Kind::Delta { .. } => "delta",
        };
        format!("{kind}-{:012}-{:016x}.bs", self.step, self.checksum)
    }
}

/// Whether a file of that name is written by a publisher, and may be deleted by one.
pub(crate) fn is_ours(name: &str) -> bool {
    let is_file = |name: &str| name.starts_with("anchor-") || name.starts_with("delta-");
    let temporary = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
    is_file(name) && name.ends_with(".bs")
        || temporary.is_some_and(|name| is_file(name) || name.starts_with(MANIFEST))
}

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// Which history this is: another one never continues it.
    pub(crate) run: String,
    /// In the order of steps; the anchor of a step comes before its delta.
    pub(crate) entries: Vec<Entry>,
}

impl Manifest {
    /// The newest step, and the digest of its weights.
    pub(crate) fn newest(&self) -> Option<(u64, Sha256)> {
        self.entries.last().map(|entry| (entry.step, entry.sha256))
    }

    /// The digest of a step's weights.
    fn digest(&self, step: u64) -> Option<Sha256> {
        let index = self.entries.binary_search_by_key(&step, |entry| entry.step).ok()?;
        Some(self.entries[index].sha256)
    }

    /// The newest step that has these weights.
    pub(crate) fn step_of(&self, sha256: Sha256) -> Option<u64> {
        self.entries.iter().rev().find(|entry| entry.sha256 == sha256).map(|entry| entry.step)
    }

    /// How many deltas lie between a step and the newest anchor before it.
    pub(crate) fn depth(&self, step: u64) -> u64 {
        let mut anchors = self.entries.iter().filter(|e| e.kind == Kind::Anchor && e.step <= step);
        anchors.next_back().map_or(0, |anchor| step - anchor.step)
    }

    /// The files that lead to the newest step, in order and in the fewest bytes: from the weights
    /// of the step `from`, or from an anchor. None of them if `from` is the newest step.
    pub(crate) fn path(&self, from: Option<(u64, Sha256)>) -> Result<Vec<&Entry>> {
        let Some(newest) = self.newest() else { return Ok(Vec::new()) };
        if from == Some(newest) {
            return Ok(Vec::new());
        }
        // Back from the newest step, along its deltas: a way can begin wherever this leads.
        let (mut step, mut digest) = newest;
        let (mut deltas, mut byte_len) = (Vec::new(), 0u64);
        // Bytes, anchor, number of deltas.
        let mut best: Option<(u64, Option<&Entry>, usize)> = None;
        let mut begin = |bytes: u64, anchor, n_deltas| {
            if best.is_none_or(|(least, ..)| bytes < least) {
                best = Some((bytes, anchor, n_deltas));
            }
        };
        loop {
            if from == Some((step, digest)) {
                begin(byte_len, None, deltas.len());
            }
            let at = self.entries.partition_point(|entry| entry.step < step);
            let of_step = self.entries[at..].iter().take_while(|entry| entry.step == step);
            let mut before = None;
            for entry in of_step.filter(|entry| entry.sha256 == digest) {
                match entry.kind {
                    Kind::Anchor => {
                        let bytes = byte_len.saturating_add(entry.byte_len);
                        begin(bytes, Some(entry), deltas.len());
                    }
                    Kind::Delta { base } => before = Some((entry, base)),
                }
            }
            let Some((delta, base)) = before else { break };
            deltas.push(delta);
            byte_len = byte_len.saturating_add(delta.byte_len);
            // Step 0 has no delta.
            (step, digest) = (step - 1, base);
        }
        let (_, anchor, n_deltas) = best.ok_or_else(|| {
            Error::new(ErrorKind::SyncChain).expected(format!("a way to step {}", newest.0))
        })?;
        Ok(anchor.into_iter().chain(deltas[..n_deltas].iter().rev().copied()).collect())
    }

    /// Forgets everything before the `keep`-th newest anchor, or before a newer one if there would
    /// be more entries than are read.
    pub(crate) fn prune(&mut self, keep: usize) {
        let least = self.entries.len().saturating_sub(MOST_ENTRIES);
        let anchors = self.entries.iter().enumerate();
        let anchors = anchors.rev().filter(|(_, entry)| entry.kind == Kind::Anchor).take(keep);
        let kept = anchors.enumerate().take_while(|(n, (at, _))| *n == 0 || *at >= least).last();
        if let Some((_, (_, &Entry { step: first, .. }))) = kept {
            self.entries.retain(|e| e.step > first || e.step == first && e.kind == Kind::Anchor);
        }
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let entry = |entry: &Entry| {
            let mut object = json!({
                "step": entry.step,
                "bytes": entry.byte_len,
                "xxh3": format!("{:016x}", entry.checksum),
                "sha256": hex(&entry.sha256),
            });
            if let Kind::Delta { base } = entry.kind {
                object["base"] = hex(&base).into();
            }
            object.to_string()
        };
        let entries: Vec<String> = self.entries.iter().map(entry).collect();
        let run = Value::from(&*self.run);
        format!(
            "{{\"bigsmall-sync\":{VERSION},\"run\":{run},\"files\":[\n{}\n]}}\n",
            entries.join(",\n")
        )
        .into_bytes()
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Manifest> {
        let json = |e: serde_json::Error| wrong("JSON").caused_by(std::io::Error::other(e));
        let object: Texts<'_> = serde_json::from_slice(bytes).map_err(json)?;
        match value::<u64>(&object, "bigsmall-sync") {
            Some(VERSION) => {}
            Some(newer) if newer > VERSION => {
                return Err(Error::new(ErrorKind::SyncVersion).found(newer));
            }
            _ => return Err(wrong("the field `bigsmall-sync`, a number")),
        }
        let run = value::<String>(&object, "run").filter(|run| (1..=64).contains(&run.len()));
        let run = run.ok_or_else(|| wrong("a run"))?;
        let files: Vec<&RawValue> = value(&object, "files").ok_or_else(|| wrong("files"))?;
        if files.len() > MOST_ENTRIES {
            return Err(Error::new(ErrorKind::SyncTooLarge)
                .expected(format!("at most {MOST_ENTRIES} files"))
                .found(files.len()));
        }
        let entries = files.into_iter().map(read_entry).collect::<Result<Vec<_>>>()?;
        let manifest = Manifest { run, entries };
        manifest.check()?;
        Ok(manifest)
    }

    /// What the entries say of each other.
    fn check(&self) -> Result<()> {
        for pair in self.entries.windows(2) {
            let [a, b] = pair else { continue };
            let rank = |entry: &Entry| (entry.step, entry.kind != Kind::Anchor);
            if rank(a) >= rank(b) {
                return Err(wrong("files in the order of their steps, each once").found(b.step));
            }
            if a.step == b.step && a.sha256 != b.sha256 {
                return Err(wrong("one digest for the weights of a step").found(b.step));
            }
        }
        for entry in &self.entries {
            if let (Kind::Delta { base }, Some(before)) = (entry.kind, entry.step.checked_sub(1))
                && self.digest(before).is_some_and(|digest| digest != base)
            {
                return Err(wrong("the digest of the step before as the base")
                    .found(format!("another one at step {}", entry.step)));
            }
        }
        Ok(())
    }
}

fn wrong(expected: &str) -> Error {
    Error::new(ErrorKind::SyncManifest).expected(expected)
}

/// The fields of an object as they are written. As values, millions of them would take far more
/// memory than their text.
type Texts<'a> = HashMap<Cow<'a, str>, &'a RawValue>;

/// The field `key`. `None` if it is missing or of another form.
fn value<'a, T: Deserialize<'a>>(object: &Texts<'a>, key: &str) -> Option<T> {
    serde_json::from_str(object.get(key)?.get()).ok()
}

fn read_entry(text: &RawValue) -> Result<Entry> {
    let object: Texts<'_> =
        serde_json::from_str(text.get()).map_err(|_| wrong("an object for each file"))?;
    let number = |key: &str| value::<u64>(&object, key);
    let step = number("step").filter(|&step| step < MOST_STEP);
    let step = step.ok_or_else(|| wrong("a step below 2^53"))?;
    let byte_len = number("bytes").ok_or_else(|| wrong("bytes, a number"))?;
    let checksum = digits::<8>(&object, "xxh3")?.ok_or_else(|| wrong("an XXH3 of each file"))?;
    let checksum = u64::from_be_bytes(checksum);
    let sha256 = digits(&object, "sha256")?.ok_or_else(|| wrong("a SHA-256 of each file"))?;
    let kind = match digits(&object, "base")? {
        None => Kind::Anchor,
        Some(_) if step == 0 => return Err(wrong("no base for step 0")),
        Some(base) => Kind::Delta { base },
    };
    Ok(Entry { step, kind, byte_len, checksum, sha256 })
}

/// The bytes that the hexadecimal digits of a field stand for.
fn digits<const N: usize>(object: &Texts<'_>, key: &str) -> Result<Option<[u8; N]>> {
    if !object.contains_key(key) {
        return Ok(None);
    }
    let wrong = || {
        let expected = format!("{} hexadecimal digits", 2 * N);
        wrong(&expected).found(format!("`{key}` of another form"))
    };
    let text = value::<String>(object, key).filter(|t| t.len() == 2 * N).ok_or_else(wrong)?;
    let mut out = [0; N];
    for (byte, digits) in out.iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
        let digit = |d: u8| (d as char).to_digit(16).filter(|_| !d.is_ascii_uppercase());
        match digits.map(digit) {
            [Some(high), Some(low)] => *byte = (high << 4 | low) as u8,
            _ => return Err(wrong()),
        }
    }
    Ok(Some(out))
}
