//! Every step by `constriction`'s `AnsCoder<u16, u32>`: an independent opinion on what the bytes mean.
//!
//! Its models have one interval a symbol, ours alias slots: a permutation of the 4096 slots leads from one to the other.

use std::cell::Cell;

use constriction::backends::{ReadWords, WriteWords};
use constriction::stream::model::{DecoderModel, EncoderModel, EntropyModel};
use constriction::stream::stack::AnsCoder;
use constriction::stream::{Decode, Encode};
use constriction::{BitArray, Stack};

use super::{EntropyBackend, Job, LANES, element};
use crate::head::Head;
use crate::planes::GROUP;
use crate::table::{AliasTable, FrequencyTable, PRECISION, TOTAL};

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

/// For every slot the place in the intervals that it stands for.
fn place_of_slot(alias: &AliasTable) -> Vec<u16> {
    let mut place = vec![0; TOTAL as usize];
    for (i, &slot) in alias.slot_of()[..TOTAL as usize].iter().enumerate() {
        place[usize::from(slot)] = i as u16;
    }
    place
}

fn replace_low(state: u32, by: u16) -> u32 {
    state / TOTAL * TOTAL + u32::from(by)
}

impl EntropyBackend for Reference {
    fn decode_symbols(&self, head: &Head, jobs: &mut [Job<'_>], symbols: &mut [&mut [u8]]) {
        let places: Vec<_> = head.alias.iter().map(place_of_slot).collect();
        for (job, symbols) in jobs.iter_mut().zip(symbols) {
            let position = Cell::new(job.position);
            for group in symbols.as_chunks_mut::<GROUP>().0 {
                let table = usize::from(job.group_tables[job.group]);
                job.group += 1;
                for row in group.as_chunks_mut::<LANES>().0 {
                    for lane in 0..LANES {
                        let x = job.states[lane];
                        let x = replace_low(x, places[table][(x % TOTAL) as usize]);
                        let words = SharedWords { words: job.words, position: &position };
                        let mut coder = AnsCoder::from_raw_parts(words, x);
                        let Ok(symbol) = coder.decode_symbol(Intervals(&head.tables[table]));
                        job.states[lane] = coder.into_raw_parts().1;
                        row[element(lane)] = symbol;
                    }
                }
            }
            job.position = position.get();
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
        let mut written = Vec::new();
        for (group, &table) in symbols.as_chunks::<GROUP>().0.iter().zip(group_tables).rev() {
            let table = usize::from(table);
            for row in group.as_chunks::<LANES>().0.iter().rev() {
                for lane in (0..LANES).rev() {
                    let mut coder =
                        AnsCoder::from_raw_parts(SharedSink(&mut written), states[lane]);
                    coder
                        .encode_symbol(row[element(lane)], Intervals(&head.tables[table]))
                        .expect("the plan gives every coded symbol a frequency");
                    let x = coder.into_raw_parts().1;
                    let slot = head.alias[table].slot_of()[(x % TOTAL) as usize];
                    states[lane] = replace_low(x, slot);
                }
            }
        }
        // The encoder's last word is the decoder's first.
        let at = words.len() - written.len();
        words[at..].iter_mut().zip(written.iter().rev()).for_each(|(to, from)| *to = *from);
        at
    }
}
