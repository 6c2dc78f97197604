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
    const LEAST: f32 = -3.0e38;
    let (dim, quads) = (q.len(), q.len() / 4);
    let parts = 256 / quads;
    let scale = (1.0 / (dim as f64).sqrt()) as f32;
    let query: Vec<f32> = q.iter().map(|q| q * scale).collect();
    let (mut largest, mut total) = (LEAST, 0.0);
    let mut sums = vec![vec![0f32; dim]; parts];
    for first in (0..count).step_by(256) {
        let here = 256.min(count - first);
        let scores: [f32; 256] = std::array::from_fn(|thread| {
            if thread >= here {
                return LEAST;
            }
            let key = &keys[(first + thread) * stride..][..dim];
            let mut chains = [0f32; 4];
            for (i, (q, k)) in query.iter().zip(key).enumerate() {
                chains[i % 4] = fma(*q, *k, chains[i % 4]);
            }
            (chains[0] + chains[1]) + (chains[2] + chains[3])
        });
        let now = largest.max(tree(scores, f32::max));
        let weights: [f32; 256] =
            std::array::from_fn(|t| if t < here { (scores[t] - now).exp() } else { 0.0 });
        let shrink = (largest - now).exp();
        total = fma(total, shrink, tree(weights, |a, b| a + b));
        for (part, sum) in sums.iter_mut().enumerate() {
            for (d, sum) in sum.iter_mut().enumerate() {
                let chain = (part..here)
                    .step_by(parts)
                    .fold(0.0, |chain, i| fma(weights[i], values[(first + i) * stride + d], chain));
                *sum = fma(*sum, shrink, chain);
            }
        }
        largest = now;
    }
    (0..dim).map(|d| sums[1..].iter().fold(sums[0][d], |all, sum| all + sum[d]) / total).collect()
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
