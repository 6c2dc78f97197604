//! Kernels, one module an instruction set. `unsafe` stands here and nowhere else in the crate.
//!
//! Each backend is a type that exists only if the machine has the instructions; its safe functions
//! check every length before a kernel runs.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
pub(crate) mod aarch64;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod expand;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod fused;
pub(crate) mod portable;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tables;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
