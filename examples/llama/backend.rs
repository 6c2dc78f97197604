//! What a model computes with: the trait that the CPU and the GPU implement.

use bigsmall_format::EncodedTensor;

use crate::Result;
use crate::config::{Heads, MATRICES};
use crate::source::Source;

/// One value per matrix of a layer, in the order of [`MATRICES`].
pub(crate) type Matrices<T> = [T; MATRICES.len()];

/// Makes one value per matrix of a layer.
pub(crate) fn each_matrix<T>(make: impl FnMut(usize) -> Result<T>) -> Result<Matrices<T>> {
    let made = (0..MATRICES.len()).map(make).collect::<Result<Vec<T>>>()?;
    made.try_into().map_err(|_| "a layer has seven matrices".into())
}

/// A place where a model runs. It holds matrices and vectors, and runs the operations of
/// [`Operations`] on them. A vector holds several columns, one after the other.
pub(crate) trait Backend {
    const NAME: &'static str;
    /// The number of tokens of a prompt that are computed at once.
    const BATCH: usize;
    /// Whether the commands of a step are recorded while the step before runs.
    const RECORDS_AHEAD: bool;
    /// The form of plain weights.
    const PLAIN: Self::Form;

    /// How a matrix is kept.
    type Form: Copy + std::fmt::Debug;
    /// A matrix that is multiplied.
    type Matrix;
    /// f32 values.
    type Vector;
    /// The numbers of tokens.
    type Ids;
    /// Recorded operations.
    type Commands;
    /// A matrix that is streamed, at rest.
    type Packed;
    /// A streamed layer on its way.
    type Sent;
    /// Memory in which a streamed matrix is decoded.
    type Scratch;
    type Operations<'a>: Operations<Backend = Self>
    where
        Self: 'a;

    /// A description of the device, for the user.
    fn description(&self) -> String;

    /// Loads a matrix. `None`: the form that suits the device.
    fn matrix(&self, tensor: &EncodedTensor, form: Option<Self::Form>) -> Result<Self::Matrix>;
    fn matrix_bytes(matrix: &Self::Matrix) -> u64;
    fn vector(&self, n: usize) -> Result<Self::Vector>;
    fn vector_bytes(vector: &Self::Vector) -> u64;
    fn write(&self, vector: &Self::Vector, values: &[f32]) -> Result<()>;
    fn read(&self, vector: &Self::Vector, values: &mut [f32]) -> Result<()>;
    fn ids(&self, n: usize) -> Result<Self::Ids>;
    fn write_ids(&self, ids: &Self::Ids, values: &[u32]) -> Result<()>;

    fn record(
        &self,
        record: impl FnOnce(&mut Self::Operations<'_>) -> Result<()>,
    ) -> Result<Self::Commands>;
    /// Runs commands, calls `meanwhile`, and reads the first `ids.len()` tokens.
    fn run<M>(
        &self,
        commands: Self::Commands,
        from: &Self::Ids,
        ids: &mut [u32],
        meanwhile: impl FnOnce() -> Result<M>,
    ) -> Result<M>;

    /// Takes a matrix as it is kept between the tokens for which it is sent.
    fn pack(&self, source: &Source, name: &str, shape: [usize; 2]) -> Result<Self::Packed>;
    fn packed_tensor(packed: &Self::Packed) -> Result<EncodedTensor>;
    /// Bytes of the memory that is limited which a sent matrix takes.
    fn packed_bytes(packed: &Self::Packed) -> u64;
    /// A matrix that [`Operations::unpack`] writes.
    fn place(&self, name: &str, shape: [usize; 2]) -> Result<Self::Matrix>;
    /// Memory for decoding matrices of at most the given number of bytes.
    fn scratch(&self, bytes: u64) -> Result<(Self::Scratch, u64)>;
    /// Finds damage that only decoding can detect.
    fn check(&self, packed: &Self::Packed, scratch: &Self::Scratch) -> Result<()>;
    /// Begins to send a layer.
    fn send(&self, layer: &Matrices<Self::Packed>) -> Result<Self::Sent>;
}

/// The operations of a model. `rows` is the number of columns of a vector: one for each token. No
/// operation takes the same vector twice.
pub(crate) trait Operations {
    type Backend: Backend;

    /// Rows of a matrix, whose numbers are `ids`.
    fn embed(
        &mut self,
        matrix: &Matrix<Self>,
        ids: &Ids<Self>,
        rows: usize,
        y: &Vector<Self>,
    ) -> Result<()>;
    /// The products of some matrices with the same x.
    fn matmul<const N: usize>(
        &mut self,
        matrices: [&Matrix<Self>; N],
        x: &Vector<Self>,
        rows: usize,
        y: [&Vector<Self>; N],
    ) -> Result<()>;
    /// `y = x / sqrt(mean of x^2 + epsilon) * weight` for vectors of `n` values.
    fn rms_norm(
        &mut self,
        x: &Vector<Self>,
        weight: &Vector<Self>,
        epsilon: f32,
        rows: usize,
        n: usize,
        y: &Vector<Self>,
    ) -> Result<()>;
    /// Rotates the values j and j + dim / 2 of every head by the angle of (position, j). Its cosine
    /// and sine are at `angles[2 * (position * dim / 2 + j)]`.
    fn rope(
        &mut self,
        x: &Vector<Self>,
        angles: &Vector<Self>,
        heads: usize,
        dim: usize,
        position: usize,
        rows: usize,
    ) -> Result<()>;
    /// Copies `n` values.
    fn copy(
        &mut self,
        from: &Vector<Self>,
        at: usize,
        to: &Vector<Self>,
        to_at: usize,
        n: usize,
    ) -> Result<()>;
    /// Causal attention: token `position + i` uses the keys and values of all positions up to its
    /// own.
    #[allow(clippy::too_many_arguments)] // the operands of the formula
    fn attention(
        &mut self,
        queries: &Vector<Self>,
        keys: &Vector<Self>,
        values: &Vector<Self>,
        heads: Heads,
        position: usize,
        rows: usize,
        y: &Vector<Self>,
    ) -> Result<()>;
    /// `gate = gate / (1 + exp(-gate)) * up`.
    fn silu_mul(&mut self, gate: &Vector<Self>, up: &Vector<Self>, n: usize) -> Result<()>;
    /// `x += y`.
    fn add(&mut self, x: &Vector<Self>, y: &Vector<Self>, n: usize) -> Result<()>;
    /// The number of the largest of `n` values, the lowest one if several are equal.
    fn argmax(&mut self, x: &Vector<Self>, n: usize, to: &Ids<Self>) -> Result<()>;
    /// Decodes a sent layer.
    fn unpack(
        &mut self,
        sent: &<Self::Backend as Backend>::Sent,
        scratch: &<Self::Backend as Backend>::Scratch,
        place: &Matrices<Matrix<Self>>,
    ) -> Result<()>;
}

type Matrix<O> = <<O as Operations>::Backend as Backend>::Matrix;
type Vector<O> = <<O as Operations>::Backend as Backend>::Vector;
type Ids<O> = <<O as Operations>::Backend as Backend>::Ids;
