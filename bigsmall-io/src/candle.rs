//! Weights for candle's models, directly from shards.
//!
//! [`var_builder`] serves every model that takes a `VarBuilder`; [`sharded_var_builder`] gives each
//! rank of a tensor-parallel model its part. Tensors are decoded into candle's own memory: a model
//! is never in memory twice, and nothing is written to disk.
//!
//! ```
//! # let dir = std::env::temp_dir().join(format!("bigsmall-doc-candle-{}", std::process::id()));
//! # std::fs::create_dir_all(&dir)?;
//! # let json = br#"{"fc.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}"#;
//! # let data = [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat();
//! # let length = (json.len() as u64).to_le_bytes();
//! # std::fs::write(dir.join("m.safetensors"), [&length[..], json, &data].concat())?;
//! # let options = bigsmall_io::CompressOptions::new().replace(true);
//! # let path = dir.join("m.bs");
//! # bigsmall_io::compress(&dir.join("m.safetensors"), &path, &options, &Default::default())?;
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::Module as _;
//!
//! let model = bigsmall_io::Model::open(&path)?;
//! let weights = bigsmall_io::candle::var_builder(model, DType::F32, &Device::Cpu);
//! let layer = candle_nn::linear_no_bias(2, 1, weights.pp("fc"))?;
//! let y = layer.forward(&Tensor::new(&[[10f32, 1.]], &Device::Cpu)?)?;
//! assert_eq!(y.to_vec2::<f32>()?, [[12.0]]);
//! # std::fs::remove_dir_all(&dir)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::ops::Range;
use std::sync::Arc;

use bigsmall_format::internal::{Chain, blocks_within, zeroed};
use bigsmall_format::{Dtype, Rule, TensorSpec};
use candle_core::{DType, Device, Error, Result, Shape, Tensor, WithDType};
use candle_nn::Init;
use candle_nn::var_builder::{Backend, Shard, SimpleBackend, VarBuilder, VarBuilderArgs};

/// The versions of candle's crates whose types appear in these signatures.
pub use {candle_core, candle_nn};

use crate::Model;

/// A `VarBuilder` over `model`. A requested tensor is converted to `dtype`. If that is its own
/// dtype, it keeps every bit.
pub fn var_builder(
    model: impl Into<Arc<Model>>,
    dtype: DType,
    device: &Device,
) -> VarBuilder<'static> {
    let backend: Box<dyn SimpleBackend> = Box::new(Weights::new(model));
    VarBuilderArgs::new_with_args(backend, dtype, device)
}

/// The same for tensor parallelism: hints of the type [`Shard`] choose a rank's part of a tensor.
/// For a part of dimension 0 only its own blocks are read. For any other dimension the tensor is
/// decoded in pieces of 8 MiB.
pub fn sharded_var_builder(
    model: impl Into<Arc<Model>>,
    dtype: DType,
    device: &Device,
) -> VarBuilderArgs<'static, ShardedWeights> {
    VarBuilderArgs::new_with_args(ShardedWeights(Weights::new(model)), dtype, device)
}

/// Tensors of a [`Model`] as a backend of candle's `VarBuilder`.
#[derive(Clone, Debug)]
pub struct Weights(Arc<Model>);

/// Parts of tensors of a [`Model`] as a backend of candle's `VarBuilderArgs`.
#[derive(Clone, Debug)]
pub struct ShardedWeights(Weights);

/// Bytes decoded at a time if a part is not contiguous.
const WINDOW: u64 = 8 << 20;

impl Weights {
    /// The tensors of `model`.
    pub fn new(model: impl Into<Arc<Model>>) -> Self {
        Weights(model.into())
    }

    fn spec(&self, name: &str) -> Result<&TensorSpec> {
        self.0.spec(name).map_err(|_| Error::CannotFindTensor { path: name.to_owned() }.bt())
    }

    fn whole(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let spec = self.spec(name)?;
        let decode = |dst: &mut [u8]| self.0.tensor_into(name, dst);
        load(spec, &dims(spec)?, device, decode)?.to_dtype(dtype)
    }

    fn part(&self, name: &str, hint: Shard, dtype: DType, device: &Device) -> Result<Tensor> {
        let Shard { dim, rank, world_size } = hint;
        let spec = self.spec(name)?;
        let mut shape = dims(spec)?;
        let Some(&size) = shape.get(dim) else {
            candle_core::bail!("{name} has no dimension {dim}")
        };
        if rank >= world_size {
            candle_core::bail!("there is no rank {rank} of {world_size}")
        }
        if size % world_size != 0 {
            let shape = shape.into();
            return Err(Error::ShapeMismatchSplit { shape, dim, n_parts: world_size }.bt());
        }
        let part = (size / world_size) as u64;
        shape[dim] = part as usize;
        let wanted = rank as u64 * part..(rank as u64 + 1) * part;
        if dim == 0 {
            let decode = |dst: &mut [u8]| self.0.rows_into(name, wanted, dst);
            return load(spec, &shape, device, decode)?.to_dtype(dtype);
        }
        if !spec.dtype().bits().is_multiple_of(8) {
            return Err(unsupported(spec));
        }
        let inner: u64 =
            spec.shape()[dim + 1..].iter().product::<u64>() * u64::from(spec.dtype().bits() / 8);
        let decode = |dst: &mut [u8]| {
            columns(
                &self.0,
                spec,
                size as u64 * inner,
                wanted.start * inner..wanted.end * inner,
                dst,
            )
        };
        load(spec, &shape, device, decode)?.to_dtype(dtype)
    }
}

/// Decodes the bytes `wanted` of every row of `row` bytes into `dst`, every block once.
fn columns(
    model: &Model,
    spec: &TensorSpec,
    row: u64,
    wanted: Range<u64>,
    dst: &mut [u8],
) -> crate::Result<()> {
    let width = wanted.end - wanted.start;
    if width == 0 || spec.byte_len() == 0 {
        return Ok(());
    }
    let block = spec.block_bytes() as u64;
    let window = blocks_within(spec, WINDOW) * block;
    let mut scratch = zeroed(window.min(spec.byte_len()))?;
    let mut begin = 0;
    while begin < spec.byte_len() {
        let end = spec.byte_len().min(begin + window);
        let decoded = &mut scratch[..(end - begin) as usize];
        model.bytes_into(spec.name(), begin..end, decoded)?;
        for r in begin / row..end.div_ceil(row) {
            let from = (r * row + wanted.start).max(begin);
            let to = (r * row + wanted.end).min(end);
            if from < to {
                let at = (r * width + from - (r * row + wanted.start)) as usize;
                let piece = &decoded[(from - begin) as usize..(to - begin) as usize];
                dst[at..at + piece.len()].copy_from_slice(piece);
            }
        }
        begin = end;
    }
    Ok(())
}

impl SimpleBackend for Weights {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> Result<Tensor> {
        let got = Shape::from(dims(self.spec(name)?)?);
        if got != shape {
            let msg = format!("shape mismatch for {name}");
            return Err(Error::UnexpectedShape { msg, expected: shape, got }.bt());
        }
        self.whole(name, dtype, dev)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, dev: &Device) -> Result<Tensor> {
        self.whole(name, dtype, dev)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.spec(name).is_ok()
    }
}

impl Backend for ShardedWeights {
    type Hints = Shard;

    /// As in candle's own backend for safetensors, `shape` is that of the whole tensor and is used
    /// only with a single rank.
    fn get(
        &self,
        shape: Shape,
        name: &str,
        hint: Shard,
        dtype: DType,
        dev: &Device,
    ) -> Result<Tensor> {
        if hint.world_size == 1 {
            return SimpleBackend::get(&self.0, shape, name, Init::default(), dtype, dev);
        }
        self.0.part(name, hint, dtype, dev)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, dev: &Device) -> Result<Tensor> {
        self.0.whole(name, dtype, dev)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.contains_tensor(name)
    }
}

fn dims(spec: &TensorSpec) -> Result<Vec<usize>> {
    let dims = spec.shape().iter().map(|&n| usize::try_from(n));
    dims.collect::<std::result::Result<_, _>>().map_err(Error::wrap)
}

fn unsupported(spec: &TensorSpec) -> Error {
    let error = crate::Error::new(Rule::SpecMismatch).in_tensor(spec.name());
    Error::wrap(error.expected("a dtype that candle has").found(spec.dtype()))
}

/// A tensor of candle whose bytes `decode` writes; on the CPU directly into candle's memory.
fn load(
    spec: &TensorSpec,
    shape: &[usize],
    device: &Device,
    decode: impl FnOnce(&mut [u8]) -> crate::Result<()>,
) -> Result<Tensor> {
    if cfg!(target_endian = "big") {
        candle_core::bail!("weights are little-endian, and this machine is not")
    }
    let n = shape.iter().product();
    match spec.dtype() {
        Dtype::U8 => typed::<u8>(n, shape, device, decode),
        Dtype::I16 => typed::<i16>(n, shape, device, decode),
        Dtype::I32 => typed::<i32>(n, shape, device, decode),
        Dtype::I64 => typed::<i64>(n, shape, device, decode),
        Dtype::U32 => typed::<u32>(n, shape, device, decode),
        Dtype::BF16 => typed::<half::bf16>(n, shape, device, decode),
        Dtype::F16 => typed::<half::f16>(n, shape, device, decode),
        Dtype::F32 => typed::<f32>(n, shape, device, decode),
        Dtype::F64 => typed::<f64>(n, shape, device, decode),
        // candle has no such type and uses U32, as it does for safetensors.
        Dtype::U16 => {
            let mut values = values::<u16>(n)?;
            decode(bytemuck::cast_slice_mut(&mut values)).map_err(wrap)?;
            let wide: Vec<u32> = values.into_iter().map(u32::from).collect();
            Tensor::from_vec(wide, shape, device)
        }
        other => {
            let dtype = match other {
                Dtype::F8_E4M3 => DType::F8E4M3,
                Dtype::F8_E8M0 => DType::F8E8M0,
                Dtype::F6_E2M3 => DType::F6E2M3,
                Dtype::F6_E3M2 => DType::F6E3M2,
                Dtype::F4 => DType::F4,
                _ => return Err(unsupported(spec)),
            };
            let bits = n as u64 * u64::from(other.bits());
            let mut bytes = zeroed(bits.div_ceil(8)).map_err(Error::wrap)?;
            decode(&mut bytes).map_err(wrap)?;
            Tensor::from_raw_buffer(&bytes, dtype, shape, device)
        }
    }
}

fn typed<T: WithDType + bytemuck::Pod>(
    n: usize,
    shape: &[usize],
    device: &Device,
    decode: impl FnOnce(&mut [u8]) -> crate::Result<()>,
) -> Result<Tensor> {
    let mut values = values::<T>(n)?;
    decode(bytemuck::cast_slice_mut(&mut values)).map_err(wrap)?;
    Tensor::from_vec(values, shape, device)
}

/// candle prints what it wraps with `Display`, so the causes must be in that text.
fn wrap(error: impl std::error::Error + 'static) -> Error {
    Error::wrap(Chain(&error).to_string())
}

/// Zeros; an error if there is no memory.
fn values<T: bytemuck::Zeroable + Clone>(n: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(n).map_err(Error::wrap)?;
    values.resize(n, T::zeroed());
    Ok(values)
}
