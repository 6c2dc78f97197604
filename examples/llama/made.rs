//! A small model of random weights, for users without a model.

use std::path::Path;

use bigsmall_format::{Dtype, Header, TensorSpec};
use bigsmall_io::{CompressOptions, Progress, compress};
use bigsmall_testing::Random;
use half::bf16;

use crate::Result;
use crate::weights::MATRICES;

/// The shape of a model of random weights.
pub(crate) struct Made {
    pub(crate) hidden: u64,
    pub(crate) ffn: u64,
    pub(crate) vocabulary: u64,
    pub(crate) layers: u64,
    pub(crate) heads: u64,
    pub(crate) kv_heads: u64,
    pub(crate) tied: bool,
}

impl Default for Made {
    fn default() -> Self {
        Made {
            hidden: 512,
            ffn: 1408,
            vocabulary: 4000,
            layers: 8,
            heads: 8,
            kv_heads: 2,
            tied: true,
        }
    }
}

impl Made {
    /// Writes `config.json` and `model.bs`, the same bytes every time.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let Made { hidden, ffn, vocabulary, layers, heads, kv_heads, tied } = *self;
        let kv = hidden / heads * kv_heads;
        let config = format!(
            r#"{{"model_type":"llama","hidden_size":{hidden},"intermediate_size":{ffn},
"vocab_size":{vocabulary},"num_hidden_layers":{layers},"num_attention_heads":{heads},
"num_key_value_heads":{kv_heads},"rms_norm_eps":1e-5,"rope_theta":10000.0,
"max_position_embeddings":4096,"tie_word_embeddings":{tied}}}"#
        );
        std::fs::write(folder.join("config.json"), config)?;
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[u64]| -> Result<()> {
            tensors.push(TensorSpec::new(&name, Dtype::BF16, shape)?);
            Ok(())
        };
        add("model.embed_tokens.weight".into(), &[vocabulary, hidden])?;
        if !tied {
            add("lm_head.weight".into(), &[vocabulary, hidden])?;
        }
        for layer in 0..layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let shapes = [hidden, kv, kv, hidden, ffn, ffn, hidden]
                .into_iter()
                .zip([hidden, hidden, hidden, hidden, hidden, hidden, ffn]);
            for (part, (rows, cols)) in MATRICES.iter().zip(shapes) {
                add(name(part), &[rows, cols])?;
            }
            add(name("input_layernorm"), &[hidden])?;
            add(name("post_attention_layernorm"), &[hidden])?;
        }
        add("model.norm.weight".into(), &[hidden])?;

        let header = Header::synthesise(&tensors)?;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(&header);
        let mut random = Random::new(1);
        for spec in &tensors {
            for _ in 0..spec.n_elements() {
                let w = match spec.shape().len() {
                    1 => 1.0 + 0.1 * random.normal(),
                    _ => 0.05 * random.normal(),
                };
                file.extend_from_slice(&bf16::from_f64(w).to_le_bytes());
            }
        }
        let (plain, shard) = (folder.join("model.safetensors"), folder.join("model.bs"));
        std::fs::write(&plain, file)?;
        let options = CompressOptions::new().replace(true);
        compress(&plain, &shard, &options, &Progress::default())?;
        Ok(std::fs::remove_file(&plain)?)
    }
}
