//! Embeds sentences with a BERT model whose weights are read from a shard, and ranks them by their
//! similarity to a question.
//!
//! `cargo run --release -p bigsmall-examples --features candle --example embed -- FOLDER`

use std::path::{Path, PathBuf};

use bigsmall_examples::Result;
use bigsmall_io::{CompressOptions, Model, Progress, candle::var_builder, compress};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use clap::Parser;
use tokenizers::{PaddingParams, Tokenizer};

/// Embeds sentences with a BERT model, and ranks them by their similarity to a question.
#[derive(Parser)]
struct Args {
    /// The folder of a model such as MiniLM, with `config.json` and `tokenizer.json`. If it is not
    /// compressed, it is compressed into a temporary folder first.
    folder: PathBuf,
    /// The original weights. The default is `model.safetensors` in the folder, if it exists. Their
    /// vectors must be the same, bit for bit.
    original: Option<PathBuf>,
}

const QUERY: &str = "How do I make a neural network take less space?";
const SENTENCES: [&str; 6] = [
    "Compressing the weights of a model makes its files smaller.",
    "Entropy coding spends fewer bits on what comes often.",
    "The cat sleeps on the warm windowsill.",
    "Quantisation stores each weight with fewer bits.",
    "We had soup and bread for lunch.",
    "Trains to the coast leave every hour.",
];

fn main() -> Result<()> {
    let Args { folder, original } = Args::parse();
    let weights = folder.join("model.safetensors");
    let is_compressed = !weights.exists();
    let original = original.or_else(|| Some(weights).filter(|p| p.exists()));
    let temporary = tempfile::tempdir()?;
    let shards = if is_compressed {
        folder
    } else {
        let shards = temporary.path().join("compressed");
        let report = compress(&folder, &shards, &CompressOptions::default(), &Progress::default())?;
        println!("compressed to {:.2} %", 100.0 * report.ratio());
        shards
    };
    let weights = var_builder(Model::open(&shards)?, DType::F32, &Device::Cpu);
    let vectors = embed(&shards, weights)?;

    let rows = vectors.to_vec2::<f32>()?;
    let nearness = |row: &[f32]| rows[0].iter().zip(row).map(|(a, b)| a * b).sum::<f32>();
    let mut ranked: Vec<(f32, &str)> =
        rows[1..].iter().zip(SENTENCES).map(|(row, text)| (nearness(row), text)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!("{QUERY}");
    for (score, text) in ranked {
        println!("  {score:6.3}  {text}");
    }

    if let Some(original) = original {
        let bytes = std::fs::read(original)?;
        let weights = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu)?;
        let expected = embed(&shards, weights)?.to_vec2::<f32>()?;
        let bits = |rows: &[Vec<f32>]| -> Vec<u32> {
            rows.iter().flatten().map(|v| v.to_bits()).collect()
        };
        if bits(&rows) != bits(&expected) {
            return Err("the vectors differ from those of the original weights".into());
        }
        println!("every bit of {} vectors equals that from the original weights", rows.len());
    }
    Ok(())
}

/// The vectors of the query and of all sentences: the mean of the last layer over the tokens,
/// scaled to length 1.
fn embed(dir: &Path, weights: VarBuilder<'_>) -> Result<Tensor> {
    let config: Config = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
    let model = BertModel::load(weights, &config)?;
    let mut tokenizer = Tokenizer::from_file(dir.join("tokenizer.json"))?;
    tokenizer.with_padding(Some(PaddingParams::default()));
    let texts: Vec<&str> = std::iter::once(QUERY).chain(SENTENCES).collect();
    let encoded = tokenizer.encode_batch(texts, true)?;
    let ids: Vec<&[u32]> = encoded.iter().map(|e| e.get_ids()).collect();
    let masks: Vec<&[u32]> = encoded.iter().map(|e| e.get_attention_mask()).collect();
    let tensor = |rows: &[&[u32]]| {
        Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu)
    };
    let (ids, mask) = (tensor(&ids)?, tensor(&masks)?);
    let states = model.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
    let mask = mask.to_dtype(DType::F32)?.unsqueeze(2)?;
    let sums = states.broadcast_mul(&mask)?.sum(1)?;
    let means = sums.broadcast_div(&mask.sum(1)?)?;
    let lengths = means.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    Ok(means.broadcast_div(&lengths)?)
}
