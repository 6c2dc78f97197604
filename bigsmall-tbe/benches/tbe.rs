//! Speed of the triple-bitmap encoding, in bytes of original data.
//!
//! `cargo bench -p bigsmall-tbe` first prints ratios to a yardstick measured in turn with the
//! subject (of the medians of 15 pairs, and of the fastest, which a neighbour on the processor
//! disturbed least), which is what counts on a shared machine, then criterion's own figures.
//! `-- ratios` prints the ratios alone, `-- forms` products in every form for memory (by the
//! processor time of the thread where the system has a clock for it; with THREADS in the
//! environment by wall time, for more than one thread; `-- forms BF16 tbe3 b1 avx512` for some
//! dtypes, forms, batches and backends alone),
//! `-- small` products of a small matrix, `-- decode` and the like run a part of criterion's. Data:
//! 256 MiB, bf16 unless another dtype is named, rows of 0.02 N(0, 1) exp(N(0, 0.2)), larger than
//! the caches; buffers are reused, block checksums verified, one thread.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bigsmall_tbe::{
    Backend, Decoded, Dtype, EncodedTensor, Form, Plain, Resident, Tbe, TensorSpec, View, Width,
    encode_tensor,
};
use bigsmall_testing::{Random, e4m3};
use criterion::{BenchmarkId, Criterion, Throughput};
use half::{bf16, f16};

const M: usize = 32_768;
const K: usize = 4096;
const BYTES: usize = 2 * M * K;

fn weights(dtype: Dtype, rows: usize, columns: usize) -> Vec<u8> {
    let mut random = Random::new(42);
    let mut bytes = Vec::with_capacity(dtype.unit_bytes() * rows * columns);
    for _ in 0..rows {
        let scale = 0.02 * (0.2 * random.normal()).exp();
        for _ in 0..columns {
            let weight = scale * random.normal();
            match dtype {
                Dtype::BF16 => bytes.extend(bf16::from_f64(weight).to_le_bytes()),
                Dtype::F16 => bytes.extend(f16::from_f64(weight).to_le_bytes()),
                // Scaled, so that the largest ones are near 448.
                Dtype::F8_E4M3 => bytes.push(e4m3(2000.0 * weight as f32)),
                _ => bytes.push((f16::from_f64(weight).to_bits() + 0x80).to_be_bytes()[0]),
            }
        }
    }
    bytes
}

struct Data {
    spec: TensorSpec,
    plain: Vec<u8>,
    out: Vec<u8>,
    x: Vec<f32>,
    y: Vec<f32>,
    encoded: Vec<(Width, EncodedTensor)>,
}

impl Data {
    fn new() -> Data {
        let spec = TensorSpec::new("w", Dtype::BF16, &[M as u64, K as u64]).unwrap();
        let plain = weights(Dtype::BF16, M, K);
        let encoded = Width::ALL
            .iter()
            .map(|&width| (width, encode_tensor(&Tbe::new(width), &spec, &plain).unwrap()))
            .collect();
        let mut random = Random::new(43);
        let x = (0..16 * K).map(|_| random.normal() as f32).collect();
        Data { spec, out: plain.clone(), plain, x, y: vec![0.0; 16 * M], encoded }
    }

    fn copy(&mut self) {
        self.out.copy_from_slice(black_box(&self.plain));
    }

    fn decode(&mut self, width: usize, backend: Backend) {
        let encoded = &self.encoded[width].1;
        let tbe = Tbe::default().with_backend(backend).unwrap();
        encoded.decode_bytes(&tbe, 0..BYTES as u64, &mut self.out).unwrap();
    }

    fn multiply_plain(&mut self, batch: usize, backend: Backend) {
        let plain = Plain::new(&self.spec, &self.plain).unwrap().with_backend(backend).unwrap();
        plain.matmul(&self.x[..batch * K], batch, &mut self.y[..batch * M]).unwrap();
    }

    fn multiply_encoded(&mut self, view: &View<'_>, batch: usize, backend: Backend) {
        let view = view.with_backend(backend).unwrap();
        view.matmul(&self.x[..batch * K], batch, &mut self.y[..batch * M]).unwrap();
    }
}

/// Seconds that something took.
struct Times {
    median: f64,
    fastest: f64,
}

impl Times {
    fn of(mut times: Vec<Duration>) -> Times {
        times.sort();
        let seconds = |i: usize| times[i].as_secs_f64();
        Times { median: seconds(times.len() / 2), fastest: seconds(0) }
    }
}

/// Times of two things done in turn.
fn in_turn(data: &mut Data, a: impl Fn(&mut Data), b: impl Fn(&mut Data)) -> (Times, Times) {
    let time = |data: &mut Data, f: &dyn Fn(&mut Data)| {
        let begin = Instant::now();
        f(data);
        begin.elapsed()
    };
    a(data);
    b(data);
    let (mut times_a, mut times_b) = (Vec::new(), Vec::new());
    for _ in 0..15 {
        times_a.push(time(data, &a));
        times_b.push(time(data, &b));
    }
    (Times::of(times_a), Times::of(times_b))
}

fn ratios(data: &mut Data, encoded: &[EncodedTensor]) {
    let gb = BYTES as f64 / 1e9;
    let size = |i: usize| encoded[i].byte_len() as f64 / BYTES as f64;
    println!("size: {:.4} with 3 bitmaps, {:.4} with 4", size(0), size(1));
    println!("{:30} {:>9} {:>10} {:>7} {:>8}", "", "GB/s", "yardstick", "ratio", "fastest");
    let row = |name: String, (subject, yardstick): (Times, Times)| {
        let (rate, of_yardstick) = (gb / subject.median, gb / yardstick.median);
        let fastest = yardstick.fastest / subject.fastest;
        let ratio = rate / of_yardstick;
        println!("{name:30} {rate:9.2} {of_yardstick:10.2} {ratio:7.3} {fastest:8.3}");
    };
    for backend in bigsmall_tbe::backends() {
        for width in 0..2 {
            let times = in_turn(data, |d| d.decode(width, backend), Data::copy);
            row(format!("decode{} {backend} / memcpy", width + 3), times);
        }
    }
    for backend in bigsmall_tbe::backends() {
        for (width, encoded) in encoded.iter().enumerate() {
            let view = View::new(encoded).unwrap();
            for batch in [1, 4, 16] {
                let times = in_turn(
                    data,
                    |d| d.multiply_encoded(&view, batch, backend),
                    |d| d.multiply_plain(batch, backend),
                );
                row(format!("matmul{} b{batch} {backend} / plain", width + 3), times);
            }
        }
    }
}

/// A matrix of [`BYTES`] bytes, encoded.
fn encoded(dtype: Dtype) -> EncodedTensor {
    let rows = M * 2 / dtype.unit_bytes();
    let spec = TensorSpec::new("w", dtype, &[rows as u64, K as u64]).unwrap();
    encode_tensor(&Tbe::default(), &spec, &weights(dtype, rows, K)).unwrap()
}

/// Products in every form, in turn with plain weights in the same kind of memory; those of plain
/// weights of other dtypes in turn with as many bytes of plain bf16.
fn forms() {
    let mut random = Random::new(43);
    let x: Vec<f32> = (0..64 * K).map(|_| random.normal() as f32).collect();
    let mut y = vec![0.0; 64 * M];
    let make = |encoded: &EncodedTensor, form, backend| {
        let resident = Resident::with_form(encoded, &Tbe::default(), form).unwrap();
        resident.with_backend(backend).unwrap()
    };
    let dtypes = [Dtype::BF16, Dtype::F16, Dtype::F8_E4M3, Dtype::F8_E5M2];
    let dtypes = chosen(&dtypes, Dtype::to_string);
    let forms = chosen(&Form::ALL[1..], Form::to_string);
    let batches = chosen(&[1, 4, 64], |batch| format!("b{batch}"));
    let backends: Vec<_> = bigsmall_tbe::backends().collect();
    let backends = chosen(&backends, Backend::to_string);
    let bf16 = encoded(Dtype::BF16);
    println!("{:30} {:>9} {:>9} {:>7} {:>8}", "GB/s or GFLOP/s", "", "plain", "ratio", "fastest");
    for dtype in dtypes {
        let other = (dtype != Dtype::BF16).then(|| encoded(dtype));
        let encoded = other.as_ref().unwrap_or(&bf16);
        println!("{dtype}: {:.4} with 3 bitmaps", encoded.byte_len() as f64 / BYTES as f64);
        for &backend in &backends {
            let plain = make(encoded, Form::Plain, backend);
            if dtype != Dtype::BF16 {
                let bf16 = make(&bf16, Form::Plain, backend);
                compare(&format!("{dtype} plain / BF16"), backend, 1, (&plain, &bf16), &x, &mut y);
            }
            let forms = forms.iter();
            for &form in forms.filter(|f| f.takes(dtype)) {
                let matrix = make(encoded, form, backend);
                for &batch in &batches {
                    let name = format!("{dtype} {form}");
                    compare(&name, backend, batch, (&matrix, &plain), &x, &mut y);
                }
            }
        }
    }
}

/// Those whose names are among the arguments, or all of them if there is none.
fn chosen<T: Copy>(all: &[T], name: impl Fn(&T) -> String) -> Vec<T> {
    let named = |value: &&T| std::env::args().any(|a| a == name(value));
    let some: Vec<T> = all.iter().filter(named).copied().collect();
    if some.is_empty() { all.to_vec() } else { some }
}

/// The processor time of this thread, which does all the work if there is only one; else the time.
fn now() -> Duration {
    #[cfg(unix)]
    if rayon::current_num_threads() == 1 {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        return Duration::try_from(time).unwrap();
    }
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    BEGIN.elapsed()
}

fn compare(
    name: &str,
    backend: Backend,
    batch: usize,
    (matrix, yardstick): (&Resident, &Resident),
    x: &[f32],
    y: &mut [f32],
) {
    // Whole products take long with many columns. GB/s are bytes of plain weights.
    let part = if batch == 1 { 1 } else { 16 };
    let amount = |matrix: &Resident| match batch {
        1 => BYTES as f64 / 1e9,
        _ => (2 * matrix.rows() / part * K * batch) as f64 / 1e9,
    };
    let mut time = |matrix: &Resident| {
        let rows = matrix.rows() / part;
        let begin = now();
        matrix.matmul_rows(0..rows, &x[..batch * K], batch, &mut y[..batch * rows]).unwrap();
        now() - begin
    };
    let pairs: Vec<_> = (0..15).map(|_| (time(matrix), time(yardstick))).collect();
    let (subject, plain): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let (subject, plain) = (Times::of(subject), Times::of(plain));
    println!(
        "{:30} {:9.2} {:9.2} {:7.3} {:8.3}",
        format!("{name} b{batch} {backend}"),
        amount(matrix) / subject.median,
        amount(yardstick) / plain.median,
        plain.median / subject.median,
        plain.fastest / subject.fastest,
    );
}

/// A matrix so small that waking threads would cost more than they save: y = W x with one column,
/// 1024 x 1024, in pools of one and of two threads.
fn small() {
    const N: usize = 1024;
    let spec = TensorSpec::new("w", Dtype::BF16, &[N as u64, N as u64]).unwrap();
    let plain = &weights(Dtype::BF16, N, N);
    let encoded = encode_tensor(&Tbe::new(Width::Three), &spec, plain).unwrap();
    let view = View::new(&encoded).unwrap();
    let matrix = Plain::new(&spec, plain).unwrap();
    let x = [0.5; N];
    for threads in [1, 2] {
        pool(threads).install(|| {
            let mut y = [0.0; N];
            let median = |product: &mut dyn FnMut()| {
                let mut run = || {
                    let begin = Instant::now();
                    product();
                    begin.elapsed()
                };
                Times::of((0..5000).map(|_| run()).collect()).median * 1e6
            };
            let encoded = median(&mut || view.matmul(&x, 1, &mut y).unwrap());
            let plain = median(&mut || matrix.matmul(&x, 1, &mut y).unwrap());
            println!("small, {threads} threads: {encoded:.1} us, plain {plain:.1} us");
        });
    }
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

fn main() {
    if std::env::args().any(|a| a == "small") {
        return small();
    }
    if std::env::args().any(|a| a == "forms") {
        let threads = std::env::var("THREADS").map_or(1, |n| n.parse().unwrap());
        return pool(threads).install(forms);
    }
    pool(1).install(all);
}

fn all() {
    let mut data = Data::new();
    let encoded: Vec<EncodedTensor> = data.encoded.iter().map(|(_, e)| e.clone()).collect();
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if filters.is_empty() || filters.iter().any(|f| f == "ratios") {
        ratios(&mut data, &encoded);
    }

    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Bytes(BYTES as u64));
    group.bench_function("memcpy", |b| b.iter(|| data.copy()));
    for backend in bigsmall_tbe::backends() {
        for (i, width) in Width::ALL.iter().enumerate() {
            let id = BenchmarkId::new(format!("{width:?}"), backend);
            group.bench_function(id, |b| b.iter(|| data.decode(i, backend)));
        }
    }
    group.finish();

    let mut group = criterion.benchmark_group("matmul");
    group.throughput(Throughput::Bytes(BYTES as u64));
    for backend in bigsmall_tbe::backends() {
        for batch in [1, 4, 16] {
            let id = BenchmarkId::new(format!("plain batch {batch}"), backend);
            group.bench_function(id, |b| b.iter(|| data.multiply_plain(batch, backend)));
            for (width, encoded) in Width::ALL.iter().zip(&encoded) {
                let view = View::new(encoded).unwrap();
                let id = BenchmarkId::new(format!("{width:?} batch {batch}"), backend);
                let run = |data: &mut Data| data.multiply_encoded(&view, batch, backend);
                group.bench_function(id, |b| b.iter(|| run(&mut data)));
            }
        }
    }
    group.finish();

    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Bytes(BYTES as u64));
    for &width in Width::ALL {
        group.bench_function(format!("{width:?}"), |b| {
            b.iter(|| encode_tensor(&Tbe::new(width), &data.spec, &data.plain).unwrap());
        });
    }
    let (from, to) = (Tbe::new(Width::Four), Tbe::new(Width::Three));
    group.bench_function("transcode Four to Three", |b| {
        b.iter(|| {
            let source = Decoded::new(&encoded[1], &from).unwrap();
            encode_tensor(&to, source.spec(), &source).unwrap()
        });
    });
    group.finish();
}
