//! Every part of the library once, at sizes that an interpreter can bear: what Miri runs, for
//! machines of 32 bits and of the other byte order too (`.ci/miri`). The bytes are the same
//! everywhere.
#![allow(clippy::unwrap_used)]

use bigsmall_codec::*;
use bigsmall_format::internal::xxh3;
use bigsmall_format::{Raw, Shard, ShardWriter};
use bigsmall_tbe::{Tbe, View, Width};

/// An interpreter takes a second for what a processor does in a microsecond or ten: less of
/// everything.
const INTERPRETED: bool = cfg!(miri);

const DTYPES: [Dtype; 8] = [
    Dtype::BF16,
    Dtype::F16,
    Dtype::F32,
    Dtype::F64,
    Dtype::F8_E4M3,
    Dtype::F8_E5M2,
    Dtype::I16,
    Dtype::U8,
];

/// Weights by integers alone, the same on every machine: exponents near each other, now and then
/// any bits.
fn weights(dtype: Dtype, n: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let width = dtype.unit_bytes();
    let unit = |r: u64| {
        let scale = u64::from(r.trailing_zeros().min(9));
        match dtype {
            _ if r.is_multiple_of(97) => r,
            Dtype::BF16 => r & 0x807f | (0x78 - scale) << 7,
            Dtype::F16 => r & 0x83ff | (0xe - scale) << 10,
            Dtype::F32 => r & 0x807f_ff00 | (0x78 - scale) << 23,
            Dtype::F64 => r & 0x800f_ffff_ffff_ffff | (0x3f8 - scale) << 52,
            Dtype::F8_E4M3 => r & 0x87 | (9 - scale % 9) << 3,
            Dtype::F8_E5M2 => r & 0x83 | (0xe - scale) << 2,
            _ => scale,
        }
    };
    (0..n).flat_map(|_| unit(next()).to_le_bytes().into_iter().take(width)).collect()
}

fn spec(dtype: Dtype, bytes: &[u8]) -> TensorSpec {
    let n = bytes.len() as u64 * 8 / u64::from(dtype.bits());
    TensorSpec::new("w", dtype, &[2, n / 2]).unwrap()
}

fn encodings() -> Vec<(&'static str, Box<dyn TensorEncoding>)> {
    vec![
        ("ans", Box::new(Ans::default())),
        ("small", Box::new(Ans::new(Level::Small))),
        ("tbe3", Box::new(Tbe::new(Width::Three))),
        ("tbe4", Box::new(Tbe::new(Width::Four))),
        ("raw", Box::new(Raw)),
    ]
}

#[test]
fn every_bit_comes_back_and_the_bytes_are_the_same_everywhere() {
    let mut all = Vec::new();
    for dtype in DTYPES {
        let n = match dtype {
            // Two groups and a tail; the other dtypes have no code of their own but their division.
            Dtype::BF16 | Dtype::F32 | Dtype::F8_E5M2 | Dtype::U8 if INTERPRETED => 520,
            _ if INTERPRETED => continue,
            Dtype::BF16 => 1346,
            _ => 600,
        };
        let bytes = weights(dtype, n);
        let spec = spec(dtype, &bytes);
        for (name, encoding) in encodings() {
            let too_slow = INTERPRETED && name == "small" && dtype != Dtype::BF16;
            if !encoding.supports(dtype) || too_slow {
                continue;
            }
            let tensor = encode_tensor(&*encoding, &spec, &bytes).unwrap();
            let frame = tensor.to_bytes();
            let read = EncodedTensor::from_bytes(&frame).unwrap();
            let mut back = vec![0x5a; bytes.len()];
            read.decode_bytes(&*encoding, 0..bytes.len() as u64, &mut back).unwrap();
            assert!(back == bytes, "{dtype} {name}");
            let unit = dtype.unit_bytes();
            let range = 3 * unit..301 * unit;
            back.truncate(range.len());
            read.decode_bytes(&*encoding, range.start as u64..range.end as u64, &mut back).unwrap();
            assert!(back == bytes[range], "{dtype} {name}");
            all.extend(xxh3(&frame).to_le_bytes());
        }
    }
    println!("{:#018x}", xxh3(&all));
    assert_eq!(xxh3(&all), EXPECTED, "another machine writes other bytes");
}

/// Of all frames together; changes with the encoder, deliberately.
const EXPECTED: u64 = if INTERPRETED { 0xfcff_2c0c_2a97_c99c } else { 0x1263_12ec_806e_5dad };

#[test]
fn slices() {
    let values: Vec<f32> = (0u16..300).map(|i| f32::from(i) * 0.25).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let frame = encode(&values);
    assert_eq!(frame, encode_bytes(Dtype::F32, &[300], &bytes).unwrap());
    let mut back = vec![0.0; 300];
    decode(&frame, &mut back).unwrap();
    assert_eq!(back, values);
}

/// Each bit and each cut, of which a sample, of a small shard under right and under wrong
/// checksums.
#[test]
fn damage_is_an_error_or_other_values() {
    let step = if INTERPRETED { 197 } else { 7 };
    let bytes = weights(Dtype::BF16, 300);
    let spec = spec(Dtype::BF16, &bytes);
    for (name, encoding) in encodings() {
        let tensor = encode_tensor(&*encoding, &spec, &bytes).unwrap();
        let mut writer = ShardWriter::synthesised(Vec::new(), std::slice::from_ref(&spec)).unwrap();
        writer.write_encoded(&tensor, &*encoding).unwrap();
        let shard = writer.finish().unwrap();
        let read = |bytes: &[u8]| -> Result<Vec<u8>> {
            let shard = Shard::open(bytes)?;
            shard.check_prelude()?;
            let mut dst = vec![0; 600];
            shard.decode(0, &*shard.decoder(0, &*encoding)?, 0..600, &mut dst)?;
            Ok(dst)
        };
        assert!(read(&shard).unwrap() == bytes);
        for at in (0..shard.len()).step_by(9 * step) {
            assert!(read(&shard[..at]).is_err(), "{name}: {at} bytes");
            let mut damaged = shard.clone();
            damaged[at] ^= 1 << (at % 8);
            assert!(read(&damaged).is_err(), "{name}: byte {at}");
        }
        // Sealed: the decoders themselves meet the damage.
        let table = tensor.table();
        for at in (0..tensor.payload().len()).step_by(step) {
            let mut payload = tensor.payload().to_vec();
            payload[at] ^= 1 << (at / step % 8);
            let lens = vec![table.block_len(0) as u32];
            let head_len = table.head_len() as u32;
            let sealed =
                EncodedTensor::new(spec.clone(), tensor.encoding(), head_len, lens, payload)
                    .unwrap();
            let mut dst = vec![0; 600];
            if let Err(error) = sealed.decode_bytes(&*encoding, 0..600, &mut dst) {
                assert_eq!(error.class(), Class::Corrupt, "{name}: byte {at}");
            }
        }
    }
}

#[test]
fn products() {
    let bytes = weights(Dtype::BF16, 4 * 130);
    let spec = TensorSpec::new("w", Dtype::BF16, &[4, 130]).unwrap();
    let tensor = encode_tensor(&Tbe::default(), &spec, &bytes).unwrap();
    let view = View::new(&tensor).unwrap();
    let x: Vec<f32> = (0u8..130).map(|i| f32::from(i) - 60.0).collect();
    let mut y = vec![0.0; 4];
    view.matmul(&x, 1, &mut y).unwrap();
    for (i, value) in [0, 1, 129, 130, 519].map(|i| (i, view.get(i as u64).unwrap())) {
        assert_eq!(value.to_le_bytes(), bytes[2 * i..2 * i + 2]);
    }
}
