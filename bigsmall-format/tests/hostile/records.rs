//! Records of tensors: group C of docs/threats.md, and every integer of an index.

use super::*;

#[test]
fn records() {
    run(
        sound,
        &[
            // What a base is asked for.
            ("flag 2 of a record", |f| f.records[1].flags |= 4, Named(Rule::BaseRecord, "b")),
            ("flag 3 of a record", |f| f.records[1].flags |= 8, Named(Rule::BaseRecord, "b")),
            ("flag 4 of a record", |f| f.records[1].flags |= 16, Named(Rule::BaseRecord, "b")),
            ("no base", |f| f.records[1].encoding = 3, Named(Rule::BaseRecord, "b")),
            ("flag 5 of a record", |f| f.records[1].flags |= 32, Named(Rule::ReservedNotZero, "b")),
            (
                "flag 7 of a record",
                |f| f.records[1].flags |= 128,
                Named(Rule::ReservedNotZero, "b"),
            ),
            ("reserved, low", |f| f.records[0].reserved = 1, Named(Rule::ReservedNotZero, "a")),
            (
                "reserved, high",
                |f| f.records[2].reserved = 1 << 15,
                Named(Rule::ReservedNotZero, "tied"),
            ),
            (
                "an MD5 that is not there",
                |f| f.records[4].flags = 2,
                Named(Rule::IndexTruncated, "c"),
            ),
            ("an MD5 unannounced", |f| f.records[1].flags = 0, Named(Rule::PaddingNotZero, "b")),
            (
                // C-01
                "payload past the end",
                |f| f.records[4].place += 1 << 40,
                Named(Rule::PayloadRange, "c"),
            ),
            (
                "payload into the index",
                |f| (f.records[4].lens[0], f.records[4].length) = (10, 16),
                Refused(Rule::IndexRange),
            ),
            // C-02
            ("payloads overlap", |f| f.records[1].place -= 8, Named(Rule::PayloadRange, "b")),
            ("payload in the prelude", |f| f.records[0].place = 8, Named(Rule::PayloadRange, "a")),
            ("payload at 0", |f| f.records[0].place = 0, Named(Rule::PayloadRange, "a")),
            ("unaligned payload", |f| f.records[0].place = 17, Named(Rule::PayloadRange, "a")),
            (
                "payload at 2^64-1",
                |f| f.records[1].place = u64::MAX,
                Named(Rule::PayloadRange, "b"),
            ),
            (
                // C-03
                "the same range twice",
                |f| {
                    f.records[2] = f.records[1].clone();
                },
                Named(Rule::PayloadRange, "tied"),
            ),
            (
                // C-04
                "a hole between payloads",
                |f| {
                    (0..8).for_each(|_| f.payloads.insert(8, 0));
                    f.records[1].place += 8;
                    f.records[3].place += 8;
                    f.records[4].place += 8;
                },
                Named(Rule::PayloadRange, "b"),
            ),
            ("a hole before the index", |f| f.payloads.extend([0; 8]), Refused(Rule::IndexRange)),
            // C-05
            ("length 0 of a payload", |f| f.records[1].length = 0, Named(Rule::PayloadLength, "b")),
            ("length one more", |f| f.records[1].length += 1, Named(Rule::PayloadLength, "b")),
            ("length 2^64-1", |f| f.records[1].length = u64::MAX, Named(Rule::PayloadLength, "b")),
            (
                "length of an empty tensor",
                |f| f.records[3].length = 8,
                Named(Rule::PayloadLength, "none"),
            ),
            ("block of no bytes", |f| f.records[1].lens[0] = 0, Named(Rule::BlockLength, "b")),
            ("block a byte short", |f| f.records[1].lens[0] = 4, Named(Rule::BlockLength, "b")),
            ("block too long", |f| f.records[1].lens[0] = 4107, Named(Rule::BlockLength, "b")),
            (
                "block of 2^32-1 bytes",
                |f| f.records[1].lens[0] = u32::MAX,
                Named(Rule::BlockLength, "b"),
            ),
            ("block a byte long", |f| f.records[1].lens[0] = 6, Named(Rule::BlockLength, "b")),
            (
                "padding of the lengths",
                |f| {
                    // The second length is the padding of the first, with a checksum more than
                    // there are blocks less.
                    f.records[1].lens.push(1);
                },
                Named(Rule::PaddingNotZero, "b"),
            ),
            ("a checksum less", |f| f.records[4].hashes.clear(), Named(Rule::IndexTruncated, "c")),
            ("a checksum more", |f| f.records[4].hashes.push(0), Refused(Rule::IndexTrailing)),
            (
                "checksum of a block",
                |f| f.records[1].hashes[0] ^= 1,
                Named(Rule::BlockChecksum, "b"),
            ),
            (
                "checksum of no head",
                |f| f.records[1].head_hash ^= 1,
                Named(Rule::HeadChecksum, "b"),
            ),
            (
                "checksum of no head of no blocks",
                |f| f.records[3].head_hash ^= 1 << 63,
                Named(Rule::HeadChecksum, "none"),
            ),
            ("bytes of a block", |f| f.payloads[0] ^= 1, Named(Rule::BlockChecksum, "a")),
            (
                "padding of a block, sealed",
                |f| {
                    f.payloads[7] = 1;
                    f.records[0].hashes[0] = xxh3(&f.payloads[..8]);
                },
                Named(Rule::PaddingNotZero, "a"),
            ),
            ("length of a head", |f| f.records[1].head_len = 1, Named(Rule::PayloadLength, "b")),
            (
                "head of 2^32-1 bytes",
                |f| f.records[1].head_len = u32::MAX,
                Named(Rule::PayloadLength, "b"),
            ),
            // C-17
            ("shared with itself", |f| f.records[2].place = 2, Named(Rule::SharedPayload, "tied")),
            (
                // C-18
                "shared with a later one",
                |f| f.records[2].place = 4,
                Named(Rule::SharedPayload, "tied"),
            ),
            ("shared with none", |f| f.records[2].place = 5, Named(Rule::SharedPayload, "tied")),
            (
                "shared with 2^32",
                |f| f.records[2].place = 1 << 32,
                Named(Rule::SharedPayload, "tied"),
            ),
            (
                "shared with 2^32 + 1",
                |f| f.records[2].place = (1 << 32) + 1,
                Named(Rule::SharedPayload, "tied"),
            ),
            (
                "shared with 2^64-1",
                |f| f.records[2].place = u64::MAX,
                Named(Rule::SharedPayload, "tied"),
            ),
            (
                "shared with another dtype",
                |f| f.records[2].place = 0,
                Named(Rule::SharedPayload, "tied"),
            ),
            (
                // C-19
                "shared in a circle",
                |f| (f.records[0], f.records[1]) = (Record::shared(1), Record::shared(0)),
                Named(Rule::SharedPayload, "a"),
            ),
            (
                "a shared record with an encoding",
                |f| f.records[2].encoding = 1,
                Named(Rule::ReservedNotZero, "tied"),
            ),
            (
                "with the length of a head",
                |f| f.records[2].head_len = 1,
                Named(Rule::ReservedNotZero, "tied"),
            ),
            ("with a length", |f| f.records[2].length = 8, Named(Rule::ReservedNotZero, "tied")),
            (
                "with a checksum",
                |f| f.records[2].head_hash = 1,
                Named(Rule::ReservedNotZero, "tied"),
            ),
            (
                "with an MD5",
                |f| (f.records[2].flags, f.records[2].md5) = (3, Some([1; 16])),
                Expect::Ok,
            ),
            ("unknown encoding", |f| f.records[4].encoding = 4, Named(Rule::EncodingUnknown, "c")),
            ("encoding 255", |f| f.records[1].encoding = 255, Named(Rule::EncodingUnknown, "b")),
        ],
    );
    // A head where the encoding has none, its padding, and a chain of shares.
    fn with_head() -> Forge {
        let mut forge = sound();
        let rest = forge.payloads.split_off(8);
        forge.payloads.truncate(0);
        forge.payloads.extend([5, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0]);
        forge.payloads.extend(rest);
        (forge.records[0].head_len, forge.records[0].head_hash) = (1, xxh3(&[5]));
        forge.records[0].length += 8;
        for i in [1, 3, 4] {
            forge.records[i].place += 8;
        }
        forge
    }
    assert_eq!(
        outcome("raw with a head", &with_head().bytes()),
        Err((Rule::PayloadLength, Some("a".to_owned())))
    );
    let mut forge = with_head();
    forge.payloads[7] = 1;
    assert_eq!(
        outcome("padding of a head", &forge.bytes()),
        Err((Rule::PaddingNotZero, Some("a".to_owned())))
    );
    let mut forge = with_head();
    forge.payloads[0] ^= 1;
    assert_eq!(
        outcome("bytes of a head", &forge.bytes()),
        Err((Rule::HeadChecksum, Some("a".to_owned())))
    );
    let mut forge = Forge::new(concat!(
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"#,
        r#""b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"#,
        r#""c":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},"#,
        r#""d":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}}"#,
    ));
    forge.add(0, &[], &[&[1]]);
    forge.records.extend([0, 0, 0].map(Record::shared));
    assert_eq!(
        outcome("shared with another length", &forge.bytes()),
        Err((Rule::SharedPayload, Some("d".to_owned())))
    );
    forge.records[2] = Record::shared(1);
    assert_eq!(
        outcome("shared with a shared one", &forge.bytes()),
        Err((Rule::SharedPayload, Some("c".to_owned())))
    );
}

#[test]
fn several_blocks() {
    run(
        four_blocks,
        &[
            ("the second one damaged", |f| f.payloads[FULL] ^= 1, Named(Rule::BlockChecksum, "w")),
            (
                "exchanged checksums",
                |f| f.records[0].hashes.swap(0, 1),
                Named(Rule::BlockChecksum, "w"),
            ),
            // G-13
            (
                "exchanged lengths",
                |f| f.records[0].lens.swap(0, 3),
                Named(Rule::BlockChecksum, "w"),
            ),
            (
                // G-19
                "a full block of 55 bytes",
                |f| f.records[0].lens[0] = 55,
                Named(Rule::BlockLength, "w"),
            ),
            (
                // C-15, G-14
                "a full block of 56 bytes, which raw has not",
                |f| {
                    f.records[0].lens[0] = 56;
                    f.records[0].length -= FULL as u64 - 56;
                    f.records[0].hashes[0] = xxh3(&[3; 56]);
                    f.payloads.drain(56..FULL);
                },
                Named(Rule::BlockLength, "w"),
            ),
            (
                "a full block of more than twice its bytes",
                |f| f.records[0].lens[0] = 2 * FULL as u32 + 4097,
                Named(Rule::BlockLength, "w"),
            ),
            (
                "three blocks for the bytes of four",
                |f| {
                    f.records[0].lens.pop();
                    f.records[0].hashes.pop();
                },
                Named(Rule::IndexTruncated, "w"),
            ),
        ],
    );
    // The offset leads to the block.
    let mut forge = four_blocks();
    forge.payloads[FULL + 3] ^= 1;
    let shard = Shard::open(forge.bytes()).unwrap();
    let decoder = shard.decoder(0, &Raw).unwrap();
    let mut first = vec![0; FULL];
    shard.decode(0, &*decoder, 0..FULL as u64, &mut first).unwrap();
    let n = shard.tensors()[0].byte_len();
    let error = shard.decode(0, &*decoder, 0..n, &mut vec![0; n as usize]).unwrap_err();
    assert_eq!(error.offset(), Some(16 + FULL as u64));
    assert_eq!(shard.encoded(0).unwrap_err().offset(), Some(16 + FULL as u64));
}

#[test]
// C-16
fn an_unknown_encoding_hides_only_its_tensor() {
    let mut forge = sound();
    forge.records[0].encoding = 77;
    let shard = Shard::open(forge.bytes()).unwrap();
    let error = shard.encoding(0).unwrap_err();
    assert_eq!((error.rule(), error.class()), (Rule::EncodingUnknown, Class::Unsupported));
    assert_eq!(error.tensor(), Some("a"));
    assert_eq!(shard.decoder(0, &Raw).err().unwrap().rule(), Rule::EncodingUnknown);
    assert_eq!(shard.encoded(0).unwrap_err().rule(), Rule::EncodingUnknown);
    let mut five = [0; 5];
    for i in [1, 2] {
        let decoder = shard.decoder(i, &Raw).unwrap();
        shard.decode(i, &*decoder, 0..5, &mut five).unwrap();
        assert_eq!(five, [7, 8, 9, 10, 11]);
    }
}

/// An encoding that takes no dtype.
struct Refusing;

impl TensorEncoding for Refusing {
    fn id(&self) -> EncodingId {
        EncodingId::Tbe
    }

    fn supports(&self, _: Dtype) -> bool {
        false
    }

    fn plan(&self, _: &TensorSpec, _: &dyn ReadAt) -> Result<Box<dyn BlockEncoder>> {
        Err(Error::new(Rule::EncodingRefuses))
    }

    fn open(&self, _: &TensorSpec, _: &[u8]) -> Result<Box<dyn BlockDecoder>> {
        panic!("never asked for a dtype that it does not take")
    }
}

#[test]
// C-13
fn an_encoding_that_does_not_take_the_dtype() {
    let mut forge = sound();
    forge.records[1].encoding = 2;
    let shard = Shard::open(forge.bytes()).unwrap();
    let error = shard.decoder(1, &Refusing).err().unwrap();
    assert_eq!((error.rule(), error.tensor()), (Rule::EncodingDtype, Some("b")));
    let error = shard.decoder(1, &Raw).err().unwrap();
    assert_eq!((error.rule(), error.class()), (Rule::SpecMismatch, Class::Usage));
}

/// Integers of the index and the trailer set to what overflows, one field at a time, at every place
/// and width, the checksum recomputed. What is neither in the stored header nor free to take
/// any value is refused.
#[test]
// A-16
fn every_integer_field() {
    let forge = sound();
    let bytes = forge.bytes();
    let index = 16 + forge.payloads.len();
    let trailer = bytes.len() - 48;
    let json = index + 48..index + 48 + forge.header.len();
    let md5 = {
        let records = json.end.next_multiple_of(8);
        let second = records + forge.records[0].bytes().len();
        second + 32..second + 48
    };
    // SHA-256, MD5 and ignorable features are free; so is the flag of synthesised headers.
    let free = |at: usize, damaged: &[u8]| {
        (index + 8..index + 40).contains(&at)
            || md5.contains(&at)
            || (trailer + 20..trailer + 24).contains(&at)
            || (at == index + 44 && damaged[at] == 1)
    };
    let (mut refused, mut read) = (0, 0);
    for width in [1, 2, 4, 8] {
        let max = u64::MAX >> (64 - 8 * width);
        for at in (0..trailer + 32).step_by(width) {
            if json.contains(&at) || (16..index).contains(&at) {
                continue;
            }
            let mut was = [0; 8];
            was[..width].copy_from_slice(&bytes[at..at + width]);
            let was = u64::from_le_bytes(was);
            let values =
                [0, 1, max, max - 1, 1 << 31, 1 << 63, was.wrapping_add(1), was.wrapping_sub(1)];
            for value in values.map(|v| v & max) {
                let mut damaged = bytes.clone();
                damaged[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
                forge::reseal_index(&mut damaged);
                match open_and_read(&damaged[..]) {
                    Err((rule, _)) => {
                        let class = rule.class();
                        assert!(
                            matches!(class, Class::Corrupt | Class::Unsupported | Class::Limit)
                                // Another encoding than the test's reader has.
                                || rule == Rule::SpecMismatch,
                            "{rule:?} for {value:#x} at {at}"
                        );
                        refused += 1;
                    }
                    Ok(()) => {
                        let harmless = (0..bytes.len() - 16)
                            .filter(|&i| damaged[i] != bytes[i])
                            .all(|i| free(i, &damaged));
                        assert!(harmless, "{value:#x} at {at}, {width} bytes");
                        read += 1;
                    }
                }
            }
        }
    }
    assert!(refused > 3000 && read > 500, "{refused} refused, {read} read");
}
