//! Multiplies a matrix of a `.bs` file on the GPU without ever decoding it there, and compares the
//! result with the CPU's.
//!
//! ```text
//! cargo run --release -p bigsmall-examples --features gpu --example gpu_matmul -- MODEL.bs [TENSOR] [--batch N]
//! ```
//! MODEL is a shard or a folder of them; without TENSOR the largest bf16 matrix is taken. With no
//! arguments the program makes a small file of its own.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bigsmall_gpu::{Cpu, Dtype, Error, MatmulBackend, Result, Rule, TensorSpec, Wgpu};
use bigsmall_io::{CompressOptions, Model, Progress, compress};

fn main() -> Result<()> {
    let mut batch = 1;
    let mut words = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(word) = arguments.next() {
        if word == "--batch" {
            let value = arguments.next().and_then(|n| n.parse().ok());
            batch = value.ok_or_else(|| Error::new(Rule::Argument).expected("--batch N"))?;
        } else {
            words.push(word);
        }
    }
    let model = match words.first() {
        Some(path) => Model::open(path)?,
        None => {
            let folder = std::env::temp_dir().join(format!("gpu_matmul-{}", std::process::id()));
            std::fs::create_dir_all(&folder)?;
            let made = make_model(&folder).and_then(Model::open);
            std::fs::remove_dir_all(&folder)?;
            made?
        }
    };
    let name = match words.get(1) {
        Some(name) => name.clone(),
        None => largest_matrix(&model)?,
    };

    // The tensor as it is stored: nothing is decoded yet.
    let tensor = model.encoded(&name)?;
    let original = tensor.spec().byte_len();
    println!(
        "{name}: {:?}, stored as {} in {}",
        tensor.spec().shape(),
        tensor.encoding(),
        percent(tensor.byte_len(), original)
    );

    let gpu = Wgpu::headless()?;
    println!("device: {}", gpu.description());
    let weights = gpu.upload(&tensor)?;
    println!(
        "on the device: {} in {}",
        weights.resident().name(),
        percent(weights.byte_len(), original)
    );
    let cpu = Cpu::default();
    let on_cpu = cpu.upload(&tensor)?;
    println!("on the CPU: {}", percent(on_cpu.byte_len(), original));

    let (m, k) = (weights.rows(), weights.cols());
    let x: Vec<f32> = (0..batch * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let (mut y, mut expected) = (vec![0.0; batch * m], vec![0.0; batch * m]);
    let gpu_time = shortest(|| gpu.matmul(&weights, &x, batch, &mut y))?;
    let cpu_time = shortest(|| cpu.matmul(&on_cpu, &x, batch, &mut expected))?;
    // Without the way of x and y to the device and back.
    let (x_buffer, y_buffer) = (gpu.new_buffer(x.len())?, gpu.new_buffer(y.len())?);
    gpu.write_buffer(&x_buffer, &x)?;
    let resident_time = shortest(|| {
        gpu.submit(|recorder| recorder.matmul(&weights, &x_buffer, batch, &y_buffer))?;
        gpu.wait()
    })?;
    println!(
        "batch {batch}: GPU {gpu_time:.1?} ({resident_time:.1?} with vectors kept there), CPU {cpu_time:.1?}"
    );

    // The two add in different orders: they agree within what rounding allows, not bit for bit.
    let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
    let apart = y.iter().zip(&expected).fold(0f32, |a, (y, e)| a.max((y - e).abs()));
    println!("largest difference: {apart:e}, largest value: {largest:e}");
    let mut bytes = vec![0; original as usize];
    gpu.decompress(&weights, &mut bytes)?;
    let identical = bytes == model.tensor(&name)?.bytes();
    println!("decompressed on the device: {}", if identical { "identical" } else { "DIFFERENT" });
    // Written so that a difference that is no number fails too.
    let close = apart <= 1e-3 * largest.max(f32::MIN_POSITIVE);
    if !identical || !close {
        return Err(Error::new(Rule::ReadBack).in_tensor(&name));
    }
    Ok(())
}

fn percent(bytes: u64, original: u64) -> String {
    format!("{bytes} bytes ({:.1} %)", 100.0 * bytes as f64 / original.max(1) as f64)
}

/// The shortest of a few runs, the first of which also creates what is kept.
fn shortest(mut run: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed());
    }
    Ok(best)
}

fn largest_matrix(model: &Model) -> Result<String> {
    let is_matrix = |spec: &&TensorSpec| spec.dtype() == Dtype::BF16 && spec.shape().len() == 2;
    let largest = model.tensors().filter(is_matrix).max_by_key(|spec| spec.byte_len());
    largest
        .map(|spec| spec.name().to_string())
        .ok_or_else(|| Error::new(Rule::TensorMissing).expected("a matrix of BF16"))
}

/// A file with one matrix of normally distributed weights.
fn make_model(folder: &Path) -> Result<PathBuf> {
    let (m, k) = (1024, 2048);
    let header = format!(
        r#"{{"layer.weight":{{"dtype":"BF16","shape":[{m},{k}],"data_offsets":[0,{}]}}}}"#,
        2 * m * k
    );
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    let mut state = 1u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 33) as f64 + 0.5) / (1u64 << 31) as f64
    };
    for _ in 0..m * k {
        let normal = (-2.0 * unit().ln()).sqrt() * (std::f64::consts::TAU * unit()).cos();
        let bits = (0.02 * normal as f32).to_bits();
        file.extend_from_slice(&((bits >> 16) as u16).to_le_bytes());
    }
    let (input, output) = (folder.join("layer.safetensors"), folder.join("layer.bs"));
    std::fs::write(&input, file)?;
    compress(&input, &output, &CompressOptions::default(), &Progress::default())?;
    Ok(output)
}
