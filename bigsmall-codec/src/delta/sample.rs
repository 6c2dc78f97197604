//! The units of a tensor and of its base that a plan is made from.

use bigsmall_format::internal::{read_at, reserve, set_len};
use bigsmall_format::{ReadAt, Result, TensorSpec};

use super::classes::Field;
use super::values::Word;

/// Units in one read.
pub(super) const RUN: u64 = 1024;
/// The least and the most units of a sample, which is a quarter of the tensor in between: for units
/// of 2 bytes or less, and for wider ones, most of whose bits are raw whatever the plan.
const SAMPLE: [(u64, u64); 2] = [(1 << 15, 1 << 16), (1 << 15, 1 << 15)];

/// The sampled units.
pub(super) struct Sample<W> {
    /// The bases' units and the differences from them.
    pub(super) bases: Vec<W>,
    pub(super) differences: Vec<W>,
    /// The number of units after each run.
    pub(super) ends: Vec<usize>,
    /// The most units of a run that differ.
    pub(super) most_changed: usize,
    pub(super) field: Field,
}

impl<W: Word> Sample<W> {
    fn add(&mut self, units: &[u8], base: &[u8]) {
        let begin = self.bases.len();
        let is_float = self.field.is_float();
        self.bases.extend(base.chunks_exact(size_of::<W>()).map(W::read));
        let units = units.chunks_exact(size_of::<W>()).map(W::read);
        let pairs = units.zip(&self.bases[begin..]);
        self.differences.extend(pairs.map(|(unit, &base)| W::difference(base, unit, is_float)));
        let differ = self.differences[begin..].iter().map(|&d| usize::from(d != W::default()));
        self.most_changed = self.most_changed.max(differ.sum());
        self.ends.push(self.bases.len());
    }

    pub(super) fn exponents(&self) -> impl Iterator<Item = u16> {
        self.bases.iter().map(|base| base.exponent(self.field))
    }

    /// The values of mode 1.
    pub(super) fn turned(&self) -> impl Iterator<Item = W> {
        let is_float = self.field.is_float();
        self.bases.iter().zip(&self.differences).map(move |(&base, &difference)| {
            W::turned(base, W::add(base, difference, is_float), is_float)
        })
    }
}

/// Reads runs of units, spread over the tensor.
pub(super) fn sample<W: Word>(
    spec: &TensorSpec,
    source: &dyn ReadAt,
    base: &dyn ReadAt,
    field: Field,
) -> Result<Sample<W>> {
    let (n, unit) = (spec.n_units(), size_of::<W>() as u64);
    let (least, most) = SAMPLE[usize::from(W::BITS > 16)];
    let all_runs = n.div_ceil(RUN);
    let n_runs = all_runs.min((n / 4).clamp(least, most).div_ceil(RUN));
    let (bases, differences, ends) = Default::default();
    let mut sample = Sample { bases, differences, ends, most_changed: 0, field };
    reserve(&mut sample.bases, (n_runs * RUN).min(n) as usize)?;
    reserve(&mut sample.differences, (n_runs * RUN).min(n) as usize)?;
    let mut buffers = [Vec::new(), Vec::new()];
    for i in 0..n_runs {
        let begin = (i * all_runs / n_runs) * RUN;
        let range = begin * unit..n.min(begin + RUN) * unit;
        let mut run = [&[][..]; 2];
        for ((run, buffer), source) in run.iter_mut().zip(&mut buffers).zip([source, base]) {
            *run = match source.bytes_at(range.clone()) {
                Some(bytes) => bytes,
                None => {
                    set_len(buffer, (range.end - range.start) as usize)?;
                    read_at(source, range.start, buffer)?;
                    buffer
                }
            };
        }
        sample.add(run[0], run[1]);
    }
    Ok(sample)
}
