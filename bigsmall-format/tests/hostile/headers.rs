//! Headers of safetensors files, names and lengths among them: groups D and E of docs/threats.md.

use super::*;

/// A shard with the stored header `header` and nothing behind it that fits: the header is judged
/// first.
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
        ("metadata in a list", json(r#"{"__metadata__":[null]}"#.into()), Rule::HeaderSyntax),
        ("null in metadata", json(r#"{"__metadata__":{"k":null}}"#.into()), Rule::HeaderSyntax),
        (
            // D-05
            "metadata that is a tensor",
            json(format!("{{{}}}", entry("__metadata__", "U8", "[4]", "[0,4]"))),
            Rule::HeaderSyntax,
        ),
        // Several rules at once: the text before limits, dtypes and ranges (FORMAT.md section 14).
        (
            "an unknown dtype, then no JSON",
            json(format!("{{{},x", entry("a", "Q3", "[4]", "[0,4]"))),
            Rule::HeaderSyntax,
        ),
        (
            "an unknown dtype twice",
            json(format!("{{{0},{0}}}", entry("a", "Q3", "[4]", "[0,4]"))),
            Rule::HeaderDuplicate,
        ),
        (
            "65 dimensions, then a key twice",
            json(format!(
                r#"{{{},"b":{{"x":1,"x":1}}}}"#,
                entry("a", "U8", &format!("{:?}", [1; 65]), "[0,1]")
            )),
            Rule::HeaderDuplicate,
        ),
        (
            "66 dimensions, of which the last is no integer",
            one("U8", &format!("{:?}", [1; 65]).replace(']', ",1.5]"), "[0,1]"),
            Rule::HeaderSyntax,
        ),
        (
            "an unknown dtype, then 65 dimensions",
            json(format!(
                "{{{},{}}}",
                entry("a", "Q3", "[4]", "[0,4]"),
                entry("b", "U8", &format!("{:?}", [1; 65]), "[4,5]")
            )),
            Rule::RankTooLarge,
        ),
        (
            "a wrong range, then an unknown dtype",
            json(format!(
                "{{{},{}}}",
                entry("a", "U8", "[4]", "[0,5]"),
                entry("b", "Q3", "[4]", "[5,9]")
            )),
            Rule::DtypeUnknown,
        ),
        ("101 arrays deep", deep("[", "]", 99), Rule::HeaderSyntax),
        ("101 objects deep", deep(r#"{"k":"#, "}", 99), Rule::HeaderSyntax),
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
        ("no tensors, metadata null", json(r#"{"__metadata__":null}"#.into()), 0),
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
        writer.write(spec, &[i as u8], &Raw).unwrap();
    }
    let bytes = writer.finish().unwrap();
    assert_eq!(outcome("names", &bytes), Ok(()));
    let shard = Shard::open(bytes).unwrap();
    for (i, name) in names.iter().enumerate() {
        assert_eq!(shard.index_of(name).unwrap(), i);
        let error = shard.decode(i, &*shard.decoder(i, &Raw).unwrap(), 0..2, &mut [0; 2]);
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
        fn byte_len(&self) -> std::io::Result<u64> {
            Ok(self.0)
        }

        fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
            // And the start, to tell what else it may be.
            assert!(offset == 0 && buf.len() <= 512, "nothing but the length is read");
            buf.fill(b'{');
            let n = buf.len().min(8);
            buf[..n].copy_from_slice(&self.1[..n]);
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
    let at_most = |n: usize| Limits::new().max_header_bytes(n as u64);
    assert!(Header::read(&file, &at_most(json.len())).is_ok());
    let error = Header::read(&file, &at_most(json.len() - 1)).unwrap_err();
    assert_eq!(error.rule(), Rule::HeaderTooLarge);
    let error = Header::read(&Claims(50, *b"BGSM\x01\0\0\0"), &limits).unwrap_err();
    assert_eq!((error.rule(), error.class()), (Rule::PythonPackageFile, Class::Unsupported));
}
