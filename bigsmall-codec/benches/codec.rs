//! Speed of the ANS codec, in bytes of original data: `cargo bench -p bigsmall-codec`, or a part of
//! it by name, as in `cargo bench -p bigsmall-codec -- decode/avx2`.
//!
//! 64 MiB of bf16, rows of 0.02 N(0, 1) exp(N(0, 0.2)) from a fixed seed, one thread; memory is
//! used again. (Where all of it fits a cache of the machine, `memcpy` gains most from that.)
//! The yardsticks stand in the same group: `memcpy`, and for decoding the peers: constriction's own
//! decoder with a lookup table, and zstd over byte planes.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use bigsmall_codec::stages::{Stage, Stages};
use bigsmall_codec::{
    Ans, Backend, Dtype, EncodedTensor, Level, TensorEncoding, TensorSpec, encode_tensor,
};
use bigsmall_format::decode_range;
use bigsmall_format::internal::{xxh3, zeroed};
use constriction::stream::Decode as _;
use constriction::stream::model::{
    ContiguousCategoricalEntropyModel, ContiguousLookupDecoderModel,
};
use constriction::stream::stack::AnsCoder;
use criterion::{Criterion, Throughput};

const ROWS: usize = 8192;
const COLUMNS: usize = 4096;
const BYTES: usize = 2 * ROWS * COLUMNS;
/// Bytes that are coded or copied at once, and with them the yardstick.
const PIECE: usize = 1 << 20;

fn weights() -> Vec<u8> {
    let mut state = 42u64;
    let mut random = move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    // Nearly normal: the sum of eight bytes and a little more, unit variance.
    let mut normal = move || {
        let sum: u32 = random().to_le_bytes().iter().map(|&b| u32::from(b)).sum();
        (sum as f32 + f32::from(random() as u8) / 256.0 - 1020.5) / 209.0
    };
    let mut bytes = Vec::with_capacity(BYTES);
    for _ in 0..ROWS {
        let scale = 0.02 * (0.2 * normal()).exp();
        for _ in 0..COLUMNS {
            bytes.extend_from_slice(&half::bf16::from_f32(scale * normal()).to_le_bytes());
        }
    }
    bytes
}

fn backends() -> impl Iterator<Item = Backend> {
    bigsmall_codec::backends().filter(|&b| b != Backend::Reference)
}

/// The symbols of our layout, exponent and top mantissa bit, as constriction would code them: one
/// table, one lane.
struct Constriction {
    words: Vec<u16>,
    state: u32,
    model: ContiguousLookupDecoderModel<u16, Vec<u16>, Box<[u16]>, 12>,
    n: usize,
}

impl Constriction {
    fn new(units: &[u8]) -> Constriction {
        let field = |u: &[u8; 2]| u16::from_le_bytes(*u) >> 6 & 0x1ff;
        let fields: Vec<u16> = units.as_chunks().0.iter().map(field).collect();
        let base = *fields.iter().max().unwrap() - 63;
        let symbols: Vec<usize> =
            fields.iter().map(|&f| usize::from(f.saturating_sub(base))).collect();
        let mut counts = [1f64; 64];
        symbols.iter().for_each(|&s| counts[s] += 1.0);
        type Model = ContiguousCategoricalEntropyModel<u16, Vec<u16>, 12>;
        let model = Model::from_floating_point_probabilities_fast(&counts, None).unwrap();
        let mut coder = AnsCoder::<u16, u32>::new();
        coder.encode_iid_symbols_reverse(&symbols, &model).unwrap();
        let (words, state) = coder.into_raw_parts();
        Constriction { words, state, model: model.to_lookup_decoder_model(), n: symbols.len() }
    }

    fn decode(&self) -> usize {
        let words = constriction::backends::Cursor::new_at_write_end(&self.words[..]);
        let mut coder = AnsCoder::<u16, u32, _>::from_raw_parts(words, self.state);
        coder.decode_iid_symbols(self.n, &self.model).map(|s| s.unwrap()).sum()
    }
}

fn decode(tensor: &EncodedTensor, ans: &Ans, out: &mut [u8]) {
    let decoder = tensor.open(ans).unwrap();
    for (i, out) in out.chunks_mut(PIECE).enumerate() {
        let range = (i * PIECE) as u64..(i * PIECE + out.len()) as u64;
        let payload = tensor.payload();
        decode_range(&*decoder, tensor.spec(), tensor.table(), &payload, range, out).unwrap();
    }
}

fn main() {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(all);
}

fn all() {
    let spec = TensorSpec::new("w", Dtype::BF16, &[ROWS as u64, COLUMNS as u64]).unwrap();
    let plain = weights();
    let mut out = plain.clone();
    let ans = |backend| Ans::default().with_backend(backend).unwrap();
    let tensor = encode_tensor(&Ans::default(), &spec, &plain).unwrap();
    println!("size {:.5}", tensor.byte_len() as f64 / BYTES as f64);
    let mut criterion = Criterion::default().sample_size(11).configure_from_args();

    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Bytes(BYTES as u64));
    group.bench_function("memcpy", |b| {
        b.iter(|| {
            for (to, from) in out.chunks_mut(PIECE).zip(plain.chunks(PIECE)) {
                to.copy_from_slice(black_box(from));
            }
        });
    });
    for backend in backends() {
        let ans = ans(backend);
        group.bench_function(backend.name(), |b| b.iter(|| decode(&tensor, &ans, &mut out)));
    }
    for backend in backends() {
        let decoder = tensor.open(&ans(backend)).unwrap();
        let block_bytes = spec.block_bytes();
        group.bench_function(format!("{} without checksums", backend.name()), |b| {
            b.iter(|| {
                for (i, out) in out.chunks_mut(2 * block_bytes).enumerate() {
                    let blocks = [2 * i as u64, 2 * i as u64 + 1].map(|i| tensor.block(i));
                    decoder.decode_blocks(&blocks, out).unwrap();
                }
            });
        });
    }
    group.bench_function("checksums alone", |b| {
        b.iter(|| (0..spec.n_blocks()).map(|i| xxh3(tensor.block(i))).fold(0, |a, b| a ^ b));
    });
    let constriction = Constriction::new(&plain);
    group.bench_function("constriction's lookup decoder, symbols alone", |b| {
        b.iter(|| constriction.decode());
    });
    let planes: [Vec<u8>; 2] =
        std::array::from_fn(|i| plain.iter().skip(i).step_by(2).copied().collect());
    for level in [1, 3] {
        let small = planes.each_ref().map(|p| zstd::bulk::compress(p, level).unwrap());
        let size: usize = small.iter().map(Vec::len).sum();
        println!("zstd -{level} over byte planes: size {:.5}", size as f64 / BYTES as f64);
        group.bench_function(format!("zstd -{level} over byte planes"), |b| {
            b.iter(|| {
                let [low, high] =
                    small.each_ref().map(|p| zstd::bulk::decompress(p, BYTES / 2).unwrap());
                for ((unit, low), high) in out.as_chunks_mut().0.iter_mut().zip(low).zip(high) {
                    *unit = [low, high];
                }
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("fresh");
    group.throughput(Throughput::Bytes(BYTES as u64));
    let best = ans(Backend::best());
    group.bench_function("memory that is used again", |b| {
        b.iter(|| decode(&tensor, &best, &mut out));
    });
    group.bench_function("fresh memory", |b| {
        b.iter(|| decode(&tensor, &best, &mut vec![0; BYTES]));
    });
    group.bench_function("fresh memory of huge pages", |b| {
        b.iter(|| decode(&tensor, &best, &mut zeroed(BYTES as u64).unwrap()));
    });
    group.finish();

    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Bytes(BYTES as u64));
    let (mut bytes, mut lens) = (Vec::new(), Vec::new());
    for backend in backends() {
        let ans = ans(backend);
        group.bench_function(format!("{} plan", backend.name()), |b| {
            b.iter(|| drop(ans.plan(&spec, &&plain[..]).unwrap()));
        });
        let encoder = ans.plan(&spec, &&plain[..]).unwrap();
        group.bench_function(format!("{} blocks", backend.name()), |b| {
            b.iter(|| {
                for units in plain.chunks(8 * spec.block_bytes()) {
                    bytes.clear();
                    lens.clear();
                    encoder.encode_blocks(0, units, &mut bytes, &mut lens).unwrap();
                }
            });
        });
    }
    for level in [Level::Fast, Level::Small] {
        let encoder = Ans::new(level).plan(&spec, &&plain[..]).unwrap();
        group.bench_function(format!("best backend, level {}, blocks", level.name()), |b| {
            b.iter(|| {
                for units in plain.chunks(8 * spec.block_bytes()) {
                    bytes.clear();
                    lens.clear();
                    encoder.encode_blocks(0, units, &mut bytes, &mut lens).unwrap();
                }
            });
        });
    }
    group.bench_function("zstd -3 over byte planes", |b| {
        b.iter(|| planes.each_ref().map(|p| zstd::bulk::compress(p, 3).unwrap().len()));
    });
    group.finish();

    // Blocks that stay in the caches: what each stage computes, memory left out.
    let mut group = criterion.benchmark_group("stages");
    group.throughput(Throughput::Bytes(Stages::BYTES as u64));
    for backend in backends() {
        let mut stages = Stages::new(&spec, &plain, backend).unwrap();
        for stage in Stage::ALL {
            if stage != Stage::DecodeFused || stages.is_fused() {
                let name = format!("{} {stage:?}", backend.name());
                group.bench_function(name, |b| b.iter(|| stages.run(stage).unwrap()));
            }
        }
    }
    group.finish();
    criterion.final_summary();
}
