//! Decodes rows of a matrix to f32 or bf16, and packs bf16 into plain rows.

use crate::device::check_size;
use crate::dispatch::{Params, fold, groups};
use crate::error::Result;
use crate::kernels::Kernel;
use crate::matrix::{Buffers, Matrix, Shard};
use crate::recorder::Recorder;
use crate::weights::WgpuWeights;

impl Recorder<'_> {
    /// Records the decoding of the rows `ids` of the matrix to f32 in `y`, as for an embedding.
    /// `ids` holds `n` row numbers as u32. Nothing is written for a number beyond the last row.
    ///
    /// # Errors
    /// Those of [`matmul`](Self::matmul).
    pub fn gather(
        &mut self,
        weights: &WgpuWeights,
        ids: &wgpu::Buffer,
        n: usize,
        y: &wgpu::Buffer,
    ) -> Result<()> {
        let device = &self.gpu.device;
        device.check_owner(weights.device, weights.name())?;
        let matrix = &weights.matrix;
        device.check_bound(ids, 4 * n as u64)?;
        device.check_bound(y, 4 * n as u64 * matrix.shape.cols as u64)?;
        if n == 0 {
            return Ok(());
        }
        let grid = fold(groups(n as u64 * matrix.shape.segments as u64), device)?;
        for shard in &matrix.shards {
            let params = Params::new(matrix, shard).batch(n, 0);
            let bindings: Vec<_> =
                [(1, ids), (2, y)].into_iter().chain((3..).zip(shard.bindings())).collect();
            self.dispatch(Kernel::Gather { form: matrix.form }, &params, &bindings, grid)?;
        }
        Ok(())
    }

    /// Records the decoding of the matrix to bf16 in `dst`, row-major. Rows with an odd number of
    /// columns are padded with one zero, so that each row begins at a multiple of 4 bytes.
    ///
    /// # Errors
    /// Those of [`matmul`](Self::matmul).
    pub fn decompress(&mut self, weights: &WgpuWeights, dst: &wgpu::Buffer) -> Result<()> {
        let device = &self.gpu.device;
        device.check_owner(weights.device, weights.name())?;
        let row_words = weights.cols().div_ceil(2) as u64;
        check_size(dst, 4 * row_words * weights.rows() as u64)?;
        let whole = dst.size() <= device.limits.max_storage_buffer_binding_size;
        let matrix = &weights.matrix;
        if let ([shard], true) = (&matrix.shards[..], whole) {
            return self.decode_rows(matrix, shard, 0, shard.rows, dst);
        }
        for shard in &matrix.shards {
            let (first, n) = (shard.first_row as u64 * row_words * 4, shard.rows);
            // A binding must begin at a multiple of the device's alignment. The first row of this
            // shard may not, so decode to a separate buffer and copy.
            let len = n as u64 * row_words * 4;
            let scratch = device.storage("decoded rows", n * row_words as usize)?;
            self.decode_rows(matrix, shard, 0, n, &scratch)?;
            self.encoder().copy_buffer_to_buffer(&scratch, 0, dst, first, len);
        }
        Ok(())
    }

    /// Decodes rows `from .. from + n` of a shard to the front of `dst`.
    pub(crate) fn decode_rows(
        &mut self,
        matrix: &Matrix,
        shard: &Shard,
        from: usize,
        n: usize,
        dst: &wgpu::Buffer,
    ) -> Result<()> {
        let params = Params::new(matrix, shard).part(from, n);
        let grid = fold(groups(n as u64 * matrix.shape.segments as u64), &self.gpu.device)?;
        let bindings: Vec<_> = [(2, dst)].into_iter().chain((3..).zip(shard.bindings())).collect();
        self.dispatch(Kernel::DecodeRows { form: matrix.form }, &params, &bindings, grid)
    }

    /// Packs `flat`, bf16 without padding, into the plain shards of `matrix`.
    pub(crate) fn pack_plain(&mut self, flat: &wgpu::Buffer, matrix: &Matrix) -> Result<()> {
        let shape = &matrix.shape;
        let blocks = (shape.blocks + usize::from(shape.tail != 0)) as u64;
        for shard in &matrix.shards {
            let Buffers::Plain(plain) = &shard.buffers else { continue };
            let grid = fold(groups(shard.rows as u64 * blocks), &self.gpu.device)?;
            let params = Params::new(matrix, shard);
            self.dispatch(Kernel::PackPlain, &params, &[(1, flat), (2, plain)], grid)?;
        }
        Ok(())
    }
}
