//! The fuzz targets of what comes from outside besides files: names in lists, answers of servers,
//! text that is shown.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a target fails by panicking

use std::path::{Path, PathBuf};

use bigsmall_format::internal::Shown;
use bigsmall_io::internal::{json_line, restore_files};
use bigsmall_io::{Class, FolderOptions, Progress, RestoreOptions};

use crate::targets::in_memory;

/// What no text that is shown contains.
fn assert_visible(text: &str) {
    let special = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
    };
    assert!(!text.contains(special), "{text:?}");
}

/// Any text, as errors, tables and JSON show it: nothing in it does anything to a terminal, it is
/// not long, it has no query or password of a URL, and JSON gives it back.
pub fn shown_text(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for shown in [Shown::name(&text), Shown::message(&text)] {
        for shown in [shown.to_string(), format!("{shown:?}")] {
            assert_visible(&shown);
            assert!(shown.len() < 14_000, "{} bytes", shown.len());
        }
    }
    let whole = Shown::whole(&text).to_string();
    assert_visible(&whole);
    let plain: String = text.chars().filter(|c| Shown::is_plain(*c)).collect();
    assert_eq!(plain == text, whole == text);
    let line = json_line(&text);
    assert_visible(line.trim_end());
    assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
    // A secret at any place behind the `?` of a URL.
    let word: String = text.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
    // The path is no secret, so it must not look like one.
    let word = word.replace("s3cret", "word");
    let url = format!("see https://u:s3cret{word}@host/{word}?{word}s3cret: and so on");
    let shown = Shown::message(&url).to_string();
    assert!(!shown.contains("s3cret") && shown.ends_with(": and so on"), "{shown}");
}

/// A shard of one tensor.
fn shard() -> Vec<u8> {
    let mut shard = Vec::new();
    let view = bigsmall_io::TensorView::from_slice(&[3], &[1u8, 2, 3]);
    let (options, progress) = (bigsmall_io::SaveOptions::default(), Progress::default());
    bigsmall_io::save_to(&mut shard, [("w", view)], None, &options, &progress).unwrap();
    shard
}

fn walk(dir: &Path, at: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().expect("a name that was a text");
        let name = format!("{at}{name}");
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => walk(&entry.path(), &format!("{name}/"), found),
            kind => {
                assert!(kind.is_file());
                found.push(name);
            }
        }
    }
}

/// Any lines as the names of a folder's files: what is restored has those names, below the output
/// and nowhere else, and nothing in it is Git's or hidden.
pub fn folder_names(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    let mut files: Vec<(String, Vec<u8>)> =
        text.split('\n').take(20).map(|name| (name.to_owned(), vec![choice])).collect();
    files.push(("model.bs".into(), shard()));
    for file in &mut files {
        if file.0.ends_with(".bs") {
            file.1 = shard();
        }
    }
    let dir = in_memory();
    let hidden = choice & 1 == 1;
    let options = RestoreOptions::new()
        .folder(FolderOptions::new().hidden(hidden).max_files(10 + u64::from(choice & 2) * 8));
    let output = dir.path().join("in/out");
    std::fs::create_dir(dir.path().join("in")).unwrap();
    let names: Vec<String> = files.iter().map(|(name, _)| name.clone()).collect();
    let done = restore_files(files, &output, &options, &Progress::default());
    let mut found = Vec::new();
    walk(dir.path(), "", &mut found);
    match done {
        Ok(report) => {
            let mut expected: Vec<String> = names
                .into_iter()
                .filter(|name| {
                    // Without the slashes that stand twice.
                    let path: PathBuf = Path::new(name).components().collect();
                    let out = |left: &String| path.starts_with(left);
                    !report.left_out.iter().any(out) && !name.ends_with(".index.json")
                })
                .map(|name| match name.rsplit_once('/').map_or(&*name, |(_, n)| n) {
                    n if n.starts_with("._") => name,
                    _ => name
                        .strip_suffix(".bs")
                        .map_or(name.clone(), |n| n.to_owned() + ".safetensors"),
                })
                .map(|name| format!("in/out/{name}"))
                .collect();
            for name in &found {
                for part in name.split('/') {
                    assert!(!part.eq_ignore_ascii_case(".git"), "{name}");
                    assert!(hidden || !part.starts_with('.'), "{name}");
                }
            }
            expected.sort();
            found.retain(|name| !name.ends_with(".index.json"));
            found.sort();
            assert_eq!(found, expected);
        }
        Err(error) => {
            // Finished files are kept for the next such job where the next may succeed.
            let kept =
                |name: &String| error.class() == Class::Io && name.starts_with("in/.out.bigsmall-");
            assert!(found.iter().all(kept), "{found:?}");
            assert_visible(&error.to_string());
            // A list that contradicts itself, a name that is too long, a file that is a folder too.
            let refused =
                matches!(error.class(), Class::Corrupt | Class::Limit | Class::Io | Class::Usage);
            assert!(refused, "{error:?}");
        }
    }
}

#[cfg(feature = "remote")]
pub use remote::{http_answers, store_answers};

#[cfg(feature = "remote")]
mod remote {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::{SocketAddr, TcpListener};
    use std::sync::{Arc, Mutex, OnceLock};
    use std::time::Duration;

    use bigsmall_io::internal::{AmazonS3Builder, RetryConfig, s3_names};
    use bigsmall_io::{CloudFile, Error, HttpFile, HttpOptions, ReadAt};

    use super::assert_visible;

    /// A server that answers each request with the next of the texts, byte for byte, and closes the
    /// connection.
    struct Server {
        address: SocketAddr,
        answers: Arc<Mutex<Vec<Vec<u8>>>>,
    }

    fn server() -> &'static Server {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let answers: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
            let shared = Arc::clone(&answers);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let lines = BufReader::new(&stream).lines();
                    let head = lines.map_while(Result::ok).take_while(|line| !line.is_empty());
                    head.for_each(drop);
                    let answer = shared.lock().unwrap().pop().unwrap_or_default();
                    let _ = (&stream).write_all(&answer);
                }
            });
            Server { address, answers }
        })
    }

    /// Sets the answers: the parts of `data` between two zeros. Half of them get a sound beginning.
    fn answers(data: &[u8]) {
        let mut answers = Vec::new();
        for part in data.split(|b| *b == 0).take(8) {
            let answer = match part.split_first() {
                Some((b'2', rest)) => [b"HTTP/1.1 200 OK\r\n", rest].concat(),
                Some((b'6', rest)) => [b"HTTP/1.1 206 Partial Content\r\n", rest].concat(),
                Some((b'b', rest)) => {
                    let len = rest.len();
                    let head = format!(
                        "HTTP/1.1 206 X\r\nContent-Length: {len}\r\n\
                         Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nETag: \"e\"\r\n\
                         Content-Range: bytes 0-{}/{len}\r\n\r\n",
                        len.max(1) - 1
                    );
                    [head.as_bytes(), rest].concat()
                }
                Some((b'x', rest)) => {
                    let head = format!("HTTP/1.1 200 X\r\nContent-Length: {}\r\n\r\n", rest.len());
                    [head.as_bytes(), rest].concat()
                }
                _ => part.to_vec(),
            };
            answers.push(answer);
        }
        answers.reverse();
        *server().answers.lock().unwrap() = answers;
    }

    /// Reads a file that opened, whole and in part.
    fn read(file: &dyn ReadAt) -> Result<(), Error> {
        let len = file.byte_len()?;
        let mut bytes = vec![0; len.min(1 << 20) as usize];
        file.read_exact_at(len - bytes.len() as u64, &mut bytes)?;
        let part = bytes.len() / 2;
        let mut again = vec![0xa5; part];
        file.read_exact_at(len - part as u64, &mut again)?;
        assert!(again == bytes[bytes.len() - part..], "two reads, two values");
        file.read_exact_at(len, &mut [0]).expect_err("nothing lies behind the end");
        Ok(())
    }

    fn assert_refused(error: &Error) {
        assert_visible(&format!("{error:?}"));
    }

    /// Any bytes as the answers of an HTTP server: a file with the length that it says, or an
    /// error.
    pub fn http_answers(data: &[u8]) {
        let options =
            HttpOptions::new().attempts(1).backoff(Duration::ZERO).timeout(Duration::from_secs(5));
        answers(data);
        let url = format!("http://{}/m.bs", server().address);
        let file = HttpFile::open(&url, &options);
        if let Err(error) = file.and_then(|file| read(&file)) {
            assert_refused(&error);
        }
    }

    fn store() -> AmazonS3Builder {
        let retry = RetryConfig { max_retries: 0, ..Default::default() };
        AmazonS3Builder::new()
            .with_bucket_name("b")
            .with_region("us-east-1")
            .with_endpoint(format!("http://{}", server().address))
            .with_allow_http(true)
            .with_access_key_id("a")
            .with_secret_access_key("b")
            .with_retry(retry)
    }

    /// Any bytes as the answers of an object store: a list of names that are plain, and a file with
    /// the length that it says, or errors.
    pub fn store_answers(data: &[u8]) {
        const MOST: u64 = 50;
        answers(data);
        match s3_names(store(), "m", MOST) {
            Ok(names) => {
                assert!(names.len() as u64 <= MOST);
                for name in names {
                    let plain = name.components().all(|c| {
                        let part = c.as_os_str().to_string_lossy();
                        matches!(c, std::path::Component::Normal(_)) && !part.starts_with('.')
                    });
                    assert!(plain && name.is_relative(), "{name:?}");
                }
            }
            Err(error) => assert_refused(&error),
        }
        answers(data);
        let store = Arc::new(store().build().expect("settings that are right"));
        if let Err(error) = CloudFile::open(store, "m/m.bs").and_then(|file| read(&file)) {
            assert_refused(&error);
        }
    }
}
