//! What a path or URL leads to: shards, or the safetensors files that shards are made from.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use bigsmall_format::internal::{Shown, len_of, read_at, zeroed};
use bigsmall_format::{Rule, TensorSpec};

use crate::base::model::BaseModel;
use crate::base::tensor::Content;
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::metadata::metadata;
use crate::source::file::REMOTE_THREADS;
use crate::source::folder::Input;
use crate::source::listing::FolderOptions;
use crate::source::open::open;
use crate::source::url::shown;
use crate::stage::thread::side_by_side;
use crate::{Model, Progress, os};

/// Bytes of one of the parallel reads.
const READ: usize = 4 << 20;

/// A model that is compressed, or not.
#[derive(Debug)]
pub enum Checkpoint {
    /// Shards.
    Shards(Model),
    /// Safetensors files.
    Plain(Plain),
}

/// The safetensors files of a model.
#[derive(Debug)]
pub struct Plain {
    pub(crate) files: BaseModel,
    /// The path or URL, for errors.
    shown: String,
}

/// A safetensors file and its tensors.
#[derive(Debug)]
pub struct PlainFile<'a> {
    /// Its name in the folder; empty for a single file.
    pub name: &'a str,
    /// Bytes of the file.
    pub byte_len: u64,
    /// The tensors in the order of their data.
    pub tensors: &'a [TensorSpec],
    /// The JSON of its header.
    pub header_json: Vec<u8>,
}

impl Checkpoint {
    /// Opens a file, a folder or a URL, as [`Model::open`] does. A folder that has no shards is
    /// opened as [`BaseModel::open`] does it.
    ///
    /// # Errors
    /// Those of [`Model::open_with`] and of [`BaseModel::open`].
    pub fn open(path: &Path, progress: &Progress) -> Result<Self> {
        let stop = progress.stop();
        let has_shards = match open(path, &stop)? {
            Input::Folder(folder) => folder.has_shards().in_file(shown(path))?,
            Input::File(_) => match Model::open_with(path, progress) {
                Err(e) if e.rule() == Some(Rule::SafetensorsFile) => false,
                opened => return Ok(Checkpoint::Shards(opened?)),
            },
        };
        if has_shards {
            return Ok(Checkpoint::Shards(Model::open_with(path, progress)?));
        }
        let files = BaseModel::open_all(&[path.to_owned()], FolderOptions::new(), &stop)?;
        Ok(Checkpoint::Plain(Plain { files, shown: shown(path) }))
    }

    /// The tensors, file after file, in the order of their data.
    pub fn tensors(&self) -> Box<dyn Iterator<Item = &TensorSpec> + '_> {
        match self {
            Checkpoint::Shards(model) => Box::new(model.tensors()),
            Checkpoint::Plain(plain) => {
                Box::new(plain.files.files().iter().flat_map(|file| file.tensors()))
            }
        }
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// [`ErrorKind::TensorMissing`] with the names that are nearest to it.
    pub fn find(&self, name: &str) -> Result<&TensorSpec> {
        let found = self.tensors().find(|spec| spec.name() == name);
        found.ok_or_else(|| self.missing(&[name]))
    }

    /// The error for names that no tensor has.
    fn missing(&self, names: &[&str]) -> Error {
        let quoted = |names: Vec<&str>| {
            let names = names.iter().map(|name| format!("{:?}", Shown::name(name)));
            names.collect::<Vec<_>>().join(", ")
        };
        let (first, others) = names.split_first().unwrap_or((&"", &[]));
        let near = nearest(first, self.tensors().map(TensorSpec::name));
        let mut facts = Vec::new();
        if !near.is_empty() {
            facts.push(format!("nearest: {}", quoted(near)));
        }
        if !others.is_empty() {
            facts.push(format!("also missing: {}", quoted(others.to_vec())));
        }
        let error = Error::new(ErrorKind::TensorMissing).in_tensor(first);
        if facts.is_empty() { error } else { error.found(facts.join("; ")) }
    }

    /// The tensors of these names, and those of the modules `prefixes`, in any order.
    pub(crate) fn pick(&self, names: &[String], prefixes: &[String]) -> Result<Vec<Picked<'_>>> {
        if names.is_empty() && prefixes.is_empty() {
            return Err(Error::new(ErrorKind::Argument).expected("the name of a tensor"));
        }
        let names: HashSet<&str> = names.iter().map(String::as_str).collect();
        let prefixes: Vec<&str> =
            prefixes.iter().map(|prefix| prefix.strip_suffix('.').unwrap_or(prefix)).collect();
        let mut used = vec![false; prefixes.len()];
        let mut picked: HashMap<&str, Picked<'_>> = HashMap::new();
        for found in self.places() {
            let name = found.spec.name();
            let mut wanted = names.contains(name);
            for (prefix, used) in prefixes.iter().zip(&mut used) {
                let rest = name.strip_prefix(prefix);
                if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
                    (wanted, *used) = (true, true);
                }
            }
            if wanted && picked.insert(name, found).is_some() {
                return Err(Error::new(ErrorKind::Argument)
                    .in_tensor(name)
                    .expected("a name that one file has")
                    .found("two files with it; give one of them"));
            }
        }
        let mut missing: Vec<&str> =
            names.into_iter().filter(|name| !picked.contains_key(name)).collect();
        missing.sort_unstable();
        if !missing.is_empty() {
            return Err(self.missing(&missing));
        }
        missing.extend(prefixes.iter().zip(used).filter(|(_, used)| !used).map(|(name, _)| name));
        if !missing.is_empty() {
            let whole = "a prefix of whole parts of a name, such as layers.0 of layers.0.weight";
            return Err(self.missing(&missing).expected(whole));
        }
        Ok(picked.into_values().collect())
    }

    /// The tensors with their places, in the order of [`tensors`](Self::tensors).
    pub fn places(&self) -> Box<dyn Iterator<Item = Picked<'_>> + '_> {
        match self {
            Checkpoint::Shards(model) => {
                Box::new(model.tensors().map(|spec| Picked { spec, file: 0, index: 0 }))
            }
            Checkpoint::Plain(plain) => {
                let files = plain.files.files().iter().enumerate();
                Box::new(files.flat_map(|(file, of)| {
                    let tensors = of.tensors().iter().enumerate();
                    tensors.map(move |(index, spec)| Picked { spec, file, index })
                }))
            }
        }
    }

    /// Reads the original bytes `range` of a tensor into `dst`.
    ///
    /// # Errors
    /// Those of [`Model::bytes_into`].
    pub fn bytes_into(&self, tensor: &Picked<'_>, range: Range<u64>, dst: &mut [u8]) -> Result<()> {
        self.read(&[(tensor, range)], dst)
    }

    /// Whether reading waits for another machine.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        match self {
            Checkpoint::Shards(model) => model.inner().patient,
            Checkpoint::Plain(plain) => plain.files.files().iter().any(|file| file.waits()),
        }
    }

    /// Whether `path` is one of the files, which were opened as `input`.
    #[must_use]
    pub fn has_file(&self, input: &Path, path: &Path) -> bool {
        let in_folder = self.file_names().map(|name| input.join(name));
        in_folder.chain([input.to_owned()]).any(|file| os::same_file(&file, path))
    }

    /// Reads ranges of original bytes of tensors, one behind the other, into `dst`. A range that is
    /// not the whole tensor comes alone.
    pub(crate) fn read(&self, ranges: &[(&Picked<'_>, Range<u64>)], dst: &mut [u8]) -> Result<()> {
        let plain = match self {
            Checkpoint::Plain(plain) => plain,
            Checkpoint::Shards(model) => {
                if let [(tensor, range)] = ranges {
                    return model.bytes_into(tensor.spec.name(), range.clone(), dst);
                }
                let mut rest = dst;
                let tensors =
                    ranges.iter().map(|(t, range)| (t.spec.name(), cut(&mut rest, range)));
                return model.tensors_into(tensors.collect::<Vec<_>>());
            }
        };
        let (mut pieces, mut rest) = (Vec::new(), dst);
        for (tensor, range) in ranges {
            let file = &plain.files.files()[tensor.file];
            let Content::Safetensors { source, header, data_at } = &file.content else { continue };
            let from = data_at + header.data_range(tensor.index).start + range.start;
            for (i, piece) in cut(&mut rest, range).chunks_mut(READ).enumerate() {
                pieces.push((tensor.spec, file, source, from + (i * READ) as u64, piece));
            }
        }
        side_by_side(REMOTE_THREADS, pieces.into_iter(), |(spec, file, source, at, piece)| {
            read_at(source, at, piece).in_tensor(spec.name()).in_file(&file.shown)
        })
    }

    /// An error if one of the safetensors files is not as it was when it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        match self {
            Checkpoint::Shards(_) => Ok(()),
            Checkpoint::Plain(plain) => {
                plain.files.files().iter().try_for_each(|file| file.check_unchanged())
            }
        }
    }

    /// Gives shards the base of their tensors.
    pub(crate) fn with_base(self, base: BaseModel) -> Result<Self> {
        Ok(match self {
            Checkpoint::Shards(model) => Checkpoint::Shards(model.with_base(base)?),
            plain => plain,
        })
    }

    /// The names of the files in the folder; one empty name for a single file.
    fn file_names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Checkpoint::Shards(model) => Box::new(model.shards().map(|(name, _)| name)),
            Checkpoint::Plain(plain) => {
                Box::new(plain.files.files().iter().map(|file| plain.name_of(&file.shown)))
            }
        }
    }

    /// Bytes of all files.
    pub(crate) fn byte_len(&self) -> Result<u64> {
        match self {
            Checkpoint::Shards(model) => {
                model.shards().map(|(_, shard)| Ok(len_of(shard.source())?)).sum()
            }
            Checkpoint::Plain(plain) => plain.files().map(|file| Ok(file?.byte_len)).sum(),
        }
    }

    /// The `__metadata__` of all files. If several files have a key, the first one counts.
    pub(crate) fn metadata(&self) -> Result<BTreeMap<String, String>> {
        let plain = match self {
            Checkpoint::Shards(model) => return Ok(model.metadata()?.into_iter().collect()),
            Checkpoint::Plain(plain) => plain,
        };
        let mut all = BTreeMap::new();
        for file in plain.files() {
            for (key, value) in metadata(&file?.header_json)? {
                all.entry(key).or_insert(value);
            }
        }
        Ok(all)
    }
}

/// A tensor of a [`Checkpoint`].
#[derive(Debug)]
pub struct Picked<'a> {
    /// Name, dtype and shape.
    pub spec: &'a TensorSpec,
    /// The place of its safetensors file, and its place in it.
    file: usize,
    index: usize,
}

impl Plain {
    /// The name in the folder of the file that errors show as `shown`.
    fn name_of<'a>(&self, shown: &'a str) -> &'a str {
        let name = shown.strip_prefix(self.shown.trim_end_matches('/'));
        name.unwrap_or_default().trim_start_matches('/')
    }

    /// The files, in the order of their names.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io), [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub fn files(&self) -> impl Iterator<Item = Result<PlainFile<'_>>> {
        self.files.files().iter().filter_map(|file| {
            // `Checkpoint::open` finds shards itself.
            let Content::Safetensors { source, header, data_at } = &file.content else {
                return None;
            };
            let read = || -> Result<_> {
                let mut header_json = zeroed(data_at - 8)?;
                read_at(source, 8, &mut header_json)?;
                Ok(PlainFile {
                    name: self.name_of(&file.shown),
                    byte_len: data_at + header.data_len(),
                    tensors: header.tensors(),
                    header_json,
                })
            };
            Some(read().in_file(&file.shown))
        })
    }
}

/// The first bytes of `rest`, as many as `range` has.
fn cut<'a>(rest: &mut &'a mut [u8], range: &Range<u64>) -> &'a mut [u8] {
    let (piece, after) = std::mem::take(rest).split_at_mut((range.end - range.start) as usize);
    *rest = after;
    piece
}

/// How many names an error suggests.
const SUGGESTED: usize = 3;

/// The names with the most in common with `name` at both ends, where names of tensors differ least
/// when one is mistyped or lacks a prefix. None if that is less than half of it.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found: Vec<(usize, &str)> = Vec::new();
    for other in names {
        let most = name.len().min(other.len());
        let same = |(a, b): &(u8, u8)| a.eq_ignore_ascii_case(b);
        let head = name.bytes().zip(other.bytes()).take_while(same).count();
        let tail = name.bytes().rev().zip(other.bytes().rev()).take_while(same).count();
        let both = (head + tail).min(most);
        if 2 * both < name.len() || both == 0 {
            continue;
        }
        // What `other` has more or less counts a little.
        let score = (8 * both).saturating_sub(name.len().abs_diff(other.len()));
        found.push((score, other));
        if found.len() > 64 {
            found.sort_by_key(|&(score, _)| std::cmp::Reverse(score));
            found.truncate(SUGGESTED);
        }
    }
    found.sort_by_key(|&(score, _)| std::cmp::Reverse(score));
    found.truncate(SUGGESTED);
    found.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_names_are_those_that_were_meant() {
        let layers = (0..200).flat_map(|n| {
            let names = ["self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"];
            names.map(|name| format!("model.layers.{n}.{name}.weight"))
        });
        let names: Vec<String> = layers.chain(["lm_head.weight".into()]).collect();
        let nearest = |name| nearest(name, names.iter().map(String::as_str));
        for (typed, meant) in [
            ("model.layers.7.self_attn.q_proj.wieght", "model.layers.7.self_attn.q_proj.weight"),
            ("layers.7.self_attn.q_proj.weight", "model.layers.7.self_attn.q_proj.weight"),
            ("model.layers.7.self_attn.qproj.weight", "model.layers.7.self_attn.q_proj.weight"),
            ("LM_head.weight", "lm_head.weight"),
            ("lm_head", "lm_head.weight"),
        ] {
            let found = nearest(typed);
            assert!(found.len() <= SUGGESTED && found.contains(&meant), "{typed}: {found:?}");
        }
        assert!(nearest("vae").is_empty());
    }
}
