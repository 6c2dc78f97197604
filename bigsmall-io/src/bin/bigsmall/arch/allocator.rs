//! An allocator that keeps some memory back, so that a job which runs out of it ends with an error
//! and not with an abort.
//!
//! Buffers are asked for with `try_reserve`, and their failure is an error
//! ([`Rule::Memory`](bigsmall_io::Rule::Memory)). But small things (a message, a thread's name, a
//! list of blocks) abort the process where there is no memory for them. The first of these
//! that is refused gets the reserve instead. From then on every buffer is refused, so that the
//! reserve lasts for the way out.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// What is kept back.
const RESERVE: Layout = match Layout::from_size_align(4 << 20, 8) {
    Ok(layout) => layout,
    Err(_) => unreachable!(),
};
/// Larger requests are buffers.
const SMALL: usize = 64 << 10;

/// Where the reserve lies; null when there is none.
static KEPT: AtomicPtr<u8> = AtomicPtr::new(null_mut());
/// Whether the reserve is in use.
static SPENT: AtomicBool = AtomicBool::new(false);

/// The system's allocator and a reserve.
pub(crate) struct WithReserve;

/// Takes the reserve from the system; whether there was as much. It is never touched, so it costs
/// addresses and no memory.
pub(crate) fn keep_reserve() -> bool {
    // SAFETY: the layout is not empty.
    let place = unsafe { System.alloc(RESERVE) };
    let before = KEPT.swap(place, Ordering::AcqRel);
    debug_assert!(before.is_null(), "called twice");
    !place.is_null()
}

/// What `request` gives for `size` bytes; where a small request is refused, it is made again with
/// the reserve given back to the system.
fn ask(size: usize, request: impl Fn() -> *mut u8) -> *mut u8 {
    if size > SMALL {
        return if SPENT.load(Ordering::Relaxed) { null_mut() } else { request() };
    }
    let place = request();
    if !place.is_null() {
        return place;
    }
    spend_reserve();
    // Also where another thread has just done so.
    request()
}

/// Gives the reserve back to the system: buffers are refused from now on.
fn spend_reserve() {
    SPENT.store(true, Ordering::Relaxed);
    let kept = KEPT.swap(null_mut(), Ordering::AcqRel);
    if !kept.is_null() {
        // SAFETY: `keep_reserve` allocated it with this layout, and the swap gives it to one thread
        // only.
        unsafe { System.dealloc(kept, RESERVE) };
    }
}

/// Whether there is no memory left but the reserve. If so, the reserve can be used afterwards.
pub(crate) fn is_exhausted() -> bool {
    let exhausted = Vec::<u8>::new().try_reserve_exact(2 * SMALL).is_err();
    if exhausted {
        spend_reserve();
    }
    exhausted
}

// SAFETY: every request is refused or goes to `System` as it came, a second time only if the first
// one gave nothing.
unsafe impl GlobalAlloc for WithReserve {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise, passed on.
        ask(layout.size(), || unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise, passed on.
        ask(layout.size(), || unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise, passed on; where there is no memory, `place` stays as it
        // is.
        ask(size, || unsafe { System.realloc(place, layout, size) })
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(place, layout) }
    }
}
