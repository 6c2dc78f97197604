//! AVX2: a shuffle and a comparison expand bitmaps to bytes; with GFNI they are transposed instead.
//! Exponents go to a ring of tiles in the level 1 cache. Escapes are patched into it without a
//! branch for each. The exponents are used a few tiles later.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use bigsmall_format::Backend;
use bigsmall_format::internal::Ahead;

use self::products::{add_products, load_chains, pairs, store_chains};
use super::stream;
use crate::arch::portable;
use crate::kernels::{Chains, Column, Kernels, LINES, Tiles, check_run};
use crate::layout::{
    BF16, Head, Start, TILE, Width, exponent_place, extra_bitmaps, for_dtype, has_plane, tile_bytes,
};

pub(super) mod products;

/// How many weights ahead decoding prefetches.
const AHEAD: usize = 4096;

pub(crate) fn kernels() -> Option<&'static Kernels> {
    let gfni = is_x86_feature_detected!("gfni");
    Backend::Avx2.is_available().then_some(if gfni { &WITH_GFNI } else { &WITHOUT_GFNI })
}

static WITH_GFNI: Kernels = with_or_without::<true>();
static WITHOUT_GFNI: Kernels = with_or_without::<false>();

/// The kernels with or without GFNI, which some processors without AVX-512 support.
const fn with_or_without<const GFNI: bool>() -> Kernels {
    Kernels {
        backend: Backend::Avx2,
        count_escapes,
        decode: decode::<GFNI>,
        dot_tbe: Some(dot_tbe::<GFNI>),
        dot_plain: products::dot_plain,
        dot_nibbles: products::dot_nibbles,
        sum_of_pairs: None,
        unpack_nibbles: products::unpack_nibbles,
        unpack_pairs: portable::unpack_pairs,
        take_sum: products::take_sum,
        widen: products::widen,
        multiply: products::multiply,
    }
}

fn count_escapes(head: &Head, bitmaps: &[[u8; 8]], starts: &[Start]) -> Result<usize, usize> {
    // SAFETY: `kernels` returned this function, so the machine has the features.
    unsafe { count_any(head, bitmaps, starts) }
}

fn decode<const GFNI: bool>(tiles: &Tiles<'_>, out: &mut [u8], ahead: &mut Ahead<'_>) {
    let tile = tile_bytes(tiles.head.fields.mantissa_bits);
    let n = out.len() / tile;
    check_run(tiles, 0, n);
    let (whole, rest) = out.split_at_mut(n * tile);
    let mut left = *tiles;
    let mut decode = |piece: &mut [u8]| {
        // SAFETY: `kernels` returned this function, so the machine has the features; the lengths
        // were checked above, and the pieces have as many tiles as `whole` altogether.
        let used = unsafe {
            for_dtype!(tiles.head.dtype, M => {
                const X: usize = extra_bitmaps(M);
                match (tiles.head.width, GFNI) {
                    (Width::Three, true) => decode_gfni::<M, X, 3>(&left, piece, ahead),
                    (Width::Three, false) => decode_avx2::<M, X, 3>(&left, piece, ahead),
                    (Width::Four, true) => decode_gfni::<M, X, 4>(&left, piece, ahead),
                    (Width::Four, false) => decode_avx2::<M, X, 4>(&left, piece, ahead),
                }
            })
        };
        left = left.after(piece.len() / tile, used);
    };
    if whole.len() >= stream::LEAST {
        stream::fill(whole, &mut decode);
    } else {
        decode(whole);
    }
    if !rest.is_empty() {
        // SAFETY: as above.
        unsafe { decode_any(&left, rest) };
    }
}

fn dot_tbe<const GFNI: bool>(
    tiles: &Tiles<'_>,
    shift: u32,
    x: Column<'_>,
    chains: &mut Chains,
) -> usize {
    check_run(tiles, shift, x.x.len() / TILE);
    // SAFETY: `kernels` returned this function, so the machine has the features; the lengths were
    // checked above.
    unsafe {
        for_dtype!(tiles.head.dtype, M => {
            const X: usize = extra_bitmaps(M);
            match (tiles.head.width, shift, GFNI) {
                (Width::Three, 0, true) => dot_gfni::<M, X, 3, true>(tiles, shift, x, chains),
                (Width::Three, _, true) => dot_gfni::<M, X, 3, false>(tiles, shift, x, chains),
                (Width::Four, 0, true) => dot_gfni::<M, X, 4, true>(tiles, shift, x, chains),
                (Width::Four, _, true) => dot_gfni::<M, X, 4, false>(tiles, shift, x, chains),
                (Width::Three, 0, false) => dot_avx2::<M, X, 3, true>(tiles, shift, x, chains),
                (Width::Three, _, false) => dot_avx2::<M, X, 3, false>(tiles, shift, x, chains),
                (Width::Four, 0, false) => dot_avx2::<M, X, 4, true>(tiles, shift, x, chains),
                (Width::Four, _, false) => dot_avx2::<M, X, 4, false>(tiles, shift, x, chains),
            }
        })
    }
}

plain_loops!("avx2,fma,bmi1,bmi2,popcnt");

/// An exponent in the form of the ring: at its place in the high byte of a weight. That of bf16 is
/// rotated, with its lowest bit on top. The lower byte of a weight has that bit on top, too.
fn turned<const M: u32>(exponent: u8) -> u8 {
    if M == BF16 { exponent.rotate_right(1) } else { exponent << exponent_place(M) }
}

/// The exponents of the codes, turned.
#[inline]
#[target_feature(enable = "avx2")]
fn turned_exponents<const M: u32>(base: u8) -> __m256i {
    table(std::array::from_fn(|code| turned::<M>(base.wrapping_add(code as u8))))
}

/// For the bits of the X extra bitmaps: those bits at their places in the high byte of a weight,
/// the last one on top.
#[inline]
#[target_feature(enable = "avx2")]
fn others<const X: usize>() -> __m256i {
    table(std::array::from_fn(|bits| {
        let sign = bits >> (X - 1) & 1;
        (bits & ((1 << (X - 1)) - 1) | sign << 7) as u8
    }))
}

/// A table for look-ups.
#[inline]
#[target_feature(enable = "avx2")]
fn table(bytes: [u8; 16]) -> __m256i {
    // SAFETY: 16 bytes are one vector.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// The bitmaps of a tile: the first two and the last two. Each pair is in both halves of a vector.
type BitmapPairs = [__m256i; 2];

/// What `table` has for the codes of a tile: turned exponents, or sign and mantissa.
///
/// # Safety
/// The machine must have AVX2, and GFNI if `GFNI` is true. This holds for all functions with that
/// parameter.
#[inline(always)]
unsafe fn look_up<const W: usize, const GFNI: bool>(
    table: __m256i,
    pairs: BitmapPairs,
) -> [__m256i; 2] {
    // SAFETY: as the caller promises.
    unsafe {
        let codes = if GFNI { codes_gfni::<W>(pairs) } else { codes_avx2::<W>(pairs) };
        codes.map(|codes| _mm256_shuffle_epi8(table, codes))
    }
}

/// For each of the first 32 weights the index of the bitmap's byte that has its bit.
#[inline]
#[target_feature(enable = "avx2")]
fn groups() -> __m256i {
    _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303)
}

/// The codes of both halves of a tile. Each byte gets the byte of the bitmap that has its bit; then
/// the bit is tested.
#[inline]
#[target_feature(enable = "avx2")]
fn codes_avx2<const W: usize>(pairs: BitmapPairs) -> [__m256i; 2] {
    let groups = groups();
    let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let mut codes = [_mm256_setzero_si256(); 2];
    for i in 0..W {
        // The last pair has bitmaps W - 2 and W - 1.
        let (pair, at) = if i < 2 { (pairs[0], i) } else { (pairs[1], i + 2 - W) };
        for (half, codes) in codes.iter_mut().enumerate() {
            let places = _mm256_add_epi8(groups, _mm256_set1_epi8((8 * at + 4 * half) as i8));
            let bytes = _mm256_shuffle_epi8(pair, places);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), bits);
            *codes = _mm256_or_si256(*codes, _mm256_and_si256(set, _mm256_set1_epi8(1 << i)));
        }
    }
    codes
}

/// The codes of both halves of a tile. The bytes of the bitmaps for eight weights are the rows of a
/// bit matrix, which is transposed. Bits 4 to 6 are not part of a code, and shuffles ignore them.
#[inline]
#[target_feature(enable = "avx2,gfni")]
fn codes_gfni<const W: usize>(pairs: BitmapPairs) -> [__m256i; 2] {
    // Byte g of bitmap i goes to byte 7 - i of 64 bits, and byte g + 4 to byte 3 - i. The products
    // with the unit vectors then have the codes of the weights 8 g to 8 g + 7 in their lower
    // halves, and the codes of the weights 32 later in their upper halves. The shuffle writes 0
    // where the highest bit of the index is set.
    let places = |first: u64| _mm256_or_si256(groups(), _mm256_set1_epi64x(first as i64));
    let first = places(0x0008_8080_040c_8080);
    let last = places(if W == 3 { 0x8080_0880_8080_0c80 } else { 0x8080_0008_8080_040c });
    let rows =
        _mm256_or_si256(_mm256_shuffle_epi8(pairs[0], first), _mm256_shuffle_epi8(pairs[1], last));
    let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let codes = _mm256_gf2p8affine_epi64_epi8::<0>(bits, rows);
    [codes, _mm256_srli_epi16::<4>(codes)].map(|codes| {
        // With three bitmaps, bits 3 and 7 are 0.
        if W == 3 { codes } else { _mm256_and_si256(codes, _mm256_set1_epi8(0x0f)) }
    })
}

/// How many tiles later a tile is used. By then the bytes of its escapes have left the store
/// buffer, and vectors can be loaded without a failed store forwarding.
const LAG: usize = 6;
/// Tiles in the ring: two more than [`LAG`], because patching writes a byte into the next tile. It
/// is a power of two.
const RING: usize = LAG + 2;

/// Calls `each` for `n` tiles, in order, with the index of the tile's first weight and its turned
/// exponents, beside which are the bits of the X extra bitmaps. Prefetches what is `ahead` weights
/// after each. Returns the number of their escapes.
///
/// # Safety
/// [`check_run`] must have passed for this shift and `n` tiles. `ALIGNED` requires a shift of 0.
/// The machine must have AVX2, BMI1, BMI2 and POPCNT, and GFNI if `GFNI` is true.
#[inline(always)]
unsafe fn for_each_tile<
    const M: u32,
    const X: usize,
    const W: usize,
    const ALIGNED: bool,
    const GFNI: bool,
>(
    tiles: &Tiles<'_>,
    shift: u32,
    n: usize,
    ahead: usize,
    mut each: impl FnMut(usize, &[__m256i; 2]),
) -> usize {
    // One more tile, for the byte that patching writes after the last one.
    let mut ring = [const { MaybeUninit::<[__m256i; 2]>::uninit() }; RING + 1];
    let ring = ring.as_mut_ptr().cast::<[__m256i; 2]>();
    let mut escapes = Escapes::new(tiles.escapes);
    // SAFETY: the machine has AVX2.
    let exponents = unsafe { turned_exponents::<M>(tiles.head.base) };
    let per_tile = W + X;
    let mut here = tiles.bitmaps.as_ptr();
    for at in (0..(n + LAG) * TILE).step_by(TILE) {
        if at < n * TILE {
            // SAFETY: `check_run` passed, and the machine has the features.
            let (mask, tile) = unsafe {
                let (mask, pairs) = bitmaps::<W, ALIGNED>(here, per_tile, shift);
                (mask, look_up::<W, GFNI>(exponents, pairs))
            };
            here = here.wrapping_add(per_tile);
            if has_plane(M) {
                stream::fetch_plane(tiles, at, ahead);
            }
            stream::fetch_bitmaps(here, per_tile, ahead);
            // SAFETY: each of the RING tiles is followed by another one. The next tile was used one
            // round ago, because RING is LAG + 2.
            unsafe {
                let slot = ring.add(at / TILE % RING);
                slot.write(tile);
                if W == 3 || mask != 0 {
                    escapes.patch::<M>(mask, slot.cast());
                }
            }
        }
        if let Some(at) = at.checked_sub(LAG * TILE) {
            // SAFETY: it was written LAG rounds ago. The bitmaps are those of a tile of n.
            let tile = unsafe {
                let mut tile = ring.add(at / TILE % RING).read();
                if X > 0 {
                    let from = tiles.bitmaps.as_ptr().add(at / TILE * per_tile + W);
                    let (_, pairs) = bitmaps::<X, ALIGNED>(from, per_tile, shift);
                    let others = look_up::<X, GFNI>(others::<X>(), pairs);
                    for (tile, others) in tile.iter_mut().zip(others) {
                        *tile = _mm256_or_si256(*tile, others);
                    }
                }
                tile
            };
            each(at, &tile);
        }
    }
    escapes.used()
}

/// W bitmaps of a tile from `here` on, and the mask of its escapes if they are those of the codes.
///
/// # Safety
/// `here` must be valid for reads of W bitmaps, and W bitmaps `per_tile` after them unless
/// `ALIGNED`. The machine must have AVX2.
#[inline(always)]
unsafe fn bitmaps<const W: usize, const ALIGNED: bool>(
    here: *const [u8; 8],
    per_tile: usize,
    shift: u32,
) -> (u64, BitmapPairs) {
    // SAFETY: as the caller promises; two bitmaps are half a vector.
    unsafe {
        let mut words = (*here.cast::<[[u8; 8]; W]>()).map(u64::from_le_bytes);
        if !ALIGNED {
            let next = *here.add(per_tile).cast::<[[u8; 8]; W]>();
            for (word, next) in words.iter_mut().zip(next) {
                *word = *word >> shift | u64::from_le_bytes(next) << 1 << (63 - shift);
            }
        }
        // If aligned, load the vectors from memory instead of making them from the words of the
        // mask.
        let from = if ALIGNED { here.cast() } else { words.as_ptr() };
        let pair = |i| _mm256_broadcastsi128_si256(_mm_loadu_si128(from.add(i).cast()));
        (words.iter().fold(!0, |mask, word| mask & word), [pair(0), pair(W - 2)])
    }
}

/// The escapes of a row or of a piece of a block. The next ones are turned in advance.
struct Escapes<'a> {
    all: &'a [u8],
    /// The index of the first turned one.
    from: usize,
    turned: [u8; Escapes::TURNED],
    /// The first turned one that no tile has taken.
    next: usize,
}

impl<'a> Escapes<'a> {
    /// How many are turned at once: at least those of one tile. With more, turning happens less
    /// often, but more of them belong to other rows.
    const TURNED: usize = 3 * TILE;

    #[inline(always)]
    fn new(all: &'a [u8]) -> Self {
        // None is turned yet. The buffer represents escapes before the first one, all taken.
        let next = Self::TURNED;
        Escapes { all, from: 0_usize.wrapping_sub(next), turned: [0; Self::TURNED], next }
    }

    fn used(&self) -> usize {
        self.from.wrapping_add(self.next)
    }

    /// Turns the next ones.
    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx2")]
    fn turn<const M: u32>(&mut self) {
        self.from = self.used();
        self.next = 0;
        let left = self.all.get(self.from..).unwrap_or(&[]);
        match left.first_chunk() {
            Some(chunk) => self.turned = chunk.map(turned::<M>),
            None => {
                self.turned.iter_mut().zip(left).for_each(|(to, &from)| *to = turned::<M>(from));
            }
        }
    }

    /// Writes the escapes of a tile into it. Four are always written, because a branch for each
    /// would be mispredicted once a tile. Missing ones go to the first byte of the next tile.
    ///
    /// # Safety
    /// `tile` must be valid for writes of 65 bytes. The machine must have AVX2.
    #[inline(always)]
    unsafe fn patch<const M: u32>(&mut self, mut mask: u64, tile: *mut u8) {
        const AT_ONCE: usize = 4;
        if self.next > Self::TURNED - TILE {
            // SAFETY: the machine has AVX2.
            unsafe { self.turn::<M>() };
        }
        let n = mask.count_ones() as usize;
        let mut put = |i: usize| {
            // SAFETY: from `next` on there are turned escapes for a whole tile, and `i` is less
            // than 64. The target is at most 64 bytes after `tile`.
            unsafe {
                *tile.add(mask.trailing_zeros() as usize) =
                    *self.turned.get_unchecked(self.next + i);
            };
            mask &= mask.wrapping_sub(1);
        };
        (0..AT_ONCE).for_each(&mut put);
        if n > AT_ONCE {
            (AT_ONCE..n).for_each(put);
        }
        self.next += n;
    }
}

/// The low and the high bytes of 32 weights, from the bytes of the plane and what
/// [`for_each_tile`] gives.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes_of<const M: u32>(turned: __m256i, plane: __m256i) -> (__m256i, __m256i) {
    if M != BF16 {
        return (plane, turned);
    }
    // The lower byte of a weight is the plane's byte with the top bit of the turned exponent. The
    // upper byte is the turned exponent with the top bit of the plane's byte.
    let differ = _mm256_xor_si256(turned, plane);
    let swap = _mm256_and_si256(differ, _mm256_set1_epi8(0x80_u8 as i8));
    (_mm256_xor_si256(plane, swap), _mm256_xor_si256(turned, swap))
}

/// 32 bytes of the plane, if the dtype has one.
///
/// # Safety
/// `plane` must be valid for reads of them.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_plane<const M: u32>(plane: *const u8, at: usize) -> __m256i {
    if !has_plane(M) {
        return _mm256_setzero_si256();
    }
    // SAFETY: as the caller promises.
    unsafe { _mm256_loadu_si256(plane.add(at).cast()) }
}

/// Decodes the whole tiles of `out`. Returns the number of their escapes.
///
/// # Safety
/// [`check_run`] must have passed for as many tiles. The machine must have the features.
#[inline(always)]
unsafe fn decode_tiles<const M: u32, const X: usize, const W: usize, const GFNI: bool>(
    tiles: &Tiles<'_>,
    out: &mut [u8],
    ahead: &mut Ahead<'_>,
) -> usize {
    let n = out.len() / tile_bytes(M);
    let (planes, out) = (tiles.plane.as_ptr(), out.as_mut_ptr());
    let each = |at: usize, exponents: &[__m256i; 2]| {
        if at.is_multiple_of(2 * TILE) {
            ahead.fetch(LINES);
        }
        for (half, &exponents) in exponents.iter().enumerate() {
            // SAFETY: half is 0 or 1: 32 + 32 of 64 bytes of the plane, 64 + 64 of 128 of the
            // output, or 32 + 32 of 64, of each of n tiles.
            unsafe {
                if !has_plane(M) {
                    _mm256_storeu_si256(out.add(at + 32 * half).cast(), exponents);
                    continue;
                }
                let plane = load_plane::<M>(planes, at + 32 * half);
                let (low, high) = bytes_of::<M>(exponents, plane);
                let [even, odd] = pairs::<M>(low, high);
                let first = _mm256_permute2x128_si256::<0x20>(even, odd);
                let second = _mm256_permute2x128_si256::<0x31>(even, odd);
                out.add(2 * at + 64 * half).cast::<[__m256i; 2]>().write_unaligned([first, second]);
            }
        }
    };
    // SAFETY: as the caller promises.
    unsafe { for_each_tile::<M, X, W, true, GFNI>(tiles, 0, n, AHEAD, each) }
}

/// # Safety
/// As for [`decode_tiles`].
#[target_feature(enable = "avx2,gfni,bmi1,bmi2,popcnt")]
unsafe fn decode_gfni<const M: u32, const X: usize, const W: usize>(
    tiles: &Tiles<'_>,
    out: &mut [u8],
    ahead: &mut Ahead<'_>,
) -> usize {
    // SAFETY: as the caller promises.
    unsafe { decode_tiles::<M, X, W, true>(tiles, out, ahead) }
}

/// # Safety
/// As for [`decode_tiles`].
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
unsafe fn decode_avx2<const M: u32, const X: usize, const W: usize>(
    tiles: &Tiles<'_>,
    out: &mut [u8],
    ahead: &mut Ahead<'_>,
) -> usize {
    // SAFETY: as the caller promises.
    unsafe { decode_tiles::<M, X, W, false>(tiles, out, ahead) }
}

/// Adds the products of the tiles' weights and `x` to `chains`. Returns the number of the tiles'
/// escapes.
///
/// # Safety
/// [`check_run`] must have passed for `x.len() / 64` tiles. `ALIGNED` requires a shift of 0. The
/// machine must have the features.
#[inline(always)]
unsafe fn dot<
    const M: u32,
    const X: usize,
    const W: usize,
    const ALIGNED: bool,
    const GFNI: bool,
>(
    tiles: &Tiles<'_>,
    shift: u32,
    column: Column<'_>,
    chains: &mut Chains,
) -> usize {
    let Column { x, ahead } = column;
    // SAFETY: 64 floats.
    let mut sums = unsafe { load_chains(chains.as_ptr()) };
    let (planes, from) = (tiles.plane.as_ptr(), x.as_ptr());
    let each = |at: usize, exponents: &[__m256i; 2]| {
        for (half, (&exponents, sums)) in exponents.iter().zip(&mut sums).enumerate() {
            // SAFETY: half is 0 or 1: 32 + 32 of 64 bytes, 8 + 56 of 64 floats, of each of n tiles.
            unsafe {
                let plane = load_plane::<M>(planes, at + 32 * half);
                let (low, high) = bytes_of::<M>(exponents, plane);
                add_products::<M>(sums, pairs::<M>(low, high), from.add(at + 8 * half));
            }
        }
    };
    // SAFETY: as the caller promises.
    let used = unsafe {
        for_each_tile::<M, X, W, ALIGNED, GFNI>(tiles, shift, x.len() / TILE, ahead, each)
    };
    // SAFETY: the machine has AVX2.
    unsafe { store_chains(sums, chains) };
    used
}

/// # Safety
/// As for [`dot`].
#[target_feature(enable = "avx2,fma,f16c,gfni,bmi1,bmi2,popcnt")]
unsafe fn dot_gfni<const M: u32, const X: usize, const W: usize, const ALIGNED: bool>(
    tiles: &Tiles<'_>,
    shift: u32,
    column: Column<'_>,
    chains: &mut Chains,
) -> usize {
    // SAFETY: as the caller promises.
    unsafe { dot::<M, X, W, ALIGNED, true>(tiles, shift, column, chains) }
}

/// # Safety
/// As for [`dot`].
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,popcnt")]
unsafe fn dot_avx2<const M: u32, const X: usize, const W: usize, const ALIGNED: bool>(
    tiles: &Tiles<'_>,
    shift: u32,
    column: Column<'_>,
    chains: &mut Chains,
) -> usize {
    // SAFETY: as the caller promises.
    unsafe { dot::<M, X, W, ALIGNED, false>(tiles, shift, column, chains) }
}

#[cfg(test)]
mod tests {
    use bigsmall_format::Dtype;

    use super::*;

    /// Compares products and decoded bytes of `n` tiles with and without GFNI; about one weight in
    /// `rarity` is an escape. The bytes must be those of the portable kernel.
    fn both(head: Head, n: usize, shift: u32, rarity: u32) {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 32
        };
        let (width, per_tile) = (head.width.bits(), head.bitmaps_per_tile());
        let mut bitmaps = vec![[0; 8]; (n + 1) * per_tile];
        for tile in bitmaps.chunks_exact_mut(per_tile) {
            for i in 0..64 {
                let code = if random() % u64::from(rarity) == 0 { u64::MAX } else { random() };
                for (j, bitmap) in tile.iter_mut().enumerate() {
                    bitmap[i / 8] |= ((code >> j & 1) as u8) << (i % 8);
                }
            }
        }
        // No infinities and NaNs.
        let most = (head.fields.n_exponents() - 2) as u8;
        let escapes: Vec<u8> = (0..=most).cycle().take((n + 1) * TILE).collect();
        let plane: Vec<u8> = (0..n * TILE).map(|_| random() as u8).collect();
        let x: Vec<f32> = (0..n * TILE).map(|_| random() as f32 * 1e-9).collect();
        let out_len = n * tile_bytes(head.fields.mantissa_bits);
        let tiles = Tiles { head, bitmaps: &bitmaps, plane: &plane, escapes: &escapes };
        let [with, without] = [&WITH_GFNI, &WITHOUT_GFNI].map(|kernels| {
            let (mut chains, mut out) = ([0.5; TILE], vec![0; out_len]);
            kernels.dot_tbe.unwrap()(&tiles, shift, Column { x: &x, ahead: 0 }, &mut chains);
            (kernels.decode)(&tiles, &mut out, &mut Ahead::new(&[]));
            (chains.map(f32::to_bits), out)
        });
        let mut portable = vec![0; out_len];
        portable::decode_any(&tiles, &mut portable);
        let masks = bitmaps.chunks_exact(per_tile).take(n);
        let masks = masks.map(|tile| crate::layout::escape_mask(&tile[..width]));
        let escaped: usize = masks.map(|mask| mask.count_ones() as usize).sum();
        assert!(escaped >= n * TILE / rarity as usize / 2, "{escaped} escapes in {n} tiles");
        assert_eq!(with.1, portable, "{head:?}, {n} tiles, one escape in {rarity}");
        assert_eq!(with, without, "{head:?}, {n} tiles, shift {shift}, one escape in {rarity}");
    }

    #[test]
    fn with_gfni_and_without() {
        if kernels().is_none() || !is_x86_feature_detected!("gfni") {
            return;
        }
        for (dtype, base) in
            [(Dtype::BF16, 117), (Dtype::F16, 9), (Dtype::F8_E4M3, 1), (Dtype::F8_E5M2, 9)]
        {
            for &width in Width::ALL {
                let head = Head::new(dtype, width, base).unwrap();
                for rarity in [1, 3, 30] {
                    for shift in [0, 1, 31, 63] {
                        for n in [0, 1, LAG, RING, RING + 1, 31] {
                            both(head, n, shift, rarity);
                        }
                    }
                }
            }
        }
    }
}
