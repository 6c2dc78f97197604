//! One bitstream: every backend writes the same bytes and reads the same values, for any number of
//! threads. The backend `reference` is the crate `constriction`, so agreement with it is agreement
//! with an independent implementation.
#![allow(clippy::unwrap_used)] // in helpers of tests

mod blocks;
mod random;

use std::collections::BTreeSet;

use bigsmall_codec::*;
use blocks::encode_blocks;
use random::Random;

fn cases() -> Vec<(Dtype, Vec<u8>)> {
    let mut out = Vec::new();
    let mut random = Random::new(1);
    let mut next = move || random.bits();
    for dtype in [
        Dtype::BF16,
        Dtype::F16,
        Dtype::F32,
        Dtype::F64,
        Dtype::F8_E4M3,
        Dtype::F8_E5M2,
        Dtype::U8,
        Dtype::I64,
    ] {
        let width = dtype.unit_bytes();
        for n in [0usize, 255, 256, 513, 4352, 4353, 131_072, 131_328, 270_000] {
            for kind in 0..4 {
                let mut bytes = Vec::with_capacity(n * width);
                for i in 0..n {
                    let sum: f64 = (0..3).map(|_| (next() >> 40) as f64 / 16_777_216.0 - 0.5).sum();
                    let value = sum * 0.02 * (1.0 + (i / 300 % 9) as f64 * 0.3);
                    let unit = match (kind, dtype) {
                        (0, Dtype::BF16) => u64::from(half::bf16::from_f64(value).to_bits()),
                        // Some groups keep fewer low bits, other ones in each block.
                        (0, Dtype::F16) if i / 1024 % 3 == 0 => {
                            u64::from(half::f16::from_f64(value).to_bits() & 0xffe0)
                        }
                        (0, Dtype::F16) => u64::from(half::f16::from_f64(value).to_bits()),
                        (0, Dtype::F32) if i / 1024 % 3 == 0 => {
                            u64::from(f32::from(half::f16::from_f64(value)).to_bits())
                        }
                        (0, Dtype::F32) => u64::from((value as f32).to_bits()),
                        (0, _) => value.to_bits() >> (64 - 8 * width),
                        (1, _) => next(),
                        (2, _) => next() & 0x0101_0101_0101_0101,
                        _ => {
                            if i % 97 == 0 {
                                next()
                            } else {
                                u64::MAX / 3
                            }
                        }
                    };
                    bytes.extend_from_slice(&unit.to_le_bytes()[..width]);
                }
                let whole = bytes.len() / 8 * 8;
                bytes.truncate(whole);
                out.push((dtype, bytes));
            }
        }
    }
    out
}

/// Runs `work` in a pool of so many threads.
fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

#[test]
fn every_backend_and_pool_agrees() {
    let backends: Vec<Backend> = bigsmall_codec::backends().collect();
    assert!(backends.contains(&Backend::Reference) && backends.contains(&Backend::Portable));
    for (case, (dtype, bytes)) in cases().into_iter().enumerate() {
        let n = bytes.len() as u64 * 8 / u64::from(dtype.bits());
        let spec = TensorSpec::new("t", dtype, &[n]).unwrap();
        let level = [Level::Default, Level::Fast, Level::Small][case % 3];
        let first = encode_tensor(&Ans::new(level), &spec, &bytes).unwrap();
        for &backend in &backends {
            let ans = Ans::new(level).with_backend(backend).unwrap();
            for threads in [1, 2, 7] {
                // The reference is slow: once is enough, its threads are those of everybody.
                if backend == Backend::Reference && threads != 2 {
                    continue;
                }
                let what = format!("case {case} {dtype} {level:?} {backend:?} {threads} threads");
                let tensor = in_pool(threads, || encode_tensor(&ans, &spec, &bytes)).unwrap();
                assert!(tensor == first, "encoded differently: {what}");
                let mut back = vec![0x5a; bytes.len()];
                let all = 0..bytes.len() as u64;
                in_pool(threads, || tensor.decode_bytes(&ans, all, &mut back)).unwrap();
                assert!(back == bytes, "decoded differently: {what}");
            }
        }
    }
}

/// The bits of a float of that dtype near `value`.
fn float(dtype: Dtype, value: f64) -> u64 {
    let half = half::f16::from_f64(value).to_bits();
    match dtype {
        Dtype::BF16 => u64::from(half::bf16::from_f64(value).to_bits()),
        Dtype::F16 => u64::from(half),
        Dtype::F32 => u64::from((value as f32).to_bits()),
        Dtype::F64 => value.to_bits(),
        Dtype::F8_E5M2 => u64::from(half >> 8),
        // Exponents -6 to 8 of 4 bits, 0 for those below.
        _ => {
            let exponent = (half >> 10 & 31).saturating_sub(8).min(15);
            u64::from(half >> 8 & 0x80 | exponent << 3 | half >> 7 & 7)
        }
    }
}

/// Backends have kernels for what floats of some dtypes look like at some levels, and for 1, 2 and
/// 4 blocks at once.
#[test]
fn all_forms_of_floats_agree() {
    let mut random = Random::new(2);
    // Seven whole blocks, then a block of one group and a few units. Some groups keep fewer low
    // bits, other ones in each block.
    let first = |dtype| TensorSpec::new("t", dtype, &[150_000]).unwrap();
    let n = 7 * first(Dtype::BF16).block_units() + 300;
    let dtypes = [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64, Dtype::F8_E4M3, Dtype::F8_E5M2];
    // Of one scale, the level `small` has more mantissa bits in its fields.
    let mut forms = BTreeSet::new();
    for (dtype, spread) in dtypes.into_iter().flat_map(|dtype| [(dtype, 0.3), (dtype, 0.0)]) {
        let bytes: Vec<u8> = (0..n)
            .flat_map(|i| {
                let value = random.normal() * (1.0 + (i / 300 % 9) as f64 * spread) * 0.1;
                let value = if i / 1024 % 3 == 0 { f64::from(value as f32) } else { value };
                let value =
                    if i / 1024 % 5 == 0 { half::f16::from_f64(value).into() } else { value };
                let units = float(dtype, value).to_le_bytes();
                units.into_iter().take(dtype.unit_bytes())
            })
            .collect();
        let spec = first(dtype);
        for level in [Level::Default, Level::Fast, Level::Small] {
            let encoded = encode_blocks(&Ans::new(level), &spec, &bytes);
            forms.insert((dtype.name(), encoded.0[0], encoded.0[1]));
            let blocks: Vec<&[u8]> = encoded.1.iter().map(|block| &block[..]).collect();
            let backends = bigsmall_codec::backends().filter(|&b| b != Backend::Reference);
            for backend in backends {
                let ans = Ans::new(level).with_backend(backend).unwrap();
                let same = encode_blocks(&ans, &spec, &bytes) == encoded;
                assert!(same, "encoded differently: {dtype} {level:?} {backend:?}");
                let decoder = ans.open(&spec, &encoded.0).unwrap();
                for begin in [0, 1, 5, 7] {
                    let wanted = &bytes[begin * spec.block_bytes()..];
                    let mut back = vec![0x5a; wanted.len()];
                    decoder.decode_blocks(&blocks[begin..], &mut back).unwrap();
                    assert!(back == wanted, "{dtype} {level:?} {backend:?} from {begin}");
                }
            }
        }
    }
    // Mantissa bits of the fields, and bits of the symbols.
    let of = |name, of: &[(u8, u8)]| of.iter().map(|&(m, w)| (name, m, w)).collect::<Vec<_>>();
    let expected = [
        of("BF16", &[(1, 5), (2, 6), (3, 7)]),
        of("F16", &[(1, 5), (2, 6)]),
        of("F32", &[(1, 5), (2, 6), (3, 7)]),
        of("F64", &[(1, 5), (2, 6), (3, 7)]),
        of("F8_E4M3", &[(1, 5), (2, 6), (3, 7)]),
        of("F8_E5M2", &[(1, 5), (2, 6)]),
    ];
    assert_eq!(forms, expected.concat().into_iter().collect());
}
