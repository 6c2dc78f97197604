//! Generated weights and vectors.

use bigsmall_format::{Dtype, EncodedTensor, Raw, TensorSpec, encode_tensor};
use bigsmall_gpu::Result;

use crate::Random;

/// A raw BF16 tensor of `m` rows and `k` columns.
pub(super) fn encoded(weights: &[u16], m: usize, k: usize) -> Result<EncodedTensor> {
    let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let spec = TensorSpec::new("weights", Dtype::BF16, &[m as u64, k as u64])?;
    Ok(encode_tensor(&Raw, &spec, &bytes)?)
}

/// bf16 weights that resemble a model's: normally distributed, with a different scale per row.
pub(super) fn model_weights(m: usize, k: usize, seed: u64) -> Vec<u16> {
    let mut random = Random::new(seed);
    // Drawn from a table, which is fast enough for hundreds of millions of weights.
    let normal: Vec<f32> = (0..1 << 16).map(|_| random.normal() as f32).collect();
    let mut weights = Vec::with_capacity(m * k);
    for _ in 0..m {
        let scale = (0.02 * (0.2 * random.normal()).exp()) as f32;
        let mut drawn = 0;
        for at in 0..k {
            if at % 4 == 0 {
                drawn = random.bits();
            }
            let pick = (drawn >> (16 * (at % 4))) as usize & 0xffff;
            let bits = (scale * normal[pick]).to_bits();
            weights.push(((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16);
        }
    }
    weights
}

/// `n` normally distributed values.
pub(super) fn model_x(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.normal() as f32).collect()
}
