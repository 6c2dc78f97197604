//! Saving promises: a shard restores to what `safetensors::serialize` makes of the same tensors; a
//! file is absent, as it was, or complete; a caller's mistake is an error that names the tensor.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bigsmall_io::{
    Element, Error, ErrorKind, FileReport, Model, Progress, Result, Rule, SaveOptions, Shard,
    TensorSpec, TensorView, Writer, save, save_to, save_with,
};
use common::{DTYPES, ENCODINGS, Random, Tensor, names, restore, tensor};
use proptest::prelude::*;
use safetensors::Dtype;

fn dtype(of: Dtype) -> bigsmall_io::Dtype {
    bigsmall_io::Dtype::from_name(&of.to_string()).unwrap()
}

fn view(tensor: &Tensor) -> TensorView<'_> {
    let shape: Vec<u64> = tensor.shape.iter().map(|&n| n as u64).collect();
    TensorView::new(dtype(tensor.dtype), &shape, &tensor.bytes)
}

fn views(tensors: &[Tensor]) -> impl Iterator<Item = (&str, TensorView<'_>)> {
    tensors.iter().map(|t| (t.name.as_str(), view(t)))
}

fn spec(tensor: &Tensor) -> TensorSpec {
    TensorSpec::new(&tensor.name, view(tensor).dtype(), view(tensor).shape()).unwrap()
}

/// What the crate safetensors makes of them.
fn plain(tensors: &[Tensor], metadata: Option<HashMap<String, String>>) -> Vec<u8> {
    let views = tensors.iter().map(|t| {
        let view =
            safetensors::tensor::TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap();
        (t.name.as_str(), view)
    });
    safetensors::serialize(views, metadata).unwrap()
}

/// The same tensors in the order in which safetensors writes them.
fn in_order(mut tensors: Vec<Tensor>) -> Vec<Tensor> {
    tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    tensors
}

fn restored(shard: &Path) -> Vec<u8> {
    let out = shard.with_extension("safetensors");
    restore(shard, &out).unwrap();
    let bytes = std::fs::read(&out).unwrap();
    std::fs::remove_file(out).unwrap();
    bytes
}

fn write_all(path: &Path, tensors: &[Tensor], options: &SaveOptions) -> Result<FileReport> {
    let mut writer = Writer::create(path, tensors.iter().map(spec), None, options)?;
    for t in tensors {
        writer.tensor(&t.name, &t.bytes)?;
    }
    writer.finish()
}

fn metadata(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// Some tensors of any dtypes; every third one repeats the values of the one before.
fn some_tensors() -> impl Strategy<Value = Vec<Tensor>> {
    let one = (0..DTYPES.len(), prop::collection::vec(0usize..5, 0..4), ".{0,12}", any::<u64>());
    prop::collection::vec(one, 0..9).prop_map(|parts| {
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        let mut last: Option<(Dtype, Vec<usize>, u64)> = None;
        for (i, (kind, shape, name, seed)) in parts.into_iter().enumerate() {
            let repeated = last.filter(|_| i % 3 == 2);
            let (kind, mut shape, seed) = repeated.unwrap_or((DTYPES[kind], shape, seed));
            let bits = kind.bitsize();
            if bits % 8 != 0 {
                shape.push(4);
            }
            let len = shape.iter().product::<usize>() * bits / 8;
            let bytes = Random::new(seed).bytes(len);
            last = Some((kind, shape.clone(), seed));
            tensors.insert(name.clone(), tensor(&name, kind, &shape, bytes));
        }
        // In no order that anybody counts on.
        tensors.into_values().rev().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_shard_restores_to_what_safetensors_writes(
        tensors in some_tensors(),
        pair in prop::option::of(prop::option::of((".{0,9}", ".{0,9}"))),
        encoding in 0..ENCODINGS.len(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.bs");
        // safetensors 0.8 writes broken JSON for an empty map of metadata without tensors.
        let metadata = pair.map(HashMap::from_iter);
        let metadata = metadata.filter(|found| !(found.is_empty() && tensors.is_empty()));
        let options = SaveOptions::default().encoding(ENCODINGS[encoding]);
        let (metadata_of, progress) = (|| metadata.clone(), Progress::default());
        let report =
            save_with(&path, views(&tensors), metadata_of(), &options, &progress).unwrap();
        let expected = plain(&tensors, metadata.clone());
        prop_assert_eq!(restored(&path), &expected[..]);
        prop_assert_eq!(report.original_bytes, expected.len() as u64);
        prop_assert_eq!(report.compressed_bytes, std::fs::metadata(&path).unwrap().len());
        prop_assert_eq!(report.n_tensors, tensors.len() as u64);

        let shard = std::fs::read(&path).unwrap();
        prop_assert!(Shard::open(&shard[..]).unwrap().is_synthesised());
        let model = Model::open(&path).unwrap();
        prop_assert_eq!(model.metadata().unwrap(), metadata.clone().unwrap_or_default());
        for t in &tensors {
            let found = model.tensor(&t.name).unwrap();
            prop_assert_eq!(TensorView::from(&found), view(t));
        }

        let mut in_memory = Vec::new();
        let again =
            save_to(&mut in_memory, views(&tensors), metadata_of(), &options, &progress).unwrap();
        prop_assert_eq!(&in_memory, &shard);
        prop_assert_eq!(again.sha256, report.sha256);

        // Tensor by tensor, the same shard.
        let tensors = in_order(tensors);
        let other = dir.path().join("w.bs");
        let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
        let mut writer = Writer::create(&other, specs, metadata, &options).unwrap();
        for t in &tensors {
            writer.tensor(&t.name, &t.bytes).unwrap();
        }
        let written = writer.finish().unwrap();
        prop_assert_eq!(std::fs::read(&other).unwrap(), shard);
        prop_assert_eq!((written.sha256, written.n_shared), (report.sha256, report.n_shared));
    }
}

#[test]
fn large_tensors_and_shared_ones() {
    let mut random = Random::new(5);
    let weights = random.weights(1_500_000);
    let tensors = in_order(vec![
        tensor("embed", Dtype::BF16, &[1500, 1000], weights.clone()),
        tensor("head", Dtype::BF16, &[1000, 1500], weights),
        tensor("noise", Dtype::U8, &[3 << 20], random.bytes(3 << 20)),
        tensor("norm", Dtype::F32, &[100], random.bytes(400)),
        tensor("zeros", Dtype::F16, &[700_000], vec![0; 1_400_000]),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("m.bs"), dir.path().join("w.bs"));
    for encoding in ENCODINGS {
        let options = SaveOptions::default().encoding(encoding);
        let report =
            save_with(&path, views(&tensors), None, &options, &Progress::default()).unwrap();
        assert_eq!(report.n_shared, 1);
        assert_eq!(restored(&path), plain(&tensors, None));
        write_all(&other, &tensors, &options).unwrap();
        assert_eq!(std::fs::read(&other).unwrap(), std::fs::read(&path).unwrap(), "{encoding:?}");
    }
}

#[test]
fn several_keys_of_metadata_are_written_in_their_order() {
    let tensors = [tensor("w", Dtype::U8, &[2], vec![1, 2])];
    let metadata = metadata(&[("step", "12"), ("format", "pt"), ("a\"b", "\u{1F642}\n")]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.bs");
    save(&path, views(&tensors), Some(metadata.clone())).unwrap();
    let file = restored(&path);
    let (_, header) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    assert_eq!(header.metadata().as_ref(), Some(&metadata));
    let text = String::from_utf8_lossy(&file);
    assert!(text.contains(r#"{"__metadata__":{"a\"b":"🙂\n","format":"pt","step":"12"},"w":"#));
}

#[test]
fn elements_survive() {
    fn check<T: Element + Copy + PartialEq + std::fmt::Debug>(values: &[T]) {
        let mut shard = Vec::new();
        let view = TensorView::from_slice(&[values.len() as u64], values);
        save_to(&mut shard, [("t", view)], None, &SaveOptions::default(), &Progress::default())
            .unwrap();
        let tensor = Model::from_source(shard).unwrap().tensor("t").unwrap();
        assert_eq!(tensor.to_vec::<T>().unwrap(), values);
        assert_eq!(tensor.spec().dtype(), T::DTYPE);
        let others = [tensor.to_vec::<u8>().is_ok(), tensor.to_vec::<half::bf16>().is_ok()];
        assert_eq!(others, [T::DTYPE.name() == "U8", T::DTYPE.name() == "BF16"]);
    }
    check(&[0u8, 1, 255]);
    check(&[i8::MIN, 0, 1]);
    check(&[0u16, 1, 0x1234]);
    check(&[i16::MIN, 0, 1]);
    check(&[0u32, 1, 0x1234_5678]);
    check(&[i32::MIN, 0, 1]);
    check(&[0u64, 1, u64::MAX - 1]);
    check(&[i64::MIN, 0, 1]);
    check(&[0.0f32, -1.5, f32::MAX]);
    check(&[0.0f64, -1.5, f64::MIN_POSITIVE]);
    check(&[half::f16::ONE, half::f16::MAX]);
    check(&[half::bf16::ONE, half::bf16::MIN]);
    check::<f32>(&[]);
}

#[test]
fn what_was_loaded_can_be_saved() {
    let mut random = Random::new(9);
    let tensors = [
        tensor("b", Dtype::BF16, &[70, 100], random.weights(7000)),
        tensor("a", Dtype::F8_E4M3, &[3], vec![1, 2, 3]),
    ];
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("m.bs"), dir.path().join("n.bs"));
    save(&path, views(&tensors), None).unwrap();
    let loaded = Model::open(&path).unwrap();
    let loaded: Vec<_> = ["a", "b"].iter().map(|name| loaded.tensor(name).unwrap()).collect();
    save(&other, loaded.iter().map(|t| (t.spec().name(), t)), None).unwrap();
    assert_eq!(std::fs::read(other).unwrap(), std::fs::read(path).unwrap());
}

#[test]
fn mistakes_name_the_tensor_and_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.bs");
    let one = |name: &str, dtype, shape: &[u64], bytes: &[u8]| {
        let view = TensorView::new(dtype, shape, bytes.to_vec());
        let error = save(&path, [(name.to_owned(), view.clone())], None).unwrap_err();
        let mut none = Vec::new();
        let again =
            save_to(&mut none, [(name, view)], None, &SaveOptions::default(), &Progress::default())
                .unwrap_err();
        assert_eq!((again.kind(), none.len()), (error.kind(), 0));
        assert_eq!(error.tensor(), Some(name));
        error.kind()
    };
    use bigsmall_io::Dtype as D;
    assert_eq!(one("w", D::F32, &[2, 3], &[0; 23]), ErrorKind::Format(Rule::BufferLength));
    assert_eq!(one("w", D::F32, &[2, 3], &[0; 25]), ErrorKind::Format(Rule::BufferLength));
    assert_eq!(one("w", D::F32, &[], &[]), ErrorKind::Format(Rule::BufferLength));
    assert_eq!(one("w", D::U8, &[0], &[1]), ErrorKind::Format(Rule::BufferLength));
    assert_eq!(one("w", D::F4, &[3], &[0; 2]), ErrorKind::Format(Rule::SubByteTotal));
    assert_eq!(one("w", D::U8, &[u64::MAX, 2], &[]), ErrorKind::Format(Rule::ShapeOverflow));
    assert_eq!(one("w", D::U8, &[u64::MAX, 2, 0], &[]), ErrorKind::Format(Rule::ShapeOverflow));
    assert_eq!(one("__metadata__", D::U8, &[1], &[1]), ErrorKind::Argument);
    let twice = [1, 2].map(|value| ("w", TensorView::new(D::U8, &[1], vec![value])));
    let error = save(&path, twice, None).unwrap_err();
    assert_eq!(
        (error.kind(), error.tensor()),
        (ErrorKind::Format(Rule::HeaderDuplicate), Some("w"))
    );
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn an_existing_file_is_replaced_or_refused() {
    let tensors = [tensor("w", Dtype::U8, &[2], vec![1, 2])];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.bs");
    std::fs::write(&path, "old").unwrap();
    let keep = SaveOptions::default().replace(false);
    let refused = save_with(&path, views(&tensors), None, &keep, &Progress::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::OutputExists);
    let refused = Writer::create(&path, tensors.iter().map(spec), None, &keep).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::OutputExists);
    // A mistake does not cost the old file.
    let short = TensorView::new(bigsmall_io::Dtype::U8, &[2], &[1][..]);
    save(&path, [("w", short)], None).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    save(&path, views(&tensors), None).unwrap();
    assert_eq!(restored(&path), plain(&tensors, None));
    write_all(&path, &tensors, &SaveOptions::default()).unwrap();
    assert_eq!(restored(&path), plain(&tensors, None));
    assert_eq!(names(dir.path()), ["m.bs"]);
}

fn three() -> Vec<Tensor> {
    let mut random = Random::new(4);
    let mut layer = |name: &str| tensor(name, Dtype::BF16, &[50, 40], random.weights(2000));
    vec![layer("q"), layer("k"), tensor("bias", Dtype::F32, &[2], vec![0; 8])]
}

#[test]
fn the_writer_takes_the_tensor_that_is_due_and_no_other() {
    let tensors = three();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.bs");
    let options = SaveOptions::default();
    let mut writer = Writer::create(&path, tensors.iter().map(spec), None, &options).unwrap();
    let rule = |result: Result<()>| result.map_err(|e: Error| e.kind()).unwrap_err();
    for (i, t) in tensors.iter().enumerate() {
        assert_eq!(writer.due().map(TensorSpec::name), Some(&*t.name));
        for other in tensors.iter().filter(|other| other.name != t.name) {
            assert_eq!(
                rule(writer.tensor(&other.name, &other.bytes)),
                ErrorKind::Format(Rule::WriterMisuse)
            );
        }
        assert_eq!(rule(writer.tensor("unknown", &t.bytes)), ErrorKind::Format(Rule::WriterMisuse));
        for bytes in [&t.bytes[1..], &[], &[&t.bytes[..], &[0]].concat()] {
            assert_eq!(
                rule(writer.tensor(&t.name, bytes)),
                ErrorKind::Format(Rule::BufferLength),
                "tensor {i}"
            );
        }
        assert_eq!(writer.due().map(TensorSpec::name), Some(&*t.name));
        writer.tensor(&t.name, &t.bytes).unwrap();
    }
    assert_eq!(writer.due(), None);
    assert_eq!(rule(writer.tensor("q", &tensors[0].bytes)), ErrorKind::Format(Rule::WriterMisuse));
    writer.finish().unwrap();
    let model = Model::open(&path).unwrap();
    for t in &tensors {
        assert_eq!(model.tensor(&t.name).unwrap().bytes(), t.bytes);
    }
    // The caller's order stays, whatever the dtypes.
    let order: Vec<&str> = model.tensors().map(TensorSpec::name).collect();
    assert_eq!(order, ["q", "k", "bias"]);
}

#[test]
fn specs_that_no_header_can_have_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.bs");
    let create = |specs: Vec<TensorSpec>| {
        Writer::create(&path, specs, None, &SaveOptions::default()).unwrap_err().kind()
    };
    let named = |name: &str| TensorSpec::new(name, bigsmall_io::Dtype::U8, &[1]).unwrap();
    assert_eq!(
        create(vec![named("a"), named("b"), named("a")]),
        ErrorKind::Format(Rule::HeaderDuplicate)
    );
    assert_eq!(create(vec![named("__metadata__")]), ErrorKind::Argument);
    let large = |name: &str| TensorSpec::new(name, bigsmall_io::Dtype::U8, &[1 << 59]).unwrap();
    let large = (0..40).map(|i| large(&i.to_string())).collect();
    assert_eq!(create(large), ErrorKind::Format(Rule::ShapeOverflow));
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn a_writer_that_is_dropped_or_not_done_leaves_nothing() {
    let tensors = three();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.bs");
    for done in 0..tensors.len() {
        for finish in [false, true] {
            let options = SaveOptions::default();
            let specs = tensors.iter().map(spec);
            let mut writer = Writer::create(&path, specs, None, &options).unwrap();
            for t in &tensors[..done] {
                writer.tensor(&t.name, &t.bytes).unwrap();
            }
            match finish {
                true => assert_eq!(
                    writer.finish().unwrap_err().kind(),
                    ErrorKind::Format(Rule::WriterMisuse)
                ),
                false => drop(writer),
            }
            assert_eq!(names(dir.path()), [""; 0]);
        }
    }
}

#[test]
fn the_writer_reads_back_what_it_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.bs");
    let options = SaveOptions::default();
    let specs = [
        TensorSpec::new("noise", bigsmall_io::Dtype::U8, &[1 << 20]).unwrap(),
        TensorSpec::new("sevens", bigsmall_io::Dtype::U8, &[1 << 20]).unwrap(),
    ];
    let mut writer = Writer::create(&path, specs, None, &options).unwrap();
    writer.tensor("noise", &Random::new(2).bytes(1 << 20)).unwrap();
    writer.tensor("sevens", &vec![7; 1 << 20]).unwrap();
    // The disk changes some bytes, which have left every buffer.
    let temp = dir.path().join(&names(dir.path())[0]);
    let mut file = std::fs::OpenOptions::new().write(true).open(temp).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(5000)).unwrap();
    std::io::Write::write_all(&mut file, &[0; 64]).unwrap();
    assert_eq!(writer.finish().unwrap_err().kind(), ErrorKind::ReadBack);
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
// M-02
fn tensors_with_the_same_short_hash_do_not_share() {
    // The same XXH3: where the first 8 bytes are those of the hash's secret, they are multiplied as
    // zero, and the next 8 do not count.
    let secret = 0xbe4b_a423_396c_feb8_u64.to_le_bytes();
    let forged = |fill: u8| [&secret[..], &[fill; 8], &[7; 16]].concat();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.bs");
    let tensors = [("a", 0), ("b", 255), ("c", 0)]
        .map(|(name, fill)| tensor(name, Dtype::U8, &[32], forged(fill)));
    let report = write_all(&path, &tensors, &SaveOptions::default()).unwrap();
    assert_eq!(report.n_shared, 1);
    let model = Model::open(&path).unwrap();
    for t in &tensors {
        assert_eq!(model.tensor(&t.name).unwrap().bytes(), t.bytes);
    }
}

#[test]
// X-01
fn saving_can_be_cancelled_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.bs");
    let values = TensorView::from_slice(&[4], &[1u8, 2, 3, 4]);
    let views = || [("a", values.clone()), ("b", values.clone())];
    let (options, cancelled) = (SaveOptions::default(), Progress::default());
    cancelled.cancel();
    let error = save_with(&path, views(), None, &options, &cancelled).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let error = save_to(Vec::new(), views(), None, &options, &cancelled).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let specs = [TensorSpec::new("a", bigsmall_io::Dtype::U8, &[4]).unwrap()];
    let mut writer = Writer::create(&path, specs, None, &options).unwrap();
    writer.tensor("a", &[1, 2, 3, 4]).unwrap();
    assert_eq!(writer.finish_with(&cancelled).unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(names(dir.path()).is_empty());
    let progress = Progress::default();
    save_with(&path, views(), None, &options, &progress).unwrap();
    assert_eq!(progress.done_bytes(), progress.total_bytes());
}
