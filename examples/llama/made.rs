//! A model of random weights, for users without a model.

use std::path::Path;
use std::sync::OnceLock;

use bigsmall_format::{Dtype, EncodedTensor, Raw, TensorSpec, encode_tensor};
use bigsmall_io::{SaveOptions, Writer};
use bigsmall_testing::Random;
use half::bf16;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::Result;
use crate::config::{Config, MATRICES};

/// The shape of a model of random weights. Every tensor is drawn when it is asked for, always with
/// the same values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    /// `llama`, `mistral`, `qwen2` or `qwen3`.
    pub(crate) family: &'static str,
    pub(crate) hidden: u64,
    pub(crate) ffn: u64,
    pub(crate) vocabulary: u64,
    pub(crate) layers: u64,
    pub(crate) heads: u64,
    pub(crate) kv_heads: u64,
    pub(crate) dim: u64,
    pub(crate) tied: bool,
}

impl Made {
    /// 22 million weights.
    pub(crate) const SMALL: Made = Made {
        family: "llama",
        hidden: 512,
        ffn: 1408,
        vocabulary: 4000,
        layers: 8,
        heads: 8,
        kv_heads: 2,
        dim: 64,
        tied: true,
    };
    /// 100 million.
    pub(crate) const MIDDLE: Made = Made {
        hidden: 768,
        ffn: 2048,
        vocabulary: 32_000,
        layers: 12,
        heads: 12,
        kv_heads: 4,
        ..Made::SMALL
    };
    /// 1.2 billion: the shape of Llama 3.2 1B.
    pub(crate) const LARGE: Made = Made {
        hidden: 2048,
        ffn: 8192,
        vocabulary: 128_256,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        ..Made::SMALL
    };

    pub(crate) fn named(name: &str) -> std::result::Result<Self, String> {
        match name {
            "20M" => Ok(Made::SMALL),
            "100M" => Ok(Made::MIDDLE),
            "1B" => Ok(Made::LARGE),
            other => Err(format!("{other:?}, expected 20M, 100M or 1B")),
        }
    }

    pub(crate) fn config(&self) -> Value {
        json!({
            "model_type": self.family,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "vocab_size": self.vocabulary,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.dim,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": self.tied,
        })
    }

    /// The descriptions of all tensors.
    pub(crate) fn tensors(&self) -> Result<Vec<TensorSpec>> {
        let config = Config::new(&self.config())?;
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[u64]| -> Result<()> {
            tensors.push(TensorSpec::new(&name, Dtype::BF16, shape)?);
            Ok(())
        };
        add("model.embed_tokens.weight".into(), &[self.vocabulary, self.hidden])?;
        if !self.tied {
            add("lm_head.weight".into(), &[self.vocabulary, self.hidden])?;
        }
        for layer in 0..self.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            for (which, part) in MATRICES.iter().enumerate() {
                let [rows, cols] = config.shape(which).map(|n| n as u64);
                add(name(&format!("{part}.weight")), &[rows, cols])?;
                if config.biases[which] {
                    add(name(&format!("{part}.bias")), &[rows])?;
                }
            }
            add(name("input_layernorm.weight"), &[self.hidden])?;
            add(name("post_attention_layernorm.weight"), &[self.hidden])?;
            if config.qk_norm {
                add(name("self_attn.q_norm.weight"), &[self.dim])?;
                add(name("self_attn.k_norm.weight"), &[self.dim])?;
            }
        }
        add("model.norm.weight".into(), &[self.hidden])?;
        Ok(tensors)
    }

    pub(crate) fn encoded(&self, name: &str) -> Result<EncodedTensor> {
        let tensors = self.tensors()?;
        let at = tensors.iter().position(|spec| spec.name() == name);
        let at = at.ok_or_else(|| format!("{name} is missing"))?;
        Ok(encode_tensor(&Raw, &tensors[at], &draw(&tensors[at], at as u64))?)
    }

    /// Writes `config.json` and `model.bs`.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        std::fs::write(folder.join("config.json"), self.config().to_string())?;
        let tensors = self.tensors()?;
        let options = SaveOptions::new().replace(true);
        let mut writer = Writer::create(folder.join("model.bs"), tensors.clone(), None, &options)?;
        for (at, spec) in tensors.iter().enumerate() {
            writer.tensor(spec.name(), &draw(spec, at as u64))?;
        }
        writer.finish()?;
        Ok(())
    }
}

/// The scales of rows, from small ones to large ones, as networks have them.
const SCALES: usize = 8;
/// Normal numbers for each scale.
const NORMALS: usize = 1 << 16;

/// The original bytes of a tensor. Matrices are 0.02 N(0, 1) exp(N(0, 0.2)), where the last factor
/// is drawn once a row. They come from a table, which is fast enough for billions of weights.
fn draw(spec: &TensorSpec, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; spec.byte_len() as usize];
    if spec.shape().len() < 2 {
        let mut random = Random::new(seed);
        let mean = if spec.name().ends_with("bias") { 0.0 } else { 1.0 };
        for value in bytes.as_chunks_mut::<2>().0 {
            *value = bf16::from_f64(mean + 0.1 * random.normal()).to_le_bytes();
        }
        return bytes;
    }
    static TABLE: OnceLock<Vec<[u8; 2]>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut random = Random::new(1);
        let value = |i: usize| {
            // Evenly spaced from -1.5 to 1.5 standard deviations.
            let place = (i / NORMALS) as f64 / (SCALES - 1) as f64;
            0.02 * (0.2 * 3.0 * (place - 0.5)).exp()
        };
        (0..SCALES * NORMALS)
            .map(|i| bf16::from_f64(value(i) * random.normal()).to_le_bytes())
            .collect()
    });
    let row = spec.byte_len() as usize / spec.shape()[0].max(1) as usize;
    bytes.par_chunks_mut(row.max(1)).enumerate().for_each(|(i, row)| {
        let mut random = Random::new(seed << 32 | i as u64);
        let normals = &table[random.bits() as usize % SCALES * NORMALS..][..NORMALS];
        for four in row.chunks_mut(8) {
            let drawn = random.bits();
            for (i, value) in four.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                *value = normals[(drawn >> (16 * i)) as usize % NORMALS];
            }
        }
    });
    bytes
}
