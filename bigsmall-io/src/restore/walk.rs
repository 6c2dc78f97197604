//! The restore walk: read, check, decode, hash, write; all at once, in the order of the data.
//! Verifying is the same without writing.

use std::path::Path;
use std::sync::Arc;

use bigsmall_format::internal::len_of;
use bigsmall_format::{ReadAt, Rule, Shard, ShardEntry};
use crossbeam_channel::{Receiver, unbounded};

use crate::base::tensor::Bases;
use crate::error::{Error, Result};
use crate::restore::decode::{Job, Kept, Shared, decode};
use crate::source::file::{REMOTE_THREADS, Source};
use crate::stage::atomic::AtomicFile;
use crate::stage::chunk::chunks;
use crate::stage::control::Control;
use crate::stage::digest::{FileDigest, TensorDigests};
use crate::stage::output::Output;
use crate::stage::pool::{Buffer, Pool};
use crate::stage::promise::{Answer, promise};
use crate::stage::thread::{in_flight, in_pool, received, send, sizes, spawn};
use crate::{FileReport, Progress, RestoreOptions, hex};

/// Restores the shard that was opened as `input`.
pub(crate) fn restore_file(
    shard: &Shard<Source>,
    bases: &Bases,
    remote: bool,
    input: &Path,
    output: &Path,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<FileReport> {
    let target = AtomicFile::create_with_mode(output, options.replace, shard.source().mode())?;
    let mut report = restore_shard(shard, bases, remote, Some(&target), options, progress)?;
    target.commit()?;
    report.name = crate::report::file_name(input);
    Ok(report)
}

/// A chunk, the buffer for its decoded bytes, and the promise of them.
type Work<'p> = (Arc<Job<'p>>, Buffer<'p>, Answer<Buffer<'p>>);

/// Decodes the whole of `shard`, in order, into `output` if any, and compares the
/// SHA-256 and the stored MD5s.
///
/// If reading is `remote`, it waits long without using the processor: separate threads read and
/// decode the chunks. Then many requests run at once, and the caller's pool does not wait.
pub(crate) fn restore_shard<R: ReadAt>(
    shard: &Shard<R>,
    bases: &Bases,
    remote: bool,
    output: Option<&dyn Output>,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<FileReport> {
    shard.check_encodings()?;
    shard.check_prelude()?;
    let tensors = shard.tensors();
    let json = shard.header_json();
    let prefix = [&(json.len() as u64).to_le_bytes()[..], json];
    let data_at = 8 + json.len() as u64;
    let stored_md5 = |index| shard.entry(index).ok().and_then(ShardEntry::md5);
    let any_md5 = options.md5 || (0..tensors.len()).any(|i| stored_md5(i).is_some());
    let control = Control::new(progress);
    let remote = remote || bases.wait();
    let (threads, chunks_in_flight) = match remote {
        false => sizes(),
        true => {
            let threads = sizes().0.max(REMOTE_THREADS);
            (threads, in_flight(threads))
        }
    };
    let pool = Pool::new(chunks_in_flight);
    let (to_work, work) = unbounded::<Work<'_>>();
    let (to_hash, hash) = unbounded::<Arc<Job<'_>>>();
    let (to_md5, md5) = unbounded::<Arc<Job<'_>>>();
    let (to_write, write) = unbounded::<Arc<Job<'_>>>();

    let result = std::thread::scope(|scope| -> Result<_> {
        let (control, pool) = (&control, &pool);
        let work = work;
        let (answer, sha256) = promise();
        spawn(scope, control, "sha256", move || {
            let mut digest = FileDigest::new();
            prefix.iter().for_each(|bytes| digest.update(bytes));
            progress.advance(data_at);
            for job in received(control, "sha256", &hash) {
                if let Ok(bytes) = control.owed(&job.decoded) {
                    digest.update(bytes);
                    progress.advance(bytes.len() as u64);
                }
            }
            answer.keep(digest.finish());
        })?;
        let (answer, md5s) = promise();
        if any_md5 {
            spawn(scope, control, "md5", move || {
                let (mut digests, mut found) = (TensorDigests::default(), Vec::new());
                for job in received(control, "md5", &md5) {
                    if let Ok(bytes) = control.owed(&job.decoded) {
                        found.extend(digests.chunk(tensors, &job.chunk, bytes));
                    }
                }
                answer.keep(found);
            })?;
        } else {
            answer.keep(Vec::new());
        }
        let decode_all = move |work: &Receiver<Work<'_>>| {
            let mut kept = Kept::default();
            for (job, mut room, answer) in received(control, "decode", work) {
                if control.stopped() {
                    continue;
                }
                match decode(shard, bases, &job, &mut room, &mut kept) {
                    Ok(()) => answer.keep(room),
                    Err(error) => control.fail(job.chunk.data.start, error),
                }
            }
        };
        if remote {
            for _ in 0..threads {
                let work = work.clone();
                spawn(scope, control, "decode", move || decode_all(&work))?;
            }
        }
        let mut all_written = None;
        if let Some(output) = output {
            let (answer, promised) = promise();
            all_written = Some(promised);
            spawn(scope, control, "write", move || {
                let append = |at, bytes: &[u8]| {
                    if let Err(error) = output.append(bytes) {
                        control.fail(at, Error::from(error).at(at));
                    }
                };
                append(0, prefix[0]);
                append(8, prefix[1]);
                for job in received(control, "write", &write) {
                    if let Ok(bytes) = control.owed(&job.decoded)
                        && !control.stopped()
                    {
                        append(data_at + job.chunk.data.start, bytes);
                    }
                }
                answer.keep(());
            })?;
        }
        // Started last: it waits for buffers, which come back when chunks are decoded.
        let (answer, all_cut) = promise();
        spawn(scope, control, "cut", move || {
            let mut large = None;
            for chunk in chunks(tensors) {
                control.before_message("cut");
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
                            large = Some(Arc::new(Shared::new()));
                        }
                    }
                    _ => large = None,
                }
                let (answer, decoded) = promise();
                let job = Arc::new(Job { chunk, large: large.clone(), decoded });
                send(control, &to_work, (Arc::clone(&job), room, answer));
                send(control, &to_hash, Arc::clone(&job));
                if any_md5 {
                    send(control, &to_md5, Arc::clone(&job));
                }
                if output.is_some() {
                    send(control, &to_write, job);
                }
            }
            answer.keep(());
        })?;
        if !remote {
            in_pool(control, threads, || decode_all(&work));
        }
        // If decoding ended early, this closes the channel for the other stages.
        drop(work);
        if let Some(written) = &all_written {
            control.owed(written)?;
        }
        control.owed(&all_cut)?;
        Ok((*control.owed(&sha256)?, control.owed(&md5s)?.clone()))
    });
    control.outcome()?;
    let (sha256, mut md5s) = result?;
    // The MD5s first, because their errors name the tensor.
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
    let md5s = tensors.iter().map(|t| t.name().to_owned()).zip(md5s).collect();
    Ok(FileReport { md5s, ..counted(shard)? })
}

/// What is known of a shard and its original without decoding it.
pub(crate) fn counted<R: ReadAt>(shard: &Shard<R>) -> Result<FileReport> {
    let tensors = shard.tensors();
    let (mut n_shared, mut n_deltas, mut n_inherited) = (0, 0, 0);
    for index in 0..tensors.len() {
        let entry = shard.entry(index)?;
        let shares = entry.shares().is_some();
        n_shared += u64::from(shares);
        n_inherited += u64::from(entry.is_inherited());
        let with_base = shard.base_of(index)?.is_some();
        n_deltas += u64::from(with_base && !shares && !entry.is_inherited());
    }
    Ok(FileReport {
        name: String::new(),
        original_bytes: shard.original_len(),
        compressed_bytes: len_of(shard.source())?,
        sha256: shard.sha256(),
        n_tensors: tensors.len() as u64,
        n_shared,
        n_deltas,
        n_inherited,
        bases: shard.bases().to_vec(),
        md5s: Vec::new(),
    })
}
