//! The report of a job.

use std::path::{Path, PathBuf};

use crate::source::listing::Listing;
use crate::source::url::shown;

use bigsmall_format::Base;

/// The report of [`compress`](crate::compress), [`restore`](crate::restore),
/// [`verify`](crate::verify) or [`transcode`](crate::transcode).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Bytes of the safetensors files.
    pub original_bytes: u64,
    /// Bytes of the shards.
    pub compressed_bytes: u64,
    /// One for each safetensors file, in the order of their names.
    pub files: Vec<FileReport>,
    /// Files of a folder that were copied as they are.
    pub copied_files: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Files and folders of the input that are not in the output, with `/` between components: what
    /// is hidden, unless the options ask for it, every `.git`, and what downloads leave.
    pub left_out: Vec<String>,
    /// The user's own symbolic links out of the input folder, by their names, and where they lead.
    /// What they lead to is in the output.
    pub links_out: Vec<(String, String)>,
}

/// The report of one safetensors file and its shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileReport {
    /// The input's name, within its folder if any, with `/` between components.
    pub name: String,
    /// Bytes of the safetensors file.
    pub original_bytes: u64,
    /// Bytes of the shard.
    pub compressed_bytes: u64,
    /// SHA-256 of the safetensors file.
    pub sha256: [u8; 32],
    /// Tensors in the file.
    pub n_tensors: u64,
    /// How many of them share the payload of another.
    pub n_shared: u64,
    /// How many of them are stored as differences from a base.
    pub n_deltas: u64,
    /// How many of them are equal to those of a base, and have no payload.
    pub n_inherited: u64,
    /// The bases that the shard needs, as it names them.
    pub bases: Vec<Base>,
    /// Name and MD5 of the original bytes of every tensor, in the order of the data, if requested.
    pub md5s: Vec<(String, [u8; 16])>,
}

impl Report {
    pub(crate) fn of(files: Vec<FileReport>) -> Self {
        Report {
            original_bytes: files.iter().map(|f| f.original_bytes).sum(),
            compressed_bytes: files.iter().map(|f| f.compressed_bytes).sum(),
            files,
            ..Default::default()
        }
    }

    /// With the numbers of files that were copied, and of their bytes.
    pub(crate) fn with_copies(mut self, (files, bytes): (u64, u64)) -> Self {
        (self.copied_files, self.copied_bytes) = (files, bytes);
        self
    }

    /// With what the list of a folder left out, and the links that led out of it.
    pub(crate) fn with_list(mut self, list: &Listing) -> Self {
        self.left_out = list.left_out.iter().map(|name| with_slashes(name)).collect();
        let link =
            |(name, to): (&PathBuf, &PathBuf)| (with_slashes(name), to.display().to_string());
        self.links_out = list.links_out.iter().map(link).collect();
        self
    }

    /// Compressed size / original size; smaller is better. 1 for an empty original.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        ratio(self.original_bytes, self.compressed_bytes)
    }
}

pub(crate) fn ratio(original: u64, compressed: u64) -> f64 {
    if original == 0 { 1.0 } else { compressed as f64 / original as f64 }
}

/// The name of a file within its folder, the same on every system.
pub(crate) fn with_slashes(name: &Path) -> String {
    let parts = name.components().map(|part| part.as_os_str().to_string_lossy());
    parts.collect::<Vec<_>>().join("/")
}

/// The last component of a path or URL, for a report.
#[must_use]
pub fn file_name(path: &Path) -> String {
    Path::new(&shown(path)).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Lower-case hexadecimal digits, as checksums are written.
///
/// ```
/// assert_eq!(bigsmall_io::hex(&[0xBA, 0x5E]), "ba5e");
/// ```
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_reports_are_the_same_on_every_system() {
        let name: PathBuf = ["a b", "c", "d.bs"].iter().collect();
        assert_eq!(with_slashes(&name), "a b/c/d.bs");
        let mut list = Listing::default();
        list.left_out.insert(name.join("./.x"));
        assert_eq!(Report::default().with_list(&list).left_out, ["a b/c/d.bs/.x"]);
    }
}
