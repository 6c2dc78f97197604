//! Damages a shard a thousand times and counts whether each damage is detected, harmless or silent.
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

/// Damages a copy of a shard, and counts what detects the damage.
///
/// The file itself is not changed. For each damage, the damaged shard is opened, and every block
/// that the damage affects is decoded.
#[derive(Parser)]
struct Args {
    /// The shard.
    file: PathBuf,
    /// The total number of damages, of all kinds.
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
        return Err("some damage was not detected".into());
    }
    Ok(())
}
