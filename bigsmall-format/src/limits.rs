//! What a reader is willing to take on.

/// Bounds on what a file may ask of its reader. Each is checked before anything is allocated for
/// it.
///
/// ```
/// let careful = bigsmall_format::Limits { max_tensors: 1000, ..Default::default() };
/// assert!(careful.max_header_bytes >= 1 << 20);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a safetensors header (safetensors itself stops at 100 MB).
    pub max_header_bytes: u64,
    /// Bytes of a shard's index, the stored header included.
    pub max_index_bytes: u64,
    /// Tensors in one file.
    pub max_tensors: usize,
    /// Dimensions of one tensor.
    pub max_rank: usize,
    /// UTF-8 bytes of one tensor's name.
    pub max_name_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_header_bytes: 100_000_000,
            max_index_bytes: 1 << 30,
            max_tensors: 1 << 20,
            max_rank: 64,
            max_name_bytes: 1 << 16,
        }
    }
}
