//! The current encoder writes exactly the golden files. After a deliberate change of the encoder,
//! `cargo run -p bigsmall-testing --bin write_goldens -- --write` changes the files of an
//! unreleased version. `bigsmall-codec` tests that every reader reads them.

use bigsmall_testing::goldens;

#[test]
fn the_encoder_still_writes_them() {
    let folder = goldens::folder();
    let files = goldens::files(&goldens::goldens().expect("the encoders work"));
    let total: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(total < 400_000, "{total} bytes of golden files are too many to check in");
    for (name, bytes) in &files {
        let found = std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(found == *bytes, "{name} would be written differently");
    }
    let n_found = std::fs::read_dir(folder).expect("the folder of the golden files").count();
    assert_eq!(n_found, files.len(), "files in goldens/ that nothing writes");
}
