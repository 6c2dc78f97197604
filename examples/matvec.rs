//! Multiplies a matrix of a `.bs` file by a vector on the CPU, without decoding the whole matrix.
//!
//! `cargo run --release -p bigsmall-examples --example matvec [MODEL.bs [TENSOR]]`

use std::path::PathBuf;
use std::time::Instant;

use bigsmall_examples::{Result, matrix, numbers, open};
use bigsmall_io::{EncodingId, encoding};
use bigsmall_tbe::{Decoded, Matrix, Plain, Tbe, Width, encode_tensor};
use clap::Parser;

/// Multiplies a matrix by a vector on the CPU, while the matrix stays compressed.
#[derive(Parser)]
struct Args {
    /// A shard, or a folder of shards. Without it, a small model is made.
    model: Option<PathBuf>,
    /// The matrix. Without it, the largest one of BF16 or F16.
    tensor: Option<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let folder = tempfile::tempdir()?;
    let model = open(args.model, folder.path())?;
    let spec = matrix(&model, args.tensor.as_deref())?;
    let name = spec.name();

    // The tensor in its stored form. Products need the triple-bitmap encoding, which gives direct
    // access to every weight. Another encoding is converted to it, block by block.
    let tensor = model.encoded(name)?;
    let share = |bytes: u64| 100.0 * bytes as f64 / spec.byte_len() as f64;
    println!("{name} {} {:?}: {} bytes", spec.dtype(), spec.shape(), spec.byte_len());
    println!("in the file ({}): {:.2} %", tensor.encoding(), share(tensor.byte_len()));
    let tensor = match tensor.encoding() {
        EncodingId::Tbe => tensor,
        from => {
            let weights = Decoded::new(&tensor, encoding(from)?)?;
            encode_tensor(&Tbe::new(Width::Three), &spec, &weights)?
        }
    };
    println!("in memory ({}): {:.2} %", tensor.encoding(), share(tensor.byte_len()));
    let weights = Matrix::new(tensor)?;

    let (m, k) = (spec.shape()[0] as usize, spec.shape()[1] as usize);
    let x = numbers(k);
    let mut y = vec![0.0; m];
    let mut seconds = Vec::new();
    for _ in 0..9 {
        let begin = Instant::now();
        weights.matmul(&x, 1, &mut y)?;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let rate = spec.byte_len() as f64 / seconds[4] / 1e9;
    println!("y = W x: {:.3} ms, {rate:.1} GB/s of original weights", 1e3 * seconds[4]);

    // The same product with a few decoded rows at a time. The bits are equal, since only the way in
    // which a weight is loaded differs.
    let mut expected = vec![0.0; m];
    for (i, expected) in expected.chunks_mut(64).enumerate() {
        let rows = model.rows(name, 64 * i as u64..(64 * i + expected.len()) as u64)?;
        Plain::new(rows.spec(), rows.bytes())?.matmul(&x, 1, expected)?;
    }
    let same = y.iter().zip(&expected).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
    println!("{same} of {m} values equal those of decoded rows, bit for bit");
    if same != m {
        return Err("the products differ".into());
    }
    Ok(())
}
