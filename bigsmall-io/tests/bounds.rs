//! A small file cannot fill a disk or keep a machine busy for days, unless the user says so.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::Ordering;

use bigsmall_codec::Ans;
use bigsmall_format::internal::Assembler;
use bigsmall_format::{Dtype, EncodingId, MAX_BLOCK_UNITS, TensorSpec, encode_tensor};
use bigsmall_io::{
    CompressOptions, ErrorKind, Progress, RestoreOptions, restore, transcode, verify,
};
use common::{Random, names, tensor, write};

/// A shard of a tensor of zeros with so many blocks of 1 MiB (more than 32, see FORMAT.md, section
/// 3), and of others that share its payload.
/// Its SHA-256 is wrong: nobody could compute it.
fn swelling(path: &Path, blocks: u64, sharers: usize) {
    let one = TensorSpec::new("t", Dtype::F64, &[MAX_BLOCK_UNITS as u64]).unwrap();
    let encoded = encode_tensor(&Ans::default(), &one, &vec![0; 8 * MAX_BLOCK_UNITS]).unwrap();
    let block = encoded.block(0).to_vec();
    let shape = [blocks * MAX_BLOCK_UNITS as u64];
    let spec = |i| TensorSpec::new(&format!("t{i}"), Dtype::F64, &shape).unwrap();
    let specs: Vec<TensorSpec> = (0..=sharers).map(spec).collect();
    let mut writer = Assembler::synthesised(Vec::new(), &specs).unwrap();
    writer.begin(EncodingId::Ans, encoded.head()).unwrap();
    for _ in 0..blocks {
        writer.blocks(&block, &[block.len() as u32]).unwrap();
    }
    writer.end(None).unwrap();
    (0..sharers).for_each(|_| writer.share(0, None).unwrap());
    std::fs::write(path, writer.finish([0; 32]).unwrap()).unwrap();
}

fn run(dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    const COMMAND: &str = env!("CARGO_BIN_EXE_bigsmall");
    let mut command = Command::new(if cfg!(unix) { "sh" } else { COMMAND });
    if cfg!(unix) {
        // A job that is not refused must not fill the disk of the machine that tests.
        command.args(["-c", "ulimit -f 2000000; exec \"$0\" \"$@\"", COMMAND]);
    }
    let Output { status, stderr, .. } = command.current_dir(dir).args(args).output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
// M-04, M-05
fn a_shard_that_restores_to_far_more_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    // 3 MB that restore to 256 TiB.
    swelling(&d.join("m.bs"), 16_384, 16_383);
    std::fs::create_dir(d.join("folder")).unwrap();
    std::fs::copy(d.join("m.bs"), d.join("folder/m.bs")).unwrap();
    let before = names(d);
    let stored = std::fs::metadata(d.join("m.bs")).unwrap().len();
    let jobs: [&[&str]; 5] = [
        &["restore", "m.bs", "-o", "out"],
        &["restore", "folder", "-o", "out"],
        &["verify", "m.bs"],
        &["verify", "folder"],
        &["transcode", "m.bs", "-o", "out"],
    ];
    for args in jobs {
        let (code, stderr) = run(d, args);
        assert_eq!(code, Some(5), "{args:?}: {stderr}");
        for part in ["m.bs", &stored.to_string(), "28147497", "1048576", "--max-expansion"] {
            assert!(stderr.contains(part), "{args:?}: {part} is not in {stderr}");
        }
        assert_eq!(names(d), before, "{args:?}");
    }
    // With leave to expand there is still no disk for it.
    for input in ["m.bs", "folder"] {
        let args = ["restore", input, "-o", "out", "--max-expansion", "1000000000000"];
        let (code, stderr) = run(d, &args);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("free space") && stderr.contains("28147497"), "{stderr}");
        assert_eq!(names(d), before);
    }
    assert_eq!(run(d, &["inspect", "m.bs"]).0, Some(0), "it can be looked at");
}

#[cfg(unix)]
#[test]
// M-05
fn a_file_to_copy_that_is_larger_than_the_disk_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for folder in ["plain", "shards"] {
        std::fs::create_dir(d.join(folder)).unwrap();
        // A hole of 8 TiB.
        let file = std::fs::File::create(d.join(folder).join("vocabulary")).unwrap();
        if let Err(e) = file.set_len(8 << 40) {
            return eprintln!("SKIPPED: a file of 8 TiB ({e})");
        }
    }
    write(&d.join("plain/m.safetensors"), &[tensor("w", safetensors::Dtype::U8, &[4], vec![1; 4])]);
    common::compress(&d.join("plain/m.safetensors"), &d.join("shards/m.bs")).unwrap();
    let before = names(d);
    for args in [["compress", "plain", "-o", "out"], ["restore", "shards", "-o", "out"]] {
        let (code, stderr) = run(d, &args);
        assert_eq!(code, Some(1), "{stderr}");
        for part in ["free space", "8796093022", "--ignore-free-space"] {
            assert!(stderr.contains(part), "{args:?}: {part} is not in {stderr}");
        }
        // With leave it begins, and the limit of this test on files ends it.
        let (code, stderr) = run(d, &[&args[..], &["--ignore-free-space"]].concat());
        assert!(code == Some(1) && !stderr.contains("free space"), "{stderr}");
        assert_eq!(names(d), before);
    }
}

#[test]
// M-04
fn the_limit_can_be_set() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    // Nothing but zeros, twice: an honest file that shrinks a lot.
    let zeros = || vec![0; 8 << 20];
    let shape = [1 << 20];
    write(&d.join("m"), &["a", "b"].map(|n| tensor(n, safetensors::Dtype::F64, &shape, zeros())));
    common::compress(&d.join("m"), &d.join("m.bs")).unwrap();
    let stored = std::fs::metadata(d.join("m.bs")).unwrap().len();
    let ratio = std::fs::metadata(d.join("m")).unwrap().len() / stored;
    assert!(ratio > 10_000, "{ratio}");
    let progress = Progress::default();
    for (most, fits) in [(None, true), (Some(ratio + 1), true), (Some(ratio), false)] {
        let options = RestoreOptions::new().max_expansion(most).replace(true);
        let compress = CompressOptions::new().max_expansion(most).replace(true);
        let done = [
            verify(d.join("m.bs"), &options, &progress),
            restore(d.join("m.bs"), d.join("back"), &options, &progress),
            transcode(d.join("m.bs"), d.join("t.bs"), &compress, &progress),
        ];
        for done in done {
            match done {
                Ok(_) => assert!(fits, "{most:?}"),
                Err(error) => {
                    assert!(!fits, "{error}");
                    assert_eq!(error.kind(), ErrorKind::Expansion);
                }
            }
        }
    }
    assert!(std::fs::read(d.join("back")).unwrap() == std::fs::read(d.join("m")).unwrap());
}

#[test]
fn the_user_is_told_before_much_more_is_written_than_read() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let restore = |name: &str| {
        let progress = Progress::default();
        let (flag, told) =
            (progress.cancel_flag(), std::sync::Arc::new(std::sync::Mutex::default()));
        let texts = std::sync::Arc::clone(&told);
        let progress = progress.on_warning(move |text| {
            *texts.lock().unwrap() = text.to_owned();
            flag.store(true, Ordering::SeqCst);
        });
        let done = restore(d.join(name), d.join("out"), &RestoreOptions::new(), &progress);
        let text: String = told.lock().unwrap().clone();
        (done, text)
    };
    swelling(&d.join("m.bs"), 2048, 0);
    let (done, text) = restore("m.bs");
    assert_eq!(done.unwrap_err().kind(), ErrorKind::Cancelled);
    let stored = std::fs::metadata(d.join("m.bs")).unwrap().len();
    assert!(text.contains(&stored.to_string()) && text.contains("21474837"), "{text}");
    // Nothing is said about an ordinary file.
    let bytes = Random::new(5).weights(100_000);
    write(&d.join("n"), &[tensor("w", safetensors::Dtype::BF16, &[100_000], bytes)]);
    common::compress(&d.join("n"), &d.join("n.bs")).unwrap();
    let (done, text) = restore("n.bs");
    assert_eq!((done.is_ok(), &*text), (true, ""));
}
