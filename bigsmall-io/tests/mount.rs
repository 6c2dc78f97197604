//! A file system in user space that can do no more than a mounted bucket (`shim/bucket.py`).
//! Skipped, and said, where there is no FUSE or no fusepy.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Random, names, tensor, write};
use safetensors::Dtype;

/// A mounted bucket, in `DIR/bucket`.
struct Bucket {
    child: Child,
    at: PathBuf,
}

impl Bucket {
    /// `None` where nothing can be mounted.
    fn mount(dir: &Path, renames: bool) -> Option<Self> {
        let (root, at) = (dir.join("root"), dir.join("bucket"));
        for path in [&root, &at] {
            std::fs::create_dir(path).unwrap();
        }
        std::fs::write(root.join("mounted"), "").unwrap();
        let mut command = Command::new("python3");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/bucket.py");
        command.arg(script).args([&root, &at]).stdout(Stdio::null()).stderr(Stdio::null());
        if !renames {
            command.env("NO_RENAME", "1");
        }
        let skipped =
            || eprintln!("SKIPPED: no FUSE (Debian's libfuse2 and fuse3; fusepy of PyPI)");
        let Ok(child) = command.spawn() else {
            skipped();
            return None;
        };
        let mut bucket = Bucket { child, at };
        let begin = Instant::now();
        while !bucket.at.join("mounted").exists() {
            if bucket.child.try_wait().unwrap().is_some() {
                skipped();
                return None;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "nothing is mounted");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::fs::remove_file(bucket.at.join("mounted")).unwrap();
        Some(bucket)
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        // Without the privilege of root, only this program may unmount.
        for program in ["fusermount3", "fusermount"] {
            let done = Command::new(program).arg("-uz").arg(&self.at).status();
            if done.is_ok_and(|done| done.success()) {
                break;
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bigsmall")).current_dir(dir).args(args).output().unwrap()
}

/// A file and a folder of a model, outside the bucket.
fn prepare(dir: &Path) {
    let mut random = Random::new(9);
    std::fs::create_dir_all(dir.join("folder/sub")).unwrap();
    let big = tensor("w", Dtype::BF16, &[900, 1000], random.weights(900_000));
    write(&dir.join("folder/sub/m.safetensors"), &[big]);
    std::fs::copy(dir.join("folder/sub/m.safetensors"), dir.join("m")).unwrap();
    std::fs::write(dir.join("folder/config.json"), "{}").unwrap();
}

// I-20
#[test]
fn every_job_works_in_a_mounted_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    prepare(d);
    let Some(bucket) = Bucket::mount(d, true) else { return };
    let read = |name: &str| std::fs::read(d.join(name)).unwrap();
    // What killed jobs left.
    for left in [".new.bs.bigsmall-aaaaaa.tmp", ".back.bigsmall-bbbbbb.tmp"] {
        std::fs::write(bucket.at.join(left), "left").unwrap();
    }
    std::fs::create_dir(bucket.at.join(".small.bigsmall-01234567-cccccc.tmp")).unwrap();
    for args in [
        &["compress", "m", "-o", "bucket/new.bs"][..],
        &["compress", "m", "-o", "bucket/new.bs", "--force"],
        &["restore", "bucket/new.bs", "-o", "bucket/back"],
        &["verify", "bucket/new.bs"],
        &["compress", "folder", "-o", "bucket/small"],
        &["compress", "folder", "-o", "bucket/small", "--force"],
        &["restore", "bucket/small", "-o", "bucket/large"],
        &["compress", "bucket/large", "-o", "again"],
        &["index", "bucket/small", "--original", "folder"],
        &["extract", "bucket/new.bs", "--tensor", "w", "-o", "bucket/w.safetensors"],
        &["transcode", "bucket/new.bs", "-o", "bucket/raw.bs", "--encoding", "raw"],
        &["inspect", "bucket/new.bs", "--html", "bucket/page.html"],
    ] {
        let output = run(d, args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(read("bucket/back") == read("m"));
    assert!(read("bucket/large/sub/m.safetensors") == read("m"));
    assert!(read("bucket/large/config.json") == b"{}");
    assert!(read("again/sub/m.bs") == read("bucket/small/sub/m.bs"));
    // An existing file is refused there too, and nothing is left.
    let before = names(&bucket.at);
    // Nor is a restored folder replaced: without attributes nothing says who made it.
    for args in [
        &["compress", "m", "-o", "bucket/back"][..],
        &["restore", "bucket/new.bs", "-o", "bucket/raw.bs"],
        &["restore", "bucket/small", "-o", "bucket/large", "--force"],
        &["compress", "folder", "-o", "bucket/large"],
    ] {
        assert_eq!(run(d, args).status.code(), Some(2), "{args:?}");
    }
    assert_eq!(names(&bucket.at), before);
    let expected = ["back", "large", "new.bs", "page.html", "raw.bs", "small", "w.safetensors"];
    assert_eq!(before, expected);
}

// I-20
#[test]
fn where_nothing_can_be_renamed_nothing_is_begun() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    prepare(d);
    let Some(bucket) = Bucket::mount(d, false) else { return };
    for input in ["m", "folder"] {
        let output = run(d, &["compress", input, "-o", "bucket/x"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains("not supported"), "{stderr}");
        assert_eq!(names(&bucket.at), [""; 0]);
    }
}
