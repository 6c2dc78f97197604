//! A matrix on a device, and the parameters of dispatches on it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::backend::Wgpu;
use crate::device::Device;
use crate::layout::Resident;
use crate::upload::{Matrix, Shard};

/// A matrix in the memory of a device.
pub struct WgpuWeights {
    name: Box<str>,
    /// The number of the device that holds it.
    pub(crate) device: u64,
    pub(crate) matrix: Matrix,
    /// The parameters of dispatches that were made before.
    params: Mutex<HashMap<Params, wgpu::Buffer>>,
}

impl WgpuWeights {
    pub(crate) fn new(device: &Device, name: &str, matrix: Matrix) -> Self {
        WgpuWeights { name: name.into(), device: device.id, matrix, params: Mutex::default() }
    }

    /// The tensor's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rows: values of y for each column of x.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.matrix.rows
    }

    /// Columns: values of x.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.matrix.shape.cols
    }

    /// How the weights lie in memory.
    #[must_use]
    pub fn resident(&self) -> Resident {
        self.matrix.form
    }

    /// Bytes that the weights take on the device.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.buffers().into_iter().map(wgpu::Buffer::size).sum()
    }

    /// The buffers that the weights lie in, shard after shard. How they lie there is no promise;
    /// two uploads of one matrix to one form on devices of the same limits leave the same
    /// bytes.
    #[must_use]
    pub fn buffers(&self) -> Vec<&wgpu::Buffer> {
        self.matrix.shards.iter().flat_map(Shard::bindings).collect()
    }

    /// Into how many pieces the rows were split, by the device's limits.
    #[must_use]
    pub fn n_shards(&self) -> usize {
        self.matrix.shards.len()
    }
}

impl std::fmt::Debug for WgpuWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WgpuWeights")
            .field("name", &self.name)
            .field("shape", &(self.rows(), self.cols()))
            .field("resident", &self.resident())
            .field("byte_len", &self.byte_len())
            .finish_non_exhaustive()
    }
}

/// The parameters of one dispatch, as `shaders/params.wgsl` has them.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Params {
    rows: u32,
    first_row: u32,
    all_rows: u32,
    cols: u32,
    blocks: u32,
    tail: u32,
    segments: u32,
    base: u32,
    batch: u32,
    x_stride: u32,
    from: u32,
    count: u32,
    half_offset: i32,
}

impl Params {
    /// Of all rows of a shard, and nothing else.
    pub(crate) fn new(matrix: &Matrix, first_row: usize, rows: usize) -> Self {
        Params {
            rows: rows as u32,
            first_row: first_row as u32,
            all_rows: matrix.rows as u32,
            cols: matrix.shape.cols as u32,
            blocks: matrix.shape.blocks as u32,
            tail: matrix.shape.tail as u32,
            segments: matrix.shape.segments as u32,
            base: u32::from(matrix.base) * 0x0101_0101,
            batch: 0,
            x_stride: 0,
            from: 0,
            count: 0,
            half_offset: matrix.half_offset.unwrap_or(0),
        }
    }

    /// In the memory of the device. Call it within [`Device::guarded`].
    pub(crate) fn buffer(&self, device: &Device) -> wgpu::Buffer {
        device.uniform(bytemuck::bytes_of(self))
    }
}

impl Wgpu {
    pub(crate) fn params(
        &self,
        weights: &WgpuWeights,
        shard: &Shard,
        batch: u32,
        x_stride: u32,
        from: u32,
        count: u32,
    ) -> wgpu::Buffer {
        let all = Params::new(&weights.matrix, shard.first_row, shard.rows);
        let params = Params { batch, x_stride, from, count, ..all };
        let mut cache = weights.params.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() > 256 {
            cache.clear();
        }
        cache.entry(params).or_insert_with(|| params.buffer(&self.device)).clone()
    }
}
