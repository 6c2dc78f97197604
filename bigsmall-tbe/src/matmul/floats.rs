//! Weights of the other dtypes as f32.

use bigsmall_format::Dtype;

use crate::kernels::{GROUP_LANES, GROUPS, Panels, weight_of};
use crate::layout::TILE;

/// Writes weights as row `row` of `n` rows in the form of [`Panels`], the last tile filled up with
/// zeros.
pub(super) fn widen(dtype: Dtype, weights: &[u8], n: usize, row: usize, out: &mut [f32]) {
    match dtype {
        Dtype::F8_E4M3 => spread(weights, n, row, out, e4m3_to_f32),
        // The upper byte of an f16.
        Dtype::F8_E5M2 => spread(weights, n, row, out, |w| f16_to_f32(u16::from(w) << 8)),
        _ => spread(weights.as_chunks::<2>().0, n, row, out, |w| f16_to_f32(u16::from_le_bytes(w))),
    }
}

fn spread<T: Copy>(
    weights: &[T],
    n: usize,
    row: usize,
    out: &mut [f32],
    to_f32: impl Fn(T) -> f32,
) {
    let tiles = weights.len().div_ceil(TILE);
    for (t, weights) in weights.chunks(TILE).enumerate() {
        let mut tile = [0.0; TILE];
        for (tile, &weight) in tile.iter_mut().zip(weights) {
            *tile = to_f32(weight);
        }
        for group in 0..GROUPS {
            let at = Panels::offset(n, tiles, group, row) + t * GROUP_LANES;
            for (lane, out) in out[at..][..GROUP_LANES].iter_mut().enumerate() {
                *out = tile[weight_of(group * GROUP_LANES + lane)];
            }
        }
    }
}

/// The exact value of an f16. It has no branches, so that the compiler can vectorise loops over it.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // The exponent is too small by the difference of the biases, 127 - 15. Subnormal numbers need
    // the multiplication, which is exact.
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 127 - 15) << 23)).to_bits();
    // Infinity and NaN. A NaN becomes quiet.
    let quiet = if bits & 0x3ff == 0 { 0 } else { 1 << 22 };
    let special = magnitude | 0xff << 23 | quiet;
    f32::from_bits(sign | if bits & 0x7c00 == 0x7c00 { special } else { finite })
}

/// F8_E4M3 as OCP defines it: no infinities, and all ones is NaN.
fn e4m3_to_f32(bits: u8) -> f32 {
    let sign = u32::from(bits & 0x80) << 24;
    let magnitude = match bits & 0x7f {
        0x7f => f32::NAN,
        small @ ..8 => f32::from(small) / 512.0,
        normal => f32::from_bits((u32::from(normal) << 20) + ((127 - 7) << 23)),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_f16_values() {
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits).to_f32();
            assert_eq!(f16_to_f32(bits).to_bits(), expected.to_bits(), "{bits:#x}");
        }
    }

    #[test]
    fn all_fp8_values() {
        for bits in 0..=255u8 {
            let sign = if bits >> 7 == 1 { -1.0 } else { 1.0 };
            let (e, m) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
            let expected = if bits & 0x7f == 0x7f {
                f64::NAN
            } else if e == 0 {
                sign * m / 8.0 * (-6f64).exp2()
            } else {
                sign * (1.0 + m / 8.0) * f64::from(e - 7).exp2()
            };
            let found = f64::from(e4m3_to_f32(bits));
            assert!(found == expected || found.is_nan() && expected.is_nan(), "{bits:#x}");
            assert_eq!(found.is_sign_negative(), bits >> 7 == 1);
        }
    }
}
