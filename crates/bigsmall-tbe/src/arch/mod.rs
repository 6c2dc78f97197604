//! Kernels: each algorithm once for every instruction set, behind safe functions that have checked every length.

mod portable;

use bigsmall_format::{Error, Rule};

use crate::layout::Head;

pub(crate) use portable::escape_mask;

/// An instruction set that the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// x86-64 with AVX-512 F, BW, VL, VBMI and VBMI2 (Ice Lake, Zen 4 and later).
    Avx512,
    /// x86-64 with AVX2, FMA, BMI1, BMI2 and POPCNT.
    Avx2,
    /// 64-bit Arm.
    Neon,
    /// Any machine, without intrinsics.
    Portable,
}

impl Backend {
    /// Every backend, the fastest first.
    pub const ALL: &'static [Backend] =
        &[Backend::Avx512, Backend::Avx2, Backend::Neon, Backend::Portable];

    /// The backends that this machine can run, the fastest first; the portable one is always there.
    ///
    /// ```
    /// use bigsmall_tbe::Backend;
    /// assert!(Backend::available().any(|b| b == Backend::Portable));
    /// ```
    pub fn available() -> impl Iterator<Item = Backend> {
        Backend::ALL.iter().copied().filter(|b| Kernels::of(*b).is_some())
    }

    /// The fastest backend that this machine can run: what is used where none is asked for.
    #[must_use]
    pub fn best() -> Backend {
        Backend::available().next().unwrap_or(Backend::Portable)
    }

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Backend::Avx512 => "avx512",
            Backend::Avx2 => "avx2",
            Backend::Neon => "neon",
            Backend::Portable => "portable",
        }
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Consecutive tiles of a validated block.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a> {
    pub(crate) head: Head,
    /// `bitmaps_per_tile` for each tile.
    pub(crate) bitmaps: &'a [[u8; 8]],
    /// One byte for each weight, or empty where the dtype has no byte plane.
    pub(crate) plane: &'a [u8],
    /// The escapes from the first tile on, at least as many as the tiles have.
    pub(crate) escapes: &'a [u8],
}

/// The kernels of one backend. A table is handed out only where the machine has the instructions, so that its functions are
/// safe to call.
pub(crate) struct Kernels {
    pub(crate) backend: Backend,
    /// Compares the escape starts with the escape codes: the number of escapes, or the first group that is wrong.
    pub(crate) count_escapes: fn(&Head, &[[u8; 8]], &[[u8; 2]]) -> Result<usize, usize>,
    /// Decodes tiles; the last one may be cut short by the end of `out`, which holds whole values.
    pub(crate) decode: fn(&Tiles<'_>, &mut [u8]),
}

impl Kernels {
    /// The kernels of `backend`; `None` where this machine cannot run them.
    pub(crate) fn of(backend: Backend) -> Option<&'static Kernels> {
        match backend {
            Backend::Portable => Some(&portable::KERNELS),
            _ => None,
        }
    }

    /// The kernels of `backend`, or the error that says they are missing.
    pub(crate) fn require(backend: Backend) -> bigsmall_format::Result<&'static Kernels> {
        Kernels::of(backend).ok_or_else(|| {
            let names: Vec<_> = Backend::available().map(Backend::name).collect();
            Error::new(Rule::BackendMissing).expected(names.join(", ")).found(backend)
        })
    }

    /// The kernels of [`Backend::best`].
    pub(crate) fn best() -> &'static Kernels {
        Kernels::of(Backend::best()).unwrap_or(&portable::KERNELS)
    }
}
