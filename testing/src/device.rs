//! A runner for tests that need a device. A driver that runs on the CPU is enough. Without a device
//! the tests are counted as ignored, and a line says so; with `BIGSMALL_REQUIRE_GPU=1` they fail.

use bigsmall_gpu::{Wgpu, WgpuOptions};
use libtest_mimic::{Arguments, Trial};

/// A test and its name.
pub type Test = (&'static str, fn());

/// A device for a test: a GPU, or a driver that runs on the CPU.
///
/// # Errors
/// Those of [`Wgpu::headless_with`].
pub fn open() -> bigsmall_gpu::Result<Wgpu> {
    Wgpu::headless_with(&WgpuOptions::new().allow_software(true))
}

/// Runs the tests and ends the process. The tests in `anywhere` do not need a device.
pub fn run(on_device: &[Test], anywhere: &[Test]) -> ! {
    let device = open();
    match &device {
        Ok(gpu) => eprintln!("device: {}", gpu.description()),
        Err(error) => eprintln!("NO DEVICE, tests are skipped: {error:?}"),
    }
    let required = std::env::var_os("BIGSMALL_REQUIRE_GPU").is_some_and(|v| v == "1");
    let skip = device.is_err() && !required;
    let trial = |&(name, test): &Test, skip| {
        let run = move || {
            test();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(skip)
    };
    let on_device = on_device.iter().map(|test| trial(test, skip));
    let trials = on_device.chain(anywhere.iter().map(|test| trial(test, false))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}
