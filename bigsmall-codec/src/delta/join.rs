//! Values from the parts of a coded block, and units from values: the plain loops, which backends
//! compile for their instructions or replace.
#![warn(clippy::unwrap_used)]

use bigsmall_format::{Result, Rule};

use super::bits::Bits;
use super::classes::Classes;
use super::head::Head;
use super::split::Large;
use super::values::{Word, for_unit};
use crate::planes::{self, GROUP, packed_len};
use crate::units::low_len;

/// What values are merged with.
pub(crate) struct Merge<'a> {
    /// The base's units; none where they are in the place of the new ones.
    pub(crate) base: Option<&'a [u8]>,
    pub(crate) units: &'a mut [u8],
    /// Twice as many bytes as there are units.
    pub(crate) scratch: &'a mut [u8],
}

/// [`Word::merge`] for the units of `head`; `values` has room for 8 bytes each.
#[inline(always)]
pub(crate) fn merge(head: &Head, values: &[u64], place: Merge<'_>) {
    #[inline(always)]
    fn of<W: Word>(head: &Head, values: &[u64], units: &mut [u8], classes: &mut [u8]) {
        W::merge(head, classes, bytemuck::cast_slice(values), units);
    }
    let Merge { base, units, scratch } = place;
    if let Some(base) = base {
        units.copy_from_slice(base);
    }
    let classes = &mut scratch[..units.len() / head.unit_bytes];
    for_unit!(head.unit_bytes, of(head, values, units, classes));
}

/// What the values of a coded block are made of.
pub(crate) struct Parts<'a> {
    /// Whole groups.
    pub(crate) symbols: &'a [u8],
    /// The table of every group.
    pub(crate) group_tables: &'a [u8],
    pub(crate) lows: &'a [u8],
    /// The extra bits with the bytes that the end states carry.
    pub(crate) extra: &'a [u8],
}

/// Values from symbols, low planes and extra bits, group by group, as many as there are symbols.
/// `at_least` says which of 32 bytes are at least a power of two.
#[inline(always)]
pub(crate) fn join(
    head: &Head,
    parts: &Parts<'_>,
    values: &mut [u64],
    at_least: impl Fn(&[u8; 32], u32) -> u32,
) -> Result<()> {
    for_unit!(head.unit_bytes, join_units(head, parts, values, &at_least))
}

#[inline(always)]
fn join_units<W: Word>(
    head: &Head,
    parts: &Parts<'_>,
    values: &mut [u64],
    at_least: &impl Fn(&[u8; 32], u32) -> u32,
) -> Result<()> {
    let values: &mut [W] = bytemuck::cast_slice_mut(values);
    let mut lows = parts.lows;
    let mut bits = Bits::new(parts.extra);
    // Less the symbols themselves, which were taken for near values.
    let large: [Large; 64] = std::array::from_fn(|symbol| {
        let large = Large::of(head, symbol as u32);
        Large { first: large.first.wrapping_sub(symbol as u64), ..large }
    });
    let groups = parts.symbols.as_chunks::<GROUP>().0.iter().zip(values.as_chunks_mut::<GROUP>().0);
    for ((symbols, values), &id) in groups.zip(parts.group_tables) {
        let table = &head.tables[usize::from(id)];
        let (packed, rest) = lows.split_at(low_len(table.shift));
        lows = rest;
        let lo = W::from_u64(table.lo);
        W::near(symbols, table.shift, lo, values);
        if table.shift > 0 {
            add_lows(packed, table.shift, values);
        }
        for (symbols, values) in
            symbols.as_chunks::<64>().0.iter().zip(values.as_chunks_mut::<64>().0)
        {
            let mut which = 0;
            for (i, half) in (0..).zip(symbols.as_chunks::<32>().0) {
                which |= u64::from(at_least(half, head.n_near())) << (32 * i);
            }
            add_extra(&large, table.shift, (symbols, which), &mut bits, values);
        }
    }
    bits.finish(Rule::DeltaBlock)
}

/// Replaces the symbols that are no near values, those at the set bits of `which`: they were taken
/// for near values.
#[inline(always)]
fn add_extra<W: Word>(
    large: &[Large; 64],
    shift: u32,
    (symbols, mut which): (&[u8; 64], u64),
    bits: &mut Bits<'_>,
    values: &mut [W; 64],
) {
    while which != 0 {
        let i = which.trailing_zeros() as usize;
        which &= which - 1;
        // Without branches: which symbol comes next cannot be predicted.
        let Large { n, first, minus } = large[usize::from(symbols[i] & 63)];
        let extra = bits.pull_of::<W>(if n == u32::MAX { W::BITS - shift } else { n });
        let y = first.wrapping_add((extra ^ minus).wrapping_sub(minus));
        values[i] = values[i].plus_shifted(y, shift);
    }
}

/// Adds the low bits of one group.
#[inline(always)]
fn add_lows<W: Word>(packed: &[u8], shift: u32, values: &mut [W; GROUP]) {
    let (planes, rest) = packed.split_at((shift / 8) as usize * GROUP);
    for (byte, plane) in (0..).zip(planes.chunks_exact(GROUP)) {
        for (value, &b) in values.iter_mut().zip(plane) {
            *value = value.plus_shifted(u64::from(b), 8 * byte);
        }
    }
    let bits = shift % 8;
    if bits > 0 {
        let mut top = [0; GROUP];
        planes::unpack(&rest[..packed_len(bits)], bits, &mut top);
        for (value, &b) in values.iter_mut().zip(&top) {
            *value = value.plus_shifted(u64::from(planes::unspread(b, bits)), shift - bits);
        }
    }
}

/// [`Word::partition`] for the units of `head`; `classes` has room for as many. Returns where the
/// values of each class begin.
#[inline(always)]
pub(crate) fn partition(
    head: &Head,
    units: &[u8],
    base: &[u8],
    values: &mut [u8],
    classes: &mut [u8],
) -> [usize; 8] {
    #[inline(always)]
    fn of<W: Word>(
        head: &Head,
        units: &[u8],
        base: &[u8],
        values: &mut [u8],
        classes: &mut [u8],
    ) -> [usize; 8] {
        W::classes(head.classes, head.field, base, classes);
        let starts = Classes::starts(classes);
        let values = bytemuck::cast_slice_mut(values);
        W::partition(head, classes, &mut starts.clone(), units, base, values);
        starts[0]
    }
    for_unit!(head.unit_bytes, of(head, units, base, values, classes))
}
