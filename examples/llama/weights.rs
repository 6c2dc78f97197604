//! Loads matrices from shards to the device. Decides which of them stay there, and which are sent
//! for every token.

use bigsmall_codec::Ans;
use bigsmall_format::{Dtype, EncodedTensor, EncodingId, TensorSpec, encode_tensor};
use bigsmall_gpu::{
    AnsTensor, Heads, PreparedAns, Resident, UploadOptions, Wgpu, WgpuWeights, wgpu,
};
use bigsmall_io::Model;
use half::{bf16, f16};

use crate::Result;
use crate::config::Config;
use crate::layers::{Layer, Llama, Vectors};

/// Options for loading a model.
pub(crate) struct Load {
    /// The form of the matrices on the device. `None`: the smallest form.
    pub(crate) form: Option<Resident>,
    /// The largest number of tokens, including the prompt.
    pub(crate) context: usize,
    /// The largest number of bytes of the device's memory.
    pub(crate) device_memory: Option<u64>,
}

/// The matrices of a layer.
pub(crate) const MATRICES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// One value per matrix of a layer, in the order of [`MATRICES`].
pub(crate) type Matrices<T> = [T; MATRICES.len()];

/// Makes one value per matrix of a layer.
fn each_matrix<T>(make: impl FnMut(usize) -> Result<T>) -> Result<Matrices<T>> {
    let made = (0..MATRICES.len()).map(make).collect::<Result<Vec<T>>>()?;
    made.try_into().map_err(|_| "a layer has seven matrices".into())
}

/// Layers that use the same memory of the device in turn.
pub(crate) struct Stream {
    /// The matrices of each layer, in the memory of the host.
    pub(crate) layers: Vec<Matrices<PreparedAns>>,
    /// The matrices to which the current layer is decoded.
    pub(crate) place: Matrices<WgpuWeights>,
    pub(crate) scratch: wgpu::Buffer,
    /// The matrices of the first layer, if they have already been sent.
    pub(crate) sent: Option<Matrices<AnsTensor>>,
}

impl Stream {
    /// Sends the matrices of layer `i` to the device.
    pub(crate) fn send(&self, gpu: &Wgpu, i: usize) -> Result<Matrices<AnsTensor>> {
        each_matrix(|which| Ok(gpu.send_ans(&self.layers[i][which])?))
    }

    /// Bytes of the device's memory: a decoded layer, one decoded matrix before it is packed, and
    /// two layers in ANS form.
    fn device_bytes(&self) -> u64 {
        let sent = |layer: &Matrices<_>| layer.iter().map(PreparedAns::byte_len).sum();
        let sent: u64 = self.layers.iter().map(sent).max().unwrap_or(0);
        weights_len(&self.place) + self.scratch.size() + 2 * sent
    }
}

fn weights_len<'a>(weights: impl IntoIterator<Item = &'a WgpuWeights>) -> u64 {
    weights.into_iter().map(WgpuWeights::byte_len).sum()
}

impl<'a> Llama<'a> {
    /// Loads the weights of `model` to the device.
    pub(crate) fn load(
        gpu: &'a Wgpu,
        model: &Model,
        config: &'a Config,
        load: &Load,
    ) -> Result<Self> {
        let context = load.context.max(1);
        if context > config.positions {
            let most = config.positions;
            return Err(format!("{context} tokens, the model takes at most {most}").into());
        }
        let Heads { queries, keys, dim } = config.heads;
        let (hidden, ffn) = (config.hidden, config.ffn);
        let matrix = |name: &str, rows: usize, cols: usize| -> Result<EncodedTensor> {
            let tensor = model.encoded(name)?;
            check_shape(tensor.spec(), &[rows as u64, cols as u64])?;
            Ok(tensor)
        };
        let upload = |tensor: &EncodedTensor| -> Result<WgpuWeights> {
            Ok(gpu.upload_with(tensor, &UploadOptions::new().form(load.form))?)
        };
        let layer_matrix = |layer: usize, which: usize| {
            let (rows, cols) = match which {
                0 => (queries * dim, hidden),
                1 | 2 => (keys * dim, hidden),
                3 => (hidden, queries * dim),
                4 | 5 => (ffn, hidden),
                _ => (hidden, ffn),
            };
            matrix(&format!("model.layers.{layer}.{}.weight", MATRICES[which]), rows, cols)
        };
        let vocabulary = config.vocabulary;
        let head = match config.tied {
            true => None,
            false => Some(upload(&matrix("lm_head.weight", vocabulary, hidden)?)?),
        };
        let layers = (0..config.layers).map(|layer| {
            let norm = |part: &str| {
                norm(gpu, model, &format!("model.layers.{layer}.{part}.weight"), hidden)
            };
            let kept = || gpu.new_buffer(context * keys * dim);
            Ok(Layer {
                norms: [norm("input_layernorm")?, norm("post_attention_layernorm")?],
                keys: kept()?,
                values: kept()?,
            })
        });
        let mut llama = Llama {
            gpu,
            config,
            context,
            embedding: upload(&matrix("model.embed_tokens.weight", vocabulary, hidden)?)?,
            head,
            norm: norm(gpu, model, "model.norm.weight", hidden)?,
            layers: layers.collect::<Result<_>>()?,
            resident: Vec::new(),
            stream: None,
            vectors: Vectors::new(gpu, config, context)?,
        };
        let Some(limit) = load.device_memory else {
            for layer in 0..config.layers {
                llama.resident.push(each_matrix(|which| upload(&layer_matrix(layer, which)?))?);
            }
            return Ok(llama);
        };
        // In ANS form on the host. From there they are sent to the device once, or for every token.
        let prepare = |layer| {
            each_matrix(|which| Ok(PreparedAns::new(to_ans(layer_matrix(layer, which)?)?)?))
        };
        let prepared = (0..config.layers).map(prepare).collect::<Result<Vec<_>>>()?;
        llama.keep_what_fits(prepared, limit, upload)?;
        Ok(llama)
    }

    /// Uploads the first layers, as many as fit. The others are streamed.
    fn keep_what_fits(
        &mut self,
        mut prepared: Vec<Matrices<PreparedAns>>,
        limit: u64,
        upload: impl Fn(&EncodedTensor) -> Result<WgpuWeights>,
    ) -> Result<()> {
        let Some(layer) = prepared.first() else { return Ok(()) };
        let place = each_matrix(|which| {
            let spec = layer[which].tensor().spec();
            let (rows, cols) = (spec.shape()[0] as usize, spec.shape()[1] as usize);
            Ok(self.gpu.new_plain(spec.name(), rows, cols)?)
        })?;
        let largest = prepared.iter().flatten().map(|m| m.tensor().spec().byte_len()).max();
        let scratch = self.gpu.new_buffer(largest.unwrap_or(0).div_ceil(4) as usize)?;
        // The memory that streaming takes decides how many layers can be kept, so begin as if all
        // of them were streamed.
        let mut guess = weights_len(&place);
        let mut stream = Stream { layers: prepared, place, scratch, sent: None };
        let streaming = stream.device_bytes();
        prepared = std::mem::take(&mut stream.layers);
        while let Some(layer) = prepared.first() {
            let left = prepared.len() as u64;
            let used = self.device_bytes();
            let all_fit = used + left * guess <= limit;
            if !all_fit && used + guess + streaming > limit {
                break;
            }
            let matrices = each_matrix(|which| upload(layer[which].tensor()))?;
            guess = weights_len(&matrices);
            self.resident.push(matrices);
            prepared.remove(0);
        }
        if prepared.is_empty() {
            return Ok(());
        }
        let needed = self.device_bytes() + streaming;
        if needed > limit {
            return Err(format!("{needed} bytes on the device are needed, {limit} allowed").into());
        }
        // Finds the damage that only decoding can detect, once and not for every token.
        for matrix in prepared.iter().flatten() {
            let sent = self.gpu.send_ans(matrix)?;
            self.gpu.submit(|r| r.decode_ans(&sent, &stream.scratch))?;
            self.gpu.check_ans(&sent)?;
        }
        stream.layers = prepared;
        self.stream = Some(stream);
        Ok(())
    }

    /// The largest number of bytes that are used of the device's memory.
    pub(crate) fn device_bytes(&self) -> u64 {
        let kept =
            |l: &Layer| l.norms[0].size() + l.norms[1].size() + l.keys.size() + l.values.size();
        let layers: u64 = self.layers.iter().map(kept).sum();
        let stream = self.stream.as_ref().map_or(0, Stream::device_bytes);
        weights_len(self.matrices()) + layers + stream + self.norm.size() + self.vectors.byte_len()
    }

    /// The matrices that stay on the device.
    fn matrices(&self) -> impl Iterator<Item = &WgpuWeights> {
        let outer = [Some(&self.embedding), self.head.as_ref()].into_iter().flatten();
        outer.chain(self.resident.iter().flatten())
    }

    /// A description in one line, for the user.
    pub(crate) fn describe(&self) -> String {
        let plain: u64 = self.matrices().map(|m| 2 * (m.rows() * m.cols()) as u64).sum();
        let compressed = weights_len(self.matrices());
        let mut text = format!(
            "{} of {} layers resident, matrices in {compressed} bytes, plain {plain} ({:.1} %); \
             {} bytes of the device in use",
            self.resident.len(),
            self.config.layers,
            100.0 * compressed as f64 / plain.max(1) as f64,
            self.device_bytes()
        );
        if let Some(stream) = &self.stream {
            let bytes: u64 = stream.layers.iter().flatten().map(PreparedAns::byte_len).sum();
            text += &format!("; {} layers in {bytes} bytes on the host", stream.layers.len());
        }
        text
    }
}

fn check_shape(spec: &TensorSpec, expected: &[u64]) -> Result<()> {
    if spec.shape() == expected {
        return Ok(());
    }
    let (name, found) = (spec.name(), spec.shape());
    Err(format!("{name}: the shape is {found:?}, config.json says {expected:?}").into())
}

/// The weights of a norm as f32 on the device.
fn norm(gpu: &Wgpu, model: &Model, name: &str, n: usize) -> Result<wgpu::Buffer> {
    let tensor = model.tensor(name)?;
    check_shape(tensor.spec(), &[n as u64])?;
    let two = |f: fn([u8; 2]) -> f32| tensor.bytes().as_chunks().0.iter().map(|b| f(*b)).collect();
    let values: Vec<f32> = match tensor.spec().dtype() {
        Dtype::BF16 => two(|b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F16 => two(|b| f16::from_le_bytes(b).to_f32()),
        Dtype::F32 => tensor.bytes().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        other => return Err(format!("{name}: {other} is not supported for a norm").into()),
    };
    let buffer = gpu.new_buffer(n)?;
    gpu.write_buffer(&buffer, &values)?;
    Ok(buffer)
}

/// The tensor in ANS form.
fn to_ans(tensor: EncodedTensor) -> Result<EncodedTensor> {
    if tensor.encoding() == EncodingId::Ans {
        return Ok(tensor);
    }
    let spec = tensor.spec();
    let mut bytes = vec![0; spec.byte_len() as usize];
    let from = bigsmall_io::encoding(tensor.encoding())?;
    tensor.decode_bytes(from, 0..spec.byte_len(), &mut bytes)?;
    Ok(encode_tensor(&Ans::default(), spec, &bytes)?)
}
