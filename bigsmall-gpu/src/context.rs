//! A device, its queue and its buffers.

use std::sync::Mutex;

use crate::device::{Device, check_size};
use crate::dispatch::Dispatcher;
use crate::error::Result;
use crate::options::WgpuOptions;
use crate::scratch::Scratch;
use crate::tuning::Tuning;

/// Matrix products on a Vulkan, Metal or DX12 device.
///
/// ```
/// use bigsmall_gpu::{Dtype, MatmulBackend, TensorSpec, Wgpu, WgpuOptions};
/// use bigsmall_format::{Raw, encode_tensor};
/// let spec = TensorSpec::new("w", Dtype::BF16, &[2, 2])?;
/// let identity = [0x80, 0x3f, 0, 0, 0, 0, 0x80, 0x3f];
/// let tensor = encode_tensor(&Raw, &spec, &identity[..].to_vec())?;
/// // This is an error if there is neither a GPU nor a driver that runs on the CPU.
/// if let Ok(gpu) = Wgpu::headless_with(&WgpuOptions::new().allow_software(true)) {
///     let weights = gpu.upload(&tensor)?;
///     let mut y = [0.0; 2];
///     gpu.matmul(&weights, &[3.0, 4.0], 1, &mut y)?;
///     assert_eq!(y, [3.0, 4.0]);
/// }
/// # Ok::<(), bigsmall_gpu::Error>(())
/// ```
///
/// Uploaded weights belong to the `Wgpu` that uploaded them; another one refuses them. The buffers
/// of [`new_buffer`](Self::new_buffer) are plain wgpu buffers. wgpu refuses a buffer of another
/// device if both devices were made by [`headless`](Self::headless), or by one instance of the
/// caller.
///
/// The buffers that the last two recordings used stay in device memory until the next recording,
/// until the next new buffer, or until any weights are dropped. What attention needs for a context
/// of more than 256 positions, up to 32 MiB, is kept as long as the `Wgpu`.
pub struct Wgpu {
    pub(crate) device: Device,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) tuning: Mutex<Tuning>,
    /// The matrix that is decoded for a product.
    pub(crate) decoded: Scratch,
    /// What attention has for each tile of positions.
    #[cfg(feature = "transformer")]
    pub(crate) tiles: Scratch,
}

impl std::fmt::Debug for Wgpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wgpu").field("device", &self.description()).finish_non_exhaustive()
    }
}

impl Wgpu {
    /// Opens the fastest GPU of this machine, without a window. A driver that runs on the CPU is
    /// used only if [`WgpuOptions::allow_software`] is set.
    ///
    /// # Errors
    /// [`ErrorKind::NoAdapter`](crate::ErrorKind::NoAdapter) if there is no GPU;
    /// [`ErrorKind::Device`](crate::ErrorKind::Device) if the GPU cannot be opened.
    pub fn headless() -> Result<Self> {
        Self::headless_with(&WgpuOptions::default())
    }

    /// [`headless`](Self::headless) with options.
    ///
    /// # Errors
    /// [`ErrorKind::NoAdapter`](crate::ErrorKind::NoAdapter) if no adapter fits the options;
    /// [`ErrorKind::Device`](crate::ErrorKind::Device) if the adapter cannot be opened.
    pub fn headless_with(options: &WgpuOptions) -> Result<Self> {
        Ok(Self::with(Device::headless(options)?))
    }

    /// Uses the caller's device. Its limits decide how matrices are split by rows. No optional
    /// feature of wgpu is needed.
    #[must_use]
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        Self::with(Device::from_parts(device, queue))
    }

    fn with(device: Device) -> Self {
        Wgpu {
            device,
            dispatcher: Dispatcher::default(),
            tuning: Mutex::default(),
            decoded: Scratch::default(),
            #[cfg(feature = "transformer")]
            tiles: Scratch::default(),
        }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        &self.device.device
    }

    /// The queue.
    #[must_use]
    pub fn queue(&self) -> &wgpu::Queue {
        &self.device.queue
    }

    /// The names of adapter, backend and driver, for reports.
    #[must_use]
    pub fn description(&self) -> String {
        let info = self.device.device.adapter_info();
        format!("{} ({}, {} {})", info.name, info.backend, info.driver, info.driver_info)
    }

    /// Whether large batches use cooperative matrices: the options request them, and the device
    /// supports them.
    #[must_use]
    pub fn cooperative(&self) -> bool {
        self.device.matrix_unit.is_some()
    }

    /// Creates a buffer for `n` values of f32 or u32, all zeros. It can be written, read and bound.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`](crate::ErrorKind).
    pub fn new_buffer(&self, n: usize) -> Result<wgpu::Buffer> {
        self.device.storage("values", n)
    }

    /// Writes `values` to the front of `buffer`.
    ///
    /// # Errors
    /// [`ErrorKind::BufferLength`](crate::ErrorKind) if the buffer is shorter.
    pub fn write_buffer<T: bytemuck::NoUninit>(
        &self,
        buffer: &wgpu::Buffer,
        values: &[T],
    ) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        check_size(buffer, bytes.len() as u64)?;
        self.device.guarded(|| {
            self.device.queue.write_buffer(buffer, 0, bytes);
            Ok(())
        })
    }

    /// Waits for all submitted commands, and reads the front of `buffer`.
    ///
    /// # Errors
    /// [`ErrorKind::BufferLength`](crate::ErrorKind) if the buffer is shorter;
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind).
    pub fn read_buffer<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
        &self,
        buffer: &wgpu::Buffer,
        values: &mut [T],
    ) -> Result<()> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        check_size(buffer, bytes.len() as u64)?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.device.guarded(|| {
            let (staging, copy) = self.device.copy_out(buffer, bytes.len())?;
            self.device.queue.submit([copy]);
            self.device.read_out(&staging, bytes)
        })
    }

    /// Waits until the device has finished all submitted commands.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceLost`](crate::ErrorKind).
    pub fn wait(&self) -> Result<()> {
        self.device.wait()
    }
}
