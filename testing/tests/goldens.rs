//! The current encoder writes exactly the golden files. After a deliberate change of the encoder,
//! `cargo run -p bigsmall-testing --bin write_goldens -- --write` changes the files of an
//! unreleased version. `bigsmall-codec` tests that every reader reads the shards. This file tests
//! the frames, and the files that must be refused.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use bigsmall_codec::{Delta, EncodedRef};
use bigsmall_format::{EncodedTensor, EncodingId, Rule};
use bigsmall_testing::trials::{Encodings, decode_frame, verify_all};
use bigsmall_testing::{goldens, specification};

fn n_files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { n_files(&path) } else { 1 }).sum()
}

#[test]
fn the_encoder_still_writes_them() {
    let folder = goldens::folder();
    let files = goldens::files(&goldens::goldens().unwrap(), &goldens::refused().unwrap());
    let total: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(total < 700_000, "{total} bytes of golden files are too many to check in");
    for (name, bytes) in &files {
        let found = std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(found == *bytes, "{name} would be written differently");
    }
    assert_eq!(n_files(&folder), files.len(), "files in goldens/ that nothing writes");
}

fn encodings() -> impl Iterator<Item = Encodings> {
    bigsmall_codec::backends().map(|backend| Encodings::new(backend).unwrap())
}

#[test]
fn frames_are_read() {
    let mut n = 0;
    for golden in goldens::goldens().unwrap() {
        if !golden.name.ends_with(".frame") {
            continue;
        }
        for encodings in encodings() {
            let bytes = decode_frame(&golden.bytes, &encodings, 1 << 20).unwrap();
            assert!(bytes == golden.original, "{}", golden.name);
        }
        let tensor = EncodedTensor::from_bytes(&golden.bytes).unwrap();
        assert!(tensor.to_bytes() == golden.bytes, "{}: two ways to write it", golden.name);
        n += 1;
    }
    assert!(n >= 6);
}

/// With its base, by every backend; and no bit of it, or of the base, changes unnoticed.
#[test]
fn a_frame_of_differences_is_read() {
    let read = |name: &str| std::fs::read(goldens::folder().join(name)).unwrap();
    let (frame, base, values) = (read("delta.frame"), read("ans.values"), read("delta.values"));
    let decode = |frame: &[u8], base: &[u8], delta: &Delta| {
        let tensor = EncodedTensor::from_bytes(frame)?;
        let mut bytes = vec![0; tensor.spec().byte_len() as usize];
        let all = 0..bytes.len() as u64;
        EncodedRef::from(&tensor).decode_bytes_with_base(delta, &base, all, &mut bytes)?;
        Ok::<_, bigsmall_format::Error>(bytes)
    };
    for backend in bigsmall_codec::backends() {
        let delta = Delta::default().with_backend(backend).unwrap();
        assert!(decode(&frame, &base, &delta).unwrap() == values, "{backend:?}");
    }
    let tensor = EncodedTensor::from_bytes(&frame).unwrap();
    assert!(tensor.encoding() == EncodingId::Delta && tensor.to_bytes() == frame);
    for bit in 0..8 * (frame.len() + base.len()) {
        let mut both = [&frame[..], &base].concat();
        both[bit / 8] ^= 1 << (bit % 8);
        let (frame, base) = both.split_at(frame.len());
        assert!(decode(frame, base, &Delta::default()).is_err(), "bit {bit}");
    }
}

/// Each under its own rule, by every backend, as the files stand in the folder.
#[test]
fn what_must_be_refused_is_refused() {
    let folder = goldens::folder().join("refused");
    let rules = std::fs::read_to_string(folder.join("RULES")).unwrap();
    let mut seen = BTreeSet::new();
    for line in rules.lines() {
        let [name, rule, class] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("not a name, a rule and a class: {line}");
        };
        let bytes = std::fs::read(folder.join(name)).unwrap();
        for encodings in encodings() {
            let result = match name.ends_with(".frame") {
                true => decode_frame(&bytes, &encodings, 1 << 20),
                false => verify_all(&bytes, &encodings, 1 << 20),
            };
            let error = result.map(drop).expect_err(name);
            let found = (format!("{:?}", error.rule()), format!("{:?}", error.class()));
            assert_eq!(found, (rule.to_owned(), class.to_owned()), "{name}: {error}");
        }
        seen.insert(rule.to_owned());
    }
    // Every rule has a file, but those that need a file over a limit, a safetensors file, a base,
    // tables or a folder.
    let without = [
        Rule::IndexTooLarge,
        Rule::HeaderTooLarge,
        Rule::HeaderLength,
        Rule::DataLength,
        Rule::BaseMismatch,
        Rule::PageLength,
        Rule::PageChecksum,
        Rule::PageTables,
        Rule::DeltaHead,
        Rule::DeltaBlock,
        Rule::DeltaChanges,
    ]
    .map(|rule| format!("{rule:?}"));
    let text = specification::text();
    for row in specification::rules(&text) {
        let has_none =
            matches!(row.sections[..], ["13" | "15"]) || without.contains(&row.rule.to_owned());
        assert_eq!(!has_none, seen.contains(row.rule), "{}", row.rule);
    }
}
