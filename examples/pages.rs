//! Keys and values of a real forward pass, page by page: tables are trained on the first sequences,
//! and pages of all others are coded with them.
//!
//! `cargo run --release -p bigsmall-examples --features candle --example pages -- FOLDER`

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bigsmall_codec::{Ans, Dtype, Pages, TensorSpec, encode_tensor};
use bigsmall_examples::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, VarBuilder, linear};
use candle_transformers::models::bert::{BertEncoder, BertModel, Config};
use clap::Parser;
use half::bf16;
use tokenizers::Tokenizer;

/// Codes the keys and values of a BERT model as pages, and prints sizes and rates.
#[derive(Parser)]
struct Args {
    /// The folder of a model such as MiniLM, with `model.safetensors`, `config.json` and
    /// `tokenizer.json`.
    folder: PathBuf,
    /// Text to run through the model. Without it, FORMAT.md of this repository.
    text: Option<PathBuf>,
    /// How many sequences of 512 tokens, at most. Tables are trained on a quarter of them.
    #[arg(long, default_value_t = 12)]
    sequences: usize,
}

const TOKENS: usize = 512;
/// Tokens of a page: pages of 18, 96 and 384 KiB for a model of 384 channels.
const PAGES: [usize; 3] = [24, 128, 512];

fn main() -> Result<()> {
    let args = Args::parse();
    let text = match &args.text {
        Some(path) => std::fs::read_to_string(path)?,
        None => include_str!("../FORMAT.md").to_owned(),
    };
    let weights = args.folder.join("model.safetensors");
    if !weights.is_file() {
        let path = weights.display();
        return Err(format!("{path} is missing; .ci/run fetches MiniLM to target/minilm").into());
    }
    let caches = forward(&args.folder, &std::fs::read(weights)?, &text, args.sequences)?;
    println!(
        "{} sequences of {TOKENS} tokens, {} layers, bf16; rates are those of one thread",
        caches.len(),
        caches[0].len()
    );
    println!("      KiB a page   as pages   as a tensor   decode pages  tensor   encode pages");
    let one_thread = rayon_pool()?;
    one_thread.install(|| -> Result<()> {
        for (i, kind) in ["keys", "values"].into_iter().enumerate() {
            let (sample, rest) = caches.split_at(caches.len().div_ceil(4));
            let of = |part: &[Cache]| -> Vec<Vec<u8>> {
                part.iter().flatten().map(|layer| layer[i].clone()).collect()
            };
            measure(kind, &of(sample), &of(rest))?;
        }
        Ok(())
    })
}

/// A pool of one thread, in which decoding a tensor takes one thread too.
fn rayon_pool() -> Result<rayon::ThreadPool> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(1).build()?)
}

/// Keys and values of every layer, as bytes of bf16: one token after the other.
type Cache = Vec<[Vec<u8>; 2]>;

/// Runs the text through the model. Returns the keys and values of each sequence.
fn forward(folder: &Path, weights: &[u8], text: &str, most: usize) -> Result<Vec<Cache>> {
    let config: Config = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
    let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json"))?;
    let mut tokenizer = tokenizer;
    tokenizer.with_truncation(None)?.with_padding(None);
    let ids = tokenizer.encode(text, false)?.get_ids().to_vec();
    let device = Device::Cpu;
    let weights = VarBuilder::from_slice_safetensors(weights, DType::F32, &device)?;
    let with_layers = |n| Config { num_hidden_layers: n, ..config.clone() };
    let embeddings = BertModel::load(weights.clone(), &with_layers(0))?;
    let mut caches = Vec::new();
    let sequences: Vec<&[u32]> = ids.chunks_exact(TOKENS).take(most).collect();
    if sequences.len() < 4 {
        return Err(format!("the text has {} tokens, and 2048 are needed", ids.len()).into());
    }
    for ids in sequences {
        let ids = Tensor::from_slice(ids, (1, TOKENS), &device)?;
        let mut states = embeddings.forward(&ids, &ids.zeros_like()?, None)?;
        let mask = Tensor::zeros((1, 1, 1, TOKENS), DType::F32, &device)?;
        let mut cache = Cache::new();
        for layer in 0..config.num_hidden_layers {
            let attention = weights.pp(format!("encoder.layer.{layer}.attention.self"));
            let project = |name: &str| -> Result<Vec<u8>> {
                let n = config.hidden_size;
                let projected = linear(n, n, attention.pp(name))?.forward(&states)?;
                let values = projected.to_dtype(DType::BF16)?.flatten_all()?.to_vec1::<bf16>()?;
                Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect())
            };
            cache.push([project("key")?, project("value")?]);
            // An encoder of this layer alone.
            let name = format!("layer.{layer}.");
            let of_layer = weights.clone().rename_f(move |n| n.replace("layer.0.", &name));
            let encoder = BertEncoder::load(of_layer.pp("encoder"), &with_layers(1))?;
            states = encoder.forward(&states, &mask)?;
        }
        caches.push(cache);
    }
    Ok(caches)
}

/// Trains on `sample`, codes `rest`, and prints a line for each size of pages.
fn measure(kind: &str, sample: &[Vec<u8>], rest: &[Vec<u8>]) -> Result<()> {
    let samples: Vec<&[u8]> = sample.iter().map(Vec::as_slice).collect();
    let pages = Pages::train(Dtype::BF16, &samples)?;
    let all = rest.concat();
    let token_bytes = all.len() / rest.len() / TOKENS;

    let spec = TensorSpec::new(kind, Dtype::BF16, &[all.len() as u64 / 2])?;
    let tensor = encode_tensor(&Ans::default(), &spec, &all)?;
    let mut back = vec![0; all.len()];
    let decode_tensor = rate(all.len(), || {
        Ok(tensor.decode_bytes(&Ans::default(), 0..spec.byte_len(), black_box(&mut back))?)
    })?;
    let share = |bytes: usize| 100.0 * bytes as f64 / all.len() as f64;

    for tokens in PAGES {
        // Pages do not reach from one sequence or layer into the next.
        let plain: Vec<&[u8]> =
            rest.iter().flat_map(|layer| layer.chunks(tokens * token_bytes)).collect();
        let longest = pages.max_encoded_len(tokens * token_bytes);
        let mut slots = vec![vec![0; longest]; plain.len()];
        let mut lens = vec![0; plain.len()];
        let encode = rate(all.len(), || {
            for ((page, slot), len) in plain.iter().zip(&mut slots).zip(&mut lens) {
                *len = pages.encode_page(black_box(page), slot)?;
            }
            Ok(())
        })?;
        back.fill(0);
        let decode = rate(all.len(), || {
            let mut back = &mut back[..];
            for ((slot, len), page) in slots.iter().zip(&lens).zip(&plain) {
                let (to, rest) = back.split_at_mut(page.len());
                pages.decode_page(&slot[..*len], black_box(to))?;
                back = rest;
            }
            Ok(())
        })?;
        if back != all {
            return Err("the pages did not come back as they were".into());
        }
        println!(
            "{kind:6} {:9} {:8.2} % {:10.2} %  {decode:8.2} GB/s {decode_tensor:6.2}  \
             {encode:8.2} GB/s",
            tokens * token_bytes / 1024,
            share(lens.iter().sum()),
            share(tensor.byte_len() as usize),
        );
    }
    Ok(())
}

/// GB of original bytes a second, the best of several runs.
fn rate(bytes: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..7 {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(bytes as f64 / best / 1e9)
}
