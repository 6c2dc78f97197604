//! Some tensors of a model as a file of their own, and a whole one on standard output.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bigsmall_format::internal::Assembler;
use bigsmall_format::{Raw, TensorSpec, encode_tensor};
use bigsmall_io::{ErrorKind, ExtractOptions, Progress, Rule, extract};
use common::{DTYPES, Random, Tensor, compress, names, tensor, write};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

fn bigsmall(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bigsmall")).current_dir(dir).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A large tensor, small ones of every dtype, an empty one, two equal ones, and neighbours of
/// prefixes.
fn tensors() -> Vec<Tensor> {
    let mut random = Random::new(5);
    let large = random.weights(20_000_000);
    let small = random.weights(50_000);
    let mut all = vec![
        tensor("model.layers.1.w", Dtype::BF16, &[20_000, 1000], large),
        tensor("model.layers.10.w", Dtype::BF16, &[50_000], small.clone()),
        tensor("model.layers.1.copy", Dtype::BF16, &[50_000], small),
        tensor("model.layers.1.empty", Dtype::F32, &[0, 3], vec![]),
    ];
    for dtype in DTYPES {
        let bytes: Vec<u8> = (0..8 * dtype.bitsize() / 8).map(|n| n as u8).collect();
        let name = format!("every.{dtype:?}");
        all.push(tensor(&name, dtype, &[8], bytes));
    }
    all
}

/// What the crate safetensors writes of the tensors that are wanted.
fn expected(all: &[Tensor], wanted: impl Fn(&str) -> bool) -> Vec<u8> {
    let views = all
        .iter()
        .filter(|t| wanted(&t.name))
        .map(|t| (t.name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).unwrap()
}

#[test]
fn the_file_is_the_one_that_safetensors_writes() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let all = tensors();
    write(&d.join("m.safetensors"), &all);
    compress(&d.join("m.safetensors"), &d.join("m.bs")).unwrap();
    std::fs::create_dir(d.join("folder")).unwrap();
    write(&d.join("folder/model-1.safetensors"), &all[..2]);
    write(&d.join("folder/model-2.safetensors"), &all[2..]);
    for input in ["m.safetensors", "m.bs", "folder"] {
        let out = d.join("x.safetensors");
        let run = |options: ExtractOptions, wanted: &dyn Fn(&str) -> bool| {
            let progress = Progress::default();
            let done =
                extract(d.join(input), &out, &options.clone().replace(true), &progress).unwrap();
            let file = std::fs::read(&out).unwrap();
            assert!(file == expected(&all, wanted), "{input} {options:?}");
            assert_eq!(done.byte_len, file.len() as u64);
            let n = SafeTensors::deserialize(&file).unwrap().len();
            assert_eq!(done.n_tensors, n as u64);
        };
        let options = ExtractOptions::new;
        run(options().tensor("every.F16"), &|name| name == "every.F16");
        run(options().prefix("every"), &|name| name.starts_with("every."));
        for prefix in ["model.layers.1", "model.layers.1."] {
            run(options().prefix(prefix), &|name| name.starts_with("model.layers.1."));
        }
        let both = options().tensor("every.U8").tensor("every.U8").prefix("model");
        run(both, &|name| name.starts_with("model.") || name == "every.U8");
    }
    assert_eq!(names(d), ["folder", "m.bs", "m.safetensors", "x.safetensors"]);
}

#[test]
fn what_cannot_be_extracted_says_why_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    write(&d.join("m.safetensors"), &tensors()[1..]);
    compress(&d.join("m.safetensors"), &d.join("m.bs")).unwrap();
    std::fs::create_dir_all(d.join("two/sub")).unwrap();
    for name in ["two/a.safetensors", "two/sub/b.safetensors"] {
        write(&d.join(name), &[tensor("same", Dtype::U8, &[1], vec![1])]);
    }
    let damaged = std::fs::read(d.join("m.bs")).unwrap();
    let damaged = damaged.iter().enumerate().map(|(i, b)| if i == 1000 { b ^ 1 } else { *b });
    std::fs::write(d.join("damaged.bs"), damaged.collect::<Vec<u8>>()).unwrap();
    let before = names(d);
    let name = "model.layers.10.w";
    let cases: &[(i32, &[&str], &str)] = &[
        (2, &["m.bs", "-o", "x"], "--tensor"),
        (2, &["m.bs", "-o", "x", "--tensor", "model.layers.1.W"], r#"nearest: "model.layers.1"#),
        (2, &["m.bs", "-o", "x", "--tensor", "no", "--tensor", "nein"], r#"also missing: "no""#),
        (2, &["m.safetensors", "-o", "x", "--prefix", "model.layer"], r#"tensor "model.layer""#),
        (2, &["two", "-o", "x", "--tensor", "same"], "two files with it"),
        (2, &["m.bs", "-o", "m.bs", "--force", "--tensor", name], "are the same"),
        (2, &["two", "-o", "two/a.safetensors", "--force", "--tensor", "same"], ""),
        (2, &["m.bs", "-o", "m.safetensors", "--tensor", name], "--force"),
        (2, &["m.bs", "-o", "-", "--tensor", name], "./-"),
        (5, &["m.bs", "-o", "x", "--tensor", name, "--max-expansion", "0"], "--max-expansion"),
        (3, &["damaged.bs", "-o", "x", "--prefix", "model"], "damaged.bs: tensor"),
    ];
    for (code, args, text) in cases {
        let output = bigsmall(d, &[&["extract"], *args].concat());
        let shown = stderr(&output);
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {shown}");
        assert!(shown.contains(text), "{args:?}: {shown}");
        assert_eq!(names(d), before, "{args:?}");
    }
    let cancelled = Progress::default();
    cancelled.cancel();
    let options = ExtractOptions::new().prefix("model");
    let error = extract(d.join("m.bs"), d.join("x"), &options, &cancelled).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(names(d), before);
}

#[test]
fn deltas_are_extracted_with_their_base() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let mut all = tensors();
    all.remove(0);
    write(&d.join("base.safetensors"), &all);
    all[0].bytes[7] ^= 1;
    write(&d.join("new.safetensors"), &all);
    let args = ["compress", "new.safetensors", "--base", "base.safetensors", "-o", "new.bs"];
    assert!(bigsmall(d, &args).status.success());
    let options = ExtractOptions::new().prefix("model");
    let (input, out) = (d.join("new.bs"), d.join("x"));
    let error = extract(&input, &out, &options, &Progress::default()).unwrap_err();
    assert_eq!(error.rule(), Some(Rule::BaseMissing), "{error}");
    let options = options.base(d.join("base.safetensors"));
    extract(&input, &out, &options, &Progress::default()).unwrap();
    assert!(std::fs::read(&out).unwrap() == expected(&all, |name| name.starts_with("model.")));
    // The base is not replaced either.
    let replace = options.replace(true);
    let base = d.join("base.safetensors");
    let error = extract(&input, &base, &replace, &Progress::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SameFile);
}

#[test]
fn restore_writes_to_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    write(&d.join("m.safetensors"), &tensors());
    compress(&d.join("m.safetensors"), &d.join("m.bs")).unwrap();
    let output = bigsmall(d, &["restore", "m.bs", "-o", "-", "--json"]);
    assert!(output.status.success());
    assert!(output.stdout == std::fs::read(d.join("m.safetensors")).unwrap());
    let report: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(report["original_bytes"], output.stdout.len());

    // Another SHA-256, in an index that is whole: every byte is written, and the command fails.
    let spec = TensorSpec::new("t", bigsmall_io::Dtype::U8, &[3_000_000]).unwrap();
    let mut writer = Assembler::synthesised(Vec::new(), std::slice::from_ref(&spec)).unwrap();
    writer.tensor(&encode_tensor(&Raw, &spec, &vec![1; 3_000_000]).unwrap(), None).unwrap();
    std::fs::write(d.join("wrong.bs"), writer.finish([7; 32]).unwrap()).unwrap();
    let output = bigsmall(d, &["restore", "wrong.bs", "-o", "-"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(output.stdout.ends_with(&[1; 3_000_000]));

    // A reader that goes away ends the command, which says so.
    let mut child = Command::new(env!("CARGO_BIN_EXE_bigsmall"))
        .current_dir(d)
        .args(["restore", "m.bs", "-o", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 1000]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    assert!(stderr(&output).starts_with("bigsmall: standard output: "), "{}", stderr(&output));

    // Where standard input or output does not do.
    std::fs::create_dir(d.join("folder")).unwrap();
    std::fs::copy(d.join("m.bs"), d.join("folder/m.bs")).unwrap();
    let before = names(d);
    for (args, text) in [
        (&["compress", "-", "-o", "x.bs"][..], "standard input"),
        (&["compress", "m.safetensors", "-o", "-"], "standard output"),
        (&["transcode", "m.bs", "-o", "-"], "standard output"),
        (&["restore", "-", "-o", "x"], "standard input"),
        (&["verify", "-"], "standard input"),
        (&["restore", "folder", "-o", "-"], "one shard"),
    ] {
        let output = bigsmall(d, args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(text), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
    assert_eq!(names(d), before);
}
