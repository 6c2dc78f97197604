//! Measures a model with compressed weights and the same model with plain ones, in turn.

use std::time::Instant;

use serde_json::{Value, json};

use crate::Result;
use crate::backend::Backend;
use crate::model::Llama;

/// Tokens of the prompt.
pub(crate) const PROMPT: usize = 64;
/// How often the prompt is computed.
const PROMPTS: usize = 3;
/// Tokens before the measurement.
const WARM_UP: usize = 2;

/// The number of tokens that [`bench`] needs room for.
pub(crate) fn context(n: usize) -> usize {
    PROMPT + WARM_UP + n
}

pub(crate) fn prompt(vocabulary: usize) -> Vec<u32> {
    (0..PROMPT).map(|i| (i * 7919 % vocabulary.max(1)) as u32).collect()
}

/// Rates are medians: a machine with other work disturbs single tokens. Both models compute each
/// token one after the other, so that both are disturbed alike.
pub(crate) fn bench<'a, B: Backend>(
    compressed: &mut Llama<'a, B>,
    plain: &mut Llama<'a, B>,
    n: usize,
) -> Result<Value> {
    let prompt = prompt(compressed.config.vocabulary);
    let mut prompt_times = [Vec::new(), Vec::new()];
    let mut states = Vec::new();
    for _ in 0..=PROMPTS {
        states.clear();
        for (model, times) in [&mut *compressed, &mut *plain].into_iter().zip(&mut prompt_times) {
            let begin = Instant::now();
            states.push(model.read_prompt(&prompt)?);
            times.push(begin.elapsed().as_secs_f64());
        }
    }
    // The first time memory is new.
    for times in &mut prompt_times {
        times.remove(0);
    }
    let differ = |compressed: &Llama<'_, B>, plain: &Llama<'_, B>| -> Result<bool> {
        let (a, b) = (compressed.logits()?, plain.logits()?);
        Ok(a.iter().zip(&b).any(|(a, b)| a.to_bits() != b.to_bits()))
    };
    let mut logits_differ = usize::from(differ(compressed, plain)?);
    let mut times = [Vec::new(), Vec::new()];
    for i in 0..WARM_UP + n {
        // Both continue with the same token, whatever they found.
        let token = states[1].token;
        let models = [&mut *compressed, &mut *plain].into_iter().zip(&mut states);
        for ((model, state), times) in models.zip(&mut times) {
            let begin = Instant::now();
            model.next(state, token)?;
            if i >= WARM_UP {
                times.push(begin.elapsed().as_secs_f64());
            }
        }
        logits_differ += usize::from(differ(compressed, plain)?);
    }
    let recordings = if B::RECORDS_AHEAD { 100 } else { 0 };
    let mut recording = Vec::new();
    for _ in 0..recordings {
        let begin = Instant::now();
        drop(compressed.record(1, PROMPT)?);
        recording.push(begin.elapsed().as_secs_f64());
    }
    let [prefill, plain_prefill] = prompt_times.map(|times| PROMPT as f64 / median(times));
    let [rate, plain_rate] = times.map(|times| 1.0 / median(times));
    Ok(json!({
        "tokens_per_second": rate,
        "plain_tokens_per_second": plain_rate,
        "ratio": rate / plain_rate,
        "prefill_tokens_per_second": prefill,
        "plain_prefill_tokens_per_second": plain_prefill,
        "resident_bytes": compressed.matrix_bytes(),
        "plain_resident_bytes": plain.matrix_bytes(),
        "logits_differ": logits_differ,
        // What the host does for a token; on a CPU nothing is recorded.
        "record_seconds": (recordings > 0).then(|| median(recording)),
        "backend": B::NAME,
        "threads": rayon::current_num_threads(),
    }))
}

pub(crate) fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
