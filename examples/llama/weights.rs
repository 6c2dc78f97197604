//! Loads the weights of a model. Decides which of them stay in memory, and which are sent for every
//! token.

use crate::Result;
use crate::backend::{Backend, Matrices, each_matrix};
use crate::config::{Config, Heads, MATRICES};
use crate::model::{Layer, Llama, Vectors};
use crate::source::Source;

/// Options for loading a model.
pub(crate) struct Load<F> {
    /// The form of the matrices. `None`: the one that suits the device.
    pub(crate) form: Option<F>,
    /// The largest number of tokens, including the prompt.
    pub(crate) context: usize,
    /// The largest number of bytes of memory.
    pub(crate) memory: Option<u64>,
}

/// Layers that use the same memory in turn.
pub(crate) struct Stream<B: Backend> {
    pub(crate) layers: Vec<Matrices<B::Packed>>,
    /// The matrices to which the current layer is decoded.
    pub(crate) place: Matrices<B::Matrix>,
    pub(crate) scratch: B::Scratch,
    scratch_bytes: u64,
    /// The matrices of the first layer, if they have already been sent.
    pub(crate) sent: Option<B::Sent>,
}

impl<B: Backend> Stream<B> {
    /// Bytes of memory: a decoded layer, one decoded matrix before it is packed, and two layers on
    /// their way.
    fn byte_len(&self) -> u64 {
        let sent = |layer: &Matrices<_>| layer.iter().map(B::packed_bytes).sum();
        let sent: u64 = self.layers.iter().map(sent).max().unwrap_or(0);
        bytes_of::<B>(&self.place) + self.scratch_bytes + 2 * sent
    }
}

fn bytes_of<'a, B: Backend<Matrix: 'a>>(matrices: impl IntoIterator<Item = &'a B::Matrix>) -> u64 {
    matrices.into_iter().map(B::matrix_bytes).sum()
}

impl<'a, B: Backend> Llama<'a, B> {
    pub(crate) fn load(
        backend: &'a B,
        source: &Source,
        config: &'a Config,
        load: &Load<B::Form>,
    ) -> Result<Self> {
        let context = load.context.max(1);
        if context > config.positions {
            let most = config.positions;
            return Err(format!("{context} tokens, the model takes at most {most}").into());
        }
        let Heads { keys, dim, .. } = config.heads;
        let (hidden, vocabulary) = (config.hidden, config.vocabulary);
        let outer =
            |name: &str| backend.matrix(&source.matrix(name, [vocabulary, hidden])?, load.form);
        let name =
            |layer: usize, which: usize| format!("model.layers.{layer}.{}.weight", MATRICES[which]);
        let vector = |name: &str, n: usize, copies: usize| -> Result<B::Vector> {
            let values = source.vector(name, n)?.repeat(copies);
            let vector = backend.vector(values.len())?;
            backend.write(&vector, &values)?;
            Ok(vector)
        };
        let layers = (0..config.layers).map(|layer| {
            let part = |part: &str, n: usize, copies: usize| {
                vector(&format!("model.layers.{layer}.{part}"), n, copies)
            };
            let head_norms = || -> Result<_> {
                Ok([
                    part("self_attn.q_norm.weight", dim, 1)?,
                    part("self_attn.k_norm.weight", dim, 1)?,
                ])
            };
            let bias = |which: usize| {
                let name = format!("{}.bias", MATRICES[which]);
                let bias = || part(&name, config.shape(which)[0], B::BATCH);
                config.biases[which].then(bias).transpose()
            };
            let kept = || backend.vector(context * keys * dim);
            Ok(Layer {
                norms: [
                    part("input_layernorm.weight", hidden, 1)?,
                    part("post_attention_layernorm.weight", hidden, 1)?,
                ],
                head_norms: config.qk_norm.then(head_norms).transpose()?,
                biases: each_matrix(bias)?,
                keys: kept()?,
                values: kept()?,
            })
        });
        let mut llama = Llama {
            backend,
            config,
            context,
            embedding: outer("model.embed_tokens.weight")?,
            head: (!config.tied).then(|| outer("lm_head.weight")).transpose()?,
            norm: vector("model.norm.weight", hidden, 1)?,
            layers: layers.collect::<Result<_>>()?,
            resident: Vec::new(),
            stream: None,
            vectors: Vectors::new(backend, config, context)?,
        };
        if let Some(limit) = load.memory {
            let pack = |layer| {
                each_matrix(|which| backend.pack(source, &name(layer, which), config.shape(which)))
            };
            let packed = (0..config.layers).map(pack).collect::<Result<Vec<_>>>()?;
            llama.keep_what_fits(packed, limit, load.form)?;
            return Ok(llama);
        }
        for layer in 0..config.layers {
            let matrix = |which| {
                let tensor = source.matrix(&name(layer, which), config.shape(which))?;
                backend.matrix(&tensor, load.form)
            };
            llama.resident.push(each_matrix(matrix)?);
        }
        Ok(llama)
    }

    /// Keeps the first layers, as many as fit. The others are streamed.
    fn keep_what_fits(
        &mut self,
        mut packed: Vec<Matrices<B::Packed>>,
        limit: u64,
        form: Option<B::Form>,
    ) -> Result<()> {
        if packed.is_empty() {
            return Ok(());
        }
        let (backend, config) = (self.backend, self.config);
        let place = each_matrix(|which| backend.place(MATRICES[which], config.shape(which)))?;
        let largest =
            (0..MATRICES.len()).map(|which| config.shape(which).iter().product::<usize>());
        let (scratch, scratch_bytes) = backend.scratch(2 * largest.max().unwrap_or(0) as u64)?;
        // The memory that streaming takes decides how many layers can be kept, so begin as if all
        // of them were streamed.
        let mut guess = bytes_of::<B>(&place);
        let mut stream = Stream { layers: packed, place, scratch, scratch_bytes, sent: None };
        let streaming = stream.byte_len();
        packed = std::mem::take(&mut stream.layers);
        while let Some(layer) = packed.first() {
            let left = packed.len() as u64;
            let used = self.byte_len();
            let all_fit = used + left * guess <= limit;
            if !all_fit && used + guess + streaming > limit {
                break;
            }
            let matrices =
                each_matrix(|which| backend.matrix(&B::packed_tensor(&layer[which])?, form))?;
            guess = bytes_of::<B>(&matrices);
            self.resident.push(matrices);
            packed.remove(0);
        }
        if packed.is_empty() {
            return Ok(());
        }
        let needed = self.byte_len() + streaming;
        if needed > limit {
            return Err(format!("{needed} bytes of memory are needed, {limit} allowed").into());
        }
        for matrix in packed.iter().flatten() {
            backend.check(matrix, &stream.scratch)?;
        }
        stream.layers = packed;
        self.stream = Some(stream);
        Ok(())
    }

    /// The largest number of bytes of memory that are used.
    pub(crate) fn byte_len(&self) -> u64 {
        let kept = |layer: &Layer<B>| {
            let Layer { norms, head_norms, biases, keys, values } = layer;
            let some = head_norms.iter().flatten().chain(biases.iter().flatten());
            norms.iter().chain(some).chain([keys, values]).map(B::vector_bytes).sum::<u64>()
        };
        let layers: u64 = self.layers.iter().map(kept).sum();
        let stream = self.stream.as_ref().map_or(0, Stream::byte_len);
        self.matrix_bytes()
            + layers
            + stream
            + B::vector_bytes(&self.norm)
            + self.vectors.byte_len()
    }

    /// Bytes of the matrices that stay in memory.
    pub(crate) fn matrix_bytes(&self) -> u64 {
        let outer = [Some(&self.embedding), self.head.as_ref()].into_iter().flatten();
        bytes_of::<B>(outer.chain(self.resident.iter().flatten()))
    }

    /// A description in one line, for the user.
    pub(crate) fn describe(&self) -> String {
        let config = self.config;
        let of_layer: usize =
            (0..MATRICES.len()).map(|i| config.shape(i).iter().product::<usize>()).sum();
        let outer = (1 + usize::from(self.head.is_some())) * config.vocabulary * config.hidden;
        let plain = 2 * (outer + self.resident.len() * of_layer) as u64;
        let bytes = self.matrix_bytes();
        let mut text = format!(
            "{} of {} layers resident, matrices in {bytes} bytes, plain {plain} ({:.1} %); \
             {} bytes of memory in use",
            self.resident.len(),
            config.layers,
            100.0 * bytes as f64 / plain.max(1) as f64,
            self.byte_len()
        );
        if let Some(stream) = &self.stream {
            let bytes: u64 = stream.layers.iter().flatten().map(B::packed_bytes).sum();
            text += &format!("; {} layers of {bytes} bytes are streamed", stream.layers.len());
        }
        text
    }
}
