//! The bases of a shard: the section of the index, and what a record says about the tensor's base
//! (FORMAT.md section 10.1).
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::layout::BASE_FIXED;
use crate::wire::{Cursor, pad8, room_for};
use crate::{Error, Limits, Result, Rule};

/// A safetensors file that tensors of a shard are stored as differences from. It is named by its
/// content, and may be given as that file or as any shard that restores to it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Base {
    /// SHA-256 of the safetensors file ([`Shard::sha256`](crate::Shard::sha256) of a shard).
    pub sha256: [u8; 32],
    /// How many bases the base had behind it when this was written: 0 for a safetensors file or a
    /// shard without bases, else its [`Shard::base_depth`](crate::Shard::base_depth).
    pub depth: u32,
    /// Where the base was when this was written, for people. It is never trusted, and may be empty.
    pub hint: String,
}

impl Base {
    /// The safetensors file of that SHA-256.
    #[must_use]
    pub fn new(sha256: [u8; 32]) -> Base {
        Base { sha256, depth: 0, hint: String::new() }
    }

    /// Sets [`depth`](Self#structfield.depth).
    #[must_use]
    pub fn depth(mut self, depth: u32) -> Base {
        self.depth = depth;
        self
    }

    /// Sets [`hint`](Self#structfield.hint).
    #[must_use]
    pub fn hint(mut self, hint: &str) -> Base {
        self.hint = hint.into();
        self
    }
}

/// The tensor of a base that a tensor is stored as differences from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BaseRef<'a> {
    /// The base, by its place in [`Shard::bases`](crate::Shard::bases).
    pub base: usize,
    /// The name of its tensor.
    pub name: &'a str,
}

impl<'a> BaseRef<'a> {
    /// The tensor `name` of the base with that place.
    #[must_use]
    pub fn new(base: usize, name: &'a str) -> BaseRef<'a> {
        BaseRef { base, name }
    }
}

/// Writes the section.
pub(crate) fn write(bases: &[Base], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bases.len() as u64).to_le_bytes());
    for base in bases {
        out.extend_from_slice(&base.sha256);
        out.extend_from_slice(&base.depth.to_le_bytes());
        out.extend_from_slice(&(base.hint.len() as u32).to_le_bytes());
        out.extend_from_slice(base.hint.as_bytes());
        pad8(out);
    }
}

/// Reads the section.
pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<Vec<Base>> {
    let at = cursor.position();
    let wrong = |expected: String| Error::new(Rule::BaseSection).at(at).expected(expected);
    let count = cursor.u64()?;
    // Refused before memory is reserved for them.
    let most = cursor.remaining().checked_div(BASE_FIXED).unwrap_or(0);
    if count == 0 || count > most as u64 {
        return Err(wrong(format!("1 to {most} bases")).found(count));
    }
    let mut bases = room_for(count as usize)?;
    for _ in 0..count {
        let sha256 = cursor.bytes::<32>()?;
        let depth = cursor.u32()?;
        let hint_len = cursor.u32()? as usize;
        let hint = std::str::from_utf8(cursor.take(hint_len)?);
        let hint = hint.map_err(|_| wrong("a hint of UTF-8".into()))?.into();
        cursor.align8()?;
        bases.push(Base { sha256, depth, hint });
    }
    Ok(bases)
}

/// Compares the depth of a shard with these bases with the limit.
pub(crate) fn check_depth(bases: &[Base], limits: &Limits) -> Result<()> {
    let depth = depth(bases);
    if depth > limits.max_base_depth {
        return Err(Error::new(Rule::BaseDepth)
            .expected(format!("at most {} bases one behind the other", limits.max_base_depth))
            .found(depth));
    }
    Ok(())
}

/// The depth of a shard with these bases.
pub(crate) fn depth(bases: &[Base]) -> u32 {
    bases.iter().map(|base| base.depth.saturating_add(1)).max().unwrap_or(0)
}
