//! The golden deltas (FORMAT.md section 10): a base, and a shard of tensors stored as differences
//! from it.

use bigsmall_codec::{Ans, Delta, Dtype, Result};
use bigsmall_format::{Base, BaseRef, BaseTensor, Header, ShardWriter, TensorSpec};
use sha2::{Digest as _, Sha256};

use crate::Random;

/// A safetensors file.
fn file(tensors: &[(TensorSpec, Vec<u8>)]) -> Result<Vec<u8>> {
    let specs: Vec<_> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let json = Header::synthesise(&specs)?;
    let data = tensors.iter().flat_map(|(_, bytes)| bytes.iter().copied());
    Ok((json.len() as u64).to_le_bytes().into_iter().chain(json).chain(data).collect())
}

/// `base` with some of its units changed: one in `one_in`, by up to `most` steps.
pub(crate) fn changed(
    base: &[u8],
    width: usize,
    one_in: u64,
    most: u64,
    random: &mut Random,
) -> Vec<u8> {
    let mut new = base.to_vec();
    for unit in new.chunks_exact_mut(width) {
        if random.below(one_in) == 0 {
            let mut value = [0; 8];
            value[..width].copy_from_slice(unit);
            let step = random.below(2 * most + 1).wrapping_sub(most);
            let value = u64::from_le_bytes(value).wrapping_add(step);
            unit.copy_from_slice(&value.to_le_bytes()[..width]);
        }
    }
    new
}

/// Name and contents of the base and of the shard, which has the SHA-256 of what it restores to.
///
/// # Errors
/// Those of the encoders, on a bug.
pub(crate) fn golden_deltas() -> Result<Vec<(String, Vec<u8>)>> {
    let mut random = Random::new(88);
    let r = &mut random;
    let floats = |r: &mut Random, dtype: Dtype, n: usize| -> Vec<u8> {
        let one = |r: &mut Random| {
            let x = r.normal() * 0.02;
            match dtype {
                Dtype::F32 => (x as f32).to_le_bytes().to_vec(),
                // From f32: how `half` rounds an f64 depends on its features.
                Dtype::F16 => half::f16::from_f32(x as f32).to_le_bytes().to_vec(),
                Dtype::F64 => x.to_le_bytes().to_vec(),
                _ => vec![(r.bits() & 0x9f) as u8 | 0x20],
            }
        };
        (0..n).flat_map(|_| one(r)).collect()
    };
    let spec = TensorSpec::new;
    // Tensors of the base, and for each of them the new one.
    let mut base = Vec::new();
    let mut new = Vec::new();
    let mut both = |name: &str, dtype: Dtype, shape: &[u64], old: Vec<u8>, bytes: Vec<u8>| {
        base.push((spec(name, dtype, shape)?, old));
        new.push((spec(name, dtype, shape)?, bytes, name.to_owned()));
        Ok::<_, bigsmall_format::Error>(())
    };
    let weights = r.weights(3000);
    both("tuned", Dtype::BF16, &[3000], weights.clone(), changed(&weights, 2, 2, 3, r))?;
    // Of one exponent: the order of the units is as good as that of classes.
    let zeros = vec![0; 4000];
    let mut ones = zeros.clone();
    ones[2000..3000].chunks_mut(180).for_each(|unit| unit[0] = 1);
    both("step", Dtype::BF16, &[2000], zeros, ones)?;
    let weights = r.weights(2000);
    both("by class", Dtype::BF16, &[40, 50], weights.clone(), changed(&weights, 2, 40, 2, r))?;
    both("the same", Dtype::BF16, &[40, 50], weights.clone(), weights)?;
    for (dtype, n, one_in, most) in [
        (Dtype::F32, 800, 1, 3000),
        (Dtype::F16, 1000, 3, 2),
        (Dtype::F64, 300, 1, 1 << 40),
        (Dtype::F8_E4M3, 2000, 3, 1),
        (Dtype::I8, 2000, 5, 1),
    ] {
        let old = floats(r, dtype, n);
        let bytes = changed(&old, dtype.unit_bytes(), one_in, most, r);
        both(&format!("{dtype}"), dtype, &[n as u64], old, bytes)?;
    }
    let noise = r.bytes(700);
    both("noise", Dtype::BF16, &[350], noise, r.bytes(700))?;
    // Another name, another number of rows, another dtype, and a tensor without a base.
    let rows = r.weights(1200);
    base.push((spec("old name", Dtype::BF16, &[60, 20])?, rows.clone()));
    let mut longer = changed(&rows, 2, 10, 1, r);
    longer.extend(r.weights(40));
    new.push((spec("renamed", Dtype::BF16, &[62, 20])?, longer, "old name".into()));
    let wide = floats(r, Dtype::F32, 900);
    let tensor = spec("narrower", Dtype::F16, &[900])?;
    base.push((spec("narrower", Dtype::F32, &[900])?, wide));
    let (of_base, bytes) = base.last().expect("a tensor was pushed");
    let seen = BaseTensor::new(&tensor, of_base, bytes)?;
    let mut narrow = vec![0; 1800];
    bigsmall_format::ReadAt::read_exact_at(&seen, 0, &mut narrow)?;
    new.push((tensor, changed(&narrow, 2, 20, 1, r), "narrower".into()));
    new.push((spec("new", Dtype::BF16, &[600])?, r.weights(600), String::new()));

    let base_file = file(&base)?;
    let specs: Vec<_> = new.iter().map(|(spec, ..)| spec.clone()).collect();
    let mut writer = ShardWriter::synthesised(Vec::new(), &specs)?;
    let sha256 = Sha256::digest(&base_file).into();
    let place = writer.add_base(Base::new(sha256).hint("deltas-base.safetensors"));
    for (spec, bytes, name) in &new {
        let Some((of_base, old)) = base.iter().find(|(spec, _)| spec.name() == name) else {
            writer.write(spec, bytes, &Ans::default())?;
            continue;
        };
        let seen = BaseTensor::new(spec, of_base, old)?;
        let of_base = BaseRef::new(place, name);
        let (ans, delta) = (Ans::default(), Delta::default());
        writer.write_with_base(spec, bytes, &ans, &delta, of_base, &seen)?;
    }
    Ok(vec![
        ("deltas-base.safetensors".to_owned(), base_file),
        ("deltas.delta".to_owned(), writer.finish()?),
    ])
}
