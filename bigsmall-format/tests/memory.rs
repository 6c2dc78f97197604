//! The promise on memory: opening a shard holds at most 4 times the bytes of its index + 1 MiB at
//! any time, and what a file merely claims costs nothing. Measured by an allocator that counts what
//! this thread holds.
// A global allocator cannot be written without `unsafe`; it only counts and passes on.
#![allow(unsafe_code, clippy::unwrap_used)]

mod forge;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Write as _;

use bigsmall_format::internal::xxh3;
use bigsmall_format::*;
use forge::{Copying, Forge, Record};

struct Counting;

thread_local! {
    /// Bytes held, the most that ever were, and all that were ever asked for.
    static HELD: Cell<(u64, u64, u64)> = const { Cell::new((0, 0, 0)) };
    /// The most bytes that one request of this thread is given.
    static LARGEST: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Whether a request is refused, as by a system that has no more memory.
fn refused(bytes: usize) -> bool {
    LARGEST.try_with(|largest| bytes > largest.get()).unwrap_or(false)
}

fn count(more: usize, less: usize) {
    // A thread that is ending has no counter any more, and is not measured.
    let _ = HELD.try_with(|held| {
        let (now, most, all) = held.get();
        let peak = now + more as u64;
        held.set((peak.saturating_sub(less as u64), most.max(peak), all + more as u64));
    });
}

// SAFETY: every call goes to `System` unchanged, or is refused as an allocator may.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refused(layout.size()) {
            return std::ptr::null_mut();
        }
        count(layout.size(), 0);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if refused(layout.size()) {
            return std::ptr::null_mut();
        }
        count(layout.size(), 0);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if refused(new_size) {
            return std::ptr::null_mut();
        }
        // Both are held for a moment, at worst.
        count(new_size, layout.size());
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What `f` returns, the most bytes it held at a time, and all that it asked for.
fn measured<T>(f: impl FnOnce() -> T) -> (T, u64, u64) {
    let before = HELD.with(|held| {
        let (now, _, all) = held.get();
        held.set((now, now, all));
        (now, all)
    });
    let value = f();
    let (_, most, all) = HELD.with(Cell::get);
    (value, most - before.0, all - before.1)
}

/// A shard whose payloads are `zeros` zeros that nobody keeps in memory.
struct Sparse {
    zeros: u64,
    tail: Vec<u8>,
}

impl ReadAt for Sparse {
    fn byte_len(&self) -> std::io::Result<u64> {
        Ok(16 + self.zeros + self.tail.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let tail_at = 16 + self.zeros;
        buf.fill(0);
        let skip = tail_at.saturating_sub(offset).min(buf.len() as u64) as usize;
        let from = offset.saturating_sub(tail_at);
        self.tail.read_exact_at(from, &mut buf[skip..])
    }
}

/// The index of a shard alone, its payloads `zeros` zeros.
fn sparse(mut forge: Forge, zeros: u64) -> Sparse {
    forge.index_offset = Some(16 + zeros);
    let index = forge.index();
    let mut tail = index.clone();
    tail.extend((16 + zeros).to_le_bytes());
    tail.extend((index.len() as u64).to_le_bytes());
    tail.extend(forge.required.to_le_bytes());
    tail.extend([0; 4]);
    tail.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    tail.extend(xxh3(&tail).to_le_bytes());
    tail.extend(forge::MAGIC);
    Sparse { zeros, tail }
}

/// A short name for every number.
fn name(i: usize) -> String {
    let digit = |d: usize| {
        char::from(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"[d % 62])
    };
    [i / 238_328, i / 3844, i / 62, i].map(digit).iter().skip_while(|c| **c == 'a').collect()
}

/// A header of `n` tensors without values.
fn empties(n: usize) -> String {
    let mut json = String::from("{");
    for i in 0..n {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(
            json,
            r#"{comma}"{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
            name(i)
        );
    }
    json + "}"
}

fn no_head() -> Record {
    Record { place: 16, head_hash: xxh3(&[]), ..Record::default() }
}

/// Opens under the promise; returns the bytes asked for in all.
fn open(what: &str, shard: &Sparse, expected: Option<Rule>) -> u64 {
    let index_len = shard.tail.len() as u64 - 48;
    let (opened, peak, all) = measured(|| Shard::open(shard).map(drop));
    assert_eq!(opened.err().map(|e| e.rule()), expected, "{what}");
    let promised = 4 * index_len + (1 << 20);
    assert!(peak <= promised, "{what}: {peak} bytes held, {index_len} bytes of index");
    all
}

#[test]
fn tensors() {
    for n in [0, 1, 1000, 200_000] {
        let mut forge = Forge::new(&empties(n));
        forge.records = vec![no_head(); n];
        open(&format!("{n} empty tensors"), &sparse(forge, 0), None);
    }
    // All share the payload of the first.
    let n = 100_000;
    let mut json = String::from("{");
    for i in 0..n {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(
            json,
            r#"{comma}"{}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#,
            name(i),
            i + 1
        );
    }
    let mut forge = Forge::new(&(json + "}"));
    forge.add(0, &[], &[&[1]]);
    forge.records.extend(vec![Record::shared(0); n - 1]);
    open("shared payloads", &sparse(forge, 8), None);
    // Scalars of one dimension after the other.
    let mut json = String::from("{");
    for i in 0..20_000 {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(
            json,
            r#"{comma}"{}":{{"dtype":"U8","shape":[{}0],"data_offsets":[0,0]}}"#,
            name(i),
            "1,".repeat(63)
        );
    }
    let mut forge = Forge::new(&(json + "}"));
    forge.records = vec![no_head(); 20_000];
    open("64 dimensions", &sparse(forge, 0), None);
}

#[test]
fn blocks() {
    // A million blocks of the least length: 56 bytes for 131,072.
    let n = 1 << 20;
    let bytes = (n * MAX_BLOCK_UNITS) as u64;
    let json = format!(r#"{{"w":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[0,{bytes}]}}}}"#);
    let mut forge = Forge::new(&json);
    let zeros = 56 * n as u64;
    let record = Record { length: zeros, lens: vec![56; n], hashes: vec![0; n], ..no_head() };
    forge.records = vec![record];
    open("a million blocks", &sparse(forge, zeros), None);
    // The same against a base, and as the base itself.
    for (what, length, flags) in
        [("empty", 0, 4), ("against a base", zeros, 4), ("the base", 0, 12)]
    {
        let mut forge = Forge::new(&json);
        forge.header_len = Some(json.len() as u64);
        forge::pad(&mut forge.header);
        forge.header.extend(1u64.to_le_bytes());
        forge.header.extend([0; 40]);
        let mut record = Record { encoding: 3, flags, length, ..no_head() };
        if flags == 12 {
            (record.place, record.head_hash) = (0, 0);
        }
        forge.index_tail = record.bytes();
        forge.index_tail.extend([0; 8]);
        if flags == 4 {
            let (len, hash) = if length == 0 { (0u32, xxh3(&[])) } else { (56, 0) };
            forge.index_tail.extend(len.to_le_bytes().repeat(n));
            forge::pad(&mut forge.index_tail);
            forge.index_tail.extend(hash.to_le_bytes().repeat(n));
        }
        forge.index_tail.extend(0u64.to_le_bytes().repeat(n));
        (forge.count, forge.required) = (Some(1), 1);
        open(&format!("a million blocks, {what}"), &sparse(forge, length), None);
    }
    // More blocks than there are entries: 2^60 bytes have 2^43.
    let n = (1u64 << 60) - 1;
    let json = format!(r#"{{"w":{{"dtype":"U8","shape":[{n}],"data_offsets":[0,{n}]}}}}"#);
    let mut forge = Forge::new(&json);
    forge.records = vec![no_head()];
    open("2^43 blocks", &sparse(forge, 0), Some(Rule::IndexTruncated));
}

#[test]
fn headers() {
    let with = |field: &str| {
        let mut forge = Forge::new(&format!("{{{field}}}"));
        forge.records.clear();
        sparse(forge, 0)
    };
    let keys = |n: usize, value: &str| -> String {
        (0..n).map(|i| format!(r#""{}":{value},"#, name(i))).collect::<String>()
    };
    let n = 400_000;
    let metadata = format!(r#""__metadata__":{{{}"~":""}}"#, keys(n, r#""""#));
    open("keys of metadata", &with(&metadata), None);
    let unknown = format!(
        r#""w":{{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":{{{}"~":0}}}}"#,
        keys(n, "0")
    );
    let mut shard = Forge::new(&format!("{{{unknown}}}"));
    shard.records = vec![no_head()];
    open("keys of an unknown field", &sparse(shard, 0), None);
    let long = "n".repeat(8_000_000);
    let entry = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    open("a long name", &with(&format!(r#""{long}":{entry}"#)), Some(Rule::NameTooLong));
    let escaped = format!(r#""\n{long}":{entry}"#);
    open("a long name with an escape", &with(&escaped), Some(Rule::NameTooLong));
    let dtype = format!(r#""w":{{"dtype":"\n{long}"}}"#);
    open("a long dtype", &with(&dtype), Some(Rule::HeaderEntry));
    let dtype = format!(r#""w":{{"dtype":"\n{long}","shape":[],"data_offsets":[0,1]}}"#);
    open("a long unknown dtype", &with(&dtype), Some(Rule::DtypeUnknown));
    for (what, value) in [
        ("a tensor", format!(r#""w":"\n{long}""#)),
        ("a shape", format!(r#""w":{{"shape":"\n{long}"}}"#)),
        ("a dimension", format!(r#""w":{{"shape":["\n{long}"]}}"#)),
        ("an offset", format!(r#""w":{{"data_offsets":[0,"\n{long}"]}}"#)),
        ("metadata", format!(r#""__metadata__":"\n{long}""#)),
        ("a digit", format!(r#""w":{{"shape":[{}]}}"#, "1".repeat(8_000_000))),
        ("a dtype of digits", format!(r#""w":{{"dtype":0.{}}}"#, "1".repeat(8_000_000))),
    ] {
        let what = format!("a long string in place of {what}");
        open(&what, &with(&value), Some(Rule::HeaderSyntax));
    }
    let ones = "1,".repeat(4_000_000);
    let shape = format!(r#""w":{{"dtype":"U8","shape":[{ones}1],"data_offsets":[0,1]}}"#);
    open("four million dimensions", &with(&shape), Some(Rule::RankTooLarge));
    let deep = format!(r#""w":{{"x":{}"#, "[".repeat(4_000_000));
    open("four million brackets", &with(&deep), Some(Rule::HeaderSyntax));
    let fields = format!(r#""w":{{{}"y":0}}"#, keys(n, "[]"));
    open("unknown fields", &with(&fields), Some(Rule::HeaderEntry));
}

/// What a file claims and does not have costs nothing.
#[test]
fn claims() {
    let small = |damage: fn(&mut Forge)| {
        let mut forge = Forge::new("{}");
        damage(&mut forge);
        sparse(forge, 0)
    };
    let all =
        // B-06
        open("2^32-1 records", &small(|f| f.count = Some(u32::MAX)), Some(Rule::TooManyTensors));
    assert!(all < 10_000, "{all}");
    let all =
        open("a million records", &small(|f| f.count = Some(1 << 20)), Some(Rule::IndexTruncated));
    assert!(all < 10_000, "{all}");
    let long = |f: &mut Forge| f.header_len = Some(u64::MAX);
    let all = open("a header of 2^64-1 bytes", &small(long), Some(Rule::IndexTruncated));
    assert!(all < 10_000, "{all}");
    // A gigabyte and a byte of index in a file of that length.
    let mut shard = small(|_| {});
    let index = (1u64 << 30) + 8;
    let at = shard.tail.len() - 48;
    shard.zeros = index;
    shard.tail[at..at + 8].copy_from_slice(&(16 + at as u64).to_le_bytes());
    shard.tail[at + 8..at + 16].copy_from_slice(&index.to_le_bytes());
    let (result, peak, _) = measured(|| Shard::open(&shard).map(drop));
    assert_eq!(result.unwrap_err().rule(), Rule::IndexTooLarge);
    assert!(peak <= 300_000, "{peak}");
    // Frames.
    let mut frame = vec![];
    frame.extend(b"\x89bsmlT\r\n\x01\x00\x02\x01\0\0\0\0");
    frame.extend(0u64.to_le_bytes());
    frame.extend(0u64.to_le_bytes());
    frame.extend(((1u64 << 60) - 1).to_le_bytes());
    frame.extend(b"U8\0\0\0\0\0\0");
    let (result, peak, _) = measured(|| EncodedTensor::from_bytes(&frame).map(drop));
    assert_eq!(result.unwrap_err().rule(), Rule::FrameTruncated);
    assert!(peak < 10_000, "{peak}");
    frame[16..24].copy_from_slice(&60_000u64.to_le_bytes());
    let (result, peak, _) = measured(|| EncodedTensor::from_bytes(&frame).map(drop));
    assert_eq!(result.unwrap_err().rule(), Rule::FrameTruncated);
    assert!(peak < 10_000, "{peak}");
}

/// Ten million tiny entries, in the three places that may claim them; what is parsed grows as the
/// input does.
#[test]
// B-11
fn ten_million_tiny_entries() {
    // The count in the index.
    let mut forge = Forge::new("{}");
    forge.count = Some(10_000_000);
    forge.index_tail = vec![0; 32 << 20];
    open("ten million records", &sparse(forge, 0), Some(Rule::TooManyTensors));
    // A header with more than the limit of tensors, all there: none is kept beyond the limit.
    let json = empties((1 << 20) + 100_000);
    assert!(json.len() < 100_000_000);
    let (parsed, peak, _) = measured(|| Header::parse(json.as_bytes(), 0, &Limits::default()));
    assert_eq!(parsed.unwrap_err().rule(), Rule::TooManyTensors);
    assert!(peak < 4 * json.len() as u64, "{peak}");
    let forge = Forge::new(&json);
    // The index counts none.
    open("too many tensors in the header", &sparse(forge, 0), Some(Rule::EntryCount));
    // Twice the input, twice the memory.
    let asked = [50_000, 100_000, 200_000].map(|n| {
        let mut forge = Forge::new(&empties(n));
        forge.records = vec![no_head(); n];
        open("empty tensors", &sparse(forge, 0), None)
    });
    for pair in asked.windows(2) {
        assert!(pair[1] < pair[0] * 5 / 2, "{asked:?}");
    }
}

/// What `f` returns when no request may be larger than `largest`.
fn starved<T>(largest: usize, f: impl FnOnce() -> T) -> T {
    LARGEST.with(|cell| cell.set(largest));
    let value = f();
    LARGEST.with(|cell| cell.set(usize::MAX));
    value
}

// I-15: every request whose size comes from a file may be refused, and that is an error.
#[test]
fn refused_memory_is_an_error() {
    // A shard with many tensors, and one with a large one.
    let n = 3000;
    let specs: Vec<_> =
        (0..n).map(|i| TensorSpec::new(&name(i), Dtype::U8, &[1]).unwrap()).collect();
    let mut many = ShardWriter::synthesised(Vec::new(), &specs).unwrap();
    for spec in &specs {
        many.write(spec, &[1], &Raw).unwrap();
    }
    let many = many.finish().unwrap();
    let spec = TensorSpec::new("w", Dtype::U8, &[1_000_000]).unwrap();
    let tensor = encode_tensor(&Raw, &spec, &vec![7; 1_000_000]).unwrap();
    let mut large = ShardWriter::synthesised(Vec::new(), std::slice::from_ref(&spec)).unwrap();
    large.write_encoded(&tensor, &Raw).unwrap();
    let large = large.finish().unwrap();
    let frame = tensor.to_bytes();
    let json = Header::synthesise(&specs).unwrap();
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(&json);
    file.resize(file.len() + n, 0);
    // The same tensors with their data in another order.
    let backwards: Vec<String> = (0..n)
        .map(|i| {
            let (at, name) = (n - 1 - i, name(i));
            format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{}]}}"#, at + 1)
        })
        .collect();
    let backwards = format!("{{{}}}", backwards.join(","));

    let mut dst = vec![0; 1_000_000];
    type Job<'a> = (&'a str, Box<dyn FnMut() -> Result<()> + 'a>);
    let jobs: Vec<Job<'_>> = vec![
        ("open", Box::new(|| Shard::open(Copying(&many)).map(drop))),
        ("header", Box::new(|| Header::read(&Copying(&file), &Limits::default()).map(drop))),
        (
            "backwards",
            Box::new(|| {
                Header::parse(backwards.as_bytes(), n as u64, &Limits::default()).map(drop)
            }),
        ),
        ("encoded", Box::new(|| Shard::open(Copying(&large))?.encoded(0).map(drop))),
        ("frame", Box::new(|| EncodedTensor::from_bytes(&frame).map(drop))),
        (
            "decode",
            Box::new(|| {
                let shard = Shard::open(Copying(&large))?;
                shard.decode(0, &*shard.decoder(0, &Raw)?, 3..999_000, &mut dst[3..999_000])
            }),
        ),
    ];
    for (what, mut job) in jobs {
        let (mut refused, mut done) = (0, false);
        // Small things, such as a name, may be had throughout.
        for largest in (11..25).map(|bits| 1 << bits) {
            match starved(largest, &mut job) {
                Ok(()) => done = true,
                Err(error) => {
                    assert_eq!(error.rule(), Rule::Memory, "{what}, {largest} bytes: {error}");
                    assert!(!done, "{what}");
                    refused += 1;
                }
            }
        }
        assert!(done && refused > 2, "{what}: refused {refused} times");
    }
}
