//! The model on a device, and the commands of its layers.

use bigsmall_gpu::{Heads, Recorder, Result, Wgpu, WgpuWeights, wgpu};

use crate::config::Config;
use crate::generate::BATCH;
use crate::weights::{Matrices, Stream};

/// A model on a device.
pub(crate) struct Llama<'a> {
    pub(crate) gpu: &'a Wgpu,
    pub(crate) config: &'a Config,
    /// The largest number of tokens, including the prompt.
    pub(crate) context: usize,
    pub(crate) embedding: WgpuWeights,
    /// `None` if the embedding is also the output matrix.
    pub(crate) head: Option<WgpuWeights>,
    pub(crate) norm: wgpu::Buffer,
    pub(crate) layers: Vec<Layer>,
    /// The matrices of the first layers, which stay on the device.
    pub(crate) resident: Vec<Matrices<WgpuWeights>>,
    /// The other layers, which are sent for every token.
    pub(crate) stream: Option<Stream>,
    pub(crate) vectors: Vectors,
}

/// The buffers that every layer keeps on the device.
pub(crate) struct Layer {
    pub(crate) norms: [wgpu::Buffer; 2],
    pub(crate) keys: wgpu::Buffer,
    pub(crate) values: wgpu::Buffer,
}

/// The vectors between the kernels, `BATCH` of each.
pub(crate) struct Vectors {
    /// Tokens to embed. `argmax` writes the next token to the front.
    pub(crate) ids: wgpu::Buffer,
    angles: wgpu::Buffer,
    hidden: wgpu::Buffer,
    normed: wgpu::Buffer,
    queries: wgpu::Buffer,
    keys: wgpu::Buffer,
    values: wgpu::Buffer,
    attended: wgpu::Buffer,
    gate: wgpu::Buffer,
    up: wgpu::Buffer,
    last: wgpu::Buffer,
    pub(crate) logits: wgpu::Buffer,
}

impl Vectors {
    pub(crate) fn new(gpu: &Wgpu, config: &Config, context: usize) -> Result<Self> {
        let Heads { queries, keys, dim } = config.heads;
        let vectors = |n: usize| gpu.new_buffer(BATCH * n);
        let angles = gpu.new_buffer(context * dim)?;
        let each = |t: usize| config.turns.iter().map(move |turn| t as f64 * turn);
        let table: Vec<f32> =
            (0..context).flat_map(each).flat_map(|a| [a.cos() as f32, a.sin() as f32]).collect();
        gpu.write_buffer(&angles, &table)?;
        Ok(Vectors {
            ids: vectors(1)?,
            angles,
            hidden: vectors(config.hidden)?,
            normed: vectors(config.hidden)?,
            queries: vectors(queries * dim)?,
            keys: vectors(keys * dim)?,
            values: vectors(keys * dim)?,
            attended: vectors(queries * dim)?,
            gate: vectors(config.ffn)?,
            up: vectors(config.ffn)?,
            last: gpu.new_buffer(config.hidden)?,
            logits: gpu.new_buffer(config.vocabulary)?,
        })
    }

    pub(crate) fn byte_len(&self) -> u64 {
        let Vectors { ids, angles, hidden, normed, queries, keys, values, .. } = self;
        let Vectors { attended, gate, up, last, logits, .. } = self;
        [ids, angles, hidden, normed, queries, keys, values, attended, gate, up, last, logits]
            .map(wgpu::Buffer::size)
            .iter()
            .sum()
    }
}

impl Llama<'_> {
    /// Embeds `rows` tokens and computes the layers that are resident.
    pub(crate) fn begin(&self, r: &mut Recorder<'_>, rows: usize, position: usize) -> Result<()> {
        let v = &self.vectors;
        r.gather(&self.embedding, &v.ids, rows, &v.hidden)?;
        for (layer, matrices) in self.layers.iter().zip(&self.resident) {
            self.layer(r, layer, matrices, rows, position)?;
        }
        Ok(())
    }

    pub(crate) fn layer(
        &self,
        r: &mut Recorder<'_>,
        layer: &Layer,
        matrices: &Matrices<WgpuWeights>,
        rows: usize,
        position: usize,
    ) -> Result<()> {
        let (v, config) = (&self.vectors, self.config);
        let (hidden, epsilon, heads) = (config.hidden, config.epsilon, config.heads);
        let [q, k, v_proj, o, gate, up, down] = matrices;

        r.rms_norm(&v.hidden, &layer.norms[0], epsilon, rows, hidden, &v.normed)?;
        r.matmul(q, &v.normed, rows, &v.queries)?;
        r.matmul(k, &v.normed, rows, &v.keys)?;
        r.matmul(v_proj, &v.normed, rows, &v.values)?;
        r.rope_in_place(&v.queries, &v.angles, heads.queries, heads.dim, position, rows)?;
        r.rope_in_place(&v.keys, &v.angles, heads.keys, heads.dim, position, rows)?;
        let row = 4 * (heads.keys * heads.dim) as u64;
        let (at, len) = (position as u64 * row, rows as u64 * row);
        r.encoder().copy_buffer_to_buffer(&v.keys, 0, &layer.keys, at, len);
        r.encoder().copy_buffer_to_buffer(&v.values, 0, &layer.values, at, len);
        let (keys, values) = (&layer.keys, &layer.values);
        r.attention(&v.queries, keys, values, heads, position, rows, &v.attended)?;
        r.matmul(o, &v.attended, rows, &v.normed)?;
        r.add_in_place(&v.hidden, &v.normed, rows * hidden)?;

        r.rms_norm(&v.hidden, &layer.norms[1], epsilon, rows, hidden, &v.normed)?;
        r.matmul(gate, &v.normed, rows, &v.gate)?;
        r.matmul(up, &v.normed, rows, &v.up)?;
        r.silu_mul_in_place(&v.gate, &v.up, rows * config.ffn)?;
        r.matmul(down, &v.gate, rows, &v.normed)?;
        r.add_in_place(&v.hidden, &v.normed, rows * hidden)
    }

    /// The logits after the last token, and the likeliest next one.
    pub(crate) fn finish(&self, r: &mut Recorder<'_>, rows: usize) -> Result<()> {
        let (v, config) = (&self.vectors, self.config);
        let row = 4 * config.hidden as u64;
        r.encoder().copy_buffer_to_buffer(&v.hidden, (rows - 1) as u64 * row, &v.last, 0, row);
        r.rms_norm(&v.last, &self.norm, config.epsilon, 1, config.hidden, &v.normed)?;
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        r.matmul(head, &v.normed, 1, &v.logits)?;
        r.argmax(&v.logits, config.vocabulary, &v.ids)
    }
}
