//! Products: the choice of the kernel for a batch, and its commands.

use std::sync::PoisonError;

use crate::device::Device;
use crate::dispatch::{Params, fold, groups};
use crate::error::Result;
use crate::kernels::{Kernel, MATVEC_COLUMNS, MatrixUnit, TILE_COLUMNS, rows_of_a_group};
use crate::layout::Resident;
use crate::matrix::{Matrix, Shard};
use crate::recorder::Recorder;
use crate::tuning::Variant;
use crate::weights::WgpuWeights;

/// The kind of kernel for a batch. It depends only on the batch and the features of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Matvec { columns: u32 },
    Gemm { columns: u32 },
    Cooperative { unit: MatrixUnit },
}

impl Plan {
    fn new(batch: u32, unit: Option<MatrixUnit>) -> Self {
        // Cooperative matrices have tiles of 64 columns; smaller batches would leave them empty.
        if let (Some(unit), 33..) = (unit, batch) {
            return Plan::Cooperative { unit };
        }
        let least = |sizes: &[u32]| sizes.iter().copied().find(|&n| n >= batch);
        // Up to 16 columns, two products of 8 take fewer instructions than a tile.
        match least(&MATVEC_COLUMNS).or((batch <= 16).then_some(8)) {
            Some(columns) => Plan::Matvec { columns },
            None => Plan::Gemm { columns: least(&TILE_COLUMNS).unwrap_or(64) },
        }
    }

    fn kernel(self, form: Resident) -> Kernel {
        match self {
            Plan::Matvec { columns } => Kernel::Matvec { form, columns },
            Plan::Gemm { columns } => Kernel::Gemm { form, columns },
            Plan::Cooperative { unit } => Kernel::Cooperative { form, unit },
        }
    }

    fn grid(self, shard: &Shard, batch: usize, device: &Device) -> Result<[u32; 3]> {
        let columns = match self {
            Plan::Matvec { columns } => {
                let rows = u64::from(rows_of_a_group(columns));
                return fold(groups((shard.rows as u64).div_ceil(rows)), device);
            }
            Plan::Gemm { columns } => columns,
            Plan::Cooperative { .. } => 64,
        };
        // Tiles of 32 rows.
        let [x, y, _] = fold((shard.rows as u64).div_ceil(32), device)?;
        Ok([x, y, (batch as u32).div_ceil(columns)])
    }
}

impl Recorder<'_> {
    /// Records [`matmul`](crate::MatmulBackend::matmul) with x and y in buffers, so that the output
    /// of one layer can be the input of the next without leaving the device. `x` holds `batch` rows
    /// of K values, `y` receives `batch` rows of M values.
    ///
    /// # Errors
    /// [`ErrorKind::WrongDevice`](crate::ErrorKind) for weights of another device;
    /// [`ErrorKind::BufferLength`](crate::ErrorKind) if a buffer is too short;
    /// [`ErrorKind::TooLarge`](crate::ErrorKind) if one is larger than the device can bind.
    pub fn matmul(
        &mut self,
        weights: &WgpuWeights,
        x: &wgpu::Buffer,
        batch: usize,
        y: &wgpu::Buffer,
    ) -> Result<()> {
        let tuning = self.gpu.tuning.lock().unwrap_or_else(PoisonError::into_inner);
        let variant = tuning.get(weights.resident(), weights.rows(), weights.cols(), batch);
        drop(tuning);
        self.matmul_by(weights, x, batch, y, variant)
    }

    /// [`matmul`](Self::matmul) with a variant that the caller chooses.
    ///
    /// # Errors
    /// Those of [`matmul`](Self::matmul); [`ErrorKind::OutOfMemory`](crate::ErrorKind) if the
    /// decoded matrix does not fit.
    pub fn matmul_by(
        &mut self,
        weights: &WgpuWeights,
        x: &wgpu::Buffer,
        batch: usize,
        y: &wgpu::Buffer,
        variant: Variant,
    ) -> Result<()> {
        let device = &self.gpu.device;
        device.check_owner(weights.device, weights.name())?;
        let matrix = &weights.matrix;
        let (m, k) = (matrix.rows as u64, matrix.shape.cols as u64);
        device.check_bound(x, 4 * batch as u64 * k)?;
        device.check_bound(y, 4 * batch as u64 * m)?;
        if batch == 0 || m == 0 {
            return Ok(());
        }
        if k == 0 {
            self.encoder().clear_buffer(y, 0, Some(4 * batch as u64 * m));
            return Ok(());
        }
        let plan = Plan::new(batch as u32, matrix_unit(device, matrix, batch));
        // The kernels read whole vec4s of x. The kernels with tiles read four vec4s at a time.
        let granule = if matches!(plan, Plan::Gemm { .. }) { 16 } else { 4 };
        let x_stride = k.next_multiple_of(granule) / 4;
        let (x, scales) = if matches!(plan, Plan::Cooperative { .. }) {
            let (halves, scales) = self.split_x(matrix, x, batch)?;
            (halves, Some(scales))
        } else if x_stride * 4 == k {
            (x.clone(), None)
        } else {
            (self.pad_x(matrix, x, batch, x_stride)?, None)
        };
        for shard in &matrix.shards {
            let params = Params::new(matrix, shard).batch(batch, x_stride);
            // The columns of one dispatch.
            let at_once = match plan {
                Plan::Matvec { columns } => columns as usize,
                _ => batch,
            };
            let grid = plan.grid(shard, batch, device)?;
            let (form, decoded) = match variant {
                Variant::DecodeFirst if matrix.form != Resident::Plain => {
                    (Resident::Plain, Some(self.decode_plain(matrix, shard)?))
                }
                _ => (matrix.form, None),
            };
            let resident = decoded.as_ref().map_or_else(|| shard.bindings(), |b| vec![b]);
            let bindings: Vec<_> = [(1, &x), (2, y)]
                .into_iter()
                .chain((3..).zip(resident))
                .chain(scales.as_ref().map(|b| (7, b)))
                .collect();
            for first in (0..batch).step_by(at_once) {
                let params = params.part(first, at_once.min(batch - first));
                self.dispatch(plan.kernel(form), &params, &bindings, grid)?;
            }
        }
        Ok(())
    }

    /// Decodes a shard to the plain form. The result is valid until the next shard is decoded.
    fn decode_plain(&mut self, matrix: &Matrix, shard: &Shard) -> Result<wgpu::Buffer> {
        let device = &self.gpu.device;
        let words = shard.rows * matrix.shape.plain_words();
        let plain = self.gpu.decoded.get(device, "decoded", words)?;
        let grid = fold(groups(shard.rows as u64 * matrix.shape.segments as u64), device)?;
        let bindings: Vec<_> =
            [(2, &plain)].into_iter().chain((3..).zip(shard.bindings())).collect();
        let kernel = Kernel::DecodePlain { form: matrix.form };
        self.dispatch(kernel, &Params::new(matrix, shard), &bindings, grid)?;
        Ok(plain)
    }

    /// x with columns padded to `x_stride` vec4s.
    fn pad_x(
        &mut self,
        matrix: &Matrix,
        x: &wgpu::Buffer,
        batch: usize,
        x_stride: u64,
    ) -> Result<wgpu::Buffer> {
        let device = &self.gpu.device;
        let n = batch as u64 * x_stride * 4;
        let padded = device.storage("padded x", n as usize)?;
        device.check_bound(&padded, 4 * n)?;
        let params = Params::of_rows(matrix, 0, matrix.rows).batch(batch, x_stride);
        let grid = fold(n.div_ceil(256), device)?;
        self.dispatch(Kernel::PadX, &params, &[(1, x), (2, &padded)], grid)?;
        Ok(padded)
    }

    /// The columns of x as f16, and the factors by which the products must be multiplied.
    fn split_x(
        &mut self,
        matrix: &Matrix,
        x: &wgpu::Buffer,
        batch: usize,
    ) -> Result<(wgpu::Buffer, wgpu::Buffer)> {
        let device = &self.gpu.device;
        let halves = device.storage("x in f16", halves_words(matrix, batch))?;
        let scales = device.storage("scales of x", batch)?;
        let params = Params::of_rows(matrix, 0, matrix.rows).batch(batch, 0);
        let grid = fold(batch as u64, device)?;
        self.dispatch(Kernel::SplitX, &params, &[(1, x), (2, &halves), (3, &scales)], grid)?;
        Ok((halves, scales))
    }
}

/// The kind of cooperative matrix with which this matrix can be multiplied, if any.
fn matrix_unit(device: &Device, matrix: &Matrix, batch: usize) -> Option<MatrixUnit> {
    let fits = 4 * halves_words(matrix, batch) as u64 <= device.largest_binding();
    matrix.half_offset.and(device.matrix_unit).filter(|_| fits)
}

/// The number of words for x as pairs of f16 columns, padded to the length of the matrix rows. The
/// number of columns is rounded up, since a tile reads 64 of them.
fn halves_words(matrix: &Matrix, batch: usize) -> usize {
    2 * matrix.shape.plain_words() * batch.next_multiple_of(64)
}
