//! AVX2: four vectors of 8 lanes a block, two blocks interleaved, slots gathered from tables.

use std::arch::x86_64::*;

use bigsmall_format::internal::{Ahead, prefetch_output};
use bigsmall_format::{Backend, Result};

use crate::arch::portable::Portable;
use crate::arch::x86_64::delta::{merge256, partition256};
use crate::arch::x86_64::tables::{EXPAND, UNPACK16, unpacking};
use crate::delta;
use crate::delta::head::Head as DeltaHead;
use crate::delta::join::Parts;
use crate::delta::sparse::GroupCounts;
use crate::delta::split::{Parts as SplitParts, Splitter};
use crate::head::Head;
use crate::kernels::{EncodeJob, Job, Kernels, LANES};
use crate::planes::GROUP;
use crate::table::{EncodeTable, Slots, TOTAL};
use crate::units::{self, StandIns};
use crate::zeros;

/// Proof that the machine has the instructions.
pub(crate) struct Avx2(());

impl Avx2 {
    /// The backend, if the machine has it.
    pub(crate) fn new() -> Option<&'static Avx2> {
        Backend::Avx2.is_available().then_some(&Avx2(()))
    }
}

/// Words that the decoding of one group may read: one a symbol, and a vector beyond the last.
const WORDS_AHEAD: usize = GROUP + 8;
/// Rows of a group.
const ROWS: usize = GROUP / LANES;
/// Bits of the residual for which there is a fused kernel: that of bf16 with one mantissa bit in
/// the field.
const FUSED_BITS: u32 = 7;
/// Vectors of 8 lanes.
const VECTORS: usize = LANES / 8;

/// The bytes of one group of 16-bit units.
type Rows = [[u8; 2 * LANES]; ROWS];
/// The packed residual of one group.
type Residual = [u8; FUSED_BITS as usize * LANES];

static UNPACK8: [[u8; 16]; 256] = unpacking::<1, 8, 256>();
static UNPACK32: [[u8; 16]; 16] = unpacking::<4, 4, 16>();
static UNPACK64: [[u8; 16]; 4] = unpacking::<8, 2, 4>();

/// [`zeros::expand`] for whole bytes of the mask, as far as no vector would read or write past the
/// units; returns where it stopped: the bytes done, and where the next unit that is not zero lies.
/// `others` is where the first of these lies.
/// `BITS` bits of the mask are one shuffle.
///
/// # Safety
/// The table has an entry for every value of `BITS` bits, and `BITS` units are at most 16 bytes.
#[target_feature(enable = "avx2,popcnt")]
unsafe fn expand_units<const BYTES: usize, const BITS: usize>(
    table: &[[u8; 16]],
    mask: &[u8],
    units: &mut [u8],
    others: usize,
) -> (usize, usize) {
    let (mut at, mut next) = (0, others);
    for &mask in mask {
        // The last of the vectors ends up to 16 bytes after the units of this byte.
        if next.max(at) + 8 * BYTES + 16 > units.len() {
            break;
        }
        for part in 0..8 / BITS {
            let set = usize::from(mask) >> (part * BITS) & ((1 << BITS) - 1);
            // SAFETY: 16 bytes from `next` and from `at` lie within the units, as just compared;
            // the table has every set.
            unsafe {
                let packed = _mm_loadu_si128(units.as_ptr().add(next).cast());
                let order = _mm_loadu_si128(table.as_ptr().add(set).cast());
                let whole = _mm_shuffle_epi8(packed, order);
                let to = units.as_mut_ptr().add(at);
                // Not past the units of the set: others may lie there.
                if BYTES * BITS == 16 {
                    _mm_storeu_si128(to.cast(), whole);
                } else {
                    _mm_storel_epi64(to.cast(), whole);
                }
            }
            at += BYTES * BITS;
            next += BYTES * set.count_ones() as usize;
        }
    }
    (at, next)
}

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
    /// This group and those after it.
    units: &'a mut [Rows],
    slots: &'a Slots,
}

/// Decodes one group of each of `N` blocks.
///
/// # Safety
/// [`WORDS_AHEAD`] words can be read at every block's `words`.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
unsafe fn decode_group<const N: usize>(
    blocks: &mut [Fused<'_>; N],
    head: &Head,
    ahead: &mut Ahead<'_>,
    lines: usize,
) {
    let base = _mm256_set1_epi16(head.base as i16);
    let first = _mm256_set1_epi16(head.first as i16);
    let keep = _mm256_set1_epi16(0x803fu16 as i16);
    let spilled = _mm256_set1_epi8(0x40);
    let zero = _mm256_setzero_si256();
    let mut last = [zero; N];
    for row in 0..ROWS {
        // Line by line: many at once use up the line-fill buffers that the kernel's own loads
        // need.
        ahead.fetch(lines);
        for (i, block) in blocks.iter_mut().enumerate() {
            if let Some(soon) = block.units.get(2) {
                prefetch_output(&soon[row]);
            }
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
                    let to = block.units[0][row].as_mut_ptr().add(32 * half);
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

/// Decodes groups of `N` blocks, as many as all have residuals for and as no kernel would read past
/// a block; returns their number.
#[target_feature(enable = "avx2,popcnt")]
fn decode_fused<const N: usize>(
    head: &Head,
    jobs: &mut [Job<'_>; N],
    residuals: [&[Residual]; N],
    mut units: [&mut [Rows]; N],
    mut ahead: Ahead<'_>,
) -> usize {
    let mut states: [_; N] = std::array::from_fn(|i| load_states(&jobs[i].states));
    let lens = residuals.iter().map(|r| r.len()).chain(units.iter().map(|u| u.len()));
    let n = lens.min().unwrap_or(0);
    let lines = ahead.lines_a_step(n * ROWS);
    let mut group = 0;
    while group < n && jobs.iter().all(words_ahead) {
        let mut pieces = units.iter_mut();
        let mut blocks: [Fused<'_>; N] = std::array::from_fn(|i| Fused {
            states: states[i],
            words: jobs[i].words[2 * jobs[i].position..].as_ptr().cast(),
            residual: &residuals[i][group],
            units: &mut pieces.next().expect("N blocks")[group..],
            slots: head.alias[usize::from(jobs[i].group_tables[group])].slots(),
        });
        // SAFETY: `words_ahead` saw that many words for every block.
        unsafe { decode_group(&mut blocks, head, &mut ahead, lines) };
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

/// Decodes symbols of one job as long as no kernel would read past the block; returns the groups
/// done.
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

/// For every set of lanes the shuffle that moves their words of 16 bits to the end.
static COMPACT: [[u8; 16]; 256] = {
    let mut table = [[0x80; 16]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut to) = (8, 8);
        while lane > 0 {
            lane -= 1;
            if mask >> lane & 1 == 1 {
                to -= 1;
                table[mask][2 * to] = 2 * lane as u8;
                table[mask][2 * to + 1] = 2 * lane as u8 + 1;
            }
        }
        mask += 1;
    }
    table
};

/// The reciprocals and the fields for the 32 symbols of a row.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up_encode(row: &[u8; LANES], table: &EncodeTable) -> [[__m256i; VECTORS]; 2] {
    // SAFETY: a row is 32 bytes, twice half a vector.
    let pairs: [__m256i; 2] = std::array::from_fn(|half| unsafe {
        _mm256_cvtepu16_epi32(_mm_loadu_si128(row.as_ptr().add(16 * half).cast()))
    });
    [&table.reciprocal, &table.fields].map(|column| {
        std::array::from_fn(|v| {
            // The first two vectors hold the even elements, in the lower bytes.
            let pair = pairs[v % 2];
            let low8 = _mm256_set1_epi32(0xff);
            let s = if v < 2 { _mm256_and_si256(pair, low8) } else { _mm256_srli_epi32::<8>(pair) };
            // SAFETY: the tables have 256 entries, and every symbol is less.
            unsafe { _mm256_i32gather_epi32::<4>(column.as_ptr().cast(), s) }
        })
    })
}

/// [`look_up_encode`] in a table of 32 symbols: byte by byte for all symbols at once, by shuffles,
/// and then the bytes put together.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up_encode32(row: &[u8; LANES], table: &EncodeTable) -> [[__m256i; VECTORS]; 2] {
    // SAFETY: a row is 32 bytes, one vector.
    let row = unsafe { _mm256_loadu_si256(row.as_ptr().cast()) };
    // Putting bytes together makes a vector of four bytes of each half: here of those at even
    // places, then of those at odd ones.
    let row = _mm256_permute4x64_epi64::<0b11_01_10_00>(row);
    let even_odd = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    let row = _mm256_shuffle_epi8(row, _mm256_broadcastsi128_si256(even_odd));
    // Whatever the bytes are, entries of the table come out: the slots are looked up without a
    // check.
    let row = _mm256_and_si256(row, _mm256_set1_epi8(31));
    // A shuffle makes 0 of a place with its highest bit set: of symbols from 16 on, and of those
    // below.
    let low = _mm256_adds_epu8(row, _mm256_set1_epi8(0x70));
    let high = _mm256_sub_epi8(row, _mm256_set1_epi8(16));
    let byte = |bytes: &[u8; 32]| {
        // SAFETY: 32 bytes, twice half a vector.
        let half = |i| unsafe {
            _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().add(i).cast()))
        };
        _mm256_or_si256(_mm256_shuffle_epi8(half(0), low), _mm256_shuffle_epi8(half(16), high))
    };
    let column = |bytes: &[[u8; 32]]| {
        let (a, b) = (byte(&bytes[0]), byte(&bytes[1]));
        let (c, d) = (byte(&bytes[2]), byte(&bytes[3]));
        let lower = [_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)];
        let upper = [_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d)];
        [
            _mm256_unpacklo_epi16(lower[0], upper[0]),
            _mm256_unpackhi_epi16(lower[0], upper[0]),
            _mm256_unpacklo_epi16(lower[1], upper[1]),
            _mm256_unpackhi_epi16(lower[1], upper[1]),
        ]
    };
    let (reciprocals, fields) = table.bytes32.split_at(4);
    [column(reciprocals), column(fields)]
}

/// Encodes one row, last lanes to first, with what was looked up for it. `room` words of `words`
/// are free, 32 of them beyond need.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
fn encode_row(
    states: &mut [__m256i; VECTORS],
    table: &EncodeTable,
    [reciprocals, fields]: [[__m256i; VECTORS]; 2],
    words: &mut [u16],
    room: &mut usize,
) {
    let low16 = _mm256_set1_epi32(0xffff);
    for v in (0..VECTORS).rev() {
        let (reciprocal, fields) = (reciprocals[v], fields[v]);
        let x = states[v];
        let freq = _mm256_and_si256(fields, _mm256_set1_epi32(0x1fff));
        let stays = _mm256_cmpgt_epi32(freq, _mm256_srli_epi32::<20>(x));
        let full = !_mm256_movemask_ps(_mm256_castsi256_ps(stays)) as u8;
        let low = _mm256_packus_epi32(_mm256_and_si256(x, low16), _mm256_setzero_si256());
        let low = _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b10_00>(low));
        let to = &mut words[*room - 8..*room];
        *room -= full.count_ones() as usize;
        // SAFETY: `to` has 8 words; the shuffle is one of 256.
        unsafe {
            let compact = _mm_loadu_si128(COMPACT[usize::from(full)].as_ptr().cast());
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_shuffle_epi8(low, compact));
        }
        let x = _mm256_srlv_epi32(x, _mm256_andnot_si256(stays, _mm256_set1_epi32(16)));
        let even = _mm256_mul_epu32(x, reciprocal);
        let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(x), _mm256_srli_epi64::<32>(reciprocal));
        let high = _mm256_blend_epi32::<0xaa>(_mm256_srli_epi64::<32>(even), odd);
        let shift = _mm256_and_si256(_mm256_srli_epi32::<13>(fields), _mm256_set1_epi32(15));
        let q = _mm256_srlv_epi32(high, shift);
        let r = _mm256_sub_epi32(x, _mm256_mullo_epi32(q, freq));
        let at = _mm256_add_epi32(_mm256_srli_epi32::<17>(fields), r);
        // SAFETY: whatever the state, the remainder is less than twice the frequency, and so is
        // `at` less than twice 4096; the table has one entry more, so 4 bytes can be read
        // at each.
        let slot = unsafe { _mm256_i32gather_epi32::<2>(table.slots.as_ptr().cast(), at) };
        let slot = _mm256_and_si256(slot, low16);
        states[v] = _mm256_add_epi32(_mm256_slli_epi32::<12>(q), slot);
    }
}

#[target_feature(enable = "avx2,popcnt")]
fn encode(head: &Head, job: &mut EncodeJob<'_>) {
    let mut states = load_states(job.states);
    let mut room = job.words.len();
    let groups = job.symbols.as_chunks::<LANES>().0.as_chunks::<ROWS>().0;
    let lines = job.ahead.lines_a_step(job.symbols.len() / LANES);
    for (group, &table) in groups.iter().zip(job.group_tables).rev() {
        let table = head.encode_table(table);
        for row in group.iter().rev() {
            job.ahead.fetch(lines);
            let entries = if head.symbol_bits == 5 {
                look_up_encode32(row, table)
            } else {
                look_up_encode(row, table)
            };
            encode_row(&mut states, table, entries, job.words, &mut room);
        }
    }
    store_states(states, job.states);
    *job.begin = room;
}

plain_loops!("avx2,popcnt");
plain_delta_loops!("avx2,bmi1,bmi2,popcnt", count256);

impl Kernels for Avx2 {
    fn split_symbols(&self, head: &Head, units: &[u8], symbols: &mut [u8]) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { split_symbols(head, units, symbols) }
    }

    fn split_residual(&self, head: &Head, units: &[u8], residual: &mut [u8]) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { split_residual(head, units, residual) }
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

    fn decode_symbols(&self, head: &Head, jobs: &mut [Job<'_>], symbols: &mut [&mut [u8]]) {
        for (job, symbols) in jobs.iter_mut().zip(symbols) {
            let groups = symbols.as_chunks_mut::<LANES>().0.as_chunks_mut::<ROWS>().0;
            // SAFETY: `self` is the proof that the machine has the instructions.
            let done = unsafe { decode_symbols(head, job, groups) };
            // The last groups of a block: where a vector would read past its end.
            let groups = &mut groups[done..];
            // SAFETY: as above.
            let last = job.with_last_words(|job| unsafe { decode_symbols(head, job, groups) });
            let rest = groups[last.unwrap_or(0)..].as_flattened_mut().as_flattened_mut();
            Portable.decode_symbols(head, std::slice::from_mut(job), &mut [rest]);
        }
    }

    fn decode_fused(
        &self,
        head: &Head,
        jobs: &mut [Job<'_>],
        residuals: &[&[u8]],
        units: &mut [&mut [u8]],
        ahead: Ahead<'_>,
    ) -> usize {
        let layout = &head.layout;
        if (layout.unit_bytes, layout.high_bytes, layout.residual_bits) != (2, 2, FUSED_BITS) {
            return 0;
        }
        let residual = |i: usize| residuals[i].as_chunks().0;
        let mut units = units.iter_mut().map(|u| u.as_chunks_mut().0.as_chunks_mut().0);
        let mut next = || units.next().unwrap_or_default();
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe {
            match jobs {
                [_] => {
                    let jobs = jobs.try_into().expect("one job");
                    decode_fused(head, jobs, [residual(0)], [next()], ahead)
                }
                [_, _] => decode_fused(
                    head,
                    jobs.try_into().expect("two jobs"),
                    [residual(0), residual(1)],
                    [next(), next()],
                    ahead,
                ),
                _ => 0,
            }
        }
    }

    fn expand(&self, unit_bytes: usize, mask: &[u8], units: &mut [u8], begin: usize) {
        // SAFETY: `self` is the proof that the machine has the instructions; the tables have 2^8,
        // 2^8, 2^4 and 2^2 entries for 8, 8, 4 and 2 units, which are 8 or 16 bytes.
        let (at, next) = unsafe {
            match unit_bytes {
                1 => expand_units::<1, 8>(&UNPACK8, mask, units, begin),
                2 => expand_units::<2, 8>(&UNPACK16, mask, units, begin),
                4 => expand_units::<4, 4>(&UNPACK32, mask, units, begin),
                _ => expand_units::<8, 2>(&UNPACK64, mask, units, begin),
            }
        };
        zeros::expand_rest(unit_bytes, mask, units, at, next);
    }

    delta_methods!(merge256, partition256);

    fn encode(&self, head: &Head, jobs: &mut [EncodeJob<'_>]) {
        for job in jobs {
            // SAFETY: `self` is the proof that the machine has the instructions.
            unsafe { encode(head, job) }
        }
    }
}
