//! Plain Rust.

use super::{EncodeJob, EntropyBackend, Job, LANES, element};
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

    fn encode(&self, head: &Head, jobs: &mut [EncodeJob<'_>]) {
        for job in jobs {
            let mut at = job.words.len();
            let groups = job.symbols.as_chunks::<GROUP>().0.iter().zip(job.group_tables);
            for (group, &table) in groups.rev() {
                let table = head.encode_table(table);
                for row in group.as_chunks::<LANES>().0.iter().rev() {
                    for lane in (0..LANES).rev() {
                        let symbol = row[element(lane)];
                        let x = job.states[lane];
                        // Without a branch: which lanes give a word is as good as random.
                        let full = u32::from(x >> (32 - PRECISION) >= table.freq(symbol));
                        job.words[at - 1] = x as u16;
                        at -= full as usize;
                        job.states[lane] = table.step(x >> (16 * full), symbol);
                    }
                }
            }
            *job.begin = at;
        }
    }
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
        let refill = y < STATE_MIN;
        let word = u32::from(u16::from_le_bytes(words[used % LANES]));
        job.states[lane] = std::hint::select_unpredictable(refill, y << 16 | word, y);
        used += usize::from(refill);
        row[element(lane)] = (slot >> 24) as u8;
    }
    job.position = begin + used;
}
