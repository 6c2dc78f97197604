//! ANS decoded on the device: for loading.

use bigsmall_format::{BLOCK_UNITS, EncodedTensor, Error, Result, Rule};

use crate::ans::AnsPlan;
use crate::backend::{Wgpu, fold};
use crate::kernels::Kernel;
use crate::layout::{Resident, RowShape};
use crate::upload::{Matrix, Writer};
use crate::weights::WgpuWeights;

/// A bf16 tensor in ANS form in the memory of a device, at about two thirds of its size.
pub struct AnsTensor {
    name: Box<str>,
    /// The number of the device that holds it.
    device: u64,
    n_blocks: u64,
    n_patches: u64,
    n_units: u64,
    params: wgpu::Buffer,
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

/// A bf16 tensor in ANS form in the memory of the host, validated and taken apart, to be sent to a
/// device as often as it is wanted.
pub struct PreparedAns {
    tensor: EncodedTensor,
    plan: AnsPlan,
}

impl PreparedAns {
    /// Takes `tensor` apart. Headers, tables and exceptions are validated; what only decoding
    /// shows, [`check_ans`](Wgpu::check_ans) reports.
    ///
    /// # Errors
    /// [`Rule::SpecMismatch`] for another dtype or encoding; of class Corrupt for a payload that
    /// breaks the format.
    pub fn new(tensor: EncodedTensor) -> Result<Self> {
        let plan = AnsPlan::new(&tensor).map_err(|e| e.in_tensor(tensor.spec().name()))?;
        Ok(PreparedAns { tensor, plan })
    }

    /// The tensor.
    #[must_use]
    pub fn tensor(&self) -> &EncodedTensor {
        &self.tensor
    }

    /// Bytes that it takes on a device, and about as many as it takes here.
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

/// Words of payload, blocks, tables, patches and verdicts.
fn device_words(tensor: &EncodedTensor, plan: &AnsPlan) -> [usize; 5] {
    let n_blocks = tensor.table().n_blocks() as usize;
    let payload = tensor.byte_len().div_ceil(4) as usize;
    [payload, plan.blocks.len(), plan.tables.len(), 2 * plan.patches.len(), n_blocks]
}

impl Wgpu {
    /// Takes a bf16 tensor in ANS form to the device as it is. Headers, tables and exceptions are
    /// validated first; what only decoding shows, [`check_ans`](Self::check_ans) reports.
    ///
    /// Memory on the host: an index of half a per cent, and 32 MiB.
    ///
    /// # Errors
    /// [`Rule::SpecMismatch`] for another dtype or encoding; of class Corrupt for a payload that
    /// breaks the format; [`Rule::Device`] for one that exceeds what the device can bind;
    /// [`Rule::Memory`].
    pub fn load_ans(&self, tensor: &EncodedTensor) -> Result<AnsTensor> {
        let name = tensor.spec().name();
        let load = || {
            let plan = AnsPlan::new(tensor)?;
            let mut writer = Writer::new(&self.device);
            let loaded = self.write_ans(tensor, &plan, &mut writer)?;
            writer.flush()?;
            Ok(loaded)
        };
        self.device.guarded(load).map_err(|e| e.in_tensor(name))
    }

    /// Takes a tensor to the device without waiting for it: what is submitted next finds it there.
    ///
    /// Memory on the host: another copy, until the device has taken it.
    ///
    /// # Errors
    /// [`Rule::Device`] for one that exceeds what the device can bind; [`Rule::Memory`].
    pub fn send_ans(&self, tensor: &PreparedAns) -> Result<AnsTensor> {
        let PreparedAns { tensor, plan } = tensor;
        let send = || self.write_ans(tensor, plan, &mut Writer::unbounded(&self.device));
        self.device.guarded(send).map_err(|e| e.in_tensor(tensor.spec().name()))
    }

    fn write_ans(
        &self,
        tensor: &EncodedTensor,
        plan: &AnsPlan,
        writer: &mut Writer<'_>,
    ) -> Result<AnsTensor> {
        let device = &self.device;
        let most = device.limits.max_storage_buffer_binding_size;
        let [payload, blocks, tables, patches, verdicts] = device_words(tensor, plan);
        if tensor.byte_len() > most {
            return Err(Error::new(Rule::Device)
                .expected(format!("at most {most} bytes"))
                .found(tensor.byte_len()));
        }
        let n_blocks = tensor.table().n_blocks();
        let loaded = AnsTensor {
            name: tensor.spec().name().into(),
            device: device.id,
            n_blocks,
            n_patches: plan.patches.len() as u64,
            n_units: plan.n_units,
            params: device.uniform(bytemuck::cast_slice(&[
                n_blocks as u32,
                plan.m,
                plan.symbol_bits,
                plan.base,
                plan.first,
                plan.patches.len() as u32,
                BLOCK_UNITS as u32,
                0,
            ])),
            payload: device.storage("ANS payload", payload)?,
            blocks: device.storage("ANS blocks", blocks)?,
            tables: device.storage("ANS tables", tables)?,
            patches: device.storage("ANS patches", patches)?,
            verdicts: device.storage("ANS verdicts", verdicts)?,
        };
        // Padded to multiples of 8 bytes, so that whole words are all there is.
        for (i, piece) in tensor.payload().chunks(16 << 20).enumerate() {
            writer.write_bytes(&loaded.payload, i as u64 * (16 << 20), piece)?;
        }
        writer.write(&loaded.blocks, 0, &plan.blocks)?;
        writer.write(&loaded.tables, 0, &plan.tables)?;
        writer.write(&loaded.patches, 0, plan.patches.as_flattened())?;
        Ok(loaded)
    }

    /// Records the decoding of a tensor into `dst`: bf16, row-major, without padding.
    ///
    /// # Errors
    /// [`Rule::BufferLength`] when `dst` is too short (in whole words); [`Rule::Device`] when it is
    /// larger than the device can bind.
    pub fn decode_ans_into(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        tensor: &AnsTensor,
        dst: &wgpu::Buffer,
    ) -> Result<()> {
        self.device.check_owner(tensor.device, &tensor.name)?;
        self.check_bound(dst, 4 * tensor.n_units.div_ceil(2))?;
        if tensor.n_blocks == 0 {
            return Ok(());
        }
        self.device.guarded(|| {
            let bindings = [
                (0, &tensor.params),
                (1, &tensor.payload),
                (2, dst),
                (3, &tensor.blocks),
                (4, &tensor.tables),
                (5, &tensor.verdicts),
            ];
            let grid = fold(tensor.n_blocks, &self.device)?;
            self.dispatch_bound(
                encoder,
                Kernel::Rans { subgroups: self.device.subgroups },
                &bindings,
                grid,
            );
            if tensor.n_patches > 0 {
                let bindings = [(0, &tensor.params), (1, &tensor.patches), (2, dst)];
                let grid = fold(tensor.n_patches.div_ceil(256), &self.device)?;
                self.dispatch_bound(encoder, Kernel::RansPatch, &bindings, grid);
            }
            Ok(())
        })
    }

    /// Waits, and says whether the last decoding of `tensor` found it whole.
    ///
    /// # Errors
    /// [`Rule::AnsWords`], [`Rule::AnsEndState`], [`Rule::DeviceLost`].
    pub fn check_ans(&self, tensor: &AnsTensor) -> Result<()> {
        self.device.check_owner(tensor.device, &tensor.name)?;
        let mut verdicts = vec![0u32; tensor.n_blocks as usize];
        self.read_buffer(&tensor.verdicts, &mut verdicts)?;
        match verdicts.iter().position(|&v| v != 0) {
            None => Ok(()),
            Some(block) => {
                let rule = if verdicts[block] == 1 { Rule::AnsWords } else { Rule::AnsEndState };
                Err(Error::new(rule).in_tensor(&tensor.name).found(format!("in block {block}")))
            }
        }
    }

    /// A matrix of zeros in the plain resident form, for [`decode_ans_to`](Self::decode_ans_to).
    ///
    /// # Errors
    /// [`Rule::Device`] for a row that exceeds the device's limits; [`Rule::Memory`].
    pub fn new_plain(&self, name: &str, rows: usize, cols: usize) -> Result<WgpuWeights> {
        let mut matrix = Matrix::empty(rows, RowShape::new(cols), None);
        if rows > 0 && cols > 0 {
            matrix.shards = self.plain_shards(rows, &matrix.shape)?;
        }
        Ok(WgpuWeights::new(&self.device, name, matrix))
    }

    /// Records the decoding of a matrix into `weights`, which has its shape and the plain resident
    /// form and loses what it held. `scratch` holds the weights in between and nothing after.
    ///
    /// # Errors
    /// [`Rule::SpecMismatch`] for another shape or form; those of
    /// [`decode_ans_into`](Self::decode_ans_into) for `scratch`.
    pub fn decode_ans_to(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        tensor: &AnsTensor,
        scratch: &wgpu::Buffer,
        weights: &WgpuWeights,
    ) -> Result<()> {
        self.device.check_owner(weights.device, weights.name())?;
        let n = weights.rows() as u64 * weights.cols() as u64;
        if n != tensor.n_units || (n > 0 && weights.resident() != Resident::Plain) {
            return Err(Error::new(Rule::SpecMismatch)
                .in_tensor(&tensor.name)
                .expected(format!("{} plain weights", tensor.n_units))
                .found(format!("{weights:?}")));
        }
        self.decode_ans_into(encoder, tensor, scratch)?;
        self.device.guarded(|| self.pack_plain(encoder, scratch, weights))
    }
}
