//! Resident forms that the device makes itself, of a matrix that was decoded there.

use bigsmall_format::{EncodedTensor, Error, Result, Rule};

use crate::backend::{Wgpu, fold, groups};
use crate::kernels::Kernel;
use crate::layout::{Binades, Histogram, Resident, RowShape};
use crate::matrix_shape;
use crate::upload::{Buffers, Cut, Matrix, Shard, choose_form};
use crate::weights::{Params, WgpuWeights};

/// Words that a workgroup of [`Kernel::CountExponents`] reads.
const COUNTED_WORDS: u64 = 16_384;

impl Wgpu {
    /// Takes a matrix in ANS form to the device as it is, decodes it there and packs it there into
    /// `form`, with `None` into the one that takes the fewest bytes. It ends in the same bytes
    /// as [`upload_with`](Self::upload_with), which decodes and packs on the host: over the bus
    /// go about two thirds of the decoded bytes instead of the resident form, and the host reads no
    /// more than headers, tables and exceptions.
    ///
    /// Memory on the device meanwhile: the decoded matrix, at 16 bits a weight, and beside it the
    /// larger of its encoded and its resident form. On the host: an index of half a per cent,
    /// four bytes for every row or 16,384 weights of it, and 32 MiB. Waits for the device
    /// several times, since what its kernels find decides what comes next: the form, and how many
    /// escapes there are.
    ///
    /// # Errors
    /// Those of [`load_ans`](Self::load_ans) and [`check_ans`](Self::check_ans); [`Rule::Device`]
    /// for a matrix that exceeds, decoded, what the device can bind:
    /// [`upload_with`](Self::upload_with) takes such a one by pieces.
    pub fn upload_decoding(
        &self,
        tensor: &EncodedTensor,
        form: Option<Resident>,
    ) -> Result<WgpuWeights> {
        self.decode_and_pack(tensor, form).map_err(|e| e.in_tensor(tensor.spec().name()))
    }

    fn decode_and_pack(
        &self,
        tensor: &EncodedTensor,
        form: Option<Resident>,
    ) -> Result<WgpuWeights> {
        let spec = tensor.spec();
        let (rows, cols) = matrix_shape(spec)?;
        let shape = RowShape::new(cols);
        let most = self.device.limits.max_storage_buffer_binding_size.min(4 << 30);
        if spec.byte_len() > most {
            return Err(Error::new(Rule::Device)
                .expected(format!(
                    "at most {most} bytes to be decoded on the device (the host can decode more)"
                ))
                .found(spec.byte_len()));
        }
        let ans = self.load_ans(tensor)?;
        let mut matrix = Matrix::empty(rows, shape, form);
        if rows == 0 || cols == 0 {
            return Ok(WgpuWeights::new(&self.device, spec.name(), matrix));
        }
        let cut = Cut::new(&self.device, &shape)?;
        let flat = self.device.storage("decoded", (rows * cols).div_ceil(2))?;
        let halves = self.device.matrix_unit.is_some();
        let counting = form != Some(Resident::Plain) || halves;
        let found = self.device.storage("exponents", 258)?;
        self.submit(|encoder| {
            self.decode_ans_into(encoder, &ans, &flat)?;
            if counting {
                let params = Params::new(&matrix, 0, rows).buffer(&self.device);
                let words = (rows as u64 * cols as u64).div_ceil(2);
                let grid = fold(words.div_ceil(COUNTED_WORDS), &self.device)?;
                let bindings = [(0, &params), (1, &flat), (2, &found)];
                self.dispatch_bound(encoder, Kernel::CountExponents, &bindings, grid);
            }
            Ok(())
        })?;
        self.check_ans(&ans)?;
        // Its memory can serve what comes.
        drop(ans);
        if counting {
            let mut words = [0u32; 258];
            self.read_buffer(&found, &mut words)?;
            let counts: Histogram = std::array::from_fn(|e| u64::from(words[e]));
            (matrix.form, matrix.base) = match form {
                Some(Resident::Plain) => (Resident::Plain, 0),
                _ => choose_form(&shape, rows as u64, &[counts], form),
            };
            let binades = Binades::between(0xffff - words[256] as u16, words[257] as u16);
            matrix.half_offset = if halves { binades.half_offset() } else { None };
        }
        let mut weights = WgpuWeights::new(&self.device, spec.name(), matrix);
        if weights.resident() == Resident::Plain {
            weights.matrix.shards = self.plain_shards(rows, &shape)?;
            self.submit(|encoder| self.pack_plain(encoder, &flat, &weights))?;
        } else {
            for first_row in (0..rows).step_by(cut.shard_rows) {
                let rows = cut.shard_rows.min(rows - first_row);
                let buffers = self.pack_dense(&weights.matrix, &flat, &cut, first_row, rows)?;
                weights.matrix.shards.push(Shard { first_row, rows, buffers });
            }
        }
        // Then the decoded matrix goes.
        self.wait()?;
        Ok(weights)
    }

    /// The shards of a plain matrix, all zeros.
    pub(crate) fn plain_shards(&self, rows: usize, shape: &RowShape) -> Result<Vec<Shard>> {
        let cut = Cut::new(&self.device, shape)?;
        let shard = |first_row| {
            let rows = cut.shard_rows.min(rows - first_row);
            let plain = self.device.storage("plain weights", rows * shape.plain_words())?;
            Ok(Shard { first_row, rows, buffers: Buffers::Plain(plain) })
        };
        (0..rows).step_by(cut.shard_rows).map(shard).collect()
    }

    /// Records the packing of `flat`, bf16 without padding, into the plain form.
    pub(crate) fn pack_plain(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        flat: &wgpu::Buffer,
        weights: &WgpuWeights,
    ) -> Result<()> {
        let shape = &weights.matrix.shape;
        let blocks = (shape.blocks + usize::from(shape.tail != 0)) as u64;
        for shard in &weights.matrix.shards {
            let Buffers::Plain(plain) = &shard.buffers else { continue };
            let params = self.params(weights, shard, 0, 0, 0, 0);
            let grid = fold(groups(shard.rows as u64 * blocks), &self.device)?;
            let bindings = [(0, &params), (1, flat), (2, plain)];
            self.dispatch_bound(encoder, Kernel::PackPlain, &bindings, grid);
        }
        Ok(())
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
        let (shape, width) = (&matrix.shape, matrix.form.width());
        let n_segments = rows * shape.segments;
        let grid = fold(groups(n_segments as u64), &self.device)?;
        let bytes = self.device.storage("sign-mantissa bytes", rows * shape.byte_words())?;
        let codes = self.device.storage("codes", rows * shape.code_words(width))?;
        let starts = self.device.storage("escape starts", n_segments * 17)?;
        let params = Params::new(matrix, first_row, rows);
        self.submit(|encoder| {
            let params = params.buffer(&self.device);
            let bindings = [(0, &params), (1, flat), (3, &bytes), (4, &codes), (6, &starts)];
            self.dispatch_bound(encoder, Kernel::PackDense { width }, &bindings, grid);
            Ok(())
        })?;
        let mut bases = vec![0u32; n_segments];
        self.read_buffer(&starts, &mut bases)?;
        let escape_words = place_escapes(&mut bases, cut.piece_rows * shape.segments);
        let escapes = self.device.storage("escapes", escape_words)?;
        self.write_buffer(&starts, &bases)?;
        self.submit(|encoder| {
            let params = params.buffer(&self.device);
            let bindings = [(0, &params), (1, flat), (5, &escapes), (6, &starts)];
            self.dispatch_bound(encoder, Kernel::PackEscapes { width }, &bindings, grid);
            Ok(())
        })?;
        Ok(Buffers::Dense { bytes, codes, escapes, starts })
    }
}

/// Turns the number of escapes of each (row, segment) into where they begin, and returns how many
/// words all take. As on the host, the escapes of a piece of rows begin at a word.
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
