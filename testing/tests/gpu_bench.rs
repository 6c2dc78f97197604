//! Runs the benchmark program on small shapes: every kernel and every column, without mismatches.
//! The script `gpu_bench_torch.py` then joins the table with its own times.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::path::Path;
use std::process::Command;

use bigsmall_testing::{device, gpu_bench};
use clap::Parser as _;
use serde_json::Value;

fn main() {
    let test = every_kernel_is_right_and_the_tables_join;
    device::run(&[("every_kernel_is_right_and_the_tables_join", test)], &[]);
}

fn every_kernel_is_right_and_the_tables_join() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("gpu.json");
    let words = "--software --shapes 64x256,40x1100 --batches 1,20 --copy-mb 1 --cache-mb 1 \
                 --runs 2 --json";
    let words = std::iter::once("gpu_bench").chain(words.split(' ')).chain(table.to_str());
    let options = gpu_bench::Options::try_parse_from(words).unwrap();
    // The self test runs first. A mismatch in it or in the benchmark is a failure.
    assert_eq!(gpu_bench::run(&options).unwrap(), std::process::ExitCode::SUCCESS);
    let json = read(&table);
    assert!(json["device"].is_string() && json["copy_gb_s"].as_f64().unwrap() > 0.0);
    let rows = json["rows"].as_array().unwrap();
    // rANS, two ways to load, two decoders, and five products per batch.
    assert_eq!(rows.len(), 2 * (5 + 2 * 5));
    for row in rows {
        assert_eq!(row["mismatches"], 0, "{row}");
        assert!(row["of_bound"].as_f64().unwrap() <= 1.0, "{row}");
        assert!(row["us"].as_f64().unwrap() > 0.0 && row["moved_bytes"].as_f64().unwrap() > 0.0);
        assert!(row["of_copy"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["vs_plain"].is_null(), row["batch"] == 0, "{row}");
    }
    let words = "gpu_bench --software --shapes 64x256 --batches 1 --kernels fused3 --copy-mb 1 \
                 --cache-mb 1 --runs 1 --host-clock";
    let options = gpu_bench::Options::try_parse_from(words.split(' ')).unwrap();
    assert_eq!(gpu_bench::run(&options).unwrap(), std::process::ExitCode::SUCCESS);
    for wrong in ["--shapes 5", "--batches x", "--kernels fast", "--json", "--quick"] {
        let words = std::iter::once("gpu_bench").chain(wrong.split(' '));
        assert!(gpu_bench::Options::try_parse_from(words).is_err(), "{wrong}");
    }
    join(folder.path(), rows);
}

/// Runs the script with a replacement for torch, in which everything takes 50 microseconds.
fn join(folder: &Path, rows: &[Value]) {
    let torch = "
import types
__version__ = 'none'
bfloat16 = 'bf16'
class Matrix:
    def __init__(self, *shape): self.shape = shape
    def t(self): return Matrix(*reversed(self.shape))
def randn(*shape, device, dtype):
    assert (device, dtype) == ('cuda', bfloat16)
    return Matrix(*shape)
def matmul(x, w):
    assert x.shape[1] == w.shape[0]
    return Matrix(x.shape[0], w.shape[1])
class Event:
    def __init__(self, enable_timing): assert enable_timing
    def record(self): pass
    def elapsed_time(self, other): return 0.05
cuda = types.SimpleNamespace(Event=Event, synchronize=lambda: None, is_available=lambda: True,
                             get_device_name=lambda: 'a stand-in')
";
    std::fs::write(folder.join("torch.py"), torch).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/gpu_bench_torch.py");
    let joined = folder.join("joined.json");
    let run = Command::new("python3")
        .arg(script)
        .arg(folder.join("gpu.json"))
        .arg("-o")
        .arg(&joined)
        .env("PYTHONPATH", folder)
        .output();
    let run = run.expect("python3, which joins the tables");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let json = read(&joined);
    assert_eq!(json["torch_device"], "a stand-in");
    for (joined, row) in json["rows"].as_array().unwrap().iter().zip(rows) {
        if row["batch"] == 0 {
            assert!(joined["torch_us"].is_null(), "torch decodes nothing");
            continue;
        }
        let (us, torch) = (row["us"].as_f64().unwrap(), joined["torch_us"].as_f64().unwrap());
        assert!((torch - 50.0).abs() < 1e-9);
        assert!((joined["vs_torch"].as_f64().unwrap() - torch / us).abs() < 1e-9);
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
