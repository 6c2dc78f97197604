//! What a path or URL leads to: shards, or the safetensors files that shards are made from.

use std::path::Path;

use bigsmall_format::internal::{Shown, read_at, zeroed};
use bigsmall_format::{Rule, TensorSpec};

use crate::base::model::BaseModel;
use crate::base::tensor::Content;
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::source::folder::Input;
use crate::source::open::open;
use crate::source::url::shown;
use crate::{Model, Progress};

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
        let files = BaseModel::open_all(&[path.to_owned()], &stop)?;
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
        let missing = || {
            let near = nearest(name, self.tensors().map(TensorSpec::name));
            let near: Vec<String> =
                near.iter().map(|near| format!("{:?}", Shown::name(near))).collect();
            let error = Error::new(ErrorKind::TensorMissing).in_tensor(name);
            if near.is_empty() {
                error
            } else {
                error.found(format!("nearest: {}", near.join(", ")))
            }
        };
        self.tensors().find(|spec| spec.name() == name).ok_or_else(missing)
    }
}

impl Plain {
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
            let name = file.shown.strip_prefix(self.shown.trim_end_matches('/'));
            let read = || -> Result<_> {
                let mut header_json = zeroed(data_at - 8)?;
                read_at(source, 8, &mut header_json)?;
                Ok(PlainFile {
                    name: name.unwrap_or_default().trim_start_matches('/'),
                    byte_len: data_at + header.data_len(),
                    tensors: header.tensors(),
                    header_json,
                })
            };
            Some(read().in_file(&file.shown))
        })
    }
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
