//! The stages of coding, one by one, for the benches of this crate. No part of its interface: what
//! is here changes without notice.

use std::fmt;

use bigsmall_format::internal::Ahead;
use bigsmall_format::{Backend, MAX_BLOCK_UNITS, Result, TensorSpec};

use crate::block::sections::MAX_GROUPS;
use crate::head::Head;
use crate::kernels::{EncodeJob, Job, Kernels, LANES, Planes, ROOM, STATE_MIN};
use crate::level::Level;
use crate::planes::{GROUP, packed_len};
use crate::units::{CostTable, StandIns};
use crate::{backend, plan};

/// A stage of coding a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Encoding: units to symbols, packed residuals and low widths.
    SplitUnits,
    /// Encoding: the cheapest table for every segment.
    ChooseTables,
    /// Encoding: symbols that their table does not code. The symbols are copied first, since this
    /// changes them.
    ReplaceExceptions,
    /// Encoding: rANS, symbols to words.
    Encode,
    /// Decoding: words to symbols.
    DecodeSymbols,
    /// Decoding: symbols and packed residuals to units.
    Join,
    /// Decoding: words and packed residuals to units at once, where the backend can.
    DecodeFused,
}

impl Stage {
    /// All of them, in the order in which they are done.
    pub const ALL: [Stage; 7] = [
        Stage::SplitUnits,
        Stage::ChooseTables,
        Stage::ReplaceExceptions,
        Stage::Encode,
        Stage::DecodeSymbols,
        Stage::Join,
        Stage::DecodeFused,
    ];
}

/// Blocks of BF16, as many as any kernel interleaves, with what every stage needs. They stay in the
/// caches: what a stage takes is what it computes.
pub struct Stages {
    kernels: &'static dyn Kernels,
    head: Head,
    costs: CostTable,
    stand_ins: StandIns,
    blocks: [Block; BLOCKS],
}

impl fmt::Debug for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stages").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Block {
    units: Vec<u8>,
    /// Before and after the symbols that their table does not code are replaced.
    symbols: [Vec<u8>; 2],
    tables: Vec<u8>,
    group_tables: Vec<u8>,
    exceptions: Vec<(u32, u16)>,
    residual: Vec<u8>,
    words: Vec<u16>,
    begin: usize,
    /// The decoder's first states.
    states: [u32; LANES],
    /// The words as the decoder reads them, with room behind them.
    read: Vec<u8>,
    decoded_symbols: Vec<u8>,
    decoded: Vec<u8>,
}

/// How many blocks there are.
const BLOCKS: usize = 4;

/// The low widths of groups: BF16 has no low bits.
const NO_LOWS: [u8; MAX_GROUPS] = [0; MAX_GROUPS];

impl Stages {
    /// Bytes of original data that a stage handles at once.
    pub const BYTES: usize = BLOCKS * 2 * MAX_BLOCK_UNITS;

    /// The first blocks of the tensor `spec`, of BF16, whose bytes are `bytes`.
    ///
    /// # Errors
    /// [`Rule::BackendMissing`](crate::Rule::BackendMissing).
    pub fn new(spec: &TensorSpec, bytes: &[u8], backend: Backend) -> Result<Stages> {
        let kernels = backend::kernels(backend)?;
        let head = plan::plan(kernels, spec, &bytes, Level::Default)?;
        let (costs, stand_ins) = (CostTable::new(&head), StandIns::new(&head));
        let mut stages = Stages { kernels, head, costs, stand_ins, blocks: Default::default() };
        for (block, units) in stages.blocks.iter_mut().zip(bytes.chunks(Self::BYTES / BLOCKS)) {
            let n_groups = units.len() / 2 / GROUP;
            block.units = units.to_vec();
            block.symbols = [vec![0; n_groups * GROUP], vec![0; n_groups * GROUP]];
            block.residual = vec![0; n_groups * packed_len(stages.head.layout.residual_bits)];
            block.words = vec![0; n_groups * GROUP + ROOM];
            block.decoded_symbols = vec![0; n_groups * GROUP];
            block.decoded = vec![0; units.len()];
        }
        for stage in Stage::ALL {
            if stage == Stage::DecodeSymbols {
                for block in &mut stages.blocks {
                    let words = block.words[block.begin..].iter();
                    block.read = words.flat_map(|w| w.to_le_bytes()).collect();
                    block.read.resize(block.read.len() + 4 * GROUP, 0);
                }
            }
            stages.run(stage)?;
        }
        Ok(stages)
    }

    /// Whether the backend has a kernel that does without the second step.
    pub fn is_fused(&mut self) -> bool {
        self.decode_fused() > 0
    }

    /// Does one stage for all blocks.
    ///
    /// # Errors
    /// [`Rule::Memory`](crate::Rule::Memory).
    pub fn run(&mut self, stage: Stage) -> Result<()> {
        let Stages { kernels, head, costs, stand_ins, blocks } = self;
        match stage {
            Stage::SplitUnits => {
                for b in blocks {
                    let symbols = &mut b.symbols[0];
                    // BF16 has no low bits.
                    let mut widths = vec![0; symbols.len() / GROUP];
                    kernels.split_units(head, &b.units, symbols, &mut b.residual, &mut widths);
                }
            }
            Stage::ChooseTables => {
                for b in blocks {
                    kernels.choose_tables(head, costs, &b.symbols[0], &mut b.tables);
                    let of_group = |g| b.tables[g / head.segment_groups()];
                    b.group_tables.clear();
                    b.group_tables.extend((0..b.symbols[0].len() / GROUP).map(of_group));
                }
            }
            Stage::ReplaceExceptions => {
                for b in blocks {
                    let [before, after] = &mut b.symbols;
                    after.copy_from_slice(before);
                    let (tables, units) = (&b.tables, &b.units);
                    let list = &mut b.exceptions;
                    kernels.replace_exceptions(head, stand_ins, tables, units, after, list)?;
                }
            }
            Stage::Encode => {
                let mut jobs = blocks.each_mut().map(|b| {
                    b.states = [STATE_MIN; LANES];
                    EncodeJob {
                        symbols: &b.symbols[1],
                        group_tables: &b.group_tables,
                        states: &mut b.states,
                        words: &mut b.words,
                        begin: &mut b.begin,
                    }
                });
                kernels.encode(head, &mut jobs);
            }
            Stage::DecodeSymbols => {
                let n = kernels.blocks_at_once();
                for blocks in blocks.chunks_mut(n) {
                    let each = blocks.iter_mut().map(|b| {
                        let job = Job::new(b.states, &b.read, &b.group_tables);
                        (job, &mut b.decoded_symbols[..])
                    });
                    let (mut jobs, mut symbols): (Vec<_>, Vec<_>) = each.unzip();
                    kernels.decode_symbols(head, &mut jobs, &mut symbols);
                }
            }
            Stage::Join => {
                for b in blocks {
                    let symbols = b.decoded_symbols.as_chunks().0;
                    kernels.join(head, symbols, &b.residual, &[], &NO_LOWS, &mut b.decoded);
                }
            }
            Stage::DecodeFused => {
                self.decode_fused();
            }
        }
        Ok(())
    }

    fn decode_fused(&mut self) -> usize {
        let (mut groups, n) = (0, self.kernels.blocks_at_once());
        for blocks in self.blocks.chunks_mut(n) {
            let (mut jobs, mut planes, mut units) = (Vec::new(), Vec::new(), Vec::new());
            for b in blocks {
                jobs.push(Job::new(b.states, &b.read, &b.group_tables));
                planes.push(Planes { residual: &b.residual, widths: &NO_LOWS, lows: &[] });
                units.push(&mut b.decoded[..]);
            }
            let (head, ahead) = (&self.head, Ahead::default());
            groups += self.kernels.decode_fused(head, &mut jobs, &planes, &mut units, ahead);
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_decoded_was_encoded() {
        let mut state = 1u64;
        let mut unit = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            half::bf16::from_f32((state as i32 as f32).cbrt() * 1e-5).to_le_bytes()
        };
        let bytes: Vec<u8> = (0..Stages::BYTES / 2).flat_map(|_| unit()).collect();
        let spec = TensorSpec::new("w", crate::Dtype::BF16, &[bytes.len() as u64 / 2]).unwrap();
        for backend in backend::backends() {
            let mut stages = Stages::new(&spec, &bytes, backend).unwrap();
            for stage in [Stage::Join, Stage::DecodeFused] {
                stages.blocks.iter_mut().for_each(|b| b.decoded.fill(0));
                stages.run(stage).unwrap();
                for block in &stages.blocks {
                    assert_eq!(block.decoded_symbols, block.symbols[1], "{backend:?}");
                    let units = block.units.as_chunks::<2>().0.iter();
                    let same =
                        units.zip(block.decoded.as_chunks().0).map(|(a, b)| usize::from(a == b));
                    let right = same.sum::<usize>() + block.exceptions.len();
                    // The fused kernels leave the last group, where the carried bytes lie, to the
                    // second step.
                    let none = stage == Stage::DecodeFused && block.decoded.iter().all(|&b| b == 0);
                    assert!(
                        none || right + GROUP >= block.units.len() / 2,
                        "{backend:?} {stage:?}"
                    );
                }
            }
        }
    }
}
