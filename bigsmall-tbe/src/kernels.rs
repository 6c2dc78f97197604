//! The arguments and results of kernels: the types that all backends share.

use bigsmall_format::internal::Ahead;
use bigsmall_format::{Backend, Dtype};

use crate::layout::{Head, Start, TILE};

/// Consecutive tiles of a validated block.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a> {
    pub(crate) head: Head,
    /// `bitmaps_per_tile` for each tile.
    pub(crate) bitmaps: &'a [[u8; 8]],
    /// One byte per weight; empty if the dtype has no byte plane.
    pub(crate) plane: &'a [u8],
    /// The escapes from the first tile on, at least as many as the tiles have.
    pub(crate) escapes: &'a [u8],
}

impl<'a> Tiles<'a> {
    /// The tiles after the first `n` tiles, which have `used` escapes.
    pub(crate) fn after(&self, n: usize, used: usize) -> Tiles<'a> {
        let bitmaps = n * self.head.bitmaps_per_tile();
        Tiles {
            head: self.head,
            bitmaps: self.bitmaps.get(bitmaps..).unwrap_or(&[]),
            plane: self.plane.get(n * TILE..).unwrap_or(&[]),
            escapes: self.escapes.get(used..).unwrap_or(&[]),
        }
    }
}

/// Whole tiles of a column x, in the order of the lanes.
#[derive(Clone, Copy)]
pub(crate) struct Column<'a> {
    pub(crate) x: &'a [f32],
    /// So many weights after those that are multiplied are the ones to prefetch.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    // the other kernels do not prefetch
    pub(crate) ahead: usize,
}

impl Column<'_> {
    /// The tiles after the first `n`.
    pub(crate) fn skip_tiles(self, n: usize) -> Self {
        Column { x: &self.x[n * TILE..], ..self }
    }

    /// The first `n` tiles.
    pub(crate) fn first_tiles(self, n: usize) -> Self {
        Column { x: &self.x[..n * TILE], ..self }
    }
}

/// The running sums for one row and one column: 64 chains of additions, where weight k belongs to
/// chain [`lane_of`]`(k % 64)`. This is the order of the weights of a tile after bytes are
/// unpacked, and it is the same for every kernel.
pub(crate) type Chains = [f32; TILE];

/// The chain of weight `k` of a tile: of the bits of k, 3 and 0 come first, then 5, 4, 2, 1.
pub(crate) const fn lane_of(k: usize) -> usize {
    (k >> 3 & 1) << 5 | (k & 1) << 4 | (k >> 4 & 3) << 2 | k >> 1 & 3
}

/// The weight of a tile whose chain is `lane`: the inverse of [`lane_of`].
pub(crate) const fn weight_of(lane: usize) -> usize {
    (lane >> 2 & 3) << 4 | (lane >> 5 & 1) << 3 | (lane & 3) << 1 | lane >> 4 & 1
}

/// Panics unless `tiles` has bitmaps and bytes for `n` tiles of weights that begin `shift` weights
/// after the first bitmap's.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) fn check_run(tiles: &Tiles<'_>, shift: u32, n: usize) {
    let per_tile = tiles.head.bitmaps_per_tile();
    assert!(shift < 64);
    assert!(tiles.bitmaps.len() >= (n + usize::from(shift != 0)) * per_tile || n == 0);
    assert!(tiles.plane.len() >= n * TILE || !tiles.head.fields.has_plane());
}

/// Bytes of a cell of nibbles, which has one tile: the codes of the weights 0 to 31 in the low
/// halves of 32 bytes and those of the weights 32 to 63 in the high halves; then the low bytes of
/// the weights.
pub(crate) const NIBBLE_CELL: usize = TILE / 2 + TILE;

/// Consecutive bf16 weights as nibbles, whatever their escapes are.
#[derive(Clone, Copy)]
pub(crate) struct Nibbles<'a> {
    /// The high bytes that the codes stand for.
    pub(crate) high: &'a [u8; 16],
    pub(crate) cells: &'a [[u8; NIBBLE_CELL]],
}

/// Bytes of a cell of pairs, which has two tiles: 64 codes of seven bits, from the lowest bit of
/// the first byte on; then the low bytes of the weights. Code i has the high bytes of weight i of
/// both tiles.
pub(crate) const PAIR_CELL: usize = 7 * TILE / 8 + 2 * TILE;

/// Consecutive bf16 weights as pairs, whatever their escapes are.
#[derive(Clone, Copy)]
pub(crate) struct Pairs<'a> {
    /// The high bytes that the numbers of [`PAIRS`] stand for.
    pub(crate) high: &'a [u8; 16],
    pub(crate) cells: &'a [[u8; PAIR_CELL]],
}

/// The numbers of the high bytes that a code stands for: of the weight in the first tile, and of
/// the one in the second. These are the pairs with the smallest sums, up to 14 and some of 15: a
/// high byte is about half as frequent as the one before it, so pairs with equal sums are equally
/// frequent.
pub(crate) static PAIRS: [[u8; 128]; 2] = {
    let mut pairs = [[0; 128]; 2];
    let (mut code, mut sum) = (0, 0);
    while code < 128 {
        let mut first = 0;
        while first <= sum && code < 128 {
            pairs[0][code] = first;
            pairs[1][code] = sum - first;
            code += 1;
            first += 1;
        }
        sum += 1;
    }
    pairs
};

/// A weight whose high byte its code does not give: its place in the row and, in the lowest byte,
/// the high byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Escape(u32);

impl Escape {
    /// The places that there are.
    pub(crate) const MOST_PLACES: usize = 1 << 24;

    pub(crate) fn new(place: usize, high: u8) -> Self {
        debug_assert!(place < Self::MOST_PLACES);
        Escape((place as u32) << 8 | u32::from(high))
    }

    #[inline(always)]
    pub(crate) fn place(self) -> usize {
        (self.0 >> 8) as usize
    }

    #[inline(always)]
    pub(crate) fn high(self) -> u8 {
        self.0 as u8
    }
}

/// Chains of a group: the floats of a tile that lie together in [`Panels`].
pub(crate) const GROUP_LANES: usize = 16;
/// The number of groups.
pub(crate) const GROUPS: usize = TILE / GROUP_LANES;

/// `n` rows of weights, or `n` columns of x, of a chunk, in f32, for products with several columns:
/// in the order of the lanes, group after group. In a group, one row or column follows the other,
/// each with its floats of all tiles. So the floats that are multiplied together lie close
/// together.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub(crate) floats: &'a [f32],
    pub(crate) n: usize,
    /// Tiles of the chunk.
    pub(crate) tiles: usize,
}

impl Panels<'_> {
    /// The length of `n` rows or columns of so many tiles.
    pub(crate) const fn len_of(n: usize, tiles: usize) -> usize {
        n * tiles * TILE
    }

    /// Where the floats of a group of the row or column `i` begin.
    pub(crate) const fn offset(n: usize, tiles: usize, group: usize, i: usize) -> usize {
        (group * n + i) * tiles * GROUP_LANES
    }
}

/// Cache lines to prefetch in every second tile: about as many as two tiles of bf16 with three
/// bitmaps take. In a block with four bitmaps, the last lines are not prefetched here.
#[cfg(target_arch = "x86_64")]
pub(crate) const LINES: usize = 3;

pub(crate) type CountEscapes =
    fn(&Head, bitmaps: &[[u8; 8]], starts: &[Start]) -> Result<usize, usize>;
pub(crate) type SumOfPairs = fn(&Pairs<'_>, &[Escape], first: usize, Column<'_>) -> f32;
pub(crate) type DotTbe = fn(&Tiles<'_>, shift: u32, Column<'_>, &mut Chains) -> usize;

/// The kernels of one backend. A table exists only if the machine supports the instructions, so its
/// functions are safe to call.
pub(crate) struct Kernels {
    pub(crate) backend: Backend,
    /// Compares the escape starts with the escape codes. Returns the number of escapes, or the
    /// first wrong group.
    pub(crate) count_escapes: CountEscapes,
    /// Decodes tiles to `out`, which holds whole values. The last tile may be longer than the rest
    /// of
    /// `out`. May prefetch later input meanwhile.
    pub(crate) decode: fn(&Tiles<'_>, out: &mut [u8], &mut Ahead<'_>),
    /// Adds the products of weights with `x`, whole tiles in the order of the lanes, to the
    /// chains. The weights begin `shift` weights after the first bit of the bitmaps; byte plane and
    /// escapes begin with them. Returns the number of their escapes. `None` if decoding to a buffer
    /// first is as fast.
    pub(crate) dot_tbe: Option<DotTbe>,
    /// The same with plain weights, whole tiles.
    pub(crate) dot_plain: fn(Dtype, weights: &[u8], Column<'_>, &mut Chains),
    /// The same with weights as nibbles, without escapes.
    pub(crate) dot_nibbles: fn(&Nibbles<'_>, Column<'_>, &mut Chains),
    /// The sum of all chains of the products of weights as pairs, with their escapes; the first
    /// weight is at place `first` of the row. `None` if unpacking to a buffer first is as fast.
    pub(crate) sum_of_pairs: Option<SumOfPairs>,
    /// Writes weights that are stored as nibbles as plain bf16 weights, 128 bytes for each cell,
    /// with any high bytes for escapes.
    pub(crate) unpack_nibbles: fn(&Nibbles<'_>, out: &mut [u8]),
    /// The same for pairs, 256 bytes for each cell.
    pub(crate) unpack_pairs: fn(&Pairs<'_>, out: &mut [u8]),
    /// Takes the sum of the chains, as a tree: each step adds the second half to the first. Leaves
    /// zeros, in vectors as long as those that most products load: shorter ones would have to reach
    /// the cache first.
    pub(crate) take_sum: fn(&mut Chains) -> f32,
    /// Writes plain weights, whole tiles, as row `row` of `n` rows in the form of [`Panels`].
    pub(crate) widen: fn(Dtype, weights: &[u8], n: usize, row: usize, out: &mut [f32]),
    /// The products of all rows `w` with all columns `x`: the chains of row r and column c go to
    /// `chains[r * x.n + c]`.
    pub(crate) multiply: fn(w: &Panels<'_>, x: &Panels<'_>, chains: &mut [Chains]),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_a_permutation() {
        (0..TILE).for_each(|k| assert_eq!(weight_of(lane_of(k)), k));
        (0..TILE).for_each(|lane| assert_eq!(lane_of(weight_of(lane)), lane));
    }
}
