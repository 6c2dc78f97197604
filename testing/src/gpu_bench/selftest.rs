//! Checks every kernel.

use bigsmall_codec::Ans;
use bigsmall_format::encode_tensor;
use bigsmall_gpu::{MatmulBackend as _, Resident, Result, UploadOptions, Variant, Wgpu};

use super::accuracy::{bound, same_bytes, sampled_error};
use super::inputs::{encoded, model_weights, model_x};

/// Compares every kernel with plain weights and with the product in f64, on shapes around every
/// boundary of the layout. Returns the numbers of checks and of mismatches.
pub(super) fn selftest(gpu: &Wgpu) -> Result<(usize, usize)> {
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
