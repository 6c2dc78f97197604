//! Tensors as differences from a base: whatever both hold, the tensor comes back bit for bit, with
//! every backend and any number of threads, from any part, and from no other base.
#![allow(clippy::unwrap_used)]

mod oracle;
mod random;

use bigsmall_codec::*;
use bigsmall_format::{EncodedRef, EncodedTensor, EncodingId, ReadAt};
use half::bf16;
use oracle::Copying;
use random::Random;

/// Dtypes of every unit, with and without exponents.
const DTYPES: [Dtype; 9] = [
    Dtype::BF16,
    Dtype::F16,
    Dtype::F32,
    Dtype::F64,
    Dtype::F8_E4M3,
    Dtype::F8_E5M2,
    Dtype::U8,
    Dtype::I64,
    Dtype::F8_E8M0,
];

/// Units of floats near 0.02, and how a tensor may differ from them.
fn pair(dtype: Dtype, n_units: usize, kind: usize, random: &mut Random) -> [Vec<u8>; 2] {
    let width = dtype.unit_bytes();
    let one = |random: &mut Random| -> Vec<u8> {
        let x = random.normal() * 0.02;
        match dtype {
            Dtype::BF16 => bf16::from_f64(x).to_le_bytes().to_vec(),
            Dtype::F16 => half::f16::from_f64(x).to_le_bytes().to_vec(),
            Dtype::F32 => (x as f32).to_le_bytes().to_vec(),
            Dtype::F64 => x.to_le_bytes().to_vec(),
            _ => vec![(random.bits() & 0x3f) as u8 + 0x20],
        }
    };
    let base: Vec<u8> = (0..n_units).flat_map(|_| one(random)).collect();
    let mut new = base.clone();
    for (i, unit) in new.chunks_exact_mut(width).enumerate() {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(unit);
        let value = u64::from_le_bytes(bytes);
        let small = random.bits() % 7;
        let changed = match kind {
            0 => value,
            1 => value.wrapping_add(u64::from(random.bits().is_multiple_of(500))),
            2 => value.wrapping_add(small).wrapping_sub(3),
            3 => value.wrapping_add(random.bits() >> (random.bits() % 64)),
            4 => random.bits(),
            // Signs change, and what is near zero has nothing to do with the base.
            5 if i % 3 == 0 => value ^ 1 << (8 * width - 1),
            5 => value.wrapping_add(small),
            // Some blocks are the same, others raw.
            6 if i / 131_072 % 2 == 0 => value,
            6 => random.bits(),
            _ => u64::from(small == 0) * value,
        };
        unit.copy_from_slice(&changed.to_le_bytes()[..width]);
    }
    [base, new]
}

fn encode(spec: &TensorSpec, [base, new]: &[Vec<u8>; 2], backend: Backend) -> EncodedTensor {
    let delta = Delta::default().with_backend(backend).unwrap();
    encode_tensor_with_base(&delta, spec, new, base).unwrap()
}

#[test]
fn every_tensor_comes_back() {
    let mut random = Random::new(1);
    for dtype in DTYPES {
        for n in [0usize, 1, 7, 255, 256, 300, 5000, 131_072, 131_073, 300_000] {
            for kind in 0..8 {
                // Whole elements.
                let n = if dtype == Dtype::I64 { n.next_multiple_of(8) } else { n };
                let pair = pair(dtype, n, kind, &mut random);
                let elements = pair[0].len() as u64 * 8 / u64::from(dtype.bits());
                let spec = TensorSpec::new("w", dtype, &[elements]).unwrap();
                let mut first: Option<EncodedTensor> = None;
                for backend in backends() {
                    let tensor = encode(&spec, &pair, backend);
                    let first = first.get_or_insert_with(|| tensor.clone());
                    assert!(tensor == *first, "{dtype} {n} {kind}: {backend} writes other bytes");
                    let delta = Delta::default().with_backend(backend).unwrap();
                    let sources: [&dyn ReadAt; 2] = [&Copying(&pair[0]), &pair[0]];
                    for source in sources {
                        let mut out = vec![1; pair[1].len()];
                        EncodedRef::from(&tensor)
                            .decode_bytes_with_base(&delta, source, 0..out.len() as u64, &mut out)
                            .unwrap();
                        assert!(out == pair[1], "{dtype} {n} {kind} {backend}");
                    }
                }
                let tensor = first.unwrap();
                if n <= 5000 || kind == 5 {
                    let (head, block_bytes) = (tensor.head(), spec.block_bytes());
                    let head = oracle::delta::Head::read(dtype, head).unwrap();
                    let blocks = pair[0].chunks(block_bytes).zip(pair[1].chunks(block_bytes));
                    for (index, (base, new)) in (0..).zip(blocks) {
                        let found = oracle::delta::decode(&head, tensor.block(index), base);
                        assert!(found.unwrap() == new, "{dtype} {n} {kind}: the oracle");
                    }
                }
                assert!(kind > 0 || tensor.byte_len() <= tensor.head().len() as u64 + 7);
                // Any part, from the base's same block alone.
                let frame = tensor.to_bytes();
                let view = EncodedView::parse(&frame).unwrap();
                let len = pair[1].len() as u64;
                for range in [0..len.min(3), len / 2..len, len.saturating_sub(2)..len] {
                    let mut part = vec![1; (range.end - range.start) as usize];
                    EncodedRef::from(&view)
                        .decode_bytes_with_base(
                            &Delta::default(),
                            &pair[0],
                            range.clone(),
                            &mut part,
                        )
                        .unwrap();
                    assert!(part == pair[1][range.start as usize..range.end as usize]);
                }
            }
        }
    }
}

/// Four whole blocks, then three and a part of one.
#[test]
fn blocks_that_are_decoded_together() {
    let pair = pair(Dtype::BF16, 1_000_000, 5, &mut Random::new(2));
    let spec = TensorSpec::new("w", Dtype::BF16, &[1000, 1000]).unwrap();
    let tensor = encode(&spec, &pair, Backend::Portable);
    assert!((0..8).all(|index| tensor.block(index)[0] == 1), "every block is coded");
    for backend in backends() {
        let delta = Delta::default().with_backend(backend).unwrap();
        let mut out = vec![1; pair[1].len()];
        EncodedRef::from(&tensor)
            .decode_bytes_with_base(&delta, &pair[0], 0..2_000_000, &mut out)
            .unwrap();
        assert!(out == pair[1], "{backend}");
    }
    let mut live = pair[0].clone();
    apply_delta_bytes(&tensor.to_bytes(), &mut live).unwrap();
    assert!(live == pair[1]);
}

#[test]
fn threads_do_not_change_a_byte() {
    let pair = pair(Dtype::BF16, 1_000_000, 5, &mut Random::new(2));
    let spec = TensorSpec::new("w", Dtype::BF16, &[1000, 1000]).unwrap();
    let tensors = [1, 2, 5].map(|n| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| encode(&spec, &pair, Backend::Portable))
    });
    assert!(tensors[0] == tensors[1] && tensors[1] == tensors[2]);
}

#[test]
fn slices_in_one_line() {
    let base: Vec<f32> = (0..300_000).map(|i| (i as f32).sin()).collect();
    for (step, scale) in [(1, 1.0f32), (1, 1.0001), (777, 1.0001), (1, f32::NAN)] {
        let scaled = |(i, &x): (usize, &f32)| if i % step == 0 { x * scale } else { x };
        let new: Vec<f32> = base.iter().enumerate().map(scaled).collect();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let frame = encode_delta(&new, &base);
        assert!(frame.len() <= bigsmall_codec::encode(&new).len() + 8);
        let mut back = vec![0.0; base.len()];
        decode_delta(&frame, &base, &mut back).unwrap();
        assert!(bits(&back) == bits(&new));
        let mut live = base.clone();
        apply_delta(&frame, &mut live).unwrap();
        assert!(bits(&live) == bits(&new));
        let changes = changes(&frame, &base).unwrap();
        let mut patched = base.clone();
        assert!(changes.indices.is_sorted_by(|a, b| a < b));
        for (&i, &value) in changes.indices.iter().zip(&changes.values) {
            assert_ne!(patched[i as usize].to_bits(), value.to_bits());
            patched[i as usize] = value;
        }
        assert!(bits(&patched) == bits(&new));
        assert!(bigsmall_codec::decode(&frame, &mut back).is_err() == (scale.is_finite()));
    }
    // The common values are the first ones.
    for (new, base) in [(&base[..200_000], &base[..]), (&base[..], &base[..200_001])] {
        let frame = encode_delta(new, base);
        let mut back = vec![0.0; new.len()];
        decode_delta(&frame, base, &mut back).unwrap();
        assert_eq!(back, new);
    }
}

/// Integers are coded byte by byte: an element whose bytes change is one change.
#[test]
fn changes_are_counted_in_elements() {
    fn check<T: Element + PartialEq + std::fmt::Debug>(base: &[T], new: &[(u64, T)]) {
        let mut all = base.to_vec();
        new.iter().for_each(|&(i, value)| all[i as usize] = value);
        let frame = encode_delta(&all, base);
        assert_eq!(EncodedView::parse(&frame).unwrap().encoding(), EncodingId::Delta);
        let found = changes(&frame, base).unwrap();
        assert_eq!(found.indices.into_iter().zip(found.values).collect::<Vec<_>>(), new);
    }
    let mut random = Random::new(4);
    // Numbers of all bits, more than a block of bytes.
    let base: Vec<i64> = (0..60_000).map(|_| random.bits() as i64).collect();
    let edits = [(3u64, 0x0100_0000_0001i64), (4, 1 << 62), (32_767, 0xff00), (59_999, 0x0101)];
    check(&base, &edits.map(|(i, bits)| (i, base[i as usize] ^ bits)));
    let base: Vec<i32> = base.iter().map(|&x| x as i32).collect();
    check(&base, &edits.map(|(i, bits)| (i, base[i as usize] ^ (bits | bits >> 32) as i32)));
    let base: Vec<i16> = base.iter().map(|&x| x as i16).collect();
    check(&base, &edits.map(|(i, _)| (i, base[i as usize] ^ 0x0110)));
}

/// V-01, V-02, V-03: wherever the base differs, nothing is decoded from there; weights in use stay
/// as they were.
#[test]
fn another_base_is_an_error() {
    let [base, new] = pair(Dtype::BF16, 400_000, 2, &mut Random::new(3));
    let spec = TensorSpec::new("w", Dtype::BF16, &[400_000]).unwrap();
    let tensor = encode(&spec, &[base.clone(), new.clone()], Backend::Portable);
    let frame = tensor.to_bytes();
    let full = spec.block_bytes() as u64;
    for at in [0, full as usize - 1, full as usize, 799_999] {
        let mut other = base.clone();
        other[at] ^= 1;
        let mut live = other.clone();
        let error = apply_delta_bytes(&frame, &mut live).unwrap_err();
        assert_eq!(error.rule(), Rule::BaseMismatch);
        assert_eq!((error.class(), error.tensor()), (Class::Corrupt, Some("w")));
        assert!(live == other, "nothing was applied");
        let read = |range: std::ops::Range<u64>| {
            let mut out = vec![0; (range.end - range.start) as usize];
            EncodedRef::from(&tensor)
                .decode_bytes_with_base(&Delta::default(), &other, range.clone(), &mut out)
                .map(|()| assert!(out == new[range.start as usize..range.end as usize]))
                .map_err(|e| e.rule())
        };
        // One unit of the damaged block, and of another one.
        let block = at as u64 / full * full;
        assert_eq!(read(block + 2..block + 4), Err(Rule::BaseMismatch));
        let other = (block + full) % (4 * full);
        assert_eq!(read(other..other + 2), Ok(()));
        assert_eq!(read(0..800_000), Err(Rule::BaseMismatch));
    }
    let mut out = vec![0; new.len()];
    let alone = EncodedRef::from(&tensor).decode_bytes(&Delta::default(), 0..800_000, &mut out);
    assert_eq!(alone.unwrap_err().rule(), Rule::BaseMissing);
    let without = encode_tensor(&Delta::default(), &spec, &new).unwrap_err();
    assert_eq!(without.rule(), Rule::BaseMissing);
    assert_eq!(tensor.encoding(), EncodingId::Delta);
}

/// Several tensors change together, or none does; the error names the one that is wrong.
#[test]
fn several_tensors_change_or_none() {
    let mut random = Random::new(5);
    let pairs = [400_000, 700, 0].map(|n| pair(Dtype::BF16, n, 2, &mut random));
    let frames = pairs.each_ref().map(|[base, new]| {
        encode_delta_bytes(Dtype::BF16, &[new.len() as u64 / 2], new, base).unwrap()
    });
    let apply = |frames: &[Vec<u8>; 3], live: &mut [Vec<u8>; 3]| {
        let tensors = ["a", "b", "c"].iter().zip(frames).zip(live);
        let mut tensors: Vec<_> = tensors.map(|((n, f), l)| (*n, &f[..], &mut l[..])).collect();
        apply_deltas_bytes(&mut tensors)
    };
    let old = pairs.each_ref().map(|[base, _]| base.clone());
    let mut live = old.clone();
    live[1][5] ^= 1;
    let before = live.clone();
    let error = apply(&frames, &mut live).unwrap_err();
    assert_eq!((error.rule(), error.tensor()), (Rule::BaseMismatch, Some("b")));
    assert!(live == before);
    let mut damaged = frames.clone();
    let last = damaged[1].len() - 1;
    damaged[1][last] ^= 1;
    live = old;
    let before = live.clone();
    assert_eq!(apply(&damaged, &mut live).unwrap_err().tensor(), Some("b"));
    assert!(live == before);
    apply(&frames, &mut live).unwrap();
    assert!(live == pairs.map(|[_, new]| new));
}

/// A tensor of a few groups and a tail against its base, coded and sparse.
fn small(one_in: u64) -> (TensorSpec, [Vec<u8>; 2], EncodedTensor) {
    changed(Dtype::BF16, 700, one_in)
}

/// A tensor against its base: one of `one_in` elements is another one.
fn changed(dtype: Dtype, n: usize, one_in: u64) -> (TensorSpec, [Vec<u8>; 2], EncodedTensor) {
    let mut random = Random::new(one_in);
    let [base, _] = pair(dtype, n, 0, &mut random);
    let mut new = base.clone();
    for unit in new.chunks_exact_mut(dtype.unit_bytes()) {
        if random.below(one_in) == 0 {
            unit[0] = unit[0].wrapping_add((random.bits() % 5) as u8);
        }
    }
    let spec = TensorSpec::new("w", dtype, &[n as u64]).unwrap();
    let tensor = encode(&spec, &[base.clone(), new.clone()], Backend::Portable);
    (spec, [base, new], tensor)
}

/// V-05
#[test]
fn no_bit_changes_unnoticed() {
    for one_in in [1, 50] {
        let (_, [base, new], tensor) = small(one_in);
        let frame = tensor.to_bytes();
        let of_base: Vec<bf16> =
            base.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect();
        let mut patched = of_base.clone();
        let found = changes(&frame, &of_base).unwrap();
        found.indices.iter().zip(&found.values).for_each(|(&i, &v)| patched[i as usize] = v);
        assert!(patched.iter().flat_map(|v| v.to_le_bytes()).eq(new));
        let refused = |frame: &[u8]| {
            let mut live = base.clone();
            let error = apply_delta_bytes(frame, &mut live).unwrap_err();
            assert!(live == base);
            assert!(decode_delta_bytes(frame, &base, &mut live).is_err());
            assert!(changes(frame, &of_base).is_err());
            error
        };
        for bit in 0..8 * frame.len() {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            refused(&damaged);
        }
        for len in 0..frame.len() {
            assert_eq!(refused(&frame[..len]).rule(), Rule::FrameTruncated);
        }
    }
}

/// The tensor with another head or block, every checksum right.
fn sealed(spec: &TensorSpec, head: &[u8], block: &[u8], base: &[u8]) -> EncodedTensor {
    let mut payload = head.to_vec();
    payload.resize(payload.len().next_multiple_of(8), 0);
    payload.extend(block);
    payload.resize(payload.len().next_multiple_of(8), 0);
    let hashes = vec![bigsmall_format::internal::xxh3(base)];
    let (lens, head_len) = (vec![block.len() as u32], head.len() as u32);
    EncodedTensor::new_with_base(spec.clone(), EncodingId::Delta, head_len, lens, payload, hashes)
        .unwrap()
}

/// V-04: whatever is edited, the oracle and all backends say the same, and weights in use become
/// the decoded ones or stay as they were.
#[test]
fn sealed_edits() {
    let mut refused = 0;
    // Kernels take eight groups at a time, so the longer tensors have more.
    for (dtype, n, one_in, edits) in [
        (Dtype::BF16, 700, 1, 4000),
        (Dtype::BF16, 700, 3, 4000),
        (Dtype::BF16, 700, 50, 4000),
        (Dtype::BF16, 5000, 1, 1000),
        (Dtype::F32, 5000, 1, 1000),
    ] {
        let (spec, [base, _], tensor) = changed(dtype, n, one_in);
        let mut random = Random::new(7);
        for _ in 0..edits {
            let (mut head, mut block) = (tensor.head().to_vec(), tensor.block(0).to_vec());
            let edited = if random.below(3) == 0 { &mut head } else { &mut block };
            for _ in 0..random.below(3) + 1 {
                let at = random.below(edited.len() as u64) as usize;
                match random.below(4) {
                    0 => edited[at] ^= 1 << random.below(8),
                    1 => edited[at] = random.bits() as u8,
                    2 => edited.truncate(at.max(1)),
                    _ => edited.insert(at, random.bits() as u8),
                }
            }
            let oracle = oracle::delta::Head::read(dtype, &head)
                .and_then(|head| oracle::delta::decode(&head, &block, &base));
            let tensor = sealed(&spec, &head, &block, &base);
            // The base is read to the place of the output, or decoded from where it is.
            let sources: [&dyn ReadAt; 2] = [&Copying(&base), &base];
            for (backend, source) in backends().flat_map(|b| sources.map(|source| (b, source))) {
                let delta = Delta::default().with_backend(backend).unwrap();
                let mut out = vec![0; base.len()];
                let found = EncodedRef::from(&tensor)
                    .decode_bytes_with_base(&delta, source, 0..base.len() as u64, &mut out)
                    .map(|()| out);
                if let Err(error) = &found {
                    assert_eq!((error.class(), error.tensor()), (Class::Corrupt, Some("w")));
                }
                assert!(found.as_ref().ok() == oracle.as_ref().ok(), "{found:?}, {oracle:?}");
            }
            let mut live = base.clone();
            let applied = apply_delta_bytes(&tensor.to_bytes(), &mut live);
            assert_eq!(applied.is_ok(), oracle.is_ok());
            assert!(&live == oracle.as_ref().unwrap_or(&base));
            refused += usize::from(oracle.is_err());
        }
    }
    assert!(refused > 3000, "{refused} refused");
}

#[test]
fn forged_heads_and_blocks() {
    let (spec, [base, _], tensor) = small(1);
    let (head, block) = (tensor.head(), tensor.block(0));
    assert_eq!(block[0], 1, "a coded block");
    let rule = |head: &[u8], block: &[u8]| {
        let tensor = sealed(&spec, head, block, &base);
        let mut out = vec![0; base.len()];
        EncodedRef::from(&tensor)
            .decode_bytes_with_base(&Delta::default(), &base, 0..base.len() as u64, &mut out)
            .map_err(|e| e.rule())
    };
    assert_eq!(rule(head, block), Ok(()));
    // V-06
    let heads: [(&str, usize, u8); 12] = [
        ("4 symbol bits", 0, 4),
        ("7 symbol bits", 0, 7),
        ("segments of 2^7", 1, 7),
        ("segments of 2^17", 1, 17),
        ("9 tables", 2, 9),
        ("no class", 3, 0),
        ("9 classes", 3, 9),
        ("no sparse class", 4, 0),
        ("17 sparse classes", 4, 17),
        ("a mode of no class", 5, 0xff),
        ("an exponent beyond the dtype's", 7, 1),
        ("another one", 9, 0x80),
    ];
    for (name, at, byte) in heads {
        let mut head = head.to_vec();
        head[at] = byte;
        if at == 5 {
            head[3] = 7;
        }
        assert_eq!(rule(&head, block), Err(Rule::DeltaHead), "{name}");
    }
    assert_eq!(rule(&head[..9], block), Err(Rule::DeltaHead));
    assert_eq!(rule(&[head, &[0]].concat(), block), Err(Rule::DeltaHead));
    assert_eq!(rule(&head[..head.len() - 1], block), Err(Rule::FrequencyTable));
    let mut shift = head.to_vec();
    shift[10] = 16 | shift[10] & 0xc0;
    assert_eq!(rule(&shift, block), Err(Rule::DeltaHead), "a shift of all bits");
    // V-07
    let edit = |edits: &[(usize, u8)]| {
        let mut block = block.to_vec();
        edits.iter().for_each(|&(at, byte)| block[at] = byte);
        block
    };
    for (name, block, expected) in [
        ("kind 4", edit(&[(0, 4)]), Rule::DeltaBlock),
        ("65 carried bytes", edit(&[(1, 65)]), Rule::DeltaBlock),
        ("reserved", edit(&[(3, 1)]), Rule::DeltaBlock),
        ("too many words", edit(&[(6, 1)]), Rule::DeltaBlock),
        ("a header alone", block[..8].to_vec(), Rule::DeltaBlock),
        ("a kind alone", vec![1], Rule::DeltaBlock),
        ("one byte less", block[..block.len() - 1].to_vec(), Rule::DeltaBlock),
        ("one byte more", [block, &[0]].concat(), Rule::DeltaBlock),
        ("a raw block that is short", [&[0; 8][..], &base[1..]].concat(), Rule::DeltaBlock),
        (
            "a raw block with a flag",
            [&[0, 1, 0, 0, 0, 0, 0, 0], &base[..]].concat(),
            Rule::DeltaBlock,
        ),
        ("no changes and more", vec![2, 0, 0], Rule::DeltaChanges),
        ("no bits", vec![2], Rule::DeltaChanges),
        ("padding", vec![2, 0x80], Rule::PaddingNotZero),
        (
            "2^63 changes",
            vec![2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0],
            Rule::DeltaChanges,
        ),
        ("ones to the end", vec![2; 1].into_iter().chain([0xff; 40]).collect(), Rule::DeltaChanges),
    ] {
        assert_eq!(rule(head, &block), Err(expected), "{name}");
    }
    // Two words less than the block says, and a head without tables.
    let mut words = block.to_vec();
    let n = u32::from_le_bytes(words[4..8].try_into().unwrap());
    words[4..8].copy_from_slice(&(n - 2).to_le_bytes());
    assert!(rule(head, &words).is_err());
    let mut without = head[..10].to_vec();
    without[2] = 0;
    assert_eq!(rule(&without, block), Err(Rule::DeltaBlock));
    assert_eq!(rule(&[], block), Err(Rule::DeltaBlock));
    assert_eq!(rule(&[], &[2, 0]), Ok(()));
    assert_eq!(rule(&[], &[]), Ok(()));
}
