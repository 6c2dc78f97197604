//! Values from symbols with AVX-512, for units of two bytes: the symbols with extra bits of a group
//! are put side by side, their bits are taken for 16 of them at once, and an expansion takes the
//! results back to their places.

use std::arch::x86_64::*;

use bigsmall_format::{Result, Rule};

use crate::delta::bits::Bits;
use crate::delta::head::{Head, Table};
use crate::delta::join::{EXTRA_ROOM, Parts, add_lows};
use crate::delta::split::Large;
use crate::head::MAX_TABLES;
use crate::planes::GROUP;
use crate::units::low_len;

/// Symbols whose extra bits are taken at once.
const AT_ONCE: usize = 16;
/// Groups that are worked on at once: what was stored a moment ago in other pieces is slow to load.
const GROUPS: usize = 8;
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

/// The symbols of a group that have extra bits.
struct Group {
    /// Which they are.
    masks: [u64; GROUP / 64],
    /// How many.
    n: usize,
    /// They, and zeros behind them.
    far: [u8; GROUP + 64],
    /// What each adds to the value, and room to read a vector from any of them on.
    added: [u16; GROUP + 32],
}

impl Group {
    const fn new() -> Group {
        Group { masks: [0; GROUP / 64], n: 0, far: [0; GROUP + 64], added: [0; GROUP + 32] }
    }

    /// Finds the symbols that are `near` or more.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
    fn find(&mut self, symbols: &[u8; GROUP], near: __m512i) {
        self.n = 0;
        for (symbols, mask) in symbols.as_chunks::<64>().0.iter().zip(&mut self.masks) {
            // SAFETY: 64 symbols are one vector; at most as many as were looked at are before it.
            unsafe {
                let symbols = _mm512_loadu_si512(symbols.as_ptr().cast());
                *mask = _mm512_cmpge_epu8_mask(symbols, near);
                let compressed = _mm512_maskz_compress_epi8(*mask, symbols);
                _mm512_storeu_si512(self.far.as_mut_ptr().add(self.n).cast(), compressed);
            }
            self.n += mask.count_ones() as usize;
        }
        // SAFETY: a group has at most as many.
        unsafe {
            let end = self.far.as_mut_ptr().add(self.n);
            _mm512_storeu_si512(end.cast(), _mm512_setzero_si512());
        }
    }

    /// Takes the extra bits of the symbols from `at` on. `extra` has [`EXTRA_ROOM`] bytes or more,
    /// the last of which are zeros.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
    fn take_bits(
        &mut self,
        (lens, firsts): (&[u8; 64], &[u16; 64]),
        shift: u32,
        (extra, at): (&[u8], &mut usize),
    ) {
        // SAFETY: 64 bytes are one vector, and 64 numbers of 16 bits two.
        let (lens, firsts) = unsafe {
            let firsts = [0, 32].map(|i| _mm512_loadu_si512(firsts.as_ptr().add(i).cast()));
            (_mm512_loadu_si512(lens.as_ptr().cast()), firsts)
        };
        let (zero, ones) = (_mm512_setzero_si512(), _mm512_set1_epi32(-1));
        let shift = _mm_cvtsi32_si128(shift as i32);
        // The lowest byte of each number of 32 bits in all of its bytes, and which of four each is.
        let spread = _mm512_broadcast_i32x4(_mm_setr_epi8(
            0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12,
        ));
        let each = _mm512_set1_epi32(0x0302_0100);
        for i in (0..self.n).step_by(AT_ONCE) {
            // SAFETY: 16 symbols from one of the group on lie within the bytes of `far`.
            let symbols = unsafe { _mm_loadu_si128(self.far.as_ptr().add(i).cast()) };
            let symbols = _mm512_cvtepu8_epi32(symbols);
            // Upper bytes look up entry 0, which is 0.
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
            // 16 symbols take at most 7 + 256 bits from here: one vector has all of them.
            let begin = (*at / 8).min(extra.len() - EXTRA_ROOM);
            let window = &extra[begin..begin + EXTRA_ROOM];
            // SAFETY: 64 bytes.
            let window = unsafe { _mm512_loadu_si512(window.as_ptr().cast()) };
            let before = _mm512_sub_epi32(sum, len);
            let place = _mm512_add_epi32(before, _mm512_set1_epi32((*at % 8) as i32));
            let bytes = _mm512_shuffle_epi8(_mm512_srli_epi32::<3>(place), spread);
            let four = _mm512_permutexvar_epi8(_mm512_add_epi8(bytes, each), window);
            let bits = _mm512_srlv_epi32(four, _mm512_and_si512(place, _mm512_set1_epi32(7)));
            let bits = _mm512_andnot_si512(_mm512_sllv_epi32(ones, len), bits);
            let bits = _mm512_mask_sub_epi32(bits, minus, zero, bits);
            let steps = _mm512_add_epi32(first, bits);
            let added = _mm512_cvtepi32_epi16(_mm512_sll_epi32(steps, shift));
            // SAFETY: 16 numbers from one of the group on lie within `added`.
            unsafe { _mm256_storeu_si256(self.added.as_mut_ptr().add(i).cast(), added) };
            *at += _mm_extract_epi32::<3>(_mm512_extracti32x4_epi32::<3>(sum)) as usize;
        }
    }

    /// The values of the group, without their low bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,popcnt")]
    fn put(&self, symbols: &[u8; GROUP], table: &Table, values: &mut [u16; GROUP]) {
        let lo = _mm512_set1_epi16(table.lo as i16);
        let shift = _mm_cvtsi32_si128(table.shift as i32);
        let mut next = self.added.as_ptr();
        for i in 0..GROUP / 32 {
            let mask = (self.masks[i / 2] >> (i % 2 * 32)) as u32;
            // SAFETY: 32 symbols are half a vector, and their values one; as many numbers as the
            // masks have bits are before `next`.
            unsafe {
                let symbols = _mm256_loadu_si256(symbols.as_ptr().add(32 * i).cast());
                let near = _mm512_sll_epi16(_mm512_cvtepu8_epi16(symbols), shift);
                let far = _mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(next.cast()));
                let value = _mm512_add_epi16(_mm512_add_epi16(near, lo), far);
                _mm512_storeu_si512(values.as_mut_ptr().add(32 * i).cast(), value);
                next = next.add(mask.count_ones() as usize);
            }
        }
    }
}

/// [`join`](crate::delta::join::join), if there is a kernel for such units.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(crate) fn values512(head: &Head, parts: &Parts<'_>, values: &mut [u64]) -> Option<Result<()>> {
    if head.unit_bytes != 2 || parts.extra.len() < EXTRA_ROOM {
        return None;
    }
    let values: &mut [u16] = bytemuck::cast_slice_mut(values);
    let tables = Tables::new(head);
    let near = _mm512_set1_epi8(head.n_near() as i8);
    let (mut lows, mut at) = (parts.lows, 0);
    let mut groups = [const { Group::new() }; GROUPS];
    let batches = parts.symbols.chunks(GROUPS * GROUP).zip(values.chunks_mut(GROUPS * GROUP));
    for ((symbols, values), ids) in batches.zip(parts.group_tables.chunks(GROUPS)) {
        let symbols = symbols.as_chunks::<GROUP>().0;
        for (group, symbols) in groups.iter_mut().zip(symbols) {
            group.find(symbols, near);
        }
        for (group, &id) in groups.iter_mut().zip(ids) {
            let shift = head.tables[usize::from(id)].shift;
            let tables = (&tables.lens[usize::from(id)], &tables.firsts);
            group.take_bits(tables, shift, (parts.extra, &mut at));
        }
        let values = values.as_chunks_mut::<GROUP>().0.iter_mut();
        for (((group, symbols), values), &id) in groups.iter().zip(symbols).zip(values).zip(ids) {
            let table = &head.tables[usize::from(id)];
            group.put(symbols, table, values);
            if table.shift > 0 {
                let packed;
                (packed, lows) = lows.split_at(low_len(table.shift));
                add_lows(packed, table.shift, values);
            }
        }
    }
    let mut bits = Bits::new(&parts.extra[..parts.extra.len() - EXTRA_ROOM]);
    bits.skip(at);
    Some(bits.finish(Rule::DeltaBlock))
}
