//! Runs the example on the CPU and on a device. Compressed weights give the same logits as plain
//! ones and streamed layers the same as resident ones, bit for bit. The CPU, the device, candle and
//! a plain model in f64 give the same within rounding.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed
#![allow(dead_code)] // the program uses the rest

mod backend;
#[cfg(feature = "candle")]
mod bench;
mod config;
mod cpu;
mod generate;
mod gpu;
mod made;
mod math;
mod model;
mod reference;
mod sample;
mod source;
mod text;
mod weights;
#[cfg(feature = "candle")]
mod yardstick;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

use std::sync::Arc;

use bigsmall_gpu::Resident;
use bigsmall_io::Model;
use bigsmall_tbe::{Backend as Kernels, Form};
use bigsmall_testing::device;
use serde_json::{Value, json};

use backend::Backend;
use config::Config;
use cpu::Cpu;
use generate::Run;
use made::Made;
use model::Llama;
use reference::Reference;
use sample::Sampler;
use source::Source;
use text::Text;
use weights::Load;

fn main() {
    device::run(
        &[
            ("a_device_gives_the_logits_of_plain_weights", || {
                let gpu = device::open().unwrap();
                let forms = [None, Some(Resident::Dense3), Some(Resident::Dense4)];
                compressed_weights_give_the_logits_of_plain_ones(&gpu, &forms);
            }),
            ("a_device_streams_within_the_budget", || {
                streamed_layers_give_the_logits_of_resident_ones(&device::open().unwrap());
            }),
            ("a_device_refuses_other_shapes", || {
                other_shapes_are_refused(&device::open().unwrap());
            }),
            ("a_device_computes_what_a_plain_model_computes", || {
                a_plain_model_computes_the_same(&device::open().unwrap());
            }),
            ("a_device_and_the_cpu_agree", a_device_and_the_cpu_agree),
            #[cfg(feature = "candle")]
            ("candle_computes_what_a_device_computes", || {
                candle_computes_the_same(&device::open().unwrap());
            }),
        ],
        &[
            ("the_cpu_gives_the_logits_of_plain_weights", || {
                let forms = Form::ALL.iter().filter(|form| **form != Form::Plain);
                let forms: Vec<_> = [None].into_iter().chain(forms.map(|f| Some(*f))).collect();
                for kernels in bigsmall_tbe::backends() {
                    let cpu = Cpu::new(kernels);
                    compressed_weights_give_the_logits_of_plain_ones(&cpu, &forms);
                }
            }),
            ("the_cpu_streams_within_the_budget", || {
                streamed_layers_give_the_logits_of_resident_ones(&cpu());
            }),
            ("the_cpu_refuses_other_shapes", || other_shapes_are_refused(&cpu())),
            ("the_cpu_computes_what_a_plain_model_computes", || {
                a_plain_model_computes_the_same(&cpu());
            }),
            #[cfg(feature = "candle")]
            ("candle_computes_what_the_cpu_computes", || candle_computes_the_same(&cpu())),
            ("threads_do_not_change_bits", threads_do_not_change_bits),
            ("damage_in_a_streamed_layer_is_found", damage_in_a_streamed_layer_is_found),
            ("made_weights_have_few_exponents", made_weights_have_few_exponents),
            ("the_likeliest_tokens_are_drawn", the_likeliest_tokens_are_drawn),
            ("exp_is_close", math::exp_is_close),
            ("text_goes_in_and_comes_out", text_goes_in_and_comes_out),
            ("a_question_is_put_in_the_template", a_question_is_put_in_the_template),
            ("what_is_not_understood_is_refused", what_is_not_understood_is_refused),
        ],
    );
}

fn cpu() -> Cpu {
    Cpu::new(Kernels::best())
}

/// More query heads than key heads, a number of columns that is not a multiple of 16, and an odd
/// vocabulary.
const TIED: Made = Made {
    family: "llama",
    hidden: 144,
    ffn: 200,
    vocabulary: 301,
    layers: 6,
    heads: 6,
    kv_heads: 2,
    dim: 24,
    tied: true,
};
const UNTIED: Made = Made { hidden: 128, layers: 2, heads: 4, dim: 32, tied: false, ..TIED };
/// Biases of queries, keys and values.
const BIASED: Made = Made { family: "qwen2", layers: 2, ..TIED };
/// Norms of queries and keys, and heads that together are wider than the hidden state.
const NORMED: Made = Made { family: "qwen3", layers: 2, dim: 40, ..TIED };

/// Models of every family, and both scalings of angles.
fn variants() -> Vec<(Made, Value)> {
    let with = |made: Made, more: Value| {
        let mut config = made.config();
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        (made, config)
    };
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let linear = json!({ "type": "linear", "factor": 4.0 });
    vec![
        with(TIED, json!({})),
        with(UNTIED, json!({ "rope_scaling": llama3 })),
        with(Made { family: "mistral", ..UNTIED }, json!({ "sliding_window": 4096 })),
        with(BIASED, json!({ "rope_scaling": linear, "use_sliding_window": false })),
        with(NORMED, json!({ "rope_parameters": { "rope_theta": 500.0 }, "rope_theta": null })),
    ]
}

/// A prompt longer than one batch of the GPU.
fn prompt() -> Vec<u32> {
    (0..37).map(|i| i * 7 % 301).collect()
}

const TOKENS: usize = 6;

fn load<'a, B: Backend>(
    backend: &'a B,
    source: &Source,
    config: &'a Config,
    form: Option<B::Form>,
    memory: Option<u64>,
) -> Result<Llama<'a, B>> {
    let load = Load { form, context: prompt().len() + TOKENS, memory };
    Llama::load(backend, source, config, &load)
}

fn in_memory(made: Made) -> Source {
    Source::Made(Arc::new(made))
}

fn generate<B: Backend>(llama: &mut Llama<'_, B>, prompt: &[u32], n: usize) -> Result<Run> {
    llama.generate(prompt, n, true, &mut Sampler::greedy(), &mut |_| Ok(()))
}

fn run<B: Backend>(llama: &mut Llama<'_, B>) -> Run {
    let run = generate(llama, &prompt(), TOKENS).unwrap();
    assert_eq!((run.tokens.len(), run.logits.len()), (TOKENS, TOKENS));
    for (token, logits) in run.tokens.iter().zip(&run.logits) {
        let values: Vec<f32> = logits.iter().map(|&l| f32::from_bits(l)).collect();
        assert!(values.iter().all(|&v| v <= values[*token as usize]), "the likeliest token");
    }
    run
}

/// Compares logits of some steps with others, which come from the same tokens.
fn assert_close(found: &Run, expected: &[Vec<f64>], tolerance: f64) {
    assert_eq!(found.logits.len(), expected.len());
    for (found, expected) in found.logits.iter().zip(expected) {
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0.0, |a: f64, v| a.max(v.abs()));
        for (found, expected) in found.iter().zip(expected) {
            let found = f64::from(f32::from_bits(*found));
            assert!((found - expected).abs() <= tolerance * largest, "{found}, {expected}");
        }
    }
}

fn compressed_weights_give_the_logits_of_plain_ones<B: Backend>(
    backend: &B,
    forms: &[Option<B::Form>],
) {
    for (made, json) in variants() {
        let (source, config) = (in_memory(made), Config::new(&json).unwrap());
        let plain = run(&mut load(backend, &source, &config, Some(B::PLAIN), None).unwrap());
        for &form in forms {
            let mut llama = load(backend, &source, &config, form, None).unwrap();
            let first = run(&mut llama);
            assert!(first.logits == plain.logits && first.tokens == plain.tokens, "{form:?}");
            // A run does not depend on the state that an earlier run left.
            assert!(run(&mut llama).logits == plain.logits);
            let error = generate(&mut llama, &[301], 1).err().unwrap();
            assert!(error.to_string().contains("token 301"), "{error}");
            assert!(generate(&mut llama, &prompt(), TOKENS + 1).is_err());
            assert!(generate(&mut llama, &[], 1).is_err());
        }
    }
}

fn streamed_layers_give_the_logits_of_resident_ones<B: Backend>(backend: &B) {
    let folder = tempfile::tempdir().unwrap();
    TIED.write(folder.path()).unwrap();
    let config = Config::read(folder.path()).unwrap();
    let source = Source::Shards(Arc::new(Model::open(folder.path()).unwrap()));
    let mut llama = load(backend, &source, &config, None, None).unwrap();
    let expected = run(&mut llama);
    let all = llama.byte_len();
    let mut resident = Vec::new();
    // Limits from slightly more than enough down to less than streaming needs.
    for budget in (0..=20).rev().map(|part| all * 21 / 20 * part / 20) {
        match load(backend, &source, &config, None, Some(budget)) {
            Ok(mut llama) => {
                assert!(llama.byte_len() <= budget, "{} of {budget}", llama.byte_len());
                let line = llama.describe();
                let kept = format!("{} of 6 layers resident", llama.resident.len());
                assert!(line.starts_with(&kept), "{line}");
                if resident.last() != Some(&llama.resident.len()) {
                    resident.push(llama.resident.len());
                    assert!(run(&mut llama).logits == expected.logits);
                    assert!(run(&mut llama).tokens == expected.tokens);
                }
            }
            Err(error) => {
                assert!(error.to_string().contains("bytes of memory are needed"), "{error}");
                break;
            }
        }
    }
    assert!(resident.first() == Some(&6) && resident.last() == Some(&0), "{resident:?}");
    assert!(resident.len() > 2 && resident.is_sorted_by(|a, b| a > b), "{resident:?}");
}

fn other_shapes_are_refused<B: Backend>(backend: &B) {
    let mut json = TIED.config();
    json["intermediate_size"] = 201.into();
    let config = Config::new(&json).unwrap();
    for memory in [None, Some(1 << 30)] {
        let error = load(backend, &in_memory(TIED), &config, None, memory).err().unwrap();
        assert!(error.to_string().contains("config.json says"), "{error}");
    }
}

fn a_plain_model_computes_the_same<B: Backend>(backend: &B) {
    for (made, json) in variants() {
        let (source, config) = (in_memory(made), Config::new(&json).unwrap());
        let found = run(&mut load(backend, &source, &config, None, None).unwrap());
        let expected = Reference::new(&source, &config, &json).logits(&prompt(), &found.tokens);
        assert_close(&found, &expected, 2e-5);
    }
}

fn a_device_and_the_cpu_agree() {
    let gpu = device::open().unwrap();
    for (made, json) in variants() {
        let (source, config) = (in_memory(made), Config::new(&json).unwrap());
        let found = run(&mut load(&gpu, &source, &config, None, None).unwrap());
        let expected = run(&mut load(&cpu(), &source, &config, None, None).unwrap());
        assert_eq!(found.tokens, expected.tokens);
        let as_f64 = |logits: &Vec<u32>| {
            logits.iter().map(|&bits| f64::from(f32::from_bits(bits))).collect::<Vec<_>>()
        };
        let expected: Vec<_> = expected.logits.iter().map(as_f64).collect();
        assert_close(&found, &expected, 2e-5);
    }
}

fn threads_do_not_change_bits() {
    let config = Config::new(&TIED.config()).unwrap();
    let cpu = cpu();
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&mut load(&cpu, &in_memory(TIED), &config, None, None).unwrap()).logits)
    };
    let one = on(1);
    assert!(on(2) == one && on(5) == one);
}

fn damage_in_a_streamed_layer_is_found() {
    let folder = tempfile::tempdir().unwrap();
    TIED.write(folder.path()).unwrap();
    let config = Config::read(folder.path()).unwrap();
    let path = folder.path().join("model.bs");
    let source = Source::Shards(Arc::new(Model::open(folder.path()).unwrap()));
    let cpu = cpu();
    let all = load(&cpu, &source, &config, None, None).unwrap().byte_len();
    let mut llama = load(&cpu, &source, &config, None, Some(all * 17 / 20)).unwrap();
    assert!(llama.stream.is_some());
    run(&mut llama);
    let mut bytes = std::fs::read(&path).unwrap();
    // The last layers are near the end of the file.
    let at = bytes.len() * 9 / 10;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(generate(&mut llama, &prompt(), TOKENS).is_err());
}

fn made_weights_have_few_exponents() {
    let tensor = UNTIED.encoded("model.layers.0.mlp.up_proj.weight").unwrap();
    let bytes = source::decoded(&tensor).unwrap();
    assert_eq!(bytes, source::decoded(&UNTIED.encoded(tensor.spec().name()).unwrap()).unwrap());
    let exponent = |w: &[u8; 2]| usize::from(u16::from_le_bytes(*w) >> 7 & 255);
    let mut counts = [0u32; 256];
    bytes.as_chunks::<2>().0.iter().for_each(|w| counts[exponent(w)] += 1);
    counts.sort_unstable();
    let seven: u32 = counts[249..].iter().sum();
    let part = f64::from(seven) / f64::from(counts.iter().sum::<u32>());
    assert!((0.95..0.995).contains(&part), "{part}");
    assert!(UNTIED.encoded("model.layers.2.mlp.up_proj.weight").is_err());
}

fn the_likeliest_tokens_are_drawn() {
    let logits: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln() + 3.0).collect();
    let count = |temperature: f64, top_p: f64| {
        let mut sampler = Sampler::new(temperature, top_p, 1);
        let mut counts = [0; 4];
        (0..8000).for_each(|_| counts[sampler.choose(&logits) as usize] += 1);
        counts
    };
    let near = |found: [i32; 4], expected: [i32; 4]| {
        let apart = found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 200);
        assert!(apart, "{found:?}, expected {expected:?}");
    };
    near(count(1.0, 1.0), [4000, 2000, 1000, 1000]);
    near(count(1.0, 0.7), [5333, 2667, 0, 0]);
    near(count(1.0, 0.0), [8000, 0, 0, 0]);
    // A weight's square at half the temperature.
    near(count(0.5, 1.0), [5818, 1455, 364, 364]);
}

/// A tokenizer of words.
fn words(folder: &std::path::Path) {
    let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],
        "normalizer":null,"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,
        "decoder":null,
        "model":{"type":"WordLevel","vocab":{"a":0,"small":1,"model":2,"?":3},"unk_token":"?"}}"#;
    std::fs::write(folder.join("tokenizer.json"), json).unwrap();
}

fn decode(text: &Text, ids: &[u32]) -> String {
    let mut all = String::new();
    let mut show = text.decoder(|piece| {
        all += piece;
        Ok(())
    });
    ids.iter().for_each(|&id| show(id).unwrap());
    drop(show);
    all
}

fn text_goes_in_and_comes_out() {
    let folder = tempfile::tempdir().unwrap();
    let numbers = Text::open(folder.path()).unwrap();
    assert_eq!(numbers.encode(Some("3 1 2"), true).unwrap(), [3, 1, 2]);
    assert_eq!(decode(&numbers, &[3, 1]), "3 1");
    assert!(numbers.encode(Some("three"), true).is_err());
    assert!(numbers.encode(Some(" "), true).is_err());
    words(folder.path());
    let text = Text::open(folder.path()).unwrap();
    assert_eq!(text.encode(Some("a small large model"), true).unwrap(), [0, 1, 3, 2]);
    assert_eq!(decode(&text, &[1, 2]), "small model");
    std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    assert!(Text::open(folder.path()).is_err());
}

fn a_question_is_put_in_the_template() {
    let folder = tempfile::tempdir().unwrap();
    words(folder.path());
    // The blocks, filters and methods that templates of the Hub use.
    let template = r"{%- if messages[0]['role'] == 'tool' %}
    {{- raise_exception('no') }}
{%- endif %}
{{ bos_token }} {% for message in messages %}
    {% if message.role == 'user' and not message.content.startswith('x') %}
small {{ message['content'].strip() | trim }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
model
{% endif %}";
    let config = json!({ "chat_template": template, "bos_token": { "content": "a" } });
    let path = folder.path().join("tokenizer_config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    let text = Text::open(folder.path()).unwrap();
    assert_eq!(text.encode(Some(" ? "), true).unwrap(), [0, 1, 3, 2]);
    assert_eq!(text.encode(Some(" ? "), false).unwrap(), [3]);
    let named = json!({ "chat_template": [{ "name": "default", "template": "a small" }] });
    std::fs::write(&path, named.to_string()).unwrap();
    let text = Text::open(folder.path()).unwrap();
    assert_eq!(text.encode(None, true).unwrap(), [0, 1]);
    // A file of its own counts first.
    std::fs::write(folder.path().join("chat_template.jinja"), "{{ raise_exception('no') }}")
        .unwrap();
    let error = Text::open(folder.path()).unwrap().encode(None, true).err().unwrap();
    assert!(error.to_string().contains("no"), "{error}");
}

fn what_is_not_understood_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Config::read(folder.path()).is_err());
    let good = TIED.config();
    assert!(Config::new(&good).is_ok());
    for (key, value) in [
        ("model_type", json!("gpt2")),
        ("hidden_act", json!("gelu")),
        ("num_hidden_layers", Value::Null),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(4)),
        ("head_dim", json!(0)),
        ("head_dim", json!(6)),
        ("rope_scaling", json!({ "type": "yarn" })),
        ("rope_scaling", json!({ "type": "linear" })),
        ("rope_scaling", json!({ "rope_type": "llama3", "factor": 2.0 })),
    ] {
        let mut json = good.clone();
        json[key] = value;
        assert!(Config::new(&json).is_err(), "{json}");
    }
    // More positions than attention reaches.
    let mut json = good.clone();
    json["sliding_window"] = 42.into();
    let config = Config::new(&json).unwrap();
    let error = load(&cpu(), &in_memory(TIED), &config, None, None).err().unwrap();
    assert!(error.to_string().contains("at most 42"), "{error}");
}

#[cfg(feature = "candle")]
fn candle_computes_the_same<B: Backend>(backend: &B) {
    use candle_core::{DType, Device, Tensor};
    use candle_transformers::models::llama as candle;

    let llamas = variants().into_iter().filter(|(made, _)| made.family == "llama");
    for (made, json) in llamas {
        let (source, config) = (in_memory(made), Config::new(&json).unwrap());
        let found = run(&mut load(backend, &source, &config, None, None).unwrap());
        let (llama, config) = yardstick::load(&source, &json, DType::F32).unwrap();
        let mut cache = candle::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
        let (mut ids, mut position) = (prompt(), 0);
        let mut expected = Vec::new();
        for token in &found.tokens {
            let input = Tensor::new(&ids[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let logits = llama.forward(&input, position, &mut cache).unwrap();
            let logits: Vec<f32> = logits.flatten_all().unwrap().to_vec1().unwrap();
            expected.push(logits.into_iter().map(f64::from).collect());
            position += ids.len();
            ids = vec![*token];
        }
        assert_close(&found, &expected, 1e-4);
    }
}
