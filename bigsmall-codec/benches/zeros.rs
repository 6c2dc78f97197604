//! Decoding of weights with zeros / the rate of the same weights without:
//! `cargo bench -p bigsmall-codec --bench zeros -- [BF16.safetensors] [SHARE ...] [BACKEND ...]`
//!
//! The weights are the bf16 tensors of the file, or generated. A share of them, in percent, drawn
//! at random, is set to zero. One thread, in memory that is used again. Each ratio is that of the
//! best of 15 times, measured in turn: what else the machine does slows the others.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::time::Instant;

use bigsmall_codec::*;
use bigsmall_format::internal::blocks_within;
use bigsmall_format::{Header, Limits, decode_range};

/// Bytes that are decoded at once, at most.
const PIECE: u64 = 1 << 20;

fn random() -> impl FnMut() -> u64 {
    let mut state = 42u64;
    move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

fn generated() -> Vec<(TensorSpec, Vec<u8>)> {
    let mut random = random();
    // Nearly normal, unit variance.
    let mut normal = || {
        let sum: u32 = random().to_le_bytes().iter().map(|&b| u32::from(b)).sum();
        (sum as f32 + f32::from(random() as u8) / 256.0 - 1020.5) / 209.0
    };
    let mut bytes = Vec::new();
    for _ in 0..4096 {
        let scale = 0.02 * (0.2 * normal()).exp();
        for _ in 0..4096 {
            bytes.extend_from_slice(&half::bf16::from_f32(scale * normal()).to_le_bytes());
        }
    }
    vec![(TensorSpec::new("w", Dtype::BF16, &[4096, 4096]).unwrap(), bytes)]
}

fn read(path: &str) -> Vec<(TensorSpec, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let (json, header) = Header::read(&bytes, &Limits::default()).unwrap();
    let data = &bytes[8 + json.len()..];
    let all = header.tensors().iter().enumerate();
    all.filter(|(_, spec)| spec.dtype() == Dtype::BF16 && spec.n_units() > 1 << 16)
        .map(|(i, spec)| {
            let range = header.data_range(i);
            (spec.clone(), data[range.start as usize..range.end as usize].to_vec())
        })
        .collect()
}

/// `weights`, of which about `percent` are set to zero.
fn with_zeros(weights: &[(TensorSpec, Vec<u8>)], percent: u64) -> Vec<EncodedTensor> {
    let mut random = random();
    let each = weights.iter().map(|(spec, bytes)| {
        let mut bytes = bytes.clone();
        for unit in bytes.as_chunks_mut::<2>().0 {
            if ((random() >> 32) * 100) >> 32 < percent {
                *unit = [0; 2];
            }
        }
        encode_tensor(&Ans::default(), spec, &&bytes[..]).unwrap()
    });
    each.collect()
}

fn seconds(tensors: &[EncodedTensor], ans: &Ans, out: &mut [u8]) -> f64 {
    let start = Instant::now();
    for tensor in tensors {
        let decoder = tensor.open(ans).unwrap();
        let len = tensor.spec().byte_len();
        let piece = blocks_within(tensor.spec(), PIECE) * tensor.spec().block_bytes() as u64;
        for begin in (0..len).step_by(piece as usize) {
            let range = begin..len.min(begin + piece);
            let out = &mut out[..(range.end - range.start) as usize];
            let (spec, table) = (tensor.spec(), tensor.table());
            decode_range(&*decoder, spec, table, &tensor.payload(), range, out).unwrap();
        }
    }
    start.elapsed().as_secs_f64()
}

fn main() {
    // Tests run benches too, without this.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let path = args.iter().find(|arg| arg.ends_with(".safetensors"));
        let named = |backend: &Backend| args.iter().any(|arg| arg == backend.name());
        let mut shares: Vec<u64> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
        if shares.is_empty() {
            shares = vec![2, 5, 10, 20, 50, 80];
        }
        let mut measured: Vec<Backend> = backends().filter(named).collect();
        if measured.is_empty() {
            measured = backends().filter(|&b| b != Backend::Reference).collect();
        }
        let weights = path.map_or_else(generated, |path| read(path));
        let n: usize = weights.iter().map(|(_, bytes)| bytes.len()).sum();
        let size = |tensors: &[EncodedTensor]| {
            tensors.iter().map(|t| t.byte_len()).sum::<u64>() as f64 / n as f64
        };
        // Where a cache line begins, as tensors of frameworks do.
        let mut out = vec![0; PIECE as usize + 64];
        let skip = out.as_ptr().align_offset(64);
        let out = &mut out[skip..];
        let plain = with_zeros(&weights, 0);
        for percent in shares {
            let zeros = with_zeros(&weights, percent);
            print!("{percent:2} % zeros, size {:.4} ({:.4}):", size(&zeros), size(&plain));
            for &backend in &measured {
                let ans = Ans::default().with_backend(backend).unwrap();
                let mut least = [f64::MAX; 2];
                for _ in 0..15 {
                    for (least, tensors) in least.iter_mut().zip([&plain, &zeros]) {
                        *least = least.min(seconds(tensors, &ans, out));
                    }
                }
                let rate = n as f64 / 1e9 / least[0];
                print!("  {} {:.2} of {rate:.2} GB/s", backend.name(), least[0] / least[1]);
            }
            println!();
        }
    });
}
