//! The instruction sets that kernels are written for.

use crate::{Error, Result, Rule};

/// The implementation that does the work. All of them write and read the same bytes.
///
/// `bigsmall-codec` and `bigsmall-tbe` choose the fastest one when the program runs. Their
/// functions `backends` list those that are built in and that the machine can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// x86-64 with AVX-512 F, BW, DQ, VL, VBMI, VBMI2 and VNNI, GFNI, and what [`Avx2`](Self::Avx2)
    /// needs: Ice Lake, Zen 4 and later.
    Avx512,
    /// x86-64 with AVX2, FMA, F16C, BMI1, BMI2 and POPCNT: Haswell, Zen and later.
    Avx2,
    /// 64-bit Arm with NEON.
    Neon,
    /// Plain Rust, on every machine.
    Portable,
    /// `bigsmall-codec` only, with its feature `reference`: each step by the crate `constriction`.
    /// Slow; for tests.
    Reference,
}

impl Backend {
    /// Every backend, the fastest first.
    pub const ALL: &'static [Backend] =
        &[Backend::Avx512, Backend::Avx2, Backend::Neon, Backend::Portable, Backend::Reference];

    /// The name on the command line: `avx512`, `avx2`, `neon`, `portable` or `reference`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Backend::Avx512 => "avx512",
            Backend::Avx2 => "avx2",
            Backend::Neon => "neon",
            Backend::Portable => "portable",
            Backend::Reference => "reference",
        }
    }

    /// Whether this machine has the instructions. Kernels rely on it: true means that the processor
    /// has every feature that the variant's documentation names.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512 => {
                Backend::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vbmi2")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("gfni")
            }
            #[cfg(target_arch = "x86_64")]
            Backend::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2")
                    && is_x86_feature_detected!("popcnt")
            }
            #[cfg(target_arch = "aarch64")]
            // The kernels load words as bytes, the lowest first.
            Backend::Neon => {
                cfg!(target_endian = "little") && std::arch::is_aarch64_feature_detected!("neon")
            }
            Backend::Portable | Backend::Reference => true,
            #[allow(unreachable_patterns)] // no pattern is left on some machines
            _ => false,
        }
    }

    /// The fastest one that this machine can run; never [`Reference`](Self::Reference).
    #[must_use]
    pub fn best() -> Backend {
        let mut all = Backend::ALL.iter().copied();
        all.find(|b| b.is_available()).unwrap_or(Backend::Portable)
    }

    /// The backend of that name; `auto` is [`best`](Self::best).
    ///
    /// # Errors
    /// [`Rule::BackendMissing`] for a name that does not exist, or one that this machine cannot
    /// run.
    ///
    /// ```
    /// use bigsmall_format::Backend;
    /// assert_eq!(Backend::from_name("portable")?, Backend::Portable);
    /// assert_eq!(Backend::from_name("auto")?, Backend::best());
    /// assert!(Backend::from_name("abacus").is_err());
    /// # Ok::<(), bigsmall_format::Error>(())
    /// ```
    pub fn from_name(name: &str) -> Result<Backend> {
        if name == "auto" {
            return Ok(Backend::best());
        }
        let mut all = Backend::ALL.iter().copied().filter(|b| b.is_available());
        all.clone().find(|b| b.name() == name).ok_or_else(|| missing(name, &mut all))
    }

    /// The error for a backend that is not among `available`.
    #[doc(hidden)]
    #[must_use]
    pub fn missing(self, mut available: impl Iterator<Item = Backend>) -> Error {
        missing(self.name(), &mut available)
    }
}

#[cold]
fn missing(name: &str, available: &mut dyn Iterator<Item = Backend>) -> Error {
    let names: Vec<_> = available.map(Backend::name).collect();
    Error::new(Rule::BackendMissing).expected(names.join(", ")).found(name)
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
