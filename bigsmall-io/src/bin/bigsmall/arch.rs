//! The one call that needs `unsafe`.
#![allow(unsafe_code)]

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
