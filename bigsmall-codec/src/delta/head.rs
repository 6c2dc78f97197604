//! What the delta blocks of one tensor share (FORMAT.md section 10.3).
#![warn(clippy::unwrap_used)]

use bigsmall_format::{Dtype, Error, Result, Rule};

use super::classes::{Classes, Field};
use crate::bits::{BitReader, BitWriter};
use crate::head::{Head as AnsHead, MAX_TABLES, id_bits};
use crate::layout::Layout;
use crate::planes::GROUP;
use crate::table::FrequencyTable;

/// Classes of coded blocks, at most.
pub(crate) const MAX_CLASSES: u32 = 8;
/// Classes of sparse blocks, at most.
pub(crate) const MAX_SPARSE_CLASSES: u32 = 16;
/// Bytes before the tables.
const FIXED: usize = 10;
/// Bits of a shift.
const SHIFT_BITS: u32 = 6;

/// What stands for values: those near `lo` have symbols of their own, the others share symbols by
/// the logarithm of their distance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// How many low bits of the distance from `lo` are not coded.
    pub(crate) shift: u32,
    /// The least value of symbol 0.
    pub(crate) lo: u64,
    pub(crate) frequencies: FrequencyTable,
}

/// A valid head.
pub(crate) struct Head {
    pub(crate) field: Field,
    pub(crate) unit_bytes: usize,
    /// 5 or 6.
    pub(crate) symbol_bits: u32,
    /// Units of a segment, a power of two from 256 on.
    pub(crate) segment: usize,
    pub(crate) classes: Classes,
    pub(crate) sparse: Classes,
    /// Bit c: the values of class c are of mode 1.
    pub(crate) modes: u8,
    /// None where no block is coded.
    pub(crate) tables: Vec<Table>,
    /// The frequency tables as the kernels of the ANS encoding take them.
    pub(crate) ans: AnsHead,
}

impl Head {
    pub(crate) fn new(
        dtype: Dtype,
        symbol_bits: u32,
        segment: usize,
        (classes, modes): (Classes, u8),
        sparse: Classes,
        tables: Vec<Table>,
    ) -> Head {
        let frequencies = tables.iter().map(|table| table.frequencies.clone()).collect();
        let Some(layout) = Layout::new(Dtype::U8, 0) else { unreachable!("bytes have a layout") };
        let ans = AnsHead::new(0, layout, symbol_bits, (0, 0), segment, Vec::new(), frequencies);
        let (field, unit_bytes) = (Field::of(dtype), dtype.unit_bytes());
        Head { field, unit_bytes, symbol_bits, segment, classes, sparse, modes, tables, ans }
    }

    /// The head of a tensor whose blocks are all empty.
    pub(crate) fn of_same(dtype: Dtype) -> Head {
        let one = Classes { n: 1, top: 0 };
        Head::new(dtype, 5, GROUP, (one, 0), one, Vec::new())
    }

    /// L: symbols that are values of their own.
    pub(crate) fn n_near(&self) -> u32 {
        1 << (self.symbol_bits - 1)
    }

    /// J: symbols for each side that stand for a logarithm.
    pub(crate) fn n_logs(&self) -> u32 {
        1 << (self.symbol_bits - 2)
    }

    /// Whether the values of a class are of mode 1.
    #[inline(always)]
    pub(crate) fn is_turned(&self, class: u8) -> bool {
        self.modes >> class & 1 == 1
    }

    /// Groups of a segment.
    pub(crate) fn segment_groups(&self) -> usize {
        self.segment / GROUP
    }

    /// Bits that name a segment's table.
    pub(crate) fn table_id_bits(&self) -> u32 {
        id_bits(self.tables.len())
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let mut out = vec![
            self.symbol_bits as u8,
            self.segment.ilog2() as u8,
            self.tables.len() as u8,
            self.classes.n as u8,
            self.sparse.n as u8,
            self.modes,
        ];
        out.extend_from_slice(&(self.classes.top as u16).to_le_bytes());
        out.extend_from_slice(&(self.sparse.top as u16).to_le_bytes());
        let mut bits = BitWriter::default();
        for table in &self.tables {
            bits.push(table.shift, SHIFT_BITS);
            for byte in &table.lo.to_le_bytes()[..self.unit_bytes] {
                bits.push(u32::from(*byte), 8);
            }
            table.frequencies.write(&mut bits);
        }
        out.extend(bits.finish());
        out
    }

    /// Reads a head, validating every field.
    pub(crate) fn read(dtype: Dtype, bytes: &[u8]) -> Result<Head> {
        if bytes.is_empty() {
            return Ok(Head::of_same(dtype));
        }
        let wrong = |at: u64, expected: &str, found: &dyn std::fmt::Display| {
            Error::new(Rule::DeltaHead).at(at).expected(expected).found(found)
        };
        let Some((&[w, segment, n_tables, k, n_sparse, modes, t0, t1, s0, s1], rest)) =
            bytes.split_first_chunk::<FIXED>()
        else {
            return Err(wrong(0, "no bytes, or 10 and more", &bytes.len()));
        };
        let symbol_bits = u32::from(w);
        if !(5..=6).contains(&symbol_bits) {
            return Err(wrong(0, "5 or 6 symbol bits", &w));
        }
        if !(8..=16).contains(&segment) {
            return Err(wrong(1, "segments of 2^8 to 2^16 units", &segment));
        }
        if usize::from(n_tables) > MAX_TABLES {
            return Err(wrong(2, "at most 8 tables", &n_tables));
        }
        let field = Field::of(dtype);
        let classes = |at: u64, n: u8, most: u32, top: [u8; 2]| {
            let classes = Classes { n: u32::from(n), top: u32::from(u16::from_le_bytes(top)) };
            let most = if field.is_float() { most } else { 1 };
            if !(1..=most).contains(&classes.n) {
                return Err(wrong(at, &format!("1 to {most} classes"), &n));
            }
            if classes.top > field.mask {
                return Err(wrong(6, "an exponent that the dtype has", &classes.top));
            }
            Ok(classes)
        };
        let sparse = classes(4, n_sparse, MAX_SPARSE_CLASSES, [s0, s1])?;
        let classes = classes(3, k, MAX_CLASSES, [t0, t1])?;
        if u32::from(modes) >> classes.n != 0 {
            return Err(wrong(5, "modes of classes that exist", &modes));
        }
        let mut bits = BitReader::new(rest);
        let tables = (0..n_tables)
            .map(|_| {
                let short = || Error::new(Rule::DeltaHead).found("the head ends within a table");
                let shift = bits.pull(SHIFT_BITS).ok_or_else(short)?;
                if shift >= 8 * dtype.unit_bytes() as u32 {
                    return Err(wrong(FIXED as u64, "a shift below the bits of a unit", &shift));
                }
                let mut lo = 0;
                for byte in 0..dtype.unit_bytes() {
                    lo |= u64::from(bits.pull(8).ok_or_else(short)?) << (8 * byte);
                }
                let frequencies = FrequencyTable::read(&mut bits, 1 << symbol_bits)?;
                Ok(Table { shift, lo, frequencies })
            })
            .collect::<Result<Vec<_>>>()?;
        let rest = bits.finish_prefix().map_err(|e| e.at(FIXED as u64))?;
        if !rest.is_empty() {
            return Err(wrong(FIXED as u64, "nothing after the tables", &rest.len()));
        }
        let classes = (classes, modes);
        Ok(Head::new(dtype, symbol_bits, 1 << segment, classes, sparse, tables))
    }
}
