//! What bigsmall does with a model: compress, verify, restore, compare, read.
//!
//! `cargo run --release -p bigsmall-examples --example quickstart [MODEL]`

use std::path::PathBuf;
use std::time::Instant;

use bigsmall_examples::{Result, compare, matrix};
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
    let model = match Args::parse().model {
        Some(model) => model,
        None => {
            let made = folder.path().join("model.safetensors");
            bigsmall_testing::Llama::SMALL.write(&made)?;
            made
        }
    };
    let begin = Instant::now();
    let done = |step: &str| println!("{:>7.2} s  {step}", begin.elapsed().as_secs_f64());

    let report = compress(&model, &shard, &CompressOptions::default(), &Progress::default())?;
    let (before, after) = (report.original_bytes, report.compressed_bytes);
    done(&format!("compressed {before} bytes to {after}: {:.2} %", 100.0 * report.ratio()));
    verify(&shard, &RestoreOptions::default(), &Progress::default())?;
    done("verified: every block was decoded, the SHA-256 is that of the original");
    restore(&shard, &back, &RestoreOptions::default(), &Progress::default())?;
    done("restored");
    let n_files = compare(&model, &back)?;
    done(&format!("compared: {n_files} identical to the original"));

    // A compressed model is read tensor by tensor, or by rows, without restoring it.
    let model = Model::open(&shard)?;
    let name = matrix(&model, None)?.name().to_owned();
    let tensor = model.tensor(&name)?;
    done(&format!("read {name} {:?}: {} bytes", tensor.spec().shape(), tensor.bytes().len()));
    let rows = model.rows(&name, 4..8)?;
    done(&format!("read rows 4 to 8 of it: {} bytes", rows.bytes().len()));
    Ok(())
}
