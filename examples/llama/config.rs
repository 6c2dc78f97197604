//! The shape of a model, from its `config.json`.

use std::path::Path;

use serde_json::Value;

use crate::Result;

/// The heads of an attention layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) queries: usize,
    /// Heads of the keys and of the values: neighbouring query heads share one.
    pub(crate) keys: usize,
    /// Values of a head.
    pub(crate) dim: usize,
}

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
    /// Whether each matrix of a layer has a bias, in the order of [`MATRICES`].
    pub(crate) biases: [bool; MATRICES.len()],
    /// Whether queries and keys are normed, head by head.
    pub(crate) qk_norm: bool,
    /// Tokens that end a text.
    pub(crate) ends: Vec<u32>,
    pub(crate) positions: usize,
}

/// The matrices of a layer.
pub(crate) const MATRICES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

impl Config {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let new = || Self::new(&serde_json::from_slice(&std::fs::read(&path)?)?);
        new().map_err(|e| format!("{}: {e}", path.display()).into())
    }

    pub(crate) fn new(json: &Value) -> Result<Self> {
        let number = |key: &str| json[key].as_u64().map(|n| n as usize);
        let need = |key: &str| number(key).ok_or_else(|| format!("{key} is missing"));
        let is = |key: &str| json[key].as_bool() == Some(true);
        if let Some(found) = json["hidden_act"].as_str().filter(|&found| found != "silu") {
            return Err(format!("hidden_act is {found:?}, expected \"silu\"").into());
        }
        let family = json["model_type"].as_str().unwrap_or("llama");
        // Qwen2 has biases of q, k and v, and says nothing about them.
        let (qkv, o) = match family {
            "llama" | "qwen3" => (is("attention_bias"), is("attention_bias")),
            "mistral" => (false, false),
            "qwen2" => (true, false),
            other => {
                let expected = "llama, mistral, qwen2 or qwen3";
                return Err(format!("model_type is {other:?}, expected {expected}").into());
            }
        };
        let mlp = family == "llama" && is("mlp_bias");
        let (hidden, queries) = (need("hidden_size")?, need("num_attention_heads")?);
        let keys = number("num_key_value_heads").unwrap_or(queries);
        if queries == 0 || keys == 0 || !queries.is_multiple_of(keys) {
            return Err(format!("{queries} query heads cannot share {keys} key heads").into());
        }
        let dim = match number("head_dim") {
            Some(dim) => dim,
            None => hidden / queries,
        };
        if dim == 0 || !dim.is_multiple_of(4) {
            return Err(format!("heads of {dim} values, expected a multiple of 4").into());
        }
        let ends = match &json["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(Value::as_u64).map(|id| id as u32).collect(),
            id => id.as_u64().map(|id| id as u32).into_iter().collect(),
        };
        // With a sliding window, attention is complete only as far as the window reaches.
        let sliding = json["use_sliding_window"].as_bool() != Some(false);
        let window = number("sliding_window").filter(|_| sliding).unwrap_or(usize::MAX);
        let positions = number("max_position_embeddings").unwrap_or(usize::MAX);
        Ok(Config {
            hidden,
            ffn: need("intermediate_size")?,
            vocabulary: need("vocab_size")?,
            layers: need("num_hidden_layers")?,
            heads: Heads { queries, keys, dim },
            epsilon: json["rms_norm_eps"].as_f64().unwrap_or(1e-5) as f32,
            turns: turns(json, dim)?,
            tied: is("tie_word_embeddings"),
            biases: [qkv, qkv, qkv, o, mlp, mlp, mlp],
            qk_norm: family == "qwen3",
            ends,
            positions: positions.min(window),
        })
    }

    /// Rows and columns of a matrix of a layer.
    pub(crate) fn shape(&self, which: usize) -> [usize; 2] {
        let Heads { queries, keys, dim } = self.heads;
        match which {
            0 => [queries * dim, self.hidden],
            1 | 2 => [keys * dim, self.hidden],
            3 => [self.hidden, queries * dim],
            4 | 5 => [self.ffn, self.hidden],
            _ => [self.hidden, self.ffn],
        }
    }
}

/// The angles of rotary position embedding, scaled if the configuration says so.
fn turns(json: &Value, dim: usize) -> Result<Vec<f64>> {
    // Newer configurations have all of it in one object.
    let parameters = &json["rope_parameters"];
    let scaling = if json["rope_scaling"].is_object() { &json["rope_scaling"] } else { parameters };
    let theta = json["rope_theta"].as_f64().or(parameters["rope_theta"].as_f64());
    let theta = theta.unwrap_or(10_000.0);
    let plain = (0..dim / 2).map(|j| theta.powf(-2.0 * j as f64 / dim as f64));
    let need = |key: &str| {
        scaling[key].as_f64().ok_or_else(|| format!("{key} is missing in rope_scaling"))
    };
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str());
    match kind {
        None | Some("default") => Ok(plain.collect()),
        Some("linear") => {
            let factor = need("factor")?;
            Ok(plain.map(|turn| turn / factor).collect())
        }
        Some("llama3") => {
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
        Some(other) => {
            Err(format!("rope_scaling is {other:?}, expected \"linear\" or \"llama3\"").into())
        }
    }
}
