//! A base behind HTTP: only the blocks that are needed are read.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;
#[path = "common/server.rs"]
mod server;

use bigsmall_io::{
    BaseModel, CompressOptions, ErrorKind, Model, Progress, RestoreOptions, StreamOptions,
    StreamingLoader, estimate,
};
use common::{Random, Tensor, tensor, write};
use safetensors::Dtype;
use server::{Server, serve};

fn models() -> [Vec<Tensor>; 2] {
    let mut random = Random::new(3);
    let name = |n: usize| format!("layers.{n}.weight");
    let base: Vec<Tensor> = (0..4)
        .map(|n| tensor(&name(n), Dtype::BF16, &[2000, 700], random.weights(1_400_000)))
        .collect();
    let changed = |t: &Tensor| {
        let mut bytes = t.bytes.clone();
        bytes.iter_mut().step_by(50).for_each(|byte| *byte ^= 1);
        tensor(&t.name, t.dtype, &t.shape, bytes)
    };
    // Layers 2 and 3 are left out.
    let new = base.iter().take(2).map(changed).collect();
    [base, new]
}

#[test]
fn only_the_blocks_that_are_needed_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let [base, new] = models();
    write(&path("base.safetensors"), &base);
    write(&path("new"), &new);
    let plain = CompressOptions::default();
    bigsmall_io::compress(path("base.safetensors"), path("base.bs"), &plain, &Progress::default())
        .unwrap();
    for file in ["base.safetensors", "base.bs"] {
        let bytes = std::fs::read(path(file)).unwrap();
        let len = bytes.len() as u64;
        let server = Server::new(move |request, _| serve(request, &bytes, "one"));
        let url = server.url(file);
        let options = CompressOptions::new().replace(true).base(&url);
        bigsmall_io::compress(path("new"), path("new.bs"), &options, &Progress::default()).unwrap();
        let written = std::fs::metadata(path("new.bs")).unwrap().len();
        assert!(written < 2_500_000);

        // An estimate: four blocks of each tensor.
        let before = server.sent();
        let guess = estimate(path("new"), &options, &Progress::default()).unwrap();
        let off = guess.compressed_bytes as f64 / written as f64;
        assert!((0.9..1.1).contains(&off), "{file}: {off}");
        let sent = server.sent() - before;
        assert!(sent < 2 * 4 * 262_144 + 600_000, "{file}: {sent} bytes for an estimate");

        // Half of the base, and what opening fetches.
        let before = server.sent();
        let options = RestoreOptions::new().replace(true).base(&url);
        bigsmall_io::restore(path("new.bs"), path("back"), &options, &Progress::default()).unwrap();
        assert!(std::fs::read(path("back")).unwrap() == std::fs::read(path("new")).unwrap());
        let sent = server.sent() - before;
        assert!(sent < len / 2 + 600_000, "{file}: {sent} of {len} bytes");

        // A row: a block.
        let model = Model::open(path("new.bs")).unwrap();
        let model = model.with_base(BaseModel::open(&url).unwrap()).unwrap();
        let before = server.sent();
        let row = model.rows("layers.1.weight", 900..901).unwrap();
        assert!(row.bytes() == &new[1].bytes[900 * 1400..901 * 1400]);
        let sent = server.sent() - before;
        assert!(sent <= 600_000, "{file}: {sent} bytes for a row");

        assert!(model.tensor("layers.0.weight").unwrap().bytes() == new[0].bytes);
        let layers = StreamingLoader::new(model, &StreamOptions::default()).unwrap();
        for (layer, t) in layers.zip(&new) {
            assert!(layer.unwrap().tensors()[0].bytes() == t.bytes);
        }
    }
}

#[test]
// T-05
fn a_base_that_changes_while_it_is_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let [base, new] = models();
    write(&path("base"), &base);
    write(&path("new"), &new);
    let bytes = std::fs::read(path("base")).unwrap();
    let server =
        Server::new(move |request, n| serve(request, &bytes, if n < 5 { "one" } else { "two" }));
    let options = CompressOptions::new().base(server.url("base.safetensors"));
    let done = bigsmall_io::compress(path("new"), path("new.bs"), &options, &Progress::default());
    assert_eq!(done.unwrap_err().kind(), ErrorKind::SourceChanged);
    assert!(!path("new.bs").exists());
}
