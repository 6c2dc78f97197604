//! Files for tests, written by the crate `safetensors`.
#![allow(dead_code, unused_imports)]

use std::collections::HashMap;
use std::path::Path;

pub(crate) use bigsmall_testing::Random;

use bigsmall_io::{CompressOptions, Encoding, Level, Progress, Report, RestoreOptions, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

pub(crate) const ENCODINGS: [Encoding; 6] = [
    Encoding::Raw,
    Encoding::Ans(Level::Fast),
    Encoding::Ans(Level::Default),
    Encoding::Ans(Level::Small),
    Encoding::Tbe3,
    Encoding::Tbe4,
];

/// Every dtype of safetensors 0.8.
pub(crate) const DTYPES: [Dtype; 22] = [
    Dtype::BOOL,
    Dtype::F4,
    Dtype::F6_E2M3,
    Dtype::F6_E3M2,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::F8_E8M0,
    Dtype::F8_E4M3FNUZ,
    Dtype::F8_E5M2FNUZ,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::C64,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
];

#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn tensor(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Tensor {
    Tensor { name: name.into(), dtype, shape: shape.into(), bytes }
}

/// Writes a safetensors file with metadata.
pub(crate) fn write(path: &Path, tensors: &[Tensor]) {
    let views = tensors
        .iter()
        .map(|t| (t.name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    std::fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

/// A file by hand: header, then data.
pub(crate) fn write_raw(path: &Path, json: &[u8], data: &[u8]) {
    let len = (json.len() as u64).to_le_bytes();
    std::fs::write(path, [&len[..], json, data].concat()).unwrap();
}

pub(crate) fn compress(input: &Path, output: &Path) -> Result<Report> {
    bigsmall_io::compress(input, output, &CompressOptions::default(), &Progress::default())
}

pub(crate) fn restore(input: &Path, output: &Path) -> Result<Report> {
    bigsmall_io::restore(input, output, &RestoreOptions::default(), &Progress::default())
}

pub(crate) fn verify(input: &Path) -> Result<Report> {
    bigsmall_io::verify(input, &RestoreOptions::default(), &Progress::default())
}

/// The names in a folder, temporaries included.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
