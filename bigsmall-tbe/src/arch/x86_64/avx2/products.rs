//! Products of plain weights and of weights as nibbles, 32 weights at a time.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::*;

use bigsmall_format::Dtype;

use crate::arch::blocks::{self, Lanes};
use crate::arch::x86_64::stream;
use crate::floats;
use crate::kernels::{Chains, Column, GROUP_LANES, NIBBLE_CELL, Nibbles, Panels};
use crate::layout::{BF16, E4M3, E5M2, F16, TILE, TILE_BYTES, for_dtype, has_plane, tile_bytes};

pub(super) fn dot_plain(dtype: Dtype, weights: &[u8], column: Column<'_>, chains: &mut Chains) {
    // SAFETY: `kernels` returned this function, so the machine has the features.
    unsafe { for_dtype!(dtype, M => dot_plain_impl::<M>(weights, column, chains)) }
}

pub(in crate::arch::x86_64) fn dot_nibbles(
    nibbles: &Nibbles<'_>,
    column: Column<'_>,
    chains: &mut Chains,
) {
    // SAFETY: as above.
    unsafe { dot_nibbles_impl(nibbles, column, chains) }
}

pub(in crate::arch::x86_64) fn unpack_nibbles(nibbles: &Nibbles<'_>, out: &mut [u8]) {
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

/// 32 weights of two bytes, as unpacking a vector of low and one of high bytes leaves them: 0, 1,
/// ..., 7 and 16, ..., 23, then the others. They are f16 if the dtype is F16 or F8_E5M2, else bf16.
type Pairs = [__m256i; 2];

/// 32 weights from their low and high bytes. Those of one byte are high bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn pairs<const M: u32>(low: __m256i, high: __m256i) -> Pairs {
    let (low, high) = match M {
        E4M3 => e4m3_to_bf16(high),
        // The upper byte of an f16.
        E5M2 => (_mm256_setzero_si256(), high),
        _ => (low, high),
    };
    [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)]
}

/// The low and the high bytes of F8_E4M3 as bf16.
#[inline]
#[target_feature(enable = "avx2")]
fn e4m3_to_bf16(weights: __m256i) -> (__m256i, __m256i) {
    let floats::Nibbles { upper, low, high } = &floats::E4M3_NIBBLES;
    let byte = |bits: u8| _mm256_set1_epi8(bits as i8);
    let magnitudes = _mm256_and_si256(weights, byte(0x7f));
    // For all but the 16 smallest, the highest bit of this index is set, and the look-up gives 0.
    let small = _mm256_add_epi8(magnitudes, byte(0x70));
    let times_16 = _mm256_and_si256(_mm256_slli_epi16::<4>(weights), byte(0xf0));
    let low = _mm256_xor_si256(times_16, _mm256_shuffle_epi8(table(low), small));
    let halves = _mm256_and_si256(_mm256_srli_epi16::<4>(weights), byte(0x0f));
    let high = _mm256_or_si256(
        _mm256_shuffle_epi8(table(upper), halves),
        _mm256_shuffle_epi8(table(high), small),
    );
    // NaN: all ones.
    let nan = _mm256_and_si256(_mm256_cmpeq_epi8(magnitudes, byte(0x7f)), magnitudes);
    (low, _mm256_or_si256(high, nan))
}

/// 32 weights as f32: 0, 2, 4, 6, 16, 18, 20, 22, those after each of them, and the same eight
/// later.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn floats<const M: u32>([even, odd]: Pairs) -> [__m256; 4] {
    if matches!(M, F16 | E5M2) {
        // The first ones of all pairs, then the second ones.
        let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
        ));
        let parted =
            |pairs| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(pairs, order));
        let (even, odd) = (parted(even), parted(odd));
        let first = |weights| _mm256_cvtph_ps(_mm256_castsi256_si128(weights));
        let second = |weights| _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(weights));
        return [first(even), second(even), first(odd), second(odd)];
    }
    let mut top = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    // Of a mask that they know compilers make blends with zeros, for which many processors have a
    // single port, the one that unpacks and looks up.
    // SAFETY: nothing is done.
    unsafe { asm!("/* {0} */", inout(ymm_reg) top, options(pure, nomem, nostack)) };
    [
        _mm256_slli_epi32::<16>(even),
        _mm256_and_si256(even, top),
        _mm256_slli_epi32::<16>(odd),
        _mm256_and_si256(odd, top),
    ]
    .map(|weights| _mm256_castsi256_ps(weights))
}

/// Adds the products of 32 weights to the chains of that half of a tile.
///
/// # Safety
/// `x` must be valid for reads of 56 floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn add_products<const M: u32>(
    sums: &mut [__m256; 4],
    pairs: Pairs,
    x: *const f32,
) {
    for (i, (sum, weights)) in sums.iter_mut().zip(floats::<M>(pairs)).enumerate() {
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

#[target_feature(enable = "avx2")]
fn take_sum_impl(chains: &mut Chains) -> f32 {
    // SAFETY: eight vectors are 64 floats.
    let eights: [__m256; 8] =
        std::array::from_fn(|i| unsafe { _mm256_loadu_ps(chains.as_ptr().add(8 * i)) });
    for eight in chains.as_chunks_mut::<8>().0 {
        // SAFETY: eight floats.
        unsafe { _mm256_storeu_ps(eight.as_mut_ptr(), _mm256_setzero_ps()) };
    }
    let four: [__m256; 4] = std::array::from_fn(|i| _mm256_add_ps(eights[i], eights[i + 4]));
    let two = [_mm256_add_ps(four[0], four[2]), _mm256_add_ps(four[1], four[3])];
    let one = _mm256_add_ps(two[0], two[1]);
    let half = _mm_add_ps(_mm256_castps256_ps128(one), _mm256_extractf128_ps::<1>(one));
    let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
}

/// Both halves of a tile of plain weights.
#[inline]
#[target_feature(enable = "avx2")]
fn plain<const M: u32>(tile: &[u8]) -> [Pairs; 2] {
    assert!(tile.len() == tile_bytes(M));
    // SAFETY: `at` is at most 32 in 64 bytes, or at most 96 in 128 bytes if weights have two.
    let load = |at: usize| unsafe { _mm256_loadu_si256(tile.as_ptr().add(at).cast()) };
    let half = |half: usize| {
        if !has_plane(M) {
            return pairs::<M>(_mm256_setzero_si256(), load(32 * half));
        }
        let (a, b) = (load(64 * half), load(64 * half + 32));
        [_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b)]
    };
    [half(0), half(1)]
}

/// Both halves of a tile of nibbles.
#[inline]
#[target_feature(enable = "avx2")]
fn halves(high: __m256i, tile: &[u8; NIBBLE_CELL]) -> [Pairs; 2] {
    let nibble = _mm256_set1_epi8(15);
    // SAFETY: three vectors are 96 bytes.
    let [codes, first, second] =
        unsafe { [0, 32, 64].map(|at| _mm256_loadu_si256(tile.as_ptr().add(at).cast())) };
    let later = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble);
    [(_mm256_and_si256(codes, nibble), first), (later, second)]
        .map(|(codes, low)| pairs::<BF16>(low, _mm256_shuffle_epi8(high, codes)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn table(bytes: &[u8; 16]) -> __m256i {
    // SAFETY: 16 bytes.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot_plain_impl<const M: u32>(weights: &[u8], column: Column<'_>, chains: &mut Chains) {
    let Column { x, ahead } = column;
    // SAFETY: 64 floats.
    let mut sums = unsafe { load_chains(chains.as_ptr()) };
    for (tile, x) in weights.chunks_exact(tile_bytes(M)).zip(x.as_chunks::<TILE>().0) {
        stream::fetch_plain(tile, ahead);
        for (i, pairs) in plain::<M>(tile).into_iter().enumerate() {
            // SAFETY: i is 0 or 1: 8 + 56 of 64 floats.
            unsafe { add_products::<M>(&mut sums[i], pairs, x.as_ptr().add(8 * i)) };
        }
    }
    store_chains(sums, chains);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot_nibbles_impl(nibbles: &Nibbles<'_>, column: Column<'_>, chains: &mut Chains) {
    let Column { x, ahead } = column;
    let high = table(nibbles.high);
    // SAFETY: 64 floats.
    let mut sums = unsafe { load_chains(chains.as_ptr()) };
    for (tile, x) in nibbles.cells.iter().zip(x.as_chunks::<TILE>().0) {
        stream::fetch_nibbles(tile, ahead);
        for (i, pairs) in halves(high, tile).into_iter().enumerate() {
            // SAFETY: i is 0 or 1: 8 + 56 of 64 floats.
            unsafe { add_products::<BF16>(&mut sums[i], pairs, x.as_ptr().add(8 * i)) };
        }
    }
    store_chains(sums, chains);
}

#[target_feature(enable = "avx2")]
fn unpack_nibbles_impl(nibbles: &Nibbles<'_>, out: &mut [u8]) {
    let high = table(nibbles.high);
    for (tile, out) in nibbles.cells.iter().zip(out.as_chunks_mut::<TILE_BYTES>().0) {
        let [a, b] = halves(high, tile).map(|[even, odd]| {
            [
                _mm256_permute2x128_si256::<0x20>(even, odd),
                _mm256_permute2x128_si256::<0x31>(even, odd),
            ]
        });
        // SAFETY: four vectors are 128 bytes.
        unsafe { out.as_mut_ptr().cast::<[[__m256i; 2]; 2]>().write_unaligned([a, b]) };
    }
}

#[target_feature(enable = "avx2,f16c")]
fn widen_impl<const M: u32>(weights: &[u8], n: usize, row: usize, out: &mut [f32]) {
    let n_tiles = weights.len() / tile_bytes(M);
    assert!(row < n && out.len() >= Panels::len_of(n, n_tiles));
    for (t, tile) in weights.chunks_exact(tile_bytes(M)).enumerate() {
        for (i, pairs) in plain::<M>(tile).into_iter().enumerate() {
            for (group, floats) in floats::<M>(pairs).into_iter().enumerate() {
                let at = Panels::offset(n, n_tiles, group, row) + t * GROUP_LANES + 8 * i;
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
