//! candle's Llama on the CPU, with the same weights: what ours is compared with.

use std::collections::HashMap;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use serde_json::Value;

use crate::Result;
use crate::bench::{median, prompt};
use crate::source::{Source, decoded};

/// candle's model with weights of `dtype`.
pub(crate) fn load(source: &Source, config: &Value, dtype: DType) -> Result<(Llama, Config)> {
    let device = Device::Cpu;
    let mut tensors = HashMap::new();
    for spec in source.specs()? {
        let bytes = decoded(&source.encoded(spec.name())?)?;
        let shape: Vec<usize> = spec.shape().iter().map(|&n| n as usize).collect();
        let from = match spec.dtype() {
            bigsmall_format::Dtype::BF16 => DType::BF16,
            bigsmall_format::Dtype::F16 => DType::F16,
            _ => DType::F32,
        };
        let tensor = Tensor::from_raw_buffer(&bytes, from, &shape, &device)?.to_dtype(dtype)?;
        tensors.insert(spec.name().to_owned(), tensor);
    }
    let config: LlamaConfig = serde_json::from_value(config.clone())?;
    let config = config.into_config(false);
    let llama = Llama::load(VarBuilder::from_tensors(tensors, dtype, &device), &config)?;
    Ok((llama, config))
}

/// Tokens a second after the prompt of the measurement, and of the prompt, in `dtype`.
pub(crate) fn measure(source: &Source, config: &Value, dtype: DType, n: usize) -> Result<[f64; 2]> {
    let (llama, config) = load(source, config, dtype)?;
    let device = Device::Cpu;
    let mut cache = Cache::new(true, dtype, &config, &device)?;
    let mut step = |ids: &[u32], position: usize| -> Result<(u32, f64)> {
        let begin = Instant::now();
        let input = Tensor::new(ids, &device)?.unsqueeze(0)?;
        let logits = llama.forward(&input, position, &mut cache)?;
        let token = logits.flatten_all()?.argmax(0)?.to_scalar()?;
        Ok((token, begin.elapsed().as_secs_f64()))
    };
    let prompt = prompt(config.vocab_size);
    let (mut token, prefill) = step(&prompt, 0)?;
    let mut times = Vec::new();
    for i in 0..n {
        let (next, time) = step(&[token], prompt.len() + i)?;
        token = next;
        times.push(time);
    }
    Ok([1.0 / median(times), prompt.len() as f64 / prefill])
}
