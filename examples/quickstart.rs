//! Compresses a model, verifies and restores it, and reads from it.
//!
//! `cargo run --release -p bigsmall-examples --example quickstart [MODEL]`

use std::path::PathBuf;

use bigsmall_examples::{Result, compare, matrix, original};
use bigsmall_io::{CompressOptions, Model, Progress, RestoreOptions, compress, restore, verify};
use clap::Parser;

/// Compresses a model, restores it, and reads from it.
#[derive(Parser)]
struct Args {
    /// A safetensors file, or a folder of them. Without it, a model of 66 MB is made.
    model: Option<PathBuf>,
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (shard, back) = (folder.path().join("model.bs"), folder.path().join("restored"));
    let model = original(Args::parse().model, folder.path())?;

    let report = compress(&model, &shard, &CompressOptions::default(), &Progress::default())?;
    let (before, after) = (report.original_bytes, report.compressed_bytes);
    println!("compressed {before} bytes to {after}: {:.2} %", 100.0 * report.ratio());
    verify(&shard, &RestoreOptions::default(), &Progress::default())?;
    println!("verified: every block decodes, and the SHA-256 is that of the original");
    restore(&shard, &back, &RestoreOptions::default(), &Progress::default())?;
    println!("restored: {} files are identical to the original", compare(&model, &back)?);

    // A compressed model is read tensor by tensor, or by rows, without restoring it.
    let model = Model::open(&shard)?;
    let name = matrix(&model, None)?.name().to_owned();
    let tensor = model.tensor(&name)?;
    println!("read {name} {:?}: {} bytes", tensor.spec().shape(), tensor.bytes().len());
    let rows = model.rows(&name, 4..8)?;
    println!("read rows 4 to 7 of it: {} bytes", rows.bytes().len());
    Ok(())
}
