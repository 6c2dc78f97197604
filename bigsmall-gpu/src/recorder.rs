//! Records commands, submits them, and reads results back.

use crate::context::Wgpu;
use crate::device::check_size;
use crate::error::Result;
use crate::kernels::Kernel;

/// Records kernels into a command encoder. [`Wgpu::submit`] and [`Wgpu::record`] make one.
///
/// ```
/// use bigsmall_gpu::Wgpu;
/// # fn main() -> bigsmall_gpu::Result<()> {
/// # let options = bigsmall_gpu::WgpuOptions::new().allow_software(true);
/// # let Ok(gpu) = Wgpu::headless_with(&options) else { return Ok(()) };
/// let (a, b) = (gpu.new_buffer(4)?, gpu.new_buffer(4)?);
/// gpu.write_buffer(&a, &[1f32, 2.0, 3.0, 4.0])?;
/// // Kernels and commands of wgpu can be mixed.
/// gpu.submit(|recorder| {
///     recorder.encoder().copy_buffer_to_buffer(&a, 0, &b, 0, 16);
///     Ok(())
/// })?;
/// let mut values = [0f32; 4];
/// gpu.read_buffer(&b, &mut values)?;
/// assert_eq!(values, [1.0, 2.0, 3.0, 4.0]);
/// # Ok(())
/// # }
/// ```
pub struct Recorder<'a> {
    pub(crate) gpu: &'a Wgpu,
    encoder: &'a mut wgpu::CommandEncoder,
    /// The pass of the kernels since the last other command. It ends before `encoder` is used.
    pass: Option<wgpu::ComputePass<'static>>,
}

impl std::fmt::Debug for Recorder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("gpu", self.gpu).finish_non_exhaustive()
    }
}

impl<'a> Recorder<'a> {
    fn new(gpu: &'a Wgpu, encoder: &'a mut wgpu::CommandEncoder) -> Self {
        gpu.device.groups.turn();
        Recorder { gpu, encoder, pass: None }
    }

    /// The encoder, for commands of wgpu between the kernels.
    #[must_use]
    pub fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        self.pass = None;
        self.encoder
    }

    pub(crate) fn dispatch(
        &mut self,
        kernel: Kernel,
        params: &impl bytemuck::NoUninit,
        bindings: &[(u32, &wgpu::Buffer)],
        grid: [u32; 3],
    ) -> Result<()> {
        let Wgpu { device, dispatcher, .. } = self.gpu;
        let pass = self.pass.get_or_insert_with(|| {
            // The recorder borrows the encoder for as long as the pass may be open.
            self.encoder.begin_compute_pass(&Default::default()).forget_lifetime()
        });
        dispatcher.record(device, pass, kernel, params, bindings, grid)
    }
}

impl Wgpu {
    /// Records commands that are submitted later.
    ///
    /// # Errors
    /// Those of `record`; errors that the device reports meanwhile.
    pub fn record(
        &self,
        record: impl FnOnce(&mut Recorder<'_>) -> Result<()>,
    ) -> Result<wgpu::CommandBuffer> {
        self.device.guarded(|| self.record_unguarded(record))
    }

    fn record_unguarded(
        &self,
        record: impl FnOnce(&mut Recorder<'_>) -> Result<()>,
    ) -> Result<wgpu::CommandBuffer> {
        let mut encoder = self.device.device.create_command_encoder(&Default::default());
        record(&mut Recorder::new(self, &mut encoder))?;
        Ok(encoder.finish())
    }

    /// Records commands into the caller's encoder, which must belong to this device.
    ///
    /// # Errors
    /// Those of `record`; errors that the device reports meanwhile. After an error the encoder may
    /// hold some of the commands.
    pub fn record_into(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        record: impl FnOnce(&mut Recorder<'_>) -> Result<()>,
    ) -> Result<()> {
        self.device.guarded(|| record(&mut Recorder::new(self, encoder)))
    }

    /// Records commands and submits them, without waiting for the device.
    ///
    /// # Errors
    /// Those of `record`; errors that the device reports meanwhile.
    pub fn submit(&self, record: impl FnOnce(&mut Recorder<'_>) -> Result<()>) -> Result<()> {
        self.device.guarded(|| {
            let commands = self.record_unguarded(record)?;
            self.device.queue.submit([commands]);
            Ok(())
        })
    }

    /// Submits `commands` and reads the front of `buffer` into `values`. It calls `meanwhile` while
    /// the device works, then waits. Use it in a loop whose steps each need one small result:
    /// record the commands of the next step in `meanwhile`. Commands that `meanwhile` submits are
    /// waited for as well.
    ///
    /// # Errors
    /// Those of `meanwhile`; [`ErrorKind::BufferLength`](crate::ErrorKind) if `buffer` is shorter
    /// than `values`; [`ErrorKind::DeviceLost`](crate::ErrorKind).
    pub fn submit_and_read<T: bytemuck::AnyBitPattern + bytemuck::NoUninit, M>(
        &self,
        commands: wgpu::CommandBuffer,
        buffer: &wgpu::Buffer,
        values: &mut [T],
        meanwhile: impl FnOnce() -> Result<M>,
    ) -> Result<M> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        check_size(buffer, bytes.len() as u64)?;
        self.device.guarded(|| {
            let (staging, copy) = self.device.copy_out(buffer, bytes.len().max(1))?;
            self.device.queue.submit([commands, copy]);
            let done = meanwhile()?;
            self.device.read_out(&staging, bytes)?;
            Ok(done)
        })
    }
}
