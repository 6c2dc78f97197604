//! The transformer kernels in Rust: 256 threads in step, with the same order of sums as the
//! shaders.

/// The function that replaces a device's `fma`.
pub type Fma = fn(f32, f32, f32) -> f32;

/// Adds threads t and t + 128, then t and t + 64, and so on.
fn tree(mut partial: [f32; 256], join: fn(f32, f32) -> f32) -> f32 {
    let mut half = 128;
    while half > 0 {
        for t in 0..half {
            partial[t] = join(partial[t], partial[t + half]);
        }
        half /= 2;
    }
    partial[0]
}

/// One vector.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, fma: Fma) -> Vec<f32> {
    let partial = std::array::from_fn(|thread| {
        let mut sum = 0.0;
        for first in (thread..x.len()).step_by(8192) {
            let end = x.len().min(first + 8192);
            sum += (first..end).step_by(256).fold(0.0, |chain, k| fma(x[k], x[k], chain));
        }
        sum
    });
    let scale = 1.0 / (tree(partial, |a, b| a + b) / x.len() as f32 + epsilon).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
}

/// All vectors, in place.
pub fn rope(x: &mut [f32], angles: &[f32], heads: usize, dim: usize, position: usize, fma: Fma) {
    let half = dim / 2;
    for (i, head) in x.chunks_exact_mut(dim).enumerate() {
        for j in 0..half {
            let turn = &angles[2 * ((position + i / heads) * half + j)..];
            let (a, b) = (head[j], head[j + half]);
            head[j] = fma(a, turn[0], -(b * turn[1]));
            head[j + half] = fma(b, turn[0], a * turn[1]);
        }
    }
}

/// A tile of positions: the largest score, the sum of the weights, and the weighted sum of the
/// values.
struct Tile {
    largest: f32,
    total: f32,
    sum: Vec<f32>,
}

/// One head of one token that uses `count` positions. `keys` and `values` begin at its head, and
/// consecutive positions are `stride` values apart.
pub fn attention(
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    stride: usize,
    count: usize,
    fma: Fma,
) -> Vec<f32> {
    let dim = q.len();
    let parts = 256 / (dim / 4);
    let scale = (1.0 / (dim as f64).sqrt()) as f32;
    let query: Vec<f32> = q.iter().map(|q| q * scale).collect();
    let tiles: Vec<Tile> = (0..count)
        .step_by(256)
        .map(|first| {
            let from = first * stride;
            let here = 256.min(count - first);
            attention_tile(&query, &keys[from..], &values[from..], stride, here, fma)
        })
        .collect();
    if let [tile] = &tiles[..] {
        return tile.sum.iter().map(|sum| sum / tile.total).collect();
    }
    let largest = tiles.iter().fold(LEAST, |most, tile| most.max(tile.largest));
    let shrink: Vec<f32> = tiles.iter().map(|tile| (tile.largest - largest).exp()).collect();
    // One chain for each part, then the chains in order.
    let joined = |of: &dyn Fn(usize) -> f32| {
        let chain = |part: usize| {
            let every = (part..tiles.len()).step_by(parts);
            every.fold(0.0, |chain, i| fma(shrink[i], of(i), chain))
        };
        (1..parts).fold(chain(0), |all, part| all + chain(part))
    };
    let total = joined(&|i| tiles[i].total);
    (0..dim).map(|d| joined(&|i| tiles[i].sum[d]) / total).collect()
}

const LEAST: f32 = -3.0e38;

fn attention_tile(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    stride: usize,
    here: usize,
    fma: Fma,
) -> Tile {
    let dim = query.len();
    let parts = 256 / (dim / 4);
    let scores: [f32; 256] = std::array::from_fn(|thread| {
        if thread >= here {
            return LEAST;
        }
        let key = &keys[thread * stride..][..dim];
        let mut chains = [0f32; 4];
        for (i, (q, k)) in query.iter().zip(key).enumerate() {
            chains[i % 4] = fma(*q, *k, chains[i % 4]);
        }
        (chains[0] + chains[1]) + (chains[2] + chains[3])
    });
    let largest = tree(scores, f32::max);
    let weights: [f32; 256] =
        std::array::from_fn(|t| if t < here { (scores[t] - largest).exp() } else { 0.0 });
    let chain = |part: usize, d: usize| {
        let every = (part..here).step_by(parts);
        every.fold(0.0, |chain, i| fma(weights[i], values[i * stride + d], chain))
    };
    let sum = |d| (1..parts).fold(chain(0, d), |all, part| all + chain(part, d));
    Tile { largest, total: tree(weights, |a, b| a + b), sum: (0..dim).map(sum).collect() }
}

pub fn silu_mul(gate: f32, up: f32) -> f32 {
    gate / (1.0 + (-gate).exp()) * up
}

pub fn argmax(x: &[f32]) -> u32 {
    let mut found: Vec<(f32, usize)> = (0..256)
        .map(|thread| {
            let at = thread.min(x.len() - 1);
            (thread + 256..x.len())
                .step_by(256)
                .fold((x[at], at), |best, k| if x[k] > best.0 { (x[k], k) } else { best })
        })
        .collect();
    let mut half = 128;
    while half > 0 {
        for t in 0..half {
            let (a, b) = (found[t], found[t + half]);
            if b.0 > a.0 || (b.0 == a.0 && b.1 < a.1) {
                found[t] = b;
            }
        }
        half /= 2;
    }
    found[0].1 as u32
}
