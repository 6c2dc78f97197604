//! Packing on the device: it decodes a matrix in ANS form, then packs it into a resident form.

use bigsmall_format::EncodedTensor;

use crate::ans::readable;
use crate::ans_tensor::{MOST_BYTES, plan_of, write_ans};
use crate::backend::matrix_shape;
use crate::context::Wgpu;
use crate::dispatch::{Params, fold, groups};
use crate::error::Result;
use crate::kernels::Kernel;
use crate::layout::{Binades, Histogram, Resident, RowShape};
use crate::matrix::{Buffers, Cut, Matrix, Shard, choose_form, plain_shards};
use crate::weights::WgpuWeights;
use crate::writer::Writer;

/// The number of words that a workgroup of [`Kernel::CountExponents`] reads.
const COUNTED_WORDS: u64 = 16_384;

impl Wgpu {
    /// Whether the device can bind the matrix as a whole, encoded and decoded.
    pub(crate) fn can_decode(&self, tensor: &EncodedTensor) -> bool {
        let most = self.device.largest_binding().min(MOST_BYTES);
        tensor.spec().byte_len().max(tensor.byte_len()) <= most
    }

    /// Decodes and packs a matrix in ANS form into `form`, or into the form that takes the fewest
    /// bytes. Waits for the device several times, because the next step depends on results of the
    /// kernels: the exponents that decide the form, and the number of escapes.
    pub(crate) fn pack_on_device(
        &self,
        tensor: &EncodedTensor,
        form: Option<Resident>,
    ) -> Result<WgpuWeights> {
        let (spec, device) = (tensor.spec(), &self.device);
        let (rows, cols) = matrix_shape(spec)?;
        let tensor = &*readable(tensor)?;
        let plan = plan_of(tensor)?;
        let shape = RowShape::new(cols);
        let mut matrix = Matrix::empty(rows, shape, form);
        if rows > 0 && cols > 0 {
            let cut = Cut::new(device, &shape)?;
            let mut writer = Writer::new(device);
            let ans = write_ans(device, tensor, &plan, &mut writer)?;
            writer.flush()?;
            let flat = device.storage("decoded", (rows * cols).div_ceil(2))?;
            let found = device.storage("exponents", 258)?;
            let counting = form != Some(Resident::Plain) || device.matrix_unit.is_some();
            self.submit(|r| {
                r.decode_ans(&ans, &flat)?;
                if counting {
                    let words = (rows as u64 * cols as u64).div_ceil(2);
                    let grid = fold(words.div_ceil(COUNTED_WORDS), device)?;
                    let params = Params::of_rows(&matrix, 0, rows);
                    r.dispatch(Kernel::CountExponents, &params, &[(1, &flat), (2, &found)], grid)?;
                }
                Ok(())
            })?;
            self.check_ans(&ans)?;
            // Freed here, so that its memory can be used for the next buffers.
            drop(ans);
            if counting {
                self.use_counts(&mut matrix, &found, form)?;
            }
            self.pack(&mut matrix, &flat, &cut)?;
        }
        let mut weights = WgpuWeights::new(device, spec.name(), matrix);
        weights.decoded_on_device = true;
        Ok(weights)
    }

    /// Chooses form and window from the exponents that the device has counted.
    fn use_counts(
        &self,
        matrix: &mut Matrix,
        found: &wgpu::Buffer,
        form: Option<Resident>,
    ) -> Result<()> {
        let mut words = [0u32; 258];
        self.read_buffer(found, &mut words)?;
        if form != Some(Resident::Plain) {
            let counts: Histogram = std::array::from_fn(|e| u64::from(words[e]));
            let chosen = choose_form(
                &matrix.shape,
                matrix.rows as u64,
                &counts,
                form,
                self.device.few_instructions,
            );
            (matrix.form, matrix.base) = chosen;
        }
        if self.device.matrix_unit.is_some() {
            let binades = Binades::between(0xffff - words[256] as u16, words[257] as u16);
            matrix.half_offset = binades.half_offset();
        }
        Ok(())
    }

    /// Packs `flat`, bf16 without padding, into the form of `matrix`, and waits.
    fn pack(&self, matrix: &mut Matrix, flat: &wgpu::Buffer, cut: &Cut) -> Result<()> {
        if matrix.form == Resident::Plain {
            matrix.shards = plain_shards(&self.device, matrix.rows, &matrix.shape)?;
            self.submit(|r| r.pack_plain(flat, matrix))?;
        } else {
            for first_row in (0..matrix.rows).step_by(cut.shard_rows) {
                let rows = cut.shard_rows.min(matrix.rows - first_row);
                let buffers = self.pack_dense(matrix, flat, cut, first_row, rows)?;
                matrix.shards.push(Shard { first_row, rows, buffers });
            }
        }
        // Now the decoded matrix can be freed.
        self.wait()
    }

    /// Packs rows of `flat` into the dense form and window of `matrix`.
    fn pack_dense(
        &self,
        matrix: &Matrix,
        flat: &wgpu::Buffer,
        cut: &Cut,
        first_row: usize,
        rows: usize,
    ) -> Result<Buffers> {
        let device = &self.device;
        let (shape, width) = (&matrix.shape, matrix.form.width());
        let n_segments = rows * shape.segments;
        let grid = fold(groups(n_segments as u64), device)?;
        let bytes = device.storage("sign-mantissa bytes", rows * shape.byte_words())?;
        let codes = device.storage("codes", rows * shape.code_words(width))?;
        let starts = device.storage("escape starts", n_segments * 17)?;
        let params = Params::of_rows(matrix, first_row, rows);
        self.submit(|r| {
            let bindings = [(1, flat), (3, &bytes), (4, &codes), (6, &starts)];
            r.dispatch(Kernel::PackDense { width }, &params, &bindings, grid)
        })?;
        let mut bases = vec![0u32; n_segments];
        self.read_buffer(&starts, &mut bases)?;
        let escape_words = place_escapes(&mut bases, cut.piece_rows * shape.segments);
        let escapes = device.storage("escapes", escape_words)?;
        self.write_buffer(&starts, &bases)?;
        self.submit(|r| {
            let bindings = [(1, flat), (5, &escapes), (6, &starts)];
            r.dispatch(Kernel::PackEscapes { width }, &params, &bindings, grid)
        })?;
        Ok(Buffers::Dense { bytes, codes, escapes, starts })
    }
}

/// Replaces the number of escapes of each (row, segment) by the index of its first escape, and
/// returns the number of words that all escapes take. The escapes of each piece of rows begin at a
/// word, as when the host packs.
fn place_escapes(counts: &mut [u32], piece_segments: usize) -> usize {
    let mut at = 0u64;
    for piece in counts.chunks_mut(piece_segments) {
        for n in piece {
            let begin = at;
            at += u64::from(*n);
            *n = begin as u32;
        }
        at = at.next_multiple_of(4);
    }
    (at / 4) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_follow_each_other_and_pieces_begin_at_words() {
        let mut counts = [3, 0, 2, 4, 0, 1];
        assert_eq!(place_escapes(&mut counts, 3), 2 + 2);
        assert_eq!(counts, [0, 3, 3, 8, 12, 12]);
    }
}
