//! The upper and the lower halves of the states of 32 lanes, and what decoding and encoding do
//! with their vectors. Tables of 32 or 64 symbols are looked up by `tbl`, one byte of 16 lanes at a
//! time.
//!
//! The functions that a row consists of are always inlined. So they have no target features of
//! their own, and their callers must have them.

use std::arch::aarch64::*;

use crate::kernels::{LANES, halves, whole};
use crate::table::Shuffled;

/// The states of all lanes: their upper and their lower halves, those of 8 lanes in a vector.
pub(super) struct States {
    pub(super) upper: [uint16x8_t; 4],
    pub(super) lower: [uint16x8_t; 4],
}

impl States {
    #[target_feature(enable = "neon")]
    pub(super) fn load(states: &[u32; LANES]) -> States {
        let [upper, lower] = halves(states).map(|half| {
            // SAFETY: 8 halves are one vector.
            std::array::from_fn(|v| unsafe { vld1q_u16(half[8 * v..][..8].as_ptr()) })
        });
        States { upper, lower }
    }

    #[target_feature(enable = "neon")]
    pub(super) fn store(&self, states: &mut [u32; LANES]) {
        let mut halves = [[0; LANES]; 2];
        for (half, vectors) in halves.iter_mut().zip([self.upper, self.lower]) {
            for (to, vector) in half.as_chunks_mut::<8>().0.iter_mut().zip(vectors) {
                // SAFETY: 8 halves are one vector.
                unsafe { vst1q_u16(to.as_mut_ptr(), vector) };
            }
        }
        *states = whole(halves);
    }
}

/// Of four vectors whose elements have all bits set or none: for each vector a byte with a bit for
/// each element, and a byte that says how many elements of it and of those before it are set.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
pub(super) unsafe fn sets(all_or_none: [uint16x8_t; 4]) -> (u32, u32) {
    // SAFETY: as the caller promises.
    unsafe {
        let [a, b, c, d] = all_or_none.map(|v| vreinterpretq_u8_u16(v));
        let bits = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
        let (first, second) = (vandq_u8(vuzp1q_u8(a, b), bits), vandq_u8(vuzp1q_u8(c, d), bits));
        // Of 32 bytes 16, 8 and 4 are left.
        let sums = add_pairs(first, second);
        let sums = add_pairs(sums, sums);
        let sets = vget_low_u8(add_pairs(sums, sums));
        let (sets, counts) = (vreinterpret_u32_u8(sets), vreinterpret_u32_u8(vcnt_u8(sets)));
        let both = vget_lane_u64::<0>(vreinterpret_u64_u32(vzip1_u32(sets, counts)));
        // Byte i of the product is the sum of the counts up to i, at most 32.
        (both as u32, ((both >> 32) as u32).wrapping_mul(0x0101_0101))
    }
}

/// `vpaddq_u8`, sums of neighbours. Compilers see that they have no bits in common, and then take
/// three instructions for that one.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn add_pairs(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
    let sums;
    // SAFETY: as the caller promises; nothing is read or written.
    unsafe {
        std::arch::asm!(
            "addp {:v}.16b, {:v}.16b, {:v}.16b",
            out(vreg) sums,
            in(vreg) a,
            in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Looks up 16 numbers of `BITS` bits, 5 or 6, in a table of as many bytes; larger numbers give 0.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
pub(super) unsafe fn look_up<const BITS: u32>(table: &Shuffled, numbers: uint8x16_t) -> uint8x16_t {
    // SAFETY: 16 bytes are one vector.
    unsafe {
        let part = |i: usize| vld1q_u8(table[i][0].as_ptr());
        match BITS {
            5 => vqtbl2q_u8(uint8x16x2_t(part(0), part(1)), numbers),
            _ => vqtbl4q_u8(uint8x16x4_t(part(0), part(1), part(2), part(3)), numbers),
        }
    }
}

/// Lower and upper bytes as 16 numbers of 16 bits.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
pub(super) unsafe fn zip(low: uint8x16_t, high: uint8x16_t) -> [uint16x8_t; 2] {
    // SAFETY: as the caller promises.
    unsafe {
        [vreinterpretq_u16_u8(vzip1q_u8(low, high)), vreinterpretq_u16_u8(vzip2q_u8(low, high))]
    }
}
