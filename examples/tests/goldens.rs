//! Today's encoder writes the golden files as they stand. A deliberate change of what it writes is
//! one to the files of an unreleased version (`cargo run -p bigsmall-examples --example
//! write_goldens -- --write`); that every reader reads them is tested in `bigsmall-codec`.

#[path = "../write_goldens.rs"]
mod write_goldens;

#[test]
fn the_encoder_still_writes_them() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens");
    let files = write_goldens::files(&write_goldens::goldens().unwrap());
    let total: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(total < 400_000, "{total} bytes of golden files are too many to check in");
    for (name, bytes) in &files {
        let found = std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(found == *bytes, "{name} would be written differently");
    }
    let n_found = std::fs::read_dir(folder).unwrap().count();
    assert_eq!(n_found, files.len(), "files in goldens/ that nothing writes");
}
