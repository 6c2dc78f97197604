//! Runs the example on a device. Compressed weights give the same logits as plain ones, streamed
//! layers the same as resident ones, and candle's Llama the same within rounding.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod config;
mod generate;
mod layers;
mod made;
mod text;
mod weights;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

use std::path::Path;

use bigsmall_gpu::{Resident, Wgpu};
use bigsmall_io::Model;
use bigsmall_testing::device;
use config::Config;
use generate::Run;
use layers::Llama;
use made::Made;
use text::Text;
use weights::Load;

fn main() {
    device::run(
        &[
            (
                "compressed_weights_give_the_logits_of_plain_ones",
                compressed_weights_give_the_logits_of_plain_ones,
            ),
            (
                "streamed_layers_give_the_logits_of_resident_ones_within_the_budget",
                streamed_layers_give_the_logits_of_resident_ones_within_the_budget,
            ),
            ("other_shapes_are_refused", other_shapes_are_refused),
            #[cfg(feature = "candle")]
            ("candle_computes_the_same", candle_computes_the_same),
        ],
        &[
            ("text_goes_in_and_comes_out", text_goes_in_and_comes_out),
            ("what_is_not_understood_is_refused", what_is_not_understood_is_refused),
        ],
    );
}

/// More query heads than key heads, a number of columns that is not a multiple of 16, and an odd
/// vocabulary.
const TIED: Made =
    Made { hidden: 144, ffn: 200, vocabulary: 301, layers: 6, heads: 6, kv_heads: 2, tied: true };
const UNTIED: Made = Made { hidden: 128, layers: 2, heads: 4, tied: false, ..TIED };

/// A prompt longer than one batch.
fn prompt() -> Vec<u32> {
    (0..37).map(|i| i * 7 % 301).collect()
}

const TOKENS: usize = 6;

fn load<'a>(
    gpu: &'a Wgpu,
    folder: &Path,
    config: &'a Config,
    form: Option<Resident>,
    device_memory: Option<u64>,
) -> Result<Llama<'a>> {
    let load = Load { form, context: prompt().len() + TOKENS, device_memory };
    Llama::load(gpu, &Model::open(folder)?, config, &load)
}

fn run(llama: &mut Llama<'_>) -> Run {
    let run = llama.generate(&prompt(), TOKENS, true).unwrap();
    assert_eq!((run.tokens.len(), run.logits.len()), (TOKENS, TOKENS));
    for (token, logits) in run.tokens.iter().zip(&run.logits) {
        let values: Vec<f32> = logits.iter().map(|&l| f32::from_bits(l)).collect();
        assert!(values.iter().all(|&v| v <= values[*token as usize]), "the likeliest token");
    }
    run
}

fn compressed_weights_give_the_logits_of_plain_ones() {
    let gpu = device::open().unwrap();
    for made in [TIED, UNTIED] {
        let folder = tempfile::tempdir().unwrap();
        made.write(folder.path()).unwrap();
        let config = Config::read(folder.path()).unwrap();
        let plain =
            run(&mut load(&gpu, folder.path(), &config, Some(Resident::Plain), None).unwrap());
        for form in [None, Some(Resident::Dense3), Some(Resident::Dense4)] {
            let mut llama = load(&gpu, folder.path(), &config, form, None).unwrap();
            let first = run(&mut llama);
            assert!(first.logits == plain.logits && first.tokens == plain.tokens, "{form:?}");
            // A run does not depend on the state that an earlier run left.
            assert!(run(&mut llama).logits == plain.logits);
            let error = llama.generate(&[301], 1, false).err().unwrap();
            assert!(error.to_string().contains("token 301"), "{error}");
            assert!(llama.generate(&prompt(), TOKENS + 1, false).is_err());
            assert!(llama.generate(&[], 1, false).is_err());
        }
    }
}

fn streamed_layers_give_the_logits_of_resident_ones_within_the_budget() {
    let gpu = device::open().unwrap();
    let folder = tempfile::tempdir().unwrap();
    TIED.write(folder.path()).unwrap();
    let config = Config::read(folder.path()).unwrap();
    let mut llama = load(&gpu, folder.path(), &config, None, None).unwrap();
    let expected = run(&mut llama);
    let all = llama.device_bytes();
    let mut resident = Vec::new();
    // Limits from slightly more than enough down to less than streaming needs.
    for budget in (0..=20).rev().map(|part| all * 21 / 20 * part / 20) {
        match load(&gpu, folder.path(), &config, None, Some(budget)) {
            Ok(mut llama) => {
                assert!(llama.device_bytes() <= budget, "{} of {budget}", llama.device_bytes());
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
                assert!(error.to_string().contains("bytes on the device are needed"), "{error}");
                break;
            }
        }
    }
    assert!(resident.first() == Some(&6) && resident.last() == Some(&0), "{resident:?}");
    assert!(resident.len() > 2 && resident.is_sorted_by(|a, b| a > b), "{resident:?}");
}

fn text_goes_in_and_comes_out() {
    let folder = tempfile::tempdir().unwrap();
    let numbers = Text::open(folder.path()).unwrap();
    assert_eq!(numbers.encode(Some("3 1 2")).unwrap(), [3, 1, 2]);
    assert_eq!(numbers.decode(&[3, 1]).unwrap(), "3 1");
    assert!(numbers.encode(Some("three")).is_err() && numbers.encode(Some(" ")).is_err());
    let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],
        "normalizer":null,"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,
        "decoder":null,
        "model":{"type":"WordLevel","vocab":{"a":0,"small":1,"model":2,"?":3},"unk_token":"?"}}"#;
    std::fs::write(folder.path().join("tokenizer.json"), json).unwrap();
    let text = Text::open(folder.path()).unwrap();
    assert_eq!(text.encode(Some("a small large model")).unwrap(), [0, 1, 3, 2]);
    assert_eq!(text.decode(&[1, 2]).unwrap(), "small model");
    std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    assert!(Text::open(folder.path()).is_err());
}

fn what_is_not_understood_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    assert!(Config::read(folder.path()).is_err());
    TIED.write(folder.path()).unwrap();
    let good = std::fs::read_to_string(&path).unwrap();
    assert!(Config::read(folder.path()).is_ok());
    for (from, to) in [
        ("\"llama\"", "\"gpt2\""),
        ("\"num_hidden_layers\":6", "\"layers\":6"),
        ("{\"model", "{\"attention_bias\":true,\"model"),
        ("{\"model", "{\"rope_scaling\":{\"type\":\"yarn\"},\"model"),
        ("\"num_attention_heads\":6", "\"num_attention_heads\":0"),
        ("}", ""),
    ] {
        assert!(good.contains(from));
        std::fs::write(&path, good.replacen(from, to, 1)).unwrap();
        assert!(Config::read(folder.path()).is_err(), "{to}");
    }
}

fn other_shapes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    TIED.write(folder.path()).unwrap();
    let good = std::fs::read_to_string(&path).unwrap();
    let gpu = device::open().unwrap();
    std::fs::write(&path, good.replace("200", "201")).unwrap();
    let config = Config::read(folder.path()).unwrap();
    let error = load(&gpu, folder.path(), &config, None, None).err().unwrap();
    assert!(error.to_string().contains("config.json says"), "{error}");
}

#[cfg(feature = "candle")]
fn candle_computes_the_same() {
    use candle_core::{DType, Device, Tensor};
    use candle_transformers::models::llama as candle;

    let gpu = device::open().unwrap();
    // In the last case the small angles are scaled.
    for (made, scaled) in [(TIED, false), (UNTIED, false), (UNTIED, true)] {
        let folder = tempfile::tempdir().unwrap();
        made.write(folder.path()).unwrap();
        let path = folder.path().join("config.json");
        if scaled {
            let scaling = r#""rope_scaling":{"rope_type":"llama3","factor":8.0,
                "low_freq_factor":1.0,"high_freq_factor":4.0,
                "original_max_position_embeddings":64},"rope_theta""#;
            let json = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, json.replace("\"rope_theta\"", scaling)).unwrap();
        }
        let config = Config::read(folder.path()).unwrap();
        let ours = run(&mut load(&gpu, folder.path(), &config, None, None).unwrap());

        let json = std::fs::read(&path).unwrap();
        let config: candle::LlamaConfig = serde_json::from_slice(&json).unwrap();
        let config = config.into_config(false);
        let model = Model::open(folder.path()).unwrap();
        let weights = bigsmall_io::candle::var_builder(model, DType::F32, &Device::Cpu);
        let llama = candle::Llama::load(weights, &config).unwrap();
        let mut cache = candle::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
        let (mut ids, mut position) = (prompt(), 0);
        for (token, logits) in ours.tokens.iter().zip(&ours.logits) {
            let input = Tensor::new(&ids[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let found = llama.forward(&input, position, &mut cache).unwrap();
            let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(found.len(), logits.len());
            let largest = found.iter().fold(0f32, |a, v| a.max(v.abs()));
            for (theirs, ours) in found.iter().zip(logits) {
                let apart = (theirs - f32::from_bits(*ours)).abs();
                assert!(apart <= 1e-4 * largest, "{theirs} and {}", f32::from_bits(*ours));
            }
            position += ids.len();
            ids = vec![*token];
        }
    }
}
