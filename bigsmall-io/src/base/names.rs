//! What tensors are called in a base, where the user says it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use bigsmall_format::Header;

use crate::base::model::BaseModel;
use crate::error::{Error, ErrorKind, Result};

/// Names of tensors, each with the name in the base.
pub(crate) type Names = BTreeMap<String, String>;

/// The names that were given for several files, and those of them that each file has.
pub(crate) struct NamesOfFiles<'a> {
    given: &'a Names,
    of: HashMap<PathBuf, Names>,
}

impl<'a> NamesOfFiles<'a> {
    pub(crate) fn new(given: &'a Names) -> Self {
        NamesOfFiles { given, of: HashMap::new() }
    }

    /// Adds a file with the tensors of `header`.
    pub(crate) fn add(&mut self, file: &Path, header: &Header) {
        let found = self.given.iter().filter(|(name, _)| header.index_of(name).is_some());
        let found = found.map(|(name, of_base)| (name.clone(), of_base.clone())).collect();
        self.of.insert(file.to_owned(), found);
    }

    /// The names that `file` has.
    pub(crate) fn of(&self, file: &Path) -> &Names {
        self.of.get(file).unwrap_or(self.given)
    }

    /// Refuses a name that none of the files has, and one that the base does not have.
    pub(crate) fn check(&self, base: &BaseModel) -> Result<()> {
        for (name, of_base) in self.given {
            if !self.of.values().any(|of_file| of_file.contains_key(name)) {
                return Err(not_in_input(name));
            }
            if !base.has(of_base) {
                return Err(not_in_base(name, of_base));
            }
        }
        Ok(())
    }
}

/// The error for the name of a tensor that the input does not have.
pub(crate) fn not_in_input(name: &str) -> Error {
    let error = Error::new(ErrorKind::Argument).in_tensor(name);
    error.expected("a tensor of the input").found("none of that name")
}

/// The error for `of_base`, which was given as the name that the tensor `name` has in the base.
pub(crate) fn not_in_base(name: &str, of_base: &str) -> Error {
    let error = Error::new(ErrorKind::Argument).in_tensor(name);
    error.expected("the name of a tensor that the base has for it").found(of_base)
}
