//! Finds tensors that have the same bytes.

use std::collections::HashMap;

use bigsmall_format::internal::{read_at, xxh3};
use bigsmall_format::{Header, ReadAt};

use crate::error::{Context as _, Result};
use crate::stage::chunk::CHUNK;
use crate::stage::pool::set_len;

/// For each tensor the earlier one with the same bytes, if any.
///
/// Linear in the bytes: a tensor is compared with at most one other, the first with the same dtype,
/// length and sample.
pub(crate) fn find_shared(
    source: &dyn ReadAt,
    data_at: u64,
    header: &Header,
) -> Result<Vec<Option<usize>>> {
    let tensors = header.tensors();
    let mut alike: HashMap<_, u32> = HashMap::new();
    for spec in tensors.iter().filter(|s| s.byte_len() > 0) {
        *alike.entry((spec.dtype(), spec.byte_len())).or_default() += 1;
    }
    let mut first: HashMap<_, usize> = HashMap::new();
    let mut shared = vec![None; tensors.len()];
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (index, spec) in tensors.iter().enumerate() {
        if alike.get(&(spec.dtype(), spec.byte_len())).is_none_or(|&n| n < 2) {
            continue;
        }
        let at = data_at + header.data_range(index).start;
        // Five samples of 4 KiB. They cover a small tensor as a whole.
        let sample = 4096.min(spec.byte_len());
        let step = (spec.byte_len() - sample) / 4;
        set_len(&mut a, (5 * sample) as usize)?;
        for (i, piece) in a.chunks_mut(sample as usize).enumerate() {
            read_at(source, at + i as u64 * step, piece).in_tensor(spec.name())?;
        }
        let key = (spec.dtype(), spec.byte_len(), xxh3(&a));
        match first.get(&key) {
            None => {
                first.insert(key, index);
            }
            Some(&owner) => {
                let other = data_at + header.data_range(owner).start;
                if equal(source, at, other, spec.byte_len(), &mut a, &mut b)? {
                    shared[index] = Some(owner);
                }
            }
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
