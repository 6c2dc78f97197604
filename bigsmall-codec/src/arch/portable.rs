//! Plain Rust.

use crate::head::Head;
use crate::kernels::{EncodeJob, Job, Kernels, LANES, STATE_MIN};
use crate::planes::{GROUP, ONES};
use crate::table::{EncodeTable, PRECISION, Slots, TOTAL};

pub(crate) struct Portable;

impl Kernels for Portable {
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
            let mut states = *job.states;
            let mut at = job.words.len();
            let groups = job.symbols.as_chunks::<GROUP>().0.iter().zip(job.group_tables);
            for (group, &table) in groups.rev() {
                let table = head.encode_table(table);
                for row in group.as_chunks::<LANES>().0.iter().rev() {
                    let words = &mut job.words[..at];
                    let words = words.last_chunk_mut().expect("room for a row");
                    at -= encode_row(&mut states, table, row, words);
                }
            }
            *job.states = states;
            *job.begin = at;
        }
    }
}

/// Encodes one row, last lane to first; the number of words, which are the last of `words`.
#[inline(always)]
fn encode_row(
    states: &mut [u32; LANES],
    table: &EncodeTable,
    row: &[u8; LANES],
    words: &mut [u16; LANES],
) -> usize {
    // How many words are left below the last one. One less than none, after 32 words, counts as 32
    // below.
    let mut left = LANES - 1;
    for (state, &symbol) in states.iter_mut().zip(row).rev() {
        let x = *state;
        // Without a branch: which lanes give a word cannot be predicted.
        let full = x >> (32 - PRECISION) >= table.freq(symbol);
        words[left % LANES] = x as u16;
        left = left.wrapping_sub(usize::from(full));
        let x = std::hint::select_unpredictable(full, x >> 16, x);
        *state = table.step(x, symbol);
    }
    (LANES - 1).wrapping_sub(left)
}

#[inline(always)]
fn decode_row(job: &mut Job<'_>, slots: &Slots, row: &mut [u8; LANES]) {
    let begin = job.position;
    // 32 words that may be needed. Past the end of the block they are zeros; the caller checks how
    // many were used.
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
    // Loops without a branch or a chain, which a compiler turns into vectors where it has any.
    let mut slot = [0; LANES];
    for lane in 0..LANES {
        slot[lane] = slots[(job.states[lane] % TOTAL) as usize];
    }
    let mut next = [0; LANES];
    let mut refill = [0u8; LANES];
    for lane in 0..LANES {
        let q = job.states[lane] >> PRECISION;
        next[lane] = q * (slot[lane] & 0xfff) + (slot[lane] >> 12 & 0xfff);
        refill[lane] = u8::from(next[lane] < STATE_MIN);
    }
    // How many lanes before each take a word: eight sums by one product.
    let mut before = [0u8; LANES];
    let mut used = 0;
    for (before, refill) in before.as_chunks_mut::<8>().0.iter_mut().zip(refill.as_chunks::<8>().0)
    {
        let sums = u64::from_le_bytes(*refill).wrapping_mul(ONES);
        *before = ((sums << 8) + used * ONES).to_le_bytes();
        used += sums >> 56;
    }
    let mut word = [0; LANES];
    for lane in 0..LANES {
        word[lane] = u16::from_le_bytes(words[usize::from(before[lane]) % LANES]);
    }
    for lane in 0..LANES {
        let y = next[lane];
        job.states[lane] = if y < STATE_MIN { y << 16 | u32::from(word[lane]) } else { y };
    }
    *row = slot.map(|slot| (slot >> 24) as u8);
    job.position = begin + used as usize;
}
