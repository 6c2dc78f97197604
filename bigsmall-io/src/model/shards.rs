//! The open shards of a model, and where each tensor lies.

use std::path::Path;
use std::sync::Arc;

use bigsmall_format::internal::reserve;
use bigsmall_format::{ReadAt, Shard, TensorSpec};

use crate::Progress;
use crate::base::find::find;
use crate::base::model::BaseModel;
use crate::base::tensor::{Bases, Opened};
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::model_index::ModelIndex;
use crate::progress::Stop;
use crate::source::file::{REMOTE_THREADS, Source};
use crate::source::folder::{Input, ModelFiles};
use crate::source::open::open;
use crate::source::url::{shown, url};
use crate::stage::thread::side_by_side;

/// One shard or several.
pub(crate) struct Shards {
    opened: Vec<Open>,
    /// Shard and index of every tensor, sorted by name.
    by_name: Vec<(u32, u32)>,
    /// Whether reads may be slow, so that many should run at once.
    pub(crate) patient: bool,
}

struct Open {
    /// Its name in the folder; empty for a single shard.
    name: String,
    /// Its name in errors; empty for a source without a name.
    shown: String,
    shard: Arc<Shard<Source>>,
    /// Its bases, once they are given.
    bases: Bases,
}

impl Shards {
    /// Opens a file, a folder or a URL; see [`Model::open`](crate::Model::open).
    pub(crate) fn open(path: &Path, stop: &Stop) -> Result<Self> {
        let mut shards = Shards::empty(url(path).is_some());
        let folder = match open(path, stop)? {
            Input::File(source) => {
                let shown = shown(path);
                shards.add("", &shown, Shard::open(source).in_file(&shown)?);
                return shards.sorted();
            }
            Input::Folder(folder) => folder,
        };
        let ModelFiles { shards: names, index } = folder.model().in_file(path)?;
        let mut opened: Vec<Option<Shard<Source>>> = names.iter().map(|_| None).collect();
        side_by_side(shards.readers(), names.iter().zip(&mut opened), |(name, to)| {
            let shard =
                folder.open_file(Path::new(name)).and_then(|source| Ok(Shard::open(source)?));
            *to = Some(shard.in_file(name)?);
            Ok(())
        })?;
        for (name, shard) in names.iter().zip(opened.into_iter().flatten()) {
            shards.add(name, name, shard);
        }
        let shards = shards.sorted()?;
        if let Some((name, index)) = index {
            shards.check(&index).in_file(name)?;
        }
        Ok(shards)
    }

    /// Finds the bases of the shards in `base`.
    pub(crate) fn find_bases(&mut self, base: &BaseModel) -> Result<()> {
        for index in 0..self.opened.len() {
            let found = find(self.shard(index), base.files(), &Progress::default());
            self.opened[index].bases = found.map_err(|e| self.named(index, e))?;
        }
        Ok(())
    }

    /// The shards as a base of other models.
    pub(crate) fn as_base(&self) -> BaseModel {
        let shards = self
            .opened
            .iter()
            .map(|open| (open.shown.clone(), Arc::clone(&open.shard), open.bases.clone()));
        BaseModel::of_shards(shards.collect(), self.patient)
    }

    pub(crate) fn bases(&self, index: usize) -> &Bases {
        &self.opened[index].bases
    }

    /// Opens the shard in `source`.
    pub(crate) fn of_source(source: impl ReadAt + 'static) -> Result<Self> {
        let mut shards = Shards::empty(true);
        shards.add("", "", Shard::open(Source::new(source))?);
        shards.sorted()
    }

    /// Opens the shards in `sources`, each with its name.
    pub(crate) fn of_sources(sources: Vec<(String, Source)>) -> Result<Self> {
        let mut shards = Shards::empty(true);
        let mut opened: Vec<Option<Shard<Source>>> = sources.iter().map(|_| None).collect();
        let (names, sources): (Vec<String>, Vec<Source>) = sources.into_iter().unzip();
        side_by_side(
            shards.readers(),
            names.iter().zip(sources).zip(&mut opened),
            |((name, source), to)| {
                *to = Some(Shard::open(source).in_file(name)?);
                Ok(())
            },
        )?;
        for (name, shard) in names.iter().zip(opened.into_iter().flatten()) {
            shards.add(name, name, shard);
        }
        shards.sorted()
    }

    fn empty(patient: bool) -> Self {
        Shards { opened: Vec::new(), by_name: Vec::new(), patient }
    }

    fn add(&mut self, name: &str, shown: &str, shard: Shard<Source>) {
        let (name, shown, shard) = (name.to_owned(), shown.to_owned(), Arc::new(shard));
        self.opened.push(Open { name, shown, shard, bases: Bases::default() });
    }

    /// Sorts the tensors of all shards by name; an error if two have the same name.
    fn sorted(mut self) -> Result<Self> {
        let lens = self.opened.iter().map(|open| open.shard.tensors().len());
        let mut by_name = Vec::new();
        reserve(&mut by_name, lens.sum())?;
        for (shard, open) in self.opened.iter().enumerate() {
            by_name.extend((0..open.shard.tensors().len() as u32).map(|i| (shard as u32, i)));
        }
        by_name.sort_unstable_by(|&a, &b| self.name_at(a).cmp(self.name_at(b)));
        let mut neighbours = by_name.iter().zip(by_name.iter().skip(1));
        if let Some((a, _)) = neighbours.find(|&(&a, &b)| self.name_at(a) == self.name_at(b)) {
            return Err(Error::new(ErrorKind::ModelTensor)
                .in_tensor(self.name_at(*a))
                .found("in two shards"));
        }
        self.by_name = by_name;
        Ok(self)
    }

    fn name_at(&self, (shard, index): (u32, u32)) -> &str {
        self.opened[shard as usize].shard.tensors()[index as usize].name()
    }

    /// Shard and index of the tensor `name`, if there is one.
    fn place_of(&self, name: &str) -> Option<(usize, usize)> {
        let found = self.by_name.binary_search_by(|&place| self.name_at(place).cmp(name)).ok()?;
        let (shard, index) = self.by_name[found];
        Some((shard as usize, index as usize))
    }

    /// The index file must name the right shard for every tensor, and no other tensors.
    fn check(&self, index: &ModelIndex) -> Result<()> {
        for (tensor, shard) in index.pairs() {
            let found = self.place_of(tensor).map(|(s, _)| &*self.opened[s].name);
            if found != Some(shard) {
                return Err(Error::new(ErrorKind::ModelTensor)
                    .in_tensor(tensor)
                    .expected(format!("in {shard:?}, as the index file says")));
            }
        }
        if index.pairs().len() != self.by_name.len() {
            return Err(Error::new(ErrorKind::ModelTensor)
                .expected(format!("{} tensors", index.pairs().len()))
                .found(self.by_name.len()));
        }
        Ok(())
    }

    /// How many threads read at once.
    pub(crate) fn readers(&self) -> usize {
        if self.patient { REMOTE_THREADS } else { 2 }
    }

    /// Has an error about the shard `index` name it.
    pub(crate) fn named(&self, index: usize, error: impl Into<Error>) -> Error {
        let error = error.into();
        match &*self.opened[index].shown {
            "" => error,
            shown => error.in_file(shown),
        }
    }

    pub(crate) fn shard(&self, index: usize) -> &Shard<Source> {
        &self.opened[index].shard
    }

    /// Shard and index of every tensor, in the order of [`tensors`](Self::tensors).
    pub(crate) fn places_in_order(&self) -> Vec<(usize, usize)> {
        let shards = self.opened.iter().enumerate();
        shards.flat_map(|(s, open)| (0..open.shard.tensors().len()).map(move |t| (s, t))).collect()
    }

    /// The tensors, shard after shard, in the order of their data.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &TensorSpec> {
        self.opened.iter().flat_map(|s| s.shard.tensors())
    }

    /// The shards and their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Shard<Source>)> {
        self.opened.iter().map(|s| (s.name.as_str(), &*s.shard))
    }

    /// The name of the shard with the tensor `name`.
    pub(crate) fn name_of(&self, name: &str) -> Result<&str> {
        let ((shard, _), _) = self.find(name)?;
        Ok(&self.opened[shard].name)
    }

    /// Shard and index of the tensor `name`, and its spec.
    pub(crate) fn find(&self, name: &str) -> Result<((usize, usize), &TensorSpec)> {
        let missing = || Error::new(ErrorKind::TensorMissing).in_tensor(name);
        let (shard, index) = self.place_of(name).ok_or_else(missing)?;
        Ok(((shard, index), &self.opened[shard].shard.tensors()[index]))
    }

    /// The shard, the index and the spec of the tensor `name`.
    pub(crate) fn place(&self, name: &str) -> Result<(&Shard<Source>, usize, &TensorSpec)> {
        let ((shard, index), spec) = self.find(name)?;
        Ok((&self.opened[shard].shard, index, spec))
    }

    /// Opens a tensor of the shard `shard`.
    pub(crate) fn open_tensor(&self, shard: usize, index: usize) -> Result<Opened> {
        Opened::new(self.shard(shard), self.bases(shard), index)
    }
}
