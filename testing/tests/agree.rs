//! Files that break two rules: two readers, of which one was written from FORMAT.md alone
//! (`tools/reader.py`), report the same class. Section 14 of FORMAT.md has the order.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::Command;

use bigsmall_codec::Backend;
use bigsmall_format::Error;
use bigsmall_testing::trials::{Encodings, Golden, decode_frame, verify_all};
use bigsmall_testing::{Random, goldens};

/// What the Rust reader says: the class, or `sound`.
fn class(name: &str, bytes: &[u8], encodings: &Encodings) -> (String, String) {
    let found = match name.ends_with(".frame") {
        true => decode_frame(bytes, encodings, 1 << 24),
        false => verify_all(bytes, encodings, 1 << 24),
    };
    let text = |e: &Error| format!("{:?}", e.class()).to_lowercase();
    match found {
        Ok(_) => ("sound".to_owned(), String::new()),
        Err(error) => (text(&error), format!("{:?}", error.rule())),
    }
}

/// Compares the readers on every file. Returns how many were of each class; `None` without Python.
fn compare(files: &[(String, Vec<u8>)]) -> Option<BTreeMap<String, usize>> {
    let encodings = Encodings::new(Backend::best()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (i, (name, bytes)) in files.iter().enumerate() {
        std::fs::write(folder.path().join(format!("{i}-{name}")), bytes).unwrap();
    }
    let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/reader.py");
    let names: Vec<_> = files.iter().enumerate().map(|(i, f)| format!("{i}-{}", f.0)).collect();
    let mut counts = BTreeMap::new();
    let (mut wrong, mut other_rule) = (Vec::new(), 0);
    for (names, files) in names.chunks(1000).zip(files.chunks(1000)) {
        let mut command = Command::new("python3");
        command.arg(reader).arg("--check").args(names).current_dir(folder.path());
        let output = match command.output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                println!("SKIPPED: there is no python3 for the second reader");
                return None;
            }
            output => output.unwrap(),
        };
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            text.lines().count(),
            files.len(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        for (line, (name, bytes)) in text.lines().zip(files) {
            let theirs = line.split_once(": ").unwrap().1;
            let (class, rule) = class(name, bytes, &encodings);
            let same = theirs.starts_with(&class);
            other_rule += usize::from(same && !theirs.ends_with(&rule));
            if !same {
                wrong.push(format!("{name}: {class} {rule} here, {theirs} there"));
            }
            *counts.entry(class).or_default() += 1;
        }
    }
    println!(
        "{} files, {other_rule} under another rule of the same class: {counts:?}",
        files.len()
    );
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    Some(counts)
}

//
#[test]
fn two_rules_broken_one_class() {
    let files = goldens::twice_broken();
    assert!(files.len() > 3000);
    let Some(counts) = compare(&files) else { return };
    for class in ["corrupt", "unsupported", "limit"] {
        assert!(counts[class] > 30, "{counts:?}");
    }
}

/// Two to four bits of small golden files, every checksum recomputed.
#[test]
fn damage_under_right_checksums() {
    let mut random = Random::new(20);
    let mut files = Vec::new();
    for golden in Golden::all().unwrap().iter().filter(|g| g.bytes.len() < 3000) {
        for i in 0..150 {
            let mut damaged = golden.bytes.clone();
            for _ in 0..2 + random.bits() % 3 {
                // Half of them in the last 400 bytes, where index and trailer lie.
                let len = damaged.len() as u64;
                let most = if random.bits().is_multiple_of(2) { len.min(400) } else { len };
                let at = len - 1 - random.bits() % most;
                damaged[at as usize] ^= 1 << (random.bits() % 8);
            }
            files.push((format!("{}-{i}.bs", golden.name), golden.sealed(damaged)));
        }
    }
    assert!(files.len() > 500);
    if let Some(counts) = compare(&files) {
        assert!(counts["corrupt"] > 100, "{counts:?}");
    }
}
