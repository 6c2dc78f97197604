//! One file of a sync folder: all weights as a shard, alone or with the weights of the step before
//! as its base.

use bigsmall_codec::Delta;
use bigsmall_format::internal::{Assembler, encode_or_raw, set_len};
use bigsmall_format::{Base, BaseRef, BaseTensor, Limits, Shard, encode_tensor_with_base};
use md5::{Digest as _, Md5};

use crate::error::{Error, ErrorKind, Result};
use crate::sync::weights::Weights;
use crate::{Encoding, Rule, encoding, hex};

/// The weights that a step is stored as differences from, and how many steps lie behind them.
#[derive(Clone, Copy)]
pub(crate) struct Before<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) depth: u32,
}

/// Encodes `weights` as a shard. A tensor that equals the one before has no payload; any other is
/// stored in whatever form is smallest.
pub(crate) fn encode(weights: &Weights, before: Option<Before<'_>>) -> Result<Vec<u8>> {
    let json = weights.header_json().to_vec();
    let mut shard = Assembler::new(Vec::new(), json, weights.data_len())?;
    if let Some(before) = before {
        shard.add_base(Base::new(before.weights.sha256()).depth(before.depth));
    }
    for (i, spec) in weights.tensors().iter().enumerate() {
        let values = weights.values(i);
        let md5 = Some(Md5::digest(values).into());
        let base = before.and_then(|before| before.weights.find(spec.name()));
        let base = base.filter(|(base, _)| BaseTensor::<&[u8]>::suits(spec, base));
        let place = BaseRef::new(0, spec.name());
        let alone = || encode_or_raw(Encoding::default().implementation(), spec, &values);
        let Some((base_spec, base_values)) = base else {
            shard.tensor(&alone()?, md5)?;
            continue;
        };
        let base = BaseTensor::new(spec, base_spec, base_values)?;
        let delta = encode_tensor_with_base(&Delta::default(), spec, &values, &base)?;
        // Encoding the tensor alone as well would take most of the time, and a delta of less than
        // half of the values is smaller than any other form.
        let small = delta.table().is_base() || delta.byte_len() <= values.len() as u64 / 2;
        let alone = if small { None } else { Some(alone()?) };
        match alone.filter(|alone| alone.byte_len() <= delta.byte_len()) {
            Some(alone) => shard.tensor(&alone, md5)?,
            None => shard.tensor_with_base(&delta, place, md5)?,
        }
    }
    Ok(shard.finish(weights.sha256())?)
}

/// Rebuilds the weights of the file `bytes`, beside those that it is stored as differences from.
/// Compares every checksum, the MD5 of every tensor, and the SHA-256 of all. `most` bounds the
/// bytes of the weights.
pub(crate) fn rebuild(bytes: &[u8], before: Option<&Weights>, most: u64) -> Result<Weights> {
    // A chain is as long as there are steps between anchors. It is followed step by step: its
    // length costs nothing.
    let shard = Shard::open_with(bytes, &Limits::default().max_base_depth(u32::MAX))?;
    shard.check_prelude()?;
    let before = match (shard.bases(), before) {
        ([], _) => None,
        ([base], Some(before)) if base.sha256 == before.sha256() => Some(before),
        ([base, ..], before) => {
            let found = before.map_or("none".into(), |before| hex(&before.sha256()));
            return Err(Error::new(Rule::BaseMismatch)
                .expected(format!("the weights {}", hex(&base.sha256)))
                .found(found));
        }
    };
    if shard.original_len() > most {
        return Err(Error::new(ErrorKind::SyncTooLarge)
            .expected(format!("weights of at most {most} bytes"))
            .found(shard.original_len()));
    }
    let json = shard.header_json();
    let byte_len = usize::try_from(shard.original_len());
    let mut out = Vec::new();
    set_len(&mut out, byte_len.map_err(|_| Error::new(ErrorKind::Memory))?)?;
    let (prefix, mut data) = out.split_at_mut(8 + json.len());
    prefix[..8].copy_from_slice(&(json.len() as u64).to_le_bytes());
    prefix[8..].copy_from_slice(json);
    for (i, spec) in shard.tensors().iter().enumerate() {
        let (values, rest) = data.split_at_mut(spec.byte_len() as usize);
        data = rest;
        decode(&shard, i, before, values).map_err(|e| e.in_tensor(spec.name()))?;
        if let Some(md5) = shard.entry(i)?.md5()
            && Md5::digest(&*values)[..] != md5
        {
            return Err(Error::new(Rule::ContentDigest).in_tensor(spec.name()).found("MD5"));
        }
    }
    let weights = Weights::from_safetensors(out)?;
    if weights.sha256() != shard.sha256() {
        return Err(Error::new(Rule::ContentDigest)
            .expected(hex(&shard.sha256()))
            .found(hex(&weights.sha256())));
    }
    Ok(weights)
}

/// Decodes tensor `index`.
fn decode(
    shard: &Shard<&[u8]>,
    index: usize,
    before: Option<&Weights>,
    values: &mut [u8],
) -> Result<()> {
    let spec = &shard.tensors()[index];
    let decoder = shard.decoder(index, encoding(shard.encoding(index)?)?)?;
    let all = 0..spec.byte_len();
    let Some(base) = shard.base_of(index)? else {
        return Ok(shard.decode(index, &*decoder, all, values)?);
    };
    let found = before.and_then(|before| before.find(base.name));
    let (base_spec, base_values) = found.ok_or_else(|| {
        Error::new(Rule::BaseMismatch).expected(format!("a tensor {:?} in the base", base.name))
    })?;
    let base = BaseTensor::new(spec, base_spec, base_values)?;
    Ok(shard.decode_with_base(index, &*decoder, &base, all, values)?)
}
