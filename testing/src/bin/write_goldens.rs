//! Compares the golden files with the output of the current encoder. With `--write` it replaces the
//! files that differ. See the module `goldens`.

use std::path::Path;

use bigsmall_testing::goldens;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let write = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--write"] => true,
        _ => return Err("usage: write_goldens [--write]".into()),
    };
    let folder = goldens::folder();
    let (mut total, mut differ) = (0, 0);
    for (name, bytes) in goldens::files(&goldens::goldens()?, &goldens::refused()?) {
        let state = compare(&folder.join(&name), &bytes, write)?;
        println!("{:>8}  {name:<44} {state}", bytes.len());
        total += bytes.len();
        differ += usize::from(state == "differs");
    }
    println!("{total:>8}  in all, {differ} differ");
    if differ > 0 { Err("the golden files are not what the encoder writes".into()) } else { Ok(()) }
}

fn compare(path: &Path, bytes: &[u8], write: bool) -> Result<&'static str> {
    if std::fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok("as it was");
    }
    if !write {
        return Ok("differs");
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, bytes)?;
    Ok("written")
}
