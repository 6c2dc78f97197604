//! NEON, which every 64-bit ARM has: eight vectors of 4 lanes a block. There is no gather: entries
//! are loaded one by one, and the arithmetic, the words and their order are done by vectors.

use std::arch::aarch64::*;

use crate::arch::portable::Portable;
use crate::head::Head;
use crate::kernels::{EncodeJob, Job, Kernels, LANES, STATE_MIN};
use crate::planes::GROUP;
use crate::table::{EncodeTable, Slots, TOTAL};

/// The backend.
pub(crate) struct Neon;

/// Rows of a group.
const ROWS: usize = GROUP / LANES;
/// Vectors of 4 lanes.
const VECTORS: usize = LANES / 4;

/// For every set of 4 lanes the bytes that hand them consecutive words of 16 bits; 0xff gives zero.
static EXPAND: [[u8; 16]; 16] = {
    let mut table = [[0xff; 16]; 16];
    let mut mask = 0;
    while mask < 16 {
        let (mut lane, mut word) = (0, 0);
        while lane < 4 {
            if mask >> lane & 1 == 1 {
                table[mask][4 * lane] = 2 * word;
                table[mask][4 * lane + 1] = 2 * word + 1;
                word += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

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

#[target_feature(enable = "neon")]
fn gather(slots: &Slots, x: uint32x4_t) -> uint32x4_t {
    let slot = vandq_u32(x, vdupq_n_u32(TOTAL - 1));
    load(&[
        slots[vgetq_lane_u32::<0>(slot) as usize],
        slots[vgetq_lane_u32::<1>(slot) as usize],
        slots[vgetq_lane_u32::<2>(slot) as usize],
        slots[vgetq_lane_u32::<3>(slot) as usize],
    ])
}

/// One step of 4 lanes, given their slots' entries. `words` begins with 4 words.
#[target_feature(enable = "neon")]
fn step(x: uint32x4_t, entry: uint32x4_t, words: &[u8; 8]) -> (uint32x4_t, usize) {
    let low12 = vdupq_n_u32(TOTAL - 1);
    let q = vshrq_n_u32::<12>(x);
    let rank = vandq_u32(vshrq_n_u32::<12>(entry), low12);
    let y = vmlaq_u32(vaddq_u32(q, rank), q, vandq_u32(entry, low12));
    let low = vcltq_u32(y, vdupq_n_u32(STATE_MIN));
    let set = lanes(low);
    // SAFETY: 8 bytes are half a vector, 16 a whole one.
    let (words, order) = unsafe { (vld1_u8(words.as_ptr()), vld1q_u8(EXPAND[set].as_ptr())) };
    let words = vcombine_u8(words, vdup_n_u8(0));
    let next = vreinterpretq_u32_u8(vqtbl1q_u8(words, order));
    let refilled = vorrq_u32(vshlq_n_u32::<16>(y), next);
    (vbslq_u32(low, refilled, y), set.count_ones() as usize)
}

/// Decodes symbols of one job as long as the words of a whole group are at hand; returns the groups
/// done.
#[target_feature(enable = "neon")]
fn decode_symbols(head: &Head, job: &mut Job<'_>, groups: &mut [[[u8; LANES]; ROWS]]) -> usize {
    let mut states = load_states(&job.states);
    let mut done = 0;
    for group in groups {
        if !job.has_group() {
            break;
        }
        let slots = head.alias[usize::from(job.group_tables[job.group])].slots();
        for row in group {
            let mut symbols = [vdup_n_u16(0); VECTORS];
            for (x, symbols) in states.iter_mut().zip(&mut symbols) {
                let entry = gather(slots, *x);
                *symbols = vmovn_u32(vshrq_n_u32::<24>(entry));
                let words = job.words[2 * job.position..].first_chunk().expect("words ahead");
                let used;
                (*x, used) = step(*x, entry, words);
                job.position += used;
            }
            let [a, b, c, d, e, f, g, h] = symbols;
            // The first four vectors hold the even elements.
            let even = vcombine_u8(vmovn_u16(vcombine_u16(a, b)), vmovn_u16(vcombine_u16(c, d)));
            let odd = vcombine_u8(vmovn_u16(vcombine_u16(e, f)), vmovn_u16(vcombine_u16(g, h)));
            // SAFETY: a row is 32 bytes, two vectors interleaved.
            unsafe { vst2q_u8(row.as_mut_ptr(), uint8x16x2_t(even, odd)) };
        }
        job.group += 1;
        done += 1;
    }
    store_states(states, &mut job.states);
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
            let lines = job.ahead.lines_a_step(job.symbols.len() / LANES);
            for (group, &table) in groups.iter().zip(job.group_tables).rev() {
                let table = head.encode_table(table);
                for row in group.iter().rev() {
                    job.ahead.fetch(lines);
                    for v in (0..VECTORS).rev() {
                        // The first four vectors hold the even elements.
                        let from = 8 * (v % 4) + v / 4;
                        let symbols = [row[from], row[from + 2], row[from + 4], row[from + 6]];
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
