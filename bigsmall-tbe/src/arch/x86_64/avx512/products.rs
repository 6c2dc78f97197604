//! Products of plain bf16 weights and of weights as nibbles, a tile at a time.
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

/// The weights of a pair of unpacked vectors as f32: four vectors of chains.
#[inline]
#[target_feature(enable = "avx512f")]
fn floats(even: __m512i, odd: __m512i) -> [__m512; 4] {
    let top = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    [
        _mm512_slli_epi32::<16>(even),
        _mm512_and_si512(even, top),
        _mm512_slli_epi32::<16>(odd),
        _mm512_and_si512(odd, top),
    ]
    .map(|weights| _mm512_castsi512_ps(weights))
}

/// Adds the products of 64 weights, given as unpacked pairs, to 64 chains.
///
/// # Safety
/// `x` must be valid for reads of 64 floats.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn add_products(
    sums: &mut [__m512; 4],
    even: __m512i,
    odd: __m512i,
    x: *const f32,
) {
    for (i, (sum, weights)) in sums.iter_mut().zip(floats(even, odd)).enumerate() {
        // SAFETY: 16 i + 16 is at most 64.
        let x = unsafe { _mm512_loadu_ps(x.add(16 * i)) };
        *sum = _mm512_fmadd_ps(weights, x, *sum);
    }
}

/// # Safety
/// `chains` must be valid for reads of 64 floats.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn load_chains(chains: *const f32) -> [__m512; 4] {
    // SAFETY: as the caller promises.
    unsafe { [0, 16, 32, 48].map(|i| _mm512_loadu_ps(chains.add(i))) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_chains(sums: [__m512; 4], chains: &mut Chains) {
    for (sum, chains) in sums.into_iter().zip(chains.as_chunks_mut::<16>().0) {
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(chains.as_mut_ptr(), sum) };
    }
}

/// A tile of plain weights, in the order in which unpacking a tile of bytes leaves them.
#[inline]
#[target_feature(enable = "avx512f")]
fn plain(tile: &[u8; TILE_BYTES]) -> (__m512i, __m512i) {
    // SAFETY: 128 bytes.
    let (a, b) = unsafe {
        let tile = tile.as_ptr();
        (_mm512_loadu_si512(tile.cast()), _mm512_loadu_si512(tile.add(TILE).cast()))
    };
    (_mm512_shuffle_i64x2::<0x88>(a, b), _mm512_shuffle_i64x2::<0xDD>(a, b))
}

/// The low and the high bytes of a tile of nibbles.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn bytes_of(high: __m512i, tile: &[u8; NIBBLE_TILE]) -> (__m512i, __m512i) {
    // SAFETY: 32 and 64 bytes of 96.
    let (codes, low) = unsafe {
        let tile = tile.as_ptr();
        (_mm256_loadu_si256(tile.cast()), _mm512_loadu_si512(tile.add(TILE / 2).cast()))
    };
    // The look-up uses six bits of each byte, and the table repeats every 16, so the other nibble
    // need not be cleared.
    let shift = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
    let codes = _mm512_srlv_epi64(_mm512_broadcast_i64x4(codes), shift);
    (low, _mm512_permutexvar_epi8(codes, high))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn table(nibbles: &Nibbles<'_>) -> __m512i {
    // SAFETY: 16 bytes.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(nibbles.high.as_ptr().cast()) })
}

#[target_feature(enable = "avx512f,avx512bw,fma")]
fn dot_bf16_impl(weights: &[u8], x: &[f32], chains: &mut Chains) {
    // SAFETY: 64 floats.
    let mut sums = unsafe { load_chains(chains.as_ptr()) };
    for (tile, x) in weights.as_chunks::<TILE_BYTES>().0.iter().zip(x.as_chunks::<TILE>().0) {
        stream::fetch_bf16(tile);
        let (even, odd) = plain(tile);
        // SAFETY: 64 floats.
        unsafe { add_products(&mut sums, even, odd, x.as_ptr()) };
    }
    store_chains(sums, chains);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,fma")]
fn dot_nibbles_impl(nibbles: &Nibbles<'_>, x: &[f32], chains: &mut Chains) {
    let high = table(nibbles);
    // SAFETY: 64 floats.
    let mut sums = unsafe { load_chains(chains.as_ptr()) };
    for (tile, x) in nibbles.tiles.iter().zip(x.as_chunks::<TILE>().0) {
        stream::fetch_nibbles(tile);
        let (low, high) = bytes_of(high, tile);
        let (even, odd) = (_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high));
        // SAFETY: 64 floats.
        unsafe { add_products(&mut sums, even, odd, x.as_ptr()) };
    }
    store_chains(sums, chains);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn unpack_impl(nibbles: &Nibbles<'_>, out: &mut [u8]) {
    let high = table(nibbles);
    // Unpacking works within lanes of 128 bits. This permutation of 64-bit parts before it leaves
    // the weights in order.
    let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    for (tile, out) in nibbles.tiles.iter().zip(out.as_chunks_mut::<TILE_BYTES>().0) {
        let (low, high) = bytes_of(high, tile);
        let low = _mm512_permutexvar_epi64(order, low);
        let high = _mm512_permutexvar_epi64(order, high);
        let both = [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)];
        // SAFETY: two vectors are 128 bytes.
        unsafe { out.as_mut_ptr().cast::<[__m512i; 2]>().write_unaligned(both) };
    }
}

#[target_feature(enable = "avx512f")]
fn widen_impl(weights: &[u8], n: usize, row: usize, out: &mut [f32]) {
    let tiles = weights.as_chunks::<TILE_BYTES>().0;
    assert!(row < n && out.len() >= Panels::len_of(n, tiles.len()));
    for (t, tile) in tiles.iter().enumerate() {
        let (even, odd) = plain(tile);
        for (group, floats) in floats(even, odd).into_iter().enumerate() {
            let at = Panels::offset(n, tiles.len(), group, row) + t * GROUP_LANES;
            // SAFETY: the place of a group; the length was checked above.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(at), floats) };
        }
    }
}

/// Sixteen floats.
#[derive(Clone, Copy)]
struct Sixteen(__m512);

impl Lanes for Sixteen {
    const N: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: as the caller promises; the same in the other functions.
        Sixteen(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        Sixteen(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn mul_add(self, x: Self, sum: Self) -> Self {
        // SAFETY: see above.
        Sixteen(unsafe { _mm512_fmadd_ps(self.0, x.0, sum.0) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(to, self.0) };
    }
}

#[target_feature(enable = "avx512f,fma")]
fn multiply_impl(w: &Panels<'_>, x: &Panels<'_>, chains: &mut [Chains]) {
    // SAFETY: the machine has the features.
    unsafe { blocks::multiply::<Sixteen, 3, 4>(w, x, chains) }
}
