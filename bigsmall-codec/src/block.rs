//! One block: sections, exceptions, what the end states carry (FORMAT.md sections 7.4 and 7.5).
#![warn(clippy::unwrap_used)]

mod decode;
mod encode;
mod sections;

pub(crate) use decode::decode;
pub(crate) use encode::{Encoder, Scratch};
pub(crate) use sections::{Block, Sections};

use crate::kernels::{LANES, STATE_MIN};
use crate::planes::GROUP;

const KIND_RAW: u8 = 0;
const KIND_CONSTANT: u8 = 1;
const KIND_ANS: u8 = 2;
/// Kind, Rice parameter of the exceptions, their number, number of words.
pub(crate) const HEADER: usize = 8;
/// Bytes of a constant block: small, but large enough that a small file cannot swell without bound.
const CONSTANT_LEN: usize = 64;
/// Bytes that the end states carry, at most: 16 bits a lane.
const CARRIED: usize = 2 * LANES;

/// Groups of a full block.
pub(crate) const MAX_GROUPS: usize = bigsmall_format::BLOCK_UNITS / GROUP;

pub(crate) fn carried_len(residual_len: usize) -> usize {
    residual_len.min(CARRIED)
}

fn is_constant(units: &[u8], unit_bytes: usize) -> bool {
    units.len() > unit_bytes && units[unit_bytes..] == units[..units.len() - unit_bytes]
}
