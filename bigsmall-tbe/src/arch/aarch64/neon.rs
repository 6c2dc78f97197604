//! NEON: 16 weights at a time. The exponents of a run of tiles are first written to a buffer in the
//! level 1 cache, where the escapes replace some of them. A second pass reads them from there.
#![allow(unsafe_code)]

use std::arch::aarch64::*;

use bigsmall_format::Backend;
use bigsmall_format::internal::Ahead;

use self::products::{add_products, load_chains, pairs, store_chains};
use crate::arch::portable;
use crate::kernels::{Chains, Column, Kernels, Tiles, check_run};
use crate::layout::{
    BF16, Head, Start, TILE, Width, exponent_place, extra_bitmaps, for_dtype, has_plane, tile_bytes,
};

mod products;

/// The number of tiles whose exponents are buffered at a time.
const RUN: usize = 32;

/// The exponents of a run of tiles.
#[repr(align(64))]
struct Exponents([u8; RUN * TILE]);

impl Exponents {
    fn new() -> Self {
        Exponents([0; RUN * TILE])
    }
}

pub(crate) fn kernels() -> Option<&'static Kernels> {
    static KERNELS: Kernels = Kernels {
        backend: Backend::Neon,
        count_escapes,
        decode,
        dot_tbe: Some(dot_tbe),
        dot_plain: products::dot_plain,
        dot_nibbles: products::dot_nibbles,
        sum_of_pairs: None,
        unpack_nibbles: products::unpack_nibbles,
        unpack_pairs: portable::unpack_pairs,
        take_sum: products::take_sum,
        widen: products::widen,
        multiply: products::multiply,
    };
    Backend::Neon.is_available().then_some(&KERNELS)
}

fn count_escapes(head: &Head, bitmaps: &[[u8; 8]], starts: &[Start]) -> Result<usize, usize> {
    portable::count(head, bitmaps, starts)
}

fn decode(tiles: &Tiles<'_>, out: &mut [u8], _: &mut Ahead<'_>) {
    let tile = tile_bytes(tiles.head.fields.mantissa_bits);
    let n = out.len() / tile;
    check_run(tiles, 0, n);
    let (whole, rest) = out.split_at_mut(n * tile);
    // SAFETY: `kernels` returned this function, so the machine has NEON. The lengths were checked
    // above.
    let used = unsafe {
        for_dtype!(tiles.head.dtype, M => match tiles.head.width {
            Width::Three => decode_tiles::<M, { extra_bitmaps(M) }, 3>(tiles, whole),
            Width::Four => decode_tiles::<M, { extra_bitmaps(M) }, 4>(tiles, whole),
        })
    };
    if !rest.is_empty() {
        portable::decode_any(&tiles.after(n, used), rest);
    }
}

fn dot_tbe(tiles: &Tiles<'_>, shift: u32, column: Column<'_>, chains: &mut Chains) -> usize {
    let x = column.x;
    check_run(tiles, shift, x.len() / TILE);
    // SAFETY: `kernels` returned this function, so the machine has NEON. The lengths were checked
    // above.
    unsafe {
        for_dtype!(tiles.head.dtype, M => match tiles.head.width {
            Width::Three => dot_tbe_impl::<M, { extra_bitmaps(M) }, 3>(tiles, shift, x, chains),
            Width::Four => dot_tbe_impl::<M, { extra_bitmaps(M) }, 4>(tiles, shift, x, chains),
        })
    }
}

/// N bitmaps of a tile from bitmap `first` on, moved by `shift`.
///
/// # Safety
/// There must be N bitmaps, and N more `per_tile` after them if they are shifted.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn bitmaps<const N: usize>(
    bitmaps: &[[u8; 8]],
    first: usize,
    per_tile: usize,
    shift: u32,
) -> [u64; N] {
    // SAFETY: as the caller promises.
    unsafe {
        let here = bitmaps.as_ptr().add(first);
        let mut words = (*here.cast::<[[u8; 8]; N]>()).map(u64::from_le_bytes);
        if shift != 0 {
            let next = *here.add(per_tile).cast::<[[u8; 8]; N]>();
            for (word, next) in words.iter_mut().zip(next) {
                *word = *word >> shift | u64::from_le_bytes(next) << 1 << (63 - shift);
            }
        }
        words
    }
}

/// Adds to each byte `1 << places[j]` if bitmap j has a 1 for it, in that quarter of a tile.
#[inline]
#[target_feature(enable = "neon")]
fn add_bits<const N: usize>(
    sums: uint8x16_t,
    bitmaps: [u64; N],
    quarter: usize,
    place: impl Fn(usize) -> u32,
) -> uint8x16_t {
    // Each byte of the vector gets the byte of the bitmap that has its bit; then the bit is tested.
    let bits = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
    let at = 2 * quarter as u8;
    let order = vcombine_u8(vdup_n_u8(at), vdup_n_u8(at + 1));
    bitmaps.into_iter().enumerate().fold(sums, |sums, (j, bitmap)| {
        let bytes = vqtbl1q_u8(vreinterpretq_u8_u64(vdupq_n_u64(bitmap)), order);
        vaddq_u8(sums, vandq_u8(vtstq_u8(bytes, bits), vdupq_n_u8(1 << place(j))))
    })
}

/// Writes the exponents of `n` tiles, at most [`RUN`], to `out`, each at its place in the high byte
/// of a weight (that of bf16 as it is). Returns the number of their escapes.
///
/// # Safety
/// [`check_run`] must have passed for this shift and `n` tiles.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn exponents<const M: u32, const W: usize>(
    tiles: &Tiles<'_>,
    shift: u32,
    n: usize,
    out: &mut Exponents,
) -> usize {
    assert!(n <= RUN);
    let per_tile = W + extra_bitmaps(M);
    let place = exponent_place(M);
    let base = vdupq_n_u8(tiles.head.base << place);
    let mut used = 0;
    for t in 0..n {
        // SAFETY: `check_run` passed: there are W bitmaps for this tile, and for the next one if it
        // is shifted.
        let words = unsafe { bitmaps::<W>(tiles.bitmaps, t * per_tile, per_tile, shift) };
        for quarter in 0..4 {
            let exponents = add_bits(base, words, quarter, |j| j as u32 + place);
            let at = t * TILE + 16 * quarter;
            // SAFETY: `Exponents` holds 64 bytes for each of RUN tiles.
            unsafe { vst1q_u8(out.0.as_mut_ptr().add(at), exponents) };
        }
        let mut mask = words.iter().fold(!0, |mask, word| mask & word);
        let n = mask.count_ones() as usize;
        for &exponent in tiles.escapes.get(used..).unwrap_or(&[]).iter().take(n) {
            // Always present: the mask has one bit per escape.
            if let Some(out) = out.0.get_mut(t * TILE + mask.trailing_zeros() as usize) {
                *out = exponent << place;
            }
            mask &= mask.wrapping_sub(1);
        }
        used += n;
    }
    used
}

/// Calls `each` for every quarter of `n` tiles, at most [`RUN`], with its number and the low and
/// the high bytes of its 16 weights. Returns the number of their escapes.
///
/// # Safety
/// [`check_run`] must have passed for this shift and `n` tiles.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn for_each_quarter<const M: u32, const X: usize, const W: usize>(
    tiles: &Tiles<'_>,
    shift: u32,
    n: usize,
    buffer: &mut Exponents,
    mut each: impl FnMut(usize, uint8x16_t, uint8x16_t),
) -> usize {
    let per_tile = W + X;
    // SAFETY: as the caller promises.
    let used = unsafe { exponents::<M, W>(tiles, shift, n, buffer) };
    for t in 0..n {
        // SAFETY: `check_run` passed: there are X extra bitmaps for this tile, and for the next one
        // if it is shifted.
        let extra = unsafe { bitmaps::<X>(tiles.bitmaps, t * per_tile + W, per_tile, shift) };
        for quarter in 4 * t..4 * t + 4 {
            let at = 16 * quarter;
            // SAFETY: quarter is less than 4 n: there are 16 exponents, and bytes of the plane if
            // the dtype has one.
            let (exponents, plane) = unsafe {
                let plane = tiles.plane.as_ptr();
                (
                    vld1q_u8(buffer.0.as_ptr().add(at)),
                    if has_plane(M) { vld1q_u8(plane.add(at)) } else { vdupq_n_u8(0) },
                )
            };
            if M == BF16 {
                let mantissa = vdupq_n_u8(0x7f);
                let low = vbslq_u8(mantissa, plane, vshlq_n_u8::<7>(exponents));
                let high = vbslq_u8(mantissa, vshrq_n_u8::<1>(exponents), plane);
                each(quarter, low, high);
            } else {
                // The last extra bitmap is the sign.
                let place = |j| if j + 1 == X { 7 } else { j as u32 };
                each(quarter, plane, add_bits(exponents, extra, quarter % 4, place));
            }
        }
    }
    used
}

/// Decodes the whole tiles of `out`. Returns the number of their escapes.
///
/// # Safety
/// [`check_run`] must have passed for as many tiles.
#[inline(never)] // a name in profiles
#[target_feature(enable = "neon")]
unsafe fn decode_tiles<const M: u32, const X: usize, const W: usize>(
    tiles: &Tiles<'_>,
    out: &mut [u8],
) -> usize {
    let mut buffer = Exponents::new();
    let mut left = *tiles;
    let mut used_in_all = 0;
    for out in out.chunks_mut(RUN * tile_bytes(M)) {
        let n = out.len() / tile_bytes(M);
        let out = out.as_mut_ptr();
        let each = |quarter, low, high| {
            // SAFETY: quarter is less than 4 n: it writes 16 bytes for each, or 32 bytes if weights
            // have two.
            unsafe {
                if has_plane(M) {
                    vst2q_u8(out.add(32 * quarter), uint8x16x2_t(low, high));
                } else {
                    vst1q_u8(out.add(16 * quarter), high);
                }
            }
        };
        // SAFETY: the caller promises as many tiles.
        let used = unsafe { for_each_quarter::<M, X, W>(&left, 0, n, &mut buffer, each) };
        used_in_all += used;
        left = left.after(n, used);
    }
    used_in_all
}

/// # Safety
/// [`check_run`] must have passed for this shift and `x.len() / 64` tiles.
#[inline(never)] // a name in profiles
#[target_feature(enable = "neon")]
unsafe fn dot_tbe_impl<const M: u32, const X: usize, const W: usize>(
    tiles: &Tiles<'_>,
    shift: u32,
    x: &[f32],
    chains: &mut Chains,
) -> usize {
    let mut buffer = Exponents::new();
    let (mut left, mut all_used) = (*tiles, 0);
    let mut sums = load_chains(chains);
    for x in x.chunks(RUN * TILE) {
        let n = x.len() / TILE;
        let x = x.as_ptr();
        let each = |quarter: usize, low, high| {
            // SAFETY: the floats of a tile, of which there are n: 12 + 52 of 64.
            unsafe {
                let x = x.add(quarter / 4 * TILE + quarter % 4 * 4);
                add_products::<M>(&mut sums[quarter % 4], pairs::<M>(low, high), x);
            }
        };
        // SAFETY: the caller promises as many tiles.
        let used = unsafe { for_each_quarter::<M, X, W>(&left, shift, n, &mut buffer, each) };
        left = left.after(n, used);
        all_used += used;
    }
    store_chains(sums, chains);
    all_used
}
