//! Models on the Hugging Face Hub: its URLs, and the local cache of its programs.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bigsmall_format::Shard;
use bigsmall_format::internal::Shown;
use serde_core::Deserializer;
use serde_core::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, ErrorKind, Result};
use crate::json::{Fields, Object, OrNull, Text};
use crate::limits::raised;
use crate::names::{Role, SAFETENSORS, SHARD, role};
use crate::os;
use crate::progress::Stop;
use crate::source::file::Source;
use crate::source::folder::{Folder, Input, Names, RemoteFolder};
use crate::source::http::client::{Client, TEXT};
use crate::source::http::file::HttpFile;
use crate::source::http::options::HttpOptions;
use crate::source::listing::{FolderOptions, Listing, check_name, too_many};
use crate::source::local::Links;
use crate::source::url::encoded;

/// What `hf://owner/name@revision/path` names.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    owner: &'a str,
    name: &'a str,
    revision: &'a str,
    /// A file; `None` for the whole repository.
    path: Option<&'a str>,
}

impl<'a> Place<'a> {
    fn parse(url: &'a str) -> Result<Self> {
        let wrong = || {
            Error::new(ErrorKind::Argument)
                .expected("hf://owner/name, hf://owner/name@revision/file.bs")
                .found(format!("{url:?}"))
        };
        let rest = url.split_once("://").ok_or_else(wrong)?.1;
        let (owner, rest) = rest.split_once('/').ok_or_else(wrong)?;
        let (repository, path) = rest.split_once('/').map_or((rest, None), |(r, p)| (r, Some(p)));
        let (name, revision) = repository.split_once('@').unwrap_or((repository, "main"));
        let path = path.filter(|p| !p.is_empty());
        // The characters that the Hub allows in names. None has a special meaning in a path or a
        // URL.
        let plain = |s: &str| {
            !s.is_empty()
                && !s.starts_with('.')
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if !plain(owner) || !plain(name) || revision.is_empty() {
            return Err(wrong());
        }
        // A branch name may contain a slash, written as %2F. It becomes part of a path.
        check_name(&revision.replace("%2F", "/"))?;
        path.map_or(Ok(()), check_name)?;
        Ok(Place { owner, name, revision, path })
    }

    /// A commit never changes, so its files in the cache are valid.
    fn is_commit(&self) -> bool {
        self.revision.len() == 40 && self.revision.bytes().all(|b| b.is_ascii_hexdigit())
    }
}

/// Settings from the environment, under the names that Hugging Face's programs use.
struct Settings {
    endpoint: String,
    token: Option<String>,
    cache: Option<PathBuf>,
    offline: bool,
}

impl Settings {
    fn of_environment() -> Self {
        let var = |name| env::var(name).ok().filter(|v| !v.is_empty());
        let path = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = || {
            let home = || path("HOME").or_else(|| path("USERPROFILE"));
            path("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache")))
        };
        let home = || path("HF_HOME").or_else(|| Some(cache()?.join("huggingface")));
        let in_file = || {
            let file = path("HF_TOKEN_PATH").or_else(|| Some(home()?.join("token")))?;
            os::small_text(&file)
        };
        // As the Hub's programs do, which leave out line ends and spaces.
        let clean = |token: String| Some(token.trim().to_owned()).filter(|t| !t.is_empty());
        let token = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find_map(|n| clean(var(n)?));
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Settings {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.or_else(|| clean(in_file()?)),
            cache: path("HF_HUB_CACHE").or_else(|| Some(home()?.join("hub"))),
            offline: var("HF_HUB_OFFLINE").is_some_and(|v| !matches!(&*v, "0" | "false" | "no")),
        }
    }
}

/// The cache's folder of one repository.
struct Cache(Option<PathBuf>);

impl Cache {
    /// The folder of a commit, if it is in the cache.
    fn snapshot(&self, commit: &str) -> Option<PathBuf> {
        let found = self.0.as_ref()?.join("snapshots").join(commit);
        found.is_dir().then_some(found)
    }

    /// The folder of the commit that a branch or tag had when it was fetched.
    fn revision(&self, revision: &str) -> Option<PathBuf> {
        let text = os::small_text(&self.0.as_ref()?.join("refs").join(revision))?;
        let commit = text.trim();
        check_name(commit).ok()?;
        self.snapshot(commit)
    }
}

/// Whether `snapshot` has all the weights. The cache contains only the files that were requested.
fn is_whole(snapshot: &Path, weights: &[String]) -> bool {
    !weights.is_empty() && weights.iter().all(|name| snapshot.join(name).is_file())
}

fn local(snapshot: &Path, path: Option<&str>, stop: &Stop) -> Result<Input> {
    let folder = Folder::open(snapshot, Links::Within, stop.clone())?;
    match path {
        Some(path) => Ok(Input::File(folder.open_file(Path::new(path))?)),
        None => Ok(Input::Folder(folder)),
    }
}

/// Asks for the commit and the files of a repository.
fn ask(
    place: &Place<'_>,
    endpoint: &str,
    token: Option<String>,
    stop: &Stop,
) -> (Arc<Client>, Result<(String, Names)>) {
    let Place { owner, name, .. } = place;
    let revision = encoded(&place.revision.replace("%2F", "/")).replace('/', "%2F");
    let page = format!("{endpoint}/{owner}/{name}");
    let client = Client::of_hub(HttpOptions::new().token(token), stop.clone(), page);
    let url = format!("{endpoint}/api/models/{owner}/{name}/revision/{revision}?blobs=true");
    let answer = client.text(&url).and_then(|text| listed(&text));
    (client, answer)
}

/// What the Hub lists of the repository `url`.
pub(crate) fn names(url: &str, stop: &Stop) -> Result<Names> {
    let place = Place::parse(url)?;
    if let Some(path) = place.path {
        return Err(Error::new(ErrorKind::Argument)
            .expected("a repository of the Hub, hf://owner/name")
            .found(format!("its file {:?}", Shown::name(path))));
    }
    let settings = Settings::of_environment();
    Ok(ask(&place, &settings.endpoint, settings.token, stop).1?.1)
}

/// Opens a repository or one of its files, from the cache if it has them, otherwise from the Hub.
/// From the cache only with every file, if `every_file`, or else with the weights.
pub(crate) fn open(url: &str, every_file: bool, stop: &Stop) -> Result<Input> {
    let place = Place::parse(url)?;
    let settings = Settings::of_environment();
    let Place { owner, name, path, .. } = place;
    let revision = place.revision.replace("%2F", "/");
    let cache = Cache(settings.cache.map(|c| c.join(format!("models--{owner}--{name}"))));
    let known = || cache.snapshot(&revision).or_else(|| cache.revision(&revision));
    let has = |snapshot: &PathBuf| match path {
        Some(path) => snapshot.join(path).is_file(),
        None => has_model(snapshot),
    };
    if settings.offline || place.is_commit() && !every_file {
        if let Some(snapshot) = known().filter(has) {
            return local(&snapshot, path, stop);
        }
        if settings.offline {
            return Err(
                Error::new(ErrorKind::Io).found("not in the cache, and HF_HUB_OFFLINE is set")
            );
        }
    }
    let (client, answer) = ask(&place, &settings.endpoint, settings.token, stop);
    let (commit, names) = match answer {
        Ok(found) => found,
        // No network: what the cache has is better than nothing. A refusal is an answer and stays
        // one.
        Err(error) if error.kind() == ErrorKind::Io => {
            return match known().filter(has) {
                Some(snapshot) => local(&snapshot, path, stop),
                None => Err(error),
            };
        }
        Err(error) => return Err(error),
    };
    if let Some(snapshot) = cache.snapshot(&commit) {
        let wanted = match path {
            Some(path) => vec![path.to_owned()],
            None if every_file => visible(&names),
            None => weights(&names),
        };
        if is_whole(&snapshot, &wanted) {
            return local(&snapshot, path, stop);
        }
    }
    let base = format!("{}/{owner}/{name}/resolve/{commit}/", settings.endpoint);
    let files = Repository { client, base, names };
    match path {
        Some(path) => Ok(Input::File(files.open(path)?)),
        None => Ok(Input::Folder(Folder::remote(files))),
    }
}

/// The names of files that are not hidden.
fn visible(names: &Names) -> Vec<String> {
    let mut listing = Listing::new(FolderOptions::new());
    names.keys().filter(|name| listing.wants(Path::new(name))).cloned().collect()
}

/// The files that belong to the weights: shards and their index files, or the safetensors files if
/// there are no shards.
fn weights(names: &Names) -> Vec<String> {
    let names = visible(names);
    let of = |ending: &str| -> Vec<String> {
        let wanted = names.iter().filter(|name| role(Path::new(name), ending) != Role::Other);
        wanted.cloned().collect()
    };
    let shards = of(SHARD);
    if shards.is_empty() { of(SAFETENSORS) } else { shards }
}

/// Whether a folder in the cache has a whole model: every file of its index file, or its only
/// shard, or safetensors files without an index file.
fn has_model(snapshot: &Path) -> bool {
    let base = || -> Result<()> {
        let folder = Folder::open(snapshot, Links::Within, Stop::default())?;
        folder
            .base_files(FolderOptions::new())?
            .iter()
            .try_for_each(|name| folder.open_file(name).map(drop))
    };
    let whole = || -> Result<()> {
        let folder = Folder::open(snapshot, Links::Within, Stop::default())?;
        folder.model()?.shards.iter().try_for_each(|name| {
            Shard::open(folder.open_file(Path::new(name))?)?;
            Ok(())
        })
    };
    whole().is_ok() || base().is_ok()
}

/// The bytes that the Hub's list has for each file on the average, at the least. It says a name, a
/// length and a digest.
const ENTRY: u64 = 64;

/// The commit and the files of a repository, from the answer of the Hub's API.
fn listed(text: &str) -> Result<(String, Names)> {
    let wrong = || Error::new(ErrorKind::Remote).expected("a listing of the repository's files");
    let mut found = Listed { most: raised(TEXT / ENTRY), ..Default::default() };
    let mut de = serde_json::Deserializer::from_str(text);
    let parsed = Object(&mut found).deserialize(&mut de).and_then(|()| de.end());
    if found.over {
        return Err(too_many(found.most));
    }
    if let Some(name) = found.twice {
        return Err(wrong().found(format!("{:?} twice", Shown::name(&name))));
    }
    parsed.map_err(|e| wrong().caused_by(e))?;
    let (Some(commit), Some(names)) = (found.commit, found.names) else { return Err(wrong()) };
    check_name(&commit)?;
    Ok((commit, names))
}

/// What is read of the Hub's list. Nothing else of it is kept.
#[derive(Default)]
struct Listed {
    commit: Option<String>,
    names: Option<Names>,
    /// A name that comes again.
    twice: Option<String>,
    /// The most files, and whether there are more.
    most: u64,
    over: bool,
}

impl Fields for Listed {
    const EXPECTED: &'static str = "a listing";

    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "sha" => self.commit = Some(map.next_value()?),
            "siblings" => map.next_value_seed(Files(self))?,
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

/// The array of the files.
struct Files<'a>(&'a mut Listed);

impl<'de> DeserializeSeed<'de> for Files<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Files<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut files: A) -> Result<(), A::Error> {
        let Listed { names, twice, most, over, .. } = self.0;
        let names = names.get_or_insert_default();
        loop {
            let mut file = Sibling::default();
            if files.next_element_seed(Object(&mut file))?.is_none() {
                return Ok(());
            }
            let name = file.name.ok_or_else(|| A::Error::missing_field("rfilename"))?;
            if names.len() as u64 >= *most {
                *over = true;
                return Err(A::Error::custom("too many files"));
            }
            if names.contains_key(&name) {
                *twice = Some(name);
                return Err(A::Error::custom("a name twice"));
            }
            names.insert(name, file.lfs.sha256);
        }
    }
}

/// A file of the list.
#[derive(Default)]
struct Sibling {
    name: Option<String>,
    lfs: Lfs,
}

impl Fields for Sibling {
    const EXPECTED: &'static str = "an object for each file";

    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "rfilename" => self.name = Some(map.next_value()?),
            "lfs" => map.next_value_seed(OrNull(Object(&mut self.lfs)))?,
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

/// What Git LFS says of a file: its SHA-256, under one of two names.
#[derive(Default)]
struct Lfs {
    sha256: Option<[u8; 32]>,
}

impl Fields for Lfs {
    const EXPECTED: &'static str = "an object of Git LFS";

    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let read = Text(|text: &str| digest(text).ok_or("not a SHA-256".to_owned()));
        match key {
            "sha256" | "oid" => self.sha256 = Some(map.next_value_seed(read)?),
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

/// The digest that is written in 64 hexadecimal digits.
fn digest(text: &str) -> Option<[u8; 32]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |b: u8| char::from(b).to_digit(16);
    let bytes = pairs.iter().map(|&[a, b]| Some((16 * digit(a)? + digit(b)?) as u8));
    bytes.collect::<Option<Vec<u8>>>()?.try_into().ok().filter(|_| rest.is_empty())
}

/// The files of one commit.
struct Repository {
    client: Arc<Client>,
    base: String,
    names: Names,
}

impl RemoteFolder for Repository {
    fn names(&self, most: u64) -> Result<Vec<String>> {
        if self.names.len() as u64 > most {
            return Err(too_many(most));
        }
        Ok(self.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> Result<Source> {
        let url = format!("{}{}", self.base, encoded(name));
        let file = Source::new(HttpFile::open_with(&self.client, &url)?);
        Ok(file.with_sha256(self.names.get(name).copied().flatten()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_nothing_leads_out() {
        let place = |owner, name, revision, path| Place { owner, name, revision, path };
        for (url, expected) in [
            ("hf://o/n", place("o", "n", "main", None)),
            ("hf://o/n/", place("o", "n", "main", None)),
            ("hf://o/n@v1.0", place("o", "n", "v1.0", None)),
            ("hf://o/n/a/m.bs", place("o", "n", "main", Some("a/m.bs"))),
            (
                "hf://o-1/n_2.x@refs%2Fpr%2F3/m.bs",
                place("o-1", "n_2.x", "refs%2Fpr%2F3", Some("m.bs")),
            ),
        ] {
            assert_eq!(Place::parse(url).unwrap(), expected, "{url}");
        }
        for url in [
            "hf://",
            "hf://o",
            "hf://o/",
            "hf:///n",
            "hf://../n",
            "hf://o/..",
            "hf://o/n@",
            "hf://o/n/../x",
            "hf://o/n@../x",
            "hf://o/n@..%2F..",
            "hf://o/n//x",
            "hf://o/n\\x",
            "hf://o?/n",
            "hf://o/n#x",
        ] {
            assert!(Place::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn weights_are_those_of_a_folder() {
        let names = ["model.safetensors", "._model.bs", ".cache/x.bs", "a/model.bs.txt"];
        assert_eq!(weights(&names.map(|n| (n.to_owned(), None)).into()), ["model.safetensors"]);
        let names = ["x.safetensors", "m.bs", "m.bs.index.json", "a/._m.bs"];
        assert_eq!(
            weights(&names.map(|n| (n.to_owned(), None)).into()),
            ["m.bs", "m.bs.index.json"]
        );
    }

    #[test]
    fn listings_of_another_form_are_refused() {
        let good = r#"{"sha":"abc","siblings":[{"rfilename":"m.bs"}],"more":1}"#;
        assert_eq!(listed(good).unwrap(), ("abc".into(), [("m.bs".into(), None)].into()));
        let one = r#"{"siblings":[{"rfilename":"m.bs","lfs":null,"x":[{}]}],"sha":"abc"}"#;
        assert_eq!(listed(one).unwrap(), listed(good).unwrap());
        let digest = "ab".repeat(32);
        for key in ["oid", "sha256"] {
            let lfs = format!("{{\"size\":1,\"{key}\":\"{digest}\"}}");
            let files = format!("[{{\"lfs\":{lfs},\"rfilename\":\"m\"}}]");
            let (_, names) = listed(&format!("{{\"sha\":\"a\",\"siblings\":{files}}}")).unwrap();
            assert_eq!(names["m"], Some([0xab; 32]));
        }
        for bad in [
            "",
            "[]",
            r#"{"sha":"a","siblings":[{"rfilename":"m","lfs":{"oid":"ab"}}]}"#,
            r#"{"sha":"a","siblings":[{"rfilename":"m"},{"rfilename":"m"}]}"#,
            "{}",
            r#"{"sha":1,"siblings":[]}"#,
            r#"{"sha":"a"}"#,
            r#"{"sha":"..","siblings":[]}"#,
            r#"{"sha":"a/../../b","siblings":[]}"#,
            r#"{"sha":"a","siblings":[{}]}"#,
        ] {
            assert!(listed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    // N-03
    fn a_list_of_the_hub_has_a_most_of_files() {
        let list = |n: u64| {
            let files: Vec<String> = (0..n).map(|n| format!("{{\"rfilename\":\"{n}\"}}")).collect();
            listed(&format!("{{\"sha\":\"a\",\"siblings\":[{}]}}", files.join(",")))
        };
        assert_eq!(list(1 << 20).unwrap().1.len(), 1 << 20);
        let error = list((1 << 20) + 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooManyFiles, "{error}");
    }
}
