//! Object stores: one in memory, also from inside a caller's runtime, and a server that speaks S3.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bigsmall_io::{CloudFile, CompressOptions, ErrorKind, Model, Progress, ReadAt, Rule, compress};
use common::{Random, Tensor, tensor, write};
use object_store::aws::AmazonS3Builder;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};
use safetensors::Dtype;

fn tensors(seed: u64) -> Vec<Tensor> {
    let mut random = Random::new(seed);
    let mut matrix = |name: &str| tensor(name, Dtype::BF16, &[1000, 900], random.weights(900_000));
    vec![matrix("model.layers.0.w"), matrix("model.layers.1.w")]
}

fn shard(tensors: &[Tensor]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("m"), tensors);
    common::compress(&dir.path().join("m"), &dir.path().join("m.bs")).unwrap();
    std::fs::read(dir.path().join("m.bs")).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn put(store: &dyn ObjectStore, path: &str, bytes: Vec<u8>) {
    runtime().block_on(store.put(&path.into(), bytes.into())).unwrap();
}

fn check(model: &Model, tensors: &[Tensor]) {
    for t in tensors {
        assert!(model.tensor(&t.name).unwrap().bytes() == t.bytes, "{}", t.name);
    }
}

#[test]
fn shards_in_a_store_are_read_with_and_without_a_runtime_of_the_callers() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let expected = tensors(1);
    put(&*store, "a/m.bs", shard(&expected));
    let read = || {
        let file = CloudFile::open(Arc::clone(&store), "a/m.bs").unwrap();
        check(&Model::from_source(file).unwrap(), &expected);
    };
    read();
    runtime().block_on(async { read() });
    let one = tokio::runtime::Builder::new_current_thread().build().unwrap();
    one.block_on(async { read() });
    runtime().block_on(async { tokio::spawn(async {}).await.unwrap() });
    let missing = CloudFile::open(Arc::clone(&store), "a/n.bs").err().unwrap();
    assert_eq!(missing.kind(), ErrorKind::Remote, "{missing}");
    let wrong = CloudFile::open(Arc::clone(&store), "a//../m.bs").err().unwrap();
    assert_eq!(wrong.kind(), ErrorKind::Argument, "{wrong}");
    put(&*store, "empty.bs", Vec::new());
    let empty = CloudFile::open(Arc::clone(&store), "empty.bs").unwrap();
    assert_eq!(empty.byte_len().unwrap(), 0);
    assert_eq!(
        Model::from_source(empty).err().unwrap().kind(),
        ErrorKind::Format(Rule::ShardTooShort)
    );
}

/// A source that counts the bytes that are read.
struct Counted(CloudFile, Arc<AtomicU64>);

impl ReadAt for Counted {
    fn byte_len(&self) -> std::io::Result<u64> {
        self.0.byte_len()
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.1.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.0.read_exact_at(offset, buffer)
    }
}

#[test]
fn of_a_base_in_a_store_only_the_blocks_that_are_needed_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let base = tensors(1);
    let mut new = tensors(1);
    new.iter_mut().for_each(|t| t.bytes.iter_mut().step_by(50).for_each(|byte| *byte ^= 1));
    write(&path("base"), &base);
    write(&path("new"), &new);
    let options = CompressOptions::new().base(path("base"));
    compress(path("new"), path("new.bs"), &options, &Progress::default()).unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    put(&*store, "base.bs", shard(&base));
    let read = Arc::new(AtomicU64::new(0));
    let file = CloudFile::open(Arc::clone(&store), "base.bs").unwrap();
    let of_base = Model::from_source(Counted(file, Arc::clone(&read))).unwrap();
    let model = Model::open(path("new.bs")).unwrap().with_base(of_base).unwrap();
    let before = read.load(Ordering::Relaxed);
    let row = model.rows("model.layers.1.w", 700..701).unwrap();
    assert!(row.bytes() == &new[1].bytes[700 * 1800..701 * 1800]);
    let of_row = read.load(Ordering::Relaxed) - before;
    // A block of 65,536 weights, not the tensor of 900,000.
    assert!((1..300_000).contains(&of_row), "{of_row}");
    check(&model, &new);
}

#[test]
fn an_object_that_changes_is_noticed() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    put(&*store, "m.bs", shard(&tensors(1)));
    let file = CloudFile::open(Arc::clone(&store), "m.bs").unwrap();
    let model = Model::from_source(file).unwrap();
    put(&*store, "m.bs", shard(&tensors(2)));
    let error = model.tensor("model.layers.0.w").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceChanged, "{error}");
}

/// A server that speaks S3: that of the Python package `moto`.
struct S3 {
    child: Child,
    endpoint: String,
}

impl S3 {
    /// `None` where the package is not installed.
    fn start() -> Option<Self> {
        let python = |args: &[&str]| {
            let mut command = Command::new("python3");
            command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let found = python(&["-c", "import moto.server"]).status().is_ok_and(|s| s.success());
        if !found {
            eprintln!("SKIPPED: python3 has no moto.server (pip install 'moto[server]')");
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = python(&["-m", "moto.server", "-p", &port.to_string()]).spawn().unwrap();
        let server = S3 { child, endpoint: format!("http://127.0.0.1:{port}") };
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(120), "moto does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let request = "PUT /models HTTP/1.1\r\nHost: s3.amazonaws.com\r\nContent-Length: 0\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request\r\n\
             Connection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Some(server)
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = AmazonS3Builder::new().with_bucket_name("models").with_region("us-east-1");
        let builder = builder.with_endpoint(&self.endpoint).with_allow_http(true);
        Arc::new(builder.with_access_key_id("a").with_secret_access_key("b").build().unwrap())
    }

    fn run(&self, dir: &Path, args: &[&str]) -> Output {
        command(&self.endpoint)
            .env("AWS_ALLOW_HTTP", "true")
            .current_dir(dir)
            .args(args)
            .output()
            .unwrap()
    }
}

/// The command, to look for S3 at `endpoint`.
fn command(endpoint: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bigsmall"));
    for (name, value) in [
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("NO_PROXY", "*"),
    ] {
        command.env(name, value);
    }
    command
}

#[test]
fn a_server_that_does_not_speak_tls_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    // Answers what each connection begins with: the first byte of TLS says that a handshake comes.
    let hello = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        first
    });
    let output = command(&endpoint).args(["inspect", "s3://models/m.bs"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(hello.join().unwrap(), [22]);
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_command_takes_what_lies_in_s3() {
    let Some(server) = S3::start() else { return };
    let store = server.store();
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let expected = tensors(3);
    std::fs::create_dir_all(d.join("plain/sub")).unwrap();
    write(&d.join("plain/model.safetensors"), &expected);
    std::fs::write(d.join("plain/config.json"), "{}").unwrap();
    std::fs::write(d.join("plain/sub/note.txt"), "text").unwrap();
    common::compress(&d.join("plain"), &d.join("small")).unwrap();
    for name in common::names(&d.join("small")).iter().filter(|n| *n != "sub") {
        put(&*store, &format!("team/m/{name}"), std::fs::read(d.join("small").join(name)).unwrap());
    }
    put(&*store, "team/m/sub/note.txt", b"text".to_vec());
    put(&*store, "team/other/x.txt", b"not ours".to_vec());

    let file = CloudFile::open(Arc::clone(&store), "team/m/model.bs").unwrap();
    check(&Model::from_source(file).unwrap(), &expected);
    let done = |args: &[&str]| {
        let output = server.run(d, args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(done(&["inspect", "s3://models/team/m/model.bs"]).contains("model.layers.1.w"));
    assert!(done(&["inspect", "s3://models/team/m"]).contains("model.layers.1.w"));
    done(&["verify", "s3://models/team/m/"]);
    done(&["restore", "s3://models/team/m/model.bs", "-o", "one"]);
    let read = |name: &str| std::fs::read(d.join(name)).unwrap();
    assert!(read("one") == read("plain/model.safetensors"));
    done(&["restore", "s3://models/team/m", "-o", "all"]);
    assert_eq!(common::names(&d.join("all")), common::names(&d.join("plain")));
    for name in ["model.safetensors", "config.json", "sub/note.txt"] {
        assert!(read(&format!("all/{name}")) == read(&format!("plain/{name}")), "{name}");
    }
    for (code, url) in [(1, "s3://models/team/m/none.bs"), (2, "s3://models/empty")] {
        let output = server.run(d, &["verify", url]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{url}: {stderr}");
    }
}

#[test]
fn what_lies_in_s3_is_compressed_shard_by_shard() {
    let Some(server) = S3::start() else { return };
    let store = server.store();
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    std::fs::create_dir_all(d.join("plain/sub")).unwrap();
    let mut map = serde_json::Map::new();
    for (n, t) in tensors(4).into_iter().enumerate() {
        let name = format!("model-{n}.safetensors");
        map.insert(t.name.clone(), name.clone().into());
        write(&d.join("plain").join(name), &[t]);
    }
    let index = serde_json::json!({ "metadata": {"total_size": 1}, "weight_map": map });
    std::fs::write(d.join("plain/model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::write(d.join("plain/sub/note.txt"), "text").unwrap();
    common::compress(&d.join("plain"), &d.join("small")).unwrap();
    let files = ["model-0.safetensors", "model-1.safetensors", "model.safetensors.index.json"];
    let files = [&files[..], &["sub/note.txt"]].concat();
    for name in &files {
        put(&*store, &format!("team/p/{name}"), std::fs::read(d.join("plain").join(name)).unwrap());
    }
    let done = |args: &[&str]| {
        let output = server.run(d, args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let read = |name: &str| std::fs::read(d.join(name)).unwrap();
    done(&["compress", "s3://models/team/p", "-o", "all"]);
    assert_eq!(common::names(&d.join("all")), common::names(&d.join("small")));
    for name in ["model-0.bs", "model-1.bs", "model.bs.index.json", "sub/note.txt"] {
        assert!(read(&format!("all/{name}")) == read(&format!("small/{name}")), "{name}");
    }
    done(&["compress", "s3://models/team/p/model-1.safetensors", "-o", "one.bs"]);
    assert!(read("one.bs") == read("small/model-1.bs"));
    let ratio = |input: &str| -> f64 {
        let shown = done(&["estimate", input, "--json"]);
        serde_json::from_str::<serde_json::Value>(&shown).unwrap()["ratio"].as_f64().unwrap()
    };
    for (there, here) in [
        ("s3://models/team/p", "plain"),
        ("s3://models/team/p/model-0.safetensors", "plain/model-0.safetensors"),
    ] {
        let (there, here) = (ratio(there), ratio(here));
        assert!((there / here - 1.0).abs() < 0.05, "{there} {here}");
    }
}
