//! The kinds of delta blocks (FORMAT.md section 10.5).

pub(super) const KIND_RAW: u8 = 0;
pub(super) const KIND_CODED: u8 = 1;
pub(super) const KIND_SPARSE: u8 = 2;
pub(super) const KIND_SPARSE_BY_CLASS: u8 = 3;
