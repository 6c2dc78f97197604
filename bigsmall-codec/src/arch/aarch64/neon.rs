//! NEON, which every 64-bit ARM has. Decoding: the upper and the lower halves of the states of 32
//! lanes as four vectors of 16-bit numbers each; buckets are looked up by `tbl`, one byte of 16
//! lanes at a time. There is no gather: for more than 64 symbols, and for encoding, entries are
//! loaded one by one, and the arithmetic, the words and their order are done by vectors.

use std::arch::aarch64::*;

use crate::arch::portable::Portable;
use crate::arch::tables::UNPACK16;
use crate::head::Head;
use crate::kernels::{EncodeJob, Job, Kernels, LANES, halves, whole};
use crate::planes::GROUP;
use crate::table::{BucketBytes, EncodeTable, Shuffled, Slots, TOTAL};

/// The backend.
pub(crate) struct Neon;

/// Rows of a group.
const ROWS: usize = GROUP / LANES;
/// Vectors of 4 lanes.
const VECTORS: usize = LANES / 4;

/// For every set of 4 lanes the bytes that move the lower halves of those lanes to the end of 8
/// bytes.
static COMPACT: [[u8; 8]; 16] = {
    let mut table = [[0xff; 8]; 16];
    let mut mask = 0;
    while mask < 16 {
        let (mut lane, mut to) = (4, 4);
        while lane > 0 {
            lane -= 1;
            if mask >> lane & 1 == 1 {
                to -= 1;
                table[mask][2 * to] = 4 * lane as u8;
                table[mask][2 * to + 1] = 4 * lane as u8 + 1;
            }
        }
        mask += 1;
    }
    table
};

fn load(from: &[u32; 4]) -> uint32x4_t {
    // SAFETY: four words are one vector.
    unsafe { vld1q_u32(from.as_ptr()) }
}

fn load_states(states: &[u32; LANES]) -> [uint32x4_t; VECTORS] {
    let states = states.as_chunks::<4>().0;
    std::array::from_fn(|v| load(&states[v]))
}

fn store_states(vectors: [uint32x4_t; VECTORS], states: &mut [u32; LANES]) {
    for (vector, to) in vectors.into_iter().zip(states.as_chunks_mut::<4>().0) {
        // SAFETY: four states are one vector.
        unsafe { vst1q_u32(to.as_mut_ptr(), vector) };
    }
}

/// The lanes whose bits are all set, as the lowest 4 bits.
#[target_feature(enable = "neon")]
fn lanes(all_or_none: uint32x4_t) -> usize {
    vaddvq_u32(vandq_u32(all_or_none, load(&[1, 2, 4, 8]))) as usize
}

/// The states of all lanes: their upper and their lower halves.
struct Halves {
    upper: [uint16x8_t; 4],
    lower: [uint16x8_t; 4],
}

impl Halves {
    fn load(states: &[u32; LANES]) -> Halves {
        let [upper, lower] = halves(states).map(|half| {
            // SAFETY: 8 halves are one vector.
            std::array::from_fn(|v| unsafe { vld1q_u16(half[8 * v..][..8].as_ptr()) })
        });
        Halves { upper, lower }
    }

    fn store(&self, states: &mut [u32; LANES]) {
        let mut halves = [[0; LANES]; 2];
        for (half, vectors) in halves.iter_mut().zip([self.upper, self.lower]) {
            for (to, vector) in half.as_chunks_mut::<8>().0.iter_mut().zip(vectors) {
                // SAFETY: 8 halves are one vector.
                unsafe { vst1q_u16(to.as_mut_ptr(), vector) };
            }
        }
        *states = whole(halves);
    }

    /// Moves 8 lanes on: `freq` is 16 times the frequency of their slots, `rank` their rank. Those
    /// that fell below the bound take a word. `words` begins with 8 words; returns how many were
    /// taken.
    #[inline]
    #[target_feature(enable = "neon")]
    fn step(&mut self, v: usize, freq: uint16x8_t, rank: uint16x8_t, words: &[u8; 16]) -> usize {
        let (upper, lower) = (self.upper[v], self.lower[v]);
        // freq / 16 * (state >> 12) + rank = freq * upper + rest. The rest is less than 2^16.
        let rest = vmlaq_u16(rank, vshrq_n_u16::<4>(freq), vshrq_n_u16::<12>(lower));
        let low = vmovl_u16(vget_low_u16(rest));
        let low = vmlal_u16(low, vget_low_u16(freq), vget_low_u16(upper));
        let high = vmlal_high_u16(vmovl_high_u16(rest), freq, upper);
        let (low, high) = (vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high));
        let (lower, upper) = (vuzp1q_u16(low, high), vuzp2q_u16(low, high));
        let below = vceqzq_u16(upper);
        let bits = vcreate_u8(0x8040_2010_0804_0201);
        let set = vaddv_u8(vand_u8(vmovn_u16(below), bits));
        // SAFETY: 16 bytes are one vector.
        let (words, order) =
            unsafe { (vld1q_u8(words.as_ptr()), vld1q_u8(UNPACK16[usize::from(set)].as_ptr())) };
        let next = vreinterpretq_u16_u8(vqtbl1q_u8(words, order));
        self.upper[v] = vbslq_u16(below, lower, upper);
        self.lower[v] = vbslq_u16(below, next, lower);
        set.count_ones() as usize
    }
}

/// Looks up 16 numbers of 5 or 6 bits in a table of as many bytes.
#[inline]
#[target_feature(enable = "neon")]
fn look_up<const BITS: u32>(table: &Shuffled, numbers: uint8x16_t) -> uint8x16_t {
    // SAFETY: 16 bytes are one vector.
    let part = |i: usize| unsafe { vld1q_u8(table[i][0].as_ptr()) };
    if BITS == 5 {
        vqtbl2q_u8(uint8x16x2_t(part(0), part(1)), numbers)
    } else {
        vqtbl4q_u8(uint8x16x4_t(part(0), part(1), part(2), part(3)), numbers)
    }
}

/// Lower and upper bytes as 16 numbers of 16 bits.
#[inline]
#[target_feature(enable = "neon")]
fn zip(low: uint8x16_t, high: uint8x16_t) -> [uint16x8_t; 2] {
    [vreinterpretq_u16_u8(vzip1q_u8(low, high)), vreinterpretq_u16_u8(vzip2q_u8(low, high))]
}

/// Symbols, 16 times the frequencies, and ranks of the slots of 16 lanes, by the bytes of 2^`BITS`
/// buckets, 5 or 6.
#[inline]
#[target_feature(enable = "neon")]
fn find<const BITS: u32>(
    table: &BucketBytes,
    states: [uint16x8_t; 2],
) -> (uint8x16_t, [uint16x8_t; 2], [uint16x8_t; 2]) {
    let in_bucket = vdupq_n_u16((1 << (12 - BITS)) - 1);
    let slots = states.map(|lower| vandq_u16(lower, vdupq_n_u16(TOTAL as u16 - 1)));
    let places = slots.map(|slot| vandq_u16(slot, in_bucket));
    let buckets = slots.map(|slot| match BITS {
        5 => vshrn_n_u16::<7>(slot),
        _ => vshrn_n_u16::<6>(slot),
    });
    let bucket = vcombine_u8(buckets[0], buckets[1]);
    let place = vcombine_u8(vmovn_u16(places[0]), vmovn_u16(places[1]));
    let last = look_up::<BITS>(&table.last, bucket);
    let donated = vcgtq_s8(vreinterpretq_s8_u8(place), vreinterpretq_s8_u8(last));
    let symbols = vbslq_u8(donated, look_up::<BITS>(&table.donor, bucket), bucket);
    let [low, high] = [0, 1].map(|i| vandq_u8(look_up::<BITS>(&table.donated[i], bucket), donated));
    let more = zip(low, high);
    let rank = [vaddq_u16(places[0], more[0]), vaddq_u16(places[1], more[1])];
    let [low, high] = [0, 1].map(|i| look_up::<BITS>(&table.freq[i], symbols));
    (symbols, zip(low, high), rank)
}

/// The same by slots in memory, for any number of symbols.
#[inline]
#[target_feature(enable = "neon")]
fn find_slots(
    slots: &Slots,
    states: [uint16x8_t; 2],
) -> (uint8x16_t, [uint16x8_t; 2], [uint16x8_t; 2]) {
    let low12 = vdupq_n_u16(TOTAL as u16 - 1);
    let mut found = [(vdup_n_u8(0), low12, low12); 2];
    for (found, lower) in found.iter_mut().zip(states) {
        let mut at = [0u16; 8];
        // SAFETY: 8 halves are one vector.
        unsafe { vst1q_u16(at.as_mut_ptr(), vandq_u16(lower, low12)) };
        let [a, b, c, d, e, f, g, h] = at.map(|slot| slots[usize::from(slot)]);
        let (low, high) = (load(&[a, b, c, d]), load(&[e, f, g, h]));
        let halves = (vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high));
        let freq = vshlq_n_u16::<4>(vuzp1q_u16(halves.0, halves.1));
        let rank = vcombine_u16(vshrn_n_u32::<12>(low), vshrn_n_u32::<12>(high));
        let symbols = vshrn_n_u16::<8>(vuzp2q_u16(halves.0, halves.1));
        *found = (symbols, freq, vandq_u16(rank, low12));
    }
    let [a, b] = found;
    (vcombine_u8(a.0, b.0), [a.1, b.1], [a.2, b.2])
}

/// Decodes symbols of one job as long as the words of a whole group are at hand; returns the groups
/// done.
#[target_feature(enable = "neon")]
fn decode_symbols(head: &Head, job: &mut Job<'_>, groups: &mut [[[u8; LANES]; ROWS]]) -> usize {
    let mut states = Halves::load(&job.states);
    let mut done = 0;
    for group in groups {
        if !job.has_group() {
            break;
        }
        let table = &head.alias[usize::from(job.group_tables[job.group])];
        for row in group {
            for (half, row) in row.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let of_half = [states.lower[2 * half], states.lower[2 * half + 1]];
                let (symbols, freq, rank) = match head.symbol_bits {
                    5 => find::<5>(&table.buckets().bytes, of_half),
                    6 => find::<6>(&table.buckets().bytes, of_half),
                    _ => find_slots(table.slots(), of_half),
                };
                // SAFETY: half a row is 16 bytes, one vector.
                unsafe { vst1q_u8(row.as_mut_ptr(), symbols) };
                for i in 0..2 {
                    let words = job.words[2 * job.position..].first_chunk().expect("words ahead");
                    job.position += states.step(2 * half + i, freq[i], rank[i], words);
                }
            }
        }
        job.group += 1;
        done += 1;
    }
    states.store(&mut job.states);
    done
}

/// Encodes 4 lanes: gives the words of those that are full to the end of the free part of `words`,
/// then moves the states on.
#[target_feature(enable = "neon")]
fn encode_lanes(
    x: uint32x4_t,
    table: &EncodeTable,
    symbols: [u8; 4],
    words: &mut [u16],
    room: &mut usize,
) -> uint32x4_t {
    let of = |column: &[u32; 256]| load(&symbols.map(|s| column[usize::from(s)]));
    let (reciprocal, fields) = (of(&table.reciprocal), of(&table.fields));
    let freq = vandq_u32(fields, vdupq_n_u32(0x1fff));
    let full = vcgeq_u32(vshrq_n_u32::<20>(x), freq);
    let set = lanes(full);
    let to: &mut [u16; 4] = words[..*room].last_chunk_mut().expect("room for a vector");
    // SAFETY: 8 bytes of a table, 4 words.
    unsafe {
        let compact = vld1_u8(COMPACT[set].as_ptr());
        let low = vqtbl1_u8(vreinterpretq_u8_u32(x), compact);
        vst1_u16(to.as_mut_ptr(), vreinterpret_u16_u8(low));
    }
    *room -= set.count_ones() as usize;
    let x = vbslq_u32(full, vshrq_n_u32::<16>(x), x);
    let low = vmull_u32(vget_low_u32(x), vget_low_u32(reciprocal));
    let high = vmull_high_u32(x, reciprocal);
    let product = vcombine_u32(vshrn_n_u64::<32>(low), vshrn_n_u64::<32>(high));
    let shift = vandq_u32(vshrq_n_u32::<13>(fields), vdupq_n_u32(15));
    let q = vshlq_u32(product, vnegq_s32(vreinterpretq_s32_u32(shift)));
    let at = vaddq_u32(vshrq_n_u32::<17>(fields), vmlsq_u32(x, q, freq));
    let slot = load(&[
        u32::from(table.slots[vgetq_lane_u32::<0>(at) as usize]),
        u32::from(table.slots[vgetq_lane_u32::<1>(at) as usize]),
        u32::from(table.slots[vgetq_lane_u32::<2>(at) as usize]),
        u32::from(table.slots[vgetq_lane_u32::<3>(at) as usize]),
    ]);
    vaddq_u32(vshlq_n_u32::<12>(q), slot)
}

impl Kernels for Neon {
    fn decode_symbols(&self, head: &Head, jobs: &mut [Job<'_>], symbols: &mut [&mut [u8]]) {
        for (job, symbols) in jobs.iter_mut().zip(symbols) {
            let groups = symbols.as_chunks_mut::<LANES>().0.as_chunks_mut::<ROWS>().0;
            // SAFETY: every 64-bit ARM has the instructions.
            let done = unsafe { decode_symbols(head, job, groups) };
            // The last groups of a small or damaged block: where a vector would read past its end.
            let rest = groups[done..].as_flattened_mut().as_flattened_mut();
            Portable.decode_symbols(head, std::slice::from_mut(job), &mut [rest]);
        }
    }

    fn encode(&self, head: &Head, jobs: &mut [EncodeJob<'_>]) {
        for job in jobs {
            let mut states = load_states(job.states);
            let mut room = job.words.len();
            let groups = job.symbols.as_chunks::<LANES>().0.as_chunks::<ROWS>().0;
            for (group, &table) in groups.iter().zip(job.group_tables).rev() {
                let table = head.encode_table(table);
                for row in group.iter().rev() {
                    for v in (0..VECTORS).rev() {
                        let symbols = row.as_chunks::<4>().0[v];
                        // SAFETY: every 64-bit ARM has the instructions.
                        states[v] = unsafe {
                            encode_lanes(states[v], table, symbols, job.words, &mut room)
                        };
                    }
                }
            }
            store_states(states, job.states);
            *job.begin = room;
        }
    }
}
