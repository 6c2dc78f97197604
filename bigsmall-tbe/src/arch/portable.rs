//! Kernels without intrinsics, written so that the compiler can vectorise them. Other backends
//! compile some of them for their own instructions, if intrinsics would not make them faster.
#![allow(unsafe_code)]

use bigsmall_format::internal::Ahead;
use bigsmall_format::{Backend, Dtype};

use crate::arch::blocks::{self, Four};
use crate::floats;
use crate::kernels::{
    Chains, Column, GROUP_LANES, GROUPS, Kernels, NIBBLE_CELL, Nibbles, PAIR_CELL, PAIRS, Pairs,
    Panels, Tiles, weight_of,
};
use crate::layout::{GROUP, Head, Start, TILE, Width, escape_mask};

pub(crate) static KERNELS: Kernels = Kernels {
    backend: Backend::Portable,
    count_escapes,
    decode,
    dot_tbe: None,
    dot_plain,
    dot_nibbles,
    sum_of_pairs: None,
    unpack_nibbles,
    unpack_pairs,
    take_sum,
    widen,
    multiply,
};

/// Byte `i` of entry `b` is bit `i` of `b`.
static SPREAD: [[u8; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut b = 0;
    while b < 256 {
        let mut i = 0;
        while i < 8 {
            table[b][i] = (b >> i & 1) as u8;
            i += 1;
        }
        b += 1;
    }
    table
};

/// Spreads bitmaps into one byte for each weight: bit `j` of byte `i` is bit `i` of bitmap `j`.
#[inline(always)]
fn spread(bitmaps: &[[u8; 8]]) -> [u8; TILE] {
    let mut out = [0; TILE];
    for (at, eight) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let mut bytes = 0;
        for (j, bitmap) in bitmaps.iter().enumerate() {
            bytes |= u64::from_ne_bytes(SPREAD[usize::from(bitmap[at])]) << j;
        }
        *eight = bytes.to_ne_bytes();
    }
    out
}

pub(crate) fn count_escapes(
    head: &Head,
    bitmaps: &[[u8; 8]],
    starts: &[Start],
) -> Result<usize, usize> {
    count(head, bitmaps, starts)
}

#[inline(always)]
pub(crate) fn count(head: &Head, bitmaps: &[[u8; 8]], starts: &[Start]) -> Result<usize, usize> {
    match (head.width, head.fields.extra_bitmaps()) {
        (Width::Three, 0) => count_in::<3, 3>(bitmaps, starts),
        (Width::Three, 3) => count_in::<3, 6>(bitmaps, starts),
        (Width::Three, _) => count_in::<3, 7>(bitmaps, starts),
        (Width::Four, 0) => count_in::<4, 4>(bitmaps, starts),
        (Width::Four, 3) => count_in::<4, 7>(bitmaps, starts),
        (Width::Four, _) => count_in::<4, 8>(bitmaps, starts),
    }
}

/// For `N` bitmaps per tile, of which the first `W` hold the codes.
#[inline(always)]
fn count_in<const W: usize, const N: usize>(
    bitmaps: &[[u8; 8]],
    starts: &[Start],
) -> Result<usize, usize> {
    let mut total = 0;
    for (group, tiles) in bitmaps.as_chunks::<N>().0.chunks(GROUP / TILE).enumerate() {
        if starts.get(group).map(|s| u32::from_le_bytes(*s) as usize) != Some(total) {
            return Err(group);
        }
        total += tiles.iter().map(|t| escape_mask(&t[..W]).count_ones() as usize).sum::<usize>();
    }
    Ok(total)
}

fn decode(tiles: &Tiles<'_>, out: &mut [u8], _: &mut Ahead<'_>) {
    decode_any(tiles, out);
}

/// Decodes tiles of any dtype.
#[inline(always)]
pub(crate) fn decode_any(tiles: &Tiles<'_>, out: &mut [u8]) {
    let fields = tiles.head.fields;
    match (fields.mantissa_bits, tiles.head.width) {
        (7, Width::Three) => decode16::<3, 0, 7>(tiles, out),
        (7, Width::Four) => decode16::<4, 0, 7>(tiles, out),
        (10, Width::Three) => decode16::<3, 3, 10>(tiles, out),
        (10, Width::Four) => decode16::<4, 3, 10>(tiles, out),
        (3, Width::Three) => decode8::<3, 4, 3>(tiles, out),
        (3, Width::Four) => decode8::<4, 4, 3>(tiles, out),
        (_, Width::Three) => decode8::<3, 3, 2>(tiles, out),
        (_, Width::Four) => decode8::<4, 3, 2>(tiles, out),
    }
}

/// The exponents of a tile. Removes its escapes from the front of `escapes`.
#[inline(always)]
fn exponents<const W: usize>(bitmaps: &[[u8; 8]], base: u8, escapes: &mut &[u8]) -> [u8; TILE] {
    let mut exponents = spread(&bitmaps[..W]).map(|code| code.wrapping_add(base));
    let mut mask = escape_mask(&bitmaps[..W]);
    let n = mask.count_ones() as usize;
    let (these, rest) = escapes.split_at(n.min(escapes.len()));
    *escapes = rest;
    for &exponent in these {
        exponents[mask.trailing_zeros() as usize % TILE] = exponent;
        mask &= mask.wrapping_sub(1);
    }
    exponents
}

/// Decodes 16-bit values. `X` extra bitmaps hold the bits of sign and mantissa that are not in the
/// byte plane.
#[inline(always)]
fn decode16<const W: usize, const X: usize, const M: u32>(tiles: &Tiles<'_>, out: &mut [u8]) {
    let mut escapes = tiles.escapes;
    let bitmaps = tiles.bitmaps.chunks_exact(W + X);
    let planes = tiles.plane.chunks(TILE);
    for ((bitmaps, plane), out) in bitmaps.zip(planes).zip(out.chunks_mut(2 * TILE)) {
        let exponents = exponents::<W>(bitmaps, tiles.head.base, &mut escapes);
        let value = |exponent: u8, low: u8, high: u8| {
            let others = u16::from(high) << 8 | u16::from(low);
            let sign = others >> M;
            (sign << 15 | u16::from(exponent) << M | others & ((1 << M) - 1)).to_le_bytes()
        };
        let high = spread(&bitmaps[W..]);
        let out = out.as_chunks_mut::<2>().0;
        match (<&[u8; TILE]>::try_from(plane), <&mut [[u8; 2]; TILE]>::try_from(&mut *out)) {
            (Ok(plane), Ok(out)) => {
                for i in 0..TILE {
                    out[i] = value(exponents[i], plane[i], high[i]);
                }
            }
            _ => {
                for (i, (out, &low)) in out.iter_mut().zip(plane).enumerate() {
                    *out = value(exponents[i], low, high[i]);
                }
            }
        }
    }
}

/// Decodes 8-bit values. `X` extra bitmaps hold sign and mantissa.
#[inline(always)]
fn decode8<const W: usize, const X: usize, const M: u32>(tiles: &Tiles<'_>, out: &mut [u8]) {
    let mut escapes = tiles.escapes;
    for (bitmaps, out) in tiles.bitmaps.chunks_exact(W + X).zip(out.chunks_mut(TILE)) {
        let exponents = exponents::<W>(bitmaps, tiles.head.base, &mut escapes);
        let others = spread(&bitmaps[W..]);
        for (i, out) in out.iter_mut().enumerate() {
            let sign = others[i] >> M;
            *out = sign << 7 | exponents[i] << M | others[i] & ((1 << M) - 1);
        }
    }
}

/// Multiplies, then adds. A fused operation would be a slow function call if the compiler cannot
/// assume that the machine has the instruction.
#[inline(always)]
fn mul_then_add(a: f32, b: f32, c: f32) -> f32 {
    a * b + c
}

fn dot_plain(dtype: Dtype, weights: &[u8], column: Column<'_>, chains: &mut Chains) {
    let x = column.x;
    let pairs = weights.as_chunks::<2>().0;
    match dtype {
        Dtype::BF16 => dot_bf16(weights, x, chains),
        Dtype::F16 => dot_each(pairs, x, chains, |w| floats::f16(u16::from_le_bytes(w))),
        Dtype::F8_E4M3 => dot_each(weights, x, chains, |w| floats::E4M3[usize::from(w)]),
        _ => dot_each(weights, x, chains, |w| floats::E5M2[usize::from(w)]),
    }
}

#[inline(always)]
fn dot_each<T: Copy>(weights: &[T], x: &[f32], chains: &mut Chains, to_f32: impl Fn(T) -> f32) {
    let mut sums = *chains;
    for (weights, x) in weights.as_chunks::<TILE>().0.iter().zip(x.as_chunks::<TILE>().0) {
        // In two loops, so that the first one becomes vector instructions.
        let mut floats = [0.0; TILE];
        for (float, &weight) in floats.iter_mut().zip(weights) {
            *float = to_f32(weight);
        }
        for (lane, (sum, &x)) in sums.iter_mut().zip(x).enumerate() {
            *sum = mul_then_add(floats[weight_of(lane)], x, *sum);
        }
    }
    *chains = sums;
}

fn dot_nibbles(nibbles: &Nibbles<'_>, column: Column<'_>, chains: &mut Chains) {
    let mut weights = [0; 2 * TILE];
    for (cell, x) in nibbles.cells.iter().zip(column.x.as_chunks::<TILE>().0) {
        unpack_nibble_cell(nibbles.high, cell, &mut weights);
        dot_bf16(&weights, x, chains);
    }
}

fn unpack_nibbles(nibbles: &Nibbles<'_>, out: &mut [u8]) {
    for (cell, out) in nibbles.cells.iter().zip(out.as_chunks_mut().0) {
        unpack_nibble_cell(nibbles.high, cell, out);
    }
}

#[inline(always)]
fn unpack_nibble_cell(high: &[u8; 16], cell: &[u8; NIBBLE_CELL], out: &mut [u8; 2 * TILE]) {
    let (codes, low) = cell.split_at(TILE / 2);
    let (first, second) = out.as_chunks_mut::<2>().0.split_at_mut(TILE / 2);
    for (i, &codes) in codes.iter().enumerate() {
        first[i] = [low[i], high[usize::from(codes & 15)]];
        second[i] = [low[TILE / 2 + i], high[usize::from(codes >> 4)]];
    }
}

pub(crate) fn unpack_pairs(pairs: &Pairs<'_>, out: &mut [u8]) {
    // The high bytes of each code.
    let high = PAIRS.map(|numbers| numbers.map(|number| pairs.high[usize::from(number)]));
    for (cell, out) in pairs.cells.iter().zip(out.as_chunks_mut::<{ 4 * TILE }>().0) {
        let (codes, low) = cell.split_at(PAIR_CELL - 2 * TILE);
        let (first, second) = out.as_chunks_mut::<2>().0.split_at_mut(TILE);
        for (i, seven) in codes.as_chunks::<7>().0.iter().enumerate() {
            let [a, b, c, d, e, f, g] = *seven;
            let eight = u64::from_le_bytes([a, b, c, d, e, f, g, 0]);
            for j in 0..8 {
                let code = (eight >> (7 * j) & 127) as usize;
                let i = 8 * i + j;
                first[i] = [low[i], high[0][code]];
                second[i] = [low[TILE + i], high[1][code]];
            }
        }
    }
}

fn take_sum(chains: &mut Chains) -> f32 {
    // Of fixed lengths, so that compilers add vectors.
    let sums: [f32; TILE / 2] = halved(chains);
    let sums: [f32; TILE / 4] = halved(&sums);
    let sums: [f32; TILE / 8] = halved(&sums);
    let sums: [f32; TILE / 16] = halved(&sums);
    let sums: [f32; TILE / 32] = halved(&sums);
    *chains = [0.0; TILE];
    sums[0] + sums[1]
}

#[inline(always)]
fn halved<const N: usize>(numbers: &[f32]) -> [f32; N] {
    let (first, second) = numbers.split_at(N);
    std::array::from_fn(|i| first[i] + second[i])
}

fn widen(dtype: Dtype, weights: &[u8], n: usize, row: usize, out: &mut [f32]) {
    let pairs = weights.as_chunks::<2>().0;
    match dtype {
        Dtype::BF16 => widen_each(pairs, n, row, out, |[low, high]| {
            f32::from_bits(u32::from_le_bytes([0, 0, low, high]))
        }),
        Dtype::F16 => widen_each(pairs, n, row, out, |w| floats::f16(u16::from_le_bytes(w))),
        Dtype::F8_E4M3 => widen_each(weights, n, row, out, |w| floats::E4M3[usize::from(w)]),
        _ => widen_each(weights, n, row, out, |w| floats::E5M2[usize::from(w)]),
    }
}

#[inline(always)]
fn widen_each<T: Copy>(
    weights: &[T],
    n: usize,
    row: usize,
    out: &mut [f32],
    to_f32: impl Fn(T) -> f32,
) {
    let tiles = weights.as_chunks::<TILE>().0;
    for group in 0..GROUPS {
        let at = Panels::offset(n, tiles.len(), group, row);
        let out = out[at..][..tiles.len() * GROUP_LANES].as_chunks_mut::<GROUP_LANES>().0;
        for (weights, out) in tiles.iter().zip(out) {
            for (i, out) in out.iter_mut().enumerate() {
                *out = to_f32(weights[weight_of(group * GROUP_LANES + i)]);
            }
        }
    }
}

fn multiply(w: &Panels<'_>, x: &Panels<'_>, chains: &mut [Chains]) {
    // SAFETY: it needs no instructions of its own.
    unsafe { blocks::multiply::<Four, 3, 4>(w, x, chains) };
}

fn dot_bf16(weights: &[u8], x: &[f32], chains: &mut Chains) {
    // Half of the chains at a time, since only so many fit in registers: first those of the first
    // eight of 16 weights, then those of the second eight.
    for (half, chains) in chains.as_chunks_mut::<{ TILE / 2 }>().0.iter_mut().enumerate() {
        let mut sums = *chains;
        let tiles = weights.as_chunks::<{ 2 * TILE }>().0.iter().zip(x.as_chunks::<TILE>().0);
        for (weights, x) in tiles {
            let x = &x.as_chunks::<{ TILE / 2 }>().0[half];
            for quarter in 0..4 {
                let eight = &weights.as_chunks::<16>().0[2 * quarter + half];
                for (i, pair) in eight.as_chunks::<4>().0.iter().enumerate() {
                    let pair = u32::from_le_bytes(*pair);
                    let (even, odd) = (4 * quarter + i, 16 + 4 * quarter + i);
                    sums[even] = mul_then_add(f32::from_bits(pair << 16), x[even], sums[even]);
                    sums[odd] = mul_then_add(f32::from_bits(pair & 0xffff_0000), x[odd], sums[odd]);
                }
            }
        }
        *chains = sums;
    }
}
