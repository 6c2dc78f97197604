//! Speed of products with the matrices of a file, in comparison with plain weights and with the
//! crate `gemm`.

use std::time::Instant;

#[cfg(feature = "gemm")]
use bigsmall_format::internal::pool_size;
use bigsmall_format::{Backend, Dtype, Raw, TensorEncoding};
use bigsmall_io::{Progress, Result};
use bigsmall_tbe::{Form, Resident};

use crate::passes::{Copy, PASSES, rate, stop};

/// Products of every matrix in each pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Products {
    /// The form in memory in which most weights are kept.
    pub(crate) form: Form,
    /// Rate of products with one vector and matrices in this form, in 10^9 bytes of original data
    /// per second.
    pub(crate) gbps: f64,
    /// The same with plain matrices and the same kernels, in turn with the others.
    pub(crate) plain_gbps: f64,
    /// Products with several columns at once, if they were asked for.
    pub(crate) batch: Option<Batch>,
}

/// Rates of products with several columns, in 10^9 multiplications and additions per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Batch {
    pub(crate) columns: usize,
    pub(crate) gflops: f64,
    pub(crate) plain_gflops: f64,
    /// Of the crate `gemm` with the same weights in f32, if it is built in and weights are BF16.
    pub(crate) gemm_gflops: Option<f64>,
}

impl Products {
    /// The rate with compressed matrices / the rate with plain ones.
    pub(crate) fn vs_plain(&self) -> f64 {
        self.gbps / self.plain_gbps
    }
}

/// The most weights to use of the matrices for products with several columns.
const OF_BATCH: u64 = 32 << 20;

/// The most matrices: those of a file that has only small ones fit the caches anyway.
const MATRICES: usize = 2048;

/// A matrix in the form that this machine chooses, and plain.
struct Pair {
    chosen: Resident,
    plain: Resident,
}

impl Pair {
    fn weights(&self) -> u64 {
        self.plain.spec().n_elements()
    }
}

/// Products of all matrices in a dtype that is multiplied; `None` if there are none.
pub(crate) fn products(
    copies: &[Copy<'_>],
    coder: &dyn TensorEncoding,
    backend: Backend,
    batch: usize,
    progress: &Progress,
) -> Result<Option<Products>> {
    let mut pairs = Vec::new();
    for Copy { encoded, .. } in copies {
        let spec = encoded.spec();
        let multiplied =
            matches!(spec.dtype(), Dtype::BF16 | Dtype::F16 | Dtype::F8_E4M3 | Dtype::F8_E5M2);
        if !multiplied || spec.shape().len() != 2 || spec.n_elements() == 0 {
            continue;
        }
        if pairs.len() == MATRICES {
            break;
        }
        stop(progress)?;
        let coder = if encoded.encoding() == coder.id() { coder } else { &Raw };
        let chosen = Resident::for_backend(encoded, coder, backend)?;
        let plain = Resident::with_form(encoded, coder, Form::Plain)?.with_backend(backend)?;
        pairs.push(Pair { chosen, plain });
    }
    let of_form = |form: Form| {
        let weights = pairs.iter().filter(|p| p.chosen.form() == form).map(Pair::weights);
        (weights.sum::<u64>(), form)
    };
    let most = Form::ALL.iter().map(|f| of_form(*f)).max_by_key(|(weights, _)| *weights);
    let Some((1.., form)) = most else { return Ok(None) };
    let bytes = pairs.iter().map(|p| p.plain.spec().byte_len()).sum();
    let [mut chosen, mut plain] = in_turn(
        &pairs,
        1,
        progress,
        &[&|p, x, y| p.chosen.matmul(x, 1, y), &|p, x, y| p.plain.matmul(x, 1, y)],
    )?;
    let of_batch = if batch == 0 { None } else { Some(several(&mut pairs, batch, progress)?) };
    Ok(Some(Products {
        form,
        gbps: rate(bytes, &mut chosen),
        plain_gbps: rate(bytes, &mut plain),
        batch: of_batch,
    }))
}

/// Products with several columns, of as many matrices as [`OF_BATCH`] allows, at least one.
fn several(pairs: &mut Vec<Pair>, batch: usize, progress: &Progress) -> Result<Batch> {
    let mut weights = 0;
    pairs.retain(|pair| {
        let first = weights == 0;
        weights += pair.weights();
        first || weights <= OF_BATCH
    });
    let weights: u64 = pairs.iter().map(Pair::weights).sum();
    let [mut chosen, mut plain] = in_turn(
        pairs,
        batch,
        progress,
        &[&|p, x, y| p.chosen.matmul(x, batch, y), &|p, x, y| p.plain.matmul(x, batch, y)],
    )?;
    let operations = 2 * weights * batch as u64;
    Ok(Batch {
        columns: batch,
        gflops: rate(operations, &mut chosen),
        plain_gflops: rate(operations, &mut plain),
        gemm_gflops: gemm(pairs, batch, progress)?.map(|mut times| rate(operations, &mut times)),
    })
}

type Product<'a> = &'a dyn Fn(&Pair, &[f32], &mut [f32]) -> bigsmall_format::Result<()>;

/// Seconds of passes over all matrices, each kind of product in turn.
fn in_turn<const N: usize>(
    pairs: &[Pair],
    batch: usize,
    progress: &Progress,
    products: &[Product<'_>; N],
) -> Result<[Vec<f64>; N]> {
    let most = |of: fn(&Resident) -> usize| pairs.iter().map(|p| of(&p.plain)).max().unwrap_or(0);
    let x = columns(most(Resident::cols) * batch);
    let mut y = vec![0.0; most(Resident::rows) * batch];
    let mut times = [const { Vec::new() }; N];
    for pass in 0..=PASSES {
        stop(progress)?;
        for (product, times) in products.iter().zip(&mut times) {
            let begin = Instant::now();
            for pair in pairs {
                let (rows, cols) = (pair.plain.rows(), pair.plain.cols());
                product(pair, &x[..cols * batch], &mut y[..rows * batch])?;
            }
            // The first pass warms up.
            if pass > 0 {
                times.push(begin.elapsed().as_secs_f64());
            }
        }
    }
    Ok(times)
}

/// Any values: they do not change the kernels' speed.
fn columns(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i % 17) as f32 - 8.0).collect()
}

/// Seconds of passes with the crate `gemm`, in f32, on as many threads.
#[cfg(feature = "gemm")]
fn gemm(pairs: &[Pair], batch: usize, progress: &Progress) -> Result<Option<Vec<f64>>> {
    if pairs.iter().any(|p| p.plain.spec().dtype() != Dtype::BF16) {
        return Ok(None);
    }
    let mut matrices = Vec::new();
    for pair in pairs {
        let rows = pair.plain.rows();
        let mut bytes = vec![0; pair.plain.spec().byte_len() as usize];
        pair.plain.decode_rows(0..rows, &mut bytes)?;
        let weights = bytes.as_chunks::<2>().0.iter();
        let weights = weights.map(|w| f32::from_bits(u32::from(u16::from_le_bytes(*w)) << 16));
        matrices.push((rows, pair.plain.cols(), weights.collect::<Vec<f32>>()));
    }
    let most = |of: fn(&(usize, usize, Vec<f32>)) -> usize| matrices.iter().map(of).max();
    let x = columns(most(|m| m.1).unwrap_or(0) * batch);
    let mut y = vec![0.0; most(|m| m.0).unwrap_or(0) * batch];
    let mut times = Vec::new();
    for pass in 0..=PASSES {
        stop(progress)?;
        let begin = Instant::now();
        for (rows, cols, weights) in &matrices {
            crate::arch::gemm([*rows, *cols, batch], weights, &x, &mut y, pool_size());
        }
        if pass > 0 {
            times.push(begin.elapsed().as_secs_f64());
        }
    }
    Ok(Some(times))
}

#[cfg(not(feature = "gemm"))]
fn gemm(_: &[Pair], _: usize, _: &Progress) -> Result<Option<Vec<f64>>> {
    Ok(None)
}
