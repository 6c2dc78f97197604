//! Runs the fuzz targets over their corpora and over random inputs, without a fuzzer.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::path::{Path, PathBuf};

use bigsmall_testing::{Random, goldens, outside, targets};

type Target = (&'static str, fn(&[u8]));

const TARGETS: &[Target] = &[
    ("shard_open", targets::shard_open),
    ("structured_shard", targets::structured_shard),
    ("frequency_table", targets::frequency_table),
    ("ans_block", targets::ans_block),
    ("delta_block", targets::delta_block),
    ("page", targets::page),
    ("tbe_view", targets::tbe_view),
    ("safetensors_header", targets::safetensors_header),
    ("index_json", targets::index_json),
    ("round_trip", targets::round_trip),
    ("shown_text", outside::shown_text),
    ("folder_names", outside::folder_names),
    #[cfg(feature = "remote")]
    ("http_answers", outside::http_answers),
    #[cfg(feature = "remote")]
    ("store_answers", outside::store_answers),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn files(folder: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|p| std::fs::read(p).unwrap()).collect()
}

#[test]
fn the_corpora() {
    for &(name, target) in TARGETS {
        let inputs = files(&root().join("fuzz/corpus").join(name));
        assert!(inputs.len() >= 10, "{name}: {} inputs", inputs.len());
        inputs.iter().for_each(|input| target(input));
        println!("{name}: {} inputs", inputs.len());
    }
    targets::clean_up();
}

#[test]
fn golden_files_and_what_random_edits_make_of_them() {
    let mut random = Random::new(5);
    for file in std::fs::read_dir(goldens::folder()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|x| x != "bs") {
            continue;
        }
        let bytes = std::fs::read(path).unwrap();
        targets::shard_open(&bytes);
        for _ in 0..3 {
            let mut edited = bytes.clone();
            let at = edited.len() - 1 - random.bits() as usize % edited.len().min(3000);
            edited[at] ^= 1 << (random.bits() % 8);
            targets::shard_open(&edited);
        }
    }
}

/// Runs each target over random inputs.
#[test]
fn random_inputs() {
    let rounds = std::env::var("BIGSMALL_FUZZ_ROUNDS").map_or(60, |n| n.parse().unwrap());
    let mut random = Random::new(11);
    for &(name, target) in TARGETS {
        if ["index_json", "http_answers", "store_answers"].contains(&name) {
            continue; // it uses a folder or a server that `the_corpora` also uses
        }
        for _ in 0..rounds {
            let len = random.bits() as usize % 400;
            let input: Vec<u8> = (0..len).map(|_| random.bits() as u8).collect();
            target(&input);
        }
    }
}
