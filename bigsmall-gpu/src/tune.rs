//! Measures which variant of a product is fastest.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::context::Wgpu;
use crate::error::Result;
use crate::tuning::{Tuning, Variant};
use crate::weights::WgpuWeights;

impl Wgpu {
    /// The choices made so far.
    #[must_use]
    pub fn tuning(&self) -> Tuning {
        self.tuning.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the choices.
    pub fn set_tuning(&self, tuning: Tuning) {
        *self.tuning.lock().unwrap_or_else(PoisonError::into_inner) = tuning;
    }

    /// Measures each [`Variant`] for `batch` columns, keeps the fastest for later products, and
    /// returns it.
    ///
    /// # Errors
    /// Those of [`matmul`](crate::MatmulBackend::matmul).
    pub fn tune(&self, weights: &WgpuWeights, batch: usize) -> Result<Variant> {
        let (m, k) = (weights.rows(), weights.cols());
        let x = self.new_buffer(batch.saturating_mul(k))?;
        let y = self.new_buffer(batch.saturating_mul(m))?;
        let mut best = (Duration::MAX, Variant::Fused);
        for variant in [Variant::Fused, Variant::DecodeFirst] {
            // The first run also creates the pipelines. The result is the shortest of the others.
            for run in 0..4 {
                self.wait()?;
                let start = Instant::now();
                self.submit(|r| r.matmul_by(weights, &x, batch, &y, variant))?;
                self.wait()?;
                if run > 0 && start.elapsed() < best.0 {
                    best = (start.elapsed(), variant);
                }
            }
        }
        let mut tuning = self.tuning.lock().unwrap_or_else(PoisonError::into_inner);
        tuning.set(weights.resident(), m, k, batch, best.1);
        Ok(best.1)
    }
}
