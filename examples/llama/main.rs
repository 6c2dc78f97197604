//! Generates text with a Llama whose matrices stay compressed in the memory of a GPU.
//!
//! `cargo run --release -p bigsmall-examples --features gpu --example llama -- [MODEL]`
//!
//! - `config.rs` reads the shape of the model, `text.rs` its tokenizer.
//! - `weights.rs` loads the matrices from the shards to the device.
//! - `layers.rs` records the commands of a layer.
//! - `generate.rs` submits them and reads each token back.
//!
//! A token needs one submission, and 4 bytes are read back. The commands of the next token are
//! recorded while the device works.

mod config;
mod generate;
mod layers;
mod made;
mod text;
mod weights;

use std::path::{Path, PathBuf};
use std::time::Instant;

use bigsmall_gpu::{Resident, Wgpu, WgpuOptions};
use bigsmall_io::Model;
use clap::Parser;

use config::Config;
use layers::Llama;
use made::Made;
use text::Text;
use weights::Load;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Generates text with a Llama whose matrices stay compressed in the memory of a GPU.
#[derive(Parser)]
struct Args {
    /// Folder with `config.json` and `.bs` shards, as `bigsmall compress` makes it from a
    /// checkpoint of the Hugging Face Hub. `tokenizer.json` is needed if prompt and answer are
    /// text. Without a folder, a small model of random weights is made.
    model: Option<PathBuf>,
    /// The beginning of the text. For a model without a tokenizer: numbers of tokens.
    #[arg(long)]
    prompt: Option<String>,
    /// Generate at most N tokens.
    #[arg(long, value_name = "N", default_value_t = 32)]
    tokens: usize,
    /// Use at most BYTES of the device's memory. The layers that do not fit stay on the host in
    /// ANS form. For every token they are sent one after the other and decoded on the device,
    /// each one while the device computes the layer before it.
    #[arg(long, value_name = "BYTES")]
    device_memory: Option<u64>,
    /// Generate a second time with plain weights, and compare the logits bit by bit.
    #[arg(long)]
    check: bool,
    /// Use an adapter whose name contains this text, if there are several.
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Allow a driver that runs on the CPU, if there is no GPU.
    #[arg(long)]
    software: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let made = tempfile::tempdir()?;
    let folder: &Path = match &args.model {
        Some(folder) => folder,
        None => {
            Made::default().write(made.path())?;
            made.path()
        }
    };
    let config = Config::read(folder)?;
    let text = Text::open(folder)?;
    let prompt = text.encode(args.prompt.as_deref())?;
    let options = WgpuOptions::new().adapter(args.adapter.clone()).allow_software(args.software);
    let gpu = Wgpu::headless_with(&options)?;
    println!("device: {}", gpu.description());

    let model = Model::open(folder)?;
    let context = prompt.len() + args.tokens;
    let load = Load { form: None, context, device_memory: args.device_memory };
    let begin = Instant::now();
    let mut llama = Llama::load(&gpu, &model, &config, &load)?;
    println!("loaded in {:.1} s: {}", begin.elapsed().as_secs_f64(), llama.describe());

    let run = llama.generate(&prompt, args.tokens, args.check)?;
    println!("prompt: {} tokens", prompt.len());
    println!("{}", text.decode(&run.tokens)?);
    println!("{} tokens, {:.2} tokens a second", run.tokens.len(), run.tokens_a_second);
    if args.check {
        drop(llama);
        let load = Load { form: Some(Resident::Plain), context, device_memory: None };
        let mut plain = Llama::load(&gpu, &model, &config, &load)?;
        let expected = plain.generate(&prompt, args.tokens, true)?;
        println!("{:.2} tokens a second with plain weights", expected.tokens_a_second);
        let steps = expected.logits.len();
        let differ = run.logits.iter().zip(&expected.logits).filter(|(a, b)| a != b).count();
        println!("logits of {steps} steps compared, {differ} differ");
        if differ != 0 || run.logits.len() != steps || run.tokens != expected.tokens {
            return Err("the logits differ from those of plain weights".into());
        }
    }
    Ok(())
}
