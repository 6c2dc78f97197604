//! What a layer computes beside products, in plain Rust. Sums have several accumulators in a fixed
//! order, so that the compiler can use vectors and the result does not depend on threads.

use rayon::prelude::*;

use crate::config::Heads;

/// Accumulators of a sum.
const LANES: usize = 16;
/// Values that are worth a task of their own.
const TASK: usize = 1 << 14;
/// Values times positions of an attention that one thread computed as fast as two: it reads keys
/// and values in order, while each of two reads a half of every position's.
const ALONE: usize = 1 << 18;

/// The sum of the products.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (x, y) in x.iter().zip(y) {
        for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *sum += x * y;
        }
    }
    for (sum, (x, y)) in sums.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *sum += x * y;
    }
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            sums[i] += sums[i + n];
        }
        n /= 2;
    }
    sums[0]
}

/// `y = x / sqrt(mean of x^2 + epsilon) * weight`.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32]) {
    let scale = 1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt();
    for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
        *y = x * scale * weight;
    }
}

/// Rotates the values j and j + dim / 2 of a head. `angles` has the cosine and the sine of each j.
pub(crate) fn rotate(head: &mut [f32], angles: &[f32]) {
    let (first, second) = head.split_at_mut(head.len() / 2);
    for ((a, b), [cos, sin]) in first.iter_mut().zip(second).zip(angles.as_chunks().0) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// The exponential function, with a relative error below 3e-7, without branches: compilers turn
/// loops over it into vector instructions. Below -87.3 and above 88.3 it stays as it is there.
fn exp(x: f32) -> f32 {
    // Adding this rounds to an integer, in the lowest bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.3);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let tail = 1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0));
    let series = 1.0 + r + r * r * (0.5 + r * (1.0 / 6.0 + r * tail));
    series * f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23))
}

/// `gate = gate / (1 + exp(-gate)) * up`.
pub(crate) fn silu_mul(gate: &mut [f32], up: &[f32]) {
    let piece = |(gate, up): (&mut [f32], &[f32])| {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + exp(-*gate)) * up;
        }
    };
    if gate.len() <= TASK {
        piece((gate, up));
    } else {
        gate.par_chunks_mut(TASK).zip(up.par_chunks(TASK)).for_each(piece);
    }
}

/// The place of the largest value, the first one if several are equal.
pub(crate) fn argmax(x: &[f32]) -> u32 {
    let mut most = [f32::NEG_INFINITY; LANES];
    for x in x.chunks(LANES) {
        for (most, &x) in most.iter_mut().zip(x) {
            *most = if x > *most { x } else { *most };
        }
    }
    let most = most.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    x.iter().position(|&x| x == most).unwrap_or(0) as u32
}

/// Causal attention: row i of the queries is at `position + i`, and uses the keys and values of all
/// positions up to its own.
pub(crate) fn attention(
    queries: &[f32],
    keys: &[f32],
    values: &[f32],
    heads: Heads,
    position: usize,
    y: &mut [f32],
) {
    let Heads { keys: n_keys, dim, .. } = heads;
    // The query heads that share a key head are computed together.
    let group = heads.queries / n_keys * dim;
    // Some heads of a row, position after position, so that memory is read in order.
    let some = |row: usize, first: usize, y: &mut [f32]| {
        let n = position + row + 1;
        let queries = &queries[(row * n_keys + first) * group..][..y.len()];
        let mut scores = vec![0.0; y.len() / dim * n];
        let scale = 1.0 / (dim as f32).sqrt();
        let at = |t: usize| (t * n_keys + first) * dim..(t * n_keys + n_keys) * dim;
        for t in 0..n {
            let groups = queries.chunks_exact(group).zip(scores.chunks_exact_mut(group / dim * n));
            for (key, (queries, scores)) in keys[at(t)].chunks_exact(dim).zip(groups) {
                for (query, scores) in queries.chunks_exact(dim).zip(scores.chunks_exact_mut(n)) {
                    scores[t] = dot(query, key) * scale;
                }
            }
        }
        scores.chunks_exact_mut(n).for_each(softmax);
        y.fill(0.0);
        for t in 0..n {
            let groups = y.chunks_exact_mut(group).zip(scores.chunks_exact(group / dim * n));
            for (value, (y, scores)) in values[at(t)].chunks_exact(dim).zip(groups) {
                for (y, scores) in y.chunks_exact_mut(dim).zip(scores.chunks_exact(n)) {
                    let weight = scores[t];
                    y.iter_mut().zip(value).for_each(|(y, v)| *y += weight * v);
                }
            }
        }
    };
    if y.len() * (position + 1) <= ALONE {
        y.chunks_mut(n_keys * group).enumerate().for_each(|(row, y)| some(row, 0, y));
        return;
    }
    // A row has as many parts as there are threads.
    let part = n_keys.div_ceil(rayon::current_num_threads());
    y.par_chunks_mut(n_keys * group).enumerate().for_each(|(row, y)| {
        let parts = y.par_chunks_mut(part * group).enumerate();
        parts.for_each(|(i, y)| some(row, i * part, y));
    });
}

fn softmax(scores: &mut [f32]) {
    let most = scores.iter().fold(f32::NEG_INFINITY, |most, &score| most.max(score));
    let mut sums = [0.0; LANES];
    for scores in scores.chunks_mut(LANES) {
        for (score, sum) in scores.iter_mut().zip(&mut sums) {
            *score = exp(*score - most);
            *sum += *score;
        }
    }
    let scale = 1.0 / sums.iter().sum::<f32>();
    scores.iter_mut().for_each(|score| *score *= scale);
}

#[cfg(test)]
pub(crate) fn exp_is_close() {
    for i in -870_000..=880_000 {
        let x = i as f32 / 10_000.0;
        let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
        assert!((found / expected - 1.0).abs() < 3e-7, "exp({x}) = {found}, expected {expected}");
    }
    assert!(exp(f32::NAN).is_nan());
    assert!(exp(-1e30) < 2e-38 && exp(1e30) > 1e38);
}
