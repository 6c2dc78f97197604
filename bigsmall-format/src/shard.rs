//! The `.bs` shard: prelude, payloads, index, trailer (FORMAT.md sections 4 and 5).

mod assemble;
mod bases;
mod layout;
mod read;
mod write;

pub use assemble::Assembler;
pub use bases::{Base, BaseRef};
pub(crate) use layout::{MAGIC, recognise};
pub use read::{Shard, ShardEntry};
pub use write::ShardWriter;
