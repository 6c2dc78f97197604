//! Files and models against a base.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::path::{Path, PathBuf};

use bigsmall_io::{
    BaseModel, Class, CompressOptions, EncodingId, ErrorKind, Layer, Model, Progress, ReadAt as _,
    Report, RestoreOptions, Result, Rule, Shard, StreamOptions, StreamingLoader, compress_from,
    estimate, rebase, transcode,
};
use common::{DTYPES, Random, Tensor, names, tensor, write};
use proptest::prelude::*;
use safetensors::Dtype;

/// A folder for one test.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Dir(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn paths(&self, names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(|name| self.path(name)).collect()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn compress(&self, new: &str, bases: &[&str], out: &str) -> Result<Report> {
        let mut options = CompressOptions::new().replace(true);
        options.bases = self.paths(bases);
        bigsmall_io::compress(self.path(new), self.path(out), &options, &Progress::default())
    }

    fn restore(&self, shard: &str, bases: &[&str], out: &str) -> Result<Report> {
        let mut options = RestoreOptions::new().replace(true);
        options.bases = self.paths(bases);
        bigsmall_io::restore(self.path(shard), self.path(out), &options, &Progress::default())
    }

    fn verify(&self, shard: &str, bases: &[&str]) -> Result<Report> {
        let mut options = RestoreOptions::new();
        options.bases = self.paths(bases);
        bigsmall_io::verify(self.path(shard), &options, &Progress::default())
    }

    /// Restores `shard` and compares it with `original`.
    fn check(&self, shard: &str, bases: &[&str], original: &str) {
        self.restore(shard, bases, "back").unwrap();
        assert!(self.read("back") == self.read(original), "{shard} is not {original}");
        self.verify(shard, bases).unwrap();
    }

    fn open(&self, shard: &str) -> Model {
        Model::open(self.path(shard)).unwrap()
    }

    fn stored(&self, shard: &str, name: &str) -> Option<String> {
        self.open(shard).stored(name).unwrap().base.map(|base| base.tensor)
    }
}

/// Changes one byte in `one_in`.
fn changed(bytes: &[u8], one_in: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = bytes.to_vec();
    for byte in bytes.iter_mut().step_by(one_in) {
        *byte ^= random.bytes(1)[0] & 3;
    }
    bytes
}

/// Two layers of a model: matrices above and below a chunk, norms, an embedding.
fn model(seed: u64) -> Vec<Tensor> {
    let mut random = Random::new(seed);
    let mut out = vec![tensor("embed.weight", Dtype::BF16, &[500, 64], random.weights(32_000))];
    for n in 0..2 {
        let name = |part: &str| format!("layers.{n}.{part}.weight");
        out.push(tensor(&name("up"), Dtype::BF16, &[1300, 512], random.weights(1300 * 512)));
        out.push(tensor(&name("q"), Dtype::BF16, &[300, 512], random.weights(300 * 512)));
        out.push(tensor(&name("norm"), Dtype::BF16, &[512], random.weights(512)));
    }
    out
}

/// The same model after some steps. The embedding and the norms are as they were.
fn tuned(tensors: &[Tensor], seed: u64) -> Vec<Tensor> {
    let tuned = |t: &Tensor| match t.name.contains("embed") || t.name.contains("norm") {
        true => t.bytes.clone(),
        false => changed(&t.bytes, 40, seed),
    };
    tensors.iter().map(|t| tensor(&t.name, t.dtype, &t.shape, tuned(t))).collect()
}

/// The files `base`, `a` (tuned) and `b` (tuned further).
fn series(dir: &Dir) {
    let base = model(1);
    let a = tuned(&base, 2);
    write(&dir.path("base"), &base);
    write(&dir.path("a"), &a);
    write(&dir.path("b"), &tuned(&a, 3));
}

#[test]
fn any_form_of_the_base_is_as_good_as_another() {
    let dir = Dir::new();
    series(&dir);
    dir.compress("a", &[], "a.alone.bs").unwrap();
    dir.compress("base", &[], "base.bs").unwrap();
    std::fs::create_dir(dir.path("folder")).unwrap();
    std::fs::copy(dir.path("base"), dir.path("folder/model.safetensors")).unwrap();
    let alone = dir.read("a.alone.bs").len();
    for base in ["base", "base.bs", "folder"] {
        let report = dir.compress("a", &[base], "a.bs").unwrap();
        assert!(dir.read("a.bs").len() * 2 < alone, "{base}");
        assert_eq!(report.compressed_bytes, dir.read("a.bs").len() as u64);
        assert_eq!((report.files[0].n_deltas, report.files[0].n_inherited), (4, 3));
        let verified = dir.verify("a.bs", &[base]).unwrap();
        assert_eq!((verified.files[0].n_deltas, verified.files[0].n_inherited), (4, 3));
        let bases = dir.open("a.bs").shards().next().unwrap().1.bases().to_vec();
        assert_eq!(
            (report.files[0].bases.clone(), verified.files[0].bases.clone()),
            (bases.clone(), bases)
        );
        for other in ["base", "base.bs", "folder"] {
            dir.check("a.bs", &[other], "a");
        }
    }
    // A base that is a delta, and what lies behind it.
    dir.compress("b", &["a.bs", "base.bs"], "b.bs").unwrap();
    assert!(dir.read("b.bs").len() * 2 < alone);
    let depth = |name: &str| dir.open(name).shards().next().unwrap().1.base_depth();
    assert_eq!((depth("a.alone.bs"), depth("a.bs"), depth("b.bs")), (0, 1, 2));
    // In any order, in any form.
    for bases in [
        &["a.bs", "base"][..],
        &["base.bs", "a.bs"],
        &["a"],
        &["a.alone.bs"],
        &["b", "a.bs", "base", "base.bs"],
    ] {
        dir.check("b.bs", bases, "b");
    }
}

#[test]
fn the_bytes_depend_on_the_input_and_the_base_alone() {
    let dir = Dir::new();
    series(&dir);
    let mut found = Vec::new();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| dir.compress("a", &["base"], "a.bs")).unwrap();
        found.push(dir.read("a.bs"));
        pool.install(|| dir.check("a.bs", &["base"], "a"));
    }
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn every_dtype_small_and_large() {
    let dir = Dir::new();
    let mut random = Random::new(5);
    let (mut base, mut new) = (Vec::new(), Vec::new());
    for dtype in DTYPES {
        for n in [8, 1 << 21] {
            let name = format!("{dtype:?} {n}");
            let bytes = random.bytes(n * dtype.bitsize() / 8);
            new.push(tensor(&name, dtype, &[n], changed(&bytes, 30, n as u64)));
            base.push(tensor(&name, dtype, &[n], bytes));
        }
    }
    write(&dir.path("base"), &base);
    write(&dir.path("new"), &new);
    dir.compress("new", &["base"], "new.bs").unwrap();
    dir.check("new.bs", &["base"], "new");
    assert!(dir.read("new.bs").len() * 3 < dir.read("new").len());
    let opened = dir.open("new.bs");
    let model = opened.with_base(BaseModel::open(dir.path("base")).unwrap()).unwrap();
    for t in &new {
        assert!(model.tensor(&t.name).unwrap().bytes() == t.bytes, "{}", t.name);
    }
}

#[test]
fn tensors_are_found_in_the_base() {
    let dir = Dir::new();
    let mut random = Random::new(9);
    let [kept, renamed, prefixed, dropped, tied] =
        [30_000, 20_000, 20_000, 5_000, 30_000].map(|n| random.weights(n));
    let wide: Vec<f32> = (0..20_000).map(|i| (i as f32 * 0.37).sin()).collect();
    let narrow = |value: &f32| half::bf16::from_f32(*value).to_le_bytes();
    let new_rows = random.weights(10 * 300);
    let bf16 = |name: &str, shape: &[usize], bytes: &[u8]| {
        tensor(name, Dtype::BF16, shape, bytes.to_vec())
    };
    write(
        &dir.path("base"),
        &[
            bf16("kept", &[100, 300], &kept),
            bf16("old name", &[20_000], &renamed),
            bf16("layers.0.w", &[200, 100], &prefixed),
            bf16("dropped", &[5_000], &dropped),
            bf16("vocabulary", &[100, 300], &tied),
            bf16("shorter", &[100, 300], &kept),
            tensor(
                "typed",
                Dtype::F32,
                &[200, 100],
                wide.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ),
            tensor("other dtype", Dtype::I32, &[2], vec![0; 8]),
        ],
    );
    let grown = [&tied[..], &new_rows].concat();
    let typed = changed(&wide.iter().flat_map(narrow).collect::<Vec<u8>>(), 50, 1);
    write(
        &dir.path("new"),
        &[
            bf16("kept", &[100, 300], &kept),
            bf16("new name", &[20_000], &renamed),
            bf16("model.layers.0.w", &[200, 100], &changed(&prefixed, 50, 2)),
            bf16("vocabulary", &[110, 300], &grown),
            bf16("shorter", &[90, 300], &changed(&kept[..54_000], 50, 3)),
            bf16("typed", &[200, 100], &typed),
            bf16("added", &[7, 300], &random.weights(2100)),
            tensor("other dtype", Dtype::U8, &[8], vec![0; 8]),
            tensor("empty", Dtype::BF16, &[0, 3], Vec::new()),
        ],
    );
    dir.compress("new", &["base"], "new.bs").unwrap();
    dir.check("new.bs", &["base"], "new");
    let stored = |name| dir.stored("new.bs", name);
    for (name, base) in [
        ("kept", Some("kept")),
        ("new name", Some("old name")),
        ("model.layers.0.w", Some("layers.0.w")),
        ("vocabulary", Some("vocabulary")),
        ("shorter", Some("shorter")),
        ("typed", Some("typed")),
        ("added", None),
        ("other dtype", None),
        ("empty", None),
    ] {
        assert_eq!(stored(name).as_deref(), base, "{name}");
    }
    let bytes = |name: &str| dir.open("new.bs").stored(name).unwrap().compressed_bytes;
    assert_eq!((bytes("kept"), bytes("new name")), (0, 0));
    assert!(bytes("vocabulary") < 40_000, "less than alone");
    assert!(
        bytes("typed") < 5_000 && bytes("shorter") < 5_000 && bytes("model.layers.0.w") < 5_000
    );
}

#[test]
fn equal_tensors_share_or_inherit() {
    let dir = Dir::new();
    let mut random = Random::new(4);
    let [kept, large, old] = [20_000, 700_000, 20_000].map(|n| random.weights(n));
    let new = changed(&old, 30, 1);
    let bf16 =
        |name: &str, bytes: &[u8]| tensor(name, Dtype::BF16, &[bytes.len() / 2], bytes.to_vec());
    write(&dir.path("base"), &[bf16("a", &kept), bf16("c", &large), bf16("e", &old)]);
    let twins =
        [("a", &kept), ("b", &kept), ("c", &large), ("d", &large), ("e", &new), ("f", &new)];
    write(&dir.path("new"), &twins.map(|(name, bytes)| bf16(name, bytes)));
    let report = dir.compress("new", &["base"], "new.bs").unwrap();
    let file = &report.files[0];
    assert_eq!((file.n_inherited, file.n_shared, file.n_deltas), (4, 1, 1));
    assert_eq!(dir.stored("new.bs", "d").as_deref(), Some("c"));
    assert_eq!(dir.stored("new.bs", "f"), None, "it shares the payload of e");
    dir.check("new.bs", &["base"], "new");
    // A twin of another shape, which cannot have that base.
    let other = tensor("b", Dtype::BF16, &[2, 25], random.weights(50));
    let mut rows = other.bytes.clone();
    rows.extend([0; 20]);
    write(&dir.path("base"), &[tensor("a", Dtype::BF16, &[5, 10], other.bytes)]);
    write(
        &dir.path("new"),
        &[tensor("a", Dtype::BF16, &[6, 10], rows.clone()), tensor("b", Dtype::BF16, &[60], rows)],
    );
    dir.compress("new", &["base"], "new.bs").unwrap();
    dir.check("new.bs", &["base"], "new");
}

#[test]
fn a_large_tensor_may_begin_as_its_base() {
    let dir = Dir::new();
    let mut random = Random::new(6);
    // Beyond what is held back for the decision between encodings.
    let base = random.weights(10 << 20);
    for same in [0, 19 << 20, base.len() - 2, base.len()] {
        let mut new = base.clone();
        new[same..].iter_mut().step_by(100).for_each(|byte| *byte ^= 1);
        write(&dir.path("base"), &[tensor("w", Dtype::BF16, &[10 << 20], base.clone())]);
        write(&dir.path("new"), &[tensor("w", Dtype::BF16, &[10 << 20], new)]);
        let report = dir.compress("new", &["base"], "new.bs").unwrap();
        let equal = same == base.len();
        assert_eq!(report.files[0].n_inherited, u64::from(equal));
        assert_eq!(report.files[0].n_deltas, u64::from(!equal));
        dir.check("new.bs", &["base"], "new");
    }
}

#[test]
fn a_base_never_makes_a_shard_larger() {
    let dir = Dir::new();
    // Another model of the same architecture: nothing in common.
    write(&dir.path("new"), &model(1));
    write(&dir.path("base"), &model(2));
    dir.compress("new", &[], "alone.bs").unwrap();
    dir.compress("new", &["base"], "new.bs").unwrap();
    assert!(dir.read("new.bs") == dir.read("alone.bs"));
    // It stands alone.
    dir.check("new.bs", &[], "new");
}

#[test]
fn names_in_the_base_can_be_given() {
    let dir = Dir::new();
    let mut random = Random::new(4);
    let [a, b] = [(); 2].map(|()| random.weights(40_000));
    let bf16 = |name: &str, bytes: &[u8]| tensor(name, Dtype::BF16, &[400, 100], bytes.to_vec());
    write(&dir.path("base"), &[bf16("old.a", &a), bf16("old.b", &b)]);
    // Every sample of them has changed.
    let [new_a, new_b] = [&a, &b].map(|bytes| changed(bytes, 2, 7));
    write(&dir.path("new"), &[bf16("first", &new_a), bf16("second", &new_b)]);
    dir.compress("new", &["base"], "alone.bs").unwrap();
    assert_eq!(dir.stored("alone.bs", "first"), None);
    let given = CompressOptions::new().base(dir.path("base")).base_name("first", "old.a");
    let compress = |options: &CompressOptions| {
        bigsmall_io::compress(dir.path("new"), dir.path("new.bs"), options, &Progress::default())
    };
    compress(&given.clone().base_name("second", "old.b")).unwrap();
    assert_eq!(dir.stored("new.bs", "first").as_deref(), Some("old.a"));
    assert_eq!(dir.stored("new.bs", "second").as_deref(), Some("old.b"));
    dir.check("new.bs", &["base"], "new");
    let error = compress(&given.replace(true).base_name("second", "old.c")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
    assert_eq!(error.tensor(), Some("second"));
    assert_eq!(error.found_text(), Some("old.c"));
}

#[test]
fn a_dry_run_tells_the_size_with_a_base() {
    let dir = Dir::new();
    series(&dir);
    let before = names(dir.0.path());
    let options = CompressOptions::new().dry_run(true).base(dir.path("base"));
    let (new, out, progress) = (dir.path("a"), dir.path("a.bs"), Progress::default());
    let told = bigsmall_io::compress(&new, &out, &options, &progress).unwrap();
    assert_eq!(names(dir.0.path()), before);
    let written = dir.compress("a", &["base"], "a.bs").unwrap();
    assert_eq!(told.compressed_bytes, written.compressed_bytes);
    assert_eq!(told.compressed_bytes, dir.read("a.bs").len() as u64);
    assert!(told.files[0].n_deltas > 0);
}

#[test]
fn an_estimate_with_a_base_is_about_what_compressing_makes() {
    let dir = Dir::new();
    series(&dir);
    write_folder(&dir.path("base folder"), model(1), 3);
    write_folder(&dir.path("folder"), tuned(&model(1), 2), 2);
    dir.compress("base", &[], "base.bs").unwrap();
    for (new, bases) in
        [("a", ["base"]), ("a", ["base.bs"]), ("a", ["base folder"]), ("folder", ["base folder"])]
    {
        let written = dir.compress(new, &bases, "written").unwrap();
        let before = names(dir.0.path());
        let options = CompressOptions::new().base(dir.path(bases[0]));
        let guess = estimate(dir.path(new), &options, &Progress::default()).unwrap();
        assert_eq!(names(dir.0.path()), before);
        assert_eq!(guess.original_bytes, written.original_bytes);
        let off = guess.compressed_bytes as f64 / written.compressed_bytes as f64;
        assert!((0.9..1.1).contains(&off), "{new} {bases:?}: {off}");
        assert!(guess.seconds > 0.0);
        // Alone it is more than twice as large.
        let alone = estimate(dir.path(new), &CompressOptions::new(), &Progress::default()).unwrap();
        assert!(guess.compressed_bytes * 2 < alone.compressed_bytes);
        std::fs::remove_dir_all(dir.path("written")).unwrap_or_else(|_| {
            std::fs::remove_file(dir.path("written")).unwrap();
        });
    }
    // A base with nothing in common.
    write(&dir.path("other"), &model(9));
    let options = CompressOptions::new().base(dir.path("other"));
    let [with, without] = [options.clone(), CompressOptions::new()].map(|options| {
        let guess = estimate(dir.path("a"), &options, &Progress::default()).unwrap();
        guess.compressed_bytes
    });
    assert_eq!(with, without);
    for (name, of_base) in [("no tensor", "embed.weight"), ("embed.weight", "no tensor")] {
        let options = options.clone().base_name(name, of_base);
        let error = estimate(dir.path("a"), &options, &Progress::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
    }
}

#[test]
// T-01
fn a_wrong_base_is_refused_before_any_output() {
    let dir = Dir::new();
    series(&dir);
    dir.compress("base", &[], "base.bs").unwrap();
    dir.compress("b", &[], "b.alone.bs").unwrap();
    dir.compress("a", &["base"], "a.bs").unwrap();
    let before = names(dir.0.path());
    let right = bigsmall_io::hex(&dir.verify("base.bs", &[]).unwrap().files[0].sha256);
    // As safetensors, as a shard, as a shard with the right tensors, and as something else.
    write(&dir.path("other"), &[tensor("w", Dtype::U8, &[1], vec![1])]);
    for (wrong, found) in
        [("b", "other bytes"), ("b.alone.bs", "SHA-256"), ("other", "other tensors")]
    {
        for done in [dir.restore("a.bs", &[wrong], "out"), dir.verify("a.bs", &[wrong])] {
            let error = done.unwrap_err();
            assert_eq!(error.rule(), Some(Rule::BaseMismatch), "{wrong}: {error}");
            assert_eq!(error.class(), Class::Corrupt);
            assert!(error.file().unwrap().ends_with("a.bs"), "{error}");
            let text = error.to_string();
            let wrong = dir.path(wrong).to_string_lossy().into_owned();
            assert!(
                text.contains(&right) && text.contains(&wrong) && text.contains(found),
                "{text}"
            );
            assert!(text.contains("which was \"base\""), "{text}");
        }
    }
    std::fs::remove_file(dir.path("other")).unwrap();
    assert_eq!(names(dir.0.path()), before);
    // A single row, of a tensor that the wrong base has too.
    let model = dir.open("a.bs").with_base(BaseModel::open(dir.path("b")).unwrap()).unwrap();
    let error = model.rows("layers.1.up.weight", 7..8).unwrap_err();
    assert_eq!(error.rule(), Some(Rule::BaseMismatch), "{error}");
    assert_eq!(error.tensor(), Some("layers.1.up.weight"));
    assert!(model.layer("layers.1").is_err());
    // What both bases have is right.
    assert!(model.tensor("embed.weight").is_ok());
    assert!(dir.open("a.bs").with_base(dir.open("b.alone.bs")).is_err());
    // Several files: the right one is found by its contents.
    dir.check("a.bs", &["b", "base"], "a");
    let error = dir.verify("a.bs", &["a", "b"]).unwrap_err();
    assert_eq!(error.rule(), Some(Rule::BaseMismatch), "{error}");
}

#[test]
// T-02
fn a_missing_base_is_named() {
    let dir = Dir::new();
    series(&dir);
    dir.compress("base", &[], "base.bs").unwrap();
    dir.compress("a", &["base.bs"], "a.bs").unwrap();
    dir.compress("b", &["a.bs", "base.bs"], "b.bs").unwrap();
    let sha256 = |name: &str| bigsmall_io::hex(&dir.open(name).shards().next().unwrap().1.sha256());
    let check = |error: bigsmall_io::Error, file: &str, needed: &str, hint: &str| {
        assert_eq!(error.rule(), Some(Rule::BaseMissing), "{error}");
        assert_eq!(error.class(), Class::Usage);
        let text = error.to_string();
        assert!(error.file().unwrap().ends_with(file), "{text}");
        for part in [&sha256(needed), hint] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("--"), "an option of the command in {text}");
    };
    check(dir.verify("a.bs", &[]).unwrap_err(), "a.bs", "base.bs", "base.bs");
    check(dir.restore("a.bs", &[], "out").unwrap_err(), "a.bs", "base.bs", "base.bs");
    check(dir.verify("b.bs", &["a.bs"]).unwrap_err(), "a.bs", "base.bs", "base.bs");
    check(dir.open("a.bs").tensor("layers.0.q.weight").unwrap_err(), "a.bs", "base.bs", "base.bs");
    check(dir.open("a.bs").layer("layers.0").unwrap_err(), "a.bs", "base.bs", "base.bs");
    check(dir.compress("b", &["a.bs"], "out").unwrap_err(), "a.bs", "base.bs", "base.bs");
    assert!(!dir.path("out").exists());
}

#[test]
// T-03
fn chains_are_sixteen_bases_long_at_most() {
    let dir = Dir::new();
    let step =
        |n: u64| vec![tensor("w", Dtype::U8, &[3000], changed(&Random::new(1).bytes(3000), 9, n))];
    write(&dir.path("0"), &step(0));
    let mut bases = vec!["0".to_owned()];
    for n in 1..=16 {
        let new = n.to_string();
        write(&dir.path(&new), &step(n));
        let given: Vec<&str> = bases.iter().rev().map(String::as_str).collect();
        dir.compress(&new, &given, &format!("{n}.bs")).unwrap();
        dir.check(&format!("{n}.bs"), &given, &new);
        bases.push(format!("{n}.bs"));
    }
    write(&dir.path("17"), &step(17));
    let given: Vec<&str> = bases.iter().rev().map(String::as_str).collect();
    let error = dir.compress("17", &given, "17.bs").unwrap_err();
    assert_eq!((error.rule(), error.class()), (Some(Rule::BaseDepth), Class::Limit));
    assert!(error.file().unwrap().ends_with("16.bs") && error.to_string().contains("rebase"));
    // Flattened, it is a base again.
    let options = given[1..].iter().fold(CompressOptions::new(), |o, base| o.base(dir.path(base)));
    let onto = |base: &str, out: &str| {
        rebase(dir.path("16.bs"), dir.path(base), dir.path(out), &options, &Progress::default())
    };
    onto("0", "flat.bs").unwrap();
    dir.check("flat.bs", &["0"], "16");
    dir.compress("17", &["flat.bs", "0"], "17.bs").unwrap();
    dir.check("17.bs", &["flat.bs", "0"], "17");
    // Onto a shard of the chain itself.
    onto("2.bs", "short.bs").unwrap();
    dir.check("short.bs", &["2.bs", "1.bs", "0"], "16");
    let alone = dir.path("alone.bs");
    transcode(dir.path("16.bs"), alone, &options, &Progress::default()).unwrap();
    dir.check("alone.bs", &[], "16");
}

#[test]
// T-04
fn a_circle_of_bases_is_refused() {
    let dir = Dir::new();
    write(&dir.path("a"), &[tensor("w", Dtype::U8, &[3000], Random::new(1).bytes(3000))]);
    write(
        &dir.path("b"),
        &[tensor("w", Dtype::U8, &[3000], changed(&Random::new(1).bytes(3000), 9, 1))],
    );
    dir.compress("a", &["b"], "a.bs").unwrap();
    dir.compress("b", &["a"], "b.bs").unwrap();
    let error = dir.verify("a.bs", &["b.bs", "a.bs"]).unwrap_err();
    assert_eq!(error.rule(), Some(Rule::BaseDepth), "{error}");
    let error = dir.compress("a", &["b.bs", "a.bs"], "out").unwrap_err();
    assert_eq!(error.rule(), Some(Rule::BaseDepth), "{error}");
    let (a, b) = (dir.open("a.bs"), dir.open("b.bs"));
    let chain = BaseModel::from(&b).with_base(&a);
    assert_eq!(a.with_base(chain).unwrap_err().rule(), Some(Rule::BaseDepth));
}

#[test]
fn a_model_with_its_base_is_a_model_like_any_other() {
    let dir = Dir::new();
    series(&dir);
    let tensors = tuned(&tuned(&model(1), 2), 3);
    dir.compress("base", &[], "base.bs").unwrap();
    dir.compress("a", &["base"], "a.bs").unwrap();
    dir.compress("b", &["a.bs", "base"], "b.bs").unwrap();
    let base = || BaseModel::open(dir.path("base")).unwrap();
    let in_memory = |name: &str| Model::from_source(dir.read(name)).unwrap();
    let whole = BaseModel::open(dir.path("a")).unwrap();
    for (form, model) in [
        ("a file", dir.open("b.bs").with_base(whole).unwrap()),
        (
            "models",
            dir.open("b.bs")
                .with_base(dir.open("a.bs").with_base(dir.open("base.bs")).unwrap())
                .unwrap(),
        ),
        (
            "files",
            dir.open("b.bs")
                .with_base(BaseModel::open(dir.path("a.bs")).unwrap().with_base(base()))
                .unwrap(),
        ),
        (
            "memory",
            in_memory("b.bs")
                .with_base(
                    in_memory("a.bs")
                        .with_base(BaseModel::from_source(dir.read("base")).unwrap())
                        .unwrap(),
                )
                .unwrap(),
        ),
    ] {
        for t in &tensors {
            let (name, bytes) = (&*t.name, &t.bytes);
            assert!(model.tensor(name).unwrap().bytes() == bytes, "{form}: {name}");
            let row = bytes.len() / t.shape[0];
            let n = t.shape[0] as u64;
            for rows in [0..1, n / 2..n / 2 + 2, n - 1..n, 0..n] {
                let wanted = rows.start as usize * row..rows.end as usize * row;
                assert!(
                    model.rows(name, rows).unwrap().bytes() == &bytes[wanted],
                    "{form}: {name}"
                );
            }
            let mut some = vec![0; bytes.len() - 3];
            model.bytes_into(name, 1..bytes.len() as u64 - 2, &mut some).unwrap();
            assert!(some == bytes[1..bytes.len() - 2]);
            // For a GPU: it stands alone.
            let encoded = model.encoded(name).unwrap();
            assert_ne!(encoded.encoding(), EncodingId::Delta);
            let mut all = vec![0; bytes.len()];
            let encoding = bigsmall_io::encoding(encoded.encoding()).unwrap();
            encoded.decode_bytes(encoding, 0..bytes.len() as u64, &mut all).unwrap();
            assert!(all == *bytes);
        }
        let layer = model.layer("layers.1").unwrap();
        assert_eq!(layer.len(), 3);
        for found in &layer {
            let t = tensors.iter().find(|t| t.name == found.spec().name()).unwrap();
            assert!(found.bytes() == t.bytes, "{form}: {}", t.name);
        }
        let mut all: Vec<Vec<u8>> = tensors.iter().map(|t| vec![0; t.bytes.len()]).collect();
        let slices = all.iter_mut().map(|bytes| &mut bytes[..]);
        model.tensors_into(tensors.iter().map(|t| &t.name).zip(slices)).unwrap();
        assert!(all.iter().zip(&tensors).all(|(found, t)| *found == t.bytes));
        let mut loader = StreamingLoader::new(model, &StreamOptions::default()).unwrap();
        let (mut layer, mut n) = (Layer::default(), 0);
        while loader.next_into(&mut layer).unwrap() {
            for found in layer.tensors() {
                let t = tensors.iter().find(|t| t.name == found.spec().name()).unwrap();
                assert!(found.bytes() == t.bytes, "{form}: {}", t.name);
                n += 1;
            }
        }
        assert_eq!(n, tensors.len());
    }
}

/// Writes `tensors` as the shards of a folder, `n` in each file.
fn write_folder(dir: &Path, tensors: Vec<Tensor>, n: usize) {
    std::fs::create_dir_all(dir).unwrap();
    let mut map = serde_json::Map::new();
    for (i, part) in tensors.chunks(n).enumerate() {
        let name = format!("model-{i}.safetensors");
        write(&dir.join(&name), part);
        map.extend(part.iter().map(|t| (t.name.clone(), name.clone().into())));
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
    std::fs::write(dir.join("config.json"), "{}").unwrap();
}

fn assert_same_folder(a: &Path, b: &Path) {
    assert_eq!(names(a), names(b));
    for name in names(a) {
        if a.join(&name).is_dir() {
            assert_same_folder(&a.join(&name), &b.join(&name));
        } else {
            assert!(std::fs::read(a.join(&name)).unwrap() == std::fs::read(b.join(&name)).unwrap());
        }
    }
}

#[test]
fn a_folder_is_one_set_of_tensors() {
    let dir = Dir::new();
    // Cut in other places than the base.
    write_folder(&dir.path("base"), model(1), 3);
    write_folder(&dir.path("new"), tuned(&model(1), 2), 2);
    // A file that the index does not name, with a tensor of the same name.
    let stray = [tensor("embed.weight", Dtype::U8, &[1], vec![1])];
    write(&dir.path("base/consolidated.safetensors"), &stray);
    dir.compress("new", &[], "alone").unwrap();
    let report = dir.compress("new", &["base"], "small").unwrap();
    assert!(
        report.compressed_bytes * 2 < dir.compress("new", &[], "alone").unwrap().compressed_bytes
    );
    std::fs::remove_file(dir.path("base/consolidated.safetensors")).unwrap();
    dir.compress("base", &[], "base.small").unwrap();
    for base in ["base", "base.small"] {
        dir.restore("small", &[base], "back").unwrap();
        assert_same_folder(&dir.path("new"), &dir.path("back"));
        dir.verify("small", &[base]).unwrap();
    }
    let model = dir.open("small").with_base(BaseModel::open(dir.path("base")).unwrap()).unwrap();
    for t in tuned(&self::model(1), 2) {
        assert!(model.tensor(&t.name).unwrap().bytes() == t.bytes);
    }
    // A hint names folder and file; the model card says what is needed.
    let hints: Vec<String> =
        model.shards().flat_map(|(_, s)| s.bases()).map(|b| b.hint.clone()).collect();
    assert!(hints.contains(&"base/model-0.safetensors".into()), "{hints:?}");
    let card = String::from_utf8(dir.read("small/README.md")).unwrap();
    assert!(card.contains("--base BASE") && card.contains("base/model-0.safetensors"), "{card}");
    // Nothing is left of a folder that could not be restored.
    let before = names(dir.0.path());
    write_folder(&dir.path("wrong"), tuned(&self::model(1), 77), 3);
    assert_eq!(
        dir.restore("small", &["wrong"], "out").unwrap_err().rule(),
        Some(Rule::BaseMismatch)
    );
    assert_eq!(dir.restore("small", &[], "out").unwrap_err().rule(), Some(Rule::BaseMissing));
    std::fs::remove_dir_all(dir.path("wrong")).unwrap();
    assert_eq!(names(dir.0.path()), before);
    // A single file against the folder.
    dir.compress("new/model-0.safetensors", &["base"], "one.bs").unwrap();
    std::fs::remove_dir_all(dir.path("back")).unwrap();
    dir.check("one.bs", &["base"], "new/model-0.safetensors");
}

#[test]
fn parts_of_a_pipeline_are_compared_with_the_same_parts() {
    let dir = Dir::new();
    for (name, seed) in [("unet", 1), ("vae", 2)] {
        write_folder(&dir.path("base").join(name), model(seed), 3);
        write_folder(&dir.path("new").join(name), tuned(&model(seed), 9), 3);
    }
    let report = dir.compress("new", &["base"], "small").unwrap();
    assert!(report.files.iter().all(|f| f.n_deltas + f.n_inherited == f.n_tensors), "{report:?}");
    dir.restore("small", &["base"], "back").unwrap();
    assert_same_folder(&dir.path("new"), &dir.path("back"));
}

#[test]
fn what_cannot_be_a_base_is_refused() {
    let dir = Dir::new();
    series(&dir);
    dir.compress("base", &[], "base.bs").unwrap();
    let before = names(dir.0.path());
    std::fs::write(dir.path("text"), "no model").unwrap();
    assert!(dir.compress("a", &["text"], "out").is_err());
    assert!(dir.compress("a", &["missing"], "out").is_err());
    std::fs::remove_file(dir.path("text")).unwrap();
    // Two files with one tensor, without an index file.
    std::fs::create_dir(dir.path("two")).unwrap();
    for name in ["x.safetensors", "y.safetensors"] {
        std::fs::copy(dir.path("a"), dir.path("two").join(name)).unwrap();
    }
    let error = dir.compress("a", &["two"], "out").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelTensor, "{error}");
    std::fs::remove_dir_all(dir.path("two")).unwrap();
    // The shard would replace what it needs.
    let base = dir.read("base.bs");
    let error = dir.compress("a", &["base.bs"], "base.bs").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SameFile, "{error}");
    // So would a shard that is encoded again.
    dir.compress("a", &["base.bs"], "a.bs").unwrap();
    dir.compress("b", &["a.bs", "base.bs"], "b.bs").unwrap();
    let chain = ["a.bs", "base.bs"].iter();
    let options = CompressOptions::new().replace(true);
    let options = chain.fold(options, |options, base| options.base(dir.path(base)));
    let (b, out, progress) = (dir.path("b.bs"), dir.path("base.bs"), Progress::default());
    for done in [
        bigsmall_io::transcode(&b, &out, &options, &progress),
        bigsmall_io::rebase(&b, dir.path("a.bs"), &out, &options, &progress),
        bigsmall_io::rebase(&b, &out, &out, &options, &progress),
    ] {
        assert_eq!(done.unwrap_err().kind(), ErrorKind::SameFile);
    }
    assert!(dir.read("base.bs") == base);
    std::fs::remove_file(dir.path("a.bs")).unwrap();
    std::fs::remove_file(b).unwrap();
    assert_eq!(names(dir.0.path()), before);
}

#[test]
fn an_interrupted_job_leaves_nothing() {
    let dir = Dir::new();
    series(&dir);
    dir.compress("a", &["base"], "a.bs").unwrap();
    let before = names(dir.0.path());
    let progress = Progress::default();
    progress.cancel();
    let options = CompressOptions::new().base(dir.path("base"));
    let error = bigsmall_io::compress(dir.path("b"), dir.path("out"), &options, &progress);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Cancelled);
    let options = RestoreOptions::new().base(dir.path("base"));
    let error = bigsmall_io::restore(dir.path("a.bs"), dir.path("out"), &options, &progress);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(names(dir.0.path()), before);
}

#[test]
fn a_source_in_memory_is_compared_with_a_base() {
    let dir = Dir::new();
    series(&dir);
    let options = CompressOptions::new().base(dir.path("base")).md5(true);
    compress_from(&dir.read("a"), dir.path("a.bs"), &options, &Progress::default()).unwrap();
    dir.check("a.bs", &["base"], "a");
    let shard = Shard::open(dir.read("a.bs")).unwrap();
    assert!((0..shard.tensors().len()).all(|i| shard.entry(i).unwrap().md5().is_some()));
    assert!(shard.source().byte_len().unwrap() > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any tensors, some of them changed, renamed, cut or converted; any threads.
    #[test]
    fn whatever_changes_it_restores(
        parts in prop::collection::vec(
            (0..DTYPES.len(), 0..40_000usize, any::<u64>(), any::<u8>(), 0..7u8, 1..400usize),
            0..8,
        ),
        base_is_shard in any::<bool>(),
        threads in 1..4usize,
    ) {
        let dir = Dir::new();
        let (mut base, mut new) = (Vec::new(), Vec::new());
        for (i, (dtype, n, seed, mask, change, one_in)) in parts.into_iter().enumerate() {
            let (name, dtype, rows) = (format!("m.t{i}"), DTYPES[dtype], n / 8);
            let bytes = |rows: usize, dtype: Dtype, seed| {
                let bytes = Random::new(seed).bytes(rows * dtype.bitsize());
                bytes.into_iter().map(|b| b & mask).collect::<Vec<u8>>()
            };
            let old = bytes(rows, dtype, seed);
            base.push(tensor(&name, dtype, &[rows, 8], old.clone()));
            let edited = changed(&old, one_in, seed);
            let renamed = name.strip_prefix("m.").unwrap().to_owned();
            let half = rows / 2;
            new.push(match change {
                0 => tensor(&name, dtype, &[rows, 8], old),
                1 => tensor(&name, dtype, &[rows, 8], edited),
                2 => tensor(&renamed, dtype, &[rows, 8], edited),
                3 => tensor(&name, dtype, &[half, 8], edited[..half * dtype.bitsize()].to_vec()),
                4 => tensor(&name, dtype, &[rows + half, 8], bytes(rows + half, dtype, seed)),
                5 => tensor(&name, Dtype::F16, &[rows, 8], bytes(rows, Dtype::F16, seed)),
                _ => tensor(&name, dtype, &[8, rows], edited),
            });
        }
        write(&dir.path("base"), &base);
        write(&dir.path("new"), &new);
        dir.compress("base", &[], "base.bs").unwrap();
        dir.compress("new", &[], "alone.bs").unwrap();
        let name = if base_is_shard { "base.bs" } else { "base" };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            dir.compress("new", &[name], "new.bs").unwrap();
            dir.check("new.bs", &[name], "new");
        });
        prop_assert!(dir.read("new.bs").len() <= dir.read("alone.bs").len() + 200);
    }
}

/// The golden delta holds every kind of delta block; restoring compares SHA-256 and each checksum.
#[test]
fn the_golden_delta_restores() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens");
    let (delta, base) = (goldens.join("deltas.delta"), goldens.join("deltas-base.bs"));
    let dir = Dir::new();
    let mut options = RestoreOptions::new();
    options.bases = vec![base.clone()];
    let progress = Progress::default();
    bigsmall_io::restore(&delta, dir.path("back"), &options, &progress).unwrap();
    options.bases = vec![goldens.join("names.safetensors")];
    let error = bigsmall_io::restore(&delta, dir.path("wrong"), &options, &progress).unwrap_err();
    assert_eq!(error.rule(), Some(Rule::BaseMismatch), "{error}");
    assert!(!dir.path("wrong").exists());
    // A shard with two bases, of which one has the other as its base.
    let chain = goldens.join("chain.delta");
    let [base, middle] = ["chain-base.bs", "chain-middle.delta"].map(|name| goldens.join(name));
    options.bases = vec![base, middle];
    bigsmall_io::restore(&chain, dir.path("chain"), &options, &progress).unwrap();
    let original = std::fs::read(goldens.join("chain.safetensors")).unwrap();
    assert!(dir.read("chain") == original);
    options.bases.pop();
    let error = bigsmall_io::restore(&chain, dir.path("wrong"), &options, &progress).unwrap_err();
    assert_eq!(error.rule(), Some(Rule::BaseMismatch), "{error}");
}
