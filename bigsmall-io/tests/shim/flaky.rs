//! A library for `LD_PRELOAD` that stands between a program and the kernel and makes reading,
//! writing and syncing as bad as they are allowed to be. What it does is said by environment
//! variables:
//!
//! - `FLAKY_SHORT=1`: one byte a call.
//! - `FLAKY_EINTR=1`: every second call is interrupted.
//! - `FLAKY_READ_FAILS=N`, `FLAKY_WRITE_FAILS=N`, `FLAKY_SYNC_FAILS=N`: from the N-th positioned
//!   read, write to a file or sync on, EIO, ENOSPC, EIO.
//! - `FLAKY_BUCKET=1`: no hard links, no rename with flags, no sync of a folder, as in a bucket
//!   that is mounted. Exit code 77 where this cannot be had.
//! - `FLAKY_NO_RENAME=1`: no rename at all.
//!
//! Compiled by the test that uses it; no part of any package.
#![allow(unsafe_code, missing_docs)]

use std::ffi::{CStr, c_char, c_int, c_long, c_ulong, c_void};
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd as _;
use std::sync::atomic::{AtomicUsize, Ordering};

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn __errno_location() -> *mut c_int;
    fn getenv(name: *const c_char) -> *const c_char;
    fn atol(text: *const c_char) -> c_long;
    fn prctl(option: c_int, ...) -> c_int;
    fn _exit(code: c_int) -> !;
}

/// The kernel's numbers of read, pread64, write, fsync and fdatasync.
#[cfg(target_arch = "x86_64")]
const NUMBERS: [c_long; 5] = [0, 17, 1, 74, 75];
#[cfg(target_arch = "aarch64")]
const NUMBERS: [c_long; 5] = [63, 67, 64, 82, 83];
/// The kernel's numbers of link, linkat and renameat2; of rename or renameat.
#[cfg(target_arch = "x86_64")]
const NAMES: [u32; 3] = [86, 265, 316];
#[cfg(target_arch = "aarch64")]
const NAMES: [u32; 3] = [37, 37, 276];
const EINVAL: c_int = 22;
const EOPNOTSUPP: c_int = 95;
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

/// One instruction of a filter of system calls.
#[repr(C)]
struct Instruction(u16, u8, u8, u32);

#[repr(C)]
struct Program(u16, *const Instruction);

/// Has the kernel refuse what a bucket cannot do. A filter, since not all calls go through the
/// functions of the C library.
extern "C" fn begin() {
    if setting(c"FLAKY_BUCKET").is_none() {
        return;
    }
    let load = |offset| Instruction(0x20, 0, 0, offset);
    let equal = |value, then, otherwise| Instruction(0x15, then, otherwise, value);
    let end = |result| Instruction(0x06, 0, 0, result);
    let errno = |errno: c_int| end(0x0005_0000 | errno as u32);
    let filter = [
        load(0),
        equal(NAMES[0], 5, 0),
        equal(NAMES[1], 4, 0),
        equal(NAMES[2], 0, 2),
        // The flags, the fifth argument.
        load(48),
        equal(0, 0, 2),
        end(0x7fff_0000),
        errno(EOPNOTSUPP),
        errno(EINVAL),
    ];
    let program = Program(filter.len() as u16, filter.as_ptr());
    let one: c_ulong = 1;
    let zero: c_ulong = 0;
    let mode: c_ulong = 2;
    // SAFETY: the kernel reads the filter during the call. No new privileges, then the filter.
    unsafe {
        if prctl(38, one, zero, zero, zero) != 0 || prctl(22, mode, &raw const program) != 0 {
            _exit(77);
        }
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

#[unsafe(no_mangle)]
pub extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    if setting(c"FLAKY_NO_RENAME").is_some() {
        return fail(EOPNOTSUPP) as c_int;
    }
    const HERE: c_int = -100;
    // SAFETY: the caller's arguments.
    unsafe { syscall(NAMES[2] as c_long, HERE, from, HERE, to, 0) as c_int }
}

fn is_folder(fd: c_int) -> bool {
    // SAFETY: the caller's file, which is not closed here.
    let file = ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(fd) });
    file.metadata().is_ok_and(|found| found.is_dir())
}

fn sync(number: c_long, fd: c_int) -> c_int {
    if setting(c"FLAKY_BUCKET").is_some() && is_folder(fd) {
        return fail(EINVAL) as c_int;
    }
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
