//! Products of plain weights and of weights as pairs, a tile or two at a time.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use bigsmall_format::Dtype;

use crate::arch::blocks::{self, Lanes};
use crate::arch::x86_64::stream;
use crate::floats;
use crate::kernels::{Chains, Column, Escape, GROUP_LANES, PAIR_CELL, PAIRS, Pairs, Panels};
use crate::layout::{BF16, E4M3, E5M2, F16, TILE, TILE_BYTES, for_dtype, has_plane, tile_bytes};

pub(super) fn dot_plain(dtype: Dtype, weights: &[u8], column: Column<'_>, chains: &mut Chains) {
    // SAFETY: `kernels` returned this function, so the machine has the features.
    unsafe { for_dtype!(dtype, M => dot_plain_impl::<M>(weights, column, chains)) }
}

pub(super) fn sum_of_pairs(
    pairs: &Pairs<'_>,
    escapes: &[Escape],
    first: usize,
    column: Column<'_>,
) -> f32 {
    // SAFETY: as above.
    unsafe { sum_of_pairs_impl(pairs, escapes, first, column) }
}

pub(super) fn unpack_pairs(pairs: &Pairs<'_>, out: &mut [u8]) {
    // SAFETY: as above.
    unsafe { unpack_pairs_impl(pairs, out) }
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

/// 64 weights of two bytes, as unpacking a vector of low and one of high bytes leaves them. They
/// are f16 if the dtype is F16 or F8_E5M2, else bf16.
type Words = [__m512i; 2];

/// 64 weights from their low and high bytes. Those of one byte are high bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) fn words<const M: u32>(low: __m512i, high: __m512i) -> Words {
    let (low, high) = match M {
        E4M3 => e4m3_to_bf16(high),
        // The upper byte of an f16.
        E5M2 => (_mm512_setzero_si512(), high),
        _ => (low, high),
    };
    [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
}

/// The low and the high bytes of F8_E4M3 as bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
fn e4m3_to_bf16(weights: __m512i) -> (__m512i, __m512i) {
    let [low, high] = &floats::E4M3_BYTES;
    let (low, high) = (look_up(low, weights), look_up(high, weights));
    // The sign: 0xCA selects the bits of the second operand where the first has ones, else of the
    // third.
    (low, _mm512_ternarylogic_epi64::<0xCA>(_mm512_set1_epi8(0x7f), high, weights))
}

/// The bytes at these places, of which seven bits count.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
fn look_up(bytes: &[u8; 128], places: __m512i) -> __m512i {
    // SAFETY: two vectors are 128 bytes.
    let (first, second) = unsafe {
        let bytes = bytes.as_ptr();
        (_mm512_loadu_si512(bytes.cast()), _mm512_loadu_si512(bytes.add(TILE).cast()))
    };
    _mm512_permutex2var_epi8(first, places, second)
}

/// 64 weights as f32: four vectors of chains.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn floats<const M: u32>([even, odd]: Words) -> [__m512; 4] {
    if matches!(M, F16 | E5M2) {
        // The first words of all 32-bit parts, then the second ones.
        let order: [u16; 32] = const {
            let mut order = [0; 32];
            let mut i = 0;
            while i < 32 {
                order[i] = (i % 16 * 2 + i / 16) as u16;
                i += 1;
            }
            order
        };
        // SAFETY: 64 bytes are one vector.
        let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
        let even = _mm512_permutexvar_epi16(order, even);
        let odd = _mm512_permutexvar_epi16(order, odd);
        let first = |weights| _mm512_cvtph_ps(_mm512_castsi512_si256(weights));
        let second = |weights| _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(weights));
        return [first(even), second(even), first(odd), second(odd)];
    }
    let top = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    [
        _mm512_slli_epi32::<16>(even),
        _mm512_and_si512(even, top),
        _mm512_slli_epi32::<16>(odd),
        _mm512_and_si512(odd, top),
    ]
    .map(|weights| _mm512_castsi512_ps(weights))
}

/// Adds the products of 64 weights to 64 chains.
///
/// # Safety
/// `x` must be valid for reads of 64 floats.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn add_products<const M: u32>(
    sums: &mut [__m512; 4],
    words: Words,
    x: *const f32,
) {
    for (i, (sum, weights)) in sums.iter_mut().zip(floats::<M>(words)).enumerate() {
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

#[target_feature(enable = "avx512f,avx2")]
fn take_sum_impl(chains: &mut Chains) -> f32 {
    // SAFETY: 64 floats.
    let sums = unsafe { load_chains(chains.as_ptr()) };
    store_chains([_mm512_setzero_ps(); 4], chains);
    sum(sums)
}

/// The sum of all chains.
#[inline]
#[target_feature(enable = "avx512f,avx2")]
fn sum([a, b, c, d]: [__m512; 4]) -> f32 {
    let one = _mm512_add_ps(_mm512_add_ps(a, c), _mm512_add_ps(b, d));
    let upper = _mm512_shuffle_f32x4::<0b11_10>(one, one);
    let half = _mm256_add_ps(_mm512_castps512_ps256(one), _mm512_castps512_ps256(upper));
    let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
    let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
}

/// A tile of plain weights.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn plain<const M: u32>(tile: &[u8]) -> Words {
    assert!(tile.len() == tile_bytes(M));
    // SAFETY: 64 bytes, or 128 bytes if weights have two.
    unsafe {
        let a = _mm512_loadu_si512(tile.as_ptr().cast());
        if !has_plane(M) {
            return words::<M>(_mm512_setzero_si512(), a);
        }
        let b = _mm512_loadu_si512(tile.as_ptr().add(TILE).cast());
        [_mm512_shuffle_i64x2::<0x88>(a, b), _mm512_shuffle_i64x2::<0xDD>(a, b)]
    }
}

/// The high bytes of all codes of pairs: those in the first tile, and those in the second.
type Table = [(__m512i, __m512i); 2];

#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
fn table(pairs: &Pairs<'_>) -> Table {
    // SAFETY: 16 bytes.
    let high = _mm512_castsi128_si512(unsafe { _mm_loadu_si128(pairs.high.as_ptr().cast()) });
    let [first, second] = &PAIRS;
    // SAFETY: two vectors are 128 bytes.
    let numbers = |numbers: &[u8; 128], half| unsafe {
        _mm512_loadu_si512(numbers.as_ptr().add(TILE * half).cast())
    };
    let high = |of, half| _mm512_permutexvar_epi8(numbers(of, half), high);
    [(high(first, 0), high(first, 1)), (high(second, 0), high(second, 1))]
}

/// The high bytes of both tiles of a cell.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
fn high_bytes(table: &Table, cell: &[u8; PAIR_CELL]) -> (__m512i, __m512i) {
    // Seven bytes for each eight codes, then the bits of each code at the bottom of its byte. The
    // look-up uses seven bits, so the other one need not be cleared.
    const SEVENS: [u8; TILE] = {
        let mut places = [0; TILE];
        let mut i = 0;
        while i < TILE {
            places[i] = (i / 8 * 7 + i % 8) as u8;
            i += 1;
        }
        places
    };
    let shifts = _mm512_set1_epi64(i64::from_le_bytes([0, 7, 14, 21, 28, 35, 42, 49]));
    // SAFETY: both are at least 64 bytes.
    let (sevens, bytes) = unsafe {
        (_mm512_loadu_si512(SEVENS.as_ptr().cast()), _mm512_loadu_si512(cell.as_ptr().cast()))
    };
    let codes = _mm512_permutexvar_epi8(sevens, bytes);
    let codes = _mm512_multishift_epi64_epi8(shifts, codes);
    let [first, second] = table;
    (
        _mm512_permutex2var_epi8(first.0, codes, first.1),
        _mm512_permutex2var_epi8(second.0, codes, second.1),
    )
}

/// The low bytes of both tiles of a cell.
#[inline]
#[target_feature(enable = "avx512f")]
fn low_bytes(cell: &[u8; PAIR_CELL]) -> (__m512i, __m512i) {
    // SAFETY: a cell ends with two vectors.
    unsafe {
        let low = cell.as_ptr().add(PAIR_CELL - 2 * TILE);
        (_mm512_loadu_si512(low.cast()), _mm512_loadu_si512(low.add(TILE).cast()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,fma")]
fn dot_plain_impl<const M: u32>(weights: &[u8], column: Column<'_>, chains: &mut Chains) {
    let Column { x, ahead } = column;
    // SAFETY: 64 floats.
    let mut sums = unsafe { load_chains(chains.as_ptr()) };
    for (tile, x) in weights.chunks_exact(tile_bytes(M)).zip(x.as_chunks::<TILE>().0) {
        stream::fetch_plain(tile, ahead);
        // SAFETY: 64 floats.
        unsafe { add_products::<M>(&mut sums, plain::<M>(tile), x.as_ptr()) };
    }
    store_chains(sums, chains);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,fma")]
fn sum_of_pairs_impl(
    pairs: &Pairs<'_>,
    escapes: &[Escape],
    first: usize,
    column: Column<'_>,
) -> f32 {
    let Column { x, ahead } = column;
    let table = table(pairs);
    let mut escapes = Escapes { next: escapes, first };
    let mut with_escapes = escapes.cell();
    let mut sums = [_mm512_setzero_ps(); 4];
    let (x, last_x) = x.as_chunks::<{ 2 * TILE }>();
    for (i, (cell, x)) in pairs.cells.iter().zip(x).enumerate() {
        stream::fetch_pairs(cell, ahead);
        let mut high = high_bytes(&table, cell);
        if i == with_escapes {
            high = escapes.patch(high);
            with_escapes = escapes.cell();
        }
        let low = low_bytes(cell);
        // SAFETY: twice 64 floats.
        unsafe {
            add_products::<BF16>(&mut sums, words::<BF16>(low.0, high.0), x.as_ptr());
            add_products::<BF16>(&mut sums, words::<BF16>(low.1, high.1), x.as_ptr().add(TILE));
        }
    }
    // A row may end with the first tile of a cell.
    let i = x.len();
    if let (Some(x), Some(cell)) = (last_x.first_chunk::<TILE>(), pairs.cells.get(i)) {
        let mut high = high_bytes(&table, cell);
        if with_escapes == i {
            high = escapes.patch(high);
        }
        let words = words::<BF16>(low_bytes(cell).0, high.0);
        // SAFETY: 64 floats.
        unsafe { add_products::<BF16>(&mut sums, words, x.as_ptr()) };
    }
    sum(sums)
}

/// The escapes of pairs that are still to come; the pairs begin at place `first` of the row.
struct Escapes<'a> {
    next: &'a [Escape],
    first: usize,
}

impl Escapes<'_> {
    fn place(&self, escape: Escape) -> usize {
        escape.place() - self.first
    }

    /// The next cell that has one.
    #[inline]
    fn cell(&self) -> usize {
        self.next.first().map_or(usize::MAX, |&escape| self.place(escape) / (2 * TILE))
    }

    /// Takes the escapes of that cell, and puts them among its high bytes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn patch(&mut self, (mut high, mut next_high): (__m512i, __m512i)) -> (__m512i, __m512i) {
        let cell = self.cell();
        while let [escape, after @ ..] = self.next
            && self.cell() == cell
        {
            // A bit for each weight of the cell. So the vectors stay in registers.
            let bit = 1_u128 << (self.place(*escape) % (2 * TILE));
            let byte = escape.high() as i8;
            high = _mm512_mask_set1_epi8(high, bit as u64, byte);
            next_high = _mm512_mask_set1_epi8(next_high, (bit >> TILE) as u64, byte);
            self.next = after;
        }
        (high, next_high)
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn unpack_pairs_impl(pairs: &Pairs<'_>, out: &mut [u8]) {
    let table = table(pairs);
    // Unpacking works within lanes of 128 bits. This permutation of 64-bit parts before it leaves
    // the weights in order.
    let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    for (cell, out) in pairs.cells.iter().zip(out.as_chunks_mut::<{ 2 * TILE_BYTES }>().0) {
        let (low, high) = (low_bytes(cell), high_bytes(&table, cell));
        for (tile, out) in
            [(low.0, high.0), (low.1, high.1)].into_iter().zip(out.as_chunks_mut::<TILE_BYTES>().0)
        {
            let low = _mm512_permutexvar_epi64(order, tile.0);
            let high = _mm512_permutexvar_epi64(order, tile.1);
            // SAFETY: two vectors are 128 bytes.
            unsafe { out.as_mut_ptr().cast::<Words>().write_unaligned(words::<BF16>(low, high)) };
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn widen_impl<const M: u32>(weights: &[u8], n: usize, row: usize, out: &mut [f32]) {
    let n_tiles = weights.len() / tile_bytes(M);
    assert!(row < n && out.len() >= Panels::len_of(n, n_tiles));
    for (t, tile) in weights.chunks_exact(tile_bytes(M)).enumerate() {
        for (group, floats) in floats::<M>(plain::<M>(tile)).into_iter().enumerate() {
            let at = Panels::offset(n, n_tiles, group, row) + t * GROUP_LANES;
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
