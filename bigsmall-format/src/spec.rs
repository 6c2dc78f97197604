//! What a tensor is, apart from its values.

use std::ops::Range;

use crate::{Dtype, Error, Result, Rule};

/// The most units of a block. Every encoding cuts a tensor into the same blocks (FORMAT.md section
/// 3): of [`TensorSpec::block_units`] each; the last one may be shorter.
pub const MAX_BLOCK_UNITS: usize = 1 << 17;
/// Tensors of more units have blocks of [`MAX_BLOCK_UNITS`]: few of their blocks are decoded alone.
/// Smaller ones of several blocks have blocks that are nearly equal.
const MOST_EQUAL: u64 = 1 << 22;
/// The number of equal blocks is a multiple of this: as many as kernels interleave.
const INTERLEAVED: u64 = 4;
/// Equal blocks have a multiple of so many units: then segments of the encoding ANS, each with its
/// own choice of a frequency table, do not cross rows of as many weights.
const SEGMENT: u64 = 1024;

/// Name, dtype and shape of a tensor. A spec that exists is valid: its sizes do not overflow and it
/// fills whole bytes. Two specs of equal tensors are equal, wherever their data lie.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    name: Box<str>,
    dtype: Dtype,
    shape: Box<[u64]>,
    byte_len: u64,
    /// Follows from the others. It is kept because views ask for it with every weight.
    block_units: usize,
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
        let byte_len = bits / 8;
        let block_units = block_units(byte_len / dtype.unit_bytes() as u64);
        Ok(TensorSpec { name: name.into(), dtype, shape: shape.into(), byte_len, block_units })
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
        self.n_units().div_ceil(self.block_units as u64)
    }

    /// Units of a full block, at most [`MAX_BLOCK_UNITS`]. The last block may have fewer.
    ///
    /// ```
    /// use bigsmall_format::{Dtype, MAX_BLOCK_UNITS, TensorSpec};
    /// // Four equal blocks, and not one of 131,072 units and one of the rest.
    /// let small = TensorSpec::new("query.weight", Dtype::BF16, &[384, 384])?;
    /// assert_eq!((small.n_blocks(), small.block_units()), (4, 36_864));
    /// let large = TensorSpec::new("lm_head.weight", Dtype::BF16, &[32000, 4096])?;
    /// assert_eq!((large.n_blocks(), large.block_units()), (1000, MAX_BLOCK_UNITS));
    /// # Ok::<(), bigsmall_format::Error>(())
    /// ```
    #[must_use]
    pub fn block_units(&self) -> usize {
        self.block_units
    }

    /// Bytes of a full block before encoding.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.block_units * self.dtype.unit_bytes()
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

/// How many blocks to work on at once if their original bytes should not be more than `bytes`: a
/// power of two, so that kernels can interleave them; at least one.
#[must_use]
pub fn blocks_within(spec: &TensorSpec, bytes: u64) -> u64 {
    1 << (bytes / spec.block_bytes() as u64).max(1).ilog2()
}

/// Units of a full block of a tensor of `n` units.
fn block_units(n: u64) -> usize {
    if n <= MAX_BLOCK_UNITS as u64 || n > MOST_EQUAL {
        return MAX_BLOCK_UNITS;
    }
    let n_blocks = INTERLEAVED * n.div_ceil(INTERLEAVED * MAX_BLOCK_UNITS as u64);
    n.div_ceil(n_blocks).next_multiple_of(SEGMENT) as usize
}
