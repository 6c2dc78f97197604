//! The envelope of a shard and the lengths of its index: groups A and B of docs/threats.md.

use super::*;

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
            ("a required feature", |f| f.required = 2, Refused(Rule::RequiredFeature)),
            ("another", |f| f.required = 1 << 31, Refused(Rule::RequiredFeature)),
            // A-08
            ("ignorable features", |f| f.ignorable = u32::MAX, Expect::Ok),
            (
                "an ignorable feature with an extension",
                |f| (f.ignorable, f.index_tail) = (1 << 31, vec![7; 24]),
                Expect::Ok,
            ),
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
    // Without a limit of tensors the count is still compared with the bytes that are there, before
    // memory is set aside.
    let mut forge = sound();
    forge.count = Some(u32::MAX);
    let limits = Limits::new().max_tensors(usize::MAX);
    let error = Shard::open_with(forge.bytes(), &limits).unwrap_err();
    assert_eq!(error.rule(), Rule::IndexTruncated);
    for (limits, rule) in [
        (Limits::new().max_index_bytes(300), Rule::IndexTooLarge),
        (Limits::new().max_header_bytes(200), Rule::HeaderTooLarge),
        (Limits::new().max_tensors(4), Rule::TooManyTensors),
        (Limits::new().max_rank(1), Rule::RankTooLarge),
        (Limits::new().max_name_bytes(3), Rule::NameTooLong),
    ] {
        let error = Shard::open_with(sound().bytes(), &limits).unwrap_err();
        assert_eq!((error.rule(), error.class()), (rule, Class::Limit));
    }
}
