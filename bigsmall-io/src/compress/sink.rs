//! Writes the encoded chunks to the file, in order.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bigsmall_format::internal::Assembler;
use bigsmall_format::{Base, BaseRef, EncodingId, Raw, TensorSpec};
use crossbeam_channel::Sender;

use crate::FileReport;
use crate::base::matches::Matches;
use crate::compress::job::{Job, Task, Written};
use crate::compress::plan::Plan;
use crate::compress::shared::Shared;
use crate::error::{Error, ErrorKind, Result};
use crate::stage::chunk::Part;
use crate::stage::control::{Control, ended_early};
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
    /// The checksums of the base's blocks, as long as all blocks of the current large tensor are
    /// those of its base. Nothing of the tensor is written before that ends.
    pub(crate) same: Option<Vec<u64>>,
    pub(crate) matches: &'a Matches,
    /// The place in the shard of each file of a base that a tensor refers to.
    pub(crate) bases: BTreeMap<usize, usize>,
    /// The checksums of inherited tensors that have an equal one later in the file.
    pub(crate) inherited: HashMap<usize, Vec<u64>>,
    pub(crate) report: FileReport,
}

impl<'a, 'p> Sink<'a, 'p> {
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
        self.note_md5(tensor, md5);
        let Some(owner) = self.shared.owner(tensor) else { return Ok(self.writer.end(md5)?) };
        if let Some(hashes) = self.inherited.remove(&owner) {
            // There is no payload to share.
            let base = self.base_of(owner)?;
            self.report.n_inherited += 1;
            self.writer.inherit(base, &hashes, md5)?;
            self.inherited.insert(owner, hashes);
            return Ok(());
        }
        self.report.n_shared += 1;
        Ok(self.writer.share(owner, md5)?)
    }

    /// The tensor of a base that tensor `tensor` is stored as differences from.
    fn base_of(&mut self, tensor: usize) -> Result<BaseRef<'a>> {
        let matches = self.matches;
        let of = matches.of(tensor).ok_or_else(ended_early)?;
        let place = match self.bases.get(&of.file) {
            Some(place) => *place,
            None => {
                let file = &matches.files[of.file];
                // Its SHA-256 is added at the end.
                let base = Base::new([0; 32]).depth(file.depth).hint(&file.hint);
                let place = self.writer.add_base(base);
                self.bases.insert(of.file, place);
                place
            }
        };
        Ok(BaseRef::new(place, matches.spec(of).name()))
    }

    /// Ends a tensor that is that of its base.
    fn inherit(&mut self, tensor: usize, hashes: &[u64], md5: Option<[u8; 16]>) -> Result<()> {
        let base = self.base_of(tensor)?;
        self.report.n_tensors += 1;
        self.report.n_inherited += 1;
        self.writer.inherit(base, hashes, md5)?;
        self.note_md5(tensor, md5);
        if self.shared.is_one_of_several(tensor) {
            self.inherited.insert(tensor, hashes.to_vec());
        }
        Ok(())
    }

    fn note_md5(&mut self, tensor: usize, md5: Option<[u8; 16]>) {
        if let Some(md5) = md5 {
            self.report.md5s.push((self.tensors[tensor].name().into(), md5));
        }
    }

    /// Begins the tensor `tensor`.
    fn begin(&mut self, plan: &Plan, tensor: usize) -> Result<()> {
        let (id, head) = (plan.id, plan.encoder.head());
        if plan.base.is_none() {
            return Ok(self.writer.begin(id, head)?);
        }
        self.report.n_deltas += 1;
        let base = self.base_of(tensor)?;
        Ok(self.writer.begin_with_base(id, head, base)?)
    }

    fn take_small(&mut self, job: &Arc<Job<'p>>) -> Result<()> {
        let Some(encoded) = job.encoded.get() else { return Ok(()) };
        let mut written = Vec::new();
        for (index, (part, coded)) in job.chunk.parts.iter().zip(&encoded.parts).enumerate() {
            let md5 = self.md5(job, index)?;
            let hashes = &encoded.hashes[coded.hashes.clone()];
            if coded.inherited {
                self.inherit(part.tensor, hashes, md5)?;
                continue;
            }
            if let Some(plan) = &coded.plan {
                self.begin(plan, part.tensor)?;
                let (at, lens) = (self.writer.position(), &encoded.lens[coded.lens.clone()]);
                let bytes = &encoded.bytes[coded.bytes.clone()];
                self.writer.blocks_with_base(bytes, lens, hashes)?;
                written.push(Written {
                    part: index,
                    plan: Arc::clone(plan),
                    at,
                    head: true,
                    lens: lens.to_vec(),
                });
            }
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
            match self.same.take() {
                Some(hashes) => self.inherit(part.tensor, &hashes, md5)?,
                None => self.end(part.tensor, md5)?,
            }
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
        match &plan.base {
            Some(_) => self.same = Some(Vec::new()),
            None => self.writer.begin(plan.id, plan.encoder.head())?,
        }
        self.plan = Some(plan);
        pending.iter().try_for_each(|job| self.write_run(job))
    }

    /// Writes a chunk of the current large tensor.
    fn write_run(&mut self, job: &Arc<Job<'p>>) -> Result<()> {
        let (Some(plan), Some(encoded)) = (&self.plan, job.encoded.get()) else {
            return Ok(());
        };
        let Some(part) = job.chunk.parts.first() else { return Ok(()) };
        let plan = Arc::clone(plan);
        let mut head = part.bytes.start == 0;
        if let Some(mut same) = self.same.take() {
            let lens = encoded.lens.clone();
            if lens.iter().all(|&len| len == 0) {
                same.extend_from_slice(&encoded.hashes);
                self.same = Some(same);
                let (part, at, head) = (0, self.writer.position(), false);
                return self.check(job, vec![Written { part, plan, at, head, lens }]);
            }
            self.begin(&plan, part.tensor)?;
            self.writer.blocks_with_base(&[], &vec![0; same.len()], &same)?;
            head = true;
        }
        let at = self.writer.position();
        let lens = if plan.id == EncodingId::Raw {
            let (mut bytes, mut lens) = (Vec::new(), Vec::new());
            plan.encoder.encode_blocks(0, &job.bytes, &mut bytes, &mut lens)?;
            self.writer.blocks(&bytes, &lens)?;
            lens
        } else {
            self.writer.blocks_with_base(&encoded.bytes, &encoded.lens, &encoded.hashes)?;
            encoded.lens.clone()
        };
        self.check(job, vec![Written { part: 0, plan, at, head, lens }])
    }

    /// Sends a written chunk to be checked.
    fn check(&mut self, job: &Arc<Job<'p>>, written: Vec<Written>) -> Result<()> {
        self.writer.sink().flush()?;
        self.n_checks += 1;
        send(self.control, &self.to_check, Task::Check(Arc::clone(job), written));
        Ok(())
    }
}
