//! Products of a matrix that stays encoded, and the same products of the plain matrix.
//!
//! Every product processes its rows in tiles of 64 weights, counted from the beginning of the row.
//! The product of weight k is added to one of 64 chains (`lane_of`). After 64 tiles the chains are
//! summed as a tree, and at the end these sums are summed as a tree. So the order of the additions
//! depends only on the length of the row: not on threads, batch, encoding, or the position in a
//! tile at which a row begins.

use std::cell::RefCell;
use std::ops::Range;

use bigsmall_format::internal::for_each_in_parallel;
use bigsmall_format::{BLOCK_UNITS, Backend, Dtype, Error, Result, Rule, TensorSpec};

use crate::backend;
use crate::kernels::{Chains, DotTbe, Kernels, Tiles, lane_of};
use crate::layout::{Fields, TILE};
use crate::view::{Matrix, View};

/// The number of weights of a row after which the 64 chains are summed: each chain has 64
/// additions.
const CHUNK: usize = 64 * TILE;
/// The number of weights in the rows that a thread processes at a time.
const PIECE: usize = 1 << 18;

impl View<'_> {
    /// y = W x: y\[b, m\] = sum over k of W\[m, k\] x\[b, k\], everything row-major, x and y in
    /// f32, for a matrix W of shape \[m, k\] and `batch` columns x. For a tensor with more
    /// dimensions, m is the first dimension and k the product of the others. A tensor with fewer
    /// dimensions is a single row.
    ///
    /// W is never decoded as a whole. A single column is multiplied directly from the bitmaps. For
    /// several columns, each run of 4096 weights is decoded once. The result has the same bits as
    /// the plain product ([`Plain::matmul`]), for any pool of threads. The bits for a column do not
    /// depend on the batch, and those for a row do not depend on the range of rows. Sums are f32
    /// with chains of at most 64 additions, so that
    /// |y - exact| <= (72 + ceil(log2(ceil(k / 4096)))) 2^-24 sum |w x|. Different backends may
    /// differ in the last bits.
    ///
    /// Uses the threads of the caller's pool. Memory: each thread keeps 8 KiB, and about 0.5 KiB
    /// for each column, for the next product. The calling thread also keeps a copy of x, and one of
    /// y if there are several columns or matrices.
    ///
    /// # Errors
    /// [`Rule::BufferLength`] if x is not `batch` times k long or y not `batch` times m.
    ///
    /// ```
    /// use bigsmall_tbe::{Dtype, Tbe, TensorSpec, View, Width, encode_tensor};
    ///
    /// // Rows of ones, of twos and of threes.
    /// let spec = TensorSpec::new("w", Dtype::BF16, &[3, 100])?;
    /// let bits = [0x3f80u16, 0x4000, 0x4040];
    /// let weights: Vec<u8> = bits.iter().flat_map(|b| [b.to_le_bytes(); 100]).flatten().collect();
    /// let encoded = encode_tensor(&Tbe::new(Width::Three), &spec, &weights)?;
    ///
    /// let view = View::new(&encoded)?;
    /// let x = [0.5; 100];
    /// let mut y = [0.0; 3];
    /// view.matmul(&x, 1, &mut y)?;
    /// assert_eq!(y, [50.0, 100.0, 150.0]);
    /// let mut last = [0.0; 2];
    /// view.matmul_rows(1..3, &x, 1, &mut last)?;
    /// assert_eq!(last, y[1..]);
    /// # Ok::<(), bigsmall_tbe::Error>(())
    /// ```
    pub fn matmul(&self, x: &[f32], batch: usize, y: &mut [f32]) -> Result<()> {
        multiply(&[Rows::of_view(*self, None)?], x, batch, &mut [y])
    }

    /// The same for some rows of W: y has `rows.len()` values for each column.
    ///
    /// # Errors
    /// Those of [`matmul`](Self::matmul); [`Rule::RangeOutOfBounds`] for rows that W does not have.
    pub fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &[f32],
        batch: usize,
        y: &mut [f32],
    ) -> Result<()> {
        multiply(&[Rows::of_view(*self, Some(rows))?], x, batch, &mut [y])
    }
}

impl Matrix {
    /// y = W x, as [`View::matmul`].
    ///
    /// # Errors
    /// Those of [`View::matmul`].
    ///
    /// ```
    /// use bigsmall_tbe::{Dtype, Matrix, Tbe, TensorSpec, encode_tensor};
    ///
    /// let spec = TensorSpec::new("w", Dtype::BF16, &[2, 2])?;
    /// let identity = vec![0x80, 0x3f, 0, 0, 0, 0, 0x80, 0x3f];
    /// let matrix = Matrix::new(encode_tensor(&Tbe::default(), &spec, &identity)?)?;
    /// let mut y = [0.0; 2];
    /// matrix.matmul(&[3.0, 4.0], 1, &mut y)?;
    /// assert_eq!(y, [3.0, 4.0]);
    /// # Ok::<(), bigsmall_tbe::Error>(())
    /// ```
    pub fn matmul(&self, x: &[f32], batch: usize, y: &mut [f32]) -> Result<()> {
        self.view().matmul(x, batch, y)
    }

    /// The same for some rows of W, as [`View::matmul_rows`].
    ///
    /// # Errors
    /// Those of [`View::matmul_rows`].
    pub fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &[f32],
        batch: usize,
        y: &mut [f32],
    ) -> Result<()> {
        self.view().matmul_rows(rows, x, batch, y)
    }
}

/// The products of several matrices with the same x, such as the projections q, k and v of a layer.
/// `y[i]` is the product of `matrices[i]`, with the same bits as from [`View::matmul`]. All
/// products share the threads, which is faster than one call per matrix for small matrices.
///
/// # Errors
/// Those of [`View::matmul`], for the first matrix that does not fit; [`Rule::BufferLength`] if
/// there are not as many y as matrices.
///
/// ```
/// use bigsmall_tbe::{Dtype, Matrix, Tbe, TensorSpec, encode_tensor, matmul_many};
///
/// let matrix = |name, bits: u16| {
///     let spec = TensorSpec::new(name, Dtype::BF16, &[2, 100])?;
///     let weights: Vec<u8> = [bits.to_le_bytes(); 200].concat();
///     Matrix::new(encode_tensor(&Tbe::default(), &spec, &weights)?)
/// };
/// let (ones, twos) = (matrix("ones", 0x3f80)?, matrix("twos", 0x4000)?);
/// let (mut a, mut b) = ([0.0; 2], [0.0; 2]);
/// matmul_many(&[ones.view(), twos.view()], &[0.5; 100], 1, &mut [&mut a, &mut b])?;
/// assert_eq!((a, b), ([50.0; 2], [100.0; 2]));
/// # Ok::<(), bigsmall_tbe::Error>(())
/// ```
pub fn matmul_many(
    matrices: &[View<'_>],
    x: &[f32],
    batch: usize,
    y: &mut [&mut [f32]],
) -> Result<()> {
    let rows = matrices.iter().map(|view| Rows::of_view(*view, None));
    multiply(&rows.collect::<Result<Vec<_>>>()?, x, batch, y)
}

/// A matrix that is not encoded, in BF16, F16, F8_E4M3 or F8_E5M2: for weights that do not shrink,
/// and as a reference.
#[derive(Clone, Copy)]
pub struct Plain<'a> {
    spec: &'a TensorSpec,
    bytes: &'a [u8],
    kernels: &'static Kernels,
}

impl<'a> Plain<'a> {
    /// The matrix `spec`, whose original bytes are `bytes`.
    ///
    /// # Errors
    /// [`Rule::EncodingRefuses`] for another dtype, [`Rule::BufferLength`] for another length.
    pub fn new(spec: &'a TensorSpec, bytes: &'a [u8]) -> Result<Plain<'a>> {
        if Fields::of(spec.dtype()).is_none() {
            return Err(Error::new(Rule::EncodingRefuses)
                .in_tensor(spec.name())
                .expected("a product with BF16, F16, F8_E4M3 or F8_E5M2")
                .found(spec.dtype()));
        }
        expect(spec, "w", bytes.len(), Some(spec.byte_len() as usize))?;
        Ok(Plain { spec, bytes, kernels: backend::best() })
    }

    /// The same with the kernels of `backend`.
    ///
    /// # Errors
    /// [`Rule::BackendMissing`] if this machine cannot run them.
    pub fn with_backend(self, backend: Backend) -> Result<Plain<'a>> {
        Ok(Plain { kernels: backend::kernels(backend)?, ..self })
    }

    /// y = W x, bit for bit as [`View::matmul`].
    ///
    /// # Errors
    /// Those of [`View::matmul`].
    pub fn matmul(&self, x: &[f32], batch: usize, y: &mut [f32]) -> Result<()> {
        multiply(&[Rows::of_plain(*self, None)?], x, batch, &mut [y])
    }

    /// The same for some rows of W, as [`View::matmul_rows`].
    ///
    /// # Errors
    /// Those of [`View::matmul_rows`].
    pub fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &[f32],
        batch: usize,
        y: &mut [f32],
    ) -> Result<()> {
        multiply(&[Rows::of_plain(*self, Some(rows))?], x, batch, &mut [y])
    }
}

impl std::fmt::Debug for Plain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plain")
            .field("spec", self.spec)
            .field("backend", &self.kernels.backend)
            .finish_non_exhaustive()
    }
}

/// Rows of one matrix that are to be multiplied.
#[derive(Clone)]
struct Rows<'a> {
    weights: Weights<'a>,
    spec: &'a TensorSpec,
    rows: Range<usize>,
    k: usize,
    kernels: &'static Kernels,
}

#[derive(Clone, Copy)]
enum Weights<'a> {
    Encoded(View<'a>),
    Plain(&'a [u8]),
}

impl<'a> Rows<'a> {
    fn of_view(view: View<'a>, rows: Option<Range<usize>>) -> Result<Self> {
        Rows::new(Weights::Encoded(view), view.spec(), view.kernels(), rows)
    }

    fn of_plain(plain: Plain<'a>, rows: Option<Range<usize>>) -> Result<Self> {
        Rows::new(Weights::Plain(plain.bytes), plain.spec, plain.kernels, rows)
    }

    fn new(
        weights: Weights<'a>,
        spec: &'a TensorSpec,
        kernels: &'static Kernels,
        rows: Option<Range<usize>>,
    ) -> Result<Self> {
        let (m, others) = match spec.shape() {
            [m, others @ ..] if !others.is_empty() => (*m, others),
            one_row => (1, one_row),
        };
        // The product of the whole shape does not overflow. If a dimension is zero, the product of
        // the others may.
        let k = others.iter().fold(1, |k: u64, &n| k.saturating_mul(n));
        let [m, k] = [m, k].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let rows = rows.unwrap_or(0..m);
        if rows.start > rows.end || rows.end > m {
            return Err(Error::new(Rule::RangeOutOfBounds)
                .in_tensor(spec.name())
                .expected(format!("rows within 0..{m}"))
                .found(format!("{rows:?}")));
        }
        Ok(Rows { weights, spec, rows, k, kernels })
    }
}

/// The products of `matrices` with the columns x: one y for each.
fn multiply(matrices: &[Rows<'_>], x: &[f32], batch: usize, y: &mut [&mut [f32]]) -> Result<()> {
    if matrices.len() != y.len() {
        return Err(Error::new(Rule::BufferLength)
            .expected(format!("{} y, one for each matrix", matrices.len()))
            .found(y.len()));
    }
    for (w, y) in matrices.iter().zip(&*y) {
        expect(w.spec, "x", x.len(), w.k.checked_mul(batch))?;
        expect(w.spec, "y", y.len(), w.rows.len().checked_mul(batch))?;
    }
    // All matrices have the same k, since they share x.
    let k = matrices.first().map_or(0, |w| w.k);
    if batch == 0 || k == 0 || matrices.iter().all(|w| w.rows.is_empty()) {
        y.iter_mut().for_each(|y| y.fill(0.0));
        return Ok(());
    }
    let n_rows: usize = matrices.iter().map(|w| w.rows.len()).sum();
    let mut shared = Kept::take(&SHARED);
    let Shared { lanes, values } = &mut shared.value;
    in_lane_order(x, k, lanes);
    let product = Product { matrices, x: lanes, batch, stride: k.next_multiple_of(TILE) };
    if let ([y], 1) = (&mut *y, batch) {
        return product.run(n_rows, y);
    }
    // Row by row, with all columns of each row. So a run of rows is one slice, also across
    // matrices.
    values.clear();
    values.resize(n_rows * batch, 0.0);
    product.run(n_rows, values)?;
    let mut rows = values.chunks_exact(batch);
    for (w, y) in matrices.iter().zip(y) {
        for (i, values) in rows.by_ref().take(w.rows.len()).enumerate() {
            for (column, value) in values.iter().enumerate() {
                y[column * w.rows.len() + i] = *value;
            }
        }
    }
    Ok(())
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

/// Copies every column of x, with the elements of each tile in the order of the chains, and zeros
/// after the last element.
fn in_lane_order(x: &[f32], k: usize, out: &mut Vec<f32>) {
    let stride = k.next_multiple_of(TILE);
    out.clear();
    out.resize(x.len() / k * stride, 0.0);
    for (x, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(stride)) {
        for (x, out) in x.chunks(TILE).zip(out.as_chunks_mut::<TILE>().0) {
            for (i, &x) in x.iter().enumerate() {
                out[lane_of(i)] = x;
            }
        }
    }
}

/// Memory of a product that all threads share.
#[derive(Default)]
struct Shared {
    /// x in the order of the lanes.
    lanes: Vec<f32>,
    /// The products, row by row.
    values: Vec<f32>,
}

/// Memory of one thread of a product.
#[derive(Default)]
struct Scratch {
    chains: Vec<Chains>,
    sums: Vec<Tree>,
    /// A chunk of decoded weights.
    bytes: Vec<u8>,
    /// The same as f32 in the order of the lanes.
    floats: Vec<f32>,
}

thread_local! {
    static SHARED: RefCell<Shared> = RefCell::default();
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Memory that this thread keeps from one product to the next. If a product begins while another
/// one of this thread waits, it allocates its own memory.
struct Kept<T: Default + 'static> {
    value: T,
    home: &'static std::thread::LocalKey<RefCell<T>>,
}

impl<T: Default> Kept<T> {
    fn take(home: &'static std::thread::LocalKey<RefCell<T>>) -> Self {
        Kept { value: home.take(), home }
    }
}

impl<T: Default> Drop for Kept<T> {
    fn drop(&mut self) {
        self.home.set(std::mem::take(&mut self.value));
    }
}

/// Encoded weights up to the end of their block.
struct Run<'a> {
    /// The index of the first weight in the matrix.
    first: u64,
    /// The number of weights.
    len: usize,
    tiles: Tiles<'a>,
    /// The position of the first weight in its tile.
    shift: u32,
}

impl<'a> Run<'a> {
    fn at(view: &View<'a>, first: u64) -> Self {
        let block = view.block(first / BLOCK_UNITS as u64);
        let in_block = (first % BLOCK_UNITS as u64) as usize;
        let (tiles, shift) = block.tiles_at(in_block);
        Run { first, len: block.n_elements() - in_block, tiles, shift }
    }

    /// The weights after the first `n`, which are whole tiles with `used` escapes.
    fn after(self, n: usize, used: usize) -> Self {
        let tiles = self.tiles.after(n / TILE, used);
        Run { first: self.first + n as u64, len: self.len - n, tiles, ..self }
    }
}

/// Products of some matrices with the same columns.
struct Product<'a> {
    matrices: &'a [Rows<'a>],
    x: &'a [f32],
    batch: usize,
    /// The distance between columns of x.
    stride: usize,
}

impl<'a> Product<'a> {
    /// Writes all products, `batch` of each row, row by row.
    fn run(&self, n_rows: usize, out: &mut [f32]) -> Result<()> {
        let k = self.matrices.first().map_or(1, |w| w.k);
        let at_a_time = (PIECE / k).clamp(1, n_rows);
        for_each_in_parallel(
            out.chunks_mut(at_a_time * self.batch).enumerate(),
            || {
                let mut kept = Kept::take(&SCRATCH);
                kept.value.chains.resize(self.batch, [0.0; TILE]);
                // Cleared, since an earlier product that panicked may have left values.
                kept.value.sums.clear();
                kept.value.sums.resize(self.batch, Tree::default());
                kept.value.bytes.resize(2 * CHUNK, 0);
                kept
            },
            |scratch, (piece, out)| {
                self.run_piece(piece * at_a_time, out, &mut scratch.value);
                Ok(())
            },
        )
    }

    /// The rows from `first` on, counted through all matrices.
    fn run_piece(&self, first: usize, out: &mut [f32], scratch: &mut Scratch) {
        let mut rows = out.chunks_exact_mut(self.batch);
        let mut skip = first;
        for w in self.matrices {
            let skipped = skip.min(w.rows.len());
            skip -= skipped;
            // The weights after the last tile that was multiplied in encoded form.
            let mut next = None;
            for (row, out) in (w.rows.start + skipped..w.rows.end).zip(rows.by_ref()) {
                self.run_row(w, row, &mut next, scratch);
                for (out, sum) in out.iter_mut().zip(&mut scratch.sums) {
                    *out = sum.take();
                }
            }
        }
    }

    /// Writes the products of one row with all columns to `scratch.sums`.
    fn run_row(&self, w: &Rows<'a>, row: usize, next: &mut Option<Run<'a>>, scratch: &mut Scratch) {
        for begin in (0..w.k).step_by(CHUNK) {
            let n = (w.k - begin).min(CHUNK);
            scratch.chains.fill([0.0; TILE]);
            let x = &self.x[begin..];
            let first = row as u64 * w.k as u64 + begin as u64;
            match (&w.weights, w.kernels.dot_tbe, &mut scratch.chains[..]) {
                (Weights::Encoded(view), Some(dot), [chains]) if view.dtype() == Dtype::BF16 => {
                    fused(view, first, n, x, dot, next, chains);
                }
                _ => self.chunk(w, first, n, x, scratch),
            }
            for (chains, sum) in scratch.chains.iter().zip(&mut scratch.sums) {
                sum.push(sum_of_chains(chains));
            }
        }
    }

    /// Products of the weights `first..first + n` with every column, from plain weights: those of a
    /// plain matrix, or a chunk decoded into a buffer.
    fn chunk(&self, w: &Rows<'_>, first: u64, n: usize, x: &[f32], scratch: &mut Scratch) {
        let unit = w.spec.dtype().unit_bytes();
        let (bytes, padded) = (n * unit, n.next_multiple_of(TILE) * unit);
        let weights = match w.weights {
            Weights::Encoded(view) => {
                view.decode_here(first, &mut scratch.bytes[..bytes], w.kernels);
                scratch.bytes[bytes..padded].fill(0);
                &scratch.bytes[..padded]
            }
            Weights::Plain(plain) => {
                let begin = first as usize * unit;
                &plain[begin..begin + bytes]
            }
        };
        if w.spec.dtype() == Dtype::BF16 {
            let (whole, rest) = weights.split_at(weights.len() / (2 * TILE) * (2 * TILE));
            (w.kernels.dot_bf16)(whole, x, self.stride, &mut scratch.chains);
            if !rest.is_empty() {
                let mut tile = [0; 2 * TILE];
                tile[..rest.len()].copy_from_slice(rest);
                let x = &x[whole.len() / 2..];
                (w.kernels.dot_bf16)(&tile, x, self.stride, &mut scratch.chains);
            }
        } else {
            let floats = &mut scratch.floats;
            floats.clear();
            floats.resize(n.next_multiple_of(TILE), 0.0);
            to_floats(w.spec.dtype(), weights, floats);
            for (column, chains) in scratch.chains.iter_mut().enumerate() {
                (w.kernels.dot_f32)(floats, &x[column * self.stride..], chains);
            }
        }
    }
}

/// Products of the weights `first..first + n` with one column, directly from the encoded tiles.
/// Only a tile that crosses the end of a block or of the row is decoded separately.
fn fused<'a>(
    view: &View<'a>,
    first: u64,
    n: usize,
    x: &[f32],
    dot: DotTbe,
    next: &mut Option<Run<'a>>,
    chains: &mut Chains,
) {
    let mut at = 0;
    while at < n {
        let position = first + at as u64;
        // Rows of whole tiles follow each other, so reuse the position: finding it again would take
        // as long as several tiles.
        let run = next.take().filter(|run| run.first == position && run.len > 0);
        let run = run.unwrap_or_else(|| Run::at(view, position));
        let whole = (n - at).min(run.len) / TILE * TILE;
        if whole == 0 {
            let mut tile = [0; 2 * TILE];
            let len = (n - at).min(TILE);
            view.decode_here(position, &mut tile[..2 * len], view.kernels());
            let x = &x[at..at + TILE];
            (view.kernels().dot_bf16)(&tile, x, TILE, std::slice::from_mut(chains));
            at += len;
        } else {
            let used = dot(&run.tiles, run.shift, &x[at..at + whole], chains);
            *next = Some(run.after(whole, used));
            at += whole;
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
        Dtype::F8_E5M2 => {
            weights.iter().enumerate().for_each(|(i, &w)| put(i, f16_to_f32(u16::from(w) << 8)));
        }
        _ => weights.as_chunks::<2>().0.iter().enumerate().for_each(|(i, &w)| {
            put(i, f16_to_f32(u16::from_le_bytes(w)));
        }),
    }
}

/// The exact value of an f16. It has no branches, so that the compiler can vectorise loops over it.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // The exponent is too small by the difference of the biases, 127 - 15. Subnormal numbers need
    // the multiplication, which is exact.
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 127 - 15) << 23)).to_bits();
    // Infinity and NaN. A NaN becomes quiet.
    let quiet = if bits & 0x3ff == 0 { 0 } else { 1 << 22 };
    let special = magnitude | 0xff << 23 | quiet;
    f32::from_bits(sign | if bits & 0x7c00 == 0x7c00 { special } else { finite })
}

/// F8_E4M3 as OCP defines it: no infinities, and all ones is NaN.
fn e4m3_to_f32(bits: u8) -> f32 {
    let sign = u32::from(bits & 0x80) << 24;
    let magnitude = match bits & 0x7f {
        0x7f => f32::NAN,
        small @ ..8 => f32::from(small) / 512.0,
        normal => f32::from_bits((u32::from(normal) << 20) + ((127 - 7) << 23)),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

/// Sums the chains as a tree: each step adds the second half to the first.
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

/// Sums numbers as a balanced tree, in the order of their arrival, neighbours first.
#[derive(Clone)]
struct Tree {
    /// Sums of 2^i numbers, one for each 1 bit in the count of all numbers, the largest first.
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

    /// Returns the sum and empties the tree.
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
    fn all_f16_values() {
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits).to_f32();
            assert_eq!(f16_to_f32(bits).to_bits(), expected.to_bits(), "{bits:#x}");
        }
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
