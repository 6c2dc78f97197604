//! Every value comes back, and the bytes are those that an independent implementation writes.

#![allow(clippy::unwrap_used)]

use bigsmall_tbe::{
    Dtype, EncodedTensor, MAX_BLOCK_UNITS, Tbe, TensorSpec, View, Width, encode_tensor,
};
use bigsmall_testing::Random;
use bigsmall_testing::oracle::tbe::{self as oracle, DTYPES};
use proptest::prelude::*;

fn spec(dtype: Dtype, shape: &[u64]) -> TensorSpec {
    TensorSpec::new("w", dtype, shape).unwrap()
}

/// Encodes, compares with the oracle, decodes by every way there is on every backend.
fn check(spec: &TensorSpec, width: Width, values: &[u16]) -> EncodedTensor {
    let bytes = oracle::bytes(spec.dtype(), values);
    let encoded = encode_tensor(&Tbe::new(width), spec, &bytes).unwrap();
    let view = View::new(&encoded).unwrap();
    assert_eq!(view.width(), width);
    assert!(encoded == oracle::encode(spec, width.bits(), view.base(), values), "other bytes");
    for (i, block) in values.chunks(spec.block_units()).enumerate() {
        let encoded = encoded.block(i as u64);
        let n = block.len();
        let decoded = oracle::decode_block(spec.dtype(), width.bits(), view.base(), n, encoded);
        assert!(decoded == block, "the oracle decodes something else");
    }
    for backend in bigsmall_tbe::backends() {
        let tbe = Tbe::default().with_backend(backend).unwrap();
        let mut restored = vec![0xa5; bytes.len()];
        encoded.decode_bytes(&tbe, 0..spec.byte_len(), &mut restored).unwrap();
        assert!(restored == bytes, "{backend} decodes something else");
    }
    encoded
}

fn check_access(encoded: &EncodedTensor, values: &[u16], random: &mut Random) {
    let dtype = encoded.spec().dtype();
    let view = View::new(encoded).unwrap();
    let n = values.len() as u64;
    for _ in 0..200 {
        let i = random.below(n.max(1));
        assert_eq!(view.get(i), values.get(i as usize).copied());
    }
    assert_eq!(view.get(n), None);
    let mut ranges: Vec<_> = (0..50)
        .map(|_| {
            let a = random.below(n + 1);
            let b = (a + random.below(300)).min(n);
            a..b
        })
        .collect();
    ranges.extend([0..n, 0..0, n..n, n / 2..n]);
    for range in ranges {
        let expected = &values[range.start as usize..range.end as usize];
        for threads in [1, 2] {
            let mut dst = vec![0x5a; expected.len() * dtype.unit_bytes()];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| view.decode(range.clone(), &mut dst)).unwrap();
            assert!(oracle::values(dtype, &dst) == expected, "{range:?}, {threads} threads");
        }
    }
}

#[test]
fn every_bit_pattern_of_every_dtype() {
    for dtype in DTYPES {
        let n = 1u64 << dtype.bits();
        let values: Vec<u16> = (0..n).map(|v| v as u16).collect();
        for &width in Width::ALL {
            let encoded = check(&spec(dtype, &[n]), width, &values);
            check_access(&encoded, &values, &mut Random::new(1));
        }
    }
}

#[test]
fn no_few_and_only_escapes() {
    for dtype in DTYPES {
        for &width in Width::ALL {
            let base = oracle::middle(dtype, width.bits());
            for permille in [0, 30, 500] {
                let mut random = Random::new(7);
                let values =
                    oracle::weights(&mut random, dtype, width.bits(), base, permille, 140_001);
                let encoded = check(&spec(dtype, &[140_001]), width, &values);
                check_access(&encoded, &values, &mut random);
            }
            // The window covers most, so that an encoder cannot be made to escape everything; the
            // format can.
            let mut random = Random::new(8);
            let values = oracle::weights(&mut random, dtype, width.bits(), base, 1000, 140_001);
            let spec = spec(dtype, &[140_001]);
            let encoded = oracle::encode(&spec, width.bits(), base, &values);
            let view = View::new(&encoded).unwrap();
            assert_eq!(view.block(0).escapes().len(), 35_840);
            assert_eq!(view.block(3).escapes().len(), 140_001 - 3 * 35_840);
            for backend in bigsmall_tbe::backends() {
                let tbe = Tbe::new(width).with_backend(backend).unwrap();
                let mut restored = vec![0; spec.byte_len() as usize];
                encoded.decode_bytes(&tbe, 0..spec.byte_len(), &mut restored).unwrap();
                assert!(oracle::values(dtype, &restored) == values, "{backend} {dtype}");
            }
            check_access(&encoded, &values, &mut random);
        }
    }
}

/// `values` as the encoding has them with the window from `base` on, which an encoder might not
/// choose; `n_escapes` lie outside of it.
fn check_with_base(dtype: Dtype, width: Width, base: u8, values: &[u16], n_escapes: usize) {
    let spec = spec(dtype, &[values.len() as u64]);
    let encoded = oracle::encode(&spec, width.bits(), base, values);
    let view = View::new(&encoded).unwrap();
    assert_eq!(view.blocks().map(|block| block.escapes().len()).sum::<usize>(), n_escapes);
    assert!(values.iter().zip(0..).all(|(&value, i)| view.get(i) == Some(value)));
    for backend in bigsmall_tbe::backends() {
        let tbe = Tbe::new(width).with_backend(backend).unwrap();
        let mut restored = vec![0; spec.byte_len() as usize];
        encoded.decode_bytes(&tbe, 0..spec.byte_len(), &mut restored).unwrap();
        assert!(oracle::values(dtype, &restored) == values, "{backend} {dtype}, base {base}");
    }
}

/// Every pattern as a weight in the window and, where a window can leave it out, as an escape,
/// among no, 3 % and nothing but escapes.
#[test]
fn every_bit_pattern_at_every_share_of_escapes() {
    for dtype in DTYPES {
        let patterns = || (0..1u32 << dtype.bits()).map(|v| v as u16);
        for &width in Width::ALL {
            let window = (1 << width.bits()) - 1;
            let last = (1u32 << oracle::fields(dtype).0) - window;
            // Every exponent is in one of these windows.
            let bases: Vec<u32> = (0..last).step_by(window as usize).chain([last]).collect();
            let is_inside = |base: u32, v: u16| {
                (base..base + window).contains(&oracle::exponent(dtype, v).into())
            };
            // The windows take turns at leaving a pattern out.
            let mut left_out = vec![Vec::new(); bases.len()];
            for v in patterns() {
                let turns = (0..bases.len()).map(|turn| (usize::from(v) + turn) % bases.len());
                if let Some(i) = { turns }.find(|&i| !is_inside(bases[i], v)) {
                    left_out[i].push(v);
                }
            }
            for (&base, few) in bases.iter().zip(&left_out) {
                let (inside, outside): (Vec<_>, Vec<_>) =
                    patterns().partition(|&v| is_inside(base, v));
                check_with_base(dtype, width, base as u8, &inside, 0);
                if base == 0 || base == last {
                    check_with_base(dtype, width, base as u8, &outside, outside.len());
                }
                let mut weights = inside.iter().cycle();
                let mut mixed = Vec::new();
                for &escape in few {
                    mixed.extend(weights.by_ref().take(32));
                    mixed.push(escape);
                }
                check_with_base(dtype, width, base as u8, &mixed, few.len());
            }
        }
    }
}

#[test]
fn shapes() {
    let shapes: [&[u64]; 12] = [
        &[1, 1],
        &[1, 1000],
        &[1000, 1],
        &[7, 9],
        &[64, 64],
        &[],
        &[0],
        &[3, 0, 5],
        &[2, 3, 5, 7],
        &[257, 255],
        &[256, 256],
        &[257, 256],
    ];
    for shape in shapes {
        for dtype in DTYPES {
            for &width in Width::ALL {
                let spec = spec(dtype, shape);
                let n = spec.n_elements() as usize;
                let mut random = Random::new(3);
                let base = oracle::middle(dtype, width.bits());
                let values = oracle::weights(&mut random, dtype, width.bits(), base, 30, n);
                let encoded = check(&spec, width, &values);
                check_access(&encoded, &values, &mut random);
            }
        }
    }
}

#[test]
fn a_large_matrix() {
    let spec = spec(Dtype::BF16, &[4096, 11008]);
    let n = spec.n_elements() as usize;
    let values = oracle::weights(&mut Random::new(4), Dtype::BF16, 3, 115, 30, n);
    let bytes = oracle::bytes(Dtype::BF16, &values);
    for &width in Width::ALL {
        let tbe = Tbe::new(width);
        let encoded = encode_tensor(&tbe, &spec, &bytes).unwrap();
        for backend in bigsmall_tbe::backends() {
            let mut restored = vec![0; bytes.len()];
            let tbe = tbe.with_backend(backend).unwrap();
            encoded.decode_bytes(&tbe, 0..spec.byte_len(), &mut restored).unwrap();
            assert!(restored == bytes, "{backend}");
        }
        // The promised size: 8 + w bits, 8 for each escape, half a bit for every 8 weights at most.
        let escapes: usize = View::new(&encoded).unwrap().blocks().map(|b| b.escapes().len()).sum();
        let bits = (8 + width.bits()) * n + 8 * escapes;
        assert!(encoded.byte_len() as usize * 8 <= bits + n / 16 + 64 * 700);
    }
}

#[test]
fn every_length_up_to_three_tiles_and_around_blocks() {
    let lengths = (0..=200).chain([255, 256, 257, 511, 512, 513]).chain([
        MAX_BLOCK_UNITS - 1,
        MAX_BLOCK_UNITS,
        MAX_BLOCK_UNITS + 1,
        MAX_BLOCK_UNITS + 64,
        2 * MAX_BLOCK_UNITS,
        2 * MAX_BLOCK_UNITS + 77,
    ]);
    for n in lengths {
        for dtype in DTYPES {
            for &width in Width::ALL {
                let mut random = Random::new(n as u64 + 1);
                let base = oracle::middle(dtype, width.bits());
                let values = oracle::weights(&mut random, dtype, width.bits(), base, 100, n);
                check(&spec(dtype, &[n as u64]), width, &values);
            }
        }
    }
}

#[test]
fn an_output_at_any_address() {
    // Blocks are long enough to bypass the caches, which is done in whole cache lines.
    let lens = [
        (Dtype::BF16, MAX_BLOCK_UNITS + 64 * 5 + 3),
        (Dtype::F8_E4M3, MAX_BLOCK_UNITS - 3),
        (Dtype::F8_E5M2, MAX_BLOCK_UNITS),
    ];
    for ((dtype, n), &width) in
        lens.into_iter().flat_map(|of| Width::ALL.iter().map(move |w| (of, w)))
    {
        let spec = spec(dtype, &[n as u64]);
        let base = oracle::middle(dtype, width.bits());
        let values = oracle::weights(&mut Random::new(6), dtype, width.bits(), base, 30, n);
        let bytes = oracle::bytes(dtype, &values);
        let encoded = encode_tensor(&Tbe::new(width), &spec, &bytes).unwrap();
        for backend in bigsmall_tbe::backends() {
            let tbe = Tbe::default().with_backend(backend).unwrap();
            let mut buffer = vec![0; bytes.len() + 128];
            for begin in 0..=64 {
                buffer.fill(0xa5);
                let (before, rest) = buffer.split_at_mut(begin);
                let (out, after) = rest.split_at_mut(bytes.len());
                encoded.decode_bytes(&tbe, 0..spec.byte_len(), out).unwrap();
                assert!(out == bytes, "{dtype} {backend}, {begin} bytes on");
                assert!(before.iter().chain(&*after).all(|&b| b == 0xa5), "{backend}, {begin}");
            }
        }
    }
}

#[test]
fn the_same_bytes_in_every_pool() {
    let values = oracle::weights(&mut Random::new(5), Dtype::BF16, 3, 110, 30, 5_000_000);
    let bytes = oracle::bytes(Dtype::BF16, &values);
    let spec = spec(Dtype::BF16, &[5_000_000]);
    let tbe = Tbe::default();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let one = pool.install(|| encode_tensor(&tbe, &spec, &bytes)).unwrap();
    for threads in [2, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(pool.install(|| encode_tensor(&tbe, &spec, &bytes)).unwrap() == one);
    }
    // A tensor this large is counted by a sample; the window must still be the one that the weights
    // were made for.
    assert_eq!(View::new(&one).unwrap().base(), 110);
}

#[test]
fn the_window_covers_most_and_lies_lowest() {
    // Exponents 10..17 once, 20..27 twice, 40..47 twice: the window is 20..27.
    let mut values = Vec::new();
    for e in (10..17).chain(20..27).chain(20..27).chain(40..47).chain(40..47) {
        values.push(e << 7);
    }
    let bytes = oracle::bytes(Dtype::BF16, &values);
    let spec = spec(Dtype::BF16, &[values.len() as u64]);
    let encoded = encode_tensor(&Tbe::new(Width::Three), &spec, &bytes).unwrap();
    assert_eq!(View::new(&encoded).unwrap().base(), 20);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_come_back(
        bytes in proptest::collection::vec(any::<u8>(), 0..5000),
        dtype in proptest::sample::select(DTYPES.to_vec()),
        wide in any::<bool>(),
    ) {
        let width = if wide { Width::Four } else { Width::Three };
        let n = bytes.len() / dtype.unit_bytes();
        let values = oracle::values(dtype, &bytes[..n * dtype.unit_bytes()]);
        check(&spec(dtype, &[n as u64]), width, &values);
    }
}
