//! A model layer by layer: encoded bytes are read ahead within a budget and decoded into the
//! caller's buffers.

use std::sync::Arc;

use bigsmall_format::{Error, Result, Rule};

use crate::Progress;
use crate::model::feed::{BASE, Feed, MAX_THREADS};
use crate::model::layer::Layer;
use crate::model::open::Model;
use crate::stage::thread::start;

/// How to stream a model.
///
/// ```
/// let options = bigsmall_io::StreamOptions { budget: Some(256 << 20), ..Default::default() };
/// assert_eq!(options.threads, 0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// The most bytes that the loader may hold, what the caller keeps not counted; at the least 64
    /// MiB. `None`: the largest encoded layer, read ahead, and 64 MiB.
    pub budget: Option<u64>,
    /// Threads that decode; 0: as many as the model's.
    pub threads: usize,
}

/// The layers of a model in the order in which it runs, while the next ones are being read.
///
/// As an iterator it makes new buffers for every layer; [`next_into`](Self::next_into) uses those
/// of an earlier layer again, which is faster and keeps memory where it is.
///
/// Memory: at most the budget of [`StreamOptions`], and the layers that the caller keeps. Dropping
/// the loader ends its reading.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("bigsmall-doc-stream-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let json = br#"{"layers.0.w":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"layers.1.w":{"dtype":"U8","shape":[3],"data_offsets":[3,6]}}"#;
/// # let plain = [&(json.len() as u64).to_le_bytes()[..], json, &[1, 2, 3, 4, 5, 6]].concat();
/// # std::fs::write(dir.join("m.safetensors"), plain)?;
/// # let options = bigsmall_io::CompressOptions { replace: true, ..Default::default() };
/// # let path = dir.join("m.bs");
/// # bigsmall_io::compress(&dir.join("m.safetensors"), &path, &options, &Default::default())?;
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
    threads: usize,
    /// The layer that comes next; the number of layers once all is done, or after an error.
    next: usize,
}

impl StreamingLoader {
    /// Begins to read `model`. Nothing is decoded before a layer is asked for.
    ///
    /// # Errors
    /// [`Rule::Argument`] for a budget below 64 MiB, [`Rule::Memory`] where there is no thread to
    /// be had.
    pub fn new(model: impl Into<Arc<Model>>, options: &StreamOptions) -> Result<Self> {
        let model = model.into();
        if let Some(budget) = options.budget.filter(|&b| b < BASE) {
            return Err(Error::new(Rule::Argument)
                .expected(format!("a budget of at least {BASE} bytes"))
                .found(budget));
        }
        let feed = Feed::new(model.inner(), model.grouped())?;
        let largest = feed.layers.iter().map(|l| feed.encoded_len(l)).max().unwrap_or(0);
        let budget = options.budget.unwrap_or(BASE + largest);
        // A quarter of the base for buffers, the rest for what threads and allocator need.
        let feed = Arc::new(feed.with_room(budget - BASE + BASE / 4));
        let progress = Arc::new(Progress::default());
        progress.expect(feed.layers.iter().map(|l| l.original_len).sum());
        for _ in 0..model.inner().readers().min(feed.pieces.len()) {
            let (feed, model) = (Arc::clone(&feed), Arc::clone(&model));
            start("read ahead", |builder, begun| {
                builder.spawn(move || {
                    begun.here();
                    feed.read(model.inner());
                })
            })?;
        }
        let threads = if options.threads == 0 { model.inner().threads() } else { options.threads };
        Ok(StreamingLoader { model, feed, progress, threads: threads.min(MAX_THREADS), next: 0 })
    }

    /// The layers' names, in order.
    pub fn layers(&self) -> impl Iterator<Item = &str> {
        self.feed.layers.iter().map(|l| &*l.name)
    }

    /// How far the loader is; cancelling it makes the next call fail with [`Rule::Cancelled`].
    #[must_use]
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Puts the next layer in the place of `layer`, whose buffers are used again; `false` after the
    /// last one, which `layer` keeps. On an error `layer` is empty, and the loader is at its
    /// end.
    ///
    /// # Errors
    /// [`Rule::BlockChecksum`], the rules of the encodings, [`Rule::Io`], [`Rule::Memory`],
    /// [`Rule::Cancelled`].
    pub fn next_into(&mut self, layer: &mut Layer) -> Result<bool> {
        let Some(wanted) = self.feed.layers.get(self.next) else { return Ok(false) };
        let spare = std::mem::take(layer).into_tensors();
        // Set back below: whatever leaves this function early leaves the loader at its end.
        let at = std::mem::replace(&mut self.next, self.feed.layers.len());
        if self.progress.is_cancelled() {
            self.feed.stop();
            return Err(Error::new(Rule::Cancelled));
        }
        let tensors = match self.feed.decode(self.model.inner(), wanted, spare, self.threads) {
            Ok(tensors) => tensors,
            Err(error) => {
                self.feed.stop();
                return Err(error);
            }
        };
        *layer = Layer::new(&wanted.name, tensors);
        self.progress.advance(wanted.original_len);
        self.next = at + 1;
        Ok(true)
    }
}

impl Iterator for StreamingLoader {
    type Item = Result<Layer>;

    fn next(&mut self) -> Option<Result<Layer>> {
        let mut layer = Layer::default();
        self.next_into(&mut layer).map(|more| more.then_some(layer)).transpose()
    }
}

impl Drop for StreamingLoader {
    fn drop(&mut self) {
        self.feed.stop();
    }
}
