//! A model layer by layer: encoded bytes are read ahead within a budget and decoded into the
//! caller's buffers.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bigsmall_format::TensorSpec;

use crate::Progress;
use crate::error::{Error, ErrorKind, Result};
use crate::model::feed::{BASE, Feed, Place, Wanted, check_len};
use crate::model::layer::Layer;
use crate::model::open::Model;
use crate::model::shards::Shards;
use crate::stage::thread::start;

/// How to stream a model.
///
/// ```
/// let options = bigsmall_io::StreamOptions::default().budget(256 << 20);
/// assert_ne!(options, bigsmall_io::StreamOptions::default());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamOptions {
    /// The most bytes that the loader may hold, without the layers that the caller keeps; at least
    /// 64 MiB. `None`: 64 MiB and the size of the largest encoded layer, for reading ahead.
    pub budget: Option<u64>,
}

impl StreamOptions {
    /// The default budget.
    #[must_use]
    pub fn new() -> Self {
        StreamOptions::default()
    }

    /// Sets [`budget`](Self#structfield.budget), in bytes.
    #[must_use]
    pub fn budget(mut self, bytes: u64) -> Self {
        self.budget = Some(bytes);
        self
    }
}

/// Loads the layers of a model in the order in which it runs, and reads the next ones meanwhile.
///
/// As an iterator it allocates new buffers for every layer. [`next_into`](Self::next_into) reuses
/// the buffers of an earlier layer; it is faster, and memory does not grow.
/// [`next_into_slices`](Self::next_into_slices) decodes into the caller's memory.
///
/// Memory: at most the budget of [`StreamOptions`], and the layers that the caller keeps. Dropping
/// the loader stops its reading.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("bigsmall-doc-stream-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let path = dir.join("m.bs");
/// # let view = |values: &'static [u8]| bigsmall_io::TensorView::from_slice(&[3], values);
/// # let tensors = [("layers.0.w", view(&[1, 2, 3])), ("layers.1.w", view(&[4, 5, 6]))];
/// # bigsmall_io::save(&path, tensors, None)?;
/// use bigsmall_io::{Layer, Model, StreamOptions, StreamingLoader};
///
/// let mut loader = StreamingLoader::new(Model::open(&path)?, &StreamOptions::default())?;
/// let mut layer = Layer::default();
/// while loader.next_into(&mut layer)? {
///     println!("{}: {} bytes", layer.name(), layer.byte_len());
/// }
/// # assert_eq!(layer.name(), "layers.1");
/// # assert_eq!(layer.tensors()[0].bytes(), [4, 5, 6]);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct StreamingLoader {
    model: Arc<Model>,
    feed: Arc<Feed>,
    progress: Arc<Progress>,
    /// The next layer; the number of layers after the last one and after an error.
    next: usize,
}

impl StreamingLoader {
    /// Begins to read `model`. Decodes only on request.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] for a budget below 64 MiB, [`ErrorKind::Memory`] where there is no
    /// thread to be had.
    pub fn new(model: impl Into<Arc<Model>>, options: &StreamOptions) -> Result<Self> {
        let model = model.into();
        if let Some(budget) = options.budget.filter(|&b| b < BASE) {
            return Err(Error::new(ErrorKind::Argument)
                .expected(format!("a budget of at least {BASE} bytes"))
                .found(budget));
        }
        let places = model.inner().places_in_order();
        let layers = model.grouped().into_iter().map(|(name, tensors)| {
            (name, tensors.into_iter().map(|place| places[place]).collect())
        });
        let feed = Feed::new(model.inner(), layers.collect())?;
        let largest = feed.layers.iter().map(|l| feed.encoded_len(l)).max().unwrap_or(0);
        let budget = options.budget.unwrap_or(BASE + largest);
        // A quarter of the base is for buffers, the rest for threads and the allocator.
        let feed = Arc::new(feed.with_room(budget - BASE + BASE / 4));
        let progress = Arc::new(Progress::default());
        progress.expect(feed.layers.iter().map(|l| l.original_len).sum());
        // If a thread does not start, dropping the loader ends the others.
        let loader = StreamingLoader { model, feed, progress, next: 0 };
        for _ in 0..loader.model.inner().readers().min(loader.feed.pieces.len()) {
            let (feed, model) = (Arc::clone(&loader.feed), Arc::clone(&loader.model));
            start("read ahead", |builder| {
                builder.spawn(move || {
                    feed.read(model.inner());
                })
            })?;
        }
        Ok(loader)
    }

    /// The layers' names, in order.
    pub fn layers(&self) -> impl Iterator<Item = &str> {
        self.feed.layers.iter().map(|l| &*l.name)
    }

    /// How far the loader is; cancelling it makes the next call fail with [`ErrorKind::Cancelled`].
    #[must_use]
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// The next layer, before it is decoded, so that the caller can allocate memory for it. `None`
    /// after the last layer and after an error.
    #[must_use]
    pub fn peek_layer(&self) -> Option<NextLayer<'_>> {
        let layer = self.feed.layers.get(self.next)?;
        let shards = self.model.inner();
        let spec = |&(shard, index): &Place| &shards.shard(shard).tensors()[index];
        Some(NextLayer { name: &layer.name, tensors: layer.tensors.iter().map(spec).collect() })
    }

    /// Decodes the next layer into slices: one for each tensor, with its full name and of its
    /// length, in any order. `false` after the last layer. For typed memory pass
    /// `bytemuck::cast_slice_mut(&mut values)`; the values are little-endian.
    ///
    /// If the slices do not fit the layer, it is an error before anything is decoded, and the
    /// loader does not advance. After any other error the loader is at its end, and the contents of
    /// the slices are unspecified.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] where a tensor of the layer has no slice or two, or a slice has no
    /// tensor of the layer; [`Rule::BufferLength`](crate::Rule::BufferLength); those of
    /// [`next_into`](Self::next_into).
    ///
    /// ```
    /// # use bigsmall_io::{Model, Progress, SaveOptions, TensorView, save_to};
    /// # let mut shard = Vec::new();
    /// # let view = |values: &'static [u8]| TensorView::from_slice(&[2], values);
    /// # let tensors = [("layers.0.w", view(&[1, 2])), ("layers.1.w", view(&[3, 4]))];
    /// # save_to(&mut shard, tensors, None, &SaveOptions::default(), &Progress::default())?;
    /// # let model = Model::from_source(shard)?;
    /// use bigsmall_io::{StreamOptions, StreamingLoader};
    /// let mut loader = StreamingLoader::new(model, &StreamOptions::default())?;
    /// let mut memory = vec![0; 1 << 20]; // as large as the largest layer
    /// while let Some(layer) = loader.peek_layer() {
    ///     let mut slices = Vec::new();
    ///     let mut rest = &mut memory[..];
    ///     for spec in layer.tensors() {
    ///         let (slice, after) = rest.split_at_mut(spec.byte_len() as usize);
    ///         slices.push((spec.name().to_owned(), slice));
    ///         rest = after;
    ///     }
    ///     loader.next_into_slices(slices)?;
    ///     println!("{:?}", &memory[..2]);
    ///     # assert!(memory[..2] == [1, 2] || memory[..2] == [3, 4]);
    /// }
    /// # Ok::<(), bigsmall_io::Error>(())
    /// ```
    pub fn next_into_slices<'a, N: AsRef<str>>(
        &mut self,
        tensors: impl IntoIterator<Item = (N, &'a mut [u8])>,
    ) -> Result<bool> {
        let Some(layer) = self.peek_layer() else { return Ok(false) };
        let wrong = |name: &str, expected: &str| {
            Error::new(ErrorKind::Argument).in_tensor(name).expected(expected)
        };
        let names = layer.tensors.iter().map(|spec| spec.name());
        let places: HashMap<&str, usize> = names.zip(0..).collect();
        let mut slices: Vec<Option<&'a mut [u8]>> = places.iter().map(|_| None).collect();
        for (name, slice) in tensors {
            let name = name.as_ref();
            let place = places.get(name);
            let place = *place.ok_or_else(|| wrong(name, &format!("tensors of {}", layer.name)))?;
            check_len(layer.tensors[place], slice)?;
            if slices[place].replace(slice).is_some() {
                return Err(wrong(name, "one slice for each tensor"));
            }
        }
        if let Some(missing) = slices.iter().position(Option::is_none) {
            return Err(wrong(layer.tensors[missing].name(), "a slice for it"));
        }
        let slices = slices.into_iter().flatten().collect();
        self.step(|feed, shards, wanted| feed.decode_into(shards, wanted, slices))?;
        Ok(true)
    }

    /// Replaces `layer` by the next layer and reuses its buffers. After the last layer it returns
    /// `false` and leaves `layer` as it is. After an error `layer` is empty, and the loader is at
    /// its end.
    ///
    /// # Errors
    /// [`Rule::BlockChecksum`](crate::Rule::BlockChecksum), the rules of the encodings,
    /// [`ErrorKind::Io`],
    /// [`ErrorKind::Memory`], [`ErrorKind::Cancelled`].
    pub fn next_into(&mut self, layer: &mut Layer) -> Result<bool> {
        if self.next == self.feed.layers.len() {
            return Ok(false);
        }
        let spare = std::mem::take(layer).into_tensors();
        *layer = self.step(|feed, shards, wanted| {
            let tensors = feed.decode(shards, wanted, spare)?;
            Ok(Layer::new(&wanted.name, tensors))
        })?;
        Ok(true)
    }

    /// Does `work` for the next layer. There must be one.
    fn step<T>(&mut self, work: impl FnOnce(&Feed, &Shards, &Wanted) -> Result<T>) -> Result<T> {
        let wanted = &self.feed.layers[self.next];
        // Corrected below. If this function ends early, by a panic, the loader is at its end.
        let at = std::mem::replace(&mut self.next, self.feed.layers.len());
        let done = match self.progress.is_cancelled() {
            true => Err(Error::new(ErrorKind::Cancelled)),
            false => work(&self.feed, self.model.inner(), wanted),
        };
        if done.is_err() {
            self.feed.stop();
        } else {
            self.progress.advance(wanted.original_len);
            self.next = at + 1;
        }
        done
    }
}

/// A layer that is not decoded yet.
#[derive(Clone, Debug, PartialEq)]
pub struct NextLayer<'a> {
    name: &'a str,
    tensors: Vec<&'a TensorSpec>,
}

impl<'a> NextLayer<'a> {
    /// The layer's name, as [`Layer::name`] will be.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Names, dtypes and shapes of its tensors, in the order of the file.
    #[must_use]
    pub fn tensors(&self) -> &[&'a TensorSpec] {
        &self.tensors
    }

    /// Original bytes of all its tensors.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.tensors.iter().map(|spec| spec.byte_len()).sum()
    }
}

impl Iterator for StreamingLoader {
    type Item = Result<Layer>;

    fn next(&mut self) -> Option<Result<Layer>> {
        let mut layer = Layer::default();
        self.next_into(&mut layer).map(|more| more.then_some(layer)).transpose()
    }
}

impl fmt::Debug for StreamingLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamingLoader")
            .field("model", &self.model)
            .field("next", &self.next)
            .field("layers", &self.feed.layers.len())
            .finish_non_exhaustive()
    }
}

impl Drop for StreamingLoader {
    fn drop(&mut self) {
        self.feed.stop();
    }
}
