//! Helpers for the tests: matrices, the reference in f64, and the promised bound.
#![allow(dead_code, unreachable_pub)]

#[cfg(feature = "wgpu")]
pub mod device;
pub mod layer_twin;
pub mod twin;

use bigsmall_format::{Dtype, EncodedTensor, Raw, TensorEncoding, TensorSpec, encode_tensor};
pub use bigsmall_testing::Random;

pub fn bf16(v: f32) -> u16 {
    half::bf16::from_f32(v).to_bits()
}

/// Weights that resemble a model's: normally distributed, rows with different scales, few outliers.
pub fn model_weights(rows: usize, cols: usize, seed: u64) -> Vec<u16> {
    let mut random = Random::new(seed);
    let mut weights = Vec::with_capacity(rows * cols);
    for _ in 0..rows {
        let scale = (0.02 * (0.2 * random.normal()).exp()) as f32;
        for _ in 0..cols {
            let outlier = if random.bits().is_multiple_of(512) { 16.0 } else { 1.0 };
            weights.push(bf16(scale * outlier * random.normal() as f32));
        }
    }
    weights
}

/// Random bits; only finite values if `finite`.
pub fn any_bits(n: usize, seed: u64, finite: bool) -> Vec<u16> {
    let mut random = Random::new(seed);
    (0..n)
        .map(|_| {
            let w = random.bits() as u16;
            if finite && w & 0x7f80 == 0x7f80 { w & 0xbfff } else { w }
        })
        .collect()
}

pub fn model_x(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.normal() as f32).collect()
}

pub fn bytes_of(weights: &[u16]) -> Vec<u8> {
    weights.iter().flat_map(|w| w.to_le_bytes()).collect()
}

pub fn encoded_by(
    encoding: &dyn TensorEncoding,
    weights: &[u16],
    rows: usize,
    cols: usize,
) -> EncodedTensor {
    let spec = TensorSpec::new("w", Dtype::BF16, &[rows as u64, cols as u64]).unwrap();
    encode_tensor(encoding, &spec, &bytes_of(weights)).unwrap()
}

pub fn encoded(weights: &[u16], rows: usize, cols: usize) -> EncodedTensor {
    encoded_by(&Raw, weights, rows, cols)
}

/// The largest difference of `y` from the product in f64, in units of 2^-24 of the sum of |w x|.
pub fn largest_error(weights: &[u16], cols: usize, x: &[f32], y: &[f32]) -> f64 {
    let rows = weights.len() / cols;
    let mut largest = 0f64;
    for (x, y) in x.chunks(cols).zip(y.chunks(rows)) {
        for (row, y) in weights.chunks(cols).zip(y) {
            let (mut sum, mut magnitude) = (0f64, 0f64);
            for (w, x) in row.iter().zip(x) {
                let product = half::bf16::from_bits(*w).to_f64() * f64::from(*x);
                sum += product;
                magnitude += product.abs();
            }
            let error = (f64::from(*y) - sum).abs();
            if error > 0.0 {
                largest = largest.max(error / magnitude * (1u64 << 24) as f64);
            }
        }
    }
    largest
}

/// The same for emulated cooperative matrices: chains of 16, 16 chains per step, 16 steps per part,
/// and the parts; plus 4, since x is rounded to 2^-22.
pub fn cooperative_bound(cols: usize) -> f64 {
    let blocks = cols.div_ceil(1024);
    (16 + 16 + 16 + blocks.div_ceil(2) + 2 + 4) as f64
}

/// The promised bound in the same units.
pub fn bound(cols: usize, batch: usize) -> f64 {
    let (n, partial_sums) = twin::Twin::chains(cols, batch);
    n as f64 + (partial_sums as f64).log2().ceil() + 2.0
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The transformer kernels in f64: the plain formulas.
pub mod formula {
    pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f64> {
        let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        let root = (squares / x.len() as f64 + f64::from(epsilon)).sqrt();
        x.iter().zip(weight).map(|(x, w)| f64::from(*x) / root * f64::from(*w)).collect()
    }

    /// One head of one token that uses `count` positions.
    pub fn attention(
        q: &[f32],
        keys: &[f32],
        values: &[f32],
        stride: usize,
        count: usize,
    ) -> Vec<f64> {
        let dim = q.len();
        let dot = |t: usize| -> f64 {
            let key = &keys[t * stride..][..dim];
            q.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
        };
        let weights: Vec<f64> = (0..count).map(|t| (dot(t) / (dim as f64).sqrt()).exp()).collect();
        let total: f64 = weights.iter().sum();
        let value = |d: usize| {
            let parts = weights.iter().enumerate();
            parts.map(|(t, w)| w / total * f64::from(values[t * stride + d])).sum()
        };
        (0..dim).map(value).collect()
    }
}

/// The largest difference of two vectors, as a share of the largest value.
pub fn apart(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(f64::MIN_POSITIVE, |a, b| a.max(b.abs()));
    let apart = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs());
    // A difference of NaN counts as large.
    apart.fold(0.0, |a: f64, b| if b >= a || b.is_nan() { b } else { a }) / largest
}

/// Cosines and sines for `positions` positions of heads of `dim` values.
pub fn angles(positions: usize, dim: usize) -> Vec<f32> {
    let turn = |t: usize, j: usize| t as f64 / 10_000f64.powf(2.0 * j as f64 / dim as f64);
    let each = (0..positions).flat_map(|t| (0..dim / 2).map(move |j| turn(t, j)));
    each.flat_map(|a| [a.cos() as f32, a.sin() as f32]).collect()
}

/// Heads of queries, heads of keys, values of a head, position of the first token, tokens. Around
/// one, two and five tiles of 256 positions, and more tiles than a workgroup has threads.
pub const ATTENTIONS: &[(usize, usize, usize, usize, usize)] = &[
    (1, 1, 4, 0, 1),
    (4, 2, 8, 0, 5),
    (6, 2, 12, 254, 4),
    (4, 4, 64, 300, 2),
    (2, 1, 80, 1000, 1),
    (3, 1, 128, 511, 3),
    (1, 1, 256, 70, 1),
    (2, 2, 32, 254, 1),
    (2, 2, 32, 255, 1),
    (2, 2, 32, 256, 1),
    (4, 1, 128, 1278, 4),
    (3, 1, 4, 70_000, 2),
];

/// Matrices with every kind of block (coded, constant, raw), with and without exceptions, with a
/// tail, and of every level.
pub fn ans_cases() -> Vec<(Vec<u16>, usize, usize)> {
    vec![
        (model_weights(200, 1100, 45), 200, 1100),
        (model_weights(7, 301, 46), 7, 301),
        (model_weights(1, 256, 47), 1, 256),
        (model_weights(1, 700, 48), 1, 700),
        (any_bits(3 * 65_536 / 2, 49, false), 96, 1024),
        (vec![0x3f80; 70_000], 70, 1000),
        ((0..=u16::MAX).collect(), 64, 1024),
        (
            [vec![0; 70_000], model_weights(100, 700, 50), any_bits(70_001, 51, false)].concat(),
            1,
            210_001,
        ),
        (vec![1], 1, 1),
    ]
}

/// Matrices without escapes, with few, with whole rows of escapes, and with almost only escapes.
pub fn escape_cases(rows: usize, cols: usize, seed: u64) -> Vec<(&'static str, Vec<u16>)> {
    let noise = any_bits(rows * cols, seed, true);
    let none = noise.iter().map(|w| w & 0x81ff | 0x3c00).collect();
    let in_rows = |(i, w): (usize, &u16)| match i / cols % 3 {
        2 => w | 0x4000,
        _ => w & 0x82ff | 0x3c00,
    };
    let rows_of_them = noise.iter().enumerate().map(in_rows).map(|w| w & 0xfeff).collect();
    vec![
        ("no escapes", none),
        ("few escapes", model_weights(rows, cols, seed)),
        ("rows of escapes", rows_of_them),
        ("nearly all escapes", noise),
        ("zeros", vec![0x8000; rows * cols]),
    ]
}

/// TBE tensors with correct checksums, each with a payload that breaks one rule.
pub fn malformed_tbe() -> Vec<(&'static str, EncodedTensor)> {
    let (rows, cols) = (5, 300);
    let tensor =
        encoded_by(&bigsmall_tbe::Tbe::default(), &model_weights(rows, cols, 61), rows, cols);
    let table = tensor.table();
    let lens: Vec<u32> = (0..table.n_blocks()).map(|i| table.block_len(i) as u32).collect();
    let n = rows * cols;
    // After the head: three bitmaps for every 64 weights, the bytes of all weights, and the starts
    // of the escapes for every 512 weights.
    let plane = 8 + n.div_ceil(64) * 24;
    let starts = plane + n.next_multiple_of(8);
    let damages: [(&str, usize, u8); 6] = [
        ("a width of 2", 0, 2),
        ("a window beyond the exponents", 1, 255),
        ("a reserved byte", 7, 1),
        ("a bit behind the last weight", plane - 1, 0x80),
        ("padding of the byte plane", starts - 1, 1),
        ("an escape start past the end", starts + 4 + 3, 0xff),
    ];
    damages
        .into_iter()
        .map(|(name, at, value)| {
            let mut payload = tensor.payload().to_vec();
            payload[at] = value;
            let spec = tensor.spec().clone();
            let encoding = tensor.encoding();
            (name, EncodedTensor::new(spec, encoding, 8, lens.clone(), payload).unwrap())
        })
        .collect()
}
