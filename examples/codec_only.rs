//! Compresses a slice of weights in memory, with only the codec.
//!
//! `cargo run --release -p bigsmall-examples --example codec_only`

use bigsmall_examples::Result;
use bigsmall_testing::Random;
use clap::Parser;
use half::bf16;

/// Compresses weights in memory.
#[derive(Parser)]
struct Args {
    /// The number of weights.
    #[arg(default_value_t = 1_000_000)]
    n: usize,
}

fn main() -> Result<()> {
    let n = Args::parse().n;
    let mut random = Random::new(1);
    let weights: Vec<bf16> = (0..n).map(|_| bf16::from_f64(0.02 * random.normal())).collect();

    let small: Vec<u8> = bigsmall_codec::encode(&weights);
    let mut back = vec![bf16::ZERO; weights.len()];
    bigsmall_codec::decode(&small, &mut back)?;

    assert!(weights.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
    println!("{} bytes compressed to {}, and every bit restored", 2 * weights.len(), small.len());
    Ok(())
}
