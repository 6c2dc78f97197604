//! The constants of the shard's layout (FORMAT.md sections 4 and 5).

use crate::Rule;

/// First and last bytes of a shard. The first byte is no ASCII, and the line ends show a transfer
/// in text mode.
pub(crate) const MAGIC: [u8; 8] = *b"\x89bsmall\n";
/// The version that this crate writes, and the newest that it reads.
pub(crate) const VERSION: u16 = 1;
/// Magic, version, six reserved bytes.
pub(crate) const PRELUDE_LEN: u64 = 16;
/// Index offset and length, feature bits, version, reserved, checksum, magic.
pub(crate) const TRAILER_LEN: u64 = 48;
/// The trailer's bytes that its checksum covers.
pub(crate) const TRAILER_CHECKED: usize = 32;
/// The index before the stored header.
pub(crate) const INDEX_FIXED: usize = 48;
/// An index record before its optional fields.
pub(crate) const RECORD_FIXED: usize = 32;
/// Index flag: the stored header was made by us, there is no original file to restore byte by byte.
pub(crate) const INDEX_SYNTHESISED: u32 = 1;
/// Record flag: the payload is that of an earlier tensor.
pub(crate) const RECORD_SHARED: u8 = 1;
/// Record flag: an MD5 of the original bytes follows.
pub(crate) const RECORD_MD5: u8 = 2;
/// Record flag: the tensor has a base.
pub(crate) const RECORD_BASE: u8 = 4;
/// Record flag: the tensor is its base. There is no payload.
pub(crate) const RECORD_INHERITED: u8 = 8;
/// Record flag: the base's tensor has another name.
pub(crate) const RECORD_RENAMED: u8 = 16;
/// Required feature: the index has a section of bases.
pub(crate) const FEATURE_BASES: u32 = 1;
/// An entry of the section of bases before its hint.
pub(crate) const BASE_FIXED: usize = 40;

/// The prelude of a shard.
pub(crate) fn prelude() -> [u8; PRELUDE_LEN as usize] {
    let mut out = [0; PRELUDE_LEN as usize];
    out[..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out
}

/// What a file is that begins with `start` and is not what was asked for.
pub(crate) fn recognise(start: &[u8]) -> Option<Rule> {
    start.starts_with(b"BGSM").then_some(Rule::PythonPackageFile)
}
