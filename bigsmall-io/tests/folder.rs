//! Whole model folders: every file comes back as it was, and no name in an index file leads
//! anywhere else.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bigsmall_io::{
    CompressOptions, ErrorKind, FolderOptions, IndexOptions, Model, Progress, RestoreOptions, Rule,
    estimate, index,
};
use common::{Random, compress, names, restore, tensor, verify, write};
use safetensors::Dtype;

const INDEX: &str = r#"{
  "metadata": {"total_size": 123},
  "weight_map": {
    "a": "model-00001-of-00002.safetensors",
    "b": "model-00001-of-00002.safetensors",
    "c": "model-00002-of-00002.safetensors"
  }
}
"#;

/// A model in two shards with what usually lies beside it.
fn make(dir: &Path) {
    let mut random = Random::new(11);
    let weights = |random: &mut Random| random.weights(5000);
    let t = |name: &str, bytes| tensor(name, Dtype::BF16, &[50, 100], bytes);
    std::fs::create_dir_all(dir.join("1_Pooling")).unwrap();
    write(
        &dir.join("model-00001-of-00002.safetensors"),
        &[t("a", weights(&mut random)), t("b", weights(&mut random))],
    );
    write(&dir.join("model-00002-of-00002.safetensors"), &[t("c", weights(&mut random))]);
    std::fs::write(dir.join("model.safetensors.index.json"), INDEX).unwrap();
    std::fs::write(dir.join("config.json"), "{\"hidden_size\": 100}\n").unwrap();
    std::fs::write(dir.join("tokenizer.model"), random.bytes(3000)).unwrap();
    std::fs::write(dir.join("1_Pooling/config.json"), "{}").unwrap();
    write(&dir.join("1_Pooling/extra.safetensors"), &[t("d", weights(&mut random))]);
}

/// Every file of a folder and its bytes.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let name = PathBuf::from(path.file_name().unwrap());
            found.extend(tree(&path).into_iter().map(|(n, b)| (name.join(n), b)));
        } else {
            found.insert(path.file_name().unwrap().into(), std::fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_folder_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    make(&path("model"));
    let report = compress(&path("model"), &path("small")).unwrap();
    assert_eq!(report.files.len(), 3);
    assert_eq!(
        names(&path("small")),
        [
            "1_Pooling",
            "README.md",
            "config.json",
            "model-00001-of-00002.bs",
            "model-00002-of-00002.bs",
            "model.bs.index.json",
            "tokenizer.model"
        ]
    );
    let index = std::fs::read_to_string(path("small/model.bs.index.json")).unwrap();
    assert_eq!(index, INDEX.replace(".safetensors", ".bs"));
    assert_eq!(verify(&path("small")).unwrap().original_bytes, report.original_bytes);
    restore(&path("small"), &path("back")).unwrap();
    assert_eq!(tree(&path("model")), tree(&path("back")));
    assert_eq!(names(dir.path()), ["back", "model", "small"]);

    let model = Model::open(path("small")).unwrap();
    assert_eq!(model.tensors().map(|t| t.name()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(model.stored("c").unwrap().shard, "model-00002-of-00002.bs");
    let guess = estimate(path("model"), &CompressOptions::default(), &Progress::default()).unwrap();
    assert_eq!(guess.original_bytes, report.original_bytes);
    let off = guess.compressed_bytes as f64 / report.compressed_bytes as f64;
    assert!((0.9..1.1).contains(&off), "{off}");
}

#[test]
fn an_index_file_that_cannot_be_translated_is_carried_along() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    make(&path("model"));
    // The escape hides the ending; the text cannot be had back from a translation.
    let text = INDEX.replace(".safetensors", ".safetensor\\u0073");
    std::fs::write(path("model/model.safetensors.index.json"), &text).unwrap();
    compress(&path("model"), &path("small")).unwrap();
    assert_eq!(Model::open(path("small")).unwrap().tensors().count(), 3);
    restore(&path("small"), &path("back")).unwrap();
    assert_eq!(tree(&path("model")), tree(&path("back")));
}

#[test]
fn an_existing_folder_is_refused_or_replaced_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    make(&path("model"));
    std::fs::create_dir(path("small")).unwrap();
    std::fs::write(path("small/config.json"), "old").unwrap();
    assert_eq!(
        compress(&path("model"), &path("small")).unwrap_err().kind(),
        ErrorKind::OutputExists
    );
    assert_eq!(names(&path("small")), ["config.json"]);
    let options = CompressOptions::new().replace(true);
    // A failure leaves the old one as it was.
    std::fs::write(path("model/bad.safetensors"), "nonsense").unwrap();
    let error = bigsmall_io::compress(path("model"), path("small"), &options, &Progress::default());
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Format(Rule::HeaderLength));
    assert_eq!(std::fs::read(path("small/config.json")).unwrap(), b"old");
    std::fs::remove_file(path("model/bad.safetensors")).unwrap();
    std::fs::remove_file(path("small/config.json")).unwrap();
    for _ in 0..2 {
        // The second time over its own output, model card included.
        bigsmall_io::compress(path("model"), path("small"), &options, &Progress::default())
            .unwrap();
        assert_eq!(std::fs::read(path("small/config.json")).unwrap(), b"{\"hidden_size\": 100}\n");
        assert_eq!(names(dir.path()), ["model", "small"]);
    }
}

#[test]
// F-18
fn a_folder_with_other_files_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    make(&path("model"));
    compress(&path("model"), &path("small")).unwrap();
    let (to_small, to_back) = (CompressOptions::new(), RestoreOptions::new());
    for thing in ["thesis.tex", ".ssh/id", ".git/HEAD", "1_Pooling/x", "README.md", "other.bs"] {
        for out in ["out", "back"] {
            std::fs::create_dir_all(path(out).join(thing).parent().unwrap()).unwrap();
            std::fs::create_dir_all(path(out).join("1_Pooling")).unwrap();
            std::fs::write(path(out).join(thing), "precious").unwrap();
            std::fs::write(path(out).join("config.json"), "old").unwrap();
            let before = tree(&path(out));
            let progress = Progress::default();
            let done = match out {
                "out" => bigsmall_io::compress(
                    path("model"),
                    path(out),
                    &to_small.clone().replace(true),
                    &progress,
                ),
                _ => bigsmall_io::restore(
                    path("small"),
                    path(out),
                    &to_back.clone().replace(true),
                    &progress,
                ),
            };
            let error = done.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutputHoldsMore, "{out} {thing}: {error}");
            assert!(error.to_string().contains(thing), "{error}");
            assert_eq!(tree(&path(out)), before);
            std::fs::remove_dir_all(path(out)).unwrap();
        }
    }
    assert_eq!(names(dir.path()), ["model", "small"]);
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
#[test]
// F-18
fn only_what_bigsmall_has_written_is_replaced() {
    use std::time::Duration;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    make(&path("model"));
    compress(&path("model"), &path("small")).unwrap();
    let replace = |what: &str, out: &str| -> Result<(), String> {
        let progress = Progress::default();
        let (to_small, to_back) = (CompressOptions::new(), RestoreOptions::new());
        let done = match what {
            "model" => {
                bigsmall_io::compress(path(what), path(out), &to_small.replace(true), &progress)
            }
            _ => bigsmall_io::restore(path(what), path(out), &to_back.replace(true), &progress),
        };
        done.map(drop).map_err(|e| {
            assert_eq!(e.kind(), ErrorKind::OutputHoldsMore, "{e}");
            e.to_string()
        })
    };
    // The user's own files, of the same names.
    make(&path("own"));
    let before = tree(&path("own"));
    let error = replace("small", "own").unwrap_err();
    assert!(error.contains("config.json") && error.contains("model-00001"), "{error}");
    assert_eq!(tree(&path("own")), before);
    std::fs::create_dir(path("own2")).unwrap();
    std::fs::write(path("own2/config.json"), "my own").unwrap();
    assert!(replace("model", "own2").unwrap_err().contains("config.json"));
    assert_eq!(std::fs::read(path("own2/config.json")).unwrap(), b"my own");
    for (what, out) in [("model", "again"), ("small", "back")] {
        assert_eq!(replace(what, out), Ok(()));
        assert_eq!(replace(what, out), Ok(()), "{out} is bigsmall's");
        std::thread::sleep(Duration::from_millis(30));
        std::fs::write(path(out).join("config.json"), "my own").unwrap();
        let error = replace(what, out).unwrap_err();
        assert!(error.contains("config.json") && !error.contains("model-0"), "{error}");
        assert_eq!(std::fs::read(path(out).join("config.json")).unwrap(), b"my own");
    }
    // A copy of a compressed folder has its card still.
    std::fs::create_dir(path("copy")).unwrap();
    for name in names(&path("small")).iter().filter(|name| path("small").join(name).is_file()) {
        std::fs::copy(path("small").join(name), path("copy").join(name)).unwrap();
    }
    assert_eq!(replace("model", "copy"), Ok(()));
}

#[cfg(unix)]
#[test]
// F-17
fn links_out_of_a_folder_are_said() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path().canonicalize().unwrap();
    make(&d.join("model"));
    std::fs::create_dir(d.join("elsewhere")).unwrap();
    std::fs::write(d.join("elsewhere/note"), "secret").unwrap();
    symlink("../elsewhere/note", d.join("model/vocabulary.txt")).unwrap();
    symlink("../elsewhere", d.join("model/more")).unwrap();
    symlink("config.json", d.join("model/same.json")).unwrap();
    let (options, progress) = (CompressOptions::new(), Progress::default());
    let report = bigsmall_io::compress(d.join("model"), d.join("out"), &options, &progress);
    let to = |name: &str| d.join(name).to_str().unwrap().to_owned();
    let expected =
        [("more".to_owned(), to("elsewhere")), ("vocabulary.txt".to_owned(), to("elsewhere/note"))];
    assert_eq!(report.unwrap().links_out, expected);
}

#[cfg(unix)]
#[test]
// F-17
fn modes_and_empty_folders_come_back_and_own_links_are_followed() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    make(&path("model"));
    let modes = [
        ("config.json", 0o600),
        ("tokenizer.model", 0o744),
        ("model-00001-of-00002.safetensors", 0o400),
    ];
    for (name, mode) in modes {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path("model").join(name), permissions).unwrap();
    }
    std::fs::create_dir_all(path("model/empty/inner")).unwrap();
    // The user's own links lead where they lead: to files, and to folders.
    std::fs::create_dir(path("elsewhere")).unwrap();
    std::fs::rename(path("model/model-00002-of-00002.safetensors"), path("elsewhere/s")).unwrap();
    std::fs::write(path("elsewhere/note.txt"), "note").unwrap();
    symlink(path("elsewhere/s"), path("model/model-00002-of-00002.safetensors")).unwrap();
    symlink("../elsewhere/note.txt", path("model/note.txt")).unwrap();
    compress(&path("model"), &path("small")).unwrap();
    restore(&path("small"), &path("back")).unwrap();
    assert_eq!(tree(&path("back")), tree(&path("model")));
    assert!(path("back/empty/inner").is_dir());
    for (name, mode) in modes {
        let found = std::fs::metadata(path("back").join(name)).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{name}");
    }
    symlink("../elsewhere", path("model/linked")).unwrap();
    std::fs::rename(path("elsewhere/s"), path("elsewhere/s.safetensors")).unwrap();
    std::fs::remove_file(path("model/model-00002-of-00002.safetensors")).unwrap();
    symlink("linked/s.safetensors", path("model/model-00002-of-00002.safetensors")).unwrap();
    compress(&path("model"), &path("small2")).unwrap();
    assert!(path("small2/linked/s.bs").is_file() && path("small2/linked/note.txt").is_file());
    // N-07
    symlink("..", path("model/empty/circle")).unwrap();
    let error = compress(&path("model"), &path("small3")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotARegularFile, "{error}");
    std::fs::remove_file(path("model/empty/circle")).unwrap();
    let deep = (0..101).fold(path("model/empty"), |deep, _| deep.join("d"));
    std::fs::create_dir_all(deep).unwrap();
    let error = compress(&path("model"), &path("small3")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FolderTooDeep, "{error}");
    let options = CompressOptions::new().folder(FolderOptions::new().max_depth(102)).dry_run(true);
    bigsmall_io::compress(path("model"), "", &options, &Progress::default()).unwrap();
    // Restoring is for folders that somebody else may have made.
    symlink(path("elsewhere/note.txt"), path("small/secret")).unwrap();
    let error = restore(&path("small"), &path("back2")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelPath, "{error}");
    assert!(!path("small3").exists() && !path("back2").exists());
}

#[test]
fn a_job_never_writes_into_its_own_input() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    make(&path("model"));
    let before = tree(&path("model"));
    let options = CompressOptions::new().replace(true);
    for output in
        ["model", "model/out", "model/1_Pooling", "model/1_Pooling/deep", "model/../model", ""]
    {
        let done =
            bigsmall_io::compress(path("model"), path(output), &options, &Progress::default());
        assert_eq!(done.unwrap_err().kind(), ErrorKind::SameFile, "{output}");
    }
    assert_eq!(before, tree(&path("model")));
}

/// What an untrusted index file may contain: the folder, and the rule that stops it.
#[test]
fn hostile_folders() {
    type Case = (&'static str, fn(&Path), ErrorKind);
    fn index(dir: &Path, map: &str) {
        let text = format!("{{\"weight_map\":{{{map}}}}}");
        std::fs::write(dir.join("model.bs.index.json"), text).unwrap();
    }
    let cases: &[Case] = &[
        // F-01
        ("dots", |d| index(d, r#""a":"../outside.bs""#), ErrorKind::ModelPath),
        // F-02
        ("absolute", |d| index(d, r#""a":"/tmp/outside.bs""#), ErrorKind::ModelPath),
        // F-03
        ("drive", |d| index(d, r#""a":"C:\\s.bs""#), ErrorKind::ModelPath),
        // F-04
        ("host", |d| index(d, r#""a":"\\\\host\\s.bs""#), ErrorKind::ModelPath),
        // F-05
        ("empty", |d| index(d, r#""a":"""#), ErrorKind::ModelPath),
        // F-06
        ("dot", |d| index(d, r#""a":".""#), ErrorKind::ModelPath),
        ("missing shard", |d| index(d, r#""a":"nowhere.bs""#), ErrorKind::Io),
        (
            // F-11
            "directory",
            |d| {
                std::fs::create_dir(d.join("dir.bs")).unwrap();
                index(d, r#""a":"dir.bs""#);
            },
            ErrorKind::NotARegularFile,
        ),
        (
            // F-12
            "tensor absent from its shard",
            |d| {
                index(
                    d,
                    r#""a":"model-00001-of-00002.bs","b":"model-00002-of-00002.bs",
                    "c":"model-00002-of-00002.bs""#,
                );
            },
            ErrorKind::ModelTensor,
        ),
        (
            "tensor the index does not name",
            |d| index(d, r#""a":"model-00001-of-00002.bs""#),
            ErrorKind::ModelTensor,
        ),
        (
            "tensor nowhere",
            |d| {
                index(
                    d,
                    r#""a":"model-00001-of-00002.bs","b":"model-00001-of-00002.bs",
                    "x":"model-00001-of-00002.bs""#,
                );
            },
            ErrorKind::ModelTensor,
        ),
        (
            // F-13
            "tensor in two shards",
            |d| {
                std::fs::copy(d.join("model-00001-of-00002.bs"), d.join("twin.bs")).unwrap();
                index(d, r#""a":"model-00001-of-00002.bs","b":"twin.bs""#);
            },
            ErrorKind::ModelTensor,
        ),
        (
            "two entries",
            |d| index(d, r#""a":"model-00001-of-00002.bs","a":"model-00002-of-00002.bs""#),
            ErrorKind::ModelTensor,
        ),
        (
            "not an index",
            |d| std::fs::write(d.join("model.bs.index.json"), "[1]").unwrap(),
            ErrorKind::ModelIndex,
        ),
        (
            "two index files",
            |d| {
                std::fs::copy(d.join("model.bs.index.json"), d.join("other.bs.index.json"))
                    .unwrap();
            },
            ErrorKind::ModelIndex,
        ),
        (
            "several shards without an index",
            |d| {
                std::fs::remove_file(d.join("model.bs.index.json")).unwrap();
            },
            ErrorKind::ModelIndex,
        ),
        (
            // F-14
            "a million shards",
            |d| {
                let entries: Vec<String> =
                    (0..1_000_000).map(|i| format!("\"{i}\":\"{i}.bs\"")).collect();
                index(d, &entries.join(","));
            },
            ErrorKind::TooManyShards,
        ),
        #[cfg(unix)]
        (
            // F-07
            "link out of the folder",
            |d| {
                std::fs::rename(d.join("model-00002-of-00002.bs"), d.join("../outside.bs"))
                    .unwrap();
                std::os::unix::fs::symlink("../outside.bs", d.join("model-00002-of-00002.bs"))
                    .unwrap();
            },
            ErrorKind::ModelPath,
        ),
        #[cfg(unix)]
        (
            // F-08
            "link in a circle",
            |d| {
                std::fs::remove_file(d.join("model-00002-of-00002.bs")).unwrap();
                std::os::unix::fs::symlink(
                    "model-00002-of-00002.bs",
                    d.join("model-00002-of-00002.bs"),
                )
                .unwrap();
            },
            ErrorKind::Io,
        ),
        #[cfg(unix)]
        (
            // F-09
            "pipe",
            |d| {
                std::fs::remove_file(d.join("model-00002-of-00002.bs")).unwrap();
                let made = std::process::Command::new("mkfifo")
                    .arg(d.join("model-00002-of-00002.bs"))
                    .status();
                assert!(made.unwrap().success());
            },
            ErrorKind::NotARegularFile,
        ),
        #[cfg(unix)]
        (
            // F-10
            "device",
            |d| {
                std::fs::remove_file(d.join("model-00002-of-00002.bs")).unwrap();
                std::os::unix::fs::symlink("/dev/zero", d.join("model-00002-of-00002.bs")).unwrap();
            },
            ErrorKind::ModelPath,
        ),
    ];
    for (name, spoil, rule) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (model, small) = (dir.path().join("model"), dir.path().join("small"));
        make(&model);
        std::fs::remove_dir_all(model.join("1_Pooling")).unwrap();
        compress(&model, &small).unwrap();
        assert!(Model::open(&small).is_ok());
        spoil(&small);
        let opened = Model::open(&small).map(|_| ()).unwrap_err();
        assert_eq!(opened.kind(), *rule, "open, {name}: {opened}");
        // Restoring is stricter or as strict; it may take a folder whose shards are sound without
        // an index.
        if let Err(e) = verify(&small) {
            let io = [ErrorKind::Io, ErrorKind::NotARegularFile, ErrorKind::ModelPath];
            assert!(e.kind() == *rule || io.contains(&e.kind()), "verify, {name}: {e}");
        }
        let back = dir.path().join("back");
        if restore(&small, &back).is_err() {
            assert!(!back.exists(), "{name}");
        }
    }
}

#[cfg(unix)]
#[test]
fn the_snapshots_of_a_hub_cache_may_link_to_its_blobs() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("models--owner--name");
    let (blobs, snapshot) = (cache.join("blobs"), cache.join("snapshots/abc"));
    std::fs::create_dir_all(&snapshot).unwrap();
    make(&blobs);
    std::fs::remove_dir_all(blobs.join("1_Pooling")).unwrap();
    for name in names(&blobs) {
        symlink(Path::new("../../blobs").join(&name), snapshot.join(&name)).unwrap();
    }
    let (small, back) = (dir.path().join("small"), dir.path().join("back"));
    compress(&snapshot, &small).unwrap();
    restore(&small, &back).unwrap();
    assert_eq!(tree(&back), tree(&blobs));
    // What leads out of the cache is refused there too where shards are read.
    std::fs::remove_dir_all(&snapshot).unwrap();
    std::fs::create_dir(&snapshot).unwrap();
    for name in names(&small) {
        std::fs::rename(small.join(&name), blobs.join(format!("{name}.blob"))).unwrap();
        symlink(format!("../../blobs/{name}.blob"), snapshot.join(&name)).unwrap();
    }
    verify(&snapshot).unwrap();
    std::fs::write(dir.path().join("secret"), "1").unwrap();
    symlink("../../../secret", snapshot.join("config2.json")).unwrap();
    assert_eq!(verify(&snapshot).unwrap_err().kind(), ErrorKind::ModelPath);
}

/// Lines of the card's table: name, bytes, compressed bytes, SHA-256.
fn card_lines(card: &str) -> Vec<&str> {
    card.lines().filter(|l| l.starts_with("| ") && l.contains('`')).collect()
}

#[test]
fn a_model_card_is_written_beside_the_weights_and_never_restored() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    make(&path("model"));
    let report = compress(&path("model"), &path("small")).unwrap();
    let card = std::fs::read_to_string(path("small/README.md")).unwrap();
    assert!(card.starts_with("---\nlibrary_name: bigsmall\n"));
    let lines = card_lines(&card);
    assert_eq!(lines.len(), 3);
    for (line, file) in lines.iter().zip(&report.files) {
        for part in [
            file.name.clone(),
            file.original_bytes.to_string(),
            file.compressed_bytes.to_string(),
            bigsmall_io::hex(&file.sha256),
        ] {
            assert!(line.contains(&part), "{line} lacks {part}");
        }
    }
    // Beside a card of the model's own it takes another name; both come back as they were.
    std::fs::write(path("model/readme.MD"), "# Mine\n").unwrap();
    compress(&path("model"), &path("small2")).unwrap();
    assert!(names(&path("small2")).contains(&"BIGSMALL.md".to_owned()));
    assert!(!names(&path("small2")).contains(&"README.md".to_owned()));
    restore(&path("small2"), &path("back2")).unwrap();
    assert_eq!(tree(&path("model")), tree(&path("back2")));
    // Where both names are taken there is none.
    std::fs::write(path("model/BIGSMALL.md"), "also mine").unwrap();
    compress(&path("model"), &path("small3")).unwrap();
    restore(&path("small3"), &path("back3")).unwrap();
    assert_eq!(tree(&path("model")), tree(&path("back3")));
    // A card among the files to be kept would be lost: it is refused.
    std::fs::write(path("model/BIGSMALL.md"), &card).unwrap();
    let error = compress(&path("model"), &path("small4")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
}

#[test]
fn the_output_is_the_same_however_the_work_was_split() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    make(&path("model"));
    compress(&path("model"), &path("at_once")).unwrap();
    let expected = tree(&path("at_once"));
    let weights = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "1_Pooling/extra.safetensors",
    ];
    let from_model = IndexOptions::new().original(path("model"));
    // Every worker has some of the files, in any order, with any number of threads.
    for (n, order) in [[0, 1, 2], [2, 1, 0], [1, 2, 0]].into_iter().enumerate() {
        let out = path(&format!("split{n}"));
        std::fs::create_dir_all(out.join("1_Pooling")).unwrap();
        for i in order {
            let shard = out.join(weights[i].replace(".safetensors", ".bs"));
            let options = CompressOptions::default();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1 + n).build().unwrap();
            let input = path("model").join(weights[i]);
            pool.install(|| bigsmall_io::compress(&input, &shard, &options, &Progress::default()))
                .unwrap();
        }
        let report = index(&out, &from_model, &Progress::default()).unwrap();
        assert_eq!(report.files.len(), 3);
        assert_eq!(tree(&out), expected);
        // Once more changes nothing.
        index(&out, &from_model, &Progress::default()).unwrap();
        assert_eq!(tree(&out), expected);
        restore(&out, &path(&format!("back{n}"))).unwrap();
        assert_eq!(tree(&path(&format!("back{n}"))), tree(&path("model")));
    }
}

#[test]
fn shards_alone_become_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    make(&path("model"));
    std::fs::create_dir(path("out")).unwrap();
    let shard = |from: &str, to: &str| {
        let options = CompressOptions::new().replace(true);
        let from = path("model").join(from);
        bigsmall_io::compress(&from, path("out").join(to), &options, &Progress::default()).unwrap()
    };
    shard("model-00001-of-00002.safetensors", "x-1.bs");
    assert_eq!(
        index(path("out"), &IndexOptions::new(), &Progress::default()).unwrap().files.len(),
        1
    );
    assert_eq!(names(&path("out")), ["README.md", "x-1.bs"]);
    shard("model-00002-of-00002.safetensors", "x-2.bs");
    index(path("out"), &IndexOptions::new(), &Progress::default()).unwrap();
    assert_eq!(names(&path("out")), ["README.md", "model.bs.index.json", "x-1.bs", "x-2.bs"]);
    let text = std::fs::read_to_string(path("out/model.bs.index.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!({
        "metadata": {"total_size": 30_000},
        "weight_map": {"a": "x-1.bs", "b": "x-1.bs", "c": "x-2.bs"},
    });
    assert_eq!(value, expected);
    assert_eq!(Model::open(path("out")).unwrap().tensors().count(), 3);
    restore(&path("out"), &path("back")).unwrap();
    let names = names(&path("back"));
    assert_eq!(names, ["model.safetensors.index.json", "x-1.safetensors", "x-2.safetensors"]);

    // The same tensor twice; a shard of another file; one that is missing; an index file that says
    // something else.
    let rule = |original: Option<&Path>| {
        let mut options = IndexOptions::new();
        options.original = original.map(Path::to_owned);
        index(path("out"), &options, &Progress::default()).unwrap_err().kind()
    };
    std::fs::rename(path("out/x-2.bs"), path("x-2.bs")).unwrap();
    let error = index(path("out"), &IndexOptions::new(), &Progress::default()).unwrap_err();
    assert!(error.to_string().contains("names \"x-2.bs\", which is missing"), "{error}");
    std::fs::rename(path("x-2.bs"), path("out/x-2.bs")).unwrap();
    std::fs::copy(path("out/x-1.bs"), path("out/x-3.bs")).unwrap();
    assert_eq!(rule(None), ErrorKind::ModelTensor);
    std::fs::remove_file(path("out/x-3.bs")).unwrap();
    assert_eq!(rule(Some(&path("model"))), ErrorKind::Io);
    shard("model-00002-of-00002.safetensors", "model-00001-of-00002.bs");
    std::fs::remove_file(path("out/x-2.bs")).unwrap();
    assert_eq!(rule(Some(&path("model"))), ErrorKind::Io);
    std::fs::create_dir_all(path("out/1_Pooling")).unwrap();
    shard("1_Pooling/extra.safetensors", "1_Pooling/extra.bs");
    assert_eq!(rule(Some(&path("model"))), ErrorKind::ModelIndex);
    assert_eq!(rule(None), ErrorKind::OutputExists);
    index(path("out"), &IndexOptions::new().replace(true), &Progress::default()).unwrap();
}

#[test]
fn the_card_of_an_earlier_run_gives_way_to_the_files_of_the_original() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    make(&path("model"));
    let progress = Progress::default();
    for readme in [None, Some("of the model")] {
        if let Some(text) = readme {
            std::fs::write(path("model/README.md"), text).unwrap();
        }
        let out = path(&format!("out{}", usize::from(readme.is_some())));
        let expected = out.with_extension("expected");
        compress(&path("model"), &expected).unwrap();
        std::fs::create_dir_all(out.join("1_Pooling")).unwrap();
        for (name, bytes) in tree(&expected) {
            if name.extension().is_some_and(|e| e == "bs") {
                std::fs::write(out.join(name), bytes).unwrap();
            }
        }
        index(&out, &IndexOptions::new(), &progress).unwrap();
        assert!(out.join("README.md").is_file());
        std::fs::remove_file(out.join("model.bs.index.json")).unwrap();
        let original = IndexOptions::new().original(path("model"));
        for _ in 0..2 {
            index(&out, &original, &progress).unwrap();
            assert!(tree(&out) == tree(&expected));
        }
    }
}

#[test]
// I-13, N-02, N-03, X-01
fn index_has_the_limits_and_the_cancellation_of_every_job() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    make(&path("model"));
    std::fs::write(path("model/.hidden"), "hidden").unwrap();
    compress(&path("model"), &path("expected")).unwrap();
    std::fs::create_dir_all(path("out/1_Pooling")).unwrap();
    for shard in
        tree(&path("expected")).into_keys().filter(|f| f.extension().is_some_and(|e| e == "bs"))
    {
        std::fs::copy(path("expected").join(&shard), path("out").join(&shard)).unwrap();
    }
    let before = tree(&path("out"));
    let options = IndexOptions::new().original(path("model"));
    let refused = |options: &IndexOptions, progress: &Progress| {
        let error = index(path("out"), options, progress).unwrap_err();
        assert_eq!(tree(&path("out")), before, "{error}");
        error.kind()
    };
    // The folder of shards has three files, and the original has more.
    for most in [2, 3] {
        let few = options.clone().folder(FolderOptions::new().max_files(most));
        assert_eq!(refused(&few, &Progress::default()), ErrorKind::TooManyFiles);
    }
    let cancelled = Progress::default();
    cancelled.cancel();
    assert_eq!(refused(&options, &cancelled), ErrorKind::Cancelled);

    // Cancelled while it copies a file, the first of all.
    let temporaries = || {
        let mut found = names(&path("out"));
        found.retain(|name| name.ends_with(".tmp"));
        found
    };
    std::fs::File::create(path("model/0.bin")).unwrap().set_len(1 << 30).unwrap();
    let progress = Progress::default();
    std::thread::scope(|scope| {
        let job = scope.spawn(|| index(path("out"), &options, &progress));
        while temporaries().is_empty() && !job.is_finished() {
            std::thread::yield_now();
        }
        progress.cancel();
        assert_eq!(job.join().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    });
    assert_eq!(tree(&path("out")), before);

    // What a killed job leaves behind is removed.
    std::fs::write(path("model/0.bin"), "short").unwrap();
    std::fs::write(path("out/.0.bin.bigsmall-aaaaaa.tmp"), "left behind").unwrap();
    let report = index(path("out"), &options, &Progress::default()).unwrap();
    assert_eq!(report.left_out, [".hidden"]);
    assert_eq!(temporaries(), [""; 0]);
    assert!(path("out/0.bin").is_file() && !path("out/.hidden").exists());
    let report = index(
        path("out"),
        &options.folder(FolderOptions::new().hidden(true)),
        &Progress::default(),
    )
    .unwrap();
    assert!(report.left_out.is_empty() && path("out/.hidden").is_file());
    // Nothing is copied without the original, so nothing is left out.
    let options = IndexOptions::new().replace(true);
    assert_eq!(index(path("out"), &options, &Progress::default()).unwrap().left_out, [""; 0]);
}

#[test]
// M-06
fn a_tensor_in_two_shards_of_one_model_without_an_index_file_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let shard = |name: &str, tensors: &[&str]| {
        let tensors: Vec<_> =
            tensors.iter().map(|t| tensor(t, Dtype::U8, &[3], vec![1, 2, 3])).collect();
        let plain = d.join("plain");
        write(&plain, &tensors);
        let path = d.join("model").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        compress(&plain, &path).unwrap();
    };
    shard("model-00001-of-00002.bs", &["a", "b"]);
    shard("model-00002-of-00002.bs", &["c"]);
    // Other models: a variant, a part with another number of shards, one in a folder below.
    shard("model.fp16-00001-of-00002.bs", &["a"]);
    shard("model-00001-of-00003.bs", &["a"]);
    shard("below/model-00001-of-00002.bs", &["a"]);
    shard("consolidated.bs", &["a", "b", "c"]);
    verify(&d.join("model")).unwrap();
    std::fs::remove_file(d.join("model/model-00002-of-00002.bs")).unwrap();
    shard("model-00002-of-00002.bs", &["b", "c"]);
    let said = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let to = std::sync::Arc::clone(&said);
    let progress = Progress::default().on_warning(move |text| to.lock().unwrap().push_str(text));
    bigsmall_io::restore(d.join("model"), d.join("out"), &RestoreOptions::new(), &progress)
        .unwrap();
    let said = said.lock().unwrap();
    assert!(said.contains("\"b\"") && said.contains("model-00002-of-00002.bs"), "{said}");
    // What was restored can be compressed and restored again; it is no model.
    compress(&d.join("out"), &d.join("again")).unwrap();
    restore(&d.join("again"), &d.join("back")).unwrap();
    assert_eq!(tree(&d.join("back")), tree(&d.join("out")));
    assert_eq!(Model::open(d.join("again")).unwrap_err().kind(), ErrorKind::ModelIndex);
}

/// The table of all rules in FORMAT.md has what breaks in a folder, and what a file restores to.
#[test]
fn the_specification_has_the_rules_of_models() {
    let text = bigsmall_testing::specification::text();
    let rows = bigsmall_testing::specification::rules(&text);
    let of_models = rows.iter().filter(|row| matches!(row.sections[..], ["13" | "15"]));
    let found: Vec<_> = of_models.map(|row| format!("{} {}", row.rule, row.class)).collect();
    let kinds = [
        ErrorKind::ModelIndex,
        ErrorKind::ModelPath,
        ErrorKind::ModelTensor,
        ErrorKind::ModelIndexTooLarge,
        ErrorKind::TooManyShards,
        ErrorKind::TooManyFiles,
        ErrorKind::FolderTooDeep,
        ErrorKind::Expansion,
    ];
    assert_eq!(found, kinds.map(|kind| format!("{kind:?} {:?}", kind.class())));
}
