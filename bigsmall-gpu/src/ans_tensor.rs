//! Tensors in ANS form that the device decodes: for loading, and for models larger than the device,
//! whose matrices use the same memory in turn.

use std::borrow::Cow;

use bigsmall_format::{Dtype, EncodedTensor, Error as FormatError, Rule};

use crate::ans::{AnsPlan, readable};
use crate::context::Wgpu;
use crate::device::Device;
use crate::dispatch::fold;
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::Kernel;
use crate::layout::Resident;
use crate::matrix::Matrix;
use crate::recorder::Recorder;
use crate::weights::WgpuWeights;
use crate::writer::Writer;

/// The largest number of bytes of a tensor, encoded or decoded: the kernels count in 31 bits.
pub(crate) const MOST_BYTES: u64 = (1 << 31) - 1;

/// A bf16 tensor in ANS form in the memory of a device, at about two thirds of its size. It belongs
/// to the [`Wgpu`] that sent it; another one refuses it.
pub struct AnsTensor {
    name: Box<str>,
    /// The number of the device that holds it.
    device: u64,
    n_blocks: u64,
    n_patches: u64,
    n_units: u64,
    params: [u32; 8],
    payload: wgpu::Buffer,
    blocks: wgpu::Buffer,
    tables: wgpu::Buffer,
    patches: wgpu::Buffer,
    verdicts: wgpu::Buffer,
}

impl AnsTensor {
    /// Bytes that it takes on the device.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        [&self.payload, &self.blocks, &self.tables, &self.patches, &self.verdicts]
            .map(wgpu::Buffer::size)
            .iter()
            .sum()
    }
}

impl std::fmt::Debug for AnsTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnsTensor")
            .field("name", &self.name)
            .field("byte_len", &self.byte_len())
            .finish_non_exhaustive()
    }
}

/// A bf16 tensor in ANS form in the memory of the host, validated and laid out for the kernels. It
/// can be sent to a device many times.
pub struct PreparedAns {
    tensor: EncodedTensor,
    plan: AnsPlan,
}

impl PreparedAns {
    /// Validates headers, tables and exceptions of `tensor`. Errors that only decoding can find are
    /// reported by [`check_ans`](Wgpu::check_ans). Blocks of a kind that the kernels do not support
    /// (masks of zeros, DEFLATE, columns) are decoded here, on the host, and sent to the device
    /// decoded.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] for another dtype or encoding; of class Corrupt for a payload that
    /// breaks the format; [`ErrorKind::TooLarge`] for 2 GiB or more.
    pub fn new(tensor: EncodedTensor) -> Result<Self> {
        let of_tensor = |e: Error| e.in_tensor(tensor.spec().name());
        let decoded = match readable(&tensor).map_err(|e| of_tensor(e.into()))? {
            Cow::Borrowed(_) => None,
            Cow::Owned(decoded) => Some(decoded),
        };
        let plan = plan_of(decoded.as_ref().unwrap_or(&tensor)).map_err(of_tensor)?;
        Ok(PreparedAns { tensor: decoded.unwrap_or(tensor), plan })
    }

    /// The tensor.
    #[must_use]
    pub fn tensor(&self) -> &EncodedTensor {
        &self.tensor
    }

    /// Bytes that it takes on a device. It takes about as many on the host.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        device_words(&self.tensor, &self.plan).iter().map(|&n| 4 * n.max(4) as u64).sum()
    }
}

impl std::fmt::Debug for PreparedAns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PreparedAns")
            .field("name", &self.tensor.spec().name())
            .field("byte_len", &self.byte_len())
            .finish_non_exhaustive()
    }
}

/// Prepares a tensor for the kernels.
pub(crate) fn plan_of(tensor: &EncodedTensor) -> Result<AnsPlan> {
    let spec = tensor.spec();
    if spec.dtype() != Dtype::BF16 {
        return Err(Error::new(ErrorKind::Mismatch).expected(Dtype::BF16).found(spec.dtype()));
    }
    let byte_len = spec.byte_len().max(tensor.byte_len());
    if byte_len > MOST_BYTES {
        return Err(Error::new(ErrorKind::TooLarge).expected("less than 2 GiB").found(byte_len));
    }
    Ok(AnsPlan::new(tensor)?)
}

/// Words of payload, blocks, tables, patches and verdicts.
fn device_words(tensor: &EncodedTensor, plan: &AnsPlan) -> [usize; 5] {
    let n_blocks = tensor.table().n_blocks() as usize;
    let payload = tensor.byte_len().div_ceil(4) as usize;
    [payload, plan.blocks.len(), plan.tables.len(), 2 * plan.patches.len(), n_blocks]
}

/// Writes a tensor to new buffers of the device.
pub(crate) fn write_ans(
    device: &Device,
    tensor: &EncodedTensor,
    plan: &AnsPlan,
    writer: &mut Writer<'_>,
) -> Result<AnsTensor> {
    let most = device.limits.max_storage_buffer_binding_size;
    let [payload, blocks, tables, patches, verdicts] = device_words(tensor, plan);
    if tensor.byte_len() > most {
        return Err(Error::new(ErrorKind::TooLarge)
            .expected(format!("at most {most} bytes"))
            .found(tensor.byte_len()));
    }
    let n_blocks = tensor.table().n_blocks();
    let written = AnsTensor {
        name: tensor.spec().name().into(),
        device: device.id,
        n_blocks,
        n_patches: plan.patches.len() as u64,
        n_units: plan.n_units,
        params: [
            n_blocks as u32,
            plan.m,
            plan.symbol_bits,
            plan.base,
            plan.first,
            plan.patches.len() as u32,
            plan.block_units as u32,
            0,
        ],
        payload: device.storage("ANS payload", payload)?,
        blocks: device.storage("ANS blocks", blocks)?,
        tables: device.storage("ANS tables", tables)?,
        patches: device.storage("ANS patches", patches)?,
        verdicts: device.storage("ANS verdicts", verdicts)?,
    };
    // A payload is padded to a multiple of 8 bytes, so it consists of whole words.
    for (i, piece) in tensor.payload().chunks(16 << 20).enumerate() {
        writer.write_bytes(&written.payload, i as u64 * (16 << 20), piece)?;
    }
    writer.write(&written.blocks, 0, &plan.blocks)?;
    writer.write(&written.tables, 0, &plan.tables)?;
    writer.write(&written.patches, 0, plan.patches.as_flattened())?;
    Ok(written)
}

impl Wgpu {
    /// Sends a tensor to the device without waiting. Commands that are submitted later can use it.
    ///
    /// Memory on the host: another copy, until the device has received the tensor.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] for a tensor that exceeds what the device can bind;
    /// [`ErrorKind::OutOfMemory`].
    pub fn send_ans(&self, tensor: &PreparedAns) -> Result<AnsTensor> {
        let PreparedAns { tensor, plan } = tensor;
        let device = &self.device;
        let send = || write_ans(device, tensor, plan, &mut Writer::unbounded(device));
        device.guarded(send).map_err(|e| e.in_tensor(tensor.spec().name()))
    }

    /// Waits for the device, and checks whether the last decoding of `tensor` found an error.
    ///
    /// # Errors
    /// [`ErrorKind::Encoded`], of rule [`AnsWords`](Rule::AnsWords) or
    /// [`AnsEndState`](Rule::AnsEndState); [`ErrorKind::WrongDevice`] for a tensor of another
    /// device; [`ErrorKind::DeviceLost`].
    pub fn check_ans(&self, tensor: &AnsTensor) -> Result<()> {
        self.device.check_owner(tensor.device, &tensor.name)?;
        let mut verdicts = vec![0u32; tensor.n_blocks as usize];
        self.read_buffer(&tensor.verdicts, &mut verdicts)?;
        match verdicts.iter().position(|&v| v != 0) {
            None => Ok(()),
            Some(block) => {
                let rule = if verdicts[block] == 1 { Rule::AnsWords } else { Rule::AnsEndState };
                let error = FormatError::new(rule).in_tensor(&tensor.name);
                Err(error.found(format!("in block {block}")).into())
            }
        }
    }

    /// A matrix of zeros in the plain resident form, for
    /// [`decode_ans_to`](Recorder::decode_ans_to).
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] for a row that exceeds the device's limits;
    /// [`ErrorKind::OutOfMemory`].
    pub fn new_plain(&self, name: &str, rows: usize, cols: usize) -> Result<WgpuWeights> {
        let matrix = Matrix::zeros(&self.device, rows, cols).map_err(|e| e.in_tensor(name))?;
        Ok(WgpuWeights::new(&self.device, name, matrix))
    }
}

impl Recorder<'_> {
    /// Records the decoding of a tensor into `dst`: bf16, row-major, without padding.
    ///
    /// # Errors
    /// [`ErrorKind::WrongDevice`] for a tensor of another device; [`ErrorKind::BufferLength`] if
    /// `dst` is too short (in whole words); [`ErrorKind::TooLarge`] if it is larger than the device
    /// can bind.
    pub fn decode_ans(&mut self, tensor: &AnsTensor, dst: &wgpu::Buffer) -> Result<()> {
        let device = &self.gpu.device;
        device.check_owner(tensor.device, &tensor.name)?;
        device.check_bound(dst, 4 * tensor.n_units.div_ceil(2))?;
        if tensor.n_blocks == 0 {
            return Ok(());
        }
        let AnsTensor { payload, blocks, tables, patches, verdicts, params, .. } = tensor;
        let bindings = [(1, payload), (2, dst), (3, blocks), (4, tables), (5, verdicts)];
        let kernel = Kernel::Rans { subgroups: device.subgroups };
        self.dispatch(kernel, params, &bindings, fold(tensor.n_blocks, device)?)?;
        if tensor.n_patches > 0 {
            let grid = fold(tensor.n_patches.div_ceil(256), device)?;
            self.dispatch(Kernel::RansPatch, params, &[(1, patches), (2, dst)], grid)?;
        }
        Ok(())
    }

    /// Records the decoding of a matrix into `weights`, which must have the same shape and the
    /// plain resident form. The old values of `weights` are lost. `scratch` holds the decoded
    /// weights before they are packed; its contents are unspecified afterwards.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] for another shape or form; those of [`decode_ans`](Self::decode_ans)
    /// for `scratch`.
    pub fn decode_ans_to(
        &mut self,
        tensor: &AnsTensor,
        scratch: &wgpu::Buffer,
        weights: &WgpuWeights,
    ) -> Result<()> {
        self.gpu.device.check_owner(weights.device, weights.name())?;
        let n = weights.rows() as u64 * weights.cols() as u64;
        if n != tensor.n_units || (n > 0 && weights.resident() != Resident::Plain) {
            return Err(Error::new(ErrorKind::Mismatch)
                .in_tensor(&tensor.name)
                .expected(format!("{} weights in the form \"plain\"", tensor.n_units))
                .found(format!("{n} in the form {:?}", weights.resident().name())));
        }
        self.decode_ans(tensor, scratch)?;
        self.pack_plain(scratch, &weights.matrix)
    }
}
