//! Measures the kernels on one shape.

use std::collections::HashMap;
use std::time::Instant;

use bigsmall_codec::Ans;
use bigsmall_format::{EncodedTensor, encode_tensor};
use bigsmall_gpu::{
    MatmulBackend as _, PreparedAns, Resident, Result, UploadOptions, Variant, Wgpu, WgpuWeights,
};

use super::accuracy::{bound, same_bytes, sampled_error};
use super::clock::Clock;
use super::inputs::{encoded, model_weights, model_x};
use super::options::Options;
use super::table::Row;

/// Uploads so many copies of a matrix that together they exceed four times the cache.
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

/// Measures all requested kernels on one shape and adds the results to `rows`.
pub(super) fn bench_shape(
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
    // The times and results with plain weights, by batch.
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
        // Plain weights are always measured: the other forms are compared with them.
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
                // `DecodeFirst` also writes the plain matrix and reads it again.
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

/// Measures how fast the device decodes the ANS form.
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

/// Measures how long it takes to bring a matrix in ANS form from the host's memory into the
/// smallest resident form, by the host's clock: once decoded and packed by the host, once by the
/// device.
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
            // The first run also creates the pipelines, so it is not measured.
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
