//! Groups of 256 values of up to 8 bits, packed without waste and unpacked without shifting across bytes
//! (FORMAT.md section 7.4).
//!
//! A group is 8 rows of 32 columns. Its `bits` times 32 bytes are `bits` rows of bytes: byte row `k` holds, at every column, value row
//! `k` with its top bit moved to bit 7, and in the bits between, from bit `bits - 1` upwards, bit `k` of the value rows that have no
//! byte row of their own. So seven byte rows carry eight rows of 7-bit values, and most of them need no more than a mask.
//!
//! Values are handled in *spread* form throughout: top bit in bit 7, the others at the bottom.

/// Values of one group.
pub(crate) const GROUP: usize = 256;
const COLUMNS: usize = 32;

/// Bytes of one packed group.
pub(crate) const fn packed_len(bits: u32) -> usize {
    bits as usize * COLUMNS
}

/// [`pack`] with the width known to the compiler, which then makes vectors of it.
#[inline(always)]
pub(crate) fn pack_any(values: &[u8; GROUP], bits: u32, out: &mut [u8]) {
    match bits {
        1 => pack(values, 1, out),
        2 => pack(values, 2, out),
        3 => pack(values, 3, out),
        4 => pack(values, 4, out),
        5 => pack(values, 5, out),
        6 => pack(values, 6, out),
        7 => pack(values, 7, out),
        _ => pack(values, 8, out),
    }
}

/// [`unpack`] with the width known to the compiler.
#[inline(always)]
pub(crate) fn unpack_any(packed: &[u8], bits: u32, values: &mut [u8; GROUP]) {
    match bits {
        1 => unpack(packed, 1, values),
        2 => unpack(packed, 2, values),
        3 => unpack(packed, 3, values),
        4 => unpack(packed, 4, values),
        5 => unpack(packed, 5, values),
        6 => unpack(packed, 6, values),
        7 => unpack(packed, 7, values),
        _ => unpack(packed, 8, values),
    }
}

/// Packs 256 spread values of `bits` bits (1 to 8).
#[inline(always)]
fn pack(values: &[u8; GROUP], bits: u32, out: &mut [u8]) {
    let (own, spilled) = values.split_at(bits as usize * COLUMNS);
    out.copy_from_slice(own);
    for (t, row) in spilled.chunks_exact(COLUMNS).enumerate() {
        for (k, bytes) in out.chunks_exact_mut(COLUMNS).enumerate() {
            let from = if k as u32 == bits - 1 { 7 } else { k as u32 };
            let to = bits - 1 + t as u32;
            for (byte, value) in bytes.iter_mut().zip(row) {
                *byte |= (value >> from & 1) << to;
            }
        }
    }
}

/// Unpacks what [`pack`] packed.
#[inline(always)]
fn unpack(packed: &[u8], bits: u32, values: &mut [u8; GROUP]) {
    let (own, spilled) = values.split_at_mut(bits as usize * COLUMNS);
    let mask = 0x80 | ((1u16 << (bits - 1)) - 1) as u8;
    for (value, byte) in own.iter_mut().zip(packed) {
        *value = byte & mask;
    }
    for (t, row) in spilled.chunks_exact_mut(COLUMNS).enumerate() {
        row.fill(0);
        for (k, bytes) in packed.chunks_exact(COLUMNS).enumerate() {
            let to = if k as u32 == bits - 1 { 7 } else { k as u32 };
            let from = bits - 1 + t as u32;
            for (value, byte) in row.iter_mut().zip(bytes) {
                *value |= (byte >> from & 1) << to;
            }
        }
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
