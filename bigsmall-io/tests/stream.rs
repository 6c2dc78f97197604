//! Streaming promises: every layer once, in order, the bytes of [`Model::tensor`]; memory within
//! the budget; failures that are seen and never hang.
// A global allocator cannot be written without `unsafe`; it only counts and passes on.
#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bigsmall_io::{
    Class, CompressOptions, ErrorKind, Layer, Model, Progress, ReadAt, StreamOptions,
    StreamingLoader,
};
use common::{ENCODINGS, Random, Tensor, tensor, write};
use safetensors::Dtype;

/// Bytes held by the process, and the most that ever were since [`reset`].
static HELD: AtomicU64 = AtomicU64::new(0);
static MOST: AtomicU64 = AtomicU64::new(0);

struct Counting;

fn more(n: usize) {
    let now = HELD.fetch_add(n as u64, Ordering::SeqCst) + n as u64;
    MOST.fetch_max(now, Ordering::SeqCst);
}

// SAFETY: every call goes to `System` unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Both are held for a moment, at worst.
        more(new_size);
        // SAFETY: the caller's promise, passed on.
        let found = unsafe { System.realloc(ptr, layout, new_size) };
        HELD.fetch_sub(layout.size() as u64, Ordering::SeqCst);
        found
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() as u64, Ordering::SeqCst);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The count is of the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A model in the shape of a Llama, each layer some megabytes.
fn llama(layers: usize, rows: usize) -> Vec<Tensor> {
    let mut random = Random::new(3);
    let mut out = vec![tensor(
        "model.embed_tokens.weight",
        Dtype::BF16,
        &[2000, 512],
        random.weights(1_024_000),
    )];
    for n in 0..layers {
        let name = |part: &str| format!("model.layers.{n}.{part}.weight");
        let mut matrix = |part: &str, rows: usize| {
            tensor(&name(part), Dtype::BF16, &[rows, 512], random.weights(rows * 512))
        };
        out.extend([
            matrix("mlp.down_proj", rows),
            matrix("mlp.up_proj", rows),
            matrix("self_attn.k_proj", 7),
            matrix("self_attn.q_proj", 512),
        ]);
        let norm = random.weights(512);
        out.push(tensor(&name("input_layernorm"), Dtype::BF16, &[512], norm));
        out.push(tensor(&name("empty"), Dtype::F32, &[0, 3], Vec::new()));
        out.push(tensor(&name("scale"), Dtype::F64, &[70_000], random.bytes(560_000)));
    }
    out.push(tensor("model.norm.weight", Dtype::BF16, &[512], random.weights(512)));
    // The same bytes as the embedding: a shared payload.
    let tied = out[0].bytes.clone();
    out.push(tensor("lm_head.weight", Dtype::BF16, &[2000, 512], tied));
    out
}

fn model(dir: &Path, tensors: &[Tensor], options: &CompressOptions) -> Model {
    write(&dir.join("m"), tensors);
    let options = options.clone().replace(true);
    bigsmall_io::compress(dir.join("m"), dir.join("m.bs"), &options, &Progress::default()).unwrap();
    Model::open(dir.join("m.bs")).unwrap()
}

/// Every tensor as it was written, whatever order the file has.
fn check(layer: &Layer, tensors: &[Tensor]) -> usize {
    for found in layer.tensors() {
        let expected = tensors.iter().find(|t| t.name == found.spec().name()).unwrap();
        assert!(found.bytes() == expected.bytes, "{}", expected.name);
        assert_eq!(found.spec().shape().len(), expected.shape.len());
    }
    layer.tensors().len()
}

#[test]
fn every_layer_comes_once_in_order_bit_by_bit() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let tensors = llama(11, 700);
    let mut expected = vec!["model.embed_tokens".to_owned()];
    expected.extend((0..11).map(|n| format!("model.layers.{n}")));
    expected.extend(["model.norm".to_owned(), "lm_head".to_owned()]);
    for encoding in ENCODINGS {
        let options = CompressOptions::new().encoding(encoding);
        let model = Arc::new(model(dir.path(), &tensors, &options));
        assert_eq!(model.layers(), expected);
        for threads in [1, 3] {
            for budget in [None, Some(64 << 20)] {
                let options = StreamOptions::default();
                let options = budget.map_or(options, |bytes| options.budget(bytes));
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut loader = StreamingLoader::new(Arc::clone(&model), &options).unwrap();
                assert!(loader.layers().eq(expected.iter()));
                let progress = Arc::clone(loader.progress());
                let mut n = 0;
                let mut names = Vec::new();
                while let Some(layer) = pool.install(|| loader.next()) {
                    let layer = layer.unwrap();
                    n += check(&layer, &tensors);
                    names.push(layer.name().to_owned());
                }
                assert_eq!((n, &names), (tensors.len(), &expected));
                assert_eq!(progress.done_bytes(), progress.total_bytes());
                let total: usize = tensors.iter().map(|t| t.bytes.len()).sum();
                assert_eq!(progress.total_bytes(), total as u64);
            }
        }
        // One layer by its name is the same.
        let layer = model.layer("model.layers.10").unwrap();
        assert_eq!(layer.len(), 7);
        for found in layer {
            assert!(found == model.tensor(found.spec().name()).unwrap());
        }
    }
}

#[test]
fn the_budget_bounds_what_the_loader_holds() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    // 12 layers of 25 MB.
    let tensors = llama(12, 12_000);
    let largest: u64 = 2 * 512 * (2 * 12_000 + 7 + 512 + 1) + 560_000;
    let model = Arc::new(model(dir.path(), &tensors, &CompressOptions::default()));
    drop(tensors);
    let encoded: u64 = {
        let layer = model.tensors().map(|t| t.name()).filter(|n| n.contains(".layers.3."));
        layer.map(|name| model.stored(name).unwrap().compressed_bytes).sum()
    };
    for (budget, least, most) in
        [(Some(64 << 20), 0, 64 << 20), (None, encoded, encoded + (64 << 20))]
    {
        let before = HELD.load(Ordering::SeqCst);
        MOST.store(before, Ordering::SeqCst);
        let options = StreamOptions::default();
        let options = budget.map_or(options, |bytes| options.budget(bytes));
        let mut loader = StreamingLoader::new(Arc::clone(&model), &options).unwrap();
        let mut layer = Layer::default();
        let (mut n, mut buffers) = (0, Vec::new());
        while loader.next_into(&mut layer).unwrap() {
            n += 1;
            // Give the readers time to take what they may.
            std::thread::sleep(std::time::Duration::from_millis(20));
            if layer.name().contains(".layers.") {
                let mut here: Vec<usize> = layer
                    .tensors()
                    .iter()
                    .filter(|t| t.bytes().len() > 1 << 20)
                    .map(|t| t.bytes().as_ptr() as usize)
                    .collect();
                here.sort_unstable();
                buffers.push(here);
            }
        }
        assert_eq!(n, 15);
        let peak = MOST.load(Ordering::SeqCst) - before;
        let held = peak - largest.min(peak);
        println!("budget {budget:?}: {held} bytes beside the caller's {largest}");
        assert!(held <= most, "{held} of {most}");
        // The read-ahead is real: without it the loader would hold less.
        assert!(peak >= largest + least, "{peak}");
        // The same buffers for every layer.
        assert!(buffers.iter().all(|b| *b == buffers[0]));
    }
    let small = StreamOptions::default().budget((64 << 20) - 1);
    let error = StreamingLoader::new(model, &small).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Argument);
}

/// A shard in memory, one of whose bytes is wrong, or which fails from its n-th read on.
struct Bad {
    bytes: Vec<u8>,
    reads_left: AtomicU64,
}

impl ReadAt for Bad {
    fn byte_len(&self) -> std::io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let left =
            self.reads_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        match left {
            Ok(_) => self.bytes.read_exact_at(offset, buf),
            Err(_) => Err(std::io::Error::other("broken")),
        }
    }
}

fn run(model: Arc<Model>, threads: usize) -> (usize, Option<bigsmall_io::Error>) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let mut loader = StreamingLoader::new(model, &StreamOptions::default()).unwrap();
    let mut n = 0;
    let error = loop {
        match pool.install(|| loader.next()) {
            Some(Ok(_)) => n += 1,
            Some(Err(error)) => break Some(error),
            None => break None,
        }
    };
    // After an error, and after the end, there is nothing more.
    assert!(loader.next().is_none());
    (n, error)
}

#[test]
fn damage_and_failing_reads_end_in_errors_wherever_they_are() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let tensors = llama(3, 600);
    let opened = model(dir.path(), &tensors, &CompressOptions::default());
    let bytes = std::fs::read(dir.path().join("m.bs")).unwrap();
    let n_layers = opened.layers().len();
    let (_, shard) = opened.shards().next().unwrap();
    let payloads = 16..bytes.len() as u64 - shard.index_len() - 48;
    let source = |bytes: Vec<u8>, reads| Bad { bytes, reads_left: AtomicU64::new(reads) };
    let mut random = Random::new(9);
    for round in 0..60 {
        let mut damaged = bytes.clone();
        let at = payloads.start + random.bits() % (payloads.end - payloads.start);
        damaged[at as usize] ^= 1 << (random.bits() % 8);
        let opened = Model::from_source(source(damaged, u64::MAX)).unwrap();
        let (n, error) = run(Arc::new(opened), 1 + round % 4);
        let error = error.unwrap_or_else(|| panic!("byte {at} went unnoticed"));
        assert_eq!(error.class(), Class::Corrupt, "{error}");
        assert!(error.tensor().is_some() && error.offset().is_some(), "{error}");
        assert!(n < n_layers);
    }
    let mut failures = 0;
    for reads in 1.. {
        let Ok(opened) = Model::from_source(source(bytes.clone(), reads)) else { continue };
        match run(Arc::new(opened), 2) {
            (_, Some(error)) => {
                assert_eq!(error.kind(), ErrorKind::Io, "{error}");
                failures += 1;
            }
            (n, None) => {
                assert_eq!(n, n_layers);
                break;
            }
        }
    }
    assert!(failures > 5, "{failures}");
}

#[test]
fn a_loader_can_be_cancelled_and_dropped_at_any_time() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let tensors = llama(4, 600);
    let model = Arc::new(model(dir.path(), &tensors, &CompressOptions::default()));
    for taken in 0..6 {
        let loader = StreamingLoader::new(Arc::clone(&model), &StreamOptions::default()).unwrap();
        assert_eq!(loader.take(taken).filter(|l| l.is_ok()).count(), taken);
        let mut loader =
            StreamingLoader::new(Arc::clone(&model), &StreamOptions::default()).unwrap();
        for _ in 0..taken {
            loader.next().unwrap().unwrap();
        }
        loader.progress().cancel();
        assert_eq!(loader.next().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(loader.next().is_none());
    }
    // The reading threads let go of the model.
    let begin = std::time::Instant::now();
    while Arc::strong_count(&model) > 1 && begin.elapsed().as_secs() < 30 {
        std::thread::yield_now();
    }
    assert_eq!(Arc::strong_count(&model), 1);
}
