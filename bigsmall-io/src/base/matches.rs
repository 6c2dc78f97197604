//! Which tensor of a base each tensor is compared with.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use bigsmall_format::internal::{read_at, set_len, xxh3};
use bigsmall_format::{BaseTensor, Dtype, Header, Limits, ReadAt, Rule, TensorSpec};

use crate::Progress;
use crate::base::find::find_behind;
use crate::base::model::BaseModel;
use crate::base::names::{Names, not_in_base, not_in_input};
use crate::base::tensor::{BaseFile, TensorBase};
use crate::error::{Context as _, Error, Result};

/// The tensors of a base that the tensors of one file are compared with.
#[derive(Default)]
pub(crate) struct Matches {
    pub(crate) files: Vec<Arc<BaseFile>>,
    /// For each tensor its base.
    of: Vec<Option<Match>>,
}

/// A tensor of a base: its file in [`Matches::files`], and its index there.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Match {
    pub(crate) file: usize,
    pub(crate) tensor: usize,
}

/// A safetensors file that is to be compressed.
pub(crate) struct New<'a> {
    pub(crate) source: &'a dyn ReadAt,
    pub(crate) header: &'a Header,
    /// Where the data begins.
    pub(crate) data_at: u64,
}

/// The base that a file is compared with.
#[derive(Clone, Copy)]
pub(crate) struct Against<'a> {
    pub(crate) base: &'a BaseModel,
    /// What tensors of the file are called in the base.
    pub(crate) names: &'a Names,
    /// The folder that the file lies in, within its model.
    pub(crate) folder: &'a Path,
}

impl<'a> Against<'a> {
    /// A file that does not lie in a folder.
    pub(crate) fn new(base: &'a BaseModel) -> Self {
        static NONE: Names = Names::new();
        Against { base, names: &NONE, folder: Path::new("") }
    }

    /// The same, given what tensors of the file are called in the base.
    pub(crate) fn named(self, names: &'a Names) -> Self {
        Against { names, ..self }
    }
}

impl Matches {
    /// Finds a base for the tensors of `new`: the one whose name was given; or that with the same
    /// name; or the one with the same dtype and shape whose name is longer or shorter by a prefix;
    /// or one with the same dtype, shape and sample of values.
    pub(crate) fn find(against: Against<'_>, new: &New<'_>, progress: &Progress) -> Result<Self> {
        let Against { base, names, folder } = against;
        let files: Vec<_> = base.files_for(folder).into_iter().cloned().collect();
        let most = Limits::default().max_base_depth;
        for file in &files {
            if file.depth >= most {
                return Err(Error::new(Rule::BaseDepth)
                    .in_file(&file.shown)
                    .expected(format!("fewer than {most} bases behind a base; `rebase` it"))
                    .found(file.depth));
            }
            find_behind(file, base.files(), progress)?;
        }
        let mut by_name = HashMap::new();
        for (file, opened) in files.iter().enumerate() {
            for (tensor, spec) in opened.tensors().iter().enumerate() {
                by_name.insert(spec.name(), Match { file, tensor });
            }
        }
        let spec_of = |m: Match| &files[m.file].tensors()[m.tensor];
        let suits = |spec: &TensorSpec, m: &Match| BaseTensor::<&[u8]>::suits(spec, spec_of(*m));
        let tensors = new.header.tensors();
        let same = |spec: &TensorSpec| by_name.get(spec.name()).copied().filter(|m| suits(spec, m));
        let mut of: Vec<Option<Match>> =
            tensors.iter().map(|spec| same(spec).filter(|_| spec.byte_len() > 0)).collect();
        for (name, of_base) in names {
            let index = new.header.index_of(name).ok_or_else(|| not_in_input(name))?;
            let spec = &tensors[index];
            let given = by_name.get(&**of_base).copied().filter(|m| suits(spec, m));
            let given = given.ok_or_else(|| not_in_base(name, of_base))?;
            of[index] = Some(given).filter(|_| spec.byte_len() > 0);
        }
        let used: HashSet<Match> = of.iter().flatten().copied().collect();
        // What is left may have been renamed.
        let mut alike: HashMap<(Dtype, &[u64]), Alike> = HashMap::new();
        for (name, m) in &by_name {
            let spec = spec_of(*m);
            let alike = alike.entry((spec.dtype(), spec.shape())).or_default();
            alike.all.push((*name, *m));
        }
        for (index, spec) in tensors.iter().enumerate() {
            if of[index].is_some() || spec.byte_len() == 0 {
                continue;
            }
            let Some(alike) = alike.get_mut(&(spec.dtype(), spec.shape())) else { continue };
            let unused = alike.all.iter().filter(|(_, m)| !used.contains(m));
            let prefixed: Vec<_> = unused.filter(|(name, _)| prefixed(name, spec.name())).collect();
            of[index] = match prefixed[..] {
                [(_, only)] => Some(*only),
                _ => alike.same_sample(&files, new, index)?,
            };
        }
        Ok(Matches { files, of })
    }

    /// The file and the tensor that tensor `index` is compared with.
    pub(crate) fn of(&self, index: usize) -> Option<Match> {
        self.of.get(index).copied().flatten()
    }

    /// The files that are needed, by their places in [`files`](Self::files).
    pub(crate) fn needed(&self) -> BTreeMap<usize, &Arc<BaseFile>> {
        self.of.iter().flatten().map(|of| (of.file, &self.files[of.file])).collect()
    }

    /// The spec of a base's tensor.
    pub(crate) fn spec(&self, of: Match) -> &TensorSpec {
        &self.files[of.file].tensors()[of.tensor]
    }

    /// The base of tensor `index`, which is `spec`.
    pub(crate) fn open(&self, index: usize, spec: &TensorSpec) -> Result<Option<TensorBase>> {
        let Some(of) = self.of(index) else { return Ok(None) };
        TensorBase::new(&self.files[of.file], self.spec(of).name(), spec).map(Some)
    }

    /// Whether reading one of the files waits for another machine.
    pub(crate) fn wait(&self) -> bool {
        self.files.iter().any(|file| file.waits())
    }
}

/// Whether one name is the other one with a prefix, such as `model.`.
fn prefixed(a: &str, b: &str) -> bool {
    let (short, long) = if a.len() < b.len() { (a, b) } else { (b, a) };
    long.strip_suffix(short).is_some_and(|prefix| prefix.ends_with('.'))
}

/// Tensors of a base with the same dtype and shape.
#[derive(Default)]
struct Alike<'a> {
    all: Vec<(&'a str, Match)>,
    /// Those whose samples are known.
    by_sample: Option<HashMap<u64, Match>>,
}

impl Alike<'_> {
    /// The first with the same sample as tensor `index` of `new`.
    fn same_sample(
        &mut self,
        files: &[Arc<BaseFile>],
        new: &New<'_>,
        index: usize,
    ) -> Result<Option<Match>> {
        let spec = &new.header.tensors()[index];
        let mut buffer = Vec::new();
        if self.by_sample.is_none() {
            self.all.sort_by_key(|&(_, m)| (m.file, m.tensor));
            let mut samples = HashMap::new();
            for &(name, m) in &self.all {
                let base = TensorBase::new(&files[m.file], name, spec)?;
                let found = sample(&base, 0, spec.byte_len(), &mut buffer).in_tensor(name)?;
                samples.entry(found).or_insert(m);
            }
            self.by_sample = Some(samples);
        }
        let at = new.data_at + new.header.data_range(index).start;
        let found = sample(new.source, at, spec.byte_len(), &mut buffer).in_tensor(spec.name())?;
        Ok(self.by_sample.as_ref().and_then(|samples| samples.get(&found)).copied())
    }
}

/// A checksum of five samples of 4 KiB of the `byte_len` bytes at `at`. They cover a small tensor
/// as a whole.
pub(crate) fn sample(
    source: &dyn ReadAt,
    at: u64,
    byte_len: u64,
    buffer: &mut Vec<u8>,
) -> Result<u64> {
    let len = 4096.min(byte_len);
    let step = (byte_len - len) / 4;
    set_len(buffer, (5 * len) as usize)?;
    for (i, piece) in buffer.chunks_mut(len.max(1) as usize).enumerate() {
        read_at(source, at + i as u64 * step, piece)?;
    }
    Ok(xxh3(buffer))
}
