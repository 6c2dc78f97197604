//! Helpers for the programs, and a generated model for users who do not name one.
//!
//! `cargo run --release -p bigsmall-examples --example NAME -- --help`

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use bigsmall_io::{CompressOptions, Dtype, Model, Progress, TensorSpec, compress};
use bigsmall_testing::Llama;

/// The result of a program.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Returns `model`. Without one, makes a safetensors file of 66 MB in `folder`, in the shape of a
/// Llama.
///
/// # Errors
/// The file cannot be written.
pub fn original(model: Option<PathBuf>, folder: &Path) -> Result<PathBuf> {
    if let Some(model) = model {
        return Ok(model);
    }
    let made = folder.join("model.safetensors");
    Llama::SMALL.write(&made)?;
    Ok(made)
}

/// Opens the shard or the folder of shards `model`. Without one, opens a compressed [`original`].
///
/// # Errors
/// The model cannot be opened, or not be made.
pub fn open(model: Option<PathBuf>, folder: &Path) -> Result<Model> {
    if let Some(model) = model {
        return Ok(Model::open(model)?);
    }
    let shard = folder.join("model.bs");
    let options = CompressOptions::default();
    compress(original(None, folder)?, &shard, &options, &Progress::default())?;
    Ok(Model::open(shard)?)
}

/// The tensor with the given name. Without a name, the largest matrix of BF16 or F16.
///
/// # Errors
/// The tensor does not exist.
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

/// `n` numbers between -0.5 and 0.5: a vector for products.
#[must_use]
pub fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0).collect()
}

/// Compares two files byte by byte, or every safetensors file of the folder `a` with the file of
/// the same name in `b`. Returns the number of compared files.
///
/// # Errors
/// The files differ, or cannot be read.
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
