//! Saves tensors in memory as a shard, and reads them back.
//!
//! `cargo run --release -p bigsmall-examples --example save [FILE.bs]`

use std::collections::HashMap;
use std::path::PathBuf;

use bigsmall_examples::Result;
use bigsmall_io::{Dtype, Model, SaveOptions, TensorSpec, TensorView, Writer, save};
use bigsmall_testing::Random;
use clap::Parser;

/// Saves tensors as a shard and reads them again.
#[derive(Parser)]
struct Args {
    /// The file to write. Without it, a temporary one.
    file: Option<PathBuf>,
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = Args::parse().file.unwrap_or_else(|| folder.path().join("model.bs"));

    // All tensors at once.
    let mut random = Random::new(1);
    let weight: Vec<f32> = (0..512 * 512).map(|_| (0.02 * random.normal()) as f32).collect();
    let tensors = [
        ("fc.weight", TensorView::from_slice(&[512, 512], &weight)),
        ("fc.bias", TensorView::from_slice(&[512], &weight[..512])),
    ];
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let report = save(&file, tensors, Some(metadata))?;
    println!("{} bytes as {}", report.original_bytes, report.compressed_bytes);
    assert_eq!(Model::open(&file)?.tensor("fc.weight")?.to_vec::<f32>()?, weight);

    // One tensor after the other, for a model that is larger than the memory.
    let spec = |layer| TensorSpec::new(&format!("layers.{layer}.weight"), Dtype::F32, &[512, 512]);
    let specs = (0..4).map(spec).collect::<std::result::Result<Vec<_>, _>>()?;
    let mut writer = Writer::create(&file, specs.clone(), None, &SaveOptions::default())?;
    for spec in &specs {
        let layer = (0..spec.n_elements()).map(|_| (0.02 * random.normal()) as f32);
        let bytes: Vec<u8> = layer.flat_map(f32::to_le_bytes).collect();
        writer.tensor(spec.name(), &bytes)?;
    }
    let report = writer.finish()?;
    println!("{} bytes as {}", report.original_bytes, report.compressed_bytes);
    Ok(())
}
