//! No silent corruption: every single bit and every truncation of the golden files, and random damage, is noticed. With every
//! checksum made right again, damage is an error or decodes to something; never a panic, and on every backend the same.
//!
//! Of the larger files a sample of the bits; `BIGSMALL_EVERY_BIT=1` takes all, `BIGSMALL_DAMAGES=1000000` more random damage.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bigsmall_codec::*;
use bigsmall_format::{EncodingId, Raw, Shard, for_each_in_parallel, xxh3};
use bigsmall_tbe::Tbe;

struct Golden {
    name: String,
    bytes: Vec<u8>,
    /// Where the record of each tensor with a payload of its own begins in the file, and its number of blocks.
    records: Vec<(usize, usize)>,
}

/// The files stand at the root of the repository and are no part of the published crate.
fn goldens() -> Vec<Golden> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    if !root.join("crates/bigsmall-codec").exists() {
        return Vec::new();
    }
    let mut goldens = Vec::new();
    for entry in std::fs::read_dir(root.join("goldens")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|x| x != "bs") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let shard = Shard::open(&bytes[..]).unwrap();
        let index = bytes.len() - 48 - shard.index_len() as usize;
        let mut at = index + 48 + shard.header_json().len().next_multiple_of(8);
        let mut records = Vec::new();
        for i in 0..shard.tensors().len() {
            let entry = shard.entry(i).unwrap();
            let record = at;
            at += 32 + 16 * usize::from(entry.md5().is_some());
            if entry.shares().is_none() {
                let n = shard.table(i).unwrap().n_blocks() as usize;
                records.push((record, n));
                at += (4 * n).next_multiple_of(8) + 8 * n;
            }
        }
        assert_eq!(at, bytes.len() - 48, "the records were followed to their end");
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        goldens.push(Golden { name, bytes, records });
    }
    goldens.sort_by_key(|g| g.bytes.len());
    assert!(goldens.len() >= 15);
    goldens
}

/// Everything that the shard holds.
fn read(bytes: &[u8], backend: Backend) -> Result<Vec<u8>> {
    let ans = Ans::default().with_backend(backend)?;
    let shard = Shard::open(bytes)?;
    shard.check_prelude()?;
    let mut out = shard.header_json().to_vec();
    for (i, spec) in shard.tensors().iter().enumerate() {
        let encoding: &dyn TensorEncoding = match shard.encoding(i)? {
            EncodingId::Raw => &Raw,
            EncodingId::Ans => &ans,
            _ => &Tbe::default(),
        };
        let decoder = shard.decoder(i, encoding)?;
        let begin = out.len();
        // A damaged and resealed shape may ask for more than any file holds.
        assert!(spec.byte_len() < 1 << 30, "{spec:?}");
        out.resize(begin + spec.byte_len() as usize, 0);
        shard.decode(i, &*decoder, 0..spec.byte_len(), &mut out[begin..], 1)?;
    }
    Ok(out)
}

/// Makes every checksum right again, as far as the damaged fields still lead anywhere.
fn reseal(golden: &Golden, bytes: &mut [u8]) {
    let u64_at =
        |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let u32_at = |bytes: &[u8], at: usize| {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    };
    let Some(trailer) = bytes.len().checked_sub(48) else { return };
    for &(record, n_blocks) in &golden.records {
        let head_len = u32_at(bytes, record + 4);
        let place = u64_at(bytes, record + 8) as usize;
        if let Some(head) = bytes.get(place..place.saturating_add(head_len)) {
            let sum = xxh3(head);
            bytes[record + 24..record + 32].copy_from_slice(&sum.to_le_bytes());
        }
        let lens = record + 32 + 16 * usize::from(bytes[record + 1] & 2 != 0);
        let sums = lens + (4 * n_blocks).next_multiple_of(8);
        let mut at = place.saturating_add(head_len.next_multiple_of(8));
        for i in 0..n_blocks {
            let end = at.saturating_add(u32_at(bytes, lens + 4 * i).next_multiple_of(8));
            if let Some(block) = bytes.get(at..end) {
                let sum = xxh3(block);
                if let Some(place) = bytes[..trailer].get_mut(sums + 8 * i..sums + 8 * i + 8) {
                    place.copy_from_slice(&sum.to_le_bytes());
                }
            }
            at = end;
        }
    }
    let from = (u64_at(bytes, trailer) as usize).min(trailer + 32);
    let sum = xxh3(&bytes[from..trailer + 32]);
    bytes[trailer + 32..trailer + 40].copy_from_slice(&sum.to_le_bytes());
}

fn every_bit() -> bool {
    std::env::var_os("BIGSMALL_EVERY_BIT").is_some()
}

/// Calls `work` for a number in `0..n`, every `step`-th, on all cores.
fn in_parallel(n: usize, step: usize, work: impl Fn(usize) + Sync) {
    let chunks = (0..64).map(|c| (n * c / 64)..(n * (c + 1) / 64)).collect::<Vec<_>>();
    for_each_in_parallel(
        0,
        chunks.into_iter(),
        || (),
        |(), range| {
            range.filter(|i| i % step == 0).for_each(&work);
            Ok(())
        },
    )
    .unwrap();
}

#[test]
fn every_flipped_bit_is_noticed() {
    let mut total = 0;
    for golden in goldens() {
        let n = 8 * golden.bytes.len();
        let step = if every_bit() || golden.bytes.len() < 5000 { 1 } else { 61 };
        in_parallel(n, step, |bit| {
            let mut damaged = golden.bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let result = read(&damaged, Backend::best());
            let error = result.err().unwrap_or_else(|| panic!("{}: bit {bit}", golden.name));
            assert_eq!(error.class(), Class::Corrupt, "{}: bit {bit}: {error:?}", golden.name);
        });
        total += n / step;
    }
    println!("{total} bits flipped, every one noticed");
}

#[test]
fn every_truncation_is_noticed() {
    for golden in goldens() {
        in_parallel(golden.bytes.len(), 1, |len| {
            let error = read(&golden.bytes[..len], Backend::best());
            let error = error.err().unwrap_or_else(|| panic!("{}: {len} bytes", golden.name));
            // The header of `synthesised` files and others may end so that it looks like safetensors; never like a shard.
            assert!(
                matches!(error.class(), Class::Corrupt | Class::Unsupported),
                "{}: {len}: {error:?}",
                golden.name
            );
        });
    }
}

#[test]
fn a_flipped_bit_under_right_checksums() {
    let (refused, other, same) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    for golden in goldens() {
        let sound = read(&golden.bytes, Backend::best()).unwrap();
        let mut again = golden.bytes.clone();
        reseal(&golden, &mut again);
        assert!(again == golden.bytes, "{}: sealing a sound shard changes nothing", golden.name);
        let step = match golden.bytes.len() {
            _ if every_bit() => 1,
            0..1500 => 1,
            1500..5000 => 7,
            _ => 397,
        };
        in_parallel(8 * golden.bytes.len(), step, |bit| {
            let mut damaged = golden.bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            reseal(&golden, &mut damaged);
            let first = read(&damaged, Backend::best());
            let what = || format!("{}: bit {bit}", golden.name);
            match &first {
                Err(error) => {
                    let class = error.class();
                    assert!(
                        matches!(class, Class::Corrupt | Class::Unsupported | Class::Limit),
                        "{}: {error:?}",
                        what()
                    );
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                Ok(read) if *read == sound => _ = same.fetch_add(1, Ordering::Relaxed),
                Ok(_) => _ = other.fetch_add(1, Ordering::Relaxed),
            }
            let second = read(&damaged, Backend::Portable);
            assert_eq!(
                first.as_ref().map_err(|e| (e.rule(), e.offset())).err(),
                second.as_ref().map_err(|e| (e.rule(), e.offset())).err(),
                "{}",
                what()
            );
            assert!(first.ok() == second.ok(), "{}: backends decode differently", what());
        });
    }
    println!("{refused:?} refused, {other:?} decode to something else, {same:?} to the same");
}

#[test]
fn random_damage_is_noticed() {
    let n: usize = std::env::var("BIGSMALL_DAMAGES").map_or(20_000, |n| n.parse().unwrap());
    let goldens = goldens();
    if goldens.is_empty() {
        return;
    }
    in_parallel(n, 1, |round| {
        let mut state = (round as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut below = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 8) as usize % n
        };
        let golden = &goldens[below(goldens.len())];
        let mut damaged = golden.bytes.clone();
        for _ in 0..=below(3) {
            let len = damaged.len();
            if len == 0 {
                break;
            }
            let (at, other) = (below(len), below(len));
            let span = at..(at + 1 + below(64)).min(len);
            match below(8) {
                0 => damaged[at] ^= 1 << below(8),
                1 => damaged[at] = below(256) as u8,
                2 => damaged.truncate(at),
                3 => damaged.insert(at, below(256) as u8),
                4 => drop(damaged.drain(span)),
                5 => damaged[span].fill(0),
                6 => damaged.swap(at, other),
                _ => {
                    let piece = damaged[span].to_vec();
                    let to = other.min(len - piece.len());
                    damaged[to..to + piece.len()].copy_from_slice(&piece);
                }
            }
        }
        if damaged != golden.bytes {
            let result = read(&damaged, Backend::best());
            assert!(result.is_err(), "{}: round {round}", golden.name);
        }
    });
}
