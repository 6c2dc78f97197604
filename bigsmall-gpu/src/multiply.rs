//! Products and rows with vectors in the memory of the host.

use bigsmall_format::EncodedTensor;

use crate::backend::{MatmulBackend, check_len};
use crate::context::Wgpu;
use crate::error::{Error, ErrorKind, Result};
use crate::upload::UploadOptions;
use crate::weights::WgpuWeights;

/// The size in bytes of the decoded rows that are read back at a time.
const READ_BYTES: u64 = 32 << 20;

impl Wgpu {
    /// Writes the rows `ids` of the matrix to `y` as f32.
    ///
    /// # Errors
    /// [`ErrorKind::RowOutOfRange`] for a row that does not exist; [`ErrorKind::BufferLength`]
    /// unless `y` holds `ids.len() * k` values.
    pub fn gather(&self, weights: &WgpuWeights, ids: &[u32], y: &mut [f32]) -> Result<()> {
        check_len("y", ids.len().checked_mul(weights.cols()), y.len())?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= weights.rows()) {
            return Err(Error::new(ErrorKind::RowOutOfRange)
                .in_tensor(weights.name())
                .expected(format!("rows within 0..{}", weights.rows()))
                .found(id));
        }
        if y.is_empty() {
            return Ok(());
        }
        let ids_buffer = self.new_buffer(ids.len())?;
        let y_buffer = self.new_buffer(y.len())?;
        self.write_buffer(&ids_buffer, ids)?;
        self.submit(|r| r.gather(weights, &ids_buffer, ids.len(), &y_buffer))?;
        self.read_buffer(&y_buffer, y)
    }

    fn multiply(
        &self,
        weights: &WgpuWeights,
        x: &[f32],
        batch: usize,
        y: &mut [f32],
    ) -> Result<()> {
        self.device.check_owner(weights.device, weights.name())?;
        let (m, k) = (weights.rows(), weights.cols());
        check_len("x", batch.checked_mul(k), x.len())?;
        check_len("y", batch.checked_mul(m), y.len())?;
        if k == 0 {
            y.fill(0.0);
        }
        if x.is_empty() || y.is_empty() {
            return Ok(());
        }
        let at_once = self.most_batch(weights);
        for (x, y) in x.chunks(at_once * k).zip(y.chunks_mut(at_once * m)) {
            let batch = x.len() / k;
            let x_buffer = self.new_buffer(x.len())?;
            let y_buffer = self.new_buffer(y.len())?;
            self.write_buffer(&x_buffer, x)?;
            self.submit(|r| r.matmul(weights, &x_buffer, batch, &y_buffer))?;
            self.read_buffer(&y_buffer, y)?;
        }
        Ok(())
    }

    /// The largest batch of one product: x and y must each fit in a buffer.
    fn most_batch(&self, weights: &WgpuWeights) -> usize {
        let most = self.device.largest_binding().min(1 << 28);
        let column = 4 * (weights.rows().max(weights.cols() + 16) as u64);
        (most / column).clamp(1, 1 << 20) as usize
    }

    fn read_back(&self, weights: &WgpuWeights, dst: &mut [u8]) -> Result<()> {
        self.device.check_owner(weights.device, weights.name())?;
        let cols = weights.cols();
        check_len("bytes", weights.rows().checked_mul(2 * cols), dst.len())?;
        if dst.is_empty() {
            return Ok(());
        }
        let row_words = cols.div_ceil(2);
        let most = self.device.largest_binding().min(READ_BYTES) as usize;
        let at_once = (most / (4 * row_words)).max(1);
        let mut rows_out = dst.chunks_exact_mut(2 * cols);
        for shard in &weights.matrix.shards {
            for from in (0..shard.rows).step_by(at_once) {
                let n = at_once.min(shard.rows - from);
                let bytes = 4 * (n * row_words) as u64;
                let decoded = self.device.storage("decoded rows", n * row_words)?;
                let staging = self.device.staging(bytes)?;
                self.submit(|r| {
                    r.decode_rows(&weights.matrix, shard, from, n, &decoded)?;
                    r.encoder().copy_buffer_to_buffer(&decoded, 0, &staging, 0, bytes);
                    Ok(())
                })?;
                self.device.guarded(|| {
                    self.device.read_mapped(&staging, bytes, |read| {
                        for (row, out) in read.chunks_exact(4 * row_words).zip(&mut rows_out) {
                            out.copy_from_slice(&row[..2 * cols]);
                        }
                    })
                })?;
            }
        }
        Ok(())
    }
}

impl MatmulBackend for Wgpu {
    type Weights = WgpuWeights;

    fn upload(&self, tensor: &EncodedTensor) -> Result<WgpuWeights> {
        self.upload_with(tensor, &UploadOptions::default())
    }

    fn matmul(&self, weights: &WgpuWeights, x: &[f32], batch: usize, y: &mut [f32]) -> Result<()> {
        self.multiply(weights, x, batch, y).map_err(|e| e.in_tensor(weights.name()))
    }

    fn decompress(&self, weights: &WgpuWeights, dst: &mut [u8]) -> Result<()> {
        self.read_back(weights, dst).map_err(|e| e.in_tensor(weights.name()))
    }
}
