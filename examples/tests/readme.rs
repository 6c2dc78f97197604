//! The Rust code of the README compiles: each of its blocks is in this file, word for word.
#![allow(clippy::unwrap_used, unused_variables, dead_code)] // parts that the README leaves out

use bigsmall_format::{TensorSpec, encode_tensor};
use bigsmall_io::{BaseModel, Layer, Model, StreamOptions, StreamingLoader, TensorView, save};
use bigsmall_tbe::{Matrix, Tbe};
use half::bf16;

fn run(layer: Layer) {}

fn read() -> bigsmall_io::Result<()> {
    let model = Model::open("model.bs")?; // or "hf://owner/name", "https://...", "s3://..."
    let rows = model.rows("model.embed_tokens.weight", 1000..1016)?;
    for layer in StreamingLoader::new(model, &StreamOptions::default())? {
        run(layer?);
    }
    Ok(())
}

fn write(weights: Vec<f32>) -> bigsmall_io::Result<()> {
    let tensors = [("fc.weight", TensorView::from_slice(&[512, 512], &weights))];
    save("model.bs", tensors, None)?;
    Ok(())
}

#[cfg(feature = "candle")]
fn candle(
    config: candle_transformers::models::bert::Config,
) -> Result<(), Box<dyn std::error::Error>> {
    use candle_core::{DType, Device};
    use candle_transformers::models::bert::BertModel;

    use bigsmall_io::candle::var_builder;
    let weights = var_builder(Model::open("model.bs")?, DType::F32, &Device::Cpu);
    let bert = BertModel::load(weights, &config)?;
    Ok(())
}

fn codec(mut weights: Vec<bf16>) -> bigsmall_codec::Result<()> {
    let small: Vec<u8> = bigsmall_codec::encode(&weights); // &[bf16], &[f16], &[f32], ...
    bigsmall_codec::decode(&small, &mut weights)?; // into memory you own
    Ok(())
}

fn against_a_base() -> bigsmall_io::Result<()> {
    let model = Model::open("tuned.bs")?.with_base(BaseModel::open("base.safetensors")?)?;
    drop(model);
    Ok(())
}

fn delta(new: Vec<bf16>, old: Vec<bf16>, mut weights: Vec<bf16>) -> bigsmall_codec::Result<()> {
    let delta: Vec<u8> = bigsmall_codec::encode_delta(&new, &old);
    bigsmall_codec::apply_delta(&delta, &mut weights)?; // in place: all of it or nothing
    Ok(())
}

fn multiply(
    spec: TensorSpec,
    weights: Vec<u8>,
    x: Vec<f32>,
    batch: usize,
    mut y: Vec<f32>,
) -> bigsmall_tbe::Result<()> {
    let matrix = Matrix::new(encode_tensor(&Tbe::default(), &spec, &weights)?)?;
    matrix.matmul(&x, batch, &mut y)?; // bigsmall-tbe, on a CPU
    Ok(())
}

#[test]
fn every_block_of_rust_is_compiled() {
    let bare = |text: &str| -> String { text.chars().filter(|c| !c.is_whitespace()).collect() };
    let here = bare(include_str!("readme.rs"));
    let readme = include_str!("../../README.md");
    let mut n = 0;
    for block in readme.split("```rust").skip(1) {
        let (_, block) = block.split_once('\n').unwrap();
        let (block, _) = block.split_once("```").unwrap();
        assert!(here.contains(&bare(block)), "examples/tests/readme.rs lacks\n{block}");
        n += 1;
    }
    assert_eq!(n, 7);
}
