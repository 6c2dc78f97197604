//! The arguments and results of kernels: the types that all backends share.

use bigsmall_format::Backend;
use bigsmall_format::internal::Ahead;

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

/// The running sums for one row and one column: 64 chains of additions, where weight k belongs to
/// chain [`lane_of`]`(k % 64)`. This is the order of the weights of a tile after bytes are
/// unpacked, and it is the same for every kernel.
pub(crate) type Chains = [f32; TILE];

/// The chain of weight `k` of a tile: of the bits of k, 3 and 0 come first, then 5, 4, 2, 1.
pub(crate) const fn lane_of(k: usize) -> usize {
    (k >> 3 & 1) << 5 | (k & 1) << 4 | (k >> 4 & 3) << 2 | k >> 1 & 3
}

/// Panics unless `tiles` has bitmaps and bytes for `n` tiles of bf16 weights that begin `shift`
/// weights after the first bitmap's.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) fn check_run(tiles: &Tiles<'_>, shift: u32, n: usize) {
    let width = tiles.head.width.bits();
    assert!(tiles.head.bitmaps_per_tile() == width && shift < 64);
    assert!(tiles.bitmaps.len() >= (n + usize::from(shift != 0)) * width || n == 0);
    assert!(tiles.plane.len() >= n * TILE);
}

/// Panics unless `x` has `columns` columns of `n` tiles, `stride` floats apart.
pub(crate) fn check_dot(n: usize, x: &[f32], stride: usize, columns: usize) {
    assert!(columns == 0 || x.len() >= (columns - 1) * stride + n * TILE);
}

/// Cache lines to prefetch in every second tile: about as many as two tiles of bf16 with three
/// bitmaps take. In a block with four bitmaps, the last lines are not prefetched here.
#[cfg(target_arch = "x86_64")]
pub(crate) const LINES: usize = 3;

pub(crate) type CountEscapes =
    fn(&Head, bitmaps: &[[u8; 8]], starts: &[Start]) -> Result<usize, usize>;
pub(crate) type DotTbe = fn(&Tiles<'_>, shift: u32, x: &[f32], &mut Chains) -> usize;

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
    /// Adds the products of bf16 weights with `x`, whole tiles in the order of the lanes, to the
    /// chains. The weights begin `shift` weights after the first bit of the bitmaps; byte plane and
    /// escapes begin with them. Returns the number of their escapes. `None` if decoding to a buffer
    /// first is as fast.
    pub(crate) dot_tbe: Option<DotTbe>,
    /// The same with plain bf16 weights, whole tiles of 128 bytes, for several columns of x,
    /// `stride` floats apart.
    pub(crate) dot_bf16: fn(weights: &[u8], x: &[f32], stride: usize, &mut [Chains]),
    /// The same with f32 weights, in the order of the lanes like `x`.
    pub(crate) dot_f32: fn(weights: &[f32], x: &[f32], &mut Chains),
}
