//! Shards with bases: what is written is read, from no other base, and forged indices are refused.
//! The encoding of these tests is the exclusive or of tensor and base.
#![allow(clippy::unwrap_used)]

mod forge;

use bigsmall_format::internal::{Assembler, xxh3};
use bigsmall_format::*;
use forge::{Forge, Record, pad};

/// Encoding 3 as these tests have it: a block that is the base's is empty.
struct Xor {
    block_bytes: usize,
}

const XOR: Xor = Xor { block_bytes: 0 };

impl TensorEncoding for Xor {
    fn id(&self) -> EncodingId {
        EncodingId::Delta
    }

    fn supports(&self, _: Dtype) -> bool {
        true
    }

    fn plan(&self, _: &TensorSpec, _: &dyn ReadAt) -> Result<Box<dyn BlockEncoder>> {
        Err(Error::new(Rule::BaseMissing))
    }

    fn plan_with_base(
        &self,
        spec: &TensorSpec,
        _: &dyn ReadAt,
        _: &dyn ReadAt,
    ) -> Result<Box<dyn BlockEncoder>> {
        Ok(Box::new(Xor { block_bytes: spec.block_bytes() }))
    }

    fn open(&self, spec: &TensorSpec, _: &[u8]) -> Result<Box<dyn BlockDecoder>> {
        Ok(Box::new(Xor { block_bytes: spec.block_bytes() }))
    }
}

impl BlockEncoder for Xor {
    fn head(&self) -> &[u8] {
        &[]
    }

    fn encode_blocks(&self, _: u64, _: &[u8], _: &mut Vec<u8>, _: &mut Vec<u32>) -> Result<()> {
        Err(Error::new(Rule::BaseMissing))
    }

    fn encode_blocks_with_base(
        &self,
        _: u64,
        units: &[u8],
        base: &[u8],
        out: &mut Vec<u8>,
        lens: &mut Vec<u32>,
    ) -> Result<()> {
        for (units, base) in units.chunks(self.block_bytes).zip(base.chunks(self.block_bytes)) {
            // Up to the last byte that differs.
            let differs = units.iter().zip(base).rposition(|(a, b)| a != b);
            let n = differs.map_or(0, |last| last + 1);
            out.extend(units.iter().zip(base).take(n).map(|(a, b)| a ^ b));
            pad(out);
            lens.push(n as u32);
        }
        Ok(())
    }
}

impl BlockDecoder for Xor {
    fn decode_blocks(&self, blocks: &[&[u8]], dst: &mut [u8]) -> Result<()> {
        for (block, dst) in blocks.iter().zip(dst.chunks_mut(self.block_bytes)) {
            dst.iter_mut().zip(*block).for_each(|(to, by)| *to ^= by);
        }
        Ok(())
    }
}

fn spec(name: &str, dtype: Dtype, shape: &[u64]) -> TensorSpec {
    TensorSpec::new(name, dtype, shape).unwrap()
}

/// A byte of a base; the tensor has others at the places where both differ.
fn byte(i: usize) -> u8 {
    (i * 7 + i / 300) as u8
}

/// A shard with a tensor that differs from its base in its second block, one that is its base under
/// another name, one that shares the first one's payload, and one that stands alone; and the base.
fn sound() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let n = 2 * MAX_BLOCK_UNITS + 9;
    let base: Vec<u8> = (0..n).map(byte).collect();
    let mut new = base.clone();
    new[MAX_BLOCK_UNITS + 3] ^= 0x55;
    let specs = [
        spec("changed", Dtype::U8, &[n as u64]),
        spec("same", Dtype::U8, &[n as u64]),
        spec("shared", Dtype::U8, &[n as u64]),
        spec("alone", Dtype::U8, &[3]),
    ];
    let mut writer = ShardWriter::synthesised(Vec::new(), &specs).unwrap();
    let place = writer.add_base(Base::new([7; 32]).depth(2).hint("sp\u{e9}cial/base"));
    let of = |name| BaseRef::new(place, name);
    writer.write_with_base(&specs[0], &new, &Raw, &XOR, of("changed"), &base).unwrap();
    writer.write_with_base(&specs[1], &base, &Raw, &XOR, of("another name"), &base).unwrap();
    writer.share(&specs[2], &new, "changed").unwrap();
    writer.write(&specs[3], &[1, 2, 3], &Raw).unwrap();
    (writer.finish().unwrap(), base, new)
}

#[test]
fn what_is_written_is_read() {
    let (bytes, base, new) = sound();
    assert!(bytes.len() < 1000 + MAX_BLOCK_UNITS, "{} bytes", bytes.len());
    let shard = Shard::open(&bytes[..]).unwrap();
    let expected = Base::new([7; 32]).depth(2).hint("sp\u{e9}cial/base");
    assert_eq!((shard.bases(), shard.base_depth()), (&[expected][..], 3));
    assert_eq!(shard.base_of(0).unwrap(), Some(BaseRef::new(0, "changed")));
    assert_eq!(shard.base_of(1).unwrap(), Some(BaseRef::new(0, "another name")));
    assert_eq!(shard.base_of(2).unwrap(), Some(BaseRef::new(0, "changed")));
    assert_eq!(shard.base_of(3).unwrap(), None);
    let inherited = [0, 1, 2, 3].map(|i| shard.entry(i).unwrap().is_inherited());
    assert_eq!(inherited, [false, true, false, false]);
    for (i, values) in [(0, &new), (1, &base), (2, &new)] {
        assert_eq!(shard.encoding(i).unwrap(), EncodingId::Delta);
        let decoder = shard.decoder(i, &XOR).unwrap();
        let n = values.len() as u64;
        let block = shard.tensors()[i].block_units() as u64;
        for range in [0..n, 5..6, n - 20..n, block - 2..block + 9] {
            let mut out = vec![1; (range.end - range.start) as usize];
            shard.decode_with_base(i, &*decoder, &base, range.clone(), &mut out).unwrap();
            assert!(out == values[range.start as usize..range.end as usize], "{i} {range:?}");
            let whole = shard.encoded(i).unwrap();
            let whole = EncodedRef::from(&whole);
            whole.decode_bytes_with_base(&XOR, &base, range.clone(), &mut out).unwrap();
            assert!(out == values[range.start as usize..range.end as usize], "{i} {range:?}");
            // V-02
            let error = shard.decode(i, &*decoder, range, &mut out).unwrap_err();
            assert_eq!((error.rule(), error.class()), (Rule::BaseMissing, Class::Usage));
        }
    }
    // A tensor without a base takes no notice of one.
    let decoder = shard.decoder(3, &Raw).unwrap();
    let mut out = [0; 3];
    shard.decode_with_base(3, &*decoder, &base, 0..3, &mut out).unwrap();
    assert_eq!(out, [1, 2, 3]);
}

/// V-01
#[test]
fn another_base_is_seen_in_the_blocks_that_are_read() {
    let (bytes, base, _) = sound();
    let shard = Shard::open(&bytes[..]).unwrap();
    for i in [0, 1, 2] {
        let decoder = shard.decoder(i, &XOR).unwrap();
        let full = shard.tensors()[i].block_units();
        for at in [0, full - 1, full, base.len() - 1] {
            let mut other = base.clone();
            other[at] ^= 0x80;
            for block in 0..4 {
                let begin = (block * full) as u64;
                let mut out = [0];
                let read = shard.decode_with_base(i, &*decoder, &other, begin..begin + 1, &mut out);
                match at / full == block {
                    true => {
                        let error = read.unwrap_err();
                        assert_eq!(error.rule(), Rule::BaseMismatch);
                        assert_eq!(error.tensor(), Some(shard.tensors()[i].name()));
                    }
                    false => read.unwrap(),
                }
            }
        }
    }
}

/// One base, and one tensor of 5 bytes; what is between header and records, and the records.
fn forged(section: &[u8], records: &[u8]) -> Vec<u8> {
    let json = r#"{"w":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}"#;
    let mut forge = Forge::new(json);
    forge.header_len = Some(json.len() as u64);
    pad(&mut forge.header);
    forge.header.extend(section);
    forge.index_tail = records.to_vec();
    (forge.count, forge.required) = (Some(1), 1);
    forge.payloads = vec![9, 8, 7, 6, 5, 0, 0, 0];
    forge.bytes()
}

fn section(count: u64, depth: u32, hint_len: u32, hint: &[u8]) -> Vec<u8> {
    let mut out = count.to_le_bytes().to_vec();
    out.extend([3; 32]);
    out.extend(depth.to_le_bytes());
    out.extend(hint_len.to_le_bytes());
    out.extend(hint);
    pad(&mut out);
    out
}

/// A record of a tensor with a base.
fn record(edit: impl Fn(&mut Record), base: u32, name_len: u32, name: &[u8]) -> Vec<u8> {
    let mut record = Record { encoding: 3, flags: 4, place: 16, length: 8, ..Record::default() };
    record.head_hash = xxh3(&[]);
    edit(&mut record);
    let mut out = record.bytes();
    out.extend(base.to_le_bytes());
    out.extend(name_len.to_le_bytes());
    out.extend(name);
    pad(&mut out);
    if record.flags & 8 == 0 {
        out.extend(5u32.to_le_bytes());
        pad(&mut out);
        out.extend(xxh3(&[9, 8, 7, 6, 5, 0, 0, 0]).to_le_bytes());
    }
    out.extend(xxh3(&[0; 5]).to_le_bytes());
    out
}

#[test]
fn forged_indices_are_refused() {
    let plain = || record(|_| {}, 0, 0, &[]);
    let one = || section(1, 0, 4, b"hint");
    let read = |bytes: &[u8]| -> Result<[u8; 5]> {
        let shard = Shard::open(bytes)?;
        let decoder = shard.decoder(0, &XOR)?;
        let mut out = [0; 5];
        shard.decode_with_base(0, &*decoder, &vec![0; 5], 0..5, &mut out)?;
        Ok(out)
    };
    assert_eq!(read(&forged(&one(), &plain())).unwrap(), [9, 8, 7, 6, 5]);
    let renamed = record(|r| r.flags = 20, 0, 3, b"old");
    assert_eq!(read(&forged(&one(), &renamed)).unwrap(), [9, 8, 7, 6, 5]);
    let inherit = |edit: fn(&mut Record)| {
        move |r: &mut Record| {
            (r.flags, r.place, r.length, r.head_hash) = (12, 0, 0, 0);
            edit(r);
        }
    };
    let cases: Vec<(&str, Vec<u8>, Vec<u8>, Rule)> = vec![
        // V-09
        ("no bases", section(0, 0, 0, &[]), plain(), Rule::BaseSection),
        ("2^64 - 1 bases", section(u64::MAX, 0, 0, &[]), plain(), Rule::BaseSection),
        ("a long hint", section(1, 0, u32::MAX, b"hint"), plain(), Rule::IndexTruncated),
        ("a hint of bytes", section(1, 0, 4, b"\xff\xfe\0\0"), plain(), Rule::BaseSection),
        ("padding of a hint", section(1, 0, 3, b"hint"), plain(), Rule::PaddingNotZero),
        ("a long name", one(), record(|r| r.flags = 20, 0, 1 << 31, b"old"), Rule::IndexTruncated),
        // V-10
        ("depth 17", section(1, 16, 0, &[]), plain(), Rule::BaseDepth),
        ("the greatest depth", section(1, u32::MAX, 0, &[]), plain(), Rule::BaseDepth),
        // V-08
        ("base 1 of 1", one(), record(|_| {}, 1, 0, &[]), Rule::BaseRecord),
        ("base 2^32 - 1", one(), record(|_| {}, u32::MAX, 0, &[]), Rule::BaseRecord),
        ("a name without its flag", one(), record(|_| {}, 0, 3, b"old"), Rule::BaseRecord),
        ("a name of bytes", one(), record(|r| r.flags = 20, 0, 3, b"\xff12"), Rule::BaseRecord),
        ("shared with a base", one(), record(|r| r.flags = 5, 0, 0, &[]), Rule::BaseRecord),
        ("another encoding", one(), record(|r| r.encoding = 1, 0, 0, &[]), Rule::BaseRecord),
        ("no base", one(), record(|r| r.flags = 0, 0, 0, &[]), Rule::BaseRecord),
        (
            "an inherited record with a length",
            one(),
            record(inherit(|r| r.length = 8), 0, 0, &[]),
            Rule::ReservedNotZero,
        ),
        (
            "an inherited record with a place",
            one(),
            record(inherit(|r| r.place = 16), 0, 0, &[]),
            Rule::ReservedNotZero,
        ),
        // Its payload is nobody's.
        ("an inherited record", one(), record(inherit(|_| {}), 0, 0, &[]), Rule::IndexRange),
    ];
    for (name, section, record, rule) in cases {
        let error = read(&forged(&section, &record)).unwrap_err();
        assert_eq!(error.rule(), rule, "{name}: {error}");
        assert!(matches!(error.class(), Class::Corrupt | Class::Limit), "{name}");
    }
    // The limit can be moved.
    let deep = forged(&section(1, 16, 0, &[]), &plain());
    let limits = Limits::new().max_base_depth(17);
    assert_eq!(Shard::open_with(&deep[..], &limits).unwrap().base_depth(), 17);
    // A sealed checksum of the base that is not the base's.
    let mut bytes = forged(&one(), &plain());
    let at = bytes.len() - 56;
    bytes[at] ^= 1;
    forge::reseal_index(&mut bytes);
    assert_eq!(read(&bytes).unwrap_err().rule(), Rule::BaseMismatch);
}

/// V-11
#[test]
fn a_huge_inherited_tensor_allocates_nothing() {
    let json = r#"{"w":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}}"#;
    let mut forge = Forge::new(json);
    forge.header_len = Some(json.len() as u64);
    pad(&mut forge.header);
    forge.header.extend(section(1, 0, 0, &[]));
    (forge.count, forge.required) = (Some(1), 1);
    let inherited = |r: &mut Record| {
        (r.flags, r.place, r.length, r.head_hash) = (12, 0, 0, 0);
    };
    forge.index_tail = record(inherited, 0, 0, &[]);
    assert_eq!(Shard::open(forge.bytes()).unwrap_err().rule(), Rule::IndexTruncated);
}

#[test]
fn a_writer_checks_what_it_is_told() {
    let spec = spec("w", Dtype::U8, &[5]);
    let writer = || Assembler::synthesised(Vec::new(), std::slice::from_ref(&spec)).unwrap();
    let rule = |result: Result<()>| result.unwrap_err().rule();
    let mut no_base = writer();
    let of = BaseRef::new(0, "w");
    assert_eq!(rule(no_base.begin_with_base(EncodingId::Delta, &[], of)), Rule::WriterMisuse);
    assert_eq!(rule(no_base.inherit(of, &[1], None)), Rule::WriterMisuse);
    let mut with_base = writer();
    with_base.add_base(Base::new([0; 32]));
    assert_eq!(rule(with_base.begin(EncodingId::Delta, &[])), Rule::WriterMisuse);
    assert_eq!(rule(with_base.begin_with_base(EncodingId::Raw, &[], of)), Rule::WriterMisuse);
    assert_eq!(rule(with_base.inherit(of, &[1, 2], None)), Rule::WriterMisuse);
    with_base.begin_with_base(EncodingId::Delta, &[], of).unwrap();
    with_base.blocks_with_base(&[1, 0, 0, 0, 0, 0, 0, 0], &[1], &[]).unwrap();
    assert_eq!(rule(with_base.end(None)), Rule::WriterMisuse);
}

#[test]
fn an_encoding_has_a_base_if_and_only_if_it_needs_one() {
    let spec = spec("w", Dtype::U8, &[5]);
    let payload = || vec![9, 8, 7, 6, 5, 0, 0, 0];
    let alone = |encoding| EncodedTensor::new(spec.clone(), encoding, 0, vec![5], payload());
    let based = |encoding, lens, base: Vec<u64>| {
        EncodedTensor::new_with_base(spec.clone(), encoding, 0, lens, payload(), base)
    };
    let hash = || vec![xxh3(&[0; 5])];
    let raw = alone(EncodingId::Raw).unwrap();
    let delta = based(EncodingId::Delta, vec![5], hash()).unwrap();
    let parts = |encoding, table: &BlockTable| {
        EncodedTensor::from_parts(spec.clone(), encoding, table.clone(), payload())
    };
    assert_eq!(parts(EncodingId::Raw, raw.table()).unwrap(), raw);
    assert_eq!(parts(EncodingId::Delta, delta.table()).unwrap(), delta);
    for wrong in [
        alone(EncodingId::Delta),
        based(EncodingId::Raw, vec![5], hash()),
        parts(EncodingId::Delta, raw.table()),
        parts(EncodingId::Ans, delta.table()),
    ] {
        assert_eq!(wrong.unwrap_err().rule(), Rule::BaseRecord);
    }
    // An error names what there is too much of.
    for (lens, base, text) in [
        (vec![5, 0], hash(), "expected lengths of 1 blocks, found 2"),
        (vec![5], vec![1, 2], "expected checksums of the base of 1 blocks, found 2"),
    ] {
        let error = based(EncodingId::Delta, lens, base).unwrap_err();
        assert_eq!(error.rule(), Rule::BlockLength);
        assert!(error.to_string().contains(text), "{error}");
    }
}

/// What a table does not keep is as if it were there.
#[test]
fn a_tensor_that_is_its_base_is_like_any_other() {
    let n = 2 * MAX_BLOCK_UNITS + 9;
    let (base, spec) = ((0..n).map(byte).collect::<Vec<u8>>(), spec("w", Dtype::U8, &[n as u64]));
    let tensor = encode_tensor_with_base(&XOR, &spec, &base, &base).unwrap();
    assert_eq!(EncodedTensor::from_bytes(&tensor.to_bytes()).unwrap(), tensor);
    let mut writer = ShardWriter::synthesised(Vec::new(), std::slice::from_ref(&spec)).unwrap();
    let of = BaseRef::new(writer.add_base(Base::new([7; 32])), "w");
    writer.write_with_base(&spec, &base, &Raw, &XOR, of, &base).unwrap();
    let shard = writer.finish().unwrap();
    let shard = Shard::open(&shard[..]).unwrap();
    assert!(shard.entry(0).unwrap().is_inherited());
    assert_eq!(shard.encoded(0).unwrap(), tensor);
    let table = tensor.table();
    assert_eq!((table.n_blocks(), table.payload_len(), table.blocks_range(1..3)), (4, 0, 0..0));
    assert_eq!(
        (table.block_len(3), tensor.block(1), table.padded_block_range(3)),
        (0, &[][..], 0..0)
    );
    table.check_block(3, &[]).unwrap();
    assert_eq!(table.check_block(3, &[0; 8]).unwrap_err().rule(), Rule::BlockChecksum);
    assert!(std::panic::catch_unwind(|| table.block_len(4)).is_err());
}
