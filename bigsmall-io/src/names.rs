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
    let index = format!("{ending}{INDEX}");
    if name.ends_with(ending) {
        Role::Weights
    } else if name.ends_with(&index) {
        Role::Index
    } else {
        Role::Other
    }
}

/// `name` with the ending `to` instead of `from`, also before `.index.json`.
pub(crate) fn renamed(name: &Path, from: &str, to: &str) -> PathBuf {
    let file = name.file_name().unwrap_or_default().as_encoded_bytes();
    for tail in ["", INDEX] {
        let ending = format!("{from}{tail}");
        if let Some(stem) = file.strip_suffix(ending.as_bytes()) {
            // `weights` has refused names that are not Unicode.
            let mut new = String::from_utf8_lossy(stem).into_owned();
            new.push_str(to);
            new.push_str(tail);
            return name.with_file_name(new);
        }
    }
    name.to_owned()
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
