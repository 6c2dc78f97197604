//! The compress walk: read, encode, write, read back and compare, hash; all at once, in the order
//! of the data.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bigsmall_format::internal::{Assembler, read_at};
use bigsmall_format::{Header, Limits, ReadAt};
use crossbeam_channel::{Receiver, unbounded};

use crate::base::matches::{Against, Matches, New};
use crate::base::tensor::BaseFile;
use crate::compress::check::{Scratch, check};
use crate::compress::encode::Coder;
use crate::compress::job::{Job, Task};
use crate::compress::plan::Larges;
use crate::compress::shared::find_shared;
use crate::compress::sink::{Sink, finish};
use crate::error::Result;
use crate::progress::Cancellable;
use crate::source::file::REMOTE_THREADS;
use crate::stage::chunk::chunks;
use crate::stage::control::{Control, ended_early};
use crate::stage::digest::{FileDigest, TensorDigests};
use crate::stage::lock::lock;
use crate::stage::output::{Appender, Output};
use crate::stage::pool::Pool;
use crate::stage::promise::{Answer, promise};
use crate::stage::thread::{in_pool, received, send, sizes, spawn};
use crate::{CompressOptions, FileReport, Progress};

/// The origin of a safetensors file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A file.
    File,
    /// Tensors in memory; the header is synthesised.
    Memory,
}

/// Compresses the safetensors file `source` into `output`.
pub(crate) fn compress_source(
    source: &dyn ReadAt,
    base: Against<'_>,
    output: &dyn Output,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<FileReport> {
    compress_walk(source, Origin::File, base, output, options, progress)
}

/// The same for any origin.
pub(crate) fn compress_walk(
    source: &dyn ReadAt,
    origin: Origin,
    base: Against<'_>,
    output: &dyn Output,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<FileReport> {
    // The search for equal tensors, and plans, read much before the stages begin.
    let source: &dyn ReadAt = &Cancellable { source, progress };
    let (json, header) = Header::read(source, &Limits::default())?;
    let header = Arc::new(header);
    let data_at = 8 + json.len() as u64;
    let tensors = header.tensors();
    let matches = &Matches::find(base, &New { source, header: &header, data_at }, progress)?;
    let shared = &find_shared(source, data_at, &header, matches)?;
    let mut digest = FileDigest::new();
    digest.update(&(json.len() as u64).to_le_bytes());
    digest.update(&json);
    let sink = std::io::BufWriter::with_capacity(64 << 10, Appender::new(output));
    let writer = match origin {
        Origin::File => Assembler::parsed(sink, json, Arc::clone(&header))?,
        Origin::Memory => Assembler::synthesised_parsed(sink, json, Arc::clone(&header))?,
    };

    let control = Control::new(progress);
    let (threads, in_flight) = sizes();
    let (plain, coded) = (Pool::new(in_flight), Pool::new(usize::MAX));
    let (to_work, work) = unbounded();
    let (to_hash, hash) = unbounded::<Arc<Job<'_>>>();
    let (to_md5, md5) = unbounded::<(Arc<Job<'_>>, Answer<_>)>();
    let (to_writer, written) = unbounded::<Arc<Job<'_>>>();
    let worker = Worker {
        coder: Coder {
            encoding: options.encoding.implementation(),
            header: &header,
            shared,
            matches,
            source,
            data_at,
            spare: &coded,
        },
        output,
        control: &control,
        n_checked: AtomicU64::new(0),
    };

    let all_written = &Mutex::new(None);
    let result = std::thread::scope(|scope| -> Result<_> {
        // Every stage ends when its channel closes. Both ends of every channel belong to a stage or
        // to this closure, so an early return ends them all.
        let (worker, control, plain, header) = (&worker, &control, &plain, &header);
        let (to_check, work) = (to_work.clone(), work);
        let (answer, sha256) = promise();
        spawn(scope, control, "sha256", move || {
            control.progress.advance(data_at);
            for job in received(control, "sha256", &hash) {
                if !control.stopped() {
                    digest.update(&job.bytes);
                }
            }
            answer.keep(digest.finish());
        })?;
        if options.md5 {
            spawn(scope, control, "md5", move || {
                let mut digests = TensorDigests::default();
                for (job, answer) in received(control, "md5", &md5) {
                    answer.keep(digests.chunk(tensors, &job.chunk, &job.bytes));
                }
            })?;
        }
        let mut sink = Sink {
            writer,
            tensors,
            shared,
            digests: HashMap::new(),
            md5: options.md5,
            to_check,
            n_checks: 0,
            control,
            pending: Vec::new(),
            plan: None,
            same: None,
            matches,
            bases: BTreeMap::new(),
            inherited: HashMap::new(),
            report: FileReport::default(),
        };
        spawn(scope, control, "write", move || {
            for job in received(control, "write", &written) {
                if control.stopped() {
                    continue;
                }
                let at = job.chunk.data.start;
                if let Err(error) = sink.take(&job) {
                    control.fail(at, error);
                }
            }
            let Sink { writer, report, n_checks, bases, .. } = sink;
            *lock(all_written) = Some((writer, report, n_checks, bases));
        })?;
        let (answer, base_sha256) = promise();
        spawn(scope, control, "base", move || {
            control.before_message("base");
            let sha256 = |(place, file): (_, &Arc<BaseFile>)| {
                Ok((place, file.sha256(|| control.stopped())?))
            };
            match matches.needed().into_iter().map(sha256).collect::<Result<BTreeMap<_, _>>>() {
                Ok(found) => answer.keep(found),
                Err(error) => control.fail(header.data_len(), error),
            }
        })?;
        // Started last: it waits for buffers, which come back when chunks are encoded.
        let (answer, all_read) = promise();
        spawn(scope, control, "read", move || {
            let mut larges = Larges::new(tensors, shared);
            let mut large = None;
            for chunk in chunks(tensors) {
                control.before_message("read");
                if control.stopped() {
                    return;
                }
                let at = data_at + chunk.data.start;
                let bytes = plain.take((chunk.data.end - chunk.data.start) as usize);
                let bytes = bytes.and_then(|mut bytes| {
                    read_at(source, at, &mut bytes)?;
                    Ok(bytes)
                });
                let bytes = match bytes {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        let name = chunk.parts.first().map_or("", |p| tensors[p.tensor].name());
                        return control.fail(chunk.data.start, error.in_tensor(name));
                    }
                };
                if let [part] = &chunk.parts[..]
                    && !part.is_whole(&tensors[part.tensor])
                {
                    if part.bytes.start == 0 {
                        large = Some(larges.begin(part.tensor, |tensor, large| {
                            send(control, &to_work, Task::Plan(tensor, large));
                        }));
                    }
                } else {
                    large = None;
                }
                let (to_encode, encoded) = promise();
                let (to_digest, md5s) = promise();
                let job = Arc::new(Job { chunk, bytes, large: large.clone(), encoded, md5s });
                send(control, &to_work, Task::Encode(Arc::clone(&job), to_encode));
                send(control, &to_hash, Arc::clone(&job));
                if options.md5 {
                    send(control, &to_md5, (Arc::clone(&job), to_digest));
                }
                send(control, &to_writer, job);
            }
            answer.keep(());
        })?;
        if matches.wait() {
            // Many requests run at once, and the caller's pool does not wait.
            for _ in 0..threads.max(REMOTE_THREADS) {
                let work = work.clone();
                spawn(scope, control, "encode", move || worker.run_all(&work))?;
            }
        } else {
            in_pool(control, threads, || worker.run_all(&work));
        }
        // If encoding ended early, this closes the channel for the other stages.
        drop(work);
        control.owed(&all_read)?;
        Ok((*control.owed(&sha256)?, control.owed(&base_sha256)?.clone()))
    });
    // All threads have ended.
    control.outcome()?;
    let (sha256, base_sha256) = result?;
    let all_written = lock(all_written).take();
    let (mut writer, mut report, n_checks, bases) = all_written.ok_or_else(ended_early)?;
    // Everything that was written must have been read back and compared.
    if n_checks != worker.n_checked.into_inner() {
        return Err(ended_early());
    }
    matches.files.iter().try_for_each(|file| file.check_unchanged())?;
    for (file, place) in bases {
        let sha256 = base_sha256.get(&file).ok_or_else(ended_early)?;
        writer.set_base_sha256(place, *sha256)?;
    }
    report.bases = writer.bases().to_vec();
    report.original_bytes = data_at + header.data_len();
    report.sha256 = sha256;
    report.compressed_bytes = finish(writer, sha256)?;
    Ok(report)
}

/// The work of a coding thread.
struct Worker<'a> {
    coder: Coder<'a>,
    output: &'a dyn Output,
    control: &'a Control<'a>,
    /// Chunks that were read back and compared.
    n_checked: AtomicU64,
}

impl<'a> Worker<'a> {
    fn run_all(&self, work: &Receiver<Task<'a>>) {
        let mut scratch = Scratch::default();
        for task in received(self.control, "encode", work) {
            self.run(task, &mut scratch);
        }
    }

    fn run(&self, task: Task<'a>, scratch: &mut Scratch) {
        match task {
            Task::Plan(tensor, large) => {
                if !self.control.stopped()
                    && let Err(error) = self.coder.plan(&large, tensor)
                {
                    self.control.fail(self.coder.header.data_range(tensor).start, error);
                }
            }
            Task::Encode(job, answer) => {
                if self.control.stopped() {
                    return;
                }
                match self.coder.encode(&job, &mut scratch.encoded) {
                    Ok(encoded) => answer.keep(encoded),
                    Err(error) => self.control.fail(job.chunk.data.start, error),
                }
            }
            Task::Check(job, written) => {
                if self.control.stopped() {
                    return;
                }
                for written in &written {
                    let part = &job.chunk.parts[written.part];
                    let spec = &self.coder.header.tensors()[part.tensor];
                    if let Err(error) = check(self.output, spec, &job, written, scratch) {
                        self.control.fail(job.chunk.data.start, error.in_tensor(spec.name()));
                    }
                }
                self.n_checked.fetch_add(1, Ordering::Relaxed);
                self.control.progress.advance(job.chunk.data.end - job.chunk.data.start);
            }
        }
    }
}
