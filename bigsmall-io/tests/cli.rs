//! The command: exit codes, JSON, what is refused.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::{Random, names, tensor, write, write_raw};
use safetensors::Dtype;
use serde_json::Value;

fn bigsmall(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bigsmall"));
    command.current_dir(dir).args(args).output().unwrap()
}

fn code(dir: &Path, args: &[&str]) -> i32 {
    bigsmall(dir, args).status.code().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
// I-18
fn a_standard_output_that_is_closed_is_an_error_where_it_is_what_the_command_is_for() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(d);
    assert_eq!(code(d, &["compress", "m.safetensors", "-o", "m.bs"]), 0);
    for (wanted, args) in [
        (1, &["restore", "m.bs", "-o", "-"][..]),
        (1, &["inspect", "m.bs"]),
        (1, &["estimate", "m.safetensors"]),
        (0, &["verify", "m.bs"]),
        (0, &["restore", "m.bs", "-o", "back"]),
    ] {
        for (end, wanted) in [(">&-", wanted), (">/dev/null", 0), ("1<>/dev/null", 0)] {
            let mut shell = Command::new("sh");
            shell.args([
                "-c",
                &format!("exec \"$0\" \"$@\" {end}"),
                env!("CARGO_BIN_EXE_bigsmall"),
            ]);
            let output = shell.args(args).current_dir(d).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(wanted), "{args:?} {end}: {stderr}");
            assert_eq!(wanted == 1, stderr.contains("standard output"), "{stderr}");
            let _ = std::fs::remove_file(d.join("back"));
        }
    }
}

fn json(dir: &Path, args: &[&str]) -> Value {
    let output = bigsmall(dir, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn model(dir: &Path) {
    let mut random = Random::new(13);
    let a = random.weights(200_000);
    write(
        &dir.join("m.safetensors"),
        &[
            tensor("layers.0.w", Dtype::BF16, &[200, 1000], a.clone()),
            tensor("layers.1.w", Dtype::BF16, &[200, 1000], a),
            tensor("odd\u{1b}[31mname", Dtype::U8, &[3], vec![1, 2, 3]),
        ],
    );
}

#[test]
fn the_main_path() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(d);
    assert_eq!(code(d, &["compress", "m.safetensors", "-o", "m.bs", "--md5"]), 0);
    assert_eq!(code(d, &["verify", "m.bs"]), 0);
    assert_eq!(code(d, &["restore", "m.bs", "-o", "back"]), 0);
    assert_eq!(code(d, &["decompress", "m.bs", "-o", "back2"]), 0);
    let original = std::fs::read(d.join("m.safetensors")).unwrap();
    assert!(std::fs::read(d.join("back")).unwrap() == original);
    assert!(std::fs::read(d.join("back2")).unwrap() == original);
    // Everything in one folder: nothing else is left.
    assert_eq!(names(d), ["back", "back2", "m.bs", "m.safetensors"]);
}

#[test]
fn json_has_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(d);
    let original = std::fs::metadata(d.join("m.safetensors")).unwrap().len();
    let sizes = |v: &Value, compressed: Option<u64>| {
        assert_eq!(v["original_bytes"], original);
        if let Some(compressed) = compressed {
            assert_eq!(v["compressed_bytes"], compressed);
        }
        let ratio = v["compressed_bytes"].as_f64().unwrap() / original as f64;
        assert!((v["ratio"].as_f64().unwrap() - ratio).abs() < 1e-9);
    };
    let dry = json(d, &["compress", "m.safetensors", "--dry-run", "--json"]);
    assert_eq!(names(d), ["m.safetensors"]);
    let done = json(d, &["compress", "m.safetensors", "-o", "m.bs", "--md5", "--json"]);
    let compressed = std::fs::metadata(d.join("m.bs")).unwrap().len();
    sizes(&done, Some(compressed));
    // A dry run without the MD5 sums: 16 bytes less a tensor.
    sizes(&dry, Some(compressed - 3 * 16));
    let found = json(d, &["inspect", "m.bs", "--json"]);
    sizes(&found, Some(compressed));
    assert_eq!(found["tensors"].as_array().unwrap().len(), 3);
    assert_eq!(found["tensors"][1]["shares"], "layers.0.w");
    assert_eq!(found["tensors"][0]["dtype"], "BF16");
    assert_eq!(found["tensors"][0]["encoding"], "ans");
    assert_eq!(found["tensors"][0]["shape"], serde_json::json!([200, 1000]));
    let one = json(d, &["inspect", "m.bs", "--json", "--tensor", "layers.1.w"]);
    assert_eq!(one["tensors"].as_array().unwrap().len(), 1);
    let verified = json(d, &["verify", "m.bs", "--md5", "--json"]);
    sizes(&verified, Some(compressed));
    // MD5 of 01 02 03, from outside.
    let md5 = &verified["files"][0]["md5"]["odd\u{1b}[31mname"];
    assert_eq!(md5, "5289df737df57326fcdd22597afb1fac");
    assert_eq!(verified["files"][0]["sha256"], done["files"][0]["sha256"]);
    sizes(&json(d, &["restore", "m.bs", "-o", "back", "--json"]), Some(compressed));
    let guess = json(d, &["estimate", "m.safetensors", "--json"]);
    sizes(&guess, None);
    assert!(guess["seconds"].as_f64().unwrap() >= 0.0);
    let same = json(d, &["estimate", "m.safetensors", "--base", "m.bs", "--json"]);
    sizes(&same, None);
    assert!(same["ratio"].as_f64().unwrap() < 0.01, "{same}");
    let small = json(d, &["transcode", "m.bs", "-o", "t.bs", "--encoding", "tbe3", "--json"]);
    sizes(&small, Some(std::fs::metadata(d.join("t.bs")).unwrap().len()));
}

#[test]
fn bench_has_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(d);
    assert_eq!(code(d, &["compress", "m.safetensors", "-o", "m.bs"]), 0);
    for input in ["m.safetensors", "m.bs"] {
        let found = json(d, &["bench", input, "--json", "--threads", "1"]);
        for key in ["encode_gbps", "decode_gbps", "memcpy_gbps", "decode_vs_memcpy", "ratio"] {
            assert!(found[key].as_f64().unwrap() > 0.0, "{key}");
        }
        for key in ["original_bytes", "compressed_bytes", "threads"] {
            assert!(found[key].as_u64().unwrap() > 0, "{key}");
        }
        assert!(found["backend"].is_string());
        let found = json(d, &["bench", input, "--json", "--encoding", "tbe3", "--batch", "3"]);
        let of_dtypes = found["dtypes"].as_array().unwrap();
        assert!(of_dtypes.iter().any(|of| of["dtype"] == "BF16"));
        assert_eq!(found["batch"], 3);
        let bf16 = of_dtypes.iter().find(|of| of["dtype"] == "BF16").unwrap();
        for found in [&found, bf16] {
            let products = ["matvec_gbps", "plain_matvec_gbps", "matvec_vs_plain"];
            for key in products.iter().chain(&["matmul_gflops", "plain_matmul_gflops"]) {
                assert!(found[key].as_f64().unwrap() > 0.0, "{key}");
            }
            assert!(found["resident"].is_string());
        }
        assert_eq!(bf16["gemm_gflops"].is_f64(), cfg!(feature = "gemm"));
    }
    // A row for every other dtype that is multiplied.
    let dtypes = [(Dtype::F16, 2), (Dtype::F8_E4M3, 1), (Dtype::F8_E5M2, 1)];
    let tensors = dtypes.map(|(dtype, bytes)| {
        tensor(&dtype.to_string(), dtype, &[64, 64], vec![40; 64 * 64 * bytes])
    });
    write(&d.join("others.safetensors"), &tensors);
    let found = json(d, &["bench", "others.safetensors", "--json"]);
    for (dtype, _) in dtypes {
        let mut rows = found["dtypes"].as_array().unwrap().iter();
        let row = rows.find(|of| of["dtype"] == dtype.to_string()).unwrap();
        assert!(row["matvec_vs_plain"].as_f64().unwrap() > 0.0, "{dtype}");
        assert_eq!(row["resident"], "plain");
    }
}

#[test]
fn exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(d);
    assert_eq!(code(d, &["compress", "m.safetensors", "-o", "m.bs"]), 0);
    let write_file = |name: &str, bytes: &[u8]| std::fs::write(d.join(name), bytes).unwrap();
    let shard = std::fs::read(d.join("m.bs")).unwrap();
    let mut damaged = shard.clone();
    damaged[1000] ^= 4;
    write_file("damaged.bs", &damaged);
    write_file("short.bs", &shard[..shard.len() - 1]);
    write_file("empty.bs", b"");
    write_file("python.bs", &[b"BGSM".as_slice(), &[4; 100]].concat());
    let deep = entry_of_rank(100);
    write_raw(&d.join("rank.safetensors"), deep.as_bytes(), &[0]);
    std::fs::create_dir(d.join("emptydir")).unwrap();
    let cases: &[(i32, &[&str])] = &[
        (1, &["compress", "nobody.safetensors", "-o", "x.bs"]),
        (1, &["verify", "nobody.bs"]),
        (1, &["compress", "m.safetensors", "-o", "nodir/x.bs"]),
        (2, &[]),
        (2, &["frobnicate"]),
        (2, &["compress", "m.safetensors"]),
        (2, &["compress", "m.safetensors", "-o", "x.bs", "--level", "huge"]),
        (2, &["compress", "m.safetensors", "-o", "x.bs", "--threads", "-1"]),
        (2, &["compress", "m.safetensors", "-o", "m.bs"]),
        (2, &["restore", "m.bs", "-o", "m.safetensors"]),
        (2, &["compress", "m.safetensors", "-o", "m.safetensors", "--force"]),
        (2, &["compress", "m.safetensors", "-o", "./m.safetensors", "--force"]),
        // I-16
        (2, &["restore", "m.bs", "-o", "m.bs", "--force"]),
        (2, &["transcode", "m.bs", "-o", "m.bs", "--force"]),
        (2, &["compress", "emptydir", "-o", "x"]),
        (2, &["inspect", "m.bs", "--tensor", "nobody"]),
        (2, &["bench", "m.bs", "--backend", "abacus"]),
        (3, &["verify", "damaged.bs"]),
        (3, &["restore", "damaged.bs", "-o", "x"]),
        (3, &["verify", "short.bs"]),
        (3, &["inspect", "empty.bs"]),
        (3, &["compress", "m.bs", "-o", "x.bs"]),
        (4, &["verify", "python.bs"]),
        (4, &["restore", "python.bs", "-o", "x"]),
        (4, &["inspect", "python.bs"]),
        (4, &["compress", "python.bs", "-o", "x.bs"]),
        (4, &["verify", "m.safetensors"]),
        (
            4,
            &[
                "bench",
                "m.bs",
                "--backend",
                if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" },
            ],
        ),
        (5, &["compress", "rank.safetensors", "-o", "x.bs"]),
    ];
    let before = names(d);
    for (expected, args) in cases {
        let output = bigsmall(d, args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(*expected), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty() && !stderr.is_empty(), "{args:?}");
        assert_eq!(names(d), before, "{args:?}");
    }
    // What an option can do is said by the command alone, not by the library.
    let refused = bigsmall(d, &["compress", "m.safetensors", "-o", "m.bs"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"));
    assert!(std::fs::read(d.join("m.bs")).unwrap() == shard);
    // With leave to replace it, the same bytes again.
    assert_eq!(code(d, &["compress", "m.safetensors", "-o", "m.bs", "--force"]), 0);
    assert!(std::fs::read(d.join("m.bs")).unwrap() == shard);
}

fn entry_of_rank(rank: usize) -> String {
    format!(r#"{{"a":{{"dtype":"U8","shape":{:?},"data_offsets":[0,1]}}}}"#, vec![1; rank])
}

#[test]
fn messages_say_what_a_file_is_and_escape_strange_names() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(d);
    std::fs::write(d.join("python.bs"), [b"BGSM".as_slice(), &[4; 100]].concat()).unwrap();
    for command in ["verify", "inspect"] {
        let output = bigsmall(d, &[command, "python.bs"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("Python package") && text.contains("restore it with"), "{text}");
    }
    // What the system says is the cause of an error: it is printed, and once.
    let system = std::fs::metadata(d.join("nobody.bs")).unwrap_err().to_string();
    for args in [&["verify", "nobody.bs"][..], &["compress", "m.safetensors", "-o", "nodir/x"]] {
        let output = bigsmall(d, args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(text.matches(&system).count(), 1, "{text}");
    }
    assert_eq!(code(d, &["compress", "m.safetensors", "-o", "m.bs", "--md5"]), 0);
    for args in [&["inspect", "m.bs"][..], &["verify", "m.bs", "--md5"]] {
        let output = bigsmall(d, args);
        assert!(!output.stdout.contains(&0x1B), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(r"odd\u{1b}[31mname"));
    }
}

#[test]
fn inspect_shows_metadata_and_takes_plain_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(d);
    assert_eq!(code(d, &["compress", "m.safetensors", "-o", "m.bs"]), 0);
    let text = |input: &str| {
        let output = bigsmall(d, &["inspect", input]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for input in ["m.safetensors", "m.bs"] {
        let shown = text(input);
        for line in
            ["metadata \"format\": \"pt\"", "BF16: 2 tensors, 800.0 kB", "U8: 1 tensor, 3 B"]
        {
            assert!(shown.lines().any(|l| l == line), "{line}: {shown}");
        }
        let found = json(d, &["inspect", input, "--json"]);
        assert_eq!(found["files"][0]["metadata"], serde_json::json!({ "format": "pt" }));
    }
    let plain = json(d, &["inspect", "m.safetensors", "--json"]);
    let len = std::fs::metadata(d.join("m.safetensors")).unwrap().len();
    assert_eq!((&plain["original_bytes"], &plain["compressed_bytes"]), (&len.into(), &len.into()));
    assert_eq!(plain["tensors"][1]["encoding"], "plain");
    assert!(plain["files"][0]["sha256"].is_null());
    assert!(text("m.safetensors").ends_with(" kB in 1 safetensors file, not compressed\n"));

    // A folder of them, without an index file: all are the model.
    std::fs::create_dir_all(d.join("dir/sub")).unwrap();
    for name in ["dir/a.safetensors", "dir/sub/b.safetensors"] {
        let metadata = r#"{"__metadata__":{"x":"\u001b[31m\u202e</script>"},"NAME":{"dtype":"U8","#;
        let entry = r#""shape":[2],"data_offsets":[0,2]}}"#;
        let json = format!("{metadata}{entry}").replace("NAME", &name[name.len() - 13..]);
        write_raw(&d.join(name), json.as_bytes(), &[1, 2]);
    }
    let folder = text("dir");
    assert!(folder.contains("in 2 safetensors files, not compressed"), "{folder}");
    // Printed once, and no byte of it raw.
    let line = r#"metadata "x": "\u{1b}[31m\u{202e}</script>""#;
    assert_eq!(folder.lines().filter(|l| *l == line).count(), 1, "{folder}");
    let folder = json(d, &["inspect", "dir", "--json"]);
    assert_eq!(folder["files"][1]["name"], "sub/b.safetensors");
    assert_eq!(folder["tensors"][1]["shard"], "sub/b.safetensors");

    // A name that is not there: those that may be meant.
    for input in ["m.safetensors", "m.bs"] {
        let output = bigsmall(d, &["inspect", input, "--tensor", "layers.1.v"]);
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2));
        assert!(shown.contains(r#"nearest: "layers.1.w", "layers.0.w""#), "{shown}");
    }
}

/// `tools/test_page.py` opens pages in a browser. Here is what needs none.
#[test]
// U-01, U-02, U-05
fn a_page_has_nothing_of_a_hostile_file_but_text() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let evil = "</script><script>owned=1</script>\u{202e}\u{2028}\u{1b}[31m<!--&";
    let weights = Random::new(3).weights(100_000);
    write(
        &d.join("m.safetensors"),
        &[
            tensor(evil, Dtype::BF16, &[100_000], weights),
            tensor(&format!("layers.0.{evil}"), Dtype::U8, &[1], vec![1]),
        ],
    );
    assert_eq!(code(d, &["compress", "m.safetensors", "-o", "m.bs"]), 0);
    for input in ["m.bs", "m.safetensors"] {
        assert_eq!(code(d, &["inspect", input, "--html", "x.html", "--force"]), 0);
        let page = std::fs::read_to_string(d.join("x.html")).unwrap();
        // The data and the program; nothing else begins or ends a script.
        assert_eq!(page.matches("<script").count(), 2);
        assert_eq!(page.matches("</script").count(), 2);
        assert!(
            page.chars().all(|c| c == '\n' || !c.is_control() && !"\u{202e}\u{2028}".contains(c))
        );
        assert!(page.contains("default-src 'none'") && !page.contains("https:"));
        let data = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        let name = data["layers"][0][0].as_str().unwrap();
        assert!(name.starts_with("</script>") && name.contains(r"\u{202e}"), "{name}");
        assert_eq!(data["all"][1], 2);
        let (stored, floor) = (data["all"][3].as_f64().unwrap(), data["all"][5].as_f64().unwrap());
        let off = if input == "m.bs" { stored / floor } else { 1.0 };
        assert!((0.97..1.03).contains(&off), "{stored} stored, floor {floor}");
    }
    // Neither the model nor an existing page is replaced.
    assert_eq!(code(d, &["inspect", "m.bs", "--html", "x.html"]), 2);
    assert_eq!(code(d, &["inspect", "m.bs", "--html", "m.bs", "--force"]), 2);
    assert_eq!(names(d), ["m.bs", "m.safetensors", "x.html"]);
}

#[test]
fn completions_for_every_shell() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = bigsmall(dir.path(), &["completions", shell]);
        assert!(output.status.success() && output.stdout.len() > 1000, "{shell}");
    }
}

#[test]
fn a_folder_is_compressed_and_restored() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    std::fs::create_dir(d.join("in")).unwrap();
    model(&d.join("in"));
    std::fs::write(d.join("in/config.json"), "{}").unwrap();
    let done = json(d, &["compress", "in", "-o", "small", "--json"]);
    assert_eq!(done["files"][0]["name"], "m.safetensors");
    assert_eq!(names(&d.join("small")), ["README.md", "config.json", "m.bs"]);
    assert_eq!(code(d, &["compress", "in", "-o", "small"]), 2);
    assert_eq!(code(d, &["verify", "small"]), 0);
    assert_eq!(code(d, &["inspect", "small"]), 0);
    assert_eq!(code(d, &["restore", "small", "-o", "back"]), 0);
    for name in ["config.json", "m.safetensors"] {
        let same = std::fs::read(d.join("in").join(name)).unwrap()
            == std::fs::read(d.join("back").join(name)).unwrap();
        assert!(same, "{name}");
    }
    assert_eq!(names(&d.join("back")), names(&d.join("in")));
    assert_eq!(names(d), ["back", "in", "small"]);

    // Shard by shard, as several machines would.
    std::fs::create_dir(d.join("split")).unwrap();
    assert_eq!(code(d, &["compress", "in/m.safetensors", "-o", "split/m.bs"]), 0);
    let indexed = json(d, &["index", "split", "--original", "in", "--json"]);
    assert_eq!(indexed["files"][0]["sha256"], done["files"][0]["sha256"]);
    assert_eq!(names(&d.join("split")), names(&d.join("small")));
    for name in names(&d.join("small")) {
        let read = |dir: &str| std::fs::read(d.join(dir).join(&name)).unwrap();
        assert!(read("split") == read("small"), "{name}");
    }
    std::fs::write(d.join("split/config.json"), "{ }").unwrap();
    assert_eq!(code(d, &["index", "split", "--original", "in"]), 2);
    assert_eq!(code(d, &["index", "split", "--original", "in", "--force"]), 0);
}

/// The command prints every cause once, and so does whoever walks the chain of sources.
#[test]
fn verify_checks_all_inputs_and_names_all_damage() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(d);
    assert_eq!(code(d, &["compress", "m.safetensors", "-o", "m.bs"]), 0);
    let good = std::fs::read(d.join("m.bs")).unwrap();
    let bad = |name: &str| {
        let mut bytes = good.clone();
        let n = bytes.len();
        bytes[n / 2] ^= 1;
        std::fs::write(d.join(name), bytes).unwrap();
    };
    std::fs::create_dir(d.join("folder")).unwrap();
    for name in ["folder/a.bs", "folder/c.bs", "x.bs"] {
        bad(name);
    }
    std::fs::write(d.join("folder/b.bs"), &good).unwrap();
    let said = |args: &[&str]| {
        let output = bigsmall(d, args);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = said(&["verify", "folder"]);
    assert_eq!((code, text.lines().count()), (Some(3), 2), "{text}");
    assert!(text.contains("a.bs") && text.contains("c.bs") && !text.contains("b.bs"), "{text}");
    let (code, text) = said(&["verify", "x.bs", "m.bs", "nowhere.bs", "folder/c.bs"]);
    assert_eq!((code, text.lines().count()), (Some(3), 3), "{text}");
    for name in ["x.bs", "nowhere.bs", "folder/c.bs"] {
        assert_eq!(text.matches(name).count(), 1, "{text}");
    }
    std::fs::copy(d.join("m.bs"), d.join("folder/a.bs")).unwrap();
    std::fs::remove_file(d.join("folder/c.bs")).unwrap();
    let both = json(d, &["verify", "m.bs", "folder", "--json"]);
    let names: Vec<_> = both["files"].as_array().unwrap().iter().map(|f| &f["name"]).collect();
    assert_eq!(names, ["m.bs", "folder/a.bs", "folder/b.bs"]);
    let one = json(d, &["verify", "m.bs", "--json"]);
    let n = |report: &Value| report["original_bytes"].as_u64().unwrap();
    assert_eq!(n(&both), 3 * n(&one));
    assert_eq!(said(&["verify", "m.bs", "x.bs", "--against", "hf://o/n"]).0, Some(2));
}

#[test]
fn a_base_of_another_model_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(d);
    std::fs::create_dir(d.join("in")).unwrap();
    std::fs::copy(d.join("m.safetensors"), d.join("in/m.safetensors")).unwrap();
    let other = common::tensor("other", safetensors::Dtype::U8, &[1], vec![1]);
    common::write(&d.join("other.safetensors"), &[other]);
    for (base, n) in [("other.safetensors", 1), ("m.safetensors", 0)] {
        for input in ["m.safetensors", "in"] {
            let output = bigsmall(d, &["compress", input, "-o", "out", "--base", base]);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{text}");
            assert_eq!(text.matches("no tensor is stored as differences").count(), n, "{text}");
            let removed = std::fs::remove_file(d.join("out"));
            removed.or_else(|_| std::fs::remove_dir_all(d.join("out"))).unwrap();
        }
    }
}

#[test]
fn every_cause_is_printed_once() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(d);
    assert_eq!(code(d, &["compress", "m.safetensors", "-o", "m.bs"]), 0);
    let mut bad = std::fs::read(d.join("m.bs")).unwrap();
    bad[100] ^= 1;
    std::fs::write(d.join("bad.bs"), bad).unwrap();
    let missing = std::fs::metadata(d.join("nowhere.bs")).unwrap_err().to_string();
    let cases: [(&[&str], &str, &str); 4] = [
        (&["verify", "nowhere.bs"], "nowhere.bs", &missing),
        (&["compress", "nowhere.bs", "-o", "x.bs"], "nowhere.bs", &missing),
        (&["verify", "bad.bs"], "bad.bs", "checksum"),
        (&["compress", "m.safetensors", "-o", "m.bs"], "m.bs", "the output exists"),
    ];
    for (args, file, cause) in cases {
        let output = bigsmall(d, args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert_eq!(text.matches(file).count(), 1, "{text}");
        assert_eq!(text.matches(cause).count(), 1, "{text}");
    }
}

#[test]
fn a_wrong_base_exits_with_3_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for (name, value) in [("base", 1), ("m", 1), ("other", 2)] {
        write(&d.join(name), &[tensor("b", Dtype::U8, &[90, 100], vec![value; 9000])]);
    }
    assert_eq!(code(d, &["compress", "m", "-o", "m.bs", "--base", "base"]), 0);
    for args in [
        &["restore", "m.bs", "-o", "x", "--base", "other"][..],
        &["verify", "m.bs", "--base", "other"],
        &["extract", "m.bs", "--tensor", "b", "-o", "x", "--base", "other"],
        &["rebase", "m.bs", "--onto", "other", "-o", "x", "--base", "other"],
    ] {
        let output = bigsmall(d, args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{args:?}: {text}");
        assert!(!d.join("x").exists(), "{args:?}");
    }
    assert_eq!(code(d, &["restore", "m.bs", "-o", "x", "--base", "base"]), 0);
}

#[test]
fn an_error_names_the_option_that_the_command_has_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    std::fs::create_dir_all(d.join("in/sub/sub")).unwrap();
    model(&d.join("in"));
    write(&d.join("base"), &[tensor("b", Dtype::U8, &[9000], vec![1; 9000])]);
    write(&d.join("m"), &[tensor("b", Dtype::U8, &[9000], vec![1; 9000])]);
    assert_eq!(code(d, &["compress", "m", "-o", "m.bs", "--base", "base"]), 0);
    let cases: [(i32, &[&str], &str); 11] = [
        (5, &["compress", "in", "--dry-run", "--max-files", "0"], " (--max-files N allows more)\n"),
        (5, &["compress", "in", "--dry-run", "--max-depth", "1"], " (--max-depth N allows more)\n"),
        (5, &["estimate", "in", "--max-files", "0"], " (--max-files N allows more)\n"),
        (5, &["estimate", "in", "--max-depth", "1"], " (--max-depth N allows more)\n"),
        (5, &["compress", "m", "--dry-run", "--base", "in", "--max-files", "0"], "--max-files N"),
        (2, &["verify", "m.bs"], " (--base BASE gives it)\n"),
        (2, &["decompress", "m.bs", "-o", "x"], " (--base BASE gives it)\n"),
        (2, &["compress", "m", "-o", "m.bs"], " (--force replaces it)\n"),
        (5, &["verify", "m.bs", "--base", "base", "--max-expansion", "1"], "(--max-expansion N"),
        // It has no such option.
        (2, &["bench", "m.bs"], "which must be given"),
        (0, &["estimate", "in", "--hidden"], ""),
    ];
    for (exit, args, said) in cases {
        let output = bigsmall(d, args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {text}");
        assert!(text.contains(said), "{args:?}: {text}");
        assert_eq!(text.contains("(--"), said.contains("--"), "{args:?}: {text}");
    }
}

#[test]
fn a_shard_that_is_larger_than_its_original_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let one = |i: usize| tensor(&format!("t{i}"), Dtype::I64, &[], i.to_le_bytes().to_vec());
    write(&d.join("m"), &(0..2000).map(one).collect::<Vec<_>>());
    let output = bigsmall(d, &["compress", "m", "-o", "m.bs"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("each of the 2000 tensors takes some 50 bytes of index"), "{text}");
}

#[test]
fn renamed_tensors_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let mut random = Random::new(5);
    let old = [(); 2].map(|()| random.weights(40_000));
    // So much has changed that samples do not find them.
    let new = old.clone().map(|mut bytes| {
        bytes.iter_mut().step_by(4).for_each(|byte| *byte ^= 1);
        bytes
    });
    let bf16 = |name: &str, bytes: &[u8]| tensor(name, Dtype::BF16, &[400, 100], bytes.to_vec());
    write(&d.join("base"), &[bf16("old.a", &old[0]), bf16("old.b", &old[1])]);
    write(&d.join("new"), &[bf16("first", &new[0]), bf16("second", &new[1])]);
    // A folder with a tensor in each file: one list of names serves both.
    std::fs::create_dir(d.join("folder")).unwrap();
    for (file, name, bytes) in [("1", "first", &new[0]), ("2", "second", &new[1])] {
        write(&d.join(format!("folder/{file}.safetensors")), &[bf16(name, bytes)]);
    }
    let compress = |input: &'static str, more: &[&'static str]| {
        let args = ["compress", input, "--base", "base", "-o", "out", "--json"];
        bigsmall(d, &[&args, more].concat())
    };
    let deltas = |output: Output| -> Vec<Value> {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["files"].as_array().unwrap().iter().map(|f| f["delta_tensors"].clone()).collect()
    };
    let both = ["--base-name", "first=old.a", "--base-name", "second=old.b"];
    assert_eq!(deltas(compress("new", &[])), [0]);
    let alone = std::fs::metadata(d.join("out")).unwrap().len();
    assert_eq!(deltas(compress("new", &[&both[..], &["--force"]].concat())), [2]);
    assert!(std::fs::metadata(d.join("out")).unwrap().len() * 2 < alone);
    assert_eq!(code(d, &["restore", "out", "--base", "base", "-o", "back"]), 0);
    assert!(std::fs::read(d.join("back")).unwrap() == std::fs::read(d.join("new")).unwrap());
    std::fs::remove_file(d.join("out")).unwrap();
    for input in ["new", "folder"] {
        for (wrong, said) in [
            ("third=old.a", "\"third\": an argument is wrong: expected a tensor of the input"),
            ("second=old.c", "expected the name of a tensor that the base has for it, found old.c"),
            ("second", "no `=`"),
        ] {
            let output = compress(input, &[&both[..2], &["--base-name", wrong]].concat());
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{input} {wrong}: {text}");
            assert!(text.contains(said), "{input} {wrong}: {text}");
            assert!(!d.join("out").exists());
        }
    }
    assert_eq!(deltas(compress("folder", &both)), [1, 1]);
    assert_eq!(code(d, &["compress", "new", "-o", "none", both[0], both[1]]), 2);
}
