//! Storage that fails: at the n-th read, at the n-th byte written, in what it gives back.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bigsmall_format::internal::read_at;
use bigsmall_format::{Dtype, Header, ReadAt, Rule, Shard, TensorSpec};

use crate::base::matches::Against;
use crate::base::model::BaseModel;
use crate::base::tensor::Bases;
use crate::compress::walk;
use crate::error::{ErrorKind, Result};
use crate::stage::output::Output;
use crate::{CompressOptions, Encoding, FileReport, Level, Model, Progress, RestoreOptions};

fn compress_source(
    source: &dyn ReadAt,
    output: &dyn Output,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<FileReport> {
    let none = BaseModel::default();
    walk::compress_source(source, Against::new(&none), output, options, progress)
}

fn restore_shard<R: ReadAt>(
    shard: &Shard<R>,
    output: Option<&dyn Output>,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<FileReport> {
    let none = Bases::default();
    crate::restore::walk::restore_shard(shard, &none, false, output, options, progress)
}

/// A safetensors file in memory: tensors of several kinds, one beyond a chunk, two that are
/// identical, one that is empty.
fn plain_file() -> Vec<u8> {
    let tensor = |name, dtype, shape: &[u64]| TensorSpec::new(name, dtype, shape).unwrap();
    let tensors = [
        tensor("large", Dtype::BF16, &[700, 1000]),
        tensor("empty", Dtype::F32, &[0, 3]),
        tensor("norm", Dtype::F32, &[1000]),
        tensor("random", Dtype::U8, &[1500]),
        tensor("twin", Dtype::BF16, &[700, 1000]),
    ];
    let json = Header::synthesise(&tensors).unwrap();
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(&json);
    let mut x = 1u64;
    let mut random = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    let large: Vec<u8> =
        (0..700_000).flat_map(|_| (0x3C00 | (random() as u16 & 0x80FF)).to_le_bytes()).collect();
    file.extend_from_slice(&large);
    file.extend((0..1000).flat_map(|i| (1.0 + 0.001 * i as f32).to_le_bytes()));
    file.extend((0..1500).map(|_| random() as u8));
    file.extend_from_slice(&large);
    file
}

/// Keeps everything, until it is full.
struct Disk {
    bytes: Mutex<Vec<u8>>,
    room: usize,
}

impl Disk {
    fn new(room: usize) -> Self {
        Disk { bytes: Mutex::new(Vec::new()), room }
    }
}

impl Output for Disk {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut kept = self.bytes.lock().unwrap();
        let n = bytes.len().min(self.room - kept.len());
        kept.extend_from_slice(&bytes[..n]);
        if n < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn read_back(&self, offset: u64, buf: &mut [u8]) -> Result<bool> {
        read_at(&*self.bytes.lock().unwrap(), offset, buf)?;
        Ok(true)
    }
}

/// Fails from the `left`-th read on.
struct Failing<'a> {
    bytes: &'a [u8],
    left: AtomicUsize,
}

impl<'a> Failing<'a> {
    fn after(reads: usize, bytes: &'a [u8]) -> Self {
        Failing { bytes, left: AtomicUsize::new(reads) }
    }
}

impl ReadAt for Failing<'_> {
    fn byte_len(&self) -> std::io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        match left {
            Ok(_) => self.bytes.read_exact_at(offset, buf),
            Err(_) => Err(io::Error::other("the disk is broken")),
        }
    }
}

const ENCODINGS: [Encoding; 3] = [Encoding::Raw, Encoding::Ans(Level::Default), Encoding::Tbe3];

/// Runs `work` in a pool of so many threads.
fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

fn options(encoding: Encoding) -> CompressOptions {
    CompressOptions::new().encoding(encoding).md5(true)
}

fn compressed(plain: &[u8], encoding: Encoding) -> Vec<u8> {
    let disk = Disk::new(usize::MAX);
    compress_source(&plain, &disk, &options(encoding), &Progress::default()).unwrap();
    disk.bytes.into_inner().unwrap()
}

/// Tries with n = 0, 1, 2, ... until it succeeds; every failure before must be of the storage.
/// Returns how often it failed.
fn fails_until_it_succeeds(mut attempt: impl FnMut(usize) -> Result<()>) -> usize {
    for n in 0..10_000 {
        match attempt(n) {
            Ok(()) => return n,
            Err(e) => assert_eq!(e.kind(), ErrorKind::Io, "{n}: {e}"),
        }
    }
    panic!("it never succeeds");
}

#[test]
// I-03, I-08
fn compress_fails_cleanly_at_every_read() {
    let plain = plain_file();
    for encoding in ENCODINGS {
        for threads in [1, 3] {
            let n = fails_until_it_succeeds(|n| {
                let disk = Disk::new(usize::MAX);
                let source = Failing::after(n, &plain);
                let done = in_pool(threads, || {
                    compress_source(&source, &disk, &options(encoding), &Progress::default())
                });
                if done.is_err() {
                    // The bytes so far are no shard: nobody can take them for one.
                    assert!(Shard::open(disk.bytes.into_inner().unwrap()).is_err());
                }
                done.map(|_| ())
            });
            assert!(n > 10, "{n} reads only");
        }
    }
}

#[test]
// I-03
fn restore_and_verify_fail_cleanly_at_every_read() {
    let plain = plain_file();
    for encoding in ENCODINGS {
        let shard = compressed(&plain, encoding);
        for threads in [1, 3] {
            let options = RestoreOptions::default();
            for write in [false, true] {
                let n = fails_until_it_succeeds(|n| {
                    let shard = Shard::open(Failing::after(n, &shard))?;
                    let disk = Disk::new(usize::MAX);
                    let output = write.then_some(&disk as &dyn Output);
                    in_pool(threads, || {
                        restore_shard(&shard, output, &options, &Progress::default())
                    })?;
                    assert!(!write || disk.bytes.into_inner().unwrap() == plain);
                    Ok(())
                });
                assert!(n > 8, "{n} reads only");
            }
        }
    }
}

#[test]
fn a_model_fails_cleanly_at_every_read() {
    let plain = plain_file();
    let shard: &'static [u8] = compressed(&plain, Encoding::default()).leak();
    let n = fails_until_it_succeeds(|n| {
        let model = Model::from_source(Failing::after(n, shard))?;
        let tensor = model.tensor("large")?;
        assert!(plain.windows(1000).any(|w| w == &tensor.bytes()[500_000..501_000]));
        model.rows("twin", 3..5)?;
        model.encoded("norm")?;
        Ok(())
    });
    assert!(n > 5, "{n} reads only");
}

#[test]
// I-06, I-08
fn a_full_disk_is_an_error_at_every_byte() {
    let plain = plain_file();
    // Only the small tensors: every byte is tried.
    let (json, header) = Header::read(&plain, &Default::default()).unwrap();
    let keep = &header.tensors()[1..4];
    let small_json = Header::synthesise(keep).unwrap();
    let mut small = (small_json.len() as u64).to_le_bytes().to_vec();
    small.extend_from_slice(&small_json);
    for index in 1..4 {
        let range = header.data_range(index);
        let at = 8 + json.len();
        small.extend_from_slice(&plain[at + range.start as usize..at + range.end as usize]);
    }
    for encoding in ENCODINGS {
        let shard = compressed(&small, encoding);
        for room in 0..shard.len() {
            let disk = Disk::new(room);
            let done = compress_source(&small, &disk, &options(encoding), &Progress::default());
            assert_eq!(done.unwrap_err().kind(), ErrorKind::Io, "room for {room}");
            let bytes = disk.bytes.into_inner().unwrap();
            assert_eq!(bytes, shard[..room]);
            assert!(Shard::open(bytes).is_err(), "a prefix of {room} bytes is a shard");
        }
        let opened = Shard::open(&shard[..]).unwrap();
        for room in 0..small.len() {
            let disk = Disk::new(room);
            let done = restore_shard(
                &opened,
                Some(&disk),
                &RestoreOptions::default(),
                &Progress::default(),
            );
            assert_eq!(done.unwrap_err().kind(), ErrorKind::Io, "room for {room}");
        }
    }
}

/// Flips one bit of everything that is read back.
struct Liar {
    disk: Disk,
    flip: u64,
    reads: AtomicU64,
}

impl Output for Liar {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.disk.append(bytes)
    }

    fn read_back(&self, offset: u64, buf: &mut [u8]) -> Result<bool> {
        let kept = self.disk.read_back(offset, buf)?;
        if let Some(byte) = self.flip.checked_sub(offset).and_then(|i| buf.get_mut(i as usize)) {
            *byte ^= 0x10;
            self.reads.fetch_add(1, Ordering::SeqCst);
        }
        Ok(kept)
    }
}

#[test]
fn what_the_disk_does_not_keep_is_noticed_before_the_end() {
    let plain = plain_file();
    for encoding in ENCODINGS {
        let shard = compressed(&plain, encoding);
        let payloads = Shard::open(&shard[..]).unwrap();
        let ends: Vec<u64> = [0, 2, 3].map(|i| payloads.payload_range(i).unwrap().end).into();
        let mut noticed = 0;
        let step = (ends[2] as usize / 61).max(1);
        for flip in (16..ends[2]).step_by(step) {
            let liar = Liar { disk: Disk::new(usize::MAX), flip, reads: AtomicU64::new(0) };
            let done = compress_source(&plain, &liar, &options(encoding), &Progress::default());
            if liar.reads.load(Ordering::SeqCst) == 0 {
                continue;
            }
            match done {
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::ReadBack, "{e}");
                    noticed += 1;
                }
                // Bytes that mean nothing: padding between blocks.
                Ok(_) => assert_eq!(shard[flip as usize], 0),
            }
        }
        assert!(noticed > 50, "{noticed}");
    }
}

#[test]
// I-04
fn a_source_that_ends_early_is_an_error() {
    let plain = plain_file();
    for cut in [plain.len() - 1, plain.len() / 2, 9] {
        /// Says that it is longer than it is: a file that was truncated after its length was asked
        /// for.
        struct Truncated<'a>(&'a [u8], u64);
        impl ReadAt for Truncated<'_> {
            fn byte_len(&self) -> std::io::Result<u64> {
                Ok(self.1)
            }
            fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
                self.0.read_exact_at(offset, buf)
            }
        }
        let source = Truncated(&plain[..cut], plain.len() as u64);
        let disk = Disk::new(usize::MAX);
        let done =
            compress_source(&source, &disk, &CompressOptions::default(), &Progress::default());
        assert_eq!(done.unwrap_err().kind(), ErrorKind::Io);
    }
}

/// A file in which somebody changes one byte before the `at`-th read.
struct Changing<'a> {
    bytes: &'a [u8],
    offset: usize,
    at: usize,
    reads: AtomicUsize,
}

impl ReadAt for Changing<'_> {
    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.bytes.read_exact_at(offset, buf)?;
        if self.reads.fetch_add(1, Ordering::SeqCst) >= self.at
            && let Some(byte) = (self.offset as u64)
                .checked_sub(offset)
                .and_then(|i| buf.get_mut(usize::try_from(i).ok()?))
        {
            *byte ^= 1;
        }
        Ok(())
    }
}

#[test]
// M-01
fn a_source_that_changes_at_any_read_is_an_error_or_one_consistent_file() {
    let plain = plain_file();
    let (json, header) = Header::read(&plain, &Default::default()).unwrap();
    let data_at = 8 + json.len() as u64;
    let (mut changed, mut consistent) = (0, 0);
    for encoding in ENCODINGS {
        // The first and the last tensor have the same bytes: their starts, middles and ends.
        for index in [0, 4] {
            let range = header.data_range(index);
            for offset in [range.start, range.start + 700_001, range.end - 1] {
                for at in 0.. {
                    let source = Changing {
                        bytes: &plain,
                        offset: (data_at + offset) as usize,
                        at,
                        reads: AtomicUsize::new(0),
                    };
                    let disk = Disk::new(usize::MAX);
                    let progress = Progress::default();
                    let done = in_pool(2, || {
                        compress_source(&source, &disk, &options(encoding), &progress)
                    });
                    match done {
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::SourceChanged, "{error}");
                            changed += 1;
                        }
                        Ok(_) => {
                            let shard = Shard::open(disk.bytes.into_inner().unwrap()).unwrap();
                            let options = RestoreOptions::default();
                            restore_shard(&shard, None, &options, &progress).unwrap();
                            consistent += 1;
                        }
                    }
                    if source.reads.into_inner() <= at {
                        break;
                    }
                }
            }
        }
    }
    assert!(changed > 20 && consistent > 20, "{changed} changed, {consistent} consistent");
}

#[test]
fn the_bytes_do_not_depend_on_the_pool() {
    let plain = plain_file();
    for encoding in ENCODINGS {
        let one = Disk::new(usize::MAX);
        in_pool(1, || compress_source(&plain, &one, &options(encoding), &Progress::default()))
            .unwrap();
        for threads in [2, 5, 16] {
            let many = Disk::new(usize::MAX);
            in_pool(threads, || {
                compress_source(&plain, &many, &options(encoding), &Progress::default())
            })
            .unwrap();
            assert!(*one.bytes.lock().unwrap() == *many.bytes.lock().unwrap(), "{threads}");
        }
    }
}

#[test]
fn a_cancelled_job_ends_soon_and_leaves_no_shard() {
    let plain = plain_file();
    let progress = Progress::default();
    progress.cancel();
    let disk = Disk::new(usize::MAX);
    let done = compress_source(&plain, &disk, &CompressOptions::default(), &progress);
    assert_eq!(done.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(Shard::open(disk.bytes.into_inner().unwrap()).is_err());
    let shard = compressed(&plain, Encoding::default());
    let shard = Shard::open(&shard[..]).unwrap();
    let done = restore_shard(&shard, None, &RestoreOptions::default(), &progress);
    assert_eq!(done.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn a_shard_that_restores_to_something_else_is_noticed() {
    use bigsmall_format::internal::Assembler;
    use bigsmall_format::{Raw, encode_tensor};
    let spec = TensorSpec::new("w", Dtype::U8, &[3]).unwrap();
    let shard = |sha256| {
        let mut writer = Assembler::synthesised(Vec::new(), std::slice::from_ref(&spec)).unwrap();
        writer.tensor(&encode_tensor(&Raw, &spec, &vec![1, 2, 3]).unwrap(), None).unwrap();
        Shard::open(writer.finish(sha256).unwrap()).unwrap()
    };
    let restored = |shard: &Shard<Vec<u8>>| {
        let disk = Disk::new(usize::MAX);
        let done =
            restore_shard(shard, Some(&disk), &RestoreOptions::default(), &Progress::default());
        (done, disk.bytes.into_inner().unwrap())
    };
    // Every checksum is right and the SHA-256 is not.
    let (done, bytes) = restored(&shard([7; 32]));
    assert_eq!(done.unwrap_err().kind(), ErrorKind::Format(Rule::ContentDigest));
    let mut digest = crate::stage::digest::FileDigest::new();
    digest.update(&bytes);
    assert_eq!(restored(&shard(digest.finish())).0.unwrap().n_tensors, 1);
}

#[test]
fn a_wrong_md5_is_noticed_and_names_its_tensor() {
    use bigsmall_format::EncodingId;
    use bigsmall_format::internal::Assembler;
    let right = 0x5289_df73_7df5_7326_fcdd_2259_7afb_1facu128.to_be_bytes();
    let specs = ["a", "b", "a again"].map(|name| TensorSpec::new(name, Dtype::U8, &[3]).unwrap());
    let shard = |md5s: [Option<[u8; 16]>; 3], sha256| {
        let mut writer = Assembler::synthesised(Vec::new(), &specs).unwrap();
        for md5 in &md5s[..2] {
            writer.begin(EncodingId::Raw, &[]).unwrap();
            writer.blocks(&[1, 2, 3, 0, 0, 0, 0, 0], &[3]).unwrap();
            writer.end(*md5).unwrap();
        }
        writer.share(0, md5s[2]).unwrap();
        Shard::open(writer.finish(sha256).unwrap()).unwrap()
    };
    let (options, progress) = (RestoreOptions::default(), Progress::default());
    let disk = Disk::new(usize::MAX);
    let _ = restore_shard(&shard([None; 3], [0; 32]), Some(&disk), &options, &progress);
    let mut digest = crate::stage::digest::FileDigest::new();
    digest.update(&disk.bytes.into_inner().unwrap());
    let sha256 = digest.finish();

    let disk = Disk::new(usize::MAX);
    for output in [None, Some(&disk as &dyn Output)] {
        let run = |md5s, sha256| restore_shard(&shard(md5s, sha256), output, &options, &progress);
        let report = run([Some(right), None, Some(right)], sha256).unwrap();
        assert_eq!(report.md5s, [], "nobody asked for them");
        for (wrong, spec) in specs.iter().enumerate() {
            // The others stored right, or not stored at all.
            for other in [Some(right), None] {
                let mut md5s = [other; 3];
                md5s[wrong] = Some(right.map(|byte| !byte));
                let error = run(md5s, sha256).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Format(Rule::ContentDigest));
                assert_eq!(error.tensor(), Some(spec.name()));
            }
        }
        // Where nothing fits, the tensor is what to know.
        assert_eq!(run([Some([0; 16]); 3], [0; 32]).unwrap_err().tensor(), Some("a"));
    }
}

/// Counts the reads of a source.
struct Counted<'a>(&'a [u8], AtomicUsize);

impl ReadAt for Counted<'_> {
    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.read_exact_at(offset, buf)
    }
}

/// A shard of so many tensors that share one payload. Its head has as many tables as there may be.
fn sharing_one_head(tensors: usize) -> Vec<u8> {
    use bigsmall_format::internal::Assembler;
    // The head of a large tensor whose parts differ, and a block of a small one.
    let part = |i: u32| 0x3000 + ((i >> 9 & 14) << 7) + (i.wrapping_mul(0x9E37_79B1) >> 23);
    let large: Vec<u8> = (0..8 << 16).flat_map(|i| (part(i) as u16).to_le_bytes()).collect();
    let spec = TensorSpec::new("large", Dtype::BF16, &[8 << 16]).unwrap();
    let encoding = Encoding::Ans(Level::Small).implementation();
    let encoder = encoding.plan(&spec, &large).unwrap();
    assert_eq!(encoder.head()[3], 8, "tables");
    let values = &large[..200];
    let (mut blocks, mut lens) = (Vec::new(), Vec::new());
    encoder.encode_blocks(0, values, &mut blocks, &mut lens).unwrap();

    let spec = |i| TensorSpec::new(&format!("t{i}"), Dtype::BF16, &[100]).unwrap();
    let specs: Vec<TensorSpec> = (0..tensors).map(spec).collect();
    let mut writer = Assembler::synthesised(Vec::new(), &specs).unwrap();
    writer.begin(encoding.id(), encoder.head()).unwrap();
    writer.blocks(&blocks, &lens).unwrap();
    writer.end(None).unwrap();
    (1..tensors).for_each(|_| writer.share(0, None).unwrap());
    let mut digest = crate::stage::digest::FileDigest::new();
    digest.update(&(writer.header_json().len() as u64).to_le_bytes());
    digest.update(writer.header_json());
    (0..tensors).for_each(|_| digest.update(values));
    writer.finish(digest.finish()).unwrap()
}

#[test]
// M-07
fn the_head_of_a_payload_that_many_tensors_share_is_opened_once_by_each_thread() {
    for tensors in [50_000, 200_000] {
        let shard = sharing_one_head(tensors);
        let begin = Instant::now();
        let shard = Shard::open(Counted(&shard, AtomicUsize::new(0))).unwrap();
        let opened = begin.elapsed();
        let options = RestoreOptions::default();
        let verify = || restore_shard(&shard, None, &options, &Progress::default());
        let report = in_pool(2, verify).unwrap();
        eprintln!("{tensors} tensors: opened in {opened:?}, verified in {:?}", begin.elapsed());
        assert_eq!(report.n_shared, tensors as u64 - 1);
        let reads = shard.source().1.load(Ordering::SeqCst);
        assert!(reads < tensors + 100, "{reads} reads");
    }
}

#[test]
fn every_damaged_byte_of_a_shard_is_noticed() {
    let plain = plain_file();
    for encoding in ENCODINGS {
        let shard = compressed(&plain, encoding);
        let step = shard.len() / 300;
        for at in (0..shard.len()).step_by(step).chain(shard.len() - 60..shard.len()) {
            let mut bad = shard.clone();
            bad[at] ^= 1 << (at % 8);
            let found = Shard::open(bad).map_err(crate::Error::from).and_then(|shard| {
                restore_shard(&shard, None, &RestoreOptions::default(), &Progress::default())
            });
            assert!(found.is_err(), "byte {at} of {}", shard.len());
        }
    }
}

/// What unwinds a stage as if it had returned: all that it holds is dropped, and nobody is told.
pub(crate) struct Returned;

/// A stage that returns, or panics, before its `at`-th message.
#[derive(Debug)]
pub(crate) struct StageFault {
    stage: &'static str,
    panics: bool,
    left: AtomicUsize,
}

impl StageFault {
    fn at(stage: &'static str, at: usize, panics: bool) -> Self {
        StageFault { stage, panics, left: AtomicUsize::new(at) }
    }

    /// Ends `stage` if that is the one, and this its message.
    pub(crate) fn before_message(&self, stage: &str) {
        let next = |n: usize| n.checked_sub(1);
        if stage != self.stage
            || self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).is_ok()
        {
            return;
        }
        assert!(!self.panics, "the stage {stage} panics, as the test wants");
        std::panic::resume_unwind(Box::new(Returned));
    }
}

/// Calls `job` on a thread of its own and fails if it does not return.
fn within_a_minute<T: Send + 'static>(what: &str, job: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, waiting) = crossbeam_channel::bounded(1);
    std::thread::spawn(move || done.send(job()));
    let found = waiting.recv_timeout(std::time::Duration::from_secs(60));
    found.unwrap_or_else(|e| panic!("{what}: {e}"))
}

#[test]
fn a_stage_that_ends_or_panics_is_an_error_and_nobody_waits_for_it() {
    let plain: &'static [u8] = plain_file().leak();
    let shard: &'static [u8] = compressed(plain, Encoding::default()).leak();
    for panics in [false, true] {
        for at in [0, 1, 3] {
            for stage in ["read", "encode", "sha256", "md5", "write"] {
                let what = format!("compress: {stage} at {at}, panics: {panics}");
                let done = within_a_minute(&what, move || {
                    let mut progress = Progress::default();
                    progress.fault = Some(StageFault::at(stage, at, panics));
                    let disk = Disk::new(usize::MAX);
                    in_pool(2, || {
                        compress_source(&plain, &disk, &options(Encoding::default()), &progress)
                    })
                });
                assert_eq!(done.expect_err(&what).kind(), ErrorKind::Io, "{what}");
            }
            for stage in ["cut", "decode", "sha256", "md5", "write"] {
                let what = format!("restore: {stage} at {at}, panics: {panics}");
                let done = within_a_minute(&what, move || {
                    let mut progress = Progress::default();
                    progress.fault = Some(StageFault::at(stage, at, panics));
                    let options = RestoreOptions::new().md5(true);
                    let disk = Disk::new(usize::MAX);
                    let shard = Shard::open(shard).unwrap();
                    in_pool(2, || restore_shard(&shard, Some(&disk), &options, &progress))
                });
                assert_eq!(done.expect_err(&what).kind(), ErrorKind::Io, "{what}");
            }
        }
    }
}

/// A source that panics once `left` reads are done.
struct Panicking {
    bytes: &'static [u8],
    left: Arc<AtomicUsize>,
}

impl ReadAt for Panicking {
    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        assert_ne!(self.left.fetch_sub(1, Ordering::SeqCst), 0, "as the test wants");
        self.bytes.read_exact_at(offset, buf)
    }
}

#[test]
fn a_thread_that_panics_while_it_reads_ahead_is_an_error() {
    let bytes: &'static [u8] = compressed(&plain_file(), Encoding::default()).leak();
    for n in 0..2 {
        let done = within_a_minute("a layer", move || {
            let left = Arc::new(AtomicUsize::new(usize::MAX));
            let model = Model::from_source(Panicking { bytes, left: Arc::clone(&left) })?;
            left.store(n, Ordering::SeqCst);
            model.layer("large").map(drop)
        });
        assert_eq!(done.unwrap_err().kind(), ErrorKind::Io, "after {n} reads");
    }
}
