//! A device for the tests, and helpers for its buffers.

use std::sync::OnceLock;

use bigsmall_gpu::{Wgpu, WgpuOptions, wgpu};

/// Runs tests that need a device, and ends the process.
pub fn run(tests: &[bigsmall_testing::device::Test]) -> ! {
    bigsmall_testing::device::run(tests, &[])
}

/// The options for every device of these tests. A driver that runs on the CPU is allowed.
pub fn options() -> WgpuOptions {
    WgpuOptions::new().allow_software(true)
}

/// A separate device.
pub fn new_device() -> Wgpu {
    Wgpu::headless_with(&options()).expect("a device")
}

/// The device that most tests share.
pub fn gpu() -> &'static Wgpu {
    static GPU: OnceLock<Wgpu> = OnceLock::new();
    GPU.get_or_init(new_device)
}

/// A device with other limits.
pub fn small_device(change: impl Fn(&mut wgpu::Limits)) -> Wgpu {
    let mut limits = gpu().device().limits();
    change(&mut limits);
    Wgpu::headless_with(&options().limits(limits)).unwrap()
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
