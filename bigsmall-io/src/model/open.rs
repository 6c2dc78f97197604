//! Reading tensors out of a shard or a folder of shards.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bigsmall_format::{
    BlockDecoder, EncodedTensor, Error, ReadAt, Result, Rule, Shard, TensorSpec, available_threads,
    for_each_in_parallel, zeroed,
};

use crate::folder::walk::SHARD;
use crate::model::layers::group;
use crate::model::stream::read_layer;
use crate::model_index::ModelIndex;
use crate::source::open::{Input, REMOTE_THREADS, Source};
use crate::{encoding, source::open as source};

/// An open model: one shard, or a folder of them. Opening reads the end of every shard; tensors are
/// read when they are asked for, from any thread, each block checked before it is decoded.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("bigsmall-doc-model-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let path = dir.join("m.bs");
/// # let json = br#"{"layers.0.w":{"dtype":"U8","shape":[2,3],"data_offsets":[0,6]}}"#;
/// # let plain = [&(json.len() as u64).to_le_bytes()[..], json, &[1, 2, 3, 4, 5, 6]].concat();
/// # std::fs::write(dir.join("m.safetensors"), plain)?;
/// # let options = bigsmall_io::CompressOptions { replace: true, ..Default::default() };
/// # bigsmall_io::compress(&dir.join("m.safetensors"), &path, &options, &Default::default())?;
/// let model = bigsmall_io::Model::open(&path)?;
/// let tensor = model.tensor("layers.0.w")?;
/// assert_eq!(tensor.spec().shape(), [2, 3]);
/// assert_eq!(tensor.bytes(), [1, 2, 3, 4, 5, 6]);
/// assert_eq!(model.rows("layers.0.w", 1..2)?.bytes(), [4, 5, 6]);
/// assert_eq!(model.layer("layers.0")?.len(), 1);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Model {
    shards: Vec<Open>,
    /// Shard and place of every tensor, by its name.
    places: HashMap<Box<str>, (usize, usize)>,
    threads: usize,
    /// Whether reads may take their time, so that many are to be under way.
    patient: bool,
}

struct Open {
    name: String,
    shard: Shard<Source>,
}

/// A tensor's original bytes, or some of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    spec: TensorSpec,
    bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn new(spec: TensorSpec, bytes: Vec<u8>) -> Self {
        Tensor { spec, bytes }
    }

    /// Name, dtype and shape; for a range of rows the shape is that of the range.
    #[must_use]
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// The values, little-endian and row-major, as they were in the safetensors file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The values, to keep.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// How a tensor is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stored {
    /// The shard's name within the folder.
    pub shard: String,
    /// The encoding's name.
    pub encoding: &'static str,
    /// Bytes of the payload; 0 where the payload is that of another tensor.
    pub compressed_bytes: u64,
    /// The tensor whose payload this one shares.
    pub shares: Option<String>,
    /// MD5 of the original bytes, where it was asked for when compressing.
    pub md5: Option<[u8; 16]>,
}

impl Model {
    /// Opens the shard `path`, or the folder `path`: the shards that its `model.bs.index.json`
    /// names, or its only `.bs` file.
    ///
    /// `path` may also be a URL: `https://host/model.bs` or `https://host/model.bs.index.json` (feature `http`),
    /// `hf://owner/name`, `hf://owner/name@revision/file.bs` (feature `hub`; environment:
    /// `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`),
    /// `s3://bucket/folder/model.bs` and the like for `gs://` and `az://` (feature `cloud`; the environment of [`object_store`](https://docs.rs/object_store)). Only the bytes that are needed are fetched.
    ///
    /// # Errors
    /// Those of [`Shard::open`]; [`Rule::ModelIndex`], [`Rule::ModelPath`] and
    /// [`Rule::ModelTensor`] for a folder that contradicts itself; [`Rule::Io`];
    /// [`Rule::Remote`]; [`Rule::BackendMissing`] for a URL without its feature.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut model = Model::empty(source::url(path).is_some());
        let folder = match source::open(path)? {
            Input::File(source) => {
                model.add("", Shard::open(source).map_err(|e| e.in_file(path))?)?;
                return Ok(model);
            }
            Input::Folder(folder) => folder,
        };
        let names: Vec<PathBuf> = folder.names_in_root()?;
        let (shards, indices): (Vec<&PathBuf>, Vec<&PathBuf>) = (
            names.iter().filter(|n| n.to_string_lossy().ends_with(SHARD)).collect(),
            names.iter().filter(|n| n.to_string_lossy().ends_with(".bs.index.json")).collect(),
        );
        let index = match (&indices[..], &shards[..]) {
            ([index], _) => Some(*index),
            (_, [_]) => None,
            (found, shards) => {
                return Err(Error::new(Rule::ModelIndex)
                    .in_file(path)
                    .expected("one index file, or one shard")
                    .found(format!("{} and {}", found.len(), shards.len())));
            }
        };
        let index = match index {
            None => None,
            Some(name) => {
                Some(ModelIndex::read(&folder.open_file(name)?).map_err(|e| e.in_file(name))?.1)
            }
        };
        let shards: Vec<String> = match &index {
            None => shards.iter().map(|name| name.to_string_lossy().into_owned()).collect(),
            Some(index) => index.shards().into_iter().map(str::to_owned).collect(),
        };
        let mut opened: Vec<Option<Shard<Source>>> = shards.iter().map(|_| None).collect();
        let readers = model.readers();
        for_each_in_parallel(
            readers,
            shards.iter().zip(&mut opened),
            || (),
            |(), (name, to)| {
                let name = Path::new(name);
                let shard = folder.open_file(name).and_then(Shard::open);
                *to = Some(shard.map_err(|e| e.in_file(name))?);
                Ok(())
            },
        )?;
        for (name, shard) in shards.iter().zip(opened.into_iter().flatten()) {
            model.add(name, shard)?;
        }
        if let Some(index) = index {
            model.check(&index)?;
        }
        Ok(model)
    }

    /// Opens the shard in `source`: bytes in memory, a remote file.
    ///
    /// # Errors
    /// Those of [`Shard::open`].
    pub fn from_source(source: impl ReadAt + 'static) -> Result<Self> {
        let mut model = Model::empty(true);
        model.add("", Shard::open(Source::new(source))?)?;
        Ok(model)
    }

    fn empty(patient: bool) -> Self {
        Model { shards: Vec::new(), places: HashMap::new(), threads: 0, patient }
    }

    fn add(&mut self, name: &str, shard: Shard<Source>) -> Result<()> {
        for (place, spec) in shard.tensors().iter().enumerate() {
            let here = (self.shards.len(), place);
            if self.places.insert(spec.name().into(), here).is_some() {
                return Err(Error::new(Rule::ModelTensor)
                    .in_tensor(spec.name())
                    .found("in two shards"));
            }
        }
        self.shards.push(Open { name: name.to_owned(), shard });
        Ok(())
    }

    /// The index file must say of every tensor where it is, and nothing else.
    fn check(&self, index: &ModelIndex) -> Result<()> {
        for (tensor, shard) in &index.weight_map {
            let found = self.places.get(tensor.as_str()).map(|&(s, _)| &self.shards[s].name);
            if found != Some(shard) {
                return Err(Error::new(Rule::ModelTensor)
                    .in_tensor(tensor)
                    .expected(format!("it to be in {shard:?}")));
            }
        }
        if index.weight_map.len() != self.places.len() {
            return Err(Error::new(Rule::ModelTensor)
                .expected(format!("{} tensors", index.weight_map.len()))
                .found(self.places.len()));
        }
        Ok(())
    }

    /// Decodes on up to `threads` threads; 0, as at first: on as many as the machine offers.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    pub(crate) fn threads(&self) -> usize {
        match (self.threads, self.patient) {
            (0, false) => available_threads(),
            (0, true) => available_threads().max(REMOTE_THREADS),
            (n, _) => n,
        }
    }

    /// How many threads read at once.
    pub(crate) fn readers(&self) -> usize {
        if self.patient { REMOTE_THREADS } else { 2 }
    }

    pub(crate) fn shard(&self, index: usize) -> &Shard<impl ReadAt + use<>> {
        &self.shards[index].shard
    }

    /// Shard and place of every tensor, in the order of [`tensors`](Self::tensors).
    pub(crate) fn places_in_order(&self) -> Vec<(usize, usize)> {
        let shards = self.shards.iter().enumerate();
        shards.flat_map(|(s, open)| (0..open.shard.tensors().len()).map(move |t| (s, t))).collect()
    }

    /// The layers in the order in which the model runs; see [`layer_of`](crate::layer_of).
    #[must_use]
    pub fn layers(&self) -> Vec<&str> {
        self.grouped().into_iter().map(|(name, _)| name).collect()
    }

    /// The layers and the places of their tensors in the order of [`tensors`](Self::tensors).
    pub(crate) fn grouped(&self) -> Vec<(&str, Vec<usize>)> {
        group(self.tensors().map(TensorSpec::name))
    }

    /// The tensors, shard after shard, in the order of their data.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorSpec> {
        self.shards.iter().flat_map(|s| s.shard.tensors())
    }

    /// The shards in the order of their names, which are empty for a single shard.
    pub fn shards(&self) -> impl Iterator<Item = (&str, &Shard<impl ReadAt>)> {
        self.shards.iter().map(|s| (s.name.as_str(), &s.shard))
    }

    fn place(&self, name: &str) -> Result<(&Shard<Source>, usize, &TensorSpec)> {
        let missing = || Error::new(Rule::TensorMissing).in_tensor(name);
        let &(shard, index) = self.places.get(name).ok_or_else(missing)?;
        let shard = &self.shards[shard].shard;
        Ok((shard, index, &shard.tensors()[index]))
    }

    /// Name, dtype and shape of the tensor `name`.
    ///
    /// # Errors
    /// [`Rule::TensorMissing`].
    pub fn spec(&self, name: &str) -> Result<&TensorSpec> {
        Ok(self.place(name)?.2)
    }

    /// How the tensor `name` is stored. Reads nothing.
    ///
    /// # Errors
    /// [`Rule::TensorMissing`].
    pub fn stored(&self, name: &str) -> Result<Stored> {
        let (shard, index, _) = self.place(name)?;
        let entry = shard.entry(index)?;
        let shares = entry.shares().and_then(|owner| shard.tensors().get(owner));
        let payload = shard.payload_range(index)?;
        Ok(Stored {
            shard: self.shards[self.places[name].0].name.clone(),
            encoding: shard.encoding(index).map_or("unknown", |e| e.name()),
            compressed_bytes: if shares.is_some() { 0 } else { payload.end - payload.start },
            shares: shares.map(|s| s.name().to_owned()),
            md5: entry.md5(),
        })
    }

    /// The tensor `name`. Memory: its original bytes, and for each thread four encoded blocks.
    ///
    /// # Errors
    /// [`Rule::TensorMissing`], [`Rule::BlockChecksum`], the rules of its encoding, [`Rule::Io`],
    /// [`Rule::Memory`].
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let spec = self.spec(name)?;
        let mut bytes = zeroed(spec.byte_len())?;
        self.tensor_into(name, &mut bytes)?;
        Ok(Tensor { spec: spec.clone(), bytes })
    }

    /// Decodes the tensor `name` into `dst`, which is as long as its original bytes. On an error
    /// `dst` holds nothing that means anything.
    ///
    /// # Errors
    /// Those of [`tensor`](Self::tensor); [`Rule::BufferLength`].
    pub fn tensor_into(&self, name: &str, dst: &mut [u8]) -> Result<()> {
        let whole = 0..self.spec(name)?.byte_len();
        self.bytes_into(name, whole, dst)
    }

    /// Decodes the original bytes `range` of the tensor `name` into `dst`.
    pub(crate) fn bytes_into(&self, name: &str, range: Range<u64>, dst: &mut [u8]) -> Result<()> {
        let (shard, index, _) = self.place(name)?;
        let decoder = decoder(shard, index)?;
        shard.decode(index, &*decoder, range, dst, self.threads())
    }

    /// The rows `rows` of the tensor `name`: a range of its first dimension. Only the blocks that
    /// hold them are read.
    ///
    /// # Errors
    /// Those of [`tensor`](Self::tensor); [`Rule::RangeOutOfBounds`], [`Rule::UnalignedRange`].
    pub fn rows(&self, name: &str, rows: Range<u64>) -> Result<Tensor> {
        let (_, _, spec) = self.place(name)?;
        let range = spec.row_bytes(rows.clone())?;
        let mut shape = spec.shape().to_vec();
        if let Some(first) = shape.first_mut() {
            *first = rows.end - rows.start;
        }
        let part = TensorSpec::new(name, spec.dtype(), &shape)?;
        let mut bytes = zeroed(range.end - range.start)?;
        self.rows_into(name, rows, &mut bytes)?;
        Ok(Tensor { spec: part, bytes })
    }

    /// Decodes the rows `rows` of the tensor `name` into `dst`.
    ///
    /// # Errors
    /// Those of [`rows`](Self::rows); [`Rule::BufferLength`].
    pub fn rows_into(&self, name: &str, rows: Range<u64>, dst: &mut [u8]) -> Result<()> {
        let range = self.spec(name)?.row_bytes(rows)?;
        self.bytes_into(name, range, dst)
    }

    /// All tensors of a layer, in the order of their data: those named `prefix` or beginning with
    /// `prefix` and a dot, so that `model.layers.1` does not mean `model.layers.10`.
    ///
    /// # Errors
    /// Those of [`tensor`](Self::tensor); [`Rule::TensorMissing`] where there is none.
    pub fn layer(&self, prefix: &str) -> Result<Vec<Tensor>> {
        let prefix = prefix.strip_suffix('.').unwrap_or(prefix);
        let within = |name: &str| match name.strip_prefix(prefix) {
            Some(rest) => rest.is_empty() || rest.starts_with('.'),
            None => false,
        };
        let found = self.tensors().enumerate().filter(|(_, t)| within(t.name()));
        let found: Vec<usize> = found.map(|(place, _)| place).collect();
        if found.is_empty() {
            return Err(Error::new(Rule::TensorMissing).in_tensor(prefix));
        }
        read_layer(self, found)
    }

    /// The tensor `name` as it is stored, for a GPU or another engine: one read, every checksum
    /// verified. Memory: the payload.
    ///
    /// # Errors
    /// [`Rule::TensorMissing`], [`Rule::HeadChecksum`], [`Rule::BlockChecksum`], [`Rule::Io`].
    pub fn encoded(&self, name: &str) -> Result<EncodedTensor> {
        let (shard, index, _) = self.place(name)?;
        shard.encoded(index)
    }
}

fn decoder(shard: &Shard<Source>, index: usize) -> Result<Box<dyn BlockDecoder>> {
    shard.decoder(index, encoding(shard.encoding(index)?)?)
}
