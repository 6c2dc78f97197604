//! Size and speed of tensors as differences from a base:
//! `cargo bench -p bigsmall-codec --bench delta -- BASE.safetensors NEW.safetensors ...`
//!
//! Each NEW is stored against the file before it; other arguments are left to the other benches. It
//! prints the size of the shard, of its payloads alone, and of the shard without a base, as shares
//! of the data; then rates in bytes of original data on one thread, in memory, one tensor after the
//! other: of encoding, decoding and applying, and those of the ANS encoding beside them. Each rate
//! is the median of seven.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::time::Instant;

use bigsmall_codec::*;
use bigsmall_format::{Base, BaseRef, EncodedRef, EncodingId, Header, Limits, Shard, ShardWriter};

struct File {
    json: Vec<u8>,
    header: Header,
    data: Vec<u8>,
}

impl File {
    fn read(path: &str) -> File {
        let bytes = fs::read(path).unwrap();
        let (json, header) = Header::read(&bytes, &Limits::default()).unwrap();
        let data = bytes[8 + json.len()..].to_vec();
        File { json, header, data }
    }

    fn bytes(&self, index: usize) -> &[u8] {
        let range = self.header.data_range(index);
        &self.data[range.start as usize..range.end as usize]
    }
}

/// The median time of seven calls.
fn seconds(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..7)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[3]
}

fn main() {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| {
        let paths: Vec<String> =
            std::env::args().filter(|arg| arg.ends_with(".safetensors")).collect();
        let files: Vec<File> = paths.iter().map(|path| File::read(path)).collect();
        for (pair, names) in files.windows(2).zip(paths.windows(2)) {
            println!("{} -> {}", names[0], names[1]);
            measure(&pair[0], &pair[1]);
        }
    });
}

fn measure(base: &File, new: &File) {
    let n = new.data.len() as f64;
    let percent = |bytes: usize| format!("{:.4} %", 100.0 * bytes as f64 / n);
    let (ans, delta) = (Ans::default(), Delta::default());
    let tensors = || {
        new.header.tensors().iter().enumerate().map(|(i, spec)| {
            let of_base = base.header.index_of(spec.name()).unwrap();
            (spec, new.bytes(i), base.bytes(of_base))
        })
    };

    let writer = || ShardWriter::new(Vec::new(), new.json.clone(), new.data.len() as u64).unwrap();
    let mut with_base = writer();
    let place = with_base.add_base(Base::new([0; 32]));
    let mut alone = writer();
    for (spec, bytes, base) in tensors() {
        let of_base = BaseRef::new(place, spec.name());
        with_base.write_with_base(spec, bytes, &ans, &delta, of_base, &base).unwrap();
        alone.write(spec, bytes, &ans).unwrap();
    }
    let shard = Shard::open(with_base.finish().unwrap()).unwrap();
    let payloads: u64 = (0..shard.tensors().len())
        .map(|i| {
            let range = shard.payload_range(i).unwrap();
            range.end - range.start
        })
        .sum();
    let changed = tensors().map(|(spec, bytes, base)| {
        let unit = spec.dtype().unit_bytes();
        unit * bytes.chunks(unit).zip(base.chunks(unit)).filter(|(new, base)| new != base).count()
    });
    println!("  {:<24} {}", "units that differ", percent(changed.sum()));
    println!("  {:<24} {}", "shard", percent(shard.source().len()));
    println!("  {:<24} {}", "payloads", percent(payloads as usize));
    println!("  {:<24} {}", "shard without a base", percent(alone.finish().unwrap().len()));

    let rate = |seconds: f64| n / seconds / 1e9;
    let encoded = |delta: &Delta| -> Vec<EncodedTensor> {
        tensors()
            .map(|(spec, bytes, base)| encode_tensor_with_base(delta, spec, &bytes, &base).unwrap())
            .collect()
    };
    let deltas = encoded(&delta);
    let plain: Vec<_> =
        tensors().map(|(spec, bytes, _)| encode_tensor(&ans, spec, &bytes).unwrap()).collect();
    let mut out = vec![0; tensors().map(|(_, bytes, _)| bytes.len()).max().unwrap_or(0)];
    for backend in backends().filter(|&b| b != Backend::Reference) {
        let (ans, delta) =
            (ans.with_backend(backend).unwrap(), delta.with_backend(backend).unwrap());
        let encode = seconds(|| drop(encoded(&delta)));
        let encode_ans = seconds(|| {
            tensors().for_each(|(spec, bytes, _)| drop(encode_tensor(&ans, spec, &bytes).unwrap()));
        });
        let decode = seconds(|| {
            for ((_, bytes, base), tensor) in tensors().zip(&deltas) {
                let (all, out) = (0..bytes.len() as u64, &mut out[..bytes.len()]);
                let tensor = EncodedRef::from(tensor);
                tensor.decode_bytes_with_base(&delta, &base, all, out).unwrap();
            }
        });
        let decode_ans = seconds(|| {
            for ((_, bytes, _), tensor) in tensors().zip(&plain) {
                let out = &mut out[..bytes.len()];
                tensor.decode_bytes(&ans, 0..bytes.len() as u64, out).unwrap();
            }
        });
        println!(
            "  {:<9} encode {:.2} GB/s ({:.2} of ANS)  decode {:.2} GB/s ({:.2} of ANS)",
            backend.name(),
            rate(encode),
            encode_ans / encode,
            rate(decode),
            decode_ans / decode
        );
    }
    for ((_, bytes, base), tensor) in tensors().zip(&deltas) {
        assert_eq!(tensor.encoding(), EncodingId::Delta);
        let out = &mut out[..bytes.len()];
        let tensor = EncodedRef::from(tensor);
        tensor.decode_bytes_with_base(&delta, &base, 0..bytes.len() as u64, out).unwrap();
        assert!(out == bytes, "another value");
    }
    let frames: Vec<Vec<u8>> = deltas.iter().map(EncodedTensor::to_bytes).collect();
    let mut live: Vec<Vec<u8>> = tensors().map(|(.., base)| base.to_vec()).collect();
    let mut times = Vec::new();
    for _ in 0..7 {
        live.iter_mut().zip(tensors()).for_each(|(live, (.., base))| live.copy_from_slice(base));
        let start = Instant::now();
        for (frame, live) in frames.iter().zip(&mut live) {
            apply_delta_bytes(frame, live).unwrap();
        }
        times.push(start.elapsed().as_secs_f64());
    }
    assert!(live.iter().zip(tensors()).all(|(live, (_, bytes, _))| live == bytes));
    times.sort_by(f64::total_cmp);
    let copy = seconds(|| {
        live.iter_mut().zip(tensors()).for_each(|(live, (.., base))| live.copy_from_slice(base));
    });
    println!("  apply {:.2} GB/s, memcpy {:.2} GB/s", rate(times[3]), rate(copy));
}
