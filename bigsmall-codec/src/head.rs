//! What the blocks of one tensor share: the window of symbols, the segments, the frequency tables
//! (FORMAT.md section 7.2).
#![warn(clippy::unwrap_used)]

use bigsmall_format::internal::reserve;
use bigsmall_format::{Dtype, Error, Result, Rule};

use crate::bits::{BitReader, BitWriter};
use crate::columns::{CLASS_BITS, Columns};
use crate::layout::Layout;
use crate::planes::GROUP;
#[cfg(target_arch = "x86_64")]
use crate::table::EncodeWords;
use crate::table::{AliasTable, EncodeTable, FrequencyTable};

/// Frequency tables of one tensor, at most.
pub(crate) const MAX_TABLES: usize = 8;
/// Low widths of one tensor, at most.
pub(crate) const MAX_LOW_WIDTHS: usize = 4;
/// Bytes before the tables.
const FIXED: usize = 14;
/// The flag of a head of masks.
const HAS_MASK: u8 = 1;
/// The flag of classes of columns.
const HAS_COLUMNS: u8 = 2;

/// A valid head.
pub(crate) struct Head {
    /// Mantissa bits in the field.
    pub(crate) m: u32,
    pub(crate) layout: Layout,
    /// The window has 2^`symbol_bits` symbols, 5 to 8.
    pub(crate) symbol_bits: u32,
    /// The field of symbol `s` is `base + s`, but for symbol 0.
    pub(crate) base: u16,
    /// The field of symbol 0: `base`, or one far from the window (that of zero, in tensors with
    /// many zeros).
    pub(crate) first: u16,
    /// Units of a segment, a power of two from 256 on.
    pub(crate) segment: usize,
    /// How many of the low bits a segment may keep, from all of them downwards; empty where the
    /// dtype has none.
    pub(crate) low_widths: Vec<u8>,
    pub(crate) tables: Vec<FrequencyTable>,
    /// `tables`, laid out.
    pub(crate) alias: Vec<AliasTable>,
    /// The head of the masks of blocks of kind *zeros*, if the tensor may have such blocks: masks
    /// are coded as blocks of bytes.
    pub(crate) mask: Option<Box<Head>>,
    /// The classes of columns, if the tensor may have blocks of kind *columns*.
    pub(crate) columns: Option<Columns>,
}

/// Bits that name one of `n` things.
pub(crate) fn id_bits(n: usize) -> u32 {
    n.max(1).next_power_of_two().ilog2()
}

impl Head {
    #[allow(clippy::too_many_arguments)] // one for each field of the head, in order
    pub(crate) fn new(
        m: u32,
        layout: Layout,
        symbol_bits: u32,
        (base, first): (u16, u16),
        segment: usize,
        low_widths: Vec<u8>,
        tables: Vec<FrequencyTable>,
    ) -> Head {
        let alias = tables.iter().map(AliasTable::new).collect();
        Head {
            m,
            layout,
            symbol_bits,
            base,
            first,
            segment,
            low_widths,
            tables,
            alias,
            mask: None,
            columns: None,
        }
    }

    /// The symbol of `field`, or a number beyond the window.
    pub(crate) fn symbol(&self, field: u16) -> u16 {
        if field == self.first {
            return 0;
        }
        // A field below the window wraps around; so does, deliberately, `base` itself where `first`
        // took its symbol.
        match field.wrapping_sub(self.base) {
            0 => u16::MAX,
            symbol => symbol,
        }
    }

    /// Whether symbols are units: bytes that are coded whole.
    pub(crate) fn is_of_bytes(&self) -> bool {
        let Head { layout, symbol_bits, base, first, .. } = self;
        (layout.unit_bytes, layout.residual_bits, *symbol_bits) == (1, 0, 8)
            && (*base, *first) == (0, 0)
    }

    /// The field of `symbol`.
    #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
    pub(crate) fn field(&self, symbol: u8) -> u16 {
        if symbol == 0 { self.first } else { self.base + u16::from(symbol) }
    }

    /// What encoding with table `id` needs.
    pub(crate) fn encode_table(&self, id: u8) -> &EncodeTable {
        let id = usize::from(id);
        self.alias[id].encode(&self.tables[id])
    }

    /// [`encode_table`](Self::encode_table) for AVX-512.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn encode_words(&self, id: u8) -> &EncodeWords {
        let id = usize::from(id);
        self.alias[id].encode_words(&self.tables[id])
    }

    /// Bits that name a segment's table.
    pub(crate) fn table_id_bits(&self) -> u32 {
        id_bits(self.tables.len())
    }

    /// Bits that name a segment's low width.
    pub(crate) fn low_id_bits(&self) -> u32 {
        id_bits(self.low_widths.len())
    }

    /// Groups of a segment.
    pub(crate) fn segment_groups(&self) -> usize {
        self.segment / GROUP
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let mut out = vec![
            self.m as u8,
            self.symbol_bits as u8,
            self.segment.ilog2() as u8,
            self.tables.len() as u8,
        ];
        out.extend_from_slice(&self.base.to_le_bytes());
        out.extend_from_slice(&self.first.to_le_bytes());
        let has_mask = if self.mask.is_some() { HAS_MASK } else { 0 };
        let flags = has_mask | if self.columns.is_some() { HAS_COLUMNS } else { 0 };
        out.extend_from_slice(&[self.low_widths.len() as u8, flags]);
        let mut widths = [0; MAX_LOW_WIDTHS];
        widths[..self.low_widths.len()].copy_from_slice(&self.low_widths);
        out.extend_from_slice(&widths);
        let mut bits = BitWriter::default();
        for table in &self.tables {
            table.write(&mut bits);
        }
        out.extend(bits.finish());
        if let Some(columns) = &self.columns {
            let classes = columns.classes();
            out.extend_from_slice(&((classes.len() - 1) as u16).to_le_bytes());
            let mut bits = BitWriter::default();
            classes.iter().for_each(|&class| bits.push(u32::from(class), CLASS_BITS));
            out.extend(bits.finish());
        }
        out.extend(self.mask.iter().flat_map(|mask| mask.write()));
        out
    }

    /// Reads a head, validating every field.
    pub(crate) fn read(dtype: Dtype, bytes: &[u8]) -> Result<Head> {
        Head::read_part(dtype, bytes, HAS_MASK | HAS_COLUMNS)
    }

    /// Reads a head that may have the parts of those flags: the head of masks, which is a part of
    /// one, has none of its own.
    fn read_part(dtype: Dtype, bytes: &[u8], allowed: u8) -> Result<Head> {
        let wrong = |at: u64, expected: &str, found: &dyn std::fmt::Display| {
            Error::new(Rule::AnsHead).at(at).expected(expected).found(found)
        };
        let Some((fixed, rest)) = bytes.split_at_checked(FIXED) else {
            return Err(wrong(0, "14 bytes or more", &bytes.len()));
        };
        let &[m, symbol_bits, segment, n_tables, base0, base1, first0, first1, n_low, flags, ..] =
            fixed
        else {
            return Err(wrong(0, "14 bytes or more", &bytes.len()));
        };
        let widths = &fixed[FIXED - MAX_LOW_WIDTHS..];
        let m = u32::from(m);
        let symbol_bits = u32::from(symbol_bits);
        let layout = Layout::new(dtype, m.min(16))
            .ok_or_else(|| wrong(0, "mantissa bits that the dtype has", &m))?;
        if !(5..=8.min(layout.field_bits)).contains(&symbol_bits) {
            return Err(wrong(1, "5 to 8 symbol bits, no more than the field has", &symbol_bits));
        }
        if !(8..=16).contains(&segment) {
            return Err(wrong(2, "segments of 2^8 to 2^16 units", &segment));
        }
        if !(1..=MAX_TABLES).contains(&usize::from(n_tables)) {
            return Err(wrong(3, "1 to 8 tables", &n_tables));
        }
        let base = u16::from_le_bytes([base0, base1]);
        if u32::from(base) + (1 << symbol_bits) > 1 << layout.field_bits {
            return Err(wrong(4, "a window within the field", &base));
        }
        let first = u16::from_le_bytes([first0, first1]);
        let within = first.wrapping_sub(base);
        if u32::from(first) >> layout.field_bits != 0
            || (within != 0 && u32::from(within) >> symbol_bits == 0)
        {
            return Err(wrong(6, "the window's first field or one outside", &first));
        }
        let n_low = usize::from(n_low);
        let (widths, unused) = widths
            .split_at_checked(n_low)
            .ok_or_else(|| wrong(8, "at most 4 low widths", &n_low))?;
        let all = layout.low_bits();
        let full_first = widths.first().map(|&w| u32::from(w)) == (all > 0).then_some(all);
        if !full_first || !widths.is_sorted_by(|a, b| a > b) {
            return Err(wrong(10, "low widths from all bits downwards", &format!("{widths:?}")));
        }
        if flags & !allowed != 0 || unused.iter().any(|&b| b != 0) {
            return Err(Error::new(Rule::ReservedNotZero).at(9));
        }
        let mut bits = BitReader::new(rest);
        let tables = (0..n_tables)
            .map(|_| FrequencyTable::read(&mut bits, 1 << symbol_bits))
            .collect::<Result<Vec<_>>>()?;
        let mut rest = bits.finish_prefix().map_err(|e| e.at(FIXED as u64))?;
        let segment = 1 << segment;
        let widths = widths.to_vec();
        let mut head = Head::new(m, layout, symbol_bits, (base, first), segment, widths, tables);
        if flags & HAS_COLUMNS != 0 {
            let begin = (bytes.len() - rest.len()) as u64;
            let read = read_columns(rest).map_err(|e| e.at(begin))?;
            (head.columns, rest) = (Some(read.0), read.1);
        }
        if flags & HAS_MASK != 0 {
            let begin = (bytes.len() - rest.len()) as u64;
            let mask = Head::read_part(Dtype::U8, rest, 0);
            head.mask = Some(Box::new(mask.map_err(|e| e.in_part_at(begin))?));
        } else if !rest.is_empty() {
            return Err(wrong(FIXED as u64, "nothing after the tables", &rest.len()));
        }
        Ok(head)
    }
}

/// Reads the classes of columns; returns what follows them too.
fn read_columns(bytes: &[u8]) -> Result<(Columns, &[u8])> {
    let wrong =
        |expected: &str, found: usize| Error::new(Rule::AnsHead).expected(expected).found(found);
    let Some((&n, rest)) = bytes.split_first_chunk() else {
        return Err(wrong("the number of columns", bytes.len()));
    };
    let n = usize::from(u16::from_le_bytes(n)) + 1;
    if n < 2 {
        return Err(wrong("two columns or more", n));
    }
    // Before anything is allocated.
    let len = (n * CLASS_BITS as usize).div_ceil(8);
    if rest.len() < len {
        return Err(wrong("3 bits for each column", rest.len()));
    }
    let mut bits = BitReader::new(rest);
    let mut classes = Vec::new();
    reserve(&mut classes, n)?;
    classes.extend((0..n).map_while(|_| bits.pull(CLASS_BITS)).map(|class| class as u8));
    Ok((Columns::new(classes)?, bits.finish_prefix()?))
}
