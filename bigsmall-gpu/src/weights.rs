//! A matrix on a device.

use std::sync::Arc;

use crate::device::Device;
use crate::groups::Groups;
use crate::layout::Resident;
use crate::matrix::{Matrix, Shard};

/// A matrix in the memory of a device. It belongs to the [`Wgpu`](crate::Wgpu) that uploaded it;
/// another one refuses it.
pub struct WgpuWeights {
    name: Box<str>,
    /// The number of the device that holds it.
    pub(crate) device: u64,
    pub(crate) decoded_on_device: bool,
    pub(crate) matrix: Matrix,
    /// Bind groups, which keep buffers alive.
    groups: Arc<Groups>,
}

impl WgpuWeights {
    pub(crate) fn new(device: &Device, name: &str, matrix: Matrix) -> Self {
        WgpuWeights {
            name: name.into(),
            device: device.id,
            decoded_on_device: false,
            matrix,
            groups: Arc::clone(&device.groups),
        }
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

    /// The form of the weights in device memory.
    #[must_use]
    pub fn resident(&self) -> Resident {
        self.matrix.form
    }

    /// Whether the device decoded and packed them (see
    /// [`UploadOptions::decode_on_device`](crate::UploadOptions)).
    #[must_use]
    pub fn decoded_on_device(&self) -> bool {
        self.decoded_on_device
    }

    /// Bytes that the weights take on the device.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.buffers().into_iter().map(wgpu::Buffer::size).sum()
    }

    /// The buffers that hold the weights, shard by shard. Their layout is private and may change.
    /// Two uploads of one matrix in one form, to devices with the same limits, have the same bytes.
    #[must_use]
    pub fn buffers(&self) -> Vec<&wgpu::Buffer> {
        self.matrix.shards.iter().flat_map(Shard::bindings).collect()
    }

    /// The number of shards into which the rows were divided because of the device's limits.
    #[must_use]
    pub fn n_shards(&self) -> usize {
        self.matrix.shards.len()
    }
}

impl Drop for WgpuWeights {
    fn drop(&mut self) {
        self.groups.clear();
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
