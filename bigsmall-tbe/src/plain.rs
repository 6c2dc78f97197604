//! Matrices that are not encoded.

use std::ops::Range;

use bigsmall_format::{Backend, Error, Result, Rule, TensorSpec};

use crate::backend;
use crate::kernels::Kernels;
use crate::layout::Fields;
use crate::matmul::{Factor, Rows, Weights, expect, multiply};

/// A matrix that is not encoded, in BF16, F16, F8_E4M3 or F8_E5M2: for weights that do not shrink,
/// and as a reference.
#[derive(Clone, Copy)]
pub struct Plain<'a> {
    pub(crate) spec: &'a TensorSpec,
    pub(crate) bytes: &'a [u8],
    pub(crate) kernels: &'static Kernels,
}

impl<'a> Plain<'a> {
    /// The matrix `spec`, whose original bytes are `bytes`.
    ///
    /// # Errors
    /// [`Rule::EncodingRefuses`] for another dtype, [`Rule::BufferLength`] for another length.
    pub fn new(spec: &'a TensorSpec, bytes: &'a [u8]) -> Result<Plain<'a>> {
        if Fields::of(spec.dtype()).is_none() {
            return Err(Error::new(Rule::EncodingRefuses)
                .in_tensor(spec.name())
                .expected("a product with BF16, F16, F8_E4M3 or F8_E5M2")
                .found(spec.dtype()));
        }
        expect(spec, "w", bytes.len(), Some(spec.byte_len() as usize))?;
        Ok(Plain { spec, bytes, kernels: backend::best() })
    }

    /// The same with the kernels of `backend`.
    ///
    /// # Errors
    /// [`Rule::BackendMissing`] if this machine cannot run them.
    pub fn with_backend(self, backend: Backend) -> Result<Plain<'a>> {
        Ok(Plain { kernels: backend::kernels(backend)?, ..self })
    }

    fn rows(self) -> Rows<'a> {
        Rows::new(Weights::Plain(self.bytes), self.spec, self.kernels)
    }

    /// y = W x, bit for bit as [`View::matmul`](crate::View::matmul).
    ///
    /// # Errors
    /// Those of [`View::matmul`](crate::View::matmul).
    pub fn matmul(&self, x: &[f32], batch: usize, y: &mut [f32]) -> Result<()> {
        multiply(&[self.rows()], x, batch, &mut [y])
    }

    /// The same for some rows of W, as [`View::matmul_rows`](crate::View::matmul_rows).
    ///
    /// # Errors
    /// Those of [`View::matmul_rows`](crate::View::matmul_rows).
    pub fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &[f32],
        batch: usize,
        y: &mut [f32],
    ) -> Result<()> {
        multiply(&[self.rows().only(rows)?], x, batch, &mut [y])
    }
}

impl<'a> From<Plain<'a>> for Factor<'a> {
    fn from(plain: Plain<'a>) -> Self {
        Factor(plain.rows())
    }
}

impl std::fmt::Debug for Plain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plain")
            .field("spec", self.spec)
            .field("backend", &self.kernels.backend)
            .finish_non_exhaustive()
    }
}
