//! A library for `LD_PRELOAD` that stands between a program and the kernel and makes reading,
//! writing and syncing as bad as they are allowed to be. What it does is said by environment
//! variables:
//!
//! - `FLAKY_SHORT=1`: one byte a call.
//! - `FLAKY_EINTR=1`: every second call is interrupted.
//! - `FLAKY_READ_FAILS=N`, `FLAKY_WRITE_FAILS=N`, `FLAKY_SYNC_FAILS=N`: from the N-th positioned
//!   read, write to a file or sync on, EIO, ENOSPC, EIO.
//!
//! Compiled by the test that uses it; no part of any package.
#![allow(unsafe_code, missing_docs)]

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn __errno_location() -> *mut c_int;
    fn getenv(name: *const c_char) -> *const c_char;
    fn atol(text: *const c_char) -> c_long;
}

/// The kernel's numbers of read, pread64, write, fsync and fdatasync.
#[cfg(target_arch = "x86_64")]
const NUMBERS: [c_long; 5] = [0, 17, 1, 74, 75];
#[cfg(target_arch = "aarch64")]
const NUMBERS: [c_long; 5] = [63, 67, 64, 82, 83];
const EINTR: c_int = 4;
const EIO: c_int = 5;
const ENOSPC: c_int = 28;

/// The number that the environment gives for `name`, or `None`.
fn setting(name: &CStr) -> Option<usize> {
    // SAFETY: both take and return C strings; the environment is not changed while the program
    // runs.
    unsafe {
        let text = getenv(name.as_ptr());
        (!text.is_null()).then(|| atol(text) as usize)
    }
}

fn fail(errno: c_int) -> isize {
    // SAFETY: the address of this thread's errno is always valid.
    unsafe { *__errno_location() = errno };
    -1
}

fn interrupted() -> bool {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    setting(c"FLAKY_EINTR").is_some() && CALLS.fetch_add(1, Ordering::Relaxed) % 2 == 0
}

/// Whether this is the N-th call or a later one.
fn fails(name: &CStr, calls: &AtomicUsize) -> bool {
    setting(name).is_some_and(|n| calls.fetch_add(1, Ordering::Relaxed) >= n)
}

fn shortened(n: usize) -> usize {
    if setting(c"FLAKY_SHORT").is_some() { n.min(1) } else { n }
}

#[unsafe(no_mangle)]
pub extern "C" fn read(fd: c_int, buf: *mut c_void, n: usize) -> isize {
    if interrupted() {
        return fail(EINTR);
    }
    // SAFETY: the caller's arguments; fewer bytes than it has room for.
    unsafe { syscall(NUMBERS[0], fd, buf, shortened(n)) as isize }
}

#[unsafe(no_mangle)]
pub extern "C" fn pread64(fd: c_int, buf: *mut c_void, n: usize, offset: i64) -> isize {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    if fails(c"FLAKY_READ_FAILS", &CALLS) {
        return fail(EIO);
    }
    if interrupted() {
        return fail(EINTR);
    }
    // SAFETY: the caller's arguments; fewer bytes than it has room for.
    unsafe { syscall(NUMBERS[1], fd, buf, shortened(n), offset) as isize }
}

#[unsafe(no_mangle)]
pub extern "C" fn write(fd: c_int, buf: *const c_void, n: usize) -> isize {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    // What is said on standard output and error is always heard.
    if fd > 2 && fails(c"FLAKY_WRITE_FAILS", &CALLS) {
        return fail(ENOSPC);
    }
    if interrupted() {
        return fail(EINTR);
    }
    // SAFETY: the caller's arguments; fewer bytes than it gave.
    unsafe { syscall(NUMBERS[2], fd, buf, shortened(n)) as isize }
}

fn sync(number: c_long, fd: c_int) -> c_int {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    if fails(c"FLAKY_SYNC_FAILS", &CALLS) {
        return fail(EIO) as c_int;
    }
    // SAFETY: the caller's argument.
    unsafe { syscall(number, fd) as c_int }
}

#[unsafe(no_mangle)]
pub extern "C" fn fsync(fd: c_int) -> c_int {
    sync(NUMBERS[3], fd)
}

#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync(NUMBERS[4], fd)
}
