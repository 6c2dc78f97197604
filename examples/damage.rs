//! What becomes of a damaged shard: a thousand damages, each detected, harmless or silent.
//!
//! `cargo run --release -p bigsmall-examples --example damage -- FILE.bs`

use std::fs::File;
use std::path::PathBuf;

use bigsmall_codec::Backend;
use bigsmall_examples::Result;
use bigsmall_format::{ReadAt, Shard};
use bigsmall_testing::Random;
use bigsmall_testing::trials::{Encodings, Found, Kind, Tally};
use clap::Parser;

/// Damages what is read from a shard, and counts what detects it.
///
/// The file stays as it is. After each damage, a reader that knows nothing of it opens the shard
/// and decodes every block that the damage touches.
#[derive(Parser)]
struct Args {
    /// The shard.
    file: PathBuf,
    /// How many damages, of all kinds together.
    #[arg(default_value_t = 1000)]
    times: usize,
}

fn main() -> Result<()> {
    let Args { file, times } = Args::parse();
    let file = File::open(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    let sound = Shard::open(&file)?;
    let encodings = Encodings::new(Backend::best())?;
    let mut random = Random::new(1);
    let mut total = Tally::default();
    println!("{:<40}{}", "", Tally::HEADING);
    for (i, kind) in Kind::ALL.into_iter().enumerate() {
        let n = (i + 1) * times / Kind::ALL.len() - i * times / Kind::ALL.len();
        let mut tally = Tally::default();
        for _ in 0..n {
            let damaged = kind.damage(&file as &dyn ReadAt, &mut random)?;
            tally.add(damaged.try_out(&sound, &encodings)?);
        }
        println!("{:<40}{tally}", kind.name());
        total.add_all(&tally);
    }
    println!("{:<40}{total}", "all");
    if total.of(Found::Silent) > 0 {
        return Err("damage that nothing detected".into());
    }
    Ok(())
}
