//! AVX2: bitmaps are spread into bytes by a shuffle and a comparison, or transposed where there is GFNI. Exponents of a run of tiles go to a buffer in the level
//! 1 cache first, where escapes are patched in without a branch for each; the second pass reads them from there.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use bigsmall_format::Ahead;

use super::{
    Backend, Chains, EXPONENTS, Exponents, Kernels, LINES, RUN, Tiles, check_dot, check_run,
    portable, stream,
};
use crate::layout::{Head, Start, TILE, Width};

/// Bytes of a decoded bf16 tile.
const OUT: usize = 2 * TILE;

pub(super) fn kernels() -> Option<&'static Kernels> {
    static KERNELS: Kernels = Kernels {
        backend: Backend::Avx2,
        count_escapes,
        decode,
        dot_tbe: Some(dot_tbe),
        dot_bf16,
        dot_f32,
    };
    let found = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt");
    found.then_some(&KERNELS)
}

fn count_escapes(head: &Head, bitmaps: &[[u8; 8]], starts: &[Start]) -> Result<usize, usize> {
    // SAFETY: `kernels` handed this function out, so the machine has the features.
    unsafe { count_escapes_impl(head, bitmaps, starts) }
}

fn decode(tiles: &Tiles<'_>, out: &mut [u8], ahead: &mut Ahead<'_>) {
    // SAFETY: `kernels` handed this function out, so the machine has the features.
    unsafe { decode_impl(tiles, out, ahead) }
}

fn dot_tbe(tiles: &Tiles<'_>, shift: u32, x: &[f32], chains: &mut Chains) {
    check_run(tiles, shift, x.len() / TILE);
    // SAFETY: `kernels` handed this function out, so the machine has the features; the lengths were checked above.
    unsafe {
        match (tiles.head.width, shift) {
            (Width::Three, 0) => dot_tbe_impl::<3, true>(tiles, shift, x, chains),
            (Width::Three, _) => dot_tbe_impl::<3, false>(tiles, shift, x, chains),
            (Width::Four, 0) => dot_tbe_impl::<4, true>(tiles, shift, x, chains),
            (Width::Four, _) => dot_tbe_impl::<4, false>(tiles, shift, x, chains),
        }
    }
}

fn dot_bf16(weights: &[u8], x: &[f32], stride: usize, chains: &mut [Chains]) {
    check_dot(weights.len() / OUT, x, stride, chains.len());
    for (column, chains) in chains.iter_mut().enumerate() {
        let x = &x[column * stride..];
        // SAFETY: `kernels` handed this function out, so the machine has the features; the lengths were checked above.
        unsafe { dot_bf16_impl(weights, x, chains) };
    }
}

fn dot_f32(weights: &[f32], x: &[f32], chains: &mut Chains) {
    // SAFETY: `kernels` handed this function out, so the machine has the features.
    unsafe { dot_f32_impl(weights, x, chains) }
}

#[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
fn count_escapes_impl(head: &Head, bitmaps: &[[u8; 8]], starts: &[Start]) -> Result<usize, usize> {
    portable::count(head, bitmaps, starts)
}

#[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
fn dot_f32_impl(weights: &[f32], x: &[f32], chains: &mut Chains) {
    portable::dot_f32_any(weights, x, chains, f32::mul_add);
}

#[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
fn decode_impl(tiles: &Tiles<'_>, out: &mut [u8], ahead: &mut Ahead<'_>) {
    if tiles.head.fields.mantissa_bits != 7 {
        return portable::decode_any(tiles, out);
    }
    let n = out.len() / OUT;
    check_run(tiles, 0, n);
    let (whole, rest) = out.split_at_mut(n * OUT);
    let mut left = *tiles;
    let mut decode = |piece: &mut [u8]| {
        let n = piece.len() / OUT;
        // SAFETY: the machine has the features, as this function's caller knows; the lengths were checked above, and the
        // pieces have as many tiles as `whole` altogether.
        let used = unsafe {
            match tiles.head.width {
                Width::Three => decode_tiles::<3>(&left, piece, ahead),
                Width::Four => decode_tiles::<4>(&left, piece, ahead),
            }
        };
        left = left.after(n, used);
    };
    if whole.len() >= stream::LEAST {
        stream::fill(whole, &mut decode);
    } else {
        decode(whole);
    }
    if !rest.is_empty() {
        portable::decode_any(&left, rest);
    }
}

/// An exponent as the buffer holds it: its lowest bit on top, where it goes in the lower byte of a weight.
fn turned(exponent: u8) -> u8 {
    exponent.rotate_right(1)
}

/// The exponents of the codes, turned.
#[inline]
#[target_feature(enable = "avx2")]
fn turned_exponents(base: u8) -> __m256i {
    let of_codes: [u8; 16] = std::array::from_fn(|code| turned(base.wrapping_add(code as u8)));
    // SAFETY: 16 bytes are one vector.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(of_codes.as_ptr().cast()) })
}

/// Writes the turned exponents of `n` tiles, at most [`RUN`], into `out`; the number of their escapes.
///
/// # Safety
/// [`check_run`] must have passed for this shift and `n` tiles. `ALIGNED` demands a shift of 0. The machine must have AVX2.
#[inline(always)]
unsafe fn exponents<const W: usize, const ALIGNED: bool>(
    tiles: &Tiles<'_>,
    shift: u32,
    n: usize,
    out: &mut Exponents,
) -> usize {
    // SAFETY: as the caller promises; GFNI is looked for.
    unsafe {
        if is_x86_feature_detected!("gfni") {
            exponents_gfni::<W, ALIGNED>(tiles, shift, n, out)
        } else {
            exponents_avx2::<W, ALIGNED>(tiles, shift, n, out)
        }
    }
}

/// [`exponents`] where each byte takes the byte of the bitmap that has its bit, and the bit is tested.
///
/// # Safety
/// As for [`exponents`].
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
unsafe fn exponents_avx2<const W: usize, const ALIGNED: bool>(
    tiles: &Tiles<'_>,
    shift: u32,
    n: usize,
    out: &mut Exponents,
) -> usize {
    let exponents = turned_exponents(tiles.head.base);
    let low =
        _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let high = _mm256_add_epi8(low, _mm256_set1_epi8(4));
    let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let look_up = |words: [u64; W]| {
        let (mut a, mut b) = (_mm256_setzero_si256(), _mm256_setzero_si256());
        for (j, word) in words.into_iter().enumerate() {
            let word = _mm256_set1_epi64x(word as i64);
            let one = _mm256_set1_epi8(1 << j);
            let set = |order| {
                let bytes = _mm256_shuffle_epi8(word, order);
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), bits);
                _mm256_and_si256(set, one)
            };
            a = _mm256_or_si256(a, set(low));
            b = _mm256_or_si256(b, set(high));
        }
        [a, b].map(|codes| _mm256_shuffle_epi8(exponents, codes))
    };
    // SAFETY: as the caller promises.
    unsafe { tile_by_tile::<W, ALIGNED>(tiles, shift, n, out, look_up) }
}

/// [`exponents`] where the bytes of the bitmaps that belong to eight weights are a matrix of bits, which is transposed: processors
/// without AVX-512 have this product too.
///
/// # Safety
/// As for [`exponents`]; and the machine must have GFNI.
#[target_feature(enable = "avx2,gfni,bmi1,bmi2,popcnt")]
unsafe fn exponents_gfni<const W: usize, const ALIGNED: bool>(
    tiles: &Tiles<'_>,
    shift: u32,
    n: usize,
    out: &mut Exponents,
) -> usize {
    let exponents = turned_exponents(tiles.head.base);
    // Byte g of bitmap i goes to byte 7 - i of 64 bits, which belong to the weights 8 g to 8 g + 7; here of bitmaps 0 and 1, of
    // the first 32 weights. What has its highest bit set becomes 0.
    let places = |g: i64| 0x0008_8080_8080_8080 + ((g * 0x0101) << 48);
    let first = _mm256_setr_epi64x(places(0), places(1), places(2), places(3));
    let second = _mm256_add_epi8(first, _mm256_set1_epi64x(0x0404 << 48));
    let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let look_up = |words: [u64; W]| {
        let pair = |i: usize| {
            let word = |i: usize| words.get(i).map_or(0, |&word| word as i64);
            _mm256_broadcastsi128_si256(_mm_set_epi64x(word(i + 1), word(i)))
        };
        let pairs = [pair(0), pair(2)];
        [first, second].map(|places| {
            let low = _mm256_shuffle_epi8(pairs[0], places);
            let high = _mm256_srli_epi64::<16>(_mm256_shuffle_epi8(pairs[1], places));
            let codes = _mm256_gf2p8affine_epi64_epi8::<0>(bits, _mm256_or_si256(low, high));
            _mm256_shuffle_epi8(exponents, codes)
        })
    };
    // SAFETY: as the caller promises.
    unsafe { tile_by_tile::<W, ALIGNED>(tiles, shift, n, out, look_up) }
}

/// [`exponents`] with a function that looks up the codes in the bitmaps of a tile.
///
/// # Safety
/// As for [`exponents`].
#[inline(always)]
unsafe fn tile_by_tile<const W: usize, const ALIGNED: bool>(
    tiles: &Tiles<'_>,
    shift: u32,
    n: usize,
    out: &mut Exponents,
    look_up: impl Fn([u64; W]) -> [__m256i; 2],
) -> usize {
    assert!(n <= RUN);
    let escapes = tiles.escapes;
    let mut used = 0;
    for t in 0..n {
        // SAFETY: `check_run` passed: there are W bitmaps for this tile, and W more where it is shifted.
        let words = unsafe {
            let here = *tiles.bitmaps.as_ptr().add(t * W).cast::<[[u8; 8]; W]>();
            let mut words = here.map(u64::from_le_bytes);
            if !ALIGNED {
                let next = *tiles.bitmaps.as_ptr().add((t + 1) * W).cast::<[[u8; 8]; W]>();
                for (word, next) in words.iter_mut().zip(next) {
                    *word = *word >> shift | u64::from_le_bytes(next) << 1 << (63 - shift);
                }
            }
            words
        };
        let halves = look_up(words);
        stream::fetch_plane(tiles, t);
        // SAFETY: `Exponents` holds 64 bytes for each of RUN tiles.
        unsafe { out.0.as_mut_ptr().add(t * TILE).cast::<[__m256i; 2]>().write_unaligned(halves) };
        let mask = words.iter().fold(!0, |mask, word| mask & word);
        used += patch::<W>(&mut out.0, t, mask, escapes, used);
    }
    used
}

/// Puts the escapes of a tile in place; their number. Four are written whether there are or not, since a branch for each
/// would be mispredicted once a tile: what is not there goes to the first byte of the next tile, which is not yet written.
#[inline(always)]
fn patch<const W: usize>(
    out: &mut [u8; EXPONENTS],
    tile: usize,
    mut mask: u64,
    escapes: &[u8],
    used: usize,
) -> usize {
    if W == 4 && mask == 0 {
        return 0;
    }
    let n = mask.count_ones() as usize;
    let begin = tile * TILE;
    let mut done = 0;
    if let Some(four) = escapes.get(used..used + 4) {
        for &exponent in four {
            // Always there: the buffer has a tile more than is filled.
            if let Some(out) = out.get_mut(begin + mask.trailing_zeros() as usize) {
                *out = turned(exponent);
            }
            mask &= mask.wrapping_sub(1);
        }
        done = 4;
    }
    if n > done {
        for &exponent in escapes.iter().skip(used + done).take(n - done) {
            if let Some(out) = out.get_mut(begin + mask.trailing_zeros() as usize) {
                *out = turned(exponent);
            }
            mask &= mask.wrapping_sub(1);
        }
    }
    n
}

/// Unpacked weights: 0, 1, …, 7 and 16, …, 23 of 32, then the others.
#[inline]
#[target_feature(enable = "avx2")]
fn unpack(turned: __m256i, plane: __m256i) -> (__m256i, __m256i) {
    // The lower byte of a weight is the plane's with the top bit of the exponent's, the upper byte the other way round.
    let differ = _mm256_xor_si256(turned, plane);
    let swap = _mm256_and_si256(differ, _mm256_set1_epi8(0x80_u8 as i8));
    let (low, high) = (_mm256_xor_si256(plane, swap), _mm256_xor_si256(turned, swap));
    (_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high))
}

/// Decodes `out.len() / 128` whole tiles; the number of their escapes.
///
/// # Safety
/// [`check_run`] must have passed for as many tiles.
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
unsafe fn decode_tiles<const W: usize>(
    tiles: &Tiles<'_>,
    out: &mut [u8],
    ahead: &mut Ahead<'_>,
) -> usize {
    let mut buffer = Exponents::new();
    let mut left = *tiles;
    let mut used_in_all = 0;
    for out in out.chunks_mut(RUN * OUT) {
        let n = out.len() / OUT;
        // SAFETY: the caller promises as many tiles.
        let used = unsafe { exponents::<W, true>(&left, 0, n, &mut buffer) };
        let halves = out.as_chunks_mut::<TILE>().0.iter_mut();
        let planes = left.plane.as_chunks::<32>().0.iter().zip(buffer.0.as_chunks::<32>().0);
        for (out, (plane, exponents)) in halves.zip(planes) {
            // Half a tile.
            ahead.fetch(LINES / 2);
            // SAFETY: each reads 32 bytes of 32 or writes 64 of 64.
            unsafe {
                let (even, odd) = unpack(
                    _mm256_loadu_si256(exponents.as_ptr().cast()),
                    _mm256_loadu_si256(plane.as_ptr().cast()),
                );
                let out = out.as_mut_ptr();
                let first = _mm256_permute2x128_si256::<0x20>(even, odd);
                let second = _mm256_permute2x128_si256::<0x31>(even, odd);
                _mm256_storeu_si256(out.cast(), first);
                _mm256_storeu_si256(out.add(32).cast(), second);
            }
        }
        used_in_all += used;
        left = left.after(n, used);
    }
    used_in_all
}

/// Adds the products of 32 weights, given as unpacked pairs, to the chains of that half of a tile.
///
/// # Safety
/// `x` must be valid for reads of 56 floats.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_products(sums: &mut [__m256; 4], even: __m256i, odd: __m256i, x: *const f32) {
    let top = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    let weights = [
        _mm256_slli_epi32::<16>(even),
        _mm256_and_si256(even, top),
        _mm256_slli_epi32::<16>(odd),
        _mm256_and_si256(odd, top),
    ];
    for (i, (sum, weights)) in sums.iter_mut().zip(weights).enumerate() {
        // SAFETY: 16 i + 8 is at most 56.
        let x = unsafe { _mm256_loadu_ps(x.add(16 * i)) };
        *sum = _mm256_fmadd_ps(_mm256_castsi256_ps(weights), x, *sum);
    }
}

/// The chains of both halves of a tile.
///
/// # Safety
/// `chains` must be valid for reads of 64 floats.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_chains(chains: *const f32) -> [[__m256; 4]; 2] {
    // SAFETY: as the caller promises: 8 + 48 + 8 is 64.
    unsafe { [0, 8].map(|half| [0, 16, 32, 48].map(|i| _mm256_loadu_ps(chains.add(half + i)))) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_chains(sums: [[__m256; 4]; 2], chains: &mut Chains) {
    for (half, sums) in sums.into_iter().enumerate() {
        for (i, sum) in sums.into_iter().enumerate() {
            // SAFETY: 8 + 48 + 8 is 64.
            unsafe { _mm256_storeu_ps(chains.as_mut_ptr().add(8 * half + 16 * i), sum) };
        }
    }
}

/// # Safety
/// [`check_run`] must have passed for `x.len() / 64` tiles. `ALIGNED` demands a shift of 0.
#[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
unsafe fn dot_tbe_impl<const W: usize, const ALIGNED: bool>(
    tiles: &Tiles<'_>,
    shift: u32,
    x: &[f32],
    chains: &mut Chains,
) {
    let mut buffer = Exponents::new();
    let mut left = *tiles;
    // SAFETY: 64 floats.
    let mut sums = unsafe { load_chains(chains.as_ptr()) };
    for x in x.chunks(RUN * TILE) {
        let n = x.len() / TILE;
        // SAFETY: the caller promises as many tiles.
        let used = unsafe { exponents::<W, ALIGNED>(&left, shift, n, &mut buffer) };
        let planes = left.plane.as_chunks::<TILE>().0.iter().zip(buffer.0.as_chunks::<TILE>().0);
        for (t, (x, (plane, exponents))) in x.as_chunks::<TILE>().0.iter().zip(planes).enumerate() {
            stream::fetch_bitmaps::<W>(&left, t);
            for (half, sums) in sums.iter_mut().enumerate() {
                // SAFETY: half is 0 or 1: 32 + 32 of 64 bytes, 8 + 56 of 64 floats.
                unsafe {
                    let (even, odd) = unpack(
                        _mm256_loadu_si256(exponents.as_ptr().add(32 * half).cast()),
                        _mm256_loadu_si256(plane.as_ptr().add(32 * half).cast()),
                    );
                    add_products(sums, even, odd, x.as_ptr().add(8 * half));
                }
            }
        }
        left = left.after(n, used);
    }
    store_chains(sums, chains);
}

#[target_feature(enable = "avx2,fma")]
fn dot_bf16_impl(weights: &[u8], x: &[f32], chains: &mut Chains) {
    // SAFETY: 64 floats.
    let mut sums = unsafe { load_chains(chains.as_ptr()) };
    for (weights, x) in weights.as_chunks::<OUT>().0.iter().zip(x.as_chunks::<TILE>().0) {
        stream::fetch_bf16(weights);
        for (half, sums) in sums.iter_mut().enumerate() {
            // SAFETY: half is 0 or 1: 64 + 64 of 128 bytes, 8 + 56 of 64 floats.
            unsafe {
                let weights = weights.as_ptr().add(64 * half);
                let a = _mm256_loadu_si256(weights.cast());
                let b = _mm256_loadu_si256(weights.add(32).cast());
                // The order in which unpacking a TBE tile leaves the weights.
                let even = _mm256_permute2x128_si256::<0x20>(a, b);
                let odd = _mm256_permute2x128_si256::<0x31>(a, b);
                add_products(sums, even, odd, x.as_ptr().add(8 * half));
            }
        }
    }
    store_chains(sums, chains);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exponents both ways, for `N` tiles of `W` bitmaps, of which about one weight in `rarity` escapes.
    fn both<const W: usize, const ALIGNED: bool>(shift: u32, rarity: u32) {
        const N: usize = RUN - 1;
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 32
        };
        let mut bitmaps = vec![[0; 8]; (N + 1) * W];
        for tile in bitmaps.chunks_exact_mut(W) {
            for i in 0..64 {
                let code = if random() % u64::from(rarity) == 0 { u64::MAX } else { random() };
                for (j, bitmap) in tile.iter_mut().enumerate() {
                    bitmap[i / 8] |= ((code >> j & 1) as u8) << (i % 8);
                }
            }
        }
        let escapes: Vec<u8> = (0..=255).cycle().take((N + 1) * TILE).collect();
        let width = if W == 3 { Width::Three } else { Width::Four };
        let head = Head::new(bigsmall_format::Dtype::BF16, width, 117).unwrap();
        let plane = vec![0; N * TILE];
        let tiles = Tiles { head, bitmaps: &bitmaps, plane: &plane, escapes: &escapes };
        check_run(&tiles, shift, N);
        let (mut a, mut b) = (Exponents::new(), Exponents::new());
        // SAFETY: the caller has looked for the features; the lengths were checked.
        let used = unsafe {
            [
                exponents_avx2::<W, ALIGNED>(&tiles, shift, N, &mut a),
                exponents_gfni::<W, ALIGNED>(&tiles, shift, N, &mut b),
            ]
        };
        assert!(used[0] > 0 && used[0] == used[1]);
        assert_eq!(a.0[..N * TILE], b.0[..N * TILE]);
    }

    #[test]
    fn with_gfni_and_without() {
        if kernels().is_none() || !is_x86_feature_detected!("gfni") {
            return;
        }
        for rarity in [1, 3, 30] {
            both::<3, true>(0, rarity);
            both::<4, true>(0, rarity);
            for shift in [1, 31, 63] {
                both::<3, false>(shift, rarity);
                both::<4, false>(shift, rarity);
            }
        }
    }
}
