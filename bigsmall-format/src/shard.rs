//! The `.bs` shard: prelude, payloads, index, trailer (FORMAT.md sections 4 and 5).

mod assemble;
mod read;
mod write;

pub use assemble::Assembler;
pub use read::{Shard, ShardEntry};
pub use write::ShardWriter;

use crate::Rule;

/// First and last bytes of a shard. The first byte is no ASCII, and the line ends show a transfer
/// in text mode.
const MAGIC: [u8; 8] = *b"\x89bsmall\n";
/// The version that this crate writes, and the newest that it reads.
const VERSION: u16 = 1;
/// Magic, version, six reserved bytes.
const PRELUDE_LEN: u64 = 16;
/// Index offset and length, feature bits, version, reserved, checksum, magic.
const TRAILER_LEN: u64 = 48;
/// The trailer's bytes that its checksum covers.
const TRAILER_CHECKED: usize = 32;
/// The index before the stored header.
const INDEX_FIXED: usize = 48;
/// An index record before its optional fields.
const RECORD_FIXED: usize = 32;
/// Index flag: the stored header was made by us, there is no original file to restore byte by byte.
const INDEX_SYNTHESISED: u32 = 1;
/// Record flag: the payload is that of an earlier tensor.
const RECORD_SHARED: u8 = 1;
/// Record flag: an MD5 of the original bytes follows.
const RECORD_MD5: u8 = 2;

/// The prelude of a shard.
fn prelude() -> [u8; PRELUDE_LEN as usize] {
    let mut out = [0; PRELUDE_LEN as usize];
    out[..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out
}

/// What a file is that begins with `start` and is not what was asked for.
pub(crate) fn recognise(start: &[u8]) -> Option<Rule> {
    start.starts_with(b"BGSM").then_some(Rule::PythonPackageFile)
}
