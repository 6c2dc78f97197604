//! How the bits of a dtype are divided (FORMAT.md section 7.1).
//!
//! The upper one or two bytes of a unit are its *high bits*, those below are its *low bits*. The
//! high bits are, from the top: the sign (floats), the *field* (exponent and the `m` top mantissa
//! bits) and the remaining mantissa bits. The field is entropy coded; sign and remaining mantissa
//! bits, together `residual_bits`, are stored in planes; so are the low bits.

use bigsmall_format::Dtype;

/// The division of one dtype, `m` mantissa bits in the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of one unit.
    pub(crate) unit_bytes: usize,
    /// Bytes of the high bits: 1 or 2.
    pub(crate) high_bytes: usize,
    /// Bits of the field.
    pub(crate) field_bits: u32,
    /// Bits of the residual, sign included: 0 for plain bytes, else 1 to 8.
    pub(crate) residual_bits: u32,
}

/// Exponent bits and bytes of high bits of the float dtypes; `None` for what is coded byte by byte.
fn float(dtype: Dtype) -> Option<(u32, usize)> {
    match dtype {
        Dtype::BF16 | Dtype::F32 => Some((8, 2)),
        Dtype::F64 => Some((11, 2)),
        Dtype::F16 => Some((5, 1)),
        Dtype::F8_E4M3 | Dtype::F8_E4M3FNUZ => Some((4, 1)),
        Dtype::F8_E5M2 | Dtype::F8_E5M2FNUZ => Some((5, 1)),
        _ => None,
    }
}

impl Layout {
    /// The layout of `dtype` with `m` mantissa bits in the field; `None` if the high bits have
    /// fewer.
    pub(crate) fn new(dtype: Dtype, m: u32) -> Option<Layout> {
        let unit_bytes = dtype.unit_bytes();
        match float(dtype) {
            None => (m == 0).then_some(Layout {
                unit_bytes: 1,
                high_bytes: 1,
                field_bits: 8,
                residual_bits: 0,
            }),
            Some((exponent_bits, high_bytes)) => {
                let residual_bits = (8 * high_bytes as u32).checked_sub(exponent_bits + m)?;
                (1..=8).contains(&residual_bits).then_some(Layout {
                    unit_bytes,
                    high_bytes,
                    field_bits: exponent_bits + m,
                    residual_bits,
                })
            }
        }
    }

    /// Whether the dtype is a float, whose field may hold mantissa bits.
    pub(crate) fn is_float(dtype: Dtype) -> bool {
        float(dtype).is_some()
    }

    /// How many low bits a unit has.
    pub(crate) fn low_bits(&self) -> u32 {
        8 * (self.unit_bytes - self.high_bytes) as u32
    }

    /// Where the field begins within the high bits.
    pub(crate) fn field_shift(&self) -> u32 {
        self.residual_bits.saturating_sub(1)
    }

    /// The field of high bits.
    pub(crate) fn field(&self, high: u16) -> u16 {
        (high >> self.field_shift()) & ((1 << self.field_bits) - 1)
    }

    /// The residual of high bits as a byte: the sign in bit 7, the remaining mantissa bits at the
    /// bottom, zeros between.
    pub(crate) fn residual(&self, high: u16) -> u8 {
        if self.residual_bits == 0 {
            return 0;
        }
        let low = high as u8 & ((1u16 << self.field_shift()) - 1) as u8;
        let sign = (high >> (8 * self.high_bytes - 8)) as u8 & 0x80;
        sign | low
    }

    /// Puts field and residual together again.
    pub(crate) fn high(&self, field: u16, residual: u8) -> u16 {
        let sign = u16::from(residual & 0x80) << (8 * self.high_bytes - 8);
        field << self.field_shift() | u16::from(residual & 0x7f) | sign
    }

    /// Extracts the high bits of `units`.
    #[inline(always)]
    pub(crate) fn split_highs(&self, units: &[u8], highs: &mut [u16]) {
        self.map_highs(units, highs, |high| high);
    }

    /// `out[i] = f(high bits of unit i)`. They are taken from whole units: of single bytes that are
    /// apart, compilers make no vectors.
    #[inline(always)]
    pub(crate) fn map_highs<T>(&self, units: &[u8], out: &mut [T], f: impl Fn(u16) -> T) {
        match (self.unit_bytes, self.high_bytes) {
            (1, _) => out.iter_mut().zip(units).for_each(|(out, &b)| *out = f(u16::from(b))),
            (2, 1) => each(units, out, |u| f(u16::from_le_bytes(u) >> 8)),
            (2, _) => each(units, out, |u| f(u16::from_le_bytes(u))),
            (4, _) => each(units, out, |u| f((u32::from_le_bytes(u) >> 16) as u16)),
            (_, _) => each(units, out, |u| f((u64::from_le_bytes(u) >> 48) as u16)),
        }
    }

    /// Extracts the low bits of `units`.
    pub(crate) fn split_lows(&self, units: &[u8], lows: &mut [u64]) {
        match self.unit_bytes {
            2 => each(units, lows, |u: [u8; 2]| u64::from(u[0])),
            4 => each(units, lows, |u: [u8; 4]| u64::from(u16::from_le_bytes([u[0], u[1]]))),
            _ => each(units, lows, |u: [u8; 8]| u64::from_le_bytes(u) & 0xffff_ffff_ffff),
        }
    }
}

/// `out[i] = f(element i)` for elements of `N` bytes.
#[inline(always)]
fn each<const N: usize, T>(units: &[u8], out: &mut [T], f: impl Fn([u8; N]) -> T) {
    for (out, unit) in out.iter_mut().zip(units.as_chunks::<N>().0) {
        *out = f(*unit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_apart_and_together() {
        for &dtype in Dtype::ALL {
            for m in 0..4 {
                let Some(layout) = Layout::new(dtype, m) else { continue };
                for high in 0..=u16::MAX >> (16 - 8 * layout.high_bytes) {
                    let (field, residual) = (layout.field(high), layout.residual(high));
                    assert_eq!(layout.high(field, residual), high, "{dtype} m = {m}");
                    let most =
                        if layout.residual_bits == 0 { 0 } else { 1 << layout.field_shift() };
                    assert!(u32::from(residual & 0x7f) < most.max(1));
                }
            }
        }
    }
}
