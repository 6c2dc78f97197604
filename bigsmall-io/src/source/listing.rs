//! The one list of names of a folder, whatever kind of folder it is, and the names that it may
//! have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// Which files of a folder a job takes, and how many there may be.
///
/// ```
/// let folder = bigsmall_io::FolderOptions::new().hidden(true);
/// let options = bigsmall_io::CompressOptions::new().folder(folder);
/// assert_eq!(options.folder.max_files, 1 << 20);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FolderOptions {
    /// Also take files whose name, or whose folder's name, begins with a dot. What is in a `.git`
    /// is never taken.
    pub hidden: bool,
    /// The most files: 1,048,576, unless it is set. No repository of the Hub has as many.
    pub max_files: u64,
    /// The most levels of folders in folders: 100, unless it is set. On this machine every level
    /// keeps a file open while it is listed, of the 1024 (or 256) that a process usually may have.
    pub max_depth: usize,
}

impl Default for FolderOptions {
    fn default() -> Self {
        FolderOptions { hidden: false, max_files: 1 << 20, max_depth: 100 }
    }
}

impl FolderOptions {
    /// No hidden files; the default limits.
    #[must_use]
    pub fn new() -> Self {
        FolderOptions::default()
    }

    /// Sets [`hidden`](Self#structfield.hidden).
    #[must_use]
    pub fn hidden(mut self, hidden: bool) -> Self {
        self.hidden = hidden;
        self
    }

    /// Sets [`max_files`](Self#structfield.max_files).
    #[must_use]
    pub fn max_files(mut self, max_files: u64) -> Self {
        self.max_files = max_files;
        self
    }

    /// Sets [`max_depth`](Self#structfield.max_depth).
    #[must_use]
    pub fn max_depth(mut self, max_depth: usize) -> Self {
        self.max_depth = max_depth;
        self
    }
}

/// The names of a folder, relative to it.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Every file, in the order of the names.
    pub(crate) files: BTreeSet<PathBuf>,
    /// Every folder, where folders exist: on this machine.
    pub(crate) folders: BTreeSet<PathBuf>,
    /// The symbolic links that lead out of the folder, and where.
    pub(crate) links_out: BTreeMap<PathBuf, PathBuf>,
    /// Files and folders that were left out.
    pub(crate) left_out: BTreeSet<PathBuf>,
    options: FolderOptions,
}

impl Listing {
    pub(crate) fn new(options: FolderOptions) -> Self {
        Listing { options, ..Default::default() }
    }

    /// Whether the file or folder `name` belongs to the list. If not, notes that it is left out.
    pub(crate) fn wants(&mut self, name: &Path) -> bool {
        let mut path = PathBuf::new();
        for part in name.components() {
            path.push(part);
            let part = part.as_os_str().to_string_lossy();
            // Git runs what is written in its folder.
            if is_git(&part) || is_hidden(&part) && !self.options.hidden {
                self.left_out.insert(path);
                return false;
            }
        }
        true
    }

    /// Without what programs leave that download files: the folder `.cache/huggingface`, a file
    /// `X.incomplete`, and an `X.lock` beside `X`.
    pub(crate) fn without_downloads(mut self) -> Self {
        let bookkeeping = |name: &Path| {
            let within = |path: &&Path| path.ends_with(".cache/huggingface");
            name.ancestors().find(within).map(Path::to_owned)
        };
        let left = |name: &Path| match name.extension()?.to_str()? {
            "incomplete" => Some(name.to_owned()),
            "lock" => self.files.contains(&name.with_extension("")).then(|| name.to_owned()),
            _ => None,
        };
        let files = self.files.iter().filter_map(|name| bookkeeping(name).or_else(|| left(name)));
        let folders = self.folders.iter().filter_map(|name| bookkeeping(name));
        let out: BTreeSet<PathBuf> = files.chain(folders).collect();
        let stays = |name: &PathBuf| !name.ancestors().any(|name| out.contains(name));
        self.files.retain(stays);
        self.folders.retain(stays);
        self.left_out.extend(out);
        self
    }

    /// A folder of the Hub's cache in this folder.
    pub(crate) fn hub_cache(&self) -> Option<&Path> {
        let of_model = |name: &&PathBuf| {
            name.ends_with("snapshots") && self.folders.contains(&name.with_file_name("blobs"))
        };
        self.folders.iter().find(of_model)?.parent()
    }

    /// Without the `HEAD` of folders that Git takes for repositories, though they have no `.git`:
    /// it runs what is written in their `config`.
    pub(crate) fn without_repositories(mut self) -> Self {
        let key = |path: &Path| path.to_string_lossy().replace('\\', "/").to_ascii_lowercase();
        let is_head = |name: &&PathBuf| {
            let name = name.file_name().unwrap_or_default().to_string_lossy();
            as_git_reads(&name) == "head"
        };
        let heads: Vec<PathBuf> = self.files.iter().filter(is_head).cloned().collect();
        if heads.is_empty() {
            return self;
        }
        let all = self.files.iter().chain(&self.folders);
        let all: BTreeSet<String> = all.flat_map(|name| name.ancestors().map(key)).collect();
        for head in heads {
            let has = |name: &str| all.contains(&key(&head.with_file_name(name)));
            if has("commondir") || has("objects") && has("refs") {
                self.files.remove(&head);
                self.left_out.insert(head);
            }
        }
        self
    }

    /// Adds a file.
    pub(crate) fn add(&mut self, name: PathBuf) -> Result<()> {
        if name.components().count() > self.options.max_depth.saturating_add(1) {
            return Err(too_deep(self.options.max_depth).in_file(&name));
        }
        if self.files.len() as u64 >= self.options.max_files {
            return Err(too_many(self.options.max_files));
        }
        let shown = name.to_string_lossy().into_owned();
        match self.files.insert(name) {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Remote)
                .in_file(shown)
                .found("the list of the folder's files names it twice")),
        }
    }
}

/// A folder has more files than the limit.
pub(crate) fn too_many(most: u64) -> Error {
    Error::new(ErrorKind::TooManyFiles)
        .expected(format!("at most {most}"))
        .found(format!("{} or more", most.saturating_add(1)))
}

/// A file lies in more folders than the limit.
pub(crate) fn too_deep(most: usize) -> Error {
    Error::new(ErrorKind::FolderTooDeep)
        .expected(format!("at most {most} folders in one another"))
        .found(format!("{} or more", most.saturating_add(1)))
}

/// Whether a name begins with a dot, and is not one of those that lead elsewhere.
pub(crate) fn is_hidden(part: &str) -> bool {
    part.starts_with('.') && !matches!(part, "." | "..")
}

/// Whether some file system takes `part` for Git's own `.git`: also in other cases, with characters
/// that HFS+ ignores, by its short name on Windows, with trailing dots and spaces.
pub(crate) fn is_git(part: &str) -> bool {
    let name = as_git_reads(part);
    name == ".git" || name == "git~1"
}

/// A name without what file systems do not tell apart, in lower case.
fn as_git_reads(part: &str) -> String {
    let ignored = |c: &char| {
        matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}')
            || *c == '\u{feff}'
    };
    let name: String = part.chars().filter(|c| !ignored(c)).collect();
    name.trim_end_matches(['.', ' ']).to_ascii_lowercase()
}

/// The name of a file that another machine or a file names must be a relative path of plain
/// components on every system. It must not lead out of the folder, nor into Git's, nor name a
/// drive, a stream or a device.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let plain = !name.is_empty()
        && !name.contains(['\\', ':', '\0'])
        && name.split('/').all(|part| !matches!(part, "" | "." | "..") && !is_git(part))
        && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)))
        && !(cfg!(windows) && name.split('/').any(is_special_on_windows));
    match plain {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::ModelPath)
            .expected("a name within the folder")
            .found(format!("{name:?}"))),
    }
}

/// Whether Windows takes a name for a device, or changes it.
fn is_special_on_windows(part: &str) -> bool {
    const DEVICES: [&str; 6] = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"];
    let stem = part.split('.').next().unwrap_or(part).trim_end_matches(' ').to_ascii_uppercase();
    let port = ["COM", "LPT"].iter().any(|port| {
        stem.strip_prefix(port).is_some_and(|n| {
            let mut digits = n.chars();
            matches!((digits.next(), digits.next()), (Some('0'..='9' | '¹' | '²' | '³'), None))
        })
    });
    port || DEVICES.contains(&&*stem)
        || part.ends_with(['.', ' '])
        || part.contains(|c: char| c < ' ' || "<>\"|?*".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    // N-01
    fn gits_own_folder_is_known_by_every_name_that_leads_to_it() {
        for name in [
            ".git",
            ".GIT",
            ".Git",
            ".git.",
            ".git ",
            ".git. . ",
            "git~1",
            "GIT~1",
            ".g\u{200c}it",
            "\u{feff}.git",
        ] {
            assert!(is_git(name), "{name:?}");
            for path in [name.to_owned(), format!("{name}/config"), format!("a/{name}/b")] {
                assert!(check_name(&path).is_err(), "{path:?}");
                for hidden in [false, true] {
                    let mut listing = Listing::new(FolderOptions::new().hidden(hidden));
                    assert!(!listing.wants(Path::new(&path)), "{path:?}");
                    assert_eq!(listing.left_out.len(), 1);
                }
            }
        }
        for name in [".gitattributes", ".github", "git", "a.git", "git~2", ".git2"] {
            assert!(!is_git(name), "{name:?}");
        }
    }

    #[test]
    // N-09
    fn a_repository_without_a_git_folder_is_none_afterwards() {
        let listed = |names: &[&str]| {
            let mut listing = Listing::new(FolderOptions::new());
            names.iter().for_each(|name| listing.add(name.into()).unwrap());
            listing.without_repositories()
        };
        for (head, others) in [
            ("HEAD", ["objects/info/packs", "refs/heads/x"]),
            ("a/Head", ["a/OBJECTS/x", "a/refs/x"]),
            ("head", ["commondir", "config"]),
        ] {
            let listing = listed(&[head, others[0], others[1]]);
            assert_eq!(listing.files, others.map(PathBuf::from).into(), "{head}");
            assert_eq!(listing.left_out, [PathBuf::from(head)].into());
        }
        // Files that happen to have these names.
        for names in [&["HEAD", "refs/x"][..], &["HEAD", "a/objects", "a/refs"], &["objects/HEAD"]]
        {
            assert_eq!(listed(names).files.len(), names.len(), "{names:?}");
        }
    }

    #[test]
    // N-07
    fn names_of_any_source_have_a_depth() {
        let mut listing = Listing::new(FolderOptions::new().max_depth(2));
        listing.add("a/b/c".into()).unwrap();
        let error = listing.add("a/b/c/d".into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FolderTooDeep);
    }

    #[test]
    // N-02
    fn hidden_files_are_listed_where_the_caller_asks_for_them() {
        for name in [".envrc", ".ssh/authorized_keys", "a/.x/y", "._model.bs"] {
            let mut listing = Listing::new(FolderOptions::new());
            assert!(!listing.wants(Path::new(name)), "{name}");
            let mut listing = Listing::new(FolderOptions::new().hidden(true));
            assert!(listing.wants(Path::new(name)) && listing.left_out.is_empty(), "{name}");
        }
        assert!(Listing::new(FolderOptions::new()).wants(Path::new("a/b.c")));
    }

    #[test]
    // N-08
    fn what_downloads_leave_is_left_out() {
        let mut listing = Listing::new(FolderOptions::new().hidden(true));
        let stays = ["a/poetry.lock", "model", ".cache/other", "incomplete", "huggingface/x"];
        let leaves = ["b.x.lock", "d.incomplete", "e/f.deadbeef.incomplete"];
        for name in stays.iter().chain(&leaves).chain(&["b.x", ".cache/huggingface/download/m"]) {
            listing.add(name.into()).unwrap();
        }
        for name in [".cache", ".cache/huggingface", ".cache/huggingface/download", "e"] {
            listing.folders.insert(name.into());
        }
        let listing = listing.without_downloads();
        let expected: BTreeSet<PathBuf> = stays.iter().chain(&["b.x"]).map(PathBuf::from).collect();
        assert_eq!(listing.files, expected);
        assert_eq!(listing.folders, [".cache", "e"].map(PathBuf::from).into());
        let out = leaves.iter().chain(&[".cache/huggingface"]).map(PathBuf::from).collect();
        assert_eq!(listing.left_out, out);
        let mut listing = Listing::new(FolderOptions::new());
        let folders = ["hub", "hub/models--o--m", "hub/models--o--m/blobs", "x/snapshots"];
        listing.folders = folders.map(PathBuf::from).into();
        assert_eq!(listing.hub_cache(), None);
        listing.folders.insert("hub/models--o--m/snapshots".into());
        assert_eq!(listing.hub_cache(), Some(Path::new("hub/models--o--m")));
    }

    #[test]
    fn a_name_that_leads_out_is_refused_and_not_left_out() {
        for name in ["../x", "a/../../x", "./x", "/x"] {
            assert!(
                Listing::new(FolderOptions::new()).wants(Path::new(name))
                    && check_name(name).is_err()
            );
        }
    }

    #[test]
    // N-03
    fn a_list_has_a_bound_and_no_name_twice() {
        let mut listing = Listing::new(FolderOptions::new().max_files(2));
        listing.add("a".into()).unwrap();
        assert_eq!(listing.add("a".into()).unwrap_err().kind(), ErrorKind::Remote);
        listing.add("b".into()).unwrap();
        let error = listing.add("c".into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooManyFiles);
        assert!(error.to_string().contains("at most 2, found 3 or more"), "{error}");
    }

    #[test]
    fn names_that_windows_reads_in_another_way_are_known() {
        for name in ["con", "NUL.txt", "com1", "LPT³.x", "aux .b", "a.", "a ", "a?b", "a\u{1}"] {
            assert!(is_special_on_windows(name), "{name:?}");
        }
        for name in ["console", "com", "com10", "null", ".a", "a b", "größe"] {
            assert!(!is_special_on_windows(name), "{name:?}");
        }
    }
}
