//! What needs `unsafe`.
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(target_os = "linux")]
static CLOSED: AtomicBool = AtomicBool::new(false);

#[cfg(target_os = "linux")]
extern "C" fn look() {
    // SAFETY: the descriptor is only asked for; it is not kept, and not closed.
    let stdout = unsafe { std::os::fd::BorrowedFd::borrow_raw(1) };
    CLOSED.store(rustix::io::fcntl_getfd(stdout).is_err(), Ordering::Relaxed);
}

/// Rust's runtime opens the null device in place of a standard output that is closed, so this is
/// called before it begins.
// SAFETY: a function pointer is what the section holds, and `look` needs nothing of the runtime.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

/// Whether standard output was closed when the program began. Elsewhere than on Linux nobody knows.
pub(crate) fn stdout_is_closed() -> bool {
    #[cfg(target_os = "linux")]
    return CLOSED.load(Ordering::Relaxed);
    #[cfg(not(target_os = "linux"))]
    false
}

/// y = W x by the crate `gemm`: `w` has `rows` rows of `cols` weights, x and y `batch` columns.
#[cfg(feature = "gemm")]
pub(crate) fn gemm(
    [rows, cols, batch]: [usize; 3],
    w: &[f32],
    x: &[f32],
    y: &mut [f32],
    threads: usize,
) {
    assert!(w.len() >= rows * cols && x.len() >= cols * batch && y.len() >= rows * batch);
    let threads = match threads {
        1 => gemm::Parallelism::None,
        n => gemm::Parallelism::Rayon(n),
    };
    let [k, m] = [cols as isize, rows as isize];
    let (w, x, y) = (w.as_ptr(), x.as_ptr(), y.as_mut_ptr());
    // SAFETY: the lengths were checked above; rows of W and columns of x and y are contiguous.
    unsafe {
        gemm::gemm(
            rows, batch, cols, y, m, 1, false, w, 1, k, x, k, 1, 0.0, 1.0, false, false, false,
            threads,
        );
    }
}
