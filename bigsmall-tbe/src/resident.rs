//! Matrices in the form in which this machine multiplies them fastest.

use std::ops::Range;

use bigsmall_format::internal::{decode_here, for_each_in_parallel};
use bigsmall_format::{
    Backend, Decoded, Dtype, EncodedTensor, EncodingId, Error, Result, Rule, TensorEncoding,
    TensorSpec, encode_tensor,
};

use crate::aligned::Aligned;
use crate::backend;
use crate::codes::{Code, CodeMatrix};
use crate::encode::Tbe;
use crate::kernels::Kernels;
use crate::layout::{Fields, Width};
use crate::matmul::{Factor, Rows, Weights, expect, multiply, shape};
use crate::view::Matrix;

/// How a [`Resident`] keeps its weights in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Form {
    /// The original bytes.
    Plain,
    /// bf16 with high bytes as codes of four bits, about 12 bits for each weight.
    Nibbles,
    /// bf16 with a code of seven bits for the high bytes of two weights, about 11.6 bits for each
    /// weight of long rows. With AVX-512 it is multiplied in this form, with other kernels each
    /// chunk of a row is unpacked first.
    Pairs,
    /// The bitmaps of the triple-bitmap encoding.
    Bitmaps(Width),
}

impl Form {
    /// Every form.
    pub const ALL: &'static [Form] = &[
        Form::Plain,
        Form::Nibbles,
        Form::Pairs,
        Form::Bitmaps(Width::Three),
        Form::Bitmaps(Width::Four),
    ];

    /// A short name: `plain`, `nibbles`, `pairs`, `tbe3` or `tbe4`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Form::Plain => "plain",
            Form::Nibbles => "nibbles",
            Form::Pairs => "pairs",
            Form::Bitmaps(Width::Three) => "tbe3",
            Form::Bitmaps(Width::Four) => "tbe4",
        }
    }

    /// Whether weights of that dtype can have this form: codes are for BF16 alone, and no form is
    /// for dtypes without a triple-bitmap encoding, such as F32.
    ///
    /// ```
    /// use bigsmall_tbe::{Dtype, Form};
    ///
    /// assert!(Form::Pairs.takes(Dtype::BF16) && !Form::Pairs.takes(Dtype::F16));
    /// ```
    #[must_use]
    pub fn takes(self, dtype: Dtype) -> bool {
        match self {
            Form::Nibbles | Form::Pairs => dtype == Dtype::BF16,
            Form::Plain | Form::Bitmaps(_) => Fields::of(dtype).is_some(),
        }
    }

    /// The form of a matrix of that dtype for products with one vector by the kernels of `backend`,
    /// from memory and with all cores.
    ///
    /// The choice is a table, not a measurement of each process: to measure products from memory
    /// takes matrices larger than the caches and idle cores, and on a busy machine chance would
    /// decide how much memory a model takes. The table follows measurements on machines with two
    /// cores (docs/performance.md).
    #[must_use]
    pub fn best(dtype: Dtype, backend: Backend) -> Form {
        match (dtype, backend) {
            // Without instructions that look up bytes.
            (Dtype::BF16, Backend::Portable) => Form::Bitmaps(Width::Four),
            // One instruction looks up 64 of 128 bytes.
            (Dtype::BF16, Backend::Avx512) => Form::Pairs,
            (Dtype::BF16, _) => Form::Nibbles,
            // Their bitmaps save a tenth, or a fifth for F8_E5M2, and take longer to decode.
            _ => Form::Plain,
        }
    }
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The share of escapes beyond which a form is slower than others.
fn most_escapes(form: Form) -> f64 {
    match form {
        Form::Nibbles => 1.0 / 512.0,
        // One in a cell of 128 weights.
        Form::Pairs => 1.0 / 128.0,
        _ => 1.0,
    }
}

/// A matrix in memory, in the form in which this machine multiplies it fastest, made once from any
/// encoding. All forms have the same products, bit for bit: those of
/// [`Plain::matmul`](crate::Plain::matmul).
///
/// ```
/// use bigsmall_tbe::{Dtype, Form, Raw, Resident, TensorSpec, encode_tensor};
///
/// let spec = TensorSpec::new("w", Dtype::BF16, &[2, 128])?;
/// let ones = encode_tensor(&Raw, &spec, &[0x3f80u16.to_le_bytes(); 256].concat())?;
///
/// // `Raw` is the encoding that the tensor has; for ANS it is `bigsmall_codec::Ans::default()`.
/// let weights = Resident::with_form(&ones, &Raw, Form::Nibbles)?;
/// assert!(weights.byte_len() < spec.byte_len());
/// let mut y = [0.0; 2];
/// weights.matmul(&[0.5; 128], 1, &mut y)?;
/// assert_eq!(y, [64.0; 2]);
/// # Ok::<(), bigsmall_tbe::Error>(())
/// ```
#[derive(Clone)]
pub struct Resident {
    spec: TensorSpec,
    held: Held,
    kernels: &'static Kernels,
}

#[derive(Clone)]
enum Held {
    Plain(Aligned),
    Codes(CodeMatrix),
    Bitmaps(Matrix),
}

impl Resident {
    /// Takes `tensor`, which `encoding` decodes, into the form that [`Form::best`] names for this
    /// machine: codes or bitmaps for BF16; F16 and FP8 stay plain. A tensor that does not suit
    /// this form (too many different exponents) gets another one; one that no form makes smaller
    /// stays plain. Everything is validated; works on the threads of the caller's pool.
    ///
    /// # Errors
    /// [`Rule::EncodingRefuses`] for a dtype other than BF16, F16, F8_E4M3 and F8_E5M2; those of
    /// decoding `tensor`; [`Rule::Memory`].
    pub fn new(tensor: &EncodedTensor, encoding: &dyn TensorEncoding) -> Result<Self> {
        Self::for_backend(tensor, encoding, backend::best().backend)
    }

    /// The same for the kernels of `backend`.
    ///
    /// # Errors
    /// Those of [`new`](Self::new); [`Rule::BackendMissing`] if this machine cannot run them.
    pub fn for_backend(
        tensor: &EncodedTensor,
        encoding: &dyn TensorEncoding,
        backend: Backend,
    ) -> Result<Self> {
        let best = match Form::best(tensor.spec().dtype(), backend) {
            // Short rows can leave much of their last pair of tiles empty.
            Form::Pairs if !Code::Pair.is_smaller(shape(tensor.spec()).1) => Form::Nibbles,
            best => best,
        };
        let other = Some(Form::Bitmaps(Width::Three)).filter(|&other| other != best);
        let smaller = std::iter::once(best).chain(other).filter(|_| best != Form::Plain);
        for form in smaller {
            if let Some(resident) = Self::try_form(tensor, encoding, form, most_escapes(form))?
                && resident.byte_len() < tensor.spec().byte_len()
            {
                return resident.with_backend(backend);
            }
        }
        Self::with_form(tensor, encoding, Form::Plain)?.with_backend(backend)
    }

    /// The same in a form of choice, even if it is larger than the plain weights.
    ///
    /// # Errors
    /// Those of [`new`](Self::new); [`Rule::EncodingRefuses`] for nibbles or pairs of another
    /// dtype than BF16, or with rows of more than 2^24 weights.
    pub fn with_form(
        tensor: &EncodedTensor,
        encoding: &dyn TensorEncoding,
        form: Form,
    ) -> Result<Self> {
        Self::try_form(tensor, encoding, form, 1.0)?.ok_or_else(|| {
            Error::new(Rule::EncodingRefuses)
                .in_tensor(tensor.spec().name())
                .expected(format!("rows of at most 2^24 weights for the form {form}"))
                .found(format!("rows of {}", shape(tensor.spec()).1))
        })
    }

    fn try_form(
        tensor: &EncodedTensor,
        encoding: &dyn TensorEncoding,
        form: Form,
        most_escapes: f64,
    ) -> Result<Option<Self>> {
        let spec = tensor.spec();
        if !form.takes(spec.dtype()) {
            return Err(Error::new(Rule::EncodingRefuses)
                .in_tensor(spec.name())
                .expected(format!("a dtype that the form {form} takes"))
                .found(spec.dtype()));
        }
        let held = match form {
            Form::Plain => {
                let mut bytes = Aligned::zeroed(spec.byte_len() as usize)?;
                tensor.decode_bytes(encoding, 0..spec.byte_len(), &mut bytes)?;
                Held::Plain(bytes)
            }
            Form::Nibbles | Form::Pairs => {
                let code = if form == Form::Pairs { Code::Pair } else { Code::Nibble };
                let decoder = tensor.open(encoding)?;
                let (rows, cols) = shape(spec);
                let packed = CodeMatrix::pack(code, rows, cols, most_escapes, |row, out| {
                    let begin = (row * cols * 2) as u64;
                    let range = begin..begin + out.len() as u64;
                    let payload: &dyn bigsmall_format::ReadAt = &tensor.payload();
                    decode_here(&*decoder, spec, tensor.table(), payload, None, range, out)
                })?;
                match packed {
                    Some(packed) => Held::Codes(packed),
                    None => return Ok(None),
                }
            }
            Form::Bitmaps(width) => {
                if tensor.encoding() == EncodingId::Tbe {
                    let matrix = Matrix::new(tensor.clone())?;
                    if matrix.view().width() == width {
                        let held = Held::Bitmaps(matrix);
                        let kernels = backend::best();
                        return Ok(Some(Resident { spec: spec.clone(), held, kernels }));
                    }
                }
                let source = Decoded::new(tensor, encoding)?;
                Held::Bitmaps(Matrix::new(encode_tensor(&Tbe::new(width), spec, &source)?)?)
            }
        };
        Ok(Some(Resident { spec: spec.clone(), held, kernels: backend::best() }))
    }

    /// The same with the kernels of `backend`, for products.
    ///
    /// # Errors
    /// [`Rule::BackendMissing`] if this machine cannot run them.
    pub fn with_backend(self, backend: Backend) -> Result<Self> {
        Ok(Resident { kernels: backend::kernels(backend)?, ..self })
    }

    /// Name, dtype and shape of the tensor.
    #[must_use]
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// The number of rows: the first dimension, or 1 for a tensor with fewer than two.
    #[must_use]
    pub fn rows(&self) -> usize {
        shape(&self.spec).0
    }

    /// The number of columns.
    #[must_use]
    pub fn cols(&self) -> usize {
        shape(&self.spec).1
    }

    /// The form in memory.
    #[must_use]
    pub fn form(&self) -> Form {
        match &self.held {
            Held::Plain(_) => Form::Plain,
            Held::Codes(matrix) if matrix.code() == Code::Pair => Form::Pairs,
            Held::Codes(_) => Form::Nibbles,
            Held::Bitmaps(matrix) => Form::Bitmaps(matrix.view().width()),
        }
    }

    /// Bytes that the weights take in memory.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        match &self.held {
            Held::Plain(bytes) => bytes.len() as u64,
            Held::Codes(matrix) => matrix.byte_len(),
            Held::Bitmaps(matrix) => matrix.view().tensor().byte_len(),
        }
    }

    fn all_rows(&self) -> Rows<'_> {
        let weights = match &self.held {
            Held::Plain(bytes) => Weights::Plain(bytes),
            Held::Codes(matrix) => Weights::Codes(matrix),
            Held::Bitmaps(matrix) => Weights::Encoded(matrix.view()),
        };
        Rows::new(weights, &self.spec, self.kernels)
    }

    /// y = W x, as [`View::matmul`](crate::View::matmul), with the same bits.
    ///
    /// # Errors
    /// Those of [`View::matmul`](crate::View::matmul).
    pub fn matmul(&self, x: &[f32], batch: usize, y: &mut [f32]) -> Result<()> {
        multiply(&[self.all_rows()], x, batch, &mut [y])
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
        multiply(&[self.all_rows().only(rows)?], x, batch, &mut [y])
    }

    /// Writes the original bytes of some rows to `dst`, on the threads of the caller's pool.
    ///
    /// # Errors
    /// [`Rule::RangeOutOfBounds`] for rows that W does not have, [`Rule::BufferLength`].
    pub fn decode_rows(&self, rows: Range<usize>, dst: &mut [u8]) -> Result<()> {
        let w = self.all_rows().only(rows)?;
        let row = w.k.saturating_mul(self.spec.dtype().unit_bytes());
        expect(&self.spec, "bytes", dst.len(), w.rows.len().checked_mul(row))?;
        if row == 0 {
            return Ok(());
        }
        let at_a_time = ((1 << 18) / row).max(1);
        for_each_in_parallel(
            dst.chunks_mut(at_a_time * row).enumerate(),
            Vec::new,
            |buffer, (piece, dst)| {
                let first = w.rows.start + piece * at_a_time;
                for (i, dst) in dst.chunks_exact_mut(row).enumerate() {
                    dst.copy_from_slice(w.bytes(first + i, 0..w.k, buffer));
                }
                Ok(())
            },
        )
    }
}

impl<'a> From<&'a Resident> for Factor<'a> {
    fn from(resident: &'a Resident) -> Self {
        Factor(resident.all_rows())
    }
}

impl std::fmt::Debug for Resident {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resident")
            .field("spec", &self.spec)
            .field("form", &self.form())
            .field("byte_len", &self.byte_len())
            .finish_non_exhaustive()
    }
}
