//! From a path or URL to a store.

use std::path::Path;

use crate::error::{Context as _, Result};
#[cfg(not(feature = "cloud"))]
use crate::error::{Error, ErrorKind};
use crate::source::url::url;
use crate::sync::store::{LocalFolder, Store};

/// The store at a path or URL. A folder is made if `create` is set.
pub(crate) fn open(place: &Path, create: bool) -> Result<Box<dyn Store>> {
    match url(place) {
        #[cfg(feature = "cloud")]
        Some(url) => Ok(Box::new(crate::sync::objects::Objects::open(url)?)),
        #[cfg(not(feature = "cloud"))]
        Some(_) => Err(Error::new(ErrorKind::FeatureMissing)
            .in_file(crate::source::url::shown(place))
            .expected("a build with the feature `cloud`")),
        None => {
            if create {
                std::fs::create_dir_all(place).in_file(place)?;
            }
            Ok(Box::new(LocalFolder(place.to_owned())))
        }
    }
}
