//! A base as a tensor sees it: of the tensor's dtype and length (FORMAT.md section 10.2).

use std::io;
use std::ops::Range;

use crate::read_at::{len_of, past_end};
use crate::wire::set_len;
use crate::{Dtype, Error, ReadAt, Result, Rule, TensorSpec};

/// Elements that are converted at once.
const AT_ONCE: usize = 1 << 14;

/// The bytes of a base tensor as a source for the tensor that is stored as differences from it:
/// converted to its dtype, cut to its length, or continued with zeros.
///
/// ```
/// use bigsmall_format::{BaseTensor, Dtype, ReadAt, TensorSpec};
/// let base = TensorSpec::new("emb", Dtype::F32, &[1, 2])?;
/// let tensor = TensorSpec::new("emb", Dtype::BF16, &[2, 2])?;
/// let bytes = [1.0f32, -2.0].map(f32::to_le_bytes).concat();
/// let seen = BaseTensor::new(&tensor, &base, bytes)?;
/// let mut all = [9; 8];
/// seen.read_exact_at(0, &mut all)?;
/// assert_eq!(all, [0x80, 0x3f, 0x00, 0xc0, 0, 0, 0, 0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Memory: 128 KiB while a read converts.
#[derive(Clone, Debug)]
pub struct BaseTensor<R> {
    source: R,
    /// Of the base and of the tensor, if they differ.
    convert: Option<(Float, Float)>,
    byte_len: u64,
    /// How many of the bytes the base has.
    common: u64,
}

impl<R: ReadAt> BaseTensor<R> {
    /// The tensor `base`, whose original bytes are `source`, as `tensor` sees it.
    ///
    /// # Errors
    /// [`Rule::BaseRecord`] when it [cannot be a base](Self::suits) of `tensor`;
    /// [`Rule::BufferLength`] when `source` is not as long as `base`; those of its length.
    pub fn new(tensor: &TensorSpec, base: &TensorSpec, source: R) -> Result<Self> {
        if !Self::suits(tensor, base) {
            let text = |spec: &TensorSpec| format!("{} {:?}", spec.dtype(), spec.shape());
            return Err(Error::new(Rule::BaseRecord)
                .in_tensor(tensor.name())
                .expected(format!("a base for {}", text(tensor)))
                .found(format!("tensor {:?}, {}", base.name(), text(base))));
        }
        let found = len_of(&source)?;
        if found != base.byte_len() {
            return Err(Error::new(Rule::BufferLength)
                .in_tensor(base.name())
                .expected(format!("{} bytes", base.byte_len()))
                .found(found));
        }
        let (from, to) = (base.dtype(), tensor.dtype());
        let convert = if from == to { None } else { Float::of(from).zip(Float::of(to)) };
        // Elements that are converted have whole bytes.
        let common = match convert {
            None => base.byte_len(),
            Some((from, to)) => base.byte_len() / from.bytes() * to.bytes(),
        };
        let byte_len = tensor.byte_len();
        Ok(BaseTensor { source, convert, byte_len, common: common.min(byte_len) })
    }

    /// Whether a tensor like `base` can be the base of one like `tensor`: both have the same number
    /// of elements, or differ in the first dimension alone; and the dtypes are equal or both are
    /// of F64, F32, F16, BF16 and F8_E5M2.
    #[must_use]
    pub fn suits(tensor: &TensorSpec, base: &TensorSpec) -> bool {
        let shapes = tensor.n_elements() == base.n_elements()
            || tensor.shape().get(1..) == base.shape().get(1..);
        let floats = || Float::of(tensor.dtype()).is_some() && Float::of(base.dtype()).is_some();
        shapes && (tensor.dtype() == base.dtype() || floats())
    }
}

impl<R: ReadAt> ReadAt for BaseTensor<R> {
    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.byte_len)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.byte_len => {}
            _ => return Err(past_end(offset, buf.len(), self.byte_len)),
        }
        let n = self.common.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (common, zeros) = buf.split_at_mut(n);
        zeros.fill(0);
        match self.convert {
            _ if n == 0 => Ok(()),
            None => self.source.read_exact_at(offset, common),
            Some(convert) => self.read_converted(convert, offset, common),
        }
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        match self.convert {
            None if range.end <= self.common => self.source.bytes_at(range),
            _ => None,
        }
    }
}

impl<R: ReadAt> BaseTensor<R> {
    /// Reads the elements in which `buf` lies, piece by piece, and converts them.
    fn read_converted(
        &self,
        (from, to): (Float, Float),
        offset: u64,
        mut buf: &mut [u8],
    ) -> io::Result<()> {
        let (mut scratch, mut element) = (Vec::new(), offset / to.bytes());
        let mut skip = (offset % to.bytes()) as usize;
        while !buf.is_empty() {
            let width = to.bytes() as usize;
            let n = (skip + buf.len()).div_ceil(width).min(AT_ONCE);
            set_len(&mut scratch, n * from.bytes() as usize)?;
            self.source.read_exact_at(element * from.bytes(), &mut scratch)?;
            let converted = scratch.chunks_exact(from.bytes() as usize).flat_map(|bytes| {
                let mut value = [0; 8];
                value[..bytes.len()].copy_from_slice(bytes);
                let bytes = convert(u64::from_le_bytes(value), from, to).to_le_bytes();
                bytes.into_iter().take(width)
            });
            let len = (n * width - skip).min(buf.len());
            let (now, rest) = buf.split_at_mut(len);
            now.iter_mut().zip(converted.skip(skip)).for_each(|(to, byte)| *to = byte);
            (buf, skip, element) = (rest, 0, element + n as u64);
        }
        Ok(())
    }
}

/// A float type of IEEE 754: bits of exponent and mantissa.
#[derive(Clone, Copy, Debug)]
struct Float {
    exponent: u32,
    mantissa: u32,
}

impl Float {
    fn of(dtype: Dtype) -> Option<Float> {
        let (exponent, mantissa) = match dtype {
            Dtype::F64 => (11, 52),
            Dtype::F32 => (8, 23),
            Dtype::F16 => (5, 10),
            Dtype::BF16 => (8, 7),
            Dtype::F8_E5M2 => (5, 2),
            _ => return None,
        };
        Some(Float { exponent, mantissa })
    }

    fn bytes(self) -> u64 {
        u64::from((1 + self.exponent + self.mantissa) / 8)
    }

    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// The exponent of infinities and NaN, at its place.
    fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.mantissa
    }
}

/// Converts a float: to the nearest, of two equally near ones to the even one; overflow is an
/// infinity; the mantissa of a NaN keeps its upper bits, and its highest is set.
fn convert(bits: u64, from: Float, to: Float) -> u64 {
    let sign = bits >> (from.exponent + from.mantissa) << (to.exponent + to.mantissa);
    let mantissa = bits & ((1 << from.mantissa) - 1);
    let exponent = (bits & from.infinity()) >> from.mantissa;
    if bits & from.infinity() == from.infinity() {
        let kept = (mantissa << 1 << (63 - from.mantissa)) >> 1 >> (63 - to.mantissa);
        let quiet = if mantissa == 0 { 0 } else { kept | 1 << (to.mantissa - 1) };
        return sign | to.infinity() | quiet;
    }
    let significand = if exponent == 0 { mantissa } else { mantissa | 1 << from.mantissa };
    if significand == 0 {
        return sign;
    }
    // The value is top * 2^(scale - 63), the highest bit of `top` set.
    let zeros = significand.leading_zeros();
    let top = u128::from(significand << zeros);
    let scale = (exponent.max(1) as i32) - from.bias() - from.mantissa as i32 + 63 - zeros as i32;
    let biased = scale + to.bias();
    // Below the normal numbers each step costs one more bit of the significand.
    let dropped = (63 - to.mantissa + (1 - biased).max(0) as u32).min(127);
    let (kept, rest, half) = (top >> dropped, top & ((1 << dropped) - 1), 1 << (dropped - 1));
    let rounded = kept + u128::from(rest > half || (rest == half && kept & 1 == 1));
    // A significand that rounds up to the next power of two carries into the exponent.
    let magnitude = rounded as u64 + ((biased.max(1) as u64 - 1) << to.mantissa);
    sign | magnitude.min(to.infinity())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn float(dtype: Dtype) -> Float {
        Float::of(dtype).unwrap()
    }

    /// Against the conversions of the processor and of the crate `half`, values of every exponent.
    #[test]
    fn conversions_are_those_of_ieee_754() {
        let (f64_, f32_) = (float(Dtype::F64), float(Dtype::F32));
        let (f16_, bf16_) = (float(Dtype::F16), float(Dtype::BF16));
        let mut state = 1u64;
        for i in 0..400_000u64 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            // Few and many bits of the mantissa, and ties.
            let wide = state & (u64::MAX << (i % 60));
            let single = f32::from_bits((wide >> 32) as u32);
            let double = f64::from_bits(wide);
            if !single.is_nan() {
                let bits = u64::from(single.to_bits());
                assert_eq!(convert(bits, f32_, f64_), f64::from(single).to_bits());
                assert_eq!(
                    convert(bits, f32_, bf16_),
                    u64::from(half::bf16::from_f32(single).to_bits())
                );
                assert_eq!(
                    convert(bits, f32_, f16_),
                    u64::from(half::f16::from_f32(single).to_bits())
                );
            }
            if !double.is_nan() {
                assert_eq!(convert(wide, f64_, f32_), u64::from((double as f32).to_bits()));
            }
        }
        for bits in 0..=u16::MAX {
            let (b, h) = (half::bf16::from_bits(bits), half::f16::from_bits(bits));
            let quiet = |bits: u32, nan: bool| u64::from(bits | if nan { 0x40_0000 } else { 0 });
            let bits = u64::from(bits);
            assert_eq!(convert(bits, bf16_, f32_), quiet((bits as u32) << 16, b.is_nan()));
            assert_eq!(convert(bits, f16_, f32_), quiet(h.to_f32().to_bits(), h.is_nan()));
            let back = convert(convert(bits, f16_, f64_), f64_, f16_);
            assert!(back == bits || h.is_nan());
        }
        assert_eq!(convert(0x7f80_0001, f32_, bf16_), 0x7fc0, "a NaN stays one");
        assert_eq!(convert(0xffab_cdef, f32_, f16_), 0xfe00 | 0x15e);
    }

    #[test]
    fn any_part_of_a_base_is_the_same() {
        let spec = |dtype, shape: &[u64]| TensorSpec::new("w", dtype, shape).unwrap();
        let bytes: Vec<u8> = (0..60_000u32).flat_map(|i| (i as f32 - 9.5).to_le_bytes()).collect();
        let base = spec(Dtype::F32, &[600, 100]);
        for (dtype, rows) in [(Dtype::F32, 700), (Dtype::BF16, 601), (Dtype::F64, 500)] {
            let tensor = spec(dtype, &[rows, 100]);
            let seen = BaseTensor::new(&tensor, &base, &bytes).unwrap();
            let n = seen.byte_len().unwrap();
            assert_eq!(n, tensor.byte_len());
            let mut all = vec![1; n as usize];
            seen.read_exact_at(0, &mut all).unwrap();
            for (begin, len) in [(1, 7), (9_999, 70_001), (n - 90_000, 90_000), (n - 3, 3)] {
                let mut part = vec![1; len];
                seen.read_exact_at(begin, &mut part).unwrap();
                assert_eq!(part, all[begin as usize..][..len], "{dtype} {begin}");
            }
            assert!(seen.read_exact_at(n, &mut [0]).is_err());
            let whole = seen.bytes_at(0..400).is_some();
            assert_eq!(whole, dtype == Dtype::F32);
            assert!(seen.bytes_at(n - 1..n).is_none() || rows < 600);
        }
        for (tensor, suits) in [
            (spec(Dtype::F32, &[60_000]), true),
            (spec(Dtype::F32, &[600, 99]), false),
            (spec(Dtype::I32, &[600, 100]), false),
            (spec(Dtype::F8_E4M3, &[600, 100]), false),
        ] {
            assert_eq!(BaseTensor::<&[u8]>::suits(&tensor, &base), suits, "{tensor:?}");
        }
    }
}
