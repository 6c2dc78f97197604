//! Limits for untrusted files.

/// Limits on the size of a file's metadata. Each is checked before memory is allocated.
///
/// ```
/// let careful = bigsmall_format::Limits::new().max_tensors(1000);
/// assert!(careful.max_header_bytes >= 1 << 20);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The most bytes of a safetensors header (safetensors itself allows 100 MB).
    pub max_header_bytes: u64,
    /// The most bytes of a shard's index, including the stored header.
    pub max_index_bytes: u64,
    /// The most tensors in one file.
    pub max_tensors: usize,
    /// The most dimensions of one tensor.
    pub max_rank: usize,
    /// The most UTF-8 bytes of a tensor's name.
    pub max_name_bytes: usize,
    /// The most bases one behind the other: 1 for a shard whose base has no base itself.
    pub max_base_depth: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_header_bytes: 100_000_000,
            max_index_bytes: 1 << 30,
            max_tensors: 1 << 20,
            max_rank: 64,
            max_name_bytes: 1 << 16,
            max_base_depth: 16,
        }
    }
}

impl Limits {
    /// The default limits.
    #[must_use]
    pub fn new() -> Self {
        Limits::default()
    }

    /// Sets [`max_header_bytes`](Self#structfield.max_header_bytes).
    #[must_use]
    pub fn max_header_bytes(mut self, max_header_bytes: u64) -> Self {
        self.max_header_bytes = max_header_bytes;
        self
    }

    /// Sets [`max_index_bytes`](Self#structfield.max_index_bytes).
    #[must_use]
    pub fn max_index_bytes(mut self, max_index_bytes: u64) -> Self {
        self.max_index_bytes = max_index_bytes;
        self
    }

    /// Sets [`max_tensors`](Self#structfield.max_tensors).
    #[must_use]
    pub fn max_tensors(mut self, max_tensors: usize) -> Self {
        self.max_tensors = max_tensors;
        self
    }

    /// Sets [`max_rank`](Self#structfield.max_rank).
    #[must_use]
    pub fn max_rank(mut self, max_rank: usize) -> Self {
        self.max_rank = max_rank;
        self
    }

    /// Sets [`max_name_bytes`](Self#structfield.max_name_bytes).
    #[must_use]
    pub fn max_name_bytes(mut self, max_name_bytes: usize) -> Self {
        self.max_name_bytes = max_name_bytes;
        self
    }

    /// Sets [`max_base_depth`](Self#structfield.max_base_depth).
    #[must_use]
    pub fn max_base_depth(mut self, max_base_depth: u32) -> Self {
        self.max_base_depth = max_base_depth;
        self
    }
}
