//! More golden files with bases: a chain of shards, the last of them with two bases, and a frame
//! (FORMAT.md section 10).

use bigsmall_codec::{Ans, Delta, Dtype, Result};
use bigsmall_format::{
    Base, BaseRef, BaseTensor, ShardWriter, TensorSpec, encode_tensor_with_base,
};

use crate::Random;
use crate::golden_deltas::{changed, file, sha256};
use crate::goldens::Golden;

/// A tensor and its bytes.
type Tensor = (TensorSpec, Vec<u8>);

/// A shard of `tensors`, each with the place of its base and with the base's tensor, if any.
fn shard(
    name: &str,
    ending: &str,
    bases: &[Base],
    tensors: Vec<(Tensor, Option<(usize, Tensor)>)>,
) -> Result<Golden> {
    let specs: Vec<_> = tensors.iter().map(|((spec, _), _)| spec.clone()).collect();
    let mut writer = ShardWriter::synthesised(Vec::new(), &specs)?;
    for base in bases {
        writer.add_base(base.clone());
    }
    let (ans, delta) = (Ans::default(), Delta::default());
    for ((spec, bytes), base) in &tensors {
        match base {
            None => writer.write(spec, bytes, &ans)?,
            Some((place, (of_base, old))) => {
                let seen = BaseTensor::new(spec, of_base, old)?;
                let of_base = BaseRef::new(*place, of_base.name());
                writer.write_with_base(spec, bytes, &ans, &delta, of_base, &seen)?;
            }
        }
    }
    let tensors: Vec<Tensor> = tensors.into_iter().map(|(tensor, _)| tensor).collect();
    Ok(Golden {
        name: format!("{name}{ending}"),
        bytes: writer.finish()?,
        original_name: format!("{name}.safetensors"),
        original: file(&tensors)?,
    })
}

/// A base, a shard with that base, and one with both as its bases: some of its tensors are
/// differences from the one, some from the other, and some are tensors of them.
fn chain(r: &mut Random) -> Result<[Golden; 3]> {
    let tensor = |name: &str, dtype: Dtype, shape: &[u64], bytes: Vec<u8>| -> Result<Tensor> {
        Ok((TensorSpec::new(name, dtype, shape)?, bytes))
    };
    let f32s = (0..200).flat_map(|_| ((r.normal() * 0.02) as f32).to_le_bytes()).collect();
    let a = tensor("a", Dtype::BF16, &[40, 15], r.weights(600))?;
    let b = tensor("b", Dtype::F32, &[200], f32s)?;
    let empty = tensor("empty", Dtype::BF16, &[0, 3], Vec::new())?;
    let first = [a.clone(), b.clone(), empty.clone()].map(|tensor| (tensor, None)).into();
    let first = shard("chain-base", ".bs", &[], first)?;

    let a2 = tensor("a", Dtype::BF16, &[40, 15], changed(&a.1, 2, 6, 2, r))?;
    let to_first = Base::new(sha256(&first.original)).hint("chain-base.safetensors");
    let of_first = |tensor: &Tensor| (tensor.clone(), Some((0, tensor.clone())));
    let second = vec![(a2.clone(), Some((0, a.clone()))), of_first(&b), of_first(&empty)];
    let second = shard("chain-middle", ".delta", std::slice::from_ref(&to_first), second)?;

    let a3 = tensor("a", Dtype::BF16, &[40, 15], changed(&a2.1, 2, 6, 2, r))?;
    let to_second = Base::new(sha256(&second.original)).depth(1).hint("chain-middle.safetensors");
    let b3 = tensor("b, renamed", Dtype::F32, &[200], changed(&b.1, 4, 20, 9, r))?;
    let as_it_was = tensor("a, as it was", Dtype::BF16, &[40, 15], a.1.clone())?;
    let new = tensor("new", Dtype::BF16, &[300], r.weights(300))?;
    let third = vec![
        (a3, Some((0, a2.clone()))),
        (b3, Some((1, b.clone()))),
        (as_it_was, Some((1, a.clone()))),
        of_first(&empty),
        (new, None),
    ];
    let third = shard("chain", ".delta", &[to_second, to_first], third)?;
    Ok([first, second, third])
}

/// A frame of differences from the bytes `base` of the frame `ans.frame`.
fn frame(base: &[u8], r: &mut Random) -> Result<Golden> {
    let spec = TensorSpec::new("層.0", Dtype::BF16, &[3, 200])?;
    let bytes = changed(base, 2, 2, 2, r);
    let encoded = encode_tensor_with_base(&Delta::default(), &spec, &bytes, &base)?;
    Ok(Golden {
        name: "delta.frame".into(),
        bytes: encoded.to_bytes(),
        original_name: "delta.values".into(),
        original: bytes,
    })
}

/// The chain and the frame. `values` are those of `ans.frame`.
///
/// # Errors
/// Those of the encoders, on a bug.
pub(crate) fn golden_bases(values: &[u8]) -> Result<Vec<Golden>> {
    let mut random = Random::new(99);
    let mut out = Vec::from(chain(&mut random)?);
    out.push(frame(values, &mut random)?);
    Ok(out)
}
