//! An index file on an HTTP server, and the shards that it names.

use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::model_index::{IndexBytes, ModelIndex};
use crate::names::{INDEX, Role, SHARD, role};
use crate::progress::Stop;
use crate::source::file::Source;
use crate::source::folder::{Folder, Input, RemoteFolder};
use crate::source::http::client::Client;
use crate::source::http::file::HttpFile;
use crate::source::http::options::HttpOptions;
use crate::source::url::encoded;

/// Opens the URL of a shard, or of an index file whose shards lie beside it.
pub(crate) fn open(url: &str, stop: &Stop) -> Result<Input> {
    let client = Client::new(HttpOptions::default(), stop.clone());
    let (path, query) =
        url.split_once('?').map_or((url, None), |(path, query)| (path, Some(query)));
    if role(Path::new(path), SHARD) != Role::Index && !path.ends_with(INDEX) {
        return Ok(Input::File(Source::new(HttpFile::open_with(&client, url)?)));
    }
    let (base, index) = path.rsplit_once('/').unwrap_or(("", path));
    let suffix = query.map_or(String::new(), |query| format!("?{query}"));
    let files = Files { client, base: format!("{base}/"), suffix, index: index.to_owned() };
    Ok(Input::Folder(Folder::remote(files)))
}

/// An index file and the shards that it names.
struct Files {
    client: Arc<Client>,
    base: String,
    suffix: String,
    index: String,
}

impl RemoteFolder for Files {
    /// At most as many as a model has shards: the index file is bounded.
    fn names(&self, _most: u64) -> Result<Vec<String>> {
        let (_, index) = ModelIndex::read(&self.open(&self.index)?, &mut IndexBytes::default())?;
        let shards = index.shards().into_iter().map(str::to_owned);
        Ok(std::iter::once(self.index.clone()).chain(shards).collect())
    }

    fn open(&self, name: &str) -> Result<Source> {
        let url = format!("{}{}{}", self.base, encoded(name), self.suffix);
        Ok(Source::new(HttpFile::open_with(&self.client, &url)?))
    }
}
