//! Columns of different scales at the level *small*, with classes of columns / without: size, and
//! rates of decoding and encoding. `cargo bench -p bigsmall-codec --bench columns`
//!
//! Without: the same values as a tensor of one dimension. One thread, in memory that is used again.
//! Each ratio is that of the best of 15 times, measured in turn: what else the machine does slows
//! the others.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Instant;

use bigsmall_codec::*;
use bigsmall_format::{BlockEncoder, decode_range};

/// Bytes that are coded at once: whole blocks.
const PIECE: usize = 1 << 20;
const ROWS: usize = 4096;

/// Weights with columns of scale e^(`spread` N).
fn weights(columns: usize, spread: f32, dtype: Dtype) -> Vec<u8> {
    let mut state = 42u64;
    let mut random = move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    // Nearly normal, unit variance.
    let mut normal = || {
        let sum: u32 = random().to_le_bytes().iter().map(|&b| u32::from(b)).sum();
        (sum as f32 + f32::from(random() as u8) / 256.0 - 1020.5) / 209.0
    };
    let scales: Vec<f32> = (0..columns).map(|_| 0.02 * (spread * normal()).exp()).collect();
    let mut bytes = Vec::new();
    for _ in 0..ROWS {
        for scale in &scales {
            let bits = (scale * normal()).to_bits().to_le_bytes();
            bytes.extend_from_slice(if dtype == Dtype::BF16 { &bits[2..] } else { &bits });
        }
    }
    bytes
}

fn decode(tensor: &EncodedTensor, ans: &Ans, out: &mut [u8]) {
    let decoder = tensor.open(ans).unwrap();
    let (spec, table, len) = (tensor.spec(), tensor.table(), tensor.spec().byte_len());
    for begin in (0..len).step_by(PIECE) {
        let range = begin..len.min(begin + PIECE as u64);
        let out = &mut out[..(range.end - range.start) as usize];
        decode_range(&*decoder, spec, table, &tensor.payload(), range, out).unwrap();
    }
}

fn encode(encoder: &dyn BlockEncoder, spec: &TensorSpec, bytes: &[u8], out: &mut Vec<u8>) {
    let mut lens = Vec::new();
    for (i, units) in bytes.chunks(PIECE).enumerate() {
        out.clear();
        let first = i * PIECE / spec.block_bytes();
        encoder.encode_blocks(first as u64, units, out, &mut lens).unwrap();
    }
}

/// The least time of `second` / that of `first`.
fn ratio(mut first: impl FnMut(), mut second: impl FnMut()) -> f64 {
    let mut least = [f64::MAX; 2];
    for _ in 0..15 {
        for (i, least) in least.iter_mut().enumerate() {
            let start = Instant::now();
            if i == 0 {
                first();
            } else {
                second();
            }
            *least = least.min(start.elapsed().as_secs_f64());
        }
    }
    least[1] / least[0]
}

fn main() {
    // Tests run benches too, without this.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| {
        for (dtype, columns, spread) in [
            (Dtype::BF16, 1024, 0.3),
            (Dtype::BF16, 1024, 0.6),
            (Dtype::BF16, 72, 0.6),
            (Dtype::BF16, 14_336, 0.6),
            (Dtype::F32, 1024, 0.6),
        ] {
            let bytes = weights(columns, spread, dtype);
            let ans = Ans::new(Level::Small);
            let matrix = TensorSpec::new("w", dtype, &[ROWS as u64, columns as u64]).unwrap();
            let vector = TensorSpec::new("w", dtype, &[(ROWS * columns) as u64]).unwrap();
            let both = [&matrix, &vector];
            let tensors = both.map(|spec| encode_tensor(&ans, spec, &bytes).unwrap());
            let sizes = tensors.each_ref().map(|t| t.byte_len() as f64 / bytes.len() as f64);
            let encoders = both.map(|spec| ans.plan(spec, &bytes).unwrap());
            let mut encoded = [Vec::new(), Vec::new()];
            let [first, second] = encoded.each_mut();
            let encoding = ratio(
                || encode(&*encoders[0], &matrix, &bytes, first),
                || encode(&*encoders[1], &vector, &bytes, second),
            );
            print!(
                "{dtype} {columns} columns of scale e^({spread} N), size {:.4} ({:.4}), encoding \
                 {encoding:.2}, decoding",
                sizes[0], sizes[1]
            );
            for backend in backends().filter(|&b| b != Backend::Reference) {
                let ans = ans.with_backend(backend).unwrap();
                let mut out = [vec![0; PIECE], vec![0; PIECE]];
                let [first, second] = out.each_mut();
                let decoding = ratio(
                    || decode(&tensors[0], &ans, first),
                    || decode(&tensors[1], &ans, second),
                );
                print!("  {} {decoding:.2}", backend.name());
            }
            println!();
        }
    });
}
