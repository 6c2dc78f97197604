//! AVX2: four vectors of 8 lanes a block, two blocks interleaved, slots gathered from tables.

use std::arch::x86_64::*;

use crate::backend::portable::Portable;
use crate::backend::{EntropyBackend, Job, LANES};
use crate::head::Head;
use crate::planes::GROUP;
use crate::table::{Slots, TOTAL};
use crate::units::{self, CostTable};

/// Proof that the machine has the instructions.
pub(crate) struct Avx2(());

impl Avx2 {
    /// The backend, where the machine has it.
    pub(crate) fn new() -> Option<&'static Avx2> {
        let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt");
        has.then_some(&Avx2(()))
    }
}

/// Words that the decoding of one group may read: one a symbol, and a vector beyond the last.
const WORDS_AHEAD: usize = GROUP + 8;
/// Rows of a group.
const ROWS: usize = GROUP / LANES;
/// Bits of the residual for which there is a fused kernel: that of bf16 with one mantissa bit in the field.
const FUSED_BITS: u32 = 7;
/// Vectors of 8 lanes.
const VECTORS: usize = LANES / 8;

/// The bytes of one group of 16-bit units.
type Rows = [[u8; 2 * LANES]; ROWS];
/// The packed residual of one group.
type Residual = [u8; FUSED_BITS as usize * LANES];

/// For every set of lanes the permutation that hands them consecutive words.
static EXPAND: [[u32; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut word) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                table[mask][lane] = word;
                word += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

/// One step of 8 lanes, given their slots' entries.
///
/// # Safety
/// 8 words can be read at `words`.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
unsafe fn step(x: __m256i, entry: __m256i, words: &mut *const u16) -> __m256i {
    let low12 = _mm256_set1_epi32(TOTAL as i32 - 1);
    let q = _mm256_srli_epi32::<12>(x);
    let rank = _mm256_and_si256(_mm256_srli_epi32::<12>(entry), low12);
    let product = _mm256_mullo_epi32(_mm256_and_si256(entry, low12), q);
    let y = _mm256_add_epi32(_mm256_add_epi32(product, q), rank);
    let low = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(y), _mm256_setzero_si256());
    let mask = _mm256_movemask_ps(_mm256_castsi256_ps(low)) as u8;
    // SAFETY: the caller vouches for 8 words; the permutation is one row of 8 of the table.
    let next = unsafe {
        let next = _mm256_cvtepu16_epi32(_mm_loadu_si128((*words).cast()));
        let order = _mm256_loadu_si256(EXPAND[usize::from(mask)].as_ptr().cast());
        *words = words.add(mask.count_ones() as usize);
        _mm256_permutevar8x32_epi32(next, order)
    };
    _mm256_blendv_epi8(y, _mm256_or_si256(_mm256_slli_epi32::<16>(y), next), low)
}

#[inline]
#[target_feature(enable = "avx2")]
fn gather(x: __m256i, slots: &Slots) -> __m256i {
    let slot = _mm256_and_si256(x, _mm256_set1_epi32(TOTAL as i32 - 1));
    // SAFETY: a slot of 12 bits lies within the 4096 entries.
    unsafe { _mm256_i32gather_epi32::<4>(slots.as_ptr().cast(), slot) }
}

/// The symbols of elements 0 to 15 (`half` 0) or 16 to 31 of a row as 16 bits each.
#[inline]
#[target_feature(enable = "avx2")]
fn symbols16(entry: &[__m256i; VECTORS], half: usize) -> __m256i {
    let even = _mm256_srli_epi32::<24>(entry[half]);
    let odd = _mm256_srli_epi32::<24>(entry[2 + half]);
    _mm256_or_si256(even, _mm256_slli_epi32::<16>(odd))
}

/// What one block of the fused kernel needs.
struct Fused<'a> {
    states: [__m256i; VECTORS],
    words: *const u16,
    residual: &'a Residual,
    units: &'a mut Rows,
    slots: &'a Slots,
}

/// Decodes one group of each of `N` blocks.
///
/// # Safety
/// [`WORDS_AHEAD`] words can be read at every block's `words`.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
unsafe fn decode_group<const N: usize>(blocks: &mut [Fused<'_>; N], base: u16, first: u16) {
    let base = _mm256_set1_epi16(base as i16);
    let first = _mm256_set1_epi16(first as i16);
    let keep = _mm256_set1_epi16(0x803fu16 as i16);
    let spilled = _mm256_set1_epi8(0x40);
    let zero = _mm256_setzero_si256();
    let mut last = [zero; N];
    for row in 0..ROWS {
        for (i, block) in blocks.iter_mut().enumerate() {
            let entry = block.states.map(|x| gather(x, block.slots));
            for (x, &e) in block.states.iter_mut().zip(&entry) {
                // SAFETY: a group takes at most 256 words, so 8 more can be read before each step.
                *x = unsafe { step(*x, e, &mut block.words) };
            }
            let residual = if row < FUSED_BITS as usize {
                // SAFETY: byte row `row` of 7.
                let bytes =
                    unsafe { _mm256_loadu_si256(block.residual.as_ptr().add(row * LANES).cast()) };
                let bit = _mm256_and_si256(bytes, spilled);
                // Bit `row` of the eighth row; no bit crosses a byte. The top one is the sign.
                let bit = match row {
                    0 => _mm256_srli_epi16::<6>(bit),
                    1 => _mm256_srli_epi16::<5>(bit),
                    2 => _mm256_srli_epi16::<4>(bit),
                    3 => _mm256_srli_epi16::<3>(bit),
                    4 => _mm256_srli_epi16::<2>(bit),
                    5 => _mm256_srli_epi16::<1>(bit),
                    _ => _mm256_slli_epi16::<1>(bit),
                };
                last[i] = _mm256_or_si256(last[i], bit);
                bytes
            } else {
                last[i]
            };
            for half in 0..2 {
                let symbols = symbols16(&entry, half);
                let is_first = _mm256_cmpeq_epi16(symbols, zero);
                let fields = _mm256_blendv_epi8(_mm256_add_epi16(symbols, base), first, is_first);
                let bytes = if half == 0 {
                    _mm256_castsi256_si128(residual)
                } else {
                    _mm256_extracti128_si256::<1>(residual)
                };
                let residual = _mm256_and_si256(_mm256_cvtepi8_epi16(bytes), keep);
                let unit = _mm256_or_si256(_mm256_slli_epi16::<6>(fields), residual);
                // SAFETY: a row is 64 bytes, two vectors.
                unsafe {
                    let to = block.units[row].as_mut_ptr().add(32 * half);
                    _mm256_storeu_si256(to.cast(), unit);
                }
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn load_states(states: &[u32; LANES]) -> [__m256i; VECTORS] {
    // SAFETY: 32 states are four vectors.
    std::array::from_fn(|i| unsafe { _mm256_loadu_si256(states.as_ptr().add(8 * i).cast()) })
}

#[target_feature(enable = "avx2")]
fn store_states(vectors: [__m256i; VECTORS], states: &mut [u32; LANES]) {
    for (vector, to) in vectors.into_iter().zip(states.as_chunks_mut::<8>().0) {
        // SAFETY: 8 states are one vector.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), vector) };
    }
}

/// Whether the next group of `job` can be decoded without reading past the block.
fn words_ahead(job: &Job<'_>) -> bool {
    job.words.len() >= 2 * (job.position + WORDS_AHEAD)
}

/// Decodes groups of `N` blocks, as many as all have residuals for and as no kernel would read past a block; returns their number.
#[target_feature(enable = "avx2,popcnt")]
fn decode_fused<const N: usize>(
    head: &Head,
    jobs: &mut [Job<'_>; N],
    residuals: [&[Residual]; N],
    mut units: [&mut [Rows]; N],
) -> usize {
    let mut states: [_; N] = std::array::from_fn(|i| load_states(&jobs[i].states));
    let lens = residuals.iter().map(|r| r.len()).chain(units.iter().map(|u| u.len()));
    let n = lens.min().unwrap_or(0);
    let mut group = 0;
    while group < n && jobs.iter().all(words_ahead) {
        let mut pieces = units.iter_mut();
        let mut blocks: [Fused<'_>; N] = std::array::from_fn(|i| Fused {
            states: states[i],
            words: jobs[i].words[2 * jobs[i].position..].as_ptr().cast(),
            residual: &residuals[i][group],
            units: &mut pieces.next().expect("N blocks")[group],
            slots: head.alias[usize::from(jobs[i].group_tables[group])].slots(),
        });
        // SAFETY: `words_ahead` saw that many words for every block.
        unsafe { decode_group(&mut blocks, head.base, head.first) };
        for (i, block) in blocks.into_iter().enumerate() {
            states[i] = block.states;
            jobs[i].position = (block.words as usize - jobs[i].words.as_ptr() as usize) / 2;
        }
        group += 1;
    }
    for (job, states) in jobs.iter_mut().zip(states) {
        store_states(states, &mut job.states);
        job.group = group;
    }
    group
}

/// Decodes symbols of one job as long as no kernel would read past the block; returns the groups done.
#[target_feature(enable = "avx2,popcnt")]
fn decode_symbols(head: &Head, job: &mut Job<'_>, groups: &mut [[[u8; LANES]; ROWS]]) -> usize {
    let mut states = load_states(&job.states);
    let mut done = 0;
    for group in groups {
        if !words_ahead(job) {
            break;
        }
        let slots = head.alias[usize::from(job.group_tables[job.group])].slots();
        let mut words: *const u16 = job.words[2 * job.position..].as_ptr().cast();
        for row in group {
            let entry = states.map(|x| gather(x, slots));
            for (x, &e) in states.iter_mut().zip(&entry) {
                // SAFETY: `words_ahead` saw 256 words for this group and 8 more.
                *x = unsafe { step(*x, e, &mut words) };
            }
            let packed = _mm256_packus_epi16(symbols16(&entry, 0), symbols16(&entry, 1));
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            // SAFETY: a row is 32 bytes.
            unsafe { _mm256_storeu_si256(row.as_mut_ptr().cast(), packed) };
        }
        job.position = (words as usize - job.words.as_ptr() as usize) / 2;
        job.group += 1;
        done += 1;
    }
    store_states(states, &mut job.states);
    done
}

// The plain loops, compiled for these instructions.

#[target_feature(enable = "avx2,popcnt")]
fn split(head: &Head, units: &[u8], symbols: &mut [u8], residual: &mut [u8]) {
    units::split(head, units, symbols, residual);
}

/// [`units::choose_tables`] with the sums of the eight tables in one register.
#[target_feature(enable = "avx2")]
pub(super) fn choose_tables(head: &Head, costs: &CostTable, symbols: &[u8], ids: &mut Vec<u8>) {
    let n = head.tables.len();
    if n == 1 {
        return units::choose_tables(head, costs, symbols, ids);
    }
    // SAFETY: eight costs are one vector.
    let of = |s: u8| unsafe { _mm256_loadu_si256(costs.of(s).as_ptr().cast()) };
    ids.clear();
    for segment in symbols.chunks(head.segment) {
        let zero = _mm256_setzero_si256();
        let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
        let (fours, rest) = segment.as_chunks::<4>();
        for &[p, q, r, s] in fours {
            a = _mm256_add_epi32(a, of(p));
            b = _mm256_add_epi32(b, of(q));
            c = _mm256_add_epi32(c, of(r));
            d = _mm256_add_epi32(d, of(s));
        }
        for &s in rest {
            a = _mm256_add_epi32(a, of(s));
        }
        let sum = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
        let mut sums = [0u32; 8];
        // SAFETY: eight sums are one vector.
        unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), sum) };
        ids.push(units::cheapest(&sums[..n]));
    }
}

#[target_feature(enable = "avx2,popcnt")]
fn join(
    head: &Head,
    symbols: &[[u8; GROUP]],
    residual: &[u8],
    lows: &[u8],
    widths: &[u8],
    units: &mut [u8],
) -> usize {
    units::join(head, symbols, residual, lows, widths, units)
}

impl EntropyBackend for Avx2 {
    fn split(&self, head: &Head, units: &[u8], symbols: &mut [u8], residual: &mut [u8]) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { split(head, units, symbols, residual) }
    }

    fn choose_tables(&self, head: &Head, costs: &CostTable, symbols: &[u8], ids: &mut Vec<u8>) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { choose_tables(head, costs, symbols, ids) }
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

    fn decode_symbols(&self, head: &Head, jobs: &mut [Job<'_>], symbols: &mut [&mut [u8]]) {
        for (job, symbols) in jobs.iter_mut().zip(symbols) {
            let groups = symbols.as_chunks_mut::<LANES>().0.as_chunks_mut::<ROWS>().0;
            // SAFETY: `self` is the proof that the machine has the instructions.
            let done = unsafe { decode_symbols(head, job, groups) };
            // The last groups of a small or damaged block: where a vector would read past its end.
            Portable.decode_symbols(
                head,
                std::slice::from_mut(job),
                &mut [groups[done..].as_flattened_mut().as_flattened_mut()],
            );
        }
    }

    fn decode_fused(
        &self,
        head: &Head,
        jobs: &mut [Job<'_>],
        residuals: &[&[u8]],
        units: &mut [&mut [u8]],
    ) -> usize {
        let layout = &head.layout;
        if (layout.unit_bytes, layout.head_bytes, layout.residual_bits) != (2, 2, FUSED_BITS) {
            return 0;
        }
        let residual = |i: usize| residuals[i].as_chunks().0;
        let mut units = units.iter_mut().map(|u| u.as_chunks_mut().0.as_chunks_mut().0);
        let mut next = || units.next().unwrap_or_default();
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe {
            match jobs {
                [_] => {
                    decode_fused(head, jobs.try_into().expect("one job"), [residual(0)], [next()])
                }
                [_, _] => decode_fused(
                    head,
                    jobs.try_into().expect("two jobs"),
                    [residual(0), residual(1)],
                    [next(), next()],
                ),
                _ => 0,
            }
        }
    }

    fn encode(
        &self,
        head: &Head,
        symbols: &[u8],
        group_tables: &[u8],
        states: &mut [u32; LANES],
        words: &mut [u16],
    ) -> usize {
        Portable.encode(head, symbols, group_tables, states, words)
    }
}
