//! NEON: 16 weights at a time. The exponents of a run of tiles are first written to a buffer in the
//! level 1 cache, where the escapes replace some of them. A second pass reads them from there.
#![allow(unsafe_code)]

use std::arch::aarch64::*;

use bigsmall_format::Backend;
use bigsmall_format::internal::Ahead;

use self::products::{add_products, load_chains, store_chains};
use crate::arch::portable;
use crate::kernels::{Chains, Kernels, Tiles, check_run};
use crate::layout::{Head, Start, TILE, TILE_BYTES, Width};

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
        dot_bf16: products::dot_bf16,
        dot_nibbles: products::dot_nibbles,
        unpack: products::unpack,
        widen: products::widen,
        multiply: products::multiply,
    };
    Backend::Neon.is_available().then_some(&KERNELS)
}

fn count_escapes(head: &Head, bitmaps: &[[u8; 8]], starts: &[Start]) -> Result<usize, usize> {
    portable::count(head, bitmaps, starts)
}

fn decode(tiles: &Tiles<'_>, out: &mut [u8], _: &mut Ahead<'_>) {
    if tiles.head.fields.mantissa_bits != 7 {
        return portable::decode_any(tiles, out);
    }
    let n = out.len() / TILE_BYTES;
    check_run(tiles, 0, n);
    let (whole, rest) = out.split_at_mut(n * TILE_BYTES);
    // SAFETY: `kernels` returned this function, so the machine has NEON. The lengths were checked
    // above.
    let used = unsafe {
        match tiles.head.width {
            Width::Three => decode_tiles::<3>(tiles, whole),
            Width::Four => decode_tiles::<4>(tiles, whole),
        }
    };
    if !rest.is_empty() {
        portable::decode_any(&tiles.after(n, used), rest);
    }
}

fn dot_tbe(tiles: &Tiles<'_>, shift: u32, x: &[f32], chains: &mut Chains) -> usize {
    check_run(tiles, shift, x.len() / TILE);
    // SAFETY: `kernels` returned this function, so the machine has NEON. The lengths were checked
    // above.
    unsafe {
        match tiles.head.width {
            Width::Three => dot_tbe_impl::<3>(tiles, shift, x, chains),
            Width::Four => dot_tbe_impl::<4>(tiles, shift, x, chains),
        }
    }
}

/// Writes the exponents of `n` tiles, at most [`RUN`], to `out`. Returns the number of their
/// escapes.
///
/// # Safety
/// [`check_run`] must have passed for this shift and `n` tiles.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn exponents<const W: usize>(
    tiles: &Tiles<'_>,
    shift: u32,
    n: usize,
    out: &mut Exponents,
) -> usize {
    assert!(n <= RUN);
    let base = vdupq_n_u8(tiles.head.base);
    let bits = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
    let mut used = 0;
    for t in 0..n {
        // SAFETY: `check_run` passed: there are W bitmaps for this tile, and W more if it is
        // shifted.
        let words = unsafe {
            let here = *tiles.bitmaps.as_ptr().add(t * W).cast::<[[u8; 8]; W]>();
            let mut words = here.map(u64::from_le_bytes);
            if shift != 0 {
                let next = *tiles.bitmaps.as_ptr().add((t + 1) * W).cast::<[[u8; 8]; W]>();
                for (word, next) in words.iter_mut().zip(next) {
                    *word = *word >> shift | u64::from_le_bytes(next) << 1 << (63 - shift);
                }
            }
            words
        };
        let spread = words.map(|word| vreinterpretq_u8_u64(vdupq_n_u64(word)));
        for quarter in 0..4u8 {
            // Each byte of the vector gets the byte of the bitmap that has its bit; then the bit is
            // tested.
            let order = vcombine_u8(vdup_n_u8(2 * quarter), vdup_n_u8(2 * quarter + 1));
            let mut exponents = base;
            for (j, &word) in spread.iter().enumerate() {
                let set = vtstq_u8(vqtbl1q_u8(word, order), bits);
                exponents = vaddq_u8(exponents, vandq_u8(set, vdupq_n_u8(1 << j)));
            }
            let at = t * TILE + 16 * usize::from(quarter);
            // SAFETY: `Exponents` holds 64 bytes for each of RUN tiles.
            unsafe { vst1q_u8(out.0.as_mut_ptr().add(at), exponents) };
        }
        let mut mask = words.iter().fold(!0, |mask, word| mask & word);
        let n = mask.count_ones() as usize;
        for &exponent in tiles.escapes.get(used..).unwrap_or(&[]).iter().take(n) {
            // Always present: the mask has one bit per escape.
            if let Some(out) = out.0.get_mut(t * TILE + mask.trailing_zeros() as usize) {
                *out = exponent;
            }
            mask &= mask.wrapping_sub(1);
        }
        used += n;
    }
    used
}

/// 16 weights as unpacked pairs: the first eight, the last eight.
#[inline]
#[target_feature(enable = "neon")]
fn unpack(exponents: uint8x16_t, plane: uint8x16_t) -> (uint32x4_t, uint32x4_t) {
    let mantissa = vdupq_n_u8(0x7f);
    let low = vbslq_u8(mantissa, plane, vshlq_n_u8::<7>(exponents));
    let high = vbslq_u8(mantissa, vshrq_n_u8::<1>(exponents), plane);
    (vreinterpretq_u32_u8(vzip1q_u8(low, high)), vreinterpretq_u32_u8(vzip2q_u8(low, high)))
}

/// Decodes `out.len() / 128` whole tiles. Returns the number of their escapes.
///
/// # Safety
/// [`check_run`] must have passed for as many tiles.
#[target_feature(enable = "neon")]
unsafe fn decode_tiles<const W: usize>(tiles: &Tiles<'_>, out: &mut [u8]) -> usize {
    let mut buffer = Exponents::new();
    let mut left = *tiles;
    let mut used_in_all = 0;
    for out in out.chunks_mut(RUN * TILE_BYTES) {
        let n = out.len() / TILE_BYTES;
        // SAFETY: the caller promises as many tiles.
        let used = unsafe { exponents::<W>(&left, 0, n, &mut buffer) };
        let planes = left.plane.as_chunks::<16>().0.iter().zip(buffer.0.as_chunks::<16>().0);
        for (out, (plane, exponents)) in out.as_chunks_mut::<32>().0.iter_mut().zip(planes) {
            // SAFETY: each reads 16 bytes of 16 or writes 32 of 32.
            unsafe {
                let (first, second) =
                    unpack(vld1q_u8(exponents.as_ptr()), vld1q_u8(plane.as_ptr()));
                vst1q_u8(out.as_mut_ptr(), vreinterpretq_u8_u32(first));
                vst1q_u8(out.as_mut_ptr().add(16), vreinterpretq_u8_u32(second));
            }
        }
        used_in_all += used;
        left = left.after(n, used);
    }
    used_in_all
}

/// # Safety
/// [`check_run`] must have passed for this shift and `x.len() / 64` tiles.
#[target_feature(enable = "neon")]
unsafe fn dot_tbe_impl<const W: usize>(
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
        // SAFETY: the caller promises as many tiles.
        let used = unsafe { exponents::<W>(&left, shift, n, &mut buffer) };
        let planes = left.plane.as_chunks::<TILE>().0.iter().zip(buffer.0.as_chunks::<TILE>().0);
        for (x, (plane, exponents)) in x.as_chunks::<TILE>().0.iter().zip(planes) {
            for (quarter, sums) in sums.iter_mut().enumerate() {
                // SAFETY: quarter is at most 3: 48 + 16 of 64 bytes, 12 + 52 of 64 floats.
                unsafe {
                    let (first, second) = unpack(
                        vld1q_u8(exponents.as_ptr().add(16 * quarter)),
                        vld1q_u8(plane.as_ptr().add(16 * quarter)),
                    );
                    add_products(sums, first, second, x.as_ptr().add(4 * quarter));
                }
            }
        }
        left = left.after(n, used);
        all_used += used;
    }
    store_chains(sums, chains);
    all_used
}
