//! Damaged and forged payloads: each is refused with the right rule by every reader, on every
//! backend; nothing panics.

#![allow(clippy::unwrap_used)]

use bigsmall_tbe::{
    Class, Dtype, EncodedTensor, EncodingId, MAX_BLOCK_UNITS, Rule, Tbe, TensorEncoding,
    TensorSpec, View, Width,
};
use bigsmall_testing::Random;
use bigsmall_testing::oracle::tbe::{self as oracle, DTYPES};

/// 1030 bf16 weights with codes of 3 bits: 17 tiles, 3 groups, 42 escapes. Sections: bitmaps
/// 0..408, byte plane 408..1438 and 2 bytes of padding, escape starts 1440..1452 and 4 bytes of
/// padding, escapes from 1456 on.
const N: usize = 1030;
const BASE: u8 = 100;
const PLANE: usize = 408;
const STARTS: usize = 1440;
const ESCAPES: usize = 1456;

fn spec() -> TensorSpec {
    TensorSpec::new("h", Dtype::BF16, &[N as u64]).unwrap()
}

fn values() -> Vec<u16> {
    (0..N as u16)
        .map(|i| if i % 25 == 3 { 0x4000 + i } else { u16::from(BASE) << 7 | (i % 896) })
        .collect()
}

fn head() -> Vec<u8> {
    vec![3, BASE, 0, 0, 0, 0, 0, 0]
}

fn block() -> Vec<u8> {
    let block = oracle::encode_block(Dtype::BF16, 3, BASE, &values());
    assert_eq!(block.len(), ESCAPES + 42);
    block
}

/// Seals head and block: every checksum is right.
fn seal(spec: &TensorSpec, head: &[u8], block: &[u8]) -> Option<EncodedTensor> {
    let mut payload = head.to_vec();
    payload.resize(payload.len().next_multiple_of(8), 0);
    payload.extend_from_slice(block);
    payload.resize(payload.len().next_multiple_of(8), 0);
    let lens = vec![block.len() as u32];
    EncodedTensor::new(spec.clone(), EncodingId::Tbe, head.len() as u32, lens, payload).ok()
}

/// What every reader says of a sealed payload: nothing, or the rule and the offset in the payload.
fn outcomes(spec: &TensorSpec, head: &[u8], block: &[u8]) -> Vec<Result<(), (Rule, Option<u64>)>> {
    let mut outcomes = Vec::new();
    let sealed = seal(spec, head, block);
    if let Some(sealed) = &sealed {
        let whole = sealed.to_bytes();
        let read = EncodedTensor::from_bytes(&whole).unwrap();
        outcomes.push(View::new(&read).map(drop).map_err(|e| {
            assert_eq!(e.class(), Class::Corrupt);
            assert_eq!(e.tensor(), Some(spec.name()));
            (e.rule(), e.offset())
        }));
    }
    for backend in bigsmall_tbe::backends() {
        let tbe = Tbe::default().with_backend(backend).unwrap();
        let mut dst = vec![0; spec.byte_len() as usize];
        // Without the length check of the block table, that a reader may not have.
        let outcome = tbe.open(spec, head).and_then(|decoder| {
            decoder.decode_blocks(&[block], &mut dst).map_err(|e| {
                let at = e.offset().unwrap() + head.len().next_multiple_of(8) as u64;
                bigsmall_tbe::Error::new(e.rule()).at(at)
            })
        });
        outcomes.push(outcome.map_err(|e| (e.rule(), e.offset())));
        if let Some(sealed) = &sealed {
            for range in [0..spec.byte_len(), 0..spec.byte_len().div_ceil(2)] {
                let dst = &mut dst[..range.end as usize];
                let outcome = sealed.decode_bytes(&tbe, range, dst);
                assert_eq!(
                    outcome.as_ref().err().map(|e| e.rule()),
                    outcomes.last().unwrap().err().map(|e| e.0)
                );
            }
        }
    }
    outcomes
}

type Damage = fn(&mut Vec<u8>, &mut Vec<u8>);

/// A case: what is done to head and block, the rule that must be named, the offset in the payload
/// (the block begins at 8).
const CASES: &[(&str, Damage, Rule, usize)] = &[
    ("width 0", |h, _| h[0] = 0, Rule::TbeHead, 0),
    // H-07
    ("width 2", |h, _| h[0] = 2, Rule::TbeHead, 0),
    // H-07
    ("width 5", |h, _| h[0] = 5, Rule::TbeHead, 0),
    ("width 255", |h, _| h[0] = 255, Rule::TbeHead, 0),
    ("width of another block", |h, _| h[0] = 4, Rule::TbeBlockLength, 8 + ESCAPES + 42),
    // H-04
    ("base one too large", |h, _| h[1] = 250, Rule::TbeHead, 1),
    ("base 255", |h, _| h[1] = 255, Rule::TbeHead, 1),
    ("reserved byte of the head", |h, _| h[2] = 1, Rule::ReservedNotZero, 2),
    ("last reserved byte of the head", |h, _| h[7] = 0x80, Rule::ReservedNotZero, 7),
    ("head empty", |h, _| h.clear(), Rule::TbeHead, 0),
    ("head one byte", |h, _| h.truncate(1), Rule::TbeHead, 0),
    ("head a byte short", |h, _| h.truncate(7), Rule::TbeHead, 0),
    ("head a byte long", |h, _| h.push(0), Rule::TbeHead, 0),
    (
        // H-01
        "one escape code too many, in the first tile",
        |_, b| escape(b, 0),
        Rule::TbeEscapeStarts,
        8 + STARTS + 4,
    ),
    (
        "one escape code too many, in the last tile",
        |_, b| escape(b, 1029),
        Rule::TbeBlockLength,
        8 + ESCAPES,
    ),
    (
        "one escape code too few, in the first tile",
        |_, b| unescape(b, 3),
        Rule::TbeEscapeStarts,
        8 + STARTS + 4,
    ),
    (
        "one escape code too few, in the last tile",
        |_, b| unescape(b, 1028),
        Rule::TbeBlockLength,
        8 + ESCAPES,
    ),
    (
        "an escape code moved to another group",
        |_, b| {
            escape(b, 1029);
            unescape(b, 3);
        },
        Rule::TbeEscapeStarts,
        8 + STARTS + 4,
    ),
    // H-01
    ("one exponent too many", |_, b| b.push(7), Rule::TbeBlockLength, 8 + ESCAPES),
    (
        "one exponent too few",
        |_, b| {
            b.pop();
        },
        Rule::TbeBlockLength,
        8 + ESCAPES,
    ),
    ("no exponents", |_, b| b.truncate(ESCAPES), Rule::TbeBlockLength, 8 + ESCAPES),
    (
        "more exponents than weights",
        |_, b| b.resize(ESCAPES + N + 1, 7),
        Rule::TbeBlockLength,
        8 + ESCAPES,
    ),
    ("first start not zero", |_, b| b[STARTS] = 1, Rule::TbeEscapeStarts, 8 + STARTS),
    (
        // H-02
        "starts decreasing",
        |_, b| {
            b[STARTS] = 12;
            b[STARTS + 4] = 11;
        },
        Rule::TbeEscapeStarts,
        8 + STARTS,
    ),
    // H-09
    ("start one too small", |_, b| b[STARTS + 4] -= 1, Rule::TbeEscapeStarts, 8 + STARTS + 4),
    ("start one too large", |_, b| b[STARTS + 4] += 1, Rule::TbeEscapeStarts, 8 + STARTS + 4),
    (
        // H-03
        "start past the end",
        |_, b| b[STARTS + 4..STARTS + 8].fill(0xff),
        Rule::TbeEscapeStarts,
        8 + STARTS + 4,
    ),
    (
        // H-05
        "escape at the window's beginning",
        |_, b| b[ESCAPES] = BASE,
        Rule::TbeEscapeInWindow,
        8 + ESCAPES,
    ),
    (
        "escape at the window's end",
        |_, b| b[ESCAPES + 11] = BASE + 6,
        Rule::TbeEscapeInWindow,
        8 + ESCAPES + 11,
    ),
    // H-06
    ("bit in a bitmap's padding", |_, b| b[16 * 24] |= 0x40, Rule::PaddingNotZero, 8 + 16 * 24),
    (
        "last bit of the last bitmap",
        |_, b| b[PLANE - 1] |= 0x80,
        Rule::PaddingNotZero,
        8 + PLANE - 8,
    ),
    ("padding of the byte plane", |_, b| b[PLANE + N] = 1, Rule::PaddingNotZero, 8 + PLANE + N),
    (
        "last byte of that padding",
        |_, b| b[STARTS - 1] = 0x80,
        Rule::PaddingNotZero,
        8 + STARTS - 1,
    ),
    ("padding of the starts", |_, b| b[STARTS + 12] = 1, Rule::PaddingNotZero, 8 + STARTS + 12),
    ("last byte of that padding", |_, b| b[ESCAPES - 1] = 1, Rule::PaddingNotZero, 8 + ESCAPES - 1),
    ("block empty", |_, b| b.clear(), Rule::TbeBlockLength, 8),
    ("bitmaps alone", |_, b| b.truncate(PLANE), Rule::TbeBlockLength, 8 + PLANE),
    ("starts cut short", |_, b| b.truncate(ESCAPES - 1), Rule::TbeBlockLength, 8 + ESCAPES - 1),
];

fn set(block: &mut [u8], weight: usize, bitmap: usize, bit: bool) {
    let byte = &mut block[weight / 64 * 24 + bitmap * 8 + weight % 64 / 8];
    *byte = *byte & !(1 << (weight % 8)) | u8::from(bit) << (weight % 8);
}

fn escape(block: &mut [u8], weight: usize) {
    (0..3).for_each(|j| set(block, weight, j, true));
}

fn unescape(block: &mut [u8], weight: usize) {
    set(block, weight, 1, false);
}

#[test]
fn the_undamaged_block_is_read() {
    assert!(outcomes(&spec(), &head(), &block()).iter().all(Result::is_ok));
}

#[test]
fn every_damage_is_named() {
    for &(name, damage, rule, offset) in CASES {
        let (mut head, mut block) = (head(), block());
        damage(&mut head, &mut block);
        let offset = Some(offset as u64);
        for outcome in outcomes(&spec(), &head, &block) {
            assert_eq!(outcome, Err((rule, offset)), "{name}");
        }
    }
}

#[test]
fn an_escape_beyond_the_exponents_of_a_small_dtype() {
    for (dtype, first) in [(Dtype::F16, 32), (Dtype::F8_E4M3, 16), (Dtype::F8_E5M2, 32)] {
        let n = 100;
        let spec = TensorSpec::new("h", dtype, &[n]).unwrap();
        let mut values = vec![0; n as usize];
        values[50] = 8 << oracle::fields(dtype).1;
        let mut block = oracle::encode_block(dtype, 3, 0, &values);
        assert!(outcomes(&spec, &[3, 0, 0, 0, 0, 0, 0, 0], &block).iter().all(Result::is_ok));
        let at = block.len() - 1;
        for exponent in [first, 255] {
            block[at] = exponent;
            for outcome in outcomes(&spec, &[3, 0, 0, 0, 0, 0, 0, 0], &block) {
                assert_eq!(outcome, Err((Rule::TbeEscapeField, Some(at as u64 + 8))));
            }
        }
    }
}

#[test]
fn the_largest_base_of_every_dtype() {
    for dtype in DTYPES {
        for &width in Width::ALL {
            let most = (1u32 << oracle::fields(dtype).0) - ((1 << width.bits()) - 1);
            let spec = TensorSpec::new("h", dtype, &[64]).unwrap();
            let values: Vec<u16> = (0..64)
                .map(|i| (i * 1021) & ((1u32 << dtype.bits()) - 1))
                .map(|v| v as u16)
                .collect();
            let block = oracle::encode_block(dtype, width.bits(), most as u8, &values);
            let mut head = [width.bits() as u8, most as u8, 0, 0, 0, 0, 0, 0];
            assert!(outcomes(&spec, &head, &block).iter().all(Result::is_ok));
            // The last exponent of all is the last one of the window.
            let mut forged = block.clone();
            *forged.last_mut().unwrap() = ((1u32 << oracle::fields(dtype).0) - 1) as u8;
            for outcome in outcomes(&spec, &head, &forged) {
                assert_eq!(outcome.unwrap_err().0, Rule::TbeEscapeInWindow, "{dtype} {width:?}");
            }
            head[1] += 1;
            for outcome in outcomes(&spec, &head, &block) {
                assert_eq!(outcome, Err((Rule::TbeHead, Some(1))));
            }
        }
    }
}

#[test]
// C-13
fn other_dtypes_are_refused() {
    for &dtype in Dtype::ALL.iter().filter(|d| !DTYPES.contains(d)) {
        let spec = TensorSpec::new("h", dtype, &[64]).unwrap();
        let tbe = Tbe::default();
        assert!(!tbe.supports(dtype));
        let error = tbe.open(&spec, &head()).err().unwrap();
        assert_eq!((error.rule(), error.tensor()), (Rule::EncodingDtype, Some("h")));
        let zeros = vec![0; spec.byte_len() as usize];
        let error = bigsmall_tbe::encode_tensor(&tbe, &spec, &zeros).unwrap_err();
        assert_eq!((error.rule(), error.tensor()), (Rule::EncodingRefuses, Some("h")));
    }
}

#[test]
fn a_block_of_another_length_than_the_output() {
    let block = block();
    for backend in bigsmall_tbe::backends() {
        let decoder = Tbe::default().with_backend(backend).unwrap().open(&spec(), &head()).unwrap();
        let long = [MAX_BLOCK_UNITS, MAX_BLOCK_UNITS + 1];
        for n in [0, 1, 63, 64, N - 64, N - 1, N + 5, N + 20, N + 64].into_iter().chain(long) {
            let mut dst = vec![0; 2 * n];
            assert!(decoder.decode_blocks(&[&block], &mut dst).is_err(), "{n}");
        }
        let mut dst = vec![0; 2 * N];
        assert!(decoder.decode_blocks(&[], &mut dst).is_err());
        assert!(decoder.decode_blocks(&[&block, &block], &mut dst).is_err());
        assert!(decoder.decode_blocks(&[&block], &mut dst[1..]).is_err());
        assert!(decoder.decode_blocks(&[], &mut []).is_ok());
    }
}

#[test]
// H-10
fn a_block_at_any_address() {
    let block = block();
    for backend in bigsmall_tbe::backends() {
        let decoder = Tbe::default().with_backend(backend).unwrap().open(&spec(), &head()).unwrap();
        for offset in 0..8 {
            let mut moved = vec![0; offset];
            moved.extend_from_slice(&block);
            let mut dst = vec![0; offset + 2 * N];
            decoder.decode_blocks(&[&moved[offset..]], &mut dst[offset..]).unwrap();
            assert_eq!(oracle::values(Dtype::BF16, &dst[offset..]), values());
        }
    }
}

#[test]
// H-08
fn the_smallest_shapes_are_read() {
    for shape in [&[1, 1][..], &[1, 77], &[7, 9]] {
        let spec = TensorSpec::new("h", Dtype::BF16, shape).unwrap();
        let values = &values()[..spec.n_elements() as usize];
        let block = oracle::encode_block(Dtype::BF16, 3, BASE, values);
        assert!(outcomes(&spec, &head(), &block).iter().all(Result::is_ok));
    }
}

#[test]
fn the_parts_of_a_block_are_its_sections() {
    let bytes = block();
    let tensor = seal(&spec(), &head(), &bytes).unwrap();
    let block = View::new(&tensor).unwrap().block(0);
    assert_eq!((block.n_elements(), block.bitmaps_per_tile()), (N, 3));
    assert_eq!(block.bitmaps().as_flattened(), &bytes[..PLANE]);
    assert_eq!(block.byte_plane(), &bytes[PLANE..PLANE + N]);
    assert_eq!(block.escape_starts().as_flattened(), &bytes[STARTS..STARTS + 12]);
    assert_eq!(block.escapes(), &bytes[ESCAPES..]);
    let escapes: u32 = (0..N.div_ceil(64)).map(|tile| block.escape_mask(tile).count_ones()).sum();
    assert_eq!((escapes, block.escape_mask(N.div_ceil(64))), (42, 0));
}

#[test]
fn ranges_and_buffers_that_do_not_fit_are_refused() {
    let tensor = seal(&spec(), &head(), &block()).unwrap();
    let view = View::new(&tensor).unwrap();
    let n = N as u64;
    let mut dst = vec![0; 2 * N + 2];
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut rule = |range, bytes: usize| {
            let dst = &mut dst[..bytes];
            pool.install(|| view.decode(range, dst)).err().map(|e| e.rule())
        };
        assert_eq!(rule(0..n, 2 * N), None);
        assert_eq!(rule(n..n, 0), None);
        assert_eq!(rule(0..n + 1, 2 * N + 2), Some(Rule::RangeOutOfBounds));
        assert_eq!(rule(n + 1..n + 1, 0), Some(Rule::RangeOutOfBounds));
        #[allow(clippy::reversed_empty_ranges)]
        let backwards = 5..4;
        assert_eq!(rule(backwards, 0), Some(Rule::RangeOutOfBounds));
        assert_eq!(rule(0..n, 2 * N - 2), Some(Rule::BufferLength));
        assert_eq!(rule(0..4, 10), Some(Rule::BufferLength));
    }
}

/// Every single bit and every truncation: never a panic, and what is still read is what these bytes
/// mean.
#[test]
fn every_bit_and_every_cut() {
    let block = block();
    let mut accepted = 0;
    for bit in 0..8 * block.len() {
        let mut damaged = block.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let outcomes = outcomes(&spec(), &head(), &damaged);
        assert!(outcomes.windows(2).all(|w| w[0] == w[1]), "readers disagree about bit {bit}");
        if outcomes[0].is_ok() {
            // Encoding what was read gives these bytes again: one encoding for each value.
            let read = oracle::decode_block(Dtype::BF16, 3, BASE, N, &damaged);
            assert_eq!(oracle::encode_block(Dtype::BF16, 3, BASE, &read), damaged);
            accepted += 1;
        }
    }
    assert!(accepted > 8 * N, "the byte plane takes any value");
    for len in 0..block.len() {
        for outcome in outcomes(&spec(), &head(), &block[..len]) {
            assert_eq!(outcome.unwrap_err().0, Rule::TbeBlockLength);
        }
    }
}

/// A million bytes of noise in the place of blocks, and random damage to whole blocks.
#[test]
fn random_damage() {
    let mut random = Random::new(11);
    for _ in 0..3000 {
        let dtype = DTYPES[random.below(4) as usize];
        let width = 3 + random.below(2) as usize;
        let base = oracle::middle(dtype, width);
        let n = 1 + random.below(600);
        let spec = TensorSpec::new("h", dtype, &[n]).unwrap();
        let values = oracle::weights(&mut random, dtype, width, base, 100, n as usize);
        let mut block = oracle::encode_block(dtype, width, base, &values);
        for _ in 0..=random.below(4) {
            let at = random.below(block.len() as u64) as usize;
            match random.below(4) {
                0 => block[at] = random.bits() as u8,
                1 => block.truncate(at.max(1)),
                2 => block.insert(at, random.bits() as u8),
                _ => block[at..].iter_mut().for_each(|b| *b = random.bits() as u8),
            }
        }
        let outcomes = outcomes(&spec, &[width as u8, base, 0, 0, 0, 0, 0, 0], &block);
        assert!(outcomes.windows(2).all(|w| w[0] == w[1]));
        if outcomes[0].is_ok() {
            let read = oracle::decode_block(dtype, width, base, n as usize, &block);
            assert_eq!(oracle::encode_block(dtype, width, base, &read), block);
        }
    }
}
