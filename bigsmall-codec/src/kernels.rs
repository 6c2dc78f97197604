//! What a kernel gets and what it returns: the types that all backends share.

use bigsmall_format::internal::Ahead;
use bigsmall_format::{Dtype, Result};

use crate::bits::at_least;
use crate::delta::head::Head as DeltaHead;
use crate::delta::join::{self, Merge, Parts};
use crate::delta::sparse::{self, GroupCounts};
use crate::delta::split::{Parts as SplitParts, Splitter};
use crate::head::Head;
use crate::plan::choose::{self, Effort, Plan, Sample};
use crate::planes::GROUP;
use crate::units::{self, CostTable, StandIns};
use crate::zeros;

/// Lanes of a block: rANS states that share one stream of words. A lane codes one element of each
/// row of 32.
pub(crate) const LANES: usize = 32;

/// Lower bound of a lane's state.
pub(crate) const STATE_MIN: u32 = 1 << 16;

/// Whether it pays to code blocks together that have at least and at most so many groups. What only
/// the longer ones have is coded alone.
pub(crate) fn go_together(least: usize, most: usize) -> bool {
    most / 2 <= least
}

/// The upper and the lower halves of all states.
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
pub(crate) fn halves(states: &[u32; LANES]) -> [[u16; LANES]; 2] {
    [states.map(|x| (x >> 16) as u16), states.map(|x| x as u16)]
}

/// The inverse of [`halves`].
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
pub(crate) fn whole([upper, lower]: [[u16; LANES]; 2]) -> [u32; LANES] {
    std::array::from_fn(|lane| u32::from(upper[lane]) << 16 | u32::from(lower[lane]))
}

/// The state of decoding one block.
pub(crate) struct Job<'a> {
    pub(crate) states: [u32; LANES],
    /// The words and whatever follows them in the block.
    pub(crate) words: &'a [u8],
    /// The number of the next word. In a damaged block it may run past the words; the caller
    /// checks.
    pub(crate) position: usize,
    /// The table of every group of the block.
    pub(crate) group_tables: &'a [u8],
    /// The next group.
    pub(crate) group: usize,
    /// Where the symbols lead later: it may be prefetched while they are decoded, which hardly
    /// needs memory.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) soon: Ahead<'a>,
}

impl<'a> Job<'a> {
    pub(crate) fn new(states: [u32; LANES], words: &'a [u8], group_tables: &'a [u8]) -> Self {
        Job { states, words, position: 0, group_tables, group: 0, soon: Ahead::default() }
    }

    /// Calls `work`, a kernel that reads past the words it needs, with a copy of the last words and
    /// zeros behind them, and takes over how far it came: for the last groups of a block. `None` if
    /// there are more words than that.
    #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
    pub(crate) fn with_last_words<T>(&mut self, work: impl FnOnce(&mut Job<'_>) -> T) -> Option<T> {
        let rest = self.words.get(2 * self.position..).unwrap_or(&[]);
        let mut words = [0; LAST_WORDS * 4];
        words.get_mut(..rest.len()).filter(|_| rest.len() <= LAST_WORDS * 2)?.copy_from_slice(rest);
        let Job { states, group_tables, group, .. } = *self;
        let mut job = Job { states, group, ..Job::new(states, &words, group_tables) };
        let result = work(&mut job);
        (self.states, self.group) = (job.states, job.group);
        self.position += job.position;
        Some(result)
    }

    /// Whether there is a word for each symbol of the next group. No kernel reads more: each vector
    /// reads as many words as it has lanes, and those before it have taken at most as many.
    #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
    pub(crate) fn has_group(&self) -> bool {
        self.words.len() >= 2 * (self.position + GROUP)
    }

    /// Words used so far.
    pub(crate) fn position(&self) -> usize {
        self.position
    }
}

/// What a block stores beside its words, for kernels that put units together as they decode.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
pub(crate) struct Planes<'a> {
    /// The packed residuals.
    pub(crate) residual: &'a [u8],
    /// How many low bits each group keeps.
    pub(crate) widths: &'a [u8],
    /// These low bits.
    pub(crate) lows: &'a [u8],
}

/// Words that [`Job::with_last_words`] copies at most: a group, and a vector.
const LAST_WORDS: usize = GROUP + LANES;

/// One block to encode, last symbol to first.
pub(crate) struct EncodeJob<'a> {
    /// Whole groups of symbols; each has a frequency in its group's table.
    pub(crate) symbols: &'a [u8],
    /// The table of every group.
    pub(crate) group_tables: &'a [u8],
    /// The decoder's end states to begin with; afterwards its first states.
    pub(crate) states: &'a mut [u32; LANES],
    /// Room for one word a symbol and [`ROOM`] more. The words end at its end, in the decoder's
    /// order.
    pub(crate) words: &'a mut [u16],
    /// Where they begin.
    pub(crate) begin: &'a mut usize,
}

/// How many values a backend may read after the last one when it merges them.
pub(crate) const MERGE_ROOM: usize = 32;

/// How many words a backend may write before the first one that it keeps.
pub(crate) const ROOM: usize = 32;

/// The kernels of a backend: the same results as the plain ones, faster.
pub(crate) trait Kernels: Sync {
    /// Decodes the next groups of every job, as many as fill its slice of `symbols`.
    fn decode_symbols(&self, head: &Head, jobs: &mut [Job<'_>], symbols: &mut [&mut [u8]]);

    /// [`units::split_units`].
    fn split_units(
        &self,
        head: &Head,
        units: &[u8],
        symbols: &mut [u8],
        residual: &mut [u8],
        widths: &mut [u8],
    ) {
        units::split_units(head, units, symbols, residual, widths);
    }

    /// [`units::choose_tables`].
    fn choose_tables(&self, head: &Head, costs: &CostTable, symbols: &[u8], ids: &mut Vec<u8>) {
        units::choose_tables(head, costs, symbols, ids);
    }

    /// [`choose::plan_of`].
    fn plan_of(&self, dtype: Dtype, sample: &Sample, effort: &Effort) -> Result<Plan> {
        choose::plan_of(dtype, sample, effort)
    }

    /// [`units::replace_exceptions`].
    fn replace_exceptions(
        &self,
        head: &Head,
        stand_ins: &StandIns,
        table_ids: &[u8],
        units: &[u8],
        symbols: &mut [u8],
        exceptions: &mut Vec<(u32, u16)>,
    ) -> Result<bool> {
        units::replace_exceptions(head, stand_ins, table_ids, units, symbols, exceptions, at_least)
    }

    /// [`units::join`].
    fn join(
        &self,
        head: &Head,
        symbols: &[[u8; GROUP]],
        residual: &[u8],
        lows: &[u8],
        widths: &[u8],
        units: &mut [u8],
    ) -> usize {
        units::join(head, symbols, residual, lows, widths, units)
    }

    /// How many blocks are best coded at once: 1, 2 or 4, as many as hide what each waits for.
    fn blocks_at_once(&self) -> usize {
        2
    }

    /// Decodes the next groups of every job straight into its units, where the backend has a
    /// kernel for this head: at most as many as there are planes for, fewer where words run short.
    /// Returns their number, the same for all jobs. Prefetches `ahead` meanwhile.
    fn decode_fused(
        &self,
        head: &Head,
        jobs: &mut [Job<'_>],
        planes: &[Planes<'_>],
        units: &mut [&mut [u8]],
        ahead: Ahead<'_>,
    ) -> usize {
        let _ = (head, jobs, planes, units, ahead);
        0
    }

    /// [`zeros::count_ones`].
    fn count_ones(&self, mask: &[u8]) -> usize {
        zeros::count_ones(mask)
    }

    /// [`zeros::split`].
    fn split_zeros(
        &self,
        unit_bytes: usize,
        units: &[u8],
        mask: &mut [u8],
        others: &mut [u8],
    ) -> usize {
        zeros::split(unit_bytes, units, mask, others)
    }

    /// [`zeros::expand`].
    fn expand(&self, unit_bytes: usize, mask: &[u8], units: &mut [u8], begin: usize) {
        zeros::expand(unit_bytes, mask, units, begin);
    }

    /// [`join::join`].
    fn values(&self, head: &DeltaHead, parts: &Parts<'_>, values: &mut [u64]) -> Result<()> {
        join::join(head, parts, values, at_least)
    }

    /// [`join::merge`]: puts the values of a delta block, which are in the order of classes, in
    /// place of the base's units, which are whole groups. `values` holds one for each unit, and
    /// [`MERGE_ROOM`] more.
    fn merge(&self, head: &DeltaHead, values: &[u64], place: Merge<'_>) {
        join::merge(head, values, place);
    }

    /// [`join::partition`]: the inverse of [`merge`](Self::merge), and where the values of each
    /// class begin. `values` has as many bytes as the units.
    fn partition(
        &self,
        head: &DeltaHead,
        units: &[u8],
        base: &[u8],
        values: &mut [u8],
        classes: &mut [u8],
    ) -> [usize; 8] {
        join::partition(head, units, base, values, classes)
    }

    /// [`Splitter::split`].
    fn split(
        &self,
        head: &DeltaHead,
        splitter: &Splitter,
        values: &[u8],
        starts: &[usize; 8],
        parts: SplitParts<'_>,
    ) {
        splitter.split(head, values, starts, parts, at_least);
    }

    /// [`sparse::count_classes`].
    fn count_classes(
        &self,
        head: &DeltaHead,
        base: &[u8],
        classes: &mut [u8],
        counts: &mut [GroupCounts],
    ) {
        sparse::count_classes(head, base, classes, counts, sparse::count);
    }

    /// [`sparse::find`].
    fn find_in_class(&self, group: &[u8; GROUP], class: u8, n: u32) -> u32 {
        sparse::find(group, class, n)
    }

    /// [`sparse::rank`].
    fn rank_in_class(&self, group: &[u8; GROUP], class: u8, end: u32) -> u32 {
        sparse::rank(group, class, end)
    }

    /// Encodes every job.
    fn encode(&self, head: &Head, jobs: &mut [EncodeJob<'_>]);
}
