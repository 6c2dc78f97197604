//! AVX-512 with VBMI2: two vectors of 16 lanes a block, two blocks interleaved. The alias tables of 32 buckets live in registers;
//! for more symbols the slots are gathered.

use std::arch::x86_64::*;

use crate::backend::portable::Portable;
use crate::backend::{EntropyBackend, Job, LANES};
use crate::block::STATE_MIN;
use crate::head::Head;
use crate::planes::GROUP;
use crate::table::{Buckets32, SlotOf, Slots, TOTAL};
use crate::units::{self, CostTable};

/// Proof that the machine has the instructions.
pub(crate) struct Avx512(());

impl Avx512 {
    /// The backend, where the machine has it.
    pub(crate) fn new() -> Option<&'static Avx512> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vbmi2")
            && is_x86_feature_detected!("popcnt");
        has.then_some(&Avx512(()))
    }
}

/// Words that the decoding of one group may read: one a symbol, and a vector beyond the last.
const WORDS_AHEAD: usize = GROUP + 16;
/// Rows of a group.
const ROWS: usize = GROUP / LANES;
/// Bits of the residual for which there is a fused kernel: that of bf16 with one mantissa bit in the field.
const FUSED_BITS: u32 = 7;

/// An alias table of 32 buckets as vectors.
#[derive(Clone, Copy)]
struct Registers {
    split: [__m512i; 2],
    own: [__m512i; 2],
    donor: [__m512i; 2],
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_table(table: &Buckets32) -> Registers {
    // SAFETY: both halves of each array of 32 lie within it.
    let pair = |a: &[u32; 32]| unsafe {
        [_mm512_loadu_si512(a.as_ptr().cast()), _mm512_loadu_si512(a.as_ptr().add(16).cast())]
    };
    Registers { split: pair(&table.split), own: pair(&table.own), donor: pair(&table.donor) }
}

/// For 16 states the entry of the bucket side that their slot lies in.
#[inline]
#[target_feature(enable = "avx512f")]
fn look_up(x: __m512i, t: &Registers) -> __m512i {
    let slot = _mm512_and_si512(x, _mm512_set1_epi32(TOTAL as i32 - 1));
    // The permutations look at the low 5 bits alone.
    let bucket = _mm512_srli_epi32::<7>(x);
    let split = _mm512_permutex2var_epi32(t.split[0], bucket, t.split[1]);
    let donated = _mm512_cmpge_epu32_mask(slot, split);
    let own = _mm512_permutex2var_epi32(t.own[0], bucket, t.own[1]);
    let donor = _mm512_permutex2var_epi32(t.donor[0], bucket, t.donor[1]);
    _mm512_mask_blend_epi32(donated, own, donor)
}

/// Takes a word for every lane of `y` that fell below the bound.
///
/// # Safety
/// 16 words can be read at `words`.
#[inline]
#[target_feature(enable = "avx512f,popcnt")]
unsafe fn refill(y: __m512i, words: &mut *const u16) -> __m512i {
    let low = _mm512_cmplt_epu32_mask(y, _mm512_set1_epi32(STATE_MIN as i32));
    // SAFETY: the caller vouches for 16 words, 32 bytes.
    let next = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256((*words).cast()) });
    // SAFETY: at most 16 words on, within or at the end of what can be read.
    *words = unsafe { words.add(low.count_ones() as usize) };
    _mm512_mask_or_epi32(y, low, _mm512_slli_epi32::<16>(y), _mm512_maskz_expand_epi32(low, next))
}

/// One step of 16 lanes, given their table entries.
///
/// # Safety
/// As [`refill`].
#[inline]
#[target_feature(enable = "avx512f,popcnt")]
unsafe fn step(x: __m512i, entry: __m512i, words: &mut *const u16) -> __m512i {
    let freq = _mm512_and_si512(entry, _mm512_set1_epi32(0x1fff));
    let slot = _mm512_and_si512(x, _mm512_set1_epi32(TOTAL as i32 - 1));
    let rank = _mm512_add_epi32(slot, _mm512_srai_epi32::<19>(entry));
    let y = _mm512_add_epi32(_mm512_mullo_epi32(freq, _mm512_srli_epi32::<12>(x)), rank);
    // SAFETY: passed on.
    unsafe { refill(y, words) }
}

/// The bytes of one group of 16-bit units.
type Rows = [[u8; 2 * LANES]; ROWS];
/// The packed residual of one group.
type Residual = [u8; FUSED_BITS as usize * LANES];

/// What one block of the fused kernel needs.
struct Fused<'a> {
    states: [__m512i; 2],
    words: *const u16,
    residual: &'a Residual,
    units: &'a mut Rows,
    table: &'a Buckets32,
}

/// Decodes one group of each of `N` blocks. `heads` maps a symbol to its shifted field.
///
/// # Safety
/// [`WORDS_AHEAD`] words can be read at every block's `words`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,popcnt")]
unsafe fn decode_group<const N: usize>(blocks: &mut [Fused<'_>; N], heads: __m512i) {
    let symbol_mask = _mm512_set1_epi32(0x1f);
    let symbol_mask_high = _mm512_set1_epi32(0x1f << 16);
    let keep = _mm512_set1_epi16(0x803fu16 as i16);
    let spilled = _mm256_set1_epi8(0x40);
    let tables: [Registers; N] = std::array::from_fn(|i| load_table(blocks[i].table));
    let mut last = [_mm256_setzero_si256(); N];
    for row in 0..ROWS {
        for (i, block) in blocks.iter_mut().enumerate() {
            let entry = block.states.map(|x| look_up(x, &tables[i]));
            // SAFETY: a group takes at most 256 words, so 16 more can be read before each step.
            unsafe {
                block.states[0] = step(block.states[0], entry[0], &mut block.words);
                block.states[1] = step(block.states[1], entry[1], &mut block.words);
            }
            // Lanes 0 to 15 hold the even elements, the others the odd ones.
            let symbols = _mm512_or_si512(
                _mm512_and_si512(_mm512_srli_epi32::<13>(entry[0]), symbol_mask),
                _mm512_and_si512(_mm512_slli_epi32::<3>(entry[1]), symbol_mask_high),
            );
            let fields = _mm512_permutexvar_epi16(symbols, heads);
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
            // fields | (residual & keep): sign extension takes the sign to bit 15.
            let unit =
                _mm512_ternarylogic_epi32::<0xf8>(fields, _mm512_cvtepi8_epi16(residual), keep);
            // SAFETY: a row is 32 units, one vector.
            unsafe { _mm512_storeu_si512(block.units[row].as_mut_ptr().cast(), unit) };
        }
    }
}

#[target_feature(enable = "avx512f")]
fn load_states(states: &[u32; LANES]) -> [__m512i; 2] {
    // SAFETY: 32 states are two vectors.
    unsafe {
        [
            _mm512_loadu_si512(states.as_ptr().cast()),
            _mm512_loadu_si512(states.as_ptr().add(16).cast()),
        ]
    }
}

#[target_feature(enable = "avx512f")]
fn store_states(vectors: [__m512i; 2], states: &mut [u32; LANES]) {
    // SAFETY: 32 states are two vectors.
    unsafe {
        _mm512_storeu_si512(states.as_mut_ptr().cast(), vectors[0]);
        _mm512_storeu_si512(states.as_mut_ptr().add(16).cast(), vectors[1]);
    }
}

/// Whether the next group of `job` can be decoded without reading past the block.
fn words_ahead(job: &Job<'_>) -> bool {
    job.words.len() >= 2 * (job.position + WORDS_AHEAD)
}

/// Decodes groups of `N` blocks, as many as all have residuals for and as no kernel would read past a block; returns their number.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,popcnt")]
fn decode_fused<const N: usize>(
    tables: &[&Buckets32],
    heads: &[u16; 32],
    jobs: &mut [Job<'_>; N],
    residuals: [&[Residual]; N],
    mut units: [&mut [Rows]; N],
) -> usize {
    // SAFETY: 32 fields of 16 bits are one vector.
    let heads = unsafe { _mm512_loadu_si512(heads.as_ptr().cast()) };
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
            table: tables[usize::from(jobs[i].group_tables[group])],
        });
        // SAFETY: `words_ahead` saw that many words for every block.
        unsafe { decode_group(&mut blocks, heads) };
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

/// Where the entries of states come from: vectors of 32 buckets, or slots in memory.
#[derive(Clone, Copy)]
#[allow(clippy::large_enum_variant)] // lives in registers for one group
enum Source<'a> {
    Buckets(Registers),
    Slots(&'a Slots),
}

/// One step of 16 lanes: their symbols, and their states moved on.
///
/// # Safety
/// 16 words can be read at `words`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
unsafe fn symbols16(x: &mut __m512i, source: &Source<'_>, words: &mut *const u16) -> __m512i {
    match source {
        Source::Buckets(table) => {
            let entry = look_up(*x, table);
            // SAFETY: passed on.
            *x = unsafe { step(*x, entry, words) };
            _mm512_and_si512(_mm512_srli_epi32::<13>(entry), _mm512_set1_epi32(0x1f))
        }
        Source::Slots(slots) => {
            let low12 = _mm512_set1_epi32(TOTAL as i32 - 1);
            let slot = _mm512_and_si512(*x, low12);
            // SAFETY: a slot of 12 bits lies within the 4096 entries.
            let entry = unsafe { _mm512_i32gather_epi32::<4>(slot, slots.as_ptr().cast()) };
            let q = _mm512_srli_epi32::<12>(*x);
            let rank = _mm512_and_si512(_mm512_srli_epi32::<12>(entry), low12);
            let product = _mm512_mullo_epi32(_mm512_and_si512(entry, low12), q);
            let y = _mm512_add_epi32(_mm512_add_epi32(product, q), rank);
            // SAFETY: passed on.
            *x = unsafe { refill(y, words) };
            _mm512_srli_epi32::<24>(entry)
        }
    }
}

/// Decodes symbols of `N` jobs as long as no kernel would read past a block; returns the groups done.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
fn decode_symbols<const N: usize>(
    head: &Head,
    jobs: &mut [Job<'_>; N],
    groups: &mut [&mut [[[u8; LANES]; ROWS]]; N],
) -> usize {
    let n = groups.iter().map(|g| g.len()).min().unwrap_or(0);
    let mut states: [_; N] = std::array::from_fn(|i| load_states(&jobs[i].states));
    let mut done = 0;
    while done < n && jobs.iter().all(words_ahead) {
        let sources: [Source<'_>; N] = std::array::from_fn(|i| {
            let table = &head.alias[usize::from(jobs[i].group_tables[jobs[i].group])];
            match &table.buckets32 {
                Some(buckets) => Source::Buckets(load_table(buckets)),
                None => Source::Slots(table.slots()),
            }
        });
        let mut words: [*const u16; N] =
            std::array::from_fn(|i| jobs[i].words[2 * jobs[i].position..].as_ptr().cast());
        #[allow(clippy::needless_range_loop)] // several arrays are walked in step
        for row in 0..ROWS {
            for i in 0..N {
                // SAFETY: `words_ahead` saw 256 words for this group and 16 more.
                let (even, odd) = unsafe {
                    (
                        symbols16(&mut states[i][0], &sources[i], &mut words[i]),
                        symbols16(&mut states[i][1], &sources[i], &mut words[i]),
                    )
                };
                let both = _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd));
                let to = &mut groups[i][done][row];
                // SAFETY: a row is 32 bytes.
                unsafe {
                    _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(both));
                }
            }
        }
        for (job, words) in jobs.iter_mut().zip(words) {
            job.position = (words as usize - job.words.as_ptr() as usize) / 2;
            job.group += 1;
        }
        done += 1;
    }
    for (job, states) in jobs.iter_mut().zip(states) {
        store_states(states, &mut job.states);
    }
    done
}

/// What encoding a symbol of one table needs, as memory to gather from.
struct EncodeTable<'a> {
    /// `freq | first rank << 16`.
    freq_rank: Vec<u32>,
    /// floor((2^(32 + k) - 1) / freq) with k = floor(log2(freq)).
    reciprocal: Vec<u32>,
    /// k.
    shift: Vec<u32>,
    slot_of: &'a SlotOf,
}

impl EncodeTable<'_> {
    fn new(head: &Head, table: usize) -> EncodeTable<'_> {
        let freqs = head.tables[table].freqs();
        let alias = &head.alias[table];
        let k = |f: u16| f.max(1).ilog2();
        EncodeTable {
            freq_rank: freqs
                .iter()
                .zip(&alias.first_rank)
                .map(|(&f, &rank)| u32::from(f) | rank << 16)
                .collect(),
            reciprocal: freqs
                .iter()
                .map(|&f| (((1u64 << (32 + k(f))) - 1) / u64::from(f.max(1))) as u32)
                .collect(),
            shift: freqs.iter().map(|&f| k(f)).collect(),
            slot_of: alias.slot_of(),
        }
    }

    /// The three tables as vectors, where they have 32 entries.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn vectors(&self) -> Option<[[__m512i; 2]; 3]> {
        let pair = |t: &[u32]| {
            let t: &[u32; 32] = t.try_into().ok()?;
            // SAFETY: both halves of 32 entries.
            Some(unsafe {
                [
                    _mm512_loadu_si512(t.as_ptr().cast()),
                    _mm512_loadu_si512(t.as_ptr().add(16).cast()),
                ]
            })
        };
        Some([pair(&self.freq_rank)?, pair(&self.reciprocal)?, pair(&self.shift)?])
    }
}

/// Encodes one group, last row to first. `room` is the end of the free part of `words`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
fn encode_group<const SMALL: bool>(
    states: &mut [__m512i; 2],
    table: &EncodeTable<'_>,
    symbols: &[[u8; LANES]; ROWS],
    words: &mut [u16],
    room: &mut usize,
) {
    let low16 = _mm512_set1_epi32(0xffff);
    let small = if SMALL { table.vectors() } else { None };
    for row in symbols.iter().rev() {
        // SAFETY: a row is 32 bytes.
        let row = unsafe { _mm256_loadu_si256(row.as_ptr().cast()) };
        let row = _mm512_cvtepu8_epi16(row);
        let symbols = [_mm512_and_si512(row, low16), _mm512_srli_epi32::<16>(row)];
        for half in [1, 0] {
            let s = symbols[half];
            let x = states[half];
            let (freq_rank, reciprocal, shift) = match &small {
                Some(small) => {
                    let look_up = |t: &[__m512i; 2]| _mm512_permutex2var_epi32(t[0], s, t[1]);
                    (look_up(&small[0]), look_up(&small[1]), look_up(&small[2]))
                }
                // SAFETY: the caller has seen that every symbol is less than the tables' length.
                None => unsafe {
                    (
                        _mm512_i32gather_epi32::<4>(s, table.freq_rank.as_ptr().cast()),
                        _mm512_i32gather_epi32::<4>(s, table.reciprocal.as_ptr().cast()),
                        _mm512_i32gather_epi32::<4>(s, table.shift.as_ptr().cast()),
                    )
                },
            };
            let freq = _mm512_and_si512(freq_rank, low16);
            let first_rank = _mm512_srli_epi32::<16>(freq_rank);
            let full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32::<20>(x), freq);
            let n = full.count_ones() as usize;
            *room -= n;
            let out = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, x));
            let to = &mut words[*room..*room + n];
            // SAFETY: the mask has as many ones as `to` has words.
            unsafe {
                _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), ((1u32 << n) - 1) as u16, out);
            }
            let x = _mm512_mask_srli_epi32::<16>(x, full, x);
            // q = x / freq: the upper half of a product is it or one less.
            let even = _mm512_mul_epu32(x, reciprocal);
            let odd =
                _mm512_mul_epu32(_mm512_srli_epi64::<32>(x), _mm512_srli_epi64::<32>(reciprocal));
            let high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64::<32>(even), odd);
            let q = _mm512_srlv_epi32(high, shift);
            let r = _mm512_sub_epi32(x, _mm512_mullo_epi32(q, freq));
            let one_less = _mm512_cmpge_epu32_mask(r, freq);
            let q = _mm512_mask_add_epi32(q, one_less, q, _mm512_set1_epi32(1));
            let r = _mm512_mask_sub_epi32(r, one_less, r, freq);
            let at = _mm512_add_epi32(first_rank, r);
            // SAFETY: first rank + rank is less than 4096, and the table has one entry more, so 4 bytes can be read at each.
            let slot = unsafe { _mm512_i32gather_epi32::<2>(at, table.slot_of.as_ptr().cast()) };
            let slot = _mm512_and_si512(slot, low16);
            states[half] = _mm512_or_si512(_mm512_slli_epi32::<12>(q), slot);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
fn encode(
    tables: &[EncodeTable<'_>],
    groups: &[[[u8; LANES]; ROWS]],
    group_tables: &[u8],
    states: &mut [u32; LANES],
    words: &mut [u16],
) -> usize {
    let mut vectors = load_states(states);
    let mut room = words.len();
    for (group, &table) in groups.iter().zip(group_tables).rev() {
        let table = &tables[usize::from(table)];
        if table.freq_rank.len() == 32 {
            encode_group::<true>(&mut vectors, table, group, words, &mut room);
        } else {
            encode_group::<false>(&mut vectors, table, group, words, &mut room);
        }
    }
    store_states(vectors, states);
    room
}

// The plain loops, compiled for these instructions.

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,popcnt")]
fn split(head: &Head, units: &[u8], symbols: &mut [u8], residual: &mut [u8]) {
    units::split(head, units, symbols, residual);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,popcnt")]
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

impl EntropyBackend for Avx512 {
    fn split(&self, head: &Head, units: &[u8], symbols: &mut [u8], residual: &mut [u8]) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { split(head, units, symbols, residual) }
    }

    fn choose_tables(&self, head: &Head, costs: &CostTable, symbols: &[u8], ids: &mut Vec<u8>) {
        // SAFETY: a machine with AVX-512 has AVX2.
        unsafe { super::avx2::choose_tables(head, costs, symbols, ids) }
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
        let mut groups = symbols.iter_mut().map(|s| s.as_chunks_mut().0.as_chunks_mut().0);
        let mut next = || groups.next().unwrap_or_default();
        // SAFETY: `self` is the proof that the machine has the instructions.
        let done = unsafe {
            match jobs {
                [_] => decode_symbols(head, jobs.try_into().expect("one job"), &mut [next()]),
                [_, _] => {
                    let jobs = jobs.try_into().expect("two jobs");
                    decode_symbols(head, jobs, &mut [next(), next()])
                }
                _ => 0,
            }
        };
        // The last groups of a small or damaged block: where a vector would read past its end.
        for (job, symbols) in jobs.iter_mut().zip(symbols) {
            let rest = &mut symbols[done * GROUP..];
            Portable.decode_symbols(head, std::slice::from_mut(job), &mut [rest]);
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
        let fits = (layout.unit_bytes, layout.head_bytes) == (2, 2)
            && layout.residual_bits == FUSED_BITS
            && head.symbol_bits == 5;
        let tables: Option<Vec<&Buckets32>> =
            head.alias.iter().map(|t| t.buckets32.as_deref()).collect();
        let (true, Some(tables)) = (fits, tables) else { return 0 };
        let heads = std::array::from_fn(|s| head.field(s as u8) << layout.field_shift());
        let residual = |i: usize| residuals[i].as_chunks().0;
        let mut units = units.iter_mut().map(|u| u.as_chunks_mut().0.as_chunks_mut().0);
        let mut next = || units.next().unwrap_or_default();
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe {
            match jobs {
                [_] => decode_fused(
                    &tables,
                    &heads,
                    jobs.try_into().expect("one job"),
                    [residual(0)],
                    [next()],
                ),
                [_, _] => decode_fused(
                    &tables,
                    &heads,
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
        let most = ((1u16 << head.symbol_bits) - 1) as u8;
        // A fold, not `all`: without an early end it becomes vectors.
        let inside = symbols.iter().fold(true, |inside, &s| inside & (s <= most));
        assert!(inside, "symbols lie in the window");
        assert!(words.len() >= symbols.len(), "room for one word a symbol");
        let tables: Vec<_> = (0..head.tables.len()).map(|t| EncodeTable::new(head, t)).collect();
        let groups = symbols.as_chunks::<LANES>().0.as_chunks::<ROWS>().0;
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { encode(&tables, groups, group_tables, states, words) }
    }
}
