//! Finds tensors that have the same bytes.

use std::collections::HashMap;

use bigsmall_format::internal::{read_at, set_len, xxh3};
use bigsmall_format::{BaseTensor, Header, ReadAt};

use crate::base::matches::{Matches, sample};
use crate::error::{Context as _, Result};
use crate::stage::chunk::CHUNK;

/// Which tensors have the bytes of an earlier one.
///
/// They were compared before the file was compressed, and a file may change meanwhile. So the bytes
/// that are read later, to be encoded and hashed, are compared again, by their SHA-256.
pub(crate) struct Shared {
    owners: Vec<Option<u32>>,
    owned: Vec<bool>,
}

impl Shared {
    /// The earlier tensor that has the bytes of `tensor`, if any.
    pub(crate) fn owner(&self, tensor: usize) -> Option<usize> {
        self.owners[tensor].map(|owner| owner as usize)
    }

    /// Whether another tensor has the bytes of `tensor`, an earlier or a later one.
    pub(crate) fn is_one_of_several(&self, tensor: usize) -> bool {
        self.owners[tensor].is_some() || self.owned[tensor]
    }
}

/// Finds the tensors that have the bytes of an earlier one.
///
/// Linear in the bytes: a tensor is compared with at most one other, the first with the same dtype,
/// length and sample.
pub(crate) fn find_shared(
    source: &dyn ReadAt,
    data_at: u64,
    header: &Header,
    matches: &Matches,
) -> Result<Shared> {
    let tensors = header.tensors();
    let mut alike: HashMap<_, u32> = HashMap::new();
    for spec in tensors.iter().filter(|s| s.byte_len() > 0) {
        *alike.entry((spec.dtype(), spec.byte_len())).or_default() += 1;
    }
    // By the hash of dtype, length and sample.
    let mut first: HashMap<u64, u32> = HashMap::new();
    let mut shared =
        Shared { owners: vec![None; tensors.len()], owned: vec![false; tensors.len()] };
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (index, spec) in tensors.iter().enumerate() {
        if alike.get(&(spec.dtype(), spec.byte_len())).is_none_or(|&n| n < 2) {
            continue;
        }
        let at = data_at + header.data_range(index).start;
        sample(source, at, spec.byte_len(), &mut a).in_tensor(spec.name())?;
        a.extend_from_slice(spec.dtype().name().as_bytes());
        a.extend_from_slice(&spec.byte_len().to_le_bytes());
        let owner = *first.entry(xxh3(&a)).or_insert(index as u32) as usize;
        let other = &tensors[owner];
        if owner == index || (other.dtype(), other.byte_len()) != (spec.dtype(), spec.byte_len()) {
            continue;
        }
        // If the owner is that of its base, the other one is, too.
        let suits = matches
            .of(owner)
            .is_none_or(|base| BaseTensor::<&[u8]>::suits(spec, matches.spec(base)));
        let other = data_at + header.data_range(owner).start;
        if suits && equal(source, at, other, spec.byte_len(), &mut a, &mut b)? {
            shared.owners[index] = Some(owner as u32);
            shared.owned[owner] = true;
        }
    }
    Ok(shared)
}

fn equal(
    source: &dyn ReadAt,
    a: u64,
    b: u64,
    len: u64,
    left: &mut Vec<u8>,
    right: &mut Vec<u8>,
) -> Result<bool> {
    let mut done = 0;
    while done < len {
        let n = CHUNK.min(len - done);
        set_len(left, n as usize)?;
        set_len(right, n as usize)?;
        read_at(source, a + done, left)?;
        read_at(source, b + done, right)?;
        if left != right {
            return Ok(false);
        }
        done += n;
    }
    Ok(true)
}
