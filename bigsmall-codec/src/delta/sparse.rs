//! The changes of a sparse block: which units differ from the base, and by how much (FORMAT.md
//! section 10.5).
#![warn(clippy::unwrap_used)]

use bigsmall_format::internal::{reserve, set_len};
use bigsmall_format::{Error, Result, Rule};

use super::bits::{BitSink, Bits, golomb_len, rice_len};
use super::classes::{Classes, Field};
use super::values::Word;
use crate::block::MAX_GROUPS;
use crate::planes::GROUP;

/// Bits of the Rice parameter of gaps.
const GAP_BITS: u32 = 5;
/// Bits of the parameters of runs and of large differences.
const SMALL_BITS: u32 = 4;

/// A unit that differs from the base's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Change {
    /// Its number in the block.
    pub(crate) position: u32,
    /// Its number among the units of its class.
    pub(crate) rank: u32,
    pub(crate) class: u8,
    pub(crate) is_less: bool,
    /// How far it is from the base's, at least 1.
    pub(crate) distance: u64,
}

/// The parameters of a class.
#[derive(Clone, Copy, Debug, Default)]
struct Parameters {
    gap: u32,
    run: u32,
    large: u32,
}

/// Appends the changes of a block, which are in the order of positions.
pub(crate) fn write(changes: &[Change], out: &mut BitSink) {
    write_class(changes, |change| change.position, out);
}

/// Appends the changes of a block, which are in the order of classes and positions.
pub(crate) fn write_by_class(n_classes: u32, mut changes: &[Change], out: &mut BitSink) {
    for class in 0..n_classes {
        let n = changes.partition_point(|change| u32::from(change.class) <= class);
        let (of_class, rest) = changes.split_at(n);
        changes = rest;
        write_class(of_class, |change| change.rank, out);
    }
}

fn write_class(changes: &[Change], rank: impl Fn(&Change) -> u32, out: &mut BitSink) {
    out.push_golomb(changes.len() as u64, 0);
    if changes.is_empty() {
        return;
    }
    let Parameters { gap: q, run: t, large: g } = parameters(changes, &rank);
    out.push(u64::from(q), GAP_BITS);
    out.push(u64::from(t), SMALL_BITS);
    out.push(u64::from(g), SMALL_BITS);
    let mut next = 0;
    // Where the run ends that was announced last.
    let mut run_end = None;
    for (i, change) in changes.iter().enumerate() {
        if run_end.is_none() {
            let ones = changes[i..].iter().take_while(|change| change.distance == 1).count();
            out.push_rice(ones as u64, t);
            run_end = Some(i + ones);
        }
        out.push_rice(u64::from(rank(change) - next), q);
        next = rank(change) + 1;
        out.push(u64::from(change.is_less), 1);
        if run_end == Some(i) {
            out.push_golomb(change.distance - 2, g);
            run_end = None;
        }
    }
}

/// The parameters with which the changes of one class take the fewest bits.
fn parameters(changes: &[Change], rank: impl Fn(&Change) -> u32) -> Parameters {
    let (mut gaps, mut runs, mut larges) = ([0u64; 18], [0u64; 16], [0u64; 16]);
    let (mut next, mut ones) = (0, 0);
    for change in changes {
        let gap = u64::from(rank(change) - next);
        next = rank(change) + 1;
        gaps.iter_mut().zip(0..).for_each(|(sum, q)| *sum += rice_len(gap, q));
        match change.distance {
            1 => ones += 1,
            distance => {
                runs.iter_mut().zip(0..).for_each(|(sum, t)| *sum += rice_len(ones, t));
                let costs = larges.iter_mut().zip(0..);
                costs.for_each(|(sum, g)| *sum += golomb_len(distance - 2, g));
                ones = 0;
            }
        }
    }
    if ones > 0 {
        runs.iter_mut().zip(0..).for_each(|(sum, t)| *sum += rice_len(ones, t));
    }
    let least = |sums: &[u64]| sums.iter().zip(0..).min().map_or(0, |(_, i)| i);
    Parameters { gap: least(&gaps), run: least(&runs), large: least(&larges) }
}

/// Reads the changes of one class after the other.
pub(crate) struct Reader<'a> {
    bits: Bits<'a>,
    parameters: Parameters,
    /// Changes of this class that are left.
    left: u32,
    /// The rank after the last change.
    next: u32,
    /// Units of the class.
    n_units: u32,
    /// Distances of 1 that are left before a larger one.
    ones: u64,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        let bits = Bits::new(bytes);
        let parameters = Parameters::default();
        Reader { bits, parameters, left: 0, next: 0, n_units: 0, ones: 0 }
    }

    /// How many units of the next class differ, all changes of the last one being read.
    fn n_of_class(&mut self) -> Result<u64> {
        self.bits.pull_golomb(0).ok_or_else(|| wrong("at most 63 ones".into()))
    }

    /// Goes on to a class of `n_units` units, `n` of which differ.
    fn begin_class(&mut self, n: u64, n_units: u32) -> Result<()> {
        if n > u64::from(n_units) {
            return Err(wrong(format!("at most {n_units} changes of a class")).found(n));
        }
        (self.left, self.next, self.n_units) = (n as u32, 0, n_units);
        if n > 0 {
            let gap = self.bits.pull(GAP_BITS) as u32;
            let [run, large] = [(); 2].map(|()| self.bits.pull(SMALL_BITS) as u32);
            self.parameters = Parameters { gap, run, large };
            self.read_run()?;
        }
        Ok(())
    }

    fn read_run(&mut self) -> Result<()> {
        // One more is enough to be refused.
        self.ones = self.bits.pull_rice(self.parameters.run, self.left + 1);
        if self.ones > u64::from(self.left) {
            return Err(wrong(format!("a run of at most {}", self.left)).found(self.ones));
        }
        Ok(())
    }

    /// The next change of this class: its rank, and how far it is from the base's unit.
    #[inline(always)]
    fn next(&mut self) -> Result<Option<(u32, bool, u64)>> {
        if self.left == 0 {
            return Ok(None);
        }
        let q = self.parameters.gap;
        // One more is enough to be refused.
        let gap = self.bits.pull_rice(q, (self.n_units >> q) + 1);
        let rank = gap + u64::from(self.next);
        if rank >= u64::from(self.n_units) {
            return Err(wrong(format!("a rank below {}", self.n_units)).found(rank));
        }
        self.next = rank as u32 + 1;
        self.left -= 1;
        let is_less = self.bits.pull(1) == 1;
        let mut distance = 1;
        if self.ones == 0 {
            let size = self.bits.pull_golomb(self.parameters.large);
            distance = size.ok_or_else(|| wrong("at most 63 ones".into()))?.wrapping_add(2);
            if self.left > 0 {
                self.read_run()?;
            }
        } else {
            self.ones -= 1;
        }
        Ok(Some((rank as u32, is_less, distance)))
    }
}

fn wrong(expected: String) -> Error {
    Error::new(Rule::DeltaChanges).expected(expected)
}

/// Reads the changes of a block, whose base's units are `base`, in the order of classes.
pub(crate) fn read<W: Word>(
    (classes, field): (Classes, Field),
    bytes: &[u8],
    base: &[u8],
    scratch: &mut Vec<u8>,
    changes: &mut Vec<Change>,
) -> Result<()> {
    changes.clear();
    let n_units = (base.len() / size_of::<W>()) as u32;
    let mut reader = Reader::new(bytes);
    if classes.n == 1 {
        let n = reader.n_of_class()?;
        reader.begin_class(n, n_units)?;
        reserve(changes, n as usize)?;
        while let Some((rank, is_less, distance)) = reader.next()? {
            changes.push(Change { position: rank, rank, class: 0, is_less, distance });
        }
        return reader.bits.finish(Rule::DeltaChanges);
    }
    set_len(scratch, n_units as usize)?;
    W::classes(classes, field, base, scratch);
    // How many units of the class there are in each group.
    let mut counts = [0; MAX_GROUPS];
    for class in 0..classes.n as u8 {
        let n = reader.n_of_class()?;
        if n == 0 {
            continue;
        }
        let groups = scratch.chunks(GROUP);
        counts.iter_mut().zip(groups).for_each(|(n, group)| *n = count(group, class));
        let n_groups = scratch.len().div_ceil(GROUP);
        reader.begin_class(n, counts[..n_groups].iter().map(|&n| u32::from(n)).sum())?;
        reserve(changes, n as usize)?;
        // The group of the next change, the rank of its first unit; in it, the next unit to look at
        // and its rank.
        let (mut group, mut first, mut at, mut rank) = (0, 0, 0, 0);
        while let Some((wanted, is_less, distance)) = reader.next()? {
            while wanted >= first + u32::from(counts[group]) {
                first += u32::from(counts[group]);
                group += 1;
                (at, rank) = (group * GROUP, first);
            }
            loop {
                let is_of_class = scratch[at] == class;
                at += 1;
                if is_of_class {
                    rank += 1;
                    if rank > wanted {
                        break;
                    }
                }
            }
            let position = at as u32 - 1;
            changes.push(Change { position, rank: wanted, class, is_less, distance });
        }
    }
    reader.bits.finish(Rule::DeltaChanges)
}

/// How many of at most 256 bytes are `class`.
#[inline(always)]
fn count(group: &[u8], class: u8) -> u16 {
    let (words, rest) = group.as_chunks::<32>();
    let mut sums = [0u8; 32];
    for word in words {
        for (sum, &c) in sums.iter_mut().zip(word) {
            *sum += u8::from(c == class);
        }
    }
    let rest = rest.iter().filter(|&&c| c == class).count() as u16;
    sums.iter().map(|&n| u16::from(n)).sum::<u16>() + rest
}

/// Applies a change to the unit of the base.
#[inline(always)]
pub(crate) fn apply<W: Word>(change: &Change, is_float: bool, base: W) -> W {
    let value = if change.is_less { change.distance.wrapping_neg() } else { change.distance };
    W::add(base, W::from_u64(value), is_float)
}
