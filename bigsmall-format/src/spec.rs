//! What a tensor is, apart from its values.

use std::ops::Range;

use crate::{Dtype, Error, Result, Rule};

/// Units of one block (FORMAT.md section 3): every encoding cuts a tensor into blocks of this many
/// units, the last one shorter.
pub const BLOCK_UNITS: usize = 1 << 17;

/// Name, dtype and shape of a tensor. A spec that exists is valid: its sizes do not overflow and it
/// fills whole bytes. Two specs of equal tensors are equal, wherever their data lie.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    name: Box<str>,
    dtype: Dtype,
    shape: Box<[u64]>,
    byte_len: u64,
}

impl TensorSpec {
    /// A tensor of that name, dtype and shape (row-major; an empty shape is a scalar).
    ///
    /// # Errors
    /// [`Rule::ShapeOverflow`] when the product of the shape or the number of bits exceeds 2^63,
    /// [`Rule::SubByteTotal`] when a sub-byte dtype does not fill whole bytes.
    ///
    /// ```
    /// use bigsmall_format::{Dtype, TensorSpec};
    /// let spec = TensorSpec::new("lm_head.weight", Dtype::BF16, &[32000, 4096])?;
    /// assert_eq!(spec.byte_len(), 32000 * 4096 * 2);
    /// # Ok::<(), bigsmall_format::Error>(())
    /// ```
    pub fn new(name: &str, dtype: Dtype, shape: &[u64]) -> Result<Self> {
        let overflow = || {
            Error::new(Rule::ShapeOverflow)
                .in_tensor(name)
                .found(format!("shape {shape:?} of {dtype}"))
        };
        // Every factor counts, also beside a zero: [2^64-1, 2, 0] is an attack, not an empty
        // tensor.
        let mut product = 1u64;
        for &n in shape.iter().filter(|&&n| n != 0) {
            product = product.checked_mul(n).ok_or_else(overflow)?;
        }
        let n = if shape.contains(&0) { 0 } else { product };
        let bits = product
            .checked_mul(u64::from(dtype.bits()))
            .filter(|&b| b < 1 << 63)
            .ok_or_else(overflow)?;
        let bits = if n == 0 { 0 } else { bits };
        if !bits.is_multiple_of(8) {
            return Err(Error::new(Rule::SubByteTotal)
                .in_tensor(name)
                .expected("a multiple of 8 bits")
                .found(bits));
        }
        Ok(TensorSpec { name: name.into(), dtype, shape: shape.into(), byte_len: bits / 8 })
    }

    /// The same dtype and shape under another name.
    #[must_use]
    pub fn with_name(self, name: &str) -> Self {
        TensorSpec { name: name.into(), ..self }
    }

    /// The tensor's name: any string, never a path.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape, row-major.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Bytes of the original values.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.byte_len
    }

    /// Number of elements.
    #[must_use]
    pub fn n_elements(&self) -> u64 {
        self.byte_len * 8 / u64::from(self.dtype.bits())
    }

    /// Number of units (see [`Dtype::unit_bytes`]).
    #[must_use]
    pub fn n_units(&self) -> u64 {
        self.byte_len / self.dtype.unit_bytes() as u64
    }

    /// Number of blocks.
    #[must_use]
    pub fn n_blocks(&self) -> u64 {
        self.n_units().div_ceil(BLOCK_UNITS as u64)
    }

    /// Bytes of one full block before encoding.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        BLOCK_UNITS * self.dtype.unit_bytes()
    }

    /// Bytes of the original values in block `index`, 0 beyond the last one.
    #[must_use]
    pub fn block_byte_len(&self, index: u64) -> usize {
        let full = self.block_bytes() as u64;
        self.byte_len.saturating_sub(index.saturating_mul(full)).min(full) as usize
    }

    /// The bytes of the rows in `rows`, where a row is one step of the first dimension (a scalar is
    /// one row).
    ///
    /// # Errors
    /// [`Rule::RangeOutOfBounds`]; [`Rule::UnalignedRange`] where a row of a sub-byte dtype does
    /// not fill whole bytes.
    pub fn row_bytes(&self, rows: Range<u64>) -> Result<Range<u64>> {
        let n_rows = self.shape.first().copied().unwrap_or(1);
        if rows.start > rows.end || rows.end > n_rows {
            return Err(Error::new(Rule::RangeOutOfBounds)
                .in_tensor(&self.name)
                .expected(format!("rows within 0..{n_rows}"))
                .found(format!("{rows:?}")));
        }
        if n_rows == 0 {
            return Ok(0..0);
        }
        if !self.byte_len.is_multiple_of(n_rows) {
            return Err(Error::new(Rule::UnalignedRange).in_tensor(&self.name));
        }
        let row = self.byte_len / n_rows;
        Ok(rows.start * row..rows.end * row)
    }
}
