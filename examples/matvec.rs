//! Multiplies a matrix of a `.bs` file by a vector on the CPU without ever holding it decoded.
//!
//! `cargo run --release -p bigsmall-examples --example matvec [MODEL.bs [TENSOR]]`
//!
//! MODEL is a shard or a folder of them; without TENSOR the largest matrix of BF16 or F16 is taken.
//! With no arguments the program makes a small checkpoint of its own.

use std::time::Instant;

use bigsmall_io::{
    CompressOptions, Dtype, EncodingId, Error, Model, Progress, Result, Rule, compress, encoding,
};
use bigsmall_tbe::{Matmul, Tbe, TbeTensor, TensorSpec, Width, transcode};
use bigsmall_testing::Llama;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = tempfile::tempdir()?;
    let model = match arguments.next() {
        Some(path) => Model::open(path)?,
        None => {
            let (plain, shard) = (dir.path().join("m.safetensors"), dir.path().join("m.bs"));
            Llama::SMALL.write(&plain)?;
            compress(&plain, &shard, &CompressOptions::default(), &Progress::default())?;
            Model::open(&shard)?
        }
    };
    let name = match arguments.next() {
        Some(name) => name,
        None => largest_matrix(&model)?,
    };

    // The tensor as the file has it. A code of variable length cannot be entered anywhere, so what
    // is not in the triple-bitmap encoding is brought into it block by block.
    let mut tensor = model.encoded(&name)?;
    let spec = tensor.spec().clone();
    let share = |bytes: u64| 100.0 * bytes as f64 / spec.byte_len() as f64;
    println!("{name} {} {:?}: {} bytes", spec.dtype(), spec.shape(), spec.byte_len());
    println!("in the file ({}): {:.2} %", tensor.encoding(), share(tensor.byte_len()));
    if tensor.encoding() != EncodingId::Tbe {
        let from = encoding(tensor.encoding())?;
        tensor = transcode(&tensor, from, &Tbe::new(Width::Three), 0)?;
    }
    println!("in memory ({}): {:.2} %", tensor.encoding(), share(tensor.byte_len()));
    let weights = TbeTensor::new(tensor)?;

    let (m, k) = (spec.shape()[0] as usize, spec.shape()[1] as usize);
    let x: Vec<f32> = (0..k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let mut y = vec![0.0; m];
    let matmul = Matmul::new(0);
    let mut seconds = Vec::new();
    for _ in 0..9 {
        let begin = Instant::now();
        matmul.encoded(&weights.view(), &x, 1, &mut y)?;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let rate = spec.byte_len() as f64 / seconds[4] / 1e9;
    println!("y = W x: {:.3} ms, {rate:.1} GB/s of original weights", 1e3 * seconds[4]);

    // The same product by decoding a few rows at a time: equal bit for bit, since only the way of
    // loading a weight differs.
    let mut expected = vec![0.0; m];
    for (i, expected) in expected.chunks_mut(64).enumerate() {
        let rows = model.rows(&name, 64 * i as u64..(64 * i + expected.len()) as u64)?;
        matmul.plain(rows.spec(), rows.bytes(), &x, 1, expected)?;
    }
    let same = y.iter().zip(&expected).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
    println!("{same} of {m} values equal those of decoded rows, bit for bit");
    if same != m {
        return Err(Error::new(Rule::ReadBack).in_tensor(&name));
    }
    Ok(())
}

fn largest_matrix(model: &Model) -> Result<String> {
    let fits = |spec: &&TensorSpec| {
        matches!(spec.dtype(), Dtype::BF16 | Dtype::F16) && spec.shape().len() == 2
    };
    let largest = model.tensors().filter(fits).max_by_key(|spec| spec.byte_len());
    let missing = || Error::new(Rule::TensorMissing).expected("a matrix of BF16 or F16");
    largest.map(|spec| spec.name().to_string()).ok_or_else(missing)
}
