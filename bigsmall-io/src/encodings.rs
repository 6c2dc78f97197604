//! The encodings of a file, by name and by code.

use std::sync::OnceLock;

use bigsmall_codec::{Ans, Delta, Level};
use bigsmall_format::{EncodingId, Raw, Rule, TensorEncoding};
use bigsmall_tbe::{Tbe, Width};

use crate::error::{Error, Result};

/// What to encode with. Whatever the encoding does not take or does not make smaller is stored raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encoding {
    /// The values, unchanged.
    Raw,
    /// Entropy coding: the smallest output, 10.5 bits for a bf16 weight.
    Ans(Level),
    /// Triple bitmaps with codes of 3 bits: 11.3 bits for a bf16 weight, and the fastest to decode
    /// and to multiply with.
    Tbe3,
    /// The same with codes of 4 bits: 12 bits for a bf16 weight, hardly any escapes.
    Tbe4,
}

impl Default for Encoding {
    fn default() -> Self {
        Encoding::Ans(Level::Default)
    }
}

impl Encoding {
    /// The implementation, with the fastest kernels of this machine.
    #[must_use]
    pub fn implementation(self) -> &'static dyn TensorEncoding {
        static ANS: OnceLock<[Ans; 3]> = OnceLock::new();
        static TBE: OnceLock<[Tbe; 2]> = OnceLock::new();
        let ans = || ANS.get_or_init(|| [Level::Fast, Level::Default, Level::Small].map(Ans::new));
        let tbe = || TBE.get_or_init(|| [Width::Three, Width::Four].map(Tbe::new));
        match self {
            Encoding::Raw => &Raw,
            Encoding::Ans(Level::Fast) => &ans()[0],
            Encoding::Ans(Level::Default) => &ans()[1],
            Encoding::Ans(Level::Small) => &ans()[2],
            Encoding::Tbe3 => &tbe()[0],
            Encoding::Tbe4 => &tbe()[1],
        }
    }
}

/// An implementation of `encoding` for estimates: plans read a sample of a tensor alone.
pub(crate) fn by_sample(encoding: Encoding) -> &'static dyn TensorEncoding {
    static ANS: OnceLock<Ans> = OnceLock::new();
    match encoding {
        Encoding::Ans(Level::Small) => ANS.get_or_init(|| Ans::new(Level::Small).by_sample()),
        _ => encoding.implementation(),
    }
}

/// The implementation that decodes payloads of the encoding `id`.
///
/// # Errors
/// [`Rule::EncodingUnknown`] for an encoding that this version does not have.
pub fn encoding(id: EncodingId) -> Result<&'static dyn TensorEncoding> {
    match id {
        EncodingId::Raw => Ok(Encoding::Raw.implementation()),
        EncodingId::Ans => Ok(Encoding::default().implementation()),
        EncodingId::Tbe => Ok(Encoding::Tbe3.implementation()),
        EncodingId::Delta => Ok(delta()),
        _ => Err(Error::new(Rule::EncodingUnknown).found(id)),
    }
}

/// The encoding of tensors with a base.
pub(crate) fn delta() -> &'static dyn TensorEncoding {
    static DELTA: OnceLock<Delta> = OnceLock::new();
    DELTA.get_or_init(Delta::default)
}
