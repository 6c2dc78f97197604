//! A device for the tests, and the values in its buffers.

use std::sync::OnceLock;

use bigsmall_gpu::{Wgpu, WgpuOptions, wgpu};
use libtest_mimic::{Arguments, Trial};

/// Runs tests that need a device. Without one they are counted as ignored, and a line says so; with
/// `BIGSMALL_REQUIRE_GPU=1` they fail.
pub fn run(tests: &'static [(&'static str, fn())]) -> ! {
    let arguments = Arguments::from_args();
    let required = std::env::var_os("BIGSMALL_REQUIRE_GPU").is_some_and(|v| v == "1");
    let device = Wgpu::headless();
    match &device {
        Ok(gpu) => eprintln!("device: {}", gpu.description()),
        Err(error) => eprintln!("NO DEVICE, tests are skipped: {error}"),
    }
    let skip = device.is_err() && !required;
    let trials = tests
        .iter()
        .map(|&(name, test)| {
            Trial::test(name, move || {
                test();
                Ok(())
            })
            .with_ignored_flag(skip)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit()
}

/// The device that most tests share.
pub fn gpu() -> &'static Wgpu {
    static GPU: OnceLock<Wgpu> = OnceLock::new();
    GPU.get_or_init(|| Wgpu::headless().expect("a device"))
}

/// A device with other limits.
pub fn small_device(change: impl Fn(&mut wgpu::Limits)) -> Wgpu {
    let mut limits = gpu().device().limits();
    change(&mut limits);
    let mut options = WgpuOptions::default();
    options.limits = Some(limits);
    Wgpu::headless_with(&options).unwrap()
}

pub fn buffer(gpu: &Wgpu, values: &[f32]) -> wgpu::Buffer {
    let buffer = gpu.new_buffer(values.len()).unwrap();
    gpu.write_buffer(&buffer, values).unwrap();
    buffer
}

pub fn read(gpu: &Wgpu, buffer: &wgpu::Buffer, n: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; n];
    gpu.read_buffer(buffer, &mut values).unwrap();
    values
}
