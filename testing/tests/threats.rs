//! docs/threats.md and the tests agree: every case has a test that names it, and every name in a
//! test is a case.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The ids in `text`: a capital letter, a dash and two digits, not inside a longer word.
fn ids(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').filter(|word| {
        let bytes = word.as_bytes();
        bytes.len() == 4
            && bytes[0].is_ascii_uppercase()
            && bytes[1] == b'-'
            && bytes[2..].iter().all(u8::is_ascii_digit)
    })
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the repository") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|x| x == "rs") && !path.ends_with("tests/threats.rs")
        {
            found.push(path);
        }
    }
}

#[test]
fn every_case_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join("docs/threats.md")).expect("the catalogue");
    let mut cases = BTreeSet::new();
    for line in text.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| case")) {
        let id = ids(line).next().unwrap_or_else(|| panic!("a row without a case: {line}"));
        assert!(line[2..].starts_with(id), "a row begins with its case: {line}");
        assert!(cases.insert(id), "{id} twice");
    }
    assert!(cases.len() > 130, "{} cases", cases.len());
    // The numbers of a group have no gaps.
    let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
    for id in &cases {
        let n = groups.entry(&id[..1]).or_default();
        *n += 1;
        assert_eq!(id[2..].parse(), Ok(*n), "{id} is not the next of its group");
    }

    let mut files = Vec::new();
    for krate in ["codec", "format", "gpu", "io", "tbe"] {
        rust_files(&root.join(format!("bigsmall-{krate}")), &mut files);
    }
    rust_files(&root.join("testing"), &mut files);
    let mut named: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a source file");
        // Cases are named only in comments.
        for comment in text.lines().filter_map(|l| l.split_once("//").map(|(_, c)| c)) {
            for id in ids(comment) {
                named.entry(id.to_owned()).or_default().push(file.clone());
            }
        }
    }
    let missing: Vec<_> = cases.iter().filter(|id| !named.contains_key(**id)).collect();
    assert!(missing.is_empty(), "cases without a test: {missing:?}");
    let unknown: Vec<_> = named.iter().filter(|(id, _)| !cases.contains(id.as_str())).collect();
    assert!(unknown.is_empty(), "tests of cases that are not in docs/threats.md: {unknown:?}");
    println!("{} cases, {} places that test them", cases.len(), named.values().flatten().count());
}

#[test]
fn ids_are_found() {
    let found: Vec<_> = ids("A-07, (B-11) xA-01 A-123 UTF-8 F-1 C-3a [D-06].").collect();
    assert_eq!(found, ["A-07", "B-11", "D-06"]);
}
