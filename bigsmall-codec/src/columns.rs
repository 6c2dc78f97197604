//! Units in the order of the classes of their columns, and back (FORMAT.md section 7.5, kind 5).

use bigsmall_format::Result;
use bigsmall_format::internal::reserve;

use crate::zeros::for_unit_bytes;

/// Classes of columns.
pub(crate) const CLASSES: usize = 8;
/// Bits of a class.
pub(crate) const CLASS_BITS: u32 = 3;
/// Columns of a tensor, at most.
pub(crate) const MAX_COLUMNS: usize = 1 << 16;
/// Short rows are handled several at once: at least so many units, so that each class has several.
const LEAST_ROW: usize = 512;

/// The classes of the columns of a tensor.
pub(crate) struct Columns {
    classes: Vec<u8>,
    /// The places of the units of a row, or of several short ones, in the order of classes.
    order: Vec<u16>,
    /// Where each class begins in `order`, and its end.
    begins: [usize; CLASSES + 1],
}

impl Columns {
    /// `classes` has a class for each column, at most [`MAX_COLUMNS`], at least one.
    pub(crate) fn new(classes: Vec<u8>) -> Result<Columns> {
        let n = classes.len();
        let row = n * LEAST_ROW.div_ceil(n.max(1));
        let mut order = Vec::new();
        reserve(&mut order, row)?;
        let mut begins = [0; CLASSES + 1];
        for class in 0..CLASSES {
            let of_row = classes.iter().cycle().take(row);
            // A row has at most 2^16 units.
            let places = (0..).zip(of_row).filter(|&(_, &of)| usize::from(of) == class);
            order.extend(places.map(|(place, _): (usize, _)| place as u16));
            begins[class + 1] = order.len();
        }
        Ok(Columns { classes, order, begins })
    }

    /// The class of each column.
    pub(crate) fn classes(&self) -> &[u8] {
        &self.classes
    }

    /// The column of the first unit of the tensor's block of that number, where blocks have
    /// `block_units`.
    pub(crate) fn of_block(&self, block: u64, block_units: usize) -> usize {
        let n = self.classes.len() as u64;
        // Remainders first: no number is too large.
        (block % n * (block_units as u64 % n) % n) as usize
    }

    /// Writes `units`, the first of them in the column `first`, to `ordered`.
    pub(crate) fn put_in_order(
        &self,
        unit_bytes: usize,
        first: usize,
        units: &[u8],
        ordered: &mut [u8],
    ) {
        for_unit_bytes!(unit_bytes, put_in_order, self, first, units, ordered);
    }

    /// Writes to `units` what [`put_in_order`](Self::put_in_order) made `ordered` of.
    pub(crate) fn put_back(
        &self,
        unit_bytes: usize,
        first: usize,
        ordered: &[u8],
        units: &mut [u8],
    ) {
        for_unit_bytes!(unit_bytes, put_back, self, first, ordered, units);
    }

    /// Calls `see` for each row of `n` units of which the first is in column `first`, and each
    /// class: with the class, the number of the unit at place 0 of the row plus `first` (so that it
    /// is not below zero), and the places of the units that are there.
    fn each(&self, n: usize, first: usize, mut see: impl FnMut(usize, usize, &[u16])) {
        let row = self.order.len();
        let end = first + n;
        for begin in (0..end).step_by(row) {
            for (class, range) in self.begins.windows(2).enumerate() {
                let mut places = &self.order[range[0]..range[1]];
                if begin + row > end {
                    let here = |&place: &u16| begin + usize::from(place) < end;
                    places = &places[..places.partition_point(here)];
                }
                if begin < first {
                    let before = |&place: &u16| begin + usize::from(place) < first;
                    places = &places[places.partition_point(before)..];
                }
                see(class, begin, places);
            }
        }
    }

    /// Where each class begins among `n` units in the order of classes.
    fn begins(&self, n: usize, first: usize) -> [usize; CLASSES] {
        let mut counts = [0; CLASSES];
        self.each(n, first, |class, _, places| counts[class] += places.len());
        let mut next = 0;
        counts.map(|count| {
            next += count;
            next - count
        })
    }
}

fn put_in_order<const N: usize>(columns: &Columns, first: usize, units: &[u8], ordered: &mut [u8]) {
    let (units, ordered) = (units.as_chunks::<N>().0, ordered.as_chunks_mut::<N>().0);
    let mut next = columns.begins(units.len(), first);
    columns.each(units.len(), first, |class, row, places| {
        let to = &mut ordered[next[class]..][..places.len()];
        next[class] += places.len();
        for (to, &place) in to.iter_mut().zip(places) {
            *to = units[row + usize::from(place) - first];
        }
    });
}

fn put_back<const N: usize>(columns: &Columns, first: usize, ordered: &[u8], units: &mut [u8]) {
    let (ordered, units) = (ordered.as_chunks::<N>().0, units.as_chunks_mut::<N>().0);
    let mut next = columns.begins(units.len(), first);
    columns.each(units.len(), first, |class, row, places| {
        let from = &ordered[next[class]..][..places.len()];
        next[class] += places.len();
        for (&unit, &place) in from.iter().zip(places) {
            units[row + usize::from(place) - first] = unit;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any number of columns, any first one, blocks shorter and longer than a row.
    #[test]
    fn the_order_is_stable_and_comes_back() {
        for n_columns in [2, 3, 7, 64, 511, 512, 513, 1536, 4096, MAX_COLUMNS] {
            let classes: Vec<u8> =
                (0..n_columns).map(|i| (i * i / 3 % 11 % 8) as u8 & !(n_columns as u8)).collect();
            let columns = Columns::new(classes.clone()).unwrap();
            for first in [0, 1, n_columns / 2, n_columns - 1] {
                for n in [0usize, 1, 255, 512, 700, 3 * n_columns / 2 + 5] {
                    let class = |i: &usize| classes[(first + i) % n_columns];
                    let mut expected: Vec<usize> = (0..n).collect();
                    expected.sort_by_key(class);
                    for unit_bytes in [1, 2, 4, 8] {
                        let bytes = |units: &[usize]| -> Vec<u8> {
                            let each = units.iter().map(|i| (i * 0x9e37_79b9) as u64);
                            each.flat_map(|u| u.to_le_bytes().into_iter().take(unit_bytes))
                                .collect()
                        };
                        let units = bytes(&(0..n).collect::<Vec<_>>());
                        let mut ordered = vec![0x5a; units.len()];
                        columns.put_in_order(unit_bytes, first, &units, &mut ordered);
                        assert!(ordered == bytes(&expected), "{n_columns} {first} {n}");
                        let mut back = vec![0x5a; units.len()];
                        columns.put_back(unit_bytes, first, &ordered, &mut back);
                        assert!(back == units, "{n_columns} {first} {n}");
                    }
                }
            }
        }
    }
}
