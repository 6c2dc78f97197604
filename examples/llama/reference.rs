//! The same model in f64, one position after the other, as its formulas read.

use serde_json::Value;

use crate::config::{Config, MATRICES};
use crate::source::{Source, decoded, to_f32};

/// The weights of a model.
pub(crate) struct Reference<'a> {
    source: &'a Source,
    config: &'a Config,
    /// Rotations from one position to the next.
    turns: Vec<f64>,
}

impl<'a> Reference<'a> {
    pub(crate) fn new(source: &'a Source, config: &'a Config, json: &Value) -> Self {
        let dim = config.heads.dim as f64;
        let theta = json["rope_theta"].as_f64().or(json["rope_parameters"]["rope_theta"].as_f64());
        let scaling = &json["rope_scaling"];
        let turns = (0..config.heads.dim / 2).map(|j| {
            let turn = theta.unwrap().powf(-(j as f64) * 2.0 / dim);
            let number = |key: &str| scaling[key].as_f64().unwrap();
            match scaling["rope_type"].as_str().or(scaling["type"].as_str()) {
                None => turn,
                Some("linear") => turn / number("factor"),
                // By wavelengths, as the original code has it.
                Some(_) => {
                    let (low, high) = (number("low_freq_factor"), number("high_freq_factor"));
                    let original = number("original_max_position_embeddings");
                    let wave = std::f64::consts::TAU / turn;
                    if wave < original / high {
                        turn
                    } else if wave > original / low {
                        turn / number("factor")
                    } else {
                        let smooth = (original / wave - low) / (high - low);
                        (1.0 - smooth) * turn / number("factor") + smooth * turn
                    }
                }
            }
        });
        Reference { source, config, turns: turns.collect() }
    }

    fn tensor(&self, name: &str) -> Vec<f64> {
        let tensor = self.source.encoded(name).unwrap();
        let values = to_f32(tensor.spec().dtype(), &decoded(&tensor).unwrap()).unwrap();
        values.into_iter().map(f64::from).collect()
    }

    /// The logits after the prompt, and after each of the tokens but the last.
    pub(crate) fn logits(&self, prompt: &[u32], tokens: &[u32]) -> Vec<Vec<f64>> {
        let config = self.config;
        let embedding = self.tensor("model.embed_tokens.weight");
        let ids = prompt.iter().chain(&tokens[..tokens.len() - 1]);
        let row = |&id: &u32| embedding[id as usize * config.hidden..][..config.hidden].to_vec();
        let mut hidden: Vec<Vec<f64>> = ids.map(row).collect();
        for layer in 0..config.layers {
            self.layer(layer, &mut hidden);
        }
        let norm = self.tensor("model.norm.weight");
        let head = match config.tied {
            true => embedding,
            false => self.tensor("lm_head.weight"),
        };
        let last = &hidden[prompt.len() - 1..];
        last.iter().map(|x| product(&head, &self.norm(x, &norm))).collect()
    }

    fn layer(&self, layer: usize, hidden: &mut [Vec<f64>]) {
        let config = self.config;
        let (queries, dim) = (config.heads.queries, config.heads.dim);
        let group = queries / config.heads.keys;
        let part = |name: &str| self.tensor(&format!("model.layers.{layer}.{name}"));
        let matrices = MATRICES.map(|name| part(&format!("{name}.weight")));
        let biases: Vec<_> = (0..MATRICES.len())
            .map(|i| config.biases[i].then(|| part(&format!("{}.bias", MATRICES[i]))))
            .collect();
        let linear = |which: usize, x: &[f64]| {
            let mut y = product(&matrices[which], x);
            if let Some(bias) = &biases[which] {
                y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
            y
        };
        let norms = ["input_layernorm.weight", "post_attention_layernorm.weight"].map(part);
        let head_norms = ["self_attn.q_norm.weight", "self_attn.k_norm.weight"];
        let head_norms = config.qk_norm.then(|| head_norms.map(part));
        let placed = |mut x: Vec<f64>, which: usize, position: usize| {
            for head in x.chunks_exact_mut(dim) {
                if let Some(norms) = &head_norms {
                    head.copy_from_slice(&self.norm(head, &norms[which]));
                }
                for (j, turn) in self.turns.iter().enumerate() {
                    let (sin, cos) = (position as f64 * turn).sin_cos();
                    let (a, b) = (head[j], head[j + dim / 2]);
                    (head[j], head[j + dim / 2]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
            x
        };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, hidden) in hidden.iter_mut().enumerate() {
            let x = self.norm(hidden, &norms[0]);
            let query = placed(linear(0, &x), 0, position);
            keys.push(placed(linear(1, &x), 1, position));
            values.push(linear(2, &x));
            let mut attended = vec![0.0; queries * dim];
            for head in 0..queries {
                let place = head / group * dim..(head / group + 1) * dim;
                let query = &query[head * dim..][..dim];
                let score = |key: &Vec<f64>| {
                    let key = &key[place.clone()];
                    let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                    (dot / (dim as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = keys.iter().map(score).collect();
                let sum: f64 = scores.iter().sum();
                for (value, score) in values.iter().zip(&scores) {
                    let out = &mut attended[head * dim..][..dim];
                    for (y, v) in out.iter_mut().zip(&value[place.clone()]) {
                        *y += score / sum * v;
                    }
                }
            }
            let more = linear(3, &attended);
            hidden.iter_mut().zip(more).for_each(|(h, m)| *h += m);
            let x = self.norm(hidden, &norms[1]);
            let (mut gate, up) = (linear(4, &x), linear(5, &x));
            gate.iter_mut().zip(up).for_each(|(g, u)| *g = *g / (1.0 + (-*g).exp()) * u);
            let more = linear(6, &gate);
            hidden.iter_mut().zip(more).for_each(|(h, m)| *h += m);
        }
    }

    fn norm(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(self.config.epsilon)).sqrt();
        x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
    }
}

fn product(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    let row = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum();
    matrix.chunks_exact(x.len()).map(row).collect()
}
