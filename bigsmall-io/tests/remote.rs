//! Group I-remote: real servers on the loopback interface, good ones and hostile ones.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;
#[path = "common/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bigsmall_io::{
    ErrorKind, HttpFile, HttpOptions, Layer, Model, ReadAt, Rule, StreamOptions, StreamingLoader,
};
use common::{Random, Tensor, tensor, write};
use safetensors::Dtype;
use server::{Reply, Request, Server, serve};
use sha2::Digest as _;

fn quick() -> HttpOptions {
    HttpOptions::new()
        .attempts(3)
        .backoff(Duration::from_millis(1))
        .timeout(Duration::from_secs(20))
}

/// A model in one shard, and its tensors.
fn shard(tensors: &[Tensor]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("m"), tensors);
    common::compress(&dir.path().join("m"), &dir.path().join("m.bs")).unwrap();
    std::fs::read(dir.path().join("m.bs")).unwrap()
}

/// Four layers of 1.5 MB, mostly one matrix each.
fn layers() -> Vec<Tensor> {
    let mut random = Random::new(7);
    let mut out = Vec::new();
    for n in 0..4 {
        let name = |part: &str| format!("model.layers.{n}.{part}.weight");
        out.push(tensor(&name("up"), Dtype::BF16, &[1000, 700], random.weights(700_000)));
        out.push(tensor(&name("norm"), Dtype::BF16, &[700], random.weights(700)));
        out.push(tensor(&name("q"), Dtype::BF16, &[70, 700], random.weights(49_000)));
    }
    out
}

/// A model whose index does not fit in what opening fetches.
fn long_index() -> Vec<Tensor> {
    let name = |n: u32| format!("{}.{n}", "a name that takes space in the header ".repeat(5));
    (0..1200).map(|n| tensor(&name(n), Dtype::U8, &[1], vec![n as u8])).collect()
}

fn open(url: &str) -> bigsmall_io::Result<Model> {
    Model::from_source(HttpFile::open(url, &quick())?)
}

fn check(model: &Model, tensors: &[Tensor]) {
    for t in tensors {
        assert!(model.tensor(&t.name).unwrap().bytes() == t.bytes, "{}", t.name);
    }
}

/// A server of one file.
fn good(file: &Arc<Vec<u8>>) -> Server {
    let file = Arc::clone(file);
    Server::new(move |request, _| serve(request, &file, "e"))
}

#[test]
fn opening_takes_one_request_and_two_for_a_long_index() {
    for (tensors, expected) in [(layers(), 1), (long_index(), 2)] {
        let bytes = Arc::new(shard(&tensors));
        let server = good(&bytes);
        let model = open(&server.url("m.bs")).unwrap();
        assert_eq!(server.n_requests(), expected);
        assert!(server.requests().iter().all(|r| r.header("accept-encoding") == Some("identity")));
        check(&model, &tensors[..12]);
    }
}

#[test]
fn servers_without_ranges_from_the_end_take_three_requests_at_the_most() {
    type Answer = fn(&Request, &[u8]) -> Reply;
    let ignored: Answer = |_, file| serve(&Request::default(), file, "e");
    let refused: Answer = |_, _| Reply::status(416);
    let unknown: Answer = |_, _| Reply::status(501).with("ETag", "\"of the error page\"");
    let counted: Answer =
        |_, file| Reply::status(416).with("Content-Range", format!("bytes */{}", file.len()));
    for (tensors, extra) in [(layers(), 0), (long_index(), 1)] {
        let bytes = Arc::new(shard(&tensors));
        for (answer, requests, head) in
            [(ignored, 2, false), (counted, 2, false), (refused, 3, true), (unknown, 3, true)]
        {
            let file = Arc::clone(&bytes);
            let server = Server::new(move |request, _| match request.is_suffix() {
                true => answer(request, &file),
                false => serve(request, &file, "e"),
            });
            let model = open(&server.url("m.bs")).unwrap();
            let expected = if head { requests } else { requests + extra };
            assert_eq!(server.n_requests(), expected);
            assert!(server.n_requests() <= 3);
            assert_eq!(server.requests().iter().any(|r| r.method == "HEAD"), head);
            check(&model, &tensors[..3]);
        }
    }
}

#[test]
fn one_layer_costs_its_compressed_size_and_is_fetched_in_parallel() {
    let tensors = layers();
    let bytes = Arc::new(shard(&tensors));
    let file = Arc::clone(&bytes);
    let together = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (now, peak) = (Arc::clone(&together), Arc::clone(&most));
    let server = Server::new(move |request, _| {
        peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        // Long enough for another request to arrive, if any.
        if !request.is_suffix() && peak.load(Ordering::SeqCst) < 2 {
            std::thread::sleep(Duration::from_millis(300));
        }
        now.fetch_sub(1, Ordering::SeqCst);
        serve(request, &file, "e")
    });
    let model = open(&server.url("m.bs")).unwrap();
    let layer = "model.layers.1";
    let names = model.tensors().map(|t| t.name()).filter(|n| n.starts_with(layer));
    let compressed: u64 = names.map(|n| model.stored(n).unwrap().compressed_bytes).sum();
    let before = (server.sent(), server.n_requests());
    let found = model.layer(layer).unwrap();
    assert_eq!(found.len(), 3);
    for t in &found {
        let expected = tensors.iter().find(|e| e.name == t.spec().name()).unwrap();
        assert!(t.bytes() == expected.bytes);
    }
    let fetched = server.sent() - before.0;
    println!("{fetched} bytes for {compressed}, {} requests", server.n_requests() - before.1);
    assert!(fetched * 100 <= compressed * 105, "{fetched} for {compressed}");
    assert!(most.load(Ordering::SeqCst) > 1);

    // The whole of it, streamed: all payloads once.
    let before = server.sent();
    let mut loader = StreamingLoader::new(model, &StreamOptions::default()).unwrap();
    let mut layer = Layer::default();
    while loader.next_into(&mut layer).unwrap() {
        for t in layer.tensors() {
            let expected = tensors.iter().find(|e| e.name == t.spec().name()).unwrap();
            assert!(t.bytes() == expected.bytes);
        }
    }
    assert!(server.sent() - before <= bytes.len() as u64);

    // Some rows: the blocks that hold them.
    let model = open(&server.url("m.bs")).unwrap();
    let before = server.sent();
    model.rows("model.layers.2.up.weight", 10..20).unwrap();
    assert!(server.sent() - before < 200_000);
}

#[test]
fn failures_that_pass_are_tried_again_and_others_are_not() {
    let tensors = layers();
    let bytes = Arc::new(shard(&tensors));
    let passing: [fn(Reply) -> Reply; 7] = [
        |_| Reply::status(503).with("Retry-After", 0),
        |_| Reply::status(429),
        |_| Reply::status(500),
        |good| Reply { cut: Some(good.body.len() / 2), ..good },
        |good| Reply { cut: Some(0), ..good },
        |_| Reply { silence: Some(Duration::ZERO), ..Default::default() },
        |_| Reply { raw: Some(b"220 mail.example.org ESMTP\r\n".to_vec()), ..Default::default() },
    ];
    for failure in passing {
        // Every third request is answered as it should be.
        let file = Arc::clone(&bytes);
        let server = Server::new(move |request, n| {
            let good = serve(request, &file, "e");
            if n % 3 == 2 { good } else { failure(good) }
        });
        let options = quick().attempts(20);
        let file = HttpFile::open(&server.url("m.bs"), &options).unwrap();
        check(&Model::from_source(file).unwrap(), &tensors);
        // Never: an error, after as many attempts as were allowed.
        let file = Arc::clone(&bytes);
        let server = Server::new(move |request, _| failure(serve(request, &file, "e")));
        let error = open(&server.url("m.bs")).err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Remote), "{error}");
        assert_eq!(server.n_requests(), 3);
    }
    for status in [400, 401, 403, 404, 410, 418, 304, 204] {
        let server = Server::new(move |_, _| Reply::status(status));
        let error = open(&server.url("m.bs")).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
        // 400 may mean the range from the end: it is asked for the length too.
        assert!(server.n_requests() <= 2);
    }
    // Nobody there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = open(&format!("http://127.0.0.1:{port}/m.bs")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
}

#[test]
fn wrong_answers_end_in_errors() {
    let bytes = Arc::new(shard(&layers()));
    /// From a good answer and the file a bad one.
    type Spoil = fn(Reply, &[u8]) -> Reply;
    let cases: [(&str, Spoil); 12] = [
        // R-01
        ("ranges ignored", |_, file| serve(&Request::default(), file, "e")),
        // R-03
        ("another range", |good, _| {
            let len = good.body.len();
            good.with("Content-Range", format!("bytes 1-{len}/{}", len + 1))
        }),
        ("a range of another length", |good, file| {
            good.with("Content-Range", format!("bytes 0-7/{}", file.len()))
        }),
        ("no range", |good, _| good.with("Content-Range", "")),
        ("a range of no form", |good, _| good.with("Content-Range", "bytes 0..9")),
        ("a length of the file that is none", |good, file| {
            good.with("Content-Range", format!("bytes 0-{}/1", file.len()))
        }),
        // R-02
        ("too short a body", |mut good, _| {
            good.body.pop();
            good
        }),
        ("too long a body", |mut good, _| {
            good.body.push(0);
            good
        }),
        ("packed", |good, _| good.with("Content-Encoding", "gzip")),
        ("a page with advice", |_, _| Reply {
            body: b"<html>".repeat(50_000),
            ..Reply::status(200)
        }),
        ("nothing to say", |_, _| Reply::status(204)),
        ("endless headers", |_, _| Reply {
            raw: Some(b"HTTP/1.1 206 X\r\nA: b\r\n".repeat(20_000)),
            ..Default::default()
        }),
    ];
    for (name, spoil) in cases {
        // On opening.
        let file = Arc::clone(&bytes);
        let server = Server::new(move |request, _| spoil(serve(request, &file, "e"), &file));
        let error = open(&server.url("m.bs")).err().unwrap_or_else(|| panic!("{name}"));
        // A server that reports another file, in the right form, has one that is not a shard.
        let rules = match name {
            "another range" => {
                [ErrorKind::Format(Rule::IndexRange), ErrorKind::Format(Rule::IndexRange)]
            }
            _ => [ErrorKind::Remote, ErrorKind::Io],
        };
        assert!(rules.contains(&error.kind()), "{name}: {error}");
        // Later.
        let file = Arc::clone(&bytes);
        let server = Server::new(move |request, n| {
            let good = serve(request, &file, "e");
            if n == 0 { good } else { spoil(good, &file) }
        });
        let model = open(&server.url("m.bs")).unwrap();
        let error = model.tensor("model.layers.0.up.weight").unwrap_err();
        let rules = [ErrorKind::Remote, ErrorKind::Io, ErrorKind::SourceChanged];
        assert!(rules.contains(&error.kind()), "{name}: {error}");
        assert!(error.to_string().contains("m.bs"), "{name}: {error}");
    }
    // The right form and the wrong bytes: what checksums are for.
    let file = Arc::clone(&bytes);
    let server = Server::new(move |request, n| {
        let mut good = serve(request, &file, "e");
        if n > 0 {
            good.body[7] ^= 1;
        }
        good
    });
    let error = open(&server.url("m.bs")).unwrap().tensor("model.layers.0.up.weight").unwrap_err();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::Format(Rule::HeadChecksum) | ErrorKind::Format(Rule::BlockChecksum)
        ),
        "{error}"
    );
}

#[test]
fn small_files_need_no_ranges_and_empty_ones_are_no_shards() {
    let tensors = [tensor("w", Dtype::U8, &[3], vec![1, 2, 3])];
    let bytes = shard(&tensors);
    for chunked in [false, true] {
        let file = bytes.clone();
        let server = Server::new(move |_, _| match chunked {
            false => serve(&Request::default(), &file, "e"),
            true => {
                let head = "HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n";
                let size = format!("{:x}\r\n", file.len());
                let parts = [head.as_bytes(), size.as_bytes(), &file, b"\r\n0\r\n\r\n"];
                Reply { raw: Some(parts.concat()), ..Default::default() }
            }
        });
        check(&open(&server.url("m.bs")).unwrap(), &tensors);
        assert_eq!(server.n_requests(), 1);
    }
    let server = Server::new(|request, _| serve(request, b"", "e"));
    assert_eq!(
        open(&server.url("m.bs")).err().unwrap().kind(),
        ErrorKind::Format(Rule::ShardTooShort)
    );
    let server = Server::new(|request, _| serve(request, &[0; 100], "e"));
    assert_eq!(
        open(&server.url("m.bs")).err().unwrap().kind(),
        ErrorKind::Format(Rule::ShardMagic)
    );
}

#[test]
// R-05
fn a_file_that_changes_between_requests_is_noticed() {
    let bytes = Arc::new(shard(&layers()));
    let changes: [fn(Reply, usize) -> Reply; 3] = [
        |good, _| good.with("ETag", "\"another\""),
        // Without a name for the state: the length tells.
        |good, len| {
            let range = good.headers.iter().find(|(n, _)| n == "Content-Range").unwrap().1.clone();
            let (range, _) = range.split_once('/').unwrap();
            good.with("Content-Range", format!("{range}/{}", len + 1))
        },
        |_, len| Reply::status(416).with("Content-Range", format!("bytes */{}", len - 1)),
    ];
    for change in changes {
        let file = Arc::clone(&bytes);
        let server = Server::new(move |request, n| {
            let good = serve(request, &file, "e");
            if n == 0 { good } else { change(good, file.len()) }
        });
        let model = open(&server.url("m.bs")).unwrap();
        let error = model.tensor("model.layers.3.q.weight").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceChanged, "{error}");
        // Not tried again: it will not change back.
        assert!(server.n_requests() <= 2);
    }
}

#[test]
// R-04
fn redirects_are_followed_until_they_expire_and_tokens_stay_at_home() {
    let tensors = layers();
    let bytes = Arc::new(shard(&tensors));
    // An address is valid until the next one is.
    let valid = Arc::new(AtomicUsize::new(0));
    let (file, now) = (Arc::clone(&bytes), Arc::clone(&valid));
    let other = Server::new(move |request, _| {
        match request.path == format!("/signed?{}", now.load(Ordering::SeqCst)) {
            true => serve(request, &file, "e"),
            false => Reply::status(403),
        }
    });
    let (elsewhere, now) = (other.url("signed"), Arc::clone(&valid));
    let home = Server::new(move |request, _| match &*request.path {
        "/m.bs" => Reply::redirect("/moved/m.bs"),
        "/moved/m.bs" => Reply::redirect(format!("{elsewhere}?{}", now.load(Ordering::SeqCst))),
        _ => Reply::status(404),
    });
    let options = quick().token("hf_secret".to_owned());
    let file = HttpFile::open(&home.url("m.bs"), &options).unwrap();
    let model = Model::from_source(file).unwrap();
    for n in 1..4 {
        check(&model, &tensors[..2]);
        assert_eq!(home.n_requests(), 2 * n);
        valid.store(n, Ordering::SeqCst);
        // One small read, so that one request finds out.
        check(&model, &tensors[1..2]);
    }
    assert!(other.n_requests() > 8);
    for request in home.requests() {
        assert_eq!(request.header("authorization"), Some("Bearer hf_secret"));
    }
    for request in other.requests() {
        assert_eq!(request.header("authorization"), None);
        assert!(request.path.starts_with("/signed?"));
    }
    // The same port by another name is another host.
    let file = Arc::clone(&bytes);
    let port = Arc::new(AtomicUsize::new(0));
    let known = Arc::clone(&port);
    let server = Server::new(move |request, _| match &*request.path {
        "/m.bs" => Reply::redirect(format!("http://localhost:{}/x", known.load(Ordering::SeqCst))),
        _ => serve(request, &file, "e"),
    });
    port.store(server.address.port().into(), Ordering::SeqCst);
    HttpFile::open(&server.url("m.bs"), &options).unwrap();
    let tokens: Vec<bool> =
        server.requests().iter().map(|r| r.header("authorization").is_some()).collect();
    assert_eq!(tokens, [true, false]);
    assert!(server.other_host("x").contains("localhost"));
    // To itself, to another scheme, to nowhere.
    for location in ["/m.bs", "file:///etc/passwd", "ftp://h/x", "", "http://"] {
        let server = Server::new(move |_, _| Reply::redirect(location));
        let error = HttpFile::open(&server.url("m.bs"), &quick()).err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::Remote | ErrorKind::Io), "{location:?}: {error}");
        assert!(server.n_requests() <= 33);
    }
}

#[test]
// R-02
fn a_server_that_says_nothing_is_given_up() {
    let slow = quick().attempts(2).timeout(Duration::from_millis(300));
    let silent =
        Server::new(|_, _| Reply { silence: Some(Duration::from_secs(60)), ..Default::default() });
    let error = HttpFile::open(&silent.url("m.bs"), &slow).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert_eq!(silent.n_requests(), 2);
    // A body that is promised and never comes.
    let bytes = Arc::new(shard(&layers()));
    let promised = Server::new(move |request, n| {
        let good = serve(request, &bytes, "e");
        let silence = (n > 0).then_some(Duration::from_secs(60));
        Reply { silence, ..good }
    });
    let file = HttpFile::open(&promised.url("m.bs"), &slow).unwrap();
    let error = bigsmall_io::Error::from(file.read_exact_at(0, &mut [0; 100]).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
}

/// The command, with nothing of the machine's own settings.
fn bigsmall(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    command(dir, args, env).output().unwrap()
}

fn command(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bigsmall"));
    for (name, _) in std::env::vars_os() {
        let shown = name.to_string_lossy();
        if shown.starts_with("HF_") || shown.starts_with("HUGGING") || shown == "XDG_CACHE_HOME" {
            command.env_remove(name);
        }
    }
    command.env("NO_PROXY", "*").env("HOME", dir).current_dir(dir).args(args);
    command.envs(env.iter().copied());
    command
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A model folder in two shards with other files, compressed: the original's files and the
/// compressed ones.
fn model_folder(dir: &Path) -> [BTreeMap<String, Vec<u8>>; 2] {
    let (plain, small) = (dir.join("plain"), dir.join("small"));
    std::fs::create_dir_all(plain.join("sub")).unwrap();
    let tensors = layers();
    let mut map = serde_json::Map::new();
    for (part, name) in tensors.chunks(6).zip(["model-1.safetensors", "model-2.safetensors"]) {
        write(&plain.join(name), part);
        map.extend(part.iter().map(|t| (t.name.clone(), name.into())));
    }
    let index = serde_json::json!({ "metadata": {"total_size": 1}, "weight_map": map });
    std::fs::write(plain.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::write(plain.join("config.json"), "{}").unwrap();
    std::fs::write(plain.join("sub/a file+name.txt"), "text").unwrap();
    std::fs::write(plain.join("README.md"), "# A model\n").unwrap();
    common::compress(&plain, &small).unwrap();
    [files(&plain), files(&small)]
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for name in common::names(dir) {
        let path = dir.join(&name);
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(n, b)| (format!("{name}/{n}"), b)));
        } else {
            found.insert(name, std::fs::read(path).unwrap());
        }
    }
    found
}

/// A path of a URL as its server understands it.
fn decoded(path: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = path.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let hex: String = bytes.by_ref().take(2).map(char::from).collect();
            out.push(u8::from_str_radix(&hex, 16).unwrap());
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn the_command_takes_urls() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let [plain, small] = model_folder(d);
    let served = small.clone();
    let server = Server::new(move |request, _| {
        let name = decoded(request.path.trim_start_matches("/m/").split('?').next().unwrap());
        match served.get(&name) {
            Some(file) => serve(request, file, &name),
            None => Reply::status(404),
        }
    });
    let one = server.url("m/model-1.bs?download=true");
    assert!(done(&bigsmall(d, &["inspect", &one], &[])).contains("model.layers.0.up.weight"));
    done(&bigsmall(d, &["verify", &one], &[]));
    done(&bigsmall(d, &["restore", &one, "-o", "one"], &[]));
    assert!(std::fs::read(d.join("one")).unwrap() == plain["model-1.safetensors"]);
    // A model in shards by its index file: the shards, and the index file itself.
    let all = server.url("m/model.bs.index.json");
    let shown = done(&bigsmall(d, &["inspect", &all, "--json"], &[]));
    assert_eq!(shown.matches("\"dtype\":\"BF16\"").count(), 12);
    done(&bigsmall(d, &["verify", &all], &[]));
    done(&bigsmall(d, &["restore", &all, "-o", "all"], &[]));
    let found = files(&d.join("all"));
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|(name, bytes)| plain[name] == *bytes));
    // What is not there, what is no address.
    for (code, url) in [
        (1, server.url("m/other.bs")),
        (2, "gopher://h/m.bs".to_owned()),
        (2, "hf://owner".to_owned()),
        (2, "hf://../etc".to_owned()),
    ] {
        let output = bigsmall(d, &["restore", &url, "-o", "x"], &[]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{url}: {stderr}");
        assert!(!d.join("x").exists() && !stderr.contains("panicked"), "{stderr}");
    }
}

#[test]
fn index_files_that_lead_out_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["../m.bs", "/m.bs", "http://other/m.bs", "a//b.bs"] {
        let index = serde_json::json!({ "weight_map": { "w": name } }).to_string();
        let server = Server::new(move |request, _| serve(request, index.as_bytes(), "e"));
        let url = server.url("model.bs.index.json");
        assert_eq!(Model::open(&url).err().unwrap().kind(), ErrorKind::ModelPath);
        let output = bigsmall(dir.path(), &["restore", &url, "-o", "x"], &[]);
        assert_eq!(output.status.code(), Some(3));
        assert!(server.requests().iter().all(|r| r.path == "/model.bs.index.json"));
    }
}

/// Whether the Hub keeps a file with Git LFS.
fn is_lfs(name: &str) -> bool {
    [".bs", ".safetensors", ".bin"].iter().any(|ending| name.ends_with(ending))
}

/// A file in a listing of the Hub.
fn listed(name: &str, file: &[u8]) -> serde_json::Value {
    let sha256: [u8; 32] = sha2::Sha256::digest(file).into();
    let lfs = serde_json::json!({ "sha256": bigsmall_io::hex(&sha256), "size": file.len() });
    match is_lfs(name) {
        true => serde_json::json!({ "rfilename": name, "lfs": lfs }),
        false => serde_json::json!({ "rfilename": name }),
    }
}

/// The Hub: its API, its `resolve` URLs, and large files elsewhere.
fn hub(files: BTreeMap<String, Vec<u8>>, storage: String, commit: &'static str) -> Server {
    Server::new(move |request, _| {
        if request.header("authorization") != Some("Bearer hf_secret") {
            return Reply::status(401);
        }
        let path = request.path.split('?').next().unwrap();
        if ["main", "v1", commit].iter().any(|r| path == format!("/api/models/o/n/revision/{r}")) {
            let all: Vec<_> = files.iter().map(|(name, file)| listed(name, file)).collect();
            let body = serde_json::json!({ "sha": commit, "siblings": all }).to_string();
            return Reply { body: body.into(), ..Reply::status(200) };
        }
        let Some(name) = path.strip_prefix(&format!("/o/n/resolve/{commit}/")) else {
            return Reply::status(404);
        };
        match files.get(&decoded(name)) {
            Some(_) if is_lfs(name) => Reply::redirect(format!("{storage}{name}")),
            Some(file) => serve(request, file, name),
            None => Reply::status(404),
        }
    })
}

#[test]
fn models_of_the_hub_come_whole_and_from_the_cache_where_it_has_them() {
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let [plain, small] = model_folder(d);
    let mut listed = small.clone();
    listed.insert(".gitattributes".into(), b"*.bs filter=lfs".to_vec());
    let stored = listed.clone();
    let storage = Server::new(move |request, _| {
        assert_eq!(request.header("authorization"), None);
        serve(request, &stored[request.path.trim_start_matches('/')], "e")
    });
    let server = hub(listed, storage.url(""), COMMIT);
    let endpoint = server.url("");
    let opened = |file: &str| {
        let requests = storage.requests().into_iter();
        requests.filter(|r| r.is_suffix() && r.path.ends_with(file)).count()
    };
    let env = [("HF_ENDPOINT", &*endpoint), ("HF_TOKEN", "hf_secret")];
    let shown = done(&bigsmall(d, &["inspect", "hf://o/n"], &env));
    assert!(shown.contains("model.layers.3.q.weight"), "{shown}");
    done(&bigsmall(d, &["verify", "hf://o/n@v1"], &env));
    let shown = done(&bigsmall(d, &["restore", "hf://o/n", "-o", "back"], &env));
    assert!(
        files(&d.join("back")) == plain && shown.contains("left out .gitattributes"),
        "{shown}"
    );
    let before = opened("/model-2.bs");
    done(&bigsmall(d, &["restore", "hf://o/n", "-o", "all", "--hidden"], &env));
    // Once to check all shards, and once to restore it.
    assert_eq!(opened("/model-2.bs") - before, 2);
    assert!(d.join("all/.gitattributes").is_file());
    done(&bigsmall(d, &["restore", "hf://o/n/model-2.bs", "-o", "two"], &env));
    assert!(std::fs::read(d.join("two")).unwrap() == plain["model-2.safetensors"]);
    // Without the token, and what does not exist.
    for (url, env) in [("hf://o/n", &env[..1]), ("hf://o/none", &env), ("hf://o/n@v9", &env)] {
        let output = bigsmall(d, &["verify", url], env);
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("HTTP 40") && !stderr.contains("hf_secret"), "{stderr}");
    }

    // The cache as the Hub's programs write it: used where it has the commit, also without a
    // network.
    let cache = d.join("cache");
    let repository = cache.join("models--o--n");
    let snapshot = repository.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repository.join("blobs")).unwrap();
    std::fs::write(repository.join("refs/main"), COMMIT).unwrap();
    let cache = cache.to_str().unwrap();
    let cached = [env[0], env[1], ("HF_HUB_CACHE", cache)];
    std::fs::write(snapshot.join("config.json"), "{}").unwrap();
    let before = storage.n_requests();
    done(&bigsmall(d, &["inspect", "hf://o/n"], &cached));
    assert!(storage.n_requests() > before, "a snapshot without its weights is no model");
    for (name, bytes) in &small {
        std::fs::create_dir_all(snapshot.join(name).parent().unwrap()).unwrap();
        std::fs::write(snapshot.join(name), bytes).unwrap();
    }
    let before = (storage.n_requests(), server.n_requests());
    done(&bigsmall(d, &["verify", "hf://o/n"], &cached));
    assert_eq!((storage.n_requests(), server.n_requests()), (before.0, before.1 + 1));
    done(&bigsmall(d, &["verify", &format!("hf://o/n@{COMMIT}")], &cached));
    assert_eq!((storage.n_requests(), server.n_requests()), (before.0, before.1 + 1));
    let offline = [("HF_HUB_OFFLINE", "1"), ("HF_HUB_CACHE", cache), env[0]];
    done(&bigsmall(d, &["restore", "hf://o/n", "-o", "cached"], &offline));
    assert!(files(&d.join("cached")) == plain);
    assert_eq!(bigsmall(d, &["verify", "hf://o/other"], &offline).status.code(), Some(1));
    assert_eq!(server.n_requests(), before.1 + 1);
}

#[test]
fn of_a_base_on_the_hub_only_the_blocks_that_are_needed_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let mut random = Random::new(8);
    let mut matrix = |name: &str| tensor(name, Dtype::BF16, &[1000, 900], random.weights(900_000));
    let base = [matrix("a"), matrix("b"), matrix("c")];
    let mut bytes = base[1].bytes.clone();
    bytes.iter_mut().step_by(50).for_each(|byte| *byte ^= 1);
    write(&d.join("base"), &base);
    // The other tensors are left out.
    write(&d.join("new"), &[tensor("b", Dtype::BF16, &[1000, 900], bytes)]);
    done(&bigsmall(d, &["compress", "new", "--base", "base", "-o", "new.bs"], &[]));
    let file = shard(&base);
    let len = file.len() as u64;
    let of_storage = file.clone();
    let storage = Server::new(move |request, _| serve(request, &of_storage, "e"));
    let files = BTreeMap::from([("base.bs".to_owned(), file)]);
    let server = hub(files, storage.url(""), "abc");
    let endpoint = server.url("");
    let env = [("HF_ENDPOINT", &*endpoint), ("HF_TOKEN", "hf_secret")];
    done(&bigsmall(d, &["restore", "new.bs", "--base", "hf://o/n", "-o", "back"], &env));
    assert!(std::fs::read(d.join("back")).unwrap() == std::fs::read(d.join("new")).unwrap());
    let sent = storage.sent();
    assert!((len / 4..len / 2 + 200_000).contains(&sent), "{sent} of {len} bytes");
}

#[test]
fn names_of_the_hub_never_lead_out() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    std::fs::create_dir(d.join("in")).unwrap();
    for name in ["../stolen", "/stolen", "a/../../stolen", "C:\\stolen", "a\\..\\stolen"] {
        let file = shard(&[tensor("w", Dtype::U8, &[1], vec![1])]);
        let files = BTreeMap::from([("m.bs".to_owned(), file), (name.to_owned(), b"x".to_vec())]);
        let storage = Server::new(|_, _| Reply::status(404));
        let server = hub(files, storage.url(""), "abc");
        let endpoint = server.url("");
        let env = [("HF_ENDPOINT", &*endpoint), ("HF_TOKEN", "hf_secret")];
        let output = bigsmall(&d.join("in"), &["restore", "hf://o/n", "-o", "out"], &env);
        assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!d.join("stolen").exists() && !d.join("in/out").exists());
    }
}

#[test]
fn what_the_hub_refuses_is_said_in_its_own_words_and_what_to_do() {
    const GATED: &str = "Access to model o/n is restricted.\u{1b}[31m Please log in.";
    const ESCAPED: &str = "restricted.\\u{1b}[31m Please log in.";
    let dir = tempfile::tempdir().unwrap();
    let in_body = |status: u16, words: &str| Reply {
        body: serde_json::json!({ "error": words }).to_string().into(),
        ..Reply::status(status)
    };
    let code = |reply: Reply, code: &str| reply.with("X-Error-Code", code);
    let message = |status: u16, words: &str| Reply::status(status).with("X-Error-Message", words);
    let token = [("HF_TOKEN", "hf_secret")];
    let log_in = "set HF_TOKEN or log in with `hf auth login`";
    let long = "x".repeat(20_000);
    for (reply, env, expected) in [
        (code(in_body(401, GATED), "GatedRepo"), &[][..], vec![ESCAPED, log_in, "licence at"]),
        (
            code(message(403, "not in the authorized list"), "GatedRepo"),
            &token,
            vec!["not in the authorized list", "accept the licence at http", "/o/n, with"],
        ),
        (message(403, "Forbidden: hf_secret"), &token, vec!["Forbidden: ...", "a token that may"]),
        (code(in_body(401, "No such"), "RepoNotFound"), &[], vec!["No such", "check the name; if"]),
        (code(in_body(404, "No such"), "RepoNotFound"), &token, vec!["whether the token may read"]),
        (in_body(401, "Invalid credentials"), &token, vec!["the token is not valid", log_in]),
        (Reply::status(401), &[], vec!["HTTP 401", log_in]),
        (message(404, "Invalid rev id: main"), &[], vec!["Invalid rev id: main", "what there is"]),
        (in_body(403, &long), &[], vec!["HTTP 403", "a token that may read"]),
        (in_body(403, &"y".repeat(9000)), &[], vec!["yy... (9000 bytes) ...yy", "a token that"]),
        (Reply::status(429).with("Retry-After", 1), &[], vec!["HTTP 429", "wait 1 seconds"]),
    ] {
        let server = Server::new(move |_, _| reply.clone());
        let endpoint = server.url("");
        let env = [&[("HF_ENDPOINT", &*endpoint)], env].concat();
        let output = bigsmall(dir.path(), &["verify", "hf://o/n"], &env);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(expected.iter().all(|text| stderr.contains(text)), "{expected:?} in {stderr}");
        assert!(!stderr.contains("hf_secret") && !stderr.contains('\u{1b}'), "{stderr}");
        assert!(stderr.len() < 3000, "{}", stderr.len());
    }
}

#[test]
fn the_token_is_found_where_the_hub_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let server = Server::new(|_, _| Reply::status(404));
    let endpoint = server.url("");
    let file = |name: &str| {
        let path = d.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("of {name}\n")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let sent = |env: &[(&str, &str)]| {
        let env = [&[("HF_ENDPOINT", &*endpoint)], env].concat();
        bigsmall(d, &["verify", "hf://o/n"], &env);
        let request = server.requests().pop().unwrap();
        request.header("authorization").map(|t| t.strip_prefix("Bearer ").unwrap().to_owned())
    };
    assert_eq!(sent(&[]), None);
    file(".cache/huggingface/token");
    assert_eq!(sent(&[]).as_deref(), Some("of .cache/huggingface/token"));
    file("xdg/huggingface/token");
    let xdg = d.join("xdg");
    let xdg = ("XDG_CACHE_HOME", xdg.to_str().unwrap());
    assert_eq!(sent(&[xdg]).as_deref(), Some("of xdg/huggingface/token"));
    file("home/token");
    let home = d.join("home");
    let home = ("HF_HOME", home.to_str().unwrap());
    assert_eq!(sent(&[xdg, home]).as_deref(), Some("of home/token"));
    let path = file("elsewhere");
    let path = ("HF_TOKEN_PATH", &*path);
    assert_eq!(sent(&[xdg, home, path]).as_deref(), Some("of elsewhere"));
    let old = ("HUGGING_FACE_HUB_TOKEN", "old");
    assert_eq!(sent(&[home, path, old]).as_deref(), Some("old"));
    assert_eq!(sent(&[home, path, old, ("HF_TOKEN", " new\n")]).as_deref(), Some("new"));
    assert_eq!(sent(&[home, path, ("HF_TOKEN", "")]).as_deref(), Some("of elsewhere"));
}

/// Whether much is asked for: not a file's header or end, or a sample.
fn is_data(request: &Request) -> bool {
    let range = request.range(u64::MAX);
    !request.is_suffix() && range.is_some_and(|(first, end)| end - first > 100_000)
}

#[test]
// R-08
fn models_of_the_hub_are_compressed_shard_by_shard() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let [mut plain, small] = model_folder(d);
    let weights: u64 = plain.values().map(|file| file.len() as u64).sum();
    let n_files = plain.len() as u64;
    plain.insert("extra.bin".into(), vec![7; 1000]);
    let small = BTreeMap::from_iter(small.into_iter().chain([("extra.bin".into(), vec![7; 1000])]));
    // What the storage does to a request.
    let (hang, spoil) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::Mutex::new("none")));
    let (hangs, spoilt) = (Arc::clone(&hang), Arc::clone(&spoil));
    let refuse = Arc::new(AtomicBool::new(false));
    let refuses = Arc::clone(&refuse);
    let stored = plain.clone();
    let storage = Server::new(move |request, _| {
        assert_eq!(request.header("authorization"), None);
        let name = request.path.trim_start_matches('/');
        let mut file = stored[name].clone();
        if name == *spoilt.lock().unwrap() {
            *file.last_mut().unwrap() ^= 1;
        }
        if hangs.load(Ordering::SeqCst) > 0 && name == "model-2.safetensors" && is_data(request) {
            hangs.store(2, Ordering::SeqCst);
            return Reply { silence: Some(Duration::from_secs(60)), ..Reply::default() };
        }
        if refuses.load(Ordering::SeqCst) && name == "model-2.safetensors" && is_data(request) {
            return Reply::status(403);
        }
        serve(request, &file, "e")
    });
    let server = hub(plain.clone(), storage.url(""), "abc");
    let endpoint = server.url("");
    let env = [("HF_ENDPOINT", &*endpoint), ("HF_TOKEN", "hf_secret")];
    done(&bigsmall(d, &["compress", "hf://o/n", "-o", "out"], &env));
    assert!(files(&d.join("out")) == small);
    // Each byte about once; the ends of files when they are opened.
    let sent = storage.sent();
    assert!(sent <= weights * 5 / 4 + 3 * 2 * (256 << 10), "{sent} for {weights}");
    done(&bigsmall(d, &["compress", "hf://o/n/model-1.safetensors", "-o", "one.bs"], &env));
    assert!(std::fs::read(d.join("one.bs")).unwrap() == small["model-1.bs"]);

    // Killed while the second shard is read: the next one takes the first over, and reads no more
    // of it.
    hang.store(1, Ordering::SeqCst);
    let mut child = command(d, &["compress", "hf://o/n", "-o", "again"], &env).spawn().unwrap();
    while hang.load(Ordering::SeqCst) < 2 {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    hang.store(0, Ordering::SeqCst);
    let goes_on = |to: &str| {
        let before = storage.n_requests();
        let output = bigsmall(d, &["compress", "hf://o/n", "-o", to], &env);
        done(&output);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let taken = "1 of its finished files were verified and taken over";
        assert!(stderr.contains(taken), "{stderr}");
        assert!(files(&d.join(to)) == small);
        let of_first = |r: &Request| r.path.ends_with("model-1.safetensors") && is_data(r);
        assert!(!storage.requests()[before..].iter().any(of_first));
        assert!(!common::names(d).iter().any(|name| name.starts_with(&format!(".{to}."))));
    };
    goes_on("again");

    // Refused in the middle, twice.
    refuse.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        let output = bigsmall(d, &["compress", "hf://o/n", "-o", "third"], &env);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let says = ["model-2.safetensors", "finished files are kept in"];
        assert!(says.iter().all(|text| stderr.contains(text)), "{stderr}");
    }
    refuse.store(false, Ordering::SeqCst);
    goes_on("third");

    // Other bytes than the Hub lists.
    for name in ["model-2.safetensors", "extra.bin"] {
        *spoil.lock().unwrap() = name;
        let output = bigsmall(d, &["compress", "hf://o/n", "-o", "wrong"], &env);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(name) && stderr.contains("SHA-256"), "{stderr}");
        assert!(!d.join("wrong").exists());
        // The first shard is right, and stays for the next job.
        let kept = common::names(d).into_iter().filter(|name| name.starts_with(".wrong."));
        let [kept] = &kept.collect::<Vec<_>>()[..] else { panic!("{:?}", common::names(d)) };
        let kept = files(&d.join(kept));
        assert_eq!(kept.keys().filter(|name| name.ends_with(".bs")).count(), 1);
        assert!(kept["model-1.bs"] == small["model-1.bs"]);
    }
    *spoil.lock().unwrap() = "none";

    // From samples.
    let ratio = |input: &str| -> f64 {
        let shown = done(&bigsmall(d, &["estimate", input, "--json"], &env));
        serde_json::from_str::<serde_json::Value>(&shown).unwrap()["ratio"].as_f64().unwrap()
    };
    let (local, remote) = (ratio("plain"), ratio("hf://o/n"));
    assert!((local / remote - 1.0).abs() < 0.05, "{local} {remote}");

    // A web server, by the index file: what that names.
    let served = plain.clone();
    let web = Server::new(move |request, _| serve(request, &served[&request.path[1..]], "e"));
    let index = web.url("model.safetensors.index.json");
    done(&bigsmall(d, &["compress", &index, "-o", "web"], &[]));
    let found = files(&d.join("web"));
    for name in ["model-1.bs", "model-2.bs", "model.bs.index.json"] {
        assert!(found[name] == small[name], "{name}");
    }
    assert!(found.len() == 4 && n_files == 6, "{:?}", found.keys());
    let one = web.url("model-2.safetensors");
    done(&bigsmall(d, &["compress", &one, "-o", "web.bs"], &[]));
    assert!(std::fs::read(d.join("web.bs")).unwrap() == small["model-2.bs"]);
    for (there, here) in [(&*index, "plain"), (&*one, "plain/model-2.safetensors")] {
        let (there, here) = (ratio(there), ratio(here));
        assert!((there / here - 1.0).abs() < 0.05, "{there} {here}");
    }
}

#[test]
fn a_folder_is_compared_with_what_the_hub_lists() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let [mut plain, _] = model_folder(d);
    plain.insert("extra.bin".into(), vec![7; 1000]);
    plain.insert(".gitattributes".into(), b"*.bin filter=lfs".to_vec());
    std::fs::write(d.join("small/extra.bin"), [7; 1000]).unwrap();
    let against = |served: &BTreeMap<String, Vec<u8>>| {
        let server = hub(served.clone(), "http://127.0.0.1:1/".into(), "abc");
        let endpoint = server.url("");
        let env = [("HF_ENDPOINT", &*endpoint), ("HF_TOKEN", "hf_secret")];
        let output = bigsmall(d, &["verify", "small", "--against", "hf://o/n"], &env);
        // The list, and nothing of a file.
        assert_eq!(server.n_requests(), 1);
        output
    };
    let differs = |served: &BTreeMap<String, Vec<u8>>, expected: &[&str]| {
        let output = against(served);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        assert!(expected.iter().all(|text| stderr.contains(text)), "{expected:?} in {stderr}");
        assert!(stderr.contains("hf://o/n: not the files of the repository"), "{stderr}");
    };
    let shown = done(&against(&plain));
    let same = "3 files with the SHA-256 that hf://o/n lists; it lists none for 4 more";
    assert!(shown.contains(same), "{shown}");
    for name in ["model-2.safetensors", "extra.bin"] {
        let mut other = plain.clone();
        other.get_mut(name).unwrap()[100] ^= 1;
        differs(&other, &[&format!("{name:?} has the SHA-256"), ", and there "]);
    }
    let mut other = plain.clone();
    other.insert("model-3.safetensors".into(), vec![1]);
    other.insert("vocab.txt".into(), vec![1]);
    other.remove("model-1.safetensors");
    differs(
        &other,
        &[
            r#""model-1.safetensors" is not there"#,
            r#""model-3.safetensors" is lacking here"#,
            r#""vocab.txt" is lacking here"#,
        ],
    );
    // The shard says what it restores to, and does not: it is decoded too.
    let shard = d.join("small/model-2.bs");
    let mut bytes = std::fs::read(&shard).unwrap();
    bytes[1_000_000] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    assert_eq!(against(&plain).status.code(), Some(3));
    for arguments in [["small/model-1.bs", "hf://o/n"], ["small", "https://o/n"]] {
        let server = hub(plain.clone(), String::new(), "abc");
        let endpoint = server.url("");
        let env = [("HF_ENDPOINT", &*endpoint), ("HF_TOKEN", "hf_secret")];
        let output = bigsmall(d, &["verify", arguments[0], "--against", arguments[1]], &env);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
