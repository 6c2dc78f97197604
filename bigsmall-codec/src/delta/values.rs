//! Units as values relative to the base's unit, and the classes of units (FORMAT.md section 10.4).

use bigsmall_format::Dtype;

use crate::planes::GROUP;

/// A unit as a number.
pub(crate) trait Word:
    Copy + Default + Ord + Send + Sync + std::fmt::Debug + bytemuck::Pod + 'static
{
    /// Bits of a unit.
    const BITS: u32;

    /// The unit in `bytes`, little-endian, as long as one.
    fn read(bytes: &[u8]) -> Self;
    /// Stores the unit as [`read`](Self::read) reads it.
    fn write(self, bytes: &mut [u8]);
    fn to_u64(self) -> u64;
    /// The low bits.
    fn from_u64(value: u64) -> Self;
    /// The exponent of a base's unit, 0 for dtypes without one.
    fn exponent(self, field: Field) -> u32;
    /// Mode 0: the difference of `unit` from `base`, in the order of floats.
    fn difference(base: Self, unit: Self, is_float: bool) -> Self;
    /// The inverse of [`difference`](Self::difference).
    fn add(base: Self, value: Self, is_float: bool) -> Self;
    /// Mode 1: `unit` itself, the sign of `base` applied.
    fn turned(base: Self, unit: Self, is_float: bool) -> Self;
    /// The inverse of [`turned`](Self::turned).
    fn turned_back(base: Self, value: Self, is_float: bool) -> Self;
    /// `self` minus `lo` as a signed number.
    fn above(self, lo: Self) -> i64;
    /// `self + (y << shift)`.
    fn plus_shifted(self, y: u64, shift: u32) -> Self;
    /// For each value how many steps it is above `lo`, its low byte; bit i is set if value i is not
    /// 0 to `near` - 1 steps above.
    fn steps(values: &[Self; 32], lo: Self, shift: u32, near: u32, symbols: &mut [u8; 32]) -> u32;
    /// For each symbol `lo + (symbol << shift)`.
    fn near(symbols: &[u8; GROUP], shift: u32, lo: Self, values: &mut [Self; GROUP]);
}

macro_rules! words {
    ($($type:ident $signed:ident;)*) => {
        $(impl Word for $type {
            const BITS: u32 = $type::BITS;

            #[inline(always)]
            fn read(bytes: &[u8]) -> Self {
                let mut value = [0; size_of::<$type>()];
                value.copy_from_slice(bytes);
                $type::from_le_bytes(value)
            }

            #[inline(always)]
            fn write(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }

            #[inline(always)]
            fn to_u64(self) -> u64 {
                u64::from(self)
            }

            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $type
            }

            #[inline(always)]
            fn exponent(self, field: Field) -> u32 {
                (self >> field.shift) as u32 & field.mask
            }

            #[inline(always)]
            fn difference(base: Self, unit: Self, is_float: bool) -> Self {
                if !is_float {
                    return unit.wrapping_sub(base);
                }
                let sign = base & TOP;
                // The base is positive now.
                ordered(unit ^ sign).wrapping_sub(base | TOP)
            }

            #[inline(always)]
            fn add(base: Self, value: Self, is_float: bool) -> Self {
                if !is_float {
                    return value.wrapping_add(base);
                }
                let ordered = value.wrapping_add(base | TOP);
                let positive = (ordered as $signed >> (Self::BITS - 1)) as $type;
                ordered ^ !(positive & !TOP) ^ (base & TOP)
            }

            #[inline(always)]
            fn turned(base: Self, unit: Self, is_float: bool) -> Self {
                let sign = if is_float { base & TOP } else { 0 };
                (unit ^ sign).rotate_left(1)
            }

            #[inline(always)]
            fn turned_back(base: Self, value: Self, is_float: bool) -> Self {
                let sign = if is_float { base & TOP } else { 0 };
                value.rotate_right(1) ^ sign
            }

            #[inline(always)]
            fn above(self, lo: Self) -> i64 {
                self.wrapping_sub(lo) as $signed as i64
            }

            #[inline(always)]
            fn plus_shifted(self, y: u64, shift: u32) -> Self {
                self.wrapping_add((y as $type) << shift)
            }

            #[inline(always)]
            fn steps(
                values: &[Self; 32],
                lo: Self,
                shift: u32,
                near: u32,
                symbols: &mut [u8; 32],
            ) -> u32 {
                let mut most = 0;
                let mut steps = [0 as $type; 32];
                for (step, &value) in steps.iter_mut().zip(values) {
                    *step = (value.wrapping_sub(lo) as $signed >> shift) as $type;
                    most = most.max(*step);
                }
                symbols.iter_mut().zip(&steps).for_each(|(symbol, &step)| *symbol = step as u8);
                if most < near as $type {
                    return 0;
                }
                let outside = |i: usize| u32::from(steps[i] >= near as $type) << i;
                (0..32).map(outside).sum()
            }

            fn near(symbols: &[u8; GROUP], shift: u32, lo: Self, values: &mut [Self; GROUP]) {
                for (value, &symbol) in values.iter_mut().zip(symbols) {
                    *value = lo.wrapping_add($type::from(symbol) << shift);
                }
            }
        })*
    };
}

/// Numbers in the order of the floats that they stand for.
mod order {
    macro_rules! ordered {
        ($($name:ident $type:ident $signed:ident;)*) => {
            $(#[inline(always)]
            pub(super) fn $name(x: $type) -> $type {
                let top = 1 << ($type::BITS - 1);
                x ^ ((x as $signed >> ($type::BITS - 1)) as $type | top)
            })*
        };
    }
    ordered! { o8 u8 i8; o16 u16 i16; o32 u32 i32; o64 u64 i64; }
}

mod of_u8 {
    use super::order::o8 as ordered;
    use super::{Field, GROUP, Word};
    const TOP: u8 = 1 << 7;
    words! { u8 i8; }
}

mod of_u16 {
    use super::order::o16 as ordered;
    use super::{Field, GROUP, Word};
    const TOP: u16 = 1 << 15;
    words! { u16 i16; }
}

mod of_u32 {
    use super::order::o32 as ordered;
    use super::{Field, GROUP, Word};
    const TOP: u32 = 1 << 31;
    words! { u32 i32; }
}

mod of_u64 {
    use super::order::o64 as ordered;
    use super::{Field, GROUP, Word};
    const TOP: u64 = 1 << 63;
    words! { u64 i64; }
}

/// Where the exponent of a unit lies. Dtypes without one have an empty mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) shift: u32,
    pub(crate) mask: u32,
}

impl Field {
    /// The exponent field of `dtype`.
    pub(crate) fn of(dtype: Dtype) -> Field {
        let (bits, shift) = match dtype {
            Dtype::BF16 => (8, 7),
            Dtype::F16 => (5, 10),
            Dtype::F32 => (8, 23),
            Dtype::F64 => (11, 52),
            Dtype::F8_E4M3 | Dtype::F8_E4M3FNUZ => (4, 3),
            Dtype::F8_E5M2 | Dtype::F8_E5M2FNUZ => (5, 2),
            _ => (0, 0),
        };
        Field { shift, mask: (1 << bits) - 1 }
    }

    /// Whether the dtype is a float with a sign.
    pub(crate) fn is_float(self) -> bool {
        self.mask != 0
    }
}

/// The division of units into classes by the exponent of the base's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Classes {
    /// How many there are.
    pub(crate) n: u32,
    /// The exponent of the highest class, which larger ones belong to as well.
    pub(crate) top: u32,
}

impl Classes {
    /// The class of a unit whose base has that exponent.
    #[inline(always)]
    pub(crate) fn of(self, exponent: u32) -> u8 {
        (exponent + self.n - 1).saturating_sub(self.top).min(self.n - 1) as u8
    }

    /// The classes of units, by their bases.
    pub(crate) fn split<W: Word>(self, field: Field, base: &[u8], classes: &mut [u8]) {
        let units = base.chunks_exact(size_of::<W>());
        for (class, unit) in classes.iter_mut().zip(units) {
            *class = self.of(W::read(unit).exponent(field));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of FORMAT.md, in wide numbers.
    fn order(x: u16) -> i64 {
        i64::from(if x & 0x8000 == 0 { x | 0x8000 } else { !x })
    }

    #[test]
    fn values_lead_back_to_units() {
        let mut state = 1u64;
        for _ in 0..300_000 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let (a, b) = (state, state.rotate_right(29).wrapping_mul(state | 1));
            fn check<W: Word>(a: u64, b: u64) {
                let (base, unit) = (W::from_u64(a), W::from_u64(b));
                for float in [true, false] {
                    assert_eq!(W::add(base, W::difference(base, unit, float), float), unit);
                    assert_eq!(W::turned_back(base, W::turned(base, unit, float), float), unit);
                    assert_eq!(W::difference(base, base, float), W::default());
                }
            }
            check::<u8>(a, b);
            check::<u16>(a, b);
            check::<u32>(a, b);
            check::<u64>(a, b);
            let (base, unit) = (a as u16, b as u16);
            let sign = base & 0x8000;
            let expected = order(unit ^ sign) - order(base ^ sign);
            assert_eq!(u16::difference(base, unit, true), expected as u16);
        }
    }

    #[test]
    fn classes_are_steps_of_exponents() {
        let classes = Classes { n: 4, top: 120 };
        let of = [0, 116, 117, 118, 119, 120, 121, 255].map(|e| classes.of(e));
        assert_eq!(of, [0, 0, 0, 1, 2, 3, 3, 3]);
        assert_eq!(Classes { n: 1, top: 0 }.of(9), 0);
    }
}
