//! Compares the kernels of a transformer on a device with their twins in Rust.
#![allow(unreachable_pub, clippy::unwrap_used)]

mod common;
#[path = "../src/layout.rs"]
#[allow(dead_code)]
mod layout;

use bigsmall_gpu::{ErrorKind, Heads, Recorder, Result};
use common::device::{buffer, gpu, read, small_device};
use common::twin::fused;
use common::*;

fn main() {
    common::device::run(TESTS)
}

const TESTS: &[(&str, fn())] = &[
    ("norms_follow_the_twin", norms_follow_the_twin),
    ("heads_turn_and_attend_as_the_twin", heads_turn_and_attend_as_the_twin),
    ("tokens_attend_the_same_alone_and_together", tokens_attend_the_same_alone_and_together),
    ("values_are_joined_and_found", values_are_joined_and_found),
];

fn norms_follow_the_twin() {
    for (rows, n) in [(1, 1), (3, 100), (2, 4096), (1, 20_000), (5, 0)] {
        let (x, weight) = (model_x(rows * n, 70), model_x(n, 71));
        let (x_buffer, w_buffer) = (buffer(gpu(), &x), buffer(gpu(), &weight));
        let y = gpu().new_buffer(rows * n).unwrap();
        gpu().submit(|r| r.rms_norm(&x_buffer, &w_buffer, 1e-5, rows, n, &y)).unwrap();
        let y = read(gpu(), &y, rows * n);
        for (x, y) in x.chunks(n.max(1)).zip(y.chunks(n.max(1))) {
            let twin = layer_twin::rms_norm(x, &weight, 1e-5, fused);
            let far = apart(y, &twin.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
            assert!(far < 1e-6, "{rows} of {n}: {far}");
        }
    }
}

fn heads_turn_and_attend_as_the_twin() {
    for &(queries, keys, dim, position, rows) in ATTENTIONS {
        let what = format!("{queries} {keys} {dim} at {position}");
        let q = model_x(rows * queries * dim, 72);
        let table = angles(position + rows, dim);
        let (x, angles) = (buffer(gpu(), &q), buffer(gpu(), &table));
        gpu().submit(|r| r.rope_in_place(&x, &angles, queries, dim, position, rows)).unwrap();
        let turned = read(gpu(), &x, q.len());
        let mut twin = q.clone();
        layer_twin::rope(&mut twin, &table, queries, dim, position, fused);
        let far = apart(&turned, &twin.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
        assert!(far < 1e-6, "{what}: {far}");

        let n = (position + rows) * keys * dim;
        let (k, v) = (model_x(n, 73), model_x(n, 74));
        let (k_buffer, v_buffer) = (buffer(gpu(), &k), buffer(gpu(), &v));
        let y = gpu().new_buffer(q.len()).unwrap();
        let heads = Heads { queries, keys, dim };
        gpu().submit(|r| r.attention(&x, &k_buffer, &v_buffer, heads, position, rows, &y)).unwrap();
        let y = read(gpu(), &y, q.len());
        for (i, (q, y)) in turned.chunks(dim).zip(y.chunks(dim)).enumerate() {
            let at = (i % queries) / (queries / keys) * dim;
            let (count, stride) = (position + i / queries + 1, keys * dim);
            let twin = layer_twin::attention(q, &k[at..], &v[at..], stride, count, fused);
            let far = apart(y, &twin.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
            assert!(far < 1e-5, "{what}, head {i}: {far}");
        }
    }
    let short = gpu().new_buffer(100).unwrap();
    let attend = |queries: usize, keys: usize, dim: usize, position: usize| {
        let heads = Heads { queries, keys, dim };
        let y = gpu().new_buffer(100).unwrap();
        let (k, v) = (gpu().new_buffer(100).unwrap(), gpu().new_buffer(100).unwrap());
        gpu().submit(|r| r.attention(&short, &k, &v, heads, position, 1, &y)).map_err(|e| e.kind())
    };
    assert_eq!(attend(4, 2, 8, 0), Ok(()));
    for (queries, keys, dim) in [(4, 3, 8), (4, 0, 8), (4, 2, 6), (1, 1, 260), (1, 1, 0)] {
        assert_eq!(attend(queries, keys, dim, 0), Err(ErrorKind::Argument));
    }
    assert_eq!(attend(4, 2, 8, 6), Err(ErrorKind::BufferLength));
    assert_eq!(attend(4, 2, 8, usize::MAX), Err(ErrorKind::TooLarge));
    let odd = gpu().submit(|r| r.rope_in_place(&short, &short, 1, 3, 0, 1));
    assert_eq!(odd.unwrap_err().kind(), ErrorKind::Argument);
}

/// Alone, a token before position 256 takes one kernel; beside a later one it takes two. On the
/// last device, a dispatch has memory for few tokens.
fn tokens_attend_the_same_alone_and_together() {
    let heads = Heads { queries: 6, keys: 2, dim: 12 };
    let small = small_device(|l| l.max_storage_buffer_binding_size = 2500 * 4 * 2 * 12);
    let (position, rows) = (250, 2250);
    let row = heads.queries * heads.dim;
    let n = (position + rows) * heads.keys * heads.dim;
    let (q, k, v) = (model_x(rows * row, 86), model_x(n, 87), model_x(n, 88));
    let mut all = Vec::new();
    for gpu in [gpu(), &small] {
        let at_once = if all.is_empty() { rows } else { 750 };
        let (k, v) = (buffer(gpu, &k), buffer(gpu, &v));
        let mut together = Vec::new();
        for (first, q) in (0..rows).step_by(at_once).zip(q.chunks(at_once * row)) {
            let (q, y) = (buffer(gpu, q), gpu.new_buffer(at_once * row).unwrap());
            let position = position + first;
            gpu.submit(|r| r.attention(&q, &k, &v, heads, position, at_once, &y)).unwrap();
            together.extend(read(gpu, &y, at_once * row));
        }
        for i in [0, 5, 6, 7, 261, 262, 263, rows - 1] {
            let (q, y) = (buffer(gpu, &q[i * row..][..row]), gpu.new_buffer(row).unwrap());
            gpu.submit(|r| r.attention(&q, &k, &v, heads, position + i, 1, &y)).unwrap();
            assert_eq!(bits(&read(gpu, &y, row)), bits(&together[i * row..][..row]), "token {i}");
        }
        all.push(bits(&together));
    }
    assert_eq!(all[0], all[1]);
}

fn values_are_joined_and_found() {
    // The last device needs two-dimensional grids.
    let small = small_device(|l| l.max_compute_workgroups_per_dimension = 12);
    for gpu in [gpu(), &small] {
        for n in [1, 255, 256, 257, 10_001] {
            let (a, b) = (model_x(n, 76), model_x(n, 77));
            let (x, y) = (buffer(gpu, &a), buffer(gpu, &b));
            gpu.submit(|r| r.add_in_place(&x, &y, n)).unwrap();
            let sums: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            assert_eq!(bits(&read(gpu, &x, n)), bits(&sums));
            let a: Vec<f32> = a.iter().map(|a| a * 50.0).collect();
            gpu.write_buffer(&x, &a).unwrap();
            gpu.submit(|r| r.silu_mul_in_place(&x, &y, n)).unwrap();
            for ((found, a), b) in read(gpu, &x, n).iter().zip(&a).zip(&b) {
                let twin = layer_twin::silu_mul(*a, *b);
                assert!((found - twin).abs() <= 1e-5 * twin.abs().max(1e-30), "{a} {b}: {found}");
            }
            let index = gpu.new_buffer(1).unwrap();
            for at in [0, n / 2, n - 1] {
                let mut x = model_x(n, 78);
                // A tie: the first index must be the result.
                x[at..].iter_mut().step_by(3).for_each(|v| *v = 9.0);
                let x_buffer = buffer(gpu, &x);
                gpu.submit(|r| r.argmax(&x_buffer, n, &index)).unwrap();
                let mut found = [u32::MAX];
                gpu.read_buffer(&index, &mut found).unwrap();
                assert_eq!(found, [layer_twin::argmax(&x)]);
                assert_eq!(found, [at as u32]);
            }
        }
    }
    let (x, y) = (gpu().new_buffer(8).unwrap(), gpu().new_buffer(9).unwrap());
    for n in [9, usize::MAX] {
        let wrong = |record: &dyn Fn(&mut Recorder<'_>) -> Result<()>| {
            let kind = gpu().submit(record).unwrap_err().kind();
            assert!(kind == ErrorKind::BufferLength || (n > 9 && kind == ErrorKind::TooLarge));
        };
        wrong(&|r| r.add_in_place(&x, &y, n));
        wrong(&|r| r.silu_mul_in_place(&y, &x, n));
        wrong(&|r| r.argmax(&x, n, &y));
        wrong(&|r| r.rms_norm(&x, &y, 1.0, 1, n, &y));
    }
}
