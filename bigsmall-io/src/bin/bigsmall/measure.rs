//! Size and speed on the tensors of a file, in memory, in comparison with `memcpy`.

use std::fs::File;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use bigsmall_format::internal::{
    blocks_within, decode_here, encode_or_raw, for_each_in_parallel, pool_size, read_at, zeroed,
};
use bigsmall_format::{
    Backend, Dtype, EncodedTensor, Header, Limits, Raw, Rule, TensorEncoding, TensorSpec,
};
use bigsmall_io::{
    CompressOptions, Encoding, Error, ErrorKind, Model, Progress, Report, Result, compress,
    transcode,
};

use crate::passes::{Copy, PASSES, rate, stop};
use crate::products::{Products, products};

/// How to measure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MeasureOptions {
    /// The encoding.
    pub(crate) encoding: Encoding,
    /// The kernels' name; empty or `auto` for the fastest of this machine.
    pub(crate) backend: String,
    /// Decode without verifying the checksums of the blocks, to measure only the decoder.
    pub(crate) no_checksum: bool,
    /// The columns of products of several at once; 0 for none.
    pub(crate) batch: usize,
}

/// The result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measurement {
    /// Of the whole file.
    pub(crate) all: Rates,
    /// Of the tensors of each dtype, in the order of the file.
    pub(crate) dtypes: Vec<(Dtype, Rates)>,
    /// The kernels that decoded.
    pub(crate) backend: &'static str,
    /// Threads of the pool it ran in.
    pub(crate) threads: usize,
}

/// Rates are in 10^9 bytes of original data per second.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rates {
    /// Bytes of the safetensors file, or of the tensors that were measured.
    pub(crate) original_bytes: u64,
    /// Bytes of its shard, or of the encoded tensors.
    pub(crate) compressed_bytes: u64,
    /// Rate of encoding, all passes, from memory to memory.
    pub(crate) encode_gbps: f64,
    /// Rate of decoding, from memory to memory.
    pub(crate) decode_gbps: f64,
    /// Rate of copying as many bytes with as many threads, in turn with decoding. All pages of the
    /// buffers are mapped before.
    pub(crate) memcpy_gbps: f64,
    /// Products with the matrices, if there are some in a dtype that is multiplied.
    pub(crate) products: Option<Products>,
}

/// The least original bytes of one pass: more than any cache.
const PASS: u64 = 512 << 20;
/// The same for the tensors of one dtype of several.
const PASS_OF_DTYPE: u64 = 128 << 20;
/// The most copies of each tensor: a few bytes are not worth millions.
const MOST_COPIES: u64 = 1024;
/// The most original bytes to use of the file.
const TAKEN: u64 = 1 << 30;
/// Bytes that a thread decodes or copies in one call, at most.
const PIECE: u64 = 16 << 20;
/// Bytes that are encoded in one call, at most, as in `compress`.
const CHUNK: u64 = 1 << 20;

/// Measures size and speed on the tensors of `input`, a safetensors file or a shard, all together
/// and those of each dtype. The tensors are repeated in distinct buffers, up to at least 512 MiB,
/// or 128 MiB for one dtype of several, but at most 1024 times. Of a larger file the first GiB
/// counts for the rates, and the whole file for the size. Rates are medians of nine passes.
/// Decoding and copying take turns, and so do the kinds of products.
///
/// Memory: five times the bytes that one pass decodes.
///
/// # Errors
/// [`Rule::BackendMissing`]; [`ErrorKind::Argument`] for a file without values; those of reading
/// `input`.
pub(crate) fn measure(
    input: &Path,
    options: &MeasureOptions,
    progress: &Progress,
) -> Result<Measurement> {
    let (coder, backend) = coder(options)?;
    let size = size(input, options.encoding, progress)?;
    let tensors = tensors(input, progress)?;
    let rates = |tensors: &[&(TensorSpec, Vec<u8>)], pass| {
        measure_tensors(tensors, pass, &*coder, backend, options, progress)
    };
    let all: Vec<_> = tensors.iter().collect();
    let of_all = Rates {
        original_bytes: size.original_bytes,
        compressed_bytes: size.compressed_bytes,
        ..rates(&all, PASS)?
    };
    let mut names: Vec<Dtype> = Vec::new();
    for (spec, _) in &tensors {
        if !names.contains(&spec.dtype()) {
            names.push(spec.dtype());
        }
    }
    let mut dtypes = Vec::new();
    for &dtype in &names {
        let of_dtype: Vec<_> = all.iter().copied().filter(|(s, _)| s.dtype() == dtype).collect();
        // What was measured already is not measured again.
        let rates =
            if names.len() == 1 { of_all.clone() } else { rates(&of_dtype, PASS_OF_DTYPE)? };
        dtypes.push((dtype, rates));
    }
    Ok(Measurement { all: of_all, dtypes, backend, threads: pool_size() })
}

/// Bytes before and after compressing all of the file.
fn size(input: &Path, encoding: Encoding, progress: &Progress) -> Result<Report> {
    let options = CompressOptions::new().encoding(encoding).dry_run(true);
    match transcode(input, "", &options, progress) {
        Err(e) if e.rule() == Some(Rule::SafetensorsFile) => {
            compress(input, "", &options, progress)
        }
        done => done,
    }
}

/// The first tensors of the file that have values, about [`TAKEN`] bytes of them.
fn tensors(input: &Path, progress: &Progress) -> Result<Vec<(TensorSpec, Vec<u8>)>> {
    let (mut found, mut taken) = (Vec::new(), 0);
    let mut take = |spec: &TensorSpec, read: &dyn Fn(&mut [u8]) -> Result<()>| {
        stop(progress)?;
        let fits = taken == 0 || taken + spec.byte_len() <= TAKEN;
        if fits && spec.byte_len() > 0 {
            let mut bytes = zeroed(spec.byte_len())?;
            read(&mut bytes)?;
            taken += spec.byte_len();
            found.push((spec.clone(), bytes));
        }
        Ok::<bool, Error>(fits)
    };
    match Model::open_with(input, progress) {
        Ok(model) => {
            for spec in model.tensors() {
                if !take(spec, &|bytes| model.tensor_into(spec.name(), bytes))? {
                    break;
                }
            }
        }
        Err(e) if e.rule() == Some(Rule::SafetensorsFile) => {
            let file = File::open(input).map_err(|e| Error::from(e).in_file(input))?;
            let (json, header) = Header::read(&file, &Limits::default())?;
            for (index, spec) in header.tensors().iter().enumerate() {
                let at = 8 + json.len() as u64 + header.data_range(index).start;
                if !take(spec, &|bytes| Ok(read_at(&file, at, bytes)?))? {
                    break;
                }
            }
        }
        Err(e) => return Err(e),
    }
    if found.is_empty() {
        return Err(Error::new(ErrorKind::Argument).expected("a file with values to measure"));
    }
    Ok(found)
}

/// The encoding with the requested kernels.
fn coder(options: &MeasureOptions) -> Result<(Box<dyn TensorEncoding>, &'static str)> {
    let wanted = if options.backend.is_empty() { "auto" } else { &options.backend };
    let backend = Backend::from_name(wanted)?;
    let tbe = |width| -> Result<(Box<dyn TensorEncoding>, _)> {
        let tbe = bigsmall_tbe::Tbe::new(width).with_backend(backend)?;
        Ok((Box::new(tbe), backend.name()))
    };
    Ok(match options.encoding {
        Encoding::Ans(level) => {
            let ans = bigsmall_codec::Ans::new(level).with_backend(backend)?;
            (Box::new(ans), backend.name())
        }
        Encoding::Tbe3 => tbe(bigsmall_tbe::Width::Three)?,
        Encoding::Tbe4 => tbe(bigsmall_tbe::Width::Four)?,
        _ => (Box::new(Raw), "raw"),
    })
}

fn measure_tensors(
    tensors: &[&(TensorSpec, Vec<u8>)],
    pass: u64,
    coder: &dyn TensorEncoding,
    backend: &'static str,
    options: &MeasureOptions,
    progress: &Progress,
) -> Result<Rates> {
    let taken: u64 = tensors.iter().map(|(spec, _)| spec.byte_len()).sum();
    let coder_of = |spec: &TensorSpec| match coder.supports(spec.dtype()) {
        true => coder,
        false => &Raw,
    };
    let mut encode = Vec::new();
    let spare = Mutex::default();
    for _ in 0..PASSES {
        let begin = Instant::now();
        for (spec, bytes) in tensors {
            stop(progress)?;
            encode_by_chunks(coder_of(spec), spec, bytes, &spare)?;
        }
        encode.push(begin.elapsed().as_secs_f64());
    }
    let mut encoded = Vec::new();
    for (spec, bytes) in tensors {
        stop(progress)?;
        encoded.push(encode_or_raw(coder, spec, bytes)?);
    }

    // Distinct buffers for every repetition, with all pages mapped.
    let times = pass.div_ceil(taken).min(MOST_COPIES);
    let mut copies = Vec::new();
    let mut places = Vec::new();
    let mut originals = Vec::new();
    for _ in 0..times {
        originals.push(tensors.iter().map(|(_, bytes)| bytes.clone()).collect::<Vec<_>>());
    }
    for original in originals.iter().flatten().zip(encoded.iter().cycle()) {
        let (original, encoded) = (original.0, original.1.clone());
        let decoder = match encoded.encoding() == coder.id() {
            true => encoded.open(coder)?,
            false => encoded.open(&Raw)?,
        };
        places.push(vec![0xA5; original.len()]);
        copies.push(Copy { original, encoded, decoder });
    }

    let (mut decode, mut memcpy) = (Vec::new(), Vec::new());
    for pass in 0..=PASSES {
        stop(progress)?;
        let begin = Instant::now();
        run(&copies, &mut places, |copy, at, dst| {
            decode_piece(copy, at, dst, options.no_checksum)
        })?;
        let middle = Instant::now();
        if pass == 0 {
            // The first pass warms up and checks the result.
            let same = copies.iter().zip(&places).all(|(c, p)| c.original == p);
            if !same {
                return Err(Error::new(ErrorKind::ReadBack));
            }
            continue;
        }
        run(&copies, &mut places, |copy, at, dst| {
            dst.copy_from_slice(&copy.original[at..at + dst.len()]);
            Ok(())
        })?;
        decode.push((middle - begin).as_secs_f64());
        memcpy.push(middle.elapsed().as_secs_f64());
    }
    drop(places);
    // Raw values have no kernels, so their name is not a backend.
    let backend = Backend::from_name(backend).unwrap_or_else(|_| Backend::best());
    let encoded = encoded.iter().map(EncodedTensor::byte_len).sum();
    Ok(Rates {
        original_bytes: taken,
        compressed_bytes: encoded,
        encode_gbps: rate(taken, &mut encode),
        decode_gbps: rate(taken * times, &mut decode),
        memcpy_gbps: rate(taken * times, &mut memcpy),
        products: products(&copies, coder, backend, options.batch, progress)?,
    })
}

/// Calls `work` for every piece of at most [`PIECE`] bytes of every place.
fn run(
    copies: &[Copy<'_>],
    places: &mut [Vec<u8>],
    work: impl Fn(&Copy<'_>, usize, &mut [u8]) -> Result<()> + Sync,
) -> Result<()> {
    let mut pieces = Vec::new();
    for (copy, place) in copies.iter().zip(places) {
        let spec = copy.encoded.spec();
        let len = blocks_within(spec, PIECE) as usize * spec.block_bytes();
        for (i, piece) in place.chunks_mut(len).enumerate() {
            pieces.push((copy, i * len, piece));
        }
    }
    for_each_in_parallel(pieces.into_iter(), || (), |(), (copy, at, piece)| work(copy, at, piece))
}

/// Encodes one tensor, including planning, into memory that is reused for every chunk of every
/// tensor, as in `compress`.
fn encode_by_chunks(
    coder: &dyn TensorEncoding,
    spec: &TensorSpec,
    bytes: &[u8],
    spare: &Mutex<Vec<Vec<u8>>>,
) -> Result<()> {
    let encoder = coder.plan(spec, &bytes)?;
    let lock = "no thread panics while it holds this lock";
    let blocks = blocks_within(spec, CHUNK) as usize;
    let chunks = (0..).step_by(blocks).zip(bytes.chunks(blocks * spec.block_bytes()));
    let chunks: Vec<_> = chunks.collect();
    for_each_in_parallel(chunks.into_iter(), Vec::new, |lens, (first, units)| {
        let mut out = spare.lock().expect(lock).pop().unwrap_or_default();
        out.clear();
        lens.clear();
        let done = encoder.encode_blocks(first, units, &mut out, lens);
        std::hint::black_box(&out);
        spare.lock().expect(lock).push(out);
        Ok(done?)
    })
}

fn decode_piece(copy: &Copy<'_>, at: usize, dst: &mut [u8], no_checksum: bool) -> Result<()> {
    let Copy { encoded, decoder, .. } = copy;
    let (spec, table) = (encoded.spec(), encoded.table());
    if !no_checksum {
        let range = at as u64..(at + dst.len()) as u64;
        return Ok(decode_here(&**decoder, spec, table, &encoded.payload(), None, range, dst)?);
    }
    let block = spec.block_bytes();
    let blocks: Vec<&[u8]> = (at / block..(at + dst.len()).div_ceil(block))
        .map(|index| encoded.block(index as u64))
        .collect();
    Ok(decoder.decode_blocks(&blocks, dst)?)
}

impl Rates {
    /// Compressed size / original size.
    pub(crate) fn ratio(&self) -> f64 {
        self.compressed_bytes as f64 / self.original_bytes.max(1) as f64
    }

    /// The rate of decoding / the rate of copying.
    pub(crate) fn decode_vs_memcpy(&self) -> f64 {
        self.decode_gbps / self.memcpy_gbps
    }
}
