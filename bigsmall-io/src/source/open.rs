//! From a path or URL to files. No other code looks at schemes.

use std::path::{Path, PathBuf};

use bigsmall_format::internal::Shown;

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::model_index::{IndexBytes, ModelIndex};
use crate::names::{Role, SHARD, role};
use crate::os;
use crate::progress::{Progress, Stop};
use crate::source::file::Source;
use crate::source::folder::{Folder, Input, Names, RemoteFolder};
use crate::source::listing::check_name;
use crate::source::local::{Links, Local};
use crate::source::url::{shown, url};

/// Opens a file, a folder or a URL, to read shards from it. `stop` ends every wait.
pub(crate) fn open(path: &Path, stop: &Stop) -> Result<Input> {
    let named = |e: Error| e.in_file(shown(path));
    if let Some(url) = url(path) {
        return open_url(url, false, stop).map_err(named);
    }
    if path.is_dir() {
        let snapshot = snapshot(path)?;
        let path = snapshot.as_deref().unwrap_or(path);
        return Ok(Input::Folder(Folder::open(path, Links::Within, stop.clone())?));
    }
    let file = os::open_regular(path)?;
    match (role(path, SHARD), path.parent(), path.file_name().and_then(|name| name.to_str())) {
        (Role::Index, Some(folder), Some(index)) => {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            let folder = Local::open(folder, Links::Within, stop.clone())?;
            Ok(Input::Folder(Folder::remote(Indexed { folder, index: index.to_owned() })))
        }
        _ => Ok(Input::File(Source::local(file)?)),
    }
}

/// Opens a file, a folder or a URL, to compress it. The links of a folder are the user's own. Every
/// file of a folder is there.
pub(crate) fn open_original(path: &Path, progress: &Progress) -> Result<Input> {
    let stop = progress.stop();
    if let Some(url) = url(path) {
        return open_url(url, true, &stop).map_err(|e| e.in_file(shown(path)));
    }
    if !path.is_dir() {
        return Ok(Input::File(Source::local(os::open_regular(path)?).in_file(path)?));
    }
    let snapshot = snapshot(path)?;
    if let Some(snapshot) = &snapshot {
        let shown = snapshot.to_string_lossy();
        progress.warn(&format!("of this cache of the Hub, {} is taken", Shown::message(&shown)));
    }
    Ok(Input::Folder(Folder::open(snapshot.as_deref().unwrap_or(path), Links::Own, stop)?))
}

/// An index file on this machine, and the shards that it names.
struct Indexed {
    folder: Local,
    index: String,
}

impl RemoteFolder for Indexed {
    fn names(&self, _most: u64) -> Result<Vec<String>> {
        let (_, index) = ModelIndex::read(&self.open(&self.index)?, &mut IndexBytes::default())?;
        let shards = index.shards().into_iter().map(str::to_owned);
        Ok(std::iter::once(self.index.clone()).chain(shards).collect())
    }

    fn open(&self, name: &str) -> Result<Source> {
        Ok(Source::local(self.folder.open_file(Path::new(name))?)?)
    }
}

/// Of the folder of a model in the Hub's cache, `models--owner--name`, the snapshot of the branch
/// `main`, or the only one. `None` for any other folder.
///
/// # Errors
/// [`ErrorKind::Argument`] if there are several others, or none.
pub(crate) fn snapshot(path: &Path) -> Result<Option<PathBuf>> {
    let (snapshots, refs) = (path.join("snapshots"), path.join("refs"));
    let is_model = || {
        let name = path.canonicalize().ok();
        let name = name.as_deref().and_then(Path::file_name).unwrap_or_default();
        name.to_string_lossy().starts_with("models--") || refs.is_dir()
    };
    // Links are not followed here: somebody else may have made the folder. The Hub's programs make
    // links of files alone.
    let is_dir = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_dir());
    if !is_dir(&snapshots) || !path.join("blobs").is_dir() || !is_model() {
        return Ok(None);
    }
    if let Some(main) = os::small_text(&refs.join("main"))
        && check_name(main.trim()).is_ok()
        && is_dir(&snapshots.join(main.trim()))
    {
        return Ok(Some(snapshots.join(main.trim())));
    }
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&snapshots).in_file(&snapshots)? {
        all.push(entry.in_file(&snapshots)?.path());
    }
    match &all[..] {
        [only] if is_dir(only) => Ok(Some(only.clone())),
        _ => Err(Error::new(ErrorKind::Argument)
            .in_file(path)
            .expected("one of the snapshots in this cache of the Hub")
            .found(format!("{} snapshots, none of which is `main`", all.len()))),
    }
}

/// What the Hub lists of the repository `path`, hf://owner/name.
#[cfg_attr(not(feature = "hub"), allow(unused_variables))]
pub(crate) fn names_of_hub(path: &Path, stop: &Stop) -> Result<Names> {
    match url(path).filter(|url| url.to_ascii_lowercase().starts_with("hf://")) {
        #[cfg(feature = "hub")]
        Some(url) => crate::source::hub::names(url, stop).map_err(|e| e.in_file(url)),
        #[cfg(not(feature = "hub"))]
        Some(_) => missing("hub"),
        None => Err(Error::new(ErrorKind::Argument)
            .expected("a repository of the Hub, hf://owner/name")
            .found(shown(path))),
    }
}

/// Opens a URL: from the Hub's cache only if that has every file, or else the weights.
#[cfg_attr(not(all(feature = "hub", feature = "cloud")), allow(unused_variables))]
fn open_url(url: &str, every_file: bool, stop: &Stop) -> Result<Input> {
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
    match &*scheme {
        "http" | "https" => {
            #[cfg(feature = "http")]
            return crate::source::http::folder::open(url, stop);
            #[cfg(not(feature = "http"))]
            missing("http")
        }
        "hf" => {
            #[cfg(feature = "hub")]
            return crate::source::hub::open(url, every_file, stop);
            #[cfg(not(feature = "hub"))]
            missing("hub")
        }
        "s3" | "s3a" | "gs" | "az" | "adl" | "azure" | "abfs" | "abfss" => {
            #[cfg(feature = "cloud")]
            return crate::source::cloud::open(url, stop);
            #[cfg(not(feature = "cloud"))]
            missing("cloud")
        }
        _ => Err(Error::new(ErrorKind::Argument)
            .expected("a path, http://, https://, hf://, s3://, gs:// or az://")
            .found(format!("{scheme:?}"))),
    }
}

#[cfg(not(all(feature = "http", feature = "hub", feature = "cloud")))]
fn missing<T>(feature: &str) -> Result<T> {
    Err(Error::new(ErrorKind::FeatureMissing)
        .expected(format!("a build with the feature `{feature}`")))
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    // F-22
    fn a_cache_of_somebody_else_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("models--o--n");
        for name in ["blobs", "refs", "snapshots/abc"] {
            std::fs::create_dir_all(cache.join(name)).unwrap();
        }
        std::fs::write(cache.join("refs/main"), "abc\n").unwrap();
        let found = snapshot(&cache).unwrap();
        assert_eq!(found, Some(cache.join("snapshots/abc")));
        // A file without an end, then a snapshot that is a link, then a folder of links.
        std::fs::remove_file(cache.join("refs/main")).unwrap();
        symlink("/dev/zero", cache.join("refs/main")).unwrap();
        assert_eq!(snapshot(&cache).unwrap(), found, "the only one");
        std::fs::remove_dir(cache.join("snapshots/abc")).unwrap();
        symlink("/", cache.join("snapshots/abc")).unwrap();
        assert_eq!(snapshot(&cache).unwrap_err().kind(), ErrorKind::Argument);
        std::fs::remove_file(cache.join("refs/main")).unwrap();
        std::fs::write(cache.join("refs/main"), "abc").unwrap();
        assert_eq!(snapshot(&cache).unwrap_err().kind(), ErrorKind::Argument);
        std::fs::remove_dir_all(cache.join("snapshots")).unwrap();
        symlink("/", cache.join("snapshots")).unwrap();
        assert_eq!(snapshot(&cache).unwrap(), None);
    }
}
