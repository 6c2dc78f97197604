//! NEON, which every 64-bit ARM has. There is no gather: where a table does not fit registers, its
//! entries are loaded one by one.

use std::arch::aarch64::*;

use bigsmall_format::internal::Ahead;

use crate::arch::expand;
use crate::arch::fused::{decode_rest, fused_forms};
use crate::head::Head;
use crate::kernels::{EncodeJob, Job, Kernels, Planes};

mod decode;
mod encode;
mod states;

use decode::{decode_fused, decode_symbols};
use encode::encode;

/// The backend.
pub(crate) struct Neon;

#[target_feature(enable = "neon")]
fn expand(unit_bytes: usize, mask: &[u8], units: &mut [u8], begin: usize) {
    // SAFETY: 16 bytes can be read, and `n` of them written.
    let put = |packed: *const u8, order: &[u8; 16], to: *mut u8, n: usize| unsafe {
        let whole = vqtbl1q_u8(vld1q_u8(packed), vld1q_u8(order.as_ptr()));
        match n {
            16 => vst1q_u8(to, whole),
            _ => vst1_u8(to, vget_low_u8(whole)),
        }
    };
    // SAFETY: `put` does what it has to.
    unsafe { expand::expand(unit_bytes, mask, units, begin, put) }
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
        // SAFETY: every 64-bit ARM has the instructions.
        unsafe { expand(unit_bytes, mask, units, begin) }
    }

    fn encode(&self, head: &Head, jobs: &mut [EncodeJob<'_>]) {
        for job in jobs {
            // SAFETY: every 64-bit ARM has the instructions.
            unsafe { encode(head, job) }
        }
    }
}
