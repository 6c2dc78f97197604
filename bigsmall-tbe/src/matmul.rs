//! Products of a matrix that stays encoded, and the same products of the plain matrix.
//!
//! Every product walks its rows in tiles of 64 weights counted from the row's beginning. Weight k
//! adds to one of 64 chains (`lane_of`); after 64 tiles the chains are summed as a tree, and
//! these sums again as a tree. So the order of the additions depends on the row's length alone: not
//! on threads, batch, encoding, or where in a tile a row begins.

use bigsmall_format::{
    BLOCK_UNITS, Backend, Dtype, Error, Result, Rule, TensorSpec, for_each_in_parallel,
};

use crate::backend;
use crate::kernels::{Chains, DotTbe, Kernels, Tiles, lane_of};
use crate::layout::{Fields, TILE};
use crate::view::TbeView;

/// Weights of a row whose products go to the 64 chains before these are summed: chains of 64
/// additions.
const CHUNK: usize = 64 * TILE;
/// Weights of the rows that a thread takes at a time.
const PIECE: usize = 1 << 18;

/// Multiplies matrices with vectors: y\[b, m\] = sum over k of W\[m, k\] x\[b, k\], everything
/// row-major, x and y in f32.
///
/// W is a matrix of shape \[m, k\] in BF16, F16, F8_E4M3 or F8_E5M2, encoded
/// ([`encoded`](Self::encoded)) or plain ([`plain`](Self::plain)). Both give the same bits, for
/// every number of threads; a column of x gives the same bits in every batch. Sums are f32, with
/// chains of at most 64 additions, so that |y - exact| <= (72 + ceil(log2(ceil(k / 4096)))) 2^-24 sum |w x|. Different backends may differ in the last bits.
///
/// Memory: x once more, and for each thread one decoded run of 4096 weights and the sums of a row.
///
/// ```
/// use bigsmall_tbe::{Dtype, Matmul, Tbe, TbeView, TensorSpec, Width, encode_tensor};
///
/// // Rows of ones, of twos and of threes.
/// let spec = TensorSpec::new("w", Dtype::BF16, &[3, 100])?;
/// let bits = [0x3f80u16, 0x4000, 0x4040];
/// let weights: Vec<u8> = bits.iter().flat_map(|b| [b.to_le_bytes(); 100]).flatten().collect();
/// let encoded = encode_tensor(&Tbe::new(Width::Three), &spec, &weights, 0)?;
///
/// let x = [0.5; 100];
/// let mut y = [0.0; 3];
/// Matmul::new(0).encoded(&TbeView::new(&encoded)?, &x, 1, &mut y)?;
/// assert_eq!(y, [50.0, 100.0, 150.0]);
/// # Ok::<(), bigsmall_tbe::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Matmul {
    threads: usize,
    kernels: &'static Kernels,
}

impl Matmul {
    /// On up to `threads` threads (0: all), with the fastest kernels that this machine can run.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Matmul { threads, kernels: backend::best() }
    }

    /// The same with the kernels of `backend`.
    ///
    /// # Errors
    /// [`Rule::BackendMissing`] where this machine cannot run them.
    pub fn with_backend(mut self, backend: Backend) -> Result<Self> {
        self.kernels = backend::kernels(backend)?;
        Ok(self)
    }

    /// The backend whose kernels it runs.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.kernels.backend
    }

    /// y = W x with an encoded matrix, which is never decoded as a whole: one column straight from
    /// the bitmaps, for several each run of 4096 weights is decoded once.
    ///
    /// # Errors
    /// [`Rule::SpecMismatch`] when W is not a matrix, [`Rule::BufferLength`] when x is not `batch`
    /// times k long or y not `batch` times m.
    pub fn encoded(&self, w: &TbeView<'_>, x: &[f32], batch: usize, y: &mut [f32]) -> Result<()> {
        self.multiply(w.spec(), Weights::Encoded(*w), x, batch, y)
    }

    /// y = W x with the plain matrix `spec`, whose original bytes are `w`.
    ///
    /// # Errors
    /// As [`encoded`](Self::encoded), also when `w` has another length; [`Rule::EncodingRefuses`]
    /// for other dtypes.
    pub fn plain(
        &self,
        spec: &TensorSpec,
        w: &[u8],
        x: &[f32],
        batch: usize,
        y: &mut [f32],
    ) -> Result<()> {
        if Fields::of(spec.dtype()).is_none() {
            return Err(Error::new(Rule::EncodingRefuses)
                .in_tensor(spec.name())
                .expected("a product with BF16, F16, F8_E4M3 or F8_E5M2")
                .found(spec.dtype()));
        }
        expect(spec, "w", w.len(), Some(spec.byte_len() as usize))?;
        self.multiply(spec, Weights::Plain(w), x, batch, y)
    }

    fn multiply(
        &self,
        spec: &TensorSpec,
        weights: Weights<'_>,
        x: &[f32],
        batch: usize,
        y: &mut [f32],
    ) -> Result<()> {
        let &[m, k] = spec.shape() else {
            return Err(Error::new(Rule::SpecMismatch)
                .in_tensor(spec.name())
                .expected("a matrix")
                .found(format!("shape {:?}", spec.shape())));
        };
        // The product of the shape fits; a dimension beside a zero may not.
        let [m, k] = [m, k].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        expect(spec, "x", x.len(), k.checked_mul(batch))?;
        expect(spec, "y", y.len(), m.checked_mul(batch))?;
        if y.is_empty() {
            return Ok(());
        }
        if k == 0 {
            y.fill(0.0);
            return Ok(());
        }
        let rows = Rows {
            weights,
            dtype: spec.dtype(),
            bytes: spec.dtype().unit_bytes(),
            k,
            x: &in_lane_order(x, k),
            stride: k.next_multiple_of(TILE),
            kernels: self.kernels,
        };
        // Each piece is a run of rows with its part of every column of y.
        let rows_per_piece = (PIECE / k).max(1);
        let mut pieces: Vec<Vec<&mut [f32]>> = Vec::new();
        pieces.resize_with(m.div_ceil(rows_per_piece), || Vec::with_capacity(batch));
        for column in y.chunks_exact_mut(m) {
            for (piece, part) in pieces.iter_mut().zip(column.chunks_mut(rows_per_piece)) {
                piece.push(part);
            }
        }
        for_each_in_parallel(
            self.threads,
            pieces.into_iter().enumerate(),
            || Scratch::new(batch),
            |scratch, (piece, mut y)| {
                for i in 0..y[0].len() {
                    rows.multiply(piece * rows_per_piece + i, scratch);
                    for (y, sum) in y.iter_mut().zip(&mut scratch.sums) {
                        y[i] = sum.take();
                    }
                }
                Ok(())
            },
        )
    }
}

impl std::fmt::Debug for Matmul {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matmul")
            .field("threads", &self.threads)
            .field("backend", &self.backend())
            .finish()
    }
}

fn expect(spec: &TensorSpec, what: &str, found: usize, expected: Option<usize>) -> Result<()> {
    if expected == Some(found) {
        return Ok(());
    }
    let expected = expected.map_or("fewer than overflow".into(), |n| n.to_string());
    Err(Error::new(Rule::BufferLength)
        .in_tensor(spec.name())
        .expected(format!("{what} of length {expected}"))
        .found(found))
}

/// Every column of x with the elements of each tile in the order of the chains, zeros behind the
/// last one.
fn in_lane_order(x: &[f32], k: usize) -> Vec<f32> {
    let stride = k.next_multiple_of(TILE);
    let mut out = vec![0.0; x.len() / k * stride];
    for (x, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(stride)) {
        for (x, out) in x.chunks(TILE).zip(out.as_chunks_mut::<TILE>().0) {
            for (i, &x) in x.iter().enumerate() {
                out[lane_of(i)] = x;
            }
        }
    }
    out
}

#[derive(Clone, Copy)]
enum Weights<'a> {
    Encoded(TbeView<'a>),
    Plain(&'a [u8]),
}

/// What a thread reuses for every row.
struct Scratch<'a> {
    chains: Vec<Chains>,
    sums: Vec<Tree>,
    /// A chunk of weights as they were before encoding.
    bytes: Vec<u8>,
    /// The same as f32 in the order of the lanes.
    floats: Vec<f32>,
    /// What follows the last tile that was multiplied while encoded.
    next: Option<Run<'a>>,
}

/// Encoded weights up to the end of their block.
struct Run<'a> {
    /// The number of the first weight in the matrix.
    first: u64,
    /// How many they are.
    len: usize,
    tiles: Tiles<'a>,
    /// How far behind the first bitmap bit they begin.
    shift: u32,
}

impl<'a> Run<'a> {
    fn at(view: &TbeView<'a>, first: u64) -> Self {
        let block = view.block(first / BLOCK_UNITS as u64);
        let in_block = (first % BLOCK_UNITS as u64) as usize;
        let (tiles, shift) = block.tiles_at(in_block);
        Run { first, len: block.n_elements() - in_block, tiles, shift }
    }

    /// What follows `n` weights, whole tiles with `used` escapes.
    fn after(self, n: usize, used: usize) -> Self {
        let tiles = self.tiles.after(n / TILE, used);
        Run { first: self.first + n as u64, len: self.len - n, tiles, ..self }
    }
}

impl Scratch<'_> {
    fn new(batch: usize) -> Self {
        Scratch {
            chains: vec![[0.0; TILE]; batch],
            sums: vec![Tree::default(); batch],
            bytes: vec![0; 2 * CHUNK],
            floats: Vec::new(),
            next: None,
        }
    }
}

struct Rows<'a> {
    weights: Weights<'a>,
    dtype: Dtype,
    bytes: usize,
    k: usize,
    x: &'a [f32],
    stride: usize,
    kernels: &'a Kernels,
}

impl<'a> Rows<'a> {
    /// Leaves the products of one row with all columns in `scratch.sums`.
    fn multiply(&self, row: usize, scratch: &mut Scratch<'a>) {
        for begin in (0..self.k).step_by(CHUNK) {
            let n = (self.k - begin).min(CHUNK);
            scratch.chains.fill([0.0; TILE]);
            let x = &self.x[begin..];
            let first = row as u64 * self.k as u64 + begin as u64;
            match (self.weights, self.kernels.dot_tbe) {
                (Weights::Encoded(view), Some(dot))
                    if self.dtype == Dtype::BF16 && scratch.chains.len() == 1 =>
                {
                    self.fused(&view, first, n, x, dot, scratch);
                }
                _ => self.chunk(first, n, x, scratch),
            }
            for (chains, sum) in scratch.chains.iter().zip(&mut scratch.sums) {
                sum.push(sum_of_chains(chains));
            }
        }
    }

    /// Products of the weights `first..first + n` with one column, straight from the encoded tiles;
    /// only a tile that crosses the end of a block or of the row is decoded on its own.
    fn fused(
        &self,
        view: &TbeView<'a>,
        first: u64,
        n: usize,
        x: &[f32],
        dot: DotTbe,
        scratch: &mut Scratch<'a>,
    ) {
        let chains = &mut scratch.chains[0];
        let mut at = 0;
        while at < n {
            let position = first + at as u64;
            // Rows of whole tiles follow one another: finding the place anew takes as long as
            // several tiles.
            let next = scratch.next.take().filter(|run| run.first == position && run.len > 0);
            let run = next.unwrap_or_else(|| Run::at(view, position));
            let whole = (n - at).min(run.len) / TILE * TILE;
            if whole == 0 {
                let mut tile = [0; 2 * TILE];
                let len = (n - at).min(TILE);
                view.decode_here(position, &mut tile[..2 * len], self.kernels);
                let x = &x[at..at + TILE];
                (self.kernels.dot_bf16)(&tile, x, TILE, std::slice::from_mut(chains));
                at += len;
            } else {
                let used = dot(&run.tiles, run.shift, &x[at..at + whole], chains);
                scratch.next = Some(run.after(whole, used));
                at += whole;
            }
        }
    }

    /// Products of the weights `first..first + n` with every column, from plain weights: those that
    /// there are, or a chunk decoded into a buffer.
    fn chunk(&self, first: u64, n: usize, x: &[f32], scratch: &mut Scratch<'_>) {
        let (bytes, padded) = (n * self.bytes, n.next_multiple_of(TILE) * self.bytes);
        let weights = match self.weights {
            Weights::Encoded(view) => {
                view.decode_here(first, &mut scratch.bytes[..bytes], self.kernels);
                scratch.bytes[bytes..padded].fill(0);
                &scratch.bytes[..padded]
            }
            Weights::Plain(plain) => {
                let begin = first as usize * self.bytes;
                &plain[begin..begin + bytes]
            }
        };
        if self.dtype == Dtype::BF16 {
            let (whole, rest) = weights.split_at(weights.len() / (2 * TILE) * (2 * TILE));
            (self.kernels.dot_bf16)(whole, x, self.stride, &mut scratch.chains);
            if !rest.is_empty() {
                let mut tile = [0; 2 * TILE];
                tile[..rest.len()].copy_from_slice(rest);
                let x = &x[whole.len() / 2..];
                (self.kernels.dot_bf16)(&tile, x, self.stride, &mut scratch.chains);
            }
        } else {
            let floats = &mut scratch.floats;
            floats.clear();
            floats.resize(n.next_multiple_of(TILE), 0.0);
            to_floats(self.dtype, weights, floats);
            for (column, chains) in scratch.chains.iter_mut().enumerate() {
                (self.kernels.dot_f32)(floats, &x[column * self.stride..], chains);
            }
        }
    }
}

/// Converts weights to f32, the elements of each tile in the order of the lanes.
fn to_floats(dtype: Dtype, weights: &[u8], out: &mut [f32]) {
    let mut put = |i: usize, value: f32| {
        if let Some(out) = out.get_mut(i / TILE * TILE + lane_of(i % TILE)) {
            *out = value;
        }
    };
    match dtype {
        Dtype::F8_E4M3 => {
            weights.iter().enumerate().for_each(|(i, &w)| put(i, e4m3_to_f32(w)));
        }
        // The upper byte of an f16.
        Dtype::F8_E5M2 => weights.iter().enumerate().for_each(|(i, &w)| {
            put(i, half::f16::from_bits(u16::from(w) << 8).to_f32());
        }),
        _ => weights.as_chunks::<2>().0.iter().enumerate().for_each(|(i, &w)| {
            put(i, half::f16::from_le_bytes(w).to_f32());
        }),
    }
}

/// F8_E4M3 as OCP defines it: no infinities, a NaN for all ones.
fn e4m3_to_f32(bits: u8) -> f32 {
    let sign = u32::from(bits & 0x80) << 24;
    let magnitude = match bits & 0x7f {
        0x7f => f32::NAN,
        small @ ..8 => f32::from(small) / 512.0,
        normal => f32::from_bits((u32::from(normal) << 20) + ((127 - 7) << 23)),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

/// The chains as a tree: each step adds the second half to the first.
fn sum_of_chains(chains: &Chains) -> f32 {
    let mut sums = *chains;
    let mut half = TILE / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// Sums numbers as a balanced tree, in the order in which they come: neighbours first.
#[derive(Clone)]
struct Tree {
    /// Sums of 2^i numbers, as the ones in the count of all numbers say, the largest first.
    stack: [f32; 52],
    depth: usize,
    count: u64,
}

impl Default for Tree {
    fn default() -> Self {
        Tree { stack: [0.0; 52], depth: 0, count: 0 }
    }
}

impl Tree {
    fn push(&mut self, mut sum: f32) {
        let mut count = self.count;
        while count & 1 == 1 {
            self.depth -= 1;
            sum += self.stack[self.depth];
            count >>= 1;
        }
        self.stack[self.depth] = sum;
        self.depth += 1;
        self.count += 1;
    }

    /// The sum; empties the tree.
    fn take(&mut self) -> f32 {
        let sum = self.stack[..self.depth].iter().rev().copied().reduce(|sum, s| s + sum);
        (self.depth, self.count) = (0, 0);
        sum.unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_balanced() {
        // Powers of two as depths: adding d and d gives d + 1 in the exponent, so the sum of n ones
        // is exact and its depth is what a recursive pairwise sum has.
        fn pairwise(values: &[f32]) -> f32 {
            if values.len() == 1 {
                return values[0];
            }
            let left = (values.len() / 2).next_power_of_two();
            let left =
                if left * 2 > values.len() && left == values.len() { left / 2 } else { left };
            pairwise(&values[..left]) + pairwise(&values[left..])
        }
        let values: Vec<f32> = (0..100).map(|i| 1.0 / (i as f32 + 3.7)).collect();
        for n in [1usize, 2, 4, 8, 16, 32, 64] {
            let mut tree = Tree::default();
            values[..n].iter().for_each(|&v| tree.push(v));
            assert_eq!(tree.take(), pairwise(&values[..n]));
            assert_eq!(tree.take(), 0.0);
        }
        let mut tree = Tree::default();
        values[..7].iter().for_each(|&v| tree.push(v));
        let v = &values;
        assert_eq!(tree.take(), ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + v[6]));
    }

    #[test]
    fn all_fp8_values() {
        for bits in 0..=255u8 {
            let sign = if bits >> 7 == 1 { -1.0 } else { 1.0 };
            let (e, m) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
            let expected = if bits & 0x7f == 0x7f {
                f64::NAN
            } else if e == 0 {
                sign * m / 8.0 * (-6f64).exp2()
            } else {
                sign * (1.0 + m / 8.0) * f64::from(e - 7).exp2()
            };
            let found = f64::from(e4m3_to_f32(bits));
            assert!(found == expected || found.is_nan() && expected.is_nan(), "{bits:#x}");
            assert_eq!(found.is_sign_negative(), bits >> 7 == 1);
        }
    }

    #[test]
    fn lanes_are_a_permutation() {
        let mut seen = [false; TILE];
        (0..TILE).for_each(|k| seen[lane_of(k)] = true);
        assert!(seen.iter().all(|&s| s));
    }
}
