//! What a device needs to decode a bf16 tensor in ANS form (FORMAT.md section 7): the payload as it
//! is, and beside it tables, states and places, taken out of the payload and checked here. A second
//! reader of that section, written for itself: what it cannot check without decoding (the words,
//! the end states) the kernel reports.
#![warn(clippy::unwrap_used)]

use bigsmall_format::{BLOCK_UNITS, Dtype, EncodedTensor, EncodingId, Error, Result, Rule};

/// Units of a group.
const GROUP: usize = 256;
/// Words that describe a block: see [`AnsPlan::blocks`].
pub(crate) const BLOCK_WORDS: usize = 8 + 32 + BLOCK_UNITS / GROUP / 4;

/// A tensor in ANS form, ready for the kernel `rans`.
pub(crate) struct AnsPlan {
    /// Mantissa bits in the coded field.
    pub(crate) m: u32,
    pub(crate) symbol_bits: u32,
    /// Field of symbol s > 0: base + s.
    pub(crate) base: u32,
    /// Field of symbol 0.
    pub(crate) first: u32,
    pub(crate) n_units: u64,
    /// For each block: kind, groups, byte offset of the words, number of words, byte offset of the
    /// residual (or of the values of a raw block, or the value of a constant one), units, two
    /// of nothing; 32 states; the tables of the groups, a byte each.
    pub(crate) blocks: Vec<u32>,
    /// For each table and bucket: split, then frequency | symbol << 16 and rank minus slot of its
    /// own symbol and of its donor.
    pub(crate) tables: Vec<u32>,
    /// Unit, and the field that it has instead of the decoded one; or the whole unit with bit 31
    /// set.
    pub(crate) patches: Vec<[u32; 2]>,
}

/// Bits, least significant first.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn pull(&mut self, n: u32) -> Option<u32> {
        let mut value = 0;
        for i in 0..n {
            let byte = *self.bytes.get(self.at / 8)?;
            value |= u32::from(byte >> (self.at % 8) & 1) << i;
            self.at += 1;
        }
        Some(value)
    }

    fn ones(&mut self, most: usize) -> Option<u32> {
        let mut n = 0;
        while self.pull(1)? == 1 {
            n += 1;
            if n as usize > most {
                return None;
            }
        }
        Some(n)
    }

    /// Whether what is left fills up the bytes with zeros.
    fn done(&self) -> bool {
        let used = self.at.div_ceil(8);
        used == self.bytes.len()
            && (self.at.is_multiple_of(8) || self.bytes[used - 1] >> (self.at % 8) == 0)
    }
}

struct Head {
    m: u32,
    symbol_bits: u32,
    base: u32,
    first: u32,
    segment: usize,
    /// Frequencies of each table.
    tables: Vec<Vec<u32>>,
}

impl Head {
    fn read(head: &[u8]) -> Result<Head> {
        let wrong = |at: u64| Error::new(Rule::AnsHead).at(at);
        let Some((&fixed, tables)) = head.split_first_chunk::<14>() else {
            return Err(wrong(0));
        };
        let [m, symbol_bits, segment, n_tables, ..] = fixed.map(u32::from);
        let base = u32::from(u16::from_le_bytes([fixed[4], fixed[5]]));
        let first = u32::from(u16::from_le_bytes([fixed[6], fixed[7]]));
        if m > 7 || !(5..=8).contains(&symbol_bits) {
            return Err(wrong(0));
        }
        let field_bits = 8 + m;
        let window = base..base + (1 << symbol_bits);
        if !(8..=16).contains(&segment) || !(1..=8).contains(&n_tables) {
            return Err(wrong(2));
        }
        if window.end > 1 << field_bits {
            return Err(wrong(4));
        }
        if first >> field_bits != 0 || (first != base && window.contains(&first)) {
            return Err(wrong(6));
        }
        // No low bits in bf16.
        if fixed[8..].iter().any(|&b| b != 0) {
            return Err(wrong(8));
        }
        let mut bits = Bits { bytes: tables, at: 0 };
        let mut read = |_| {
            let wrong = || Error::new(Rule::FrequencyTable);
            let mut freqs = Vec::with_capacity(1 << symbol_bits);
            for _ in 0..1 << symbol_bits {
                let f = match bits.pull(4).ok_or_else(wrong)? {
                    0 => 0,
                    n @ 1..=13 => 1 << (n - 1) | bits.pull(n - 1).ok_or_else(wrong)?,
                    _ => return Err(wrong()),
                };
                freqs.push(f);
            }
            if freqs.iter().sum::<u32>() != 4096 { Err(wrong()) } else { Ok(freqs) }
        };
        let tables = (0..n_tables).map(&mut read).collect::<Result<Vec<_>>>()?;
        if !bits.done() {
            return Err(wrong(14));
        }
        Ok(Head { m, symbol_bits, base, first, segment: 1 << segment, tables })
    }

    /// The symbol of a field, where it has one in the window.
    fn symbol(&self, field: u32) -> Option<usize> {
        if field == self.first {
            return Some(0);
        }
        let s = field.checked_sub(self.base)?;
        (s > 0 && s >> self.symbol_bits == 0).then_some(s as usize)
    }
}

/// Vose's alias construction with two stacks (FORMAT.md section 7.3), as the words of
/// [`AnsPlan::tables`].
fn alias_words(freqs: &[u32], out: &mut Vec<u32>) {
    let n = freqs.len();
    let cap = 4096 / n as u32;
    let mut left = freqs.to_vec();
    let (mut small, mut large): (Vec<_>, Vec<_>) = (0..n).partition(|&s| left[s] < cap);
    let mut keep = vec![cap; n];
    let mut donor: Vec<usize> = (0..n).collect();
    while let (Some(&l), Some(s)) = (large.last(), small.pop()) {
        keep[s] = left[s];
        donor[s] = l;
        left[l] -= cap - left[s];
        if left[l] < cap {
            large.pop();
            small.push(l);
        }
    }
    let mut next_rank = vec![0u32; n];
    for b in 0..n {
        let begin = b as u32 * cap;
        let split = begin + keep[b];
        out.push(split);
        for (symbol, from, to) in [(b, begin, split), (donor[b], split, begin + cap)] {
            out.push(freqs[symbol] | (symbol as u32) << 16);
            out.push(next_rank[symbol].wrapping_sub(from));
            next_rank[symbol] += to - from;
        }
    }
}

impl AnsPlan {
    /// Takes a tensor apart.
    ///
    /// # Errors
    /// [`Rule::SpecMismatch`] unless it is bf16 in ANS form; of class Corrupt for a payload that
    /// breaks the format; [`Rule::Device`] for one that offsets of 32 bits do not reach.
    pub(crate) fn new(tensor: &EncodedTensor) -> Result<Self> {
        let spec = tensor.spec();
        if spec.dtype() != Dtype::BF16 || tensor.encoding() != EncodingId::Ans {
            return Err(Error::new(Rule::SpecMismatch)
                .expected("BF16 in encoding ans")
                .found(format!("{} in encoding {}", spec.dtype(), tensor.encoding())));
        }
        if tensor.byte_len() >= 1 << 31 || spec.byte_len() >= 1 << 31 {
            return Err(Error::new(Rule::Device)
                .expected("less than 2 GiB")
                .found(spec.byte_len()));
        }
        let head = Head::read(tensor.head())?;
        let n_blocks = tensor.table().n_blocks();
        let mut plan = AnsPlan {
            m: head.m,
            symbol_bits: head.symbol_bits,
            base: head.base,
            first: head.first,
            n_units: spec.n_units(),
            blocks: Vec::with_capacity(n_blocks as usize * BLOCK_WORDS),
            tables: Vec::new(),
            patches: Vec::new(),
        };
        for freqs in &head.tables {
            alias_words(freqs, &mut plan.tables);
        }
        for index in 0..n_blocks {
            let place = tensor.table().padded_block_range(index).start;
            let n_units = spec.block_byte_len(index) / 2;
            let before = plan.blocks.len();
            plan.read_block(&head, tensor.block(index), place as usize, n_units)
                .map_err(|e| e.at(place))?;
            plan.blocks.resize(before + BLOCK_WORDS, 0);
        }
        Ok(plan)
    }

    fn read_block(
        &mut self,
        head: &Head,
        block: &[u8],
        place: usize,
        n_units: usize,
    ) -> Result<()> {
        let first_unit = (self.blocks.len() / BLOCK_WORDS * BLOCK_UNITS) as u32;
        let length = || Error::new(Rule::AnsBlockLength).found(block.len());
        let (&header, mut rest) = block.split_first_chunk::<8>().ok_or_else(length)?;
        let body = (place + 8) as u32;
        match header[0] {
            0 if header[1..] != [0; 7] => return Err(Error::new(Rule::AnsBlockHeader)),
            0 if rest.len() == 2 * n_units => {
                self.blocks.extend([0, 0, 0, 0, body, n_units as u32]);
                return Ok(());
            }
            0 => return Err(length()),
            1 => {
                let constant = rest.as_chunks::<2>().0;
                if header[1..] != [0; 7]
                    || block.len() != 64
                    || 2 * n_units < 64
                    || constant.iter().any(|u| u != &constant[0])
                {
                    return Err(Error::new(Rule::ConstantBlock));
                }
                let unit = u32::from(u16::from_le_bytes(constant[0]));
                self.blocks.extend([1, 0, 0, 0, unit, n_units as u32]);
                return Ok(());
            }
            2 => {}
            _ => return Err(Error::new(Rule::AnsBlockHeader)),
        }
        let rice = u32::from(header[1]);
        let n_exceptions = usize::from(u16::from_le_bytes([header[2], header[3]]));
        let n_words = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let n_groups = n_units / GROUP;
        if rice > 15 || n_groups == 0 || n_words > n_groups * GROUP {
            return Err(Error::new(Rule::AnsBlockHeader));
        }
        let mut at = 8;
        let mut take = |n: usize| {
            let (taken, after) = rest.split_at_checked(n).ok_or_else(length)?;
            rest = after;
            at += n;
            Ok::<_, Error>((at - n, taken))
        };
        let padding = || Error::new(Rule::PaddingNotZero);
        let zeros = |bytes: &[u8]| bytes.iter().all(|&b| b == 0);

        // The states: 4 bits of length each, then the bits below the leading one.
        let (_, lengths) = take(16)?;
        let lengths: Vec<u32> =
            lengths.iter().flat_map(|&b| [b & 15, b >> 4]).map(u32::from).collect();
        let n_bytes = lengths.iter().map(|n| 16 + *n as usize).sum::<usize>().div_ceil(8);
        let (_, packed) = take(n_bytes.next_multiple_of(4))?;
        let mut bits = Bits { bytes: &packed[..n_bytes], at: 0 };
        let mut states = Vec::with_capacity(32);
        for n in lengths {
            let bits = bits.pull(16 + n).ok_or_else(|| Error::new(Rule::AnsBlockLength))?;
            states.push(1u32 << (16 + n) | bits);
        }
        if !bits.done() || !zeros(&packed[n_bytes..]) {
            return Err(padding());
        }

        let (words_at, words) = take((2 * n_words).next_multiple_of(4))?;
        if !zeros(&words[2 * n_words..]) {
            return Err(padding());
        }
        let groups_a_segment = head.segment / GROUP;
        let n_segments = n_groups.div_ceil(groups_a_segment);
        let id_bits = head.tables.len().next_power_of_two().ilog2();
        let n_bytes = (n_segments * id_bits as usize).div_ceil(8);
        let (_, packed) = take(n_bytes.next_multiple_of(4))?;
        let mut bits = Bits { bytes: &packed[..n_bytes], at: 0 };
        let mut ids = Vec::with_capacity(n_segments);
        for _ in 0..n_segments {
            let id = bits.pull(id_bits).filter(|&id| (id as usize) < head.tables.len());
            ids.push(id.ok_or_else(|| Error::new(Rule::AnsTableId))?);
        }
        if !bits.done() || !zeros(&packed[n_bytes..]) {
            return Err(padding());
        }
        let table_of = |group: usize| ids[group / groups_a_segment];

        // The last 64 bytes of the residual, or all of it, travel in the end states.
        let residual_len = n_groups * 32 * (8 - head.m as usize);
        let (residual_at, _) = take(residual_len.saturating_sub(64))?;

        self.blocks.extend([2, n_groups as u32, (place + words_at) as u32, n_words as u32]);
        self.blocks.extend([(place + residual_at) as u32, n_units as u32, 0, 0]);
        self.blocks.extend(&states);
        for four in 0..n_groups.div_ceil(4) {
            let id = |i: usize| if four * 4 + i < n_groups { table_of(four * 4 + i) } else { 0 };
            self.blocks.push(id(0) | id(1) << 8 | id(2) << 16 | id(3) << 24);
        }

        // Exceptions, then the units after the last group.
        let tail = 2 * (n_units - n_groups * GROUP);
        let (exceptions, tail) = rest
            .split_at_checked(rest.len().checked_sub(tail).ok_or_else(length)?)
            .ok_or_else(length)?;
        let mut bits = Bits { bytes: exceptions, at: 0 };
        let wrong = || Error::new(Rule::AnsException);
        let n = n_groups * GROUP;
        let mut next = 0;
        for _ in 0..n_exceptions {
            let gap = bits.ones(n >> rice).and_then(|q| Some(q << rice | bits.pull(rice)?));
            let position = next + gap.ok_or_else(wrong)? as usize;
            if position >= n {
                return Err(wrong());
            }
            next = position + 1;
            let field = read_field(&mut bits, head).filter(|f| f >> (8 + head.m) == 0);
            let field = field.ok_or_else(wrong)?;
            let freqs = &head.tables[table_of(position / GROUP) as usize];
            if head.symbol(field).is_some_and(|s| freqs[s] > 0) {
                return Err(wrong());
            }
            self.patches.push([first_unit + position as u32, field]);
        }
        if !bits.done() {
            return Err(wrong());
        }
        for (i, unit) in tail.as_chunks::<2>().0.iter().enumerate() {
            let unit = u32::from(u16::from_le_bytes(*unit));
            self.patches.push([first_unit + (n + i) as u32, unit | 1 << 31]);
        }
        Ok(())
    }
}

/// The field of an exception: below the window, above it, or in it.
fn read_field(bits: &mut Bits<'_>, head: &Head) -> Option<u32> {
    let window_end = head.base + (1 << head.symbol_bits);
    let distance = |bits: &mut Bits<'_>| {
        let n = bits.ones(12)?;
        let value = 1 << n | bits.pull(n)?;
        Some((value - 1) * 2 + bits.pull(1)?)
    };
    if bits.pull(1)? == 0 {
        head.base.checked_sub(1 + distance(bits)?)
    } else if bits.pull(1)? == 0 {
        Some(window_end + distance(bits)?)
    } else {
        Some(head.base + bits.pull(head.symbol_bits)?)
    }
}
