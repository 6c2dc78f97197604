//! No silent corruption: every flipped bit and every cut of the golden files, and random damage, is
//! detected. With every checksum recomputed, damage is an error, or it decodes to other values,
//! which are the same on every backend, and the SHA-256 detects it. Nothing panics.
//!
//! For larger files, a sample of the bits is tested. The ignored tests take all bits, and a million
//! random damages.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;

use bigsmall_codec::Backend;
use bigsmall_format::internal::for_each_in_parallel;
use bigsmall_format::{Class, Result};
use bigsmall_testing::goldens;
use bigsmall_testing::trials::{Encodings, Found, Golden, Kind, Tally, decode_frame, restore_all};

/// Calls `work` for every golden file, on all cores. Prints and returns the counts, and fails if a
/// damage is silent.
fn each(name: &str, work: impl Fn(&Golden, &mut Tally) -> Result<()> + Sync) -> Tally {
    let goldens = Golden::all().unwrap();
    assert!(goldens.len() >= 15);
    let total = Mutex::new(Tally::default());
    let counted: Result<()> = for_each_in_parallel(
        // The largest first, so that no core is left with a large one at the end.
        goldens.iter().rev(),
        || (),
        |(), golden| {
            let mut tally = Tally::default();
            work(golden, &mut tally)?;
            assert_eq!(tally.of(Found::Silent), 0, "{}", golden.name);
            total.lock().unwrap().add_all(&tally);
            Ok(())
        },
    );
    counted.unwrap();
    let total = total.into_inner().unwrap();
    println!("{}\n{total} {name}", Tally::HEADING);
    total
}

/// About every `n`-th bit of a file of 5000 bytes or more.
fn step(golden: &Golden, n: usize) -> usize {
    if golden.bytes.len() < 5000 { 1 } else { n }
}

//
#[test]
fn every_flipped_bit() {
    let tally = each("bits flipped", |g, tally| g.every_bit(step(g, 61), false, tally));
    // Nothing is harmless, because every bit is checked.
    assert!(tally.tried() > 100_000 && tally.of(Found::Harmless) == 0);
}

/// Frames have no digest of the whole; every bit of them is behind a checksum or compared. And no
/// single bit makes a file sound that must be refused.
//
#[test]
fn every_flipped_bit_of_frames_and_of_refused_files() {
    let encodings = Encodings::new(Backend::best()).unwrap();
    let frames = goldens::goldens().unwrap().into_iter();
    let frames = frames.filter(|g| g.name.ends_with(".frame")).map(|g| (g.name, g.bytes));
    let refused = goldens::refused().unwrap().into_iter().map(|r| (r.name, r.bytes));
    let mut tried = 0;
    for (name, bytes) in frames.chain(refused) {
        for bit in (0..8 * bytes.len()).step_by(if bytes.len() < 2000 { 1 } else { 61 }) {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let found = match name.ends_with(".frame") {
                true => decode_frame(&damaged, &encodings, 1 << 24),
                false => restore_all(&damaged[..], &encodings, 1 << 24),
            };
            let error = found.map(drop).expect_err(&format!("{name}: bit {bit} is silent"));
            assert!(!matches!(error.class(), Class::Io | Class::Usage), "{name}: {error:?}");
            tried += 1;
        }
    }
    println!("{tried} bits of frames and refused files flipped, none silent");
    assert!(tried > 300_000);
}

//
#[test]
fn every_cut() {
    let tally = each("cuts", |g, tally| g.every_cut(false, tally));
    assert!(tally.tried() > 50_000 && tally.of(Found::Harmless) == 0);
    each("cuts under right checksums", |g, tally| g.every_cut(true, tally));
}

//
#[test]
fn every_flipped_bit_under_right_checksums() {
    let tally = each("bits flipped under right checksums", |g, tally| {
        let n = match g.bytes.len() {
            0..1500 => 1,
            1500..5000 => 7,
            _ => 397,
        };
        g.every_bit(n, true, tally)
    });
    // Only bits without a wrong value remain: optional features, an MD5 that is not compared here,
    // and the flag for a synthesised header.
    assert!(tally.of(Found::Harmless) * 5 < tally.tried(), "{tally}");
    assert!(tally.of(Found::Structure) > 0 && tally.of(Found::Digest) > 0);
    assert_eq!(tally.of(Found::Checksum), 0, "a checksum that was not recomputed");
}

#[test]
fn random_damage() {
    for kind in Kind::ALL {
        let tally = each(kind.name(), |g, tally| g.random(kind, 100, 1, tally));
        assert_eq!(tally.of(Found::Harmless), 0);
    }
}

#[test]
#[ignore = "takes minutes"]
fn every_bit_of_every_file() {
    each("bits flipped, all of them", |g, tally| g.every_bit(1, false, tally));
    each("the same under right checksums", |g, tally| g.every_bit(1, true, tally));
}

#[test]
#[ignore = "takes minutes"]
fn a_million_random_damages() {
    let tally = each("damages of 2 to 64 bits", |g, tally| g.random(Kind::Bits, 66_700, 2, tally));
    assert!(tally.tried() > 1_000_000);
}
