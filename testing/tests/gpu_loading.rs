//! Loads shards to the device: one tensor at a time, with at most the largest encoded tensor and 64
//! MiB of memory on the host; and those that are stored as differences from a base.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::path::Path;

use bigsmall_format::{Header, Raw, encode_tensor};
use bigsmall_gpu::{Dtype, EncodedTensor, MatmulBackend as _, TensorSpec};
use bigsmall_io::{BaseModel, CompressOptions, EncodingId, Model, Progress, compress};
use bigsmall_testing::{Random, device};

const FOLDER: &str = "BIGSMALL_TEST_LOADING";
const TENSORS: usize = 4;
const SHAPE: [u64; 2] = [8192, 3072];

fn main() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return load(Path::new(&folder));
    }
    device::run(
        &[
            ("loading_holds_one_tensor_and_64_mib", loading_holds_one_tensor_and_64_mib),
            (
                "differences_from_a_base_multiply_as_plain",
                differences_from_a_base_multiply_as_plain,
            ),
        ],
        &[],
    );
}

/// The current or the largest memory use of this process in bytes.
fn memory(line: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|l| l.strip_prefix(line))?.split_whitespace().next()?;
    Some(kib.parse::<u64>().ok()? << 10)
}

/// The beginning of a safetensors file.
fn header(tensors: &[TensorSpec]) -> Vec<u8> {
    let json = Header::synthesise(tensors).unwrap();
    [&(json.len() as u64).to_le_bytes()[..], &json].concat()
}

/// A model whose matrices all have the same size.
fn write_model(folder: &Path) {
    let name = |i: usize| format!("layer.{i}.weight");
    let tensors: Vec<TensorSpec> =
        (0..TENSORS).map(|i| TensorSpec::new(&name(i), Dtype::BF16, &SHAPE).unwrap()).collect();
    let mut file = header(&tensors);
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

/// Blocks that are differences, blocks that are those of the base, and a tensor that is.
fn differences_from_a_base_multiply_as_plain() {
    const SHAPE: [u64; 2] = [300, 1100];
    const BATCH: usize = 3;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut random = Random::new(2);
    let n = (SHAPE[0] * SHAPE[1]) as usize;
    let specs = ["changed", "some blocks", "kept"]
        .map(|name| TensorSpec::new(name, Dtype::BF16, &SHAPE).unwrap());
    let old = [(); 3].map(|()| random.weights(n));
    let mut new = old.clone();
    // The lowest bit of every third weight; of the second tensor, within its first block.
    new[0].iter_mut().step_by(6).for_each(|byte| *byte ^= 1);
    new[1][..1000].iter_mut().step_by(6).for_each(|byte| *byte ^= 1);
    for (name, tensors) in [("base", &old), ("new", &new)] {
        std::fs::write(path(name), [header(&specs), tensors.concat()].concat()).unwrap();
    }
    let options = CompressOptions::new().base(path("base"));
    compress(path("new"), path("new.bs"), &options, &Progress::default()).unwrap();
    let model = Model::open(path("new.bs")).unwrap();
    for (spec, n_same) in specs.iter().zip([0, 3, 4]) {
        let base = model.stored(spec.name()).unwrap().base.unwrap();
        assert_eq!((base.n_same_blocks, base.n_blocks), (n_same, 4), "{}", spec.name());
    }
    let model = model.with_base(BaseModel::open(path("base")).unwrap()).unwrap();
    let gpu = device::open().unwrap();
    let x: Vec<f32> = (0..BATCH * SHAPE[1] as usize).map(|_| random.normal() as f32).collect();
    let product = |tensor: &EncodedTensor| {
        let weights = gpu.upload(tensor).unwrap();
        let mut y = vec![f32::NAN; BATCH * weights.rows()];
        gpu.matmul(&weights, &x, BATCH, &mut y).unwrap();
        let mut bytes = vec![0xaa; 2 * n];
        gpu.decompress(&weights, &mut bytes).unwrap();
        (y.into_iter().map(f32::to_bits).collect::<Vec<u32>>(), bytes)
    };
    for (spec, bytes) in specs.iter().zip(&new) {
        let tensor = model.encoded(spec.name()).unwrap();
        assert_eq!(tensor.encoding(), EncodingId::Ans);
        let plain = encode_tensor(&Raw, spec, bytes).unwrap();
        let (found, expected) = (product(&tensor), product(&plain));
        assert!(found.0 == expected.0, "the product of {}", spec.name());
        assert!(found.1 == *bytes, "the weights of {}", spec.name());
    }
}
