//! Chooses the kernels.

use bigsmall_format::{Backend, Result};

#[cfg(target_arch = "aarch64")]
use crate::arch::aarch64::neon::Neon;
use crate::arch::portable::Portable;
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{avx2::Avx2, avx512::Avx512};
use crate::kernels::Kernels;
#[cfg(feature = "reference")]
use crate::reference::Reference;

/// The backends that this build has and this machine can run, the fastest first.
///
/// ```
/// use bigsmall_codec::{Backend, backends};
/// assert!(backends().any(|b| b == Backend::Portable));
/// ```
pub fn backends() -> impl Iterator<Item = Backend> {
    Backend::ALL.iter().copied().filter(|b| find(*b).is_some())
}

/// The fastest of [`backends`], but for the reference.
pub(crate) fn best() -> Backend {
    backends().find(|b| *b != Backend::Reference).unwrap_or(Backend::Portable)
}

/// The kernels of `backend`, or the error that says they are missing.
pub(crate) fn kernels(backend: Backend) -> Result<&'static dyn Kernels> {
    find(backend).ok_or_else(|| backend.missing(backends()))
}

fn find(backend: Backend) -> Option<&'static dyn Kernels> {
    match backend {
        #[cfg(target_arch = "x86_64")]
        Backend::Avx512 => Avx512::new().map(|b| b as _),
        #[cfg(target_arch = "x86_64")]
        Backend::Avx2 => Avx2::new().map(|b| b as _),
        #[cfg(target_arch = "aarch64")]
        Backend::Neon => backend.is_available().then_some(&Neon as _),
        Backend::Portable => Some(&Portable),
        #[cfg(feature = "reference")]
        Backend::Reference => Some(&Reference),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bigsmall_format::Dtype;

    use super::*;
    use crate::head::Head;
    use crate::kernels::{EncodeJob, LANES, ROOM};
    use crate::layout::Layout;
    use crate::planes::{self, GROUP, packed_len};
    use crate::table::FrequencyTable;
    use crate::units::{CostTable, OUTSIDE, StandIns};

    #[test]
    fn every_backend_of_this_machine_has_kernels() {
        for backend in Backend::ALL.iter().copied().filter(|b| b.is_available()) {
            let built_in = backend != Backend::Reference || cfg!(feature = "reference");
            assert_eq!(find(backend).is_some(), built_in, "{backend}");
        }
    }

    /// The symbols that a table codes.
    fn symbols_of(table: &FrequencyTable) -> Vec<u8> {
        let freqs = table.freqs().iter().zip(0..=u8::MAX);
        freqs.filter_map(|(&f, s)| (f > 0).then_some(s)).collect()
    }

    /// Encodes several blocks; returns states and words of each.
    fn encode(
        kernels: &dyn Kernels,
        head: &Head,
        group_tables: &[u8],
        symbols: &[Vec<u8>],
    ) -> Vec<([u32; LANES], Vec<u16>)> {
        let first = [0x1_0000, 0xffff_ffff, 0x1234_5678];
        let mut states: Vec<_> = (0..symbols.len()).map(|i| [first[i % 3]; LANES]).collect();
        let mut words: Vec<_> = symbols.iter().map(|s| vec![0; s.len() + ROOM]).collect();
        let mut begins = vec![0; symbols.len()];
        let blocks = symbols.iter().zip(&mut states).zip(&mut words).zip(&mut begins);
        let jobs = blocks.map(|(((symbols, states), words), begin)| {
            let group_tables = &group_tables[..symbols.len() / GROUP];
            EncodeJob { symbols, group_tables, states, words, begin }
        });
        kernels.encode(head, &mut jobs.collect::<Vec<_>>());
        let words = words.iter().zip(begins).map(|(words, begin)| words[begin..].to_vec());
        states.into_iter().zip(words).collect()
    }

    /// However many blocks a backend takes at once, and however it looks up as many symbols.
    #[test]
    fn every_backend_encodes_as_the_portable_one() {
        for bits in [5, 6, 7, 8] {
            let shapes: [fn(u32) -> u32; 4] = [
                |s| (s * 7 % 61).pow(3),
                |s| (s * 11 % 61).pow(3),
                |s| 1 << (s % 24),
                |s| if s < 4 { 1 << (20 - s) } else { s % 3 },
            ];
            let mut tables = shapes
                .map(|shape| {
                    FrequencyTable::from_counts(&(0..1 << bits).map(shape).collect::<Vec<_>>())
                })
                .to_vec();
            tables.push(FrequencyTable::of_short_runs(1 << bits));
            let coded: Vec<_> = tables.iter().map(symbols_of).collect();
            let layout = Layout::new(Dtype::BF16, 1).unwrap();
            let head = Head::new(1, layout, bits, (0, 0), GROUP, vec![], tables);
            let group_tables = [0, 1, 3, 2, 4, 1];
            // Longer and shorter ones, that go together and that do not.
            let symbols: Vec<Vec<u8>> = [1, 6, 6, 5, 3, 6, 6, 5]
                .into_iter()
                .zip(0..)
                .map(|(n_groups, block)| {
                    let n = n_groups * GROUP;
                    let symbol = |i: usize| {
                        let of = &coded[usize::from(group_tables[i / GROUP])];
                        of[(i + 1).wrapping_mul(2_654_435_761 + block) / 1024 % of.len()]
                    };
                    (0..n).map(symbol).collect()
                })
                .collect();
            for n in 1..=symbols.len() {
                let symbols = &symbols[symbols.len() - n..];
                let expected = encode(&Portable, &head, &group_tables, symbols);
                assert!(expected.iter().all(|(_, words)| words.len() > GROUP / 4));
                for backend in backends() {
                    let kernels = kernels(backend).unwrap();
                    let found = encode(kernels, &head, &group_tables, symbols);
                    assert!(found == expected, "{backend:?}, {n} blocks, {bits} bits");
                }
            }
        }
    }

    #[test]
    fn every_backend_takes_all_units_apart() {
        for (&dtype, m) in Dtype::ALL.iter().flat_map(|dtype| (0..4).map(move |m| (dtype, m))) {
            let Some(layout) = Layout::new(dtype, m) else { continue };
            // All high bits, each with low bits of its own that end in some zeros.
            let n = 1usize << (8 * layout.high_bytes);
            let low = |high: usize| {
                let low = (high as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) << (high / GROUP % 7);
                low & ((1 << layout.low_bits()) - 1)
            };
            let units: Vec<u8> = (0..n)
                .flat_map(|high| {
                    let unit = (high as u64) << layout.low_bits() | low(high);
                    unit.to_le_bytes().into_iter().take(layout.unit_bytes)
                })
                .collect();
            for symbol_bits in 5..=layout.field_bits.min(8) {
                let last = (1 << layout.field_bits) - (1 << symbol_bits);
                for (base, first) in [(0, 0), (last / 2, last / 2), (last, last), (last, 0)] {
                    let tables = vec![FrequencyTable::from_counts(&vec![1; 1 << symbol_bits])];
                    let window = (base, first);
                    let head = Head::new(m, layout, symbol_bits, window, GROUP, vec![], tables);
                    let symbol = |high: usize| {
                        let symbol = head.symbol(layout.field(high as u16));
                        if symbol < 1 << symbol_bits { symbol as u8 } else { OUTSIDE }
                    };
                    let symbols: Vec<u8> = (0..n).map(symbol).collect();
                    let split = |kernels: &dyn Kernels| {
                        let mut symbols = vec![0; n];
                        let mut residual = vec![0; n / GROUP * packed_len(layout.residual_bits)];
                        let mut widths = vec![0; n / GROUP];
                        kernels.split_units(
                            &head,
                            &units,
                            &mut symbols,
                            &mut residual,
                            &mut widths,
                        );
                        (symbols, residual, widths)
                    };
                    let expected = split(&Portable);
                    let (found, residual, widths) = &expected;
                    assert!(*found == symbols, "{dtype} {m} {window:?}");
                    let groups = packed_len(layout.residual_bits);
                    for g in (0..n / GROUP).filter(|_| groups > 0) {
                        let mut values = [0; GROUP];
                        let packed = &residual[g * groups..][..groups];
                        planes::unpack(packed, layout.residual_bits, &mut values);
                        let of = |i: usize| layout.residual((g * GROUP + i) as u16);
                        assert!(values == std::array::from_fn(of), "{dtype} {m}");
                    }
                    for (g, &width) in widths.iter().enumerate().filter(|_| layout.low_bits() > 0) {
                        let all = (0..GROUP).fold(0, |all, i| all | low(g * GROUP + i));
                        let zeros = all.trailing_zeros().min(layout.low_bits());
                        assert_eq!(u32::from(width), layout.low_bits() - zeros);
                    }
                    for backend in backends() {
                        let found = split(kernels(backend).unwrap());
                        assert!(found == expected, "{backend:?} {dtype} {m} {window:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_backend_chooses_the_cheapest_tables() {
        let layout = Layout::new(Dtype::U8, 0).unwrap();
        for (bits, n_tables, segment) in
            [(5, 8, 1), (6, 8, 1), (6, 2, 4), (7, 8, 2), (8, 8, 4), (8, 3, 1)]
        {
            let tables = (0..n_tables).map(|t| {
                // Each prefers symbols of its own.
                let count = |s: u32| match (s % n_tables == t, s % 13) {
                    (true, _) => 50 + s,
                    (false, 0) => 0,
                    _ => 20,
                };
                FrequencyTable::from_counts(&(0..1 << bits).map(count).collect::<Vec<_>>())
            });
            let segment = segment * GROUP;
            let head = Head::new(0, layout, bits, (0, 0), segment, vec![], tables.collect());
            let costs = CostTable::new(&head);
            let symbols: Vec<u8> = (0..53 * GROUP)
                .map(|i| {
                    let random = (i as u32).wrapping_mul(2_654_435_761) >> 16;
                    let t = (i / segment) as u32 % n_tables;
                    let own = random % ((1 << bits) / n_tables) * n_tables + t;
                    match i % 8 {
                        0..5 if bits < 8 => OUTSIDE,
                        5 => (random % (1 << bits)) as u8,
                        _ => own as u8,
                    }
                })
                .collect();
            assert!((0..=255).any(|s| costs.of(s).contains(&255)), "the greatest cost");
            let expected: Vec<u8> = symbols
                .chunks(segment)
                .map(|symbols| {
                    let cost = |t: usize| -> u32 {
                        symbols.iter().map(|&s| u32::from(costs.of(s)[t])).sum()
                    };
                    (0..head.tables.len()).min_by_key(|&t| cost(t)).unwrap() as u8
                })
                .collect();
            assert!((0..n_tables as u8).all(|t| expected.contains(&t)), "{bits}: {expected:?}");
            for backend in backends() {
                let mut ids = vec![7];
                kernels(backend).unwrap().choose_tables(&head, &costs, &symbols, &mut ids);
                assert_eq!(ids, expected, "{backend:?}, {bits} bits");
            }
        }
    }

    #[test]
    fn every_backend_finds_all_exceptions() {
        finds_all_exceptions(
            Layout::new(Dtype::F8_E4M3, 2).unwrap(),
            [|s| s > 20 && s < 50 && s != 30, |s| s % 2 == 0],
        );
        // Bytes with a sign: the common ones go round.
        finds_all_exceptions(
            Layout::new(Dtype::I8, 0).unwrap(),
            [|s| !(30..=230).contains(&s), |s| s != 255 && s != 2],
        );
    }

    /// In units whose symbols are coded by two tables that leave out others than these.
    fn finds_all_exceptions(layout: Layout, coded: [fn(u32) -> bool; 2]) {
        let n_symbols = 1 << layout.field_bits;
        let tables = coded.map(|coded| {
            let count = |s| if coded(s) { 1000 + u32::from(s == 21 || s == 8) } else { 0 };
            FrequencyTable::from_counts(&(0..n_symbols).map(count).collect::<Vec<_>>())
        });
        let tables = tables.to_vec();
        let coded: Vec<_> = tables.iter().map(symbols_of).collect();
        let common: Vec<_> = tables.iter().map(|table| table.most_frequent(|_| true)).collect();
        let head = Head::new(2, layout, layout.field_bits, (0, 0), GROUP, vec![], tables);
        let stand_ins = StandIns::new(&head);
        let ids = [0, 1, 0];
        for rare in 0..64 {
            // Units of which only those at some places are exceptions, another one in each round.
            let units: Vec<u8> = (0..ids.len() * GROUP)
                .map(|i| match i % 97 == rare || i % 64 == rare {
                    true => (i * 7 % 256) as u8,
                    false => {
                        let field = common[usize::from(ids[i / GROUP])];
                        layout.high(field.into(), layout.residual(0x80)) as u8
                    }
                })
                .collect();
            let field = |unit: u8| layout.field(unit.into());
            let (mut replaced, mut expected) = (Vec::new(), Vec::new());
            for (i, &unit) in units.iter().enumerate() {
                let table = usize::from(ids[i / GROUP]);
                let symbol = field(unit) as u8;
                let is_coded = coded[table].contains(&symbol);
                replaced.push(if is_coded { symbol } else { common[table] });
                if !is_coded {
                    expected.push((i as u32, field(unit)));
                }
            }
            assert!(!expected.is_empty());
            for backend in backends() {
                let kernels = kernels(backend).unwrap();
                let (mut symbols, mut found) = (vec![0; units.len()], vec![(7, 7)]);
                let mut residual = vec![0; ids.len() * packed_len(layout.residual_bits)];
                kernels.split_units(&head, &units, &mut symbols, &mut residual, &mut [0; 3]);
                let done = kernels.replace_exceptions(
                    &head,
                    &stand_ins,
                    &ids,
                    &units,
                    &mut symbols,
                    &mut found,
                );
                assert!(done.unwrap(), "few enough");
                assert!((&symbols, &found) == (&replaced, &expected), "{backend:?}, place {rare}");
            }
        }
    }
}
