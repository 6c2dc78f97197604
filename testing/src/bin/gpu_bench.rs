//! The benchmark of the GPU kernels; see the module `gpu_bench`.

use std::process::ExitCode;

use bigsmall_testing::gpu_bench::{Options, run};
use clap::Parser as _;

fn main() -> ExitCode {
    run(&Options::parse()).unwrap_or_else(|error| {
        eprintln!("gpu_bench: {error:?}");
        ExitCode::FAILURE
    })
}
