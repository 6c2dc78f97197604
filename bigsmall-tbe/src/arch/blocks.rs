//! Products of several rows with several columns, written once for all vector types.
//!
//! A block is a few rows times a few columns of one vector of chains each: their sums stay in
//! registers, and every vector that is loaded is used several times. Chains are independent of
//! each other, so the order in which blocks are computed does not change a bit.
#![allow(unsafe_code)]

use crate::kernels::{Chains, GROUP_LANES, GROUPS, Panels};
use crate::layout::TILE;

/// A vector of `N` floats, where `N` divides [`GROUP_LANES`].
pub(crate) trait Lanes: Copy {
    const N: usize;

    /// # Safety
    /// This and the other functions: the machine must have the instructions.
    unsafe fn zero() -> Self;

    /// # Safety
    /// `from` must be valid for reads of `N` floats.
    unsafe fn load(from: *const f32) -> Self;

    /// `self * x + sum`.
    ///
    /// # Safety
    /// As for [`zero`](Self::zero).
    unsafe fn mul_add(self, x: Self, sum: Self) -> Self;

    /// # Safety
    /// `to` must be valid for writes of `N` floats.
    unsafe fn store(self, to: *mut f32);
}

/// The kernel `multiply`, in blocks of `R` rows and `C` columns.
///
/// # Safety
/// The machine must have the instructions of `L`.
#[inline(always)]
pub(crate) unsafe fn multiply<L: Lanes, const R: usize, const C: usize>(
    w: &Panels<'_>,
    x: &Panels<'_>,
    chains: &mut [Chains],
) {
    let tiles = w.tiles;
    assert!(x.tiles == tiles && chains.len() >= w.n * x.n);
    assert!(w.floats.len() >= Panels::len_of(w.n, tiles));
    assert!(x.floats.len() >= Panels::len_of(x.n, tiles));
    for group in 0..GROUPS {
        let mut column = 0;
        while column < x.n {
            let columns = match x.n - column {
                left if left >= C => C,
                left if left >= 2 => 2,
                _ => 1,
            };
            let mut row = 0;
            while row < w.n {
                let rows = if w.n - row >= R { R } else { 1 };
                let place = Place { w, x, chains: &mut *chains, group, row, column };
                // SAFETY: there are as many rows and columns; the lengths were checked above.
                unsafe {
                    match (rows == R, columns) {
                        (true, 1) => block::<L, R, 1>(place),
                        (true, 2) => block::<L, R, 2>(place),
                        (true, _) => block::<L, R, C>(place),
                        (false, 1) => block::<L, 1, 1>(place),
                        (false, 2) => block::<L, 1, 2>(place),
                        (false, _) => block::<L, 1, C>(place),
                    }
                }
                row += rows;
            }
            column += columns;
        }
    }
}

/// Where a block begins.
struct Place<'a, 'b> {
    w: &'a Panels<'b>,
    x: &'a Panels<'b>,
    chains: &'a mut [Chains],
    group: usize,
    row: usize,
    column: usize,
}

/// # Safety
/// There must be `R` rows and `C` columns from the place on, and all of their floats and chains.
/// The machine must have the instructions of `L`.
#[inline(always)]
unsafe fn block<L: Lanes, const R: usize, const C: usize>(place: Place<'_, '_>) {
    let Place { w, x, chains, group, row, column } = place;
    let tiles = w.tiles;
    // From one row or column to the next.
    let next = tiles * GROUP_LANES;
    for part in (0..GROUP_LANES).step_by(L::N) {
        // SAFETY: the caller promises the floats of R rows and C columns, and R rows of chains,
        // each of `x.n`.
        unsafe {
            let mut w = w.floats.as_ptr().add(Panels::offset(w.n, tiles, group, row) + part);
            let mut from = x.floats.as_ptr().add(Panels::offset(x.n, tiles, group, column) + part);
            let mut sums = [[L::zero(); C]; R];
            for _ in 0..tiles {
                let mut weights = [L::zero(); R];
                for (r, weights) in weights.iter_mut().enumerate() {
                    *weights = L::load(w.add(r * next));
                }
                for c in 0..C {
                    let x = L::load(from.add(c * next));
                    for (weights, sums) in weights.iter().zip(&mut sums) {
                        sums[c] = weights.mul_add(x, sums[c]);
                    }
                }
                w = w.wrapping_add(GROUP_LANES);
                from = from.wrapping_add(GROUP_LANES);
            }
            for (r, sums) in sums.iter().enumerate() {
                for (c, sum) in sums.iter().enumerate() {
                    let chains = chains.as_mut_ptr().add((row + r) * x.n + column + c);
                    sum.store(chains.cast::<f32>().add(group * GROUP_LANES + part));
                }
            }
        }
    }
}

/// Four floats without intrinsics, multiplied, then added.
#[derive(Clone, Copy)]
pub(crate) struct Four([f32; 4]);

impl Lanes for Four {
    const N: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Four([0.0; 4])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller promises.
        Four(unsafe { from.cast::<[f32; 4]>().read() })
    }

    #[inline(always)]
    unsafe fn mul_add(self, x: Self, sum: Self) -> Self {
        Four(std::array::from_fn(|i| self.0[i] * x.0[i] + sum.0[i]))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { to.cast::<[f32; 4]>().write(self.0) };
    }
}

const _: () = assert!(GROUPS * GROUP_LANES == TILE);
