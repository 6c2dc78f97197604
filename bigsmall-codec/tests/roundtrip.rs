//! Every bit of every dtype comes back. Raise the number of cases with `PROPTEST_CASES=10000`.
#![allow(clippy::unwrap_used)] // in helpers of tests

mod random;

use bigsmall_codec::*;
use proptest::prelude::*;
use random::Random;

const LEVELS: [Level; 3] = [Level::Fast, Level::Default, Level::Small];

fn check(dtype: Dtype, level: Level, bytes: &[u8]) -> EncodedTensor {
    let n = bytes.len() as u64 * 8 / u64::from(dtype.bits());
    let spec = TensorSpec::new("t", dtype, &[n]).unwrap();
    assert_eq!(spec.byte_len(), bytes.len() as u64, "a test's bytes fill whole elements");
    let tensor = encode_tensor(&Ans::new(level), &spec, &bytes).unwrap();
    let mut back = vec![0xa5; bytes.len()];
    tensor.decode_bytes(&Ans::default(), 0..bytes.len() as u64, &mut back).unwrap();
    assert!(back == bytes, "{dtype} {level:?} {} bytes", bytes.len());
    let again = EncodedTensor::from_bytes(&tensor.to_bytes()).unwrap();
    assert_eq!(again, tensor);
    tensor
}

/// Bytes of the shapes that weights and their accidents have.
fn bytes(dtype: Dtype, n_units: usize, kind: u32, seed: u64) -> Vec<u8> {
    let width = dtype.unit_bytes();
    let mut random = Random::new(seed);
    let mut next = || random.bits();
    let mut out = Vec::with_capacity(n_units * width);
    for i in 0..n_units {
        let unit = match kind {
            0 => next(),
            1 => 0,
            2 => next() | if width == 2 { 0x7f80 } else { 0x7f80_0000 },
            3 => next() & 0x8000_8000_8000_8000,
            4 | 5 => {
                // About Gaussian, scaled by row; kind 5 is bf16 held in wider floats.
                let sum: f64 = (0..4).map(|_| (next() >> 40) as f64 / 16_777_216.0 - 0.5).sum();
                let value = sum * (1.0 + (i / 512 % 7) as f64) * 0.02;
                let value = if kind == 5 { f64::from(half::bf16::from_f64(value)) } else { value };
                match dtype {
                    Dtype::BF16 => u64::from(half::bf16::from_f64(value).to_bits()),
                    Dtype::F16 => u64::from(half::f16::from_f64(value).to_bits()),
                    Dtype::F32 => u64::from((value as f32).to_bits()),
                    Dtype::F64 => value.to_bits(),
                    _ => (value * 1000.0) as i64 as u64,
                }
            }
            _ => {
                if i % 1000 == 0 {
                    next()
                } else {
                    0x3c00_3c00_3c00_3c00
                }
            }
        };
        out.extend_from_slice(&unit.to_le_bytes()[..width]);
    }
    out
}

fn whole_elements(dtype: Dtype, mut bytes: Vec<u8>) -> Vec<u8> {
    let element = match dtype.bits() {
        4 => 1,
        6 => 3,
        bits => bits as usize / 8,
    };
    bytes.truncate(bytes.len() / element * element);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_dtype_any_bits_any_length(
        dtype in prop::sample::select(Dtype::ALL),
        level in prop::sample::select(&LEVELS[..]),
        n in prop_oneof![0usize..2000, 130_000usize..132_000, 262_000usize..280_000],
        kind in 0u32..7,
        seed: u64,
    ) {
        check(dtype, level, &whole_elements(dtype, bytes(dtype, n, kind, seed)));
    }

    #[test]
    fn small_is_never_larger_than_default(
        dtype in prop::sample::select(Dtype::ALL),
        n in prop_oneof![0usize..3000, 130_000usize..280_000],
        kind in 0u32..7,
        one_in in 1u64..5,
        seed: u64,
    ) {
        let mut bytes = bytes(dtype, n, kind, seed);
        let mut random = Random::new(!seed);
        for unit in bytes.chunks_mut(dtype.unit_bytes()) {
            if one_in > 1 && random.bits().is_multiple_of(one_in) {
                unit.fill(0);
            }
        }
        let bytes = whole_elements(dtype, bytes);
        let [default, small] =
            [Level::Default, Level::Small].map(|level| check(dtype, level, &bytes).byte_len());
        prop_assert!(small <= default, "{small} bytes, {default} at the default level");
    }

    #[test]
    fn any_range_decodes_alone(
        dtype in prop::sample::select(&[Dtype::BF16, Dtype::F32, Dtype::F8_E4M3, Dtype::I64][..]),
        seed: u64,
        a in 0f64..1.0,
        b in 0f64..1.0,
    ) {
        let bytes = bytes(dtype, 700_000, 4, seed);
        let n = bytes.len() as u64 * 8 / u64::from(dtype.bits());
        let spec = TensorSpec::new("t", dtype, &[n]).unwrap();
        let tensor = encode_tensor(&Ans::default(), &spec, &bytes).unwrap();
        let (a, b) = ((a * bytes.len() as f64) as usize, (b * bytes.len() as f64) as usize);
        let range = a.min(b)..a.max(b);
        for threads in [1, 2, 7] {
            let mut back = vec![0xa5; range.len()];
            let wanted = range.start as u64..range.end as u64;
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| tensor.decode_bytes(&Ans::default(), wanted, &mut back)).unwrap();
            prop_assert!(back == bytes[range.clone()]);
        }
    }
}

#[test]
fn all_patterns_of_16_and_8_bits() {
    // Each pattern several times in a scrambled order, so that it meets many neighbours; and once
    // in order.
    for dtype in [Dtype::BF16, Dtype::F16] {
        for step in [1u32, 40_503, 28_411] {
            let bytes: Vec<u8> = (0..=u16::MAX)
                .flat_map(|i| (u32::from(i).wrapping_mul(step) as u16).to_le_bytes())
                .collect();
            for level in LEVELS {
                check(dtype, level, &bytes);
            }
            // Among ordinary weights every pattern is an exception or nearly so.
            let mut mixed = self::bytes(dtype, 1 << 18, 4, 7);
            for (i, pattern) in bytes.as_chunks::<2>().0.iter().enumerate() {
                mixed[8 * i..8 * i + 2].copy_from_slice(pattern);
            }
            check(dtype, Level::Default, &mixed);
        }
    }
    for dtype in [Dtype::F8_E4M3, Dtype::F8_E5M2, Dtype::U8, Dtype::F8_E8M0, Dtype::F8_E4M3FNUZ] {
        for step in [1usize, 77] {
            let bytes: Vec<u8> = (0..100_000).map(|i| (i * step) as u8).collect();
            for level in LEVELS {
                check(dtype, level, &bytes);
            }
        }
    }
}

#[test]
fn lengths_around_groups_segments_and_blocks() {
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64, Dtype::F8_E4M3, Dtype::U8] {
        for n in [0, 1, 31, 32, 255, 256, 257, 511, 512, 1023, 4351, 4352, 4353, 131_071, 131_072]
            .into_iter()
            .chain([131_073, 135_168, 135_169, 262_143, 262_144, 262_145, 393_216])
        {
            for kind in [0, 1, 4, 6] {
                check(dtype, Level::Default, &bytes(dtype, n, kind, 3));
            }
        }
    }
}

/// Full blocks and a rest, of less than a group, and of one.
#[test]
fn a_rest_after_many_blocks() {
    for (dtype, rest) in [(Dtype::U8, 1), (Dtype::F8_E4M3, 255), (Dtype::BF16, 256)] {
        let bytes = bytes(dtype, (1 << 22) + rest, 6, 3);
        let tensor = check(dtype, Level::Default, &bytes);
        assert_eq!(tensor.table().n_blocks(), 33);
    }
}

#[test]
fn constants_and_zeros_cost_next_to_nothing() {
    for dtype in [Dtype::BF16, Dtype::F32, Dtype::F64, Dtype::I64] {
        let zeros = bytes(dtype, 1 << 20, 1, 0);
        let tensor = check(dtype, Level::Default, &zeros);
        assert!(tensor.byte_len() < zeros.len() as u64 / 500);
    }
}

/// What stands in a frame is little-endian, whatever the machine.
#[test]
fn slices_and_their_little_endian_bytes_give_the_same_frame() {
    let values: Vec<f32> = (0..1000).map(|i| (i as f32).sin()).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let frame = encode(&values);
    assert_eq!(frame, encode_bytes(Dtype::F32, &[1000], &bytes).unwrap());
    let mut back = vec![0; bytes.len()];
    decode_bytes(&frame, &mut back).unwrap();
    assert_eq!(back, bytes);
    let mut values_back = vec![0.0; 1000];
    decode(&frame, &mut values_back).unwrap();
    assert_eq!(values_back, values);
}

#[test]
fn slices_of_every_element_type() {
    fn one<T: Element + PartialEq + std::fmt::Debug>(values: &[T]) {
        let frame = encode(values);
        let mut back = vec![T::zeroed(); values.len()];
        decode(&frame, &mut back).unwrap();
        assert_eq!(values, back);
        let error = decode(&frame, &mut back[1..]).unwrap_err();
        assert_eq!(error.rule(), Rule::BufferLength);
    }
    let values: Vec<f64> = (0..70_000).map(|i| f64::from(i).sin()).collect();
    one(&values);
    one(&values.iter().map(|&v| v as f32).collect::<Vec<_>>());
    one(&values.iter().map(|&v| half::bf16::from_f64(v)).collect::<Vec<_>>());
    one(&values.iter().map(|&v| half::f16::from_f64(v)).collect::<Vec<_>>());
    one(&values.iter().map(|&v| (v * 100.0) as i8).collect::<Vec<_>>());
    one(&values.iter().map(|&v| (v * 1e6) as i32).collect::<Vec<_>>());
    one(&values.iter().map(|&v| (v * 1e6) as i64).collect::<Vec<_>>());
    let frame = encode(&[1.0f32]);
    assert_eq!(decode(&frame, &mut [0u32]).unwrap_err().rule(), Rule::SpecMismatch);
}

#[test]
fn every_way_to_a_frame_and_what_it_says_of_itself() {
    let values: Vec<f32> = (0..5000).map(|i| (i as f32 * 0.37).sin() * 0.02).collect();
    let spec = TensorSpec::new("", Dtype::F32, &[5000]).unwrap();
    let frame = encode(&values);
    assert_eq!(frame, encode_with(&values, Level::Default));
    let mut container = vec![1, 2, 3];
    encode_into(&values, &mut container).unwrap();
    assert!(container[..3] == [1, 2, 3] && container[3..] == frame);
    for level in [Level::Fast, Level::Default, Level::Small] {
        let expected = encode_tensor(&Ans::new(level), &spec, &bytes_of(&values)).unwrap();
        let frame = encode_with(&values, level);
        assert!(frame == expected.to_bytes(), "{level:?}");
        let mut back = vec![0f32; values.len()];
        decode(&frame, &mut back).unwrap();
        assert_eq!(back, values);
        assert_eq!(peek(&frame[..100]).unwrap(), spec);
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Columns of different scales: blocks of kind *columns*, which begin within a row, beside blocks
/// of other kinds. Whole, in parts, and by every backend.
#[test]
fn columns_of_different_scales() {
    let scales = [0.3, 0.002, 0.02, 0.000_4, 0.09];
    let value = |random: &mut Random, dtype: Dtype, scale: f64| {
        let value = random.normal() * scale;
        match dtype {
            Dtype::BF16 => u64::from(half::bf16::from_f64(value).to_bits()),
            Dtype::F16 => u64::from(half::f16::from_f64(value).to_bits()),
            Dtype::F32 => u64::from((value as f32).to_bits()),
            Dtype::F64 => value.to_bits(),
            // The upper byte of F16, as F8_E5M2.
            _ => u64::from(half::f16::from_f64(value).to_bits() >> 8),
        }
    };
    // In the second shape no block but the first begins where a row does.
    for (shape, constant) in [([1700, 384], 2), ([6, 60_000], 1)] {
        for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64, Dtype::F8_E5M2] {
            let mut random = Random::new(3);
            let (rows, columns): (u64, u64) = (shape[0], shape[1]);
            // In wide rows runs of columns are alike, as in filters: enough to name their classes.
            let wide = columns > 1000;
            let scale = |i: u64| {
                scales[(if wide { i % columns / 5000 } else { i % columns * 7 } % 5) as usize]
            };
            let mut bytes: Vec<u8> = (0..rows * columns)
                .flat_map(|i| {
                    let unit = value(&mut random, dtype, scale(i));
                    unit.to_le_bytes().into_iter().take(dtype.unit_bytes())
                })
                .collect();
            let spec = TensorSpec::new("t", dtype, &shape).unwrap();
            let block = spec.block_bytes();
            bytes[constant * block..][..block].fill(0x3c);
            let small = encode_tensor(&Ans::new(Level::Small), &spec, &bytes).unwrap();
            let default = encode_tensor(&Ans::default(), &spec, &bytes).unwrap();
            assert!(small.byte_len() <= default.byte_len());
            if !wide {
                let kinds: Vec<u8> = (0..spec.n_blocks()).map(|i| small.block(i)[0]).collect();
                let expected: Vec<u8> =
                    (0..kinds.len()).map(|i| if i == constant { 1 } else { 5 }).collect();
                assert_eq!((kinds, small.head()[9]), (expected, 2), "{dtype}");
            }
            let n = bytes.len();
            for backend in backends() {
                let ans = Ans::default().with_backend(backend).unwrap();
                for range in [0..n, 3..n / 2, block - 1..block + 1, n - 7..n] {
                    let mut back = vec![0xa5; range.len()];
                    let places = range.start as u64..range.end as u64;
                    small.decode_bytes(&ans, places, &mut back).unwrap();
                    assert!(back == bytes[range.clone()], "{dtype} {backend:?} {range:?}");
                }
            }
            // Columns that are alike have no classes.
            let alike: Vec<u8> = (0..rows * columns)
                .flat_map(|_| value(&mut random, dtype, 0.02).to_le_bytes())
                .collect();
            let alike: Vec<u8> = alike
                .chunks_exact(8)
                .flat_map(|unit| unit[..dtype.unit_bytes()].iter().copied())
                .collect();
            let plain = encode_tensor(&Ans::new(Level::Small), &spec, &alike).unwrap();
            assert_eq!(plain.head()[9], 0, "{dtype}");
        }
    }
}

/// A tensor of 32 blocks of which every sample sees only what the level small codes better: runs of
/// odd numbers in blocks of odd numbers hold what it codes worse.
#[test]
fn small_is_not_larger_where_no_sample_looks() {
    const RUN: usize = 4096;
    const BLOCK: usize = 32 * RUN;
    let n = 32 * BLOCK;
    let mut random = Random::new(7);
    let mut bytes = Vec::new();
    for i in 0..n {
        let (block, run) = (i / BLOCK, i / RUN);
        let bits = random.bits();
        // Nearly normal; or an exponent that is rare there, so that finer symbols of it have no
        // place in a table.
        let sum: u32 = bits.to_le_bytes().iter().map(|&b| u32::from(b)).sum();
        let normal = (sum as f32 + (bits % 997) as f32 / 997.0 - 1020.5) * 0.001;
        let rare = (bits >> 40) as u16 & 0x807f | (112 + (bits >> 30) as u16 % 2) << 7;
        let is_rare = block % 2 == 1 && run % 2 == 1 && random.bits().is_multiple_of(3);
        let value = if is_rare { rare } else { (normal.to_bits() >> 16) as u16 };
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    let spec = TensorSpec::new("t", Dtype::BF16, &[n as u64]).unwrap();
    let len = |ans: Ans| encode_tensor(&ans, &spec, &bytes).unwrap().byte_len();
    let small = Ans::new(Level::Small);
    let default = len(Ans::default());
    assert!(len(small.by_sample()) > default, "a tensor that samples deceive");
    assert!(len(small) <= default);
}
