//! Products of plain bf16 weights and of weights as nibbles, 32 weights at a time.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::arch::blocks::{self, Lanes};
use crate::arch::x86_64::stream;
use crate::kernels::{Chains, GROUP_LANES, NIBBLE_TILE, Nibbles, Panels};
use crate::layout::{TILE, TILE_BYTES};

pub(super) fn dot_bf16(weights: &[u8], x: &[f32], chains: &mut Chains) {
    // SAFETY: `kernels` returned this function, so the machine has the features.
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

/// The weights of a pair of unpacked vectors as f32: 0, 2, 4, 6, 16, 18, 20, 22 of 32,
/// those after each of them, and the same eight later.
#[inline]
#[target_feature(enable = "avx2")]
fn floats(even: __m256i, odd: __m256i) -> [__m256; 4] {
    let top = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    [
        _mm256_slli_epi32::<16>(even),
        _mm256_and_si256(even, top),
        _mm256_slli_epi32::<16>(odd),
        _mm256_and_si256(odd, top),
    ]
    .map(|weights| _mm256_castsi256_ps(weights))
}

/// Adds the products of 32 weights, given as unpacked pairs, to the chains of that half of a tile.
///
/// # Safety
/// `x` must be valid for reads of 56 floats.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn add_products(
    sums: &mut [__m256; 4],
    even: __m256i,
    odd: __m256i,
    x: *const f32,
) {
    for (i, (sum, weights)) in sums.iter_mut().zip(floats(even, odd)).enumerate() {
        // SAFETY: 16 i + 8 is at most 56.
        let x = unsafe { _mm256_loadu_ps(x.add(16 * i)) };
        *sum = _mm256_fmadd_ps(weights, x, *sum);
    }
}

/// The chains of both halves of a tile.
///
/// # Safety
/// `chains` must be valid for reads of 64 floats.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn load_chains(chains: *const f32) -> [[__m256; 4]; 2] {
    // SAFETY: as the caller promises: 8 + 48 + 8 is 64.
    let load = |i| unsafe { _mm256_loadu_ps(chains.add(i)) };
    [[load(0), load(16), load(32), load(48)], [load(8), load(24), load(40), load(56)]]
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_chains(sums: [[__m256; 4]; 2], chains: &mut Chains) {
    for (half, sums) in sums.into_iter().enumerate() {
        for (i, sum) in sums.into_iter().enumerate() {
            // SAFETY: 8 + 48 + 8 is 64.
            unsafe { _mm256_storeu_ps(chains.as_mut_ptr().add(8 * half + 16 * i), sum) };
        }
    }
}

/// One half of a tile of plain weights, in the order in which unpacking 32 bytes leaves them.
#[inline]
#[target_feature(enable = "avx2")]
fn half(tile: &[u8; TILE_BYTES], half: usize) -> (__m256i, __m256i) {
    // SAFETY: half is 0 or 1: 64 + 64 of 128 bytes.
    let (a, b) = unsafe {
        let weights = tile.as_ptr().add(64 * half);
        (_mm256_loadu_si256(weights.cast()), _mm256_loadu_si256(weights.add(32).cast()))
    };
    (_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b))
}

/// Both halves of a tile of nibbles, in the same order.
#[inline]
#[target_feature(enable = "avx2")]
fn halves(high: __m256i, tile: &[u8; NIBBLE_TILE]) -> [(__m256i, __m256i); 2] {
    let nibble = _mm256_set1_epi8(15);
    // SAFETY: three vectors are 96 bytes.
    let [codes, first, second] =
        unsafe { [0, 32, 64].map(|at| _mm256_loadu_si256(tile.as_ptr().add(at).cast())) };
    let later = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble);
    [(_mm256_and_si256(codes, nibble), first), (later, second)].map(|(codes, low)| {
        let high = _mm256_shuffle_epi8(high, codes);
        (_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high))
    })
}

#[inline]
#[target_feature(enable = "avx2")]
fn table(nibbles: &Nibbles<'_>) -> __m256i {
    // SAFETY: 16 bytes.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(nibbles.high.as_ptr().cast()) })
}

#[target_feature(enable = "avx2,fma")]
fn dot_bf16_impl(weights: &[u8], x: &[f32], chains: &mut Chains) {
    // SAFETY: 64 floats.
    let mut sums = unsafe { load_chains(chains.as_ptr()) };
    for (tile, x) in weights.as_chunks::<TILE_BYTES>().0.iter().zip(x.as_chunks::<TILE>().0) {
        stream::fetch_bf16(tile);
        for (i, sums) in sums.iter_mut().enumerate() {
            let (even, odd) = half(tile, i);
            // SAFETY: i is 0 or 1: 8 + 56 of 64 floats.
            unsafe { add_products(sums, even, odd, x.as_ptr().add(8 * i)) };
        }
    }
    store_chains(sums, chains);
}

#[target_feature(enable = "avx2,fma")]
fn dot_nibbles_impl(nibbles: &Nibbles<'_>, x: &[f32], chains: &mut Chains) {
    let high = table(nibbles);
    // SAFETY: 64 floats.
    let mut sums = unsafe { load_chains(chains.as_ptr()) };
    for (tile, x) in nibbles.tiles.iter().zip(x.as_chunks::<TILE>().0) {
        stream::fetch_nibbles(tile);
        for (i, (even, odd)) in halves(high, tile).into_iter().enumerate() {
            // SAFETY: i is 0 or 1: 8 + 56 of 64 floats.
            unsafe { add_products(&mut sums[i], even, odd, x.as_ptr().add(8 * i)) };
        }
    }
    store_chains(sums, chains);
}

#[target_feature(enable = "avx2")]
fn unpack_impl(nibbles: &Nibbles<'_>, out: &mut [u8]) {
    let high = table(nibbles);
    for (tile, out) in nibbles.tiles.iter().zip(out.as_chunks_mut::<TILE_BYTES>().0) {
        let [a, b] = halves(high, tile).map(|(even, odd)| {
            [
                _mm256_permute2x128_si256::<0x20>(even, odd),
                _mm256_permute2x128_si256::<0x31>(even, odd),
            ]
        });
        // SAFETY: four vectors are 128 bytes.
        unsafe { out.as_mut_ptr().cast::<[[__m256i; 2]; 2]>().write_unaligned([a, b]) };
    }
}

#[target_feature(enable = "avx2")]
fn widen_impl(weights: &[u8], n: usize, row: usize, out: &mut [f32]) {
    let tiles = weights.as_chunks::<TILE_BYTES>().0;
    assert!(row < n && out.len() >= Panels::len_of(n, tiles.len()));
    for (t, tile) in tiles.iter().enumerate() {
        for i in 0..2 {
            let (even, odd) = half(tile, i);
            for (group, floats) in floats(even, odd).into_iter().enumerate() {
                let at = Panels::offset(n, tiles.len(), group, row) + t * GROUP_LANES + 8 * i;
                // SAFETY: the place of half a group; the length was checked above.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(at), floats) };
            }
        }
    }
}

/// Eight floats.
#[derive(Clone, Copy)]
struct Eight(__m256);

impl Lanes for Eight {
    const N: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: as the caller promises; the same in the other functions.
        Eight(unsafe { _mm256_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        Eight(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn mul_add(self, x: Self, sum: Self) -> Self {
        // SAFETY: see above.
        Eight(unsafe { _mm256_fmadd_ps(self.0, x.0, sum.0) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_ps(to, self.0) };
    }
}

#[target_feature(enable = "avx2,fma")]
fn multiply_impl(w: &Panels<'_>, x: &Panels<'_>, chains: &mut [Chains]) {
    // SAFETY: the machine has the features.
    unsafe { blocks::multiply::<Eight, 3, 4>(w, x, chains) }
}
