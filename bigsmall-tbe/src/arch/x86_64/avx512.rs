//! AVX-512: a bit transposition turns the bitmaps of a tile into codes, and one byte expansion
//! instruction inserts the escapes.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use bigsmall_format::Backend;
use bigsmall_format::internal::Ahead;

use self::products::{add_products, load_chains, store_chains};
use super::stream;
use crate::arch::portable;
use crate::kernels::{Chains, Kernels, LINES, Tiles, check_run};
use crate::layout::{Head, Start, TILE, TILE_BYTES, Width};

mod products;

pub(crate) fn kernels() -> Option<&'static Kernels> {
    static KERNELS: Kernels = Kernels {
        backend: Backend::Avx512,
        count_escapes,
        decode,
        dot_tbe: Some(dot_tbe),
        dot_bf16: products::dot_bf16,
        dot_nibbles: products::dot_nibbles,
        unpack: products::unpack,
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
    if tiles.head.fields.mantissa_bits != 7 {
        // SAFETY: `kernels` returned this function, so the machine has the features.
        return unsafe { decode_any(tiles, out) };
    }
    let n = out.len() / TILE_BYTES;
    check_run(tiles, 0, n);
    let (whole, rest) = out.split_at_mut(n * TILE_BYTES);
    // SAFETY: `kernels` returned this function, so the machine has the features; the lengths were
    // checked above.
    let used = unsafe {
        match tiles.head.width {
            Width::Three => decode_tiles::<3>(tiles, whole, ahead),
            Width::Four => decode_tiles::<4>(tiles, whole, ahead),
        }
    };
    if !rest.is_empty() {
        let left = tiles.after(n, used);
        // SAFETY: as above.
        unsafe { decode_any(&left, rest) };
    }
}

fn dot_tbe(tiles: &Tiles<'_>, shift: u32, x: &[f32], chains: &mut Chains) -> usize {
    check_run(tiles, shift, x.len() / TILE);
    // SAFETY: `kernels` returned this function, so the machine has the features; the lengths were
    // checked above.
    unsafe {
        match (tiles.head.width, shift) {
            (Width::Three, 0) => dot_tbe_impl::<3, true>(tiles, shift, x, chains),
            (Width::Three, _) => dot_tbe_impl::<3, false>(tiles, shift, x, chains),
            (Width::Four, 0) => dot_tbe_impl::<4, true>(tiles, shift, x, chains),
            (Width::Four, _) => dot_tbe_impl::<4, false>(tiles, shift, x, chains),
        }
    }
}

/// The low and the high bytes of 64 bf16 weights, from their exponents and sign-mantissa bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn bytes_of(exponents: __m512i, plane: __m512i) -> (__m512i, __m512i) {
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

/// The codes of tile `tile`, one byte each.
///
/// # Safety
/// `bitmaps` must have W bitmaps for the tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,gfni")]
unsafe fn codes<const W: usize>(bitmaps: &[[u8; 8]], tile: usize) -> __m512i {
    let at = tile * W;
    // SAFETY: either four bitmaps remain, or the mask limits the load to the W of this tile.
    let words = unsafe {
        let from = bitmaps.as_ptr().add(at);
        if at + 4 <= bitmaps.len() {
            _mm256_loadu_si256(from.cast())
        } else {
            _mm256_maskz_loadu_epi64((1 << W) - 1, from.cast())
        }
    };
    // Byte g of bitmap i goes to byte 7 - i of 64 bits, which belong to the weights 8 g to 8 g + 7.
    // The 64 bits are a bit matrix. In its product with the bytes 1, 2, 4, ..., 128, bit i of byte
    // j is bit j of bitmap byte i. The other rows come from the upper half of the vector, which is
    // 0.
    let places = const {
        let (first, next) =
            if W == 3 { (0x0008_1020, 0x0101_0100) } else { (0x0008_1018, 0x0101_0101) };
        let mut places = [0x2020_2020; 8];
        let mut g = 0;
        while g < 8 {
            places[g] |= (first + next * g as i64) << 32;
            g += 1;
        }
        places
    };
    // SAFETY: eight times 64 bits are one vector.
    let places = unsafe { _mm512_loadu_si512(places.as_ptr().cast()) };
    let matrices = _mm512_permutexvar_epi8(places, _mm512_zextsi256_si512(words));
    _mm512_gf2p8affine_epi64_epi8::<0>(
        _mm512_set1_epi64(0x8040_2010_0804_0201_u64 as i64),
        matrices,
    )
}

/// The exponents of one tile with these codes. `used` is the number of escapes that earlier tiles
/// have taken; the escapes of this tile are added to it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,bmi2,popcnt")]
fn exponents<const W: usize>(
    codes: __m512i,
    base: __m512i,
    escapes: &[u8],
    used: &mut usize,
) -> __m512i {
    let mask = _mm512_cmpeq_epi8_mask(codes, _mm512_set1_epi8((1 << W) - 1));
    let exponents = _mm512_add_epi8(codes, base);
    // With three bitmaps nearly every tile has an escape, with four hardly any. So a branch is
    // faster only with four.
    if W == 4 && mask == 0 {
        return exponents;
    }
    let these = if escapes.len() >= TILE && *used <= escapes.len() - TILE {
        // SAFETY: at least 64 bytes remain.
        unsafe { _mm512_loadu_si512(escapes.as_ptr().add(*used).cast()) }
    } else {
        let rest = escapes.get(*used..).unwrap_or(&[]);
        // SAFETY: fewer than 64 bytes remain, and the mask limits the load to them.
        unsafe { _mm512_maskz_loadu_epi8((1 << rest.len()) - 1, rest.as_ptr().cast()) }
    };
    *used += mask.count_ones() as usize;
    _mm512_mask_expand_epi8(exponents, mask, these)
}

/// Decodes `out.len() / 128` whole tiles. Returns the number of their escapes.
///
/// # Safety
/// [`check_run`] must have passed for as many tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,gfni,bmi2,popcnt")]
unsafe fn decode_tiles<const W: usize>(
    tiles: &Tiles<'_>,
    out: &mut [u8],
    ahead: &mut Ahead<'_>,
) -> usize {
    let base = _mm512_set1_epi8(tiles.head.base as i8);
    // Unpacking works within lanes of 128 bits. This permutation of 64-bit parts before it leaves
    // the weights in order.
    let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    let mut used = 0;
    let mut output = Output::new(out);
    for t in 0..out.len() / TILE_BYTES {
        if t.is_multiple_of(2) {
            ahead.fetch(LINES);
        }
        // SAFETY: `check_run` passed: there are W bitmaps and 64 bytes of the plane for this tile.
        // Of the escapes, only those after the first `used` are read. `out` has 128 bytes per tile.
        unsafe {
            let codes = codes::<W>(tiles.bitmaps, t);
            let exponents = exponents::<W>(codes, base, tiles.escapes, &mut used);
            let plane = _mm512_loadu_si512(tiles.plane.as_ptr().add(t * TILE).cast());
            let (low, high) = bytes_of(
                _mm512_permutexvar_epi64(order, exponents),
                _mm512_permutexvar_epi64(order, plane),
            );
            output.put(_mm512_unpacklo_epi8(low, high));
            output.put(_mm512_unpackhi_epi8(low, high));
        }
    }
    // SAFETY: two vectors were put for each 128 bytes.
    unsafe { output.end() };
    used
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
unsafe fn dot_tbe_impl<const W: usize, const ALIGNED: bool>(
    tiles: &Tiles<'_>,
    shift: u32,
    x: &[f32],
    chains: &mut Chains,
) -> usize {
    let base = _mm512_set1_epi8(tiles.head.base as i8);
    // Selects the bytes from `shift` on of two vectors.
    let order: [u8; TILE] = std::array::from_fn(|i| i as u8 + shift as u8);
    // SAFETY: 64 bytes are one vector.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    let mut used = 0;
    // SAFETY: 64 floats.
    let mut sums = unsafe { load_chains(chains.as_ptr()) };
    for (t, x) in x.as_chunks::<TILE>().0.iter().enumerate() {
        stream::fetch_plane(tiles, t * TILE);
        stream::fetch_bitmaps::<W>(tiles.bitmaps.as_ptr().wrapping_add(t * W));
        // SAFETY: `check_run` passed: there are W bitmaps for this tile, W more if it is shifted,
        // and 64 bytes of the plane. Of the escapes, only those after the first `used` are read.
        unsafe {
            let mut these = codes::<W>(tiles.bitmaps, t);
            if !ALIGNED {
                let next = codes::<W>(tiles.bitmaps, t + 1);
                these = _mm512_permutex2var_epi8(these, order, next);
            }
            let exponents = exponents::<W>(these, base, tiles.escapes, &mut used);
            let plane = _mm512_loadu_si512(tiles.plane.as_ptr().add(t * TILE).cast());
            let (low, high) = bytes_of(exponents, plane);
            add_products(
                &mut sums,
                _mm512_unpacklo_epi8(low, high),
                _mm512_unpackhi_epi8(low, high),
                x.as_ptr(),
            );
        }
    }
    store_chains(sums, chains);
    used
}
