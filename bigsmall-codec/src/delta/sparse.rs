//! The changes of a sparse block: which units differ from the base, and by how much (FORMAT.md
//! section 10.5).
#![warn(clippy::unwrap_used)]

use bigsmall_format::internal::{reserve, set_len};
use bigsmall_format::{Error, Result, Rule};

use super::bits::{BitSink, Bits};
use super::head::{Head, MAX_SPARSE_CLASSES};
use super::values::{Word, for_unit};
use crate::bits::at_least;
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

/// A form of the changes of a block: how many bits it takes, and the parameters of its classes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Form {
    pub(crate) bits: u64,
    parameters: [Parameters; MAX_SPARSE_CLASSES as usize],
}

impl Form {
    /// That of changes in the order of positions.
    pub(crate) fn natural(changes: &[Change]) -> Form {
        let mut form = Form::default();
        form.add(0, changes, |change| change.position);
        form
    }

    /// That of changes in the order of classes and positions.
    pub(crate) fn by_class(n_classes: u32, changes: &[Change]) -> Form {
        let mut form = Form::default();
        for (class, changes) in of_classes(n_classes, changes) {
            form.add(class, changes, |change| change.rank);
        }
        form
    }

    /// Appends changes in the order of positions.
    pub(crate) fn write(&self, changes: &[Change], out: &mut BitSink) {
        write_class(self.parameters[0], changes, |change| change.position, out);
    }

    /// Appends changes in the order of classes and positions.
    pub(crate) fn write_by_class(&self, n_classes: u32, changes: &[Change], out: &mut BitSink) {
        for (class, changes) in of_classes(n_classes, changes) {
            write_class(self.parameters[class], changes, |change| change.rank, out);
        }
    }

    /// Takes the parameters with which the changes of one class take the fewest bits.
    fn add(&mut self, class: usize, changes: &[Change], rank: impl Fn(&Change) -> u32) {
        let n = changes.len() as u64;
        self.bits += 2 * u64::from((n + 1).ilog2()) + 1;
        if n == 0 {
            return;
        }
        // Sums of what the parameters change; the rest is the same for each number.
        let (mut gaps, mut runs, mut larges) = ([0u64; 18], [0u64; 16], [0u64; 16]);
        let (mut next, mut ones) = (0, 0);
        let (mut n_runs, mut n_larges) = (0, 0);
        for change in changes {
            add_quotients(&mut gaps, u64::from(rank(change) - next));
            next = rank(change) + 1;
            match change.distance {
                1 => ones += 1,
                distance => {
                    add_quotients(&mut runs, ones);
                    let mut rest = distance - 2;
                    for sum in &mut larges {
                        if rest == 0 {
                            break;
                        }
                        *sum += 2 * u64::from((rest + 1).ilog2());
                        rest >>= 1;
                    }
                    (n_runs, n_larges, ones) = (n_runs + 1, n_larges + 1, 0);
                }
            }
        }
        if ones > 0 {
            add_quotients(&mut runs, ones);
            n_runs += 1;
        }
        let least = |sums: &[u64], n: u64| {
            sums.iter().zip(0..).map(|(sum, q)| (sum + n * u64::from(q), q)).min().unwrap_or((0, 0))
        };
        let (gap, run, large) = (least(&gaps, n), least(&runs, n_runs), least(&larges, n_larges));
        self.parameters[class] = Parameters { gap: gap.1, run: run.1, large: large.1 };
        // A one that ends each code, and the signs.
        let ends = 2 * n + n_runs + n_larges;
        self.bits += u64::from(GAP_BITS + 2 * SMALL_BITS) + gap.0 + run.0 + large.0 + ends;
    }
}

/// The changes of each class.
fn of_classes(n_classes: u32, mut changes: &[Change]) -> impl Iterator<Item = (usize, &[Change])> {
    (0..n_classes as usize).map(move |class| {
        let n = changes.partition_point(|change| usize::from(change.class) <= class);
        let (of_class, rest) = changes.split_at(n);
        changes = rest;
        (class, of_class)
    })
}

fn write_class(
    parameters: Parameters,
    changes: &[Change],
    rank: impl Fn(&Change) -> u32,
    out: &mut BitSink,
) {
    out.push_golomb(changes.len() as u64, 0);
    if changes.is_empty() {
        return;
    }
    let Parameters { gap: q, run: t, large: g } = parameters;
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

/// Adds `value >> q` to the sum of each q.
#[inline(always)]
fn add_quotients(sums: &mut [u64], value: u64) {
    let mut rest = value;
    for sum in sums {
        if rest == 0 {
            break;
        }
        *sum += rest;
        rest >>= 1;
    }
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

/// Reads the changes of a block of `n_units` units, all of one class.
pub(crate) fn read(bytes: &[u8], n_units: usize, changes: &mut Vec<Change>) -> Result<()> {
    changes.clear();
    let mut reader = Reader::new(bytes);
    let n = reader.n_of_class()?;
    reader.begin_class(n, n_units as u32)?;
    reserve(changes, n as usize)?;
    while let Some((rank, is_less, distance)) = reader.next()? {
        changes.push(Change { position: rank, rank, class: 0, is_less, distance });
    }
    reader.bits.finish(Rule::DeltaChanges)
}

/// Groups that are compared with a rank at once.
const AT_ONCE: usize = 8;

/// How many units of each class a group has.
pub(crate) type GroupCounts = [u16; MAX_SPARSE_CLASSES as usize];

/// Reads the changes of a block in the order of classes, given the class of each unit, whole groups
/// of them, and their numbers in each group. `find` is [`find`] or does the same.
pub(crate) fn read_by_class(
    n_classes: u32,
    bytes: &[u8],
    (classes, counts): (&[[u8; GROUP]], &[GroupCounts]),
    changes: &mut Vec<Change>,
    find: impl Fn(&[u8; GROUP], u8, u32) -> u32,
) -> Result<()> {
    changes.clear();
    let mut reader = Reader::new(bytes);
    let mut totals = [0; MAX_SPARSE_CLASSES as usize];
    for counts in counts {
        totals.iter_mut().zip(counts).for_each(|(sum, &n)| *sum += u32::from(n));
    }
    let mut firsts = Vec::new();
    set_len(&mut firsts, counts.len() + AT_ONCE)?;
    firsts[counts.len()..].fill(u32::MAX);
    for (class, total) in (0..n_classes as u8).zip(totals) {
        let n = reader.n_of_class()?;
        reader.begin_class(n, total)?;
        reserve(changes, n as usize)?;
        // For each group the rank of its first unit; behind the last one there is none.
        let mut sum = 0;
        for (first, counts) in firsts.iter_mut().zip(counts) {
            *first = sum;
            sum += u32::from(counts[usize::from(class)]);
        }
        let mut group = 0;
        while let Some((rank, is_less, distance)) = reader.next()? {
            // The last group that begins at this rank or before it, several at a time.
            while let Some(next) = firsts[group + 1..].first_chunk::<AT_ONCE>() {
                let n = next.iter().map(|&first| u32::from(first <= rank)).sum::<u32>() as usize;
                group += n;
                if n < AT_ONCE {
                    break;
                }
            }
            let first = firsts[group];
            let in_group = find(&classes[group], class, rank - first);
            let position = (group * GROUP) as u32 + in_group;
            changes.push(Change { position, rank, class, is_less, distance });
        }
    }
    reader.bits.finish(Rule::DeltaChanges)
}

/// The place of the byte `class` that `n` others precede. It exists.
pub(crate) fn find(group: &[u8; GROUP], class: u8, mut n: u32) -> u32 {
    for (i, piece) in (0..).step_by(32).zip(group.as_chunks::<32>().0) {
        let mut equal = !at_least(&piece.map(|c| c ^ class), 1);
        let n_equal = equal.count_ones();
        if n < n_equal {
            (0..n).for_each(|_| equal &= equal - 1);
            return i + equal.trailing_zeros();
        }
        n -= n_equal;
    }
    unreachable!("the counts of a group are those of its units")
}

/// How many of the bytes before `end` are `class`: the inverse of [`find`].
pub(crate) fn rank(group: &[u8; GROUP], class: u8, end: u32) -> u32 {
    let (whole, rest) = group.split_at(end as usize / 32 * 32);
    let whole = whole.as_chunks::<32>().0.iter();
    let sums = whole.map(|piece| piece.iter().map(|&c| u8::from(c == class)).sum::<u8>());
    let last = rest.iter().zip(0..end % 32).map(|(&c, _)| u32::from(c == class));
    sums.map(u32::from).sum::<u32>() + last.sum::<u32>()
}

/// The classes of units by their bases, those of sparse blocks, and their numbers in each group, by
/// `count`.
#[inline(always)]
pub(crate) fn count_classes(
    head: &Head,
    base: &[u8],
    classes: &mut [u8],
    counts: &mut [GroupCounts],
    count: impl Fn(&[u8; GROUP]) -> GroupCounts,
) {
    #[inline(always)]
    fn of<W: Word>(head: &Head, base: &[u8], classes: &mut [u8]) {
        W::classes(head.sparse, head.field, base, classes);
    }
    for_unit!(head.unit_bytes, of(head, base, classes));
    let (groups, rest) = classes.as_chunks::<GROUP>();
    for (group, counts) in groups.iter().zip(&mut *counts) {
        *counts = count(group);
    }
    if let Some(counts) = counts.get_mut(groups.len()) {
        let mut group = [u8::MAX; GROUP];
        group[..rest.len()].copy_from_slice(rest);
        *counts = count(&group);
    }
}

/// The numbers of units of each class in a group.
pub(crate) fn count(group: &[u8; GROUP]) -> GroupCounts {
    // Four at a time, so that equal neighbours do not wait for each other.
    let mut counts = [[0u8; MAX_SPARSE_CLASSES as usize + 1]; 4];
    for four in group.as_chunks::<4>().0 {
        for (counts, &class) in counts.iter_mut().zip(four) {
            counts[usize::from(class).min(MAX_SPARSE_CLASSES as usize)] += 1;
        }
    }
    std::array::from_fn(|class| counts.iter().map(|counts| u16::from(counts[class])).sum())
}

/// Applies a change to the unit of the base.
#[inline(always)]
pub(crate) fn apply<W: Word>(change: &Change, is_float: bool, base: W) -> W {
    let value = if change.is_less { change.distance.wrapping_neg() } else { change.distance };
    W::add(base, W::from_u64(value), is_float)
}
