//! Turns a kernel, its parameters and its buffers into commands.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::Kernel;
use crate::matrix::{Matrix, Shard};

/// The largest number of parameter buffers kept on the device. One token of a large model needs a
/// few hundred.
const KEPT_PARAMS: usize = 4096;

/// The parameters of one dispatch on a matrix: `Params` in `shaders/params.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
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
    /// For all rows of a shard.
    pub(crate) fn new(matrix: &Matrix, shard: &Shard) -> Self {
        Params::of_rows(matrix, shard.first_row, shard.rows)
    }

    /// For some rows of a matrix.
    pub(crate) fn of_rows(matrix: &Matrix, first_row: usize, rows: usize) -> Self {
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

    /// Sets the batch: `batch` columns of x, `x_stride` vec4s apart.
    pub(crate) fn batch(mut self, batch: usize, x_stride: u64) -> Self {
        (self.batch, self.x_stride) = (batch as u32, x_stride as u32);
        self
    }

    /// Sets the rows: `count` rows of the shard, beginning with row `from`.
    pub(crate) fn part(mut self, from: usize, count: usize) -> Self {
        (self.from, self.count) = (from as u32, count as u32);
        self
    }
}

/// Pipelines and parameter buffers of earlier dispatches, kept for later ones.
#[derive(Default)]
pub(crate) struct Dispatcher {
    pipelines: Mutex<HashMap<Kernel, wgpu::ComputePipeline>>,
    params: Mutex<HashMap<Box<[u8]>, wgpu::Buffer>>,
}

impl Dispatcher {
    /// Records `grid` workgroups of `kernel`, with its parameters at binding 0.
    pub(crate) fn record(
        &self,
        device: &Device,
        pass: &mut wgpu::ComputePass<'_>,
        kernel: Kernel,
        params: &impl bytemuck::NoUninit,
        bindings: &[(u32, &wgpu::Buffer)],
        [x, y, z]: [u32; 3],
    ) -> Result<()> {
        let pipeline = self.pipeline(device, kernel)?;
        let params = bytemuck::bytes_of(params);
        let make = || {
            let params = self.params(device, params)?;
            let entries: Vec<wgpu::BindGroupEntry<'_>> = [(0, &params)]
                .into_iter()
                .chain(bindings.iter().copied())
                .map(|(binding, buffer)| wgpu::BindGroupEntry {
                    binding,
                    resource: buffer.as_entire_binding(),
                })
                .collect();
            Ok(device.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(kernel.entry()),
                layout: &pipeline.get_bind_group_layout(0),
                entries: &entries,
            }))
        };
        let group = if kernel.has_a_position() {
            make()?
        } else {
            let buffers = bindings.iter().map(|&(at, buffer)| (at, buffer.clone())).collect();
            device.groups.get((kernel, params.into(), buffers), make)?
        };
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(x, y, z);
        Ok(())
    }

    /// The pipeline of `kernel`, created at its first use.
    fn pipeline(&self, device: &Device, kernel: Kernel) -> Result<wgpu::ComputePipeline> {
        let create = || {
            device.guarded(|| {
                let label = format!("{kernel:?}");
                let module = device.shader(&label, kernel.source());
                Ok(device.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                    label: Some(&label),
                    layout: None,
                    module: &module,
                    entry_point: Some(kernel.entry()),
                    compilation_options: wgpu::PipelineCompilationOptions {
                        constants: &[],
                        // No kernel reads workgroup memory that it has not written.
                        zero_initialize_workgroup_memory: false,
                    },
                    cache: None,
                }))
            })
        };
        kept(&self.pipelines, &kernel, || kernel, usize::MAX, create)
    }

    /// A buffer with these parameters on the device.
    fn params(&self, device: &Device, bytes: &[u8]) -> Result<wgpu::Buffer> {
        kept(&self.params, bytes, || bytes.into(), KEPT_PARAMS, || device.uniform(bytes))
    }
}

/// Returns the value of `key`, and makes and keeps it at the first use. If there are already `most`
/// values, all of them are dropped first.
fn kept<K, Q, V>(
    cache: &Mutex<HashMap<K, V>>,
    key: &Q,
    owned: impl FnOnce() -> K,
    most: usize,
    make: impl FnOnce() -> Result<V>,
) -> Result<V>
where
    K: Eq + Hash + std::borrow::Borrow<Q>,
    Q: Eq + Hash + ?Sized,
    V: Clone,
{
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(value) = cache.get(key) {
        return Ok(value.clone());
    }
    let value = make()?;
    if cache.len() >= most {
        cache.clear();
    }
    cache.insert(owned(), value.clone());
    Ok(value)
}

/// Workgroups for `n` groups of 32 lanes.
pub(crate) fn groups(n: u64) -> u64 {
    n.div_ceil(8)
}

/// A grid of at least `n` workgroups within the device's limit for each dimension.
pub(crate) fn fold(n: u64, device: &Device) -> Result<[u32; 3]> {
    let most = u64::from(device.limits.max_compute_workgroups_per_dimension);
    let x = n.min(most);
    let y = n.div_ceil(x.max(1));
    // All rows of the grid have nearly the right length, so few workgroups have nothing to do.
    let x = n.div_ceil(y.max(1));
    if y > most || n > 1 << 29 {
        return Err(Error::new(ErrorKind::TooLarge)
            .expected(format!("{most}^2 workgroups"))
            .found(n));
    }
    Ok([x as u32, y as u32, 1])
}
