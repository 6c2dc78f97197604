//! Packing on the host: it decodes a tensor piece by piece, packs each piece into a resident form,
//! and writes it to the device.

use bigsmall_format::internal::for_each_in_parallel;
use bigsmall_format::{BlockDecoder, EncodedTensor, decode_range};

use crate::backend::{encoding_of, matrix_shape};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::{
    Binades, Dense, Histogram, Resident, RowShape, count_exponents, escapes_outside, pack_dense,
    pack_plain,
};
use crate::matrix::{Buffers, Cut, Matrix, Shard, choose_form, plain_shards};
use crate::writer::Writer;

/// Decodes `tensor` piece by piece and writes it to the device in `form`, or in the form that takes
/// the fewest bytes. To choose the form, the tensor is decoded one time more.
pub(crate) fn pack_on_host(
    device: &Device,
    tensor: &EncodedTensor,
    form: Option<Resident>,
) -> Result<Matrix> {
    let (rows, cols) = matrix_shape(tensor.spec())?;
    let encoding = encoding_of(tensor)?;
    let decoder = tensor.open(&*encoding)?;
    let shape = RowShape::new(cols);
    let mut matrix = Matrix::empty(rows, shape, form);
    if rows == 0 || cols == 0 {
        return Ok(matrix);
    }
    let cut = Cut::new(device, &shape)?;
    let source =
        Source { tensor, decoder: &*decoder, cols, bytes: Vec::new(), weights: Vec::new() };
    let mut packer = Packer { device, source, shape, cut, writer: Writer::new(device) };

    let halves = device.matrix_unit.is_some();
    let mut counts = Vec::new();
    if form != Some(Resident::Plain) || halves {
        let binades;
        (counts, binades) = packer.count(rows, halves)?;
        matrix.half_offset = if halves { binades.half_offset() } else { None };
    }
    if form != Some(Resident::Plain) {
        let mut total: Histogram = [0; 256];
        for piece in &counts {
            total.iter_mut().zip(piece).for_each(|(sum, n)| *sum += n);
        }
        (matrix.form, matrix.base) =
            choose_form(&shape, rows as u64, &total, form, device.few_instructions);
    }
    if matrix.form == Resident::Plain {
        matrix.shards = plain_shards(device, rows, &shape)?;
        for shard in &matrix.shards {
            packer.plain(shard)?;
        }
    } else {
        let shard_rows = packer.cut.shard_rows;
        for first_row in (0..rows).step_by(shard_rows) {
            let rows = shard_rows.min(rows - first_row);
            let buffers = packer.dense(&matrix, &counts, first_row, rows)?;
            matrix.shards.push(Shard { first_row, rows, buffers });
        }
    }
    packer.writer.flush()?;
    Ok(matrix)
}

/// Packs pieces of a tensor.
struct Packer<'a> {
    device: &'a Device,
    source: Source<'a>,
    shape: RowShape,
    cut: Cut,
    writer: Writer<'a>,
}

impl Packer<'_> {
    /// Divides rows into pieces of `rows` rows: the first row and the number of rows of each.
    fn pieces(
        &self,
        first_row: usize,
        rows: usize,
    ) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (end, piece_rows) = (first_row + rows, self.cut.piece_rows);
        (first_row..end).step_by(piece_rows).map(move |first| (first, piece_rows.min(end - first)))
    }

    /// Counts the exponents of each piece. If `halves`, also finds the range of all magnitudes.
    fn count(&mut self, rows: usize, halves: bool) -> Result<(Vec<Histogram>, Binades)> {
        let (mut counts, mut binades) = (Vec::new(), Binades::NONE);
        for (first, n) in self.pieces(0, rows) {
            let weights = self.source.rows(first, n)?;
            let mut piece = [0; 256];
            count_exponents(weights, &mut piece);
            counts.push(piece);
            if halves {
                binades = binades.and(weights);
            }
        }
        Ok((counts, binades))
    }

    /// Packs the rows of a shard into the plain form.
    fn plain(&mut self, shard: &Shard) -> Result<()> {
        let Buffers::Plain(plain) = &shard.buffers else { return Ok(()) };
        let shape = self.shape;
        for (first, n) in self.pieces(shard.first_row, shard.rows) {
            let mut words = vec![0; n * shape.plain_words()];
            let weights = self.source.rows(first, n)?;
            let parts = weights.chunks(rows_per_part(n) * shape.cols);
            let outs = words.chunks_mut(rows_per_part(n) * shape.plain_words());
            let jobs: Vec<_> = parts.zip(outs).collect();
            for_each_in_parallel(
                jobs.into_iter(),
                || (),
                |(), (part, out)| {
                    pack_plain(part, &shape, out);
                    Ok::<(), Error>(())
                },
            )?;
            self.writer.write(plain, (first - shard.first_row) * shape.plain_words(), &words)?;
        }
        Ok(())
    }

    /// Packs rows into the dense form and window of `matrix`. The escapes of each piece begin at a
    /// word.
    fn dense(
        &mut self,
        matrix: &Matrix,
        counts: &[Histogram],
        first_row: usize,
        rows: usize,
    ) -> Result<Buffers> {
        let (device, shape) = (self.device, self.shape);
        let (width, base) = (matrix.form.width(), matrix.base);
        let escapes_of = |first| escapes_outside(&counts[first / self.cut.piece_rows], base, width);
        let escape_words: u64 =
            self.pieces(first_row, rows).map(|(first, _)| escapes_of(first).div_ceil(4)).sum();
        let bytes = device.storage("sign-mantissa bytes", rows * shape.byte_words())?;
        let codes = device.storage("codes", rows * shape.code_words(width))?;
        let escapes = device.storage("escapes", escape_words as usize)?;
        let starts = device.storage("escape starts", rows * shape.segments * 17)?;
        let mut escapes_at = 0;
        for (first, n) in self.pieces(first_row, rows) {
            let parts = dense_parts(self.source.rows(first, n)?, n, &shape, width, base)?;
            let mut row = first - first_row;
            let mut escaped: Vec<u8> = Vec::new();
            for part in parts {
                self.writer.write(&bytes, row * shape.byte_words(), &part.bytes)?;
                self.writer.write(&codes, row * shape.code_words(width), &part.codes)?;
                let offset = (escapes_at * 4 + escaped.len()) as u32;
                let bases: Vec<u32> = part.bases.iter().map(|b| b + offset).collect();
                self.writer.write(&starts, row * shape.segments, &bases)?;
                self.writer.write(&starts, (rows + row * 16) * shape.segments, &part.starts)?;
                escaped.extend_from_slice(&part.escapes);
                row += part.bases.len() / shape.segments;
            }
            escaped.resize(escaped.len().next_multiple_of(4), 0);
            let words: Vec<u32> =
                escaped.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
            self.writer.write(&escapes, escapes_at, &words)?;
            escapes_at += words.len();
        }
        Ok(Buffers::Dense { bytes, codes, escapes, starts })
    }
}

/// The number of rows for each thread if `n` rows are divided among the threads of the pool.
fn rows_per_part(n: usize) -> usize {
    n.div_ceil(bigsmall_format::internal::pool_size()).max(1)
}

fn dense_parts(
    weights: &[u16],
    n_rows: usize,
    shape: &RowShape,
    width: u32,
    base: u8,
) -> Result<Vec<Dense>> {
    let parts = weights.chunks(rows_per_part(n_rows) * shape.cols);
    let mut dense: Vec<Dense> = parts.clone().map(|_| Dense::default()).collect();
    let jobs: Vec<_> = parts.zip(&mut dense).collect();
    for_each_in_parallel(
        jobs.into_iter(),
        || (),
        |(), (part, out)| {
            *out = pack_dense(part, shape, width, base);
            Ok::<(), Error>(())
        },
    )?;
    Ok(dense)
}

/// Decodes rows into buffers that are reused.
struct Source<'a> {
    tensor: &'a EncodedTensor,
    decoder: &'a dyn BlockDecoder,
    cols: usize,
    bytes: Vec<u8>,
    weights: Vec<u16>,
}

impl Source<'_> {
    fn rows(&mut self, first: usize, n: usize) -> Result<&[u16]> {
        let row_bytes = 2 * self.cols as u64;
        let range = first as u64 * row_bytes..(first + n) as u64 * row_bytes;
        self.bytes.resize((range.end - range.start) as usize, 0);
        let spec = self.tensor.spec();
        let (table, payload) = (self.tensor.table(), self.tensor.payload());
        decode_range(self.decoder, spec, table, &payload, range, &mut self.bytes)?;
        self.weights.clear();
        self.weights.extend(self.bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)));
        Ok(&self.weights)
    }
}
