//! The sums of the chains.

use crate::layout::TILE;

/// The number of weights of a row after which the 64 chains are summed: each chain has 64
/// additions.
pub(super) const CHUNK: usize = 64 * TILE;

/// Rows that meet the same chunk of x after each other. With several columns they become f32
/// together: in a chunk, 192 KiB of the level 2 cache.
pub(super) const ROWS: usize = 12;

/// Sums rows of numbers, each number with those at its place in the other rows, as balanced trees:
/// in the order of their arrival, neighbours first.
#[derive(Default)]
pub(super) struct Trees {
    /// Numbers in a row.
    n: usize,
    /// Sums of 2^i rows, one for each 1 bit in the count of all rows, the largest first.
    stack: Vec<f32>,
    count: u64,
}

impl Trees {
    /// Forgets everything, and expects rows of `n` numbers.
    pub(super) fn clear(&mut self, n: usize) {
        self.n = n;
        self.stack.clear();
        self.count = 0;
    }

    pub(super) fn push(&mut self, row: impl Iterator<Item = f32>) {
        self.extend(row);
        self.end_row();
    }

    /// A part of a row.
    pub(super) fn extend(&mut self, part: impl Iterator<Item = f32>) {
        self.stack.extend(part);
    }

    /// The parts since the row before were a row.
    pub(super) fn end_row(&mut self) {
        let mut count = self.count;
        while count & 1 == 1 {
            self.add_last();
            count >>= 1;
        }
        self.count += 1;
    }

    /// The sums. There must have been a row.
    pub(super) fn sums(&mut self) -> &[f32] {
        while self.stack.len() > self.n {
            self.add_last();
        }
        &self.stack
    }

    /// Adds the last row of the stack to the one before.
    fn add_last(&mut self) {
        let last = self.stack.len() - self.n;
        let (stack, last) = self.stack.split_at_mut(last);
        let before = stack.len() - self.n;
        stack[before..].iter_mut().zip(&*last).for_each(|(sum, last)| *sum += last);
        let len = stack.len();
        self.stack.truncate(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_balanced() {
        // Powers of two as depths: adding d and d gives d + 1 in the exponent, so the sum of n ones
        // is exact and its depth is what a recursive pairwise sum has.
        fn pairwise(values: &[f32]) -> f32 {
            if values.len() == 1 {
                return values[0];
            }
            let (first, second) = values.split_at(values.len() / 2);
            pairwise(first) + pairwise(second)
        }
        let values: Vec<f32> = (0..128).map(|i| 1.0 / (i as f32 + 3.7)).collect();
        let mut trees = Trees::default();
        for n in [1usize, 2, 4, 8, 16, 32, 64] {
            trees.clear(2);
            (0..n).for_each(|i| trees.push([values[i], values[n + i]].into_iter()));
            assert_eq!(trees.sums(), [pairwise(&values[..n]), pairwise(&values[n..2 * n])]);
        }
        trees.clear(1);
        values[..7].iter().for_each(|&v| trees.push([v].into_iter()));
        let v = &values;
        assert_eq!(trees.sums(), [((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + v[6])]);
    }
}
