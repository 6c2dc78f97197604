//! The last value that is taken beside the first that is not, what errors say was expected, and
//! what a shard says of itself.

use super::*;

fn header(json: &str) -> Result<(Vec<u8>, Header)> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json.as_bytes());
    file.extend_from_slice(&[0; 3]);
    Header::read(&file, &Limits::default())
}

#[test]
fn tensors_come_in_the_order_of_their_data() {
    let json = concat!(
        r#"{"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},"#,
        r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
    );
    let (stored, header) = header(json).unwrap();
    assert_eq!(stored, json.as_bytes());
    let names: Vec<_> = header.tensors().iter().map(TensorSpec::name).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!((header.index_of("b"), header.data_len()), (Some(1), 3));
    assert_eq!(Header::parse(b"{}", 0, &Limits::default()).unwrap().data_len(), 0);
}

#[test]
fn files_of_about_eight_bytes() {
    let rule = |file: &[u8]| Header::read(&file.to_vec(), &Limits::default()).unwrap_err().rule();
    for n in 0..=8 {
        assert_eq!(rule(&vec![0; n]), Rule::HeaderLength, "{n} bytes");
    }
    // Eight bytes are enough to see what else it is.
    assert_eq!(rule(b"BGSM\x01\0\0\0"), Rule::PythonPackageFile);
}

#[test]
fn a_header_of_all_that_can_be_addressed() {
    let spec = |n: u64| TensorSpec::new("a", Dtype::U8, &[n]).unwrap();
    let mut tensors = vec![spec(1 << 59); 15];
    tensors.push(spec((1 << 59) - 1));
    assert!(Header::synthesise(&tensors).is_ok());
    tensors[15] = spec(1 << 59);
    let error = Header::synthesise(&tensors).unwrap_err();
    assert_eq!(error.rule(), Rule::ShapeOverflow);
}

#[test]
fn errors_of_headers_say_what_was_expected() {
    let tensor = r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#;
    assert!(header(tensor).is_ok());
    for (from, to, expected) in [
        (
            r#"{"dtype":"U8","shape":[3],"data_offsets":[0,3]}"#,
            "3",
            "dtype, shape and data_offsets",
        ),
        ("[3]", r#""3""#, "an array of unsigned integers"),
        (r#"{"a""#, r#"{"__metadata__":[],"a""#, "an object of strings"),
    ] {
        let error = header(&tensor.replacen(from, to, 1)).unwrap_err();
        assert!(error.to_string().contains(expected), "{to}: {error}");
    }
}

/// A shard of one tensor of three bytes, its header made by the writer or not.
fn shard(synthesised: bool, md5: Option<[u8; 16]>) -> Vec<u8> {
    let spec = TensorSpec::new("w", Dtype::U8, &[3]).unwrap();
    let encoded = encode_tensor(&Raw, &spec, &vec![1, 2, 3]).unwrap();
    let json = Header::synthesise(std::slice::from_ref(&spec)).unwrap();
    let mut writer = match synthesised {
        true => internal::Assembler::synthesised(Vec::new(), &[spec]).unwrap(),
        false => internal::Assembler::new(Vec::new(), json, 3).unwrap(),
    };
    writer.tensor(&encoded, md5).unwrap();
    writer.finish([7; 32]).unwrap()
}

#[test]
fn what_a_shard_says_of_itself() {
    for synthesised in [false, true] {
        for md5 in [None, Some([9; 16])] {
            let bytes = shard(synthesised, md5);
            let shard = Shard::open(bytes.clone()).unwrap();
            assert_eq!(shard.is_synthesised(), synthesised);
            assert_eq!(shard.entry(0).unwrap().md5(), md5);
            assert_eq!(shard.header_json(), Header::synthesise(shard.tensors()).unwrap());
            assert_eq!(shard.original_len(), 8 + shard.header_json().len() as u64 + 3);
            assert_eq!(shard.sha256(), [7; 32]);
            // The greatest index that is allowed is this one.
            let limits = |n| Limits::new().max_index_bytes(n);
            let n = shard.index_len();
            assert!(Shard::open_with(bytes.clone(), &limits(n)).is_ok());
            let error = Shard::open_with(bytes, &limits(n - 1)).unwrap_err();
            assert_eq!(error.rule(), Rule::IndexTooLarge);
        }
    }
}

#[test]
fn blocks_of_a_tensor_and_of_its_frame() {
    let n = MAX_BLOCK_UNITS + 5;
    let bytes: Vec<u8> = (0..n).map(|i| (i * 7) as u8).collect();
    let spec = |name: &str| TensorSpec::new(name, Dtype::U8, &[n as u64]).unwrap();
    let tensor = encode_tensor(&Raw, &spec("w"), &bytes).unwrap();
    let full = 33_792;
    assert_eq!(tensor.block(0), &bytes[..full]);
    assert_eq!(tensor.block(1), &bytes[full..2 * full]);
    assert_eq!(tensor.block(3), &bytes[3 * full..]);
    assert_eq!(tensor.byte_len(), tensor.payload().len() as u64);
    assert_eq!(tensor.payload().len(), MAX_BLOCK_UNITS + 8);
    // The longest name that is taken, and a longer one.
    let most = Limits::default().max_name_bytes;
    for (len, taken) in [(most, true), (most + 1, false)] {
        let tensor = encode_tensor(&Raw, &spec(&"n".repeat(len)), &bytes).unwrap();
        let found = EncodedTensor::from_bytes(&tensor.to_bytes());
        assert_eq!(found.is_ok(), taken, "a name of {len} bytes");
    }
}

#[test]
fn how_much_a_tensor_has() {
    let b = MAX_BLOCK_UNITS as u64;
    // Shape; elements, units, blocks, bytes of a full block, bytes of the last one.
    for (dtype, shape, expected) in [
        (Dtype::F4, vec![2, 6], (12, 6, 1, b, 6)),
        (Dtype::U8, vec![b], (b, b, 1, b, b)),
        (Dtype::BF16, vec![3, 5], (15, 15, 1, 2 * b, 30)),
        (Dtype::BF16, vec![b + 3], (b + 3, b + 3, 4, 2 * 33_792, 2 * 29_699)),
        (Dtype::F16, vec![32, b], (32 * b, 32 * b, 32, 2 * b, 2 * b)),
        (Dtype::F16, vec![32 * b + 3], (32 * b + 3, 32 * b + 3, 33, 2 * b, 6)),
        (Dtype::F32, vec![], (1, 1, 1, 4 * b, 4)),
        (Dtype::F64, vec![7], (7, 7, 1, 8 * b, 56)),
        (Dtype::F64, vec![7, 0], (0, 0, 0, 8 * b, 0)),
    ] {
        let t = TensorSpec::new("t", dtype, &shape).unwrap();
        let last = t.block_byte_len(t.n_blocks().saturating_sub(1)) as u64;
        let found = (t.n_elements(), t.n_units(), t.n_blocks(), t.block_bytes() as u64, last);
        assert_eq!(found, expected, "{dtype} {shape:?}");
        assert_eq!(t.block_byte_len(t.n_blocks()), 0);
    }
}

#[test]
#[allow(clippy::reversed_empty_ranges)]
fn rows_of_a_tensor() {
    let spec = |dtype, shape: &[u64]| TensorSpec::new("t", dtype, shape).unwrap();
    let t = spec(Dtype::BF16, &[4, 3]);
    for (rows, bytes) in
        [(0..0, 0..0), (0..4, 0..24), (1..3, 6..18), (2..2, 12..12), (4..4, 24..24)]
    {
        assert_eq!(t.row_bytes(rows.clone()).unwrap(), bytes, "{rows:?}");
    }
    for rows in [3..2, 0..5, 4..5, 5..5, 5..4] {
        assert_eq!(
            t.row_bytes(rows.clone()).unwrap_err().rule(),
            Rule::RangeOutOfBounds,
            "{rows:?}"
        );
    }
    assert_eq!(spec(Dtype::F32, &[]).row_bytes(0..1).unwrap(), 0..4);
    assert_eq!(spec(Dtype::F32, &[0, 7]).row_bytes(0..0).unwrap(), 0..0);
    // Two rows of three halves of a byte.
    let error = spec(Dtype::F4, &[2, 3]).row_bytes(0..1).unwrap_err();
    assert_eq!(error.rule(), Rule::UnalignedRange);
}

/// A spec says what a tensor is; where it lies is the header's to say.
#[test]
fn places_of_tensors() {
    let entry = |name: &str, begin: u64, end: u64| {
        let n = end - begin;
        format!(r#""{name}":{{"dtype":"U8","shape":[{n}],"data_offsets":[{begin},{end}]}}"#)
    };
    let entries = [
        entry("c", 5, 5),
        entry("b", 2, 5),
        entry("a", 0, 2),
        entry("none", 2, 2),
        entry("d", 5, 8),
    ];
    let json = format!("{{{}}}", entries.join(","));
    let header = Header::parse(json.as_bytes(), 8, &Limits::default()).unwrap();
    let names: Vec<&str> = header.tensors().iter().map(TensorSpec::name).collect();
    assert_eq!(names, ["a", "none", "b", "c", "d"]);
    let ranges: Vec<_> = (0..6).map(|i| header.data_range(i)).collect();
    assert_eq!(ranges, [0..2, 2..2, 2..5, 5..5, 5..8, 8..8]);
    assert_eq!(header.data_range(usize::MAX), 8..8);
    let found: Vec<_> = (0..9).map(|offset| header.index_at(offset)).collect();
    assert_eq!(found[..8], [0, 0, 2, 2, 2, 4, 4, 4].map(Some));
    assert_eq!((found[8], header.index_at(u64::MAX)), (None, None));
    for (i, spec) in header.tensors().iter().enumerate() {
        let range = header.data_range(i);
        let new = TensorSpec::new(spec.name(), Dtype::U8, &[range.end - range.start]).unwrap();
        assert_eq!(*spec, new, "equal, wherever its data lie");
    }
    let empty = Header::parse(b"{}", 0, &Limits::default()).unwrap();
    assert_eq!((empty.data_range(0), empty.index_at(0), empty.data_len()), (0..0, None, 0));
}
