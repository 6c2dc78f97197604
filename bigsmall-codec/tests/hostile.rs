//! Damaged and forged ANS payloads: each is refused under the right rule by every backend and every
//! reader; what is read is what the oracle reads. Checksums are right throughout, so that the
//! decoder itself is reached.
#![allow(clippy::unwrap_used, clippy::type_complexity)]

mod blocks;
mod oracle;
mod random;

use bigsmall_codec::*;
use bigsmall_format::internal::Assembler;
use bigsmall_format::{BlockDecoder, MAX_BLOCK_UNITS, Shard};
use blocks::encode_blocks;
use oracle::{Bits, Block, Choices, Copying, Head};
use random::Random;

fn backends() -> impl Iterator<Item = Ans> {
    let available = bigsmall_codec::backends();
    available.map(|b| Ans::default().with_backend(b).unwrap())
}

fn spec(dtype: Dtype, n_units: usize) -> TensorSpec {
    let bits = (n_units * dtype.unit_bytes() * 8) as u64;
    TensorSpec::new("h", dtype, &[bits / u64::from(dtype.bits())]).unwrap()
}

type Outcome = std::result::Result<Vec<u8>, Rule>;

/// What every backend says of one block, whatever its length.
fn by_blocks(ans: &Ans, spec: &TensorSpec, head: &[u8], block: &[u8]) -> Outcome {
    let decoder = ans.open(spec, head).map_err(|e| {
        assert_eq!(e.tensor(), Some("h"));
        assert_eq!(e.class(), Class::Corrupt);
        e.rule()
    })?;
    let mut dst = vec![0x5a; spec.byte_len() as usize];
    decoder.decode_blocks(&[block], &mut dst).map_err(|e| {
        assert_eq!(e.class(), Class::Corrupt);
        e.rule()
    })?;
    Ok(dst)
}

/// The oracle's opinion; the tensor has one block.
fn by_oracle(spec: &TensorSpec, head: &[u8], block: &[u8]) -> Outcome {
    let head = Head::read(spec.dtype(), head)?;
    oracle::decode(&head, block, spec.n_units() as usize)
}

/// What every reader on every backend says of a sealed tensor of one block. They agree, with the
/// oracle too; on the rule only if `same_rule`, since what breaks several rules may be refused
/// under any of them.
fn outcome(spec: &TensorSpec, head: &[u8], block: &[u8], same_rule: bool, what: &str) -> Outcome {
    let expected = by_oracle(spec, head, block);
    let mut first: Option<Outcome> = None;
    let n = spec.byte_len();
    let sealed = oracle::seal(spec, head, &[block.to_vec()]);
    if let Ok(sealed) = &sealed {
        let viewed = oracle::view::check(sealed, same_rule, what);
        assert_eq!(viewed.is_ok(), expected.is_ok(), "{what}: {viewed:?}");
    }
    for ans in backends() {
        let what = || format!("{what}, {:?}", ans.backend());
        let found = by_blocks(&ans, spec, head, block);
        match (&found, &expected) {
            (Ok(found), Ok(expected)) => assert!(found == expected, "{}", what()),
            (Err(found), Err(expected)) if same_rule => assert_eq!(found, expected, "{}", what()),
            (Err(_), Err(_)) => {}
            _ => panic!(
                "{}: {:?}, the oracle {:?}",
                what(),
                found.as_ref().err(),
                expected.as_ref().err()
            ),
        }
        let found = first.get_or_insert(found);
        assert_eq!(found.as_ref().err(), by_blocks(&ans, spec, head, block).err().as_ref());
        let sealed = match &sealed {
            Ok(sealed) => sealed,
            Err(error) => {
                assert_eq!((error.rule(), error.tensor()), (Rule::BlockLength, Some("h")));
                continue;
            }
        };
        let check = |read: &mut dyn FnMut(&mut [u8]) -> Result<()>| {
            let mut dst = vec![0xa5; n as usize];
            let result = read(&mut dst);
            if let Err(error) = &result {
                assert_eq!(error.tensor(), Some("h"), "{}", what());
                assert!(error.offset().is_some(), "{}: {error:?}", what());
            }
            let result = result.map(|()| dst).map_err(|e| e.rule());
            assert!(result == *found, "{}: {:?} {:?}", what(), result.err(), found.as_ref().err());
        };
        // A frame.
        let frame = EncodedTensor::from_bytes(&sealed.to_bytes()).unwrap();
        check(&mut |dst| {
            frame.decode_bytes(&ans, 0..n, dst).map_err(|e| {
                // The head has no place among the blocks.
                if e.offset().is_none() { e.at(0) } else { e }
            })
        });
        // A shard, borrowed and copied.
        let mut writer = Assembler::synthesised(Vec::new(), std::slice::from_ref(spec)).unwrap();
        writer.tensor(sealed, None).unwrap();
        let bytes = writer.finish([0; 32]).unwrap();
        let shard = Shard::open(&bytes[..]).unwrap();
        check(&mut |dst| shard.decode(0, &*shard.decoder(0, &ans)?, 0..n, dst));
        let shard = Shard::open(Copying(&bytes)).unwrap();
        check(&mut |dst| shard.decode(0, &*shard.decoder(0, &ans)?, 0..n, dst));
    }
    first.unwrap()
}

/// A head, units and the choices of an encoder.
struct Kit {
    head: Head,
    units: Vec<u8>,
    choices: Choices,
}

impl Kit {
    fn n_units(&self) -> usize {
        self.units.len() / self.head.dtype.unit_bytes()
    }

    fn spec(&self) -> TensorSpec {
        spec(self.head.dtype, self.n_units())
    }

    fn block(&self) -> Block {
        oracle::encode(&self.head, &self.units, &self.choices)
    }
}

/// Frequencies that sum to 4096: about halved from the middle outwards, some of them 0.
fn frequencies(w: u32, random: &mut Random) -> Vec<u32> {
    let n = 1usize << w;
    let mut freqs = vec![0u32; n];
    let mut left = 4096;
    let middle = random.below(n as u64) as usize;
    for k in 0..n {
        let s = if k % 2 == 0 { middle + k / 2 } else { middle + n - k / 2 - 1 } % n;
        let f = match random.below(8) {
            0 => 0,
            _ => (left / 3).max(1).min(left),
        };
        freqs[s] = f;
        left -= f;
    }
    freqs[middle] += left;
    freqs
}

/// A kit of any kind, valid.
fn kit(dtype: Dtype, m: u32, w: u32, n_tables: usize, n_units: usize, seed: u64) -> Kit {
    let mut random = Random::new(seed);
    let tables: Vec<_> = (0..n_tables).map(|_| frequencies(w, &mut random)).collect();
    let mut head = Head::plain(dtype, m, 0, tables);
    let room = (1u64 << head.field_bits()) - (1 << w) + 1;
    head.base = random.below(room) as u32;
    let fields = 1u32 << head.field_bits();
    head.first = match random.below(2) {
        0 if head.base > 0 => random.below(head.base.into()) as u32,
        1 if head.base + (1 << w) < fields => fields - 1,
        _ => head.base,
    };
    head.log_segment = 8 + random.below(3) as u32;
    if head.low_bits() > 0 {
        let all = head.low_bits() as u8;
        head.low_widths = vec![all];
        let more = [all - 1, all / 2, all / 3, 3, 0];
        for &width in &more[..random.below(6) as usize] {
            if width < *head.low_widths.last().unwrap() && head.low_widths.len() < 4 {
                head.low_widths.push(width);
            }
        }
    }
    let segments = n_units >> head.log_segment;
    let choices = Choices {
        tables: (0..=segments).map(|_| random.below(n_tables as u64) as usize).collect(),
        low_widths: (0..=segments)
            .map(|_| random.below(head.low_widths.len().max(1) as u64) as usize)
            .collect(),
        q: random.below(8) as u32,
        begin: vec![],
    };
    let mut units = vec![];
    for i in 0..n_units {
        let segment = i >> head.log_segment;
        let low = if head.low_bits() > 0 {
            let width = u32::from(head.low_widths[choices.low_widths[segment]]);
            let low = random.bits() & ((1 << width) - 1);
            low << (head.low_bits() - width)
        } else {
            0
        };
        let residual = match head.residual_bits() {
            0 => 0,
            r => random.below(1 << r) as u8,
        };
        let field = match random.below(40) {
            // As far from the window as an exception reaches.
            0 => {
                let from = head.base.saturating_sub(16_000);
                let end = fields.min(head.base + (1 << w) + 16_000);
                from + random.below((end - from).into()) as u32
            }
            _ => {
                // A symbol as often as its frequency says.
                let mut at = random.below(4096) as u32;
                let table = &head.tables[choices.tables[segment]];
                let symbol = table.iter().position(|&f| {
                    let here = at < f;
                    at = at.wrapping_sub(f);
                    here
                });
                match symbol.unwrap() as u32 {
                    0 => head.first,
                    s => head.base + s,
                }
            }
        };
        units.extend(head.join(field, residual, low));
    }
    Kit { head, units, choices }
}

const DTYPES: [(Dtype, u32); 9] = [
    (Dtype::BF16, 7),
    (Dtype::F16, 2),
    (Dtype::F32, 7),
    (Dtype::F64, 4),
    (Dtype::F8_E4M3, 3),
    (Dtype::F8_E5M2, 2),
    (Dtype::F8_E4M3FNUZ, 3),
    (Dtype::U8, 0),
    (Dtype::I32, 0),
];

/// Whatever the specification allows is read by every backend as the oracle reads it, and what the
/// encoder writes is read by the oracle.
#[test]
fn every_valid_choice_is_read() {
    let mut random = Random::new(77);
    let mut n = 0;
    for (dtype, most) in DTYPES {
        for m in 0..=most {
            for _ in 0..6 {
                let field_bits = Head::plain(dtype, m, 0, vec![vec![0; 32]]).field_bits();
                if field_bits < 5 {
                    continue;
                }
                let w = 5 + random.below(u64::from(field_bits.min(8)) - 4) as u32;
                let n_tables = 1 + random.below(8) as usize;
                let n_units = 256 + 4 * random.below(500) as usize;
                let kit = kit(dtype, m, w, n_tables, n_units, random.bits());
                let what = format!("{:?}", kit.head);
                let head = kit.head.write();
                assert_eq!(Head::read(dtype, &head).unwrap().write(), head, "{what}");
                let decoded = outcome(&kit.spec(), &head, &kit.block().bytes(), true, &what);
                assert!(decoded.unwrap() == kit.units, "{what}");
                n += 1;

                let level = [Level::Fast, Level::Default, Level::Small][n % 3];
                let spec = kit.spec();
                let ours = encode_tensor(&Ans::new(level), &spec, &kit.units).unwrap();
                let read = by_oracle(&spec, ours.head(), ours.block(0)).unwrap();
                assert!(read == kit.units, "{what}, encoded by the crate");
            }
        }
    }
    assert!(n > 150, "{n}");
}

/// Blocks are decoded in pieces, and the end states carry what the last groups end in, however the
/// groups fall into pieces.
#[test]
fn every_number_of_groups_is_read() {
    for n_groups in [1, 2, 3, 15, 16, 17, 18, 31, 32, 33, 34, 48, 49, 50] {
        // Residuals of one bit and of eight: two groups carry all of theirs, or the last a part.
        for (dtype, m, w) in [(Dtype::F8_E5M2, 2, 6), (Dtype::BF16, 0, 5), (Dtype::F64, 0, 5)] {
            let kit = kit(dtype, m, w, 2, 256 * n_groups + n_groups % 3, n_groups as u64);
            let what = format!("{n_groups} groups of {dtype}");
            let block = kit.block().bytes();
            let decoded = outcome(&kit.spec(), &kit.head.write(), &block, true, &what);
            assert!(decoded.unwrap() == kit.units, "{what}");
        }
    }
}

/// Backends take up to four blocks at once, whatever their lengths.
#[test]
fn a_full_block_and_a_short_one() {
    let mut random = Random::new(3);
    let full = spec(Dtype::BF16, MAX_BLOCK_UNITS);
    let n = MAX_BLOCK_UNITS;
    for n_units in [n + 1000, 2 * n + 300, 3 * n + 5000, 3 * n + n / 2, 3 * n + n / 2 + 256] {
        let value = |_| (0x3c00 + (random.below(8) * random.below(8) * 64) as u16).to_le_bytes();
        let bytes: Vec<u8> = (0..n_units).flat_map(value).collect();
        // Those of a tensor this small would be equal.
        let (head, blocks) = encode_blocks(&Ans::default(), &full, &bytes);
        let blocks: Vec<&[u8]> = blocks.iter().map(|block| &block[..]).collect();
        assert!(blocks.iter().all(|b| b[0] == 2), "every block is coded");
        for ans in backends() {
            let mut dst = vec![0; bytes.len()];
            ans.open(&full, &head).unwrap().decode_blocks(&blocks, &mut dst).unwrap();
            assert!(dst == bytes, "{:?}", ans.backend());
        }
    }
}

/// A kit of everything: two tables of which one lacks symbols, exceptions on all sides, a tail.
fn bf16() -> Kit {
    let mut first = vec![0; 32];
    first[3..9].copy_from_slice(&[1000, 1500, 1000, 500, 90, 6]);
    let mut second = vec![128; 32];
    second[0] = 0;
    second[1] = 256;
    let mut head = Head::plain(Dtype::BF16, 1, 200, vec![first, second]);
    head.first = 0;
    let mut random = Random::new(5);
    let units = (0..700u32).flat_map(|i| {
        let field = match i {
            10 => 0,
            20 => 199,
            21 => 232,
            30 => 511,
            40 => 201,
            300 => 100,
            400 => 200,
            _ => 203 + (random.below(16) as u32 % 5),
        };
        head.join(field, random.below(128) as u8, 0)
    });
    let units = units.collect();
    let choices = Choices { tables: vec![0, 1], low_widths: vec![], q: 4, begin: vec![] };
    Kit { head, units, choices }
}

/// Three tables, three low widths, more segments than one byte of numbers.
fn f32() -> Kit {
    let mut random = Random::new(9);
    let tables = (0..3).map(|_| frequencies(5, &mut random)).collect();
    let mut head = Head::plain(Dtype::F32, 1, 100, tables);
    head.low_widths = vec![16, 11, 0];
    let choices = Choices {
        tables: vec![0, 1, 2, 1, 0],
        low_widths: vec![2, 1, 0, 1, 2],
        q: 3,
        begin: vec![],
    };
    let units = (0..1300u32).flat_map(|i| {
        let width = u32::from(head.low_widths[choices.low_widths[(i as usize / 256).min(4)]]);
        let low = (random.bits() & ((1 << width) - 1)) << (16 - width);
        head.join(100 + random.below(32) as u32, random.below(128) as u8, low)
    });
    let units = units.collect();
    Kit { head, units, choices }
}

fn bytes() -> Kit {
    kit(Dtype::U8, 0, 8, 1, 600, 3)
}

/// A residual of one bit, whose 32 bytes are all carried, by half of the lanes.
fn e5m2() -> Kit {
    let mut kit = kit(Dtype::F8_E5M2, 2, 6, 2, 300, 4);
    kit.head.log_segment = 8;
    kit.choices.tables = vec![1];
    kit
}

/// What must come of a case.
type HeadCase = (&'static str, fn(&mut Vec<u8>), Rule);

#[test]
fn heads() {
    /// The head of a BF16 tensor with these frequencies.
    fn of(freqs: &[u32]) -> Vec<u8> {
        let mut out = Head::plain(Dtype::BF16, 1, 100, vec![vec![128; 32]]).write();
        out.truncate(14);
        let mut bits = Bits::default();
        oracle::push_table(&mut bits, freqs);
        out.extend(bits.bytes(1));
        out
    }
    let mut sum_below = vec![128; 32];
    sum_below[7] = 127;
    let mut sum_above = vec![128; 32];
    sum_above[31] = 129;
    let mut one = vec![0; 32];
    one[9] = 4096;
    let mut nearly_one = vec![0; 32];
    (nearly_one[9], nearly_one[30]) = (4095, 1);
    let mut more = vec![0; 32];
    more[9] = 4097;
    let spec = spec(Dtype::BF16, 300);
    for (name, freqs, ok) in [
        // G-01
        ("a sum of 4095", sum_below, false),
        // G-02
        ("a sum of 4097", sum_above, false),
        // G-05
        ("all the mass at one symbol", one, false),
        ("all the mass but for one in 4096", nearly_one, true),
        ("a frequency of 4097", more, false),
        ("a frequency of 8191", [&[8191][..], &[0; 31]].concat(), false),
        ("a frequency of 8192", [&[8192][..], &[0; 31]].concat(), false),
        ("a frequency of 32767", [&[32767][..], &[0; 31]].concat(), false),
        // G-06
        ("no frequencies", vec![0; 32], false),
        // G-07
        ("a table of 31 symbols", [[132; 31], [4; 31]].concat()[..31].to_vec(), false),
        ("sums that wrap at 2^16", [&[4095; 17][..], &[17], &[0; 14]].concat(), false),
    ] {
        let head = of(&freqs);
        let raw = [&[0; 8][..], &[7; 600]].concat();
        let found = outcome(&spec, &head, &raw, true, name);
        assert_eq!(found.err(), (!ok).then_some(Rule::FrequencyTable), "{name}");
    }

    let bf16: &[HeadCase] = &[
        ("empty", Vec::clear, Rule::AnsHead),
        ("13 bytes", |h| h.truncate(13), Rule::AnsHead),
        ("no table", |h| h.truncate(14), Rule::FrequencyTable),
        ("a table cut short", |h| h.truncate(h.len() - 1), Rule::FrequencyTable),
        ("a byte more", |h| h.push(0), Rule::AnsHead),
        ("a bit behind the tables", |h| *h.last_mut().unwrap() |= 0x80, Rule::PaddingNotZero),
        ("m 8", |h| h[0] = 8, Rule::AnsHead),
        ("m 16", |h| h[0] = 16, Rule::AnsHead),
        ("m 255", |h| h[0] = 255, Rule::AnsHead),
        ("4 symbol bits", |h| h[1] = 4, Rule::AnsHead),
        ("0 symbol bits", |h| h[1] = 0, Rule::AnsHead),
        // G-07
        ("9 symbol bits", |h| h[1] = 9, Rule::AnsHead),
        ("255 symbol bits", |h| h[1] = 255, Rule::AnsHead),
        ("6 symbol bits for a table of 5", |h| h[1] = 6, Rule::FrequencyTable),
        ("segments of 2^7", |h| h[2] = 7, Rule::AnsHead),
        ("segments of 2^0", |h| h[2] = 0, Rule::AnsHead),
        ("segments of 2^17", |h| h[2] = 17, Rule::AnsHead),
        ("segments of 2^255", |h| h[2] = 255, Rule::AnsHead),
        // G-06
        ("no tables", |h| h[3] = 0, Rule::AnsHead),
        ("9 tables", |h| h[3] = 9, Rule::AnsHead),
        ("255 tables", |h| h[3] = 255, Rule::AnsHead),
        ("one table fewer than there are", |h| h[3] = 1, Rule::AnsHead),
        ("one table more than there are", |h| h[3] = 3, Rule::FrequencyTable),
        (
            "a window past the field",
            |h| h[4..6].copy_from_slice(&481u16.to_le_bytes()),
            Rule::AnsHead,
        ),
        ("base 65535", |h| h[4..6].fill(0xff), Rule::AnsHead),
        (
            "first inside the window",
            |h| h[6..8].copy_from_slice(&201u16.to_le_bytes()),
            Rule::AnsHead,
        ),
        (
            "first at the window's end",
            |h| h[6..8].copy_from_slice(&231u16.to_le_bytes()),
            Rule::AnsHead,
        ),
        (
            "first beyond the field",
            |h| h[6..8].copy_from_slice(&512u16.to_le_bytes()),
            Rule::AnsHead,
        ),
        ("first 65535", |h| h[6..8].fill(0xff), Rule::AnsHead),
        ("a low width without low bits", |h| h[8] = 1, Rule::AnsHead),
        ("255 low widths", |h| h[8] = 255, Rule::AnsHead),
        ("reserved", |h| h[9] = 4, Rule::ReservedNotZero),
        ("columns that are not there", |h| h[9] = 2, Rule::AnsHead),
        ("a head of masks that is not there", |h| h[9] = 1, Rule::AnsHead),
        ("an unused low width", |h| h[10] = 1, Rule::ReservedNotZero),
        ("the last unused low width", |h| h[13] = 1, Rule::ReservedNotZero),
    ];
    run_heads(&self::bf16(), bf16);
    let f32: &[HeadCase] = &[
        ("no low width", |h| h[8..14].fill(0), Rule::AnsHead),
        ("5 low widths", |h| h[8] = 5, Rule::AnsHead),
        ("the first not all", |h| h[10] = 15, Rule::AnsHead),
        ("the first more than all", |h| h[10] = 17, Rule::AnsHead),
        ("two equal", |h| h[11] = 16, Rule::AnsHead),
        ("rising", |h| h[12] = 12, Rule::AnsHead),
        ("a fourth, uncounted", |h| h[13] = 1, Rule::ReservedNotZero),
        ("a fourth, equal", |h| h[8] = 4, Rule::AnsHead),
    ];
    run_heads(&self::f32(), f32);
    run_heads(&bytes(), &[("m 1", |h| h[0] = 1, Rule::AnsHead)]);
    // A field of four bits has no window of 32.
    let mut head = Head::plain(Dtype::F8_E4M3, 1, 0, vec![vec![128; 32]]);
    assert!(Head::read(Dtype::F8_E4M3, &head.write()).is_ok());
    head.m = 0;
    let e4m3 = self::spec(Dtype::F8_E4M3, 300);
    let raw = [&[0; 8][..], &[7; 300]].concat();
    assert_eq!(outcome(&e4m3, &head.write(), &raw, true, "m 0"), Err(Rule::AnsHead));
    // Every other value of every byte before the tables.
    for kit in [self::bf16(), self::f32(), bytes(), e5m2()] {
        let head = kit.head.write();
        let block = kit.block().bytes();
        for at in 0..14 {
            for value in 0..=255 {
                let mut damaged = head.clone();
                damaged[at] = value;
                let what = format!("{} {value} at {at}", kit.head.dtype);
                let _ = outcome_quick(&kit.spec(), &damaged, &block, &what);
            }
        }
    }
}

fn run_heads(kit: &Kit, cases: &[HeadCase]) {
    let block = kit.block().bytes();
    let head = kit.head.write();
    let sound = outcome(&kit.spec(), &head, &block, true, "undamaged");
    assert!(sound.unwrap() == kit.units);
    for (name, damage, rule) in cases {
        let mut head = head.clone();
        damage(&mut head);
        assert_eq!(outcome(&kit.spec(), &head, &block, true, name), Err(*rule), "{name}");
    }
}

/// Backends and oracle alone: for damage in great numbers.
fn outcome_quick(spec: &TensorSpec, head: &[u8], block: &[u8], what: &str) -> Outcome {
    let expected = by_oracle(spec, head, block);
    let mut first = None;
    for ans in backends() {
        let found = by_blocks(&ans, spec, head, block);
        let same = match (&found, &expected) {
            (Ok(found), Ok(expected)) => found == expected,
            (Err(_), Err(_)) => true,
            _ => false,
        };
        let opinions = (found.as_ref().err(), expected.as_ref().err());
        assert!(same, "{what}, {:?}: backend and oracle say {opinions:?}", ans.backend());
        let first = first.get_or_insert_with(|| found.clone());
        assert_eq!(found.err(), first.as_ref().err().copied(), "{what}, {:?}", ans.backend());
    }
    first.unwrap()
}

/// A kernel that finds no words reads the other bytes of the block as words, and stops where these
/// end: among groups of which some keep all low bits and some none.
#[test]
fn words_that_end_among_groups_of_different_widths() {
    const GROUPS: usize = 68;
    // All units have the symbol 0, and a word of zeros leads to it again: three for four symbols.
    let mut freqs = vec![1; 32];
    freqs[1] = 4096 - 31;
    let mut head = Head::plain(Dtype::F32, 1, 240, vec![freqs]);
    head.low_widths = vec![16, 0];
    let units = (240u32 << 22).to_le_bytes().repeat(256 * GROUPS);
    let low_widths = (0..GROUPS).map(|group| usize::from(group % 8 != 0)).collect();
    let choices = oracle::Choices { tables: vec![0; GROUPS], low_widths, q: 0, begin: vec![] };
    let spec = spec(Dtype::F32, 256 * GROUPS);
    let mut block = oracle::encode(&head, &units, &choices);
    assert_eq!(outcome(&spec, &head.write(), &block.bytes(), true, "sound"), Ok(units));
    block.set_words(&[]);
    let found = outcome(&spec, &head.write(), &block.bytes(), true, "no words");
    assert_eq!(found.err(), Some(Rule::AnsWords));
}

/// Blocks of masks are decoded together although one has fewer units that are not zero: what is
/// left of the longer one may begin behind all words.
#[test]
fn words_that_end_before_a_block_goes_on_alone() {
    let mut freqs = vec![1; 32];
    freqs[1] = 4096 - 31;
    let mut head = Head::plain(Dtype::BF16, 1, 240, vec![freqs]);
    head.mask = Some(Box::new(Head::plain(Dtype::U8, 0, 0, vec![vec![16; 256]])));
    let spec = spec(Dtype::BF16, 2 * MAX_BLOCK_UNITS);
    let full = spec.block_units();
    let blocks = [170, 150].map(|groups: usize| {
        let units = (240u16 << 6).to_le_bytes().repeat(256 * groups);
        let (tables, low_widths) = (vec![0; groups], vec![]);
        let choices = oracle::Choices { tables, low_widths, q: 0, begin: vec![] };
        let mut others = oracle::encode(&head, &units, &choices);
        others.set_words(&[]);
        let ones = 256 / 8 * groups;
        let mask = [vec![0; 8], vec![0xff; ones], vec![0; full / 8 - ones]].concat();
        oracle::zeros_block(&mask, &others.bytes(), 256 * groups)
    });
    for ans in backends() {
        let decoder = ans.open(&spec, &head.write()).unwrap();
        let mut dst = vec![0; 2 * spec.block_bytes()];
        let found = decoder.decode_blocks(&[&blocks[0], &blocks[1]], &mut dst);
        assert_eq!(found.unwrap_err().rule(), Rule::AnsWords, "{:?}", ans.backend());
    }
}

type BlockCase = (&'static str, fn(&Kit, &mut Block), Rule);

fn run_blocks(kit: &Kit, cases: &[BlockCase]) {
    for (name, damage, rule) in cases {
        let mut block = kit.block();
        damage(kit, &mut block);
        let found = outcome(&kit.spec(), &kit.head.write(), &block.bytes(), true, name);
        assert_eq!(found.err(), Some(*rule), "{name}");
    }
}

/// The words of a block.
fn words(block: &Block) -> Vec<u16> {
    let n = u32::from_le_bytes(block.header[4..8].try_into().unwrap()) as usize;
    let words = block.words.chunks(2).map(|w| u16::from_le_bytes([w[0], w[1]]));
    words.take(n).collect()
}

/// The block as if the encoder had begun with other states.
fn begun_with(kit: &Kit, begin: &[(usize, u32)]) -> Block {
    let choices = Choices { begin: begin.to_vec(), ..kit.choices.clone() };
    oracle::encode(&kit.head, &kit.units, &choices)
}

/// The exceptions of the bf16 kit.
fn exceptions() -> Vec<(usize, u32)> {
    vec![(10, 0), (20, 199), (21, 232), (30, 511), (40, 201), (300, 100), (400, 200)]
}

#[test]
fn blocks() {
    let kit = bf16();
    // The kit's exceptions are those of the list, but for the zero, which has a symbol that the
    // first table lacks.
    let mut block = kit.block();
    block.set_exceptions(&kit.head, &exceptions(), 4);
    assert_eq!(block.bytes(), kit.block().bytes());
    run_blocks(
        &kit,
        &[
            ("kind 3", |_, b| b.header[0] = 3, Rule::AnsBlockHeader),
            ("kind 255", |_, b| b.header[0] = 255, Rule::AnsBlockHeader),
            ("raw of another length", |_, b| b.header[0] = 0, Rule::AnsBlockLength),
            ("constant of another length", |_, b| b.header[0] = 1, Rule::ConstantBlock),
            ("Rice parameter 16", |_, b| b.header[1] = 16, Rule::AnsBlockHeader),
            ("Rice parameter 255", |_, b| b.header[1] = 255, Rule::AnsBlockHeader),
            (
                // G-15
                "more words than units",
                |_, b| b.header[4..8].copy_from_slice(&513u32.to_le_bytes()),
                Rule::AnsBlockHeader,
            ),
            ("2^32-1 words", |_, b| b.header[4..8].fill(0xff), Rule::AnsBlockHeader),
            (
                "as many words as units, not there",
                |_, b| b.header[4..8].copy_from_slice(&512u32.to_le_bytes()),
                Rule::AnsBlockLength,
            ),
            (
                // G-10
                "a word left over",
                |_, b| {
                    let mut words = words(b);
                    words.push(0);
                    b.set_words(&words);
                },
                Rule::AnsWords,
            ),
            (
                "two words left over",
                |_, b| {
                    let mut words = words(b);
                    words.extend([1, 2]);
                    b.set_words(&words);
                },
                Rule::AnsWords,
            ),
            (
                // G-11
                "a word too few",
                |_, b| {
                    let mut words = words(b);
                    words.pop();
                    b.set_words(&words);
                },
                Rule::AnsWords,
            ),
            // G-11
            ("no words", |_, b| b.set_words(&[]), Rule::AnsWords),
            (
                // G-18
                "padding of the states",
                |_, b| *b.states.last_mut().unwrap() |= 0x80,
                Rule::PaddingNotZero,
            ),
            (
                "padding of the words",
                |_, b| {
                    let mut words = words(b);
                    if words.len().is_multiple_of(2) {
                        words.push(0);
                        b.set_words(&words);
                    }
                    *b.words.last_mut().unwrap() = 1;
                },
                Rule::PaddingNotZero,
            ),
            ("a bit behind the numbers of tables", |_, b| b.ids[0] |= 4, Rule::PaddingNotZero),
            ("padding of the numbers", |_, b| b.ids[1] = 1, Rule::PaddingNotZero),
            ("padding of the numbers, last", |_, b| b.ids[3] = 0x80, Rule::PaddingNotZero),
            ("another table", |_, b| b.ids[0] ^= 1, Rule::AnsWords),
            (
                // G-09
                "a lane that ends above",
                |k, b| *b = begun_with(k, &[(5, 1 << 17)]),
                Rule::AnsEndState,
            ),
            (
                "a lane that ends far above",
                |k, b| *b = begun_with(k, &[(31, u32::MAX)]),
                Rule::AnsEndState,
            ),
            ("no tail", |_, b| b.tail.clear(), Rule::AnsBlockLength),
            // G-12
            ("a byte more", |_, b| b.tail.push(0), Rule::AnsException),
            (
                // G-17
                "residual a byte short",
                |_, b| b.residual.truncate(b.residual.len() - 1),
                Rule::AnsException,
            ),
            ("no residual", |_, b| b.residual.clear(), Rule::AnsBlockLength),
            ("an exception more", |_, b| b.header[2] += 1, Rule::AnsException),
            ("an exception fewer", |_, b| b.header[2] -= 1, Rule::AnsException),
            // G-15
            ("65,535 exceptions", |_, b| b.header[2..4].fill(0xff), Rule::AnsException),
            ("no exceptions", |_, b| b.header[2..4].fill(0), Rule::AnsException),
            ("a byte behind the exceptions", |_, b| b.exceptions.push(0), Rule::AnsException),
            (
                "a bit behind the exceptions",
                |k, b| {
                    let mut bits = oracle::write_exceptions(&k.head, &exceptions(), 4);
                    assert!(!bits.0.len().is_multiple_of(8));
                    bits.push(1, 1);
                    b.exceptions = bits.bytes(1);
                },
                Rule::PaddingNotZero,
            ),
            ("ones without end", |_, b| b.exceptions.fill(0xff), Rule::AnsException),
            (
                // Times 2^15 it is 2^32.
                "a gap that comes round to 0",
                |_, b| {
                    let mut bits = Bits::default();
                    bits.unary(1 << 17);
                    bits.push(0, 15);
                    bits.push(0b11, 2);
                    bits.push(0, 5);
                    b.header[1..4].copy_from_slice(&[15, 1, 0]);
                    b.exceptions = bits.bytes(1);
                },
                Rule::AnsException,
            ),
            ("ones for 60,000 bytes", |_, b| b.exceptions = vec![0xff; 3000], Rule::AnsException),
            ("another Rice parameter", |_, b| b.header[1] = 5, Rule::AnsException),
            (
                "an exception that has a symbol",
                |k, b| {
                    let mut list = exceptions();
                    list[0].1 = 204;
                    b.set_exceptions(&k.head, &list, 4);
                },
                Rule::AnsException,
            ),
            (
                "an exception of the first field that has a symbol",
                |k, b| {
                    let mut list = exceptions();
                    // The second table has symbol 1, field 201; the first has not.
                    list[5].1 = 201;
                    b.set_exceptions(&k.head, &list, 4);
                },
                Rule::AnsException,
            ),
            (
                "an exception beyond the groups",
                |k, b| {
                    let mut list = exceptions();
                    list.push((512, 100));
                    b.set_exceptions(&k.head, &list, 4);
                },
                Rule::AnsException,
            ),
            (
                "an exception in the tail",
                |k, b| {
                    let mut list = exceptions();
                    list.push((699, 100));
                    b.set_exceptions(&k.head, &list, 4);
                },
                Rule::AnsException,
            ),
            (
                "an exception far beyond",
                |k, b| {
                    let mut list = exceptions();
                    list.push((60_000, 100));
                    b.set_exceptions(&k.head, &list, 0);
                },
                Rule::AnsException,
            ),
            (
                "a field of 512",
                |k, b| {
                    let mut list = exceptions();
                    list[3].1 = 512;
                    b.set_exceptions(&k.head, &list, 4);
                },
                Rule::AnsException,
            ),
            (
                "a field below 0",
                |_, b| {
                    // Distance 200 below a window that begins at 200.
                    let mut bits = Bits::default();
                    bits.unary(0);
                    bits.push(0, 4);
                    bits.push(0, 1);
                    bits.unary(6);
                    bits.push(101 - 64, 6);
                    bits.push(0, 1);
                    b.header[2..4].copy_from_slice(&[1, 0]);
                    b.exceptions = bits.bytes(1);
                },
                Rule::AnsException,
            ),
            (
                "a distance of 13 bits",
                |_, b| {
                    let mut bits = Bits::default();
                    bits.unary(0);
                    bits.push(0, 4);
                    bits.push(0, 1);
                    bits.unary(13);
                    bits.push(0, 14);
                    b.header[2..4].copy_from_slice(&[1, 0]);
                    b.exceptions = bits.bytes(1);
                },
                Rule::AnsException,
            ),
        ],
    );
    // G-08
    // A lane's state cannot be below the bound: the shortest form is the bound itself, which is a
    // state like others.
    let mut block = kit.block();
    block.lengths.fill(0);
    block.states = vec![0; 64];
    let found = outcome(&kit.spec(), &kit.head.write(), &block.bytes(), true, "least states");
    assert!(matches!(found, Err(Rule::AnsWords | Rule::AnsEndState)));
    let mut block = kit.block();
    block.set_states(&[u32::MAX; 32]);
    let found = outcome(&kit.spec(), &kit.head.write(), &block.bytes(), true, "greatest states");
    assert!(matches!(found, Err(Rule::AnsWords | Rule::AnsEndState)));

    run_blocks(
        &f32(),
        &[
            // G-16
            ("table 3 of 3", |_, b| b.ids[0] |= 3, Rule::AnsTableId),
            ("table 3 of 3, the last segment", |_, b| b.ids[1] |= 3, Rule::AnsTableId),
            ("low width 3 of 3", |_, b| b.ids[1] |= 0x0c, Rule::AnsTableId),
            ("low width 3 of 3, the last segment", |_, b| b.ids[2] |= 0x0c, Rule::AnsTableId),
            (
                "low planes a byte short",
                |_, b| b.lows.truncate(b.lows.len() - 1),
                Rule::AnsException,
            ),
            ("no low planes", |_, b| b.lows.clear(), Rule::AnsBlockLength),
        ],
    );
    let kit = e5m2();
    assert!(kit.block().residual.is_empty());
    run_blocks(
        &kit,
        &[
            (
                "a lane that carries nothing ends elsewhere",
                |k, b| *b = begun_with(k, &[(16, (1 << 16) + 1)]),
                Rule::AnsEndState,
            ),
            (
                "the last lane ends elsewhere",
                |k, b| *b = begun_with(k, &[(31, (1 << 16) + 0x8000)]),
                Rule::AnsEndState,
            ),
        ],
    );
    // The greatest parameter, whatever the gaps are.
    for mut kit in [bf16(), f32()] {
        kit.choices.q = 15;
        let block = kit.block().bytes();
        let found = outcome(&kit.spec(), &kit.head.write(), &block, true, "Rice parameter 15");
        assert!(found.unwrap() == kit.units);
    }
    // What a lane does carry may be anything.
    let other = begun_with(&kit, &[(15, (1 << 16) + 0xffff)]);
    let found = outcome(&kit.spec(), &kit.head.write(), &other.bytes(), true, "carried");
    assert!(found.is_ok());
}

/// What a block lacks that is too short is said in bytes: the least length that gets any further.
#[test]
fn a_cut_block_is_told_how_long_it_must_be() {
    for kit in [bf16(), f32(), e5m2()] {
        let (spec, head, block) = (kit.spec(), kit.head.write(), kit.block().bytes());
        let decoder = Ans::default().open(&spec, &head).unwrap();
        let mut dst = vec![0; spec.byte_len() as usize];
        let (mut needed, mut steps) = (0, 0);
        for len in 1..block.len() {
            let error = decoder.decode_blocks(&[&block[..len]], &mut dst).unwrap_err();
            if error.rule() != Rule::AnsBlockLength {
                assert!(len >= needed && error.rule() == Rule::AnsException, "{len}: {error}");
                continue;
            }
            let text = error.to_string();
            let said = text.split("expected ").nth(1).and_then(|t| t.split(' ').next()).unwrap();
            let said: usize = said.parse().unwrap();
            if len < needed {
                assert_eq!(said, needed, "{len}: {text}");
            } else {
                assert!(said > len && said <= block.len(), "{len}: {text}");
                (needed, steps) = (said, steps + 1);
            }
        }
        assert!(steps >= 6, "{steps} sections");
    }
    let kit = bf16();
    let mut block = kit.block();
    block.header[4..8].copy_from_slice(&513u32.to_le_bytes());
    let decoder = Ans::default().open(&kit.spec(), &kit.head.write()).unwrap();
    let error = decoder.decode_blocks(&[&block.bytes()], &mut vec![0; 1400]).unwrap_err();
    assert!(error.to_string().contains("at most 512 words in 2 groups, found 513"), "{error}");
    let raw = [&[0; 8][..], &[7; 1399]].concat();
    for (block, said) in [
        (&raw[..], "expected 1408, found 1407"),
        (&[3, 0][..], "expected a kind other than 3, as the head has no masks, found 3"),
        (&[5, 0][..], "expected a kind other than 5, as the head has no columns, found 5"),
        (&[6, 0][..], "expected kind 0, 1, 2, 3, 4 or 5, found 6"),
        (&[][..], "expected kind 0, 1, 2, 3, 4 or 5, found -1"),
    ] {
        let error = decoder.decode_blocks(&[block], &mut vec![0; 1400]).unwrap_err();
        assert!(error.to_string().ends_with(said), "{error}");
    }
}

#[test]
fn blocks_of_other_kinds() {
    let head = bf16().head.write();
    let check = |name: &str, n_units: usize, block: &[u8], expected: Option<Rule>| {
        let found = outcome(&spec(Dtype::BF16, n_units), &head, block, true, name);
        assert_eq!(found.err(), expected, "{name}");
    };
    let raw = |n: usize| [&[0; 8][..], &vec![7; n]].concat();
    check("raw", 300, &raw(600), None);
    check("raw, one unit", 1, &raw(2), None);
    check("raw, a byte short", 300, &raw(599), Some(Rule::AnsBlockLength));
    check("raw, a byte long", 300, &raw(601), Some(Rule::AnsBlockLength));
    check("raw, the header alone", 300, &raw(0), Some(Rule::AnsBlockLength));
    check("raw, seven bytes", 3, &[0; 7], Some(Rule::AnsBlockLength));
    for at in 1..8 {
        let mut block = raw(600);
        block[at] = 1;
        check("raw, reserved bytes", 300, &block, Some(Rule::AnsBlockHeader));
    }
    let constant = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[0x80, 0x3f].repeat(28)].concat();
    check("constant", 300, &constant, None);
    check("constant of 64 bytes", 32, &constant, None);
    check("constant of a full block", MAX_BLOCK_UNITS, &constant, None);
    check("constant of 62 bytes", 31, &constant, Some(Rule::ConstantBlock));
    check("constant of 2 bytes", 1, &constant, Some(Rule::ConstantBlock));
    check("constant, a byte short", 300, &constant[..63], Some(Rule::ConstantBlock));
    check("constant, a byte long", 300, &[&constant[..], &[0]].concat(), Some(Rule::ConstantBlock));
    for at in 1..8 {
        let mut block = constant.clone();
        block[at] = 0x10;
        check("constant, reserved bytes", 300, &block, Some(Rule::AnsBlockHeader));
    }
    for at in 8..64 {
        let mut block = constant.clone();
        block[at] ^= 1;
        check("not constant", 300, &block, Some(Rule::ConstantBlock));
    }
    check("empty", 300, &[], Some(Rule::AnsBlockHeader));
    check("one byte", 300, &[2], Some(Rule::AnsBlockLength));
    // No group, so nothing to decode.
    let mut short = bf16().block().bytes();
    check("ANS of 255 units", 255, &short, Some(Rule::AnsBlockHeader));
    short[4..8].fill(0);
    check("ANS of one unit", 1, &short, Some(Rule::AnsBlockHeader));
    // The same block as one of another length.
    let block = bf16().block().bytes();
    for n in [256, 511, 512, 699, 701, 768, 1024, MAX_BLOCK_UNITS] {
        let found = outcome(&spec(Dtype::BF16, n), &head, &block, false, "another length");
        assert!(found.is_err(), "{n}");
    }
}

/// A head for masks, and 700 units of which those are zero whose bit in the mask is not set.
fn zeros_kit() -> (Head, Vec<u8>, Vec<u8>) {
    let mut head = bf16().head;
    let mut freqs = vec![0; 256];
    freqs[..4].copy_from_slice(&[1000, 1000, 96, 2000]);
    head.mask = Some(Box::new(Head::plain(Dtype::U8, 0, 0, vec![freqs])));
    // 350 ones in 88 bytes, the last four bits of which are beyond the units.
    let mask = (0..88).map(|i| [0b0110_1001, 0b0011_1100][i % 2] & [0xff, 0x0f][i / 87]);
    (head, mask.collect(), bf16().units)
}

/// An ANS block of bytes that are all the first symbol of the head of masks, or exceptions.
fn coded_mask(head: &Head, mask: &[u8]) -> Vec<u8> {
    let choices = Choices { tables: vec![0; 9], low_widths: vec![0; 9], q: 1, begin: vec![] };
    oracle::encode(head.mask.as_ref().unwrap(), mask, &choices).bytes()
}

// G-20, G-21
#[test]
fn wrong_masks_of_zeros_are_refused() {
    let (head, mask, units) = zeros_kit();
    let k = mask.iter().map(|byte| byte.count_ones()).sum::<u32>() as usize;
    let raw = |bytes: &[u8]| [&[0; 8][..], bytes].concat();
    let others_of = |k: usize| raw(&units[..2 * k]);
    let others = others_of(k);
    let n = 700;
    let check = |name: &str, n: usize, block: &[u8], expected: Option<Rule>| {
        let found = outcome(&spec(Dtype::BF16, n), &head.write(), block, true, name);
        assert_eq!(found.err(), expected, "{name}");
    };
    let block = |mask: &[u8], others: &[u8], k: usize| oracle::zeros_block(mask, others, k);
    let good = block(&raw(&mask), &others, k);
    check("as it should be", n, &good, None);
    // Coded others: whole groups and a tail.
    let choices = Choices { tables: vec![0; 9], low_widths: vec![], q: 1, begin: vec![] };
    let coded = oracle::encode(&head, &units[..2 * k], &choices).bytes();
    check("coded others", n, &block(&raw(&mask), &coded, k), None);
    let one = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &units[..2].repeat(28)].concat();
    check("constant others", n, &block(&raw(&mask), &one, k), None);
    check("a constant mask", n, &block(&constant_mask(), &others, k), Some(Rule::ConstantBlock));
    let long = 4 * 1024;
    let long_mask = [0b0101_0101].repeat(long / 8);
    let constant = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &long_mask[..56]].concat();
    check(
        "a constant mask",
        long,
        &block(&constant, &raw(&units[..2].repeat(long / 2)), long / 2),
        None,
    );
    let long_mask: Vec<u8> = (0..long / 8).map(|i| [0, 1, 3, 3, 200][i % 5]).collect();
    let ones = long_mask.iter().map(|byte| byte.count_ones()).sum::<u32>() as usize;
    let long_others = raw(&units[..2].repeat(ones));
    let long_coded = coded_mask(&head, &long_mask);
    check("a coded mask", long, &block(&long_coded, &long_others, ones), None);
    // Every number of others but the right one, with as many others as that.
    for wrong in [1, k - 1, k + 1, n - 1] {
        let others = raw(&units[..2 * wrong]);
        check("another count", n, &block(&raw(&mask), &others, wrong), Some(Rule::ZeroMask));
        // The mask is checked before the units.
        let block = block(&raw(&mask), &others_of(k), wrong);
        let found = outcome_quick(&spec(Dtype::BF16, n), &head.write(), &block, "a count alone");
        assert_eq!(found, Err(Rule::ZeroMask));
    }
    for wrong in [0, n, n + 1, 1 << 17, u32::MAX as usize] {
        let block = block(&raw(&mask), &others, wrong);
        check("an impossible count", n, &block, Some(Rule::AnsBlockHeader));
    }
    // Every bit of the mask.
    for bit in 0..8 * mask.len() {
        let mut mask = mask.clone();
        mask[bit / 8] ^= 1 << (bit % 8);
        let rule = if bit < n { Rule::ZeroMask } else { Rule::PaddingNotZero };
        check("a bit of the mask", n, &block(&raw(&mask), &others, k), Some(rule));
    }
    // Kinds within.
    check("a mask of kind 3", n, &block(&good, &others, k), Some(Rule::AnsBlockHeader));
    check("others of kind 3", n, &block(&raw(&mask), &good, k), Some(Rule::AnsBlockHeader));
    check("no mask", n, &block(&[], &others, k), Some(Rule::AnsBlockHeader));
    check("no others", n, &block(&raw(&mask), &[], k), Some(Rule::AnsBlockHeader));
    // Lengths.
    for shorter in [&mask[1..], &mask[..mask.len() - 1]] {
        check("a shorter mask", n, &block(&raw(shorter), &others, k), Some(Rule::AnsBlockLength));
    }
    let longer = [&mask[..], &[0]].concat();
    check("a longer mask", n, &block(&raw(&longer), &others, k), Some(Rule::AnsBlockLength));
    for length in [0, 1, 7] {
        let found = by_blocks(
            &backends().next().unwrap(),
            &spec(Dtype::BF16, n),
            &head.write(),
            &good[..length],
        );
        assert!(found.is_err());
    }
    let mut damaged = good.clone();
    damaged[2..4].fill(0xff);
    check("a mask beyond the block", n, &damaged, Some(Rule::AnsBlockLength));
    let mut damaged = good.clone();
    damaged[1] = 1;
    check("reserved", n, &damaged, Some(Rule::AnsBlockHeader));
    // 88 and 8 bytes need no padding; 87 would.
    let short_mask = &[0b0110_1001; 87][..];
    let k_short = 4 * 87;
    let mut padded = block(&raw(short_mask), &raw(&units[..2 * k_short]), k_short);
    check("a padded mask", 696, &padded, None);
    padded[8 + 8 + 87] = 1;
    check("padding of the mask", 696, &padded, Some(Rule::PaddingNotZero));
    check("too few units", 255, &good, Some(Rule::AnsBlockHeader));
    // A head without masks.
    let plain = bf16().head.write();
    let found = outcome(&spec(Dtype::BF16, n), &plain, &good, true, "no head of masks");
    assert_eq!(found, Err(Rule::AnsBlockHeader));
    // A head of masks in a head of masks, and one that is cut short.
    let mut twice = head.clone();
    twice.mask.as_mut().unwrap().mask.clone_from(&head.mask);
    let found = outcome(&spec(Dtype::BF16, n), &twice.write(), &good, true, "masks of masks");
    assert_eq!(found, Err(Rule::ReservedNotZero));
    let bytes = head.write();
    for cut in plain.len()..bytes.len() {
        assert!(
            outcome_quick(&spec(Dtype::BF16, n), &bytes[..cut], &good, "cut").is_err(),
            "{cut}"
        );
    }
    // Everything else: every byte of header, mask and the others' header.
    for at in 0..good.len().min(130) {
        for bit in 0..8 {
            let mut damaged = good.clone();
            damaged[at] ^= 1 << bit;
            let _ = outcome_quick(&spec(Dtype::BF16, n), &bytes, &damaged, "a flipped bit");
        }
    }
}

fn constant_mask() -> Vec<u8> {
    [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[0x69; 55], &[0x68]].concat()
}

// G-23, G-24
#[test]
fn wrong_columns_are_refused() {
    let mut head = bf16().head;
    head.columns = (0..100).map(|i| (i * i % 8) as u8).collect();
    let units = bf16().units;
    let n = units.len() / 2;
    let order = |first: usize| oracle::order_of_classes(&head.columns, first, n);
    let ordered = |first: usize| -> Vec<u8> {
        order(first).into_iter().flat_map(|i| units[2 * i..][..2].to_vec()).collect()
    };
    let choices = Choices { tables: vec![0; 9], low_widths: vec![], q: 1, begin: vec![] };
    let within = |first: usize| oracle::encode(&head, &ordered(first), &choices).bytes();
    let check = |name: &str, head: &Head, block: &[u8], expected: Option<Rule>| {
        let found = outcome(&spec(Dtype::BF16, n), &head.write(), block, true, name);
        assert_eq!(found.err(), expected, "{name}");
    };
    for first in [0, 1, 37, 99] {
        let good = oracle::columns_block(first, &within(first));
        check("as it should be", &head, &good, None);
        let decoder = Ans::default().open(&spec(Dtype::BF16, n), &head.write()).unwrap();
        let mut back = vec![0; 2 * n];
        decoder.decode_blocks(&[&good], &mut back).unwrap();
        assert!(back == units, "first column {first}");
    }
    let good = oracle::columns_block(3, &within(3));
    // A column that the head does not have.
    for first in [100, 101, 0xffff] {
        let block = oracle::columns_block(first, &within(0));
        check("no such column", &head, &block, Some(Rule::AnsBlockHeader));
    }
    for at in [1, 4, 5, 6, 7] {
        let mut block = good.clone();
        block[at] = 1;
        check("reserved", &head, &block, Some(Rule::AnsBlockHeader));
    }
    // Every other kind within, and a block of this kind in itself.
    for kind in [0, 1, 3, 4, 5, 6] {
        let mut block = good.clone();
        block[8] = kind;
        check("another kind", &head, &block, Some(Rule::AnsBlockHeader));
    }
    let twice = oracle::columns_block(0, &good);
    check("columns in columns", &head, &twice, Some(Rule::AnsBlockHeader));
    let (k, raw) = (n / 2, |bytes: &[u8]| [&[0; 8][..], bytes].concat());
    let mut with_masks = zeros_kit().0;
    with_masks.columns.clone_from(&head.columns);
    check("with a head of masks", &with_masks, &good, None);
    let zeros = oracle::zeros_block(&raw(&[0x55; 88]), &good, k);
    check("columns in zeros", &with_masks, &zeros, Some(Rule::AnsBlockHeader));
    check("no columns", &bf16().head, &good, Some(Rule::AnsBlockHeader));
    for len in 0..good.len().min(80) {
        let found = outcome_quick(&spec(Dtype::BF16, n), &head.write(), &good[..len], "cut");
        assert!(found.is_err(), "{len} bytes");
    }
    // Heads: one column, columns that are cut short, and padding that is not zero.
    let bytes = head.write();
    let at = bf16().head.write().len();
    let head_rule =
        |bytes: &[u8]| outcome_quick(&spec(Dtype::BF16, n), bytes, &good, "a head").err();
    assert_eq!(head_rule(&bytes), None);
    for len in at..bytes.len() {
        assert_eq!(head_rule(&bytes[..len]), Some(Rule::AnsHead), "{len} bytes");
    }
    let with = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(head_rule(&[&bytes[..at], &[0, 0, 0]].concat()), Some(Rule::AnsHead));
    assert_eq!(head_rule(&with(bytes.len() - 1, 0x80)), Some(Rule::PaddingNotZero));
    assert_eq!(head_rule(&[&bytes[..], &[0]].concat()), Some(Rule::AnsHead));
    // As many columns as can be said, in a head of a few bytes: refused before memory is taken.
    assert_eq!(head_rule(&with(at, 0xff)), Some(Rule::AnsHead));
    assert_eq!(head_rule(&with(at + 1, 0xff)), Some(Rule::AnsHead));
    // Columns of masks.
    let mut of_masks = zeros_kit().0;
    of_masks.mask.as_mut().unwrap().columns = vec![0, 1];
    assert_eq!(head_rule(&of_masks.write()), Some(Rule::ReservedNotZero));
    // Every bit of the header and of what follows it.
    for at in 0..good.len().min(130) {
        for bit in 0..8 {
            let mut damaged = good.clone();
            damaged[at] ^= 1 << bit;
            let _ = outcome_quick(&spec(Dtype::BF16, n), &bytes, &damaged, "a flipped bit");
        }
    }
}

/// A number of some bits.
type Field = (u64, u32);

/// The bit string of a stream.
fn stream(fields: &[&[Field]]) -> Vec<u8> {
    let mut bits = Bits::default();
    fields.iter().copied().flatten().for_each(|&(value, n)| bits.push(value, n));
    bits.bytes(1)
}

/// The code of a literal or length in the fixed Huffman code, which begins with its highest bit.
fn fixed_code(symbol: u16) -> Field {
    let (code, n) = match symbol {
        0..144 => (0x30 + symbol, 8),
        144..256 => (0x190 + symbol - 144, 9),
        256..280 => (symbol - 256, 7),
        _ => (0xc0 + symbol - 280, 8),
    };
    (u64::from(code.reverse_bits() >> (16 - n)), n)
}

/// A match of 3 to 258 bytes: length and distance, each with its extra bits. The tables are those
/// of RFC 1951, section 3.2.5.
fn matched(length: u16, distance: u16) -> Vec<Field> {
    let lengths = (0..28u16).map(|i| match i {
        0..8 => (3 + i, 0),
        _ => (3 + ((4 + i % 4) << (i / 4 - 1)), u32::from(i / 4 - 1)),
    });
    let lengths = lengths.chain([(258, 0)]);
    let (symbol, (base, extra)) =
        (257..).zip(lengths).filter(|(_, l)| l.0 <= length).last().unwrap();
    let distances = (0..30u16).map(|i| match i {
        0..4 => (1 + i, 0),
        _ => (1 + ((2 + i % 2) << (i / 2 - 1)), u32::from(i / 2 - 1)),
    });
    let (code, (from, bits)) =
        (0u8..).zip(distances).filter(|(_, d)| d.0 <= distance).last().unwrap();
    vec![
        fixed_code(symbol),
        (u64::from(length - base), extra),
        (u64::from(code.reverse_bits() >> 3), 5),
        (u64::from(distance - from), bits),
    ]
}

// G-22
#[test]
fn wrong_streams_of_deflate_are_refused() {
    let (n, dtype) = (600, Dtype::U8);
    let mut head = Head::plain(dtype, 0, 0, vec![vec![16; 256]]);
    let raw = |bytes: &[u8]| [&[0; 8][..], bytes].concat();
    let check = |name: &str, block: &[u8], expected: Option<Rule>| {
        let found = outcome(&spec(dtype, n), &head.write(), block, true, name);
        assert_eq!(found.err(), expected, "{name}");
    };
    let wrong = Some(Rule::AnsDeflate);
    let block = oracle::deflate_block;
    // 20 literals, then their repetition: 258 bytes some times, then others; the end.
    let (last, fixed) = ([(1, 1)], [(1, 2)]);
    let end = [fixed_code(256)];
    let literals: Vec<Field> = (1..21).map(fixed_code).collect();
    let whole = matched(258, 20);
    let matches = |times: usize, more: &[&[Field]]| {
        stream(&[&[&last[..], &fixed, &literals], &vec![&whole[..]; times][..], more].concat())
    };
    let tail = matched(64, 20);
    let good = matches(2, &[&tail, &end]);
    check("as it should be", &block(&good), None);
    // Longer than the padding, the first bits of which would be the end.
    let many = vec![fixed_code(7); 500];
    let long = |more: &[Field]| block(&stream(&[&last, &fixed, &many, &matched(100, 1), more]));
    check("a long one", &long(&end), None);
    check("without an end", &long(&[]), wrong);
    check("a byte more", &block(&matches(2, &[&tail, &literals[..1], &end])), wrong);
    check("a match more", &block(&matches(3, &[&tail, &end])), wrong);
    check("a match less", &block(&matches(1, &[&tail, &end])), wrong);
    check("a thousand matches more", &block(&matches(1000, &[&end])), Some(Rule::AnsBlockLength));
    check("a hundred matches more", &block(&matches(100, &[&end])), wrong);
    check("nothing", &block(&stream(&[&last, &fixed, &end])), wrong);
    check("no stream", &block(&[]), wrong);
    check("the kind alone", &[4], Some(Rule::AnsBlockLength));
    check("a block of 55 bytes", &block(&good)[..55], Some(Rule::AnsBlockLength));
    check("a block of 57 bytes", &[&block(&good)[..], &[0]].concat(), wrong);
    for at in 1..56 {
        let mut block = block(&good);
        let rule = match at {
            1..8 => Rule::AnsBlockHeader,
            _ if at >= 8 + good.len() => Rule::PaddingNotZero,
            _ => continue,
        };
        block[at] = 0x80;
        check("reserved bytes and padding", &block, Some(rule));
    }
    // Stored: longer than the least length, with any bytes before the length.
    let bytes: Vec<u8> = (0..n).map(|i| (i * i % 251) as u8).collect();
    let stored = |of: &[u8], first: u8| {
        let len = of.len() as u16;
        [&[first][..], &len.to_le_bytes(), &(!len).to_le_bytes(), of].concat()
    };
    check("stored, longer than raw", &block(&stored(&bytes, 1)), Some(Rule::AnsBlockLength));
    let two = [stored(&bytes[..100], 0xf8), matches(0, &[])].concat();
    check("no end after a stored part", &block(&two), wrong);
    // 2 bytes, then 258 twice and 82 from a distance.
    let begin = stored(&bytes[..2], 0xf8);
    let before = |distance: &dyn Fn(u16) -> Vec<Field>| {
        let [a, b] = [258, 82].map(distance);
        block(&[&begin[..], &stream(&[&last, &fixed, &a, &a, &b, &end])].concat())
    };
    check("from the first byte", &before(&|length| matched(length, 2)), None);
    check("from before the first byte", &before(&|length| matched(length, 3)), wrong);
    check("the farthest distance", &before(&|length| matched(length, 32768)), wrong);
    for code in [30, 31u8] {
        let distance = (u64::from(code.reverse_bits() >> 3), 5);
        let distance = |length| [&matched(length, 1)[..2], &[distance]].concat();
        check("a distance that does not exist", &before(&distance), wrong);
    }
    check("a length that does not exist", &block(&matches(0, &[&[fixed_code(286)]])), wrong);
    check("a block type that does not exist", &block(&stream(&[&last, &[(3, 2)]])), wrong);
    let mut bad = stored(&bytes[..40], 1);
    bad[3] ^= 1;
    check("a length of stored bytes that is wrong", &block(&bad), wrong);
    // With the header of zlib, and with a preset dictionary.
    check("a header of zlib", &block(&[&[0x78, 0x9c], &good[..]].concat()), wrong);
    check("a preset dictionary", &block(&[&[0x78, 0xbb, 0, 0, 0, 1], &good[..]].concat()), wrong);
    // Codes of a dynamic block: of code lengths one symbol, or too many.
    for lengths in [vec![(0, 3); 19], vec![(1, 3); 19], [vec![(1, 3)], vec![(0, 3); 18]].concat()] {
        let begin = [(2, 2), (0, 5), (0, 5), (15, 4)];
        check("an incomplete code", &block(&stream(&[&last, &begin, &lengths])), wrong);
    }
    for (literals, distances) in [(30, 0), (31, 0), (0, 30), (0, 31)] {
        let begin = [(2, 2), (literals, 5), (distances, 5), (15, 4)];
        check("too many symbols", &block(&stream(&[&last, &begin])), wrong);
    }
    // In a block of zeros: as the mask, and as the others.
    let ones = vec![0xff; 70];
    let mask: Vec<u8> = [&[0; 5][..], &ones].concat();
    let others: Vec<u8> = (0..560).map(|i| 1 + (i % 20) as u8).collect();
    head.mask = Some(Box::new(Head::plain(Dtype::U8, 0, 0, vec![vec![16; 256]])));
    let check = |name: &str, block: &[u8], expected: Option<Rule>| {
        let found = outcome(&spec(dtype, n), &head.write(), block, true, name);
        assert_eq!(found.err(), expected, "{name}");
    };
    let of_560 = matches(2, &[&matched(24, 20), &end]);
    let zeros = |mask: &[u8], others: &[u8]| oracle::zeros_block(mask, others, 560);
    check("raw parts", &zeros(&raw(&mask), &raw(&others)), None);
    check("others", &zeros(&raw(&mask), &block(&of_560)), None);
    check("others of another length", &zeros(&raw(&mask), &block(&good)), wrong);
    let (zero, one) = ([fixed_code(0); 5], [fixed_code(255)]);
    let of_75 = stream(&[&last, &fixed, &zero, &one, &matched(69, 1), &end]);
    check("a mask", &zeros(&block(&of_75), &raw(&others)), None);
    check("a mask of another length", &zeros(&block(&good), &raw(&others)), wrong);
    // Every bit of it.
    let sound = block(&good);
    for bit in 0..8 * sound.len() {
        let mut damaged = sound.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let _ = outcome_quick(&spec(dtype, n), &head.write(), &damaged, "a flipped bit");
    }
}

/// The encoder gives every dtype a mask where it wins, and blocks of different lengths are decoded
/// together.
#[test]
fn zeros_of_every_dtype() {
    let mut random = Random::new(11);
    for (dtype, _) in DTYPES {
        let unit_bytes = dtype.unit_bytes();
        let n_units = 2 * MAX_BLOCK_UNITS + 4096 + 8;
        let spec = spec(dtype, n_units);
        let mut units = Vec::new();
        for i in 0..n_units {
            // The first block has more zeros than the others; a zero with a sign is another unit.
            let often = if i < spec.block_units() { 2 } else { 5 };
            let unit = match random.below(16) {
                0 if i % 8 == 0 => 1 << (8 * unit_bytes - 1),
                below if below < often => random.bits() | 0x4040_4040_4040_4040,
                _ => 0,
            };
            units.extend(&u64::to_le_bytes(unit)[..unit_bytes]);
        }
        let tensor = encode_tensor(&Ans::default(), &spec, &units).unwrap();
        let blocks: Vec<&[u8]> = (0..spec.n_blocks()).map(|i| tensor.block(i)).collect();
        // Bytes are coded as well without a mask.
        assert!(unit_bytes == 1 || blocks.iter().all(|block| block[0] == 3), "{dtype}");
        oracle::view::check(&tensor, true, dtype.name()).unwrap();
        for ans in backends() {
            let mut dst = vec![0x5a; units.len()];
            ans.open(&spec, tensor.head()).unwrap().decode_blocks(&blocks, &mut dst).unwrap();
            assert!(dst == units, "{dtype} {:?}", ans.backend());
            let again = encode_tensor(&ans, &spec, &units).unwrap();
            assert!(again == tensor, "{dtype} {:?}", ans.backend());
        }
    }
}

/// Buffers and blocks that do not fit together are the caller's mistake, and an error.
#[test]
fn misuse_is_an_error() {
    let kit = bf16();
    let (block, head) = (kit.block().bytes(), kit.head.write());
    for ans in backends() {
        let decoder: Box<dyn BlockDecoder> = ans.open(&kit.spec(), &head).unwrap();
        let mut dst = vec![0; 3 * MAX_BLOCK_UNITS * 2];
        for n in [0, 1, 2, 511, 512, 513, 1023, 1025, 1399, 1401, 1402, 2 * MAX_BLOCK_UNITS]
            .into_iter()
            .chain([2 * MAX_BLOCK_UNITS + 1, 2 * MAX_BLOCK_UNITS + 1400])
        {
            assert!(decoder.decode_blocks(&[&block], &mut dst[..n]).is_err(), "{n}");
            assert!(decoder.decode_blocks(&[&block, &block], &mut dst[..n]).is_err(), "{n}");
        }
        assert!(decoder.decode_blocks(&[], &mut dst[..1400]).is_err());
        assert!(decoder.decode_blocks(&[], &mut []).is_ok());
        decoder.decode_blocks(&[&block], &mut dst[..1400]).unwrap();
        assert!(dst[..1400] == kit.units);
        // A decoder of BF16 for an odd number of bytes.
        let raw = [&[0; 8][..], &[7; 601]].concat();
        let constant = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[7; 56]].concat();
        for block in [raw, constant] {
            let error = decoder.decode_blocks(&[&block], &mut dst[..601]).unwrap_err();
            assert_eq!((error.rule(), error.class()), (Rule::BufferLength, Class::Usage));
        }
    }
}

/// One damaged block among sound ones: found wherever it stands, its offset named, whichever blocks
/// a backend takes together.
#[test]
// G-13
fn one_bad_block_among_several() {
    let n_units = 4 * MAX_BLOCK_UNITS + 1000;
    let mut random = Random::new(12);
    let bytes: Vec<u8> = (0..n_units)
        .flat_map(|_| {
            let value = 0x3c00 + (random.below(8) * random.below(8) * 64) + random.below(64);
            (value as u16).to_le_bytes()
        })
        .collect();
    let spec = spec(Dtype::BF16, n_units);
    let sound = encode_tensor(&Ans::default(), &spec, &bytes).unwrap();
    let blocks: Vec<Vec<u8>> = (0..spec.n_blocks()).map(|i| sound.block(i).to_vec()).collect();
    assert!(blocks.iter().all(|b| b[0] == 2), "every block is coded");
    let damages: [(&str, fn(&mut Vec<u8>)); 5] = [
        ("a state", |b| b[26] ^= 0x10),
        ("the last word", |b| {
            let lengths: usize =
                b[8..24].iter().map(|&l| 32 + usize::from(l & 15) + usize::from(l >> 4)).sum();
            let words = 24 + lengths.div_ceil(32) * 4;
            let n = u32::from_le_bytes(b[4..8].try_into().unwrap()) as usize;
            b[words + 2 * n - 1] ^= 0x40;
        }),
        ("the number of words", |b| b[4] ^= 1),
        ("the number of exceptions", |b| b[2] ^= 1),
        ("its length", |b| b.push(0)),
    ];
    let mut refused = 0;
    for i in 0..blocks.len() {
        for (what, damage) in damages {
            let mut blocks = blocks.clone();
            damage(&mut blocks[i]);
            let units = spec.block_byte_len(i as u64) / 2;
            let head = Head::read(Dtype::BF16, sound.head()).unwrap();
            // Some damage makes another block that is as valid.
            let Some(expected) = oracle::decode(&head, &blocks[i], units).err() else { continue };
            refused += 1;
            let tensor = oracle::seal(&spec, sound.head(), &blocks).unwrap();
            let place = tensor.table().padded_block_range(i as u64);
            for ans in backends().filter(|a| a.backend() != Backend::Reference) {
                for threads in [1, 2] {
                    let mut dst = vec![0; bytes.len()];
                    let all = 0..spec.byte_len();
                    let decoded = in_pool(threads, || tensor.decode_bytes(&ans, all, &mut dst));
                    let error = decoded.unwrap_err();
                    let what = format!("{what} of block {i}, {:?}", ans.backend());
                    assert_eq!(error.tensor(), Some("h"), "{what}");
                    assert!(place.contains(&error.offset().unwrap()), "{what}: {error:?}");
                    assert_eq!(error.rule(), expected, "{what}");
                    // The other blocks do not suffer.
                    for k in (0..spec.n_blocks()).filter(|&k| k != i as u64) {
                        let from = k as usize * spec.block_bytes();
                        let range = from..from + spec.block_byte_len(k);
                        let wanted = range.start as u64..range.end as u64;
                        tensor.decode_bytes(&ans, wanted, &mut dst[range.clone()]).unwrap();
                        assert!(dst[range.clone()] == bytes[range], "{what}");
                    }
                }
            }
        }
    }
    assert!(refused > 24, "{refused}");
}

/// Every single bit of head and block, and every length: no panic, and every backend says what the
/// oracle says, to the last bit of what is decoded.
#[test]
fn every_bit_and_every_cut() {
    let (mut refused, mut read) = (0, 0);
    for kit in [bf16(), f32(), bytes(), e5m2(), kit(Dtype::F64, 4, 5, 2, 260, 8)] {
        let spec = kit.spec();
        let (head, block) = (kit.head.write(), kit.block().bytes());
        let name = kit.head.dtype;
        let mut count = |outcome: Outcome| match outcome {
            Ok(_) => read += 1,
            Err(_) => refused += 1,
        };
        for bit in 0..8 * head.len() {
            let mut damaged = head.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let what = format!("{name}: bit {bit} of the head");
            count(outcome_quick(&spec, &damaged, &block, &what));
        }
        for len in 0..head.len() {
            let what = format!("{name}: {len} bytes of the head");
            let found = outcome_quick(&spec, &head[..len], &block, &what);
            assert!(found.is_err(), "{what}");
        }
        // Of the residual and the low planes, which may be anything, every 37th bit will do.
        let parts = kit.block();
        let free = parts.lows.len() + parts.residual.len();
        let free_from = block.len() - free - parts.exceptions.len() - parts.tail.len();
        for bit in 0..8 * block.len() {
            if (free_from..free_from + free).contains(&(bit / 8)) && bit % 37 != 0 {
                continue;
            }
            let mut damaged = block.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let what = format!("{name}: bit {bit} of the block");
            let found = outcome_quick(&spec, &head, &damaged, &what);
            count(found);
        }
        for len in 0..block.len() {
            let what = format!("{name}: {len} bytes of the block");
            let found = outcome_quick(&spec, &head, &block[..len], &what);
            assert!(found.is_err(), "{what}");
        }
    }
    assert!(refused > 5000 && read > 1000, "{refused} refused, {read} read");
}

/// Runs `work` in a pool of so many threads.
fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// Noise in the place of blocks, and random damage in several places at once.
#[test]
fn random_damage() {
    let mut random = Random::new(99);
    let kits = [bf16(), f32(), bytes(), e5m2()];
    for round in 0..3000 {
        let kit = &kits[round % kits.len()];
        let (mut head, mut block) = (kit.head.write(), kit.block().bytes());
        for _ in 0..=random.below(4) {
            let target = if random.below(8) == 0 { &mut head } else { &mut block };
            let at = random.below(target.len() as u64) as usize;
            match random.below(5) {
                0 => target[at] = random.bits() as u8,
                1 => target.truncate(at.max(1)),
                2 => target.insert(at, random.bits() as u8),
                3 => target[at..].iter_mut().for_each(|b| *b = random.bits() as u8),
                _ => {
                    let from = random.below(target.len() as u64) as usize;
                    target[at] = target[from];
                }
            }
        }
        let _ = outcome_quick(&kit.spec(), &head, &block, &format!("round {round}"));
    }
}
