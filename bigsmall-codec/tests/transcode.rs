//! From one encoding to another gives what encoding the original gives. Views of a tensor and of
//! its frame are the same.

#![allow(clippy::unwrap_used)]

use bigsmall_codec::{
    Ans, AnsBlock, AnsView, Decoded, Dtype, EncodedTensor, EncodedView, Error, Level, ReadAt,
    Result, Rule, TensorEncoding, TensorSpec, encode_tensor,
};
use bigsmall_tbe::{Matrix, Raw, Tbe, View, Width};
use bigsmall_testing::Random;
use bigsmall_testing::oracle::tbe::{self as oracle, DTYPES};

fn transcode(
    tensor: &EncodedTensor,
    from: &dyn TensorEncoding,
    to: &dyn TensorEncoding,
) -> Result<EncodedTensor> {
    encode_tensor(to, tensor.spec(), &Decoded::new(tensor, from)?)
}

/// Weights with some escapes in every block of TBE.
fn weights(dtype: Dtype, n: u64) -> (TensorSpec, Vec<u8>) {
    let (middle, n_weights) = (oracle::middle(dtype, 3), n as usize);
    let values = oracle::weights(&mut Random::new(2), dtype, 3, middle, 30, n_weights);
    (TensorSpec::new("t", dtype, &[n]).unwrap(), oracle::bytes(dtype, &values))
}

#[test]
fn the_same_bytes_as_from_the_original() {
    let encodings: [&dyn TensorEncoding; 5] = [
        &Raw,
        &Tbe::new(Width::Three),
        &Tbe::new(Width::Four),
        &Ans::default(),
        &Ans::new(Level::Small),
    ];
    let pools = [1, 3].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
    for dtype in DTYPES {
        for n in [0, 1, 1000, 131_072, 200_001, (1 << 22) + 3] {
            let (spec, bytes) = weights(dtype, n);
            let encoded = encodings.map(|e| encode_tensor(e, &spec, &bytes).unwrap());
            for (from, tensor) in encodings.iter().zip(&encoded) {
                for (to, expected) in encodings.iter().zip(&encoded) {
                    for pool in &pools {
                        let found = pool.install(|| transcode(tensor, *from, *to)).unwrap();
                        assert!(found == *expected, "{dtype} {n} {} {}", from.id(), to.id());
                    }
                }
            }
            // From a frame, which is not copied; and there and back.
            let (ans, tbe) = (&Ans::default(), &Tbe::new(Width::Three));
            let frame = encoded[3].to_bytes();
            let view = EncodedView::parse(&frame).unwrap();
            let there = encode_tensor(tbe, &spec, &Decoded::new(&view, ans).unwrap()).unwrap();
            assert!(there == encoded[1]);
            assert!(transcode(&there, tbe, ans).unwrap() == encoded[3]);
        }
    }
}

/// Any range of the original bytes, and an error for one that ends after them.
#[test]
fn it_reads_as_the_original_does() {
    let (spec, bytes) = weights(Dtype::BF16, 200_001);
    let tensor = encode_tensor(&Ans::default(), &spec, &bytes).unwrap();
    let source = Decoded::new(&tensor, &Ans::default()).unwrap();
    assert_eq!(source.byte_len().unwrap(), 400_002);
    let block = spec.block_bytes();
    for (begin, end) in [(0, 0), (0, 1), (block - 1, block + 1), (5, 400_002), (400_002, 400_002)] {
        let mut found = vec![0; end - begin];
        source.read_exact_at(begin as u64, &mut found).unwrap();
        assert_eq!(found, bytes[begin..end], "{begin}..{end}");
    }
    for (begin, n) in [(400_002, 1), (400_000, 3), (u64::MAX, 1), (400_003, 0)] {
        let error = source.read_exact_at(begin, &mut vec![0; n]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{n} from {begin}");
        let error = Error::from(error);
        assert_eq!((error.rule(), error.tensor()), (Rule::RangeOutOfBounds, Some("t")));
    }
}

#[test]
fn errors_name_the_tensor() {
    let spec = TensorSpec::new("t", Dtype::I32, &[100]).unwrap();
    let raw = encode_tensor(&Raw, &spec, &vec![0; 400]).unwrap();
    let error = transcode(&raw, &Raw, &Tbe::default()).unwrap_err();
    assert_eq!((error.rule(), error.tensor()), (Rule::EncodingRefuses, Some("t")));
    let error = transcode(&raw, &Tbe::default(), &Raw).unwrap_err();
    assert_eq!((error.rule(), error.tensor()), (Rule::SpecMismatch, Some("t")));
}

/// The third block with a wrong checksum, and one whose checksum is right but whose contents are
/// not.
#[test]
fn damaged_blocks_are_errors_that_name_tensor_and_block() {
    let (spec, bytes) = weights(Dtype::BF16, 300_001);
    let encodings: [(&dyn TensorEncoding, usize); 2] = [(&Tbe::default(), 8), (&Ans::default(), 0)];
    for (from, in_block) in encodings {
        let good = encode_tensor(from, &spec, &bytes).unwrap();
        let blocks = good.table();
        let place = blocks.padded_block_range(2);

        let mut frame = good.to_bytes();
        let at = frame.len() - good.payload().len() + place.start as usize + in_block;
        frame[at] ^= 0xff;
        let view = EncodedView::parse(&frame).unwrap();
        let source = Decoded::new(&view, from).unwrap();
        for to in [&Raw as &dyn TensorEncoding, &Tbe::default(), &Ans::default()] {
            let error = encode_tensor(to, &spec, &source).unwrap_err();
            assert_eq!((error.rule(), error.tensor()), (Rule::BlockChecksum, Some("t")));
            assert_eq!(error.offset(), Some(place.start));
            assert!(error.to_string().contains("for block 2"), "{error}");
        }

        let mut payload = good.payload().to_vec();
        payload[place.start as usize + in_block] ^= 0xff;
        let lens = (0..blocks.n_blocks()).map(|i| blocks.block_len(i) as u32).collect();
        let head_len = blocks.head_len() as u32;
        let bad = EncodedTensor::new(spec.clone(), from.id(), head_len, lens, payload).unwrap();
        for to in [&Raw as &dyn TensorEncoding, &Tbe::default(), &Ans::default()] {
            let error = transcode(&bad, from, to).unwrap_err();
            assert_eq!(error.tensor(), Some("t"));
            assert!(error.offset().is_some_and(|at| place.contains(&at)), "{error:?}");
        }
    }
    let mut frame = encode_tensor(&Tbe::default(), &spec, &bytes).unwrap().to_bytes();
    let at = frame.len() - EncodedView::parse(&frame).unwrap().payload().len();
    frame[at] ^= 1;
    let view = EncodedView::parse(&frame).unwrap();
    let error = Decoded::new(&view, &Tbe::default()).unwrap_err();
    assert_eq!((error.rule(), error.tensor()), (Rule::HeadChecksum, Some("t")));
}

#[test]
fn views_of_tensors_and_of_frames() {
    let (spec, bytes) = weights(Dtype::BF16, 200_001);
    let encoded = encode_tensor(&Tbe::default(), &spec, &bytes).unwrap();
    let frame = encoded.to_bytes();
    let parsed = EncodedView::parse(&frame).unwrap();
    let (of_tensor, of_frame) = (View::new(&encoded).unwrap(), View::new(&parsed).unwrap());
    assert!(frame.as_ptr_range().contains(&of_frame.tensor().payload().as_ptr()), "no copy");
    let matrix = Matrix::new(encoded.clone()).unwrap();
    for view in [of_tensor, of_frame, matrix.view()] {
        assert_eq!((view.spec(), view.base()), (&spec, of_tensor.base()));
        let mut decoded = vec![0; bytes.len()];
        view.decode(0..200_001, &mut decoded).unwrap();
        assert!(decoded == bytes);
    }

    let encoded = encode_tensor(&Ans::default(), &spec, &bytes).unwrap();
    let ans_frame = encoded.to_bytes();
    let parsed = EncodedView::parse(&ans_frame).unwrap();
    let (of_tensor, of_frame) = (AnsView::new(&encoded).unwrap(), AnsView::new(&parsed).unwrap());
    assert!(ans_frame.as_ptr_range().contains(&of_frame.tensor().payload().as_ptr()), "no copy");
    assert_eq!(of_tensor.base(), of_frame.base());
    for index in 0..of_tensor.n_blocks() {
        match (of_tensor.block(index).unwrap(), of_frame.block(index).unwrap()) {
            (AnsBlock::Coded(a), AnsBlock::Coded(b)) => {
                assert_eq!((a.states(), a.words()), (b.states(), b.words()));
                assert_eq!((a.residual(), a.tail()), (b.residual(), b.tail()));
            }
            (a, b) => panic!("{a:?} {b:?}"),
        }
    }

    // The other encoding.
    assert_eq!(View::new(&parsed).unwrap_err().rule(), Rule::SpecMismatch);
    let of_tbe = EncodedView::parse(&frame).unwrap();
    assert_eq!(AnsView::new(&of_tbe).unwrap_err().rule(), Rule::SpecMismatch);
}

/// A frame's checksums are compared: every damaged byte of head and payload is an error of the view
/// or, in ANS, of the block.
#[test]
fn views_of_damaged_frames() {
    let (spec, bytes) = weights(Dtype::BF16, 70_000);
    for encoding in [&Ans::default() as &dyn TensorEncoding, &Tbe::default()] {
        let tensor = encode_tensor(encoding, &spec, &bytes).unwrap();
        let frame = tensor.to_bytes();
        let begin = frame.len() - tensor.payload().len();
        for at in (begin..frame.len()).step_by(97).chain(begin..begin + 64) {
            let mut damaged = frame.clone();
            damaged[at] ^= 4;
            let parsed = EncodedView::parse(&damaged).unwrap();
            let outcome = match View::new(&parsed) {
                Err(error) if error.rule() == Rule::SpecMismatch => {
                    AnsView::new(&parsed).and_then(|view| {
                        (0..view.n_blocks()).try_for_each(|index| view.block(index).map(drop))
                    })
                }
                outcome => outcome.map(drop),
            };
            let error = outcome.expect_err("a damaged byte");
            assert_eq!(error.tensor(), Some("t"), "byte {at}");
            let in_head = at - begin < tensor.head().len();
            let padding = at - begin < tensor.table().padded_block_range(0).start as usize;
            let expected = match (in_head, padding) {
                (true, _) => Rule::HeadChecksum,
                (false, true) => Rule::PaddingNotZero,
                (false, false) => Rule::BlockChecksum,
            };
            assert_eq!(error.rule(), expected, "byte {at}");
        }
    }
}
