//! The codec alone on a slice of weights: `cargo run --release -p bigsmall-examples --example
//! codec_only`
use half::bf16;

fn main() -> Result<(), bigsmall_codec::Error> {
    let mut random = bigsmall_testing::Random::new(1);
    let weights: Vec<bf16> =
        (0..1_000_000).map(|_| bf16::from_f64(0.02 * random.normal())).collect();
    let small: Vec<u8> = bigsmall_codec::encode(&weights);
    let mut back = vec![bf16::ZERO; weights.len()];
    bigsmall_codec::decode(&small, &mut back)?;
    assert!(weights.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
    println!("{} -> {} bytes, every bit back", 2 * weights.len(), small.len());
    Ok(())
}
