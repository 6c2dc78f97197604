//! Products of plain weights and of weights as nibbles, 16 weights at a time.
#![allow(unsafe_code)]

use std::arch::aarch64::*;
use std::arch::asm;

use bigsmall_format::Dtype;

use crate::arch::blocks::{self, Lanes};
use crate::floats;
use crate::kernels::{Chains, Column, GROUP_LANES, NIBBLE_CELL, Nibbles, Panels};
use crate::layout::{BF16, E4M3, E5M2, F16, TILE, TILE_BYTES, for_dtype, has_plane, tile_bytes};

pub(super) fn dot_plain(dtype: Dtype, weights: &[u8], column: Column<'_>, chains: &mut Chains) {
    // SAFETY: `kernels` returned this function, so the machine has NEON.
    unsafe { for_dtype!(dtype, M => dot_plain_impl::<M>(weights, column.x, chains)) }
}

pub(super) fn dot_nibbles(nibbles: &Nibbles<'_>, column: Column<'_>, chains: &mut Chains) {
    // SAFETY: as above.
    unsafe { dot_nibbles_impl(nibbles, column.x, chains) }
}

pub(super) fn unpack_nibbles(nibbles: &Nibbles<'_>, out: &mut [u8]) {
    // SAFETY: as above.
    unsafe { unpack_nibbles_impl(nibbles, out) }
}

pub(super) fn take_sum(chains: &mut Chains) -> f32 {
    // SAFETY: as above.
    unsafe { take_sum_impl(chains) }
}

pub(super) fn widen(dtype: Dtype, weights: &[u8], n: usize, row: usize, out: &mut [f32]) {
    // SAFETY: as above.
    unsafe { for_dtype!(dtype, M => widen_impl::<M>(weights, n, row, out)) }
}

pub(super) fn multiply(w: &Panels<'_>, x: &Panels<'_>, chains: &mut [Chains]) {
    // SAFETY: as above.
    unsafe { multiply_impl(w, x, chains) }
}

/// 16 weights of two bytes: the first eight, the last eight. They are f16 if the dtype is F16 or
/// F8_E5M2, else bf16.
type Pairs = [uint16x8_t; 2];

/// 16 weights from their low and high bytes. Those of one byte are high bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn pairs<const M: u32>(low: uint8x16_t, high: uint8x16_t) -> Pairs {
    let (low, high) = match M {
        E4M3 => e4m3_to_bf16(high),
        // The upper byte of an f16.
        E5M2 => (vdupq_n_u8(0), high),
        _ => (low, high),
    };
    [vreinterpretq_u16_u8(vzip1q_u8(low, high)), vreinterpretq_u16_u8(vzip2q_u8(low, high))]
}

/// The low and the high bytes of F8_E4M3 as bf16.
#[inline]
#[target_feature(enable = "neon")]
fn e4m3_to_bf16(weights: uint8x16_t) -> (uint8x16_t, uint8x16_t) {
    let floats::Nibbles { upper, low, high } = &floats::E4M3_NIBBLES;
    let magnitudes = vandq_u8(weights, vdupq_n_u8(0x7f));
    // For all but the 16 smallest the look-up gives 0.
    let low = veorq_u8(vshlq_n_u8::<4>(weights), vqtbl1q_u8(table(low), magnitudes));
    let high = vorrq_u8(
        vqtbl1q_u8(table(upper), vshrq_n_u8::<4>(weights)),
        vqtbl1q_u8(table(high), magnitudes),
    );
    // NaN: all ones.
    let nan = vandq_u8(vceqq_u8(magnitudes, vdupq_n_u8(0x7f)), magnitudes);
    (low, vorrq_u8(high, nan))
}

/// 16 weights as f32: the even ones and the odd ones of the first eight, then of the second eight.
#[inline]
#[target_feature(enable = "neon")]
fn floats<const M: u32>([first, second]: Pairs) -> [float32x4_t; 4] {
    if matches!(M, F16 | E5M2) {
        let even = vuzp1q_u16(first, second);
        let odd = vuzp2q_u16(first, second);
        return [f16_low(even), f16_low(odd), f16_high(even), f16_high(odd)];
    }
    let [first, second] = [first, second].map(|pairs| vreinterpretq_u32_u16(pairs));
    let top = vdupq_n_u32(0xffff_0000);
    [
        vreinterpretq_f32_u32(vshlq_n_u32::<16>(first)),
        vreinterpretq_f32_u32(vandq_u32(first, top)),
        vreinterpretq_f32_u32(vshlq_n_u32::<16>(second)),
        vreinterpretq_f32_u32(vandq_u32(second, top)),
    ]
}

// The intrinsics for f16 are younger than the oldest supported compiler.

/// The first four of eight f16.
#[inline]
#[target_feature(enable = "neon")]
fn f16_low(weights: uint16x8_t) -> float32x4_t {
    let floats;
    // SAFETY: an instruction of NEON that only reads and writes these registers.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) floats, in(vreg) weights,
            options(pure, nomem, nostack, preserves_flags));
    }
    floats
}

/// The last four.
#[inline]
#[target_feature(enable = "neon")]
fn f16_high(weights: uint16x8_t) -> float32x4_t {
    let floats;
    // SAFETY: as above.
    unsafe {
        asm!("fcvtl2 {0:v}.4s, {1:v}.8h", out(vreg) floats, in(vreg) weights,
            options(pure, nomem, nostack, preserves_flags));
    }
    floats
}

/// Adds the products of 16 weights to the chains of that quarter of a tile.
///
/// # Safety
/// `x` must be valid for reads of 52 floats.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn add_products<const M: u32>(
    sums: &mut [float32x4_t; 4],
    pairs: Pairs,
    x: *const f32,
) {
    for (i, (sum, weights)) in sums.iter_mut().zip(floats::<M>(pairs)).enumerate() {
        // SAFETY: 16 i + 4 is at most 52.
        let x = unsafe { vld1q_f32(x.add(16 * i)) };
        *sum = vfmaq_f32(*sum, weights, x);
    }
}

/// The chains of the four quarters of a tile.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_chains(chains: &Chains) -> [[float32x4_t; 4]; 4] {
    std::array::from_fn(|quarter| {
        // SAFETY: 12 + 48 + 4 is 64.
        std::array::from_fn(|i| unsafe { vld1q_f32(chains.as_ptr().add(4 * quarter + 16 * i)) })
    })
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store_chains(sums: [[float32x4_t; 4]; 4], chains: &mut Chains) {
    for (quarter, sums) in sums.into_iter().enumerate() {
        for (i, sum) in sums.into_iter().enumerate() {
            // SAFETY: 12 + 48 + 4 is 64.
            unsafe { vst1q_f32(chains.as_mut_ptr().add(4 * quarter + 16 * i), sum) };
        }
    }
}

#[target_feature(enable = "neon")]
fn take_sum_impl(chains: &mut Chains) -> f32 {
    // SAFETY: sixteen vectors are 64 floats.
    let mut sums: [float32x4_t; 16] =
        std::array::from_fn(|i| unsafe { vld1q_f32(chains.as_ptr().add(4 * i)) });
    *chains = [0.0; TILE];
    for n in [8, 4, 2, 1] {
        for i in 0..n {
            sums[i] = vaddq_f32(sums[i], sums[i + n]);
        }
    }
    let pair = vadd_f32(vget_low_f32(sums[0]), vget_high_f32(sums[0]));
    vget_lane_f32::<0>(pair) + vget_lane_f32::<1>(pair)
}

/// The quarters of a tile of plain weights.
#[inline]
#[target_feature(enable = "neon")]
fn plain<const M: u32>(tile: &[u8]) -> [Pairs; 4] {
    assert!(tile.len() == tile_bytes(M));
    // SAFETY: `at` is at most 48 in 64 bytes, or at most 112 in 128 bytes if weights have two.
    let load = |at: usize| unsafe { vld1q_u8(tile.as_ptr().add(at)) };
    let quarter = |quarter: usize| {
        if !has_plane(M) {
            return pairs::<M>(vdupq_n_u8(0), load(16 * quarter));
        }
        let (first, second) = (load(32 * quarter), load(32 * quarter + 16));
        [vreinterpretq_u16_u8(first), vreinterpretq_u16_u8(second)]
    };
    [quarter(0), quarter(1), quarter(2), quarter(3)]
}

/// The quarters of a tile of nibbles.
#[inline]
#[target_feature(enable = "neon")]
fn quarters(high: uint8x16_t, tile: &[u8; NIBBLE_CELL]) -> [Pairs; 4] {
    // SAFETY: at is at most 80: 80 + 16 of 96 bytes.
    let load = |at: usize| unsafe { vld1q_u8(tile.as_ptr().add(at)) };
    let (a, b, nibble) = (load(0), load(16), vdupq_n_u8(15));
    let codes = [vandq_u8(a, nibble), vandq_u8(b, nibble), vshrq_n_u8::<4>(a), vshrq_n_u8::<4>(b)];
    std::array::from_fn(|quarter| {
        let low = load(TILE / 2 + 16 * quarter);
        pairs::<BF16>(low, vqtbl1q_u8(high, codes[quarter]))
    })
}

#[inline]
#[target_feature(enable = "neon")]
fn table(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: 16 bytes.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline(never)] // a name in profiles
#[target_feature(enable = "neon")]
fn dot_plain_impl<const M: u32>(weights: &[u8], x: &[f32], chains: &mut Chains) {
    let mut sums = load_chains(chains);
    for (tile, x) in weights.chunks_exact(tile_bytes(M)).zip(x.as_chunks::<TILE>().0) {
        for (i, pairs) in plain::<M>(tile).into_iter().enumerate() {
            // SAFETY: i is at most 3: 12 + 52 of 64 floats.
            unsafe { add_products::<M>(&mut sums[i], pairs, x.as_ptr().add(4 * i)) };
        }
    }
    store_chains(sums, chains);
}

#[inline(never)] // a name in profiles
#[target_feature(enable = "neon")]
fn dot_nibbles_impl(nibbles: &Nibbles<'_>, x: &[f32], chains: &mut Chains) {
    let high = table(nibbles.high);
    let mut sums = load_chains(chains);
    for (tile, x) in nibbles.cells.iter().zip(x.as_chunks::<TILE>().0) {
        for (i, pairs) in quarters(high, tile).into_iter().enumerate() {
            // SAFETY: i is at most 3: 12 + 52 of 64 floats.
            unsafe { add_products::<BF16>(&mut sums[i], pairs, x.as_ptr().add(4 * i)) };
        }
    }
    store_chains(sums, chains);
}

#[target_feature(enable = "neon")]
fn unpack_nibbles_impl(nibbles: &Nibbles<'_>, out: &mut [u8]) {
    let high = table(nibbles.high);
    for (tile, out) in nibbles.cells.iter().zip(out.as_chunks_mut::<TILE_BYTES>().0) {
        for (i, [first, second]) in quarters(high, tile).into_iter().enumerate() {
            // SAFETY: i is at most 3: 96 + 32 of 128 bytes.
            unsafe {
                let out = out.as_mut_ptr().add(32 * i);
                vst1q_u8(out, vreinterpretq_u8_u16(first));
                vst1q_u8(out.add(16), vreinterpretq_u8_u16(second));
            }
        }
    }
}

#[target_feature(enable = "neon")]
fn widen_impl<const M: u32>(weights: &[u8], n: usize, row: usize, out: &mut [f32]) {
    let n_tiles = weights.len() / tile_bytes(M);
    assert!(row < n && out.len() >= Panels::len_of(n, n_tiles));
    for (t, tile) in weights.chunks_exact(tile_bytes(M)).enumerate() {
        for (i, pairs) in plain::<M>(tile).into_iter().enumerate() {
            for (group, floats) in floats::<M>(pairs).into_iter().enumerate() {
                let at = Panels::offset(n, n_tiles, group, row) + t * GROUP_LANES + 4 * i;
                // SAFETY: the place of a quarter of a group; the length was checked above.
                unsafe { vst1q_f32(out.as_mut_ptr().add(at), floats) };
            }
        }
    }
}

/// Four floats.
#[derive(Clone, Copy)]
struct Four(float32x4_t);

impl Lanes for Four {
    const N: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: as the caller promises; the same in the other functions.
        Four(unsafe { vdupq_n_f32(0.0) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        Four(unsafe { vld1q_f32(from) })
    }

    #[inline(always)]
    unsafe fn mul_add(self, x: Self, sum: Self) -> Self {
        // SAFETY: see above.
        Four(unsafe { vfmaq_f32(sum.0, self.0, x.0) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { vst1q_f32(to, self.0) };
    }
}

#[target_feature(enable = "neon")]
fn multiply_impl(w: &Panels<'_>, x: &Panels<'_>, chains: &mut [Chains]) {
    // SAFETY: the machine has the features.
    unsafe { blocks::multiply::<Four, 3, 4>(w, x, chains) }
}
