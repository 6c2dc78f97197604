//! The restore walk: read, check, decode, hash, write; all at once, in the order of the data.
//! Verifying is the same without writing.

use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};

use bigsmall_format::{BlockDecoder, Error, ReadAt, Result, Rule, Shard, ShardEntry, decode_range};

use crate::source::open::{self as source, Input};
use crate::stage::atomic::{AtomicFile, Output};
use crate::stage::chunk::{Chunk, Part, chunks};
use crate::stage::digest::{FileDigest, TensorDigests};
use crate::stage::thread::{Buffer, Control, Pool, lock, next, set_len, sizes, spawn};
use crate::{FileReport, Progress, Report, encoding, folder::walk as folder, os};

/// How to restore or verify.
///
/// ```
/// let options = bigsmall_io::RestoreOptions { threads: 1, ..Default::default() };
/// assert!(!options.replace);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Threads that decode; 0: as many as the machine offers. Hashing and writing have threads of
    /// their own.
    pub threads: usize,
    /// Report the MD5 of every tensor's original bytes.
    pub md5: bool,
    /// Replace an existing output.
    pub replace: bool,
}

/// Restores the shard `input` to the safetensors file `output`, or a folder of shards to the model
/// folder it was made from; `input` may be a URL as in [`Model::open`](crate::Model::open). The
/// SHA-256 of every file is compared with that of the original before it gets its name; where a
/// shard keeps MD5s of its tensors they are compared too, at about 0.6 GB/s.
///
/// Memory: at most 256 MiB and the index, whatever the size of tensors or model.
///
/// # Errors
/// Those of [`Shard::open`]; [`Rule::BlockChecksum`] and the rules of the encodings;
/// [`Rule::ContentDigest`]; [`Rule::OutputExists`], [`Rule::SameFile`], [`Rule::Io`],
/// [`Rule::Cancelled`], [`Rule::Memory`].
///
/// ```no_run
/// use bigsmall_io::{Progress, RestoreOptions, restore};
/// restore(
///     "model.bs".as_ref(),
///     "model.safetensors".as_ref(),
///     &RestoreOptions::default(),
///     &Progress::default(),
/// )?;
/// # Ok::<(), bigsmall_io::Error>(())
/// ```
pub fn restore(
    input: &Path,
    output: &Path,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<Report> {
    if os::same_file(input, output) {
        return Err(Error::new(Rule::SameFile).in_file(output));
    }
    let options = &source::patient(input, options);
    let source = match source::open(input)? {
        Input::Folder(from) => {
            return folder::restore_folder(input, &from, output, options, progress);
        }
        Input::File(source) => source,
    };
    let shard = Shard::open(source)?;
    progress.expect(shard.original_len());
    Ok(Report::of(vec![restore_file(&shard, input, output, options, progress)?]))
}

/// Restores the shard that was opened as `input`.
pub(crate) fn restore_file(
    shard: &Shard<impl ReadAt>,
    input: &Path,
    output: &Path,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<FileReport> {
    let target = AtomicFile::create(output, options.replace)?;
    let mut report = restore_shard(shard, Some(&target), options, progress)?;
    target.commit()?;
    report.name = crate::report::file_name(input);
    Ok(report)
}

/// Checks every byte of the shard `input`, or of every shard in a folder: decodes all tensors and
/// compares the SHA-256 of the file they make with that of the original, and their MD5s with those
/// that the shard keeps. Writes nothing.
///
/// Memory: at most 256 MiB and the index.
///
/// # Errors
/// Those of [`restore`] but for the output's.
pub fn verify(input: &Path, options: &RestoreOptions, progress: &Progress) -> Result<Report> {
    let options = &source::patient(input, options);
    let source = match source::open(input)? {
        Input::Folder(from) => return folder::verify_folder(&from, options, progress),
        Input::File(source) => source,
    };
    let shard = Shard::open(source)?;
    progress.expect(shard.original_len());
    let mut report = restore_shard(&shard, None, options, progress)?;
    report.name = crate::report::file_name(input);
    Ok(Report::of(vec![report]))
}

/// The decoder of a tensor, opened by the first thread that needs it. `None` when that failed.
type Decoder = OnceLock<Option<Box<dyn BlockDecoder>>>;

/// One chunk on its way.
struct Job<'p> {
    chunk: Chunk,
    /// For a chunk of a large tensor: the decoder that its chunks share.
    large: Option<Arc<Decoder>>,
    /// Where to decode to; taken by the thread that does.
    room: Mutex<Option<Buffer<'p>>>,
    /// `None` when decoding failed.
    decoded: OnceLock<Option<Buffer<'p>>>,
}

/// Sets a job's result to "failed" when the thread leaves without one, so that nobody waits for
/// ever.
struct Settle<'j, 'p>(&'j Job<'p>);

impl Drop for Settle<'_, '_> {
    fn drop(&mut self) {
        let _ = self.0.decoded.set(None);
    }
}

/// Decodes the whole of `shard`, in order, into `output` where there is one, and compares the
/// SHA-256 and the stored MD5s.
pub(crate) fn restore_shard<R: ReadAt>(
    shard: &Shard<R>,
    output: Option<&dyn Output>,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<FileReport> {
    shard.check_prelude()?;
    let tensors = shard.tensors();
    let json = shard.header_json();
    let prefix = [&(json.len() as u64).to_le_bytes()[..], json].concat();
    let stored_md5 = |index| shard.entry(index).ok().and_then(ShardEntry::md5);
    let any_md5 = options.md5 || (0..tensors.len()).any(|i| stored_md5(i).is_some());
    let control = Control::new(progress);
    let (threads, in_flight) = sizes(options.threads);
    let pool = Pool::new(in_flight);
    let (to_work, work) = channel::<Arc<Job<'_>>>();
    let (to_hash, hash) = channel::<Arc<Job<'_>>>();
    let (to_md5, md5) = channel::<Arc<Job<'_>>>();
    let (to_write, write) = channel::<Arc<Job<'_>>>();
    let work = Mutex::new(work);

    let result = std::thread::scope(|scope| -> Result<_> {
        let (control, pool, work, prefix) = (&control, &pool, &work, &prefix);
        let hasher = spawn(scope, "sha256", move || {
            let mut digest = FileDigest::new();
            digest.update(prefix);
            progress.advance(prefix.len() as u64);
            for job in hash {
                if let Some(bytes) = job.decoded.wait() {
                    digest.update(bytes);
                    progress.advance(bytes.len() as u64);
                }
            }
            digest.finish()
        })?;
        let digester = match any_md5 {
            false => None,
            true => Some(spawn(scope, "md5", move || {
                let (mut digests, mut found) = (TensorDigests::default(), Vec::new());
                for job in md5 {
                    if let Some(bytes) = job.decoded.wait() {
                        found.extend(digests.chunk(tensors, &job.chunk, bytes));
                    }
                }
                found
            })?),
        };
        for _ in 0..threads {
            spawn(scope, "decode", move || {
                let mut scratch = Vec::new();
                while let Some(job) = next(work) {
                    let _settle = Settle(&job);
                    let Some(mut room) = lock(&job.room).take() else { continue };
                    if control.stopped() {
                        continue;
                    }
                    match decode(shard, &job, &mut room, &mut scratch) {
                        Ok(()) => {
                            let _ = job.decoded.set(Some(room));
                        }
                        Err(error) => control.fail(job.chunk.data.start, error),
                    }
                }
            })?;
        }
        spawn(scope, "cut", move || {
            let mut large = None;
            for chunk in chunks(tensors) {
                if control.stopped() {
                    return;
                }
                let room = match pool.take((chunk.data.end - chunk.data.start) as usize) {
                    Ok(room) => room,
                    Err(error) => return control.fail(chunk.data.start, error),
                };
                match &chunk.parts[..] {
                    [part] if !part.is_whole(&tensors[part.tensor]) => {
                        if part.bytes.start == 0 {
                            large = Some(Arc::new(Decoder::new()));
                        }
                    }
                    _ => large = None,
                }
                let job = Arc::new(Job {
                    chunk,
                    large: large.clone(),
                    room: Mutex::new(Some(room)),
                    decoded: OnceLock::new(),
                });
                // Nobody listens any more after a failure, and then nothing is lost.
                let _ = to_work.send(Arc::clone(&job));
                let _ = to_hash.send(Arc::clone(&job));
                if any_md5 {
                    let _ = to_md5.send(Arc::clone(&job));
                }
                if output.is_some() {
                    let _ = to_write.send(job);
                }
            }
        })?;
        if let Some(output) = output {
            let append = |at, bytes: &[u8]| {
                if let Err(error) = output.append(bytes) {
                    control.fail(at, Error::io(error).at(at));
                }
            };
            append(0, prefix);
            for job in write {
                if let Some(bytes) = job.decoded.wait()
                    && !control.stopped()
                {
                    append(prefix.len() as u64 + job.chunk.data.start, bytes);
                }
            }
        }
        let failed = |_| Error::new(Rule::Io).found("a thread failed");
        let sha256 = hasher.join().map_err(failed)?;
        Ok((sha256, digester.map(|d| d.join().map_err(failed)).transpose()?.unwrap_or_default()))
    });
    control.outcome()?;
    let (sha256, mut md5s) = result?;
    // The MD5s first, since they name the tensor.
    for ((index, spec), found) in tensors.iter().enumerate().zip(&md5s) {
        if let Some(stored) = stored_md5(index).filter(|stored| stored != found) {
            return Err(Error::new(Rule::ContentDigest)
                .in_tensor(spec.name())
                .expected(format!("MD5 {}", hex(&stored)))
                .found(hex(found)));
        }
    }
    if sha256 != shard.sha256() {
        return Err(Error::new(Rule::ContentDigest)
            .expected(hex(&shard.sha256()))
            .found(hex(&sha256)));
    }
    if !options.md5 {
        md5s.clear();
    }
    let mut n_shared = 0;
    for index in 0..tensors.len() {
        n_shared += u64::from(shard.entry(index)?.shares().is_some());
    }
    Ok(FileReport {
        name: String::new(),
        original_bytes: shard.original_len(),
        compressed_bytes: shard.source().byte_len(),
        sha256,
        n_tensors: tensors.len() as u64,
        n_shared,
        md5s: tensors.iter().map(|t| t.name().to_owned()).zip(md5s).collect(),
    })
}

/// Lower-case hexadecimal digits, as checksums are written.
///
/// ```
/// assert_eq!(bigsmall_io::hex(&[0xBA, 0x5E]), "ba5e");
/// ```
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn decode<R: ReadAt>(
    shard: &Shard<R>,
    job: &Job<'_>,
    room: &mut [u8],
    scratch: &mut Vec<u8>,
) -> Result<()> {
    for part in &job.chunk.parts {
        let spec = &shard.tensors()[part.tensor];
        let dst = &mut room[part.within.clone()];
        let named = |e: Error| e.in_tensor(spec.name());
        match &job.large {
            None => {
                let decoder = decoder(shard, part.tensor).map_err(named)?;
                decode_part(shard, part, &*decoder, dst, scratch).map_err(named)?;
            }
            Some(shared) => {
                let mut failure = None;
                let found = shared.get_or_init(|| {
                    decoder(shard, part.tensor).map_err(|e| failure = Some(e)).ok()
                });
                let Some(found) = found else {
                    // The thread that tried to open it has the error.
                    return Err(named(failure.unwrap_or_else(|| Error::new(Rule::Cancelled))));
                };
                decode_part(shard, part, &**found, dst, scratch).map_err(named)?;
            }
        }
    }
    Ok(())
}

/// Opens the decoder of tensor `index`.
pub(crate) fn decoder<R: ReadAt>(shard: &Shard<R>, index: usize) -> Result<Box<dyn BlockDecoder>> {
    shard.decoder(index, encoding(shard.encoding(index)?)?)
}

/// Decodes what a chunk holds of one tensor: one read into a buffer that is used again, checksums,
/// blocks.
fn decode_part<R: ReadAt>(
    shard: &Shard<R>,
    part: &Part,
    decoder: &dyn BlockDecoder,
    dst: &mut [u8],
    scratch: &mut Vec<u8>,
) -> Result<()> {
    let spec = &shard.tensors()[part.tensor];
    let table = shard.table(part.tensor)?;
    let blocks = table.blocks_range(part.blocks.clone());
    let payload = shard.payload_range(part.tensor)?.start;
    set_len(scratch, (blocks.end - blocks.start) as usize)?;
    shard.source().read_exact_at(payload + blocks.start, scratch)?;
    let window = Window { at: blocks.start, bytes: scratch };
    decode_range(decoder, spec, table, &window, part.bytes.clone(), dst, 1)
}

/// A piece of a payload that is in memory.
pub(crate) struct Window<'a> {
    /// Where it begins in the payload.
    pub(crate) at: u64,
    pub(crate) bytes: &'a [u8],
}

impl ReadAt for Window<'_> {
    fn byte_len(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let offset =
            offset.checked_sub(self.at).ok_or_else(|| Error::new(Rule::RangeOutOfBounds))?;
        self.bytes.read_exact_at(offset, buf)
    }

    fn bytes_at(&self, range: std::ops::Range<u64>) -> Option<&[u8]> {
        self.bytes.bytes_at(range.start.checked_sub(self.at)?..range.end.checked_sub(self.at)?)
    }
}
