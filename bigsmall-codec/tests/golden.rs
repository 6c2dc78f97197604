//! The golden files are read for ever: every backend, every kind of source, every number of threads
//! gives back the original bytes. `write_goldens` in `testing` writes them; nothing here does.
#![allow(clippy::unwrap_used)]

mod oracle;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;

use bigsmall_codec::*;
use bigsmall_format::{EncodingId, Raw, Shard};
use bigsmall_tbe::Tbe;
use md5::Md5;
use oracle::{Copying, Head};
use sha2::{Digest, Sha256};

struct Golden {
    name: String,
    shard: Vec<u8>,
    path: PathBuf,
    /// The original, where it is kept.
    original: Option<Vec<u8>>,
    sha256: String,
}

/// The files stand at the root of the repository; this test is not a part of the published package.
fn goldens() -> Vec<Golden> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = root.join("goldens");
    let sums = std::fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    let golden = |line: &str| {
        let (sha256, original) = line.split_once("  ").unwrap();
        // The others are sums of frames and of deltas.
        let name = original.strip_suffix(".safetensors")?.to_owned();
        let path = folder.join(format!("{name}.bs"));
        let shard = std::fs::read(&path).ok()?;
        let original = std::fs::read(folder.join(original)).ok();
        Some(Golden { name, shard, path, original, sha256: sha256.to_owned() })
    };
    let goldens: Vec<Golden> = sums.lines().filter_map(golden).collect();
    let shards = std::fs::read_dir(&folder).unwrap();
    let shards = shards
        .filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|x| x == "bs"))
        .count();
    assert_eq!(goldens.len(), shards, "every shard has a sum");
    assert!(shards >= 15, "the golden files are there");
    goldens
}

fn encoding(id: EncodingId, backend: Backend) -> Box<dyn TensorEncoding> {
    match id {
        EncodingId::Raw => Box::new(Raw),
        EncodingId::Ans => Box::new(Ans::default().with_backend(backend).unwrap()),
        EncodingId::Tbe => Box::new(Tbe::default()),
        other => panic!("{other}"),
    }
}

/// Runs `work` in a pool of so many threads.
fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// The restored safetensors file.
fn restore<R: ReadAt>(shard: &Shard<R>, backend: Backend) -> Vec<u8> {
    shard.check_prelude().unwrap();
    let json = shard.header_json();
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(json);
    for (i, spec) in shard.tensors().iter().enumerate() {
        let encoding = encoding(shard.encoding(i).unwrap(), backend);
        let decoder = shard.decoder(i, &*encoding).unwrap();
        let begin = out.len();
        out.resize(begin + spec.byte_len() as usize, 0x5a);
        let all = 0..spec.byte_len();
        shard.decode(i, &*decoder, all.clone(), &mut out[begin..]).unwrap();
        // The same by way of the encoded tensor and its frame.
        let tensor = shard.encoded(i).unwrap();
        let frame = EncodedTensor::from_bytes(&tensor.to_bytes()).unwrap();
        let mut again = vec![0xa5; spec.byte_len() as usize];
        frame.decode_bytes(&*encoding, all, &mut again).unwrap();
        assert!(out[begin..] == again, "{spec:?}");
    }
    assert_eq!(out.len() as u64, shard.original_len());
    out
}

#[test]
fn every_reader_restores_every_golden() {
    for golden in goldens() {
        for backend in backends() {
            let what = format!("{} {backend:?}", golden.name);
            let slice = in_pool(1, || restore(&Shard::open(&golden.shard[..]).unwrap(), backend));
            let sum: String = Sha256::digest(&slice).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(sum, golden.sha256, "{what}");
            assert!(golden.original.as_ref().is_none_or(|o| *o == slice), "{what}");
            let copying = Shard::open(Copying(&golden.shard)).unwrap();
            assert!(in_pool(2, || restore(&copying, backend)) == slice, "{what}");
            let file = Shard::open(std::fs::File::open(&golden.path).unwrap()).unwrap();
            assert!(in_pool(7, || restore(&file, backend)) == slice, "{what}");
            assert_eq!(file.sha256()[..], Sha256::digest(&slice)[..], "{what}");
        }
    }
}

#[test]
fn md5_of_the_original_bytes() {
    let goldens = goldens();
    let mut with_md5 = 0;
    for golden in &goldens {
        let shard = Shard::open(&golden.shard[..]).unwrap();
        for (i, spec) in shard.tensors().iter().enumerate() {
            let Some(md5) = shard.entry(i).unwrap().md5() else { continue };
            let begin = shard.header().data_range(i).start as usize + 8 + shard.header_json().len();
            let bytes = &golden.original.as_ref().unwrap()[begin..][..spec.byte_len() as usize];
            assert_eq!(Md5::digest(bytes)[..], md5, "{} {spec:?}", golden.name);
            with_md5 += 1;
        }
    }
    assert!(with_md5 > 5 || goldens.is_empty());
}

/// Every tensor in pieces: from everywhere to everywhere in small ones, across the edges of blocks
/// in large ones.
#[test]
fn ranges_of_every_golden() {
    for golden in goldens() {
        let shard = Shard::open(Copying(&golden.shard)).unwrap();
        for (i, spec) in shard.tensors().iter().enumerate() {
            let encoding = encoding(shard.encoding(i).unwrap(), Backend::best());
            let decoder = shard.decoder(i, &*encoding).unwrap();
            let n = spec.byte_len();
            let mut whole = vec![0; n as usize];
            shard.decode(i, &*decoder, 0..n, &mut whole).unwrap();
            let block = spec.block_bytes() as u64;
            let mut cuts: Vec<u64> = (0..n.div_ceil(block))
                .flat_map(|b| [b * block, (b * block).saturating_sub(3), b * block + 5])
                .chain([1, n / 3, n])
                .filter(|&at| at <= n)
                .collect();
            cuts.sort_unstable();
            cuts.dedup();
            for (k, &a) in cuts.iter().enumerate() {
                for &b in &cuts[k..] {
                    let mut piece = vec![0xee; (b - a) as usize];
                    shard.decode(i, &*decoder, a..b, &mut piece).unwrap();
                    assert!(piece == whole[a as usize..b as usize], "{} {a}..{b}", golden.name);
                }
            }
        }
    }
}

/// The oracle, written from FORMAT.md, reads every ANS block as the backends do; and the golden
/// files have every feature of the encoding.
#[test]
fn the_oracle_reads_every_ans_block_and_every_feature_occurs() {
    let mut features = BTreeSet::new();
    let goldens = goldens();
    for golden in &goldens {
        let shard = Shard::open(&golden.shard[..]).unwrap();
        for (i, spec) in shard.tensors().iter().enumerate() {
            if shard.encoding(i).unwrap() != EncodingId::Ans {
                continue;
            }
            let mut see = |feature: String| {
                features.insert(feature);
            };
            let tensor = shard.encoded(i).unwrap();
            let mut whole = vec![0; spec.byte_len() as usize];
            tensor.decode_bytes(&Ans::default(), 0..spec.byte_len(), &mut whole).unwrap();
            let head = Head::read(spec.dtype(), tensor.head()).unwrap();
            assert_eq!(head.write(), tensor.head());
            oracle::view::check(&tensor, true, &format!("{} {spec:?}", golden.name)).unwrap();
            see(format!("m {}", head.m));
            see(format!("symbol bits {}", head.w));
            see(format!("segment {}", head.log_segment));
            see(format!("tables {}", head.tables.len()));
            see(format!("low widths {}", head.low_widths.len()));
            see(format!("zero in the window's place {}", head.first != head.base));
            see(format!("blocks {}", tensor.table().n_blocks().min(4)));
            see(format!("masks {}, columns {}", head.mask.is_some(), !head.columns.is_empty()));
            for b in 0..tensor.table().n_blocks() {
                let from = b as usize * spec.block_bytes();
                let units = spec.block_byte_len(b);
                let block = tensor.block(b);
                let n_units = units / spec.dtype().unit_bytes();
                let decoded = oracle::decode(&head, block, n_units).unwrap();
                assert!(decoded == whole[from..from + units], "{} {spec:?} {b}", golden.name);
                see(format!("kind {}", block[0]));
                if block[0] == 3 {
                    let (mask, others, _) = oracle::zeros(block, n_units).unwrap();
                    see(format!("mask of kind {}", mask[0]));
                    see(format!("others of kind {}", others[0]));
                }
                if block[0] != 2 {
                    continue;
                }
                let sections = oracle::sections(&head, block, n_units).unwrap();
                let words = u32::from_le_bytes(block[4..8].try_into().unwrap());
                let residual = n_units / 256 * 32 * head.residual_bits() as usize;
                see(format!("odd words {}", words % 2));
                see(format!("carried {}", residual - sections.residual.len()));
                see(format!("tail {}", !sections.tail.is_empty()));
                see(format!("full block {}", n_units == bigsmall_format::MAX_BLOCK_UNITS));
                let (low, high) = (head.base, head.base + (1 << head.w));
                let fields = decoded
                    .chunks(spec.dtype().unit_bytes())
                    .take(n_units / 256 * 256)
                    .map(|unit| head.split(unit).0);
                let coded: u32 = u16::from_le_bytes([block[2], block[3]]).into();
                if coded > 0 && head.first == head.base {
                    for field in fields {
                        let side = match field {
                            f if f < low => "below",
                            f if f >= high => "above",
                            f if head.tables.iter().all(|t| t[(f - low) as usize] == 0) => "inside",
                            _ => continue,
                        };
                        see(format!("exception {side}"));
                    }
                }
            }
        }
    }
    if goldens.is_empty() {
        return;
    }
    for feature in [
        "m 0",
        "m 1",
        "m 2",
        "m 3",
        "symbol bits 5",
        "symbol bits 6",
        "symbol bits 7",
        "symbol bits 8",
        "segment 8",
        "segment 10",
        "tables 1",
        "tables 3",
        "tables 4",
        "tables 8",
        "low widths 0",
        "low widths 1",
        "low widths 2",
        "low widths 3",
        "low widths 4",
        "zero in the window's place false",
        "zero in the window's place true",
        "blocks 0",
        "blocks 1",
        "blocks 4",
        "kind 0",
        "kind 1",
        "kind 2",
        "kind 3",
        "kind 4",
        "kind 5",
        "masks true, columns false",
        "masks false, columns true",
        "masks true, columns true",
        "mask of kind 0",
        "mask of kind 1",
        "mask of kind 2",
        "mask of kind 4",
        "others of kind 1",
        "others of kind 2",
        "others of kind 4",
        "odd words 0",
        "odd words 1",
        "carried 0",
        "carried 32",
        "carried 64",
        "tail false",
        "tail true",
        "full block false",
        "full block true",
        "exception below",
        "exception above",
        "exception inside",
    ] {
        assert!(features.contains(feature), "no golden file has `{feature}`: {features:#?}");
    }
}

/// Frames of the goldens' tensors, one byte range of a shard as the other container.
#[test]
fn entries_say_what_the_files_hold() {
    let goldens = goldens();
    let Some(golden) = goldens.iter().find(|g| g.name == "shared-md5") else { return };
    let shard = Shard::open(&golden.shard[..]).unwrap();
    let shares: Vec<Option<usize>> =
        (0..shard.tensors().len()).map(|i| shard.entry(i).unwrap().shares()).collect();
    assert_eq!(shares, [None, None, Some(0), Some(0), None, Some(4)]);
    let place =
        |name: &str| -> Range<u64> { shard.payload_range(shard.index_of(name).unwrap()).unwrap() };
    assert_eq!(place("embed"), place("flat"));
    assert!(!shard.is_synthesised());
    let golden = goldens.iter().find(|g| g.name == "synthesised").unwrap();
    assert!(Shard::open(&golden.shard[..]).unwrap().is_synthesised());
    let golden = goldens.iter().find(|g| g.name == "names").unwrap();
    let shard = Shard::open(&golden.shard[..]).unwrap();
    for name in ["", "NUL \0 inside", "\u{1b}[31mred\u{1b}[0m", "é", "e\u{301}", "A😀", "../../x"]
    {
        shard.index_of(name).unwrap();
    }
    let error = shard.index_of("\u{1b}[2J").unwrap_err();
    assert!(!error.to_string().contains('\u{1b}'), "control characters are escaped: {error}");
}

#[test]
fn every_backend_and_the_oracle_read_the_golden_pages() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens");
    let tables = std::fs::read(folder.join("pages.tables")).unwrap();
    let head = EncodedTensor::from_bytes(&tables).unwrap().head().to_vec();
    let mut n_pages = 0;
    let mut kinds = BTreeSet::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|x| x != "page") {
            continue;
        }
        let page = std::fs::read(&path).unwrap();
        let bytes = std::fs::read(path.with_extension("bytes")).unwrap();
        for backend in backends() {
            let pages = Pages::from_bytes(&tables).unwrap().with_backend(backend).unwrap();
            let mut back = vec![0x5a; pages.page_len(&page).unwrap()];
            pages.decode_page(&page, &mut back).unwrap();
            assert!(back == bytes, "{path:?} {backend:?}");
        }
        let n_blocks = oracle::page::cut(bytes.len() / 2).len();
        let mut at = 16 + (4 * n_blocks).next_multiple_of(8);
        for b in 0..n_blocks {
            kinds.insert((n_blocks, page[at]));
            let len = u32::from_le_bytes(page[16 + 4 * b..][..4].try_into().unwrap());
            at += (len as usize).next_multiple_of(8);
        }
        assert!(oracle::page::read(Dtype::BF16, &head, &page) == Ok(bytes), "{path:?}");
        n_pages += 1;
    }
    assert!(n_pages >= 5);
    for kind in [(1, 0), (1, 2), (2, 2), (2, 3)] {
        assert!(kinds.contains(&kind), "no golden page has {kind:?}: {kinds:?}");
    }
}
