//! Names of files: which are weights, which are index files, and their names after compressing or
//! restoring.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

pub(crate) const SAFETENSORS: &str = ".safetensors";

pub(crate) const SHARD: &str = ".bs";

pub(crate) const INDEX: &str = ".index.json";

/// What a file is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Weights,
    Index,
    Other,
}

pub(crate) fn role(name: &Path, ending: &str) -> Role {
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    // What macOS keeps beside a file on other file systems has the file's name after `._`.
    if name.starts_with("._") {
        return Role::Other;
    }
    match () {
        () if name.ends_with(ending) => Role::Weights,
        () if index_parts(&name, ending).is_some() => Role::Index,
        () => Role::Other,
    }
}

/// What stands before and after the ending in the name of an index file: `X.bs.index.json`, or
/// `X.bs.index.V.json` of the variant V.
fn index_parts<'a>(name: &'a str, ending: &str) -> Option<(&'a str, &'a str)> {
    let at = name.rfind(&format!("{ending}.index."))?;
    let (stem, tail) = (&name[..at], &name[at + ending.len()..]);
    let variant = tail.strip_prefix(".index")?.strip_suffix(".json")?;
    let is_variant = |v: &str| !v.is_empty() && !v.contains('.');
    let is_index = variant.is_empty() || variant.strip_prefix('.').is_some_and(is_variant);
    is_index.then_some((stem, tail))
}

/// `name` with the ending `to` instead of `from`, also before `.index.json`.
pub(crate) fn renamed(name: &Path, from: &str, to: &str) -> PathBuf {
    // `weights` has refused names that are not Unicode.
    let Some(file) = name.file_name().and_then(|file| file.to_str()) else {
        return name.to_owned();
    };
    match file.strip_suffix(from).map(|stem| (stem, "")).or_else(|| index_parts(file, from)) {
        Some((stem, tail)) => name.with_file_name(format!("{stem}{to}{tail}")),
        None => name.to_owned(),
    }
}

/// The model that a shard or an index file of shards belongs to: `a` for `a.bs`,
/// `a-00001-of-00002.bs` and `a.bs.index.json`, `a.V` for those of its variant V.
pub(crate) fn model_of(name: &str) -> Option<String> {
    if let Some((stem, tail)) = index_parts(name, SHARD) {
        let variant = tail.strip_prefix(".index")?.strip_suffix(".json")?;
        return Some(format!("{stem}{variant}"));
    }
    let stem = name.strip_suffix(SHARD)?;
    Some(numbered(name).map_or(stem, |(stem, _)| stem).to_owned())
}

/// What stands before the number of a shard, and how many there are: `a/model` and `00002` for
/// `a/model-00001-of-00002.bs`.
pub(crate) fn numbered(name: &str) -> Option<(&str, &str)> {
    let is_number = |n: &str| n.len() >= 5 && n.bytes().all(|b| b.is_ascii_digit());
    let (rest, total) = name.rsplit_once('.')?.0.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    (is_number(number) && is_number(total)).then_some((stem, total))
}

/// The files with that ending. Their names, and those of their index files, must be Unicode.
pub(crate) fn weights<'a>(files: &'a BTreeSet<PathBuf>, ending: &str) -> Result<Vec<&'a PathBuf>> {
    let mut found = Vec::new();
    for name in files.iter().filter(|f| role(f, ending) != Role::Other) {
        if name.to_str().is_none() {
            return Err(Error::new(ErrorKind::Argument)
                .in_file(name)
                .expected("a name in Unicode"));
        }
        if role(name, ending) == Role::Weights {
            found.push(name);
        }
    }
    if found.is_empty() {
        return Err(
            Error::new(ErrorKind::Argument).found(format!("no {ending} file in the folder"))
        );
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_have_index_files_of_their_own() {
        let there = |name: &str| {
            let to = renamed(Path::new(name), SAFETENSORS, SHARD);
            assert_eq!(renamed(&to, SHARD, SAFETENSORS), Path::new(name));
            to.to_str().unwrap().to_owned()
        };
        for (name, to, model) in [
            ("m.safetensors", "m.bs", "m"),
            ("m.fp16.safetensors", "m.fp16.bs", "m.fp16"),
            ("m-00001-of-00002.safetensors", "m-00001-of-00002.bs", "m"),
            ("m.fp16-00001-of-00002.safetensors", "m.fp16-00001-of-00002.bs", "m.fp16"),
            ("m.safetensors.index.json", "m.bs.index.json", "m"),
            ("m.safetensors.index.fp16.json", "m.bs.index.fp16.json", "m.fp16"),
        ] {
            assert_eq!(there(name), to);
            assert_eq!(model_of(to).as_deref(), Some(model));
            assert!(role(Path::new(name), SAFETENSORS) != Role::Other);
        }
        for name in ["m.index.json", "m.safetensors.index..json", "m.safetensors.index.a.b.json"] {
            assert!(role(Path::new(name), SAFETENSORS) == Role::Other, "{name}");
            assert_eq!(there(name), name);
        }
        // On macOS's own terms.
        assert!(role(Path::new("a/._m.safetensors"), SAFETENSORS) == Role::Other);
    }
}
