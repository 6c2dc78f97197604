//! Units as values relative to the base's unit (FORMAT.md section 10.4), for units of each width.

use super::classes::{Classes, Field, PARTS, Starts};
use super::head::Head;
use crate::planes::GROUP;

/// Units of a part that are moved before they are computed: a part of whole groups has a multiple
/// of it.
const PIECE: usize = GROUP / PARTS;

/// Calls a function for the unit of that many bytes.
macro_rules! for_unit {
    ($bytes:expr, $($function:ident)::+ ($($argument:expr),* $(,)?)) => {
        match $bytes {
            1 => $($function)::+::<u8>($($argument),*),
            2 => $($function)::+::<u16>($($argument),*),
            4 => $($function)::+::<u32>($($argument),*),
            _ => $($function)::+::<u64>($($argument),*),
        }
    };
}
pub(crate) use for_unit;

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
    fn exponent(self, field: Field) -> u16;
    /// The classes of units, by their bases.
    fn classes(classes: Classes, field: Field, base: &[u8], out: &mut [u8]);
    /// How many units of each group differ, the last group included.
    fn count_changed(units: &[u8], base: &[u8], counts: &mut [u16]);
    /// Whether units of a group differ, 1 or 0 for each.
    fn differ(units: &[u8], base: &[u8], out: &mut [u8; GROUP]);
    /// The values of units, in the order of classes: those of each class begin at `at`. The number
    /// of units is a multiple of [`PARTS`].
    fn partition(
        head: &Head,
        classes: &[u8],
        at: &mut Starts,
        units: &[u8],
        base: &[u8],
        values: &mut [Self],
    );
    /// The inverse of [`partition`](Self::partition): units in place of the base's. `classes` has
    /// room for as many.
    fn merge(head: &Head, classes: &mut [u8], values: &[Self], units: &mut [u8]);
    /// The values of units, in their order.
    fn differences(head: &Head, classes: &[u8], units: &[u8], base: &[u8], values: &mut [Self]);
    /// Units in place of the base's, from their values in the order of units.
    fn restore(head: &Head, classes: &[u8], values: &[Self], units: &mut [u8]);
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
    /// For each value how many steps it is above `lo`, at most 255; for those below
    /// `lo` 128 or more. Compilers make vectors of a whole group alone: they unroll shorter loops.
    fn steps(values: &[Self; GROUP], lo: Self, shift: u32, symbols: &mut [u8; GROUP]);
    /// The symbols of values, of `n_near` near ones and `n_logs` for each side: the last one for
    /// all that has no other.
    fn symbols(
        values: &[Self; 32],
        lo: Self,
        shift: u32,
        near_and_logs: (u32, u32),
        symbols: &mut [u8; 32],
    );
    /// For each symbol `lo + (symbol << shift)`.
    fn near(symbols: &[u8; GROUP], shift: u32, lo: Self, values: &mut [Self; GROUP]);
}

macro_rules! words {
    ($($type:ident $signed:ident;)*) => {
        $(#[allow(clippy::cast_lossless)] // not for every type
        impl Word for $type {
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
            fn exponent(self, field: Field) -> u16 {
                (self >> field.shift) as u16 & field.mask as u16
            }

            #[inline(always)]
            fn classes(classes: Classes, field: Field, base: &[u8], out: &mut [u8]) {
                for (class, unit) in out.iter_mut().zip(base.as_chunks().0) {
                    *class = classes.of($type::from_le_bytes(*unit).exponent(field));
                }
            }

            fn count_changed(units: &[u8], base: &[u8], counts: &mut [u16]) {
                let (units, _) = units.as_chunks::<{ size_of::<$type>() }>();
                let (base, _) = base.as_chunks::<{ size_of::<$type>() }>();
                // Few at a time, so that sums are narrow.
                let count = |units: &[[u8; _]], base: &[[u8; _]]| {
                    let differ = units.iter().zip(base).map(|(unit, base)| {
                        u8::from($type::from_le_bytes(*unit) != $type::from_le_bytes(*base))
                    });
                    u16::from(differ.sum::<u8>())
                };
                let groups = units.chunks(GROUP).zip(base.chunks(GROUP));
                for (n, (units, base)) in counts.iter_mut().zip(groups) {
                    let half = units.len().min(GROUP / 2);
                    let (units, base) = (units.split_at(half), base.split_at(half));
                    *n = count(units.0, base.0) + count(units.1, base.1);
                }
            }

            fn differ(units: &[u8], base: &[u8], out: &mut [u8; GROUP]) {
                let pairs = units.as_chunks().0.iter().zip(base.as_chunks().0);
                for (differ, (unit, base)) in out.iter_mut().zip(pairs) {
                    let differs = $type::from_le_bytes(*unit) != $type::from_le_bytes(*base);
                    *differ = u8::from(differs);
                }
            }

            #[inline(always)]
            fn partition(
                head: &Head,
                classes: &[u8],
                at: &mut Starts,
                units: &[u8],
                base: &[u8],
                values: &mut [Self],
            ) {
                let n = classes.len();
                if head.classes.n == 1 {
                    return Self::differences(head, classes, units, base, values);
                }
                let len = n / PARTS;
                // A few values at a time, so that the loops over units have no chain.
                for begin in (0..len).step_by(PIECE) {
                    let mut natural = [[Self::default(); PIECE]; PARTS];
                    for part in 0..PARTS {
                        let place = part * len + begin..part * len + begin + PIECE;
                        let bytes =
                            place.start * size_of::<$type>()..place.end * size_of::<$type>();
                        let classes = &classes[place];
                        let units = &units[bytes.clone()];
                        Self::differences(head, classes, units, &base[bytes], &mut natural[part]);
                    }
                    for i in 0..PIECE {
                        for part in 0..PARTS {
                            let class = classes[part * len + begin + i];
                            let at = &mut at[part][usize::from(class & 7)];
                            if let Some(place) = values.get_mut(*at) {
                                *place = natural[part][i];
                            }
                            *at += 1;
                        }
                    }
                }
            }

            #[inline(always)]
            fn differences(
                head: &Head,
                classes: &[u8],
                units: &[u8],
                base: &[u8],
                values: &mut [Self],
            ) {
                let pairs = units.as_chunks().0.iter().zip(base.as_chunks().0);
                let of = |unit: &[u8; _]| $type::from_le_bytes(*unit);
                let is_float = head.field.is_float();
                if head.modes != 0 {
                    for ((value, (unit, base)), &class) in values.iter_mut().zip(pairs).zip(classes)
                    {
                        *value = match head.is_turned(class) {
                            false => Self::difference(of(base), of(unit), is_float),
                            true => Self::turned(of(base), of(unit), is_float),
                        };
                    }
                } else if is_float {
                    for (value, (unit, base)) in values.iter_mut().zip(pairs) {
                        *value = Self::difference(of(base), of(unit), true);
                    }
                } else {
                    for (value, (unit, base)) in values.iter_mut().zip(pairs) {
                        *value = Self::difference(of(base), of(unit), false);
                    }
                }
            }

            #[inline(always)]
            fn merge(head: &Head, classes: &mut [u8], values: &[Self], units: &mut [u8]) {
                let n = units.len() / size_of::<$type>();
                if head.classes.n == 1 {
                    classes.fill(0);
                    return Self::restore(head, classes, values, units);
                }
                Self::classes(head.classes, head.field, units, classes);
                let classes = &classes[..n];
                let mut at = Classes::starts(classes);
                let len = n / PARTS;
                // A few values at a time, so that the loops over units have no chain.
                for begin in (0..len).step_by(PIECE) {
                    let mut sorted = [[Self::default(); PIECE]; PARTS];
                    for i in 0..PIECE {
                        for part in 0..PARTS {
                            let class = classes[part * len + begin + i];
                            let at = &mut at[part][usize::from(class & 7)];
                            sorted[part][i] = values.get(*at).copied().unwrap_or_default();
                            *at += 1;
                        }
                    }
                    for (part, values) in sorted.iter().enumerate() {
                        let place = part * len + begin..part * len + begin + PIECE;
                        let width = size_of::<$type>();
                        let bytes = place.start * width..place.end * width;
                        Self::restore(head, &classes[place], values, &mut units[bytes]);
                    }
                }
            }

            #[inline(always)]
            fn restore(head: &Head, classes: &[u8], values: &[Self], units: &mut [u8]) {
                let units = units.as_chunks_mut().0.iter_mut().zip(values);
                let of = |unit: &[u8; _]| $type::from_le_bytes(*unit);
                if head.modes != 0 {
                    let is_float = head.field.is_float();
                    for ((unit, &value), &class) in units.zip(classes) {
                        let new = match head.is_turned(class) {
                            false => Self::add(of(unit), value, is_float),
                            true => Self::turned_back(of(unit), value, is_float),
                        };
                        *unit = new.to_le_bytes();
                    }
                } else if head.field.is_float() {
                    units.for_each(|(unit, &value)| {
                        *unit = Self::add(of(unit), value, true).to_le_bytes();
                    });
                } else {
                    units.for_each(|(unit, &value)| {
                        *unit = Self::add(of(unit), value, false).to_le_bytes();
                    });
                }
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
            fn steps(values: &[Self; GROUP], lo: Self, shift: u32, symbols: &mut [u8; GROUP]) {
                for (symbol, &value) in symbols.iter_mut().zip(values) {
                    let step = (value.wrapping_sub(lo) as $signed >> shift) as $type;
                    *symbol = step.min(255) as u8;
                }
            }

            #[inline(always)]
            fn symbols(
                values: &[Self; 32],
                lo: Self,
                shift: u32,
                (n_near, n_logs): (u32, u32),
                symbols: &mut [u8; 32],
            ) {
                // Nothing beyond has a logarithm of its own.
                const MOST: $type = if $type::BITS > 16 { (1u64 << 16) as $type } else { !0 };
                let (last, n) = (n_near + 2 * n_logs - 1, n_near as $type);
                for (symbol, &value) in symbols.iter_mut().zip(values) {
                    let y = value.wrapping_sub(lo) as $signed >> shift;
                    let (negative, y) = ((y >> (Self::BITS - 1)) as $type, y as $type);
                    let a = (y ^ negative).wrapping_sub(negative);
                    let a = a.wrapping_sub(!negative & (n - 1));
                    // A float has the logarithm as its exponent, in vectors as well.
                    let log = (a.min(MOST) as i32 as f32).to_bits() >> 23;
                    let log = log.wrapping_sub(127);
                    let of_log = n_near + (negative as u32 & n_logs) + log;
                    let far = if log < n_logs { of_log } else { last };
                    *symbol = if y < n { y as u8 } else { far as u8 };
                }
            }

            #[inline(always)]
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
    use super::{Classes, Field, GROUP, Head, PARTS, PIECE, Starts, Word};
    const TOP: u8 = 1 << 7;
    words! { u8 i8; }
}

mod of_u16 {
    use super::order::o16 as ordered;
    use super::{Classes, Field, GROUP, Head, PARTS, PIECE, Starts, Word};
    const TOP: u16 = 1 << 15;
    words! { u16 i16; }
}

mod of_u32 {
    use super::order::o32 as ordered;
    use super::{Classes, Field, GROUP, Head, PARTS, PIECE, Starts, Word};
    const TOP: u32 = 1 << 31;
    words! { u32 i32; }
}

mod of_u64 {
    use super::order::o64 as ordered;
    use super::{Classes, Field, GROUP, Head, PARTS, PIECE, Starts, Word};
    const TOP: u64 = 1 << 63;
    words! { u64 i64; }
}

/// The symbols of the values of whole groups, whether or not a table codes them, in steps of
/// `lo` and `shift`. `at_least` says which of 32 bytes are at least a power of two.
#[inline(always)]
pub(crate) fn symbols_of<W: Word>(
    values: &[W],
    (lo, shift): (W, u32),
    near_and_logs: (u32, u32),
    symbols: &mut [u8],
    at_least: &impl Fn(&[u8; 32], u32) -> u32,
) {
    let groups = values.as_chunks::<GROUP>().0.iter().zip(symbols.as_chunks_mut().0);
    for (values, symbols) in groups {
        W::steps(values, lo, shift, symbols);
        let rows = values.as_chunks().0.iter().zip(symbols.as_chunks_mut().0);
        for (values, symbols) in rows {
            if at_least(symbols, near_and_logs.0) != 0 {
                W::symbols(values, lo, shift, near_and_logs, symbols);
            }
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
