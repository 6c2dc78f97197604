//! SHA-256 of a whole file, MD5 of single tensors.

use bigsmall_format::TensorSpec;
use md5::Md5;
use sha2::{Digest as _, Sha256};

use crate::stage::chunk::Chunk;

/// SHA-256 over a file's bytes in order.
pub(crate) struct FileDigest(Sha256);

impl FileDigest {
    pub(crate) fn new() -> Self {
        FileDigest(Sha256::new())
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// SHA-256 of bytes that are in memory as a whole.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// MD5 of one tensor after the other, from chunks.
#[derive(Default)]
pub(crate) struct TensorDigests(Md5);

impl TensorDigests {
    /// Adds a chunk; returns the digests of the tensors that end in it.
    pub(crate) fn chunk(
        &mut self,
        tensors: &[TensorSpec],
        chunk: &Chunk,
        bytes: &[u8],
    ) -> Vec<[u8; 16]> {
        let mut ended = Vec::new();
        for part in &chunk.parts {
            self.0.update(&bytes[part.within.clone()]);
            if part.bytes.end == tensors[part.tensor].byte_len() {
                ended.push(self.0.finalize_reset().into());
            }
        }
        ended
    }
}
