//! What a product multiplies.

use std::ops::Range;

use bigsmall_format::{Error, Result, Rule, TensorSpec};

use crate::codes::CodeMatrix;
use crate::kernels::Kernels;
use crate::view::View;

/// Rows of one matrix that are to be multiplied.
#[derive(Clone)]
pub(crate) struct Rows<'a> {
    pub(crate) weights: Weights<'a>,
    pub(crate) spec: &'a TensorSpec,
    pub(crate) rows: Range<usize>,
    pub(crate) k: usize,
    pub(crate) kernels: &'static Kernels,
}

#[derive(Clone, Copy)]
pub(crate) enum Weights<'a> {
    Encoded(View<'a>),
    Codes(&'a CodeMatrix),
    Plain(&'a [u8]),
}

/// The rows and columns of a tensor as a matrix.
pub(crate) fn shape(spec: &TensorSpec) -> (usize, usize) {
    let (m, others) = match spec.shape() {
        [m, others @ ..] if !others.is_empty() => (*m, others),
        one_row => (1, one_row),
    };
    // The product of the whole shape does not overflow. If a dimension is zero, the product of
    // the others may.
    let k = others.iter().fold(1, |k: u64, &n| k.saturating_mul(n));
    let [m, k] = [m, k].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    (m, k)
}

impl<'a> Rows<'a> {
    /// All rows of a matrix.
    pub(crate) fn new(
        weights: Weights<'a>,
        spec: &'a TensorSpec,
        kernels: &'static Kernels,
    ) -> Self {
        let (m, k) = shape(spec);
        Rows { weights, spec, rows: 0..m, k, kernels }
    }

    pub(crate) fn of_view(view: View<'a>) -> Self {
        Rows::new(Weights::Encoded(view), view.spec(), view.kernels())
    }

    /// Only `rows` of them.
    pub(crate) fn only(self, rows: Range<usize>) -> Result<Self> {
        let m = self.rows.end;
        if rows.start > rows.end || rows.end > m {
            return Err(Error::new(Rule::RangeOutOfBounds)
                .in_tensor(self.spec.name())
                .expected(format!("rows within 0..{m}"))
                .found(format!("{rows:?}")));
        }
        Ok(Rows { rows, ..self })
    }

    /// Writes the original bytes of the weights `range` of a row to `dst`, or returns where they
    /// are.
    pub(crate) fn bytes<'b>(
        &'b self,
        row: usize,
        range: Range<usize>,
        dst: &'b mut Vec<u8>,
    ) -> &'b [u8] {
        let unit = self.spec.dtype().unit_bytes();
        let first = row * self.k + range.start;
        let len = range.len() * unit;
        if let Weights::Plain(bytes) = self.weights {
            return &bytes[first * unit..][..len];
        }
        if dst.len() < len {
            dst.resize(len, 0);
        }
        let dst = &mut dst[..len];
        match self.weights {
            Weights::Encoded(view) => view.decode_here(first as u64, dst, self.kernels),
            Weights::Codes(matrix) => matrix.decode(row, range, dst, self.kernels),
            Weights::Plain(_) => {}
        }
        dst
    }
}

pub(crate) fn expect(
    spec: &TensorSpec,
    what: &str,
    found: usize,
    expected: Option<usize>,
) -> Result<()> {
    if expected == Some(found) {
        return Ok(());
    }
    let expected = expected.map_or("fewer than overflow".into(), |n| n.to_string());
    Err(Error::new(Rule::BufferLength)
        .in_tensor(spec.name())
        .expected(format!("{what} of length {expected}"))
        .found(found))
}
