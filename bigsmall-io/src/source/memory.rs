//! A folder of files in memory, whose names anybody may have chosen: for tests.

use crate::error::{Error, ErrorKind, Result};
use crate::source::file::Source;
use crate::source::folder::RemoteFolder;

/// Names and contents.
pub(crate) struct Files(pub(crate) Vec<(String, Vec<u8>)>);

impl RemoteFolder for Files {
    fn names(&self, _most: u64) -> Result<Vec<String>> {
        Ok(self.0.iter().map(|(name, _)| name.clone()).collect())
    }

    fn open(&self, name: &str) -> Result<Source> {
        let found = self.0.iter().find(|(n, _)| n == name);
        let missing = || Error::new(ErrorKind::Remote).in_file(name).found("no such file");
        Ok(Source::new(found.ok_or_else(missing)?.1.clone()))
    }
}
