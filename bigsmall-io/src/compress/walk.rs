//! The compress walk: read, encode, write, read back and compare, hash; all at once, in the order
//! of the data.

use std::collections::HashMap;
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

use bigsmall_format::internal::Assembler;
use bigsmall_format::{
    BLOCK_UNITS, BlockDecoder, BlockEncoder, EncodingId, Error, Header, Limits, Raw, ReadAt,
    Result, Rule, Section, TensorEncoding, TensorSpec, xxh3,
};

use crate::stage::atomic::{Appender, AtomicFile, Discard, Output};
use crate::stage::chunk::{CHUNK, Chunk, Part, chunks};
use crate::stage::digest::{FileDigest, TensorDigests};
use crate::stage::thread::{Buffer, Control, Pool, next, set_len, sizes, spawn};
use crate::{Encoding, FileReport, Progress, Report, folder::walk as folder, os};

/// How to compress. The output depends on `encoding` and `md5` alone, never on `threads`.
///
/// ```
/// let options = bigsmall_io::CompressOptions { threads: 1, ..Default::default() };
/// assert!(!options.replace);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompressOptions {
    /// The encoding to try; a tensor that it does not make smaller, or does not take, is stored
    /// raw.
    pub encoding: Encoding,
    /// Threads that encode; 0: as many as the machine offers. Reading, hashing and writing have
    /// threads of their own.
    pub threads: usize,
    /// Keep an MD5 of every tensor's original bytes (runs at 0.6 GB/s, slower than everything
    /// else).
    pub md5: bool,
    /// Replace an existing output.
    pub replace: bool,
    /// Do all the work but write nothing.
    pub dry_run: bool,
}

/// Compresses the safetensors file `input` to the shard `output`, or the model folder `input` to
/// the folder `output` (weights compressed, everything else carried over).
///
/// What was written is read again, decoded and compared with the original before it gets its name;
/// `output` is absent, as it was, or complete. Memory: at most 256 MiB and the index, whatever the
/// size of tensors or model.
///
/// # Errors
/// Header rules of [`Rule`] for a bad input; [`Rule::OutputExists`], [`Rule::SameFile`],
/// [`Rule::Io`], [`Rule::SourceChanged`], [`Rule::ReadBack`], [`Rule::Cancelled`],
/// [`Rule::Memory`].
///
/// ```no_run
/// use bigsmall_io::{CompressOptions, Progress, compress};
/// let report = compress(
///     "model.safetensors".as_ref(),
///     "model.bs".as_ref(),
///     &CompressOptions::default(),
///     &Progress::default(),
/// )?;
/// println!("{:.1} %", 100.0 * report.ratio());
/// # Ok::<(), bigsmall_io::Error>(())
/// ```
pub fn compress(
    input: &Path,
    output: &Path,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<Report> {
    if os::same_file(input, output) {
        return Err(Error::new(Rule::SameFile).in_file(output));
    }
    if input.is_dir() {
        return folder::compress_folder(input, output, options, progress);
    }
    progress.expect(std::fs::metadata(input).map_err(|e| Error::io(e).in_file(input))?.len());
    Ok(Report::of(vec![compress_file(input, output, options, progress)?]))
}

/// Compresses one file.
pub(crate) fn compress_file(
    input: &Path,
    output: &Path,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<FileReport> {
    let source = os::open_regular(input)?;
    let before = os::stamp(&source.metadata()?);
    let unchanged = || match os::stamp(&source.metadata()?) == before {
        true => Ok(()),
        false => Err(Error::new(Rule::SourceChanged).in_file(input)),
    };
    let mut report = if options.dry_run {
        let report = compress_source(&source, &Discard, options, progress)?;
        unchanged()?;
        report
    } else {
        let target = AtomicFile::create(output, options.replace)?;
        let report = compress_source(&source, &target, options, progress)?;
        unchanged()?;
        target.commit()?;
        report
    };
    report.name = crate::report::file_name(input);
    Ok(report)
}

/// Until so many original bytes of a tensor are encoded, its blocks are held back: then their size
/// decides whether the tensor is stored raw. Up to this size the decision is exact. It is bounded
/// by the number of chunks under way.
const DECIDE: u64 = 16 << 20;

/// An encoding's plan for one tensor.
struct Plan {
    id: EncodingId,
    encoder: Box<dyn BlockEncoder>,
    decoder: Box<dyn BlockDecoder>,
}

impl Plan {
    fn new(
        encoding: &dyn TensorEncoding,
        spec: &TensorSpec,
        source: &dyn ReadAt,
    ) -> Result<Arc<Self>> {
        let encoder = encoding.plan(spec, source).map_err(|e| e.in_tensor(spec.name()))?;
        // Opened from the bytes that will be stored: what does not open here is never written.
        let decoder = encoding.open(spec, encoder.head()).map_err(|e| read_back(spec).found(e))?;
        Ok(Arc::new(Plan { id: encoding.id(), encoder, decoder }))
    }

    fn padded_head(&self) -> usize {
        self.encoder.head().len().next_multiple_of(8)
    }
}

/// What the chunks of one large tensor share.
#[derive(Default)]
struct Large {
    /// `None` when planning failed.
    plan: OnceLock<Option<Arc<Plan>>>,
    /// Set once it is known that raw is smaller: encoding the rest would be in vain.
    raw: AtomicBool,
}

/// Hands out what the chunks of large tensors share, and has the next one planned meanwhile.
struct Larges<'a> {
    tensors: &'a [TensorSpec],
    shared: &'a [Option<usize>],
    ahead: Option<(usize, Arc<Large>)>,
}

impl<'a> Larges<'a> {
    fn new(tensors: &'a [TensorSpec], shared: &'a [Option<usize>]) -> Self {
        Larges { tensors, shared, ahead: None }
    }

    /// For the tensor that begins now; `plan` is called for the one after it.
    fn begin(&mut self, tensor: usize, plan: impl Fn(usize, Arc<Large>)) -> Arc<Large> {
        let ahead = self.ahead.take_if(|(at, _)| *at == tensor);
        let large = ahead.map_or_else(Arc::default, |(_, large)| large);
        let is_next = |&i: &usize| self.tensors[i].byte_len() > CHUNK && self.shared[i].is_none();
        if self.ahead.is_none()
            && let Some(next) = (tensor + 1..self.tensors.len()).find(is_next)
        {
            let next_large = Arc::default();
            plan(next, Arc::clone(&next_large));
            self.ahead = Some((next, next_large));
        }
        large
    }
}

/// One chunk on its way.
struct Job<'p> {
    chunk: Chunk,
    bytes: Buffer<'p>,
    /// For a chunk of a large tensor.
    large: Option<Arc<Large>>,
    /// `None` when a stage failed.
    encoded: OnceLock<Option<Encoded<'p>>>,
    /// Of the tensors that end in this chunk, where asked for.
    md5s: OnceLock<Vec<[u8; 16]>>,
}

impl Job<'_> {
    fn part_bytes(&self, part: &Part) -> &[u8] {
        &self.bytes[part.within.clone()]
    }
}

struct Encoded<'p> {
    bytes: Buffer<'p>,
    lens: Vec<u32>,
    parts: Vec<EncodedPart>,
}

impl Encoded<'_> {
    /// Makes room for `original`, encoded or raw; an error where there is no memory for it.
    fn reserve_for(&mut self, original: &[u8]) -> Result<()> {
        // Of every block its values and a header at the most.
        let most = original.len() + 16 * (original.len() / BLOCK_UNITS + 1);
        let room = self.bytes.try_reserve(most);
        room.map_err(|_| Error::new(Rule::Memory).expected(format!("{most} bytes for a buffer")))
    }
}

struct EncodedPart {
    /// `None` for a part whose tensor shares the payload of another, or is known to be stored raw.
    plan: Option<Arc<Plan>>,
    bytes: Range<usize>,
    lens: Range<usize>,
}

/// Work for the coding threads.
enum Task<'p> {
    /// Plan the large tensor of that place: sent one tensor ahead, so that nobody waits for a plan.
    Plan(usize, Arc<Large>),
    Encode(Arc<Job<'p>>),
    Check(Arc<Job<'p>>, Vec<Written>),
}

/// Where a part's blocks were written.
struct Written {
    part: usize,
    plan: Arc<Plan>,
    /// Where its blocks begin; the head, where the part is a tensor's first, ends there.
    at: u64,
    lens: Vec<u32>,
}

/// Compresses the safetensors file `source` into `output`.
pub(crate) fn compress_source(
    source: &dyn ReadAt,
    output: &dyn Output,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<FileReport> {
    let (json, header) = Header::read(source, &Limits::default())?;
    let data_at = 8 + json.len() as u64;
    let tensors = header.tensors();
    let shared: &[Option<usize>] = &find_shared(source, data_at, tensors)?;
    let prefix = [&(json.len() as u64).to_le_bytes()[..], &json].concat();
    let writer = Assembler::new(
        std::io::BufWriter::with_capacity(64 << 10, Appender::new(output)),
        json,
        header.data_len(),
    )?;

    let control = Control::new(progress);
    let (threads, in_flight) = sizes(options.threads);
    let (plain, coded) = (Pool::new(in_flight), Pool::new(usize::MAX));
    let (to_work, work) = channel();
    let (to_hash, hash) = channel::<Arc<Job<'_>>>();
    let (to_md5, md5) = channel::<Arc<Job<'_>>>();
    let (to_writer, written) = channel::<Arc<Job<'_>>>();
    let work = Mutex::new(work);
    let coder = Coder {
        encoding: options.encoding.implementation(),
        tensors,
        shared,
        source,
        data_at,
        output,
        spare: &coded,
        control: &control,
    };

    let result = std::thread::scope(|scope| -> Result<_> {
        // Every thread ends when its channel does. The channels' far ends live in this closure or
        // in a thread, so an early return lets them all end.
        let (coder, control, plain, work) = (&coder, &control, &plain, &work);
        let to_check = to_work.clone();
        let hasher = spawn(scope, "sha256", move || {
            let mut digest = FileDigest::new();
            digest.update(&prefix);
            control.progress.advance(prefix.len() as u64);
            for job in hash {
                if !control.stopped() {
                    digest.update(&job.bytes);
                }
            }
            digest.finish()
        })?;
        if options.md5 {
            spawn(scope, "md5", move || {
                let mut digests = TensorDigests::default();
                for job in md5 {
                    let _ = job.md5s.set(digests.chunk(tensors, &job.chunk, &job.bytes));
                }
            })?;
        }
        for _ in 0..threads {
            spawn(scope, "encode", move || {
                let mut scratch = Scratch::default();
                while let Some(task) = next(work) {
                    coder.run(task, &mut scratch);
                }
            })?;
        }
        spawn(scope, "read", move || {
            let mut larges = Larges::new(tensors, shared);
            let mut large = None;
            for chunk in chunks(tensors) {
                if control.stopped() {
                    return;
                }
                let at = data_at + chunk.data.start;
                let bytes = plain.take((chunk.data.end - chunk.data.start) as usize);
                let bytes = bytes
                    .and_then(|mut bytes| source.read_exact_at(at, &mut bytes).map(|()| bytes));
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
                            let _ = to_work.send(Task::Plan(tensor, large));
                        }));
                    }
                } else {
                    large = None;
                }
                let job = Arc::new(Job {
                    chunk,
                    bytes,
                    large: large.clone(),
                    encoded: OnceLock::new(),
                    md5s: OnceLock::new(),
                });
                // Nobody listens any more after a failure, and then nothing is lost.
                let _ = to_work.send(Task::Encode(Arc::clone(&job)));
                let _ = to_hash.send(Arc::clone(&job));
                if options.md5 {
                    let _ = to_md5.send(Arc::clone(&job));
                }
                let _ = to_writer.send(job);
            }
        })?;
        let mut sink = Sink {
            writer,
            tensors,
            shared,
            md5: options.md5,
            to_check,
            pending: Vec::new(),
            plan: None,
            report: FileReport::default(),
        };
        for job in written {
            if control.stopped() {
                continue;
            }
            let at = job.chunk.data.start;
            if let Err(error) = sink.take(&job) {
                control.fail(at, error);
            }
        }
        let Sink { writer, report, to_check, .. } = sink;
        drop(to_check);
        let sha256 = hasher.join().map_err(|_| Error::new(Rule::Io).found("a thread failed"))?;
        Ok((writer, report, sha256))
    });
    // By now every thread has ended: all that was written has been read back and compared.
    control.outcome()?;
    let (writer, mut report, sha256) = result?;
    report.original_bytes = data_at + header.data_len();
    report.sha256 = sha256;
    report.compressed_bytes = finish(writer, sha256)?;
    Ok(report)
}

type Writer<'a> = Assembler<std::io::BufWriter<Appender<'a>>>;

/// Writes index and trailer; returns the length of the shard.
fn finish(writer: Writer<'_>, sha256: [u8; 32]) -> Result<u64> {
    let sink = writer.finish(sha256)?;
    Ok(sink.into_inner().map_err(|e| Error::io(e.into_error()))?.written())
}

fn read_back(spec: &TensorSpec) -> Error {
    Error::new(Rule::ReadBack).in_tensor(spec.name())
}

/// For every tensor the earlier one with the same bytes, if there is one.
///
/// Linear in the bytes: a tensor is compared with one other at the most, the first with its dtype,
/// length and sample.
fn find_shared(
    source: &dyn ReadAt,
    data_at: u64,
    tensors: &[TensorSpec],
) -> Result<Vec<Option<usize>>> {
    let mut alike: HashMap<_, u32> = HashMap::new();
    for spec in tensors.iter().filter(|s| s.byte_len() > 0) {
        *alike.entry((spec.dtype(), spec.byte_len())).or_default() += 1;
    }
    let mut first: HashMap<_, usize> = HashMap::new();
    let mut shared = vec![None; tensors.len()];
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (index, spec) in tensors.iter().enumerate() {
        if alike.get(&(spec.dtype(), spec.byte_len())).is_none_or(|&n| n < 2) {
            continue;
        }
        let at = data_at + spec.data_range().start;
        // Five samples of 4 KiB, or all of a small tensor.
        let sample = 4096.min(spec.byte_len());
        let step = (spec.byte_len() - sample) / 4;
        set_len(&mut a, (5 * sample) as usize)?;
        for (i, piece) in a.chunks_mut(sample as usize).enumerate() {
            source
                .read_exact_at(at + i as u64 * step, piece)
                .map_err(|e| e.in_tensor(spec.name()))?;
        }
        let key = (spec.dtype(), spec.byte_len(), xxh3(&a));
        match first.get(&key) {
            None => {
                first.insert(key, index);
            }
            Some(&owner) => {
                let other = data_at + tensors[owner].data_range().start;
                if equal(source, at, other, spec.byte_len(), &mut a, &mut b)? {
                    shared[index] = Some(owner);
                }
            }
        }
    }
    Ok(shared)
}

fn equal(
    source: &dyn ReadAt,
    a: u64,
    b: u64,
    len: u64,
    left: &mut Vec<u8>,
    right: &mut Vec<u8>,
) -> Result<bool> {
    let mut done = 0;
    while done < len {
        let n = CHUNK.min(len - done);
        set_len(left, n as usize)?;
        set_len(right, n as usize)?;
        source.read_exact_at(a + done, left)?;
        source.read_exact_at(b + done, right)?;
        if left != right {
            return Ok(false);
        }
        done += n;
    }
    Ok(true)
}

/// What the coding threads know.
struct Coder<'a> {
    encoding: &'a dyn TensorEncoding,
    tensors: &'a [TensorSpec],
    shared: &'a [Option<usize>],
    source: &'a dyn ReadAt,
    data_at: u64,
    output: &'a dyn Output,
    spare: &'a Pool,
    control: &'a Control<'a>,
}

#[derive(Default)]
struct Scratch {
    encoded: Vec<u8>,
    decoded: Vec<u8>,
}

/// Sets a job's result to "failed" when the thread leaves without one, so that the writer never
/// waits for ever.
struct Settle<'j, 'p>(&'j Job<'p>);

impl Drop for Settle<'_, '_> {
    fn drop(&mut self) {
        let _ = self.0.encoded.set(None);
    }
}

impl<'a> Coder<'a> {
    fn run(&self, task: Task<'a>, scratch: &mut Scratch) {
        match task {
            Task::Plan(tensor, large) => {
                let spec = &self.tensors[tensor];
                if !self.control.stopped()
                    && let Err(error) = self.plan(&large, spec)
                {
                    self.control.fail(spec.data_range().start, error);
                }
            }
            Task::Encode(job) => {
                let settle = Settle(&job);
                if self.control.stopped() {
                    return;
                }
                match self.encode(&job) {
                    Ok(encoded) => {
                        let _ = job.encoded.set(Some(encoded));
                    }
                    Err(error) => self.control.fail(job.chunk.data.start, error),
                }
                drop(settle);
            }
            Task::Check(job, written) => {
                if self.control.stopped() {
                    return;
                }
                for written in &written {
                    let part = &job.chunk.parts[written.part];
                    let spec = &self.tensors[part.tensor];
                    if let Err(error) = self.check(&job, part, written, scratch) {
                        self.control.fail(job.chunk.data.start, error.in_tensor(spec.name()));
                    }
                }
                self.control.progress.advance(job.chunk.data.end - job.chunk.data.start);
            }
        }
    }

    fn encode(&self, job: &Job<'a>) -> Result<Encoded<'a>> {
        let mut out = Encoded { bytes: self.spare.take(0)?, lens: Vec::new(), parts: Vec::new() };
        for part in &job.chunk.parts {
            let spec = &self.tensors[part.tensor];
            let bytes = job.part_bytes(part);
            let (at, lens_at) = (out.bytes.len(), out.lens.len());
            out.reserve_for(bytes)?;
            let mut plan = None;
            if self.shared[part.tensor].is_none() {
                plan = match &job.large {
                    Some(large) => self.encode_large(large, spec, bytes, &mut out)?,
                    None => Some(self.encode_small(spec, bytes, &mut out)?),
                };
            }
            let (end, lens_end) = (out.bytes.len(), out.lens.len());
            out.parts.push(EncodedPart { plan, bytes: at..end, lens: lens_at..lens_end });
        }
        Ok(out)
    }

    /// The plan of a large tensor, made by the first thread that asks; `None` where the encoding
    /// does not take it.
    fn plan<'l>(&self, large: &'l Large, spec: &TensorSpec) -> Result<Option<&'l Arc<Plan>>> {
        if !self.encoding.supports(spec.dtype()) {
            return Ok(None);
        }
        let mut failure = None;
        let plan = large.plan.get_or_init(|| {
            let range = spec.data_range();
            Section::new(self.source, self.data_at + range.start..self.data_at + range.end)
                .and_then(|source| Plan::new(self.encoding, spec, &source))
                .map_err(|e| failure = Some(e.in_tensor(spec.name())))
                .ok()
        });
        match plan {
            Some(plan) => Ok(Some(plan)),
            // The thread that planned has the error.
            None => Err(failure.unwrap_or_else(|| Error::new(Rule::Cancelled))),
        }
    }

    /// Encodes some blocks of a large tensor; `None` where it is stored raw.
    fn encode_large(
        &self,
        large: &Large,
        spec: &TensorSpec,
        bytes: &[u8],
        out: &mut Encoded<'_>,
    ) -> Result<Option<Arc<Plan>>> {
        if large.raw.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Some(plan) = self.plan(large, spec)? else { return Ok(None) };
        out.reserve_for(bytes)?;
        plan.encoder.encode_blocks(bytes, &mut out.bytes, &mut out.lens)?;
        Ok(Some(Arc::clone(plan)))
    }

    /// Encodes a whole tensor, or stores it raw where that is no larger.
    fn encode_small(
        &self,
        spec: &TensorSpec,
        bytes: &[u8],
        out: &mut Encoded<'_>,
    ) -> Result<Arc<Plan>> {
        let (at, lens_at) = (out.bytes.len(), out.lens.len());
        if !bytes.is_empty() && self.encoding.supports(spec.dtype()) {
            let plan = Plan::new(self.encoding, spec, &bytes)?;
            plan.encoder.encode_blocks(bytes, &mut out.bytes, &mut out.lens)?;
            let encoded = plan.padded_head() + out.bytes.len() - at;
            if encoded < bytes.len().next_multiple_of(8) {
                return Ok(plan);
            }
            out.bytes.truncate(at);
            out.lens.truncate(lens_at);
        }
        let plan = Plan::new(&Raw, spec, &bytes)?;
        plan.encoder.encode_blocks(bytes, &mut out.bytes, &mut out.lens)?;
        Ok(plan)
    }

    /// Reads what was written, decodes it and compares it with the original.
    fn check(
        &self,
        job: &Job<'_>,
        part: &Part,
        written: &Written,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let spec = &self.tensors[part.tensor];
        let original = job.part_bytes(part);
        let head = written.plan.encoder.head();
        let head_len = if part.bytes.start == 0 { written.plan.padded_head() } else { 0 };
        let blocks_len: usize =
            written.lens.iter().map(|&n| (n as usize).next_multiple_of(8)).sum();
        set_len(&mut scratch.encoded, head_len + blocks_len)?;
        let kept = self.output.read_back(written.at - head_len as u64, &mut scratch.encoded)?;
        let (found_head, blocks) = scratch.encoded.split_at(head_len);
        let mut rest = blocks;
        if kept {
            if head_len > 0 && found_head.get(..head.len()) != Some(head) {
                return Err(read_back(spec).at(written.at - head_len as u64));
            }
        } else {
            // A dry run: what would have been written is at hand, unless it is the original itself.
            let encoded = job.encoded.get().and_then(Option::as_ref);
            let encoded = encoded.and_then(|e| Some((e, e.parts.get(written.part)?)));
            match encoded {
                Some((encoded, found)) if written.plan.id != EncodingId::Raw => {
                    rest = &encoded.bytes[found.bytes.clone()];
                }
                _ => return Ok(()),
            }
        }
        let mut blocks = Vec::with_capacity(written.lens.len());
        for &len in &written.lens {
            let (block, after) = rest
                .split_at_checked((len as usize).next_multiple_of(8))
                .ok_or_else(|| read_back(spec))?;
            blocks.push(&block[..len as usize]);
            rest = after;
        }
        set_len(&mut scratch.decoded, original.len())?;
        written
            .plan
            .decoder
            .decode_blocks(&blocks, &mut scratch.decoded)
            .map_err(|e| read_back(spec).at(written.at).found(e))?;
        if scratch.decoded != original {
            return Err(read_back(spec).at(written.at));
        }
        Ok(())
    }
}

/// Brings the encoded chunks into the file, in order.
struct Sink<'a, 'p> {
    writer: Writer<'a>,
    tensors: &'a [TensorSpec],
    shared: &'a [Option<usize>],
    md5: bool,
    to_check: Sender<Task<'p>>,
    /// Chunks of a large tensor for which raw or not is still open.
    pending: Vec<Arc<Job<'p>>>,
    /// The plan that the large tensor at hand is written with, once that is decided.
    plan: Option<Arc<Plan>>,
    report: FileReport,
}

impl<'p> Sink<'_, 'p> {
    fn take(&mut self, job: &Arc<Job<'p>>) -> Result<()> {
        if job.encoded.wait().is_none() {
            return Ok(());
        }
        match job.large {
            None => self.take_small(job),
            Some(_) => self.take_large(job),
        }
    }

    /// The MD5 of the `nth` tensor that ends in the chunk.
    fn md5(&mut self, job: &Job<'_>, nth: usize) -> Option<[u8; 16]> {
        self.md5.then(|| job.md5s.wait().get(nth).copied()).flatten()
    }

    fn end(&mut self, tensor: usize, md5: Option<[u8; 16]>) -> Result<()> {
        self.report.n_tensors += 1;
        if let Some(md5) = md5 {
            self.report.md5s.push((self.tensors[tensor].name().into(), md5));
        }
        match self.shared[tensor] {
            Some(owner) => {
                self.report.n_shared += 1;
                self.writer.share(owner, md5)
            }
            None => self.writer.end(md5),
        }
    }

    fn take_small(&mut self, job: &Arc<Job<'p>>) -> Result<()> {
        let Some(Some(encoded)) = job.encoded.get() else { return Ok(()) };
        let mut written = Vec::new();
        for (index, (part, coded)) in job.chunk.parts.iter().zip(&encoded.parts).enumerate() {
            if let Some(plan) = &coded.plan {
                self.writer.begin(plan.id, plan.encoder.head())?;
                let (at, lens) = (self.writer.position(), &encoded.lens[coded.lens.clone()]);
                self.writer.blocks(&encoded.bytes[coded.bytes.clone()], lens)?;
                written.push(Written {
                    part: index,
                    plan: Arc::clone(plan),
                    at,
                    lens: lens.to_vec(),
                });
            }
            let md5 = self.md5(job, index);
            self.end(part.tensor, md5)?;
        }
        self.check(job, written)
    }

    fn take_large(&mut self, job: &Arc<Job<'p>>) -> Result<()> {
        let Some(part) = job.chunk.parts.first() else { return Ok(()) };
        let spec = &self.tensors[part.tensor];
        let last = part.bytes.end == spec.byte_len();
        if self.shared[part.tensor].is_some() {
            self.check(job, Vec::new())?;
        } else if self.plan.is_some() {
            self.write_run(job)?;
        } else {
            self.pending.push(Arc::clone(job));
            if last || part.bytes.end >= DECIDE {
                self.decide(spec)?;
            }
        }
        if last {
            self.plan = None;
            let md5 = self.md5(job, 0);
            self.end(part.tensor, md5)?;
        }
        Ok(())
    }

    /// Chooses between what was planned and raw by the size of what is pending, and writes it.
    fn decide(&mut self, spec: &TensorSpec) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let (mut coded, mut raw, mut plan) = (0, 0, None);
        for job in &pending {
            raw += job.bytes.len().next_multiple_of(8);
            if let Some(Some(encoded)) = job.encoded.get() {
                coded += encoded.bytes.len();
                plan = encoded.parts.first().and_then(|p| p.plan.clone());
            }
        }
        let plan = match plan.filter(|p| coded + p.padded_head() < raw) {
            Some(plan) => plan,
            None => {
                if let Some(large) = pending.first().and_then(|job| job.large.as_ref()) {
                    large.raw.store(true, Ordering::Relaxed);
                }
                Plan::new(&Raw, spec, &&[][..])?
            }
        };
        self.writer.begin(plan.id, plan.encoder.head())?;
        self.plan = Some(plan);
        pending.iter().try_for_each(|job| self.write_run(job))
    }

    /// Writes a chunk of the large tensor at hand.
    fn write_run(&mut self, job: &Arc<Job<'p>>) -> Result<()> {
        let (Some(plan), Some(Some(encoded))) = (&self.plan, job.encoded.get()) else {
            return Ok(());
        };
        let plan = Arc::clone(plan);
        let at = self.writer.position();
        let lens = if plan.id == EncodingId::Raw {
            let (mut bytes, mut lens) = (Vec::new(), Vec::new());
            plan.encoder.encode_blocks(&job.bytes, &mut bytes, &mut lens)?;
            self.writer.blocks(&bytes, &lens)?;
            lens
        } else {
            self.writer.blocks(&encoded.bytes, &encoded.lens)?;
            encoded.lens.clone()
        };
        self.check(job, vec![Written { part: 0, plan, at, lens }])
    }

    /// Has a chunk that is written checked.
    fn check(&mut self, job: &Arc<Job<'p>>, written: Vec<Written>) -> Result<()> {
        self.writer.sink().flush()?;
        // The coding threads listen until this end of the channel is dropped.
        let _ = self.to_check.send(Task::Check(Arc::clone(job), written));
        Ok(())
    }
}
