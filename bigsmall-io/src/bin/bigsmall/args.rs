//! The command line.

use std::path::PathBuf;

use bigsmall_codec::Backend;
use bigsmall_io::{CompressOptions, Encoding, FolderOptions};
use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Lossless compression of neural-network weights: a safetensors file in, a smaller .bs file out,
/// every bit back.
#[derive(Parser, Debug)]
#[command(name = "bigsmall", version, about, long_about = None)]
#[command(after_help = "Exit codes: 0 done, 1 reading or writing failed, 2 wrong use, \
3 the file is damaged, 4 the file or the machine is not supported, 5 a limit was exceeded.

BIGSMALL_RAISE_LIMITS=N in the environment makes the limits on lists, index files and metadata \
N times as large.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Compress a safetensors file, or a model folder with its files.
    ///
    /// In a folder, weights are compressed, and all other files are copied. Kept are names,
    /// contents, permission bits of files, and empty folders. Links are followed: the output has
    /// what they lead to. Not kept are hidden files (see --hidden), what interrupted downloads
    /// left, times, owners and other attributes. An index file that disagrees with the weights is
    /// copied too.
    ///
    /// After a job that crashed or was killed by SIGKILL, the same command goes on with the shards
    /// that were finished. After Ctrl-C or SIGTERM nothing is left.
    ///
    /// From a URL, one shard after the other is read, in pieces, and only the result is written.
    /// From hf://owner/name, files are compared with the SHA-256s that the Hub lists.
    Compress(Compress),
    /// Restore the identical safetensors file, or the files of the model folder.
    ///
    /// What is kept of a folder says `bigsmall compress --help`.
    #[command(alias = "decompress")]
    Restore(Restore),
    /// Check shards: checksums, decoding, the SHA-256 of the original.
    ///
    /// Other files of a model folder are copies without checksums, which nothing can check.
    Verify(Verify),
    /// Show what is in a model, compressed or not: tensors, metadata, sizes.
    Inspect(Inspect),
    /// Write some tensors of a model, compressed or not, to a safetensors file.
    Extract(Extract),
    /// Make one model from the shards that several machines wrote into a folder.
    Index(Index),
    /// Estimate, from samples, the compressed size of a file or folder and the time to compress it.
    ///
    /// A few blocks of each tensor are encoded, with --base also as differences. Where changes are
    /// in some rows alone, `compress --dry-run` says more; it encodes everything.
    Estimate(Estimate),
    /// Rewrite a shard in another encoding, without the original. The result has no base.
    Transcode(Transcode),
    /// Rewrite a shard as differences from another base; makes one shard of a chain.
    Rebase(Rebase),
    /// Measure size and speed on the tensors of a file, in comparison with memcpy.
    Bench(Bench),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// A path or URL to read. `-`, which other programs take for standard input, is refused.
fn input() -> impl TypedValueParser<Value = PathBuf> {
    not_standard("files are read at any place, so standard input does not do")
}

/// The name of a tensor, and its name in the base.
fn names(text: &str) -> Result<(String, String), String> {
    let (name, of_base) = text.split_once('=').ok_or("no `=` between two names")?;
    Ok((name.to_owned(), of_base.to_owned()))
}

/// A path to write, not `-`.
fn output() -> impl TypedValueParser<Value = PathBuf> {
    not_standard("what is written is read back, so standard output does not do")
}

fn not_standard(why: &'static str) -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(move |path| match path.as_os_str() == "-" {
        true => Err(format!("{why}; a file of that name is ./-")),
        false => Ok(path),
    })
}

impl Command {
    /// The requested number of threads; 0 means one for each core.
    pub(crate) fn threads(&self) -> usize {
        match self {
            Command::Compress(a) => a.coding.threads,
            Command::Restore(a) => a.threads,
            Command::Verify(a) => a.threads,
            Command::Estimate(a) => a.coding.threads,
            Command::Transcode(a) => a.coding.threads,
            Command::Rebase(a) => a.to.coding.threads,
            Command::Bench(a) => a.coding.threads,
            Command::Extract(a) => a.threads,
            Command::Inspect(a) if a.html.is_some() => 0,
            Command::Inspect(_) | Command::Index(_) | Command::Completions { .. } => 1,
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Coding {
    /// The encoding to try; a tensor that it does not make smaller is stored raw.
    #[arg(long, value_enum, default_value_t = Name::Ans)]
    encoding: Name,
    /// The level of `ans`: faster, or smaller output.
    #[arg(long, value_enum, default_value_t = Level::Default)]
    level: Level,
    /// Threads that encode; 0 means one for each core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum Name {
    /// Entropy coding: the smallest output.
    Ans,
    /// The values, unchanged.
    Raw,
    /// Triple bitmaps with codes of 3 bits: the fastest to decode.
    Tbe3,
    /// Triple bitmaps with codes of 4 bits.
    Tbe4,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum Level {
    /// Fastest encoding, and fastest decoding of F16 and FP8.
    Fast,
    /// Small and fast.
    Default,
    /// Smallest output.
    Small,
}

impl Coding {
    pub(crate) fn encoding(&self) -> Encoding {
        match (self.encoding, self.level) {
            (Name::Raw, _) => Encoding::Raw,
            (Name::Tbe3, _) => Encoding::Tbe3,
            (Name::Tbe4, _) => Encoding::Tbe4,
            (Name::Ans, level) => Encoding::Ans(match level {
                Level::Fast => bigsmall_io::Level::Fast,
                Level::Default => bigsmall_io::Level::Default,
                Level::Small => bigsmall_io::Level::Small,
            }),
        }
    }
}

/// Which files of a folder a job takes.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct FolderArgs {
    /// Also take files and folders whose name begins with a dot. A `.git` is never taken.
    #[arg(long)]
    hidden: bool,
    /// The most files that a folder may have.
    #[arg(long, value_name = "N", default_value_t = FolderOptions::new().max_files)]
    max_files: u64,
    /// The most folders in one another.
    #[arg(long, value_name = "N", default_value_t = FolderOptions::new().max_depth)]
    max_depth: usize,
}

impl FolderArgs {
    pub(crate) fn options(self) -> FolderOptions {
        let FolderArgs { hidden, max_files, max_depth } = self;
        FolderOptions::new().hidden(hidden).max_files(max_files).max_depth(max_depth)
    }
}

/// The base that a model is compared with.
#[derive(Args, Debug)]
pub(crate) struct Against {
    /// Store differences from this base: a safetensors file, a shard, a folder or a URL. After it,
    /// in any order, give the base of the base, and so on.
    #[arg(long, value_name = "BASE")]
    pub(crate) base: Vec<PathBuf>,
    /// A tensor has another name in the base. May be given several times. It is an error if the
    /// input or the base has no tensor of that name.
    #[arg(long, value_name = "NAME=BASE-NAME", value_parser = names, requires = "base")]
    pub(crate) base_name: Vec<(String, String)>,
}

impl Against {
    pub(crate) fn options(self) -> CompressOptions {
        let mut options = CompressOptions::new();
        options.bases = self.base;
        options.base_names = self.base_name.into_iter().collect();
        options
    }
}

#[derive(Args, Debug)]
pub(crate) struct Compress {
    /// A safetensors file, a model folder, or a URL: https://, hf://owner/name, s3://, gs://,
    /// az://.
    #[arg(value_parser = input())]
    pub(crate) input: PathBuf,
    /// The shard or folder to write.
    #[arg(
        short,
        long,
        value_name = "OUT",
        required_unless_present = "dry_run",
        value_parser = output()
    )]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) against: Against,
    #[command(flatten)]
    pub(crate) coding: Coding,
    /// Store an MD5 of every tensor.
    #[arg(long)]
    pub(crate) md5: bool,
    /// Replace an existing output. Of a folder, only what bigsmall has written there, unchanged.
    #[arg(long)]
    pub(crate) force: bool,
    /// Do all the work, but write nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Begin even if the file system has too little free space for the files that are copied.
    #[arg(long)]
    pub(crate) ignore_free_space: bool,
    #[command(flatten)]
    pub(crate) folder: FolderArgs,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Restore {
    /// A shard, a folder of shards, or a URL: https://, hf://owner/name, s3://, gs://, az://.
    #[arg(value_parser = input())]
    pub(crate) input: PathBuf,
    /// The safetensors file or folder to write; `-` writes the file to standard output. Its SHA-256
    /// is compared at the end: use what was written only if the command succeeds.
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) bases: Bases,
    /// Threads that decode; 0 means one for each core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,
    /// Replace an existing output. Of a folder, only what bigsmall has written there, unchanged.
    #[arg(long)]
    pub(crate) force: bool,
    /// Refuse a shard that restores to this many times its bytes, or more.
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    pub(crate) max_expansion: u64,
    /// Begin even if the file system has too little free space.
    #[arg(long)]
    pub(crate) ignore_free_space: bool,
    #[command(flatten)]
    pub(crate) folder: FolderArgs,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// Shards, folders of shards, or URLs: https://, hf://owner/name, s3://, gs://, az://. All are
    /// checked, also after a damaged one.
    #[arg(value_parser = input(), value_name = "INPUT", required = true)]
    pub(crate) inputs: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) bases: Bases,
    /// Threads that decode; 0 means one for each core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,
    /// Print the MD5 of every tensor's original bytes.
    #[arg(long)]
    pub(crate) md5: bool,
    /// Compare what the folder restores to with this repository of the Hub, hf://owner/name: by the
    /// SHA-256s that the Hub lists. No weights are fetched. A difference ends with exit code 3.
    #[arg(long, value_name = "HUB")]
    pub(crate) against: Option<PathBuf>,
    /// Refuse a shard that restores to this many times its bytes, or more.
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    pub(crate) max_expansion: u64,
    #[command(flatten)]
    pub(crate) folder: FolderArgs,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Inspect {
    /// A shard, a safetensors file, a folder of either, or a URL: https://, hf://owner/name, s3://,
    /// gs://, az://.
    #[arg(value_parser = input())]
    pub(crate) input: PathBuf,
    /// Show only this tensor.
    #[arg(long, value_name = "NAME", conflicts_with = "html")]
    pub(crate) tensor: Option<String>,
    /// Write a page that shows where the bytes go, layer by layer, and what could still be gained.
    /// It needs no network. Some blocks of each tensor are decoded to measure their entropy.
    #[arg(long, value_name = "OUT", value_parser = output(), conflicts_with = "json")]
    pub(crate) html: Option<PathBuf>,
    /// Replace an existing page.
    #[arg(long, requires = "html")]
    pub(crate) force: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
#[group(id = "wanted", required = true, multiple = true, args = ["tensor", "prefix"])]
pub(crate) struct Extract {
    /// A shard, a safetensors file, a folder of either, or a URL: https://, hf://owner/name, s3://,
    /// gs://, az://.
    #[arg(value_parser = input())]
    pub(crate) input: PathBuf,
    /// The safetensors file to write.
    #[arg(short, long, value_name = "OUT", value_parser = output())]
    pub(crate) output: PathBuf,
    /// The name of a tensor. May be given several times.
    #[arg(long, value_name = "NAME")]
    pub(crate) tensor: Vec<String>,
    /// A module, all of whose tensors are written, such as `model.layers.0`. May be given several
    /// times.
    #[arg(long, value_name = "NAME")]
    pub(crate) prefix: Vec<String>,
    #[command(flatten)]
    pub(crate) bases: Bases,
    /// Threads that decode; 0 means one for each core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,
    /// Replace an existing output.
    #[arg(long)]
    pub(crate) force: bool,
    /// Refuse to write this many times the bytes of the input, or more.
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    pub(crate) max_expansion: u64,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Index {
    /// The folder of shards; the index file and the model card are written into it.
    pub(crate) dir: PathBuf,
    /// The folder that the shards were made from: its other files are copied.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) original: Option<PathBuf>,
    /// Replace existing files that have other contents.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) folder: FolderArgs,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Estimate {
    /// A safetensors file, a model folder, or a URL: https://, hf://owner/name, s3://, gs://,
    /// az://.
    #[arg(value_parser = input())]
    pub(crate) input: PathBuf,
    #[command(flatten)]
    pub(crate) against: Against,
    #[command(flatten)]
    pub(crate) coding: Coding,
    #[command(flatten)]
    pub(crate) folder: FolderArgs,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Rebase {
    /// The new base: a safetensors file, a shard, a folder or a URL.
    #[arg(long, value_name = "BASE")]
    pub(crate) onto: PathBuf,
    #[command(flatten)]
    pub(crate) to: Transcode,
}

/// The bases of a shard that is read.
#[derive(Args, Debug)]
pub(crate) struct Bases {
    /// The base of a shard with differences: a safetensors file, a shard, a folder or a URL. Give
    /// also the base of a base, and so on, in any order.
    #[arg(long, value_name = "BASE")]
    pub(crate) base: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Transcode {
    /// A shard.
    #[arg(value_parser = input())]
    pub(crate) input: PathBuf,
    /// The shard to write.
    #[arg(short, long, value_name = "OUT", value_parser = output())]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) bases: Bases,
    #[command(flatten)]
    pub(crate) coding: Coding,
    /// Store an MD5 of every tensor.
    #[arg(long)]
    pub(crate) md5: bool,
    /// Replace an existing output.
    #[arg(long)]
    pub(crate) force: bool,
    /// Refuse a shard that restores to this many times its bytes, or more.
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    pub(crate) max_expansion: u64,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `auto`, and every backend by its name.
fn backend_names() -> clap::builder::PossibleValuesParser {
    let names = Backend::ALL.iter().map(|backend| backend.name());
    std::iter::once("auto").chain(names).collect::<Vec<_>>().into()
}

#[derive(Args, Debug)]
pub(crate) struct Bench {
    /// A safetensors file or a shard.
    #[arg(value_parser = input())]
    pub(crate) input: PathBuf,
    #[command(flatten)]
    pub(crate) coding: Coding,
    /// The kernels to decode with.
    #[arg(long, default_value = "auto", value_parser = backend_names())]
    pub(crate) backend: String,
    /// Measure products with so many columns at once as well.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) batch: usize,
    /// Measure the decoder without the checksums of its blocks.
    #[arg(long)]
    pub(crate) no_checksum: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
