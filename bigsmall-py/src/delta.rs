//! Deltas: tensors as differences from other tensors.

use bigsmall_codec::{Element, Result, half};
use bigsmall_codec::{apply_deltas_bytes, decode_delta_bytes, encode_delta_bytes};
use bigsmall_io::{Dtype, EncodedView, Rule};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::{Input, Output, check_apart, slices};
use crate::pages::in_python;
use crate::pool::pool;

#[pyfunction]
pub(crate) fn encode_delta<'py>(
    py: Python<'py>,
    dtype: &str,
    shape: Vec<u64>,
    new: &Bound<'_, PyAny>,
    base: &Bound<'_, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    let pool = pool(py)?;
    let dtype = in_python(py, Dtype::from_name(dtype))?;
    let (new, base) = (Input::new(new)?, Input::new(base)?);
    let (new, base) = (new.bytes(), base.bytes());
    let frame = py.detach(|| pool.install(|| encode_delta_bytes(dtype, &shape, new, base)));
    Ok(PyBytes::new(py, &in_python(py, frame)?))
}

#[pyfunction]
pub(crate) fn decode_delta(
    py: Python<'_>,
    frame: &Bound<'_, PyAny>,
    base: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let pool = pool(py)?;
    let (inputs, mut output) = ([Input::new(frame)?, Input::new(base)?], [Output::new(out)?]);
    check_apart(&output, &inputs)?;
    let (frame, base) = (inputs[0].bytes(), inputs[1].bytes());
    let mut slices = slices(&mut output)?;
    let done = py.detach(|| pool.install(|| decode_delta_bytes(frame, base, slices[0])));
    drop(slices);
    in_python(py, done)
}

/// Applies frames to tensors: to all of them, or to none.
#[pyfunction]
pub(crate) fn apply_deltas(
    py: Python<'_>,
    deltas: Vec<(String, Bound<'_, PyAny>, Bound<'_, PyAny>)>,
) -> PyResult<()> {
    let pool = pool(py)?;
    let inputs = deltas.iter().map(|(name, frame, _)| Input::of(name, frame));
    let inputs = inputs.collect::<PyResult<Vec<Input>>>()?;
    let outputs = deltas.iter().map(|(name, _, live)| Output::of(name, live));
    let mut outputs = outputs.collect::<PyResult<Vec<Output>>>()?;
    check_apart(&outputs, &inputs)?;
    let slices = slices(&mut outputs)?;
    let names = deltas.iter().map(|(name, ..)| name.as_str());
    let mut all: Vec<(&str, &[u8], &mut [u8])> = names
        .zip(&inputs)
        .zip(slices)
        .map(|((name, frame), live)| (name, frame.bytes(), live))
        .collect();
    let done = py.detach(|| pool.install(|| apply_deltas_bytes(&mut all)));
    drop(all);
    in_python(py, done)
}

/// Dtype and shape of the tensor in a frame. Errors name the tensor, where it has a name.
#[pyfunction]
#[pyo3(signature = (frame, name=None))]
pub(crate) fn delta_spec(
    py: Python<'_>,
    frame: &Bound<'_, PyAny>,
    name: Option<&str>,
) -> PyResult<(&'static str, Vec<u64>)> {
    let frame = Input::new(frame)?;
    let view = EncodedView::parse(frame.bytes()).map_err(|e| match name {
        Some(name) => e.in_tensor(name),
        None => e,
    });
    let view = in_python(py, view)?;
    Ok((view.spec().dtype().name(), view.spec().shape().to_vec()))
}

/// The places (64-bit) and the values of what a frame changes.
#[pyfunction]
pub(crate) fn changes<'py>(
    py: Python<'py>,
    frame: &Bound<'_, PyAny>,
    base: &Bound<'_, PyAny>,
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let pool = pool(py)?;
    let inputs = [Input::new(frame)?, Input::new(base)?];
    let (frame, base) = (inputs[0].bytes(), inputs[1].bytes());
    let found = py.detach(|| pool.install(|| changes_of(frame, base)));
    let (places, values) = in_python(py, found)?;
    Ok((PyBytes::new(py, &places), PyBytes::new(py, &values)))
}

fn changes_of(frame: &[u8], base: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    let dtype = EncodedView::parse(frame)?.spec().dtype();
    let of = match dtype {
        Dtype::BF16 => typed::<half::bf16>,
        Dtype::F16 => typed::<half::f16>,
        Dtype::F32 => typed::<f32>,
        Dtype::F64 => typed::<f64>,
        Dtype::U8 => typed::<u8>,
        Dtype::I8 => typed::<i8>,
        Dtype::U16 => typed::<u16>,
        Dtype::I16 => typed::<i16>,
        Dtype::U32 => typed::<u32>,
        Dtype::I32 => typed::<i32>,
        Dtype::U64 => typed::<u64>,
        Dtype::I64 => typed::<i64>,
        _ => {
            let error = bigsmall_codec::Error::new(Rule::SpecMismatch);
            return Err(error.expected("floats or integers of 8 to 64 bits").found(dtype));
        }
    };
    of(frame, base)
}

fn typed<T: Element>(frame: &[u8], base: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    // Copied: the buffer of a caller may begin at any address.
    let base: Vec<T> = bytemuck::allocation::pod_collect_to_vec(base);
    let found = bigsmall_codec::changes(frame, &base)?;
    let places = found.indices.iter().flat_map(|i| i.to_le_bytes()).collect();
    Ok((places, bytemuck::cast_slice(&found.values).to_vec()))
}
