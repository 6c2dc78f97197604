//! Groups of 256 values of up to 8 bits, packed without waste and unpacked without shifting across
//! bytes (FORMAT.md section 7.4).
//!
//! A group is 8 rows of 32 columns. Its `bits` times 32 bytes are `bits` rows of bytes: byte row
//! `k` holds, at every column, value row `k` with its top bit moved to bit 7, and in the bits
//! between, from bit `bits - 1` upwards, bit `k` of the value rows that have no byte row of their
//! own. So seven byte rows carry eight rows of 7-bit values, and most of them need no more than a
//! mask.
//!
//! Values are handled in *spread* form throughout: top bit in bit 7, the others at the bottom.

/// Values of one group.
pub(crate) const GROUP: usize = 256;
/// Values of a row.
pub(crate) const COLUMNS: usize = 32;

/// Bytes of one packed group.
pub(crate) const fn packed_len(bits: u32) -> usize {
    bits as usize * COLUMNS
}

/// A row of 32 bytes as words of 8: shifts that stay within each byte, eight at a time.
const WORDS: usize = COLUMNS / 8;
/// One in each byte.
pub(crate) const ONES: u64 = 0x0101_0101_0101_0101;

/// Packs 256 spread values of `bits` bits (1 to 8).
#[inline(always)]
pub(crate) fn pack(values: &[u8; GROUP], bits: u32, out: &mut [u8]) {
    debug_assert_eq!(out.len(), packed_len(bits));
    match bits {
        1 => pack_bits::<1>(values, out),
        2 => pack_bits::<2>(values, out),
        3 => pack_bits::<3>(values, out),
        4 => pack_bits::<4>(values, out),
        5 => pack_bits::<5>(values, out),
        6 => pack_bits::<6>(values, out),
        7 => pack_bits::<7>(values, out),
        8 => out.copy_from_slice(values),
        _ => unreachable!("a residual of 1 to 8 bits"),
    }
}

/// [`pack`] for fewer than 8 bits, with loops that are unrolled.
#[inline(always)]
fn pack_bits<const BITS: usize>(values: &[u8; GROUP], out: &mut [u8]) {
    let (own, spilled) = values.as_chunks::<COLUMNS>().0.split_at(BITS);
    for k in 0..BITS {
        let from = if k == BITS - 1 { 7 } else { k };
        let mut words = words_of(&own[k]);
        for (to, row) in (BITS - 1..).zip(spilled) {
            for (word, value) in words.iter_mut().zip(words_of(row)) {
                *word |= (value >> from & ONES) << to;
            }
        }
        for (bytes, word) in out[k * COLUMNS..][..COLUMNS].as_chunks_mut().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
    }
}

#[inline(always)]
fn words_of(row: &[u8; COLUMNS]) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(row.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

/// Unpacks what [`pack`] packed.
#[inline(always)]
pub(crate) fn unpack(packed: &[u8], bits: u32, values: &mut [u8; GROUP]) {
    for (row, values) in values.as_chunks_mut::<COLUMNS>().0.iter_mut().enumerate() {
        *values = unpack_row(packed, bits, row);
    }
}

/// One row of what [`pack`] packed.
#[inline(always)]
pub(crate) fn unpack_row(packed: &[u8], bits: u32, row: usize) -> [u8; COLUMNS] {
    let packed = &packed.as_chunks::<COLUMNS>().0[..bits as usize];
    let mut words = [0u64; WORDS];
    if let Some(own) = packed.get(row) {
        let mask = u64::from(0x80 | ((1u16 << (bits - 1)) - 1) as u8) * ONES;
        for (word, bytes) in words.iter_mut().zip(own.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes) & mask;
        }
    } else {
        let from = row - 1;
        for (k, bytes) in (1..).zip(packed) {
            let to = if k == bits { 7 } else { k - 1 };
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
                *word |= (u64::from_le_bytes(*bytes) >> from & ONES) << to;
            }
        }
    }
    let mut values = [0; COLUMNS];
    for (values, word) in values.as_chunks_mut().0.iter_mut().zip(words) {
        *values = word.to_le_bytes();
    }
    values
}

/// Appends the low `width` bits of each value of a group: a plane for each byte, then the bits
/// above them, packed.
#[inline(always)]
pub(crate) fn pack_lows(value: impl Fn(usize) -> u64, width: u32, out: &mut Vec<u8>) {
    for byte in 0..width / 8 {
        out.extend((0..GROUP).map(|i| (value(i) >> (8 * byte)) as u8));
    }
    let bits = width % 8;
    if bits > 0 {
        let top = |i| (value(i) >> (width - bits)) as u8 & ((1 << bits) - 1);
        let values = std::array::from_fn(|i| spread(top(i), bits));
        let at = out.len();
        out.resize(at + packed_len(bits), 0);
        pack(&values, bits, &mut out[at..]);
    }
}

/// Moves the top bit of a `bits`-bit value to bit 7.
pub(crate) fn spread(value: u8, bits: u32) -> u8 {
    (value & ((1u16 << (bits - 1)) - 1) as u8) | (value >> (bits - 1)) << 7
}

/// The inverse of [`spread`].
pub(crate) fn unspread(value: u8, bits: u32) -> u8 {
    (value & 0x7f) | (value >> 7) << (bits - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_round_trips_and_wastes_nothing() {
        for bits in 1..=8 {
            let values: [u8; GROUP] = std::array::from_fn(|i| {
                spread((i.wrapping_mul(0x9e37) >> 3) as u8 & ((1u16 << bits) - 1) as u8, bits)
            });
            let mut packed = vec![0; packed_len(bits)];
            pack(&values, bits, &mut packed);
            let mut back = [0xaa; GROUP];
            unpack(&packed, bits, &mut back);
            assert_eq!(values, back, "{bits} bits");
            for v in 0..1u16 << bits {
                assert_eq!(u16::from(unspread(spread(v as u8, bits), bits)), v);
            }
        }
    }

    #[test]
    fn one_bit_values_fill_one_byte_row() {
        // Row 0 in bit 7, row t in bit t - 1: the example of FORMAT.md.
        let values: [u8; GROUP] = std::array::from_fn(|i| if i / 32 == i % 8 { 0x80 } else { 0 });
        let mut packed = vec![0; packed_len(1)];
        pack(&values, 1, &mut packed);
        assert_eq!(packed[..8], [0x80, 1, 2, 4, 8, 16, 32, 64]);
    }
}
