//! Chooses the kernels.

use bigsmall_format::{Backend, Result};

use crate::arch;
use crate::kernels::Kernels;

/// The backends that this machine can run, the fastest first. The portable one is always included.
///
/// ```
/// use bigsmall_tbe::{Backend, backends};
/// assert!(backends().any(|b| b == Backend::Portable));
/// ```
pub fn backends() -> impl Iterator<Item = Backend> {
    Backend::ALL.iter().copied().filter(|b| find(*b).is_some())
}

/// The kernels of `backend`, or an error if this machine cannot run them.
pub(crate) fn kernels(backend: Backend) -> Result<&'static Kernels> {
    find(backend).ok_or_else(|| backend.missing(backends()))
}

/// The kernels of the fastest of [`backends`].
pub(crate) fn best() -> &'static Kernels {
    Backend::ALL.iter().copied().find_map(find).unwrap_or(&arch::portable::KERNELS)
}

fn find(backend: Backend) -> Option<&'static Kernels> {
    match backend {
        #[cfg(target_arch = "x86_64")]
        Backend::Avx512 => arch::x86_64::avx512::kernels(),
        #[cfg(target_arch = "x86_64")]
        Backend::Avx2 => arch::x86_64::avx2::kernels(),
        #[cfg(target_arch = "aarch64")]
        Backend::Neon => arch::aarch64::neon::kernels(),
        Backend::Portable => Some(&arch::portable::KERNELS),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backend_of_this_machine_has_kernels() {
        for backend in Backend::ALL.iter().copied().filter(|b| b.is_available()) {
            assert_eq!(find(backend).is_some(), backend != Backend::Reference, "{backend}");
        }
    }
}
