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

/// [`Word::merge`] for the units of `head`; `values` holds one for each unit, and
/// [`MERGE_ROOM`](crate::kernels::MERGE_ROOM) more.
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
    /// The extra bits with the bytes that the end states carry, and [`EXTRA_ROOM`] zeros.
    pub(crate) extra: &'a [u8],
}

/// How many bytes a backend may read behind extra bits.
pub(crate) const EXTRA_ROOM: usize = 64;

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
    let mut bits = Bits::new(&parts.extra[..parts.extra.len() - EXTRA_ROOM]);
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
pub(crate) fn add_lows<W: Word>(packed: &[u8], shift: u32, values: &mut [W; GROUP]) {
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

#[cfg(test)]
mod tests {
    use bigsmall_format::Dtype;

    use super::*;
    use crate::backend::{backends, kernels};
    use crate::delta::head::Table;
    use crate::kernels::MERGE_ROOM;
    use crate::table::FrequencyTable;

    /// What FORMAT.md says, symbol by symbol: whether the extra bits are as many as are needed.
    fn join_one_by_one<W: Word>(head: &Head, parts: &Parts<'_>, values: &mut [u64]) -> bool {
        let values: &mut [W] = bytemuck::cast_slice_mut(values);
        let extra = &parts.extra[..parts.extra.len() - EXTRA_ROOM];
        let bit = |at: usize| u64::from(extra.get(at / 8).map_or(0, |byte| byte >> (at % 8) & 1));
        let (near, logs) = (u64::from(head.n_near()), u64::from(head.n_logs()));
        let (mut lows, mut at) = (parts.lows, 0);
        for (group, &id) in parts.group_tables.iter().enumerate() {
            let Table { shift, lo, .. } = head.tables[usize::from(id)];
            let values = values[group * GROUP..].first_chunk_mut().expect("a group");
            for (value, &a) in values.iter_mut().zip(&parts.symbols[group * GROUP..]) {
                let mut take = |n: u32| {
                    at += n as usize;
                    (0..n as usize).map(|i| bit(at - n as usize + i) << i).sum::<u64>()
                };
                let y = match u64::from(a) {
                    a if a < near => a,
                    a if a < near + logs => near - 1 + (1 << (a - near)) + take((a - near) as u32),
                    a if a < 2 * near - 1 => {
                        let j = a - near - logs;
                        ((1u64 << j) + take(j as u32)).wrapping_neg()
                    }
                    _ => take(W::BITS - shift),
                };
                *value = W::from_u64(lo).plus_shifted(y, shift);
            }
            let (packed, rest) = lows.split_at(low_len(shift));
            lows = rest;
            if shift > 0 {
                add_lows(packed, shift, values);
            }
        }
        at.div_ceil(8) == extra.len() && (at..8 * extra.len()).all(|at| bit(at) == 0)
    }

    #[test]
    fn backends_join_alike() {
        let mut state = 5u64;
        let mut random = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            state ^ state >> 29
        };
        let all = [Dtype::I8, Dtype::BF16, Dtype::F32, Dtype::F64];
        for (dtype, symbol_bits) in all.into_iter().flat_map(|dtype| [(dtype, 5), (dtype, 6)]) {
            let unit_bits = 8 * dtype.unit_bytes() as u32;
            for round in 0..12 {
                let table = |shift| Table {
                    shift,
                    lo: random() >> (64 - unit_bits),
                    frequencies: FrequencyTable::from_counts(&vec![1; 1 << symbol_bits]),
                };
                let tables = [0, 3, unit_bits - 1].map(table).into();
                let one = Classes { n: 1, top: 0 };
                let head = Head::new(dtype, symbol_bits, GROUP, (one, 0), one, tables);
                // More groups than a kernel takes at a time.
                let group_tables: Vec<u8> = (0..19).map(|i| (i + round) % 3).collect();
                let n = group_tables.len() * GROUP;
                // In the first groups hardly any far values, in the last ones half.
                let symbols: Vec<u8> = (0..n)
                    .map(|i| {
                        let symbol = random() as u8 & ((1 << symbol_bits) - 1);
                        match (random() as usize % n, round) {
                            (_, 11) => (1 << symbol_bits) - 1,
                            (far, _) if far < i => symbol,
                            _ => symbol >> 1,
                        }
                    })
                    .collect();
                let shift = |i: usize| head.tables[usize::from(group_tables[i / GROUP])].shift;
                let n_bits = |(i, &symbol): (usize, &u8)| {
                    let n = Large::of(&head, symbol.into()).n;
                    (if n == u32::MAX { unit_bits - shift(i) } else { n }) as usize
                };
                let n_bits: usize = symbols.iter().enumerate().map(n_bits).sum();
                let n_lows = (0..n).step_by(GROUP).map(|i| low_len(shift(i))).sum();
                let lows: Vec<u8> = (0..n_lows).map(|_| random() as u8).collect();
                let exact = n_bits.div_ceil(8);
                for n_extra in [exact, exact - exact / 3, exact + 1] {
                    let mut extra: Vec<u8> = (0..n_extra).map(|_| random() as u8 | 1).collect();
                    if let Some(last) =
                        extra.get_mut(exact - 1).filter(|_| !n_bits.is_multiple_of(8))
                    {
                        *last &= (1 << (n_bits % 8)) - 1;
                    }
                    extra.extend_from_slice(&[0; EXTRA_ROOM]);
                    let parts = Parts {
                        symbols: &symbols,
                        group_tables: &group_tables,
                        lows: &lows,
                        extra: &extra,
                    };
                    let room = (n + MERGE_ROOM) * dtype.unit_bytes() / 8;
                    let mut expected = vec![0; room];
                    let whole =
                        for_unit!(head.unit_bytes, join_one_by_one(&head, &parts, &mut expected));
                    assert_eq!(whole, n_extra == exact);
                    for backend in backends() {
                        let kernels = kernels(backend).expect("one of this machine");
                        let mut values = vec![0; room];
                        let done = kernels.values(&head, &parts, &mut values);
                        assert_eq!(done.is_ok(), whole, "{dtype} {symbol_bits} {backend}");
                        assert!(values == expected, "{dtype} {symbol_bits} {backend}");
                    }
                }
            }
        }
    }
}
