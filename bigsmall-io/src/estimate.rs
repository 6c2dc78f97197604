//! Estimates the compressed size of a model, and the time to compress it, from samples.

use std::path::{Path, PathBuf};
use std::time::Instant;

use bigsmall_format::internal::{Section, len_of, pool_size, read_at, set_len};
use bigsmall_format::{BLOCK_UNITS, Header, Limits, ReadAt, TensorSpec};

use crate::encodings::by_sample;
use crate::error::{Context as _, Result};
use crate::names::SAFETENSORS;
use crate::source::folder::Input;
use crate::source::open::open_original;
use crate::source::url::shown;
use crate::stage::digest::FileDigest;
use crate::{CompressOptions, Progress};

/// The result of [`estimate`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Estimate {
    /// Bytes of the safetensors files.
    pub original_bytes: u64,
    /// Estimated bytes of the shards.
    pub compressed_bytes: u64,
    /// Estimated seconds of [`compress`](crate::compress) on this machine.
    pub seconds: f64,
}

impl Estimate {
    /// Compressed size / original size.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        crate::report::ratio(self.original_bytes, self.compressed_bytes)
    }
}

/// How many blocks of a tensor are encoded.
const SAMPLES: u64 = 12;

/// How many blocks of a tensor on another machine are fetched.
const REMOTE_BLOCKS: u64 = 4;

/// Estimates the compressed size of the safetensors file or folder `input` by encoding a few blocks
/// of every tensor. Does not look for identical tensors. `input` may be a URL as in
/// [`Model::open`](crate::Model::open), of which only those blocks are fetched.
///
/// # Errors
/// Header rules of [`Rule`](crate::Rule); [`ErrorKind::Io`](crate::ErrorKind::Io) and
/// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
pub fn estimate(
    input: impl AsRef<Path>,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<Estimate> {
    let input = input.as_ref();
    let files = match open_original(input, progress)? {
        Input::Folder(folder) => {
            let names = folder.weights(SAFETENSORS, options.folder)?;
            let open = |name: PathBuf| Ok((folder.open_file(&name).in_file(&name)?, name));
            names.into_iter().map(open).collect::<Result<Vec<_>>>()?
        }
        Input::File(source) => vec![(source, PathBuf::from(shown(input)))],
    };
    let mut opened = Vec::new();
    for (file, path) in files {
        progress.check()?;
        let read = Header::read(&file, &Limits::default()).in_file(&path)?;
        progress.expect(len_of(&file)?);
        opened.push((file, read));
    }
    let mut total = Estimate::default();
    let mut work = Work::default();
    for (file, (json, header)) in &opened {
        let data_at = 8 + json.len() as u64;
        total.original_bytes += data_at + header.data_len();
        progress.advance(data_at);
        // Prelude, fixed part of the index, stored header, trailer.
        total.compressed_bytes += 16 + 48 + json.len() as u64 + 48;
        for (index, spec) in header.tensors().iter().enumerate() {
            progress.check()?;
            let range = header.data_range(index);
            let source = Section::new(file, data_at + range.start..data_at + range.end)?;
            total.compressed_bytes += 32 + 12 * spec.n_blocks();
            let guess = match file.is_local() {
                true => work.tensor(spec, &source, options),
                false => work.remote_tensor(spec, &source, options),
            };
            total.compressed_bytes += guess.in_tensor(spec.name())?;
            progress.advance(spec.byte_len());
        }
    }
    total.seconds = work.seconds(total.original_bytes);
    Ok(total)
}

/// The cost of the samples.
#[derive(Default)]
struct Work {
    bytes: u64,
    plan: f64,
    encode: f64,
    hash: f64,
}

impl Work {
    /// The same for a tensor on another machine: from a few blocks in its middle, by one request.
    fn remote_tensor(
        &mut self,
        spec: &TensorSpec,
        source: &dyn ReadAt,
        options: &CompressOptions,
    ) -> Result<u64> {
        let block = (BLOCK_UNITS * spec.dtype().unit_bytes()) as u64;
        let len = spec.byte_len().min(REMOTE_BLOCKS * block);
        let mut piece = Vec::new();
        set_len(&mut piece, len as usize)?;
        read_at(source, (spec.byte_len() - len) / 2 / block * block, &mut piece)?;
        let n = len * 8 / u64::from(spec.dtype().bits());
        let part = TensorSpec::new(spec.name(), spec.dtype(), &[n])?;
        let guess = self.tensor(&part, &piece, options)?;
        Ok((guess as f64 * spec.byte_len() as f64 / len.max(1) as f64) as u64)
    }

    /// The estimated encoded size of a tensor.
    fn tensor(
        &mut self,
        spec: &TensorSpec,
        source: &dyn ReadAt,
        options: &CompressOptions,
    ) -> Result<u64> {
        let encoding = by_sample(options.encoding);
        if spec.byte_len() == 0 || !encoding.supports(spec.dtype()) {
            return Ok(spec.byte_len());
        }
        let begin = Instant::now();
        let encoder = encoding.plan(spec, source)?;
        self.plan += begin.elapsed().as_secs_f64();
        let block = (BLOCK_UNITS * spec.dtype().unit_bytes()) as u64;
        let samples = SAMPLES.min(spec.n_blocks());
        let (mut units, mut out, mut lens) = (Vec::new(), Vec::new(), Vec::new());
        let mut sampled = 0;
        for i in 0..samples {
            let first = i * spec.n_blocks() / samples;
            let at = first * block;
            let len = block.min(spec.byte_len() - at);
            set_len(&mut units, len as usize)?;
            read_at(source, at, &mut units)?;
            let begin = Instant::now();
            encoder.encode_blocks(first, &units, &mut out, &mut lens)?;
            let middle = Instant::now();
            let mut digest = FileDigest::new();
            digest.update(&units);
            std::hint::black_box(digest.finish());
            self.encode += (middle - begin).as_secs_f64();
            self.hash += middle.elapsed().as_secs_f64();
            sampled += len;
        }
        self.bytes += sampled;
        let guess = (out.len() as f64 * spec.byte_len() as f64 / sampled as f64) as u64;
        Ok((guess + encoder.head().len() as u64).min(spec.byte_len()))
    }

    /// One thread hashes; the others share the rest of the work. Checking and writing add about a
    /// third.
    fn seconds(&self, original: u64) -> f64 {
        if self.bytes == 0 {
            return 0.0;
        }
        // Those of the machine, of which the caller's pool may have fewer or more.
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let threads = pool_size() as f64;
        let scale = original as f64 / self.bytes as f64;
        let (hash, encode) = (self.hash * scale, self.encode * scale * 1.33 + self.plan);
        hash.max(encode / threads).max((hash + encode) / (threads.min(cores)))
    }
}
