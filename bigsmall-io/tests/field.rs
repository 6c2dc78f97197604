//! Folders and files as people have them: index files that disagree, variants, what downloads and
//! caches leave, files of other kinds, jobs that were killed.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bigsmall_io::{
    CompressOptions, Error, ErrorKind, FolderOptions, IndexOptions, Model, Progress, Report,
    RestoreOptions, Result, estimate, index,
};
use common::{Random, names, tensor, verify, write, write_raw};
use safetensors::Dtype;

/// A safetensors file with the tensors `names`.
fn weights(path: &Path, names: &[&str], seed: u64) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut random = Random::new(seed);
    let tensors: Vec<_> = names
        .iter()
        .map(|name| tensor(name, Dtype::BF16, &[40, 100], random.weights(4000)))
        .collect();
    write(path, &tensors);
}

fn index_file(path: &Path, map: &[(&str, &str)]) {
    let map: BTreeMap<_, _> = map.iter().copied().collect();
    let text = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    std::fs::write(path, format!("{text:#}\n")).unwrap();
}

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// A model in two shards, with an index file of `map`.
fn model(dir: &Path, map: &[(&str, &str)]) {
    weights(&dir.join(SHARDS[0]), &["a", "b"], 1);
    weights(&dir.join(SHARDS[1]), &["c", "d"], 2);
    index_file(&dir.join("model.safetensors.index.json"), map);
    std::fs::write(dir.join("config.json"), "{}\n").unwrap();
}

const MAP: [(&str, &str); 4] =
    [("a", SHARDS[0]), ("b", SHARDS[0]), ("c", SHARDS[1]), ("d", SHARDS[1])];

/// Every file of a folder and its bytes.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        if path.is_dir() {
            found.extend(tree(&path).into_iter().map(|(n, b)| (name.join(n), b)));
        } else {
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
    found
}

/// A progress, and what it is told.
fn listening() -> (Progress, Arc<Mutex<Vec<String>>>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&said);
    let progress = Progress::default().on_warning(move |text| to.lock().unwrap().push(text.into()));
    (progress, said)
}

/// Compresses, and returns what was said.
fn compress(from: &Path, to: &Path) -> (Result<Report>, String) {
    let (progress, said) = listening();
    let report = bigsmall_io::compress(from, to, &CompressOptions::new(), &progress);
    let said = said.lock().unwrap().join("\n");
    (report, said)
}

/// Compresses and restores; the same files must come back. Returns what was said.
fn round_trip(dir: &Path, from: &str) -> String {
    let (small, back) = (dir.join(format!("{from}.small")), dir.join(format!("{from}.back")));
    let (report, said) = compress(&dir.join(from), &small);
    report.unwrap();
    verify(&small).unwrap();
    common::restore(&small, &back).unwrap();
    assert_eq!(tree(&back), tree(&dir.join(from)), "{from}");
    said
}

fn open(path: &Path) -> Error {
    Model::open(path).map(|_| ()).unwrap_err()
}

#[test]
// F-19
fn an_index_file_that_disagrees_is_carried_over_and_stops_only_who_opens_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let ghost = [&MAP[..], &[("e", SHARDS[1])]].concat();
    let other = "model-00003-of-00004.safetensors";
    let legacy = [("a", SHARDS[0]), ("b", SHARDS[0]), ("c", other), ("d", other)];
    let moved = [("a", SHARDS[0]), ("b", SHARDS[1]), ("c", SHARDS[1]), ("d", SHARDS[1])];
    let outside = [("a", "../x.safetensors")];
    let pickle = [&MAP[..], &[("e", "config.json")]].concat();
    let cases = [
        ("ghost", &ghost[..], "\"e\""),
        ("omits", &MAP[..3], "\"d\""),
        ("legacy", &legacy[..], other),
        ("moved", &moved[..], "\"b\""),
        ("outside", &outside[..], "a name within the folder"),
        ("pickle", &pickle[..], "config.json"),
    ];
    for (name, map, what) in cases {
        model(&d.join(name), map);
        let said = round_trip(d, name);
        assert!(said.contains("model.safetensors.index.json"), "{said}");
        assert!(said.contains(what) && said.contains("carried over"), "{said}");
        let small = d.join(format!("{name}.small"));
        assert!(small.join("model.safetensors.index.json").is_file());
        assert!(!small.join("model.bs.index.json").exists());
        let error = open(&small);
        let kinds = [ErrorKind::ModelTensor, ErrorKind::ModelPath];
        assert!(kinds.contains(&error.kind()), "{error}");
        assert!(error.to_string().contains("model.safetensors.index.json"), "{error}");
        // On several machines too.
        let split = d.join(format!("{name}.split"));
        std::fs::create_dir(&split).unwrap();
        for shard in SHARDS.map(|s| s.replace(".safetensors", ".bs")) {
            std::fs::copy(small.join(&shard), split.join(&shard)).unwrap();
        }
        let options = IndexOptions::new().original(d.join(name));
        index(&split, &options, &Progress::default()).unwrap();
        assert_eq!(tree(&split), tree(&small));
    }
    // What is no index file at all: a pointer, or cut short.
    for text in ["version https://git-lfs.github.com/spec/v1\n", "{\"weight_map\":", ""] {
        let name = format!("text{}", text.len());
        model(&d.join(&name), &MAP);
        std::fs::write(d.join(&name).join("model.safetensors.index.json"), text).unwrap();
        assert!(round_trip(d, &name).contains("carried over"));
    }
    // One that agrees is translated, and nothing is said.
    model(&d.join("sound"), &MAP);
    assert_eq!(round_trip(d, "sound"), "");
    assert_eq!(Model::open(d.join("sound.small")).unwrap().tensors().count(), 4);
    // An index file of shards that was spoilt later is named when the model is opened.
    index_file(&d.join("sound.small/model.bs.index.json"), &[("a", "model-00001-of-00002.bs")]);
    let error = open(&d.join("sound.small"));
    assert_eq!(error.file(), Some("model.bs.index.json"), "{error}");
}

#[test]
fn the_parts_and_variants_of_a_pipeline_open_as_models() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let unet = d.join("p/unet");
    for variant in ["", ".fp16"] {
        let name = |k: u32| format!("diffusion{variant}-0000{k}-of-00002.safetensors");
        for (k, tensor) in [(1, "x"), (2, "y")] {
            weights(&unet.join(name(k)), &[tensor], u64::from(k) + variant.len() as u64);
        }
        let index = unet.join(format!("diffusion.safetensors.index{variant}.json"));
        index_file(&index, &[("x", &name(1)), ("y", &name(2))]);
        weights(&d.join(format!("p/vae/vae{variant}.safetensors")), &["z"], 9);
    }
    weights(&d.join("p/only/m.fp16-00001-of-00001.safetensors"), &["o"], 3);
    index_file(
        &d.join("p/only/m.safetensors.index.fp16.json"),
        &[("o", "m.fp16-00001-of-00001.safetensors")],
    );
    std::fs::write(d.join("p/model_index.json"), "{\"_class_name\": \"Pipeline\"}\n").unwrap();
    assert_eq!(round_trip(d, "p"), "");
    let small = d.join("p.small");
    assert!(small.join("unet/diffusion.bs.index.fp16.json").is_file());
    let shards = |path: &str| -> Vec<String> {
        let model = Model::open(small.join(path)).unwrap();
        model.shards().map(|(name, _)| name.to_owned()).collect()
    };
    assert_eq!(shards("unet"), ["diffusion-00001-of-00002.bs", "diffusion-00002-of-00002.bs"]);
    assert_eq!(shards("vae"), ["vae.bs"]);
    assert_eq!(shards("only"), ["m.fp16-00001-of-00001.bs"]);
    let fp16 = ["diffusion.fp16-00001-of-00002.bs", "diffusion.fp16-00002-of-00002.bs"];
    let index = "unet/diffusion.bs.index.fp16.json";
    assert_eq!(shards(index), fp16);
    verify(&small.join(index)).unwrap();
    // The whole pipeline is no model; the error says where they are.
    let error = open(&small);
    assert!(error.to_string().contains("\"only\""), "{error}");
    let error = bigsmall_io::internal::Checkpoint::open(&small, &Progress::default()).unwrap_err();
    assert!(error.to_string().contains("\"only\""), "{error}");
}

#[test]
fn an_adapter_beside_a_model_is_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    weights(&d.join("m/model.safetensors"), &["w"], 1);
    weights(&d.join("m/adapter_model.safetensors"), &["w.lora_A", "w.lora_B"], 2);
    assert_eq!(round_trip(d, "m"), "");
    let small = d.join("m.small");
    let error = open(&small);
    assert_eq!(error.kind(), ErrorKind::ModelIndex);
    let text = error.to_string();
    assert!(text.contains("several models") && text.contains("\"adapter_model.bs\""), "{text}");
    assert!(Model::open(small.join("model.bs")).is_ok());
    // `index` does not merge them.
    index(&small, &IndexOptions::new(), &Progress::default()).unwrap();
    assert!(!small.join("model.bs.index.json").exists());
    model(&d.join("n"), &MAP);
    std::fs::remove_file(d.join("n/model.safetensors.index.json")).unwrap();
    weights(&d.join("n/adapter_model.safetensors"), &["a.lora_A"], 3);
    weights(&d.join("n/model.fp16.safetensors"), &["a", "b", "c", "d"], 3);
    round_trip(d, "n");
    index(d.join("n.small"), &IndexOptions::new(), &Progress::default()).unwrap();
    assert_eq!(Model::open(d.join("n.small")).unwrap().tensors().count(), 4);
    // Plain files are no model yet.
    let error = open(&d.join("n"));
    assert!(error.to_string().contains("bigsmall compress"), "{error}");
}

#[test]
// N-08
fn what_downloads_and_other_systems_leave_is_no_part_of_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(&d.join("m"), &MAP);
    let write = |name: &str, bytes: &[u8]| {
        let path = d.join("m").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let apple = [&[0, 5, 0x16, 7, 0, 2, 0, 0][..], b"Mac OS X        ", &[0; 60]].concat();
    write("._model-00001-of-00002.safetensors", &apple);
    write(".cache/huggingface/.gitignore", b"*\n");
    write(".cache/huggingface/download/config.json.metadata", b"abc\n");
    write(".cache/huggingface/download/x.deadbeef.incomplete", &[1; 1000]);
    write("model-00002-of-00002.safetensors.lock", b"");
    write("weights.bin.incomplete", &[2; 1000]);
    write("poetry.lock", b"kept");
    write("optimizer.pt", &[3; 5000]);
    let leaves = ["model-00002-of-00002.safetensors.lock", "weights.bin.incomplete"];
    for hidden in [false, true] {
        let options = CompressOptions::new().folder(FolderOptions::new().hidden(hidden));
        let (small, back) = (d.join(format!("s{hidden}")), d.join(format!("b{hidden}")));
        let dry = options.clone().dry_run(true);
        let dry = bigsmall_io::compress(d.join("m"), "", &dry, &Progress::default()).unwrap();
        let report =
            bigsmall_io::compress(d.join("m"), &small, &options, &Progress::default()).unwrap();
        let mut expected: Vec<&str> = match hidden {
            true => vec![".cache/huggingface"],
            false => vec!["._model-00001-of-00002.safetensors", ".cache"],
        };
        expected.extend(leaves);
        assert_eq!(report.left_out, expected);
        // config.json, poetry.lock, optimizer.pt, and with hidden files that of macOS.
        let (files, bytes) = (3 + u64::from(hidden), 3 + 4 + 5000 + u64::from(hidden) * 84);
        assert_eq!((report.copied_files, report.copied_bytes), (files, bytes));
        assert_eq!((dry.copied_files, dry.copied_bytes), (files, bytes));
        let restore = RestoreOptions::new().folder(FolderOptions::new().hidden(true));
        let restored = bigsmall_io::restore(&small, &back, &restore, &Progress::default()).unwrap();
        assert_eq!((restored.copied_files, restored.copied_bytes), (files, bytes));
        let mut expected = tree(&d.join("m"));
        expected.retain(|name, _| {
            let name = name.to_string_lossy();
            !leaves.contains(&&*name) && (!name.starts_with('.') || hidden && name.contains("._"))
        });
        assert_eq!(tree(&back), expected);
    }
}

#[test]
// F-20
fn of_a_cache_of_the_hub_the_snapshot_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let cache = d.join("hub/models--o--m");
    model(&cache.join("snapshots/abc"), &MAP);
    std::fs::create_dir(cache.join("blobs")).unwrap();
    std::fs::write(cache.join("blobs/0123"), "another one").unwrap();
    let check = |to: &str| {
        let (report, said) = compress(&cache, &d.join(to));
        report.unwrap();
        assert!(said.contains("abc"), "{said}");
        common::restore(&d.join(to), &d.join(format!("{to}.back"))).unwrap();
        assert_eq!(tree(&d.join(format!("{to}.back"))), tree(&cache.join("snapshots/abc")));
    };
    check("only");
    // Of several, that of the branch `main`.
    weights(&cache.join("snapshots/def/model.safetensors"), &["w"], 1);
    let (refused, _) = compress(&cache, &d.join("several"));
    let error = refused.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument);
    assert!(error.to_string().contains("snapshots"), "{error}");
    std::fs::create_dir(cache.join("refs")).unwrap();
    std::fs::write(cache.join("refs/main"), "abc\n").unwrap();
    check("main");
    let guess = estimate(&cache, &CompressOptions::new(), &Progress::default()).unwrap();
    assert!(guess.original_bytes > 30_000);
    // A name that leads out of the cache is none.
    std::fs::write(cache.join("refs/main"), "../../../../only.back").unwrap();
    assert!(compress(&cache, &d.join("out")).0.is_err());
    // Many models at once.
    let (refused, _) = compress(&d.join("hub"), &d.join("all"));
    let error = refused.unwrap_err();
    assert!(error.to_string().contains("models--o--m") && !d.join("all").exists(), "{error}");
    // A cache of compressed models opens too.
    std::fs::rename(d.join("only"), d.join("abc")).unwrap();
    std::fs::remove_dir_all(cache.join("snapshots")).unwrap();
    std::fs::create_dir(cache.join("snapshots")).unwrap();
    std::fs::rename(d.join("abc"), cache.join("snapshots/abc")).unwrap();
    std::fs::write(cache.join("refs/main"), "abc").unwrap();
    assert_eq!(Model::open(&cache).unwrap().tensors().count(), 4);
    verify(&cache).unwrap();
}

#[test]
// E-23
fn a_file_of_another_kind_in_a_folder_is_named_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 4976698672\n";
    model(&d.join("m"), &MAP);
    std::fs::write(d.join("m").join(SHARDS[1]), pointer).unwrap();
    let (refused, _) = compress(&d.join("m"), &d.join("s"));
    let text = refused.unwrap_err().to_string();
    assert!(text.contains(SHARDS[1]) && text.contains("git lfs pull"), "{text}");
    assert_eq!(names(d), ["m"]);
    let guess = estimate(d.join("m"), &CompressOptions::new(), &Progress::default());
    assert!(guess.unwrap_err().to_string().contains("git lfs pull"));
    // As a shard of a folder, and alone.
    model(&d.join("n"), &MAP);
    compress(&d.join("n"), &d.join("s")).0.unwrap();
    let shard = d.join("s/model-00002-of-00002.bs");
    std::fs::write(&shard, pointer).unwrap();
    let texts = [
        open(&d.join("s")).to_string(),
        open(&shard).to_string(),
        verify(&d.join("s")).unwrap_err().to_string(),
        common::restore(&shard, &d.join("x")).unwrap_err().to_string(),
    ];
    for text in texts {
        assert!(text.contains("git lfs pull") && text.contains("model-00002"), "{text}");
    }
}

#[test]
fn metadata_null_is_no_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, small, back) =
        (dir.path().join("m.safetensors"), dir.path().join("m.bs"), dir.path().join("back"));
    let json = br#"{"__metadata__":null,"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
    write_raw(&plain, json, &[7, 8]);
    assert!(safetensors::SafeTensors::deserialize(&std::fs::read(&plain).unwrap()).is_ok());
    common::compress(&plain, &small).unwrap();
    common::restore(&small, &back).unwrap();
    assert_eq!(std::fs::read(&back).unwrap(), std::fs::read(&plain).unwrap());
    assert!(Model::open(&small).unwrap().metadata().unwrap().is_empty());
}

#[test]
fn tied_tensors_in_two_shards_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let mut random = Random::new(5);
    let (tied, other) = (random.weights(600_000), random.weights(600_000));
    let t = |name: &str, bytes: &[u8]| tensor(name, Dtype::BF16, &[600, 1000], bytes.to_vec());
    for folder in ["two", "apart/a", "apart/b", "base"] {
        std::fs::create_dir_all(d.join(folder)).unwrap();
    }
    write(&d.join("two").join(SHARDS[0]), &[t("embed", &tied), t("zero", &[0; 1_200_000])]);
    write(&d.join("two").join(SHARDS[1]), &[t("zeros", &[0; 1_200_000]), t("head", &tied)]);
    let said = round_trip(d, "two");
    assert!(said.contains("\"head\"") && said.contains("\"embed\""), "{said}");
    assert!(said.contains(SHARDS[1]) && said.starts_with("1 tensor ("), "{said}");
    // In different folders are different models; the file of one model stores equal ones once.
    write(&d.join("apart/a/m.safetensors"), &[t("w", &tied), t("v", &tied)]);
    write(&d.join("apart/b/m.safetensors"), &[t("w", &tied), t("v", &other)]);
    assert_eq!(round_trip(d, "apart"), "");
}

/// A folder with finished files, as a job with that command would have left it when it was killed.
#[cfg(unix)]
fn left(d: &Path, args: &[&str], out: &str) -> PathBuf {
    // The name says what job it is: asked of a job that is killed as soon as it has a folder.
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_bigsmall"))
        .current_dir(d)
        .args(args)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let begin = format!(".{out}.bigsmall-");
    let found = loop {
        let found = names(d).into_iter().find(|name| name.starts_with(&begin));
        let found = found.map(|name| d.join(name));
        // Its first name is gone a moment later; there is nothing in it yet.
        let files = found.as_ref().and_then(|found| std::fs::read_dir(found).ok());
        if files
            .into_iter()
            .flatten()
            .flatten()
            .any(|file| !file.file_name().to_string_lossy().starts_with('.'))
        {
            child.kill().unwrap();
            break found;
        }
        if child.try_wait().unwrap().is_some() {
            break None;
        }
    };
    child.wait().unwrap();
    found.filter(|found| found.is_dir()).expect("it was not caught in the middle")
}

#[cfg(unix)]
#[test]
// I-13, F-21
fn a_folder_job_that_was_killed_goes_on() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let names_of = ["1.safetensors", "2.safetensors", "3.safetensors"];
    std::fs::create_dir_all(d.join("m/sub")).unwrap();
    for (i, name) in names_of.iter().enumerate() {
        weights(&d.join("m").join(name), &["w"], i as u64);
        let big = Random::new(9 + i as u64).weights(8_000_000);
        let last = d.join(format!("m/sub/{name}"));
        write(&last, &[tensor("big", Dtype::BF16, &[8000, 1000], big)]);
    }
    std::fs::write(d.join("m/config.json"), "{}").unwrap();
    let whole = |from: &str, to: &str, compresses: bool| {
        let (progress, said) = listening();
        let options = CompressOptions::new();
        let done = match compresses {
            true => bigsmall_io::compress(d.join(from), d.join(to), &options, &progress),
            false => {
                bigsmall_io::restore(d.join(from), d.join(to), &RestoreOptions::new(), &progress)
            }
        };
        (done.unwrap(), said.lock().unwrap().join("\n"))
    };
    let (expected, _) = whole("m", "s", true);
    let (restored, _) = whole("s", "b", false);
    for compresses in [true, false] {
        let (command, from, like, ending, report) = match compresses {
            true => ("compress", "m", "s", "bs", &expected),
            false => ("restore", "s", "b", "safetensors", &restored),
        };
        let found = left(d, &[command, from, "-o", "out"], "out");
        // As it is left, one that is not what the input is now, one cut short, one of a link.
        for n in [1, 2, 3] {
            let to = found.join(format!("{n}.{ending}"));
            let _ = std::fs::remove_file(&to);
            let _ = std::fs::remove_file(found.join("sub").join(to.file_name().unwrap()));
            std::fs::copy(d.join(like).join(format!("{n}.{ending}")), &to).unwrap();
        }
        let kept = std::fs::metadata(found.join(format!("1.{ending}"))).unwrap().ino();
        let other = d.join(like).join(format!("1.{ending}"));
        std::fs::copy(&other, found.join(format!("2.{ending}"))).unwrap();
        let three = found.join(format!("3.{ending}"));
        let bytes = std::fs::read(&three).unwrap();
        std::fs::write(&three, &bytes[..bytes.len() - 1]).unwrap();
        std::fs::create_dir_all(found.join("sub")).unwrap();
        let linked = d.join(like).join(format!("sub/1.{ending}"));
        std::os::unix::fs::symlink(linked, found.join(format!("sub/1.{ending}"))).unwrap();
        let (done, said) = whole(from, "out", compresses);
        assert!(said.contains("; 1 of its finished files"), "{said}");
        assert_eq!(&done, report);
        assert_eq!(tree(&d.join("out")), tree(&d.join(like)));
        assert_eq!(std::fs::metadata(d.join(format!("out/1.{ending}"))).unwrap().ino(), kept);
        assert!(!d.join(format!("out/sub/1.{ending}")).is_symlink());
        assert_eq!(names(d), ["b", "m", "out", "s"]);
        std::fs::remove_dir_all(d.join("out")).unwrap();
    }
    // What another job left, with other options, is removed.
    let found = left(d, &["compress", "m", "-o", "out", "--level", "fast"], "out");
    let (_, said) = whole("m", "out", true);
    assert!(said.is_empty() && !found.exists(), "{said}");
    assert_eq!(tree(&d.join("out")), tree(&d.join("s")));
}
