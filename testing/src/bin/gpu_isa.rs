//! Compiles the GPU kernels for GPUs that are not there; see the module `gpu_isa`.

use std::process::ExitCode;

use bigsmall_testing::gpu_isa::{Options, run};
use clap::Parser as _;

fn main() -> ExitCode {
    run(&Options::parse()).unwrap_or_else(|error| {
        eprintln!("gpu_isa: {error}");
        ExitCode::FAILURE
    })
}
