//! An implementation of FORMAT.md section 7 written from its text: one bit at a time, as slow as it
//! is plain. It shares no code with the crate, encodes whatever choices it is given, and is what
//! every backend is compared with.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::needless_range_loop)]

pub mod delta;
mod inflate;
pub mod page;
pub mod view;

use bigsmall_codec::{Dtype, EncodedTensor, Rule, TensorSpec};
use bigsmall_format::{EncodingId, ReadAt};

pub const GROUP: usize = 256;
pub const LANES: usize = 32;

/// A source that lends nothing: everything is copied out of it.
#[derive(Debug)]
pub struct Copying<'a>(pub &'a [u8]);

impl ReadAt for Copying<'_> {
    fn byte_len(&self) -> std::io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(offset, buf)
    }
}

/// A bit string.
#[derive(Clone, Debug, Default)]
pub struct Bits(pub Vec<bool>);

impl Bits {
    pub fn push(&mut self, value: u64, n: u32) {
        (0..n).for_each(|i| self.0.push(value >> i & 1 == 1));
    }

    pub fn unary(&mut self, ones: u64) {
        (0..ones).for_each(|_| self.0.push(true));
        self.0.push(false);
    }

    /// The bytes, padded to a multiple of `align`.
    pub fn bytes(&self, align: usize) -> Vec<u8> {
        let mut out = vec![0; self.0.len().div_ceil(8).next_multiple_of(align)];
        for (i, _) in self.0.iter().enumerate().filter(|(_, b)| **b) {
            out[i / 8] |= 1 << (i % 8);
        }
        out
    }

    pub fn of(bytes: &[u8]) -> Bits {
        Bits((0..8 * bytes.len()).map(|i| bytes[i / 8] >> (i % 8) & 1 == 1).collect())
    }
}

/// Reads a bit string from the front.
struct Reader {
    bits: Vec<bool>,
    at: usize,
}

impl Reader {
    fn new(bytes: &[u8]) -> Reader {
        Reader { bits: Bits::of(bytes).0, at: 0 }
    }

    fn pull(&mut self, n: u32) -> Option<u64> {
        let bits = self.bits.get(self.at..self.at + n as usize)?;
        self.at += n as usize;
        Some(bits.iter().rev().fold(0, |v, &b| v << 1 | u64::from(b)))
    }

    fn unary(&mut self) -> Option<u64> {
        let mut ones = 0;
        while self.pull(1)? == 1 {
            ones += 1;
        }
        Some(ones)
    }

    fn rest_is_padding(&self, align: usize) -> bool {
        self.bits.len() == self.at.div_ceil(8).next_multiple_of(align) * 8
            && self.bits[self.at..].iter().all(|b| !b)
    }

    /// Nothing follows but the padding of the last byte.
    fn finish(&self, longer: Rule) -> Result<(), Rule> {
        match self.bits.len() - self.at {
            0..8 if self.rest_is_padding(1) => Ok(()),
            0..8 => Err(Rule::PaddingNotZero),
            _ => Err(longer),
        }
    }
}

/// Section 7.1: bytes of a unit, head bits, exponent bits (0 for what has no sign and no exponent).
pub fn fields(dtype: Dtype) -> (usize, u32, u32) {
    match dtype {
        Dtype::BF16 => (2, 16, 8),
        Dtype::F16 => (2, 8, 5),
        Dtype::F32 => (4, 16, 8),
        Dtype::F64 => (8, 16, 11),
        Dtype::F8_E4M3 | Dtype::F8_E4M3FNUZ => (1, 8, 4),
        Dtype::F8_E5M2 | Dtype::F8_E5M2FNUZ => (1, 8, 5),
        _ => (1, 8, 0),
    }
}

/// A head as it is written, valid or not.
#[derive(Clone, Debug)]
pub struct Head {
    pub dtype: Dtype,
    pub m: u32,
    pub w: u32,
    pub log_segment: u32,
    pub base: u32,
    pub first: u32,
    pub low_widths: Vec<u8>,
    pub tables: Vec<Vec<u32>>,
    /// The head of masks.
    pub mask: Option<Box<Head>>,
    /// The class of each column; none without columns.
    pub columns: Vec<u8>,
}

/// Symbol, frequency and rank of every slot.
#[derive(Debug)]
pub struct Alias {
    pub keep: Vec<u32>,
    pub donor: Vec<usize>,
    pub slots: Vec<(usize, u32, u32)>,
}

/// Section 7.3, to the letter.
pub fn alias(freqs: &[u32]) -> Alias {
    let c = 4096 / freqs.len() as u32;
    let mut left = freqs.to_vec();
    let mut keep = vec![c; freqs.len()];
    let mut donor: Vec<usize> = (0..freqs.len()).collect();
    let (mut small, mut large) = (vec![], vec![]);
    for s in 0..freqs.len() {
        if left[s] < c { &mut small } else { &mut large }.push(s);
    }
    while !small.is_empty() && !large.is_empty() {
        let s = small.pop().unwrap();
        let l = *large.last().unwrap();
        keep[s] = left[s];
        donor[s] = l;
        left[l] -= c - left[s];
        if left[l] < c {
            small.push(large.pop().unwrap());
        }
    }
    let mut next = keep.clone();
    let mut slots = vec![];
    for b in 0..freqs.len() {
        for j in 0..c {
            if j < keep[b] {
                slots.push((b, freqs[b], j));
            } else {
                let s = donor[b];
                slots.push((s, freqs[s], next[s]));
                next[s] += 1;
            }
        }
    }
    Alias { keep, donor, slots }
}

pub fn ceil_log2(n: usize) -> u32 {
    (0..).find(|&b| 1 << b >= n).unwrap()
}

pub fn push_table(bits: &mut Bits, freqs: &[u32]) {
    for &f in freqs {
        let length = 32 - f.leading_zeros();
        bits.push(length.into(), 4);
        if length > 1 {
            bits.push(f.into(), length - 1);
        }
    }
}

impl Head {
    /// A head without anything unusual.
    pub fn plain(dtype: Dtype, m: u32, base: u32, tables: Vec<Vec<u32>>) -> Head {
        let low_bits = Head::low_bits_of(dtype);
        Head {
            dtype,
            m,
            w: ceil_log2(tables[0].len()),
            log_segment: 8,
            base,
            first: base,
            low_widths: if low_bits > 0 { vec![low_bits as u8] } else { vec![] },
            tables,
            mask: None,
            columns: vec![],
        }
    }

    fn low_bits_of(dtype: Dtype) -> u32 {
        let (unit, high_bits, _) = fields(dtype);
        8 * unit as u32 - high_bits
    }

    pub fn low_bits(&self) -> u32 {
        Head::low_bits_of(self.dtype)
    }

    pub fn residual_bits(&self) -> u32 {
        match fields(self.dtype) {
            (_, _, 0) => 0,
            (_, high_bits, e) => high_bits - e - self.m,
        }
    }

    pub fn field_bits(&self) -> u32 {
        match fields(self.dtype) {
            (_, _, 0) => 8,
            (_, _, e) => e + self.m,
        }
    }

    pub fn write(&self) -> Vec<u8> {
        let mut out =
            vec![self.m as u8, self.w as u8, self.log_segment as u8, self.tables.len() as u8];
        out.extend((self.base as u16).to_le_bytes());
        out.extend((self.first as u16).to_le_bytes());
        let flags = u8::from(self.mask.is_some()) + 2 * u8::from(!self.columns.is_empty());
        out.extend([self.low_widths.len() as u8, flags]);
        let mut widths = self.low_widths.clone();
        widths.resize(4, 0);
        out.extend(&widths[..4]);
        let mut bits = Bits::default();
        self.tables.iter().for_each(|t| push_table(&mut bits, t));
        out.extend(bits.bytes(1));
        if !self.columns.is_empty() {
            out.extend(columns(&self.columns));
        }
        out.extend(self.mask.iter().flat_map(|mask| mask.write()));
        out
    }

    pub fn read(dtype: Dtype, bytes: &[u8]) -> Result<Head, Rule> {
        Head::read_part(dtype, bytes, 3)
    }

    /// `flags` may be set.
    fn read_part(dtype: Dtype, bytes: &[u8], flags: u8) -> Result<Head, Rule> {
        let ensure = |ok: bool| if ok { Ok(()) } else { Err(Rule::AnsHead) };
        ensure(bytes.len() >= 14)?;
        let (_, high_bits, e) = fields(dtype);
        let (m, w) = (u32::from(bytes[0]), u32::from(bytes[1]));
        ensure(if e == 0 { m == 0 } else { (1..=8).any(|r| r + m + e == high_bits) })?;
        let field_bits = if e == 0 { 8 } else { e + m };
        ensure((5..=8).contains(&w) && w <= field_bits)?;
        let log_segment = u32::from(bytes[2]);
        ensure((8..=16).contains(&log_segment))?;
        ensure((1..=8).contains(&bytes[3]))?;
        let base = u32::from(u16::from_le_bytes([bytes[4], bytes[5]]));
        let first = u32::from(u16::from_le_bytes([bytes[6], bytes[7]]));
        ensure(base + (1 << w) <= 1 << field_bits)?;
        ensure(first < 1 << field_bits)?;
        ensure(first <= base || first >= base + (1 << w))?;
        let k = usize::from(bytes[8]);
        let low_bits = Head::low_bits_of(dtype);
        ensure(if low_bits == 0 { k == 0 } else { (1..=4).contains(&k) })?;
        let low_widths = bytes[10..10 + k].to_vec();
        ensure(k == 0 || u32::from(low_widths[0]) == low_bits)?;
        ensure(low_widths.windows(2).all(|v| v[0] > v[1]))?;
        if bytes[9] & !flags != 0 || bytes[10 + k..14].iter().any(|&b| b != 0) {
            return Err(Rule::ReservedNotZero);
        }
        let mut reader = Reader::new(&bytes[14..]);
        let mut tables = vec![];
        for _ in 0..bytes[3] {
            let mut freqs = vec![];
            for _ in 0..1 << w {
                let length = reader.pull(4).ok_or(Rule::FrequencyTable)? as u32;
                freqs.push(match length {
                    0 => 0,
                    _ => {
                        let low = reader.pull(length - 1).ok_or(Rule::FrequencyTable)?;
                        1 << (length - 1) | low as u32
                    }
                });
            }
            if freqs.iter().sum::<u32>() != 4096 || freqs.contains(&4096) {
                return Err(Rule::FrequencyTable);
            }
            tables.push(freqs);
        }
        // What follows begins with the next byte.
        let next_byte = |reader: &mut Reader| {
            while !reader.at.is_multiple_of(8) {
                if reader.pull(1) != Some(0) {
                    return Err(Rule::PaddingNotZero);
                }
            }
            Ok(())
        };
        let mut columns = vec![];
        next_byte(&mut reader)?;
        if bytes[9] & 2 != 0 {
            let n = reader.pull(16).ok_or(Rule::AnsHead)? + 1;
            ensure(n >= 2)?;
            for _ in 0..n {
                columns.push(reader.pull(3).ok_or(Rule::AnsHead)? as u8);
            }
            next_byte(&mut reader)?;
        }
        let mask = if bytes[9] & 1 == 0 {
            reader.finish(Rule::AnsHead)?;
            None
        } else {
            let rest = &bytes[14 + reader.at / 8..];
            Some(Box::new(Head::read_part(Dtype::U8, rest, 0)?))
        };
        Ok(Head { dtype, m, w, log_segment, base, first, low_widths, tables, mask, columns })
    }

    /// The symbol that stands for a field.
    fn symbol(&self, field: u32) -> Option<usize> {
        if field == self.first {
            return Some(0);
        }
        (field > self.base && field < self.base + (1 << self.w))
            .then(|| (field - self.base) as usize)
    }

    /// Whether the table has the field.
    fn codes(&self, table: usize, field: u32) -> Option<usize> {
        self.symbol(field).filter(|&s| self.tables[table][s] > 0)
    }

    /// Field, residual and low bits of a unit.
    pub fn split(&self, unit: &[u8]) -> (u32, u8, u64) {
        let mut bytes = [0; 8];
        bytes[..unit.len()].copy_from_slice(unit);
        let value = u64::from_le_bytes(bytes);
        let head = value >> self.low_bits();
        let low = value - (head << self.low_bits());
        let r = self.residual_bits();
        if r == 0 {
            return (head as u32, 0, low);
        }
        let field = head >> (r - 1) & ((1 << self.field_bits()) - 1);
        let sign = head >> (r - 1 + self.field_bits());
        (field as u32, (sign << (r - 1) | head & ((1 << (r - 1)) - 1)) as u8, low)
    }

    pub fn join(&self, field: u32, residual: u8, low: u64) -> Vec<u8> {
        let r = self.residual_bits();
        let head = if r == 0 {
            u64::from(field)
        } else {
            let residual = u64::from(residual);
            (residual >> (r - 1)) << (r - 1 + self.field_bits())
                | u64::from(field) << (r - 1)
                | residual & ((1 << (r - 1)) - 1)
        };
        let value = head << self.low_bits() | low;
        value.to_le_bytes()[..fields(self.dtype).0].to_vec()
    }
}

/// Section 7.4.
pub fn pack(values: &[u8], n: usize) -> Vec<u8> {
    let bit = |row: usize, c: usize, k: usize| values[32 * row + c] >> k & 1;
    let mut out = vec![];
    for k in 0..n {
        for c in 0..32 {
            let mut byte = bit(k, c, n - 1) << 7;
            (0..n - 1).for_each(|j| byte |= bit(k, c, j) << j);
            (0..8 - n).for_each(|t| byte |= bit(n + t, c, k) << (n - 1 + t));
            out.push(byte);
        }
    }
    out
}

pub fn unpack(packed: &[u8], n: usize) -> Vec<u8> {
    let mut values = vec![0; GROUP];
    for k in 0..n {
        for c in 0..32 {
            let byte = packed[32 * k + c];
            values[32 * k + c] |= (byte >> 7) << (n - 1);
            (0..n - 1).for_each(|j| values[32 * k + c] |= (byte >> j & 1) << j);
            (0..8 - n).for_each(|t| values[32 * (n + t) + c] |= (byte >> (n - 1 + t) & 1) << k);
        }
    }
    values
}

/// The low planes of a group.
pub fn pack_lows(lows: &[u64], low_bits: u32, width: u32) -> Vec<u8> {
    let u: Vec<u64> = lows.iter().map(|&l| l >> (low_bits - width)).collect();
    let mut out = vec![];
    for b in 0..width / 8 {
        out.extend(u.iter().map(|&u| (u >> (8 * b)) as u8));
    }
    let n = width % 8;
    if n > 0 {
        let values: Vec<u8> = u.iter().map(|&u| (u >> (width - n)) as u8).collect();
        out.extend(pack(&values, n as usize));
    }
    out
}

fn unpack_lows(packed: &[u8], low_bits: u32, width: u32) -> Vec<u64> {
    let (whole, n) = ((width / 8) as usize, width % 8);
    let mut u = vec![0u64; GROUP];
    for b in 0..whole {
        (0..GROUP).for_each(|i| u[i] |= u64::from(packed[GROUP * b + i]) << (8 * b));
    }
    if n > 0 {
        let values = unpack(&packed[GROUP * whole..], n as usize);
        (0..GROUP).for_each(|i| u[i] |= u64::from(values[i]) << (width - n));
    }
    u.iter().map(|&u| u << (low_bits - width)).collect()
}

/// A block of kind 2, section by section, valid or not.
#[derive(Clone, Debug, Default)]
pub struct Block {
    pub header: Vec<u8>,
    pub lengths: Vec<u8>,
    pub states: Vec<u8>,
    pub words: Vec<u8>,
    pub ids: Vec<u8>,
    pub lows: Vec<u8>,
    pub residual: Vec<u8>,
    pub exceptions: Vec<u8>,
    pub tail: Vec<u8>,
}

impl Block {
    pub fn bytes(&self) -> Vec<u8> {
        [
            &self.header,
            &self.lengths,
            &self.states,
            &self.words,
            &self.ids,
            &self.lows,
            &self.residual,
            &self.exceptions,
            &self.tail,
        ]
        .into_iter()
        .flatten()
        .copied()
        .collect()
    }

    pub fn set_states(&mut self, states: &[u32]) {
        self.lengths = vec![0; 16];
        let mut bits = Bits::default();
        for (lane, &state) in states.iter().enumerate() {
            let length = 31 - state.leading_zeros() - 16;
            self.lengths[lane / 2] |= (length as u8) << (lane % 2 * 4);
            bits.push(state.into(), 16 + length);
        }
        self.states = bits.bytes(4);
    }

    pub fn set_words(&mut self, words: &[u16]) {
        self.words = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        self.header[4..8].copy_from_slice(&(words.len() as u32).to_le_bytes());
    }

    pub fn set_exceptions(&mut self, head: &Head, exceptions: &[(usize, u32)], q: u32) {
        self.header[1] = q as u8;
        self.header[2..4].copy_from_slice(&(exceptions.len() as u16).to_le_bytes());
        self.exceptions = write_exceptions(head, exceptions, q).bytes(1);
    }
}

pub fn write_exceptions(head: &Head, exceptions: &[(usize, u32)], q: u32) -> Bits {
    let mut bits = Bits::default();
    let mut before = -1;
    for &(position, field) in exceptions {
        let gap = (position as i64 - before - 1) as u64;
        before = position as i64;
        bits.unary(gap >> q);
        bits.push(gap, q);
        let distance = |bits: &mut Bits, d: u32| {
            let a = d / 2 + 1;
            let length = 31 - a.leading_zeros();
            bits.unary(length.into());
            bits.push(a.into(), length);
            bits.push(d.into(), 1);
        };
        let end = head.base + (1 << head.w);
        if field < head.base {
            bits.push(0, 1);
            distance(&mut bits, head.base - 1 - field);
        } else if field >= end {
            bits.push(0b01, 2);
            distance(&mut bits, field - end);
        } else {
            bits.push(0b11, 2);
            bits.push((field - head.base).into(), head.w);
        }
    }
    bits
}

/// What an encoder is free to choose in a block.
#[derive(Clone, Debug)]
pub struct Choices {
    /// The table of every segment.
    pub tables: Vec<usize>,
    /// The low width of every segment, by its number.
    pub low_widths: Vec<usize>,
    /// Rice parameter.
    pub q: u32,
    /// Lanes and the states that they begin with, and so end with in the decoder: for what no
    /// encoder should do.
    pub begin: Vec<(usize, u32)>,
}

/// Encodes units as a block of kind 2.
pub fn encode(head: &Head, units: &[u8], choices: &Choices) -> Block {
    let unit_bytes = fields(head.dtype).0;
    let units: Vec<&[u8]> = units.chunks(unit_bytes).collect();
    let n_groups = units.len() / GROUP;
    let (grouped, tail) = units.split_at(n_groups * GROUP);
    let segment = 1usize << head.log_segment;
    let r = head.residual_bits() as usize;
    let split: Vec<_> = grouped.iter().map(|u| head.split(u)).collect();

    let mut block = Block { header: vec![2, 0, 0, 0, 0, 0, 0, 0], ..Block::default() };
    let mut exceptions = vec![];
    let mut symbols = vec![];
    for (i, &(field, _, _)) in split.iter().enumerate() {
        let table = choices.tables[i / segment];
        symbols.push(head.codes(table, field).unwrap_or_else(|| {
            exceptions.push((i, field));
            head.tables[table].iter().position(|&f| f > 0).unwrap()
        }));
    }
    block.set_exceptions(head, &exceptions, choices.q);
    let mut residual = vec![];
    let mut lows = vec![];
    for (g, group) in split.chunks(GROUP).enumerate() {
        if r > 0 {
            let values: Vec<u8> = group.iter().map(|u| u.1).collect();
            residual.extend(pack(&values, r));
        }
        if head.low_bits() > 0 {
            let width = head.low_widths[choices.low_widths[g * GROUP / segment]];
            let values: Vec<u64> = group.iter().map(|u| u.2).collect();
            lows.extend(pack_lows(&values, head.low_bits(), width.into()));
        }
    }
    let carried = residual.split_off(residual.len() - residual.len().min(64));
    block.residual = residual;
    block.lows = lows;
    block.tail = tail.concat();

    let mut states = [1u32 << 16; LANES];
    for (lane, z) in carried.chunks(2).enumerate() {
        states[lane] += u32::from(u16::from_le_bytes([z[0], z[1]]));
    }
    for &(lane, state) in &choices.begin {
        states[lane] = state;
    }
    let aliases: Vec<Alias> = head.tables.iter().map(|t| alias(t)).collect();
    let slot_of: Vec<std::collections::HashMap<_, _>> = aliases
        .iter()
        .map(|a| a.slots.iter().zip(0u32..).map(|(&(s, _, rank), i)| ((s, rank), i)).collect())
        .collect();
    let mut words = vec![];
    for row in (0..symbols.len() / LANES).rev() {
        let table = choices.tables[row * LANES / segment];
        for lane in (0..LANES).rev() {
            let s = symbols[row * LANES + lane];
            let f = head.tables[table][s];
            let mut x = states[lane];
            if u64::from(x) >= u64::from(f) << 20 {
                words.push(x as u16);
                x >>= 16;
            }
            states[lane] = x / f * 4096 + slot_of[table][&(s, x % f)];
        }
    }
    words.reverse();
    block.set_states(&states);
    block.set_words(&words);
    let mut ids = Bits::default();
    let segments = (n_groups * GROUP).div_ceil(segment);
    for &t in &choices.tables[..segments] {
        ids.push(t as u64, ceil_log2(head.tables.len()));
    }
    if head.low_bits() > 0 {
        for &w in &choices.low_widths[..segments] {
            ids.push(w as u64, ceil_log2(head.low_widths.len()));
        }
    }
    block.ids = ids.bytes(4);
    block
}

/// Takes a block of kind 2 apart without looking at what the sections say.
pub fn sections(head: &Head, bytes: &[u8], n_units: usize) -> Result<Block, Rule> {
    let mut rest = bytes;
    let mut take = |n: usize| {
        let (taken, after) = rest.split_at_checked(n).ok_or(Rule::AnsBlockLength)?;
        rest = after;
        Ok::<_, Rule>(taken.to_vec())
    };
    let unit_bytes = fields(head.dtype).0;
    let n_groups = n_units / GROUP;
    let header = take(8)?;
    let n_words = u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize;
    if header[1] > 15 || n_words > GROUP * n_groups || n_groups == 0 {
        return Err(Rule::AnsBlockHeader);
    }
    let lengths = take(16)?;
    let bits: usize = lengths.iter().map(|&b| 32 + usize::from(b % 16 + b / 16)).sum();
    let states = take(bits.div_ceil(8).next_multiple_of(4))?;
    let words = take((2 * n_words).next_multiple_of(4))?;
    let segments = (n_groups * GROUP).div_ceil(1 << head.log_segment);
    let table_bits = ceil_log2(head.tables.len());
    let low_id_bits = ceil_log2(head.low_widths.len().max(1));
    let id_bits = segments * (table_bits + low_id_bits) as usize;
    let ids = take(id_bits.div_ceil(8).next_multiple_of(4))?;
    let mut lows = 0;
    if head.low_bits() > 0 {
        let mut reader = Reader::new(&ids);
        reader.at = segments * table_bits as usize;
        for segment in 0..segments {
            let id = reader.pull(low_id_bits).unwrap() as usize;
            let width = *head.low_widths.get(id).ok_or(Rule::AnsTableId)?;
            let first = segment << head.log_segment >> 8;
            let end = n_groups.min((segment + 1) << head.log_segment >> 8);
            lows += (end - first) * 32 * usize::from(width);
        }
    }
    let lows = take(lows)?;
    let residual = n_groups * 32 * head.residual_bits() as usize;
    let residual = take(residual - residual.min(64))?;
    let tail = rest.len().checked_sub(n_units % GROUP * unit_bytes).ok_or(Rule::AnsBlockLength)?;
    let (exceptions, tail) = rest.split_at(tail);
    let (exceptions, tail) = (exceptions.to_vec(), tail.to_vec());
    Ok(Block { header, lengths, states, words, ids, lows, residual, exceptions, tail })
}

/// Decodes a block of any kind that holds `n_units`.
pub fn decode(head: &Head, bytes: &[u8], n_units: usize) -> Result<Vec<u8>, Rule> {
    let unit_bytes = fields(head.dtype).0;
    let zeros = |bytes: &[u8]| bytes.iter().all(|&b| b == 0);
    match bytes.first() {
        Some(0) => {
            if bytes.len() != 8 + n_units * unit_bytes {
                return Err(Rule::AnsBlockLength);
            }
            if !zeros(&bytes[1..8]) {
                return Err(Rule::AnsBlockHeader);
            }
            return Ok(bytes[8..].to_vec());
        }
        Some(1) => {
            if bytes.len() != 64 || n_units * unit_bytes < 64 {
                return Err(Rule::ConstantBlock);
            }
            if !zeros(&bytes[1..8]) {
                return Err(Rule::AnsBlockHeader);
            }
            let unit = &bytes[8..8 + unit_bytes];
            if bytes[8..].chunks(unit_bytes).any(|u| u != unit) {
                return Err(Rule::ConstantBlock);
            }
            return Ok(unit.repeat(n_units));
        }
        Some(2) => {}
        Some(3) if head.mask.is_some() => return decode_zeros(head, bytes, n_units),
        Some(4) => return decode_deflate(bytes, n_units * unit_bytes),
        Some(5) if !head.columns.is_empty() => return decode_columns(head, bytes, n_units),
        _ => return Err(Rule::AnsBlockHeader),
    }
    let block = sections(head, bytes, n_units)?;
    let n_groups = n_units / GROUP;
    let segment_of = |unit: usize| unit >> head.log_segment;
    let segments = segment_of(n_groups * GROUP - 1) + 1;

    let mut reader = Reader::new(&block.states);
    let mut states = vec![];
    for lane in 0..LANES {
        let length = block.lengths[lane / 2] >> (lane % 2 * 4) & 15;
        let x = reader.pull(16).unwrap();
        let y = reader.pull(length.into()).unwrap();
        states.push((((1 << length) + y) << 16) + x);
    }
    let mut padding = reader.rest_is_padding(4);
    let n_words = u32::from_le_bytes(block.header[4..8].try_into().unwrap()) as usize;
    let words: Vec<u16> = block.words.chunks(2).map(|w| u16::from_le_bytes([w[0], w[1]])).collect();
    padding &= words[n_words..].iter().all(|&w| w == 0);
    let mut reader = Reader::new(&block.ids);
    let mut ids = |n: usize| -> Vec<usize> {
        (0..segments).map(|_| reader.pull(ceil_log2(n)).unwrap() as usize).collect()
    };
    let tables = ids(head.tables.len());
    let widths = if head.low_bits() > 0 { ids(head.low_widths.len()) } else { vec![] };
    if tables.iter().any(|&t| t >= head.tables.len())
        || widths.iter().any(|&w| w >= head.low_widths.len())
    {
        return Err(Rule::AnsTableId);
    }
    padding &= reader.rest_is_padding(4);
    if !padding {
        return Err(Rule::PaddingNotZero);
    }

    let aliases: Vec<Alias> = head.tables.iter().map(|t| alias(t)).collect();
    let mut symbols = vec![0; n_groups * GROUP];
    let mut used = 0;
    for row in 0..n_groups * GROUP / LANES {
        let slots = &aliases[tables[segment_of(row * LANES)]].slots;
        for lane in 0..LANES {
            let (symbol, freq, rank) = slots[(states[lane] % 4096) as usize];
            symbols[row * LANES + lane] = symbol;
            let mut x = u64::from(freq) * (states[lane] >> 12) + u64::from(rank);
            if x < 1 << 16 {
                let word = words[..n_words].get(used).ok_or(Rule::AnsWords)?;
                used += 1;
                x = (x << 16) + u64::from(*word);
            }
            states[lane] = x;
        }
    }
    if used != n_words {
        return Err(Rule::AnsWords);
    }
    let r = head.residual_bits() as usize;
    let mut residual = block.residual;
    let carried = (n_groups * 32 * r).min(64) / 2;
    for (lane, &state) in states.iter().enumerate() {
        if state >> 16 != 1 || (lane >= carried && state != 1 << 16) {
            return Err(Rule::AnsEndState);
        }
        if lane < carried {
            residual.extend((state as u16).to_le_bytes());
        }
    }

    let mut units: Vec<(u32, u8, u64)> = symbols
        .iter()
        .map(|&s| (if s == 0 { head.first } else { head.base + s as u32 }, 0, 0))
        .collect();
    let mut lows = &block.lows[..];
    for (g, units) in units.chunks_mut(GROUP).enumerate() {
        if r > 0 {
            let values = unpack(&residual[g * 32 * r..(g + 1) * 32 * r], r);
            units.iter_mut().zip(values).for_each(|(u, v)| u.1 = v);
        }
        if head.low_bits() > 0 {
            let width = head.low_widths[widths[segment_of(g * GROUP)]];
            let (group, rest) = lows.split_at(32 * usize::from(width));
            lows = rest;
            let values = unpack_lows(group, head.low_bits(), width.into());
            units.iter_mut().zip(values).for_each(|(u, v)| u.2 = v);
        }
    }

    let mut reader = Reader::new(&block.exceptions);
    let count = u16::from_le_bytes([block.header[2], block.header[3]]);
    let q = u32::from(block.header[1]);
    let mut next = 0;
    let mut exception = || -> Option<()> {
        let gap = reader.unary()? << q | reader.pull(q)?;
        let position = next + gap as usize;
        next = position + 1;
        let (base, end) = (i64::from(head.base), i64::from(head.base) + (1 << head.w));
        let distance = |reader: &mut Reader| -> Option<i64> {
            let length = reader.unary().filter(|&n| n <= 12)? as u32;
            let a = 1 << length | reader.pull(length)? as i64;
            Some((a - 1) * 2 + reader.pull(1)? as i64)
        };
        let field = match reader.pull(1)? {
            0 => base - 1 - distance(&mut reader)?,
            _ => match reader.pull(1)? {
                0 => end + distance(&mut reader)?,
                _ => base + reader.pull(head.w)? as i64,
            },
        };
        let field = u32::try_from(field).ok().filter(|f| *f < 1 << head.field_bits())?;
        let unit = units.get_mut(position)?;
        if head.codes(tables[segment_of(position)], field).is_some() {
            return None;
        }
        unit.0 = field;
        Some(())
    };
    for _ in 0..count {
        exception().ok_or(Rule::AnsException)?;
    }
    reader.finish(Rule::AnsException)?;
    let mut out: Vec<u8> =
        units.iter().flat_map(|&(field, residual, low)| head.join(field, residual, low)).collect();
    out.extend(&block.tail);
    Ok(out)
}

/// The two blocks of a block of kind 3: the mask, and the other units with their number.
pub fn zeros(bytes: &[u8], n_units: usize) -> Result<(&[u8], &[u8], usize), Rule> {
    let header = bytes.get(..8).ok_or(Rule::AnsBlockLength)?;
    let mask_len = usize::from(header[2]) + 256 * usize::from(header[3]);
    let k = u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize;
    if header[1] != 0 || n_units < GROUP || k == 0 || k >= n_units {
        return Err(Rule::AnsBlockHeader);
    }
    let padded = 8 + mask_len.next_multiple_of(8);
    if bytes.len() < padded {
        return Err(Rule::AnsBlockLength);
    }
    if bytes[8 + mask_len..padded].iter().any(|&b| b != 0) {
        return Err(Rule::PaddingNotZero);
    }
    let (mask, others) = (&bytes[8..8 + mask_len], &bytes[padded..]);
    if [mask, others].iter().any(|part| !matches!(part.first(), Some(0..=2 | 4))) {
        return Err(Rule::AnsBlockHeader);
    }
    Ok((mask, others, k))
}

fn decode_zeros(head: &Head, bytes: &[u8], n_units: usize) -> Result<Vec<u8>, Rule> {
    let (mask, others, k) = zeros(bytes, n_units)?;
    let mask = decode(head.mask.as_ref().unwrap(), mask, n_units.div_ceil(8))?;
    let mut bits = Bits::of(&mask).0;
    if bits.split_off(n_units).contains(&true) {
        return Err(Rule::PaddingNotZero);
    }
    if bits.iter().filter(|&&bit| bit).count() != k {
        return Err(Rule::ZeroMask);
    }
    let others = decode(head, others, k)?;
    let mut others = others.chunks(fields(head.dtype).0);
    let zero = vec![0; fields(head.dtype).0];
    let unit = |bit: bool| if bit { others.next().unwrap() } else { &zero };
    Ok(bits.into_iter().map(unit).collect::<Vec<_>>().concat())
}

fn decode_deflate(bytes: &[u8], byte_len: usize) -> Result<Vec<u8>, Rule> {
    if bytes.len() < 56 || bytes.len() >= 8 + byte_len {
        return Err(Rule::AnsBlockLength);
    }
    if bytes[1..8] != [0; 7] {
        return Err(Rule::AnsBlockHeader);
    }
    let (units, used) = inflate::inflate(&bytes[8..], byte_len).ok_or(Rule::AnsDeflate)?;
    if units.len() != byte_len || bytes.len() != (8 + used).max(56) {
        return Err(Rule::AnsDeflate);
    }
    if bytes[8 + used..].iter().any(|&b| b != 0) {
        return Err(Rule::PaddingNotZero);
    }
    Ok(units)
}

/// The columns of a head.
pub fn columns(classes: &[u8]) -> Vec<u8> {
    let mut bits = Bits::default();
    classes.iter().for_each(|&class| bits.push(class.into(), 3));
    [&((classes.len() - 1) as u16).to_le_bytes()[..], &bits.bytes(1)].concat()
}

/// The numbers of the units of a block in the order of the classes of their columns, if the first
/// one is in the column `first`.
pub fn order_of_classes(classes: &[u8], first: usize, n_units: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n_units).collect();
    order.sort_by_key(|i| classes[(first + i) % classes.len()]);
    order
}

/// The column of the first unit and the block within a block of kind 5.
pub fn within_columns<'a>(head: &Head, bytes: &'a [u8]) -> Result<(usize, &'a [u8]), Rule> {
    let (header, within) = bytes.split_at_checked(8).ok_or(Rule::AnsBlockLength)?;
    let first = usize::from(header[2]) + 256 * usize::from(header[3]);
    let reserved = [header[1], header[4], header[5], header[6], header[7]];
    if reserved != [0; 5] || first >= head.columns.len() || within.first() != Some(&2) {
        return Err(Rule::AnsBlockHeader);
    }
    Ok((first, within))
}

fn decode_columns(head: &Head, bytes: &[u8], n_units: usize) -> Result<Vec<u8>, Rule> {
    let (first, within) = within_columns(head, bytes)?;
    let ordered = decode(head, within, n_units)?;
    let unit_bytes = fields(head.dtype).0;
    let mut units = vec![0; ordered.len()];
    let order = order_of_classes(&head.columns, first, n_units);
    for (unit, i) in ordered.chunks(unit_bytes).zip(order) {
        units[i * unit_bytes..][..unit_bytes].copy_from_slice(unit);
    }
    Ok(units)
}

/// A block of kind 5 of a block of units in the order of classes, valid or not.
pub fn columns_block(first: usize, within: &[u8]) -> Vec<u8> {
    let [low, high] = (first as u16).to_le_bytes();
    [&[5, 0, low, high, 0, 0, 0, 0], within].concat()
}

/// A block of kind 4 of a stream, valid or not.
pub fn deflate_block(stream: &[u8]) -> Vec<u8> {
    let mut out = [&[4, 0, 0, 0, 0, 0, 0, 0], stream].concat();
    out.resize(out.len().max(56), 0);
    out
}

/// A block of kind 3 of two blocks, valid or not.
pub fn zeros_block(mask: &[u8], others: &[u8], k: usize) -> Vec<u8> {
    let mut out = vec![3, 0];
    out.extend((mask.len() as u16).to_le_bytes());
    out.extend((k as u32).to_le_bytes());
    out.extend(mask);
    out.resize(out.len().next_multiple_of(8), 0);
    out.extend(others);
    out
}

/// A tensor of one block with every checksum right, where the block's length is possible at all.
pub fn seal(
    spec: &TensorSpec,
    head: &[u8],
    blocks: &[Vec<u8>],
) -> bigsmall_codec::Result<EncodedTensor> {
    let mut payload = head.to_vec();
    payload.resize(payload.len().next_multiple_of(8), 0);
    let mut lens = vec![];
    for block in blocks {
        payload.extend(block);
        payload.resize(payload.len().next_multiple_of(8), 0);
        lens.push(block.len() as u32);
    }
    EncodedTensor::new(spec.clone(), EncodingId::Ans, head.len() as u32, lens, payload)
}
