//! Damaged and forged shards, headers and frames: each is refused under the right rule by every reader, and what is only odd is
//! read. The shards are written by hand with every checksum right, so that the validator behind the checksum is reached.
#![allow(clippy::unwrap_used, clippy::type_complexity)]

mod forge;

use bigsmall_format::*;
use forge::{Forge, Record, pad};

/// A source that lends nothing: everything is copied out of it.
struct Copying<'a>(&'a [u8]);

impl ReadAt for Copying<'_> {
    fn byte_len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(offset, buf)
    }
}

/// What a reader says: nothing, or the rule, the tensor and whether there is an offset.
type Outcome = Result<(), (Rule, Option<String>)>;

fn seen(error: &Error) -> (Rule, Option<String>) {
    let printed = error.to_string();
    assert!(!printed.chars().any(char::is_control), "control characters are escaped: {printed}");
    (error.rule(), error.tensor().map(str::to_owned))
}

fn open_and_read<R: ReadAt>(source: R) -> Outcome {
    let shard = Shard::open(source).map_err(|e| seen(&e))?;
    shard.check_prelude().map_err(|e| seen(&e))?;
    for (i, spec) in shard.tensors().iter().enumerate() {
        let n = spec.byte_len();
        let mut dst = vec![0; n as usize];
        let by_blocks = shard.encoding(i).and_then(|_| {
            let decoder = shard.decoder(i, &Raw)?;
            shard.decode(i, &*decoder, 0..n, &mut dst, 1)
        });
        let mut again = vec![0; n as usize];
        let at_once =
            shard.encoded(i).and_then(|tensor| tensor.decode_bytes(&Raw, 0..n, &mut again, 2));
        let rules = (&by_blocks, &at_once);
        let rules = (rules.0.as_ref().err().map(seen), rules.1.as_ref().err().map(seen));
        assert_eq!(rules.0, rules.1, "two ways to read tensor {i} disagree");
        assert_eq!(dst, again);
        by_blocks.map_err(|e| {
            let offset = e.offset();
            let place = shard.payload_range(i).unwrap();
            let known = matches!(e.rule(), Rule::EncodingUnknown | Rule::SpecMismatch)
                || offset.is_some_and(|at| at == place.start || place.contains(&at));
            assert!(known, "{e:?} has no offset within {place:?}");
            seen(&e)
        })?;
    }
    Ok(())
}

/// The same by every kind of source.
fn outcome(name: &str, bytes: &[u8]) -> Outcome {
    let first = open_and_read(bytes);
    assert_eq!(open_and_read(Copying(bytes)), first, "{name}: a source that lends nothing");
    let path = std::env::temp_dir().join(format!(
        "bigsmall-hostile-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::write(&path, bytes).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    assert_eq!(open_and_read(file), first, "{name}: a file");
    std::fs::remove_file(&path).unwrap();
    first
}

/// What must come of a case. A tensor is named wherever one is to blame.
enum Expect {
    Ok,
    Err(Rule),
    Named(Rule, &'static str),
}
use Expect::{Err as Refused, Named};

type Case = (&'static str, fn(&mut Forge), Expect);

fn run(base: fn() -> Forge, cases: &[Case]) {
    assert_eq!(outcome("undamaged", &base().bytes()), Ok(()));
    for (name, damage, expect) in cases {
        let mut forge = base();
        damage(&mut forge);
        let expected = match expect {
            Expect::Ok => Ok(()),
            Refused(rule) => Err((*rule, None)),
            Named(rule, tensor) => Err((*rule, Some((*tensor).to_owned()))),
        };
        assert_eq!(outcome(name, &forge.bytes()), expected, "{name}");
    }
}

// C-10: the fourth has no values.
/// Five tensors: two with values, one that shares a payload, an empty one, one of four bits an element.
fn sound() -> Forge {
    let mut forge = Forge::new(
        r#"{"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},"b":{"dtype":"U8","shape":[5],"data_offsets":[6,11]},"tied":{"dtype":"U8","shape":[1,5],"data_offsets":[11,16]},"none":{"dtype":"F32","shape":[0],"data_offsets":[16,16]},"c":{"dtype":"F4","shape":[4],"data_offsets":[16,18]}}"#,
    );
    forge.add(0, &[], &[&[1, 2, 3, 4, 5, 6]]);
    let record = forge.add(0, &[], &[&[7, 8, 9, 10, 11]]);
    record.flags = 2;
    record.md5 = Some([0x33; 16]);
    forge.records.push(Record::shared(1));
    forge.add(0, &[], &[]);
    forge.add(0, &[], &[&[0x21, 0x43]]);
    assert!(!forge.header.len().is_multiple_of(8), "the header has padding to damage");
    forge
}

/// One tensor of two blocks.
fn two_blocks() -> Forge {
    let mut forge =
        Forge::new(r#"{"w":{"dtype":"U8","shape":[131079],"data_offsets":[0,131079]}}"#);
    forge.add(0, &[], &[&[3; BLOCK_UNITS], &[4; 7]]);
    forge
}

#[test]
fn envelope() {
    let raw: &[(&str, Vec<u8>, Rule)] = &[
        // A-01
        ("empty file", vec![], Rule::ShardTooShort),
        // A-02
        ("one byte", vec![0x89], Rule::ShardTooShort),
        ("47 bytes", vec![0; 47], Rule::ShardTooShort),
        // A-03
        ("a trailer of zeros", vec![0; 48], Rule::ShardMagic),
        ("a shard of zeros", vec![0; 64], Rule::ShardMagic),
        ("magics alone", [&forge::MAGIC[..]; 6].concat(), Rule::ShardTooShort),
        ("63 bytes", [&[0; 55], &forge::MAGIC[..]].concat(), Rule::ShardTooShort),
        ("magics, 64 bytes", [&forge::MAGIC[..]; 8].concat(), Rule::IndexRange),
        // A-04
        ("the Python package", b"BGSM\x01\0\0\0{}".to_vec(), Rule::PythonPackageFile),
        ("the Python package, longer", [&b"BGSM"[..], &[7; 100]].concat(), Rule::PythonPackageFile),
        ("the Python package's magic alone", b"BGSM".to_vec(), Rule::PythonPackageFile),
        (
            "the Python package's magic and ours",
            [&b"BGSM"[..], &[7; 100], &forge::MAGIC].concat(),
            Rule::IndexRange,
        ),
        ("safetensors without tensors", b"\x02\0\0\0\0\0\0\0{}".to_vec(), Rule::SafetensorsFile),
        (
            "safetensors",
            [&60u64.to_le_bytes()[..], b"{", &[b' '; 59]].concat(),
            Rule::SafetensorsFile,
        ),
        ("Parquet", [&b"PAR1"[..], &[0; 80], b"PAR1"].concat(), Rule::ShardMagic),
        ("text", b"version https://git-lfs.github.com/spec/v1\n".repeat(3), Rule::ShardMagic),
    ];
    for (name, bytes, rule) in raw {
        assert_eq!(outcome(name, bytes), Err((*rule, None)), "{name}");
    }
    run(
        sound,
        &[
            // A-05
            ("version 0", |f| f.version = 0, Refused(Rule::VersionZero)),
            ("version 2", |f| f.version = 2, Refused(Rule::Version)),
            // A-06
            ("version 65535", |f| f.version = 0xffff, Refused(Rule::Version)),
            // A-07
            ("a required feature", |f| f.required = 1, Refused(Rule::RequiredFeature)),
            ("another", |f| f.required = 1 << 31, Refused(Rule::RequiredFeature)),
            // A-08
            ("ignorable features", |f| f.ignorable = u32::MAX, Expect::Ok),
            (
                "the future with reserved bytes and features",
                |f| (f.version, f.required, f.reserved) = (3, 1, [9; 6]),
                Refused(Rule::Version),
            ),
            // A-09
            ("reserved bytes, first", |f| f.reserved[0] = 1, Refused(Rule::ReservedNotZero)),
            ("reserved bytes, last", |f| f.reserved[5] = 0x80, Refused(Rule::ReservedNotZero)),
            ("no magic at the end", |f| f.magic[0] ^= 0x80, Refused(Rule::ShardMagic)),
            // A-10
            ("foreign magic", |f| f.magic = *b"PAR1PAR1", Refused(Rule::ShardMagic)),
            ("line ends changed", |f| f.magic[7] = b'\r', Refused(Rule::ShardMagic)),
            ("no magic at the beginning", |f| f.prelude[1] = b'B', Refused(Rule::ShardMagic)),
            ("version of the prelude", |f| f.prelude[8] = 2, Refused(Rule::ReservedNotZero)),
            ("reserved in the prelude", |f| f.prelude[15] = 1, Refused(Rule::ReservedNotZero)),
            // A-11
            ("a byte after the trailer", |f| f.after = vec![0], Refused(Rule::ShardMagic)),
            ("48 bytes after", |f| f.after = vec![0; 48], Refused(Rule::ShardMagic)),
            ("a line end after", |f| f.after = b"\n".to_vec(), Refused(Rule::ShardMagic)),
            ("the magic again", |f| f.after = f.magic.to_vec(), Refused(Rule::IndexRange)),
            (
                // A-12
                "bytes before the prelude",
                |f| f.before = b"#!/bin/sh\nexit\n\n".to_vec(),
                Refused(Rule::IndexRange),
            ),
            (
                "bytes before the prelude, known to every record",
                |f| {
                    f.before = vec![b'\n'; 8];
                    for i in [0, 1, 3, 4] {
                        f.records[i].place += 8;
                    }
                },
                Named(Rule::PayloadRange, "a"),
            ),
            (
                "bytes before it, unknown to the trailer",
                |f| {
                    f.index_offset = Some(16 + f.payloads.len() as u64);
                    f.before = vec![0; 8];
                },
                Refused(Rule::IndexRange),
            ),
            // A-13
            ("two shards", |f| f.before = sound().bytes(), Refused(Rule::IndexRange)),
            (
                "two shards, the second as it was",
                |f| {
                    f.index_offset = Some(16 + f.payloads.len() as u64);
                    f.before = sound().bytes();
                },
                Refused(Rule::IndexRange),
            ),
        ],
    );
}

#[test]
fn index_lengths() {
    run(
        sound,
        &[
            ("index at 0", |f| f.index_offset = Some(0), Refused(Rule::IndexRange)),
            ("index in the prelude", |f| f.index_offset = Some(15), Refused(Rule::IndexRange)),
            ("index at 2^64-1", |f| f.index_offset = Some(u64::MAX), Refused(Rule::IndexRange)),
            ("length 0", |f| f.index_len = Some(0), Refused(Rule::IndexRange)),
            // B-02
            ("length 2^64-1", |f| f.index_len = Some(u64::MAX), Refused(Rule::IndexRange)),
            // B-01
            ("length beyond the file", |f| f.index_len = Some(1 << 40), Refused(Rule::IndexRange)),
            (
                // B-03
                "offset + length wraps to the right sum",
                |f| {
                    let end = (16 + f.payloads.len() + f.index().len()) as u64;
                    f.index_offset = Some(u64::MAX);
                    f.index_len = Some(end.wrapping_add(1));
                },
                Refused(Rule::IndexRange),
            ),
            (
                "a byte short of the trailer",
                |f| f.index_len = Some(f.index().len() as u64 - 1),
                Refused(Rule::IndexRange),
            ),
            (
                // B-05
                "over the trailer",
                |f| f.index_len = Some(f.index().len() as u64 + 8),
                Refused(Rule::IndexRange),
            ),
            (
                // B-04
                "over a payload",
                |f| {
                    f.index_offset = Some(8 + f.payloads.len() as u64);
                    f.index_len = Some(8 + f.index().len() as u64);
                },
                Refused(Rule::IndexTruncated),
            ),
            (
                "over all payloads",
                |f| {
                    f.index_offset = Some(16);
                    f.index_len = Some((f.payloads.len() + f.index().len()) as u64);
                },
                Refused(Rule::IndexTruncated),
            ),
            // B-10
            (
                "begins a byte early",
                |f| {
                    f.index_offset = Some(15 + f.payloads.len() as u64);
                    f.index_len = Some(1 + f.index().len() as u64);
                },
                Refused(Rule::IndexTruncated),
            ),
            (
                "begins a byte late",
                |f| {
                    f.index_offset = Some(17 + f.payloads.len() as u64);
                    f.index_len = Some(f.index().len() as u64 - 1);
                },
                Refused(Rule::ReservedNotZero),
            ),
            (
                "begins late",
                |f| {
                    f.index_offset = Some(24 + f.payloads.len() as u64);
                    f.index_len = Some(f.index().len() as u64 - 8);
                },
                Refused(Rule::ReservedNotZero),
            ),
            (
                "empty index",
                |f| {
                    f.index_offset = Some((16 + f.payloads.len() + f.index().len()) as u64);
                    f.index_len = Some(0);
                },
                Refused(Rule::IndexTruncated),
            ),
            // B-09
            ("checksum", |f| f.checksum = Some(1), Refused(Rule::IndexChecksum)),
            // B-06
            ("count 2^32-1", |f| f.count = Some(u32::MAX), Refused(Rule::TooManyTensors)),
            (
                "count above the limit",
                |f| f.count = Some((1 << 20) + 1),
                Refused(Rule::TooManyTensors),
            ),
            ("count at the limit", |f| f.count = Some(1 << 20), Refused(Rule::IndexTruncated)),
            ("count 0", |f| f.count = Some(0), Refused(Rule::EntryCount)),
            ("count one less", |f| f.count = Some(4), Refused(Rule::EntryCount)),
            ("count one more", |f| f.count = Some(6), Refused(Rule::EntryCount)),
            (
                // B-07
                "a record less than counted",
                |f| drop((f.records.pop(), f.count = Some(5))),
                Named(Rule::IndexTruncated, "c"),
            ),
            (
                // B-08
                "a record more than counted",
                |f| {
                    f.records.push(Record::shared(0));
                    f.count = Some(5);
                },
                Refused(Rule::IndexTrailing),
            ),
            ("a byte after the records", |f| f.index_tail = vec![0], Refused(Rule::IndexTrailing)),
            (
                // C-20
                "a header of fewer tensors",
                |f| {
                    let last = f.header.windows(5).position(|w| w == br#","c":"#).unwrap();
                    f.header.truncate(last);
                    f.header.push(b'}');
                },
                Refused(Rule::EntryCount),
            ),
            ("no header", |f| f.header_len = Some(0), Refused(Rule::HeaderStart)),
            ("header 2^64-1", |f| f.header_len = Some(u64::MAX), Refused(Rule::IndexTruncated)),
            ("header 2^63", |f| f.header_len = Some(1 << 63), Refused(Rule::IndexTruncated)),
            (
                "header to the end",
                |f| f.header_len = Some(f.index().len() as u64 - 48),
                Refused(Rule::IndexTruncated),
            ),
            (
                "header beyond the end",
                |f| f.header_len = Some(f.index().len() as u64 - 47),
                Refused(Rule::IndexTruncated),
            ),
            (
                "header a byte short",
                |f| f.header_len = Some(f.header.len() as u64 - 1),
                Refused(Rule::PaddingNotZero),
            ),
            (
                "header a byte long",
                |f| f.header_len = Some(f.header.len() as u64 + 1),
                Refused(Rule::HeaderSyntax),
            ),
            (
                "header padded with spaces",
                |f| f.header_padding = b' ',
                Refused(Rule::PaddingNotZero),
            ),
            ("flag 1 of the index", |f| f.flags = 2, Refused(Rule::ReservedNotZero)),
            ("flag 31 of the index", |f| f.flags = 1 << 31, Refused(Rule::ReservedNotZero)),
            ("the flag of synthesised headers", |f| f.flags = 1, Expect::Ok),
        ],
    );
    // Without a limit of tensors the count is still compared with the bytes that are there, before memory is set aside.
    let mut forge = sound();
    forge.count = Some(u32::MAX);
    let limits = Limits { max_tensors: usize::MAX, ..Limits::default() };
    let error = Shard::open_with(forge.bytes(), &limits).unwrap_err();
    assert_eq!(error.rule(), Rule::IndexTruncated);
    for (limits, rule) in [
        (Limits { max_index_bytes: 300, ..Limits::default() }, Rule::IndexTooLarge),
        (Limits { max_header_bytes: 200, ..Limits::default() }, Rule::HeaderTooLarge),
        (Limits { max_tensors: 4, ..Limits::default() }, Rule::TooManyTensors),
        (Limits { max_rank: 1, ..Limits::default() }, Rule::RankTooLarge),
        (Limits { max_name_bytes: 3, ..Limits::default() }, Rule::NameTooLong),
    ] {
        let error = Shard::open_with(sound().bytes(), &limits).unwrap_err();
        assert_eq!((error.rule(), error.class()), (rule, Class::Limit));
    }
}

#[test]
fn records() {
    run(
        sound,
        &[
            ("flag 2 of a record", |f| f.records[1].flags |= 4, Named(Rule::ReservedNotZero, "b")),
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
                    // The second length is the padding of the first, with a checksum more than there are blocks less.
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
            ("unknown encoding", |f| f.records[4].encoding = 3, Named(Rule::EncodingUnknown, "c")),
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
    let mut forge = Forge::new(
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"c":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},"d":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}}"#,
    );
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
        two_blocks,
        &[
            (
                "the second one damaged",
                |f| f.payloads[BLOCK_UNITS] ^= 1,
                Named(Rule::BlockChecksum, "w"),
            ),
            (
                "exchanged checksums",
                |f| f.records[0].hashes.swap(0, 1),
                Named(Rule::BlockChecksum, "w"),
            ),
            // G-13
            ("exchanged lengths", |f| f.records[0].lens.swap(0, 1), Named(Rule::BlockLength, "w")),
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
                    f.records[0].length = 64;
                    f.records[0].hashes[0] = xxh3(&[3; 56]);
                    f.payloads = vec![3; 56];
                    f.payloads.extend([4; 7]);
                    pad(&mut f.payloads);
                },
                Named(Rule::BlockLength, "w"),
            ),
            (
                "a full block of more than twice its bytes",
                |f| f.records[0].lens[0] = 2 * BLOCK_UNITS as u32 + 4097,
                Named(Rule::BlockLength, "w"),
            ),
            (
                "one block for the bytes of two",
                |f| {
                    f.records[0].lens.pop();
                    f.records[0].hashes.pop();
                },
                Named(Rule::IndexTruncated, "w"),
            ),
        ],
    );
    // The offset leads to the block.
    let mut forge = two_blocks();
    forge.payloads[BLOCK_UNITS + 3] ^= 1;
    let shard = Shard::open(forge.bytes()).unwrap();
    let decoder = shard.decoder(0, &Raw).unwrap();
    let mut first = vec![0; BLOCK_UNITS];
    shard.decode(0, &*decoder, 0..BLOCK_UNITS as u64, &mut first, 1).unwrap();
    let n = BLOCK_UNITS as u64 + 7;
    let error = shard.decode(0, &*decoder, 0..n, &mut vec![0; n as usize], 1).unwrap_err();
    assert_eq!(error.offset(), Some(16 + BLOCK_UNITS as u64));
    assert_eq!(shard.encoded(0).unwrap_err().offset(), Some(16 + BLOCK_UNITS as u64));
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
        shard.decode(i, &*decoder, 0..5, &mut five, 1).unwrap();
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

/// Integers of the index and the trailer set to what overflows, one field at a time, at every place and width, the checksum made
/// right again. What is neither in the stored header nor free to take any value is refused.
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

/// A shard with the stored header `header` and nothing behind it that fits: the header is judged first.
fn of_header(header: &[u8]) -> Rule {
    let mut forge = Forge::new("");
    forge.header = header.to_vec();
    forge.records = vec![Record::default(); 3];
    Shard::open(forge.bytes()).unwrap_err().rule()
}

fn entry(name: &str, dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

fn one(dtype: &str, shape: &str, offsets: &str) -> Vec<u8> {
    format!("{{{}}}", entry("a", dtype, shape, offsets)).into_bytes()
}

#[test]
fn headers() {
    let good = || entry("a", "U8", "[4]", "[0,4]");
    let deep = |open: &str, close: &str, n: usize| {
        let (open, close) = (open.repeat(n), close.repeat(n));
        let fields = r#""dtype":"U8","shape":[4],"data_offsets":[0,4]"#;
        format!(r#"{{"a":{{{fields},"x":{open}1{close}}}}}"#).into_bytes()
    };
    let json = |text: String| text.into_bytes();
    let cases: Vec<(&str, Vec<u8>, Rule)> = vec![
        ("nothing", vec![], Rule::HeaderStart),
        // E-05
        ("leading space", json(format!(" {{{}}}", good())), Rule::HeaderStart),
        ("leading line end", json(format!("\n{{{}}}", good())), Rule::HeaderStart),
        // E-06
        ("byte order mark", json(format!("\u{feff}{{{}}}", good())), Rule::HeaderStart),
        ("UTF-16", json(good()).iter().flat_map(|&b| [b, 0]).collect(), Rule::HeaderStart),
        ("an array", json("[]".into()), Rule::HeaderStart),
        ("a number", json("1".into()), Rule::HeaderStart),
        ("cut short", json(format!("{{{}", good())), Rule::HeaderSyntax),
        ("a bracket alone", json("{".into()), Rule::HeaderSyntax),
        ("more behind it", json(format!("{{{}}} x", good())), Rule::HeaderSyntax),
        ("twice", json(format!("{{{}}}{{}}", good())), Rule::HeaderSyntax),
        ("a NUL behind it", json(format!("{{{}}}\0", good())), Rule::HeaderSyntax),
        ("a comma too many", json(format!("{{{},}}", good())), Rule::HeaderSyntax),
        ("a comment", json(format!("{{/**/{}}}", good())), Rule::HeaderSyntax),
        ("single quotes", json(format!("{{{}}}", good().replace('"', "'"))), Rule::HeaderSyntax),
        (
            "a raw line end in a name",
            json(format!("{{{}}}", entry("\n", "U8", "[4]", "[0,4]"))),
            Rule::HeaderSyntax,
        ),
        (
            "a raw NUL in a name",
            json(format!("{{{}}}", entry("\0", "U8", "[4]", "[0,4]"))),
            Rule::HeaderSyntax,
        ),
        (
            "NaN in an unknown field",
            json(format!("{{{}}}", good().replace('}', r#","x":NaN}"#))),
            Rule::HeaderSyntax,
        ),
        (
            "a number beyond f64 in an unknown field",
            json(format!("{{{}}}", good().replace('}', r#","x":[1e309]}"#))),
            Rule::HeaderSyntax,
        ),
        (
            "the same in digits alone",
            json(format!(
                "{{{}}}",
                good().replace('}', &format!(r#","x":-{}}}"#, "9".repeat(310)))
            )),
            Rule::HeaderSyntax,
        ),
        // D-03
        ("not UTF-8", [&b"{\"\xff\":"[..], &json(good())[4..], b"}"].concat(), Rule::HeaderSyntax),
        (
            "UTF-8 too long",
            [&b"{\"\xc0\xaf\":"[..], &json(good())[4..], b"}"].concat(),
            Rule::HeaderSyntax,
        ),
        (
            "a surrogate in UTF-8",
            [&b"{\"\xed\xa0\x80\":"[..], &json(good())[4..], b"}"].concat(),
            Rule::HeaderSyntax,
        ),
        (
            // E-18
            "a lone surrogate",
            json(format!("{{{}}}", entry(r"\ud800", "U8", "[4]", "[0,4]"))),
            Rule::HeaderSyntax,
        ),
        (
            "a low surrogate first",
            json(format!("{{{}}}", entry(r"\udc00\ud800", "U8", "[4]", "[0,4]"))),
            Rule::HeaderSyntax,
        ),
        (
            "a lone surrogate in metadata",
            json(r#"{"__metadata__":{"k":"\udfff"}}"#.into()),
            Rule::HeaderSyntax,
        ),
        ("a tensor that is a number", json(r#"{"a":1}"#.into()), Rule::HeaderSyntax),
        ("a tensor that is null", json(r#"{"a":null}"#.into()), Rule::HeaderSyntax),
        (
            "a dtype that is a number",
            json(r#"{"a":{"dtype":8,"shape":[4],"data_offsets":[0,4]}}"#.into()),
            Rule::HeaderSyntax,
        ),
        ("a shape that is a number", one("U8", "4", "[0,4]"), Rule::HeaderSyntax),
        ("a shape of strings", one("U8", r#"["4"]"#, "[0,4]"), Rule::HeaderSyntax),
        ("a shape of -1", one("U8", "[-1]", "[0,4]"), Rule::HeaderSyntax),
        ("a shape of 4.0", one("U8", "[4.0]", "[0,4]"), Rule::HeaderSyntax),
        ("an offset 4e0", one("U8", "[4]", "[0,4e0]"), Rule::HeaderSyntax),
        // E-09
        ("an offset 1e3", one("U8", "[1000]", "[0,1e3]"), Rule::HeaderSyntax),
        // E-10
        ("an offset -1", one("U8", "[4]", "[-1,3]"), Rule::HeaderSyntax),
        ("an offset -0", one("U8", "[4]", "[-0,4]"), Rule::HeaderSyntax),
        // E-11
        ("an offset 4.0", one("U8", "[4]", "[0,4.0]"), Rule::HeaderSyntax),
        ("an offset 04", one("U8", "[4]", "[0,04]"), Rule::HeaderSyntax),
        ("an offset 0x4", one("U8", "[4]", "[0,0x4]"), Rule::HeaderSyntax),
        ("an offset +4", one("U8", "[4]", "[0,+4]"), Rule::HeaderSyntax),
        // E-12
        ("an offset 2^64", one("U8", "[4]", "[0,18446744073709551616]"), Rule::HeaderSyntax),
        (
            "an offset of 400 digits",
            one("U8", "[4]", &format!("[0,{}]", "9".repeat(400))),
            Rule::HeaderSyntax,
        ),
        ("an offset null", one("U8", "[4]", "[0,null]"), Rule::HeaderSyntax),
        ("offsets 2^64-1", one("U8", "[4]", "[18446744073709551615,3]"), Rule::DataRange),
        // E-13
        ("begin after end", one("U8", "[4]", "[4,0]"), Rule::DataRange),
        ("a hole at the beginning", one("U8", "[3]", "[1,4]"), Rule::DataRange),
        (
            // E-14
            "a hole between",
            json(format!("{{{},{}}}", good(), entry("b", "U8", "[1]", "[5,6]"))),
            Rule::DataRange,
        ),
        (
            // E-15
            "an overlap",
            json(format!("{{{},{}}}", good(), entry("b", "U8", "[3]", "[3,6]"))),
            Rule::DataRange,
        ),
        (
            "the same range twice",
            json(format!("{{{},{}}}", good(), entry("b", "U8", "[4]", "[0,4]"))),
            Rule::DataRange,
        ),
        (
            "an empty range within another",
            json(format!("{{{},{}}}", good(), entry("b", "U8", "[0]", "[2,2]"))),
            Rule::DataRange,
        ),
        // C-21, E-17
        ("a range longer than the shape", one("U8", "[3]", "[0,4]"), Rule::DataRange),
        ("a range shorter than the shape", one("U16", "[4]", "[0,4]"), Rule::DataRange),
        ("three offsets", one("U8", "[4]", "[0,4,4]"), Rule::HeaderEntry),
        ("one offset", one("U8", "[4]", "[0]"), Rule::HeaderEntry),
        (
            "a million offsets",
            one("U8", "[4]", &format!("[{}0]", "0,".repeat(1_000_000))),
            Rule::HeaderEntry,
        ),
        ("no dtype", json(r#"{"a":{"shape":[4],"data_offsets":[0,4]}}"#.into()), Rule::HeaderEntry),
        (
            "no shape",
            json(r#"{"a":{"dtype":"U8","data_offsets":[0,4]}}"#.into()),
            Rule::HeaderEntry,
        ),
        ("no offsets", json(r#"{"a":{"dtype":"U8","shape":[4]}}"#.into()), Rule::HeaderEntry),
        (
            "65 unknown fields",
            json(format!(
                "{{{}}}",
                good().replace(
                    '}',
                    &format!("{}}}", (0..65).map(|i| format!(r#","{i}":0"#)).collect::<String>())
                )
            )),
            Rule::HeaderEntry,
        ),
        // C-12
        ("an unknown dtype", one("Q3", "[4]", "[0,4]"), Rule::DtypeUnknown),
        ("a dtype in small letters", one("u8", "[4]", "[0,4]"), Rule::DtypeUnknown),
        ("no name of a dtype", one("", "[4]", "[0,4]"), Rule::DtypeUnknown),
        // C-07
        ("[2^63, 2]", one("U8", "[9223372036854775808,2]", "[0,0]"), Rule::ShapeOverflow),
        // C-08
        ("[2^64-1, 2, 0]", one("U8", "[18446744073709551615,2,0]", "[0,0]"), Rule::ShapeOverflow),
        ("[0, 2^64-1, 2]", one("U8", "[0,18446744073709551615,2]", "[0,0]"), Rule::ShapeOverflow),
        (
            // C-06
            "2^60 bytes",
            one("U8", "[1152921504606846976]", "[0,1152921504606846976]"),
            Rule::ShapeOverflow,
        ),
        (
            "2^62 bits of a sub-byte dtype, odd",
            one("F4", "[1152921504606846977]", "[0,576460752303423488]"),
            Rule::SubByteTotal,
        ),
        // C-14
        ("half a byte", one("F4", "[7]", "[0,4]"), Rule::SubByteTotal),
        ("six bits", one("F6_E2M3", "[1]", "[0,1]"), Rule::SubByteTotal),
        ("rank 65", one("U8", &format!("{:?}", [1; 65]), "[0,1]"), Rule::RankTooLarge),
        // C-09
        ("rank 255", one("U8", &format!("{:?}", [1; 255]), "[0,1]"), Rule::RankTooLarge),
        (
            "rank 10^6",
            one("U8", &format!("[{}1]", "1,".repeat(1_000_000)), "[0,1]"),
            Rule::RankTooLarge,
        ),
        (
            // D-06
            "a name of 65,537 bytes",
            json(format!("{{{}}}", entry(&"n".repeat(65_537), "U8", "[4]", "[0,4]"))),
            Rule::NameTooLong,
        ),
        (
            // D-01, E-07
            "a tensor twice",
            json(format!(
                "{{{0},{0},{1}}}",
                entry("a", "U8", "[0]", "[0,0]"),
                entry("b", "U8", "[4]", "[0,4]")
            )),
            Rule::HeaderDuplicate,
        ),
        (
            "a tensor twice, escaped once",
            json(format!(
                "{{{},{}}}",
                entry("a", "U8", "[0]", "[0,0]"),
                entry(r"\u0061", "U8", "[4]", "[0,4]")
            )),
            Rule::HeaderDuplicate,
        ),
        (
            "a tensor twice, far apart",
            json(format!(
                "{{{},{},{}}}",
                entry("a", "U8", "[0]", "[0,0]"),
                entry("b", "U8", "[4]", "[0,4]"),
                entry("a", "U8", "[0]", "[4,4]")
            )),
            Rule::HeaderDuplicate,
        ),
        (
            "a dtype twice",
            json(r#"{"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#.into()),
            Rule::HeaderDuplicate,
        ),
        (
            "a shape twice",
            json(r#"{"a":{"dtype":"U8","shape":[4],"shape":[4],"data_offsets":[0,4]}}"#.into()),
            Rule::HeaderDuplicate,
        ),
        (
            "offsets twice",
            json(
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"data_offsets":[0,4]}}"#
                    .into(),
            ),
            Rule::HeaderDuplicate,
        ),
        (
            "an unknown field twice",
            json(format!("{{{}}}", good().replace('}', r#","x":1,"x":1}"#))),
            Rule::HeaderDuplicate,
        ),
        (
            // E-07
            "twice within an unknown field",
            json(format!("{{{}}}", good().replace('}', r#","x":[{"y":{"k":1,"k":2}}]}"#))),
            Rule::HeaderDuplicate,
        ),
        (
            "metadata twice",
            json(format!(r#"{{"__metadata__":{{}},{},"__metadata__":{{}}}}"#, good())),
            Rule::HeaderDuplicate,
        ),
        (
            "a key of metadata twice",
            json(r#"{"__metadata__":{"k":"1","l":"","k":"1"}}"#.into()),
            Rule::HeaderDuplicate,
        ),
        // E-19
        ("metadata of numbers", json(r#"{"__metadata__":{"k":1}}"#.into()), Rule::HeaderSyntax),
        ("metadata of objects", json(r#"{"__metadata__":{"k":{}}}"#.into()), Rule::HeaderSyntax),
        ("metadata null", json(r#"{"__metadata__":null}"#.into()), Rule::HeaderSyntax),
        (
            // D-05
            "metadata that is a tensor",
            json(format!("{{{}}}", entry("__metadata__", "U8", "[4]", "[0,4]"))),
            Rule::HeaderSyntax,
        ),
        // E-08
        ("200,000 arrays deep", deep("[", "]", 200_000), Rule::HeaderSyntax),
        ("200,000 objects deep", deep(r#"{"k":"#, "}", 200_000), Rule::HeaderSyntax),
        (
            "200,000 brackets that never close",
            json(format!(r#"{{"a":{{"x":{}"#, "[".repeat(200_000))),
            Rule::HeaderSyntax,
        ),
        (
            "200,000 deep in place of a tensor",
            json(format!(r#"{{"a":{}"#, "[".repeat(200_000))),
            Rule::HeaderSyntax,
        ),
    ];
    let limits = Limits::default();
    for (name, json, rule) in &cases {
        let error = Header::parse(json, 4, &limits).unwrap_err();
        assert_eq!(error.rule(), *rule, "{name}: {error}");
        seen(&error);
        assert_eq!(of_header(json), *rule, "{name}, stored in a shard");
        // In a file, with its length before it and the data behind it.
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend(json);
        file.extend([1, 2, 3, 4]);
        let error = Header::read(&file, &limits).unwrap_err();
        let rule = if json.is_empty() { Rule::HeaderLength } else { *rule };
        assert_eq!(error.rule(), rule, "{name}, in a file");
        assert_eq!(Header::read(&Copying(&file), &limits).unwrap_err().rule(), rule, "{name}");
    }
    // Who is to blame.
    for (json, tensor) in [
        (one("U8", "[3]", "[0,4]"), "a"),
        (one("Q3", "[3]", "[0,4]"), "a"),
        (one("U8", "[1]", "[3,4]"), "a"),
        (one("U8", "[4]", "[0]"), "a"),
        (json(r#"{"__metadata__":{"k":"","k":""}}"#.into()), "__metadata__"),
    ] {
        assert_eq!(Header::parse(&json, 4, &limits).unwrap_err().tensor(), Some(tensor));
    }
    // E-16
    for (data_len, rule) in [(3, Rule::DataLength), (5, Rule::DataLength), (0, Rule::DataLength)] {
        let error = Header::parse(&one("U8", "[4]", "[0,4]"), data_len, &limits).unwrap_err();
        assert_eq!(error.rule(), rule);
    }
    // Odd, and sound.
    for (name, json, n) in [
        // E-21
        ("no tensors", json("{}".into()), 0),
        ("no tensors, metadata", json(r#"{"__metadata__":{"a":"b"}}"#.into()), 0),
        ("whitespace", json("{ }\r\n\t  ".into()), 0),
        ("64 dimensions", one("U8", &format!("{:?}", [1; 64]), "[0,1]"), 1),
        ("nothing of 2^58 rows", one("U8", "[0,288230376151711744]", "[0,0]"), 1),
        ("the largest tensor", one("U8", "[1152921504606846975]", "[0,1152921504606846975]"), 1),
        // C-11
        ("a scalar", one("F64", "[]", "[0,8]"), 1),
        ("100 arrays deep", deep("[", "]", 98), 1),
        (
            "large and small numbers in an unknown field",
            json(format!("{{{}}}", good().replace('}', r#","x":[-9.9e307,1e-999]}"#))),
            1,
        ),
        (
            // E-20
            "64 unknown fields",
            json(format!(
                "{{{}}}",
                good().replace(
                    '}',
                    &format!(
                        "{}}}",
                        (0..64).map(|i| format!(r#","{i}":-1.5e3"#)).collect::<String>()
                    )
                )
            )),
            1,
        ),
        (
            "a name of 65,536 bytes",
            json(format!("{{{}}}", entry(&"n".repeat(65_536), "U8", "[4]", "[0,4]"))),
            1,
        ),
    ] {
        let data_len = Header::parse(&json, u64::MAX, &limits);
        assert_eq!(data_len.unwrap_err().rule(), Rule::DataLength, "{name}");
        let data_len = [0, 1, 4, 8, (1 << 60) - 1];
        let header = data_len.iter().find_map(|&n| Header::parse(&json, n, &limits).ok());
        assert_eq!(header.expect(name).tensors().len(), n, "{name}");
    }
}

#[test]
// D-02, D-04, D-07, D-08
fn names() {
    let names = [
        "",
        "NUL \0",
        "line\nfeed",
        "\u{1b}[31m",
        "é",
        "e\u{301}",
        "../../x",
        "/etc/passwd",
        "C:\\x",
        "__metadata",
        "dtype",
        "\u{202e}",
        "😀",
    ];
    let specs: Vec<_> =
        names.iter().map(|name| TensorSpec::new(name, Dtype::U8, &[1]).unwrap()).collect();
    let mut writer = ShardWriter::synthesised(Vec::new(), &specs).unwrap();
    for (i, spec) in specs.iter().enumerate() {
        writer.write_tensor(&encode_tensor(&Raw, spec, &vec![i as u8], 1).unwrap()).unwrap();
    }
    let bytes = writer.finish([0; 32]).unwrap();
    assert_eq!(outcome("names", &bytes), Ok(()));
    let shard = Shard::open(bytes).unwrap();
    for (i, name) in names.iter().enumerate() {
        assert_eq!(shard.index_of(name).unwrap(), i);
        let error = shard.decode(i, &*shard.decoder(i, &Raw).unwrap(), 0..2, &mut [0; 2], 1);
        let error = error.unwrap_err();
        assert_eq!((error.rule(), error.tensor()), (Rule::RangeOutOfBounds, Some(*name)));
        seen(&error);
    }
    assert_eq!(shard.index_of("e").unwrap_err().rule(), Rule::TensorMissing);

    let reserved = [TensorSpec::new("__metadata__", Dtype::U8, &[1]).unwrap()];
    assert!(ShardWriter::synthesised(Vec::new(), &reserved).is_err());
    let twice = ["x", "x"].map(|name| TensorSpec::new(name, Dtype::U8, &[1]).unwrap());
    let error = ShardWriter::synthesised(Vec::new(), &twice).err().unwrap();
    assert_eq!((error.rule(), error.tensor()), (Rule::HeaderDuplicate, Some("x")));
}

/// A length before the header that no file can keep: nothing is read, nothing set aside.
#[test]
fn lengths_of_headers() {
    /// As long as it says, and not to be read beyond its first eight bytes.
    struct Claims(u64, [u8; 8]);
    impl ReadAt for Claims {
        fn byte_len(&self) -> u64 {
            self.0
        }

        fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
            assert_eq!((offset, buf.len()), (0, 8), "nothing but the length is read");
            buf.copy_from_slice(&self.1);
            Ok(())
        }
    }
    let limits = Limits::default();
    for (name, file, len, rule) in [
        ("an empty file", 0, 0, Rule::HeaderLength),
        ("seven bytes", 7, 0, Rule::HeaderLength),
        ("eight bytes", 8, 0, Rule::HeaderLength),
        // E-01
        ("length 0", 100, 0, Rule::HeaderLength),
        // E-02
        ("a byte beyond the file", 100, 93, Rule::HeaderLength),
        // E-03
        ("length 2^64-1", 100, u64::MAX, Rule::HeaderLength),
        ("length 2^63", u64::MAX, 1 << 63, Rule::HeaderTooLarge),
        ("length 2^64-1 of a file as long", u64::MAX, u64::MAX, Rule::HeaderLength),
        // E-04
        ("100 MB and a byte", 1 << 40, 100_000_001, Rule::HeaderTooLarge),
        // D-06
        ("a name of a gigabyte", 1 << 40, (1 << 30) + 60, Rule::HeaderTooLarge),
        ("ten million tensors", 1 << 40, 540_000_000, Rule::HeaderTooLarge),
    ] {
        let error = Header::read(&Claims(file, u64::to_le_bytes(len)), &limits).unwrap_err();
        assert_eq!(error.rule(), rule, "{name}");
    }
    // The limit itself is within it.
    let json = one("U8", "[4]", "[0,4]");
    let file = [&(json.len() as u64).to_le_bytes()[..], &json, &[1, 2, 3, 4]].concat();
    let at_most = |n: usize| Limits { max_header_bytes: n as u64, ..Limits::default() };
    assert!(Header::read(&file, &at_most(json.len())).is_ok());
    let error = Header::read(&file, &at_most(json.len() - 1)).unwrap_err();
    assert_eq!(error.rule(), Rule::HeaderTooLarge);
    let error = Header::read(&Claims(50, *b"BGSM\x01\0\0\0"), &limits).unwrap_err();
    assert_eq!((error.rule(), error.class()), (Rule::PythonPackageFile, Class::Unsupported));
}

/// A frame written by hand from FORMAT.md section 9.
#[derive(Clone)]
struct Frame {
    magic: [u8; 8],
    version: u8,
    encoding: u8,
    dtype: Vec<u8>,
    dtype_len: Option<u8>,
    rank: Option<u8>,
    head_len: Option<u32>,
    name: Vec<u8>,
    name_len: Option<u64>,
    head_hash: Option<u64>,
    shape: Vec<u64>,
    padding: u8,
    lens: Vec<u32>,
    lens_padding: u8,
    hashes: Vec<u64>,
    checksum: Option<u64>,
    head: Vec<u8>,
    payload: Vec<u8>,
    after: Vec<u8>,
}

impl Frame {
    fn sound() -> Frame {
        Frame {
            magic: *b"\x89bsmlT\r\n",
            version: 1,
            encoding: 0,
            dtype: b"U8".to_vec(),
            dtype_len: None,
            rank: None,
            head_len: None,
            name: b"w".to_vec(),
            name_len: None,
            head_hash: None,
            shape: vec![3],
            padding: 0,
            lens: vec![3],
            lens_padding: 0,
            hashes: vec![xxh3(&[1, 2, 3, 0, 0, 0, 0, 0])],
            checksum: None,
            head: vec![],
            payload: vec![1, 2, 3, 0, 0, 0, 0, 0],
            after: vec![],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend([self.version, self.encoding]);
        out.push(self.dtype_len.unwrap_or(self.dtype.len() as u8));
        out.push(self.rank.unwrap_or(self.shape.len() as u8));
        out.extend(self.head_len.unwrap_or(self.head.len() as u32).to_le_bytes());
        out.extend(self.name_len.unwrap_or(self.name.len() as u64).to_le_bytes());
        out.extend(self.head_hash.unwrap_or(xxh3(&self.head)).to_le_bytes());
        out.extend(self.shape.iter().flat_map(|n| n.to_le_bytes()));
        out.extend(&self.dtype);
        out.extend(&self.name);
        out.resize(out.len().next_multiple_of(8), self.padding);
        out.extend(self.lens.iter().flat_map(|n| n.to_le_bytes()));
        out.resize(out.len().next_multiple_of(8), self.lens_padding);
        out.extend(self.hashes.iter().flat_map(|n| n.to_le_bytes()));
        out.extend(self.checksum.unwrap_or(xxh3(&out)).to_le_bytes());
        out.extend(&self.head);
        pad(&mut out);
        out.extend(&self.payload);
        out.extend(&self.after);
        out
    }
}

#[test]
fn frames() {
    let sound = Frame::sound().bytes();
    let tensor = EncodedTensor::from_bytes(&sound).unwrap();
    assert_eq!(tensor.to_bytes(), sound);
    let cases: &[(&str, fn(&mut Frame), Rule)] = &[
        ("magic", |f| f.magic[0] = 0, Rule::FrameMagic),
        ("magic of a shard", |f| f.magic = forge::MAGIC, Rule::FrameMagic),
        ("version 0", |f| f.version = 0, Rule::VersionZero),
        ("version 2", |f| f.version = 2, Rule::Version),
        ("version 255", |f| f.version = 255, Rule::Version),
        ("encoding 3", |f| f.encoding = 3, Rule::EncodingUnknown),
        ("encoding 255", |f| f.encoding = 255, Rule::EncodingUnknown),
        ("dtype", |f| f.dtype = b"Q8".to_vec(), Rule::DtypeUnknown),
        ("no dtype", |f| f.dtype.clear(), Rule::DtypeUnknown),
        ("dtype not UTF-8", |f| f.dtype = vec![0xff], Rule::HeaderSyntax),
        ("length of the dtype", |f| f.dtype_len = Some(255), Rule::FrameTruncated),
        ("length of the dtype, one less", |f| f.dtype_len = Some(1), Rule::PaddingNotZero),
        ("name not UTF-8", |f| f.name = vec![0xc0, 0xaf], Rule::HeaderSyntax),
        ("length of the name", |f| f.name_len = Some(60_000), Rule::FrameTruncated),
        // D-06
        ("length of the name 2^30", |f| f.name_len = Some(1 << 30), Rule::NameTooLong),
        ("length of the name 2^64-1", |f| f.name_len = Some(u64::MAX), Rule::NameTooLong),
        ("name too long", |f| f.name = vec![b'n'; 65_537], Rule::NameTooLong),
        ("rank 65", |f| f.shape = vec![1; 65], Rule::RankTooLarge),
        ("rank 255", |f| f.rank = Some(255), Rule::RankTooLarge),
        ("rank beyond the frame", |f| f.rank = Some(64), Rule::FrameTruncated),
        ("[2^63, 2]", |f| f.shape = vec![1 << 63, 2], Rule::ShapeOverflow),
        ("[2^64-1, 2, 0]", |f| f.shape = vec![u64::MAX, 2, 0], Rule::ShapeOverflow),
        ("half a byte", |f| (f.dtype, f.shape) = (b"F4".to_vec(), vec![5]), Rule::SubByteTotal),
        ("2^60 - 1 elements", |f| f.shape = vec![(1 << 60) - 1], Rule::FrameTruncated),
        ("more elements than the block", |f| f.shape = vec![4], Rule::BlockLength),
        ("no elements", |f| f.shape = vec![0], Rule::FrameChecksum),
        ("padding", |f| f.padding = 1, Rule::PaddingNotZero),
        ("padding of the lengths", |f| f.lens_padding = 1, Rule::PaddingNotZero),
        ("block of no bytes", |f| f.lens[0] = 0, Rule::BlockLength),
        ("block a byte short", |f| f.lens[0] = 2, Rule::BlockLength),
        ("block too long", |f| f.lens[0] = 4103, Rule::BlockLength),
        ("block beyond the frame", |f| f.lens[0] = 12, Rule::FrameTruncated),
        ("checksum of the block", |f| f.hashes[0] ^= 1, Rule::BlockChecksum),
        ("checksum of the head", |f| f.head_hash = Some(1), Rule::HeadChecksum),
        ("checksum of the frame", |f| f.checksum = Some(1), Rule::FrameChecksum),
        ("length of the head", |f| f.head_len = Some(1), Rule::FrameTruncated),
        ("head of 2^32-1 bytes", |f| f.head_len = Some(u32::MAX), Rule::FrameTruncated),
        ("bytes behind it", |f| f.after = vec![0], Rule::FrameTrailing),
        ("two frames", |f| f.after = Frame::sound().bytes(), Rule::FrameTrailing),
        (
            "padding of the head",
            |f| {
                (f.head_len, f.head_hash) = (Some(1), Some(xxh3(&[5])));
                f.head = vec![5, 0, 0, 0, 0, 0, 0, 1];
            },
            Rule::PaddingNotZero,
        ),
        (
            "padding of the block",
            |f| {
                f.payload[7] = 1;
                f.hashes = vec![xxh3(&f.payload)];
            },
            Rule::PaddingNotZero,
        ),
        ("the payload", |f| f.payload[1] ^= 1, Rule::BlockChecksum),
        ("no payload", |f| f.payload.clear(), Rule::FrameTruncated),
    ];
    for (name, damage, rule) in cases {
        let mut frame = Frame::sound();
        damage(&mut frame);
        let error = EncodedTensor::from_bytes(&frame.bytes()).unwrap_err();
        assert_eq!(error.rule(), *rule, "{name}: {error}");
        assert!(
            matches!(error.class(), Class::Corrupt | Class::Unsupported | Class::Limit),
            "{name}"
        );
        seen(&error);
        if matches!(rule, Rule::BlockChecksum | Rule::HeadChecksum | Rule::BlockLength) {
            assert_eq!(error.tensor(), Some("w"), "{name}");
        }
    }
    // A raw tensor has no head.
    let mut frame = Frame::sound();
    frame.head = vec![5];
    let tensor = EncodedTensor::from_bytes(&frame.bytes()).unwrap();
    let error = tensor.decode_bytes(&Raw, 0..3, &mut [0; 3], 1).unwrap_err();
    assert_eq!((error.rule(), error.tensor()), (Rule::PayloadLength, Some("w")));
    // Every bit and every cut.
    for bit in 0..8 * sound.len() {
        let mut damaged = sound.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(EncodedTensor::from_bytes(&damaged).is_err(), "bit {bit}");
    }
    for len in 0..sound.len() {
        assert!(EncodedTensor::from_bytes(&sound[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn misuse_is_an_error() {
    let shard = Shard::open(sound().bytes()).unwrap();
    let decoder = shard.decoder(1, &Raw).unwrap();
    let mut dst = [0; 5];
    for (range, n, rule) in [
        (0..6, 5, Rule::RangeOutOfBounds),
        (6..6, 0, Rule::RangeOutOfBounds),
        (u64::MAX - 1..u64::MAX, 1, Rule::RangeOutOfBounds),
        (0..5, 4, Rule::BufferLength),
        (0..4, 5, Rule::BufferLength),
    ] {
        let error = shard.decode(1, &*decoder, range, &mut dst[..n], 1).unwrap_err();
        assert_eq!((error.rule(), error.class()), (rule, Class::Usage));
    }
    #[allow(clippy::reversed_empty_ranges)]
    let error = shard.decode(1, &*decoder, 3..2, &mut [], 1).unwrap_err();
    assert_eq!(error.rule(), Rule::RangeOutOfBounds);
    for i in [5, usize::MAX] {
        assert_eq!(shard.entry(i).unwrap_err().rule(), Rule::TensorMissing);
        assert_eq!(shard.encoding(i).unwrap_err().rule(), Rule::TensorMissing);
        assert_eq!(shard.table(i).unwrap_err().rule(), Rule::TensorMissing);
        assert_eq!(shard.payload_range(i).unwrap_err().rule(), Rule::TensorMissing);
        assert_eq!(shard.encoded(i).unwrap_err().rule(), Rule::TensorMissing);
        assert_eq!(shard.decoder(i, &Raw).err().unwrap().rule(), Rule::TensorMissing);
    }
    // The writer out of order.
    let spec = TensorSpec::new("w", Dtype::U8, &[3]).unwrap();
    let tensor = encode_tensor(&Raw, &spec, &vec![1, 2, 3], 1).unwrap();
    let writer = || ShardWriter::synthesised(Vec::new(), std::slice::from_ref(&spec)).unwrap();
    let misuses: &[(&str, fn(&mut ShardWriter<Vec<u8>>) -> Result<()>)] = &[
        ("blocks before a tensor", |w| w.blocks(&[0; 8], &[3])),
        ("an end before a tensor", |w| w.end(None)),
        ("shared with nothing", |w| w.share(0, None)),
        ("begun twice", |w| {
            w.begin(EncodingId::Raw, &[]).and_then(|()| w.begin(EncodingId::Raw, &[]))
        }),
        ("no blocks", |w| w.begin(EncodingId::Raw, &[]).and_then(|()| w.end(None))),
        ("blocks not padded", |w| {
            w.begin(EncodingId::Raw, &[]).and_then(|()| w.blocks(&[1, 2, 3], &[3]))
        }),
        ("a length too many", |w| {
            w.begin(EncodingId::Raw, &[]).and_then(|()| w.blocks(&[0; 8], &[3, 3]))
        }),
        ("a length too few", |w| {
            w.begin(EncodingId::Raw, &[]).and_then(|()| w.blocks(&[0; 16], &[3]))
        }),
        ("a length too large", |w| {
            w.begin(EncodingId::Raw, &[]).and_then(|()| w.blocks(&[0; 8], &[u32::MAX]))
        }),
    ];
    for (name, misuse) in misuses {
        let error = misuse(&mut writer()).unwrap_err();
        assert_eq!((error.rule(), error.class()), (Rule::WriterMisuse, Class::Usage), "{name}");
    }
    assert_eq!(writer().finish([0; 32]).unwrap_err().rule(), Rule::WriterMisuse);
    let mut full = writer();
    full.write_tensor(&tensor).unwrap();
    assert_eq!(full.write_tensor(&tensor).unwrap_err().rule(), Rule::WriterMisuse);
    let other = TensorSpec::new("w", Dtype::I8, &[3]).unwrap();
    let other = encode_tensor(&Raw, &other, &vec![1, 2, 3], 1).unwrap();
    assert_eq!(writer().write_tensor(&other).unwrap_err().rule(), Rule::WriterMisuse);
}
