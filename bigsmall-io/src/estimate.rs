//! Estimates the compressed size of a model, and the time to compress it, from samples.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bigsmall_format::internal::{Section, len_of, pool_size, read_at, set_len};
use bigsmall_format::{BlockEncoder, Header, Limits, Raw, ReadAt, TensorSpec};

use crate::base::matches::{Against, Matches, New};
use crate::base::model::BaseModel;
use crate::base::names::NamesOfFiles;
use crate::base::tensor::TensorBase;
use crate::encodings::{by_sample, delta};
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
/// With [`bases`](CompressOptions::bases) the same blocks are also encoded as differences from the
/// base, and the smaller result counts. The estimate is good where changes are spread over a
/// tensor, and less so where they are in some rows alone; a dry run of
/// [`compress`](crate::compress) is exact.
///
/// # Errors
/// Header rules of [`Rule`](crate::Rule); [`ErrorKind::Io`](crate::ErrorKind::Io) and
/// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled); for bases those of
/// [`BaseModel::open`](crate::BaseModel::open).
pub fn estimate(
    input: impl AsRef<Path>,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<Estimate> {
    let input = input.as_ref();
    let files = match open_original(input, progress)? {
        Input::Folder(folder) => {
            let names = folder.weights(SAFETENSORS, options.folder)?;
            let open = |name: PathBuf| {
                let within = name.parent().unwrap_or(Path::new("")).to_owned();
                Ok((folder.open_file(&name).in_file(&name)?, name, within))
            };
            names.into_iter().map(open).collect::<Result<Vec<_>>>()?
        }
        Input::File(source) => vec![(source, PathBuf::from(shown(input)), PathBuf::new())],
    };
    let mut names = NamesOfFiles::new(&options.base_names);
    let mut opened = Vec::new();
    for (file, path, within) in files {
        progress.check()?;
        let (json, header) = Header::read(&file, &Limits::default()).in_file(&path)?;
        progress.expect(len_of(&file)?);
        names.add(&path, &header);
        opened.push((file, path, within, json.len() as u64, header));
    }
    let base = BaseModel::open_all(&options.bases, options.folder, &progress.stop())?;
    names.check(&base)?;
    let mut total = Estimate::default();
    let mut work = Work::default();
    for (file, path, within, json_len, header) in &opened {
        let data_at = 8 + json_len;
        total.original_bytes += data_at + header.data_len();
        progress.advance(data_at);
        // Prelude, fixed part of the index, stored header, trailer.
        total.compressed_bytes += 16 + 48 + json_len + 48;
        let matches = match options.bases.is_empty() {
            true => Matches::default(),
            false => {
                let against = Against { base: &base, names: names.of(path), folder: within };
                let new = New { source: file, header, data_at };
                Matches::find(against, &new, progress).in_file(path)?
            }
        };
        work.hash_bases(&matches);
        for (index, spec) in header.tensors().iter().enumerate() {
            progress.check()?;
            let range = header.data_range(index);
            let source = Section::new(file, data_at + range.start..data_at + range.end)?;
            let of_base = matches.open(index, spec)?;
            let waits = !file.is_local() || of_base.as_ref().is_some_and(TensorBase::waits);
            let of_base = of_base.as_ref().map(|base| base as &dyn ReadAt);
            total.compressed_bytes += 32 + 12 * spec.n_blocks();
            let guess = match waits {
                false => work.tensor(spec, &source, of_base, options),
                true => work.remote_tensor(spec, &source, of_base, options),
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
    /// The files of bases that are hashed, with their lengths.
    bases: BTreeMap<String, u64>,
}

/// Blocks of a tensor in one encoding.
struct Coded {
    encoder: Box<dyn BlockEncoder>,
    bytes: Vec<u8>,
    lens: Vec<u32>,
    seconds: f64,
}

impl Coded {
    fn new(encoder: Box<dyn BlockEncoder>) -> Self {
        Coded { encoder, bytes: Vec::new(), lens: Vec::new(), seconds: 0.0 }
    }

    /// Encodes some blocks from block `first` on, as differences from those of the base if any.
    fn add(&mut self, first: u64, units: &[u8], base: Option<(&dyn ReadAt, u64)>) -> Result<()> {
        let mut of_base = Vec::new();
        if let Some((base, at)) = base {
            set_len(&mut of_base, units.len())?;
            read_at(base, at, &mut of_base)?;
        }
        let begin = Instant::now();
        let Coded { encoder, bytes, lens, .. } = self;
        match base {
            None => encoder.encode_blocks(first, units, bytes, lens)?,
            Some(_) => encoder.encode_blocks_with_base(first, units, &of_base, bytes, lens)?,
        }
        self.seconds += begin.elapsed().as_secs_f64();
        Ok(())
    }

    /// The estimated bytes of a tensor of `whole` bytes, of which `sampled` were encoded.
    fn guess(&self, whole: u64, sampled: u64) -> u64 {
        let blocks = (self.bytes.len() as f64 * whole as f64 / sampled as f64) as u64;
        blocks + self.encoder.head().len() as u64
    }
}

impl Work {
    /// Notes the files of a base whose SHA-256 is to be computed.
    fn hash_bases(&mut self, matches: &Matches) {
        let unknown = matches.needed().into_values().filter(|file| file.known_sha256().is_none());
        self.bases.extend(unknown.map(|file| (file.shown.clone(), file.original_len())));
    }

    /// [`tensor`](Self::tensor) for one on another machine, or with a base there: from a few blocks
    /// in its middle, by one request.
    fn remote_tensor(
        &mut self,
        spec: &TensorSpec,
        source: &dyn ReadAt,
        base: Option<&dyn ReadAt>,
        options: &CompressOptions,
    ) -> Result<u64> {
        let block = spec.block_bytes() as u64;
        let len = spec.byte_len().min(REMOTE_BLOCKS * block);
        let read = |source: &dyn ReadAt| -> Result<Vec<u8>> {
            let mut piece = Vec::new();
            set_len(&mut piece, len as usize)?;
            read_at(source, (spec.byte_len() - len) / 2 / block * block, &mut piece)?;
            Ok(piece)
        };
        let (piece, of_base) = (read(source)?, base.map(read).transpose()?);
        let n = len * 8 / u64::from(spec.dtype().bits());
        let part = TensorSpec::new(spec.name(), spec.dtype(), &[n])?;
        let of_base = of_base.as_ref().map(|base| base as &dyn ReadAt);
        let guess = self.tensor(&part, &piece, of_base, options)?;
        Ok((guess as f64 * spec.byte_len() as f64 / len.max(1) as f64) as u64)
    }

    /// The estimated encoded size of a tensor.
    fn tensor(
        &mut self,
        spec: &TensorSpec,
        source: &dyn ReadAt,
        base: Option<&dyn ReadAt>,
        options: &CompressOptions,
    ) -> Result<u64> {
        let encoding = by_sample(options.encoding);
        if spec.byte_len() == 0 || base.is_none() && !encoding.supports(spec.dtype()) {
            return Ok(spec.byte_len());
        }
        let begin = Instant::now();
        let encoding = if encoding.supports(spec.dtype()) { encoding } else { &Raw };
        let mut alone = Coded::new(encoding.plan(spec, source)?);
        let mut against = match base {
            Some(base) => Some((Coded::new(delta().plan_with_base(spec, source, base)?), base)),
            None => None,
        };
        self.plan += begin.elapsed().as_secs_f64();
        let block = spec.block_bytes() as u64;
        let samples = SAMPLES.min(spec.n_blocks());
        let (mut units, mut sampled) = (Vec::new(), 0);
        for i in 0..samples {
            let first = i * spec.n_blocks() / samples;
            let at = first * block;
            let len = block.min(spec.byte_len() - at);
            set_len(&mut units, len as usize)?;
            read_at(source, at, &mut units)?;
            alone.add(first, &units, None)?;
            if let Some((against, base)) = &mut against {
                against.add(first, &units, Some((*base, at)))?;
            }
            let begin = Instant::now();
            let mut digest = FileDigest::new();
            digest.update(&units);
            std::hint::black_box(digest.finish());
            self.hash += begin.elapsed().as_secs_f64();
            sampled += len;
        }
        self.bytes += sampled;
        let whole = spec.byte_len();
        let mut guess = alone.guess(whole, sampled).min(whole);
        self.encode += alone.seconds;
        if let Some((against, _)) = against {
            // A checksum for each block of the base.
            guess = guess.min(against.guess(whole, sampled) + 8 * spec.n_blocks());
            // A tensor is encoded in both ways.
            self.encode += against.seconds;
        }
        Ok(guess)
    }

    /// One thread hashes the file, another one the base; the others share the rest of the work.
    /// Checking and writing add about a third.
    fn seconds(&self, original: u64) -> f64 {
        if self.bytes == 0 {
            return 0.0;
        }
        // Those of the machine, of which the caller's pool may have fewer or more.
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let threads = pool_size() as f64;
        let scale = original as f64 / self.bytes as f64;
        let base = self.bases.values().sum::<u64>() as f64 / self.bytes as f64 * self.hash;
        let (hash, encode) = (self.hash * scale, self.encode * scale * 1.33 + self.plan);
        let one = hash.max(base).max(encode / threads);
        one.max((hash + base + encode) / (threads.min(cores)))
    }
}
