//! Reading many tensors at once promises: the bytes of [`Model::tensor`] for every tensor, in every
//! pool; what does not fit is refused before anything is read; damage is an error and never hangs.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bigsmall_io::{
    Class, Encoding, ErrorKind, Model, Progress, ReadAt, Rule, SaveOptions, StreamOptions,
    StreamingLoader, TensorSpec, TensorView, save_to,
};
use common::{ENCODINGS, Random, Tensor, tensor};
use rayon::prelude::*;
use safetensors::Dtype;

/// Many small tensors, some large ones, empty ones, two with the same values.
fn tensors() -> Vec<Tensor> {
    let mut random = Random::new(11);
    let mut out = Vec::new();
    for n in 0..200 {
        let len = (random.bits() % 3000) as usize;
        let name = format!("layers.{}.small.{n}", n / 50);
        out.push(tensor(&name, Dtype::BF16, &[len], random.weights(len)));
    }
    for n in 0..4 {
        let rows = 700 * n + 300;
        let name = format!("layers.{n}.large");
        out.push(tensor(&name, Dtype::BF16, &[rows, 1000], random.weights(rows * 1000)));
        out.push(tensor(&format!("layers.{n}.none"), Dtype::F32, &[0], Vec::new()));
        out.push(tensor(&format!("layers.{n}.f"), Dtype::F64, &[9000], random.bytes(72_000)));
    }
    let tied = out[200].bytes.clone();
    out.push(tensor("tied", Dtype::BF16, &[300, 1000], tied));
    out
}

fn shard(tensors: &[Tensor], encoding: Encoding) -> Vec<u8> {
    let mut shard = Vec::new();
    let views = tensors.iter().map(|t| {
        let shape: Vec<u64> = t.shape.iter().map(|&n| n as u64).collect();
        let dtype = bigsmall_io::Dtype::from_name(&t.dtype.to_string()).unwrap();
        (&t.name, TensorView::new(dtype, &shape, &t.bytes))
    });
    save_to(
        &mut shard,
        views,
        None,
        &SaveOptions::default().encoding(encoding),
        &Progress::default(),
    )
    .unwrap();
    shard
}

fn read(model: &Model, names: &[&str]) -> Vec<Vec<u8>> {
    let len = |name: &&str| model.spec(name).unwrap().byte_len() as usize;
    // Not zeros: bytes that nobody wrote are noticed.
    let mut found: Vec<Vec<u8>> = names.iter().map(|name| vec![0xA5; len(name)]).collect();
    model.tensors_into(names.iter().zip(found.iter_mut().map(|f| &mut f[..]))).unwrap();
    found
}

#[test]
fn many_tensors_are_those_read_one_by_one() {
    let tensors = tensors();
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(12);
    for encoding in ENCODINGS {
        let whole = shard(&tensors, encoding);
        let path = dir.path().join("m.bs");
        std::fs::write(&path, &whole).unwrap();
        let halves = [&tensors[..150], &tensors[150..]].map(|half| shard(half, encoding));
        let boxed = |bytes: Vec<u8>| -> Box<dyn ReadAt> { Box::new(bytes) };
        let parts = ["one", "two"].into_iter().zip(halves.map(boxed));
        let models = [
            Model::open(&path).unwrap(),
            Model::from_source(whole).unwrap(),
            Model::from_sources(parts).unwrap(),
        ];
        for model in &models {
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                // Any order, some left out, some twice.
                let mut wanted: Vec<&Tensor> =
                    tensors.iter().filter(|_| !random.bits().is_multiple_of(4)).collect();
                wanted.sort_by_cached_key(|_| random.bits());
                wanted.extend(&tensors[199..202]);
                let names: Vec<&str> = wanted.iter().map(|t| &*t.name).collect();
                let found = pool.install(|| read(model, &names));
                for (t, found) in wanted.iter().zip(&found) {
                    assert!(t.bytes == *found, "{} of {encoding:?} on {threads}", t.name);
                }
            }
        }
        for t in &tensors {
            assert!(models[0].tensor(&t.name).unwrap().bytes() == t.bytes);
        }
    }
    let model = Model::from_source(shard(&tensors, Encoding::default())).unwrap();
    model.tensors_into(Vec::<(&str, &mut [u8])>::new()).unwrap();
}

#[test]
fn ranges_of_bytes_are_those_of_the_tensor() {
    let tensors = tensors();
    let mut random = Random::new(13);
    let model = Model::from_source(shard(&tensors, Encoding::default())).unwrap();
    for _ in 0..200 {
        let t = &tensors[(random.bits() % tensors.len() as u64) as usize];
        let mut ends = [0; 2].map(|_| (random.bits() % (t.bytes.len() as u64 + 1)) as usize);
        ends.sort_unstable();
        let [begin, end] = ends;
        let mut found = vec![0xA5; end - begin];
        model.bytes_into(&t.name, begin as u64..end as u64, &mut found).unwrap();
        assert!(found == t.bytes[begin..end]);
    }
    let len = tensors[0].bytes.len() as u64;
    let rule = |range, n| {
        let mut dst = vec![0; n];
        model.bytes_into(&tensors[0].name, range, &mut dst).unwrap_err().kind()
    };
    assert_eq!(rule(0..len + 1, len as usize + 1), ErrorKind::Format(Rule::RangeOutOfBounds));
    #[allow(clippy::reversed_empty_ranges)]
    let backwards = 3..2;
    assert_eq!(rule(backwards, 0), ErrorKind::Format(Rule::RangeOutOfBounds));
    assert_eq!(rule(u64::MAX - 1..u64::MAX, 1), ErrorKind::Format(Rule::RangeOutOfBounds));
    assert_eq!(rule(0..2, 3), ErrorKind::Format(Rule::BufferLength));
}

/// A shard in memory that counts how often it is read.
struct Counted(Vec<u8>, Arc<AtomicU64>);

impl ReadAt for Counted {
    fn byte_len(&self) -> std::io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.read_exact_at(offset, buf)
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_read() {
    let tensors = tensors();
    let reads = Arc::new(AtomicU64::new(0));
    let source = Counted(shard(&tensors, Encoding::default()), Arc::clone(&reads));
    let model = Model::from_source(source).unwrap();
    let opened = reads.load(Ordering::SeqCst);
    let (a, b) = (&tensors[1], &tensors[200]);
    for (name, len, rule) in [
        (&*b.name, b.bytes.len() - 1, ErrorKind::Format(Rule::BufferLength)),
        (&b.name, b.bytes.len() + 1, ErrorKind::Format(Rule::BufferLength)),
        (&b.name, 0, ErrorKind::Format(Rule::BufferLength)),
        ("layers.0", 4, ErrorKind::TensorMissing),
        ("", 0, ErrorKind::TensorMissing),
    ] {
        let (mut first, mut second) = (vec![0xA5; a.bytes.len()], vec![0xA5; len]);
        let wanted = [(&*a.name, &mut first[..]), (name, &mut second[..])];
        let error = model.tensors_into(wanted).unwrap_err();
        assert_eq!((error.kind(), error.tensor()), (rule, Some(name)));
        assert!(first.iter().chain(&second).all(|&byte| byte == 0xA5));
    }
    assert_eq!(reads.load(Ordering::SeqCst), opened);
    // Small neighbours come in one piece: far fewer reads than tensors.
    let names: Vec<&str> = tensors[..200].iter().map(|t| &*t.name).collect();
    read(&model, &names);
    let taken = reads.load(Ordering::SeqCst) - opened;
    assert!((1..20).contains(&taken), "{taken} reads for 200 tensors");
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let tensors = tensors();
    let halves = [&tensors[..3], &tensors[2..5]].map(|half| shard(half, Encoding::Raw));
    let error = Model::from_sources(["a", "b"].into_iter().zip(halves)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelTensor);
    assert_eq!(error.tensor(), Some(&*tensors[2].name));
    let broken = Model::from_sources([("broken.bs", vec![0; 100])]).unwrap_err();
    assert_eq!(broken.class(), Class::Corrupt);
    assert!(broken.to_string().contains("broken.bs"), "{broken}");
    assert_eq!(Model::from_sources(Vec::<(&str, Vec<u8>)>::new()).unwrap().tensors().count(), 0);
}

#[test]
fn damage_names_its_tensor_and_nothing_hangs() {
    let tensors = tensors();
    let sound = shard(&tensors, Encoding::default());
    let opened = Model::from_source(sound.clone()).unwrap();
    let names: Vec<&str> = tensors.iter().map(|t| &*t.name).collect();
    let index_len = opened.shards().next().unwrap().1.index_len() as usize;
    let payloads = 16..sound.len() - 48 - index_len;
    let mut random = Random::new(14);
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for _ in 0..30 {
            let mut bad = sound.clone();
            let at = payloads.start + random.bits() as usize % payloads.len();
            bad[at] ^= 1 << (random.bits() % 8);
            let model = Model::from_source(bad).unwrap();
            let mut room: Vec<Vec<u8>> = tensors.iter().map(|t| vec![0; t.bytes.len()]).collect();
            let wanted = names.iter().zip(room.iter_mut().map(|r| &mut r[..]));
            let error = pool.install(|| model.tensors_into(wanted)).unwrap_err();
            assert_eq!(error.class(), Class::Corrupt, "{error}");
            let named = error.tensor().map(str::to_owned);
            assert!(named.is_some_and(|t| names.contains(&&*t)), "byte {at}: {error}");
        }
    }
}

#[test]
fn errors_name_the_shard() {
    let tensors = tensors();
    let mut halves = [&tensors[..200], &tensors[200..]].map(|half| shard(half, Encoding::Raw));
    // The head of raw tensors is empty: the first payload begins here.
    halves[1][16] ^= 1;
    let dir = tempfile::tempdir().unwrap();
    let single = dir.path().join("single.bs");
    std::fs::write(&single, &halves[1]).unwrap();
    let models = [
        (Model::from_sources(["one.bs", "two.bs"].into_iter().zip(halves)).unwrap(), "two.bs: "),
        (Model::open(&single).unwrap(), &*format!("{}: ", single.display())),
    ];
    for (model, file) in models {
        let shards: Vec<_> = model.shards().map(|(_, shard)| shard.tensors()).collect();
        let spec = shards[shards.len() - 1][0].clone();
        let name = spec.name();
        let mut room = vec![0; spec.byte_len() as usize];
        let errors = [
            model.tensor(name).unwrap_err(),
            model.tensor_into(name, &mut room).unwrap_err(),
            model.rows(name, 0..1).unwrap_err(),
            model.bytes_into(name, 0..1, &mut [0]).unwrap_err(),
            model.tensors_into([(name, &mut room[..])]).unwrap_err(),
            model.layer(name).unwrap_err(),
            model.encoded(name).unwrap_err(),
            StreamingLoader::new(model, &StreamOptions::default())
                .unwrap()
                .find_map(Result::err)
                .unwrap(),
        ];
        for (i, error) in errors.iter().enumerate() {
            let text = error.to_string();
            assert!(text.starts_with(file), "{i}: {text}");
            assert_eq!(
                (error.kind(), error.tensor()),
                (ErrorKind::Format(Rule::BlockChecksum), Some(name))
            );
        }
    }
}

#[test]
fn calls_out_of_a_pool_that_is_busy_with_them_end() {
    let tensors = tensors();
    let model = Model::from_source(shard(&tensors, Encoding::default())).unwrap();
    let names: Vec<&str> = tensors.iter().map(|t| &*t.name).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| {
        (0..16).into_par_iter().for_each(|_| {
            let found = read(&model, &names);
            assert!(tensors.iter().zip(&found).all(|(t, found)| t.bytes == *found));
        });
    });
}

#[test]
fn a_layer_is_known_before_it_is_decoded_into_slices() {
    let tensors = tensors();
    let by_name: HashMap<&str, &Tensor> = tensors.iter().map(|t| (&*t.name, t)).collect();
    let model = Arc::new(Model::from_source(shard(&tensors, Encoding::default())).unwrap());
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut loader =
            StreamingLoader::new(Arc::clone(&model), &StreamOptions::default()).unwrap();
        let mut seen = Vec::new();
        while let Some(layer) = loader.peek_layer() {
            let specs: Vec<TensorSpec> = layer.tensors().iter().map(|&spec| spec.clone()).collect();
            assert_eq!(layer.byte_len(), specs.iter().map(TensorSpec::byte_len).sum::<u64>());
            seen.push(layer.name().to_owned());
            let room = |spec: &TensorSpec| vec![0xA5; spec.byte_len() as usize];
            let mut rooms: Vec<Vec<u8>> = specs.iter().map(room).collect();
            // In the opposite order: names decide.
            let slices = rooms.iter_mut().map(|room| &mut room[..]);
            let named = specs.iter().map(TensorSpec::name).zip(slices).rev();
            assert!(pool.install(|| loader.next_into_slices(named)).unwrap());
            for (spec, room) in specs.iter().zip(&rooms) {
                assert!(by_name[spec.name()].bytes == *room, "{}", spec.name());
            }
        }
        assert_eq!(seen, model.layers());
        let none = Vec::<(&str, &mut [u8])>::new();
        assert!(!loader.next_into_slices(none).unwrap());
        assert_eq!(loader.progress().done_bytes(), loader.progress().total_bytes());
    }
}

#[test]
fn slices_that_do_not_fit_the_layer_leave_the_loader_where_it_is() {
    let tensors = tensors();
    let model = Arc::new(Model::from_source(shard(&tensors, Encoding::default())).unwrap());
    let mut loader = StreamingLoader::new(Arc::clone(&model), &StreamOptions::default()).unwrap();
    // After `tied`, which has one tensor alone.
    loader.next().unwrap().unwrap();
    let first = loader.peek_layer().unwrap();
    let name = first.name().to_owned();
    let specs: Vec<TensorSpec> = first.tensors().iter().map(|&spec| spec.clone()).collect();
    assert!(specs.len() > 2);
    let mut rule = |wanted: &[(&str, usize)]| {
        let mut rooms: Vec<Vec<u8>> = wanted.iter().map(|&(_, len)| vec![0xA5; len]).collect();
        let names = wanted.iter().map(|&(name, _)| name);
        let error = loader
            .next_into_slices(names.zip(rooms.iter_mut().map(|room| &mut room[..])))
            .unwrap_err();
        assert!(rooms.iter().flatten().all(|&byte| byte == 0xA5));
        assert_eq!(loader.peek_layer().unwrap().name(), name);
        error.kind()
    };
    let right: Vec<(&str, usize)> =
        specs.iter().map(|spec| (spec.name(), spec.byte_len() as usize)).collect();
    let mut long = right.clone();
    long[1].1 += 1;
    assert_eq!(rule(&long), ErrorKind::Format(Rule::BufferLength));
    let mut twice = right.clone();
    twice.push(right[0]);
    assert_eq!(rule(&twice), ErrorKind::Argument);
    let mut foreign = right.clone();
    foreign.push(("tensor.of.another.layer", 1));
    assert_eq!(rule(&foreign), ErrorKind::Argument);
    assert_eq!(rule(&right[1..]), ErrorKind::Argument);
    assert_eq!(rule(&[]), ErrorKind::Argument);
    // Nothing was lost.
    let layer = loader.next().unwrap().unwrap();
    assert_eq!((layer.name(), layer.tensors().len()), (&*name, specs.len()));
}

#[test]
fn open_things_can_be_printed() {
    let model = Model::from_source(shard(&tensors()[..2], Encoding::default())).unwrap();
    assert!(format!("{model:?}").starts_with("Model {"));
    let loader = StreamingLoader::new(model, &StreamOptions::default()).unwrap();
    assert!(format!("{loader:?}").starts_with("StreamingLoader {"));
}

/// Every reader says where in the file the damage is, not where in a payload: also if all checksums
/// match, and a decoder finds it.
#[test]
fn errors_name_the_byte_of_the_file() {
    use bigsmall_format::internal::Assembler;
    use bigsmall_io::{CompressOptions, Progress, RestoreOptions, Shard, transcode};
    let mut random = Random::new(15);
    let mut weights =
        |name: &str, rows| tensor(name, Dtype::BF16, &[rows, 1000], random.weights(rows * 1000));
    let tensors = [weights("first", 1000), weights("second", 300)];
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for encoding in [Encoding::default(), Encoding::Tbe3] {
        let sound = shard(&tensors, encoding);
        let opened = Shard::open(sound.clone()).unwrap();
        let last = opened.index_of("second").unwrap();
        let name = opened.tensors()[last].name();
        let place = opened.payload_range(last).unwrap();
        assert!(place.start > 2 * (place.end - place.start), "{place:?}");
        let mut damaged = sound.clone();
        damaged[place.end as usize - 20] ^= 1;
        // The same with checksums that match: a lane of a block begins elsewhere.
        let mut writer = Assembler::synthesised(Vec::new(), opened.tensors()).unwrap();
        for index in 0..opened.tensors().len() {
            let encoded = opened.encoded(index).unwrap();
            let (table, mut payload) = (encoded.table(), encoded.payload().to_vec());
            if index == last {
                payload[table.padded_block_range(0).start as usize..].fill(0xFF);
            }
            let lens: Vec<u32> = (0..table.n_blocks()).map(|i| table.block_len(i) as u32).collect();
            let blocks = table.blocks_range(0..table.n_blocks()).start as usize;
            for (i, &len) in lens.iter().enumerate() {
                let range = table.padded_block_range(i as u64);
                payload[range.start as usize + len as usize..range.end as usize].fill(0);
            }
            writer.begin(encoded.encoding(), encoded.head()).unwrap();
            writer.blocks(&payload[blocks..], &lens).unwrap();
            writer.end(None).unwrap();
        }
        let sealed = writer.finish(opened.sha256()).unwrap();
        for bad in [damaged, sealed] {
            let path = d.join("bad.bs");
            std::fs::write(&path, &bad).unwrap();
            let mut room = vec![0; opened.tensors()[last].byte_len() as usize];
            let progress = Progress::default();
            let models = [Model::open(&path).unwrap(), Model::from_source(bad).unwrap()];
            let mut errors: Vec<_> = models
                .iter()
                .flat_map(|model| {
                    [
                        model.tensor(name).unwrap_err(),
                        model.rows(name, 0..300).unwrap_err(),
                        model.tensors_into([(name, &mut room[..])]).unwrap_err(),
                        model.layer(name).unwrap_err(),
                    ]
                })
                .collect();
            let options = RestoreOptions::new().replace(true);
            errors.push(bigsmall_io::verify(&path, &options, &progress).unwrap_err());
            errors
                .push(bigsmall_io::restore(&path, d.join("out"), &options, &progress).unwrap_err());
            let options = CompressOptions::new().encoding(Encoding::Raw).replace(true);
            errors.push(transcode(&path, d.join("out"), &options, &progress).unwrap_err());
            for (i, error) in errors.iter().enumerate() {
                assert_eq!(
                    (error.class(), error.tensor()),
                    (Class::Corrupt, Some(name)),
                    "{error}"
                );
                let offset = error.offset();
                assert!(offset.is_some_and(|at| place.contains(&at)), "{i}: {place:?}: {error}");
            }
        }
    }
}
