//! The Rust twins of the shaders, without a GPU: the resident forms decode exactly, and the products keep the contract.
#![allow(unreachable_pub, clippy::unwrap_used)]

#[path = "../src/ans.rs"]
mod ans;
mod common;
#[path = "../src/layout.rs"]
#[allow(dead_code)]
mod layout;

#[path = "common/rans_twin.rs"]
mod rans_twin;

use bigsmall_codec::{Ans, Level};
use common::layer_twin;
use common::twin::{Twin, fused, unfused};
use common::*;
use layout::Resident;
use rans_twin::RansTwin;

/// Shapes around every boundary: vec4, step, block, segment.
const SHAPES: &[(usize, usize)] = &[
    (1, 1),
    (1, 7),
    (9, 1),
    (7, 9),
    (3, 127),
    (3, 128),
    (2, 129),
    (5, 640),
    (3, 1023),
    (3, 1024),
    (3, 1025),
    (2, 2816),
    (2, 16 * 1024),
    (2, 16 * 1024 + 1),
    (2, 17 * 1024 + 130),
];

#[test]
fn every_form_decodes_exactly_at_every_shape() {
    for &(rows, cols) in SHAPES {
        for (weights, what) in [
            (model_weights(rows, cols, 1), "model"),
            (any_bits(rows * cols, 2, false), "any bits"),
            (vec![0xffff; rows * cols], "one pattern, above every window"),
            (vec![0; rows * cols], "zeros"),
        ] {
            for form in Resident::ALL {
                let twin = Twin::new(&weights, rows, cols, form, fused);
                assert!(twin.decode() == weights, "{rows}x{cols} {what} {form:?}");
                assert!(twin.decode_by_steps() == weights, "{rows}x{cols} {what} {form:?}");
            }
        }
    }
}

#[test]
fn all_bf16_patterns_decode() {
    let weights: Vec<u16> = (0..=u16::MAX).collect();
    for (rows, cols) in [(64, 1024), (1, 65536), (512, 128)] {
        for form in Resident::ALL {
            assert!(Twin::new(&weights, rows, cols, form, fused).decode() == weights);
        }
    }
}

#[test]
fn compressed_equals_plain_bit_for_bit() {
    for &(rows, cols) in SHAPES {
        let weights = model_weights(rows, cols, 3);
        let x = model_x(cols, 4);
        for fma in [fused, unfused] {
            let plain = Twin::new(&weights, rows, cols, Resident::Plain, fma);
            for form in [Resident::Dense3, Resident::Dense4] {
                let dense = Twin::new(&weights, rows, cols, form, fma);
                assert_eq!(bits(&dense.matvec(&x)), bits(&plain.matvec(&x)));
                assert_eq!(bits(&dense.gemm(&x)), bits(&plain.gemm(&x)));
            }
        }
    }
}

#[test]
fn sums_keep_within_the_bound() {
    for cols in [1, 100, 4096, 28672] {
        let rows = 4;
        let inputs = [
            (model_weights(rows, cols, 5), model_x(cols, 6)),
            (vec![bf16(0.1); rows * cols], vec![0.3; cols]),
            (
                model_weights(rows, cols, 7).iter().map(|w| w & 0x7fff).collect(),
                model_x(cols, 8).iter().map(|x| x.abs()).collect(),
            ),
        ];
        for (weights, x) in inputs {
            for fma in [fused, unfused] {
                let twin = Twin::new(&weights, rows, cols, Resident::Dense3, fma);
                for (y, batch) in [(twin.matvec(&x), 1), (twin.gemm(&x), 16)] {
                    let error = largest_error(&weights, cols, &x, &y);
                    assert!(error <= bound(cols, batch), "{cols} columns, batch {batch}: {error}");
                }
            }
        }
    }
    for cols in [4096, 28672, 49152] {
        assert!(Twin::chains(cols, 1).0 <= 64 && Twin::chains(cols, 64).0 <= 64);
    }
}

#[test]
fn ans_decodes_as_the_codec_does() {
    for (weights, rows, cols) in ans_cases() {
        for level in [Level::Fast, Level::Default, Level::Small] {
            let tensor = encoded_by(&Ans::new(level), &weights, rows, cols);
            let plan = ans::AnsPlan::new(&tensor).unwrap();
            let payload =
                tensor.payload().as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b));
            let twin = RansTwin { plan: &plan, payload: payload.collect() };
            let (units, verdicts) = twin.decode();
            assert!(verdicts.iter().all(|&v| v == 0), "{rows}x{cols} {level:?}: {verdicts:?}");
            assert!(units == weights, "{rows}x{cols} {level:?}");
        }
    }
}

#[test]
fn kernels_between_products_follow_the_formulas() {
    for fma in [fused, unfused] {
        for n in [1, 100, 256, 4096, 20_000] {
            let (x, weight) = (model_x(n, 70), model_x(n, 71));
            let found = layer_twin::rms_norm(&x, &weight, 1e-5, fma);
            let far = apart(&found, &formula::rms_norm(&x, &weight, 1e-5));
            assert!(far < 1e-6, "rms_norm of {n}: {far}");
        }
        for &(heads, kv_heads, dim, position, rows) in ATTENTIONS {
            let q = model_x(rows * heads * dim, 72);
            let n = (position + rows) * kv_heads * dim;
            let (keys, values) = (model_x(n, 73), model_x(n, 74));
            for (i, q) in q.chunks(dim).enumerate() {
                let at = (i % heads) / (heads / kv_heads) * dim;
                let (count, stride) = (position + i / heads + 1, kv_heads * dim);
                let found =
                    layer_twin::attention(q, &keys[at..], &values[at..], stride, count, fma);
                let expected = formula::attention(q, &keys[at..], &values[at..], stride, count);
                let far = apart(&found, &expected);
                assert!(far < 5e-6, "{heads} {kv_heads} {dim} at {position}: {far}");
            }
            // Turned by an angle and back again, and as long as before.
            let table = angles(position + rows, dim);
            let mut turned = q.clone();
            layer_twin::rope(&mut turned, &table, heads, dim, position, fma);
            let back: Vec<f32> =
                table.iter().enumerate().map(|(i, a)| if i % 2 == 1 { -a } else { *a }).collect();
            assert!(position == 0 || turned != q);
            layer_twin::rope(&mut turned, &back, heads, dim, position, fma);
            let far = apart(&turned, &q.iter().map(|q| f64::from(*q)).collect::<Vec<_>>());
            assert!(far < 1e-6, "{far}");
        }
    }
    for (x, at) in [(vec![1.0], 0), (vec![-3.0, -1.0, -1.0], 1), (vec![0.0; 1000], 0)] {
        assert_eq!(layer_twin::argmax(&x), at);
    }
    for at in [0, 255, 256, 999] {
        let mut x = model_x(1000, 75);
        x[at] = 100.0;
        assert_eq!(layer_twin::argmax(&x), at as u32);
    }
}
