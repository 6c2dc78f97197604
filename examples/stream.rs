//! Reads a model layer by layer, with only a part of it in memory at a time, and prints how much
//! memory that takes.
//!
//! `cargo run --release -p bigsmall-examples --example stream [MODEL | --generate 14GB]`

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bigsmall_examples::Result;
use bigsmall_io::{Layer, Model, SaveOptions, StreamOptions, StreamingLoader, TensorSpec, Writer};
use bigsmall_testing::{Llama, Random};
use clap::Parser;
use half::bf16;

/// Reads a model layer by layer.
#[derive(Parser)]
struct Args {
    /// A shard, or a folder of shards. Without it, a model is made.
    model: Option<PathBuf>,
    /// The size of the model that is made, in the shape of a Llama. The shard takes two thirds of
    /// it in the temporary folder. Every tensor is compared with the one that was written.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1GB")]
    #[arg(conflicts_with = "model")]
    generate: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let folder = tempfile::tempdir()?;
    let (path, hashes) = match args.model {
        Some(path) => (path, HashMap::new()),
        None => make(folder.path(), args.generate)?,
    };
    let mut loader = StreamingLoader::new(Model::open(&path)?, &StreamOptions::default())?;
    let total = loader.progress().total_bytes();
    let (mut layer, mut largest, mut n) = (Layer::default(), 0, 0);
    let mut waited = Duration::ZERO;
    loop {
        let begin = Instant::now();
        if !loader.next_into(&mut layer)? {
            break;
        }
        waited += begin.elapsed();
        // Here a program computes with the layer. Only this layer is decoded. The next one is being
        // read meanwhile.
        for tensor in layer.tensors() {
            let name = tensor.spec().name();
            if hashes.get(name).is_some_and(|h| *h != hash(tensor.bytes())) {
                return Err(format!("{name} is not what was written").into());
            }
        }
        largest = largest.max(layer.byte_len());
        n += 1;
        let done = 100 * loader.progress().done_bytes() / total.max(1);
        println!("{done:>3} %  {:<28} {:>12} bytes", layer.name(), layer.byte_len());
    }
    let rate = total as f64 / 1e9 / waited.as_secs_f64();
    println!("{n} layers, {total} bytes, {:.2} s of waiting: {rate:.2} GB/s", waited.as_secs_f64());
    if !hashes.is_empty() {
        println!("every tensor is what was written");
    }
    println!("largest layer {:.0} MiB", mib(largest));
    match peak() {
        Some(peak) => println!("peak memory of this process {:.0} MiB", mib(peak)),
        None => println!("peak memory: not available on this system"),
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The peak memory of this process, if the system provides it (Linux).
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

/// `14GB`, `500MB`, or a number of bytes.
fn size(text: &str) -> std::result::Result<u64, String> {
    let units = [("GB", 1_000_000_000), ("MB", 1_000_000), ("", 1)];
    let found = units.iter().find_map(|(unit, n)| {
        text.strip_suffix(unit).and_then(|digits| digits.parse::<u64>().ok()?.checked_mul(*n))
    });
    found.ok_or_else(|| "expected a size such as 14GB".into())
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Makes a shard of at least `size` bytes of weights. Returns the hashes of its tensors by name.
fn make(folder: &Path, size: u64) -> Result<(PathBuf, HashMap<String, u64>)> {
    let path = folder.join("generated.bs");
    // The layers of a Llama of 7B parameters, or small ones.
    let one = match size {
        0..2_000_000_000 => Llama { layers: 1, ..Llama::MEASURED },
        _ => Llama { hidden: 4096, ffn: 11_008, vocabulary: 32_000, layers: 1, kv: 4096 },
    };
    let bytes = |llama: &Llama| -> Result<u64> {
        Ok(llama.tensors()?.iter().map(TensorSpec::byte_len).sum())
    };
    let layer = bytes(&Llama { layers: 2, ..one })? - bytes(&one)?;
    let layers = 1 + size.saturating_sub(bytes(&one)?).div_ceil(layer);
    let tensors = Llama { layers, ..one }.tensors()?;
    println!("making a model of {layers} layers ...");
    let begin = Instant::now();
    let mut writer = Writer::create(&path, tensors.clone(), None, &SaveOptions::default())?;
    let mut hashes = HashMap::new();
    // Drawn from a table, which is fast enough for billions of values.
    let mut random = Random::new(1);
    let normal: Vec<[u8; 2]> =
        (0..1 << 16).map(|_| bf16::from_f64(0.02 * random.normal()).to_le_bytes()).collect();
    let mut values = Vec::new();
    for spec in &tensors {
        values.resize(spec.byte_len() as usize, 0);
        for four in values.chunks_mut(8) {
            let drawn = random.bits();
            for (i, value) in four.chunks_mut(2).enumerate() {
                value.copy_from_slice(&normal[(drawn >> (16 * i)) as usize & 0xffff]);
            }
        }
        writer.tensor(spec.name(), &values)?;
        hashes.insert(spec.name().to_owned(), hash(&values));
    }
    let report = writer.finish()?;
    let seconds = begin.elapsed().as_secs_f64();
    println!("{} bytes as {}, {seconds:.1} s", report.original_bytes, report.compressed_bytes);
    if let Some(peak) = peak() {
        println!("peak memory so far {:.0} MiB", mib(peak));
    }
    Ok((path, hashes))
}
