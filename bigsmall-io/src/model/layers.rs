//! Which layer a tensor belongs to, by its name alone.

use std::collections::HashMap;

/// Components after which a number counts the layers of a stack.
const STACKS: [&str; 17] = [
    "layers",                    // Llama, Mistral, Qwen, CLIP, Whisper, T5 in newer spellings
    "layer",                     // BERT, ViT
    "h",                         // GPT-2, Bloom, Falcon
    "block",                     // T5
    "blocks",                    // timm, DiT, DINOv2
    "resblocks",                 // OpenCLIP
    "down_blocks",               // diffusers
    "up_blocks",                 // diffusers
    "input_blocks",              // Stable Diffusion as released
    "output_blocks",             // Stable Diffusion as released
    "transformer_blocks",        // diffusers: SD3, Flux, PixArt
    "single_transformer_blocks", // diffusers: Flux
    "double_blocks",             // Flux as released
    "single_blocks",             // Flux as released
    "joint_blocks",              // SD3 as released
    "decoder_layers",            // MPT-like and audio models
    "encoder_layers",            // MPT-like and audio models
];

/// Components that are a layer by themselves.
const ALONE: [&str; 2] = ["mid_block", "middle_block"];

/// Parts that come after all layers when a model runs.
const NORMS: [&str; 9] = [
    "norm",
    "ln_f",
    "final_layernorm",
    "final_layer_norm",
    "post_layernorm",
    "layernorm",
    "norm_out",
    "conv_norm_out",
    "pooler",
];

/// Parts that come at the very end.
const HEADS: [&str; 8] =
    ["lm_head", "embed_out", "classifier", "score", "cls", "qa_outputs", "conv_out", "proj_out"];

/// The layer of the tensor `name`, as checkpoints of Llama, Mistral, Qwen, BERT, GPT-2, ViT and
/// diffusion models name it. For a tensor outside every stack: its module.
///
/// ```
/// use bigsmall_io::layer_of;
/// assert_eq!(layer_of("model.layers.10.mlp.up_proj.weight"), "model.layers.10");
/// assert_eq!(layer_of("transformer.h.0.attn.c_attn.bias"), "transformer.h.0");
/// assert_eq!(layer_of("model.embed_tokens.weight"), "model.embed_tokens");
/// ```
#[must_use]
pub fn layer_of(name: &str) -> &str {
    stack_of(name).map_or_else(|| name.rsplit_once('.').map_or(name, |(module, _)| module), |s| s.1)
}

/// The stack, the layer and its number, if the name has them. The last component names the tensor,
/// not a layer.
fn stack_of(name: &str) -> Option<(&str, &str, u64)> {
    let number = |c: &str| c.parse::<u64>().ok().filter(|_| c.bytes().all(|b| b.is_ascii_digit()));
    let (mut begin, mut before) = (0, "");
    let mut fallback = None;
    for component in name.rsplit_once('.')?.0.split('.') {
        let end = begin + component.len();
        if ALONE.contains(&component) {
            return Some((&name[..end], &name[..end], 0));
        }
        if let Some(n) = number(component)
            && begin > 0
        {
            let found = (&name[..begin - 1], &name[..end], n);
            if STACKS.contains(&before) {
                return Some(found);
            }
            fallback.get_or_insert(found);
        }
        (begin, before) = (end + 1, component);
    }
    fallback
}

/// Groups tensors by layer and sorts the layers in the order in which a model runs: first what
/// comes before every stack, then the stacks (encoder before decoder) with their layers by number,
/// then the rest. Returns the layers' names and the indices of their tensors.
#[must_use]
pub fn group<'a>(names: impl Iterator<Item = &'a str>) -> Vec<(&'a str, Vec<usize>)> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut stacks: HashMap<&str, usize> = HashMap::new();
    let mut groups: Vec<(Key, &str, Vec<usize>)> = Vec::new();
    for (tensor, name) in names.enumerate() {
        let layer = layer_of(name);
        let group = *places.entry(layer).or_insert_with(|| {
            let n_stacks = stacks.len();
            let key = match stack_of(name) {
                Some((stack, _, number)) => {
                    let late = ["decoder", "single_"].iter().any(|word| stack.contains(word));
                    let first = *stacks.entry(stack).or_insert(n_stacks);
                    Key { part: 1, late, stack: first, number }
                }
                None => {
                    let has = |words: &[&str]| {
                        layer.split('.').any(|c| words.contains(&c.to_lowercase().as_str()))
                    };
                    let part = match () {
                        () if has(&HEADS) => 3,
                        // A norm inside the embeddings belongs to them.
                        () if has(&NORMS) && !layer.contains("embed") => 2,
                        () => 0,
                    };
                    Key { part, late: false, stack: 0, number: 0 }
                }
            };
            groups.push((key, layer, Vec::new()));
            groups.len() - 1
        });
        groups[group].2.push(tensor);
    }
    // A stable sort: layers with equal keys stay in the order of the file.
    groups.sort_by_key(|(key, ..)| *key);
    groups.into_iter().map(|(_, name, tensors)| (name, tensors)).collect()
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    part: u8,
    late: bool,
    stack: usize,
    number: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_name_has_a_layer(name in "[.a0-9é]{0,12}") {
            assert!(name.starts_with(layer_of(&name)));
        }
    }

    #[test]
    fn layers_are_found_as_checkpoints_spell_them() {
        let cases = [
            // Llama, Mistral, Qwen (with experts), with and without the outer module.
            ("model.layers.0.self_attn.q_proj.weight", "model.layers.0"),
            ("model.layers.31.input_layernorm.weight", "model.layers.31"),
            ("layers.7.mlp.gate_proj.weight", "layers.7"),
            ("model.layers.3.mlp.experts.12.up_proj.weight", "model.layers.3"),
            ("model.language_model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3"),
            ("model.embed_tokens.weight", "model.embed_tokens"),
            ("lm_head.weight", "lm_head"),
            // BERT, also inside the module list of sentence-transformers.
            ("bert.encoder.layer.11.output.dense.weight", "bert.encoder.layer.11"),
            ("0.auto_model.encoder.layer.2.output.dense.bias", "0.auto_model.encoder.layer.2"),
            ("embeddings.LayerNorm.weight", "embeddings.LayerNorm"),
            // GPT-2, T5, Whisper.
            ("h.5.attn.c_attn.weight", "h.5"),
            ("transformer.h.5.mlp.c_fc.bias", "transformer.h.5"),
            ("encoder.block.2.layer.0.SelfAttention.q.weight", "encoder.block.2"),
            ("model.decoder.layers.1.fc1.weight", "model.decoder.layers.1"),
            // ViT, as transformers and as timm write it.
            ("vit.encoder.layer.4.attention.attention.key.weight", "vit.encoder.layer.4"),
            ("blocks.9.attn.qkv.weight", "blocks.9"),
            ("visual.transformer.resblocks.3.ln_1.weight", "visual.transformer.resblocks.3"),
            ("cls_token", "cls_token"),
            // Diffusion.
            ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight", "down_blocks.1"),
            ("mid_block.resnets.1.conv1.weight", "mid_block"),
            ("up_blocks.3.resnets.2.conv2.bias", "up_blocks.3"),
            (
                "model.diffusion_model.input_blocks.4.1.proj_in.weight",
                "model.diffusion_model.input_blocks.4",
            ),
            (
                "model.diffusion_model.middle_block.0.in_layers.0.weight",
                "model.diffusion_model.middle_block",
            ),
            ("single_transformer_blocks.37.attn.to_q.weight", "single_transformer_blocks.37"),
            ("double_blocks.18.img_mod.lin.weight", "double_blocks.18"),
            // What no list knows: the first number.
            ("classifier.0.weight", "classifier.0"),
            ("tower.stage.2.unit.4.w", "tower.stage.2"),
            // No layer at all.
            ("w", "w"),
            ("", ""),
            ("a..b", "a."),
            ("..w", "."),
            (".a.w", ".a"),
            ("..", "."),
            (".layers.3.w", ".layers.3"),
            ("layers.weight", "layers"),
            ("layers.0", "layers"),
            ("layers.+1.w", "layers.+1"),
        ];
        for (name, layer) in cases {
            assert_eq!(layer_of(name), layer, "{name}");
        }
    }

    #[test]
    fn layers_come_in_the_order_in_which_a_model_runs() {
        let order = |names: &[&str]| -> Vec<String> {
            group(names.iter().copied()).into_iter().map(|(name, _)| name.to_owned()).collect()
        };
        let llama = [
            "lm_head.weight",
            "model.embed_tokens.weight",
            "model.layers.0.a.weight",
            "model.layers.1.a.weight",
            "model.layers.10.a.weight",
            "model.layers.2.a.weight",
            "model.layers.0.b.weight",
            "model.norm.weight",
        ];
        let expected = [
            "model.embed_tokens",
            "model.layers.0",
            "model.layers.1",
            "model.layers.2",
            "model.layers.10",
            "model.norm",
            "lm_head",
        ];
        assert_eq!(order(&llama), expected);
        assert_eq!(group(llama.into_iter())[1].1, [2, 6]);
        let unet = [
            "conv_in.weight",
            "conv_out.weight",
            "down_blocks.0.x.weight",
            "mid_block.x.weight",
            "time_embedding.linear_1.weight",
            "up_blocks.0.x.weight",
        ];
        let expected = [
            "conv_in",
            "time_embedding.linear_1",
            "down_blocks.0",
            "mid_block",
            "up_blocks.0",
            "conv_out",
        ];
        assert_eq!(order(&unet), expected);
        let t5 = ["decoder.block.0.w.weight", "encoder.block.0.w.weight", "shared.weight"];
        assert_eq!(order(&t5), ["shared", "encoder.block.0", "decoder.block.0"]);
        let bert = [
            "embeddings.LayerNorm.weight",
            "encoder.layer.0.x.weight",
            "pooler.dense.weight",
            "embeddings.word_embeddings.weight",
        ];
        let expected = [
            "embeddings.LayerNorm",
            "embeddings.word_embeddings",
            "encoder.layer.0",
            "pooler.dense",
        ];
        assert_eq!(order(&bert), expected);
    }
}
