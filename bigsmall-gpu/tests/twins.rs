//! Tests the Rust twins of the shaders, without a GPU: the resident forms decode exactly, and the
//! products keep the promises of the crate.
#![allow(unreachable_pub, clippy::unwrap_used)]

#[path = "../src/ans.rs"]
mod ans;
mod common;
#[path = "../src/layout.rs"]
#[allow(dead_code)]
mod layout;

#[path = "common/pack_twin.rs"]
mod pack_twin;
#[path = "common/rans_twin.rs"]
mod rans_twin;

use bigsmall_codec::{Ans, Level};
use common::layer_twin;
use common::twin::{Twin, fused, half_of, split_x, unfused, value_of, weight_as_half};
use common::*;
use layout::{Binades, Resident, RowShape};
use pack_twin::PackTwin;
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
                for (y, batch) in [(twin.matvec(&x), 1), (twin.gemm(&x), 17)] {
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

/// Every window of 33 binades, and the values just outside it.
#[test]
fn weights_within_33_binades_are_exact_in_f16() {
    for most in 16..255u16 {
        let least = most.saturating_sub(32).max(1);
        let window = least << 7..(most + 1) << 7;
        let weights: Vec<u16> =
            window.clone().flat_map(|w| [w, w | 0x8000]).chain([0, 0x8000]).collect();
        let offset = Binades::NONE.and(&weights).half_offset().unwrap();
        assert_eq!(offset, (30 - i32::from(most)).min(1));
        // The power of two, in steps that f64 can represent.
        let scale = 2f64.powi(offset + 112);
        for &w in &weights {
            let half = weight_as_half(u32::from(w), offset);
            let exact = half::bf16::from_bits(w).to_f64() * scale;
            assert_eq!(half::f16::from_bits(half as u16).to_f64().to_bits(), exact.to_bits());
        }
        for beside in [window.start - 1, window.end] {
            let wider = Binades::NONE.and(&weights).and(&[beside]).half_offset();
            let fits = most < 254 && least == 1 && beside == window.end && most <= 32;
            assert_eq!(wider.is_some(), fits, "{most} and {beside:#x}");
        }
    }
    assert_eq!(Binades::NONE.half_offset(), Some(0));
    assert_eq!(Binades::NONE.and(&[0, 0x8000]).half_offset(), Some(0));
    for never in [0x0001, 0x7f80, 0x7fc0, 15 << 7] {
        assert_eq!(Binades::NONE.and(&[never]).half_offset(), None, "{never:#x}");
    }
}

#[test]
fn halves_are_the_nearest_and_two_of_them_hold_x() {
    for bits in 0..=u16::MAX {
        let half = half::f16::from_bits(bits);
        if half.is_finite() {
            assert_eq!(value_of(u32::from(bits)).to_bits(), half.to_f32().to_bits());
            assert_eq!(half_of(half.to_f32()), u32::from(bits));
        }
    }
    let mut random = Random::new(80);
    for _ in 0..100_000 {
        let v = (2f64.powi((random.bits() % 45) as i32 - 30) * (1.0 + random.uniform())) as f32;
        let far = |half: u32| (f64::from(value_of(half)) - f64::from(v)).abs();
        let nearest = half::f16::from_f32(v).to_bits();
        assert_eq!(far(half_of(v)), far(u32::from(nearest)), "{v}");
    }
    for factor in [1e-38, 1e-30, 1.0, 1e30, 1e38] {
        let x: Vec<f32> = model_x(1000, 81).iter().map(|x| x * factor).collect();
        let largest = x.iter().fold(0f32, |a, x| a.max(x.abs()));
        let (halves, scale) = split_x(&x);
        for (x, [high, low]) in x.iter().zip(halves) {
            let sum = f64::from(value_of(high)) + f64::from(value_of(low));
            let error = (sum * f64::from(scale) - f64::from(*x)).abs();
            let most = f64::from(x.abs()).max(f64::from(largest) * 2f64.powi(-18)) * 2f64.powi(-22);
            assert!(error <= most, "{x} of {largest}: {error}");
        }
    }
    assert_eq!(split_x(&[0.0, 0.0]).0, [[0, 0]; 2]);
}

#[test]
fn cooperative_matrices_keep_the_contract() {
    for cols in [1, 100, 1030, 4096, 28672] {
        let rows = 3;
        let inputs = [
            ("random", model_weights(rows, cols, 82), model_x(cols, 83)),
            ("constant", vec![bf16(0.1); rows * cols], vec![0.3; cols]),
            (
                "all positive",
                model_weights(rows, cols, 84).iter().map(|w| w & 0x7fff).collect(),
                model_x(cols, 85).iter().map(|x| x.abs()).collect(),
            ),
        ];
        for (what, weights, x) in inputs {
            let offset = Binades::NONE.and(&weights).half_offset().unwrap();
            for fma in [fused, unfused] {
                let twin =
                    |form| Twin::new(&weights, rows, cols, form, fma).cooperative(&x, offset);
                let y = twin(Resident::Plain);
                assert_eq!(bits(&twin(Resident::Dense3)), bits(&y));
                assert_eq!(bits(&twin(Resident::Dense4)), bits(&y));
                let error = largest_error(&weights, cols, &x, &y);
                assert!(error <= cooperative_bound(cols), "{what} {cols}: {error}");
                if what == "random" {
                    assert!(error <= 16.0, "{cols}: {error}");
                }
            }
        }
    }
    assert!(cooperative_bound(28672) <= 64.0 + 2.0 + 4.0);
}

#[test]
fn ans_decodes_as_the_codec_does() {
    for (weights, rows, cols) in ans_cases() {
        for level in [Level::Fast, Level::Default, Level::Small] {
            let tensor = encoded_by(&Ans::new(level), &weights, rows, cols);
            let tensor = ans::readable(&tensor).unwrap();
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

/// Whole matrices, and their last rows as a separate shard.
#[test]
fn kernels_pack_as_the_host_does() {
    for &(rows, cols) in SHAPES {
        let shape = RowShape::new(cols);
        let mut cases = escape_cases(rows, cols, 96);
        cases.push(("any bits", any_bits(rows * cols, 97, false)));
        for (what, weights) in cases {
            let mut counts = [0; 256];
            layout::count_exponents(&weights, &mut counts);
            let counted = PackTwin::new(&weights, cols, 0..rows, 3).count();
            assert!(counted[..256].iter().zip(&counts).all(|(a, b)| u64::from(*a) == *b));
            let binades = Binades::between(0xffff - counted[256] as u16, counted[257] as u16);
            assert_eq!(binades, Binades::NONE.and(&weights), "{rows}x{cols} {what}");
            for (width, shard) in
                [3, 4].into_iter().flat_map(|w| [(w, 0..rows), (w, rows / 2..rows)])
            {
                let what = format!("{rows}x{cols} {what}, width {width}, rows {shard:?}");
                let (base, _) = layout::choose_window(&counts, width);
                let dense = layout::pack_dense(&weights[shard.start * cols..], &shape, width, base);
                let mut twin = PackTwin::new(&weights, cols, shard.clone(), width);
                twin.base = u32::from(base);
                let [bytes, codes, mut starts] = twin.pack_dense();
                assert!(bytes == dense.bytes, "{what}: bytes");
                assert!(codes == dense.codes, "{what}: codes");
                let (totals, lanes) = starts.split_at_mut(shard.len() * shape.segments);
                assert!(*lanes == dense.starts, "{what}: starts of lanes");
                let mut at = 0;
                for n in totals {
                    at += std::mem::replace(n, at);
                }
                assert_eq!(at as usize, dense.escapes.len(), "{what}");
                assert!(starts[..dense.bases.len()] == dense.bases, "{what}: starts of segments");
                let escapes = twin.pack_escapes(&starts, dense.escapes.len().div_ceil(4));
                let escapes: Vec<u8> = escapes.iter().flat_map(|w| w.to_le_bytes()).collect();
                assert!(escapes[..dense.escapes.len()] == dense.escapes, "{what}: escapes");
            }
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
            // Rotated and rotated back; the length does not change.
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
