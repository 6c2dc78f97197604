//! AVX-512 with VBMI2 and VNNI.

use std::arch::x86_64::*;

use bigsmall_format::internal::Ahead;
use bigsmall_format::{Backend, Dtype, Result};

use crate::arch::fused::{ROWS, decode_rest, fused_forms};
use crate::arch::x86_64::delta::{merge512, partition512, values512};
use crate::delta;
use crate::delta::head::Head as DeltaHead;
use crate::delta::join::{Merge, Parts};
use crate::delta::sparse::GroupCounts;
use crate::delta::split::{Parts as SplitParts, Splitter};
use crate::head::{Head, MAX_TABLES};
use crate::kernels::{EncodeJob, Job, Kernels, LANES, Planes, go_together};
use crate::plan::choose::{self, Effort, Plan, Sample};
use crate::planes::GROUP;
use crate::units::{self, CostTable, StandIns};
use crate::zeros;

mod decode;
mod encode;

use decode::{decode_fused, decode_symbols, load};
use encode::encode;

/// Proof that the machine has the instructions.
pub(crate) struct Avx512(());

impl Avx512 {
    /// The backend, if the machine has it.
    pub(crate) fn new() -> Option<&'static Avx512> {
        Backend::Avx512.is_available().then_some(&Avx512(()))
    }
}

/// Bits of the residual for which there is a kernel that takes units apart: that of bf16 with one
/// mantissa bit in the field.
const FUSED_BITS: u32 = 7;

/// The packed residual of one group.
type Residual = [u8; FUSED_BITS as usize * LANES];

/// [`units::choose_tables`] of at most `TABLES`: the costs of 64 units at once, table by table.
/// With `FEW`, for a window of at most 64 symbols, only the low 7 bits of a symbol are looked at:
/// [`units::OUTSIDE`] is then entry 127, which costs nothing.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn choose_tables<const FEW: bool, const TABLES: usize>(
    head: &Head,
    costs: &CostTable,
    symbols: &[u8],
    ids: &mut Vec<u8>,
) {
    let n = head.tables.len();
    // SAFETY: 64 bytes are one vector.
    let vector = |bytes: &[u8; 64]| unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
    let of_tables: [[__m512i; 4]; MAX_TABLES] = costs.of_tables().each_ref().map(|of_table| {
        let parts = of_table.as_chunks().0;
        [vector(&parts[0]), vector(&parts[1]), vector(&parts[2]), vector(&parts[3])]
    });
    let ones = _mm512_set1_epi8(1);
    ids.clear();
    for segment in symbols.chunks(head.segment) {
        let mut sums = [_mm512_setzero_si512(); MAX_TABLES];
        for symbols in segment.as_chunks::<64>().0 {
            let symbols = vector(symbols);
            let in_upper_half = _mm512_movepi8_mask(symbols);
            for t in 0..TABLES {
                let [a, b, c, d] = of_tables[t];
                let mut costs = _mm512_permutex2var_epi8(a, symbols, b);
                if !FEW {
                    let upper = _mm512_permutex2var_epi8(c, symbols, d);
                    costs = _mm512_mask_mov_epi8(costs, in_upper_half, upper);
                }
                sums[t] = _mm512_dpbusd_epi32(sums[t], costs, ones);
            }
        }
        let mut totals = [0u32; MAX_TABLES];
        // SAFETY: 8 totals are one vector.
        unsafe { _mm256_storeu_si256(totals.as_mut_ptr().cast(), totals_of(sums)) };
        ids.push(units::cheapest(&totals[..n]));
    }
}

/// The sum of the 32-bit numbers of each vector.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn totals_of(of: [__m512i; 8]) -> __m256i {
    // Of 8 vectors 4, of two numbers each in turn, then 2 of four.
    let add = |[a, b]: [__m512i; 2]| _mm512_add_epi32(a, b);
    let twos: [_; 4] = std::array::from_fn(|i| {
        let (a, b) = (of[2 * i], of[2 * i + 1]);
        add([_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)])
    });
    let fours: [_; 2] = std::array::from_fn(|i| {
        let (a, b) = (twos[2 * i], twos[2 * i + 1]);
        add([_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)])
    });
    // Their quarters are those of 4 numbers each.
    let [a, b] = fours;
    let halves = add([_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b)]);
    let eight = add([halves, _mm512_shuffle_i32x4::<0b10_11_00_01>(halves, halves)]);
    // Those of the first half are in quarter 0, those of the second in quarter 2.
    _mm512_castsi512_si256(_mm512_shuffle_i32x4::<0b00_00_10_00>(eight, eight))
}

/// [`units::split_units`] for units of two bytes without low bits and residuals of
/// [`FUSED_BITS`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn split_rows(
    head: &Head,
    units: &[u8],
    symbols: &mut [[[u8; LANES]; ROWS]],
    packed: &mut [Residual],
) {
    let field_mask = _mm512_set1_epi16((1 << head.layout.field_bits) - 1);
    let (base, first) = (head.base as i16, head.first as i16);
    let (base, first) = (_mm512_set1_epi16(base), _mm512_set1_epi16(first));
    let last_symbol = _mm512_set1_epi16((1 << head.symbol_bits) - 1);
    let outside = _mm512_set1_epi16(i16::from(units::OUTSIDE));
    let (low, sign) = (_mm512_set1_epi16(0x3f), _mm512_set1_epi16(0x80));
    let groups = units::groups_ahead(units, 2);
    for ((units, symbols), packed) in groups.zip(symbols).zip(packed) {
        let rows = units.as_chunks::<{ 2 * LANES }>().0;
        let mut values = [_mm256_setzero_si256(); ROWS];
        for ((row, symbols), value) in rows.iter().zip(symbols).zip(&mut values) {
            // SAFETY: a row is 32 units, one vector.
            let units = unsafe { _mm512_loadu_si512(row.as_ptr().cast()) };
            let field = _mm512_and_si512(_mm512_srli_epi16::<6>(units), field_mask);
            let symbol = _mm512_sub_epi16(field, base);
            // 0 is the window's first field, unless another one took its place.
            let is_inside = _mm512_test_epi16_mask(symbol, symbol)
                & _mm512_cmple_epu16_mask(symbol, last_symbol);
            let symbol = _mm512_mask_mov_epi16(outside, is_inside, symbol);
            let is_other = _mm512_cmpneq_epi16_mask(field, first);
            let symbol = _mm512_maskz_cvtepi16_epi8(is_other, symbol);
            // SAFETY: a row is 32 symbols.
            unsafe { _mm256_storeu_si256(symbols.as_mut_ptr().cast(), symbol) };
            let sign = _mm512_and_si512(_mm512_srli_epi16::<8>(units), sign);
            let low = _mm512_and_si512(units, low);
            *value = _mm512_cvtepi16_epi8(_mm512_or_si512(sign, low));
        }
        // Bit `row` of the eighth row goes to bit 6 of byte row `row`; bit 6 is its sign. What
        // crosses a byte is masked away.
        let last = values[ROWS - 1];
        let bits = [
            _mm256_slli_epi16::<6>(last),
            _mm256_slli_epi16::<5>(last),
            _mm256_slli_epi16::<4>(last),
            _mm256_slli_epi16::<3>(last),
            _mm256_slli_epi16::<2>(last),
            _mm256_slli_epi16::<1>(last),
            _mm256_srli_epi16::<1>(last),
        ];
        let spilled = _mm256_set1_epi8(0x40);
        for (k, to) in packed.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let bytes = _mm256_or_si256(values[k], _mm256_and_si256(bits[k], spilled));
            // SAFETY: a byte row is 32 bytes.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), bytes) };
        }
    }
}

/// [`zeros::expand`] for whole words of the mask; returns where it stopped: the bytes done, and
/// where the next unit that is not zero lies. `others` is where the first of these lies.
macro_rules! expand_units {
    ($name:ident, $bytes:literal, $mask:ty, $expand:ident) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
        fn $name(mask: &[u8], units: &mut [u8], others: usize) -> (usize, usize) {
            let (mut at, mut next) = (0, others);
            for word in mask.as_chunks().0 {
                if next.max(at) + 64 * $bytes > units.len() {
                    break;
                }
                let word = u64::from_le_bytes(*word);
                for vector in 0..$bytes {
                    let mask = (word >> (64 / $bytes * vector)) as $mask;
                    // SAFETY: 64 bytes from `next` and from `at` lie within the units.
                    unsafe {
                        let packed = load(units.as_ptr().add(next));
                        let whole = $expand(mask, packed);
                        _mm512_storeu_si512(units.as_mut_ptr().add(at).cast(), whole);
                    }
                    at += 64;
                    next += $bytes * mask.count_ones() as usize;
                }
            }
            (at, next)
        }
    };
}

expand_units!(expand8, 1, u64, _mm512_maskz_expand_epi8);
expand_units!(expand16, 2, u32, _mm512_maskz_expand_epi16);
expand_units!(expand32, 4, u16, _mm512_maskz_expand_epi32);
expand_units!(expand64, 8, u8, _mm512_maskz_expand_epi64);

/// [`zeros::split`] for whole vectors; returns the bytes done, and those of the others.
macro_rules! split_zeros_of {
    ($name:ident, $bytes:literal, $test:ident, $compress:ident) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
        fn $name(units: &[u8], mask: &mut [u8], others: &mut [u8]) -> (usize, usize) {
            let (mut at, mut next) = (0, 0);
            let (units, masks) = (units.as_chunks::<64>().0, mask.as_chunks_mut().0);
            for (units, mask) in units.iter().zip(masks) {
                let Some(to) = others.get_mut(next..next + 64) else { break };
                // SAFETY: 64 bytes are one vector.
                unsafe {
                    let units = _mm512_loadu_si512(units.as_ptr().cast());
                    let set = $test(units, units);
                    *mask = set.to_le_bytes();
                    _mm512_storeu_si512(to.as_mut_ptr().cast(), $compress(set, units));
                    next += $bytes * set.count_ones() as usize;
                }
                at += 64;
            }
            (at, next)
        }
    };
}

split_zeros_of!(split8, 1, _mm512_test_epi8_mask, _mm512_maskz_compress_epi8);
split_zeros_of!(split16, 2, _mm512_test_epi16_mask, _mm512_maskz_compress_epi16);
split_zeros_of!(split32, 4, _mm512_test_epi32_mask, _mm512_maskz_compress_epi32);
split_zeros_of!(split64, 8, _mm512_test_epi64_mask, _mm512_maskz_compress_epi64);

plain_loops!("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,popcnt");
plain_delta_loops!(
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt",
    count512,
    equal512
);

impl Kernels for Avx512 {
    fn split_units(
        &self,
        head: &Head,
        units: &[u8],
        symbols: &mut [u8],
        residual: &mut [u8],
        widths: &mut [u8],
    ) {
        let layout = &head.layout;
        let fits =
            (layout.unit_bytes, layout.high_bytes, layout.residual_bits) == (2, 2, FUSED_BITS);
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe {
            if fits {
                let symbols = symbols.as_chunks_mut().0.as_chunks_mut().0;
                split_rows(head, units, symbols, residual.as_chunks_mut().0);
            } else {
                split_units(head, units, symbols, residual, widths);
            }
        }
    }

    fn plan_of(&self, dtype: Dtype, sample: &Sample, effort: &Effort) -> Result<Plan> {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { plan_of(dtype, sample, effort) }
    }

    fn choose_tables(&self, head: &Head, costs: &CostTable, symbols: &[u8], ids: &mut Vec<u8>) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe {
            match (head.tables.len(), head.symbol_bits) {
                (1, _) => units::choose_tables(head, costs, symbols, ids),
                (_, ..=6) => choose_tables::<true, MAX_TABLES>(head, costs, symbols, ids),
                // Bytes have no more.
                (..=4, _) => choose_tables::<false, 4>(head, costs, symbols, ids),
                _ => choose_tables::<false, MAX_TABLES>(head, costs, symbols, ids),
            }
        }
    }

    fn replace_exceptions(
        &self,
        head: &Head,
        stand_ins: &StandIns,
        table_ids: &[u8],
        units: &[u8],
        symbols: &mut [u8],
        exceptions: &mut Vec<(u32, u16)>,
    ) -> Result<bool> {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { replace_exceptions(head, stand_ins, table_ids, units, symbols, exceptions) }
    }

    fn join(
        &self,
        head: &Head,
        symbols: &[[u8; GROUP]],
        residual: &[u8],
        lows: &[u8],
        widths: &[u8],
        units: &mut [u8],
    ) -> usize {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { join(head, symbols, residual, lows, widths, units) }
    }

    fn blocks_at_once(&self) -> usize {
        4
    }

    fn decode_symbols(&self, head: &Head, jobs: &mut [Job<'_>], symbols: &mut [&mut [u8]]) {
        let mut groups = symbols.iter_mut().map(|s| s.as_chunks_mut().0.as_chunks_mut().0);
        let mut next = || groups.next().unwrap_or_default();
        // SAFETY: `self` is the proof that the machine has the instructions.
        let done = unsafe {
            match jobs.len() {
                2 => {
                    let jobs = jobs.try_into().expect("two jobs");
                    decode_symbols::<2>(head, jobs, &mut [next(), next()])
                }
                4 => {
                    let jobs = jobs.try_into().expect("four jobs");
                    decode_symbols::<4>(head, jobs, &mut [next(), next(), next(), next()])
                }
                _ => 0,
            }
        };
        decode_rest(head, jobs, symbols, done, |job, groups| {
            // SAFETY: as above.
            unsafe { decode_symbols(head, std::array::from_mut(job), &mut [groups]) }
        });
    }

    fn decode_fused(
        &self,
        head: &Head,
        jobs: &mut [Job<'_>],
        planes: &[Planes<'_>],
        units: &mut [&mut [u8]],
        ahead: Ahead<'_>,
    ) -> usize {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe {
            fused_forms!(
                decode_fused::<1, 2, 4>(head, jobs, planes, units, ahead),
                (2, 2, 5, 7),
                (4, 2, 5, 7),
                (1, 1, 1, 7)
            )
        }
    }

    fn count_ones(&self, mask: &[u8]) -> usize {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { count_ones(mask) }
    }

    fn split_zeros(
        &self,
        unit_bytes: usize,
        units: &[u8],
        mask: &mut [u8],
        others: &mut [u8],
    ) -> usize {
        // SAFETY: `self` is the proof that the machine has the instructions.
        let (at, next) = unsafe {
            match unit_bytes {
                1 => split8(units, mask, others),
                2 => split16(units, mask, others),
                4 => split32(units, mask, others),
                _ => split64(units, mask, others),
            }
        };
        let (units, mask) = (&units[at..], &mut mask[at / unit_bytes / 8..]);
        next + zeros::split(unit_bytes, units, mask, &mut others[next..])
    }

    fn expand(&self, unit_bytes: usize, mask: &[u8], units: &mut [u8], begin: usize) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        let (at, next) = unsafe {
            match unit_bytes {
                1 => expand8(mask, units, begin),
                2 => expand16(mask, units, begin),
                4 => expand32(mask, units, begin),
                _ => expand64(mask, units, begin),
            }
        };
        zeros::expand_rest(unit_bytes, mask, units, at, next);
    }

    delta_methods!(values512, merge512, partition512);

    fn encode(&self, head: &Head, mut jobs: &mut [EncodeJob<'_>]) {
        jobs.iter_mut().for_each(|job| *job.begin = job.words.len());
        let together = |jobs: &[EncodeJob<'_>]| {
            let groups = || jobs.iter().map(|job| job.symbols.len() / GROUP);
            go_together(groups().min().unwrap_or(0), groups().max().unwrap_or(0))
        };
        while !jobs.is_empty() {
            let n = [4, 2].into_iter().find(|&n| jobs.get(..n).is_some_and(together)).unwrap_or(1);
            let (now, rest) = jobs.split_at_mut(n);
            // SAFETY: `self` is the proof that the machine has the instructions.
            unsafe {
                // What the shorter blocks leave of the longer ones, two and one at a time.
                if let Ok(four) = now.try_into() {
                    encode::<4>(head, four);
                }
                for now in now.chunks_mut(2) {
                    if let Ok(two) = now.try_into() {
                        encode::<2>(head, two);
                    }
                    now.iter_mut().for_each(|job| encode(head, std::array::from_mut(job)));
                }
            }
            jobs = rest;
        }
    }
}
