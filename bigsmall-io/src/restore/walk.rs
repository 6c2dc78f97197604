//! The restore walk: read, check, decode, hash, write; all at once, in the order of the data.
//! Verifying is the same without writing.

use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};

use bigsmall_format::internal::len_of;
use bigsmall_format::{Error, ReadAt, Result, Rule, Shard, ShardEntry};

use crate::restore::decode::{Decoder, Job, Settle, decode};
use crate::stage::atomic::AtomicFile;
use crate::stage::chunk::chunks;
use crate::stage::control::Control;
use crate::stage::digest::{FileDigest, TensorDigests};
use crate::stage::output::Output;
use crate::stage::pool::Pool;
use crate::stage::thread::{lock, next, sizes, spawn};
use crate::{FileReport, Progress, RestoreOptions, hex};

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
        compressed_bytes: len_of(shard.source())?,
        sha256,
        n_tensors: tensors.len() as u64,
        n_shared,
        md5s: tensors.iter().map(|t| t.name().to_owned()).zip(md5s).collect(),
    })
}
