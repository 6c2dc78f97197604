//! Values from symbols with AVX-512, for units of two bytes: the symbols with extra bits of a group
//! are put side by side, their bits are taken for 16 of them at once, and an expansion takes the
//! results back to their places.

use std::arch::x86_64::*;

use bigsmall_format::{Result, Rule};

use crate::delta::bits::Bits;
use crate::delta::head::Head;
use crate::delta::join::{EXTRA_ROOM, Parts, add_lows};
use crate::delta::split::Large;
use crate::head::MAX_TABLES;
use crate::planes::GROUP;
use crate::units::low_len;

/// Symbols whose extra bits are taken at once.
const AT_ONCE: usize = 16;
/// Set where extra bits are subtracted.
const MINUS: u8 = 0x80;

/// What symbols stand for.
struct Tables {
    /// For each table and symbol the number of its extra bits, and [`MINUS`].
    lens: [[u8; 64]; MAX_TABLES],
    /// For each symbol what its extra bits are counted from, less the symbol itself.
    firsts: [u16; 64],
}

impl Tables {
    fn new(head: &Head) -> Tables {
        let large: [_; 64] = std::array::from_fn(|symbol| Large::of(head, symbol as u32));
        let mut lens = [[0; 64]; MAX_TABLES];
        for (lens, table) in lens.iter_mut().zip(&head.tables) {
            *lens = large.map(|large| {
                let n = if large.n == u32::MAX { u16::BITS - table.shift } else { large.n };
                n as u8 | if large.minus == 0 { 0 } else { MINUS }
            });
        }
        let firsts = std::array::from_fn(|i| (large[i].first as u16).wrapping_sub(i as u16));
        Tables { lens, firsts }
    }
}

/// For the symbols of a group that have extra bits what these add to the value, one after the
/// other; `far` has zeros behind them. Takes the bits from `at` on.
///
/// # Safety
/// `extra` has [`EXTRA_ROOM`] bytes or more, the last of which are zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn take_bits(
    (lens, firsts): (&[u8; 64], &[u16; 64]),
    shift: u32,
    (far, n): (&[u8; GROUP + 64], usize),
    (extra, at): (&[u8], &mut usize),
    out: &mut [u16; GROUP + AT_ONCE],
) {
    // SAFETY: tables of 64 bytes are one vector, those of 64 numbers two; 16 symbols from `i` on lie
    // within the group and the bytes behind it, as their results do; 64 bytes of the extra bits can
    // be read from a place on that is not within their room.
    unsafe {
        let lens = _mm512_loadu_si512(lens.as_ptr().cast());
        let firsts = [0, 32].map(|i| _mm512_loadu_si512(firsts.as_ptr().add(i).cast()));
        let (zero, ones) = (_mm512_setzero_si512(), _mm512_set1_epi32(-1));
        let shift = _mm_cvtsi32_si128(shift as i32);
        // The lowest byte of each number of 32 bits in all of its bytes, and which of four each is.
        let spread = _mm512_broadcast_i32x4(_mm_setr_epi8(
            0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12,
        ));
        let each = _mm512_set1_epi32(0x0302_0100);
        for i in (0..n).step_by(AT_ONCE) {
            let symbols = _mm512_cvtepu8_epi32(_mm_loadu_si128(far.as_ptr().add(i).cast()));
            // The upper bytes of a number are 0, and so are the first entries.
            let len = _mm512_permutexvar_epi8(symbols, lens);
            let first = _mm512_permutex2var_epi16(firsts[0], symbols, firsts[1]);
            let minus = _mm512_test_epi32_mask(len, _mm512_set1_epi32(i32::from(MINUS)));
            let len = _mm512_and_si512(len, _mm512_set1_epi32(i32::from(!MINUS)));
            // The number of bits up to each symbol and its own.
            let mut sum = len;
            sum = _mm512_add_epi32(sum, _mm512_alignr_epi32::<15>(sum, zero));
            sum = _mm512_add_epi32(sum, _mm512_alignr_epi32::<14>(sum, zero));
            sum = _mm512_add_epi32(sum, _mm512_alignr_epi32::<12>(sum, zero));
            sum = _mm512_add_epi32(sum, _mm512_alignr_epi32::<8>(sum, zero));
            let begin = (*at / 8).min(extra.len() - EXTRA_ROOM);
            let window = _mm512_loadu_si512(extra.as_ptr().add(begin).cast());
            let place =
                _mm512_add_epi32(_mm512_sub_epi32(sum, len), _mm512_set1_epi32((*at % 8) as i32));
            let bytes = _mm512_shuffle_epi8(_mm512_srli_epi32::<3>(place), spread);
            let four = _mm512_permutexvar_epi8(_mm512_add_epi8(bytes, each), window);
            let bits = _mm512_srlv_epi32(four, _mm512_and_si512(place, _mm512_set1_epi32(7)));
            let bits = _mm512_andnot_si512(_mm512_sllv_epi32(ones, len), bits);
            let bits = _mm512_mask_sub_epi32(bits, minus, zero, bits);
            let steps = _mm512_add_epi32(first, bits);
            let added = _mm512_cvtepi32_epi16(_mm512_sll_epi32(steps, shift));
            _mm256_storeu_si256(out.as_mut_ptr().add(i).cast(), added);
            *at += _mm_extract_epi32::<3>(_mm512_extracti32x4_epi32::<3>(sum)) as usize;
        }
    }
}

/// [`join`](crate::delta::join::join), if there is a kernel for such units.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(in crate::arch::x86_64) fn values512(
    head: &Head,
    parts: &Parts<'_>,
    values: &mut [u64],
) -> Option<Result<()>> {
    if head.unit_bytes != 2 || parts.extra.len() < EXTRA_ROOM {
        return None;
    }
    let values: &mut [u16] = bytemuck::cast_slice_mut(values);
    let tables = Tables::new(head);
    let near = _mm512_set1_epi8(head.n_near() as i8);
    let mut lows = parts.lows;
    let mut at = 0;
    let mut far = [0u8; GROUP + 64];
    // Read as a vector from any of a group on.
    let mut added = [0u16; GROUP + AT_ONCE];
    let groups = parts.symbols.as_chunks::<GROUP>().0.iter().zip(values.as_chunks_mut::<GROUP>().0);
    for ((symbols, values), &id) in groups.zip(parts.group_tables) {
        let table = &head.tables[usize::from(id)];
        let (packed, rest) = lows.split_at(low_len(table.shift));
        lows = rest;
        let (mut n, mut masks) = (0, [0u64; GROUP / 64]);
        for (symbols, mask) in symbols.as_chunks::<64>().0.iter().zip(&mut masks) {
            // SAFETY: 64 symbols are one vector; at most as many as were looked at are before it.
            unsafe {
                let symbols = _mm512_loadu_si512(symbols.as_ptr().cast());
                *mask = _mm512_cmpge_epu8_mask(symbols, near);
                let compressed = _mm512_maskz_compress_epi8(*mask, symbols);
                _mm512_storeu_si512(far.as_mut_ptr().add(n).cast(), compressed);
            }
            n += mask.count_ones() as usize;
        }
        // SAFETY: there are at most as many as a group has; the extra bits have their room.
        unsafe {
            _mm512_storeu_si512(far.as_mut_ptr().add(n).cast(), _mm512_setzero_si512());
            let tables = (&tables.lens[usize::from(id)], &tables.firsts);
            take_bits(tables, table.shift, (&far, n), (parts.extra, &mut at), &mut added);
        }
        let lo = _mm512_set1_epi16(table.lo as i16);
        let shift = _mm_cvtsi32_si128(table.shift as i32);
        let mut next = added.as_ptr();
        let chunks = symbols.as_chunks::<64>().0.iter().zip(values.as_chunks_mut::<64>().0);
        for ((symbols, values), mask) in chunks.zip(masks) {
            for half in 0..2 {
                let mask = (mask >> (32 * half)) as u32;
                // SAFETY: 32 symbols are half a vector, and their values one; as many of `added` as
                // the mask has bits are read from `next` on, and those before were of other bits.
                unsafe {
                    let symbols = _mm256_loadu_si256(symbols.as_ptr().add(32 * half).cast());
                    let symbols = _mm512_cvtepu8_epi16(symbols);
                    let near = _mm512_add_epi16(lo, _mm512_sll_epi16(symbols, shift));
                    let far = _mm512_maskz_expandloadu_epi16(mask, next.cast());
                    let place = values.as_mut_ptr().add(32 * half);
                    _mm512_storeu_si512(place.cast(), _mm512_add_epi16(near, far));
                    next = next.add(mask.count_ones() as usize);
                }
            }
        }
        if table.shift > 0 {
            add_lows(packed, table.shift, values);
        }
    }
    let mut bits = Bits::new(&parts.extra[..parts.extra.len() - EXTRA_ROOM]);
    bits.skip(at);
    Some(bits.finish(Rule::DeltaBlock))
}
