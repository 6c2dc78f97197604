//! AVX-512: a bit transposition turns the bitmaps of a tile into codes, and one byte expansion
//! instruction inserts the escapes.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::*;

use bigsmall_format::Backend;
use bigsmall_format::internal::Ahead;

use self::products::{add_products, load_chains, store_chains, words};
use super::{avx2, stream};
use crate::arch::portable;
use crate::kernels::{Chains, Column, Kernels, LINES, Tiles, check_run};
use crate::layout::{
    BF16, Head, Start, TILE, Width, escape_mask, exponent_place, extra_bitmaps, for_dtype,
    has_plane, tile_bytes,
};

mod products;

pub(crate) fn kernels() -> Option<&'static Kernels> {
    static KERNELS: Kernels = Kernels {
        backend: Backend::Avx512,
        count_escapes,
        decode,
        dot_tbe: Some(dot_tbe),
        dot_plain: products::dot_plain,
        // As fast as with vectors of 64 bytes: they wait for memory.
        dot_nibbles: avx2::products::dot_nibbles,
        sum_of_pairs: Some(products::sum_of_pairs),
        unpack_nibbles: avx2::products::unpack_nibbles,
        unpack_pairs: products::unpack_pairs,
        take_sum: products::take_sum,
        widen: products::widen,
        multiply: products::multiply,
    };
    Backend::Avx512.is_available().then_some(&KERNELS)
}

plain_loops!("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,gfni,avx2,fma,bmi1,bmi2,popcnt");

fn count_escapes(head: &Head, bitmaps: &[[u8; 8]], starts: &[Start]) -> Result<usize, usize> {
    // SAFETY: `kernels` returned this function, so the machine has the features.
    unsafe { count_any(head, bitmaps, starts) }
}

fn decode(tiles: &Tiles<'_>, out: &mut [u8], ahead: &mut Ahead<'_>) {
    let tile = tile_bytes(tiles.head.fields.mantissa_bits);
    let n = out.len() / tile;
    check_run(tiles, 0, n);
    let (whole, rest) = out.split_at_mut(n * tile);
    // SAFETY: `kernels` returned this function, so the machine has the features; the lengths were
    // checked above.
    let used = unsafe {
        for_dtype!(tiles.head.dtype, M => match tiles.head.width {
            Width::Three => decode_tiles::<M, 3>(tiles, whole, ahead),
            Width::Four => decode_tiles::<M, 4>(tiles, whole, ahead),
        })
    };
    if !rest.is_empty() {
        let left = tiles.after(n, used);
        // SAFETY: as above.
        unsafe { decode_any(&left, rest) };
    }
}

fn dot_tbe(tiles: &Tiles<'_>, shift: u32, column: Column<'_>, chains: &mut Chains) -> usize {
    check_run(tiles, shift, column.x.len() / TILE);
    // SAFETY: `kernels` returned this function, so the machine has the features; the lengths were
    // checked above.
    unsafe {
        for_dtype!(tiles.head.dtype, M => match (tiles.head.width, shift) {
            (Width::Three, 0) => dot_tbe_impl::<M, 3, true>(tiles, shift, column, chains),
            (Width::Three, _) => dot_tbe_impl::<M, 3, false>(tiles, shift, column, chains),
            (Width::Four, 0) => dot_tbe_impl::<M, 4, true>(tiles, shift, column, chains),
            (Width::Four, _) => dot_tbe_impl::<M, 4, false>(tiles, shift, column, chains),
        })
    }
}

/// The low and the high bytes of 64 weights, from what [`exponents`] returns and the bytes of the
/// plane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn bytes_of<const M: u32>(exponents: __m512i, plane: __m512i) -> (__m512i, __m512i) {
    if M != BF16 {
        return (plane, exponents);
    }
    // Move the lowest bit of each exponent to the top, its position in the lower byte. This is the
    // product of the byte with a bit matrix.
    let turn = _mm512_set1_epi64(0x0204_0810_2040_8001);
    let turned = _mm512_gf2p8affine_epi64_epi8::<0>(exponents, turn);
    // 0xCA selects the bits of the second operand where the first has ones, else of the third.
    let mantissa = _mm512_set1_epi8(0x7f);
    let low = _mm512_ternarylogic_epi64::<0xCA>(mantissa, plane, turned);
    let high = _mm512_ternarylogic_epi64::<0xCA>(mantissa, turned, plane);
    (low, high)
}

/// The order of the bytes of eight bitmaps in which [`codes`] transposes them, and which of them
/// there are. Byte g of each goes to 64 bits, which belong to the weights 8 g to 8 g + 7. The 64
/// bits are a bit matrix. In its product with the bytes 1, 2, 4, ..., 128, bit i of byte j is bit j
/// of the byte 7 - i of the matrix.
const fn places(m: u32, w: usize) -> ([u8; TILE], u64) {
    let (extra, place) = (extra_bitmaps(m), exponent_place(m) as usize);
    const NONE: usize = 8;
    let mut bitmaps = [NONE; 8];
    let mut bit = 0;
    while bit < place + w {
        bitmaps[bit] = if bit < place { w + bit } else { bit - place };
        bit += 1;
    }
    if extra > 0 {
        bitmaps[7] = w + extra - 1;
    }
    let mut places = [TILE as u8 - 1; TILE];
    let mut mask = 0;
    let mut i = 0;
    while i < TILE {
        let bitmap = bitmaps[7 - i % 8];
        if bitmap != NONE {
            places[i] = (8 * bitmap + i / 8) as u8;
            mask |= 1 << i;
        }
        i += 1;
    }
    (places, mask)
}

/// The codes of tile `tile`, one byte each, at the place of the exponent, with the bits of the
/// extra bitmaps at their places in the high byte of the weight; and which of them are escapes.
///
/// # Safety
/// `bitmaps` must have those of the tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,gfni")]
unsafe fn codes<const M: u32, const W: usize>(bitmaps: &[[u8; 8]], tile: usize) -> (__m512i, u64) {
    let per_tile = W + extra_bitmaps(M);
    let first = tile * per_tile;
    // SAFETY: as the caller promises.
    let from = unsafe { bitmaps.as_ptr().add(first) };
    let left = bitmaps.len() - first;
    // A load with a mask takes several times as long as one without, so only the last tiles have
    // one.
    let words = if per_tile <= 4 && left >= 4 {
        // SAFETY: four bitmaps are 32 bytes.
        _mm512_zextsi256_si512(unsafe { _mm256_loadu_si256(from.cast()) })
    } else if left >= 8 {
        // SAFETY: eight bitmaps are 64 bytes.
        unsafe { _mm512_loadu_si512(from.cast()) }
    } else {
        // SAFETY: the mask limits the load to the bitmaps of this tile.
        unsafe { _mm512_maskz_loadu_epi64(((1_u32 << per_tile) - 1) as u8, from.cast()) }
    };
    let (places, exist) = const { places(M, W) };
    // SAFETY: 64 bytes are one vector.
    let places = unsafe { _mm512_loadu_si512(places.as_ptr().cast()) };
    let words = if per_tile <= 4 {
        // The last byte is 0.
        _mm512_permutexvar_epi8(places, words)
    } else {
        _mm512_maskz_permutexvar_epi8(exist, places, words)
    };
    let codes = _mm512_gf2p8affine_epi64_epi8::<0>(
        _mm512_set1_epi64(0x8040_2010_0804_0201_u64 as i64),
        words,
    );
    // By scalar instructions, because the way of a mask from a vector to a scalar register takes
    // longer. Of a pointer that compilers do not know they load words; else they take them out of
    // the vector.
    let mut hidden = from;
    // SAFETY: nothing is done.
    unsafe { asm!("/* {0} */", inout(reg) hidden, options(pure, readonly, nostack)) };
    // SAFETY: there are `W` words.
    let words = unsafe { hidden.cast::<[[u8; 8]; W]>().read() };
    (codes, escape_mask(&words))
}

/// The escapes of consecutive tiles.
struct Escapes<'a> {
    bytes: &'a [u8],
    /// How many of them earlier tiles have taken.
    used: usize,
    /// While fewer than so many are taken, [`FEW`](Self::FEW) are left.
    few_until: usize,
}

impl<'a> Escapes<'a> {
    /// Hardly any tile has more. A vector of so few bytes lies in two cache lines less often than
    /// one of 64.
    const FEW: usize = 16;

    fn new(bytes: &'a [u8]) -> Self {
        Escapes { bytes, used: 0, few_until: bytes.len().saturating_sub(Self::FEW - 1) }
    }

    /// The next `n` of them, at most 64, and any bytes after them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,bmi2")]
    fn next(&mut self, n: usize) -> __m512i {
        let used = self.used;
        self.used += n;
        if n <= Self::FEW && used < self.few_until {
            // SAFETY: 16 bytes are left.
            let few = unsafe { _mm_loadu_si128(self.bytes.as_ptr().add(used).cast()) };
            return _mm512_castsi128_si512(few);
        }
        let left = self.bytes.get(used..).unwrap_or(&[]);
        let mask = ((1_u128 << left.len().min(TILE)) - 1) as u64;
        // SAFETY: the mask limits the load to bytes that are left.
        unsafe { _mm512_maskz_loadu_epi8(mask, left.as_ptr().cast()) }
    }
}

/// The codes of one tile become exponents, at the same place. `base` is at that place, too. `mask`
/// says which are escapes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi2,popcnt")]
fn exponents<const M: u32, const W: usize>(
    (codes, mask): (__m512i, u64),
    base: __m512i,
    escapes: &mut Escapes<'_>,
) -> __m512i {
    // With three bitmaps nearly every tile has an escape, with four hardly any. So a branch is
    // faster only with four.
    if W == 4 && mask == 0 {
        return _mm512_add_epi8(codes, base);
    }
    let these = escapes.next(mask.count_ones() as usize);
    if M == BF16 {
        return _mm512_mask_expand_epi8(_mm512_add_epi8(codes, base), mask, these);
    }
    // Exponents of five bits, so nothing is shifted into the next byte. An escape is added to the
    // ones of its code.
    let ones = _mm512_set1_epi8((((1 << W) - 1) << exponent_place(M)) as i8);
    let places = _mm512_set1_epi16(exponent_place(M) as i16);
    let these = _mm512_sub_epi8(_mm512_sllv_epi16(these, places), ones);
    _mm512_add_epi8(codes, _mm512_mask_expand_epi8(base, mask, these))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn base_of<const M: u32>(tiles: &Tiles<'_>) -> __m512i {
    _mm512_set1_epi8((tiles.head.base << exponent_place(M)) as i8)
}

/// 64 bytes of the plane, if the dtype has one.
///
/// # Safety
/// `plane` must have them.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_plane<const M: u32>(plane: &[u8], tile: usize) -> __m512i {
    if !has_plane(M) {
        return _mm512_setzero_si512();
    }
    // SAFETY: as the caller promises.
    unsafe { _mm512_loadu_si512(plane.as_ptr().add(tile * TILE).cast()) }
}

/// Decodes the whole tiles of `out`. Returns the number of their escapes.
///
/// # Safety
/// [`check_run`] must have passed for as many tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,gfni,bmi2,popcnt")]
unsafe fn decode_tiles<const M: u32, const W: usize>(
    tiles: &Tiles<'_>,
    out: &mut [u8],
    ahead: &mut Ahead<'_>,
) -> usize {
    let base = base_of::<M>(tiles);
    // Unpacking works within lanes of 128 bits. This permutation of 64-bit parts before it leaves
    // the weights in order.
    let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    let mut escapes = Escapes::new(tiles.escapes);
    let mut output = Output::new(out);
    for t in 0..out.len() / tile_bytes(M) {
        if t.is_multiple_of(2) {
            ahead.fetch(LINES);
        }
        // SAFETY: `check_run` passed: there are bitmaps and bytes of the plane for this tile. `out`
        // has room for each tile.
        unsafe {
            let codes = codes::<M, W>(tiles.bitmaps, t);
            let exponents = exponents::<M, W>(codes, base, &mut escapes);
            if !has_plane(M) {
                output.put(exponents);
                continue;
            }
            let plane = load_plane::<M>(tiles.plane, t);
            let (low, high) = bytes_of::<M>(
                _mm512_permutexvar_epi64(order, exponents),
                _mm512_permutexvar_epi64(order, plane),
            );
            output.put(_mm512_unpacklo_epi8(low, high));
            output.put(_mm512_unpackhi_epi8(low, high));
        }
    }
    // SAFETY: a vector was put for each 64 bytes.
    unsafe { output.end() };
    escapes.used
}

/// Writes decoded vectors to the output, one after the other. A large output bypasses the caches,
/// so that the processor does not read it before it is overwritten. Such stores write whole cache
/// lines. Unless the output begins at a line, each line is made from two vectors, by an instruction
/// that moves numbers of 32 bits. So an output that does not begin at a multiple of four bytes goes
/// through the caches.
struct Output {
    /// The address for the next vector, or for the next line.
    to: *mut u8,
    /// Whether to write whole lines that bypass the caches.
    lines: bool,
    /// The number of 32-bit numbers before the first line.
    skip: u32,
    /// The last vector, whose end is not yet written, if any.
    last: Option<__m512i>,
    /// Selects the numbers from `skip` on of two vectors.
    order: __m512i,
}

impl Output {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(out: &mut [u8]) -> Self {
        let to = out.as_mut_ptr();
        let skip = to.addr().wrapping_neg() % TILE;
        let first = _mm512_set1_epi32(skip as i32 / 4);
        let numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        Output {
            to,
            lines: out.len() >= stream::LEAST && skip.is_multiple_of(4),
            skip: skip as u32 / 4,
            last: None,
            order: _mm512_add_epi32(numbers, first),
        }
    }

    /// # Safety
    /// The output must have 64 bytes more.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn put(&mut self, vector: __m512i) {
        // SAFETY: as the caller promises. The unwritten part of `last` begins at a line.
        unsafe {
            if !self.lines {
                _mm512_storeu_si512(self.to.cast(), vector);
                self.to = self.to.add(TILE);
            } else if let Some(last) = self.last.replace(vector) {
                let line = _mm512_permutex2var_epi32(last, self.order, vector);
                _mm512_stream_si512(self.to.cast(), line);
                self.to = self.to.add(TILE);
            } else {
                _mm512_mask_storeu_epi32(self.to.cast(), (1 << self.skip) - 1, vector);
                self.to = self.to.add(4 * self.skip as usize);
            }
        }
    }

    /// Writes the rest. No vector may be put afterwards.
    ///
    /// # Safety
    /// As many vectors must have been put as the output has room for.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn end(self) {
        if let Some(last) = self.last {
            let rest = _mm512_permutexvar_epi32(self.order, last);
            // SAFETY: the end of the last vector is within the output. Older compilers declare the
            // fence unsafe.
            unsafe {
                _mm512_mask_storeu_epi32(self.to.cast(), u16::MAX >> self.skip, rest);
                _mm_sfence();
            }
        }
    }
}

/// Adds the products of the tiles' weights and `x` to `chains`. Returns the number of the tiles'
/// escapes.
///
/// # Safety
/// [`check_run`] must have passed for `x.len() / 64` tiles. `ALIGNED` demands a shift of 0.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,gfni,fma,bmi2,popcnt")]
unsafe fn dot_tbe_impl<const M: u32, const W: usize, const ALIGNED: bool>(
    tiles: &Tiles<'_>,
    shift: u32,
    Column { x, ahead }: Column<'_>,
    chains: &mut Chains,
) -> usize {
    let base = base_of::<M>(tiles);
    // Selects the bytes from `shift` on of two vectors.
    let order: [u8; TILE] = std::array::from_fn(|i| i as u8 + shift as u8);
    // SAFETY: 64 bytes are one vector.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    let mut escapes = Escapes::new(tiles.escapes);
    // SAFETY: 64 floats.
    let mut sums = unsafe { load_chains(chains.as_ptr()) };
    for (t, x) in x.as_chunks::<TILE>().0.iter().enumerate() {
        if has_plane(M) {
            stream::fetch_plane(tiles, t * TILE, ahead);
        }
        let per_tile = W + extra_bitmaps(M);
        let here = tiles.bitmaps.as_ptr().wrapping_add(t * per_tile);
        stream::fetch_bitmaps(here, per_tile, ahead);
        // SAFETY: `check_run` passed: there are bitmaps for this tile, for one more if it is
        // shifted, and bytes of the plane.
        unsafe {
            let mut these = codes::<M, W>(tiles.bitmaps, t);
            if !ALIGNED {
                let next = codes::<M, W>(tiles.bitmaps, t + 1);
                these.0 = _mm512_permutex2var_epi8(these.0, order, next.0);
                these.1 = these.1 >> shift | next.1 << (64 - shift);
            }
            let exponents = exponents::<M, W>(these, base, &mut escapes);
            let (low, high) = bytes_of::<M>(exponents, load_plane::<M>(tiles.plane, t));
            add_products::<M>(&mut sums, words::<M>(low, high), x.as_ptr());
        }
    }
    store_chains(sums, chains);
    escapes.used
}
