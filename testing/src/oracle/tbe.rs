//! A second implementation of FORMAT.md section 8, written from its text, with one `BitVec` per
//! bitmap, and inputs for the tests. It shares no code with the crate `bigsmall-tbe`.

use bigsmall_format::{Dtype, EncodedTensor, EncodingId, TensorSpec};
use bitvec::prelude::*;

use crate::Random;

/// Exponent bits, mantissa bits, bits in the byte plane, bitmaps in addition to the codes.
pub fn fields(dtype: Dtype) -> (u32, u32, u32, usize) {
    match dtype {
        Dtype::BF16 => (8, 7, 8, 0),
        Dtype::F16 => (5, 10, 8, 3),
        Dtype::F8_E4M3 => (4, 3, 0, 4),
        Dtype::F8_E5M2 => (5, 2, 0, 3),
        _ => panic!("no such fields"),
    }
}

pub const DTYPES: [Dtype; 4] = [Dtype::BF16, Dtype::F16, Dtype::F8_E4M3, Dtype::F8_E5M2];

pub fn values(dtype: Dtype, bytes: &[u8]) -> Vec<u16> {
    if dtype.unit_bytes() == 2 {
        bytes.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
    } else {
        bytes.iter().map(|&b| b.into()).collect()
    }
}

pub fn bytes(dtype: Dtype, values: &[u16]) -> Vec<u8> {
    if dtype.unit_bytes() == 2 {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    } else {
        values.iter().map(|&v| v as u8).collect()
    }
}

pub fn exponent(dtype: Dtype, value: u16) -> u8 {
    let (e, m, _, _) = fields(dtype);
    value.view_bits::<Lsb0>()[m as usize..(m + e) as usize].load()
}

fn others(dtype: Dtype, value: u16) -> u16 {
    let (e, m, _, _) = fields(dtype);
    let bits = value.view_bits::<Lsb0>();
    let mut out = bits[..m as usize].to_bitvec();
    out.push(bits[(m + e) as usize]);
    out.load()
}

fn pad8(out: &mut Vec<u8>) {
    while !out.len().is_multiple_of(8) {
        out.push(0);
    }
}

/// One block, without the padding after it.
pub fn encode_block(dtype: Dtype, width: usize, base: u8, block: &[u16]) -> Vec<u8> {
    let (_, _, plane_bits, extra) = fields(dtype);
    let window = (1u32 << width) - 1;
    let mut out = Vec::new();
    let mut escapes = Vec::new();
    let mut starts = Vec::new();
    for (i, &value) in block.iter().enumerate() {
        if i % 512 == 0 {
            starts.push(escapes.len() as u32);
        }
        let e = exponent(dtype, value);
        if u32::from(e) < base.into() || u32::from(e) >= u32::from(base) + window {
            escapes.push(e);
        }
    }
    for tile in block.chunks(64) {
        let mut maps = vec![bitvec![u64, Lsb0; 0; 64]; width + extra];
        for (i, &value) in tile.iter().enumerate() {
            let e = u32::from(exponent(dtype, value));
            let inside = e >= base.into() && e < u32::from(base) + window;
            let code = if inside { e - u32::from(base) } else { window };
            for (j, map) in maps.iter_mut().enumerate() {
                map.set(
                    i,
                    if j < width {
                        code >> j & 1 == 1
                    } else {
                        others(dtype, value) >> (plane_bits as usize + j - width) & 1 == 1
                    },
                );
            }
        }
        for map in maps {
            out.extend(map.load::<u64>().to_le_bytes());
        }
    }
    if plane_bits != 0 {
        out.extend(block.iter().map(|&v| others(dtype, v) as u8));
        pad8(&mut out);
    }
    out.extend(starts.iter().flat_map(|s| s.to_le_bytes()));
    pad8(&mut out);
    out.extend(escapes);
    out
}

/// The values that [`encode_block`] was given.
pub fn decode_block(dtype: Dtype, width: usize, base: u8, n: usize, block: &[u8]) -> Vec<u16> {
    let (e_bits, m_bits, plane_bits, extra) = fields(dtype);
    let tile_bytes = 8 * (width + extra);
    let plane_at = n.div_ceil(64) * tile_bytes;
    let starts_at = plane_at + if plane_bits != 0 { n.div_ceil(8) * 8 } else { 0 };
    let escapes_at = starts_at + (n.div_ceil(512) * 4).div_ceil(8) * 8;
    let mut next = escapes_at;
    (0..n)
        .map(|i| {
            let tile = block[i / 64 * tile_bytes..][..tile_bytes].view_bits::<Lsb0>();
            let row: BitVec<u16, Lsb0> =
                (0..width + extra).map(|j| tile[64 * j + i % 64]).collect();
            let code: u8 = row[..width].load();
            let e = if row[..width].all() {
                next += 1;
                block[next - 1]
            } else {
                base + code
            };
            let mut others = BitVec::<u16, Lsb0>::new();
            if plane_bits != 0 {
                others.extend_from_bitslice(block[plane_at + i].view_bits::<Lsb0>());
            }
            others.extend_from_bitslice(&row[width..]);
            let mut value = others[..m_bits as usize].to_bitvec();
            value.extend_from_bitslice(&e.view_bits::<Lsb0>()[..e_bits as usize]);
            value.push(others[m_bits as usize]);
            value.load()
        })
        .collect()
}

/// The whole payload, including the head.
pub fn encode(spec: &TensorSpec, width: usize, base: u8, values: &[u16]) -> EncodedTensor {
    let mut payload = vec![width as u8, base, 0, 0, 0, 0, 0, 0];
    let mut lens = Vec::new();
    for block in values.chunks(spec.block_units()) {
        let block = encode_block(spec.dtype(), width, base, block);
        lens.push(block.len() as u32);
        payload.extend(block);
        pad8(&mut payload);
    }
    EncodedTensor::new(spec.clone(), EncodingId::Tbe, 8, lens, payload).unwrap()
}

/// `n` values of which `escapes` in a thousand have an exponent outside the window of 7 (or 15)
/// that begins at `base`.
pub fn weights(
    random: &mut Random,
    dtype: Dtype,
    width: usize,
    base: u8,
    escapes: u64,
    n: usize,
) -> Vec<u16> {
    let (e_bits, m_bits, _, _) = fields(dtype);
    let window = (1u64 << width) - 1;
    let outside = (1u64 << e_bits) - window;
    let mut value = || {
        let r = random.bits();
        let e = if random.below(1000) < escapes {
            let e = random.below(outside);
            if e < base.into() { e } else { e + window }
        } else {
            u64::from(base) + random.below(window)
        };
        let mantissa = r & ((1 << m_bits) - 1);
        let sign = r >> 32 & 1;
        (sign << (e_bits + m_bits) | e << m_bits | mantissa) as u16
    };
    (0..n).map(|_| value()).collect()
}

/// A base near the middle of the dtype's exponents.
pub fn middle(dtype: Dtype, width: usize) -> u8 {
    (((1u32 << fields(dtype).0) - ((1 << width) - 1)) / 2) as u8
}
