//! Finds the bases of a shard among the files that were given.

use std::sync::Arc;

use bigsmall_format::{Base, BaseTensor, ReadAt, Rule, Shard};

use crate::base::tensor::{BaseFile, Bases, Content, described, missing};
use crate::error::{Context as _, Error, Result};
use crate::{Progress, hex};

/// The bases of `shard` among the files `given`, and those of the bases.
///
/// A shard is recognised by its SHA-256. A safetensors file is not read for this if it is the only
/// one with the right tensors: its blocks are checked when they are used.
pub(crate) fn find<R: ReadAt>(
    shard: &Shard<R>,
    given: &[Arc<BaseFile>],
    progress: &Progress,
) -> Result<Bases> {
    let mut found = Vec::with_capacity(shard.bases().len());
    for (place, base) in shard.bases().iter().enumerate() {
        let file = find_one(shard, place, base, given, progress)?;
        // Depths fall from shard to base, so no chain is a circle.
        if file.depth() >= shard.base_depth() {
            let less = format!("a base with fewer than {} behind it", shard.base_depth());
            let found = format!("{:?}, which has {}", file.shown, file.depth());
            return Err(Error::new(Rule::BaseDepth).expected(less).found(found));
        }
        find_behind(file, given, progress)?;
        found.push(Arc::clone(file));
    }
    Ok(Bases::new(found))
}

/// Finds the bases of a base.
pub(crate) fn find_behind(
    file: &BaseFile,
    given: &[Arc<BaseFile>],
    progress: &Progress,
) -> Result<()> {
    if let Content::Shard { shard, bases } = &file.content
        && bases.get().is_none()
    {
        let found = find(shard, given, progress).in_file(&file.shown)?;
        // If another thread was faster, it found the same.
        let _ = bases.set(found);
    }
    Ok(())
}

fn find_one<'a, R: ReadAt>(
    shard: &Shard<R>,
    place: usize,
    base: &Base,
    given: &'a [Arc<BaseFile>],
    progress: &Progress,
) -> Result<&'a Arc<BaseFile>> {
    if let Some(file) = given.iter().find(|file| file.known_sha256() == Some(base.sha256)) {
        return Ok(file);
    }
    let mut fits = Vec::new();
    for file in given.iter().filter(|file| file.known_sha256().is_none()) {
        if has_tensors(shard, place, file)? {
            fits.push(file);
        }
    }
    if let [only] = fits[..] {
        return Ok(only);
    }
    for file in fits {
        if file.sha256(|| progress.is_cancelled())? == base.sha256 {
            return Ok(file);
        }
    }
    // A chain is given as a whole, this shard included.
    let others = given.iter().filter(|file| file.known_sha256() != Some(shard.sha256()));
    let others: Vec<_> = others.collect();
    if others.is_empty() {
        return Err(missing(base));
    }
    let found = others.iter().map(|file| match file.known_sha256() {
        Some(sha256) => format!("{:?} with SHA-256 {}", file.shown, hex(&sha256)),
        None => format!("{:?} with other tensors", file.shown),
    });
    let found = found.collect::<Vec<_>>().join(", ");
    Err(Error::new(Rule::BaseMismatch).expected(described(base)).found(found))
}

/// Whether `file` has the tensors that `shard` needs of its base `place`.
fn has_tensors<R: ReadAt>(shard: &Shard<R>, place: usize, file: &BaseFile) -> Result<bool> {
    for (index, spec) in shard.tensors().iter().enumerate() {
        let Some(base) = shard.base_of(index)?.filter(|base| base.base == place) else { continue };
        let found = file.header().index_of(base.name);
        if !found.is_some_and(|at| BaseTensor::<&[u8]>::suits(spec, &file.tensors()[at])) {
            return Ok(false);
        }
    }
    Ok(true)
}
