//! Kernels, one module per instruction set. This is the only place in the crate with `unsafe`.
//!
//! Each module returns its kernels only if the machine supports the instructions. The kernels are
//! safe functions that check every length.

#[cfg(target_arch = "aarch64")]
pub(crate) mod aarch64;
pub(crate) mod blocks;
pub(crate) mod portable;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
