//! The shape of a model, from its `config.json`.

use std::path::Path;

use bigsmall_gpu::Heads;
use serde_json::Value;

use crate::Result;

/// The contents of `config.json`.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) hidden: usize,
    pub(crate) ffn: usize,
    pub(crate) vocabulary: usize,
    pub(crate) layers: usize,
    pub(crate) heads: Heads,
    pub(crate) epsilon: f32,
    /// The rotation of each pair of values from one position to the next, in radians.
    pub(crate) turns: Vec<f64>,
    pub(crate) tied: bool,
    /// Tokens that end a text.
    pub(crate) ends: Vec<u32>,
    pub(crate) positions: usize,
}

impl Config {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let new = || Self::new(&serde_json::from_slice(&std::fs::read(&path)?)?);
        new().map_err(|e| format!("{}: {e}", path.display()).into())
    }

    fn new(json: &Value) -> Result<Self> {
        let number = |key: &str| json[key].as_u64().map(|n| n as usize);
        let need = |key: &str| number(key).ok_or_else(|| format!("{key} is missing"));
        for (key, usual) in [("hidden_act", "silu"), ("model_type", "llama")] {
            if json[key].as_str().is_some_and(|found| found != usual) {
                return Err(format!("{key} is {}, expected {usual}", json[key]).into());
            }
        }
        for key in ["attention_bias", "mlp_bias"] {
            if json[key].as_bool() == Some(true) {
                return Err(format!("{key}: matrices with a bias are not supported").into());
            }
        }
        let (hidden, queries) = (need("hidden_size")?, need("num_attention_heads")?);
        let keys = number("num_key_value_heads").unwrap_or(queries);
        let dim = match number("head_dim") {
            Some(dim) => dim,
            None => hidden.checked_div(queries).ok_or("num_attention_heads is 0")?,
        };
        let ends = match &json["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(Value::as_u64).map(|id| id as u32).collect(),
            id => id.as_u64().map(|id| id as u32).into_iter().collect(),
        };
        Ok(Config {
            hidden,
            ffn: need("intermediate_size")?,
            vocabulary: need("vocab_size")?,
            layers: need("num_hidden_layers")?,
            heads: Heads { queries, keys, dim },
            epsilon: json["rms_norm_eps"].as_f64().unwrap_or(1e-5) as f32,
            turns: turns(json, dim)?,
            tied: json["tie_word_embeddings"].as_bool().unwrap_or(false),
            ends,
            positions: number("max_position_embeddings").unwrap_or(usize::MAX),
        })
    }
}

/// The angles of rotary position embedding, with Llama 3's scaling of the small ones.
fn turns(json: &Value, dim: usize) -> Result<Vec<f64>> {
    let theta = json["rope_theta"].as_f64().unwrap_or(10_000.0);
    let plain = (0..dim / 2).map(|j| theta.powf(-2.0 * j as f64 / dim as f64));
    let scaling = &json["rope_scaling"];
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str());
    match kind {
        None | Some("default") => Ok(plain.collect()),
        Some("llama3") => {
            let need = |key: &str| {
                scaling[key].as_f64().ok_or_else(|| format!("{key} is missing in rope_scaling"))
            };
            let (factor, original) = (need("factor")?, need("original_max_position_embeddings")?);
            let (low, high) = (need("low_freq_factor")?, need("high_freq_factor")?);
            // The scaling depends on the number of rotations within the original context.
            let scaled = |turn: f64| {
                let rounds = original * turn / std::f64::consts::TAU;
                let kept = ((rounds - low) / (high - low)).clamp(0.0, 1.0);
                turn * (kept + (1.0 - kept) / factor)
            };
            Ok(plain.map(scaled).collect())
        }
        Some(other) => Err(format!("rope_scaling is {other:?}, expected \"llama3\"").into()),
    }
}
