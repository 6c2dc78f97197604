//! The columns x in the order in which kernels read them.

use super::sums::CHUNK;
use crate::kernels::{GROUP_LANES, GROUPS, Panels, lane_of, weight_of};
use crate::layout::TILE;

/// Copies one column, with the elements of each tile in the order of the lanes, and zeros after the
/// last element.
pub(super) fn lanes(x: &[f32], out: &mut [f32]) {
    for (x, out) in x.chunks(TILE).zip(out.as_chunks_mut::<TILE>().0) {
        *out = [0.0; TILE];
        for (i, &x) in x.iter().enumerate() {
            out[lane_of(i)] = x;
        }
    }
}

/// The columns that are multiplied together: their floats of a chunk fit the level 2 cache.
pub(super) const COLUMNS: usize = 64;

/// Copies all columns as [`Panels`]: chunk after chunk, each in groups of [`COLUMNS`] columns, with
/// zeros after the last element of each column.
pub(super) fn panels(x: &[f32], k: usize, out: &mut [f32]) {
    let batch = x.len() / k;
    let mut rest = out;
    for begin in (0..k).step_by(CHUNK) {
        let len = (k - begin).min(CHUNK);
        let tiles = len.div_ceil(TILE);
        for first in (0..batch).step_by(COLUMNS) {
            let n = (batch - first).min(COLUMNS);
            let (panels, after) = rest.split_at_mut(Panels::len_of(n, tiles));
            rest = after;
            for i in 0..n {
                let x = &x[(first + i) * k + begin..][..len];
                for (t, x) in x.chunks(TILE).enumerate() {
                    let mut tile = [0.0; TILE];
                    tile[..x.len()].copy_from_slice(x);
                    for group in 0..GROUPS {
                        let at = Panels::offset(n, tiles, group, i) + t * GROUP_LANES;
                        for (lane, out) in panels[at..][..GROUP_LANES].iter_mut().enumerate() {
                            *out = tile[weight_of(group * GROUP_LANES + lane)];
                        }
                    }
                }
            }
        }
    }
}
