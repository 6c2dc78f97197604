//! Group I, with the system calls themselves at fault: the real command, the real files, and a
//! library between it and the kernel that shortens, interrupts and fails its calls.
#![cfg(all(
    target_os = "linux",
    target_env = "gnu",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use common::{Random, names, tensor, write};
use safetensors::Dtype;

/// The library, compiled once.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libflaky.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/flaky.rs");
        let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let done = Command::new(compiler)
            .args(["--edition", "2024", "--crate-type", "cdylib", "-C", "panic=abort", "-o"])
            .args([&out, &source])
            .status();
        assert!(done.unwrap().success());
        out
    })
}

fn run(dir: &Path, settings: &[(&str, usize)], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bigsmall"));
    command.current_dir(dir).args(args).env("LD_PRELOAD", library());
    command.envs(settings.iter().map(|(name, n)| (name, n.to_string())));
    command.output().unwrap()
}

/// A file of several tensors, its shard under `m.bs`, and a folder.
fn prepare(dir: &Path) {
    let mut random = Random::new(9);
    write(
        &dir.join("m"),
        &[
            tensor("w", Dtype::BF16, &[9, 1000], random.weights(9000)),
            tensor("bytes", Dtype::U8, &[777], random.bytes(777)),
            tensor("none", Dtype::F32, &[0], vec![]),
        ],
    );
    std::fs::create_dir(dir.join("folder")).unwrap();
    std::fs::copy(dir.join("m"), dir.join("folder/m.safetensors")).unwrap();
    std::fs::write(dir.join("folder/config.json"), "{}").unwrap();
    assert!(run(dir, &[], &["compress", "m", "-o", "m.bs"]).status.success());
}

// I-01, I-02
#[test]
fn short_and_interrupted_calls_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    prepare(d);
    let read = |name: &str| std::fs::read(d.join(name)).unwrap();
    let settings: [&[(&str, usize)]; 3] =
        [&[("FLAKY_SHORT", 1)], &[("FLAKY_EINTR", 1)], &[("FLAKY_SHORT", 1), ("FLAKY_EINTR", 1)]];
    for settings in settings {
        let check = |args: &[&str]| {
            let output = run(d, settings, args);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{settings:?} {args:?}: {stderr}");
            output.stdout
        };
        check(&["compress", "m", "-o", "again.bs", "--force"]);
        assert!(read("again.bs") == read("m.bs"), "{settings:?}");
        check(&["restore", "m.bs", "-o", "back", "--force"]);
        assert!(read("back") == read("m"), "{settings:?}");
        check(&["verify", "m.bs"]);
        let shown = check(&["inspect", "m.bs", "--json"]);
        assert!(shown == run(d, &[], &["inspect", "m.bs", "--json"]).stdout);
        check(&["compress", "folder", "-o", "small", "--force"]);
        check(&["restore", "small", "-o", "large", "--force"]);
        assert!(read("large/m.safetensors") == read("m") && read("large/config.json") == b"{}");
    }
}

/// Runs `args` with the n-th call failing, for n = 0, 1, 2 and so on until it succeeds: exit code
/// 1, the target as it was, nothing left behind. Returns how often it failed.
fn until_it_succeeds(d: &Path, setting: &str, args: &[&str]) -> usize {
    std::fs::write(d.join("target"), "old").unwrap();
    let before = names(d);
    for n in 0..5000 {
        let output = run(d, &[(setting, n)], args);
        if output.status.success() {
            assert_eq!(names(d), before);
            return n;
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{setting}={n} {args:?}: {stderr}");
        assert_eq!(std::fs::read(d.join("target")).unwrap(), b"old", "{setting}={n} {args:?}");
        assert_eq!(names(d), before, "{setting}={n} {args:?}");
    }
    panic!("{setting} {args:?}: it never succeeds");
}

// I-03, I-06
#[test]
fn the_nth_call_fails() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    prepare(d);
    let compress = ["compress", "m", "-o", "target", "--force"];
    let restore = ["restore", "m.bs", "-o", "target", "--force"];
    for args in [&compress[..], &restore, &["verify", "m.bs"], &["inspect", "m.bs"]] {
        let n = until_it_succeeds(d, "FLAKY_READ_FAILS", args);
        assert!(n >= 1, "{args:?}: {n} reads only");
    }
    for args in [compress, restore] {
        let n = until_it_succeeds(d, "FLAKY_WRITE_FAILS", &args);
        assert!(n >= 1, "{args:?}: {n} writes only");
        // The file, then its folder: once the name is given a failure to make it durable is an
        // error all the same.
        std::fs::write(d.join("target"), "old").unwrap();
        let before = names(d);
        let output = run(d, &[("FLAKY_SYNC_FAILS", 0)], &args);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(std::fs::read(d.join("target")).unwrap(), b"old");
        assert_eq!(names(d), before);
        let output = run(d, &[("FLAKY_SYNC_FAILS", 1)], &args);
        assert_eq!(output.status.code(), Some(1));
        assert!(run(d, &[("FLAKY_SYNC_FAILS", 2)], &args).status.success());
    }
}

// I-06: a folder is written whole or not at all.
#[test]
fn the_nth_write_of_a_folder_fails() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    prepare(d);
    let before = names(d);
    for n in 0.. {
        let output = run(d, &[("FLAKY_WRITE_FAILS", n)], &["compress", "folder", "-o", "small"]);
        if output.status.success() {
            assert!(n > 1, "{n} writes only");
            break;
        }
        assert_eq!(output.status.code(), Some(1), "{n}");
        assert_eq!(names(d), before, "{n}");
    }
}

// I-20
#[test]
fn a_mounted_bucket_is_a_place_for_files_and_folders() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    prepare(d);
    let read = |name: &str| std::fs::read(d.join(name)).unwrap();
    let bucket = [("FLAKY_BUCKET", 1)];
    let jobs: [&[&str]; 8] = [
        &["compress", "m", "-o", "new.bs"],
        &["compress", "m", "-o", "new.bs", "--force"],
        &["restore", "new.bs", "-o", "back"],
        &["compress", "folder", "-o", "small"],
        &["compress", "folder", "-o", "small", "--force"],
        &["restore", "small", "-o", "large"],
        &["index", "small", "--original", "folder"],
        &["transcode", "m.bs", "-o", "raw.bs", "--encoding", "raw"],
    ];
    for args in jobs {
        let output = run(d, &bucket, args);
        if output.status.code() == Some(77) {
            return eprintln!("SKIPPED: this system takes no filter of system calls");
        }
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(read("new.bs") == read("m.bs") && read("back") == read("m"));
    assert!(read("large/m.safetensors") == read("m") && read("large/config.json") == b"{}");
    // An existing file is refused there too.
    for args in [&["compress", "m", "-o", "back"][..], &["restore", "m.bs", "-o", "new.bs"]] {
        assert_eq!(run(d, &bucket, args).status.code(), Some(2), "{args:?}");
    }
    assert!(read("new.bs") == read("m.bs") && read("back") == read("m"));
    // Where nothing can be renamed nothing is begun.
    let before = names(d);
    for args in [&["compress", "m", "-o", "x.bs"][..], &["compress", "folder", "-o", "x"]] {
        let settings = [("FLAKY_NO_RENAME", 1), ("FLAKY_WRITE_FAILS", 0)];
        let output = run(d, &settings, args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains("not supported"), "{stderr}");
        assert_eq!(names(d), before);
    }
}

// I-18
#[test]
fn results_for_a_full_device() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    prepare(d);
    for args in [
        &["inspect", "m.bs"][..],
        &["inspect", "m.bs", "--json"],
        &["verify", "m.bs", "--json"],
        &["estimate", "m"],
        &["completions", "bash"],
        &["--help"],
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_bigsmall"))
            .current_dir(d)
            .args(args)
            .stdout(full)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
        if args != ["--help"] {
            assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        }
    }
}
