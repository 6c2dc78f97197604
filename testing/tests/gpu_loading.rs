//! Loads shards to the device, one tensor at a time, with at most the largest encoded tensor and 64
//! MiB of memory on the host.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::path::Path;

use bigsmall_format::Header;
use bigsmall_gpu::{Dtype, MatmulBackend as _, TensorSpec};
use bigsmall_io::{CompressOptions, Model, Progress, compress};
use bigsmall_testing::{Random, device};

const FOLDER: &str = "BIGSMALL_TEST_LOADING";
const TENSORS: usize = 4;
const SHAPE: [u64; 2] = [8192, 3072];

fn main() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return load(Path::new(&folder));
    }
    device::run(
        &[("loading_holds_one_tensor_and_64_mib", loading_holds_one_tensor_and_64_mib)],
        &[],
    );
}

/// The current or the largest memory use of this process in bytes.
fn memory(line: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|l| l.strip_prefix(line))?.split_whitespace().next()?;
    Some(kib.parse::<u64>().ok()? << 10)
}

/// A model whose matrices all have the same size.
fn write_model(folder: &Path) {
    let name = |i: usize| format!("layer.{i}.weight");
    let tensors: Vec<TensorSpec> =
        (0..TENSORS).map(|i| TensorSpec::new(&name(i), Dtype::BF16, &SHAPE).unwrap()).collect();
    let header = Header::synthesise(&tensors).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(&header);
    let mut random = Random::new(1);
    let normal: Vec<[u8; 2]> =
        (0..1 << 16).map(|_| half::bf16::from_f64(0.02 * random.normal()).to_le_bytes()).collect();
    let n = SHAPE[0] * SHAPE[1] * TENSORS as u64;
    for i in 0..n {
        let mixed = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        file.extend_from_slice(&normal[(mixed ^ (mixed >> 29)) as usize >> 7 & 0xffff]);
    }
    let plain = folder.join("model.safetensors");
    std::fs::write(&plain, file).unwrap();
    compress(&plain, folder.join("model.bs"), &CompressOptions::default(), &Progress::default())
        .unwrap();
    std::fs::remove_file(plain).unwrap();
}

/// Runs in a separate process, so that no other test has used its memory.
fn load(folder: &Path) {
    let gpu = device::open().unwrap();
    let model = Model::open(folder).unwrap();
    let before = memory("VmRSS:").unwrap();
    let mut resident = Vec::new();
    let mut largest = 0;
    for spec in model.tensors() {
        let tensor = model.encoded(spec.name()).unwrap();
        largest = largest.max(tensor.byte_len());
        resident.push(gpu.upload(&tensor).unwrap());
    }
    let peak = memory("VmHWM:").unwrap() - before;
    let on_device: u64 = resident.iter().map(|w| w.byte_len()).sum();
    // lavapipe keeps the memory of the device in this process.
    let here = gpu.description().contains("llvmpipe");
    let on_host = peak.saturating_sub(if here { on_device } else { 0 });
    println!(
        "{on_host} bytes on the host; the largest tensor has {largest}; {on_device} on the device"
    );
    assert_eq!(resident.len(), TENSORS);
    assert!(on_host <= largest + (64 << 20));
    // The bound is only meaningful if all tensors together exceed it.
    assert!(TENSORS as u64 * largest > largest + (64 << 20));
}

fn loading_holds_one_tensor_and_64_mib() {
    if memory("VmHWM:").is_none() {
        eprintln!("SKIPPED: this system does not say how much memory a process has");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let done = std::process::Command::new(std::env::current_exe().unwrap())
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    eprintln!("{said}");
    assert!(done.status.success(), "{said}");
    assert!(said.contains("bytes on the host"), "{said}");
}
