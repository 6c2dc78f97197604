//! The exact values of weights as f32, and tables of them.

/// The value of an f16. It has no branches, so that the compiler can vectorise loops over it. A NaN
/// becomes quiet and keeps the rest of its mantissa.
pub(crate) const fn f16(bits: u16) -> f32 {
    let sign = ((bits & 0x8000) as u32) << 16;
    let magnitude = ((bits & 0x7fff) as u32) << 13;
    // The exponent is too small by the difference of the biases, 127 - 15. Subnormal numbers need
    // the multiplication, which is exact.
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 127 - 15) << 23)).to_bits();
    let quiet = if bits & 0x3ff == 0 { 0 } else { 1 << 22 };
    let special = magnitude | 0xff << 23 | quiet;
    f32::from_bits(sign | if bits & 0x7c00 == 0x7c00 { special } else { finite })
}

/// F8_E4M3 as OCP defines it: no infinities, and all ones is NaN, here with a mantissa that begins
/// with these ones.
const fn e4m3(bits: u8) -> f32 {
    let sign = ((bits & 0x80) as u32) << 24;
    let magnitude = match bits & 0x7f {
        0x7f => f32::from_bits(0x7ff0_0000),
        small @ ..8 => small as f32 / 512.0,
        normal => f32::from_bits(((normal as u32) << 20) + ((127 - 7) << 23)),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

/// The value of each F8_E4M3.
pub(crate) static E4M3: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        values[bits] = e4m3(bits as u8);
        bits += 1;
    }
    values
};

/// The value of each F8_E5M2, which is the upper byte of an f16.
pub(crate) static E5M2: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        values[bits] = f16((bits as u16) << 8);
        bits += 1;
    }
    values
};

/// F8_E4M3 without sign as bf16, which holds every such value: the low and the high bytes.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) static E4M3_BYTES: [[u8; 128]; 2] = {
    let mut bytes = [[0; 128]; 2];
    let mut i = 0;
    while i < 128 {
        let bf16 = (e4m3(i as u8).to_bits() >> 16) as u16;
        [bytes[0][i], bytes[1][i]] = bf16.to_le_bytes();
        i += 1;
    }
    bytes
};

/// The same for instructions that look up one of 16 bytes. As a bf16, a normal F8_E4M3 is 16 times
/// as large a number, plus 0x3c00 for the exponent. Subnormal numbers are the exceptions; they are
/// among the 16 smallest.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) struct Nibbles {
    /// For the upper half of a weight: the high byte, but 0 and the sign for the 16 smallest.
    pub(crate) upper: [u8; 16],
    /// For the lower half of one of the 16 smallest: how the low byte differs from 16 times that.
    pub(crate) low: [u8; 16],
    /// The same for the high byte.
    pub(crate) high: [u8; 16],
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) static E4M3_NIBBLES: Nibbles = {
    let mut tables = Nibbles { upper: [0; 16], low: [0; 16], high: [0; 16] };
    let mut i = 0;
    while i < 16 {
        let (sign, upper) = (i as u8 & 8, i as u8 & 7);
        tables.upper[i] = sign << 4 | if upper == 0 { 0 } else { 0x3c + upper };
        tables.low[i] = E4M3_BYTES[0][i] ^ (i as u8) << 4;
        tables.high[i] = E4M3_BYTES[1][i];
        i += 1;
    }
    tables
};

#[cfg(test)]
mod tests {
    use bigsmall_format::Dtype;

    use super::*;
    use crate::kernels::{Panels, lane_of};
    use crate::layout::TILE;

    #[test]
    fn all_f16_values() {
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits).to_f32();
            assert_eq!(f16(bits).to_bits(), expected.to_bits(), "{bits:#x}");
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
            let found = E4M3[usize::from(bits)];
            let same = f64::from(found) == expected || found.is_nan() && expected.is_nan();
            assert!(same, "{bits:#x}");
            assert_eq!(found.is_sign_negative(), bits >> 7 == 1);
            let f16 = half::f16::from_bits(u16::from(bits) << 8).to_f32();
            assert_eq!(E5M2[usize::from(bits)].to_bits(), f16.to_bits(), "{bits:#x}");
        }
    }

    /// Every value, at every place of a tile, with the kernels of every backend.
    #[test]
    fn every_backend_has_these_values() {
        let sixteen = |to_f32: fn(u16) -> f32| -> Vec<(Vec<u8>, f32)> {
            (0..=u16::MAX).map(|w| (w.to_le_bytes().to_vec(), to_f32(w))).collect()
        };
        let eight = |values: &[f32; 256]| -> Vec<(Vec<u8>, f32)> {
            (0..=255).zip(values).map(|(w, &value)| (vec![w], value)).collect()
        };
        for (dtype, values) in [
            (Dtype::BF16, sixteen(|w| f32::from_bits(u32::from(w) << 16))),
            (Dtype::F16, sixteen(f16)),
            (Dtype::F8_E4M3, eight(&E4M3)),
            (Dtype::F8_E5M2, eight(&E5M2)),
        ] {
            for skip in [0, 1, 8, 29] {
                // A row between two others.
                let (n, row) = (3, 1);
                let values: Vec<_> = values.iter().cycle().skip(skip).take(values.len()).collect();
                let tiles = values.len() / TILE;
                let weights: Vec<u8> = values.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
                let mut expected = vec![5f32; Panels::len_of(n, tiles)];
                for (i, (_, value)) in values.iter().enumerate() {
                    let (group, lane) = (lane_of(i % TILE) / 16, lane_of(i % TILE) % 16);
                    let at = Panels::offset(n, tiles, group, row) + i / TILE * 16 + lane;
                    expected[at] = *value;
                }
                for backend in crate::backends() {
                    let mut found = vec![5f32; expected.len()];
                    let kernels = crate::backend::kernels(backend).unwrap();
                    (kernels.widen)(dtype, &weights, n, row, &mut found);
                    let bits = |floats: &[f32]| floats.iter().map(|f| f.to_bits()).collect();
                    let (found, expected): (Vec<_>, Vec<_>) = (bits(&found), bits(&expected));
                    let wrong = found.iter().zip(&expected).find(|(a, b)| a != b);
                    assert_eq!(wrong, None, "{dtype} {backend}");
                }
            }
        }
    }
}
