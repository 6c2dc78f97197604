//! Measures how fast a GPU multiplies and decodes compressed weights, compared with the same
//! kernels on plain weights. Every result is checked.
//!
//! ```text
//! cargo run --release -p bigsmall-testing --features gpu --bin gpu_bench -- --selftest
//! cargo run --release -p bigsmall-testing --features gpu --bin gpu_bench -- --json gpu.json
//! python3 testing/gpu_bench_torch.py gpu.json      # adds torch (cuBLAS) on the same shapes
//! ```
//!
//! Times are device timestamps if the device supports them, else those of the host for 16
//! repetitions in one submission: the median of 20 runs, after 5 runs to warm up. Two rows use the
//! host's clock and the median of 5 runs: `load` measures how long it takes to bring a matrix in
//! ANS form from the host's memory into the smallest resident form on the device, decoded and
//! packed by the host; `load-on-device` is the same, decoded and packed by the device.
//!
//! There are enough copies of the weights to exceed four times the cache (`--cache-mb`), and each
//! run uses the next copy. For shorter runs: `--shapes 1024x1024 --batches 1,8 --kernels
//! plain,fused3 --copy-mb 64`.

mod accuracy;
mod clock;
mod inputs;
mod measure;
mod options;
mod selftest;
mod table;

use std::process::ExitCode;

use bigsmall_gpu::{Result, Wgpu};

use clock::{Clock, copy_bandwidth};
use measure::bench_shape;
pub use options::Options;
use selftest::selftest;

/// Checks every kernel, measures, and prints a table. Fails if a result is wrong.
///
/// # Errors
/// Those of the device, and of writing the table.
pub fn run(options: &Options) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let gpu = Wgpu::headless_with(&options.gpu())?;
    println!("device: {}", gpu.description());
    if options.cooperative || options.emulated {
        println!(
            "cooperative matrices: {}",
            if gpu.cooperative() { "used" } else { "not offered" }
        );
    }
    let (checks, mismatches) = selftest(&gpu)?;
    if options.selftest || mismatches != 0 {
        println!("selftest: {checks} checks, {mismatches} mismatches");
        let failed = mismatches != 0;
        return Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let clock = Clock::new(&gpu, options.runs.max(1), options.host_clock)?;
    println!(
        "selftest: {checks} checks, {mismatches} mismatches; times by {}",
        if clock.queries.is_some() { "device timestamps" } else { "the host's clock" }
    );
    let bandwidth = copy_bandwidth(&gpu, &clock, options.copy_mb << 20)?;
    println!("copy: {bandwidth:.1} GB/s read and written\n");
    table::print_head();
    let mut rows = Vec::new();
    for &(m, k) in &options.shapes {
        bench_shape(&gpu, &clock, options, bandwidth, m, k, &mut rows)?;
    }
    let bad = rows.iter().any(|row| row.mismatches != 0 || row.of_bound > 1.0);
    if let Some(path) = &options.json {
        std::fs::write(path, table::json(&gpu.description(), bandwidth, &rows))?;
    }
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
