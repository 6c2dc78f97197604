//! The options of the command.

use std::path::PathBuf;

use bigsmall_gpu::{Cooperative, WgpuOptions};

const SHAPES: &str = "4096x4096,11008x4096,4096x11008,14336x4096,28672x8192,8192x28672";
const BATCHES: &str = "1,2,4,8,16,32,64,128";
const KERNELS: [&str; 9] = [
    "plain",
    "fused3",
    "fused4",
    "decode3",
    "decode4",
    "rans",
    "load",
    "decode-first3",
    "decode-first4",
];

/// Measures how fast a GPU multiplies and decodes compressed weights, compared with the same
/// kernels on plain weights, and checks every result.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "gpu_bench")]
pub struct Options {
    /// Check every kernel, without measuring.
    #[arg(long)]
    pub(super) selftest: bool,
    /// Also write the table to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Shapes of the matrices.
    #[arg(long, value_name = "ROWSxCOLUMNS", value_delimiter = ',', default_value = SHAPES)]
    #[arg(value_parser = shape)]
    pub(super) shapes: Vec<(usize, usize)>,
    /// Numbers of vectors that are multiplied at once.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = BATCHES)]
    pub(super) batches: Vec<usize>,
    /// Kernels to measure. Plain weights are always measured.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = KERNELS)]
    #[arg(default_values_t = KERNELS.map(String::from))]
    pub(super) kernels: Vec<String>,
    /// Size of the device's cache. The copies of the weights exceed four times that.
    #[arg(long, value_name = "MIB", default_value_t = 80)]
    pub(super) cache_mb: u64,
    /// Size of the copy with which the bandwidth is measured.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(super) copy_mb: u64,
    /// Number of measured runs. The result is their median.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(super) runs: usize,
    /// Measure with the host's clock, as on a device without timestamps between kernels.
    #[arg(long)]
    pub(super) host_clock: bool,
    /// Compile the shaders without the counters that end endless loops.
    #[arg(long)]
    pub(super) unguarded: bool,
    /// Use cooperative matrices for batches above 32, if the device supports them.
    #[arg(long)]
    pub(super) cooperative: bool,
    /// Emulate cooperative matrices.
    #[arg(long, conflicts_with = "cooperative")]
    pub(super) emulated: bool,
    /// Use an adapter whose name contains this text.
    #[arg(long, value_name = "NAME")]
    pub(super) adapter: Option<String>,
    /// Allow a driver that runs on the CPU, if there is no GPU.
    #[arg(long)]
    pub(super) software: bool,
}

impl Options {
    pub(super) fn gpu(&self) -> WgpuOptions {
        let cooperative = match (self.cooperative, self.emulated) {
            (_, true) => Cooperative::Emulated,
            (true, false) => Cooperative::Offered,
            (false, false) => Cooperative::Off,
        };
        WgpuOptions::new()
            .adapter(self.adapter.clone())
            .allow_software(self.software)
            .unguarded_loops(self.unguarded)
            .cooperative(cooperative)
    }
}

fn shape(word: &str) -> std::result::Result<(usize, usize), String> {
    let parse = || {
        let (rows, cols) = word.split_once('x')?;
        Some((rows.parse().ok()?, cols.parse().ok()?))
    };
    parse().ok_or_else(|| format!("{word:?} is not ROWSxCOLUMNS"))
}
