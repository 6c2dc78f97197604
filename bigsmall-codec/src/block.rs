//! One block: sections, exceptions, what the end states carry (FORMAT.md sections 7.4 and 7.5).
#![warn(clippy::unwrap_used)]

mod decode;
mod encode;
pub(crate) mod sections;

pub(crate) use decode::{decode, finish_states};
pub(crate) use encode::{Encoder, Scratch, pad4, states_with, write_raw, write_states};
pub(crate) use sections::{
    Block, CARRIED, Cut, HEADER, MAX_GROUPS, Ordered, Sections, Zeros, carried_len, read_raw,
};
