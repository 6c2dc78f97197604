//! The encodings that a file can have, by name and by code.

use std::sync::OnceLock;

use bigsmall_format::{EncodingId, Error, Raw, Result, Rule, TensorEncoding};
use bigsmall_tbe::{Tbe, Width};

/// What to encode with. Whatever the encoding does not take or does not make smaller is stored raw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encoding {
    /// The values as they are.
    #[default]
    Raw,
    /// Triple bitmaps with codes of 3 bits: 11.3 bits for a bf16 weight, and the fastest to decode and to multiply with.
    Tbe3,
    /// The same with codes of 4 bits: 12 bits for a bf16 weight, hardly any escapes.
    Tbe4,
}

impl Encoding {
    /// The implementation.
    pub(crate) fn of(self) -> &'static dyn TensorEncoding {
        static TBE3: OnceLock<Tbe> = OnceLock::new();
        static TBE4: OnceLock<Tbe> = OnceLock::new();
        match self {
            Encoding::Raw => &Raw,
            Encoding::Tbe3 => TBE3.get_or_init(|| Tbe::new(Width::Three)),
            Encoding::Tbe4 => TBE4.get_or_init(|| Tbe::new(Width::Four)),
        }
    }
}

/// The implementation that decodes payloads of the encoding `id`.
///
/// # Errors
/// [`Rule::EncodingUnknown`] for one that this version does not have.
pub fn encoding(id: EncodingId) -> Result<&'static dyn TensorEncoding> {
    match id {
        EncodingId::Raw => Ok(Encoding::Raw.of()),
        EncodingId::Tbe => Ok(Encoding::Tbe3.of()),
        _ => Err(Error::new(Rule::EncodingUnknown).found(id)),
    }
}
