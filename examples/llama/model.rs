//! The model: its layers, as operations of a backend.

use crate::Result;
use crate::backend::{Backend, Matrices, Operations};
use crate::config::{Config, Heads};
use crate::weights::Stream;

/// A model in the memory of a backend.
pub(crate) struct Llama<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) config: &'a Config,
    /// The largest number of tokens, including the prompt.
    pub(crate) context: usize,
    pub(crate) embedding: B::Matrix,
    /// `None` if the embedding is also the output matrix.
    pub(crate) head: Option<B::Matrix>,
    pub(crate) norm: B::Vector,
    pub(crate) layers: Vec<Layer<B>>,
    /// The matrices of the first layers, which stay in memory.
    pub(crate) resident: Vec<Matrices<B::Matrix>>,
    /// The other layers, which are sent for every token.
    pub(crate) stream: Option<Stream<B>>,
    pub(crate) vectors: Vectors<B>,
}

/// The vectors that every layer keeps.
pub(crate) struct Layer<B: Backend> {
    pub(crate) norms: [B::Vector; 2],
    /// The norms of queries and keys.
    pub(crate) head_norms: Option<[B::Vector; 2]>,
    /// A copy for each token of a batch.
    pub(crate) biases: Matrices<Option<B::Vector>>,
    pub(crate) keys: B::Vector,
    pub(crate) values: B::Vector,
}

/// The vectors between the operations, one for each token of a batch.
pub(crate) struct Vectors<B: Backend> {
    /// Tokens to embed. `argmax` writes the next token to the front.
    pub(crate) ids: B::Ids,
    pub(crate) angles: B::Vector,
    pub(crate) hidden: B::Vector,
    pub(crate) normed: B::Vector,
    pub(crate) queries: B::Vector,
    pub(crate) keys: B::Vector,
    pub(crate) values: B::Vector,
    /// Queries and keys after their norm.
    pub(crate) normed_heads: Option<[B::Vector; 2]>,
    pub(crate) attended: B::Vector,
    pub(crate) gate: B::Vector,
    pub(crate) up: B::Vector,
    pub(crate) last: B::Vector,
    pub(crate) logits: B::Vector,
}

impl<B: Backend> Vectors<B> {
    pub(crate) fn new(backend: &B, config: &Config, context: usize) -> Result<Self> {
        let Heads { queries, keys, dim } = config.heads;
        let vectors = |n: usize| backend.vector(B::BATCH * n);
        let angles = backend.vector(context * dim)?;
        let each = |t: usize| config.turns.iter().map(move |turn| t as f64 * turn);
        let table: Vec<f32> =
            (0..context).flat_map(each).flat_map(|a| [a.cos() as f32, a.sin() as f32]).collect();
        backend.write(&angles, &table)?;
        let normed_heads =
            || Ok::<_, crate::Error>([vectors(queries * dim)?, vectors(keys * dim)?]);
        Ok(Vectors {
            ids: backend.ids(B::BATCH)?,
            angles,
            hidden: vectors(config.hidden)?,
            normed: vectors(config.hidden)?,
            queries: vectors(queries * dim)?,
            keys: vectors(keys * dim)?,
            values: vectors(keys * dim)?,
            normed_heads: config.qk_norm.then(normed_heads).transpose()?,
            attended: vectors(queries * dim)?,
            gate: vectors(config.ffn)?,
            up: vectors(config.ffn)?,
            last: backend.vector(config.hidden)?,
            logits: backend.vector(config.vocabulary)?,
        })
    }

    pub(crate) fn byte_len(&self) -> u64 {
        let Vectors { angles, hidden, normed, queries, keys, values, attended, .. } = self;
        let Vectors { gate, up, last, logits, .. } = self;
        [angles, hidden, normed, queries, keys, values, attended, gate, up, last, logits]
            .into_iter()
            .chain(self.normed_heads.iter().flatten())
            .map(B::vector_bytes)
            .sum::<u64>()
            + 4 * B::BATCH as u64
    }
}

impl<B: Backend> Llama<'_, B> {
    /// Embeds `rows` tokens and computes the layers that are resident.
    pub(crate) fn begin(
        &self,
        r: &mut B::Operations<'_>,
        rows: usize,
        position: usize,
    ) -> Result<()> {
        let v = &self.vectors;
        r.embed(&self.embedding, &v.ids, rows, &v.hidden)?;
        for (layer, matrices) in self.layers.iter().zip(&self.resident) {
            self.layer(r, layer, matrices, rows, position)?;
        }
        Ok(())
    }

    pub(crate) fn layer(
        &self,
        r: &mut B::Operations<'_>,
        layer: &Layer<B>,
        matrices: &Matrices<B::Matrix>,
        rows: usize,
        position: usize,
    ) -> Result<()> {
        let (v, config) = (&self.vectors, self.config);
        let (hidden, epsilon, heads) = (config.hidden, config.epsilon, config.heads);
        let [q, k, v_proj, o, gate, up, down] = matrices;
        let biased =
            |r: &mut B::Operations<'_>, which: usize, y: &B::Vector| match &layer.biases[which] {
                Some(bias) => r.add(y, bias, rows * config.shape(which)[0]),
                None => Ok(()),
            };

        r.rms_norm(&v.hidden, &layer.norms[0], epsilon, rows, hidden, &v.normed)?;
        r.matmul([q, k, v_proj], &v.normed, rows, [&v.queries, &v.keys, &v.values])?;
        biased(r, 0, &v.queries)?;
        biased(r, 1, &v.keys)?;
        biased(r, 2, &v.values)?;
        let (mut queries, mut keys) = (&v.queries, &v.keys);
        if let (Some([of_q, of_k]), Some([to_q, to_k])) = (&layer.head_norms, &v.normed_heads) {
            r.rms_norm(queries, of_q, epsilon, rows * heads.queries, heads.dim, to_q)?;
            r.rms_norm(keys, of_k, epsilon, rows * heads.keys, heads.dim, to_k)?;
            (queries, keys) = (to_q, to_k);
        }
        r.rope(queries, &v.angles, heads.queries, heads.dim, position, rows)?;
        r.rope(keys, &v.angles, heads.keys, heads.dim, position, rows)?;
        let row = heads.keys * heads.dim;
        r.copy(keys, 0, &layer.keys, position * row, rows * row)?;
        r.copy(&v.values, 0, &layer.values, position * row, rows * row)?;
        r.attention(queries, &layer.keys, &layer.values, heads, position, rows, &v.attended)?;
        r.matmul([o], &v.attended, rows, [&v.normed])?;
        biased(r, 3, &v.normed)?;
        r.add(&v.hidden, &v.normed, rows * hidden)?;

        r.rms_norm(&v.hidden, &layer.norms[1], epsilon, rows, hidden, &v.normed)?;
        r.matmul([gate, up], &v.normed, rows, [&v.gate, &v.up])?;
        biased(r, 4, &v.gate)?;
        biased(r, 5, &v.up)?;
        r.silu_mul(&v.gate, &v.up, rows * config.ffn)?;
        r.matmul([down], &v.gate, rows, [&v.normed])?;
        biased(r, 6, &v.normed)?;
        r.add(&v.hidden, &v.normed, rows * hidden)
    }

    /// The logits after the last token, and the likeliest next one.
    pub(crate) fn finish(&self, r: &mut B::Operations<'_>, rows: usize) -> Result<()> {
        let (v, config) = (&self.vectors, self.config);
        r.copy(&v.hidden, (rows - 1) * config.hidden, &v.last, 0, config.hidden)?;
        r.rms_norm(&v.last, &self.norm, config.epsilon, 1, config.hidden, &v.normed)?;
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        r.matmul([head], &v.normed, 1, [&v.logits])?;
        r.argmax(&v.logits, config.vocabulary, &v.ids)
    }
}
