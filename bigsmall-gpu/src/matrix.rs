//! A matrix in the buffers of a device, and its division into shards of rows.

use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{Histogram, Resident, RowShape, choose_window};

/// The size in bytes of the decoded rows that the host holds at a time.
const PIECE_BYTES: usize = 4 << 20;

/// A matrix in resident form, as shards of whole rows.
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) shape: RowShape,
    pub(crate) form: Resident,
    /// First exponent of the window.
    pub(crate) base: u8,
    /// The offset from a bf16 exponent to an f16 exponent; `None` if cooperative matrices cannot
    /// multiply this matrix.
    pub(crate) half_offset: Option<i32>,
    pub(crate) shards: Vec<Shard>,
}

impl Matrix {
    /// A matrix without shards, in the requested form or else plain.
    pub(crate) fn empty(rows: usize, shape: RowShape, form: Option<Resident>) -> Self {
        let form = form.unwrap_or(Resident::Plain);
        Matrix { rows, shape, form, base: 0, half_offset: None, shards: Vec::new() }
    }

    /// A matrix in plain form, all zeros.
    pub(crate) fn zeros(device: &Device, rows: usize, cols: usize) -> Result<Self> {
        let mut matrix = Matrix::empty(rows, RowShape::new(cols), None);
        if rows > 0 && cols > 0 {
            matrix.shards = plain_shards(device, rows, &matrix.shape)?;
        }
        Ok(matrix)
    }
}

/// Rows that share one set of buffers.
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
    /// The buffers for binding 3 and the following bindings.
    pub(crate) fn bindings(&self) -> Vec<&wgpu::Buffer> {
        match &self.buffers {
            Buffers::Plain(plain) => vec![plain],
            Buffers::Dense { bytes, codes, escapes, starts } => vec![bytes, codes, escapes, starts],
        }
    }
}

/// The shards of a plain matrix, all zeros.
pub(crate) fn plain_shards(device: &Device, rows: usize, shape: &RowShape) -> Result<Vec<Shard>> {
    let cut = Cut::new(device, shape)?;
    let shard = |first_row| {
        let rows = cut.shard_rows.min(rows - first_row);
        let plain = device.storage("plain weights", rows * shape.plain_words())?;
        Ok(Shard { first_row, rows, buffers: Buffers::Plain(plain) })
    };
    (0..rows).step_by(cut.shard_rows).map(shard).collect()
}

/// How rows are divided. The position of a row's escapes depends on it, so the division is the same
/// whether the host or the device packs the rows.
pub(crate) struct Cut {
    /// The number of rows that are decoded and packed at a time: a piece.
    pub(crate) piece_rows: usize,
    /// The number of rows of a shard: whole pieces.
    pub(crate) shard_rows: usize,
}

impl Cut {
    /// The division of rows that have at least one column.
    pub(crate) fn new(device: &Device, shape: &RowShape) -> Result<Self> {
        let limit = device.largest_binding();
        // No buffer of a shard is larger than its rows in plain form. The shaders index those with
        // u32.
        let rows = (limit.min(1 << 31) / (4 * shape.plain_words() as u64)).min(1 << 31) as usize;
        if rows == 0 {
            return Err(Error::new(ErrorKind::TooLarge)
                .expected(format!("rows of at most {limit} bytes in a buffer"))
                .found(format!("{} columns", shape.cols)));
        }
        let piece_rows = (PIECE_BYTES / (2 * shape.cols)).clamp(1, rows);
        Ok(Cut { piece_rows, shard_rows: rows / piece_rows * piece_rows })
    }
}

/// The requested form and its window. Without a request: the form that takes the fewest bytes, but
/// not [`Resident::Dense3`] if `few_instructions`.
pub(crate) fn choose_form(
    shape: &RowShape,
    rows: u64,
    counts: &Histogram,
    wanted: Option<Resident>,
    few_instructions: bool,
) -> (Resident, u8) {
    let cost = |form: Resident| match form {
        Resident::Plain => (shape.resident_words(form, rows, 0), form, 0),
        _ => {
            let (base, escapes) = choose_window(counts, form.width());
            (shape.resident_words(form, rows, escapes), form, base)
        }
    };
    let best = match wanted {
        Some(form) => Some(cost(form)),
        None => Resident::ALL
            .into_iter()
            .filter(|&form| !few_instructions || form != Resident::Dense3)
            .map(cost)
            .min_by_key(|&(words, ..)| words),
    };
    best.map_or((Resident::Plain, 0), |(_, form, base)| (form, base))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_instructions_are_few_the_smallest_form_is_not_taken() {
        let shape = RowShape::new(4096);
        // One exponent: 3 bits take the fewest bytes.
        let mut counts = [0; 256];
        counts[120] = 4096;
        let choose = |wanted, few| choose_form(&shape, 1, &counts, wanted, few).0;
        assert_eq!(choose(None, false), Resident::Dense3);
        assert_eq!(choose(None, true), Resident::Dense4);
        assert_eq!(choose(Some(Resident::Dense3), true), Resident::Dense3);
    }
}
