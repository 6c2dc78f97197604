//! A GPU, through wgpu.

use bigsmall_codec::Ans;
use bigsmall_format::{EncodedTensor, EncodingId, encode_tensor};
use bigsmall_gpu::{
    AnsTensor, Heads as GpuHeads, PreparedAns, Recorder, Resident, UploadOptions, Wgpu,
    WgpuWeights, wgpu,
};

use crate::Result;
use crate::backend::{Backend, Matrices, Operations, each_matrix};
use crate::config::Heads;
use crate::source::{Source, decoded};

impl Backend for Wgpu {
    const NAME: &'static str = "gpu";
    const BATCH: usize = 32;
    const RECORDS_AHEAD: bool = true;
    const PLAIN: Resident = Resident::Plain;

    type Form = Resident;
    type Matrix = WgpuWeights;
    type Vector = wgpu::Buffer;
    type Ids = wgpu::Buffer;
    type Commands = wgpu::CommandBuffer;
    type Packed = PreparedAns;
    type Sent = Matrices<AnsTensor>;
    type Scratch = wgpu::Buffer;
    type Operations<'a> = Recorder<'a>;

    fn description(&self) -> String {
        Wgpu::description(self)
    }

    fn matrix(&self, tensor: &EncodedTensor, form: Option<Resident>) -> Result<WgpuWeights> {
        Ok(self.upload_with(tensor, &UploadOptions::new().form(form))?)
    }

    fn matrix_bytes(matrix: &WgpuWeights) -> u64 {
        matrix.byte_len()
    }

    fn vector(&self, n: usize) -> Result<wgpu::Buffer> {
        Ok(self.new_buffer(n)?)
    }

    fn vector_bytes(vector: &wgpu::Buffer) -> u64 {
        vector.size()
    }

    fn write(&self, vector: &wgpu::Buffer, values: &[f32]) -> Result<()> {
        Ok(self.write_buffer(vector, values)?)
    }

    fn read(&self, vector: &wgpu::Buffer, values: &mut [f32]) -> Result<()> {
        Ok(self.read_buffer(vector, values)?)
    }

    fn ids(&self, n: usize) -> Result<wgpu::Buffer> {
        Ok(self.new_buffer(n)?)
    }

    fn write_ids(&self, ids: &wgpu::Buffer, values: &[u32]) -> Result<()> {
        Ok(self.write_buffer(ids, values)?)
    }

    fn record(
        &self,
        record: impl FnOnce(&mut Recorder<'_>) -> Result<()>,
    ) -> Result<wgpu::CommandBuffer> {
        let mut outcome = Ok(());
        let commands = Wgpu::record(self, |recorder| {
            outcome = record(recorder);
            Ok(())
        })?;
        outcome.map(|()| commands)
    }

    fn run<M>(
        &self,
        commands: wgpu::CommandBuffer,
        from: &wgpu::Buffer,
        ids: &mut [u32],
        meanwhile: impl FnOnce() -> Result<M>,
    ) -> Result<M> {
        self.submit_and_read(commands, from, ids, || Ok(meanwhile()))?
    }

    /// In ANS form on the host.
    fn pack(&self, source: &Source, name: &str, shape: [usize; 2]) -> Result<PreparedAns> {
        let tensor = source.matrix(name, shape)?;
        if tensor.encoding() == EncodingId::Ans {
            return Ok(PreparedAns::new(tensor)?);
        }
        let bytes = decoded(&tensor)?;
        Ok(PreparedAns::new(encode_tensor(&Ans::default(), tensor.spec(), &bytes)?)?)
    }

    fn packed_tensor(packed: &PreparedAns) -> Result<EncodedTensor> {
        Ok(packed.tensor().clone())
    }

    fn packed_bytes(packed: &PreparedAns) -> u64 {
        packed.byte_len()
    }

    fn place(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<WgpuWeights> {
        Ok(self.new_plain(name, rows, cols)?)
    }

    fn scratch(&self, bytes: u64) -> Result<(wgpu::Buffer, u64)> {
        let buffer = self.new_buffer(bytes.div_ceil(4) as usize)?;
        let bytes = buffer.size();
        Ok((buffer, bytes))
    }

    fn check(&self, packed: &PreparedAns, scratch: &wgpu::Buffer) -> Result<()> {
        let sent = self.send_ans(packed)?;
        self.submit(|r| r.decode_ans(&sent, scratch))?;
        Ok(self.check_ans(&sent)?)
    }

    fn send(&self, layer: &Matrices<PreparedAns>) -> Result<Self::Sent> {
        each_matrix(|which| Ok(self.send_ans(&layer[which])?))
    }
}

// The recorder's own methods of the same names are those that are called.
impl Operations for Recorder<'_> {
    type Backend = Wgpu;

    fn embed(
        &mut self,
        matrix: &WgpuWeights,
        ids: &wgpu::Buffer,
        rows: usize,
        y: &wgpu::Buffer,
    ) -> Result<()> {
        Ok(self.gather(matrix, ids, rows, y)?)
    }

    fn matmul<const N: usize>(
        &mut self,
        matrices: [&WgpuWeights; N],
        x: &wgpu::Buffer,
        rows: usize,
        y: [&wgpu::Buffer; N],
    ) -> Result<()> {
        for (matrix, y) in matrices.iter().zip(y) {
            self.matmul(matrix, x, rows, y)?;
        }
        Ok(())
    }

    fn rms_norm(
        &mut self,
        x: &wgpu::Buffer,
        weight: &wgpu::Buffer,
        epsilon: f32,
        rows: usize,
        n: usize,
        y: &wgpu::Buffer,
    ) -> Result<()> {
        Ok(self.rms_norm(x, weight, epsilon, rows, n, y)?)
    }

    fn rope(
        &mut self,
        x: &wgpu::Buffer,
        angles: &wgpu::Buffer,
        heads: usize,
        dim: usize,
        position: usize,
        rows: usize,
    ) -> Result<()> {
        Ok(self.rope_in_place(x, angles, heads, dim, position, rows)?)
    }

    fn copy(
        &mut self,
        from: &wgpu::Buffer,
        at: usize,
        to: &wgpu::Buffer,
        to_at: usize,
        n: usize,
    ) -> Result<()> {
        let [at, to_at, n] = [at, to_at, n].map(|n| 4 * n as u64);
        self.encoder().copy_buffer_to_buffer(from, at, to, to_at, n);
        Ok(())
    }

    fn attention(
        &mut self,
        queries: &wgpu::Buffer,
        keys: &wgpu::Buffer,
        values: &wgpu::Buffer,
        Heads { queries: n, keys: n_keys, dim }: Heads,
        position: usize,
        rows: usize,
        y: &wgpu::Buffer,
    ) -> Result<()> {
        let heads = GpuHeads { queries: n, keys: n_keys, dim };
        Ok(self.attention(queries, keys, values, heads, position, rows, y)?)
    }

    fn silu_mul(&mut self, gate: &wgpu::Buffer, up: &wgpu::Buffer, n: usize) -> Result<()> {
        Ok(self.silu_mul_in_place(gate, up, n)?)
    }

    fn add(&mut self, x: &wgpu::Buffer, y: &wgpu::Buffer, n: usize) -> Result<()> {
        Ok(self.add_in_place(x, y, n)?)
    }

    fn argmax(&mut self, x: &wgpu::Buffer, n: usize, to: &wgpu::Buffer) -> Result<()> {
        Ok(self.argmax(x, n, to)?)
    }

    fn unpack(
        &mut self,
        sent: &Matrices<AnsTensor>,
        scratch: &wgpu::Buffer,
        place: &Matrices<WgpuWeights>,
    ) -> Result<()> {
        for (sent, place) in sent.iter().zip(place) {
            self.decode_ans_to(sent, scratch, place)?;
        }
        Ok(())
    }
}
