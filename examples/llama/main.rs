//! Generates text with a Llama whose matrices stay compressed in the memory of a GPU.
//!
//! ```text
//! cargo run --release -p bigsmall-examples --features gpu --example llama -- [MODEL] [--prompt TEXT] [--tokens N]
//! ```
//! MODEL is a folder with `config.json`, `.bs` shards and, where prompt and answer are to be text,
//! `tokenizer.json`: what `bigsmall compress` makes of a checkpoint of the Hugging Face Hub.
//! Without a tokenizer a prompt is a list of token numbers. Without MODEL the program makes a small
//! one of random weights.
//!
//! A token is one submission and one read-back: 4 bytes. The next token's commands are recorded
//! while the device works.
//!
//! `--check` generates a second time with plain weights and compares the logits of every step bit
//! by bit.
//!
//! `--device-memory BYTES`: where the model is larger, as many layers as fit stay on the device.
//! The others stay in the memory of the host in ANS form, at two thirds of their size; for each
//! token they are sent one after the other and decoded on the device, each while the device works
//! on the one before.

use std::path::Path;
use std::time::Instant;

use bigsmall_codec::Ans;
use bigsmall_format::{EncodedTensor, Header, encode_tensor};
use bigsmall_gpu::{
    AnsTensor, Dtype, EncodingId, Error, Heads, MatmulBackend as _, PreparedAns, Resident, Result,
    Rule, TensorSpec, Wgpu, WgpuOptions, WgpuWeights, wgpu,
};
use bigsmall_io::{CompressOptions, Model, Progress, compress};
use bigsmall_testing::Random;
use half::{bf16, f16};
use serde_json::Value;
use tokenizers::Tokenizer;

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let made = tempfile::tempdir()?;
    let folder = match &options.model {
        Some(folder) => Path::new(folder),
        None => {
            Made::default().write(made.path())?;
            made.path()
        }
    };
    let config = Config::read(folder)?;
    let text = Text::open(folder)?;
    let prompt = text.encode(options.prompt.as_deref())?;
    let mut gpu_options = WgpuOptions::default();
    gpu_options.adapter = options.adapter.clone();
    let gpu = Wgpu::headless_with(&gpu_options)?;
    println!("device: {}", gpu.description());

    let model = Model::open(folder)?;
    let context = prompt.len() + options.tokens;
    let load = Load { form: None, context, device_memory: options.device_memory };
    let begin = Instant::now();
    let mut llama = Llama::load(&gpu, &model, &config, &load)?;
    println!("loaded in {:.1} s: {}", begin.elapsed().as_secs_f64(), llama.describe());

    let run = llama.generate(&prompt, options.tokens, options.check)?;
    println!("prompt: {} tokens", prompt.len());
    println!("{}", text.decode(&run.tokens)?);
    println!("{} tokens, {:.2} tokens a second", run.tokens.len(), run.tokens_a_second);
    if options.check {
        drop(llama);
        let load = Load { form: Some(Resident::Plain), context, device_memory: None };
        let mut plain = Llama::load(&gpu, &model, &config, &load)?;
        let expected = plain.generate(&prompt, options.tokens, true)?;
        let steps = expected.logits.len();
        let differ = run.logits.iter().zip(&expected.logits).filter(|(a, b)| a != b).count();
        println!(
            "{:.2} tokens a second with plain weights; logits of {steps} steps compared, {differ} differ",
            expected.tokens_a_second
        );
        if differ != 0 || run.logits.len() != steps || run.tokens != expected.tokens {
            return Err(Error::new(Rule::ReadBack).found("other logits than with plain weights"));
        }
    }
    Ok(())
}

struct Options {
    model: Option<String>,
    prompt: Option<String>,
    tokens: usize,
    device_memory: Option<u64>,
    check: bool,
    adapter: Option<String>,
}

fn wrong(found: impl std::fmt::Display) -> Error {
    Error::new(Rule::Argument).found(found)
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Options {
            model: None,
            prompt: None,
            tokens: 32,
            device_memory: None,
            check: false,
            adapter: None,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| wrong(format!("{word} needs a value")));
            let number = |word: String| word.parse().map_err(|_| wrong(format!("{word:?}")));
            match word.as_str() {
                "--prompt" => options.prompt = Some(value()?),
                "--tokens" => options.tokens = number(value()?)? as usize,
                "--device-memory" => options.device_memory = Some(number(value()?)?),
                "--adapter" => options.adapter = Some(value()?),
                "--check" => options.check = true,
                _ if word.starts_with('-') || options.model.is_some() => return Err(wrong(word)),
                _ => options.model = Some(word),
            }
        }
        Ok(options)
    }
}

/// Between text and numbers: the model's tokenizer, or none.
pub(crate) struct Text(Option<Tokenizer>);

impl Text {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let read = || Tokenizer::from_file(&path).map_err(|e| wrong(e).in_file(&path));
        Ok(Text(path.exists().then(read).transpose()?))
    }

    pub(crate) fn encode(&self, prompt: Option<&str>) -> Result<Vec<u32>> {
        let ids = match &self.0 {
            Some(tokenizer) => {
                let prompt = prompt.unwrap_or("Once upon a time");
                tokenizer.encode(prompt, true).map_err(wrong)?.get_ids().to_vec()
            }
            None => {
                let numbers = prompt.unwrap_or("1 2 3 4 5").split_whitespace();
                numbers.map(|n| n.parse().map_err(|_| wrong(n))).collect::<Result<_>>()?
            }
        };
        if ids.is_empty() { Err(wrong("an empty prompt")) } else { Ok(ids) }
    }

    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.0 {
            Some(tokenizer) => tokenizer.decode(ids, true).map_err(wrong),
            None => Ok(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")),
        }
    }
}

/// What `config.json` says.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    hidden: usize,
    ffn: usize,
    vocabulary: usize,
    layers: usize,
    heads: Heads,
    epsilon: f32,
    /// Radians that a pair of values turns from one position to the next.
    turns: Vec<f64>,
    tied: bool,
    /// Tokens that end a text.
    ends: Vec<u32>,
    positions: usize,
}

impl Config {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let json = std::fs::read(&path).map_err(|e| Error::from(e).in_file(&path))?;
        let json: Value = serde_json::from_slice(&json).map_err(|e| wrong(e).in_file(&path))?;
        Self::new(&json).map_err(|e| e.in_file(&path))
    }

    fn new(json: &Value) -> Result<Self> {
        let number = |key: &str| json[key].as_u64().map(|n| n as usize);
        let need = |key: &str| number(key).ok_or_else(|| wrong(format!("no {key}")));
        for (key, usual) in [("hidden_act", "silu"), ("model_type", "llama")] {
            if json[key].as_str().is_some_and(|found| found != usual) {
                return Err(wrong(format!("{key} {}", json[key])).expected(usual));
            }
        }
        for key in ["attention_bias", "mlp_bias"] {
            if json[key].as_bool() == Some(true) {
                return Err(wrong(key).expected("matrices without a bias"));
            }
        }
        let (hidden, queries) = (need("hidden_size")?, need("num_attention_heads")?);
        let keys = number("num_key_value_heads").unwrap_or(queries);
        let dim = match number("head_dim") {
            Some(dim) => dim,
            None => hidden.checked_div(queries).ok_or_else(|| wrong("no heads"))?,
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

/// The angles of rotary position embedding, with Llama 3's scaling of slow ones.
fn turns(json: &Value, dim: usize) -> Result<Vec<f64>> {
    let theta = json["rope_theta"].as_f64().unwrap_or(10_000.0);
    let plain = (0..dim / 2).map(|j| theta.powf(-2.0 * j as f64 / dim as f64));
    let scaling = &json["rope_scaling"];
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str());
    match kind {
        None | Some("default") => Ok(plain.collect()),
        Some("llama3") => {
            let need = |key: &str| {
                scaling[key].as_f64().ok_or_else(|| wrong(format!("no {key} in rope_scaling")))
            };
            let (factor, original) = (need("factor")?, need("original_max_position_embeddings")?);
            let (low, high) = (need("low_freq_factor")?, need("high_freq_factor")?);
            // How often a pair turns within the original context decides.
            let scaled = |turn: f64| {
                let rounds = original * turn / std::f64::consts::TAU;
                let kept = ((rounds - low) / (high - low)).clamp(0.0, 1.0);
                turn * (kept + (1.0 - kept) / factor)
            };
            Ok(plain.map(scaled).collect())
        }
        Some(other) => Err(wrong(format!("rope_scaling {other:?}")).expected("llama3")),
    }
}

/// How a model is loaded.
pub(crate) struct Load {
    /// How matrices lie on the device; `None`: in the smallest form.
    pub(crate) form: Option<Resident>,
    /// Tokens, those of the prompt included.
    pub(crate) context: usize,
    /// Bytes of the device's memory that may be used.
    pub(crate) device_memory: Option<u64>,
}

/// Tokens of a prompt that are treated at once.
const BATCH: usize = 32;
/// The matrices of a layer.
const MATRICES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// A model on a device.
pub(crate) struct Llama<'a> {
    gpu: &'a Wgpu,
    config: &'a Config,
    context: usize,
    embedding: WgpuWeights,
    /// `None`: the embedding serves as such.
    head: Option<WgpuWeights>,
    norm: wgpu::Buffer,
    layers: Vec<Layer>,
    /// Matrices of the layers from the first one on that stay on the device.
    pub(crate) resident: Vec<Vec<WgpuWeights>>,
    /// Where the others are decoded.
    stream: Option<Stream>,
    vectors: Vectors,
}

/// What every layer keeps on the device.
struct Layer {
    norms: [wgpu::Buffer; 2],
    keys: wgpu::Buffer,
    values: wgpu::Buffer,
}

/// Layers that take turns on the device.
struct Stream {
    /// The matrices of each, in the memory of the host.
    layers: Vec<Vec<PreparedAns>>,
    /// Plain weights of the one that is in use.
    place: Vec<WgpuWeights>,
    scratch: wgpu::Buffer,
    /// The matrices of the first of them, where they have been sent.
    sent: Option<Vec<AnsTensor>>,
}

/// What flows from kernel to kernel: `BATCH` vectors each.
struct Vectors {
    /// Tokens to embed; the first one is what was found last.
    ids: wgpu::Buffer,
    angles: wgpu::Buffer,
    hidden: wgpu::Buffer,
    normed: wgpu::Buffer,
    queries: wgpu::Buffer,
    keys: wgpu::Buffer,
    values: wgpu::Buffer,
    attended: wgpu::Buffer,
    gate: wgpu::Buffer,
    up: wgpu::Buffer,
    last: wgpu::Buffer,
    logits: wgpu::Buffer,
}

impl Vectors {
    fn new(gpu: &Wgpu, config: &Config, context: usize) -> Result<Self> {
        let Heads { queries, keys, dim } = config.heads;
        let vectors = |n: usize| gpu.new_buffer(BATCH * n);
        let angles = gpu.new_buffer(context * dim)?;
        let each = |t: usize| config.turns.iter().map(move |turn| t as f64 * turn);
        let table: Vec<f32> =
            (0..context).flat_map(each).flat_map(|a| [a.cos() as f32, a.sin() as f32]).collect();
        gpu.write_buffer(&angles, &table)?;
        Ok(Vectors {
            ids: vectors(1)?,
            angles,
            hidden: vectors(config.hidden)?,
            normed: vectors(config.hidden)?,
            queries: vectors(queries * dim)?,
            keys: vectors(keys * dim)?,
            values: vectors(keys * dim)?,
            attended: vectors(queries * dim)?,
            gate: vectors(config.ffn)?,
            up: vectors(config.ffn)?,
            last: gpu.new_buffer(config.hidden)?,
            logits: gpu.new_buffer(config.vocabulary)?,
        })
    }

    fn byte_len(&self) -> u64 {
        let Vectors { ids, angles, hidden, normed, queries, keys, values, .. } = self;
        let Vectors { attended, gate, up, last, logits, .. } = self;
        [ids, angles, hidden, normed, queries, keys, values, attended, gate, up, last, logits]
            .map(wgpu::Buffer::size)
            .iter()
            .sum()
    }
}

/// What [`Llama::generate`] found.
pub(crate) struct Run {
    pub(crate) tokens: Vec<u32>,
    /// Bits of the logits before each token, where they were asked for.
    pub(crate) logits: Vec<Vec<u32>>,
    pub(crate) tokens_a_second: f64,
}

impl<'a> Llama<'a> {
    pub(crate) fn load(
        gpu: &'a Wgpu,
        model: &Model,
        config: &'a Config,
        load: &Load,
    ) -> Result<Self> {
        let context = load.context.max(1);
        if context > config.positions {
            return Err(wrong(format!("{context} tokens")).expected(config.positions));
        }
        let Heads { queries, keys, dim } = config.heads;
        let (hidden, ffn) = (config.hidden, config.ffn);
        let matrix = |name: &str, rows: usize, cols: usize| {
            let tensor = model.encoded(name)?;
            check_shape(tensor.spec(), &[rows as u64, cols as u64])?;
            Ok::<_, Error>(tensor)
        };
        let upload = |tensor: &EncodedTensor| match load.form {
            Some(form) => gpu.upload_as(tensor, form),
            None => gpu.upload(tensor),
        };
        let layer_matrix = |layer: usize, which: usize| {
            let (rows, cols) = match which {
                0 => (queries * dim, hidden),
                1 | 2 => (keys * dim, hidden),
                3 => (hidden, queries * dim),
                4 | 5 => (ffn, hidden),
                _ => (hidden, ffn),
            };
            matrix(&format!("model.layers.{layer}.{}.weight", MATRICES[which]), rows, cols)
        };
        let vocabulary = config.vocabulary;
        let head = match config.tied {
            true => None,
            false => Some(upload(&matrix("lm_head.weight", vocabulary, hidden)?)?),
        };
        let layers = (0..config.layers).map(|layer| {
            let norm = |part: &str| {
                norm(gpu, model, &format!("model.layers.{layer}.{part}.weight"), hidden)
            };
            let kept = || gpu.new_buffer(context * keys * dim);
            Ok(Layer {
                norms: [norm("input_layernorm")?, norm("post_attention_layernorm")?],
                keys: kept()?,
                values: kept()?,
            })
        });
        let mut llama = Llama {
            gpu,
            config,
            context,
            embedding: upload(&matrix("model.embed_tokens.weight", vocabulary, hidden)?)?,
            head,
            norm: norm(gpu, model, "model.norm.weight", hidden)?,
            layers: layers.collect::<Result<_>>()?,
            resident: Vec::new(),
            stream: None,
            vectors: Vectors::new(gpu, config, context)?,
        };
        let Some(limit) = load.device_memory else {
            for layer in 0..config.layers {
                let upload = |which| upload(&layer_matrix(layer, which)?);
                llama.resident.push((0..MATRICES.len()).map(upload).collect::<Result<_>>()?);
            }
            return Ok(llama);
        };
        // In ANS form on the host, from where they go to the device once or for every token.
        let prepare = |layer| {
            let prepare = |which| PreparedAns::new(to_ans(layer_matrix(layer, which)?)?);
            (0..MATRICES.len()).map(prepare).collect::<Result<Vec<_>>>()
        };
        let prepared = (0..config.layers).map(prepare).collect::<Result<Vec<_>>>()?;
        llama.keep_what_fits(prepared, limit, upload)?;
        Ok(llama)
    }

    /// Uploads layers from the first one on while they fit, and leaves the others to be streamed.
    fn keep_what_fits(
        &mut self,
        mut prepared: Vec<Vec<PreparedAns>>,
        limit: u64,
        upload: impl Fn(&EncodedTensor) -> Result<WgpuWeights>,
    ) -> Result<()> {
        let Some(layer) = prepared.first() else { return Ok(()) };
        // What streaming takes: a layer in use, one matrix on its way into it, two layers as they
        // were sent.
        let place = layer.iter().map(|m| {
            let spec = m.tensor().spec();
            self.gpu.new_plain(spec.name(), spec.shape()[0] as usize, spec.shape()[1] as usize)
        });
        let place = place.collect::<Result<Vec<_>>>()?;
        let in_use: u64 = place.iter().map(WgpuWeights::byte_len).sum();
        let largest = prepared.iter().flatten().map(|m| m.tensor().spec().byte_len()).max();
        let scratch = self.gpu.new_buffer(largest.unwrap_or(0).div_ceil(4) as usize)?;
        let sent = prepared.iter().map(|layer| layer.iter().map(PreparedAns::byte_len).sum());
        let streaming = in_use + scratch.size() + 2 * sent.max().unwrap_or(0u64);
        let mut guess = in_use;
        while let Some(layer) = prepared.first() {
            let left = prepared.len() as u64;
            let used = self.device_bytes();
            let all_fit = used + left * guess <= limit;
            if !all_fit && used + guess + streaming > limit {
                break;
            }
            let matrices: Vec<_> =
                layer.iter().map(|m| upload(m.tensor())).collect::<Result<_>>()?;
            guess = matrices.iter().map(WgpuWeights::byte_len).sum();
            self.resident.push(matrices);
            prepared.remove(0);
        }
        if prepared.is_empty() {
            return Ok(());
        }
        if self.device_bytes() + streaming > limit {
            return Err(Error::new(Rule::Memory)
                .expected(format!("{} bytes on the device", self.device_bytes() + streaming))
                .found(limit));
        }
        // What only decoding shows is seen once here, and not for every token.
        for layer in &prepared {
            for matrix in layer {
                let sent = self.gpu.send_ans(matrix)?;
                self.gpu.submit(|e| self.gpu.decode_ans_into(e, &sent, &scratch))?;
                self.gpu.check_ans(&sent)?;
            }
        }
        self.stream = Some(Stream { layers: prepared, place, scratch, sent: None });
        Ok(())
    }

    /// Bytes of the device's memory that are used at the most.
    pub(crate) fn device_bytes(&self) -> u64 {
        let matrices = self.matrix_bytes();
        let kept =
            |l: &Layer| l.norms[0].size() + l.norms[1].size() + l.keys.size() + l.values.size();
        let layers: u64 = self.layers.iter().map(kept).sum();
        let stream = self.stream.as_ref().map_or(0, |stream| {
            let sent = |layer: &Vec<PreparedAns>| layer.iter().map(PreparedAns::byte_len).sum();
            let place: u64 = stream.place.iter().map(WgpuWeights::byte_len).sum();
            let sent: u64 = stream.layers.iter().map(sent).max().unwrap_or(0);
            place + stream.scratch.size() + 2 * sent
        });
        matrices + layers + stream + self.norm.size() + self.vectors.byte_len()
    }

    /// Bytes of the matrices that stay on the device.
    fn matrix_bytes(&self) -> u64 {
        let outer = [Some(&self.embedding), self.head.as_ref()].into_iter().flatten();
        outer.chain(self.resident.iter().flatten()).map(WgpuWeights::byte_len).sum()
    }

    fn describe(&self) -> String {
        let plain = |m: &WgpuWeights| 2 * (m.rows() * m.cols()) as u64;
        let outer = [Some(&self.embedding), self.head.as_ref()].into_iter().flatten();
        let plain: u64 = outer.chain(self.resident.iter().flatten()).map(plain).sum();
        let compressed = self.matrix_bytes();
        let mut text = format!(
            "{} of {} layers resident, matrices in {compressed} bytes, plain {plain} ({:.1} %); \
             {} bytes of the device in use",
            self.resident.len(),
            self.config.layers,
            100.0 * compressed as f64 / plain.max(1) as f64,
            self.device_bytes()
        );
        if let Some(stream) = &self.stream {
            let bytes: u64 = stream.layers.iter().flatten().map(PreparedAns::byte_len).sum();
            text += &format!("; {} layers in {bytes} bytes on the host", stream.layers.len());
        }
        text
    }

    /// Continues `prompt` by at most `n` tokens, each the likeliest.
    pub(crate) fn generate(&mut self, prompt: &[u32], n: usize, logits: bool) -> Result<Run> {
        let vocabulary = self.config.vocabulary;
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(wrong(format!("token {id}")).expected(format!("tokens below {vocabulary}")));
        }
        if prompt.is_empty() || prompt.len() + n > self.context {
            return Err(wrong(format!("{} tokens", prompt.len() + n)).expected(self.context));
        }
        let mut run = Run { tokens: Vec::new(), logits: Vec::new(), tokens_a_second: 0.0 };
        let (mut position, mut token) = (0, 0);
        for ids in prompt.chunks(BATCH) {
            self.gpu.write_buffer(&self.vectors.ids, ids)?;
            token = self.step(ids.len(), position, None)?.0;
            position += ids.len();
        }
        let mut next = None;
        let begin = Instant::now();
        while run.tokens.len() < n {
            run.tokens.push(token);
            if logits {
                let mut values = vec![0u32; vocabulary];
                self.gpu.read_buffer(&self.vectors.logits, &mut values)?;
                run.logits.push(values);
            }
            if self.config.ends.contains(&token) || run.tokens.len() == n {
                break;
            }
            (token, next) = self.step(1, position, next)?;
            position += 1;
        }
        // The first token came of the prompt.
        let steps = run.tokens.len().saturating_sub(1) as f64;
        run.tokens_a_second = steps / begin.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        Ok(run)
    }

    /// The token after `rows` tokens that stand in `ids` and begin at `position`, and the commands
    /// for the one after that. `commands` are those of this step, where they have been
    /// recorded.
    fn step(
        &mut self,
        rows: usize,
        position: usize,
        commands: Option<wgpu::CommandBuffer>,
    ) -> Result<(u32, Option<wgpu::CommandBuffer>)> {
        let mut token = [0u32];
        if let Some(mut stream) = self.stream.take() {
            let done = self.step_streamed(rows, position, &mut stream, &mut token);
            self.stream = Some(stream);
            return done.map(|()| (token[0], None));
        }
        let this = &*self;
        let commands = match commands {
            Some(commands) => commands,
            None => this.record(rows, position)?,
        };
        let after = position + rows;
        let next = this.gpu.submit_and_read(commands, &this.vectors.ids, &mut token, || {
            (after < this.context).then(|| this.record(1, after)).transpose()
        })?;
        Ok((token[0], next))
    }

    fn record(&self, rows: usize, position: usize) -> Result<wgpu::CommandBuffer> {
        self.gpu.record(|encoder| {
            self.begin(encoder, rows, position)?;
            self.finish(encoder, rows)
        })
    }

    fn step_streamed(
        &self,
        rows: usize,
        position: usize,
        stream: &mut Stream,
        token: &mut [u32; 1],
    ) -> Result<()> {
        let gpu = self.gpu;
        let send = |layer: &Vec<PreparedAns>| -> Result<Vec<AnsTensor>> {
            layer.iter().map(|matrix| gpu.send_ans(matrix)).collect()
        };
        gpu.submit(|encoder| self.begin(encoder, rows, position))?;
        let mut sent = match stream.sent.take() {
            Some(sent) => sent,
            None => send(&stream.layers[0])?,
        };
        let first = self.resident.len();
        for i in 0..stream.layers.len() {
            let last = i + 1 == stream.layers.len();
            let commands = gpu.record(|encoder| {
                for (sent, place) in sent.iter().zip(&stream.place) {
                    gpu.decode_ans_to(encoder, sent, &stream.scratch, place)?;
                }
                let layer = &self.layers[first + i];
                self.layer(encoder, layer, &stream.place, rows, position)?;
                if last { self.finish(encoder, rows) } else { Ok(()) }
            })?;
            // While the device decodes and uses this layer, the next one is sent: it lies in two
            // sets of buffers at the most.
            let next = || send(&stream.layers[(i + 1) % stream.layers.len()]);
            let read = if last { &mut token[..] } else { &mut [] };
            sent = gpu.submit_and_read(commands, &self.vectors.ids, read, next)?;
        }
        stream.sent = Some(sent);
        Ok(())
    }

    /// Embeds tokens and takes them through the layers that are resident.
    fn begin(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        rows: usize,
        position: usize,
    ) -> Result<()> {
        let v = &self.vectors;
        self.gpu.gather_into(encoder, &self.embedding, &v.ids, rows, &v.hidden)?;
        for (layer, matrices) in self.layers.iter().zip(&self.resident) {
            self.layer(encoder, layer, matrices, rows, position)?;
        }
        Ok(())
    }

    fn layer(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        layer: &Layer,
        matrices: &[WgpuWeights],
        rows: usize,
        position: usize,
    ) -> Result<()> {
        let (gpu, v, config) = (self.gpu, &self.vectors, self.config);
        let (hidden, epsilon, heads) = (config.hidden, config.epsilon, config.heads);
        let [q, k, v_proj, o, gate, up, down] = matrices else { return Err(wrong("a layer")) };

        gpu.rms_norm_into(encoder, &v.hidden, &layer.norms[0], epsilon, rows, hidden, &v.normed)?;
        gpu.matmul_into(encoder, q, &v.normed, rows, &v.queries)?;
        gpu.matmul_into(encoder, k, &v.normed, rows, &v.keys)?;
        gpu.matmul_into(encoder, v_proj, &v.normed, rows, &v.values)?;
        gpu.rope_in_place(
            encoder,
            &v.queries,
            &v.angles,
            heads.queries,
            heads.dim,
            position,
            rows,
        )?;
        gpu.rope_in_place(encoder, &v.keys, &v.angles, heads.keys, heads.dim, position, rows)?;
        let row = 4 * (heads.keys * heads.dim) as u64;
        let (at, len) = (position as u64 * row, rows as u64 * row);
        encoder.copy_buffer_to_buffer(&v.keys, 0, &layer.keys, at, len);
        encoder.copy_buffer_to_buffer(&v.values, 0, &layer.values, at, len);
        let (keys, values) = (&layer.keys, &layer.values);
        gpu.attention_into(encoder, &v.queries, keys, values, heads, position, rows, &v.attended)?;
        gpu.matmul_into(encoder, o, &v.attended, rows, &v.normed)?;
        gpu.add_in_place(encoder, &v.hidden, &v.normed, rows * hidden)?;

        gpu.rms_norm_into(encoder, &v.hidden, &layer.norms[1], epsilon, rows, hidden, &v.normed)?;
        gpu.matmul_into(encoder, gate, &v.normed, rows, &v.gate)?;
        gpu.matmul_into(encoder, up, &v.normed, rows, &v.up)?;
        gpu.silu_mul_in_place(encoder, &v.gate, &v.up, rows * config.ffn)?;
        gpu.matmul_into(encoder, down, &v.gate, rows, &v.normed)?;
        gpu.add_in_place(encoder, &v.hidden, &v.normed, rows * hidden)
    }

    /// The logits after the last token, and the likeliest next one.
    fn finish(&self, encoder: &mut wgpu::CommandEncoder, rows: usize) -> Result<()> {
        let (gpu, v, config) = (self.gpu, &self.vectors, self.config);
        let row = 4 * config.hidden as u64;
        encoder.copy_buffer_to_buffer(&v.hidden, (rows - 1) as u64 * row, &v.last, 0, row);
        gpu.rms_norm_into(
            encoder,
            &v.last,
            &self.norm,
            config.epsilon,
            1,
            config.hidden,
            &v.normed,
        )?;
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        gpu.matmul_into(encoder, head, &v.normed, 1, &v.logits)?;
        gpu.argmax_into(encoder, &v.logits, config.vocabulary, &v.ids)
    }
}

fn check_shape(spec: &TensorSpec, expected: &[u64]) -> Result<()> {
    if spec.shape() == expected {
        return Ok(());
    }
    let found = format!("{:?}", spec.shape());
    let error = Error::new(Rule::SpecMismatch).in_tensor(spec.name());
    Err(error.expected(format!("{expected:?}")).found(found))
}

/// The weights of a norm as f32 on the device.
fn norm(gpu: &Wgpu, model: &Model, name: &str, n: usize) -> Result<wgpu::Buffer> {
    let tensor = model.tensor(name)?;
    check_shape(tensor.spec(), &[n as u64])?;
    let two = |f: fn([u8; 2]) -> f32| tensor.bytes().as_chunks().0.iter().map(|b| f(*b)).collect();
    let values: Vec<f32> = match tensor.spec().dtype() {
        Dtype::BF16 => two(|b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F16 => two(|b| f16::from_le_bytes(b).to_f32()),
        Dtype::F32 => tensor.bytes().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        other => return Err(Error::new(Rule::SpecMismatch).in_tensor(name).found(other)),
    };
    let buffer = gpu.new_buffer(n)?;
    gpu.write_buffer(&buffer, &values)?;
    Ok(buffer)
}

/// The tensor in ANS form.
fn to_ans(tensor: EncodedTensor) -> Result<EncodedTensor> {
    if tensor.encoding() == EncodingId::Ans {
        return Ok(tensor);
    }
    let spec = tensor.spec();
    let mut bytes = vec![0; spec.byte_len() as usize];
    tensor.decode_bytes(
        bigsmall_io::encoding(tensor.encoding())?,
        0..spec.byte_len(),
        &mut bytes,
        0,
    )?;
    encode_tensor(&Ans::default(), spec, &bytes, 0)
}

/// The shape of a model to be made of random weights.
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
            r#"{{"model_type":"llama","hidden_size":{hidden},"intermediate_size":{ffn},"vocab_size":{vocabulary},
"num_hidden_layers":{layers},"num_attention_heads":{heads},"num_key_value_heads":{kv_heads},"rms_norm_eps":1e-5,
"rope_theta":10000.0,"max_position_embeddings":4096,"tie_word_embeddings":{tied}}}"#
        );
        std::fs::write(folder.join("config.json"), config)?;
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[u64]| {
            tensors.push(TensorSpec::new(&name, Dtype::BF16, shape)?);
            Ok::<_, Error>(())
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
        let options = CompressOptions { replace: true, ..Default::default() };
        compress(&plain, &shard, &options, &Progress::default())?;
        Ok(std::fs::remove_file(&plain)?)
    }
}
