//! Fields of the dtypes, the head and the sections of a block (FORMAT.md section 8).

use bigsmall_format::{Dtype, Error, Result, Rule};

/// Weights of one tile: one for each bit of a bitmap.
pub(crate) const TILE: usize = 64;
/// Bytes of a decoded tile of a dtype of 16 bits.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) const TILE_BYTES: usize = 2 * TILE;
/// Weights between two stored escape starts.
pub(crate) const GROUP: usize = 512;
/// An escape start in its stored form, little-endian.
pub(crate) type Start = [u8; 4];
/// Bytes of a head.
pub(crate) const HEAD_LEN: usize = 8;

/// The number of bitmaps that hold the code of an exponent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Width {
    /// Three bitmaps and a window of 7 exponents: smaller, about 11.3 bits per bf16 weight.
    Three,
    /// Four bitmaps and a window of 15 exponents: hardly any escapes, 12 bits per bf16 weight.
    Four,
}

impl Width {
    /// Both widths.
    pub const ALL: &'static [Width] = &[Width::Three, Width::Four];

    /// The number of bitmaps, 3 or 4.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Width::Three => 3,
            Width::Four => 4,
        }
    }

    /// The number of exponents in the window: one for each code except the escape code.
    #[must_use]
    pub const fn window(self) -> usize {
        (1 << self.bits()) - 1
    }

    const fn from_bits(bits: u8) -> Option<Width> {
        match bits {
            3 => Some(Width::Three),
            4 => Some(Width::Four),
            _ => None,
        }
    }
}

/// The mantissa bits of the dtypes. Kernels have them as the const parameter `M`, which stands for
/// the dtype.
pub(crate) const BF16: u32 = 7;
pub(crate) const F16: u32 = 10;
pub(crate) const E4M3: u32 = 3;
pub(crate) const E5M2: u32 = 2;

/// Evaluates an expression in which the constant `$m` stands for a dtype.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! for_dtype {
    ($dtype:expr, $m:ident => $kernel:expr) => {
        match $dtype {
            bigsmall_format::Dtype::BF16 => {
                const $m: u32 = crate::layout::BF16;
                $kernel
            }
            bigsmall_format::Dtype::F16 => {
                const $m: u32 = crate::layout::F16;
                $kernel
            }
            bigsmall_format::Dtype::F8_E4M3 => {
                const $m: u32 = crate::layout::E4M3;
                $kernel
            }
            _ => {
                const $m: u32 = crate::layout::E5M2;
                $kernel
            }
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use for_dtype;

/// Bytes of a tile of plain weights.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) const fn tile_bytes(m: u32) -> usize {
    if has_plane(m) { 2 * TILE } else { TILE }
}

/// Whether a byte plane holds the low 8 bits of the *others*.
pub(crate) const fn has_plane(m: u32) -> bool {
    m + 1 >= 8
}

/// The number of bitmaps per tile for the *others* that are not in the byte plane.
pub(crate) const fn extra_bitmaps(m: u32) -> usize {
    let others = m as usize + 1;
    if has_plane(m) { others - 8 } else { others }
}

/// Where the exponent begins in the high byte of a weight, if all of it lies there (not for bf16).
/// The extra bitmaps are the bits below it and the sign.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) const fn exponent_place(m: u32) -> u32 {
    extra_bitmaps(m).saturating_sub(1) as u32
}

/// The bit fields of a float dtype. *Others* are the sign, at the top, and the mantissa below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fields {
    pub(crate) bytes: usize,
    pub(crate) exponent_bits: u32,
    pub(crate) mantissa_bits: u32,
}

impl Fields {
    pub(crate) const fn of(dtype: Dtype) -> Option<Fields> {
        let (bytes, exponent_bits, mantissa_bits) = match dtype {
            Dtype::BF16 => (2, 8, BF16),
            Dtype::F16 => (2, 5, F16),
            Dtype::F8_E4M3 => (1, 4, E4M3),
            Dtype::F8_E5M2 => (1, 5, E5M2),
            _ => return None,
        };
        Some(Fields { bytes, exponent_bits, mantissa_bits })
    }

    pub(crate) const fn n_exponents(self) -> usize {
        1 << self.exponent_bits
    }

    /// Whether a byte plane holds the low 8 bits of the *others*.
    pub(crate) const fn has_plane(self) -> bool {
        has_plane(self.mantissa_bits)
    }

    /// The number of bitmaps per tile for the *others* that are not in the byte plane.
    pub(crate) const fn extra_bitmaps(self) -> usize {
        extra_bitmaps(self.mantissa_bits)
    }

    /// Splits the bits of a value into exponent and others.
    pub(crate) const fn split(self, bits: u32) -> (u32, u32) {
        let exponent = bits >> self.mantissa_bits & ((1 << self.exponent_bits) - 1);
        let sign = bits >> (self.mantissa_bits + self.exponent_bits) & 1;
        let mantissa = bits & ((1 << self.mantissa_bits) - 1);
        (exponent, sign << self.mantissa_bits | mantissa)
    }

    /// The inverse of [`split`](Self::split).
    pub(crate) const fn join(self, exponent: u32, others: u32) -> u32 {
        let sign = others >> self.mantissa_bits;
        let mantissa = others & ((1 << self.mantissa_bits) - 1);
        sign << (self.mantissa_bits + self.exponent_bits)
            | exponent << self.mantissa_bits
            | mantissa
    }
}

/// The parameters of all blocks of a tensor. A `Head` is always valid: the window is within the
/// exponents of the dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) dtype: Dtype,
    pub(crate) fields: Fields,
    pub(crate) width: Width,
    pub(crate) base: u8,
}

impl Head {
    /// `base` must leave room for the window.
    pub(crate) fn new(dtype: Dtype, width: Width, base: u8) -> Result<Head> {
        let fields = Fields::of(dtype).ok_or_else(|| {
            Error::new(Rule::EncodingRefuses)
                .expected("BF16, F16, F8_E4M3 or F8_E5M2 for tbe")
                .found(dtype)
        })?;
        let most = fields.n_exponents() - width.window();
        if usize::from(base) > most {
            return Err(Error::new(Rule::TbeHead)
                .at(1)
                .expected(format!("a base of at most {most} for {dtype}"))
                .found(base));
        }
        Ok(Head { dtype, fields, width, base })
    }

    pub(crate) fn parse(dtype: Dtype, bytes: &[u8]) -> Result<Head> {
        let &[width, base, ref reserved @ ..] = bytes else {
            return Err(head_length(bytes));
        };
        if bytes.len() != HEAD_LEN {
            return Err(head_length(bytes));
        }
        let width = Width::from_bits(width).ok_or_else(|| {
            Error::new(Rule::TbeHead).at(0).expected("a width of 3 or 4").found(width)
        })?;
        if let Some(at) = reserved.iter().position(|&b| b != 0) {
            return Err(Error::new(Rule::ReservedNotZero).at(2 + at as u64));
        }
        Head::new(dtype, width, base).map_err(|e| match e.rule() {
            // The dtype comes from the input, not from the caller.
            Rule::EncodingRefuses => Error::new(Rule::EncodingDtype).found(dtype),
            _ => e,
        })
    }

    pub(crate) fn to_bytes(self) -> [u8; HEAD_LEN] {
        [self.width.bits() as u8, self.base, 0, 0, 0, 0, 0, 0]
    }

    pub(crate) const fn bitmaps_per_tile(self) -> usize {
        self.width.bits() + self.fields.extra_bitmaps()
    }
}

fn head_length(bytes: &[u8]) -> Error {
    Error::new(Rule::TbeHead)
        .at(0)
        .expected(format!("a head of {HEAD_LEN} bytes"))
        .found(bytes.len())
}

/// The ends of the sections of a block of `n` weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sections {
    pub(crate) bitmaps: usize,
    pub(crate) plane: usize,
    pub(crate) starts: usize,
}

impl Sections {
    /// `n` must be at most `MAX_BLOCK_UNITS`, so that nothing overflows.
    pub(crate) const fn of(head: Head, n: usize) -> Sections {
        let bitmaps = n.div_ceil(TILE) * head.bitmaps_per_tile() * 8;
        let plane = if head.fields.has_plane() { n.next_multiple_of(8) } else { 0 };
        let starts = (n.div_ceil(GROUP) * 4).next_multiple_of(8);
        Sections { bitmaps, plane: bitmaps + plane, starts: bitmaps + plane + starts }
    }
}

/// Which weights of a tile are escapes: the codes of all ones.
#[inline(always)]
pub(crate) fn escape_mask(code_bitmaps: &[[u8; 8]]) -> u64 {
    code_bitmaps.iter().fold(!0, |mask, bitmap| mask & u64::from_le_bytes(*bitmap))
}
