//! Compares results with the exact product, and matrices with each other.

use bigsmall_gpu::{Error, Result, Wgpu, WgpuWeights, wgpu};

/// Whether two matrices on the device consist of the same bytes.
pub(super) fn same_bytes(gpu: &Wgpu, a: &WgpuWeights, b: &WgpuWeights) -> Result<bool> {
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

/// The largest difference from the product in f64, in units of 2^-24 of the sum of |w x|. It
/// samples at most 16 rows and 4 columns.
pub(super) fn sampled_error(weights: &[u16], k: usize, x: &[f32], y: &[f32], m: usize) -> f64 {
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

/// The bound that `bigsmall_gpu` promises, in the same units: n + log2 L + 2, for the kernels'
/// order of additions. For cooperative matrices it assumes chains of 16 products, and adds 4
/// because x is rounded to 2^-22.
pub(super) fn bound(gpu: &Wgpu, k: usize, batch: usize) -> f64 {
    let blocks = k.div_ceil(1024);
    if gpu.cooperative() && batch > 32 {
        (16 + 16 + 16 + blocks.div_ceil(2) + 2 + 4) as f64
    } else if batch <= 16 {
        (8 + 2 + blocks.min(16) + blocks.div_ceil(16) + 5 + 2) as f64
    } else {
        (16 + 8 + 16 + blocks.div_ceil(2) + 2) as f64
    }
}
