//! NEON, which every 64-bit ARM has. There is no gather: where a table does not fit registers, its
//! entries are loaded one by one.

use std::arch::aarch64::*;

use bigsmall_format::internal::Ahead;

use crate::arch::expand::expand_units;
use crate::arch::fused::{decode_rest, fused_forms};
use crate::arch::tables::{UNPACK8, UNPACK16, UNPACK32, UNPACK64};
use crate::head::Head;
use crate::kernels::{EncodeJob, Job, Kernels, Planes};
use crate::zeros;

mod decode;
mod encode;
mod states;

use decode::{decode_fused, decode_symbols};
use encode::encode;

/// The backend.
pub(crate) struct Neon;

/// [`expand_units`] with 16 bytes and a `tbl` at a time.
///
/// # Safety
/// Those of `expand_units`.
#[target_feature(enable = "neon")]
unsafe fn expand<const BYTES: usize, const BITS: usize>(
    table: &[[u8; 16]],
    mask: &[u8],
    units: &mut [u8],
    others: usize,
) -> (usize, usize) {
    // SAFETY: as the caller promises; 16 bytes can be read, and as many as the units take written.
    unsafe {
        expand_units::<BYTES, BITS>(table, mask, units, others, |packed, order, to| {
            let whole = vqtbl1q_u8(vld1q_u8(packed), vld1q_u8(order.as_ptr()));
            match BYTES * BITS {
                16 => vst1q_u8(to, whole),
                _ => vst1_u8(to, vget_low_u8(whole)),
            }
        })
    }
}

impl Kernels for Neon {
    fn decode_symbols(&self, head: &Head, jobs: &mut [Job<'_>], symbols: &mut [&mut [u8]]) {
        let mut done = 0;
        if let (Ok(jobs), [a, b]) = (<&mut [_; 2]>::try_from(&mut *jobs), &mut *symbols) {
            let mut groups = [a, b].map(|s| s.as_chunks_mut().0.as_chunks_mut().0);
            // SAFETY: every 64-bit ARM has the instructions.
            done = unsafe { decode_symbols(head, jobs, &mut groups) };
        }
        decode_rest(head, jobs, symbols, done, |job, groups| {
            // SAFETY: as above.
            unsafe { decode_symbols(head, std::array::from_mut(job), &mut [groups]) }
        });
    }

    fn decode_fused(
        &self,
        head: &Head,
        jobs: &mut [Job<'_>],
        planes: &[Planes<'_>],
        units: &mut [&mut [u8]],
        ahead: Ahead<'_>,
    ) -> usize {
        // SAFETY: every 64-bit ARM has the instructions.
        unsafe { fused_forms!(decode_fused::<1, 2>(head, jobs, planes, units, ahead)) }
    }

    fn expand(&self, unit_bytes: usize, mask: &[u8], units: &mut [u8], begin: usize) {
        // SAFETY: every 64-bit ARM has the instructions; the tables have 2^8, 2^8, 2^4 and 2^2
        // entries for 8, 8, 4 and 2 units, which are 8 or 16 bytes.
        let (at, next) = unsafe {
            match unit_bytes {
                1 => expand::<1, 8>(&UNPACK8, mask, units, begin),
                2 => expand::<2, 8>(&UNPACK16, mask, units, begin),
                4 => expand::<4, 4>(&UNPACK32, mask, units, begin),
                _ => expand::<8, 2>(&UNPACK64, mask, units, begin),
            }
        };
        zeros::expand_rest(unit_bytes, mask, units, at, next);
    }

    fn encode(&self, head: &Head, jobs: &mut [EncodeJob<'_>]) {
        for job in jobs {
            // SAFETY: every 64-bit ARM has the instructions.
            unsafe { encode(head, job) }
        }
    }
}
