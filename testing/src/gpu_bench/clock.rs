//! Measures times on the device, and its memory bandwidth.

use std::time::Instant;

use bigsmall_gpu::{Recorder, Result, Wgpu, wgpu};

/// Measures the time of recorded commands: by device timestamps if the device supports them, else
/// by the host's clock.
pub(super) struct Clock<'a> {
    gpu: &'a Wgpu,
    pub(super) queries: Option<wgpu::QuerySet>,
    runs: usize,
}

/// Repetitions in one submission that is measured by the host's clock, so that the time of
/// submitting counts little.
const REPEATS: usize = 16;

/// Runs that are not measured.
const WARM_UPS: usize = 5;

impl<'a> Clock<'a> {
    /// The host's clock if `host`, or if the device has no timestamps between kernels, as Apple's.
    pub(super) fn new(gpu: &'a Wgpu, runs: usize, host: bool) -> Result<Self> {
        let needed =
            wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
        let offered = !host && gpu.device().features().contains(needed);
        let queries = offered.then(|| {
            gpu.device().create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("clock"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            })
        });
        Ok(Clock { gpu, queries, runs })
    }

    /// The median time in microseconds. `record` gets the number of its earlier calls.
    pub(super) fn median(
        &self,
        record: impl Fn(&mut Recorder<'_>, usize) -> Result<()>,
    ) -> Result<f64> {
        let mut times = Vec::with_capacity(self.runs);
        for run in 0..WARM_UPS + self.runs {
            let time = self.once(&record, run)?;
            if run >= WARM_UPS {
                times.push(time);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    fn once(
        &self,
        record: &impl Fn(&mut Recorder<'_>, usize) -> Result<()>,
        run: usize,
    ) -> Result<f64> {
        let Some(queries) = &self.queries else {
            self.gpu.wait()?;
            let start = Instant::now();
            self.gpu.submit(|recorder| {
                (0..REPEATS).try_for_each(|i| record(recorder, run * REPEATS + i))
            })?;
            self.gpu.wait()?;
            return Ok(start.elapsed().as_secs_f64() * 1e6 / REPEATS as f64);
        };
        let resolved = self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("timestamps"),
            size: 16,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        self.gpu.submit(|recorder| {
            recorder.encoder().write_timestamp(queries, 0);
            record(recorder, run)?;
            let encoder = recorder.encoder();
            encoder.write_timestamp(queries, 1);
            encoder.resolve_query_set(queries, 0..2, &resolved, 0);
            Ok(())
        })?;
        let mut ticks = [0u64; 2];
        self.gpu.read_buffer(&resolved, &mut ticks)?;
        let period = f64::from(self.gpu.queue().get_timestamp_period());
        Ok(ticks[1].wrapping_sub(ticks[0]) as f64 * period / 1e3)
    }
}

/// The bandwidth of a copy in GB/s, reads and writes added. Of the driver's copy and a kernel, the
/// faster one counts.
pub(super) fn copy_bandwidth(gpu: &Wgpu, clock: &Clock<'_>, bytes: u64) -> Result<f64> {
    let limits = gpu.device().limits();
    let most = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
    let piece = bytes.min(most) & !255;
    let pieces = bytes.div_ceil(piece).max(1);
    let (a, b) = (gpu.new_buffer(piece as usize / 4)?, gpu.new_buffer(piece as usize / 4)?);
    let by_driver = clock.median(|recorder, _| {
        for _ in 0..pieces {
            recorder.encoder().copy_buffer_to_buffer(&a, 0, &b, 0, piece);
        }
        Ok(())
    })?;
    let source = "
        @group(0) @binding(0) var<storage, read> a: array<vec4<u32>>;
        @group(0) @binding(1) var<storage, read_write> b: array<vec4<u32>>;
        @compute @workgroup_size(256)
        fn copy(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
                @builtin(local_invocation_index) thread: u32) {
          let i = (group.y * grid.x + group.x) * 256u + thread;
          if (i < arrayLength(&a)) { b[i] = a[i]; }
        }";
    let device = gpu.device();
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some("copy"),
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("copy"),
        layout: None,
        module: &module,
        entry_point: Some("copy"),
        compilation_options: Default::default(),
        cache: None,
    });
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("copy"),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[
            wgpu::BindGroupEntry { binding: 0, resource: a.as_entire_binding() },
            wgpu::BindGroupEntry { binding: 1, resource: b.as_entire_binding() },
        ],
    });
    let workgroups = (piece / 4096).max(1) as u32;
    let x = workgroups.min(limits.max_compute_workgroups_per_dimension);
    let by_kernel = clock.median(|recorder, _| {
        let mut pass = recorder.encoder().begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        for _ in 0..pieces {
            pass.dispatch_workgroups(x, workgroups.div_ceil(x), 1);
        }
        Ok(())
    })?;
    Ok(2.0 * (piece * pieces) as f64 / by_driver.min(by_kernel) / 1e3)
}
