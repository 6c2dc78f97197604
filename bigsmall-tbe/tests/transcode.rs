//! From one encoding to another gives what encoding the original gives.

#![allow(clippy::unwrap_used)]

use bigsmall_tbe::{
    Dtype, EncodedTensor, Raw, Rule, Tbe, TensorEncoding, TensorSpec, Width, encode_tensor,
    transcode,
};
use bigsmall_testing::Random;
use bigsmall_testing::oracle::tbe::{self as oracle, DTYPES};

#[test]
fn the_same_bytes_as_from_the_original() {
    let encodings: [&dyn TensorEncoding; 3] =
        [&Raw, &Tbe::new(Width::Three), &Tbe::new(Width::Four)];
    for dtype in DTYPES {
        for n in [0, 1, 1000, 65_536, 200_001, 70 * 65_536 + 3] {
            let spec = TensorSpec::new("t", dtype, &[n]).unwrap();
            let values = oracle::weights(
                &mut Random::new(2),
                dtype,
                3,
                oracle::middle(dtype, 3),
                30,
                n as usize,
            );
            let bytes = oracle::bytes(dtype, &values);
            let encoded = encodings.map(|e| encode_tensor(e, &spec, &bytes).unwrap());
            for (from, tensor) in encodings.iter().zip(&encoded) {
                for (to, expected) in encodings.iter().zip(&encoded) {
                    for threads in [1, 3] {
                        let pool =
                            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                        let found = pool.install(|| transcode(tensor, *from, *to)).unwrap();
                        assert!(found == *expected);
                    }
                }
            }
        }
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

    let spec = TensorSpec::new("t", Dtype::BF16, &[100]).unwrap();
    let tbe = Tbe::default();
    let good = encode_tensor(&tbe, &spec, &vec![0; 200]).unwrap();
    let mut payload = good.payload().to_vec();
    // Weight 127 of 100.
    payload[8 + 24 + 7] |= 0x80;
    let lens = vec![good.block(0).len() as u32];
    let bad = EncodedTensor::new(spec, good.encoding(), 8, lens, payload);
    let error = transcode(&bad.unwrap(), &tbe, &Raw).unwrap_err();
    assert_eq!((error.tensor(), error.offset().is_some()), (Some("t"), true));
}
