//! Chooses the next token from the logits.

use bigsmall_testing::Random;

/// Chooses the likeliest token, or draws one.
pub(crate) struct Sampler {
    /// 0: always the likeliest token.
    temperature: f64,
    /// Tokens are drawn from the likeliest ones whose probabilities add up to this.
    top_p: f64,
    random: Random,
}

impl Sampler {
    pub(crate) fn new(temperature: f64, top_p: f64, seed: u64) -> Self {
        Sampler { temperature, top_p, random: Random::new(seed) }
    }

    #[cfg(test)]
    pub(crate) fn greedy() -> Self {
        Sampler::new(0.0, 1.0, 0)
    }

    pub(crate) fn is_greedy(&self) -> bool {
        self.temperature <= 0.0
    }

    /// Draws a token.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> u32 {
        let most = logits.iter().fold(f32::NEG_INFINITY, |most, &logit| most.max(logit));
        let weight = |&logit: &f32| (f64::from(logit - most) / self.temperature).exp();
        let mut weights: Vec<(u32, f64)> = (0..).zip(logits.iter().map(weight)).collect();
        let sum: f64 = weights.iter().map(|(_, w)| w).sum();
        if self.top_p < 1.0 {
            // A token below this cannot be among the chosen ones, and most of them are below it.
            let least = (1.0 - self.top_p) * sum / logits.len().saturating_sub(1).max(1) as f64;
            weights.retain(|&(_, w)| w >= least);
            weights.sort_by(|a, b| b.1.total_cmp(&a.1));
            let mut reached = 0.0;
            let enough = |&(_, w): &(u32, f64)| {
                reached += w;
                reached >= self.top_p * sum
            };
            let n = weights.iter().position(enough).map_or(weights.len(), |at| at + 1);
            weights.truncate(n.max(1));
        }
        let kept: f64 = weights.iter().map(|(_, w)| w).sum();
        let mut left = (self.random.bits() >> 11) as f64 / (1u64 << 53) as f64 * kept;
        for &(token, weight) in &weights {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        weights.last().map_or(0, |&(token, _)| token)
    }
}
