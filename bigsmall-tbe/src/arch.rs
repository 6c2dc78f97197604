//! Kernels, one module an instruction set. `unsafe` stands here and nowhere else in the crate.
//!
//! Each module gives out its kernels only if the machine has the instructions; they are safe
//! functions that check every length.

#[cfg(target_arch = "aarch64")]
pub(crate) mod aarch64;
pub(crate) mod portable;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
