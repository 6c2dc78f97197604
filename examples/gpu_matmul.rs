//! Multiplies a matrix of a `.bs` file on the GPU, where it stays compressed, and compares the
//! result with the CPU's.
//!
//! `cargo run --release -p bigsmall-examples --features gpu --example gpu_matmul -- [MODEL.bs
//! [TENSOR]] [--batch N] [--software]`

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bigsmall_examples::{Result, matrix, numbers, open};
use bigsmall_gpu::{Cpu, MatmulBackend, Wgpu, WgpuOptions};
use clap::Parser;

/// Multiplies a matrix by vectors on the GPU, while the matrix stays compressed.
#[derive(Parser)]
struct Args {
    /// A shard, or a folder of shards. Without it, a small model is made.
    model: Option<PathBuf>,
    /// The matrix. Without it, the largest one of BF16 or F16.
    tensor: Option<String>,
    /// The number of vectors that are multiplied at once.
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Allow a driver that runs on the CPU, if there is no GPU.
    #[arg(long)]
    software: bool,
}

fn main() -> Result<()> {
    let Args { model, tensor, batch, software } = Args::parse();
    let folder = tempfile::tempdir()?;
    let model = open(model, folder.path())?;
    let spec = matrix(&model, tensor.as_deref())?;
    let name = spec.name();

    // The tensor in its stored form: nothing is decoded yet.
    let tensor = model.encoded(name)?;
    let original = spec.byte_len();
    println!(
        "{name}: {:?}, stored as {} in {}",
        spec.shape(),
        tensor.encoding(),
        percent(tensor.byte_len(), original)
    );

    let gpu = Wgpu::headless_with(&WgpuOptions::new().allow_software(software))?;
    println!("device: {}", gpu.description());
    let weights = gpu.upload(&tensor)?;
    println!(
        "on the device: {} in {}",
        weights.resident().name(),
        percent(weights.byte_len(), original)
    );
    let cpu = Cpu;
    let on_cpu = cpu.upload(&tensor)?;
    println!("on the CPU: {}", percent(on_cpu.byte_len(), original));

    let (m, k) = (weights.rows(), weights.cols());
    let x = numbers(batch * k);
    let (mut y, mut expected) = (vec![0.0; batch * m], vec![0.0; batch * m]);
    let gpu_time = shortest(|| gpu.matmul(&weights, &x, batch, &mut y))?;
    let cpu_time = shortest(|| cpu.matmul(&on_cpu, &x, batch, &mut expected))?;
    // The same with x and y already on the device.
    let (x_buffer, y_buffer) = (gpu.new_buffer(x.len())?, gpu.new_buffer(y.len())?);
    gpu.write_buffer(&x_buffer, &x)?;
    let resident_time = shortest(|| {
        gpu.submit(|recorder| recorder.matmul(&weights, &x_buffer, batch, &y_buffer))?;
        gpu.wait()
    })?;
    println!("batch {batch}: GPU {gpu_time:.1?}, CPU {cpu_time:.1?}");
    println!("GPU with vectors kept there: {resident_time:.1?}");

    // GPU and CPU add in different orders. So the results agree within rounding, not bit for bit.
    let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
    let apart = y.iter().zip(&expected).fold(0f32, |a, (y, e)| a.max((y - e).abs()));
    println!("largest difference: {apart:e}, largest value: {largest:e}");
    let mut bytes = vec![0; original as usize];
    gpu.decompress(&weights, &mut bytes)?;
    let identical = bytes == model.tensor(name)?.bytes();
    println!("decompressed on the device: {}", if identical { "identical" } else { "DIFFERENT" });
    // With this form of the comparison, a difference of NaN fails too.
    let close = apart <= 1e-3 * largest.max(f32::MIN_POSITIVE);
    if !identical || !close {
        return Err("the results differ".into());
    }
    Ok(())
}

fn percent(bytes: u64, original: u64) -> String {
    format!("{bytes} bytes ({:.1} %)", 100.0 * bytes as f64 / original.max(1) as f64)
}

/// The shortest of a few runs. The first one also creates pipelines.
fn shortest(mut run: impl FnMut() -> bigsmall_gpu::Result<()>) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed());
    }
    Ok(best)
}
