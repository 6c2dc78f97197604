//! candle reads the same bits from shards as from the safetensors file, whole and in parts, and no
//! more blocks than it needs.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bigsmall_io::candle::{sharded_var_builder, var_builder};
use bigsmall_io::{BaseModel, CompressOptions, Model, Progress, ReadAt};
use candle_core::{DType, Device, Tensor};
use candle_nn::var_builder::Shard;
use common::{DTYPES, ENCODINGS, Random, tensor, write};
use safetensors::Dtype;

const CPU: Device = Device::Cpu;

/// The values' bits, whatever the dtype.
fn bits(t: &Tensor) -> Vec<u8> {
    let mut out = HashMap::new();
    out.insert("t".to_owned(), t.contiguous().unwrap());
    let file = tempfile::NamedTempFile::new().unwrap();
    candle_core::safetensors::save(&out, file.path()).unwrap();
    let bytes = std::fs::read(file.path()).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].to_vec()
}

fn same(a: &Tensor, b: &Tensor) {
    assert_eq!((a.dtype(), a.dims()), (b.dtype(), b.dims()));
    assert!(bits(a) == bits(b));
}

#[test]
fn every_dtype_of_candle_comes_bit_by_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, shard) = (dir.path().join("m.safetensors"), dir.path().join("m.bs"));
    let mut random = Random::new(1);
    let mut tensors = Vec::new();
    for dtype in DTYPES {
        let mut add = |name: String, shape: &[usize]| {
            let bits = shape.iter().product::<usize>() * dtype.bitsize();
            tensors.push(tensor(&name, dtype, shape, random.bytes(bits / 8)));
        };
        add(format!("{dtype:?}.a"), &[24, 40]);
        add(format!("{dtype:?}.empty"), &[0, 8]);
    }
    // One is larger than a block.
    tensors.push(tensor("large", Dtype::BF16, &[300, 1000], random.weights(300_000)));
    tensors.push(tensor("scalar", Dtype::F32, &[], random.bytes(4)));
    write(&plain, &tensors);
    let expected = originals(&plain);
    for encoding in ENCODINGS {
        let options = CompressOptions::new().encoding(encoding).replace(true);
        bigsmall_io::compress(&plain, &shard, &options, &Progress::default()).unwrap();
        let weights = var_builder(Model::open(&shard).unwrap(), DType::F32, &CPU);
        let mut seen = 0;
        for t in &tensors {
            assert!(weights.contains_tensor(&t.name));
            if let Some((_, own)) = OPAQUE.iter().find(|(dtype, _)| *dtype == t.dtype) {
                let found =
                    weights.get_with_hints_dtype(&*t.shape, &t.name, Default::default(), *own);
                assert_eq!(found.unwrap().dtype(), *own);
                continue;
            }
            let Some(expected) = expected.get(&t.name) else {
                let error = weights.get_unchecked(&t.name).unwrap_err();
                assert!(error.to_string().contains(&t.name), "{error}");
                continue;
            };
            seen += 1;
            let own = expected.dtype();
            let found =
                weights.get_with_hints_dtype(t.shape.clone(), &t.name, Default::default(), own);
            same(&found.unwrap(), expected);
            // Another dtype is what candle makes of the original.
            if let Ok(converted) = expected.to_dtype(DType::F32) {
                same(&weights.get(t.shape.clone(), &t.name).unwrap(), &converted);
                same(&weights.get_unchecked(&t.name).unwrap(), &converted);
            }
        }
        assert!(seen > 20, "{seen}");
    }
    let weights = var_builder(Model::open(&shard).unwrap(), DType::F32, &CPU);
    assert!(!weights.contains_tensor("large.x") && !weights.pp("F32").contains_tensor("x"));
    assert!(weights.pp("F32").contains_tensor("a"));
    let missing = weights.get((1, 2), "nothing").unwrap_err().to_string();
    assert!(missing.contains("cannot find tensor nothing"), "{missing}");
    let shape = weights.get((1000, 300), "large").unwrap_err().to_string();
    assert!(shape.contains("shape mismatch for large"), "{shape}");
}

/// Types that candle can only store.
const OPAQUE: [(Dtype, DType); 4] = [
    (Dtype::F4, DType::F4),
    (Dtype::F6_E2M3, DType::F6E2M3),
    (Dtype::F6_E3M2, DType::F6E3M2),
    (Dtype::F8_E8M0, DType::F8E8M0),
];

/// What candle itself makes of the file, tensor by tensor: some it refuses.
fn originals(path: &std::path::Path) -> HashMap<String, Tensor> {
    use candle_core::safetensors::Load as _;
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let opaque = |dtype| OPAQUE.iter().any(|(d, _)| *d == dtype);
    let known = file.iter().filter(|(_, view)| !opaque(view.dtype()));
    known.filter_map(|(name, view)| Some((name.to_owned(), view.load(&CPU).ok()?))).collect()
}

/// Counts what is read.
struct Counted {
    bytes: Vec<u8>,
    read: Arc<AtomicU64>,
}

impl ReadAt for Counted {
    fn byte_len(&self) -> std::io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.bytes.read_exact_at(offset, buf)
    }
}

#[test]
fn ranks_get_their_parts_and_read_no_more_than_they_need() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, shard) = (dir.path().join("m.safetensors"), dir.path().join("m.bs"));
    let mut random = Random::new(2);
    // 12 MB: more than one window.
    let tensors = [
        tensor("w", Dtype::BF16, &[4096, 1536], random.weights(4096 * 1536)),
        tensor("conv", Dtype::F32, &[6, 10, 4, 3], random.bytes(6 * 10 * 4 * 3 * 4)),
        tensor("bias", Dtype::F16, &[12], random.bytes(24)),
    ];
    write(&plain, &tensors);
    bigsmall_io::compress(&plain, &shard, &CompressOptions::default(), &Progress::default())
        .unwrap();
    let expected = candle_core::safetensors::load(&plain, &CPU).unwrap();
    let read = Arc::new(AtomicU64::new(0));
    let bytes = std::fs::read(&shard).unwrap();
    let len = bytes.len() as u64;
    let model = Model::from_source(Counted { bytes, read: Arc::clone(&read) }).unwrap();
    let weights = sharded_var_builder(model, DType::BF16, &CPU);
    for (name, dims) in [("w", 2), ("conv", 4), ("bias", 1)] {
        let whole = &expected[name];
        for dim in 0..dims {
            for world_size in [1, 2, 3, 5, 8] {
                let size = whole.dims()[dim];
                for rank in 0..world_size {
                    let hint = Shard { dim, rank, world_size };
                    read.store(0, Ordering::Relaxed);
                    let dtype = whole.dtype();
                    let found = weights.get_with_hints_dtype(whole.shape(), name, hint, dtype);
                    if size % world_size != 0 {
                        let error = found.unwrap_err().to_string();
                        assert!(error.contains("annot divide"), "{error}");
                        continue;
                    }
                    let part = size / world_size;
                    same(&found.unwrap(), &whole.narrow(dim, rank * part, part).unwrap());
                    let read = read.load(Ordering::Relaxed);
                    if name == "w" && dim == 0 {
                        // Two blocks more than the share, at the most.
                        let most = len / world_size as u64 + 2 * 190_000 + 1000;
                        assert!(read <= most, "{read} of {len} for one of {world_size}");
                    } else {
                        // Every block once.
                        assert!(read <= len, "{read} of {len}");
                    }
                }
            }
        }
    }
    for (dim, rank, world_size) in [(2, 0, 2), (0, 2, 2), (1, 7, 2)] {
        let hint = Shard { dim, rank, world_size };
        assert!(weights.get_with_hints((4096, 1536), "w", hint).is_err());
    }
    let hint = Shard { dim: 0, rank: 0, world_size: 2 };
    assert!(weights.get_with_hints((1, 1), "nothing", hint).is_err());
    assert!(weights.get((4096, 1), "w").is_err());
    same(&weights.get_unchecked("w").unwrap(), &expected["w"]);
}

#[test]
fn tensors_with_a_base_are_those_of_the_new_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut random = Random::new(3);
    let (large, kept) = (random.weights(300_000), random.weights(10_000));
    let mut tuned = large.clone();
    // In the first of four blocks; the others are those of the base.
    tuned[..100_000].iter_mut().step_by(6).for_each(|byte| *byte ^= 1);
    let added = random.bytes(48);
    let file = |name: &str, large: Vec<u8>| {
        let tensors = [
            tensor("large", Dtype::BF16, &[300, 1000], large),
            tensor("kept", Dtype::BF16, &[100, 100], kept.clone()),
            tensor("added", Dtype::F32, &[3, 4], added.clone()),
        ];
        write(&path(name), &tensors[..if name == "base" { 2 } else { 3 }]);
    };
    file("base", large);
    file("new", tuned);
    let options = CompressOptions::new().base(path("base"));
    bigsmall_io::compress(path("new"), path("new.bs"), &options, &Progress::default()).unwrap();
    let alone = Model::open(path("new.bs")).unwrap();
    let has_base = |name: &str| alone.stored(name).unwrap().base.is_some();
    assert_eq!(["large", "kept", "added"].map(has_base), [true, true, false]);
    let error = var_builder(alone, DType::BF16, &CPU).get_unchecked("large").unwrap_err();
    assert!(error.to_string().contains("base"), "{error}");
    let model = || {
        let model = Model::open(path("new.bs")).unwrap();
        model.with_base(BaseModel::open(path("base")).unwrap()).unwrap()
    };
    let weights = var_builder(model(), DType::BF16, &CPU);
    let parts = sharded_var_builder(model(), DType::BF16, &CPU);
    for (name, whole) in candle_core::safetensors::load(path("new"), &CPU).unwrap() {
        let dtype = whole.dtype();
        let found = weights.get_with_hints_dtype(whole.shape(), &name, Default::default(), dtype);
        same(&found.unwrap(), &whole);
        let half = whole.narrow(1, 0, whole.dims()[1] / 2).unwrap();
        let hint = Shard { dim: 1, rank: 0, world_size: 2 };
        let found = parts.get_with_hints_dtype(whole.shape(), &name, hint, dtype);
        same(&found.unwrap(), &half);
    }
}
