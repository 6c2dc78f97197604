//! Products of a matrix that stays encoded, and the same products of the plain matrix.
//!
//! Every product processes its rows in tiles of 64 weights, counted from the beginning of the row.
//! The product of weight k is added to one of 64 chains (`lane_of`). After 64 tiles the chains are
//! summed as a tree, and at the end these sums are summed as a tree. So the order of the additions
//! depends only on the length of the row: not on threads, batch, encoding, or the position in a
//! tile at which a row begins.

use std::ops::Range;

use bigsmall_format::Result;

use crate::view::{Matrix, View};

mod columns;
mod kept;
mod order;
mod rows;
mod run;
mod sums;
mod vector;

pub(crate) use rows::{Rows, Weights, expect, shape};
pub(crate) use run::multiply;

impl View<'_> {
    /// y = W x: y\[b, m\] = sum over k of W\[m, k\] x\[b, k\], everything row-major, x and y in
    /// f32, for a matrix W of shape \[m, k\] and `batch` columns x. For a tensor with more
    /// dimensions, m is the first dimension and k the product of the others. A tensor with fewer
    /// dimensions is a single row.
    ///
    /// W is never decoded as a whole. A single column is multiplied directly from the bitmaps:
    /// weights become f32 in registers (with portable kernels, each run of 4096 weights is decoded
    /// to a buffer first). For several columns, each run is decoded once. The result has the same
    /// bits as the plain product ([`Plain::matmul`](crate::Plain::matmul)), for any pool of
    /// threads. The bits for a column do not depend on the batch, and those for a row do not depend
    /// on the range of rows. Sums are f32 with chains of at most 64 additions, so that
    /// |y - exact| <= (72 + ceil(log2(ceil(k / 4096)))) 2^-24 sum |w x|. Different backends may
    /// differ in the last bits.
    ///
    /// Uses the threads of the caller's pool. Memory: each thread keeps 8 KiB for the next product;
    /// with several columns 200 KiB, and 3 KiB for each of up to 64 columns. The calling thread
    /// also keeps a copy of x, and one of y if there are several columns or matrices.
    ///
    /// # Errors
    /// [`Rule::BufferLength`](crate::Rule::BufferLength) if x is not `batch` times k long or y not
    /// `batch` times m.
    ///
    /// ```
    /// use bigsmall_tbe::{Dtype, Tbe, TensorSpec, View, Width, encode_tensor};
    ///
    /// // Rows of ones, of twos and of threes.
    /// let spec = TensorSpec::new("w", Dtype::BF16, &[3, 100])?;
    /// let bits = [0x3f80u16, 0x4000, 0x4040];
    /// let weights: Vec<u8> = bits.iter().flat_map(|b| [b.to_le_bytes(); 100]).flatten().collect();
    /// let encoded = encode_tensor(&Tbe::new(Width::Three), &spec, &weights)?;
    ///
    /// let view = View::new(&encoded)?;
    /// let x = [0.5; 100];
    /// let mut y = [0.0; 3];
    /// view.matmul(&x, 1, &mut y)?;
    /// assert_eq!(y, [50.0, 100.0, 150.0]);
    /// let mut last = [0.0; 2];
    /// view.matmul_rows(1..3, &x, 1, &mut last)?;
    /// assert_eq!(last, y[1..]);
    /// # Ok::<(), bigsmall_tbe::Error>(())
    /// ```
    pub fn matmul(&self, x: &[f32], batch: usize, y: &mut [f32]) -> Result<()> {
        multiply(&[Rows::of_view(*self)], x, batch, &mut [y])
    }

    /// The same for some rows of W: y has `rows.len()` values for each column.
    ///
    /// # Errors
    /// Those of [`matmul`](Self::matmul); [`Rule::RangeOutOfBounds`](crate::Rule::RangeOutOfBounds)
    /// for rows that W does not have.
    pub fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &[f32],
        batch: usize,
        y: &mut [f32],
    ) -> Result<()> {
        multiply(&[Rows::of_view(*self).only(rows)?], x, batch, &mut [y])
    }
}

impl Matrix {
    /// y = W x, as [`View::matmul`].
    ///
    /// # Errors
    /// Those of [`View::matmul`].
    ///
    /// ```
    /// use bigsmall_tbe::{Dtype, Matrix, Tbe, TensorSpec, encode_tensor};
    ///
    /// let spec = TensorSpec::new("w", Dtype::BF16, &[2, 2])?;
    /// let identity = vec![0x80, 0x3f, 0, 0, 0, 0, 0x80, 0x3f];
    /// let matrix = Matrix::new(encode_tensor(&Tbe::default(), &spec, &identity)?)?;
    /// let mut y = [0.0; 2];
    /// matrix.matmul(&[3.0, 4.0], 1, &mut y)?;
    /// assert_eq!(y, [3.0, 4.0]);
    /// # Ok::<(), bigsmall_tbe::Error>(())
    /// ```
    pub fn matmul(&self, x: &[f32], batch: usize, y: &mut [f32]) -> Result<()> {
        self.view().matmul(x, batch, y)
    }

    /// The same for some rows of W, as [`View::matmul_rows`].
    ///
    /// # Errors
    /// Those of [`View::matmul_rows`].
    pub fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &[f32],
        batch: usize,
        y: &mut [f32],
    ) -> Result<()> {
        self.view().matmul_rows(rows, x, batch, y)
    }
}

/// The products of several matrices with the same x, such as the projections q, k and v of a layer.
/// `y[i]` is the product of `matrices[i]`, with the same bits as from [`View::matmul`]. All
/// products share the threads, which is faster than one call per matrix for small matrices.
///
/// # Errors
/// Those of [`View::matmul`], for the first matrix that does not fit;
/// [`Rule::BufferLength`](crate::Rule::BufferLength) if there are not as many y as matrices.
///
/// ```
/// use bigsmall_tbe::{Dtype, Matrix, Tbe, TensorSpec, encode_tensor, matmul_many};
///
/// let matrix = |name, bits: u16| {
///     let spec = TensorSpec::new(name, Dtype::BF16, &[2, 100])?;
///     let weights: Vec<u8> = [bits.to_le_bytes(); 200].concat();
///     Matrix::new(encode_tensor(&Tbe::default(), &spec, &weights)?)
/// };
/// let (ones, twos) = (matrix("ones", 0x3f80)?, matrix("twos", 0x4000)?);
/// let (mut a, mut b) = ([0.0; 2], [0.0; 2]);
/// matmul_many(&[ones.view(), twos.view()], &[0.5; 100], 1, &mut [&mut a, &mut b])?;
/// assert_eq!((a, b), ([50.0; 2], [100.0; 2]));
/// # Ok::<(), bigsmall_tbe::Error>(())
/// ```
pub fn matmul_many<'a, W: Clone + Into<Factor<'a>>>(
    matrices: &[W],
    x: &[f32],
    batch: usize,
    y: &mut [&mut [f32]],
) -> Result<()> {
    let rows: Vec<_> = matrices.iter().map(|w| w.clone().into().0).collect();
    multiply(&rows, x, batch, y)
}

/// A matrix as [`matmul_many`] takes it, in any of its forms.
#[derive(Clone)]
pub struct Factor<'a>(pub(crate) Rows<'a>);

impl<'a> From<View<'a>> for Factor<'a> {
    fn from(view: View<'a>) -> Self {
        Factor(Rows::of_view(view))
    }
}

impl std::fmt::Debug for Factor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Factor").field(self.0.spec).finish()
    }
}
