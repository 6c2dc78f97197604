//! Products of plain bf16 weights and of weights as nibbles, 16 weights at a time.
#![allow(unsafe_code)]

use std::arch::aarch64::*;

use crate::arch::blocks::{self, Lanes};
use crate::kernels::{Chains, GROUP_LANES, NIBBLE_TILE, Nibbles, Panels};
use crate::layout::{TILE, TILE_BYTES};

pub(super) fn dot_bf16(weights: &[u8], x: &[f32], chains: &mut Chains) {
    // SAFETY: `kernels` returned this function, so the machine has NEON.
    unsafe { dot_bf16_impl(weights, x, chains) }
}

pub(super) fn dot_nibbles(nibbles: &Nibbles<'_>, x: &[f32], chains: &mut Chains) {
    // SAFETY: as above.
    unsafe { dot_nibbles_impl(nibbles, x, chains) }
}

pub(super) fn unpack(nibbles: &Nibbles<'_>, out: &mut [u8]) {
    // SAFETY: as above.
    unsafe { unpack_impl(nibbles, out) }
}

pub(super) fn widen(weights: &[u8], n: usize, row: usize, out: &mut [f32]) {
    // SAFETY: as above.
    unsafe { widen_impl(weights, n, row, out) }
}

pub(super) fn multiply(w: &Panels<'_>, x: &Panels<'_>, chains: &mut [Chains]) {
    // SAFETY: as above.
    unsafe { multiply_impl(w, x, chains) }
}

/// 16 weights, given as unpacked pairs, as f32: the even ones and the odd ones of the first eight,
/// then of the second eight.
#[inline]
#[target_feature(enable = "neon")]
fn floats(first: uint32x4_t, second: uint32x4_t) -> [float32x4_t; 4] {
    let top = vdupq_n_u32(0xffff_0000);
    [
        vreinterpretq_f32_u32(vshlq_n_u32::<16>(first)),
        vreinterpretq_f32_u32(vandq_u32(first, top)),
        vreinterpretq_f32_u32(vshlq_n_u32::<16>(second)),
        vreinterpretq_f32_u32(vandq_u32(second, top)),
    ]
}

/// Adds the products of 16 weights, given as unpacked pairs, to the chains of that quarter of a
/// tile.
///
/// # Safety
/// `x` must be valid for reads of 52 floats.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn add_products(
    sums: &mut [float32x4_t; 4],
    first: uint32x4_t,
    second: uint32x4_t,
    x: *const f32,
) {
    for (i, (sum, weights)) in sums.iter_mut().zip(floats(first, second)).enumerate() {
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

/// A quarter of a tile of plain weights.
#[inline]
#[target_feature(enable = "neon")]
fn quarter(tile: &[u8; TILE_BYTES], quarter: usize) -> (uint32x4_t, uint32x4_t) {
    // SAFETY: quarter is at most 3: 96 + 32 of 128 bytes.
    let (first, second) = unsafe {
        let weights = tile.as_ptr().add(32 * quarter);
        (vld1q_u8(weights), vld1q_u8(weights.add(16)))
    };
    (vreinterpretq_u32_u8(first), vreinterpretq_u32_u8(second))
}

/// The quarters of a tile of nibbles.
#[inline]
#[target_feature(enable = "neon")]
fn quarters(high: uint8x16_t, tile: &[u8; NIBBLE_TILE]) -> [(uint32x4_t, uint32x4_t); 4] {
    // SAFETY: at is at most 80: 80 + 16 of 96 bytes.
    let load = |at: usize| unsafe { vld1q_u8(tile.as_ptr().add(at)) };
    let (a, b, nibble) = (load(0), load(16), vdupq_n_u8(15));
    let codes = [vandq_u8(a, nibble), vandq_u8(b, nibble), vshrq_n_u8::<4>(a), vshrq_n_u8::<4>(b)];
    std::array::from_fn(|quarter| {
        let low = load(TILE / 2 + 16 * quarter);
        let high = vqtbl1q_u8(high, codes[quarter]);
        let first = vreinterpretq_u32_u8(vzip1q_u8(low, high));
        (first, vreinterpretq_u32_u8(vzip2q_u8(low, high)))
    })
}

#[inline]
#[target_feature(enable = "neon")]
fn table(nibbles: &Nibbles<'_>) -> uint8x16_t {
    // SAFETY: 16 bytes.
    unsafe { vld1q_u8(nibbles.high.as_ptr()) }
}

#[target_feature(enable = "neon")]
fn dot_bf16_impl(weights: &[u8], x: &[f32], chains: &mut Chains) {
    let mut sums = load_chains(chains);
    for (tile, x) in weights.as_chunks::<TILE_BYTES>().0.iter().zip(x.as_chunks::<TILE>().0) {
        for (i, sums) in sums.iter_mut().enumerate() {
            let (first, second) = quarter(tile, i);
            // SAFETY: i is at most 3: 12 + 52 of 64 floats.
            unsafe { add_products(sums, first, second, x.as_ptr().add(4 * i)) };
        }
    }
    store_chains(sums, chains);
}

#[target_feature(enable = "neon")]
fn dot_nibbles_impl(nibbles: &Nibbles<'_>, x: &[f32], chains: &mut Chains) {
    let high = table(nibbles);
    let mut sums = load_chains(chains);
    for (tile, x) in nibbles.tiles.iter().zip(x.as_chunks::<TILE>().0) {
        for (i, (first, second)) in quarters(high, tile).into_iter().enumerate() {
            // SAFETY: i is at most 3: 12 + 52 of 64 floats.
            unsafe { add_products(&mut sums[i], first, second, x.as_ptr().add(4 * i)) };
        }
    }
    store_chains(sums, chains);
}

#[target_feature(enable = "neon")]
fn unpack_impl(nibbles: &Nibbles<'_>, out: &mut [u8]) {
    let high = table(nibbles);
    for (tile, out) in nibbles.tiles.iter().zip(out.as_chunks_mut::<TILE_BYTES>().0) {
        for (i, (first, second)) in quarters(high, tile).into_iter().enumerate() {
            // SAFETY: i is at most 3: 96 + 32 of 128 bytes.
            unsafe {
                let out = out.as_mut_ptr().add(32 * i);
                vst1q_u8(out, vreinterpretq_u8_u32(first));
                vst1q_u8(out.add(16), vreinterpretq_u8_u32(second));
            }
        }
    }
}

#[target_feature(enable = "neon")]
fn widen_impl(weights: &[u8], n: usize, row: usize, out: &mut [f32]) {
    let tiles = weights.as_chunks::<TILE_BYTES>().0;
    assert!(row < n && out.len() >= Panels::len_of(n, tiles.len()));
    for (t, tile) in tiles.iter().enumerate() {
        for i in 0..4 {
            let (first, second) = quarter(tile, i);
            for (group, floats) in floats(first, second).into_iter().enumerate() {
                let at = Panels::offset(n, tiles.len(), group, row) + t * GROUP_LANES + 4 * i;
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
