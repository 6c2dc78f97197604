//! The implementation for the CPU, in a build with or without wgpu.
#![allow(unreachable_pub, clippy::unwrap_used)]

mod common;
#[path = "../src/layout.rs"]
#[allow(dead_code)]
mod layout;

use bigsmall_codec::Ans;
use bigsmall_format::{Class, Dtype, Raw, TensorEncoding, TensorSpec, encode_tensor};
use bigsmall_gpu::{Cpu, ErrorKind, MatmulBackend};
use bigsmall_tbe::{Tbe, Width};
use common::*;

#[test]
fn every_encoding_gives_the_same_product_and_the_original() {
    let cpu = Cpu;
    for (rows, cols) in [(1, 1), (7, 9), (40, 300), (65, 4097)] {
        let weights = model_weights(rows, cols, 1);
        let encodings: [&dyn TensorEncoding; 4] =
            [&Raw, &Tbe::new(Width::Three), &Tbe::new(Width::Four), &Ans::default()];
        for batch in [1, 3] {
            let x = model_x(batch * cols, 2);
            let mut expected = None;
            for encoding in encodings {
                let loaded = cpu.upload(&encoded_by(encoding, &weights, rows, cols)).unwrap();
                assert_eq!((loaded.rows(), loaded.cols(), loaded.name()), (rows, cols, "w"));
                let mut bytes = vec![0; 2 * rows * cols];
                cpu.decompress(&loaded, &mut bytes).unwrap();
                assert!(bytes == bytes_of(&weights));
                let mut y = vec![f32::NAN; batch * rows];
                cpu.matmul(&loaded, &x, batch, &mut y).unwrap();
                assert!(largest_error(&weights, cols, &x, &y) <= 74.0);
                assert_eq!(&bits(&y), expected.get_or_insert(bits(&y)));
            }
        }
    }
}

#[test]
fn other_ranks_are_matrices_too() {
    let weights = model_weights(6, 20, 3);
    for (shape, rows) in [(&[120][..], 1), (&[6, 4, 5], 6), (&[3, 2, 20], 3), (&[120, 1], 120)] {
        let spec = TensorSpec::new("w", Dtype::BF16, shape).unwrap();
        for encoding in [&Raw as &dyn TensorEncoding, &Tbe::default(), &Ans::default()] {
            let tensor = encode_tensor(encoding, &spec, &bytes_of(&weights)).unwrap();
            let loaded = Cpu::new().upload(&tensor).unwrap();
            assert_eq!((loaded.rows(), loaded.cols()), (rows, 120 / rows));
            let mut y = vec![0.0; rows];
            Cpu::new().matmul(&loaded, &vec![1.0; 120 / rows], 1, &mut y).unwrap();
        }
    }
}

#[test]
fn callers_mistakes_are_errors() {
    let cpu = Cpu;
    let loaded = cpu.upload(&encoded(&model_weights(4, 10, 4), 4, 10)).unwrap();
    for (x, batch, y) in [(9, 1, 4), (10, 1, 3), (10, 2, 8), (20, 2, 4), (0, usize::MAX, 0)] {
        let error = cpu.matmul(&loaded, &vec![0.0; x], batch, &mut vec![0.0; y]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BufferLength);
    }
    assert_eq!(cpu.decompress(&loaded, &mut [0; 79]).unwrap_err().kind(), ErrorKind::BufferLength);
    for (rows, cols, batch) in [(5, 0, 3), (0, 5, 3), (5, 4, 0)] {
        let loaded = cpu.upload(&encoded(&vec![0; rows * cols], rows, cols)).unwrap();
        let mut y = vec![1.0; batch * rows];
        cpu.matmul(&loaded, &vec![1.0; batch * cols], batch, &mut y).unwrap();
        assert!(y.iter().all(|&v| v == 0.0));
    }
    let spec = TensorSpec::new("w", Dtype::F32, &[2]).unwrap();
    let tensor = encode_tensor(&Raw, &spec, &vec![0; 8]).unwrap();
    assert_eq!(cpu.upload(&tensor).unwrap_err().kind(), ErrorKind::Mismatch);
}

// J-05
#[test]
fn malformed_tbe_is_refused() {
    for (name, tensor) in malformed_tbe() {
        let error = Cpu.upload(&tensor).map(drop).expect_err(name);
        assert_eq!((error.class(), error.tensor()), (Class::Corrupt, Some("w")), "{name}");
    }
}
