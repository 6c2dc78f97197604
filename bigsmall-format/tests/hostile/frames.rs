//! Frames: single tensors in memory.

use super::*;
use forge::Frame;

#[test]
fn frames() {
    let sound = Frame::sound().bytes();
    let tensor = EncodedTensor::from_bytes(&sound).unwrap();
    assert_eq!(tensor.to_bytes(), sound);
    let view = EncodedView::parse(&sound).unwrap();
    assert_eq!(view, tensor.view());
    assert_eq!(view.to_tensor().unwrap(), tensor);
    assert!(sound.as_ptr_range().contains(&view.block(0).as_ptr()), "nothing is copied");
    // Fixed fields, one dimension, dtype and name, padded: enough to know what it is.
    for len in 0..=sound.len() {
        match peek(&sound[..len]) {
            Ok(spec) => assert!(len >= 48 && spec == *tensor.spec(), "{len} bytes"),
            Err(error) => assert!(len < 48 && error.rule() == Rule::FrameTruncated, "{len} bytes"),
        }
    }
    let cases: &[(&str, fn(&mut Frame), Rule)] = &[
        ("magic", |f| f.magic[0] = 0, Rule::FrameMagic),
        ("magic of a shard", |f| f.magic = forge::MAGIC, Rule::FrameMagic),
        ("version 0", |f| f.version = 0, Rule::VersionZero),
        ("version 2", |f| f.version = 2, Rule::Version),
        ("version 255", |f| f.version = 255, Rule::Version),
        ("encoding 4", |f| f.encoding = 4, Rule::EncodingUnknown),
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
        let bytes = frame.bytes();
        let error = EncodedTensor::from_bytes(&bytes).unwrap_err();
        // The view says the same, at the latest when all of it is checked.
        let viewed = EncodedView::parse(&bytes).and_then(|view| view.check()).unwrap_err();
        assert_eq!((viewed.rule(), viewed.tensor()), (error.rule(), error.tensor()), "{name}");
        let payload = matches!(rule, Rule::BlockChecksum | Rule::HeadChecksum);
        assert!(!payload || EncodedView::parse(&bytes).is_ok(), "{name}: not read on opening");
        if let Ok(view) = EncodedView::parse(&bytes) {
            assert!(view.decode_bytes(&Raw, 0..3, &mut [0; 3]).is_err(), "{name}");
            assert!(view.to_tensor().is_err(), "{name}");
        }
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
    let error = tensor.decode_bytes(&Raw, 0..3, &mut [0; 3]).unwrap_err();
    assert_eq!((error.rule(), error.tensor()), (Rule::PayloadLength, Some("w")));
    // Every bit and every cut.
    for bit in 0..8 * sound.len() {
        let mut damaged = sound.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(EncodedTensor::from_bytes(&damaged).is_err(), "bit {bit}");
        assert!(EncodedView::parse(&damaged).and_then(|v| v.check()).is_err(), "bit {bit}");
    }
    for len in 0..sound.len() {
        assert!(EncodedTensor::from_bytes(&sound[..len]).is_err(), "{len} bytes");
        assert!(EncodedView::parse(&sound[..len]).is_err(), "{len} bytes");
    }
}
