//! What the programs share: a model for those who name none, and small helpers.
//!
//! `cargo run --release -p bigsmall-examples --example NAME -- --help`

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use bigsmall_io::{CompressOptions, Dtype, Model, Progress, TensorSpec, compress};
use bigsmall_testing::Llama;

/// The result of a program.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Opens `model`. Without one, makes a model of 66 MB in `folder`, in the shape of a Llama.
///
/// # Errors
/// Those of opening, or of making it.
pub fn open(model: Option<PathBuf>, folder: &Path) -> Result<Model> {
    if let Some(model) = model {
        return Ok(Model::open(model)?);
    }
    let (plain, shard) = (folder.join("model.safetensors"), folder.join("model.bs"));
    Llama::SMALL.write(&plain)?;
    compress(&plain, &shard, &CompressOptions::default(), &Progress::default())?;
    Ok(Model::open(shard)?)
}

/// The tensor with that name; without one, the largest matrix of BF16 or F16.
///
/// # Errors
/// There is no such tensor.
pub fn matrix(model: &Model, name: Option<&str>) -> Result<TensorSpec> {
    if let Some(name) = name {
        return Ok(model.spec(name)?.clone());
    }
    let fits = |spec: &&TensorSpec| {
        matches!(spec.dtype(), Dtype::BF16 | Dtype::F16) && spec.shape().len() == 2
    };
    let largest = model.tensors().filter(fits).max_by_key(|spec| spec.byte_len());
    largest.cloned().ok_or_else(|| "the model has no matrix of BF16 or F16".into())
}

/// `n` numbers between -0.5 and 0.5, to multiply with.
#[must_use]
pub fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0).collect()
}

/// Compares two files byte by byte, or every safetensors file of the folder `a` with that of the
/// same name in `b`. Returns how many files were compared.
///
/// # Errors
/// They differ, or cannot be read.
pub fn compare(a: &Path, b: &Path) -> Result<usize> {
    if a.is_dir() {
        let mut n = 0;
        for entry in std::fs::read_dir(a)? {
            let path = entry?.path();
            if let (Some(name), Some("safetensors")) =
                (path.file_name(), path.extension().and_then(|e| e.to_str()))
            {
                n += compare(&path, &b.join(name))?;
            }
        }
        return Ok(n);
    }
    let (mut left, mut right) = (File::open(a)?, File::open(b)?);
    let mut differ = left.metadata()?.len() != right.metadata()?.len();
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    while !differ {
        let n = left.read(&mut x)?;
        if n == 0 {
            return Ok(1);
        }
        right.read_exact(&mut y[..n])?;
        differ = x[..n] != y[..n];
    }
    Err(format!("{} and {} differ", a.display(), b.display()).into())
}
