//! Generates safetensors files, the same on every run: the inputs of examples, tests and
//! measurements.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use bigsmall_format::{Dtype, Error, Header, Limits, ReadAt, Result, Rule, TensorSpec};
use half::{bf16, f16};

use crate::Random;

/// The shape of a Llama-like checkpoint in bf16, whose output matrix is the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Llama {
    /// Width of the hidden state.
    pub hidden: u64,
    /// Width of the feed-forward layers.
    pub ffn: u64,
    /// Rows of the embedding.
    pub vocabulary: u64,
    /// Number of layers.
    pub layers: u64,
    /// Width of keys and values.
    pub kv: u64,
}

impl Llama {
    /// 268 MB: the input of the measurements.
    pub const MEASURED: Llama =
        Llama { hidden: 1024, ffn: 2816, vocabulary: 32_000, layers: 9, kv: 256 };
    /// 66 MB: fast to generate.
    pub const SMALL: Llama =
        Llama { hidden: 512, ffn: 1408, vocabulary: 32_000, layers: 6, kv: 128 };

    /// The tensors, in the order of the file.
    ///
    /// # Errors
    /// [`Rule::ShapeOverflow`].
    pub fn tensors(&self) -> Result<Vec<TensorSpec>> {
        let matrix =
            |name: &str, rows, columns| TensorSpec::new(name, Dtype::BF16, &[rows, columns]);
        let norm = |name: &str| TensorSpec::new(name, Dtype::BF16, &[self.hidden]);
        let mut out = vec![matrix("model.embed_tokens.weight", self.vocabulary, self.hidden)?];
        for layer in 0..self.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            out.extend([
                norm(&name("input_layernorm"))?,
                matrix(&name("mlp.down_proj"), self.hidden, self.ffn)?,
                matrix(&name("mlp.gate_proj"), self.ffn, self.hidden)?,
                matrix(&name("mlp.up_proj"), self.ffn, self.hidden)?,
                norm(&name("post_attention_layernorm"))?,
                matrix(&name("self_attn.k_proj"), self.kv, self.hidden)?,
                matrix(&name("self_attn.o_proj"), self.hidden, self.hidden)?,
                matrix(&name("self_attn.q_proj"), self.hidden, self.hidden)?,
                matrix(&name("self_attn.v_proj"), self.kv, self.hidden)?,
            ]);
        }
        out.push(norm("model.norm.weight")?);
        Ok(out)
    }

    /// Writes the checkpoint. Weights are 0.02 N(0, 1) exp(N(0, 0.2)), where the last factor is
    /// drawn once per row. A few columns of every matrix are 5 to 20 times larger. Norms are
    /// 1 + 0.1 N(0, 1). Memory: one row.
    ///
    /// # Errors
    /// [`Rule::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let tensors = self.tensors()?;
        let mut out = begin(path, &tensors)?;
        for (seed, spec) in tensors.iter().enumerate() {
            rows(spec, seed as u64, |row| {
                out.write_all(&to_bytes(row, |w| bf16::from_f32(w).to_le_bytes()))?;
                Ok(())
            })?;
        }
        Ok(out.flush()?)
    }

    /// Writes the matrices in FP8 E4M3. Each is divided by its scale (its largest magnitude / 448),
    /// which follows it as an F32 scalar. Memory: one row.
    ///
    /// # Errors
    /// [`Rule::Io`].
    pub fn write_fp8(&self, path: &Path) -> Result<()> {
        let originals = self.tensors()?;
        let mut tensors = Vec::new();
        for spec in originals.iter().filter(|t| t.shape().len() == 2) {
            tensors.push(TensorSpec::new(spec.name(), Dtype::F8_E4M3, spec.shape())?);
            tensors.push(TensorSpec::new(&format!("{}_scale", spec.name()), Dtype::F32, &[])?);
        }
        let mut out = begin(path, &tensors)?;
        for (seed, spec) in originals.iter().enumerate().filter(|(_, t)| t.shape().len() == 2) {
            // The same weights are drawn twice: the first time to find the scale.
            let mut most = 0f32;
            rows(spec, seed as u64, |row| {
                most = row.iter().fold(most, |m, &w| m.max(bf16::from_f32(w).to_f32().abs()));
                Ok(())
            })?;
            let scale = most / 448.0;
            rows(spec, seed as u64, |row| {
                out.write_all(&to_bytes(row, |w| [e4m3(bf16::from_f32(w).to_f32() / scale)]))?;
                Ok(())
            })?;
            out.write_all(&scale.to_le_bytes())?;
        }
        Ok(out.flush()?)
    }
}

/// Creates a safetensors file and writes the header for `tensors`.
fn begin(path: &Path, tensors: &[TensorSpec]) -> Result<BufWriter<File>> {
    let json = Header::synthesise(tensors)?;
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    out.write_all(&(json.len() as u64).to_le_bytes())?;
    out.write_all(&json)?;
    Ok(out)
}

/// Generates the values of a tensor row by row.
fn rows(spec: &TensorSpec, seed: u64, mut each: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
    let mut random = Random::new(seed);
    let (n_rows, columns) = match *spec.shape() {
        [rows, columns] => (rows, columns as usize),
        [columns] => (0, columns as usize),
        _ => return Err(Error::new(Rule::SpecMismatch).in_tensor(spec.name())),
    };
    if n_rows == 0 {
        let norm: Vec<f32> = (0..columns).map(|_| (1.0 + 0.1 * random.normal()) as f32).collect();
        return each(&norm);
    }
    let mut gains = vec![1f64; columns];
    for _ in 0..(columns / 512).max(1) {
        let column = (random.uniform() * columns as f64) as usize;
        gains[column] = 5.0 + 15.0 * random.uniform();
    }
    let mut row = vec![0f32; columns];
    for _ in 0..n_rows {
        let scale = 0.02 * (0.2 * random.normal()).exp();
        for (w, gain) in row.iter_mut().zip(&gains) {
            *w = (scale * gain * random.normal()) as f32;
        }
        each(&row)?;
    }
    Ok(())
}

fn to_bytes<const N: usize>(row: &[f32], bits: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    row.iter().flat_map(|&w| bits(w)).collect()
}

/// Rounds to FP8 E4M3, ties to even. Values that are too large become 448.
#[must_use]
pub fn e4m3(w: f32) -> u8 {
    let sign = u8::from(w.is_sign_negative()) << 7;
    let w = w.abs().min(448.0);
    // The smallest normal number is 2^-6. Below it the steps stay at 2^-9.
    let exponent = (w.to_bits() >> 23) as i32 - 127;
    let exponent = exponent.max(-6);
    let steps = (w * 2f32.powi(3 - exponent)).round_ties_even() as u8;
    // The significand in steps: 8 to 16 for a normal number, less for a denormal. 16 carries into
    // the next exponent.
    let code = ((exponent + 6) as u8) * 8 + steps;
    sign | code
}

/// Writes the F32 tensors of the safetensors file `input`, rounded to `dtype` (BF16 or F16, ties to
/// even). Other tensors are copied unchanged. Memory: twice the largest tensor.
///
/// # Errors
/// Those of reading a header; [`Rule::SpecMismatch`] for another dtype; [`Rule::Io`].
pub fn round(input: &Path, output: &Path, dtype: Dtype) -> Result<()> {
    let source = File::open(input)?;
    let (json, header) = Header::read(&source, &Limits::default())?;
    if !matches!(dtype, Dtype::BF16 | Dtype::F16) {
        return Err(Error::new(Rule::SpecMismatch).expected("BF16 or F16").found(dtype));
    }
    let new = |t: &TensorSpec| match t.dtype() {
        Dtype::F32 => TensorSpec::new(t.name(), dtype, t.shape()),
        _ => Ok(t.clone()),
    };
    let tensors = header.tensors().iter().map(new).collect::<Result<Vec<_>>>()?;
    let mut out = begin(output, &tensors)?;
    for (index, spec) in header.tensors().iter().enumerate() {
        let mut bytes = vec![0; spec.byte_len() as usize];
        source.read_exact_at(8 + json.len() as u64 + header.data_range(index).start, &mut bytes)?;
        if spec.dtype() == Dtype::F32 {
            let values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            bytes = match dtype {
                Dtype::BF16 => values.flat_map(|w| bf16::from_f32(w).to_le_bytes()).collect(),
                _ => values.flat_map(|w| f16::from_f32(w).to_le_bytes()).collect(),
            };
        }
        out.write_all(&bytes)?;
    }
    Ok(out.flush()?)
}

/// Writes one F32 matrix of 1024 x 1024 values 0.02 N(0, 1), all of them exact in bf16.
///
/// # Errors
/// [`Rule::Io`].
pub fn write_f32_that_holds_bf16(path: &Path) -> Result<()> {
    write_normal(path, Dtype::F32, [1024, 1024], |w| bf16::from_f64(w).to_f32().to_le_bytes())
}

/// Writes one matrix of 8192 x 4096 values 0.02 N(0, 1), in F32 or F16.
///
/// # Errors
/// [`Rule::Io`]; [`Rule::SpecMismatch`] for another dtype.
pub fn write_matrix(path: &Path, dtype: Dtype) -> Result<()> {
    const SHAPE: [u64; 2] = [8192, 4096];
    match dtype {
        Dtype::F32 => write_normal(path, dtype, SHAPE, |w| (w as f32).to_le_bytes()),
        Dtype::F16 => write_normal(path, dtype, SHAPE, |w| f16::from_f32(w as f32).to_le_bytes()),
        _ => Err(Error::new(Rule::SpecMismatch).expected("F32 or F16").found(dtype)),
    }
}

/// Writes one matrix of values 0.02 N(0, 1), each as the bytes that `element` makes of it.
fn write_normal<const N: usize>(
    path: &Path,
    dtype: Dtype,
    shape: [u64; 2],
    element: impl Fn(f64) -> [u8; N],
) -> Result<()> {
    let tensors = [TensorSpec::new("weight", dtype, &shape)?];
    let mut out = begin(path, &tensors)?;
    let mut random = Random::new(0);
    for _ in 0..shape[0] * shape[1] {
        out.write_all(&element(0.02 * random.normal()))?;
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a code, directly from the definition.
    fn value(code: u8) -> f32 {
        let (e, m) = (i32::from(code >> 3 & 15), f32::from(code & 7));
        let size =
            if e == 0 { m / 8.0 * 2f32.powi(-6) } else { (1.0 + m / 8.0) * 2f32.powi(e - 7) };
        if code & 0x80 != 0 { -size } else { size }
    }

    #[test]
    fn e4m3_rounds_to_the_nearest_value() {
        for code in (0..=255u8).filter(|c| c & 0x7F != 0x7F) {
            assert_eq!(e4m3(value(code)), code, "{code:#x}");
        }
        for low in 0..0x7Eu8 {
            let (a, b) = (value(low), value(low + 1));
            let even = if low & 1 == 0 { low } else { low + 1 };
            assert_eq!(e4m3((a + b) / 2.0), even, "tie above {low:#x}");
            assert_eq!(e4m3(a + (b - a) * 0.49), low);
            assert_eq!(e4m3(a + (b - a) * 0.51), low + 1);
        }
        assert_eq!(e4m3(1e9), 0x7E);
    }
}
