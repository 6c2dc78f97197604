//! Element types, named as safetensors names them.

use crate::{Error, Result, Rule};

macro_rules! dtypes {
    ($($variant:ident = $name:literal, $bits:literal, $doc:literal;)*) => {
        /// The element type of a tensor: every type that safetensors 0.8 knows.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[allow(non_camel_case_types)]
        pub enum Dtype {
            $(#[doc = $doc] $variant,)*
        }

        impl Dtype {
            /// Every dtype, in the order of the declaration.
            pub const ALL: &'static [Dtype] = &[$(Dtype::$variant),*];

            /// The name in a safetensors header, such as `"BF16"`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Dtype::$variant => $name,)* }
            }

            /// Bits of one element.
            #[must_use]
            pub const fn bits(self) -> u32 {
                match self { $(Dtype::$variant => $bits,)* }
            }
        }
    };
}

dtypes! {
    BOOL = "BOOL", 8, "Boolean, one byte.";
    F4 = "F4", 4, "OCP microscaling 4-bit float.";
    F6_E2M3 = "F6_E2M3", 6, "OCP microscaling 6-bit float, 2 exponent bits.";
    F6_E3M2 = "F6_E3M2", 6, "OCP microscaling 6-bit float, 3 exponent bits.";
    U8 = "U8", 8, "Unsigned byte.";
    I8 = "I8", 8, "Signed byte.";
    F8_E5M2 = "F8_E5M2", 8, "8-bit float, 5 exponent bits.";
    F8_E4M3 = "F8_E4M3", 8, "8-bit float, 4 exponent bits.";
    F8_E8M0 = "F8_E8M0", 8, "OCP microscaling scale: 8 exponent bits alone.";
    F8_E4M3FNUZ = "F8_E4M3FNUZ", 8, "8-bit float, 4 exponent bits, no infinities, one zero.";
    F8_E5M2FNUZ = "F8_E5M2FNUZ", 8, "8-bit float, 5 exponent bits, no infinities, one zero.";
    I16 = "I16", 16, "Signed 16-bit integer.";
    U16 = "U16", 16, "Unsigned 16-bit integer.";
    F16 = "F16", 16, "IEEE 754 half precision.";
    BF16 = "BF16", 16, "The upper half of an IEEE 754 single.";
    I32 = "I32", 32, "Signed 32-bit integer.";
    U32 = "U32", 32, "Unsigned 32-bit integer.";
    F32 = "F32", 32, "IEEE 754 single precision.";
    C64 = "C64", 64, "Complex number of two singles.";
    F64 = "F64", 64, "IEEE 754 double precision.";
    I64 = "I64", 64, "Signed 64-bit integer.";
    U64 = "U64", 64, "Unsigned 64-bit integer.";
}

impl Dtype {
    /// The dtype with that name in a safetensors header.
    ///
    /// # Errors
    /// [`Rule::DtypeUnknown`].
    pub fn from_name(name: &str) -> Result<Dtype> {
        Dtype::ALL.iter().copied().find(|d| d.name() == name).ok_or_else(|| {
            // Enough to see the mistake: an untrusted file may have megabytes here.
            let begin: String = name.chars().take(32).collect();
            Error::new(Rule::DtypeUnknown)
                .expected("a safetensors dtype")
                .found(format!("{begin:?}"))
        })
    }

    /// Bytes of one *unit*: blocks are counted in units (FORMAT.md section 3). A unit is an element
    /// for BF16, F16, F32 and F64, and one byte for all other dtypes.
    ///
    /// ```
    /// use bigsmall_format::Dtype;
    /// assert_eq!(Dtype::F32.unit_bytes(), 4);
    /// assert_eq!(Dtype::I64.unit_bytes(), 1);
    /// ```
    #[must_use]
    pub const fn unit_bytes(self) -> usize {
        match self {
            Dtype::BF16 | Dtype::F16 => 2,
            Dtype::F32 => 4,
            Dtype::F64 => 8,
            _ => 1,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
