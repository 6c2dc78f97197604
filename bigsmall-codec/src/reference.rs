//! Every step by `constriction`'s `AnsCoder<u16, u32>`: an independent implementation to compare
//! with.
//!
//! Its models have one interval a symbol, ours alias slots: a permutation of the 4096 slots leads
//! from one to the other.

use std::cell::Cell;

use constriction::backends::{ReadWords, WriteWords};
use constriction::stream::model::{DecoderModel, EncoderModel, EntropyModel};
use constriction::stream::stack::AnsCoder;
use constriction::stream::{Decode, Encode};
use constriction::{BitArray, Stack};

use crate::head::Head;
use crate::kernels::{EncodeJob, Job, Kernels, LANES};
use crate::planes::GROUP;
use crate::table::{FrequencyTable, PRECISION, TOTAL};

pub(crate) struct Reference;

/// A table as a model with one interval a symbol, in the order of the symbols.
struct Intervals<'a>(&'a FrequencyTable);

const P: usize = PRECISION as usize;

impl EntropyModel<P> for Intervals<'_> {
    type Symbol = u8;
    type Probability = u16;
}

impl EncoderModel<P> for Intervals<'_> {
    fn left_cumulative_and_probability(
        &self,
        symbol: impl std::borrow::Borrow<u8>,
    ) -> Option<(u16, std::num::NonZeroU16)> {
        let symbol = usize::from(*symbol.borrow());
        let (before, rest) = self.0.freqs().split_at_checked(symbol)?;
        Some((before.iter().sum(), (*rest.first()?).into_nonzero()?))
    }
}

impl DecoderModel<P> for Intervals<'_> {
    fn quantile_function(&self, quantile: u16) -> (u8, u16, std::num::NonZeroU16) {
        let mut left = 0;
        for (symbol, &f) in (0..=u8::MAX).zip(self.0.freqs()) {
            match f.into_nonzero() {
                Some(freq) if quantile < left + f => return (symbol, left, freq),
                _ => left += f,
            }
        }
        unreachable!("frequencies sum to 4096, and a quantile is less")
    }
}

/// The words of a block, read through one cursor by all lanes.
struct SharedWords<'a> {
    words: &'a [u8],
    position: &'a Cell<usize>,
}

impl ReadWords<u16, Stack> for SharedWords<'_> {
    type ReadError = std::convert::Infallible;

    fn read(&mut self) -> Result<Option<u16>, Self::ReadError> {
        let at = self.position.get();
        self.position.set(at + 1);
        let word = self.words.as_chunks::<2>().0.get(at).map_or(0, |w| u16::from_le_bytes(*w));
        Ok(Some(word))
    }
}

/// Where the lanes' words go.
struct SharedSink<'a>(&'a mut Vec<u16>);

impl WriteWords<u16> for SharedSink<'_> {
    type WriteError = std::convert::Infallible;

    fn write(&mut self, word: u16) -> Result<(), Self::WriteError> {
        self.0.push(word);
        Ok(())
    }
}

/// For every slot its place among the intervals, and for every place its slot.
fn places(head: &Head, table: usize) -> [Vec<u16>; 2] {
    let freqs = head.tables[table].freqs();
    let (mut place_of, mut slot_of) = (vec![0; TOTAL as usize], vec![0; TOTAL as usize]);
    for (slot, &entry) in head.alias[table].slots().iter().enumerate() {
        let (symbol, rank) = ((entry >> 24) as usize, (entry >> 12 & 0xfff) as u16);
        let place = freqs[..symbol].iter().sum::<u16>() + rank;
        place_of[slot] = place;
        slot_of[usize::from(place)] = slot as u16;
    }
    [place_of, slot_of]
}

fn replace_low(state: u32, by: u16) -> u32 {
    state / TOTAL * TOTAL + u32::from(by)
}

impl Kernels for Reference {
    fn decode_symbols(&self, head: &Head, jobs: &mut [Job<'_>], symbols: &mut [&mut [u8]]) {
        let places: Vec<_> = (0..head.tables.len()).map(|t| places(head, t)).collect();
        for (job, symbols) in jobs.iter_mut().zip(symbols) {
            let position = Cell::new(job.position);
            for group in symbols.as_chunks_mut::<GROUP>().0 {
                let table = usize::from(job.group_tables[job.group]);
                job.group += 1;
                for row in group.as_chunks_mut::<LANES>().0 {
                    for (symbol, state) in row.iter_mut().zip(&mut job.states) {
                        let slot = (*state % TOTAL) as usize;
                        let x = replace_low(*state, places[table][0][slot]);
                        let words = SharedWords { words: job.words, position: &position };
                        let mut coder = AnsCoder::from_raw_parts(words, x);
                        let Ok(decoded) = coder.decode_symbol(Intervals(&head.tables[table]));
                        *state = coder.into_raw_parts().1;
                        *symbol = decoded;
                    }
                }
            }
            job.position = position.get();
        }
    }

    fn encode(&self, head: &Head, jobs: &mut [EncodeJob<'_>]) {
        let places: Vec<_> = (0..head.tables.len()).map(|t| places(head, t)).collect();
        for job in jobs {
            let mut written = Vec::new();
            let groups = job.symbols.as_chunks::<GROUP>().0.iter().zip(job.group_tables);
            for (group, &table) in groups.rev() {
                let table = usize::from(table);
                for row in group.as_chunks::<LANES>().0.iter().rev() {
                    for (&symbol, state) in row.iter().zip(&mut *job.states).rev() {
                        let sink = SharedSink(&mut written);
                        let mut coder = AnsCoder::from_raw_parts(sink, *state);
                        coder
                            .encode_symbol(symbol, Intervals(&head.tables[table]))
                            .expect("the plan gives every coded symbol a frequency");
                        let x = coder.into_raw_parts().1;
                        let slot = places[table][1][(x % TOTAL) as usize];
                        *state = replace_low(x, slot);
                    }
                }
            }
            // The encoder's last word is the decoder's first.
            *job.begin = job.words.len() - written.len();
            let words = &mut job.words[*job.begin..];
            words.iter_mut().zip(written.iter().rev()).for_each(|(to, from)| *to = *from);
        }
    }
}
