//! Writes to buffers and limits the memory for copies on the host.

use crate::device::Device;
use crate::error::Result;

/// The number of bytes that wgpu may hold before the writer waits for the device.
const STAGED_BYTES: u64 = 24 << 20;

/// Writes to buffers. It waits for the device before wgpu holds too much unsent data.
pub(crate) struct Writer<'a> {
    device: &'a Device,
    staged: u64,
    most: u64,
}

impl<'a> Writer<'a> {
    /// Holds at most 24 MiB, and one write.
    pub(crate) fn new(device: &'a Device) -> Self {
        Writer { device, staged: 0, most: STAGED_BYTES }
    }

    /// Never waits for the device.
    pub(crate) fn unbounded(device: &'a Device) -> Self {
        Writer { device, staged: 0, most: u64::MAX }
    }

    pub(crate) fn write(
        &mut self,
        buffer: &wgpu::Buffer,
        at_word: usize,
        words: &[u32],
    ) -> Result<()> {
        self.write_bytes(buffer, 4 * at_word as u64, bytemuck::cast_slice(words))
    }

    /// Writes `bytes`, which must be whole words.
    pub(crate) fn write_bytes(
        &mut self,
        buffer: &wgpu::Buffer,
        at: u64,
        bytes: &[u8],
    ) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.device.queue.write_buffer(buffer, at, bytes);
        self.staged += bytes.len() as u64;
        if self.staged >= self.most { self.flush() } else { Ok(()) }
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        self.staged = 0;
        self.device.queue.submit([]);
        self.device.wait()
    }
}
