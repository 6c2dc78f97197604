//! Memory that comes fresh from the system.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed};

use crate::wire::reserve;
use crate::{Error, Result};

/// Buffers from this length on ask for huge pages.
const LARGE: usize = 8 << 20;

/// A buffer of `len` zeros, which is about to be filled. Nothing is written before it is needed; a
/// large one is in huge pages where Linux has some, one page fault for 2 MiB instead of 512.
///
/// # Errors
/// [`Rule::Memory`](crate::Rule::Memory) where there is no memory for it.
pub fn zeroed(len: u64) -> Result<Vec<u8>> {
    let too_much = || Error::memory(usize::try_from(len).unwrap_or(usize::MAX));
    let n = usize::try_from(len).map_err(|_| too_much())?;
    if n == 0 {
        return Ok(Vec::new());
    }
    let layout = Layout::array::<u8>(n).map_err(|_| too_much())?;
    // SAFETY: the layout is not empty.
    let bytes = unsafe { alloc_zeroed(layout) };
    if bytes.is_null() {
        return Err(too_much());
    }
    if n >= LARGE {
        ask_for_huge_pages(bytes, n);
    }
    // SAFETY: the global allocator gave `n` zeroed bytes, aligned as bytes are.
    Ok(unsafe { Vec::from_raw_parts(bytes, n, n) })
}

/// Reserves room for `more` bytes, which are about to be filled: in huge pages, as
/// [`zeroed`] says.
///
/// # Errors
/// [`Rule::Memory`](crate::Rule::Memory) where there is no memory for it.
pub(crate) fn reserve_large(bytes: &mut Vec<u8>, more: usize) -> Result<()> {
    reserve(bytes, more)?;
    if bytes.capacity() >= LARGE {
        ask_for_huge_pages(bytes.as_mut_ptr(), bytes.capacity());
    }
    Ok(())
}

/// Asks that what lies in whole huge pages among the `len` bytes at `begin` come from such.
/// Whatever comes of it, the bytes stay.
#[cfg(all(target_os = "linux", not(miri)))]
fn ask_for_huge_pages(begin: *mut u8, len: usize) {
    use std::ffi::{c_int, c_void};
    // Declared here: the crate rustix would bring three more into every program that uses the
    // codec, for this one call. `std` itself stands on the C library.
    unsafe extern "C" {
        fn madvise(begin: *mut c_void, len: usize, advice: c_int) -> c_int;
    }
    const MADV_HUGEPAGE: c_int = 14;
    const HUGE: usize = 2 << 20;
    let skip = begin.addr().next_multiple_of(HUGE) - begin.addr();
    let len = len.saturating_sub(skip) / HUGE * HUGE;
    // SAFETY: these pages belong to one allocation, and this advice changes nothing that a program
    // can see.
    unsafe { madvise(begin.wrapping_add(skip).cast(), len, MADV_HUGEPAGE) };
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn ask_for_huge_pages(_: *mut u8, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_length_is_zeros_that_can_be_written_and_given_back() {
        for len in [0, 1, 4095, LARGE - 1, LARGE, LARGE + 4097] {
            let mut bytes = zeroed(len as u64).unwrap();
            assert_eq!(bytes.len(), len);
            assert!(bytes.iter().all(|&b| b == 0));
            bytes.fill(1);
            bytes.push(2);
        }
    }

    #[test]
    fn a_large_vector_keeps_its_bytes_and_can_grow() {
        for more in [0, LARGE - 1, LARGE + 4097] {
            let mut bytes = vec![1, 2, 3];
            reserve_large(&mut bytes, more).unwrap();
            assert!(bytes.capacity() >= 3 + more);
            bytes.resize(3 + more, 4);
            bytes.push(5);
            assert_eq!(bytes[..3], [1, 2, 3]);
        }
    }

    #[test]
    fn too_much_is_an_error() {
        for len in [u64::MAX, i64::MAX as u64, 1 << 60] {
            assert_eq!(zeroed(len).unwrap_err().rule(), crate::Rule::Memory);
            let more = usize::try_from(len).unwrap_or(usize::MAX);
            let refused = reserve_large(&mut vec![1], more).unwrap_err();
            assert_eq!(refused.rule(), crate::Rule::Memory);
        }
    }
}
