//! The restored file is the original, byte for byte, whatever is in it.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use bigsmall_io::{
    CompressOptions, Encoding, EncodingId, ErrorKind, Model, Progress, RestoreOptions, Rule, Shard,
    transcode,
};
use common::{DTYPES, ENCODINGS, Random, Tensor, compress, restore, tensor, verify, write};
use proptest::prelude::*;
use safetensors::Dtype;

/// Every dtype in several lengths, of random bits and of few values, and beyond one chunk.
fn every_dtype() -> Vec<Tensor> {
    let mut random = Random::new(3);
    let mut tensors = Vec::new();
    for dtype in DTYPES {
        for n in [0usize, 8, 1000, 200_000] {
            let len = n * dtype.bitsize() / 8;
            let plain = random.bytes(len);
            let few = plain.iter().map(|b| b & 0x41).collect();
            tensors.push(tensor(&format!("{dtype:?}.{n}.random"), dtype, &[n], plain));
            tensors.push(tensor(&format!("{dtype:?}.{n}.few"), dtype, &[n / 8, 8], few));
        }
    }
    tensors.push(tensor("scalar", Dtype::F32, &[], vec![1, 2, 3, 4]));
    tensors.push(tensor("", Dtype::U8, &[3], vec![1, 2, 3]));
    tensors.push(tensor("../../etc/passwd", Dtype::U8, &[1, 1, 1], vec![9]));
    tensors.push(tensor("line\nbreak \u{1b}[31m \0", Dtype::U8, &[1], vec![9]));
    tensors.push(tensor("weights", Dtype::BF16, &[1500, 1001], random.weights(1500 * 1001)));
    tensors
}

#[test]
// E-22
fn every_dtype_comes_back_in_every_encoding() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, back) = (dir.path().join("m.safetensors"), dir.path().join("back"));
    let tensors = every_dtype();
    write(&plain, &tensors);
    let original = std::fs::read(&plain).unwrap();
    for encoding in ENCODINGS {
        let shard = dir.path().join("m.bs");
        let options = CompressOptions::new().encoding(encoding).replace(true).md5(true);
        let report = bigsmall_io::compress(&plain, &shard, &options, &Progress::default()).unwrap();
        assert_eq!(report.original_bytes, original.len() as u64);
        assert_eq!(report.compressed_bytes, std::fs::metadata(&shard).unwrap().len());
        assert_eq!(report.files[0].n_tensors, tensors.len() as u64);
        let options = RestoreOptions::new().md5(true);
        let verified = bigsmall_io::verify(&shard, &options, &Progress::default()).unwrap();
        assert_eq!(verified.files[0].md5s, report.files[0].md5s);
        assert_eq!(verified.files[0].sha256, report.files[0].sha256);
        restore(&shard, &back).unwrap();
        assert!(std::fs::read(&back).unwrap() == original, "{encoding:?}");
        std::fs::remove_file(&back).unwrap();
        let model = Model::open(&shard).unwrap();
        for t in &tensors {
            assert!(model.tensor(&t.name).unwrap().bytes() == t.bytes, "{} {encoding:?}", t.name);
        }
    }
}

#[test]
fn a_tensor_is_raw_where_that_is_smaller() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, shard) = (dir.path().join("m.safetensors"), dir.path().join("m.bs"));
    let mut random = Random::new(5);
    // Below a chunk, below what decides exactly, and beyond.
    let sizes = [1000, 3 << 20, 20 << 20];
    let mut tensors: Vec<Tensor> = sizes
        .iter()
        .map(|&n| tensor(&format!("noise.{n}"), Dtype::U8, &[n], random.bytes(n)))
        .collect();
    tensors.extend(
        sizes.iter().map(|&n| {
            tensor(&format!("weights.{n}"), Dtype::BF16, &[n / 2], random.weights(n / 2))
        }),
    );
    write(&plain, &tensors);
    compress(&plain, &shard).unwrap();
    let opened = Shard::open(std::fs::File::open(&shard).unwrap()).unwrap();
    for (i, spec) in opened.tensors().iter().enumerate() {
        let expected = match spec.name().starts_with("noise") {
            true => EncodingId::Raw,
            false => EncodingId::Ans,
        };
        assert_eq!(opened.encoding(i).unwrap(), expected, "{}", spec.name());
    }
    let overhead = std::fs::metadata(&shard).unwrap().len()
        - (0..6).map(|i| opened.payload_range(i).unwrap()).map(|r| r.end - r.start).sum::<u64>();
    assert!(overhead < 20_000, "{overhead}");
    verify(&shard).unwrap();
}

#[test]
fn identical_tensors_are_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, shard) = (dir.path().join("m.safetensors"), dir.path().join("m.bs"));
    let mut random = Random::new(7);
    let large = random.weights(1_500_000);
    // Differs in one byte that no sample sees.
    let mut other = large.clone();
    other[1_234_567] ^= 1;
    let small = random.bytes(5000);
    write(
        &plain,
        &[
            tensor("a", Dtype::BF16, &[1_500_000], large.clone()),
            tensor("b", Dtype::BF16, &[1500, 1000], large.clone()),
            tensor("c", Dtype::BF16, &[1_500_000], other),
            tensor("d", Dtype::I16, &[1_500_000], large),
            tensor("e", Dtype::U8, &[5000], small.clone()),
            tensor("f", Dtype::U8, &[50, 100], small.clone()),
            tensor("g", Dtype::I8, &[5000], small),
            tensor("h", Dtype::U8, &[0], vec![]),
            tensor("i", Dtype::U8, &[0], vec![]),
        ],
    );
    let report = compress(&plain, &shard).unwrap();
    let opened = Shard::open(std::fs::File::open(&shard).unwrap()).unwrap();
    let shares = |name| {
        let owner = opened.entry(opened.index_of(name).unwrap()).unwrap().shares();
        owner.map(|i| opened.tensors()[i].name())
    };
    // Sharing is within a dtype; of two that are alike, the first in the order of the data owns the
    // payload.
    assert_eq!((shares("a"), shares("b")), (None, Some("a")));
    assert_eq!((shares("c"), shares("d")), (None, None));
    assert!(shares("e").or(shares("f")).is_some() && shares("g").is_none());
    assert_eq!((shares("h"), shares("i")), (None, None));
    assert_eq!(report.files[0].n_shared, 2);
    restore(&shard, &dir.path().join("back")).unwrap();
    assert!(std::fs::read(dir.path().join("back")).unwrap() == std::fs::read(&plain).unwrap());
}

#[test]
fn transcoding_needs_no_original_and_gives_the_same_bytes_as_compressing() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write(&path("m.safetensors"), &every_dtype());
    let encodings = [Encoding::Raw, Encoding::default(), Encoding::Tbe3];
    for from in encodings {
        for to in encodings {
            let progress = Progress::default();
            let options = |encoding| CompressOptions::new().encoding(encoding).replace(true);
            let plain = path("m.safetensors");
            bigsmall_io::compress(&plain, path("from.bs"), &options(from), &progress).unwrap();
            bigsmall_io::compress(&plain, path("direct.bs"), &options(to), &progress).unwrap();
            transcode(path("from.bs"), path("to.bs"), &options(to), &progress).unwrap();
            let same =
                std::fs::read(path("to.bs")).unwrap() == std::fs::read(path("direct.bs")).unwrap();
            assert!(same, "{from:?} to {to:?}");
        }
    }
}

#[test]
fn rows_and_layers_are_what_they_are_called() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, shard) = (dir.path().join("m.safetensors"), dir.path().join("m.bs"));
    let mut random = Random::new(9);
    let big = random.weights(3000 * 257);
    let names = ["layers.1.a", "layers.1", "layers.10.a", "layers.1.b.c", "xlayers.1.a"];
    let mut tensors: Vec<Tensor> =
        names.iter().map(|n| tensor(n, Dtype::BF16, &[4], random.weights(4))).collect();
    tensors.push(tensor("big", Dtype::BF16, &[3000, 257], big.clone()));
    tensors.push(tensor("f4", Dtype::F4, &[2, 3], vec![0x12, 0x34, 0x56]));
    write(&plain, &tensors);
    compress(&plain, &shard).unwrap();
    let model = Model::open(&shard).unwrap();
    let mut found: Vec<String> =
        model.layer("layers.1").unwrap().iter().map(|t| t.spec().name().to_owned()).collect();
    found.sort();
    assert_eq!(found, ["layers.1", "layers.1.a", "layers.1.b.c"]);
    assert_eq!(model.layer("layers.2").unwrap_err().kind(), ErrorKind::TensorMissing);
    for rows in [0..0, 0..1, 0..3000, 1..2, 254..256, 2999..3000, 3000..3000, 700..2100] {
        let found = model.rows("big", rows.clone()).unwrap();
        assert_eq!(found.spec().shape(), [rows.end - rows.start, 257]);
        assert!(found.bytes() == &big[rows.start as usize * 514..rows.end as usize * 514]);
    }
    let rule = |result: bigsmall_io::Result<bigsmall_io::Tensor>| result.unwrap_err().kind();
    assert_eq!(rule(model.rows("big", 0..3001)), ErrorKind::Format(Rule::RangeOutOfBounds));
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = 2..1;
    assert_eq!(rule(model.rows("big", reversed)), ErrorKind::Format(Rule::RangeOutOfBounds));
    assert_eq!(rule(model.rows("f4", 0..1)), ErrorKind::Format(Rule::UnalignedRange));
    assert_eq!(rule(model.tensor("nobody")), ErrorKind::TensorMissing);
    let short = model.tensor_into("big", &mut [0; 5]).unwrap_err();
    assert_eq!(short.kind(), ErrorKind::Format(Rule::BufferLength));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_file_comes_back(
        parts in prop::collection::vec(
            (0..DTYPES.len(), 0..5000usize, any::<u64>(), any::<u8>()),
            0..12,
        ),
        encoding in 0..ENCODINGS.len(),
        threads in 1..4usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let tensors: Vec<Tensor> = parts
            .into_iter()
            .enumerate()
            .map(|(i, (dtype, n, seed, mask))| {
                let (dtype, n) = (DTYPES[dtype], n / 4 * 4);
                let bytes = Random::new(seed).bytes(n * dtype.bitsize() / 8);
                let bytes = bytes.into_iter().map(|b| b & mask).collect();
                tensor(&format!("t{i}"), dtype, &[n], bytes)
            })
            .collect();
        write(&path("m"), &tensors);
        let options = CompressOptions::new().encoding(ENCODINGS[encoding]);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            bigsmall_io::compress(path("m"), path("m.bs"), &options, &Progress::default())
        })
        .unwrap();
        pool.install(|| restore(&path("m.bs"), &path("back"))).unwrap();
        prop_assert!(std::fs::read(path("back")).unwrap() == std::fs::read(path("m")).unwrap());
    }
}

#[test]
fn what_a_shard_writer_wrote_verifies_and_restores() {
    use bigsmall_format::{Header, Limits, ShardWriter};
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let tensors = every_dtype();
    write(&path("m.safetensors"), &tensors);
    let original = std::fs::read(path("m.safetensors")).unwrap();
    let (json, header) = Header::read(&original, &Limits::default()).unwrap();
    let encoding = Encoding::default().implementation();
    let mut writer = ShardWriter::new(Vec::new(), json, header.data_len()).unwrap();
    for spec in header.tensors() {
        let tensor = tensors.iter().find(|t| t.name == spec.name()).unwrap();
        writer.write(spec, &tensor.bytes, encoding).unwrap();
    }
    std::fs::write(path("m.bs"), writer.finish().unwrap()).unwrap();
    verify(&path("m.bs")).unwrap();
    restore(&path("m.bs"), &path("back")).unwrap();
    assert!(std::fs::read(path("back")).unwrap() == original);
}

#[test]
fn an_error_names_the_file_and_the_place_in_it_whoever_finds_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (plain, shard, out) = (path("m.safetensors"), path("m.bs"), path("out"));
    let mut random = Random::new(9);
    let weights =
        |n, random: &mut Random| tensor(n, Dtype::BF16, &[40_000], random.weights(40_000));
    write(&plain, &[weights("a", &mut random), weights("b", &mut random)]);
    compress(&plain, &shard).unwrap();

    let transcoded =
        || transcode(&shard, &out, &CompressOptions::default(), &Progress::default()).map(drop);
    let payload = {
        let opened = Shard::open(std::fs::read(&shard).unwrap()).unwrap();
        opened.payload_range(1).unwrap()
    };
    let mut damaged = std::fs::read(&shard).unwrap();
    damaged[payload.end as usize - 100] ^= 1;
    std::fs::write(&shard, &damaged).unwrap();
    let read = Model::open(&shard).unwrap().tensor("b").map(drop);
    for result in [read, verify(&shard).map(drop), restore(&shard, &out).map(drop), transcoded()] {
        let error = result.unwrap_err();
        assert_eq!(error.rule(), Some(Rule::BlockChecksum), "{error}");
        assert_eq!(error.file(), shard.to_str(), "{error}");
        assert!(payload.contains(&error.offset().unwrap()), "{error}");
    }

    // What is not a shard, or is one where it should not be.
    let text = |result: bigsmall_io::Result<()>| result.unwrap_err().to_string();
    let again = text(compress(&shard, &out).map(drop));
    assert!(again.contains("m.bs") && again.contains("compressed already"), "{again}");
    for found in [verify(&plain).map(drop), restore(&plain, &out).map(drop)] {
        let found = text(found);
        assert!(found.contains("m.safetensors: a safetensors file"), "{found}");
    }
    damaged.truncate(damaged.len() - 10);
    std::fs::write(&shard, &damaged).unwrap();
    for found in [verify(&shard).map(drop), restore(&shard, &out).map(drop), transcoded()] {
        let error = found.unwrap_err();
        assert_eq!(error.rule(), Some(Rule::ShardMagic), "{error}");
        let found = text(Err(error));
        assert!(found.contains("m.bs") && found.contains("cut short"), "{found}");
    }
    let empty = path("empty");
    std::fs::create_dir(&empty).unwrap();
    let found = text(Model::open(&empty).map(drop));
    assert!(found.contains("empty") && found.contains("no .bs file"), "{found}");
}
