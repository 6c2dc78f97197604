//! Plain Rust.

use super::{EntropyBackend, Job, LANES, element};
use crate::block::STATE_MIN;
use crate::head::Head;
use crate::planes::GROUP;
use crate::table::{PRECISION, TOTAL};

pub(crate) struct Portable;

impl EntropyBackend for Portable {
    fn decode_symbols(&self, head: &Head, jobs: &mut [Job<'_>], symbols: &mut [&mut [u8]]) {
        for (job, symbols) in jobs.iter_mut().zip(symbols) {
            for group in symbols.as_chunks_mut::<GROUP>().0 {
                let table = &head.alias[usize::from(job.group_tables[job.group])];
                job.group += 1;
                for row in group.as_chunks_mut::<LANES>().0 {
                    decode_row(job, table.slots(), row);
                }
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
        let mut at = words.len();
        let steps: Vec<Vec<Step>> = (0..head.tables.len()).map(|t| steps(head, t)).collect();
        for (group, &table) in symbols.as_chunks::<GROUP>().0.iter().zip(group_tables).rev() {
            let steps = &steps[usize::from(table)];
            let slot_of = &head.alias[usize::from(table)].slot_of();
            for row in group.as_chunks::<LANES>().0.iter().rev() {
                for lane in (0..LANES).rev() {
                    let step = &steps[usize::from(row[element(lane)])];
                    // Without a branch: which lanes give a word is as good as random.
                    let x = states[lane];
                    let full = u32::from(x >> (32 - PRECISION) >= step.freq);
                    words[at - 1] = x as u16;
                    at -= full as usize;
                    let x = x >> (16 * full);
                    let q = (u64::from(x).wrapping_mul(step.reciprocal) >> RECIPROCAL) as u32;
                    let rank = x - q * step.freq;
                    let slot = slot_of[((step.first_rank + rank) % TOTAL) as usize];
                    states[lane] = q << PRECISION | u32::from(slot);
                }
            }
        }
        at
    }
}

/// Division by a frequency: x / f = x * ceil(2^44 / f) >> 44 for x < f * 2^20, exact since the error x / 2^44 stays below
/// 1 / f; the product stays below 2^64 since f (f - 1) < 2^24.
const RECIPROCAL: u32 = 44;

/// What encoding one symbol needs.
#[derive(Clone, Copy)]
struct Step {
    freq: u32,
    first_rank: u32,
    reciprocal: u64,
}

fn steps(head: &Head, table: usize) -> Vec<Step> {
    let freqs = head.tables[table].freqs();
    let first_rank = &head.alias[table].first_rank;
    let step = |(&f, &first_rank): (&u16, &u32)| Step {
        freq: u32::from(f),
        first_rank,
        reciprocal: (1u64 << RECIPROCAL).div_ceil(u64::from(f.max(1))),
    };
    freqs.iter().zip(first_rank).map(step).collect()
}

#[inline(always)]
fn decode_row(job: &mut Job<'_>, slots: &[u32; TOTAL as usize], row: &mut [u8; LANES]) {
    let begin = job.position;
    // 32 words that may be needed; beyond the end of the block there are zeros, and the caller sees that too many were used.
    let bytes = job.words.get(2 * begin..2 * begin + 2 * LANES);
    let padded;
    let words: &[[u8; 2]; LANES] = match bytes.and_then(|b| b.as_chunks::<2>().0.try_into().ok()) {
        Some(words) => words,
        None => {
            let mut copy = [[0; 2]; LANES];
            let rest = job.words.get(2 * begin..).unwrap_or(&[]);
            copy.iter_mut().zip(rest.as_chunks::<2>().0).for_each(|(c, w)| *c = *w);
            padded = copy;
            &padded
        }
    };
    let mut used = 0;
    for lane in 0..LANES {
        let x = job.states[lane];
        let slot = slots[(x % TOTAL) as usize];
        let q = x >> PRECISION;
        let y = q * (slot & 0xfff) + q + (slot >> 12 & 0xfff);
        // Without a branch: which lanes need a word is as good as random.
        let refill = u32::from(y < STATE_MIN);
        let word = u32::from(u16::from_le_bytes(words[used % LANES]));
        job.states[lane] = y << (16 * refill) | word & refill.wrapping_neg();
        used += refill as usize;
        row[element(lane)] = (slot >> 24) as u8;
    }
    job.position = begin + used;
}
