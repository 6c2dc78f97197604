//! How fast a GPU multiplies and decodes compressed weights, beside the same kernels on plain
//! weights, with every result checked.
//!
//! ```text
//! cargo run --release -p bigsmall-testing --features gpu --bin gpu_bench -- --selftest
//! cargo run --release -p bigsmall-testing --features gpu --bin gpu_bench -- --json gpu.json
//! python3 testing/gpu_bench_torch.py gpu.json      # adds torch (cuBLAS) on the same shapes
//! ```
//!
//! Times are device timestamps where the device has them: the median of 20 runs after 5 that do not
//! count. `load`, by the host's clock and the median of 5, is the way from the ANS form on the host
//! to the smallest resident form, decoded and packed by the host; `load-on-device` by the device.
//! The weights are copied until the copies exceed four times the cache (`--cache-mb`), and each run
//! takes the next copy. Smaller runs: `--shapes 1024x1024 --batches 1,8 --kernels plain,fused3
//! --copy-mb 64`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use bigsmall_codec::Ans;
use bigsmall_format::{Dtype, EncodedTensor, Raw, TensorSpec, encode_tensor};
use bigsmall_gpu::{
    Cooperative, Error, MatmulBackend, PreparedAns, Recorder, Resident, Result, UploadOptions,
    Variant, Wgpu, WgpuOptions, WgpuWeights, wgpu,
};

use crate::Random;

const SHAPES: &str = "4096x4096,11008x4096,4096x11008,14336x4096,28672x8192,8192x28672";
const BATCHES: &str = "1,2,4,8,16,32,64,128";
const KERNELS: [&str; 9] = [
    "plain",
    "fused3",
    "fused4",
    "decode3",
    "decode4",
    "rans",
    "load",
    "decode-first3",
    "decode-first4",
];

/// How fast a GPU multiplies and decodes compressed weights, beside the same kernels on plain
/// weights, with every result checked.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "gpu_bench")]
pub struct Options {
    /// Check every kernel and measure nothing.
    #[arg(long)]
    selftest: bool,
    /// Write the table to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Shapes of the matrices.
    #[arg(long, value_name = "ROWSxCOLUMNS", value_delimiter = ',', default_value = SHAPES)]
    #[arg(value_parser = shape)]
    shapes: Vec<(usize, usize)>,
    /// Vectors that are multiplied at once.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = BATCHES)]
    batches: Vec<usize>,
    /// What is measured; plain weights always are.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = KERNELS)]
    #[arg(default_values_t = KERNELS.map(String::from))]
    kernels: Vec<String>,
    /// Size of the device's cache: copies of the weights exceed four times that.
    #[arg(long, value_name = "MIB", default_value_t = 80)]
    cache_mb: u64,
    /// Size of the copy that gives the bandwidth.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    copy_mb: u64,
    /// Runs that count, of which the median is taken.
    #[arg(long, value_name = "N", default_value_t = 20)]
    runs: usize,
    /// Leave out the counters that end endless loops.
    #[arg(long)]
    unguarded: bool,
    /// Multiply batches above 32 by cooperative matrices if the device has them.
    #[arg(long)]
    cooperative: bool,
    /// The same as if the device had them.
    #[arg(long, conflicts_with = "cooperative")]
    emulated: bool,
    /// A part of the adapter's name.
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Accept a driver that runs on the CPU, if there is no GPU.
    #[arg(long)]
    software: bool,
}

impl Options {
    fn gpu(&self) -> WgpuOptions {
        let cooperative = match (self.cooperative, self.emulated) {
            (_, true) => Cooperative::Emulated,
            (true, false) => Cooperative::Offered,
            (false, false) => Cooperative::Off,
        };
        WgpuOptions::new()
            .adapter(self.adapter.clone())
            .allow_software(self.software)
            .unguarded_loops(self.unguarded)
            .cooperative(cooperative)
    }
}

fn shape(word: &str) -> std::result::Result<(usize, usize), String> {
    let parse = || {
        let (rows, cols) = word.split_once('x')?;
        Some((rows.parse().ok()?, cols.parse().ok()?))
    };
    parse().ok_or_else(|| format!("{word:?} is not ROWSxCOLUMNS"))
}

/// Checks, measures and prints a table. Fails if a result is wrong.
///
/// # Errors
/// Those of the device, and of writing the table.
pub fn run(options: &Options) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let gpu = Wgpu::headless_with(&options.gpu())?;
    println!("device: {}", gpu.description());
    if options.cooperative || options.emulated {
        println!(
            "cooperative matrices: {}",
            if gpu.cooperative() { "used" } else { "not offered" }
        );
    }
    let (checks, mismatches) = selftest(&gpu)?;
    if options.selftest || mismatches != 0 {
        println!("selftest: {checks} checks, {mismatches} mismatches");
        let failed = mismatches != 0;
        return Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let clock = Clock::new(&gpu, options.runs.max(1))?;
    println!(
        "selftest: {checks} checks, {mismatches} mismatches; times by {}",
        if clock.queries.is_some() { "device timestamps" } else { "the host's clock" }
    );
    let bandwidth = copy_bandwidth(&gpu, &clock, options.copy_mb << 20)?;
    println!("copy: {bandwidth:.1} GB/s read and written\n");
    println!(
        "{:>12} {:>5} {:>14} {:>11} {:>9} {:>9} {:>7} {:>8} {:>10} {:>8}",
        "shape",
        "batch",
        "kernel",
        "us",
        "GB/s",
        "bf16 GB/s",
        "of copy",
        "vs plain",
        "mismatches",
        "of bound"
    );
    let mut rows = Vec::new();
    for &(m, k) in &options.shapes {
        bench_shape(&gpu, &clock, options, bandwidth, m, k, &mut rows)?;
    }
    let bad = rows.iter().any(|row| row.mismatches != 0 || row.of_bound > 1.0);
    if let Some(path) = &options.json {
        std::fs::write(path, json(&gpu.description(), bandwidth, &rows))?;
    }
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One line of the table.
struct Row {
    shape: (usize, usize),
    batch: usize,
    kernel: String,
    microseconds: f64,
    moved_bytes: f64,
    of_copy: f64,
    vs_plain: f64,
    mismatches: usize,
    of_bound: f64,
}

impl Row {
    fn print(&self) {
        let (m, k) = self.shape;
        let rate = |bytes: f64| bytes / self.microseconds / 1e3;
        println!(
            "{:>12} {:>5} {:>14} {:>11.1} {:>9.1} {:>9.1} {:>7.3} {:>8.3} {:>10} {:>8.3}",
            format!("{m}x{k}"),
            self.batch,
            self.kernel,
            self.microseconds,
            rate(self.moved_bytes),
            rate((2 * m * k) as f64),
            self.of_copy,
            self.vs_plain,
            self.mismatches,
            self.of_bound,
        );
    }
}

fn json(device: &str, bandwidth: f64, rows: &[Row]) -> String {
    let mut out = format!("{{\"device\": {device:?}, \"copy_gb_s\": {bandwidth:.3}, \"rows\": [");
    for (i, row) in rows.iter().enumerate() {
        let separator = if i == 0 { "" } else { "," };
        let (m, k) = row.shape;
        let finite = |v: f64| if v.is_finite() { format!("{v:.6}") } else { "null".into() };
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "{separator}\n{{\"rows\": {m}, \"cols\": {k}, \"batch\": {}, \"kernel\": {:?}, \
             \"us\": {:.3}, \"moved_bytes\": {:.0}, \"of_copy\": {}, \"vs_plain\": {}, \
             \"mismatches\": {}, \"of_bound\": {}}}",
            row.batch,
            row.kernel,
            row.microseconds,
            row.moved_bytes,
            finite(row.of_copy),
            finite(row.vs_plain),
            row.mismatches,
            finite(row.of_bound),
        );
    }
    out.push_str("\n]}\n");
    out
}

/// Times what is recorded, on the device where it can.
struct Clock<'a> {
    gpu: &'a Wgpu,
    queries: Option<wgpu::QuerySet>,
    runs: usize,
}

const WARM_UPS: usize = 5;

impl<'a> Clock<'a> {
    fn new(gpu: &'a Wgpu, runs: usize) -> Result<Self> {
        let needed =
            wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
        let queries = gpu.device().features().contains(needed).then(|| {
            gpu.device().create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("clock"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            })
        });
        Ok(Clock { gpu, queries, runs })
    }

    /// Microseconds: the median. `record` is told how often it was called before.
    fn median(&self, record: impl Fn(&mut Recorder<'_>, usize) -> Result<()>) -> Result<f64> {
        let mut times = Vec::with_capacity(self.runs);
        for run in 0..WARM_UPS + self.runs {
            let time = self.once(|recorder| record(recorder, run))?;
            if run >= WARM_UPS {
                times.push(time);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    fn once(&self, record: impl Fn(&mut Recorder<'_>) -> Result<()>) -> Result<f64> {
        let Some(queries) = &self.queries else {
            self.gpu.wait()?;
            let start = Instant::now();
            self.gpu.submit(record)?;
            self.gpu.wait()?;
            return Ok(start.elapsed().as_secs_f64() * 1e6);
        };
        let resolved = self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("timestamps"),
            size: 16,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        self.gpu.submit(|recorder| {
            recorder.encoder().write_timestamp(queries, 0);
            record(recorder)?;
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

/// GB/s that a copy reads and writes together, by the driver's copy or by a kernel, whichever is
/// faster.
fn copy_bandwidth(gpu: &Wgpu, clock: &Clock<'_>, bytes: u64) -> Result<f64> {
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

/// A matrix on the device, as often as it takes to exceed the cache.
fn copies(
    gpu: &Wgpu,
    tensor: &EncodedTensor,
    form: Resident,
    options: &Options,
) -> Result<Vec<WgpuWeights>> {
    let first = gpu.upload_with(tensor, &UploadOptions::new().form(form))?;
    let n = (4 * (options.cache_mb << 20)).div_ceil(first.byte_len().max(1)).clamp(1, 64);
    let mut all = vec![first];
    for _ in 1..n {
        all.push(gpu.upload_with(tensor, &UploadOptions::new().form(form))?);
    }
    Ok(all)
}

fn bench_shape(
    gpu: &Wgpu,
    clock: &Clock<'_>,
    options: &Options,
    bandwidth: f64,
    m: usize,
    k: usize,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let weights = model_weights(m, k, 1);
    let tensor = encoded(&weights, m, k)?;
    let wants = |kernel: &str| options.kernels.iter().any(|k| k == kernel);
    // What plain weights took and gave, by batch.
    let mut plain_times: HashMap<usize, f64> = HashMap::new();
    let mut plain_bits: HashMap<usize, Vec<u32>> = HashMap::new();
    if wants("rans") {
        rows.push(bench_rans(gpu, clock, options, bandwidth, &tensor)?);
        rows.last().inspect(|row| row.print());
    }
    if wants("load") {
        for row in bench_load(gpu, options, bandwidth, &tensor)? {
            row.print();
            rows.push(row);
        }
    }
    let x = model_x(options.batches.iter().max().copied().unwrap_or(0) * k, 2);
    for form in [Resident::Plain, Resident::Dense3, Resident::Dense4] {
        let suffix = match form {
            Resident::Dense3 => "3",
            Resident::Dense4 => "4",
            _ => "",
        };
        let (decode, first) = (format!("decode{suffix}"), format!("decode-first{suffix}"));
        let fused = if suffix.is_empty() { "plain".into() } else { format!("fused{suffix}") };
        // Plain weights are what everything is compared with.
        let is_plain = suffix.is_empty();
        if !is_plain && !wants(&decode) && !wants(&first) && !wants(&fused) {
            continue;
        }
        let all = copies(gpu, &tensor, form, options)?;
        let resident = all[0].byte_len() as f64;
        if !is_plain && wants(&decode) {
            let decoded = gpu.new_buffer(m * k.div_ceil(2))?;
            let microseconds =
                clock.median(|r, run| r.decompress(&all[run % all.len()], &decoded))?;
            let mut bytes = vec![0; 2 * m * k];
            gpu.decompress(&all[0], &mut bytes)?;
            let original = &tensor.payload()[..2 * m * k];
            let mismatches = bytes.iter().zip(original).filter(|(a, b)| a != b).count();
            let moved_bytes = resident + (2 * m * k) as f64;
            rows.push(Row {
                shape: (m, k),
                batch: 0,
                kernel: decode,
                microseconds,
                moved_bytes,
                of_copy: moved_bytes / microseconds / 1e3 / bandwidth,
                vs_plain: f64::NAN,
                mismatches,
                of_bound: 0.0,
            });
            rows.last().inspect(|row| row.print());
        }
        for &batch in &options.batches {
            let x = &x[..batch * k];
            let (x_buffer, y_buffer) = (gpu.new_buffer(batch * k)?, gpu.new_buffer(batch * m)?);
            gpu.write_buffer(&x_buffer, x)?;
            for (kernel, variant) in [(&fused, Variant::Fused), (&first, Variant::DecodeFirst)] {
                if (is_plain && variant == Variant::DecodeFirst) || (!is_plain && !wants(kernel)) {
                    continue;
                }
                let microseconds = clock.median(|r, run| {
                    r.matmul_by(&all[run % all.len()], &x_buffer, batch, &y_buffer, variant)
                })?;
                let mut y = vec![0f32; batch * m];
                gpu.read_buffer(&y_buffer, &mut y)?;
                let bits: Vec<u32> = y.iter().map(|v| v.to_bits()).collect();
                let expected = plain_bits.entry(batch).or_insert_with(|| bits.clone());
                let mismatches = bits.iter().zip(expected).filter(|(a, b)| a != b).count();
                let plain = *plain_times.entry(batch).or_insert(microseconds);
                // Decoding first writes the plain matrix and reads it again.
                let detour = if variant == Variant::DecodeFirst { 4 * m * k } else { 0 };
                let moved_bytes = resident + (4 * batch * (m + k) + detour) as f64;
                rows.push(Row {
                    shape: (m, k),
                    batch,
                    kernel: kernel.clone(),
                    microseconds,
                    moved_bytes,
                    of_copy: moved_bytes / microseconds / 1e3 / bandwidth,
                    vs_plain: plain / microseconds,
                    mismatches,
                    of_bound: sampled_error(&weights, k, x, &y, m) / bound(gpu, k, batch),
                });
                rows.last().inspect(|row| row.print());
            }
        }
    }
    Ok(())
}

/// The decoding of the ANS form, for loading.
fn bench_rans(
    gpu: &Wgpu,
    clock: &Clock<'_>,
    options: &Options,
    bandwidth: f64,
    tensor: &EncodedTensor,
) -> Result<Row> {
    let spec = tensor.spec();
    let original = &tensor.payload()[..spec.byte_len() as usize];
    let encoded = encode_tensor(&Ans::default(), spec, &original)?;
    let n = (4 * (options.cache_mb << 20)).div_ceil(encoded.byte_len().max(1)).clamp(1, 64);
    let prepared = PreparedAns::new(encoded)?;
    let all = (0..n).map(|_| gpu.send_ans(&prepared)).collect::<Result<Vec<_>>>()?;
    let decoded = gpu.new_buffer(spec.byte_len().div_ceil(4) as usize)?;
    let microseconds = clock.median(|r, run| r.decode_ans(&all[run % all.len()], &decoded))?;
    gpu.check_ans(&all[0])?;
    let mut bytes = vec![0u8; spec.byte_len() as usize];
    gpu.read_buffer(&decoded, &mut bytes)?;
    let moved_bytes = (all[0].byte_len() + spec.byte_len()) as f64;
    Ok(Row {
        shape: (spec.shape()[0] as usize, spec.shape()[1] as usize),
        batch: 0,
        kernel: "rans".into(),
        microseconds,
        moved_bytes,
        of_copy: moved_bytes / microseconds / 1e3 / bandwidth,
        vs_plain: f64::NAN,
        mismatches: bytes.iter().zip(original).filter(|(a, b)| a != b).count(),
        of_bound: 0.0,
    })
}

/// The way from the ANS form in the memory of the host to the smallest resident form, by the host's
/// clock: decoded and packed by the host, and by the device.
fn bench_load(
    gpu: &Wgpu,
    options: &Options,
    bandwidth: f64,
    tensor: &EncodedTensor,
) -> Result<[Row; 2]> {
    let spec = tensor.spec();
    let original = &tensor.payload()[..spec.byte_len() as usize];
    let encoded = encode_tensor(&Ans::default(), spec, &original)?;
    let by_host = gpu.upload(&encoded)?;
    let row = |kernel: &str, load: &dyn Fn() -> Result<WgpuWeights>| -> Result<Row> {
        let mut times = Vec::new();
        let mut same = true;
        for run in 0..=options.runs.clamp(1, 5) {
            gpu.wait()?;
            let start = Instant::now();
            let loaded = load()?;
            gpu.wait()?;
            // The first one creates the pipelines.
            if run > 0 {
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
            same &= same_bytes(gpu, &loaded, &by_host)?;
        }
        times.sort_by(f64::total_cmp);
        let microseconds = times[times.len() / 2];
        let moved_bytes = (encoded.byte_len() + by_host.byte_len()) as f64;
        Ok(Row {
            shape: (spec.shape()[0] as usize, spec.shape()[1] as usize),
            batch: 0,
            kernel: kernel.into(),
            microseconds,
            moved_bytes,
            of_copy: moved_bytes / microseconds / 1e3 / bandwidth,
            vs_plain: f64::NAN,
            mismatches: usize::from(!same),
            of_bound: 0.0,
        })
    };
    Ok([
        row("load", &|| gpu.upload(&encoded))?,
        row("load-on-device", &|| {
            gpu.upload_with(&encoded, &UploadOptions::new().decode_on_device(true))
        })?,
    ])
}

/// Whether two matrices lie on the device as the same bytes.
fn same_bytes(gpu: &Wgpu, a: &WgpuWeights, b: &WgpuWeights) -> Result<bool> {
    let read = |buffer: &wgpu::Buffer| {
        let mut bytes = vec![0u8; buffer.size() as usize];
        gpu.read_buffer(buffer, &mut bytes)?;
        Ok::<_, Error>(bytes)
    };
    let mut same = a.resident() == b.resident() && a.buffers().len() == b.buffers().len();
    for (a, b) in a.buffers().into_iter().zip(b.buffers()) {
        same = same && read(a)? == read(b)?;
    }
    Ok(same)
}

/// Compares every kernel with plain weights and with f64, on shapes around every boundary.
fn selftest(gpu: &Wgpu) -> Result<(usize, usize)> {
    let (mut checks, mut mismatches) = (0, 0);
    let mut check = |right: bool, what: &dyn Fn() -> String| {
        checks += 1;
        if !right {
            mismatches += 1;
            println!("mismatch: {}", what());
        }
    };
    let every: Vec<u16> = (0..=u16::MAX).collect();
    let mut cases = vec![("every bf16 pattern", 64, 1024, every)];
    for (m, k) in [(1, 1), (7, 9), (33, 127), (65, 1025), (40, 2816), (130, 4096), (3, 17_000)] {
        cases.push(("like a model's", m, k, model_weights(m, k, 3)));
        cases.push(("constant", m, k, vec![0x3dcd; m * k]));
        let positive = model_weights(m, k, 4).iter().map(|w| w & 0x7fff).collect();
        cases.push(("all positive", m, k, positive));
    }
    for (what, m, k, weights) in cases {
        let tensor = encoded(&weights, m, k)?;
        let plain = gpu.upload_with(&tensor, &UploadOptions::new().form(Resident::Plain))?;
        let original = &tensor.payload()[..2 * m * k];
        let ans = encode_tensor(&Ans::default(), tensor.spec(), &original)?;
        for form in Resident::ALL {
            let loaded = gpu.upload_with(&tensor, &UploadOptions::new().form(form))?;
            let mut bytes = vec![0; 2 * m * k];
            gpu.decompress(&loaded, &mut bytes)?;
            let same = bytes == original;
            check(same, &|| format!("{m}x{k} {what}: {} does not decode", form.name()));
            let packed =
                gpu.upload_with(&ans, &UploadOptions::new().form(form).decode_on_device(true));
            let packed = packed.and_then(|packed| same_bytes(gpu, &packed, &loaded));
            let same = matches!(packed, Ok(true));
            check(same, &|| format!("{m}x{k} {what}: rANS to {} is another", form.name()));
            if what.starts_with("every") {
                continue; // its products are NaN
            }
            for batch in [1, 2, 3, 4, 8, 9, 20, 64, 100] {
                let mut x = model_x(batch * k, 5);
                if what == "all positive" {
                    x.iter_mut().for_each(|v| *v = v.abs());
                }
                let mut expected = vec![0.0; batch * m];
                gpu.matmul(&plain, &x, batch, &mut expected)?;
                let within = sampled_error(&weights, k, &x, &expected, m) <= bound(gpu, k, batch);
                check(within, &|| format!("{m}x{k} {what} batch {batch}: beyond the bound"));
                let (x_buffer, y_buffer) = (gpu.new_buffer(batch * k)?, gpu.new_buffer(batch * m)?);
                gpu.write_buffer(&x_buffer, &x)?;
                for variant in [Variant::Fused, Variant::DecodeFirst] {
                    gpu.submit(|r| r.matmul_by(&loaded, &x_buffer, batch, &y_buffer, variant))?;
                    let mut y = vec![0f32; batch * m];
                    gpu.read_buffer(&y_buffer, &mut y)?;
                    let same = y.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                    let name = form.name();
                    check(same, &|| format!("{m}x{k} {what} batch {batch}: {name} {variant:?}"));
                }
            }
        }
    }
    Ok((checks, mismatches))
}

/// The largest distance from f64 in units of 2^-24 of the sum of |w x|, over at most 16 rows and 4
/// columns.
fn sampled_error(weights: &[u16], k: usize, x: &[f32], y: &[f32], m: usize) -> f64 {
    let mut largest = 0f64;
    for (x, y) in x.chunks(k).zip(y.chunks(m)).step_by((x.len() / k).div_ceil(4)) {
        for row in (0..m).step_by(m.div_ceil(16)) {
            let (mut sum, mut magnitude) = (0f64, 0f64);
            for (w, x) in weights[row * k..(row + 1) * k].iter().zip(x) {
                let product = f64::from(f32::from_bits(u32::from(*w) << 16)) * f64::from(*x);
                sum += product;
                magnitude += product.abs();
            }
            let error = (f64::from(y[row]) - sum).abs();
            if error > 0.0 {
                largest = largest.max(error / magnitude * (1u64 << 24) as f64);
            }
        }
    }
    largest
}

/// The contract's bound in the same units: n + log2 L + 2, with the kernels' order of additions.
/// For cooperative matrices as if they added 16 products in a row, and 4 more since they take x up
/// to 2^-22.
fn bound(gpu: &Wgpu, k: usize, batch: usize) -> f64 {
    let blocks = k.div_ceil(1024);
    if gpu.cooperative() && batch > 32 {
        (16 + 16 + 16 + blocks.div_ceil(2) + 2 + 4) as f64
    } else if batch <= 8 {
        (8 + 2 + blocks.min(16) + blocks.div_ceil(16) + 5 + 2) as f64
    } else {
        (16 + 8 + 16 + blocks.div_ceil(2) + 2) as f64
    }
}

fn encoded(weights: &[u16], m: usize, k: usize) -> Result<EncodedTensor> {
    let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let spec = TensorSpec::new("weights", Dtype::BF16, &[m as u64, k as u64])?;
    Ok(encode_tensor(&Raw, &spec, &bytes)?)
}

/// bf16 weights like a model's: normal, rows of differing scale.
fn model_weights(m: usize, k: usize, seed: u64) -> Vec<u16> {
    let mut random = Random::new(seed);
    // Drawn from a table, since there are hundreds of millions.
    let normal: Vec<f32> = (0..1 << 16).map(|_| random.normal() as f32).collect();
    let mut weights = Vec::with_capacity(m * k);
    for _ in 0..m {
        let scale = (0.02 * (0.2 * random.normal()).exp()) as f32;
        let mut drawn = 0;
        for at in 0..k {
            if at % 4 == 0 {
                drawn = random.bits();
            }
            let pick = (drawn >> (16 * (at % 4))) as usize & 0xffff;
            let bits = (scale * normal[pick]).to_bits();
            weights.push(((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16);
        }
    }
    weights
}

fn model_x(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.normal() as f32).collect()
}
