//! What becomes of a damaged shard: a thousand damages, each noticed, harmless or silent.
//!
//! `cargo run --release -p bigsmall-examples --example damage [-- FILE.bs [TIMES]]`
//!
//! The file stays as it is: damage is done to what is read from it. After each damage a reader that
//! knows nothing of it opens the shard and decodes every block that the damage touches. Without a
//! file the golden files of the repository are damaged bit by bit and cut at every byte, as their
//! bytes stand and with every checksum made right again.

use std::path::{Path, PathBuf};

use bigsmall_codec::Backend;
use bigsmall_format::{Error, ReadAt, Result, Rule, Shard};
use bigsmall_testing::Random;
use bigsmall_testing::trials::{Encodings, Found, Golden, Kind, Tally, for_each_golden};

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let file = arguments.next();
    let times = match arguments.next().map(|n| n.to_string_lossy().parse()) {
        None => 1000,
        Some(Ok(n)) => n,
        Some(Err(_)) => return Err(Error::new(Rule::Argument).expected("a number of damages")),
    };
    println!("{:<40}{}", "", Tally::HEADING);
    let total = match file {
        Some(path) => own_file(&PathBuf::from(path), times)?,
        None => golden_files(times)?,
    };
    println!("{:<40}{total}", "all");
    if total.of(Found::Silent) > 0 {
        return Err(Error::new(Rule::ContentDigest).found("damage that nobody noticed"));
    }
    Ok(())
}

fn row(name: &str, tally: &Tally, total: &mut Tally) {
    println!("{name:<40}{tally}");
    total.add_all(tally);
}

/// `times` damages of the file at `path`, as many of each kind.
fn own_file(path: &Path, times: usize) -> Result<Tally> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(e).in_file(path))?;
    let sound = Shard::open(&file).map_err(|e| e.in_file(path))?;
    let encodings = Encodings::new(Backend::best())?;
    let mut random = Random::new(1);
    let mut total = Tally::default();
    for (i, kind) in Kind::ALL.into_iter().enumerate() {
        let n = (i + 1) * times / Kind::ALL.len() - i * times / Kind::ALL.len();
        let mut tally = Tally::default();
        for _ in 0..n {
            tally.add(kind.damage(&file as &dyn ReadAt, &mut random)?.try_out(&sound, &encodings)?);
        }
        row(kind.name(), &tally, &mut total);
    }
    Ok(total)
}

/// Every bit and every cut of the golden files, and `times` thousand random damages.
fn golden_files(times: usize) -> Result<Tally> {
    let goldens = Golden::all()?;
    let mut total = Tally::default();
    row(
        "every bit flipped",
        &for_each_golden(&goldens, |g, tally| g.every_bit(1, false, tally))?,
        &mut total,
    );
    row(
        "every bit, checksums made right",
        &for_each_golden(&goldens, |g, t| g.every_bit(1, true, t))?,
        &mut total,
    );
    row("cut at every byte", &for_each_golden(&goldens, |g, t| g.every_cut(false, t))?, &mut total);
    row(
        "cut, checksums made right",
        &for_each_golden(&goldens, |g, t| g.every_cut(true, t))?,
        &mut total,
    );
    for kind in [Kind::Bits, Kind::Zeros, Kind::Copied, Kind::Inserted, Kind::Removed] {
        let n = 200 * times / goldens.len();
        let tally = for_each_golden(&goldens, |g, tally| g.random(kind, n, 1, tally))?;
        row(kind.name(), &tally, &mut total);
    }
    Ok(total)
}
