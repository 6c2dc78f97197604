//! AVX2. Encoding has four vectors of 8 lanes a block.

use std::arch::x86_64::*;

use bigsmall_format::internal::Ahead;
use bigsmall_format::{Backend, Dtype, Result};

use crate::arch::expand;
use crate::arch::fused::{ROWS, decode_rest, fused_forms};
use crate::arch::tables::COMPACT;
use crate::arch::x86_64::delta::{merge256, partition256, values256};
use crate::delta;
use crate::delta::head::Head as DeltaHead;
use crate::delta::join::{Merge, Parts};
use crate::delta::sparse::GroupCounts;
use crate::delta::split::{Parts as SplitParts, Splitter};
use crate::head::Head;
use crate::kernels::{EncodeJob, Job, Kernels, LANES, Planes};
use crate::plan::choose::{self, Effort, Plan, Sample};
use crate::planes::GROUP;
use crate::table::EncodeTable;
use crate::units::{self, StandIns};
use crate::zeros;

mod decode;

use decode::{decode_fused, decode_symbols};

/// Proof that the machine has the instructions.
pub(crate) struct Avx2(());

impl Avx2 {
    /// The backend, if the machine has it.
    pub(crate) fn new() -> Option<&'static Avx2> {
        Backend::Avx2.is_available().then_some(&Avx2(()))
    }
}

/// Vectors of 8 lanes.
const VECTORS: usize = LANES / 8;

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

#[target_feature(enable = "avx2,popcnt")]
fn expand(unit_bytes: usize, mask: &[u8], units: &mut [u8], begin: usize) {
    // SAFETY: 16 bytes can be read, and `n` of them written.
    let put = |packed: *const u8, order: &[u8; 16], to: *mut u8, n: usize| unsafe {
        let order = _mm_loadu_si128(order.as_ptr().cast());
        let whole = _mm_shuffle_epi8(_mm_loadu_si128(packed.cast()), order);
        match n {
            16 => _mm_storeu_si128(to.cast(), whole),
            _ => _mm_storel_epi64(to.cast(), whole),
        }
    };
    // SAFETY: `put` does what it has to.
    unsafe { expand::expand(unit_bytes, mask, units, begin, put) }
}

/// The reciprocals and the fields for the 32 symbols of a row.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up_encode(row: &[u8; LANES], table: &EncodeTable) -> [[__m256i; VECTORS]; 2] {
    [&table.reciprocal, &table.fields].map(|column| {
        // SAFETY: a row is four times 8 bytes; the tables have 256 entries, and every symbol is
        // less.
        std::array::from_fn(|v| unsafe {
            let s = _mm256_cvtepu8_epi32(_mm_loadl_epi64(row.as_ptr().add(8 * v).cast()));
            _mm256_i32gather_epi32::<4>(column.as_ptr().cast(), s)
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
    // Putting bytes together makes a vector of four bytes of each half.
    let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    let row = _mm256_permutevar8x32_epi32(row, order);
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
    for (group, &table) in groups.iter().zip(job.group_tables).rev() {
        let table = head.encode_table(table);
        macro_rules! rows {
            ($look_up:ident) => {
                for row in group.iter().rev() {
                    let entries = $look_up(row, table);
                    encode_row(&mut states, table, entries, job.words, &mut room);
                }
            };
        }
        match head.symbol_bits {
            5 => rows!(look_up_encode32),
            _ => rows!(look_up_encode),
        }
    }
    store_states(states, job.states);
    *job.begin = room;
}

plain_loops!("avx2,popcnt");
plain_delta_loops!("avx2,bmi1,bmi2,popcnt", count256, equal256);

impl Kernels for Avx2 {
    fn split_units(
        &self,
        head: &Head,
        units: &[u8],
        symbols: &mut [u8],
        residual: &mut [u8],
        widths: &mut [u8],
    ) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { split_units(head, units, symbols, residual, widths) }
    }

    fn plan_of(&self, dtype: Dtype, sample: &Sample, effort: &Effort) -> Result<Plan> {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { plan_of(dtype, sample, effort) }
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
        let mut done = 0;
        if let (Ok(jobs), [a, b]) = (<&mut [_; 2]>::try_from(&mut *jobs), &mut *symbols) {
            let mut groups = [a, b].map(|s| s.as_chunks_mut().0.as_chunks_mut().0);
            // SAFETY: `self` is the proof that the machine has the instructions.
            done = unsafe { decode_symbols(head, jobs, &mut groups) };
        }
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
        unsafe { fused_forms!(decode_fused::<1, 2>(head, jobs, planes, units, ahead)) }
    }

    fn count_ones(&self, mask: &[u8]) -> usize {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { count_ones(mask) }
    }

    fn expand(&self, unit_bytes: usize, mask: &[u8], units: &mut [u8], begin: usize) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { expand(unit_bytes, mask, units, begin) }
    }

    delta_methods!(values256, merge256, partition256);

    fn encode(&self, head: &Head, jobs: &mut [EncodeJob<'_>]) {
        for job in jobs {
            // SAFETY: `self` is the proof that the machine has the instructions.
            unsafe { encode(head, job) }
        }
    }
}
