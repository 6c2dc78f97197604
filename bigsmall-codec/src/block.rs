//! One block: sections, exceptions, what the end states carry (FORMAT.md sections 7.4 and 7.5).
#![warn(clippy::unwrap_used)]

mod decode;
mod encode;
pub(crate) mod sections;

pub(crate) use decode::decode;
pub(crate) use encode::{Encoder, Scratch, pad4, write_states};
pub(crate) use sections::{Block, HEADER, MAX_GROUPS, Sections, Zeros, carried_len, read_states};
