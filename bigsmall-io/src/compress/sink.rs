//! Writes the encoded chunks to the file, in order.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bigsmall_format::internal::Assembler;
use bigsmall_format::{EncodingId, Raw, TensorSpec};

use crossbeam_channel::Sender;

use crate::FileReport;
use crate::compress::job::{Job, Task, Written};
use crate::compress::plan::Plan;
use crate::compress::shared::Shared;
use crate::error::{Error, ErrorKind, Result};
use crate::stage::chunk::Part;
use crate::stage::control::Control;
use crate::stage::output::Appender;
use crate::stage::thread::send;

/// The blocks of a tensor are held back until this many of its original bytes are encoded. Then
/// their size decides whether the tensor is stored raw. The decision is exact for tensors up to
/// this size. The number of chunks in flight limits it.
const DECIDE: u64 = 16 << 20;

type Writer<'a> = Assembler<std::io::BufWriter<Appender<'a>>>;

/// Writes index and trailer; returns the length of the shard.
pub(crate) fn finish(writer: Writer<'_>, sha256: [u8; 32]) -> Result<u64> {
    let sink = writer.finish(sha256)?;
    Ok(sink.into_inner().map_err(|e| Error::from(e.into_error()))?.written())
}

/// Writes the encoded chunks to the file, in order.
pub(crate) struct Sink<'a, 'p> {
    pub(crate) writer: Writer<'a>,
    pub(crate) tensors: &'a [TensorSpec],
    pub(crate) shared: &'a Shared,
    /// SHA-256 of the parts of tensors that others share, by tensor and first byte.
    pub(crate) digests: HashMap<(usize, u64), [u8; 32]>,
    pub(crate) md5: bool,
    pub(crate) to_check: Sender<Task<'p>>,
    /// Chunks sent to be checked.
    pub(crate) n_checks: u64,
    pub(crate) control: &'a Control<'a>,
    /// Chunks of a large tensor while raw or not is undecided.
    pub(crate) pending: Vec<Arc<Job<'p>>>,
    /// The plan of the current large tensor, once it is decided.
    pub(crate) plan: Option<Arc<Plan>>,
    pub(crate) report: FileReport,
}

impl<'p> Sink<'_, 'p> {
    pub(crate) fn take(&mut self, job: &Arc<Job<'p>>) -> Result<()> {
        let encoded = self.control.owed(&job.encoded)?;
        for (part, coded) in job.chunk.parts.iter().zip(&encoded.parts) {
            if let Some(digest) = coded.digest {
                self.compare(part, digest)?;
            }
        }
        match job.large {
            None => self.take_small(job),
            Some(_) => self.take_large(job),
        }
    }

    /// Compares a part of a tensor that shares a payload with the same part of the payload's owner.
    /// The bytes with these digests are the ones that were encoded and hashed.
    fn compare(&mut self, part: &Part, digest: [u8; 32]) -> Result<()> {
        let Some(owner) = self.shared.owner(part.tensor) else {
            self.digests.insert((part.tensor, part.bytes.start), digest);
            return Ok(());
        };
        if self.digests.get(&(owner, part.bytes.start)) == Some(&digest) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::SourceChanged)
            .in_tensor(self.tensors[part.tensor].name())
            .expected("the same bytes whenever they are read"))
    }

    /// The MD5 of the `nth` tensor that ends in the chunk.
    fn md5(&self, job: &Job<'_>, nth: usize) -> Result<Option<[u8; 16]>> {
        if !self.md5 {
            return Ok(None);
        }
        Ok(self.control.owed(&job.md5s)?.get(nth).copied())
    }

    fn end(&mut self, tensor: usize, md5: Option<[u8; 16]>) -> Result<()> {
        self.report.n_tensors += 1;
        if let Some(md5) = md5 {
            self.report.md5s.push((self.tensors[tensor].name().into(), md5));
        }
        match self.shared.owner(tensor) {
            Some(owner) => {
                self.report.n_shared += 1;
                self.writer.share(owner, md5)?;
            }
            None => self.writer.end(md5)?,
        }
        Ok(())
    }

    fn take_small(&mut self, job: &Arc<Job<'p>>) -> Result<()> {
        let Some(encoded) = job.encoded.get() else { return Ok(()) };
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
            let md5 = self.md5(job, index)?;
            self.end(part.tensor, md5)?;
        }
        self.check(job, written)
    }

    fn take_large(&mut self, job: &Arc<Job<'p>>) -> Result<()> {
        let Some(part) = job.chunk.parts.first() else { return Ok(()) };
        let spec = &self.tensors[part.tensor];
        let last = part.bytes.end == spec.byte_len();
        if self.shared.owner(part.tensor).is_some() {
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
            let md5 = self.md5(job, 0)?;
            self.end(part.tensor, md5)?;
        }
        Ok(())
    }

    /// Chooses between the plan and raw by the size of the pending chunks, and writes them.
    fn decide(&mut self, spec: &TensorSpec) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let (mut coded, mut raw, mut plan) = (0, 0, None);
        for job in &pending {
            raw += job.bytes.len().next_multiple_of(8);
            if let Some(encoded) = job.encoded.get() {
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

    /// Writes a chunk of the current large tensor.
    fn write_run(&mut self, job: &Arc<Job<'p>>) -> Result<()> {
        let (Some(plan), Some(encoded)) = (&self.plan, job.encoded.get()) else {
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

    /// Sends a written chunk to be checked.
    fn check(&mut self, job: &Arc<Job<'p>>, written: Vec<Written>) -> Result<()> {
        self.writer.sink().flush()?;
        self.n_checks += 1;
        send(self.control, &self.to_check, Task::Check(Arc::clone(job), written));
        Ok(())
    }
}
