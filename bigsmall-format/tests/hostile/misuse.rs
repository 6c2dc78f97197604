//! What only a caller can get wrong.

use super::*;
use bigsmall_format::internal::Assembler;

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
        let error = shard.decode(1, &*decoder, range, &mut dst[..n]).unwrap_err();
        assert_eq!((error.rule(), error.class()), (rule, Class::Usage));
    }
    #[allow(clippy::reversed_empty_ranges)]
    let error = shard.decode(1, &*decoder, 3..2, &mut []).unwrap_err();
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
    let tensor = encode_tensor(&Raw, &spec, &vec![1, 2, 3]).unwrap();
    let writer = || Assembler::synthesised(Vec::new(), std::slice::from_ref(&spec)).unwrap();
    let misuses: &[(&str, fn(&mut Assembler<Vec<u8>>) -> Result<()>)] = &[
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
    full.tensor(&tensor, None).unwrap();
    assert_eq!(full.tensor(&tensor, None).unwrap_err().rule(), Rule::WriterMisuse);
}
