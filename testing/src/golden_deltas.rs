//! The golden deltas (FORMAT.md section 10): a base, itself a shard, and a shard of tensors stored
//! as differences from it.

use bigsmall_codec::{Ans, Delta, Dtype, Result};
use bigsmall_format::{
    Base, BaseRef, BaseTensor, Header, MAX_BLOCK_UNITS, Shard, ShardWriter, TensorSpec,
};
use half::bf16;
use sha2::{Digest as _, Sha256};

use crate::Random;
use crate::goldens::Golden;

/// A safetensors file.
pub(crate) fn file(tensors: &[(TensorSpec, Vec<u8>)]) -> Result<Vec<u8>> {
    let specs: Vec<_> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let json = Header::synthesise(&specs)?;
    let data = tensors.iter().flat_map(|(_, bytes)| bytes.iter().copied());
    Ok((json.len() as u64).to_le_bytes().into_iter().chain(json).chain(data).collect())
}

/// Units of the tensor of four blocks, each of [`FULL`] units but the last one.
const BLOCKS: u64 = MAX_BLOCK_UNITS as u64 + 300;
const FULL: usize = 33_792;

/// BF16 weights that repeat themselves, so that their shard is small.
fn repeated(random: &mut Random) -> Vec<u8> {
    let row = random.weights(256);
    row.iter().copied().cycle().take(2 * BLOCKS as usize).collect()
}

/// What training makes of those: a block of weights that moved by about the same distance each, so
/// that the base's exponent says how many steps that is; one of small changes to small weights
/// alone; one without changes; one of other weights.
fn moved(base: &[u8], random: &mut Random) -> Vec<u8> {
    let mut new = Vec::with_capacity(base.len());
    for (block, units) in base.chunks(2 * FULL).enumerate() {
        for unit in units.chunks_exact(2) {
            let bits = u16::from_le_bytes([unit[0], unit[1]]);
            let small = bits & 0x7f80 < 0x3b80;
            let bits = match block {
                0 => {
                    let moved = bf16::from_bits(bits).to_f32() + random.normal() as f32 / 4096.0;
                    bf16::from_f32(moved).to_bits()
                }
                1 if small && random.below(16) == 0 => bits + 1 + random.below(2) as u16,
                3 => random.bits() as u16,
                _ => bits,
            };
            new.extend(bits.to_le_bytes());
        }
    }
    new
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
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

/// The base and the shard, each with the safetensors file that it restores to.
///
/// # Errors
/// Those of the encoders, on a bug.
pub(crate) fn golden_deltas() -> Result<[Golden; 2]> {
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
    // Where the base is 0 it says nothing of the new weight.
    let mut old = r.weights(3000);
    let mut bytes = changed(&old, 2, 4, 1, r);
    for unit in (0..3000).filter(|i| i % 3 > 0) {
        old[2 * unit..][..2].fill(0);
        bytes[2 * unit..][..2].copy_from_slice(&r.weights(1));
    }
    both("from zeros", Dtype::BF16, &[3000], old, bytes)?;
    let weights = repeated(r);
    both("blocks", Dtype::BF16, &[BLOCKS], weights.clone(), moved(&weights, r))?;
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
    // From every dtype that is converted, with the values at which conversions differ.
    for (from, to) in [
        (Dtype::BF16, Dtype::F32),
        (Dtype::F64, Dtype::BF16),
        (Dtype::F16, Dtype::F64),
        (Dtype::F8_E5M2, Dtype::F16),
        (Dtype::F32, Dtype::F8_E5M2),
    ] {
        let name = format!("{from} as {to}");
        let width = from.unit_bytes();
        // One to a value: all signs and exponents, and mantissas that round up, down and to even.
        let old: Vec<u8> = (0..1024u64)
            .flat_map(|i| {
                let (sign_and_exponent, low) =
                    (i << 54, [0, 1, 1 << 44, 3 << 52][(i % 4) as usize]);
                let bits = (sign_and_exponent | r.bits() >> 12 & !0xff | low) >> (64 - 8 * width);
                bits.to_le_bytes().into_iter().take(width)
            })
            .collect();
        let (tensor, of_base) = (spec(&name, to, &[1024])?, spec(&name, from, &[1024])?);
        let seen = BaseTensor::new(&tensor, &of_base, &old)?;
        let mut bytes = vec![0; 1024 * to.unit_bytes()];
        bigsmall_format::ReadAt::read_exact_at(&seen, 0, &mut bytes)?;
        base.push((of_base, old.clone()));
        new.push((tensor, changed(&bytes, to.unit_bytes(), 20, 1, r), name));
    }
    new.push((spec("new", Dtype::BF16, &[600])?, r.weights(600), String::new()));

    let base_file = file(&base)?;
    let new_specs: Vec<_> = new.iter().map(|(spec, ..)| spec.clone()).collect();
    let mut writer = ShardWriter::synthesised(Vec::new(), &new_specs)?;
    let place = writer.add_base(Base::new(sha256(&base_file)).hint("deltas-base.safetensors"));
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
    let delta = writer.finish()?;
    let shard = Shard::open(&delta[..])?;
    let at = shard.index_of("blocks").expect("a tensor of that name");
    let blocks = shard.encoded(at)?;
    let kinds = [0, 1, 2, 3].map(|i| blocks.block(i).first().copied());
    assert_eq!(kinds, [Some(1), Some(3), None, Some(0)], "blocks of every kind but 2");
    let base_specs: Vec<_> = base.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = ShardWriter::synthesised(Vec::new(), &base_specs)?;
    for (spec, bytes) in &base {
        writer.write(spec, bytes, &Ans::default())?;
    }
    let new: Vec<_> = new.into_iter().map(|(spec, bytes, _)| (spec, bytes)).collect();
    let golden = |name: &str, ending: &str, bytes, original| Golden {
        name: format!("{name}{ending}"),
        bytes,
        original_name: format!("{name}.safetensors"),
        original,
    };
    Ok([
        golden("deltas-base", ".bs", writer.finish()?, base_file),
        golden("deltas", ".delta", delta, file(&new)?),
    ])
}
