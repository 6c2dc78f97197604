//! From an encoded tensor to buffers on the device, a few rows at a time.

use bigsmall_format::{
    BlockDecoder, EncodedTensor, Error, Result, Rule, TensorEncoding, decode_range,
    for_each_in_parallel,
};

use crate::device::Device;
use crate::layout::{
    Binades, Dense, Histogram, Resident, RowShape, choose_window, count_exponents, escapes_outside,
    pack_dense, pack_plain,
};
use crate::matrix_shape;

/// Bytes of decoded rows that are held at once.
const PIECE_BYTES: usize = 4 << 20;
/// Bytes that wgpu may hold for writing before the device has to take them.
const STAGED_BYTES: u64 = 24 << 20;

/// A matrix in resident form: shards of whole rows.
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) shape: RowShape,
    pub(crate) form: Resident,
    /// First exponent of the window.
    pub(crate) base: u8,
    /// From exponents of bf16 to exponents of f16, where cooperative matrices can multiply this
    /// one.
    pub(crate) half_offset: Option<i32>,
    pub(crate) shards: Vec<Shard>,
}

impl Matrix {
    /// Without shards, in the wanted form or plain.
    pub(crate) fn empty(rows: usize, shape: RowShape, form: Option<Resident>) -> Self {
        let form = form.unwrap_or(Resident::Plain);
        Matrix { rows, shape, form, base: 0, half_offset: None, shards: Vec::new() }
    }
}

/// Rows that lie in one set of buffers.
pub(crate) struct Shard {
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    pub(crate) buffers: Buffers,
}

pub(crate) enum Buffers {
    Plain(wgpu::Buffer),
    Dense { bytes: wgpu::Buffer, codes: wgpu::Buffer, escapes: wgpu::Buffer, starts: wgpu::Buffer },
}

impl Shard {
    /// The buffers at binding 3 and after.
    pub(crate) fn bindings(&self) -> Vec<&wgpu::Buffer> {
        match &self.buffers {
            Buffers::Plain(plain) => vec![plain],
            Buffers::Dense { bytes, codes, escapes, starts } => vec![bytes, codes, escapes, starts],
        }
    }
}

/// Decodes `tensor` by pieces and writes it to the device in `form`, or in the form that takes the
/// fewest bytes.
pub(crate) fn upload(
    device: &Device,
    tensor: &EncodedTensor,
    encoding: &dyn TensorEncoding,
    form: Option<Resident>,
) -> Result<Matrix> {
    let (rows, cols) = matrix_shape(tensor.spec())?;
    let decoder = tensor.open(encoding)?;
    let shape = RowShape::new(cols);
    if rows == 0 || cols == 0 {
        return Ok(Matrix::empty(rows, shape, form));
    }
    let Cut { piece_rows, shard_rows } = Cut::new(device, &shape)?;
    let mut source =
        Source { tensor, decoder: &*decoder, cols, bytes: Vec::new(), weights: Vec::new() };

    let mut counts: Vec<Histogram> = Vec::new();
    let mut binades = Binades::NONE;
    let halves = device.matrix_unit.is_some();
    if form != Some(Resident::Plain) || halves {
        for first in (0..rows).step_by(piece_rows) {
            let weights = source.rows(first, piece_rows.min(rows - first))?;
            let mut piece = [0; 256];
            count_exponents(weights, &mut piece);
            counts.push(piece);
            if halves {
                binades = binades.and(weights);
            }
        }
    }
    let (form, base) = match form {
        Some(Resident::Plain) => (Resident::Plain, 0),
        _ => choose_form(&shape, rows as u64, &counts, form),
    };

    let mut shards = Vec::new();
    let mut writer = Writer::new(device);
    for first_row in (0..rows).step_by(shard_rows) {
        let n_rows = shard_rows.min(rows - first_row);
        let pieces = (first_row..first_row + n_rows).step_by(piece_rows);
        let buffers = if form == Resident::Plain {
            let plain = device.storage("plain weights", n_rows * shape.plain_words())?;
            for first in pieces {
                let n = piece_rows.min(first_row + n_rows - first);
                let mut words = vec![0; n * shape.plain_words()];
                let weights = source.rows(first, n)?;
                let parts = weights.chunks(rows_per_part(n) * cols);
                let outs = words.chunks_mut(rows_per_part(n) * shape.plain_words());
                let jobs: Vec<_> = parts.zip(outs).collect();
                for_each_in_parallel(
                    0,
                    jobs.into_iter(),
                    || (),
                    |(), (part, out)| {
                        pack_plain(part, &shape, out);
                        Ok(())
                    },
                )?;
                writer.write(&plain, (first - first_row) * shape.plain_words(), &words)?;
            }
            Buffers::Plain(plain)
        } else {
            let width = form.width();
            let escape_words = pieces
                .clone()
                .map(|first| escapes_outside(&counts[first / piece_rows], base, width).div_ceil(4))
                .sum::<u64>() as usize;
            let bytes = device.storage("sign-mantissa bytes", n_rows * shape.byte_words())?;
            let codes = device.storage("codes", n_rows * shape.code_words(width))?;
            let escapes = device.storage("escapes", escape_words)?;
            let starts = device.storage("escape starts", n_rows * shape.segments * 17)?;
            let mut escapes_at = 0;
            for first in pieces {
                let n = piece_rows.min(first_row + n_rows - first);
                let parts = dense_parts(source.rows(first, n)?, n, &shape, width, base)?;
                let mut row = first - first_row;
                let mut escaped: Vec<u8> = Vec::new();
                for part in parts {
                    writer.write(&bytes, row * shape.byte_words(), &part.bytes)?;
                    writer.write(&codes, row * shape.code_words(width), &part.codes)?;
                    let offset = (escapes_at * 4 + escaped.len()) as u32;
                    let bases: Vec<u32> = part.bases.iter().map(|b| b + offset).collect();
                    writer.write(&starts, row * shape.segments, &bases)?;
                    let at = (n_rows + row * 16) * shape.segments;
                    writer.write(&starts, at, &part.starts)?;
                    escaped.extend_from_slice(&part.escapes);
                    row += part.bases.len() / shape.segments;
                }
                escaped.resize(escaped.len().next_multiple_of(4), 0);
                let words: Vec<u32> =
                    escaped.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
                writer.write(&escapes, escapes_at, &words)?;
                escapes_at += words.len();
            }
            Buffers::Dense { bytes, codes, escapes, starts }
        };
        shards.push(Shard { first_row, rows: n_rows, buffers });
    }
    writer.flush()?;
    let half_offset = if halves { binades.half_offset() } else { None };
    Ok(Matrix { rows, shape, form, base, half_offset, shards })
}

/// How rows are cut, whoever packs them: it decides where the escapes of a row begin.
pub(crate) struct Cut {
    /// Rows that are decoded and packed at once.
    pub(crate) piece_rows: usize,
    /// Rows of a shard: whole pieces.
    pub(crate) shard_rows: usize,
}

impl Cut {
    /// For rows of at least one column.
    pub(crate) fn new(device: &Device, shape: &RowShape) -> Result<Self> {
        let limit =
            device.limits.max_storage_buffer_binding_size.min(device.limits.max_buffer_size);
        // No buffer of a shard is larger than its rows in plain form, and the shaders index those
        // by u32.
        let rows = (limit.min(1 << 31) / (4 * shape.plain_words() as u64)).min(1 << 31) as usize;
        if rows == 0 {
            return Err(Error::new(Rule::Device)
                .expected(format!("rows of at most {limit} bytes in a buffer"))
                .found(format!("{} columns", shape.cols)));
        }
        let piece_rows = (PIECE_BYTES / (2 * shape.cols)).clamp(1, rows);
        Ok(Cut { piece_rows, shard_rows: rows / piece_rows * piece_rows })
    }
}

/// The form that takes the fewest bytes among the wanted ones, and its window.
pub(crate) fn choose_form(
    shape: &RowShape,
    rows: u64,
    counts: &[Histogram],
    wanted: Option<Resident>,
) -> (Resident, u8) {
    let mut total: Histogram = [0; 256];
    for piece in counts {
        for (sum, n) in total.iter_mut().zip(piece) {
            *sum += n;
        }
    }
    let cost = |form: Resident| match form {
        Resident::Plain => (shape.resident_words(form, rows, 0), form, 0),
        _ => {
            let (base, escapes) = choose_window(&total, form.width());
            (shape.resident_words(form, rows, escapes), form, base)
        }
    };
    let best = match wanted {
        Some(form) => Some(cost(form)),
        None => Resident::ALL.into_iter().map(cost).min_by_key(|&(words, ..)| words),
    };
    best.map_or((Resident::Plain, 0), |(_, form, base)| (form, base))
}

/// Rows for one thread out of `n`.
fn rows_per_part(n: usize) -> usize {
    n.div_ceil(bigsmall_format::available_threads()).max(1)
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
        0,
        jobs.into_iter(),
        || (),
        |(), (part, out)| {
            *out = pack_dense(part, shape, width, base);
            Ok(())
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
        decode_range(self.decoder, spec, table, &payload, range, &mut self.bytes, 0)?;
        self.weights.clear();
        self.weights.extend(self.bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)));
        Ok(&self.weights)
    }
}

/// Writes to buffers, and lets the device take what was written before much of it piles up.
pub(crate) struct Writer<'a> {
    device: &'a Device,
    staged: u64,
    most: u64,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(device: &'a Device) -> Self {
        Writer { device, staged: 0, most: STAGED_BYTES }
    }

    /// Lets it pile up.
    pub(crate) fn unbounded(device: &'a Device) -> Self {
        Writer { device, staged: 0, most: u64::MAX }
    }

    pub(crate) fn write(
        &mut self,
        buffer: &wgpu::Buffer,
        at_word: usize,
        words: &[u32],
    ) -> Result<()> {
        self.write_bytes(buffer, 4 * at_word as u64, bytemuck::cast_slice(words))
    }

    /// `bytes` are whole words.
    pub(crate) fn write_bytes(
        &mut self,
        buffer: &wgpu::Buffer,
        at: u64,
        bytes: &[u8],
    ) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.device.queue.write_buffer(buffer, at, bytes);
        self.staged += bytes.len() as u64;
        if self.staged >= self.most { self.flush() } else { Ok(()) }
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        self.staged = 0;
        self.device.queue.submit([]);
        self.device.wait()
    }
}
