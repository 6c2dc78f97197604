//! Generates text with a Llama-like model whose weights are read from shards. Each token is printed
//! as soon as it is known.
//!
//! `cargo run --release -p bigsmall-examples --features candle --example generate -- [MODEL
//! [PROMPT]]`

use std::path::{Path, PathBuf};

use bigsmall_examples::Result;
use bigsmall_io::{CompressOptions, Model, Progress, candle::var_builder, compress};
use bigsmall_testing::Llama as Shape;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::generation::LogitsProcessor;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig, LlamaEosToks};
use clap::Parser;
use tokenizers::Tokenizer;

/// Generates text with a Llama-like model.
#[derive(Parser)]
struct Args {
    /// A folder of shards with `config.json` and `tokenizer.json`, or a URL. Without it, a small
    /// model of random weights is made, and its text is compared with the text from the original
    /// weights.
    model: Option<PathBuf>,
    /// The beginning of the text.
    #[arg(default_value = "Once upon a time")]
    prompt: String,
    /// The folder with `config.json` and `tokenizer.json`, if the model is a URL.
    #[arg(long, value_name = "FOLDER")]
    config: Option<PathBuf>,
}

/// The largest number of tokens.
const LENGTH: usize = 100;

fn main() -> Result<()> {
    let Args { model, prompt, config } = Args::parse();
    let Some(model) = model else { return made() };
    let config = config.unwrap_or_else(|| model.clone());
    let weights = var_builder(Model::open(model)?, DType::F32, &Device::Cpu);
    generate(&config, weights, &prompt, &mut std::io::stdout())?;
    println!();
    Ok(())
}

/// Continues `prompt` with the model `weights`, and writes the text to `out` token by token.
/// Returns the tokens.
fn generate(
    dir: &Path,
    weights: VarBuilder<'_>,
    prompt: &str,
    out: &mut impl std::io::Write,
) -> Result<Vec<u32>> {
    let config: LlamaConfig = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
    let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json"))?;
    let ends = match config.eos_token_id.clone() {
        None => Vec::new(),
        Some(LlamaEosToks::Single(token)) => vec![token],
        Some(LlamaEosToks::Multiple(tokens)) => tokens,
    };
    let config = config.into_config(false);
    let model = Llama::load(weights, &config)?;
    let mut cache = Cache::new(true, DType::F32, &config, &Device::Cpu)?;
    let mut sampler = LogitsProcessor::new(299_792_458, Some(0.8), Some(0.95));
    let mut tokens = tokenizer.encode(prompt, true)?.get_ids().to_vec();
    let n_prompt = tokens.len();
    let mut shown = tokenizer.decode(&tokens, true)?;
    write!(out, "{shown}")?;
    let mut at = 0;
    while tokens.len() < n_prompt + LENGTH {
        let input = Tensor::new(&tokens[at..], &Device::Cpu)?.unsqueeze(0)?;
        let logits = model.forward(&input, at, &mut cache)?.squeeze(0)?;
        at = tokens.len();
        let token = sampler.sample(&logits)?;
        if ends.contains(&token) {
            break;
        }
        tokens.push(token);
        // A character may consist of several tokens. It is printed when it is complete.
        let text = tokenizer.decode(&tokens, true)?;
        if let Some(more) = text.strip_prefix(&*shown).filter(|m| !m.ends_with('\u{FFFD}')) {
            write!(out, "{more}")?;
            out.flush()?;
            shown = text;
        }
    }
    Ok(tokens)
}

/// Makes a small model, compresses it, and compares the text of both.
fn made() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let (dir, shards) = (temporary.path().join("model"), temporary.path().join("compressed"));
    std::fs::create_dir(&dir)?;
    let shape = Shape { hidden: 256, ffn: 704, vocabulary: 256, layers: 4, kv: 64 };
    shape.write(&dir.join("model.safetensors"))?;
    std::fs::write(dir.join("config.json"), config(&shape).to_string())?;
    std::fs::write(dir.join("tokenizer.json"), bytes_as_tokens().to_string())?;
    compress(&dir, &shards, &CompressOptions::default(), &Progress::default())?;

    let prompt = "Weights are numbers, and ";
    let weights = var_builder(Model::open(&shards)?, DType::F32, &Device::Cpu);
    let found = generate(&shards, weights, prompt, &mut std::io::stdout())?;
    println!();
    let bytes = std::fs::read(dir.join("model.safetensors"))?;
    let weights = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu)?;
    let expected = generate(&dir, weights, prompt, &mut std::io::sink())?;
    if found != expected {
        return Err("the tokens differ from those of the original weights".into());
    }
    println!("{} tokens, the same as with the original weights", found.len());
    Ok(())
}

fn config(shape: &Shape) -> serde_json::Value {
    serde_json::json!({
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "vocab_size": shape.vocabulary,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "tie_word_embeddings": true,
    })
}

/// A tokenizer with one token for each byte, in the alphabet of byte-level tokenizers.
fn bytes_as_tokens() -> serde_json::Value {
    let mut next = 256u32;
    let letters = (0..=255u32).map(|byte| {
        let own = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if own { byte } else { next };
        next += u32::from(!own);
        (char::from_u32(code).unwrap_or_default().to_string(), byte.into())
    });
    let vocabulary: serde_json::Map<String, serde_json::Value> = letters.collect();
    let level = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    serde_json::json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": level,
        "post_processor": null,
        "decoder": level,
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [] },
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_made_model_says_the_same_from_shards() -> super::Result<()> {
        super::made()
    }
}
