//! Goes through a model layer by layer, a part of it in memory at a time, and says how much memory
//! that took.
//!
//! `cargo run --release -p bigsmall-examples --example stream [MODEL | --generate 14GB]`
//!
//! MODEL is a shard or a folder of shards. `--generate` makes a shard in the shape of a Llama of
//! that size first (two thirds of it are needed on the disk of the temporary folder; its layers all
//! have the same weights, so that it is made quickly), and compares every tensor that comes out
//! with what went in. Without an argument it makes one of 1 GB.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bigsmall_format::{
    EncodedTensor, Error, Result, Rule, ShardWriter, TensorSpec, encode_tensor,
    for_each_in_parallel, xxh3,
};
use bigsmall_io::{Encoding, Layer, Model, StreamOptions, StreamingLoader};
use bigsmall_testing::{Llama, Random};
use half::bf16;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let dir = tempfile::tempdir()?;
    let (path, hashes) = match &args[..] {
        [] => made(dir.path(), 1_000_000_000)?,
        [flag, size] if flag == "--generate" => made(dir.path(), parse(size)?)?,
        [path] => (PathBuf::from(path), HashMap::new()),
        _ => return Err(Error::new(Rule::Argument).expected("[MODEL | --generate SIZE]")),
    };
    let begin = Instant::now();
    let mut loader = StreamingLoader::new(Model::open(&path)?, &StreamOptions::default())?;
    let total = loader.progress().total_bytes();
    let (mut layer, mut largest, mut n) = (Layer::default(), 0, 0);
    while loader.next_into(&mut layer)? {
        // Here a program would compute with the layer. Only this one is decoded, and the next one
        // is being read.
        for tensor in layer.tensors() {
            let expected = hashes.get(&key(tensor.spec().name()));
            if expected.is_some_and(|h| *h != xxh3(tensor.bytes())) {
                return Err(Error::new(Rule::ReadBack).in_tensor(tensor.spec().name()));
            }
        }
        largest = largest.max(layer.byte_len());
        n += 1;
        let done = 100 * loader.progress().done_bytes() / total.max(1);
        println!("{done:>3} %  {:<28} {:>12} bytes", layer.name(), layer.byte_len());
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{n} layers, {total} bytes in {seconds:.2} s: {:.2} GB/s",
        total as f64 / 1e9 / seconds
    );
    if !hashes.is_empty() {
        println!("every tensor is what was written");
    }
    println!("largest layer {:.0} MiB", mib(largest));
    match peak() {
        Some(peak) => println!("peak memory of this process {:.0} MiB", mib(peak)),
        None => println!("peak memory: this system does not say"),
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The most memory that this process had at any time, where the system says it (Linux).
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

/// `14GB`, `500MB`, or a number of bytes.
fn parse(size: &str) -> Result<u64> {
    let units = [("GB", 1_000_000_000), ("MB", 1_000_000), ("", 1)];
    let found = units.iter().find_map(|(unit, n)| {
        size.strip_suffix(unit).and_then(|digits| digits.parse::<u64>().ok()?.checked_mul(*n))
    });
    found.ok_or_else(|| Error::new(Rule::Argument).expected("a size such as 14GB").found(size))
}

/// The name of a tensor without the number of its layer: such tensors have the same weights.
fn key(name: &str) -> String {
    name.split('.')
        .map(|c| if c.parse::<u32>().is_ok() { "0" } else { c })
        .collect::<Vec<_>>()
        .join(".")
}

/// Makes a shard of a model of at least `size` bytes; returns the checksums of its tensors by
/// [`key`].
fn made(dir: &Path, size: u64) -> Result<(PathBuf, HashMap<String, u64>)> {
    let path = dir.join("generated.bs");
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
    let sink = BufWriter::with_capacity(1 << 20, File::create(&path)?);
    let mut writer = ShardWriter::synthesised(sink, &tensors)?;
    let mut known: HashMap<String, (EncodedTensor, u64)> = HashMap::new();
    let mut values = Vec::new();
    for spec in &tensors {
        let encoding = Encoding::default().implementation();
        let (encoded, hash) = match known.remove(&key(spec.name())) {
            Some((encoded, hash)) => (encoded.with_name(spec.name()), hash),
            None => {
                fill(spec, &mut values)?;
                (encode_tensor(encoding, spec, &values, 0)?, xxh3(&values))
            }
        };
        writer.write_encoded(&encoded, encoding)?;
        known.insert(key(spec.name()), (encoded, hash));
    }
    writer.finish()?.flush()?;
    let seconds = begin.elapsed().as_secs_f64();
    let original: u64 = tensors.iter().map(TensorSpec::byte_len).sum();
    let compressed = std::fs::metadata(&path)?.len();
    println!("{original} bytes as {compressed} in {seconds:.1} s");
    if let Some(peak) = peak() {
        println!("peak memory so far {:.0} MiB", mib(peak));
    }
    Ok((path, known.into_iter().map(|(name, (_, hash))| (name, hash)).collect()))
}

/// Makes the weights of a tensor as [`Llama::write`] does, but its rows in parallel: each has a
/// seed of its own.
fn fill(spec: &TensorSpec, values: &mut Vec<u8>) -> Result<()> {
    values.resize(spec.byte_len() as usize, 0);
    let is_matrix = spec.shape().len() == 2;
    let columns = spec.shape().last().copied().unwrap_or(1) as usize;
    let seed = xxh3(key(spec.name()).as_bytes());
    for_each_in_parallel(
        0,
        values.chunks_mut(2 * columns).enumerate(),
        || (),
        |(), (row, out)| {
            let mut random = Random::new(seed.wrapping_add(row as u64));
            let scale = 0.02 * (0.2 * random.normal()).exp();
            for value in out.as_chunks_mut::<2>().0 {
                let w =
                    if is_matrix { scale * random.normal() } else { 1.0 + 0.1 * random.normal() };
                *value = bf16::from_f64(w).to_le_bytes();
            }
            Ok(())
        },
    )
}
