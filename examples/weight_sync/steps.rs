//! The weights of every step: those of files, or simulated ones.

use std::path::{Path, PathBuf};

use bigsmall_examples::Result;
use bigsmall_io::{Dtype, TensorSpec, TensorView, Weights};
use bigsmall_testing::Random;
use half::bf16;

use crate::Args;

/// Where steps come from.
pub(crate) enum Steps {
    Files(Vec<PathBuf>),
    /// Of the tensors of a model that have a text in their names.
    Simulated {
        model: PathBuf,
        only: String,
    },
}

impl Steps {
    pub(crate) fn of(args: &Args) -> Result<Steps> {
        let Some(folder) = &args.files else {
            if !args.model.is_file() {
                let model = args.model.display();
                let help = "name a model with --model; .ci/run fetches MiniLM to target/minilm";
                return Err(format!("{model} is missing: {help}").into());
            }
            return Ok(Steps::Simulated { model: args.model.clone(), only: args.only.clone() });
        };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|x| x == "safetensors") {
                files.push(path);
            }
        }
        files.sort();
        match files.len() {
            0 => Err(format!("{} has no safetensors files", folder.display()).into()),
            _ => Ok(Steps::Files(files)),
        }
    }

    /// The bytes of step `step` as a safetensors file; `before` are those of the step before, if
    /// there is one.
    pub(crate) fn bytes(&self, step: u64, before: Option<&[u8]>) -> Result<Vec<u8>> {
        match (self, before) {
            (Steps::Files(files), _) => {
                Ok(std::fs::read(&files[(step % files.len() as u64) as usize])?)
            }
            (Steps::Simulated { model, only }, None) => in_bf16(model, only),
            (Steps::Simulated { .. }, Some(before)) => Ok(moved(before, step)),
        }
    }
}

/// Floats of the model, rounded to bf16.
fn in_bf16(model: &Path, only: &str) -> Result<Vec<u8>> {
    let weights = Weights::from_safetensors(std::fs::read(model)?)?;
    let mut tensors = Vec::new();
    let is_wanted = |spec: &&TensorSpec| spec.name().contains(only);
    for spec in weights.tensors().iter().filter(is_wanted) {
        let bytes = weights.tensor(spec.name())?;
        let bytes = match spec.dtype() {
            Dtype::BF16 => bytes.to_vec(),
            Dtype::F32 => {
                let values = bytes.as_chunks().0.iter();
                let rounded = values.map(|v| bf16::from_f32(f32::from_le_bytes(*v)));
                rounded.flat_map(bf16::to_le_bytes).collect()
            }
            _ => continue,
        };
        tensors.push((spec.name(), TensorView::new(Dtype::BF16, spec.shape(), bytes)));
    }
    if tensors.is_empty() {
        return Err("the model has no tensor of f32 or bf16 to simulate steps of".into());
    }
    Ok(Weights::from_tensors(tensors, None)?.into_bytes())
}

/// 0.3 % of the values of a file of bf16 move to a neighbouring value.
fn moved(before: &[u8], step: u64) -> Vec<u8> {
    let mut bytes = before.to_vec();
    let header = before.first_chunk().map_or(0, |len| u64::from_le_bytes(*len)) as usize;
    let values = bytes[8 + header..].as_chunks_mut::<2>().0;
    let mut random = Random::new(step);
    for _ in 0..values.len() * 3 / 1000 {
        let value = &mut values[random.below(values.len() as u64) as usize];
        let bits = u16::from_le_bytes(*value);
        let up = random.below(2) == 0;
        *value = if up { bits.wrapping_add(1) } else { bits.wrapping_sub(1) }.to_le_bytes();
    }
    bytes
}
