//! The wgpu implementation.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bigsmall_format::{EncodedTensor, Error, Result, Rule, TensorEncoding};

use crate::cpu::encoding_of;
use crate::device::{Device, WgpuOptions};
use crate::kernels::{Kernel, MATVEC_COLUMNS, MatrixUnit, Pipelines, TILE_COLUMNS};
use crate::layout::Resident;
use crate::transformer::LayerParams;
use crate::tuning::{Tuning, Variant};
use crate::upload::{Matrix, Shard, upload};
use crate::weights::WgpuWeights;
use crate::{MatmulBackend, check_len};

/// Matrix products on a Vulkan, Metal or DX12 device.
///
/// ```
/// use bigsmall_gpu::{MatmulBackend, TensorSpec, Dtype, Wgpu};
/// use bigsmall_format::{Raw, encode_tensor};
/// let spec = TensorSpec::new("w", Dtype::BF16, &[2, 2])?;
/// let identity = [0x80, 0x3f, 0, 0, 0, 0, 0x80, 0x3f];
/// let tensor = encode_tensor(&Raw, &spec, &identity[..].to_vec(), 1)?;
/// // A machine without a GPU says so with an error.
/// if let Ok(gpu) = Wgpu::headless() {
///     let weights = gpu.upload(&tensor)?;
///     let mut y = [0.0; 2];
///     gpu.matmul(&weights, &[3.0, 4.0], 1, &mut y)?;
///     assert_eq!(y, [3.0, 4.0]);
/// }
/// # Ok::<(), bigsmall_gpu::Error>(())
/// ```
pub struct Wgpu {
    pub(crate) device: Device,
    pipelines: Pipelines,
    tuning: Mutex<Tuning>,
    /// Where matrices are decoded for a product: kept, since a new buffer is filled with zeros
    /// first.
    decoded: Mutex<Option<wgpu::Buffer>>,
    pub(crate) layer_params: Mutex<HashMap<LayerParams, wgpu::Buffer>>,
}

impl std::fmt::Debug for Wgpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wgpu").field("device", &self.description()).finish_non_exhaustive()
    }
}

impl Wgpu {
    /// The fastest device of this machine, without a window.
    ///
    /// # Errors
    /// [`Rule::BackendMissing`] where there is no adapter; [`Rule::Device`] where it gives no
    /// device.
    pub fn headless() -> Result<Self> {
        Self::headless_with(&WgpuOptions::default())
    }

    /// [`headless`](Self::headless) with options.
    ///
    /// # Errors
    /// [`Rule::BackendMissing`] where there is no such adapter; [`Rule::Device`] where it gives no
    /// device.
    pub fn headless_with(options: &WgpuOptions) -> Result<Self> {
        Ok(Self::with(Device::headless(options)?))
    }

    /// Works on the caller's device. Its limits decide how rows are split; no feature is needed.
    #[must_use]
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        Self::with(Device::from_parts(device, queue))
    }

    fn with(device: Device) -> Self {
        Wgpu {
            device,
            pipelines: Pipelines::default(),
            tuning: Mutex::default(),
            decoded: Mutex::default(),
            layer_params: Mutex::default(),
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

    /// Adapter, backend and driver, for tables.
    #[must_use]
    pub fn description(&self) -> String {
        let info = self.device.device.adapter_info();
        format!("{} ({}, {} {})", info.name, info.backend, info.driver, info.driver_info)
    }

    /// Whether products are taken by cooperative matrices where they suit: asked for, and found.
    #[must_use]
    pub fn cooperative(&self) -> bool {
        self.device.matrix_unit.is_some()
    }

    /// [`upload`](MatmulBackend::upload) with an encoding that this crate does not know, or into a
    /// form of the caller's choice; with `None` into the one that takes the fewest bytes. The
    /// host decodes, twice where it must choose, and packs; for matrices in ANS form
    /// [`upload_decoding`](Self::upload_decoding) has the device do it.
    ///
    /// Memory on the host: 32 MiB, and one row. Over the bus and on the device: the resident form.
    ///
    /// # Errors
    /// Those of [`upload`](MatmulBackend::upload); [`Rule::Device`] for a row that exceeds the
    /// device's limits.
    pub fn upload_with(
        &self,
        tensor: &EncodedTensor,
        encoding: &dyn TensorEncoding,
        form: Option<Resident>,
    ) -> Result<WgpuWeights> {
        let name = tensor.spec().name();
        let matrix = self
            .device
            .guarded(|| upload(&self.device, tensor, encoding, form))
            .map_err(|e| e.in_tensor(name))?;
        Ok(WgpuWeights::new(&self.device, name, matrix))
    }

    /// [`upload`](MatmulBackend::upload) into a form of the caller's choice.
    ///
    /// # Errors
    /// Those of [`upload_with`](Self::upload_with).
    pub fn upload_as(&self, tensor: &EncodedTensor, form: Resident) -> Result<WgpuWeights> {
        self.upload_with(tensor, &*encoding_of(tensor)?, Some(form))
    }

    /// A buffer for `n` values of f32 or u32, to be filled with zeros, written, read and bound.
    ///
    /// # Errors
    /// [`Rule::Memory`].
    pub fn new_buffer(&self, n: usize) -> Result<wgpu::Buffer> {
        self.device.storage("values", n)
    }

    /// Writes `values` to the front of `buffer`.
    ///
    /// # Errors
    /// [`Rule::BufferLength`] when it is shorter.
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

    /// Waits for all that was submitted, and reads the front of `buffer`.
    ///
    /// # Errors
    /// [`Rule::BufferLength`] when it is shorter; [`Rule::DeviceLost`].
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
            let (staging, copy) = self.copy_out(buffer, bytes.len())?;
            self.device.queue.submit([copy]);
            self.read_out(&staging, bytes)
        })
    }

    /// Submits `commands` and the way back of the front of `buffer` at once, does `meanwhile` while
    /// the device works, waits for all that was submitted, and fills `values`: a step of a
    /// program that needs one small result of each. What `meanwhile` submits is waited for as
    /// well; what it records can be submitted next.
    ///
    /// # Errors
    /// Those of `meanwhile`; [`Rule::BufferLength`] when `buffer` is shorter than `values`;
    /// [`Rule::DeviceLost`].
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
            let (staging, copy) = self.copy_out(buffer, bytes.len().max(1))?;
            self.device.queue.submit([commands, copy]);
            let done = meanwhile()?;
            self.read_out(&staging, bytes)?;
            Ok(done)
        })
    }

    /// A buffer that the host can read, and the copy of the front of `buffer` to it.
    fn copy_out(
        &self,
        buffer: &wgpu::Buffer,
        bytes: usize,
    ) -> Result<(wgpu::Buffer, wgpu::CommandBuffer)> {
        let padded = (bytes as u64).next_multiple_of(4);
        let staging = self.device.staging(padded)?;
        let mut encoder = self.device.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, padded);
        Ok((staging, encoder.finish()))
    }

    fn read_out(&self, staging: &wgpu::Buffer, bytes: &mut [u8]) -> Result<()> {
        self.device.read_mapped(staging, staging.size(), |read| {
            bytes.copy_from_slice(&read[..bytes.len()]);
        })
    }

    /// Records what `record` asks for, to be submitted later.
    ///
    /// # Errors
    /// Those of `record`; what the device reports meanwhile.
    pub fn record(
        &self,
        record: impl FnOnce(&mut wgpu::CommandEncoder) -> Result<()>,
    ) -> Result<wgpu::CommandBuffer> {
        self.device.guarded(|| {
            let mut encoder = self.device.device.create_command_encoder(&Default::default());
            record(&mut encoder)?;
            Ok(encoder.finish())
        })
    }

    /// Records what `record` asks for, and submits it without waiting.
    ///
    /// # Errors
    /// Those of `record`; what the device reports meanwhile.
    pub fn submit(
        &self,
        record: impl FnOnce(&mut wgpu::CommandEncoder) -> Result<()>,
    ) -> Result<()> {
        self.device.guarded(|| {
            let mut encoder = self.device.device.create_command_encoder(&Default::default());
            record(&mut encoder)?;
            self.device.queue.submit([encoder.finish()]);
            Ok(())
        })
    }

    /// Waits until the device has done all that was submitted.
    ///
    /// # Errors
    /// [`Rule::DeviceLost`].
    pub fn wait(&self) -> Result<()> {
        self.device.wait()
    }

    /// Records [`matmul`](MatmulBackend::matmul) with x and y in buffers, so that layers chain
    /// without a round trip. `x` holds `batch` rows of K values, `y` takes `batch` rows of M.
    ///
    /// # Errors
    /// [`Rule::BufferLength`] when a buffer is too short; [`Rule::Device`] when one is larger than
    /// the device can bind.
    pub fn matmul_into(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        weights: &WgpuWeights,
        x: &wgpu::Buffer,
        batch: usize,
        y: &wgpu::Buffer,
    ) -> Result<()> {
        let variant = self.variant(weights, batch);
        self.matmul_by_into(encoder, weights, x, batch, y, variant)
    }

    /// The choices made so far.
    #[must_use]
    pub fn tuning(&self) -> Tuning {
        self.tuning.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the choices.
    pub fn set_tuning(&self, tuning: Tuning) {
        *self.tuning.lock().unwrap_or_else(PoisonError::into_inner) = tuning;
    }

    fn variant(&self, weights: &WgpuWeights, batch: usize) -> Variant {
        let (m, k) = (weights.rows(), weights.cols());
        let tuning = self.tuning.lock().unwrap_or_else(PoisonError::into_inner);
        tuning.get(weights.resident(), m, k, batch)
    }

    /// Measures each [`Variant`] for `batch` columns, keeps the fastest for products to come, and
    /// returns it.
    ///
    /// # Errors
    /// Those of [`matmul`](MatmulBackend::matmul).
    pub fn tune(&self, weights: &WgpuWeights, batch: usize) -> Result<Variant> {
        let (m, k) = (weights.rows(), weights.cols());
        let x = self.new_buffer(batch.saturating_mul(k))?;
        let y = self.new_buffer(batch.saturating_mul(m))?;
        let mut best = (Duration::MAX, Variant::Fused);
        for variant in [Variant::Fused, Variant::DecodeFirst] {
            // The first run creates the pipelines; the shortest of the others counts.
            for run in 0..4 {
                self.wait()?;
                let start = Instant::now();
                self.submit(|e| self.matmul_by_into(e, weights, &x, batch, &y, variant))?;
                self.wait()?;
                if run > 0 && start.elapsed() < best.0 {
                    best = (start.elapsed(), variant);
                }
            }
        }
        let mut tuning = self.tuning.lock().unwrap_or_else(PoisonError::into_inner);
        tuning.set(weights.resident(), m, k, batch, best.1);
        Ok(best.1)
    }

    /// Records the rows `ids` of the matrix as f32 into `y`: an embedding. `ids` holds `n` row
    /// numbers as u32; for a number beyond the last row nothing is written.
    ///
    /// # Errors
    /// Those of [`matmul_into`](Self::matmul_into).
    pub fn gather_into(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        weights: &WgpuWeights,
        ids: &wgpu::Buffer,
        n: usize,
        y: &wgpu::Buffer,
    ) -> Result<()> {
        self.device.check_owner(weights.device, weights.name())?;
        let matrix = &weights.matrix;
        self.check_bound(ids, 4 * n as u64)?;
        self.check_bound(y, 4 * n as u64 * matrix.shape.cols as u64)?;
        if n == 0 {
            return Ok(());
        }
        self.device.guarded(|| {
            let kernel = Kernel::Gather { form: matrix.form };
            for shard in &matrix.shards {
                let params = self.params(weights, shard, n as u32, 0, 0, 0);
                let grid = fold(groups(n as u64 * matrix.shape.segments as u64), &self.device);
                self.dispatch(encoder, kernel, &params, Some(ids), Some(y), Some(shard), grid?);
            }
            Ok(())
        })
    }

    /// The rows `ids` of the matrix as f32.
    ///
    /// # Errors
    /// [`Rule::RangeOutOfBounds`] for a row that does not exist; [`Rule::BufferLength`] unless `y`
    /// holds `ids.len() * k` values.
    pub fn gather(&self, weights: &WgpuWeights, ids: &[u32], y: &mut [f32]) -> Result<()> {
        check_len("y", ids.len().checked_mul(weights.cols()), y.len())?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= weights.rows()) {
            return Err(Error::new(Rule::RangeOutOfBounds)
                .in_tensor(weights.name())
                .expected(format!("rows within 0..{}", weights.rows()))
                .found(id));
        }
        if y.is_empty() {
            return Ok(());
        }
        let ids_buffer = self.new_buffer(ids.len())?;
        let y_buffer = self.new_buffer(y.len())?;
        self.write_buffer(&ids_buffer, ids)?;
        self.submit(|e| self.gather_into(e, weights, &ids_buffer, ids.len(), &y_buffer))?;
        self.read_buffer(&y_buffer, y)
    }

    /// Records the decoding of the matrix to bf16 in `dst`, row-major. Rows with an odd number of
    /// columns are padded with one zero, so that each begins at a multiple of 4 bytes.
    ///
    /// # Errors
    /// Those of [`matmul_into`](Self::matmul_into).
    pub fn decompress_into(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        weights: &WgpuWeights,
        dst: &wgpu::Buffer,
    ) -> Result<()> {
        self.device.check_owner(weights.device, weights.name())?;
        let row_words = weights.cols().div_ceil(2) as u64;
        let bytes = 4 * row_words * weights.rows() as u64;
        check_size(dst, bytes)?;
        let whole = dst.size() <= self.device.limits.max_storage_buffer_binding_size;
        self.device.guarded(|| {
            if let ([shard], true) = (&weights.matrix.shards[..], whole) {
                return self.decode_rows(encoder, weights, shard, 0, shard.rows, dst);
            }
            for shard in &weights.matrix.shards {
                let (first, n) = (shard.first_row as u64 * row_words * 4, shard.rows);
                // A binding must begin at a multiple of the device's alignment, which a row need
                // not do: decode to a buffer of its own and copy.
                let len = n as u64 * row_words * 4;
                let scratch = self.device.storage("decoded rows", n * row_words as usize)?;
                self.decode_rows(encoder, weights, shard, 0, n, &scratch)?;
                encoder.copy_buffer_to_buffer(&scratch, 0, dst, first, len);
            }
            Ok(())
        })
    }

    /// Rows `from .. from + n` of a shard to the front of `dst`.
    fn decode_rows(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        weights: &WgpuWeights,
        shard: &Shard,
        from: usize,
        n: usize,
        dst: &wgpu::Buffer,
    ) -> Result<()> {
        let params = self.params(weights, shard, 0, 0, from as u32, n as u32);
        let grid = fold(groups(n as u64 * weights.matrix.shape.segments as u64), &self.device)?;
        let kernel = Kernel::DecodeRows { form: weights.matrix.form };
        self.dispatch(encoder, kernel, &params, None, Some(dst), Some(shard), grid);
        Ok(())
    }

    /// [`matmul_into`](Self::matmul_into) in a way of the caller's choice.
    ///
    /// # Errors
    /// Those of [`matmul_into`](Self::matmul_into); [`Rule::Memory`] where the decoded matrix does
    /// not fit.
    pub fn matmul_by_into(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        weights: &WgpuWeights,
        x: &wgpu::Buffer,
        batch: usize,
        y: &wgpu::Buffer,
        variant: Variant,
    ) -> Result<()> {
        self.device.check_owner(weights.device, weights.name())?;
        let matrix = &weights.matrix;
        let (m, k) = (matrix.rows as u64, matrix.shape.cols as u64);
        self.check_bound(x, 4 * batch as u64 * k)?;
        self.check_bound(y, 4 * batch as u64 * m)?;
        if batch == 0 || m == 0 {
            return Ok(());
        }
        self.device.guarded(|| {
            if k == 0 {
                encoder.clear_buffer(y, 0, Some(4 * batch as u64 * m));
                return Ok(());
            }
            let plan = Plan::new(batch as u32, self.matrix_unit(matrix, batch));
            let kernel = |form| match plan {
                Plan::Matvec { columns } => Kernel::Matvec { form, columns },
                Plan::Gemm { columns } => Kernel::Gemm { form, columns },
                Plan::Cooperative { unit } => Kernel::Cooperative { form, unit },
            };
            // The kernels read whole vec4s of x, the tiles four of them at a time.
            let granule = if matches!(plan, Plan::Gemm { .. }) { 16 } else { 4 };
            let x_stride = k.next_multiple_of(granule) / 4;
            let (x, scales) = if matches!(plan, Plan::Cooperative { .. }) {
                let (halves, scales) = self.split_x(encoder, weights, x, batch)?;
                (halves, Some(scales))
            } else if x_stride * 4 == k {
                (x.clone(), None)
            } else {
                (self.pad_x(encoder, weights, x, batch, x_stride)?, None)
            };
            for shard in &matrix.shards {
                let params = self.params(weights, shard, batch as u32, x_stride as u32, 0, 0);
                let grid = match plan {
                    Plan::Matvec { .. } => fold(groups(shard.rows as u64), &self.device)?,
                    Plan::Gemm { columns } => tiles(shard, batch, columns, &self.device)?,
                    Plan::Cooperative { .. } => tiles(shard, batch, 64, &self.device)?,
                };
                let (form, decoded) = match variant {
                    Variant::DecodeFirst if matrix.form != Resident::Plain => {
                        (Resident::Plain, Some(self.decode_plain(encoder, weights, shard)?))
                    }
                    _ => (matrix.form, None),
                };
                let resident = decoded.as_ref().map_or_else(|| shard.bindings(), |b| vec![b]);
                let bindings: Vec<_> = [(0, &params), (1, &x), (2, y)]
                    .into_iter()
                    .chain((3..).zip(resident))
                    .chain(scales.as_ref().map(|b| (7, b)))
                    .collect();
                self.dispatch_bound(encoder, kernel(form), &bindings, grid);
            }
            Ok(())
        })
    }

    /// A shard in plain form, until the next one is decoded.
    fn decode_plain(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        weights: &WgpuWeights,
        shard: &Shard,
    ) -> Result<wgpu::Buffer> {
        let matrix = &weights.matrix;
        let words = shard.rows * matrix.shape.plain_words();
        let plain = {
            let mut kept = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
            match &*kept {
                Some(buffer) if buffer.size() >= 4 * words as u64 => buffer.clone(),
                _ => {
                    // Before there are two.
                    *kept = None;
                    kept.insert(self.device.storage("decoded", words)?).clone()
                }
            }
        };
        let params = self.params(weights, shard, 0, 0, 0, 0);
        let grid = fold(groups(shard.rows as u64 * matrix.shape.segments as u64), &self.device)?;
        let kernel = Kernel::DecodePlain { form: matrix.form };
        self.dispatch(encoder, kernel, &params, None, Some(&plain), Some(shard), grid);
        Ok(plain)
    }

    /// x with `x_stride` vec4s a column.
    fn pad_x(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        weights: &WgpuWeights,
        x: &wgpu::Buffer,
        batch: usize,
        x_stride: u64,
    ) -> Result<wgpu::Buffer> {
        let n = batch as u64 * x_stride * 4;
        let padded = self.device.storage("padded x", n as usize)?;
        self.check_bound(&padded, 4 * n)?;
        let Some(shard) = weights.matrix.shards.first() else { return Ok(padded) };
        let params = self.params(weights, shard, batch as u32, x_stride as u32, 0, 0);
        let grid = fold(n.div_ceil(256), &self.device)?;
        let bindings = [(0, &params), (1, x), (2, &padded)];
        self.dispatch_bound(encoder, Kernel::PadX, &bindings, grid);
        Ok(padded)
    }

    /// The cooperative matrices that can multiply this one with so many columns.
    fn matrix_unit(&self, matrix: &Matrix, batch: usize) -> Option<MatrixUnit> {
        let halves = 4 * halves_words(matrix, batch) as u64;
        let limits = &self.device.limits;
        let fits = halves <= limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        matrix.half_offset.and(self.device.matrix_unit).filter(|_| fits)
    }

    /// The columns of x as f16, and what to multiply the products with.
    fn split_x(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        weights: &WgpuWeights,
        x: &wgpu::Buffer,
        batch: usize,
    ) -> Result<(wgpu::Buffer, wgpu::Buffer)> {
        let halves = self.device.storage("x in f16", halves_words(&weights.matrix, batch))?;
        let scales = self.device.storage("scales of x", batch)?;
        if let Some(shard) = weights.matrix.shards.first() {
            let params = self.params(weights, shard, batch as u32, 0, 0, 0);
            let grid = fold(batch as u64, &self.device)?;
            let bindings = [(0, &params), (1, x), (2, &halves), (3, &scales)];
            self.dispatch_bound(encoder, Kernel::SplitX, &bindings, grid);
        }
        Ok((halves, scales))
    }

    #[allow(clippy::too_many_arguments)] // one dispatch is exactly these
    fn dispatch(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        kernel: Kernel,
        params: &wgpu::Buffer,
        input: Option<&wgpu::Buffer>,
        output: Option<&wgpu::Buffer>,
        shard: Option<&Shard>,
        grid: [u32; 3],
    ) {
        let weights = shard.map(Shard::bindings).unwrap_or_default();
        let bindings: Vec<(u32, &wgpu::Buffer)> = [(0, params)]
            .into_iter()
            .chain(input.map(|b| (1, b)))
            .chain(output.map(|b| (2, b)))
            .chain((3..).zip(weights))
            .collect();
        self.dispatch_bound(encoder, kernel, &bindings, grid);
    }

    pub(crate) fn dispatch_bound(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        kernel: Kernel,
        bindings: &[(u32, &wgpu::Buffer)],
        [x, y, z]: [u32; 3],
    ) {
        let pipeline = self.pipelines.get(&self.device, kernel);
        let entries: Vec<wgpu::BindGroupEntry<'_>> = bindings
            .iter()
            .map(|&(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        let group = self.device.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(kernel.entry()),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(kernel.entry()),
            timestamp_writes: None,
        });
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(x, y, z);
    }

    /// Insists that `buffer` holds `bytes` and can be bound as a whole.
    pub(crate) fn check_bound(&self, buffer: &wgpu::Buffer, bytes: u64) -> Result<()> {
        check_size(buffer, bytes)?;
        let most = self.device.limits.max_storage_buffer_binding_size;
        if buffer.size() > most {
            return Err(Error::new(Rule::Device)
                .expected(format!("a buffer of at most {most} bytes"))
                .found(buffer.size()));
        }
        Ok(())
    }

    /// Rows of x, or of y, that one product may have: what fits a buffer.
    fn most_batch(&self, weights: &WgpuWeights) -> usize {
        let limits = &self.device.limits;
        let most = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(1 << 28);
        let column = 4 * (weights.rows().max(weights.cols() + 16) as u64);
        (most / column).clamp(1, 1 << 20) as usize
    }

    fn multiply(
        &self,
        weights: &WgpuWeights,
        x: &[f32],
        batch: usize,
        y: &mut [f32],
    ) -> Result<()> {
        let (m, k) = (weights.rows(), weights.cols());
        check_len("x", batch.checked_mul(k), x.len())?;
        check_len("y", batch.checked_mul(m), y.len())?;
        if k == 0 {
            y.fill(0.0);
        }
        if x.is_empty() || y.is_empty() {
            return Ok(());
        }
        let at_once = self.most_batch(weights);
        for (x, y) in x.chunks(at_once * k).zip(y.chunks_mut(at_once * m)) {
            let batch = x.len() / k;
            let x_buffer = self.new_buffer(x.len())?;
            let y_buffer = self.new_buffer(y.len())?;
            self.write_buffer(&x_buffer, x)?;
            self.submit(|e| self.matmul_into(e, weights, &x_buffer, batch, &y_buffer))?;
            self.read_buffer(&y_buffer, y)?;
        }
        Ok(())
    }
}

impl MatmulBackend for Wgpu {
    type Weights = WgpuWeights;

    fn upload(&self, tensor: &EncodedTensor) -> Result<WgpuWeights> {
        self.upload_with(tensor, &*encoding_of(tensor)?, None)
    }

    fn matmul(&self, weights: &WgpuWeights, x: &[f32], batch: usize, y: &mut [f32]) -> Result<()> {
        self.multiply(weights, x, batch, y).map_err(|e| e.in_tensor(weights.name()))
    }

    fn decompress(&self, weights: &WgpuWeights, dst: &mut [u8]) -> Result<()> {
        self.device.check_owner(weights.device, weights.name())?;
        let cols = weights.cols();
        check_len("bytes", weights.rows().checked_mul(2 * cols), dst.len())?;
        if dst.is_empty() {
            return Ok(());
        }
        let row_words = cols.div_ceil(2);
        let most = self.device.limits.max_storage_buffer_binding_size.min(32 << 20) as usize;
        let at_once = (most / (4 * row_words)).max(1);
        let mut rows_out = dst.chunks_exact_mut(2 * cols);
        for shard in &weights.matrix.shards {
            for from in (0..shard.rows).step_by(at_once) {
                let n = at_once.min(shard.rows - from);
                let bytes = 4 * (n * row_words) as u64;
                self.device.guarded(|| {
                    let decoded = self.device.storage("decoded rows", n * row_words)?;
                    let staging = self.device.staging(bytes)?;
                    let mut encoder =
                        self.device.device.create_command_encoder(&Default::default());
                    self.decode_rows(&mut encoder, weights, shard, from, n, &decoded)?;
                    encoder.copy_buffer_to_buffer(&decoded, 0, &staging, 0, bytes);
                    self.device.queue.submit([encoder.finish()]);
                    self.device.read_mapped(&staging, bytes, |read| {
                        for (row, out) in read.chunks_exact(4 * row_words).zip(&mut rows_out) {
                            out.copy_from_slice(&row[..2 * cols]);
                        }
                    })
                })?;
            }
        }
        Ok(())
    }
}

/// Which kernel serves a batch: a function of the batch and of what the device has alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Matvec { columns: u32 },
    Gemm { columns: u32 },
    Cooperative { unit: MatrixUnit },
}

impl Plan {
    fn new(batch: u32, unit: Option<MatrixUnit>) -> Self {
        // Cooperative matrices have tiles of 64 columns, which smaller batches leave empty.
        if let (Some(unit), 33..) = (unit, batch) {
            return Plan::Cooperative { unit };
        }
        let least = |sizes: &[u32]| sizes.iter().copied().find(|&n| n >= batch);
        match least(&MATVEC_COLUMNS) {
            Some(columns) => Plan::Matvec { columns },
            None => Plan::Gemm { columns: least(&TILE_COLUMNS).unwrap_or(64) },
        }
    }
}

/// Words of x as two columns of f16 each, which are as long as the rows of the matrix. The tiles
/// read 64 columns at a time.
fn halves_words(matrix: &Matrix, batch: usize) -> usize {
    2 * matrix.shape.plain_words() * batch.next_multiple_of(64)
}

/// Workgroups for tiles of 32 rows of a shard and so many columns.
fn tiles(shard: &Shard, batch: usize, columns: u32, device: &Device) -> Result<[u32; 3]> {
    let [x, y, _] = fold((shard.rows as u64).div_ceil(32), device)?;
    Ok([x, y, (batch as u32).div_ceil(columns)])
}

/// Workgroups for so many groups of 32 lanes.
pub(crate) fn groups(n: u64) -> u64 {
    n.div_ceil(8)
}

/// A grid of at least `n` workgroups within the device's limit for each dimension.
pub(crate) fn fold(n: u64, device: &Device) -> Result<[u32; 3]> {
    let most = u64::from(device.limits.max_compute_workgroups_per_dimension);
    let x = n.min(most);
    let y = n.div_ceil(x.max(1));
    // Even rows of the grid, so that few workgroups find nothing to do.
    let x = n.div_ceil(y.max(1));
    if y > most || n > 1 << 29 {
        return Err(Error::new(Rule::Device).expected(format!("{most}^2 workgroups")).found(n));
    }
    Ok([x as u32, y as u32, 1])
}

fn check_size(buffer: &wgpu::Buffer, bytes: u64) -> Result<()> {
    if buffer.size() < bytes {
        return Err(Error::new(Rule::BufferLength)
            .expected(format!("a buffer of {bytes} bytes"))
            .found(buffer.size()));
    }
    Ok(())
}
