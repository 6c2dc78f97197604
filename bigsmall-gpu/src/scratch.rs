//! Memory for results between two kernels.

use std::sync::{Mutex, PoisonError};

use crate::device::Device;
use crate::error::Result;

/// A buffer that is kept between uses, since wgpu fills each new buffer with zeros, which takes
/// time. Kernels that are recorded later may overwrite what it holds.
#[derive(Default)]
pub(crate) struct Scratch(Mutex<Option<wgpu::Buffer>>);

impl Scratch {
    /// The buffer, with at least `words` words.
    pub(crate) fn get(&self, device: &Device, label: &str, words: usize) -> Result<wgpu::Buffer> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some(buffer) if buffer.size() >= 4 * words as u64 => Ok(buffer.clone()),
            _ => {
                // Release the old buffer first, so that only one exists at a time.
                *kept = None;
                Ok(kept.insert(device.storage(label, words)?).clone())
            }
        }
    }
}
