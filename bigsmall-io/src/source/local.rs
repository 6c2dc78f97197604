//! A folder on this machine. Its files are opened beneath it, one component after the other, so
//! that nothing that is exchanged meanwhile leads out of it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::os::{self, Dir, Entry, Id};
use crate::progress::Stop;
use crate::source::listing::{FolderOptions, Listing, too_deep};
use crate::stage::lock::lock;

/// Links on the way to one file: as many as Linux follows.
const MAX_LINKS: usize = 40;

/// Where symbolic links of a folder may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// To files of the folder. It may have been made by somebody else.
    Within,
    /// The user's own also to other files and folders: a folder that the user compresses. A link
    /// is the user's own if the user or the superuser made it.
    Own,
}

/// A folder on this machine.
pub(crate) struct Local {
    root: PathBuf,
    /// What files are opened beneath: the folder itself. In a Hub cache, whose snapshots are links
    /// to blobs: the folder of the model.
    bounds: Dir,
    bounds_path: PathBuf,
    /// Where the folder lies in `bounds`.
    base: PathBuf,
    links: Links,
    stop: Stop,
    /// Which files there were when the folder was listed.
    listed: Mutex<BTreeMap<PathBuf, Id>>,
}

enum Found {
    File(File),
    Dir(Dir),
}

impl Local {
    pub(crate) fn open(path: &Path, links: Links, stop: Stop) -> Result<Self> {
        let named = |e: io::Error| Error::from(e).in_file(path);
        let root = path.canonicalize().map_err(named)?;
        let snapshots = root.parent().filter(|p| p.file_name() == Some(OsStr::new("snapshots")));
        let model = snapshots.and_then(Path::parent).filter(|m| m.join("blobs").is_dir());
        let bounds_path = model.unwrap_or(&root).to_owned();
        let base = root.strip_prefix(&bounds_path).unwrap_or(Path::new("")).to_owned();
        let bounds = Dir::open(&bounds_path).map_err(named)?;
        let listed = Mutex::default();
        Ok(Local { root, bounds, bounds_path, base, links, stop, listed })
    }

    /// Opens the regular file `name`, a checked relative path. If the folder was listed, it is the
    /// file that was listed.
    pub(crate) fn open_file(&self, name: &Path) -> Result<File> {
        let path = self.root.join(name);
        let Found::File(file) = self.find(name)? else {
            return Err(Error::new(ErrorKind::NotARegularFile).in_file(path));
        };
        let id = os::id(&file).map_err(|e| Error::from(e).in_file(&path))?;
        match lock(&self.listed).get(name) {
            Some(listed) if *listed != id => Err(Error::new(ErrorKind::SourceChanged)
                .in_file(path)
                .found("another file than when the folder was listed")),
            _ => Ok(file),
        }
    }

    /// Follows `name` component by component, also outside of the folder: there, too, only links
    /// of the user's own.
    fn find(&self, name: &Path) -> Result<Found> {
        let path = self.root.join(name);
        let named = |e: io::Error| Error::from(e).in_file(&path);
        let refused = |kind| Err(Error::new(kind).in_file(&path));
        // What is still to be followed, the next component last.
        let mut rest: Vec<OsString> = Vec::new();
        let push = |rest: &mut Vec<OsString>, path: &Path| {
            let parts = path.components().filter(|c| *c != Component::CurDir);
            rest.extend(parts.rev().map(|c| c.as_os_str().to_owned()));
        };
        push(&mut rest, &self.base.join(name));
        // The root of the file system, outside of the folder.
        let mut top: Option<Dir> = None;
        let mut dirs: Vec<Dir> = Vec::new();
        let (mut n_links, mut all_own) = (0, true);
        while let Some(part) = rest.pop() {
            let mut outside = None;
            if part == ".." {
                if dirs.pop().is_none() && top.is_none() {
                    outside = Some(self.bounds_path.parent().unwrap_or(&self.bounds_path).into());
                }
            } else {
                let dir = dirs.last().or(top.as_ref()).unwrap_or(&self.bounds);
                match dir.entry(&part).map_err(named)? {
                    Entry::File(_) if rest.is_empty() => {
                        let file = dir.file(&part).map_err(named)?;
                        // It may have been exchanged just now.
                        return match file.metadata().map_err(named)?.is_file() {
                            true => Ok(Found::File(file)),
                            false => refused(ErrorKind::NotARegularFile),
                        };
                    }
                    Entry::File(_) | Entry::Other => return refused(ErrorKind::NotARegularFile),
                    Entry::Dir => {
                        let dir = dir.dir(&part).map_err(named)?;
                        dirs.push(dir);
                    }
                    Entry::Link { own } => {
                        (n_links, all_own) = (n_links + 1, all_own && own);
                        if n_links > MAX_LINKS {
                            let found = format!("more than {MAX_LINKS} symbolic links");
                            return Err(Error::new(ErrorKind::Io).in_file(&path).found(found));
                        }
                        let target = dir.link(&part).map_err(named)?;
                        if !target.has_root() && !target.is_absolute() {
                            push(&mut rest, &target);
                        } else if let (None, Ok(within)) =
                            (&top, target.strip_prefix(&self.bounds_path))
                        {
                            dirs.clear();
                            push(&mut rest, within);
                        } else {
                            outside = Some(target);
                        }
                    }
                }
            }
            let leaves = outside.is_some() || top.is_some();
            let may_leave = self.links == Links::Own && n_links > 0 && all_own;
            if leaves && !may_leave {
                return refused(ErrorKind::ModelPath);
            }
            if let Some(target) = outside {
                let is_root =
                    |c: &Component<'_>| matches!(c, Component::Prefix(_) | Component::RootDir);
                let root: PathBuf = target.components().take_while(is_root).collect();
                push(&mut rest, target.strip_prefix(&root).unwrap_or(&target));
                top = Some(Dir::open(&root).map_err(named)?);
                dirs.clear();
            }
        }
        match dirs.pop().or(top) {
            Some(dir) => Ok(Found::Dir(dir)),
            None => Dir::open(&self.bounds_path).map(Found::Dir).map_err(named),
        }
    }

    /// The names in the folder itself.
    pub(crate) fn names_in_root(&self) -> Result<Vec<OsString>> {
        match self.find(Path::new(""))? {
            Found::Dir(dir) => dir.names().map_err(|e| Error::from(e).in_file(&self.root)),
            Found::File(_) => Err(Error::new(ErrorKind::NotARegularFile).in_file(&self.root)),
        }
    }

    /// Lists the folder, and remembers which files there are.
    pub(crate) fn list(&self, options: FolderOptions) -> Result<Listing> {
        let mut walk = Walk {
            local: self,
            listing: Listing::new(options),
            max_depth: options.max_depth,
            listed: BTreeMap::new(),
            within: Vec::new(),
        };
        if let Found::Dir(dir) = self.find(Path::new(""))? {
            walk.dir(&dir, Path::new(""))?;
        }
        let mut listed = lock(&self.listed);
        for (name, id) in walk.listed {
            listed.entry(name).or_insert(id);
        }
        Ok(walk.listing.without_repositories())
    }
}

struct Walk<'a> {
    local: &'a Local,
    listing: Listing,
    max_depth: usize,
    listed: BTreeMap<PathBuf, Id>,
    /// The directories that contain the current one.
    within: Vec<Id>,
}

impl Walk<'_> {
    fn dir(&mut self, dir: &Dir, at: &Path) -> Result<()> {
        let path = self.local.root.join(at);
        let named = |e: io::Error| Error::from(e).in_file(&path);
        self.local.stop.check()?;
        let id = dir.id().map_err(named)?;
        if self.within.contains(&id) {
            let found = "a symbolic link to a folder that contains it";
            return Err(Error::new(ErrorKind::NotARegularFile).in_file(&path).found(found));
        }
        if self.within.len() > self.max_depth {
            return Err(too_deep(self.max_depth).in_file(&path));
        }
        self.within.push(id);
        let mut names = dir.names().map_err(named)?;
        names.sort();
        for part in names {
            let name = at.join(&part);
            if !self.listing.wants(&name) {
                continue;
            }
            let refused = || Error::new(ErrorKind::NotARegularFile).in_file(path.join(&part));
            match dir.entry(&part).map_err(named)? {
                Entry::File(id) => self.file(name, id)?,
                Entry::Dir => {
                    let inner = dir.dir(&part).map_err(named)?;
                    self.dir(&inner, &name)?;
                }
                Entry::Link { .. } => {
                    let found = self.local.find(&name)?;
                    let to = path.join(&part).canonicalize().ok();
                    if let Some(to) = to.filter(|to| !to.starts_with(&self.local.bounds_path)) {
                        self.listing.links_out.insert(name.clone(), to);
                    }
                    match found {
                        Found::File(file) => self.file(name, os::id(&file).map_err(named)?)?,
                        Found::Dir(inner) if self.local.links == Links::Own => {
                            self.dir(&inner, &name)?;
                        }
                        Found::Dir(_) => return Err(refused()),
                    }
                }
                Entry::Other => return Err(refused()),
            }
        }
        self.within.pop();
        if !at.as_os_str().is_empty() {
            self.listing.folders.insert(at.to_owned());
        }
        Ok(())
    }

    fn file(&mut self, name: PathBuf, id: Id) -> Result<()> {
        self.listing.add(name.clone())?;
        self.listed.insert(name, id);
        Ok(())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    use super::*;

    fn text(local: &Local, name: &str) -> std::result::Result<String, ErrorKind> {
        let mut text = String::new();
        let mut file = local.open_file(Path::new(name)).map_err(|e| e.kind())?;
        file.read_to_string(&mut text).map_err(|_| ErrorKind::Io)?;
        Ok(text)
    }

    #[test]
    // F-16
    fn what_is_exchanged_after_the_list_was_made_is_not_read() {
        for links in [Links::Within, Links::Own] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("in");
            std::fs::create_dir_all(root.join("sub")).unwrap();
            std::fs::create_dir(dir.path().join("out")).unwrap();
            for name in ["in/a", "in/sub/b", "in/c", "in/d"] {
                std::fs::write(dir.path().join(name), "right").unwrap();
            }
            std::fs::write(dir.path().join("out/b"), "secret").unwrap();
            let local = Local::open(&root, links, Stop::default()).unwrap();
            assert_eq!(local.list(FolderOptions::new()).unwrap().files.len(), 4);
            assert_eq!(text(&local, "a").unwrap(), "right");
            // A file, a folder, and a file for another one.
            std::fs::remove_file(root.join("a")).unwrap();
            symlink("../out/b", root.join("a")).unwrap();
            std::fs::rename(root.join("sub"), dir.path().join("aside")).unwrap();
            symlink(dir.path().join("out"), root.join("sub")).unwrap();
            std::fs::rename(root.join("d"), root.join("c")).unwrap();
            let wanted = match links {
                Links::Within => ErrorKind::ModelPath,
                Links::Own => ErrorKind::SourceChanged,
            };
            assert_eq!(text(&local, "a").unwrap_err(), wanted);
            assert_eq!(text(&local, "sub/b").unwrap_err(), wanted);
            assert_eq!(text(&local, "c").unwrap_err(), ErrorKind::SourceChanged);
            // A pipe would block.
            std::fs::remove_file(root.join("c")).unwrap();
            rustix::fs::mkfifoat(rustix::fs::CWD, root.join("c"), 0o600.into()).unwrap();
            assert_eq!(text(&local, "c").unwrap_err(), ErrorKind::NotARegularFile);
        }
    }

    #[test]
    // F-07, F-17
    fn links_lead_where_they_may() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("in");
        std::fs::create_dir_all(root.join("sub/deep")).unwrap();
        std::fs::write(root.join("a"), "inside").unwrap();
        std::fs::write(root.join("../b"), "outside").unwrap();
        let link = |to: &str, name: &str| symlink(to, root.join(name)).unwrap();
        link("../../a", "sub/deep/up");
        link(root.join("a").to_str().unwrap(), "sub/absolute");
        link("sub/deep", "to_folder");
        link("../b", "out");
        link("sub/../../b", "out2");
        link(root.join("../b").to_str().unwrap(), "sub/absolute_out");
        link("..", "parent");
        link("circle", "circle");
        let within = Local::open(&root, Links::Within, Stop::default()).unwrap();
        let own = Local::open(&root, Links::Own, Stop::default()).unwrap();
        for name in ["a", "sub/deep/up", "sub/absolute", "to_folder/up"] {
            assert_eq!(text(&within, name).unwrap(), "inside", "{name}");
            assert_eq!(text(&own, name).unwrap(), "inside", "{name}");
        }
        for name in ["out", "out2", "sub/absolute_out", "parent/b"] {
            assert_eq!(text(&within, name).unwrap_err(), ErrorKind::ModelPath, "{name}");
            assert_eq!(text(&own, name).unwrap(), "outside", "{name}");
        }
        assert_eq!(text(&within, "circle").unwrap_err(), ErrorKind::Io);
        assert_eq!(text(&own, "sub").unwrap_err(), ErrorKind::NotARegularFile);
        // Somebody else's link is not followed out of the folder, nor further when one's own has
        // led out. Only the superuser can make one.
        let deeper = root.join("../shared/deeper");
        std::fs::create_dir_all(&deeper).unwrap();
        symlink("../../b", deeper.join("x")).unwrap();
        symlink("deeper/x", root.join("../shared/x")).unwrap();
        symlink("deeper", root.join("../shared/y")).unwrap();
        link("../shared", "ckpt");
        let shared = root.join("../shared").canonicalize().unwrap();
        link(shared.to_str().unwrap(), "sub/ckpt");
        let behind = ["ckpt/x", "ckpt/y/x", "ckpt/deeper/x", "sub/ckpt/x"];
        for name in behind {
            assert_eq!(text(&own, name).unwrap(), "outside", "{name}");
            assert_eq!(text(&within, name).unwrap_err(), ErrorKind::ModelPath, "{name}");
        }
        use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};
        let (user, group) = (Uid::from_raw(12_345), Gid::from_raw(12_345));
        for link in ["out", "../shared/y", "../shared/deeper/x"] {
            let path = root.join(link);
            match chownat(CWD, &path, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(()) => {}
                Err(e) => return eprintln!("SKIPPED: a link of another user ({e})"),
            }
        }
        for name in ["out"].iter().chain(&behind) {
            assert_eq!(text(&own, name).unwrap_err(), ErrorKind::ModelPath, "{name}");
        }
    }
}
