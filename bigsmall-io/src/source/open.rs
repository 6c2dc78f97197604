//! From a path or URL to files. No other code looks at schemes.

use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::os;
use crate::progress::Stop;
use crate::source::file::Source;
use crate::source::folder::{Folder, Input};
use crate::source::local::Links;
use crate::source::url::{shown, url};

/// Opens a file, a folder or a URL, to read shards from it. `stop` ends every wait.
pub(crate) fn open(path: &Path, stop: &Stop) -> Result<Input> {
    let named = |e: Error| e.in_file(shown(path));
    if let Some(url) = url(path) {
        return open_url(url, stop).map_err(named);
    }
    match path.is_dir() {
        true => Ok(Input::Folder(Folder::open(path, Links::Within, stop.clone())?)),
        false => Ok(Input::File(Source::local(os::open_regular(path)?).map_err(Error::from)?)),
    }
}

#[cfg_attr(not(any(feature = "http", feature = "cloud")), allow(unused_variables))]
fn open_url(url: &str, stop: &Stop) -> Result<Input> {
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
            return crate::source::hub::open(url, stop);
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
fn missing(feature: &str) -> Result<Input> {
    Err(Error::new(ErrorKind::FeatureMissing)
        .expected(format!("a build with the feature `{feature}`")))
}
