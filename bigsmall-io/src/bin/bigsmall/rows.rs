//! The tensors of a model, as `inspect` shows them.

use std::collections::BTreeMap;

use bigsmall_io::internal::{Checkpoint, metadata};
use bigsmall_io::{Base, ReadAt, Result, Shard, TensorSpec};

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
    pub(crate) file: &'a str,
    /// `plain` in a safetensors file.
    pub(crate) encoding: &'static str,
    pub(crate) stored: u64,
    /// The tensor whose payload it shares.
    pub(crate) owner: Option<&'a str>,
    /// The tensor that it is stored as differences from.
    pub(crate) base: Option<OfBase<'a>>,
    pub(crate) md5: Option<[u8; 16]>,
}

/// What a tensor has in common with its base.
pub(crate) struct OfBase<'a> {
    /// The base's place in the shard.
    pub(crate) base: usize,
    pub(crate) tensor: &'a str,
    pub(crate) blocks: u64,
    pub(crate) same_blocks: u64,
}

impl OfBase<'_> {
    pub(crate) fn is_equal(&self) -> bool {
        self.blocks == self.same_blocks
    }
}

/// Calls `each` for every tensor that is `wanted`.
pub(crate) fn for_each_row<'a>(
    model: &'a Checkpoint,
    wanted: impl Fn(&TensorSpec) -> bool,
    mut each: impl FnMut(Row<'a>) -> Result<()>,
) -> Result<()> {
    match model {
        Checkpoint::Shards(model) => {
            for (name, shard) in model.shards() {
                let tensors = shard.tensors().iter().enumerate();
                for (index, spec) in tensors.filter(|(_, spec)| wanted(spec)) {
                    each(row(name, shard, index, spec)?)?;
                }
            }
        }
        Checkpoint::Plain(plain) => {
            for file in plain.files() {
                let file = file?;
                for spec in file.tensors.iter().filter(|spec| wanted(spec)) {
                    each(Row {
                        spec,
                        file: file.name,
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

fn row<'a>(
    file: &'a str,
    shard: &'a Shard<impl ReadAt>,
    index: usize,
    spec: &'a TensorSpec,
) -> Result<Row<'a>> {
    let entry = shard.entry(index)?;
    let owner = entry.shares().and_then(|owner| shard.tensors().get(owner));
    let payload = shard.payload_range(index)?;
    let base = match shard.base_of(index)?.filter(|_| owner.is_none()) {
        None => None,
        Some(base) => {
            let table = shard.table(index)?;
            let blocks = table.n_blocks();
            let same_blocks = (0..blocks).filter(|&block| table.block_len(block) == 0).count();
            Some(OfBase {
                base: base.base,
                tensor: base.name,
                blocks,
                same_blocks: same_blocks as u64,
            })
        }
    };
    Ok(Row {
        base,
        spec,
        file,
        encoding: shard.encoding(index).map_or("unknown", |e| e.name()),
        stored: if owner.is_some() { 0 } else { payload.end - payload.start },
        owner: owner.map(TensorSpec::name),
        md5: entry.md5(),
    })
}
