//! Generates text with a language model whose matrices stay compressed, on the CPU or on a GPU.
//!
//! `cargo run --release -p bigsmall-examples --features gpu --example llama -- [MODEL]`
//!
//! - `config.rs` reads the shape of the model, `text.rs` its tokenizer and chat template.
//! - `source.rs` reads the weights, `made.rs` draws random ones.
//! - `backend.rs` is the trait of what computes, `cpu.rs` (with `math.rs`) and `gpu.rs` implement
//!   it.
//! - `weights.rs` loads the matrices and decides which stay in memory.
//! - `model.rs` has the operations of a layer, `generate.rs` computes token after token, and
//!   `sample.rs` chooses them.
//! - `bench.rs` measures, `yardstick.rs` measures candle.
//!
//! On a GPU a token needs one submission, and 4 bytes are read back. The commands of the next token
//! are recorded while the device works. On the CPU all work runs in one pool of threads.

mod backend;
mod bench;
mod config;
mod cpu;
mod generate;
#[cfg(feature = "gpu")]
mod gpu;
mod made;
mod math;
mod model;
mod sample;
mod source;
mod text;
mod weights;
#[cfg(feature = "candle")]
mod yardstick;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bigsmall_io::Model;
use bigsmall_tbe::{Backend as Kernels, Form};
use clap::{Parser, ValueEnum};

use backend::Backend;
use config::Config;
use cpu::Cpu;
use generate::Run;
use made::Made;
use model::Llama;
use sample::Sampler;
use source::Source;
use text::Text;
use weights::Load;

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Result<T> = std::result::Result<T, Error>;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Device {
    Cpu,
    Gpu,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Weights {
    Compressed,
    Plain,
}

/// Generates text with a language model whose matrices stay compressed.
#[derive(Parser)]
struct Args {
    /// Folder with `config.json` and `.bs` shards, as `bigsmall compress` makes it from a
    /// checkpoint of the Hugging Face Hub (Llama, Mistral, Qwen2, Qwen3). `tokenizer.json` is
    /// needed if prompt and answer are text. Without a folder, a model of random weights is made.
    model: Option<PathBuf>,
    /// The size of the model of random weights: 20M, 100M or 1B. With a folder, `config.json` and
    /// `model.bs` are written to it.
    #[arg(long, value_name = "SIZE", value_parser = Made::named)]
    make: Option<Made>,
    /// Where it runs. By default on a GPU if the program was built for it.
    #[arg(long, value_enum)]
    #[arg(default_value = if cfg!(feature = "gpu") { "gpu" } else { "cpu" })]
    backend: Device,
    /// Keep the weights compressed in memory, or plain.
    #[arg(long, value_enum, default_value = "compressed")]
    weights: Weights,
    /// The beginning of the text. For a model without a tokenizer: numbers of tokens.
    #[arg(long)]
    prompt: Option<String>,
    /// Do not put the prompt in the model's chat template.
    #[arg(long)]
    no_chat: bool,
    /// Generate at most N tokens.
    #[arg(long, value_name = "N", default_value_t = 32)]
    tokens: usize,
    /// Draw tokens at this temperature. 0: always the likeliest token.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f64,
    /// Draw from the likeliest tokens whose probabilities add up to P.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,
    /// The seed of the draw.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Use at most BYTES of memory (of the device's memory on a GPU). The layers that do not fit
    /// are read for every token, one after the other: on the CPU from the shards, on a GPU from the
    /// memory of the host.
    #[arg(long, value_name = "BYTES", alias = "device-memory")]
    memory: Option<u64>,
    /// Generate a second time with plain weights, and compare the logits bit by bit.
    #[arg(long)]
    check: bool,
    /// Measure N tokens, with compressed and with plain weights in turn.
    #[arg(long, value_name = "N")]
    bench: Option<usize>,
    /// Print the measurement as one line of JSON.
    #[arg(long, requires = "bench")]
    json: bool,
    /// Also measure candle on the CPU.
    #[cfg(feature = "candle")]
    #[arg(long, requires = "bench")]
    candle: bool,
    /// Threads of the CPU. 0: one for each core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// The kernels of the CPU: avx512, avx2, neon, portable or auto.
    #[arg(long, value_name = "NAME", default_value = "auto")]
    #[arg(value_parser = |name: &str| Kernels::from_name(name).map_err(|e| e.to_string()))]
    kernels: Kernels,
    /// The form of compressed weights on the CPU: nibbles, pairs, tbe3 or tbe4. By default the
    /// fastest.
    #[arg(long, value_name = "NAME", value_parser = form)]
    form: Option<Form>,
    /// Use an adapter whose name contains this text, if there are several.
    #[cfg(feature = "gpu")]
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Allow a driver that runs on the CPU, if there is no GPU.
    #[cfg(feature = "gpu")]
    #[arg(long)]
    software: bool,
}

fn form(name: &str) -> std::result::Result<Form, String> {
    let found = Form::ALL.iter().copied().find(|form| form.name() == name);
    found.ok_or_else(|| format!("{name:?}, expected nibbles, pairs, tbe3 or tbe4"))
}

fn main() -> Result<()> {
    let args = Args::parse();
    // All work runs on the threads of this pool. This thread only waits for it.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    pool.install(|| run_on(&args))
}

fn run_on(args: &Args) -> Result<()> {
    match args.backend {
        Device::Cpu => run(&Cpu::new(args.kernels), args, args.form),
        #[cfg(feature = "gpu")]
        Device::Gpu => {
            let options = bigsmall_gpu::WgpuOptions::new();
            let options = options.adapter(args.adapter.clone()).allow_software(args.software);
            run(&bigsmall_gpu::Wgpu::headless_with(&options)?, args, None)
        }
        #[cfg(not(feature = "gpu"))]
        Device::Gpu => Err("this program was built without the feature `gpu`".into()),
    }
}

/// Runs on a backend. `form` is that of compressed weights.
fn run<B: Backend>(backend: &B, args: &Args, form: Option<B::Form>) -> Result<()> {
    // Only the result goes to the standard output if it is JSON.
    let say = |text: String| if args.json { eprintln!("{text}") } else { println!("{text}") };
    say(format!("device: {}", backend.description()));
    let temporary = tempfile::tempdir()?;
    let mut folder = args.model.as_deref();
    // A model in memory is not streamed.
    if folder.is_none() && args.memory.is_some() {
        folder = Some(temporary.path());
    }
    let made = args.make.or(args.model.is_none().then_some(Made::SMALL));
    if let (Some(made), Some(folder)) = (made, folder) {
        made.write(folder)?;
    }
    let (source, config) = match (folder, made) {
        (Some(folder), _) => {
            (Source::Shards(Arc::new(Model::open(folder)?)), Config::read(folder)?)
        }
        (None, made) => {
            let made = made.unwrap_or(Made::SMALL);
            (Source::Made(Arc::new(made)), Config::new(&made.config())?)
        }
    };
    let form = match args.weights {
        Weights::Compressed => form,
        Weights::Plain => Some(B::PLAIN),
    };
    let load = |form, context, memory| -> Result<Llama<'_, B>> {
        let begin = Instant::now();
        let model = Llama::load(backend, &source, &config, &Load { form, context, memory })?;
        say(format!("loaded in {:.1} s: {}", begin.elapsed().as_secs_f64(), model.describe()));
        Ok(model)
    };
    if let Some(n) = args.bench {
        let context = bench::context(n);
        let mut compressed = load(form, context, args.memory)?;
        let mut plain = load(Some(B::PLAIN), context, args.memory)?;
        #[allow(unused_mut)] // without candle nothing is added
        let mut result = bench::bench(&mut compressed, &mut plain, n)?;
        #[cfg(feature = "candle")]
        if args.candle {
            drop((compressed, plain));
            let config = match folder {
                Some(folder) => {
                    serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?
                }
                None => made.unwrap_or(Made::SMALL).config(),
            };
            use candle_core::DType;
            // candle widens all of a bf16 matrix for every product.
            for (dtype, n) in [(DType::BF16, n.min(3)), (DType::F32, n)] {
                let [rate, prefill] = yardstick::measure(&source, &config, dtype, n)?;
                let name = dtype.as_str();
                result[format!("candle_{name}_tokens_per_second")] = rate.into();
                result[format!("candle_{name}_prefill_tokens_per_second")] = prefill.into();
            }
        }
        match args.json {
            true => println!("{result}"),
            false => println!("{result:#}"),
        }
        return match result["logits_differ"].as_u64() {
            Some(0) => Ok(()),
            _ => Err("the logits differ from those of plain weights".into()),
        };
    }
    let text = Text::open(folder.unwrap_or(temporary.path()))?;
    let prompt = text.encode(args.prompt.as_deref(), !args.no_chat)?;
    let context = prompt.len() + args.tokens;
    let generate = |model: &mut Llama<'_, B>, shown: bool| -> Result<Run> {
        let mut sampler = Sampler::new(args.temperature, args.top_p, args.seed);
        let mut out = std::io::stdout();
        let mut show = text.decoder(|piece| {
            if shown {
                write!(out, "{piece}")?;
                out.flush()?;
            }
            Ok(())
        });
        let run = model.generate(&prompt, args.tokens, args.check, &mut sampler, &mut show)?;
        drop(show);
        if shown {
            println!();
        }
        println!("{} tokens, {:.2} tokens a second", run.tokens.len(), run.tokens_a_second);
        Ok(run)
    };
    let mut model = load(form, context, args.memory)?;
    println!("prompt: {} tokens", prompt.len());
    let run = generate(&mut model, true)?;
    if args.check {
        drop(model);
        let mut plain = load(Some(B::PLAIN), context, None)?;
        let expected = generate(&mut plain, false)?;
        let steps = expected.logits.len();
        let differ = run.logits.iter().zip(&expected.logits).filter(|(a, b)| a != b).count();
        println!("logits of {steps} steps compared, {differ} differ");
        if differ != 0 || run.logits.len() != steps || run.tokens != expected.tokens {
            return Err("the logits differ from those of plain weights".into());
        }
    }
    Ok(())
}
