//! Group E: what an untrusted safetensors file may contain. Nothing is written, and the rule that
//! is broken is named.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use bigsmall_io::{Class, Rule};
use common::{compress, names, restore, write_raw};

fn entry(name: &str, dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

#[test]
fn hostile_headers() {
    let good = || entry("a", "U8", "[4]", "[0,4]");
    let one = |json: String| (json.into_bytes(), vec![1, 2, 3, 4]);
    let deep = |open: &str, close: &str| {
        let (open, close) = (open.repeat(200_000), close.repeat(200_000));
        format!(r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":{open}{close}}}}}"#)
    };
    /// Header and data.
    type File = (Vec<u8>, Vec<u8>);
    let cases: Vec<(&str, File, Rule)> = vec![
        // E-05
        ("leading space", one(format!(" {{{}}}", good())), Rule::HeaderStart),
        // E-06
        ("byte order mark", one(format!("\u{feff}{{{}}}", good())), Rule::HeaderStart),
        ("array", one("[]".into()), Rule::HeaderStart),
        ("cut short", one(format!("{{{}", good())), Rule::HeaderSyntax),
        ("duplicate tensor", one(format!("{{{},{}}}", good(), good())), Rule::DataRange),
        (
            "duplicate empty tensor",
            (format!("{{{0},{0}}}", entry("a", "U8", "[0]", "[0,0]")).into_bytes(), vec![]),
            Rule::HeaderDuplicate,
        ),
        (
            "duplicate field",
            one(r#"{"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#.into()),
            Rule::HeaderDuplicate,
        ),
        (
            "duplicate metadata key",
            one(format!(r#"{{"__metadata__":{{"k":"1","k":"2"}},{}}}"#, good())),
            Rule::HeaderDuplicate,
        ),
        (
            "duplicate metadata",
            one(format!(r#"{{"__metadata__":{{}},"__metadata__":{{}},{}}}"#, good())),
            Rule::HeaderDuplicate,
        ),
        (
            "duplicate deep inside",
            one(r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":{"y":{"k":1,"k":2}}}}"#
                .into()),
            Rule::HeaderDuplicate,
        ),
        ("deep arrays", one(deep("[", "]")), Rule::HeaderSyntax),
        ("deep objects", one(deep(r#"{"k":"#, "}")), Rule::HeaderSyntax),
        (
            "offset 1e3",
            one(format!("{{{}}}", entry("a", "U8", "[4]", "[0,4e0]"))),
            Rule::HeaderSyntax,
        ),
        (
            "offset -1",
            one(format!("{{{}}}", entry("a", "U8", "[4]", "[-1,3]"))),
            Rule::HeaderSyntax,
        ),
        (
            "offset 1.0",
            one(format!("{{{}}}", entry("a", "U8", "[4]", "[0,4.0]"))),
            Rule::HeaderSyntax,
        ),
        (
            "offset 2^64",
            one(format!("{{{}}}", entry("a", "U8", "[4]", "[0,18446744073709551616]"))),
            Rule::HeaderSyntax,
        ),
        (
            // E-13
            "begin after end",
            one(format!("{{{}}}", entry("a", "U8", "[4]", "[4,0]"))),
            Rule::DataRange,
        ),
        // E-14
        ("hole", one(format!("{{{}}}", entry("a", "U8", "[3]", "[1,4]"))), Rule::DataRange),
        (
            "overlap",
            one(format!(
                "{{{},{}}}",
                entry("a", "U8", "[3]", "[0,3]"),
                entry("b", "U8", "[3]", "[1,4]")
            )),
            Rule::DataRange,
        ),
        // E-16
        ("trailing bytes", (format!("{{{}}}", good()).into_bytes(), vec![0; 5]), Rule::DataLength),
        ("missing bytes", (format!("{{{}}}", good()).into_bytes(), vec![0; 3]), Rule::DataLength),
        (
            "range not the shape's",
            one(format!("{{{}}}", entry("a", "U8", "[3]", "[0,4]"))),
            Rule::DataRange,
        ),
        (
            "range not the dtype's",
            one(format!("{{{}}}", entry("a", "U16", "[4]", "[0,4]"))),
            Rule::DataRange,
        ),
        (
            "lone surrogate",
            one(format!("{{{}}}", entry(r"\ud800", "U8", "[4]", "[0,4]"))),
            Rule::HeaderSyntax,
        ),
        (
            "metadata not a string",
            one(format!(r#"{{"__metadata__":{{"k":1}},{}}}"#, good())),
            Rule::HeaderSyntax,
        ),
        (
            "unknown dtype",
            one(format!("{{{}}}", entry("a", "Q3", "[4]", "[0,4]"))),
            Rule::DtypeUnknown,
        ),
        (
            "shape overflows",
            one(format!("{{{}}}", entry("a", "U8", "[9223372036854775808,2]", "[0,4]"))),
            Rule::ShapeOverflow,
        ),
        (
            "shape overflows beside a zero",
            one(format!("{{{}}}", entry("a", "U8", "[18446744073709551615,2,0]", "[0,0]"))),
            Rule::ShapeOverflow,
        ),
        ("odd bits", one(format!("{{{}}}", entry("a", "F4", "[7]", "[0,4]"))), Rule::SubByteTotal),
        (
            "rank 255",
            one(format!("{{{}}}", entry("a", "U8", &format!("{:?}", [1; 255]), "[0,1]"))),
            Rule::RankTooLarge,
        ),
        (
            "offsets not a pair",
            one(format!("{{{}}}", entry("a", "U8", "[4]", "[0,4,4]"))),
            Rule::HeaderEntry,
        ),
        ("field missing", one(r#"{"a":{"dtype":"U8","shape":[4]}}"#.into()), Rule::HeaderEntry),
        (
            "long name",
            one(format!("{{{}}}", entry(&"n".repeat(70_000), "U8", "[4]", "[0,4]"))),
            Rule::NameTooLong,
        ),
        (
            "name not UTF-8",
            ([b"{\"\xff\":", &format!("{{{}}}", good()).into_bytes()[5..]].concat(), vec![0; 4]),
            Rule::HeaderSyntax,
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    let (plain, shard) = (dir.path().join("m"), dir.path().join("m.bs"));
    for (name, (json, data), rule) in cases {
        write_raw(&plain, &json, &data);
        let error = compress(&plain, &shard).unwrap_err();
        assert_eq!(error.rule(), Some(rule), "{name}: {error}");
        assert_eq!(names(dir.path()), ["m"], "{name}");
    }
}

#[test]
fn hostile_lengths() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, shard) = (dir.path().join("m"), dir.path().join("m.bs"));
    let with_len = |len: u64, more: usize| [&len.to_le_bytes()[..], &vec![b' '; more]].concat();
    let cases = [
        ("empty file", vec![], Rule::HeaderLength),
        ("seven bytes", vec![0; 7], Rule::HeaderLength),
        // E-01
        ("length 0", with_len(0, 10), Rule::HeaderLength),
        // E-02
        ("length beyond the file", with_len(11, 10), Rule::HeaderLength),
        // E-03
        ("length 2^64-1", with_len(u64::MAX, 10), Rule::HeaderLength),
        ("length 2^63", with_len(1 << 63, 10), Rule::HeaderLength),
        ("the Python package's file", b"BGSM\x04\0\0\0 and more".to_vec(), Rule::PythonPackageFile),
    ];
    for (name, bytes, rule) in cases {
        std::fs::write(&plain, bytes).unwrap();
        let error = compress(&plain, &shard).unwrap_err();
        assert_eq!(error.rule(), Some(rule), "{name}: {error}");
    }
    // 101 MB of header, which a sparse file costs nothing to claim.
    let file = std::fs::File::create(&plain).unwrap();
    std::io::Write::write_all(&mut &file, &101_000_000u64.to_le_bytes()).unwrap();
    file.set_len(102_000_000).unwrap();
    let error = compress(&plain, &shard).unwrap_err();
    assert_eq!((error.rule(), error.class()), (Some(Rule::HeaderTooLarge), Class::Limit));
    assert_eq!(names(dir.path()), ["m"]);
}

#[test]
fn unusual_and_sound() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let two = |a: String, b: String| format!("{{{a},{b}}}");
    let cases: Vec<(&str, String, Vec<u8>)> = vec![
        // E-21
        ("no tensors", "{}".into(), vec![]),
        ("only metadata", r#"{"__metadata__":{"a":"b"}}"#.into(), vec![]),
        ("spaces behind", format!("{{{}}}      ", entry("a", "U8", "[4]", "[0,4]")), vec![1; 4]),
        (
            // E-20
            "unknown field, kept",
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],
            "quant":{"bits":4,"of":[1,null]}}}"#
                .into(),
            vec![1; 4],
        ),
        (
            "order of the header is not that of the data",
            two(entry("a", "U8", "[3]", "[1,4]"), entry("b", "U8", "[1]", "[0,1]")),
            vec![1, 2, 3, 4],
        ),
        (
            "names that look the same",
            two(entry("é", "U8", "[1]", "[0,1]"), entry("e\u{301}", "U8", "[1]", "[1,2]")),
            vec![1, 2],
        ),
        ("escaped name", format!("{{{}}}", entry(r"\u0061\n", "U8", "[1]", "[0,1]")), vec![7]),
        (
            "unaligned floats",
            two(entry("a", "U8", "[1]", "[0,1]"), entry("b", "F64", "[2]", "[1,17]")),
            vec![3; 17],
        ),
    ];
    for (name, json, data) in cases {
        write_raw(&path("m"), json.as_bytes(), &data);
        compress(&path("m"), &path("m.bs")).unwrap_or_else(|e| panic!("{name}: {e}"));
        restore(&path("m.bs"), &path("back")).unwrap();
        assert_eq!(
            std::fs::read(path("m")).unwrap(),
            std::fs::read(path("back")).unwrap(),
            "{name}"
        );
        std::fs::remove_file(path("m.bs")).unwrap();
        std::fs::remove_file(path("back")).unwrap();
    }
}
