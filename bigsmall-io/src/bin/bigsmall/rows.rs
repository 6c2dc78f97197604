//! The tensors of a model, as `inspect` shows them.

use std::collections::BTreeMap;

use bigsmall_io::internal::{Checkpoint, metadata};
use bigsmall_io::{Base, ReadAt as _, Result, StoredBase, TensorSpec};

/// A file of the model.
pub(crate) struct FileRow<'a> {
    /// Its name in the folder; empty for a single file.
    pub(crate) name: &'a str,
    pub(crate) original: u64,
    pub(crate) stored: u64,
    /// SHA-256 of the safetensors file, if this is its shard.
    pub(crate) sha256: Option<[u8; 32]>,
    pub(crate) bases: &'a [Base],
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Every file, in the order of the names.
pub(crate) fn files(model: &Checkpoint) -> Result<Vec<FileRow<'_>>> {
    match model {
        Checkpoint::Shards(model) => {
            let rows = model.shards().map(|(name, shard)| {
                Ok(FileRow {
                    name,
                    original: shard.original_len(),
                    stored: shard.source().byte_len()?,
                    sha256: Some(shard.sha256()),
                    bases: shard.bases(),
                    metadata: metadata(shard.header_json())?,
                })
            });
            rows.collect()
        }
        Checkpoint::Plain(plain) => {
            let rows = plain.files().map(|file| {
                let file = file?;
                Ok(FileRow {
                    name: file.name,
                    original: file.byte_len,
                    stored: file.byte_len,
                    sha256: None,
                    bases: &[],
                    metadata: metadata(&file.header_json)?,
                })
            });
            rows.collect()
        }
    }
}

/// How a tensor is stored.
pub(crate) struct Row<'a> {
    pub(crate) spec: &'a TensorSpec,
    /// The name of its file.
    pub(crate) file: String,
    /// `plain` in a safetensors file.
    pub(crate) encoding: &'static str,
    pub(crate) stored: u64,
    /// The tensor whose payload it shares.
    pub(crate) owner: Option<String>,
    /// The tensor that it is stored as differences from.
    pub(crate) base: Option<StoredBase>,
    pub(crate) md5: Option<[u8; 16]>,
}

/// Calls `each` for every tensor that is `wanted`.
pub(crate) fn for_each_row<'a>(
    model: &'a Checkpoint,
    wanted: impl Fn(&TensorSpec) -> bool,
    mut each: impl FnMut(Row<'a>) -> Result<()>,
) -> Result<()> {
    match model {
        Checkpoint::Shards(model) => {
            for spec in model.tensors().filter(|spec| wanted(spec)) {
                let stored = model.stored(spec.name())?;
                each(Row {
                    spec,
                    file: stored.shard,
                    encoding: stored.encoding,
                    stored: stored.compressed_bytes,
                    owner: stored.shares,
                    base: stored.base,
                    md5: stored.md5,
                })?;
            }
        }
        Checkpoint::Plain(plain) => {
            for file in plain.files() {
                let file = file?;
                for spec in file.tensors.iter().filter(|spec| wanted(spec)) {
                    each(Row {
                        spec,
                        file: file.name.to_owned(),
                        encoding: "plain",
                        stored: spec.byte_len(),
                        owner: None,
                        base: None,
                        md5: None,
                    })?;
                }
            }
        }
    }
    Ok(())
}

/// Whether a tensor is equal to that of its base.
pub(crate) fn is_equal(base: &StoredBase) -> bool {
    base.n_blocks == base.n_same_blocks
}
