//! Units come apart into symbols, residuals and low bits, and together again, group by group. Plain
//! loops that compilers turn into vectors; backends compile them once more for their instructions.

use bigsmall_format::Result;

use crate::head::{Head, MAX_TABLES};
use crate::layout::Layout;
use crate::planes::{self, COLUMNS, GROUP, packed_len};
use bigsmall_format::internal::{prefetch, reserve};

/// Stands for a field outside the window, where the window has fewer than 256 symbols.
pub(crate) const OUTSIDE: u8 = u8::MAX;

/// The greatest cost in a [`CostTable`]: it fits a byte, and 257 costs can be added in 16 bits.
const MAX_COST: u16 = u8::MAX as u16;

/// How many costs can be added in 16 bits.
const SUMMED: usize = (u16::MAX / MAX_COST) as usize;

/// How much more each symbol costs under each table than under the table where it costs least, in
/// 32nds of a bit, at most [`MAX_COST`]. One vector addition a unit finds the best table of a
/// segment. A table that does not code a symbol may cost more than that. Costs in 16ths of a bit
/// would count it in full, but they made files of real weights larger.
pub(crate) struct CostTable {
    of_symbols: Box<[[u16; MAX_TABLES]; 256]>,
    /// The same for each table, in bytes, as AVX-512 looks them up.
    #[cfg(target_arch = "x86_64")]
    of_tables: Box<[[u8; 256]; MAX_TABLES]>,
}

impl CostTable {
    pub(crate) fn new(head: &Head) -> CostTable {
        // Symbols outside the window cost the same under every table: nothing.
        let mut costs = Box::new([[0; MAX_TABLES]; 256]);
        for (t, table) in head.tables.iter().enumerate() {
            costs.iter_mut().zip(table.costs()).for_each(|(of_symbol, cost)| of_symbol[t] = cost);
        }
        for of_symbol in &mut costs[..1 << head.symbol_bits] {
            let of_symbol = &mut of_symbol[..head.tables.len()];
            let least = of_symbol.iter().copied().min().unwrap_or(0);
            of_symbol.iter_mut().for_each(|cost| *cost = ((*cost - least + 4) / 8).min(MAX_COST));
        }
        #[cfg(target_arch = "x86_64")]
        let mut of_tables = Box::new([[0; 256]; MAX_TABLES]);
        #[cfg(target_arch = "x86_64")]
        for (t, of_table) in of_tables.iter_mut().enumerate() {
            of_table
                .iter_mut()
                .zip(&*costs)
                .for_each(|(cost, of_symbol)| *cost = of_symbol[t] as u8);
        }
        CostTable {
            of_symbols: costs,
            #[cfg(target_arch = "x86_64")]
            of_tables,
        }
    }

    /// The costs of all symbols under each table.
    #[cfg(target_arch = "x86_64")] // for AVX-512
    pub(crate) fn of_tables(&self) -> &[[u8; 256]; MAX_TABLES] {
        &self.of_tables
    }

    /// The costs of one symbol.
    pub(crate) fn of(&self, symbol: u8) -> &[u16; MAX_TABLES] {
        &self.of_symbols[usize::from(symbol)]
    }

    /// The costs of at most [`SUMMED`] symbols. Inlined, the sums are not kept in one vector.
    #[inline(never)]
    fn sum(&self, symbols: &[u8]) -> [u16; MAX_TABLES] {
        let mut sums = [0; MAX_TABLES];
        for &s in symbols {
            let costs = self.of(s);
            for t in 0..MAX_TABLES {
                sums[t] += costs[t];
            }
        }
        sums
    }
}

/// The table with the least cost, the first among equals.
pub(crate) fn cheapest(sums: &[u32]) -> u8 {
    sums.iter().zip(0..).min().map_or(0, |(_, id)| id)
}

/// The table of each segment.
pub(crate) fn choose_tables(head: &Head, costs: &CostTable, symbols: &[u8], ids: &mut Vec<u8>) {
    let n = head.tables.len();
    ids.clear();
    for segment in symbols.chunks(head.segment) {
        let mut sums = [0u32; MAX_TABLES];
        if n > 1 {
            for piece in segment.chunks(SUMMED) {
                let of_piece = costs.sum(piece);
                sums.iter_mut().zip(of_piece).for_each(|(sum, piece)| *sum += u32::from(piece));
            }
        }
        ids.push(cheapest(&sums[..n]));
    }
}

/// For each table, what the encoder makes of a symbol: itself, or the most frequent one in its
/// place.
pub(crate) struct StandIns(Vec<StandIn>);

/// The symbols from `first` to `first + span`, which may go round, stay themselves; all others are
/// looked up in `map`.
struct StandIn {
    map: [u8; 256],
    first: u8,
    span: u8,
}

impl StandIns {
    pub(crate) fn new(head: &Head) -> StandIns {
        // With a window of 256 in a wider field, 255 stands for a field outside, too. So it is an
        // exception, whatever the table.
        let is_ambiguous = |s: usize| s == usize::from(OUTSIDE) && head.layout.field_bits > 8;
        let each = head.tables.iter().map(|table| {
            let freqs = table.freqs();
            let coded = |s: usize| freqs.get(s).is_some_and(|&f| f > 0) && !is_ambiguous(s);
            let common = table.most_frequent(coded);
            let map = std::array::from_fn(|s| if coded(s) { s as u8 } else { common });
            // Of bytes with a sign those below 0 are the last symbols, so neighbours go round.
            let near = |step: u8| {
                let each = (1..=u8::MAX).map(|i| common.wrapping_add(step.wrapping_mul(i)));
                each.take_while(|&s| coded(s.into())).count()
            };
            let (below, above) = (near(u8::MAX), near(1));
            let span = (below + above).min(u8::MAX.into());
            StandIn { map, first: common.wrapping_sub(below as u8), span: span as u8 }
        });
        StandIns(each.collect())
    }
}

impl StandIn {
    /// Which of `symbols` may be replaced; the others certainly stay themselves.
    #[inline(always)]
    fn doubtful(&self, symbols: &[u8; 64], at_least: &impl Fn(&[u8; 32], u32) -> u32) -> u64 {
        let far = symbols.map(|s| u8::from(s.wrapping_sub(self.first) > self.span));
        let halves = far.as_chunks().0.iter().map(|half| u64::from(at_least(half, 1)));
        halves.rev().fold(0, |all, half| all << 32 | half)
    }
}

/// Replaces symbols that the table of their segment does not code and lists them as exceptions,
/// position and field; false if these are more than a block can have. `at_least` says which of 32
/// bytes are at least a power of two.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // those of `Kernels::replace_exceptions`, and the comparison
pub(crate) fn replace_exceptions(
    head: &Head,
    stand_ins: &StandIns,
    table_ids: &[u8],
    units: &[u8],
    symbols: &mut [u8],
    exceptions: &mut Vec<(u32, u16)>,
    at_least: impl Fn(&[u8; 32], u32) -> u32,
) -> Result<bool> {
    const MAX_EXCEPTIONS: usize = u16::MAX as usize;
    exceptions.clear();
    for (segment, (symbols, &id)) in symbols.chunks_mut(head.segment).zip(table_ids).enumerate() {
        let table = &stand_ins.0[usize::from(id)];
        for (i, symbols) in symbols.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            let mut doubtful = table.doubtful(symbols, &at_least);
            if doubtful == 0 {
                continue;
            }
            reserve(exceptions, symbols.len())?;
            while doubtful != 0 {
                let place = doubtful.trailing_zeros() as usize;
                doubtful &= doubtful - 1;
                let symbol = &mut symbols[place];
                let coded = table.map[usize::from(*symbol)];
                if coded != *symbol {
                    let position = segment * head.segment + i * 64 + place;
                    let bytes = head.layout.unit_bytes;
                    let mut high = [0];
                    head.layout.split_highs(&units[position * bytes..][..bytes], &mut high);
                    exceptions.push((position as u32, head.layout.field(high[0])));
                    *symbol = coded;
                }
            }
            if exceptions.len() > MAX_EXCEPTIONS {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// How many bytes ahead units are prefetched as they are taken apart: the prefetcher of the
/// processor stops at the end of each page.
const AHEAD: usize = 2048;

/// The groups of `units`. Taking one prefetches as many bytes, [`AHEAD`] further on.
#[inline(always)]
pub(crate) fn groups_ahead(units: &[u8], unit_bytes: usize) -> impl Iterator<Item = &[u8]> {
    let len = GROUP * unit_bytes;
    units.chunks_exact(len).enumerate().map(move |(g, group)| {
        let soon = g * len + AHEAD;
        if let Some(soon) = units.get(soon..soon + len) {
            prefetch(soon);
        }
        group
    })
}

/// Takes whole groups of units apart: into symbols, or [`OUTSIDE`], and packed residuals, each of
/// exactly their length. `widths` has an entry for each group; if the dtype has low bits, it
/// becomes the number of those that the group needs.
#[inline(always)]
pub(crate) fn split_units(
    head: &Head,
    units: &[u8],
    symbols: &mut [u8],
    residual: &mut [u8],
    widths: &mut [u8],
) {
    let layout = &head.layout;
    let window = (head.base, head.first);
    let n_symbols = 1u16 << head.symbol_bits;
    let low_mask = ((1u16 << layout.field_shift()) - 1) as u8;
    let sign_shift = 8 * layout.high_bytes as u32 - 8;
    let each = packed_len(layout.residual_bits);
    debug_assert_eq!(units.len(), symbols.len() * layout.unit_bytes);
    debug_assert_eq!((symbols.len(), residual.len()), (widths.len() * GROUP, widths.len() * each));
    let groups = groups_ahead(units, layout.unit_bytes);
    let groups = groups.zip(symbols.as_chunks_mut::<GROUP>().0).zip(widths);
    for (g, ((units, symbols), width)) in groups.enumerate() {
        layout.map_highs(units, symbols, |h| symbol_of(layout.field(h), window, n_symbols));
        if layout.residual_bits > 0 {
            let mut values = [0u8; GROUP];
            let value = |h: u16| (h >> sign_shift) as u8 & 0x80 | h as u8 & low_mask;
            layout.map_highs(units, &mut values, value);
            planes::pack(&values, layout.residual_bits, &mut residual[g * each..][..each]);
        }
        if layout.low_bits() > 0 {
            *width = low_width(layout, units);
        }
    }
}

/// The symbol of a field, or [`OUTSIDE`].
#[inline(always)]
pub(crate) fn symbol_of(field: u16, (base, first): (u16, u16), n_symbols: u16) -> u8 {
    let s = field.wrapping_sub(base);
    // The field `base` lies outside if another one took its symbol. In 16 bits throughout: with
    // 32, vectors are narrowed three times.
    let s = if s.wrapping_sub(1) < n_symbols - 1 { s } else { u16::from(OUTSIDE) };
    (if field == first { 0 } else { s }) as u8
}

/// The other way: units from symbols, packed residuals and packed low bits of whole groups,
/// `widths` the low width of each. Returns how many bytes of `lows` were used.
#[inline(always)]
pub(crate) fn join(
    head: &Head,
    symbols: &[[u8; GROUP]],
    residual: &[u8],
    lows: &[u8],
    widths: &[u8],
    units: &mut [u8],
) -> usize {
    let layout = &head.layout;
    let mut used = 0;
    let unit_bytes = layout.unit_bytes;
    let groups = symbols.iter().zip(widths).zip(units.chunks_exact_mut(GROUP * unit_bytes));
    let each = packed_len(layout.residual_bits);
    for (g, ((symbols, &width), units)) in groups.enumerate() {
        let residual = &residual[g * each..][..each];
        let (width, low_bits) = (u32::from(width), layout.low_bits());
        let packed = &lows[used..][..low_len(width)];
        used += packed.len();
        // Only groups that need it pay for this memory.
        let mut room;
        let mut lows = packed;
        if width < low_bits {
            room = [0; MOST_LOWS];
            let planes = &mut room[..low_len(low_bits)];
            widen_lows(packed, width, planes);
            lows = planes;
        }
        match (unit_bytes, layout.high_bytes) {
            (1, _) => {
                let rows = units.as_chunks_mut::<COLUMNS>().0.iter_mut().zip(symbols.as_chunks().0);
                for (row, (units, symbols)) in rows.enumerate() {
                    *units = join_short_highs(head, symbols, residual, row);
                }
            }
            (2, 1) => {
                let rows = symbols.as_chunks().0.iter().zip(lows.as_chunks::<COLUMNS>().0);
                let units = units.as_chunks_mut::<2>().0.as_chunks_mut::<COLUMNS>().0;
                for (row, (units, (symbols, lows))) in units.iter_mut().zip(rows).enumerate() {
                    let highs = join_short_highs(head, symbols, residual, row);
                    for ((unit, &low), high) in units.iter_mut().zip(lows).zip(highs) {
                        *unit = [low, high];
                    }
                }
            }
            (2, 2) => {
                let units = units.as_chunks_mut::<2>().0;
                let highs = join_highs(head, symbols, residual);
                units.iter_mut().zip(&highs).for_each(|(unit, &h)| *unit = h.to_le_bytes());
            }
            (4, _) => {
                let highs = join_highs(head, symbols, residual);
                let units = units.as_chunks_mut::<4>().0;
                let (low, high) = lows.split_at(GROUP);
                for (((unit, &h), &low), &high) in units.iter_mut().zip(&highs).zip(low).zip(high) {
                    let value = u32::from(low) | u32::from(high) << 8 | u32::from(h) << 16;
                    *unit = value.to_le_bytes();
                }
            }
            _ => {
                let highs = join_highs(head, symbols, residual);
                let mut values = highs.map(|h| u64::from(h) << low_bits);
                for (byte, plane) in (0..).zip(lows.as_chunks::<GROUP>().0) {
                    for (value, &b) in values.iter_mut().zip(plane) {
                        *value |= u64::from(b) << (8 * byte);
                    }
                }
                for (unit, value) in units.as_chunks_mut::<8>().0.iter_mut().zip(values) {
                    *unit = value.to_le_bytes();
                }
            }
        }
    }
    used
}

/// The high bits of a row, one byte each.
#[inline(always)]
fn join_short_highs(
    head: &Head,
    symbols: &[u8; COLUMNS],
    residual: &[u8],
    row: usize,
) -> [u8; COLUMNS] {
    let layout = &head.layout;
    let shift = layout.field_shift();
    let (base, first) = ((head.base << shift) as u8, (head.first << shift) as u8);
    let mut highs = unpack_row(layout, residual, row);
    for (h, &symbol) in highs.iter_mut().zip(symbols) {
        *h |= if symbol == 0 { first } else { base.wrapping_add(symbol << shift) };
    }
    highs
}

/// The high bits of a group.
#[inline(always)]
fn join_highs(head: &Head, symbols: &[u8; GROUP], residual: &[u8]) -> [u16; GROUP] {
    let layout = &head.layout;
    let shift = layout.field_shift();
    let (base, first) = (head.base, head.first);
    // Sign extension copies bit 7 to bit 15, for high bits of two bytes.
    let keep = if layout.high_bytes == 1 { 0xff } else { 0x807f };
    let mut highs = [0u16; GROUP];
    let rows = highs.as_chunks_mut::<COLUMNS>().0.iter_mut().zip(symbols.as_chunks::<COLUMNS>().0);
    for (row, (highs, symbols)) in rows.enumerate() {
        let residual = unpack_row(layout, residual, row);
        for ((h, &symbol), value) in highs.iter_mut().zip(symbols).zip(residual) {
            let field = if symbol == 0 { first } else { base + u16::from(symbol) };
            *h = field << shift | i16::from(value as i8) as u16 & keep;
        }
    }
    highs
}

/// One row of a group's residuals.
#[inline(always)]
fn unpack_row(layout: &Layout, residual: &[u8], row: usize) -> [u8; COLUMNS] {
    match layout.residual_bits {
        0 => [0; COLUMNS],
        bits => planes::unpack_row(residual, bits, row),
    }
}

/// Bytes of a group whose low bits are `width` wide.
pub(crate) fn low_len(width: u32) -> usize {
    width as usize * GROUP / 8
}

/// How many of the low bits a segment needs: those above the zeros that all its units end in.
#[inline(always)]
pub(crate) fn low_width(layout: &Layout, units: &[u8]) -> u8 {
    let all = match layout.unit_bytes {
        2 => {
            let all =
                units.as_chunks::<2>().0.iter().fold(0, |all, u| all | u16::from_le_bytes(*u));
            u64::from(all & 0xff)
        }
        4 => {
            let all =
                units.as_chunks::<4>().0.iter().fold(0, |all, u| all | u32::from_le_bytes(*u));
            u64::from(all & 0xffff)
        }
        _ => {
            let all =
                units.as_chunks::<8>().0.iter().fold(0, |all, u| all | u64::from_le_bytes(*u));
            all & 0xffff_ffff_ffff
        }
    };
    layout.low_bits().saturating_sub(all.trailing_zeros()) as u8
}

/// Appends the upper `width` of the low bits of each group of `units`: whole bytes as planes, then
/// the bits above them packed.
pub(crate) fn pack_lows(layout: &Layout, units: &[u8], width: u32, out: &mut Vec<u8>) {
    let low_bits = layout.low_bits();
    for group in units.chunks_exact(GROUP * layout.unit_bytes) {
        match layout.unit_bytes {
            2 if width == 8 => {
                out.extend(plane(group, |u| u16::from_le_bytes(u) as u8));
            }
            4 if width == 16 => {
                out.extend(plane(group, |u| u32::from_le_bytes(u) as u8));
                out.extend(plane(group, |u| (u32::from_le_bytes(u) >> 8) as u8));
            }
            _ => {
                let mut lows = [0u64; GROUP];
                layout.split_lows(group, &mut lows);
                // A shift by 64 cannot happen: there are at most 48 low bits.
                planes::pack_lows(|i| lows[i] >> (low_bits - width), width, out);
            }
        }
    }
}

/// Bytes of the low planes of a group, at most: those of f64.
const MOST_LOWS: usize = 6 * GROUP;

/// One byte of each unit of a group. `byte` takes it from the whole unit: of single bytes that are
/// apart, compilers make no vectors.
fn plane<const UNIT: usize>(
    group: &[u8],
    byte: impl Fn([u8; UNIT]) -> u8,
) -> impl ExactSizeIterator<Item = u8> {
    group.as_chunks().0.iter().map(move |unit| byte(*unit))
}

/// Makes the planes of all low bits of a group from `packed`, the upper `width` of them, which the
/// group keeps; the bits below are zeros. Not inlined: one copy serves all backends.
#[inline(never)]
pub(crate) fn widen_lows(packed: &[u8], width: u32, planes: &mut [u8]) {
    let (whole, rest) = packed.as_chunks::<GROUP>();
    let bits = width % 8;
    // The bits above the whole bytes, at the bottom of one byte more.
    let mut above = [0; GROUP];
    if bits > 0 {
        planes::unpack(rest, bits, &mut above);
        above.iter_mut().for_each(|v| *v = planes::unspread(*v, bits));
    }
    let up = (8 - bits) % 8;
    let planes = planes.as_chunks_mut::<GROUP>().0;
    let (zeros, kept) = planes.split_at_mut(planes.len() - width.div_ceil(8) as usize);
    zeros.as_flattened_mut().fill(0);
    let mut below = &[0; GROUP];
    for (plane, from) in kept.iter_mut().zip(whole.iter().chain([&above])) {
        for (byte, (&this, &below)) in plane.iter_mut().zip(from.iter().zip(below)) {
            *byte = (u16::from_le_bytes([below, this]) << up >> 8) as u8;
        }
        below = from;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bigsmall_format::Dtype;

    use super::*;
    use crate::bits::at_least;
    use crate::table::FrequencyTable;

    #[test]
    fn what_is_not_doubtful_is_coded() {
        // How many symbols there are, and which of them a table does not code.
        let tables = [
            (256u32, 0..0),
            (256, 100..101),
            (256, 255..256),
            (256, 0..1),
            (256, 30..231),
            (64, 5..64),
            (32, 0..0),
        ];
        for dtype in [Dtype::I8, Dtype::BF16] {
            let layout = Layout::new(dtype, u32::from(dtype == Dtype::BF16)).unwrap();
            for (n_symbols, others) in tables.clone() {
                let count = |s| if others.contains(&s) { 0 } else { 1000 };
                let counts: Vec<u32> = (0..n_symbols).map(count).collect();
                let tables = vec![FrequencyTable::from_counts(&counts)];
                let bits = n_symbols.ilog2();
                let head = Head::new(1, layout, bits, (0, 0), GROUP, vec![], tables);
                let table = &StandIns::new(&head).0[0];
                for s in 0..=u8::MAX {
                    // In a wider field, 255 may stand for a field outside of the window.
                    let is_field = s != OUTSIDE || dtype == Dtype::I8;
                    let coded = u32::from(s) < n_symbols && !others.contains(&s.into());
                    let stays = coded && is_field;
                    assert_eq!(table.map[usize::from(s)] == s, stays, "{n_symbols} {s}");
                    let doubtful = table.doubtful(&[s; 64], &at_least);
                    assert!(stays || doubtful == u64::MAX, "{n_symbols} {s}");
                }
            }
        }
    }
}
