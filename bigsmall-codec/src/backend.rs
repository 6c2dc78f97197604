//! Chooses the kernels.

use bigsmall_format::{Backend, Result};

#[cfg(target_arch = "aarch64")]
use crate::arch::aarch64::neon::Neon;
use crate::arch::portable::Portable;
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{avx2::Avx2, avx512::Avx512};
use crate::kernels::Kernels;
#[cfg(feature = "reference")]
use crate::reference::Reference;

/// The backends that this build has and this machine can run, the fastest first.
///
/// ```
/// use bigsmall_codec::{Backend, backends};
/// assert!(backends().any(|b| b == Backend::Portable));
/// ```
pub fn backends() -> impl Iterator<Item = Backend> {
    Backend::ALL.iter().copied().filter(|b| find(*b).is_some())
}

/// The fastest of [`backends`], but for the reference.
pub(crate) fn best() -> Backend {
    backends().find(|b| *b != Backend::Reference).unwrap_or(Backend::Portable)
}

/// The kernels of `backend`, or the error that says they are missing.
pub(crate) fn kernels(backend: Backend) -> Result<&'static dyn Kernels> {
    find(backend).ok_or_else(|| backend.missing(backends()))
}

fn find(backend: Backend) -> Option<&'static dyn Kernels> {
    match backend {
        #[cfg(target_arch = "x86_64")]
        Backend::Avx512 => Avx512::new().map(|b| b as _),
        #[cfg(target_arch = "x86_64")]
        Backend::Avx2 => Avx2::new().map(|b| b as _),
        #[cfg(target_arch = "aarch64")]
        Backend::Neon => Some(&Neon),
        Backend::Portable => Some(&Portable),
        #[cfg(feature = "reference")]
        Backend::Reference => Some(&Reference),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backend_of_this_machine_has_kernels() {
        for backend in Backend::ALL.iter().copied().filter(|b| b.is_available()) {
            let built_in = backend != Backend::Reference || cfg!(feature = "reference");
            assert_eq!(find(backend).is_some(), built_in, "{backend}");
        }
    }
}
