//! The whole way of a checkpoint: compress, verify, restore, compare, read one layer and a few
//! rows.
//!
//! `cargo run --release -p bigsmall-examples --example quickstart [MODEL.safetensors |
//! MODEL-FOLDER]`
//!
//! Without a model it makes one of 66 MB in the shape of a Llama. Nothing is left behind but what
//! is printed.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bigsmall_io::{
    CompressOptions, Model, Progress, RestoreOptions, Result, compress, restore, verify,
};
use bigsmall_testing::Llama;

fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let model = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => {
            let path = dir.path().join("model.safetensors");
            println!("making a Llama-shaped checkpoint in bf16 ...");
            Llama::SMALL.write(&path)?;
            path
        }
    };
    let shard = dir.path().join("compressed.bs");
    let back = dir.path().join("restored");
    println!("{:<28} {:>12} {:>9} {:>9}", "step", "bytes", "share", "seconds");
    let row = |step: &str, bytes: u64, original: u64, begin: Instant| {
        let share = 100.0 * bytes as f64 / original.max(1) as f64;
        let seconds = begin.elapsed().as_secs_f64();
        println!("{step:<28} {bytes:>12} {share:>8.2}% {seconds:>9.3}");
    };

    let begin = Instant::now();
    let report = compress(&model, &shard, &CompressOptions::default(), &Progress::default())?;
    let original = report.original_bytes;
    row("compress (and read back)", report.compressed_bytes, original, begin);

    let begin = Instant::now();
    verify(&shard, &RestoreOptions::default(), &Progress::default())?;
    row("verify", report.compressed_bytes, original, begin);

    let begin = Instant::now();
    restore(&shard, &back, &RestoreOptions::default(), &Progress::default())?;
    row("restore (SHA-256 compared)", original, original, begin);
    let n_files = compare(&model, &back)?;

    let begin = Instant::now();
    let opened = Model::open(&shard)?;
    row("open", 0, original, begin);
    let layer = opened.tensors().find_map(|t| layer_of(t.name()));
    if let Some(layer) = layer {
        let begin = Instant::now();
        let tensors = opened.layer(&layer)?;
        let bytes = tensors.iter().map(|t| t.bytes().len() as u64).sum();
        row(&format!("layer {layer}"), bytes, original, begin);
    }
    let matrix = opened.tensors().find(|t| t.shape().len() == 2 && t.shape()[0] >= 8);
    if let Some(matrix) = matrix {
        let begin = Instant::now();
        let rows = opened.rows(matrix.name(), 4..8)?;
        row(&format!("rows 4..8 of {}", matrix.name()), rows.bytes().len() as u64, original, begin);
    }
    println!("restored files that are identical to the original: {n_files}");
    Ok(())
}

/// `model.layers.0` of `model.layers.0.mlp.up_proj.weight`.
fn layer_of(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let number = parts.iter().position(|p| p.parse::<u32>().is_ok())?;
    Some(parts[..=number].join("."))
}

/// Compares a file, or every safetensors file of a folder, byte by byte; returns how many.
fn compare(a: &Path, b: &Path) -> Result<usize> {
    if a.is_dir() {
        let mut n = 0;
        for entry in std::fs::read_dir(a)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                n += compare(&path, &b.join(path.file_name().unwrap_or_default()))?;
            }
        }
        return Ok(n);
    }
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let n = a.read(&mut left)?;
        b.read_exact(&mut right[..n])?;
        assert!(left[..n] == right[..n], "the restored file differs");
        if n == 0 {
            assert_eq!(b.read(&mut right)?, 0, "the restored file is longer");
            return Ok(1);
        }
    }
}
