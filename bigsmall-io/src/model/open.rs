//! Reads tensors from a shard or a folder of shards.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

#[cfg(doc)]
use bigsmall_format::Rule;
use bigsmall_format::internal::{blocks_within, encode_or_raw, read_at, set_len, zeroed};
use bigsmall_format::{EncodedTensor, ReadAt, Shard, TensorSpec, decode_range};

use crate::base::model::BaseModel;
use crate::base::tensor::{Scratch, Window};
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::metadata::metadata;
use crate::model::feed::{PIECE, check_len, read_into, read_layer};
use crate::model::layers::group;
use crate::model::shards::Shards;
use crate::model::tensor::{Stored, StoredBase, Tensor};
use crate::progress::Stop;
use crate::source::file::Source;
use crate::stage::thread::side_by_side;
use crate::{Encoding, Progress};

/// Original bytes of a tensor whose encoded blocks are fetched from another machine before they are
/// decoded.
const WINDOW: u64 = 32 << 20;
/// Bytes of one of the parallel fetches.
const READ: usize = 4 << 20;

/// An open model: one shard, or a folder of shards. Opening reads only the end of every shard.
/// Tensors are read on request, from any thread. Each block is checked before it is decoded.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("bigsmall-doc-model-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let path = dir.join("m.bs");
/// # let view = bigsmall_io::TensorView::from_slice(&[2, 3], &[1u8, 2, 3, 4, 5, 6]);
/// # bigsmall_io::save(&path, [("layers.0.w", view)], None)?;
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
    shards: Shards,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shards: Vec<&str> = self.shards.iter().map(|(name, _)| name).collect();
        f.debug_struct("Model")
            .field("shards", &shards)
            .field("tensors", &self.tensors().count())
            .finish_non_exhaustive()
    }
}

impl Model {
    /// Opens the shard `path`, or the folder `path`: the shards in its `model.bs.index.json`, or
    /// its only `.bs` file. Payloads are not checked here, but when they are read. To check all of
    /// them, use [`verify`](crate::verify).
    ///
    /// `path` may also be a URL:
    /// - `https://host/model.bs` or `https://host/model.bs.index.json` (feature `http`);
    /// - `hf://owner/name`, `hf://owner/name@revision/file.bs` (feature `hub`; environment:
    ///   `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_CACHE` and
    ///   `HF_HUB_OFFLINE`; without a token in the environment, that of `hf auth login`);
    /// - `s3://bucket/folder/model.bs`, also `gs://` and `az://` (feature `cloud`; the environment
    ///   of [`object_store`](https://docs.rs/object_store)).
    ///
    /// Only the needed bytes are fetched.
    ///
    /// # Errors
    /// Those of [`Shard::open`]; [`ErrorKind::ModelIndex`], [`ErrorKind::ModelPath`] and
    /// [`ErrorKind::ModelTensor`] for a folder that contradicts itself; [`ErrorKind::Io`];
    /// [`ErrorKind::Remote`]; [`ErrorKind::FeatureMissing`] for a URL without its feature.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Model { shards: Shards::open(path.as_ref(), &Stop::default())? })
    }

    /// As [`open`](Self::open), with a way to give up: once another thread cancels `progress`,
    /// opening ends soon with [`ErrorKind::Cancelled`], and so does every later read of the model
    /// that waits for another machine.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); [`ErrorKind::Cancelled`].
    pub fn open_with(path: impl AsRef<Path>, progress: &Progress) -> Result<Self> {
        Ok(Model { shards: Shards::open(path.as_ref(), &progress.stop())? })
    }

    /// Opens the shard in `source`: bytes in memory, a remote file.
    ///
    /// # Errors
    /// Those of [`Shard::open`].
    pub fn from_source(source: impl ReadAt + 'static) -> Result<Self> {
        Ok(Model { shards: Shards::of_source(source)? })
    }

    /// Opens shards from any sources, each with a name for errors and for [`stored`](Self::stored).
    /// The model has the tensors of all of them.
    ///
    /// # Errors
    /// Those of [`Shard::open`]; [`ErrorKind::ModelTensor`] for a tensor that is in two shards.
    ///
    /// ```
    /// use bigsmall_io::{Model, Progress, ReadAt, SaveOptions, TensorView, save_to};
    /// let shard = |name: &str, values: &[u8]| {
    ///     let mut shard = Vec::new();
    ///     let tensors = [(name, TensorView::from_slice(&[1], values))];
    ///     let (options, progress) = (SaveOptions::default(), Progress::default());
    ///     save_to(&mut shard, tensors, None, &options, &progress).map(|_| shard)
    /// };
    /// let shards = [("first", shard("a", &[1])?), ("second", shard("b", &[2])?)];
    /// let model = Model::from_sources(shards)?;
    /// assert_eq!(model.tensor("b")?.bytes(), [2]);
    /// assert_eq!(model.stored("b")?.shard, "second");
    /// # Ok::<(), bigsmall_io::Error>(())
    /// ```
    pub fn from_sources<N: Into<String>, R: ReadAt + 'static>(
        sources: impl IntoIterator<Item = (N, R)>,
    ) -> Result<Self> {
        let sources = sources.into_iter().map(|(name, source)| (name.into(), Source::new(source)));
        Ok(Model { shards: Shards::of_sources(sources.collect())? })
    }

    /// Gives the model the base of its tensors. `base` is a [`BaseModel`], or a [`Model`] whose own
    /// bases, if any, have been given to it. Tensors are then read, streamed and loaded as those of
    /// any model. Only the blocks of the base that are needed are read, and each is compared with
    /// its checksum.
    ///
    /// # Errors
    /// [`Rule::BaseMismatch`] when it is not the base that the shards were compressed against;
    /// [`Rule::BaseMissing`] when the base of a base is missing; [`Rule::BaseDepth`] for a chain
    /// that is a circle.
    pub fn with_base(mut self, base: impl Into<BaseModel>) -> Result<Self> {
        self.shards.find_bases(&base.into())?;
        Ok(self)
    }

    pub(crate) fn inner(&self) -> &Shards {
        &self.shards
    }

    /// The layers in the order in which the model runs; see [`layer_of`](crate::layer_of).
    #[must_use]
    pub fn layers(&self) -> Vec<&str> {
        self.grouped().into_iter().map(|(name, _)| name).collect()
    }

    /// The layers and the indices of their tensors in the order of [`tensors`](Self::tensors).
    pub(crate) fn grouped(&self) -> Vec<(&str, Vec<usize>)> {
        group(self.tensors().map(TensorSpec::name))
    }

    /// The tensors, shard after shard, in the order of their data.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorSpec> {
        self.shards.tensors()
    }

    /// The shards with their names, in the order of the names. The name of a single shard is empty.
    pub fn shards(&self) -> impl Iterator<Item = (&str, &Shard<impl ReadAt>)> {
        self.shards.iter()
    }

    /// The `__metadata__` of the shards' headers. If several shards have a key, the first one
    /// counts.
    ///
    /// # Errors
    /// [`Rule::HeaderSyntax`], which no open shard has.
    pub fn metadata(&self) -> Result<HashMap<String, String>> {
        let mut all = HashMap::new();
        for (_, shard) in self.shards.iter() {
            for (key, value) in metadata(shard.header_json())? {
                all.entry(key).or_insert(value);
            }
        }
        Ok(all)
    }

    /// Name, dtype and shape of the tensor `name`.
    ///
    /// # Errors
    /// [`ErrorKind::TensorMissing`].
    pub fn spec(&self, name: &str) -> Result<&TensorSpec> {
        Ok(self.shards.place(name)?.2)
    }

    /// How the tensor `name` is stored. Reads nothing.
    ///
    /// # Errors
    /// [`ErrorKind::TensorMissing`].
    pub fn stored(&self, name: &str) -> Result<Stored> {
        let (shard, index, _) = self.shards.place(name)?;
        let entry = shard.entry(index)?;
        let shares = entry.shares().and_then(|owner| shard.tensors().get(owner));
        let payload = shard.payload_range(index)?;
        Ok(Stored {
            shard: self.shards.name_of(name)?.to_owned(),
            encoding: shard.encoding(index).map_or("unknown", |e| e.name()),
            base: if shares.is_some() { None } else { Self::base_of(shard, index)? },
            compressed_bytes: if shares.is_some() { 0 } else { payload.end - payload.start },
            shares: shares.map(|s| s.name().to_owned()),
            md5: entry.md5(),
        })
    }

    fn base_of(shard: &Shard<Source>, index: usize) -> Result<Option<StoredBase>> {
        let Some(base) = shard.base_of(index)? else { return Ok(None) };
        let table = shard.table(index)?;
        let same = (0..table.n_blocks()).filter(|&block| table.block_len(block) == 0);
        Ok(Some(StoredBase {
            base: base.base,
            tensor: base.name.to_owned(),
            n_blocks: table.n_blocks(),
            n_same_blocks: same.count() as u64,
        }))
    }

    /// The tensor `name`. Memory: its original bytes, and for each thread four encoded blocks.
    ///
    /// # Errors
    /// [`ErrorKind::TensorMissing`], [`Rule::BlockChecksum`], the rules of its encoding,
    /// [`ErrorKind::Io`], [`ErrorKind::Memory`].
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let spec = self.spec(name)?;
        let mut bytes = zeroed(spec.byte_len())?;
        self.tensor_into(name, &mut bytes)?;
        Ok(Tensor::new(spec.clone(), bytes))
    }

    /// Decodes the tensor `name` into `dst`, which must be as long as its original bytes. After an
    /// error the contents of `dst` are unspecified. For typed memory pass
    /// `bytemuck::cast_slice_mut(&mut values)`; the values are little-endian.
    ///
    /// # Errors
    /// Those of [`tensor`](Self::tensor); [`Rule::BufferLength`].
    pub fn tensor_into(&self, name: &str, dst: &mut [u8]) -> Result<()> {
        let whole = 0..self.spec(name)?.byte_len();
        self.bytes_into(name, whole, dst)
    }

    /// Decodes many tensors, each into a slice as long as its original bytes. All their blocks are
    /// decoded in one parallel loop, so small tensors are decoded in parallel too. They are read in
    /// the order of the file, neighbours in one piece.
    ///
    /// All names and lengths are checked before anything is read. After a later error the contents
    /// of the slices are unspecified. Memory: 16 MiB of encoded bytes.
    ///
    /// # Errors
    /// Those of [`tensor`](Self::tensor); [`Rule::BufferLength`].
    ///
    /// ```
    /// # use bigsmall_io::{Model, Progress, SaveOptions, TensorView, save_to};
    /// # let mut shard = Vec::new();
    /// # let view = |values: &'static [u8]| TensorView::from_slice(&[2], values);
    /// # let tensors = [("a", view(&[1, 2])), ("b", view(&[3, 4]))];
    /// # save_to(&mut shard, tensors, None, &SaveOptions::default(), &Progress::default())?;
    /// # let model = Model::from_source(shard)?;
    /// let mut values = [0; 4];
    /// let (a, b) = values.split_at_mut(2);
    /// model.tensors_into([("a", a), ("b", b)])?;
    /// assert_eq!(values, [1, 2, 3, 4]);
    /// # Ok::<(), bigsmall_io::Error>(())
    /// ```
    pub fn tensors_into<'a, N: AsRef<str>>(
        &self,
        tensors: impl IntoIterator<Item = (N, &'a mut [u8])>,
    ) -> Result<()> {
        let tensors = tensors.into_iter().map(|(name, dst)| {
            let (place, spec) = self.shards.find(name.as_ref())?;
            check_len(spec, dst)?;
            Ok((place, dst))
        });
        read_into(&self.shards, tensors.collect::<Result<_>>()?)
    }

    /// Decodes the original bytes `range` of the tensor `name` into `dst`. Only the blocks that
    /// contain them are read.
    ///
    /// # Errors
    /// Those of [`tensor`](Self::tensor); [`Rule::RangeOutOfBounds`], [`Rule::BufferLength`].
    pub fn bytes_into(&self, name: &str, range: Range<u64>, dst: &mut [u8]) -> Result<()> {
        let ((shard, _), _) = self.shards.find(name)?;
        self.decode(name, range, dst).map_err(|e| self.shards.named(shard, e))
    }

    fn decode(&self, name: &str, range: Range<u64>, dst: &mut [u8]) -> Result<()> {
        let ((place, index), spec) = self.shards.find(name)?;
        let shard = self.shards.shard(place);
        let opened = self.shards.open_tensor(place, index).in_tensor(name)?;
        let payload = shard.payload_range(index)?;
        let fits = range.end <= spec.byte_len()
            && range.end.checked_sub(range.start) == Some(dst.len() as u64);
        let in_memory = || shard.source().bytes_at(payload.clone()).is_some();
        if !fits || !(opened.waits() || self.shards.patient && !in_memory()) {
            return opened.decode_in_pool(shard, index, range, dst).in_tensor(name);
        }
        // Reads wait for another machine: many run at once, on separate threads. Their bytes are
        // decoded when all have arrived.
        let (table, block) = (shard.table(index)?, spec.block_bytes() as u64);
        if table.needs_base() {
            // Each thread reads some blocks of the shard and of the base, and decodes them.
            let step = blocks_within(spec, PIECE) * block;
            let first = (range.start / step + 1) * step;
            let (head, rest) = dst.split_at_mut(dst.len().min((first - range.start) as usize));
            let pieces = std::iter::once(head).chain(rest.chunks_mut(step as usize));
            let mut at = range.start;
            let pieces: Vec<_> = pieces
                .map(|piece| {
                    let begin = at;
                    at += piece.len() as u64;
                    (begin..at, piece)
                })
                .collect();
            return side_by_side(self.shards.readers(), pieces.into_iter(), |(range, piece)| {
                opened.decode_part(shard, index, range, piece, &mut Scratch::default())
            })
            .in_tensor(name);
        }
        let mut window = Vec::new();
        let (mut at, mut rest) = (range.start, dst);
        while at < range.end {
            let end = range.end.min((at / block + (WINDOW / block).max(1)) * block);
            let place = table.blocks_range(at / block..end.div_ceil(block));
            set_len(&mut window, (place.end - place.start) as usize)?;
            let from = payload.start + place.start;
            let pieces = window.chunks_mut(READ).enumerate();
            side_by_side(self.shards.readers(), pieces, |(i, piece)| {
                Ok(read_at(shard.source(), from + (i * READ) as u64, piece)?)
            })
            .in_tensor(name)?;
            let (piece, after) = rest.split_at_mut((end - at) as usize);
            let found = Window { at: place.start, bytes: &window };
            decode_range(opened.decoder(), spec, table, &found, at..end, piece)
                .map_err(|e| e.in_part_at(payload.start))?;
            (at, rest) = (end, after);
        }
        Ok(())
    }

    /// The rows `rows` of the tensor `name`: a range of its first dimension. Only the blocks that
    /// contain them are read.
    ///
    /// # Errors
    /// Those of [`tensor`](Self::tensor); [`Rule::RangeOutOfBounds`], [`Rule::UnalignedRange`].
    pub fn rows(&self, name: &str, rows: Range<u64>) -> Result<Tensor> {
        let (_, _, spec) = self.shards.place(name)?;
        let range = spec.row_bytes(rows.clone())?;
        let mut shape = spec.shape().to_vec();
        if let Some(first) = shape.first_mut() {
            *first = rows.end - rows.start;
        }
        let part = TensorSpec::new(name, spec.dtype(), &shape)?;
        let mut bytes = zeroed(range.end - range.start)?;
        self.rows_into(name, rows, &mut bytes)?;
        Ok(Tensor::new(part, bytes))
    }

    /// Decodes the rows `rows` of the tensor `name` into `dst`. For typed memory pass
    /// `bytemuck::cast_slice_mut(&mut values)`; the values are little-endian.
    ///
    /// # Errors
    /// Those of [`rows`](Self::rows); [`Rule::BufferLength`].
    pub fn rows_into(&self, name: &str, rows: Range<u64>, dst: &mut [u8]) -> Result<()> {
        let range = self.spec(name)?.row_bytes(rows)?;
        self.bytes_into(name, range, dst)
    }

    /// All tensors of a layer, in the order of their data: those whose name is `prefix`, or begins
    /// with `prefix` and a dot. So `model.layers.1` does not include `model.layers.10`.
    ///
    /// # Errors
    /// Those of [`tensor`](Self::tensor); [`ErrorKind::TensorMissing`] where there is none.
    pub fn layer(&self, prefix: &str) -> Result<Vec<Tensor>> {
        let prefix = prefix.strip_suffix('.').unwrap_or(prefix);
        let within = |name: &str| match name.strip_prefix(prefix) {
            Some(rest) => rest.is_empty() || rest.starts_with('.'),
            None => false,
        };
        let found = self.tensors().enumerate().filter(|(_, t)| within(t.name()));
        let found: Vec<usize> = found.map(|(place, _)| place).collect();
        if found.is_empty() {
            return Err(Error::new(ErrorKind::TensorMissing).in_tensor(prefix));
        }
        let places = self.shards.places_in_order();
        read_layer(&self.shards, found.into_iter().map(|place| places[place]).collect())
    }

    /// The tensor `name` in its encoded form, for a GPU or another engine. One read; every checksum
    /// is verified. Memory: the payload. A tensor with a base is decoded and encoded again as
    /// `ans`, or raw, so that it stands alone.
    ///
    /// A product on the CPU needs the encoding TBE. A tensor of another encoding is encoded again:
    ///
    /// ```
    /// # use bigsmall_io::{Model, Progress, SaveOptions, TensorView, save_to};
    /// # let mut shard = Vec::new();
    /// # let ones = [0x80, 0x3f].repeat(4);
    /// # let tensors = [("w", TensorView::new(bigsmall_io::Dtype::BF16, &[2, 2], ones))];
    /// # save_to(&mut shard, tensors, None, &SaveOptions::default(), &Progress::default())?;
    /// # let model = Model::from_source(shard)?;
    /// use bigsmall_tbe::{Decoded, EncodingId, Matrix, Tbe, encode_tensor};
    ///
    /// let mut encoded = model.encoded("w")?;
    /// if encoded.encoding() != EncodingId::Tbe {
    ///     let original = Decoded::new(&encoded, bigsmall_io::encoding(encoded.encoding())?)?;
    ///     encoded = encode_tensor(&Tbe::default(), encoded.spec(), &original)?;
    /// }
    /// let matrix = Matrix::new(encoded)?;
    /// let mut y = [0.0; 2];
    /// matrix.matmul(&[1.0, 2.0], 1, &mut y)?;
    /// assert_eq!(y, [3.0; 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::TensorMissing`], [`Rule::HeadChecksum`], [`Rule::BlockChecksum`],
    /// [`ErrorKind::Io`]; those of [`tensor`](Self::tensor) for a tensor with a base.
    pub fn encoded(&self, name: &str) -> Result<EncodedTensor> {
        let ((shard, index), spec) = self.shards.find(name)?;
        if self.shards.shard(shard).table(index)?.needs_base() {
            let bytes = self.tensor(name)?.into_bytes();
            return Ok(encode_or_raw(Encoding::default().implementation(), spec, &bytes)?);
        }
        self.shards.shard(shard).encoded(index).map_err(|e| self.shards.named(shard, e))
    }
}

impl From<&Model> for BaseModel {
    fn from(model: &Model) -> Self {
        model.shards.as_base()
    }
}

impl From<Model> for BaseModel {
    fn from(model: Model) -> Self {
        model.shards.as_base()
    }
}
