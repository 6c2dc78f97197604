//! Group I, seen from outside: the process is killed, starved and raced, and the output is absent,
//! old or complete.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Random, names, tensor, verify, write};
use safetensors::Dtype;

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bigsmall"));
    command.current_dir(dir).args(args).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The command under a limit of the shell's `ulimit`.
fn limited(dir: &Path, limit: &str, args: &[&str]) -> std::process::Output {
    let script = format!("ulimit {limit}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.current_dir(dir).arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_bigsmall")).args(args);
    // A panic that prints a backtrace waits for ever if the memory for the backtrace is refused.
    command.env("RUST_BACKTRACE", "0").output().unwrap()
}

fn model(path: &Path, seed: u64, n: usize) {
    let mut random = Random::new(seed);
    let rows = n / 1000;
    write(path, &[tensor("w", Dtype::BF16, &[rows, 1000], random.weights(rows * 1000))]);
}

#[test]
// I-07, I-13
fn killed_at_any_time_the_output_is_absent_old_or_complete() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(&d.join("new"), 1, 3_000_000);
    model(&d.join("old"), 2, 100_000);
    let run = |args: &[&str]| assert!(command(d, args).status().unwrap().success());
    run(&["compress", "old", "-o", "old.bs"]);
    run(&["compress", "new", "-o", "new.bs"]);
    let read = |name: &str| std::fs::read(d.join(name)).unwrap();
    let jobs: [(&[&str], Vec<u8>, Vec<u8>); 2] = [
        (&["compress", "new", "-o", "target", "--force"], read("old.bs"), read("new.bs")),
        (&["restore", "new.bs", "-o", "target", "--force"], read("old"), read("new")),
    ];
    // Of each job; BIGSMALL_KILLS=200 for more.
    let rounds = std::env::var("BIGSMALL_KILLS").map_or(20, |n| n.parse().unwrap());
    let mut random = Random::new(4);
    let (mut kept, mut replaced, mut left) = (0, 0, 0);
    let temporaries = || names(d).iter().filter(|n| n.ends_with(".tmp")).count();
    for (args, old, new) in &jobs {
        for round in 0..rounds {
            let absent = round % 2 == 0;
            let _ = std::fs::remove_file(d.join("target"));
            if !absent {
                std::fs::write(d.join("target"), old).unwrap();
            }
            let mut child = command(d, args).spawn().unwrap();
            // Rounds reach from the start of the program to beyond its end.
            std::thread::sleep(Duration::from_micros(random.bits() % (20_000 * (round % 20 + 1))));
            child.kill().unwrap();
            child.wait().unwrap();
            // What one leaves behind, the next one removes.
            assert!(temporaries() <= 1, "{:?}", names(d));
            left += temporaries();
            match std::fs::read(d.join("target")) {
                Err(_) => assert!(absent),
                Ok(found) if found == *new => replaced += 1,
                Ok(found) => {
                    assert!(!absent && found == *old);
                    kept += 1;
                }
            }
        }
    }
    println!("killed {} times: {kept} kept, {replaced} replaced, the others absent", 2 * rounds);
    assert!(kept + replaced > 0 && left > 0);
    run(&["compress", "new", "-o", "target", "--force"]);
    assert_eq!(temporaries(), 0);
    assert!(read("target") == read("new.bs"));
}

#[test]
fn ctrl_c_leaves_nothing_half_written() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(&d.join("m"), 1, 6_000_000);
    std::fs::create_dir(d.join("folder")).unwrap();
    std::fs::copy(d.join("m"), d.join("folder/m.safetensors")).unwrap();
    assert!(command(d, &["compress", "m", "-o", "m.bs"]).status().unwrap().success());
    let before = names(d);
    let jobs: [&[&str]; 3] = [
        &["compress", "m", "-o", "target", "--level", "small"],
        &["restore", "m.bs", "-o", "target", "--threads", "1"],
        &["compress", "folder", "-o", "target", "--level", "small"],
    ];
    let mut stopped = 0;
    for (signal, number) in [("INT", 2), ("TERM", 15)] {
        for args in jobs {
            for millis in [3, 15, 40] {
                let mut child = command(d, args).spawn().unwrap();
                std::thread::sleep(Duration::from_millis(millis));
                let pid = child.id().to_string();
                Command::new("kill").args(["-s", signal, &pid]).status().unwrap();
                let status = child.wait().unwrap();
                if status.success() {
                    let target = d.join("target");
                    assert!(target.exists());
                    if target.is_dir() {
                        std::fs::remove_dir_all(target).unwrap();
                    } else {
                        std::fs::remove_file(target).unwrap();
                    }
                } else if status.signal() == Some(number) {
                    stopped += 1;
                    assert_eq!(names(d), before, "{args:?} {signal} after {millis} ms");
                }
            }
        }
    }
    assert!(stopped > 0, "no job was caught in the middle");
}

#[test]
// X-02
fn a_signal_ends_index_while_it_copies_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for folder in ["model", "out"] {
        std::fs::create_dir(d.join(folder)).unwrap();
    }
    model(&d.join("model/m.safetensors"), 1, 1000);
    let compress = ["compress", "model/m.safetensors", "-o", "out/m.bs"];
    assert!(command(d, &compress).status().unwrap().success());
    std::fs::File::create(d.join("model/large")).unwrap().set_len(4 << 30).unwrap();
    for (signal, number) in [("INT", 2), ("TERM", 15)] {
        let mut child = command(d, &["index", "out", "--original", "model"]).spawn().unwrap();
        while names(&d.join("out")).len() < 2 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().signal(), Some(number), "{signal}");
        assert_eq!(names(&d.join("out")), ["m.bs"], "{signal}");
    }
}

#[test]
// I-14
fn a_limit_on_the_size_of_files_is_an_error_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(&d.join("m"), 1, 1_000_000);
    assert!(command(d, &["compress", "m", "-o", "m.bs"]).status().unwrap().success());
    std::fs::write(d.join("target"), "old").unwrap();
    let before = names(d);
    // In blocks of 512 bytes; the shard has about 2600 of them, the original 3900.
    for blocks in [0, 1, 7, 500, 2000, 2500] {
        for args in [
            ["compress", "m", "-o", "target", "--force"],
            ["restore", "m.bs", "-o", "target", "--force"],
        ] {
            let output = limited(d, &format!("-f {blocks}"), &args);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{blocks} {args:?}: {stderr}");
            assert_eq!(std::fs::read(d.join("target")).unwrap(), b"old");
            assert_eq!(names(d), before);
        }
    }
}

#[test]
// I-15
fn a_limit_on_memory_leaves_the_target_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(&d.join("m"), 1, 1_000_000);
    assert!(command(d, &["compress", "m", "-o", "m.bs"]).status().unwrap().success());
    let (m, m_bs) = (std::fs::read(d.join("m")).unwrap(), std::fs::read(d.join("m.bs")).unwrap());
    // How large the program is depends on its features: below this it cannot even be loaded.
    let loads = |kib: &u32| limited(d, &format!("-v {kib}"), &["--version"]).status.success();
    let least = (6_000..).step_by(1000).find(loads).unwrap();
    for threads in ["1", "2", "8"] {
        let jobs: [(&[&str], &[u8]); 3] = [
            (&["compress", "m", "-o", "target", "--force", "--threads", threads], &m_bs),
            (&["restore", "m.bs", "-o", "target", "--force", "--threads", threads], &m),
            (&["verify", "m.bs", "--threads", threads], b"old"),
        ];
        for (args, new) in jobs {
            let (mut done, mut refused) = (0, 0);
            // From less than the program needs to start its threads to more than the job takes.
            for kib in (least..least + 42_000).step_by(700).chain([200_000, 4_000_000]) {
                std::fs::write(d.join("target"), "old").unwrap();
                let output = limited(d, &format!("-v {kib}"), args);
                let stderr = String::from_utf8_lossy(&output.stderr);
                let found = std::fs::read(d.join("target")).unwrap();
                match output.status.code() {
                    Some(0) => {
                        assert!(found == new);
                        done += 1;
                    }
                    // A buffer, or a thread, that is not to be had is an error. A small allocation
                    // ends the process, as in every program in Rust.
                    Some(5 | 101) | None => {
                        assert_eq!(found, b"old");
                        assert!(stderr.contains("memory"), "{stderr}");
                        refused += 1;
                    }
                    _ => panic!("{args:?}, {kib} KiB: {}: {stderr}", output.status),
                }
            }
            assert!(done > 0 && refused > 0, "{args:?}: {done} done, {refused} refused");
        }
    }
}

#[test]
// I-13, I-15
fn many_small_tensors_under_a_limit_on_memory_leave_the_target_and_nothing_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let mut random = Random::new(31);
    let mut one = |i| tensor(&format!("layers.{i}.scale"), Dtype::U8, &[60], random.bytes(60));
    write(&d.join("m"), &(0..20_000).map(&mut one).collect::<Vec<_>>());
    assert!(command(d, &["compress", "m", "-o", "m.bs"]).status().unwrap().success());
    let (m, m_bs) = (std::fs::read(d.join("m")).unwrap(), std::fs::read(d.join("m.bs")).unwrap());
    let loads = |kib: &u32| limited(d, &format!("-v {kib}"), &["--version"]).status.success();
    let least = (6_000..).step_by(1000).find(loads).unwrap();
    let jobs: [(&[&str], &[u8]); 5] = [
        (&["compress", "m", "-o", "target", "--force", "--threads", "2"], &m_bs),
        (&["restore", "m.bs", "-o", "target", "--force", "--threads", "2"], &m),
        (&["transcode", "m.bs", "-o", "target", "--force", "--threads", "2"], &m_bs),
        (&["verify", "m.bs", "--threads", "2"], b"old"),
        (&["inspect", "m.bs"], b"old"),
    ];
    for (args, new) in jobs {
        let (mut done, mut refused, mut aborted) = (0, 0, 0);
        for kib in (least..least + 70_000).step_by(7000).chain([4_000_000]) {
            std::fs::write(d.join("target"), "old").unwrap();
            let output = limited(d, &format!("-v {kib}"), args);
            let stderr = String::from_utf8_lossy(&output.stderr);
            let found = std::fs::read(d.join("target")).unwrap();
            match output.status.code() {
                Some(0) => {
                    assert!(found == new);
                    done += 1;
                }
                Some(5) => {
                    assert_eq!(found, b"old");
                    refused += 1;
                }
                // The outcome of a small allocation that fails, as in every program in Rust.
                Some(101) | None => {
                    assert_eq!(found, b"old");
                    assert!(stderr.contains("memory"), "{stderr}");
                    aborted += 1;
                }
                _ => panic!("{args:?}, {kib} KiB: {}: {stderr}", output.status),
            }
        }
        println!("{}: {done} done, {refused} refused, {aborted} aborted", args[0]);
        assert!(done > 0 && refused + aborted > 0);
    }
    assert!(command(d, &["compress", "m", "-o", "target", "--force"]).status().unwrap().success());
    assert_eq!(names(d), ["m", "m.bs", "target"]);
}

#[test]
// I-09
fn two_writers_never_mix() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(&d.join("a"), 1, 2_000_000);
    model(&d.join("b"), 2, 2_000_000);
    for name in ["a", "b"] {
        let out = format!("{name}.bs");
        assert!(command(d, &["compress", name, "-o", &out]).status().unwrap().success());
    }
    let (a, b) = (std::fs::read(d.join("a.bs")).unwrap(), std::fs::read(d.join("b.bs")).unwrap());
    for force in [false, true] {
        for _ in 0..3 {
            let _ = std::fs::remove_file(d.join("target"));
            let start = |name: &str| -> Child {
                let mut args = vec!["compress", name, "-o", "target"];
                if force {
                    args.push("--force");
                }
                command(d, &args).spawn().unwrap()
            };
            let codes = [start("a"), start("b")].map(|mut c| c.wait().unwrap().code());
            let found = std::fs::read(d.join("target")).unwrap();
            assert!(found == a || found == b);
            let done = codes.iter().filter(|c| **c == Some(0)).count();
            // Without leave to replace, one of them comes second.
            assert_eq!(done, if force { 2 } else { 1 }, "{codes:?}");
            if !force {
                assert!(codes.contains(&Some(2)), "{codes:?}");
            }
        }
    }
}

#[test]
fn places_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(&d.join("m"), 1, 10_000);
    assert!(command(d, &["compress", "m", "-o", "m.bs"]).status().unwrap().success());
    std::fs::create_dir(d.join("dir")).unwrap();
    let pipe = Command::new("mkfifo").arg(d.join("pipe")).status().unwrap();
    assert!(pipe.success());
    let before = names(d);
    // Never blocks, never replaces what is no file.
    let cases: [(i32, &[&str]); 9] = [
        (1, &["compress", "pipe", "-o", "x"]),
        (1, &["verify", "pipe"]),
        (1, &["compress", "/dev/zero", "-o", "x"]),
        (1, &["restore", "/dev/null", "-o", "x"]),
        (1, &["compress", "m", "-o", "pipe", "--force"]),
        (1, &["restore", "m.bs", "-o", "dir", "--force"]),
        (2, &["restore", "m.bs", "-o", "dir"]),
        // I-11
        (1, &["compress", "m", "-o", "missing/x"]),
        (1, &["compress", "m", "-o", "/proc/x"]),
    ];
    for (expected, args) in cases {
        let output = command(d, args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{args:?}: {stderr}");
        assert_eq!(names(d), before);
    }
    // I-12
    // To another mount there and back.
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    let shard = other.path().join("m.bs");
    let shard = shard.to_str().unwrap();
    assert!(command(d, &["compress", "m", "-o", shard]).status().unwrap().success());
    assert!(command(d, &["restore", shard, "-o", "back"]).status().unwrap().success());
    assert!(std::fs::read(d.join("m")).unwrap() == std::fs::read(d.join("back")).unwrap());
}

#[test]
// I-10
fn a_read_only_directory_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(&d.join("m"), 1, 10_000);
    let closed = d.join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o555)).unwrap();
    // The superuser may write anywhere; then there is nothing to see.
    if std::fs::write(closed.join("probe"), "").is_ok() {
        eprintln!("skipped: this user may write into a read-only directory");
        return;
    }
    let output = command(d, &["compress", "m", "-o", "closed/m.bs"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_mode_of_the_output_follows_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    std::fs::create_dir(d.join("in")).unwrap();
    model(&d.join("in/m.safetensors"), 1, 10_000);
    let open = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(d.join("in/m.safetensors"), open).unwrap();
    for (umask, file, folder) in
        [("022", 0o644, 0o755), ("077", 0o600, 0o700), ("002", 0o664, 0o775)]
    {
        let script = format!(
            "umask {umask}; rm -rf f; \"$0\" compress in/m.safetensors -o f && \
             \"$0\" compress in -o d --force"
        );
        let status = Command::new("sh")
            .current_dir(d)
            .args(["-c", &script, env!("CARGO_BIN_EXE_bigsmall")])
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
        let mode = |name: &str| std::fs::metadata(d.join(name)).unwrap().mode() & 0o777;
        assert_eq!((mode("f"), mode("d"), mode("d/m.bs")), (file, folder, file), "{umask}");
    }
    // No more than the input's own, and exactly those of a file that is replaced.
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(d.join("in/m.safetensors"), private).unwrap();
    assert!(command(d, &["compress", "in/m.safetensors", "-o", "p"]).status().unwrap().success());
    assert_eq!(std::fs::metadata(d.join("p")).unwrap().mode() & 0o777, 0o600);
    std::fs::set_permissions(d.join("p"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let args = ["compress", "in/m.safetensors", "-o", "p", "--force"];
    assert!(command(d, &args).status().unwrap().success());
    assert_eq!(std::fs::metadata(d.join("p")).unwrap().mode() & 0o777, 0o640);
}

#[test]
// I-04, I-05, F-15
fn a_file_truncated_while_it_is_open_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(&d.join("m"), 1, 2_000_000);
    common::compress(&d.join("m"), &d.join("m.bs")).unwrap();
    let opened = bigsmall_io::Model::open(d.join("m.bs")).unwrap();
    // A second name for what is open, to cut and to lengthen.
    let file = std::fs::OpenOptions::new().write(true).open(d.join("m.bs")).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len + 1000).unwrap();
    let whole = opened.tensor("w").unwrap();
    file.set_len(len / 2).unwrap();
    let error = opened.tensor("w").unwrap_err();
    let rules = [bigsmall_io::ErrorKind::Io, bigsmall_io::ErrorKind::SourceChanged];
    assert!(rules.contains(&error.kind()), "{error}");
    // A new file under the old name: what is open stays the old one.
    common::compress(&d.join("m"), &d.join("n.bs")).unwrap();
    let opened = bigsmall_io::Model::open(d.join("n.bs")).unwrap();
    std::fs::write(d.join("other"), "nothing").unwrap();
    std::fs::rename(d.join("other"), d.join("n.bs")).unwrap();
    assert!(opened.tensor("w").unwrap() == whole);
    assert!(verify(&d.join("n.bs")).is_err());
    // Other bytes of the same length in the file that is open: its checksums are those of the index
    // that was read.
    common::compress(&d.join("m"), &d.join("o.bs")).unwrap();
    let opened = bigsmall_io::Model::open(d.join("o.bs")).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(d.join("o.bs")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 4096], 100_000).unwrap();
    let error = opened.tensor("w").unwrap_err();
    assert_eq!(
        (error.kind(), error.tensor()),
        (bigsmall_io::ErrorKind::Format(bigsmall_io::Rule::BlockChecksum), Some("w"))
    );
}

#[test]
// I-05
fn a_source_that_changes_while_it_is_compressed_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(&d.join("m"), 1, 3_000_000);
    let mut child = command(d, &["compress", "m", "-o", "m.bs", "--threads", "1"]).spawn().unwrap();
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().append(true).open(d.join("m")).unwrap();
    let status = loop {
        file.write_all(&[0]).unwrap();
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    // 1 where the change came while it was read, 3 where the header did not fit the file any more.
    assert!(matches!(status.code(), Some(1 | 3)), "{status}");
    assert_eq!(names(d), ["m"]);
}

#[test]
// M-01
fn an_input_that_is_written_to_is_an_error_or_one_consistent_file() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let mut random = Random::new(21);
    let weights = random.weights(1_000_000);
    let tensors =
        ["a", "b", "c"].map(|name| tensor(name, Dtype::BF16, &[1_000_000], weights.clone()));
    write(&d.join("original"), &tensors);
    let original = std::fs::read(d.join("original")).unwrap();
    let (mut refused, mut consistent) = (0, 0);
    for round in 0..200 {
        std::fs::write(d.join("m"), &original).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(d.join("m")).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        let mut child = command(d, &["compress", "m", "-o", "m.bs"]).spawn().unwrap();
        // As one who writes to a map of the file: neither its length nor its time moves.
        let status = loop {
            std::thread::sleep(Duration::from_micros(random.bits() % (200 * (1 + round % 40))));
            let at = 1000 + random.bits() % (original.len() as u64 - 1000);
            file.write_all_at(&[random.bits() as u8], at).unwrap();
            file.set_modified(before).unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
        };
        match status.code() {
            Some(0) => {
                verify(&d.join("m.bs")).unwrap();
                std::fs::remove_file(d.join("m.bs")).unwrap();
                consistent += 1;
            }
            Some(1) => refused += 1,
            _ => panic!("{status}"),
        }
        assert_eq!(names(d), ["m", "original"]);
    }
    println!("{consistent} consistent, {refused} refused");
    assert!(refused > 0, "no change came between two reads");
}

/// The most memory that a run of the command had resident, in MiB.
fn peak_mib(dir: &Path, args: &[&str]) -> u64 {
    let mut child = command(dir, args).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let done = loop {
        if let Ok(text) = std::fs::read_to_string(&status) {
            let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
            let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
            peak = peak.max(kib.unwrap_or(0));
        }
        if let Some(done) = child.try_wait().unwrap() {
            break done;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(done.success(), "{args:?}");
    assert!(peak > 0);
    peak / 1024
}

/// Writes one bf16 tensor of `n` values piece by piece; every piece of 8 MiB is the same weights in
/// another order.
fn one_tensor(path: &Path, n: u64) {
    use std::io::Write;
    let json = format!(r#"{{"w":{{"dtype":"BF16","shape":[{n}],"data_offsets":[0,{}]}}}}"#, 2 * n);
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&(json.len() as u64).to_le_bytes()).unwrap();
    file.write_all(json.as_bytes()).unwrap();
    let mut piece = Random::new(5).weights(4 << 20);
    let (mut left, mut turn) = (2 * n, 0);
    while left > 0 {
        let len = piece.len().min(left as usize);
        file.write_all(&piece[..len]).unwrap();
        left -= len as u64;
        turn += 2 * 1021;
        piece.rotate_left(turn % (8 << 20) / 2 * 2);
    }
}

#[test]
// M-03
fn a_long_name_that_many_tensors_refer_to_is_shown_in_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let long = "n".repeat(65_536);
    let names = (0..20_001).map(|i| if i == 0 { long.clone() } else { format!("t{i}") });
    let tensors: Vec<_> = names.map(|n| tensor(&n, Dtype::U8, &[1], vec![7])).collect();
    write(&d.join("m"), &tensors);
    assert!(command(d, &["compress", "m", "-o", "m.bs"]).status().unwrap().success());
    for args in [&["inspect", "m.bs"][..], &["inspect", "m.bs", "--json"]] {
        let peak = peak_mib(d, args);
        println!("{args:?}: {peak} MiB");
        assert!(peak <= 100, "{args:?}: {peak} MiB");
    }
    let table = command(d, &["inspect", "m.bs"]).stdout(Stdio::piped()).output().unwrap().stdout;
    assert!(table.len() < 10_000_000, "{} bytes", table.len());
}

fn memory_is_bounded(n: u64) {
    // On a disk, and not in a file system that is memory itself.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let d = dir.path();
    one_tensor(&d.join("m"), n);
    let index_mib = 12 * (n / 65_536 + 1) / (1 << 20) + 1;
    let jobs: [&[&str]; 4] = [
        &["compress", "m", "-o", "m.bs"],
        &["verify", "m.bs"],
        &["restore", "m.bs", "-o", "back"],
        &["transcode", "m.bs", "-o", "t.bs", "--encoding", "tbe3"],
    ];
    for args in jobs {
        let peak = peak_mib(d, args);
        println!("{:>12} {:>10} values: {peak} MiB", args[0], n);
        assert!(peak <= 256 + index_mib, "{args:?}: {peak} MiB");
    }
    let same = Command::new("cmp").arg(d.join("m")).arg(d.join("back")).status().unwrap();
    assert!(same.success());
}

#[test]
fn memory_is_bounded_for_a_tensor_of_600_mb() {
    memory_is_bounded(300_000_000);
}

#[test]
#[ignore = "writes 13 GB and takes minutes"]
// I-17
fn memory_is_bounded_for_a_tensor_of_4_gb() {
    memory_is_bounded(2_147_483_648 + 12_345);
}
