//! Code that the tests, examples, fuzz targets and measurements of bigsmall share. Not published.
//!
//! Published crates have it as a dev-dependency with a path and no version, which cargo removes
//! from the package. The tests that use it are not packaged either (`exclude` in `Cargo.toml`).
//!
//! ```
//! use bigsmall_testing::Llama;
//! let name = format!("bigsmall-doc-{}.safetensors", std::process::id());
//! let path = std::env::temp_dir().join(name);
//! Llama { hidden: 64, ffn: 176, vocabulary: 100, layers: 2, kv: 16 }.write(&path)?;
//! assert!(std::fs::metadata(&path)?.len() > 100_000);
//! # std::fs::remove_file(&path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(feature = "gpu")]
pub mod device;
mod golden_bases;
mod golden_deltas;
mod golden_pages;
pub mod goldens;
#[cfg(feature = "gpu")]
pub mod gpu_bench;
#[cfg(feature = "isa")]
pub mod gpu_isa;
mod models;
pub mod oracle;
pub mod outside;
// The file is in the tests of the format, which write broken files by hand too.
#[path = "../../bigsmall-format/tests/forge/mod.rs"]
mod forge;
// The file is in the codec's tests, because they also run inside the published package.
#[path = "../../bigsmall-codec/tests/random/mod.rs"]
mod random;
pub mod specification;
pub mod targets;
pub mod trials;

pub use models::{Llama, e4m3, round, write_f32_that_holds_bf16, write_matrix};
pub use random::Random;

#[cfg(test)]
mod tests {
    use crate::Random;

    #[test]
    fn normal_numbers_are_normal() {
        let mut random = Random::new(7);
        let n = 100_000;
        let values: Vec<f64> = (0..n).map(|_| random.normal()).collect();
        let mean = values.iter().sum::<f64>() / f64::from(n);
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
