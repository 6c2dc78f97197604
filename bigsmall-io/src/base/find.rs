//! Finds the bases of a shard among the files that were given.

use std::collections::HashMap;
use std::sync::Arc;

use bigsmall_format::{Base, BaseTensor, ReadAt, Rule, Shard, TensorSpec};

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
    let mut found = Vec::new();
    let mut needed: HashMap<usize, Vec<Needed<'_>>> = HashMap::new();
    // A shard without a base has nothing to look for.
    let with_base = if shard.bases().is_empty() { &[] } else { shard.tensors() };
    for (index, spec) in with_base.iter().enumerate() {
        if let Some(base) = shard.base_of(index)? {
            needed.entry(base.base).or_default().push((spec, base.name));
        }
    }
    // Looks at each base, so it is asked for once.
    let depth = shard.base_depth();
    for (place, base) in shard.bases().iter().enumerate() {
        progress.check()?;
        let needed = needed.get(&place).map_or(&[][..], Vec::as_slice);
        let file = find_one(shard, needed, base, given, progress)?;
        // Depths fall from shard to base, so no chain is a circle.
        if file.depth >= depth {
            let less = format!("a base with fewer than {depth} behind it");
            let found = format!("{:?}, which has {}", file.shown, file.depth);
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
    needed: &[Needed<'_>],
    base: &Base,
    given: &'a [Arc<BaseFile>],
    progress: &Progress,
) -> Result<&'a Arc<BaseFile>> {
    if let Some(file) = given.iter().find(|file| file.known_sha256() == Some(base.sha256)) {
        return Ok(file);
    }
    let plain = given.iter().filter(|file| file.known_sha256().is_none());
    let fits: Vec<_> = plain.filter(|file| has_tensors(file, needed)).collect();
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

/// A tensor of a shard, and the name of that of its base.
type Needed<'a> = (&'a TensorSpec, &'a str);

/// Whether `file` has the tensors `needed`.
fn has_tensors(file: &BaseFile, needed: &[Needed<'_>]) -> bool {
    needed.iter().all(|(spec, name)| {
        let found = file.header().index_of(name);
        found.is_some_and(|at| BaseTensor::<&[u8]>::suits(spec, &file.tensors()[at]))
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use bigsmall_format::internal::Assembler;
    use bigsmall_format::{BaseRef, Dtype, Header};

    use super::*;
    use crate::base::model::BaseModel;

    #[test]
    // V-12
    fn many_tensors_with_many_bases_are_looked_up_once_each() {
        // So many that the cheapest look at each base for each other one takes longer than below.
        const N: usize = 200_000;
        let spec = |i| TensorSpec::new(&format!("t{i}"), Dtype::U8, &[1]).unwrap();
        let specs: Vec<TensorSpec> = (0..N).map(spec).collect();
        let json = Header::synthesise(&specs).unwrap();
        let plain = [&(json.len() as u64).to_le_bytes()[..], &json, &[7; N]].concat();
        let mut writer = Assembler::synthesised(Vec::new(), &specs).unwrap();
        for spec in &specs {
            let base = writer.add_base(Base::new([1; 32]));
            let hash = bigsmall_format::internal::xxh3(&[7]);
            writer.inherit(BaseRef::new(base, spec.name()), &[hash], None).unwrap();
        }
        let shard = Shard::open(writer.finish([2; 32]).unwrap()).unwrap();
        let given = BaseModel::from_source(plain).unwrap();
        let begin = Instant::now();
        let found = find(&shard, given.files(), &Progress::default()).unwrap();
        assert!(found.tensor(&shard, N - 1).is_ok());
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    }

    #[test]
    // V-12
    fn a_chain_of_shards_with_many_bases_is_followed_once() {
        const BASES: usize = 40;
        let spec = TensorSpec::new("t", Dtype::U8, &[1]).unwrap();
        let json = Header::synthesise(std::slice::from_ref(&spec)).unwrap();
        let plain = [&(json.len() as u64).to_le_bytes()[..], &json, &[7]].concat();
        let shard = |depth: u8| {
            let specs = std::slice::from_ref(&spec);
            let mut writer = Assembler::synthesised(Vec::new(), specs).unwrap();
            for _ in 0..BASES {
                writer.add_base(Base::new([depth; 32]).depth(depth.into()));
            }
            let hash = bigsmall_format::internal::xxh3(&[7]);
            writer.inherit(BaseRef::new(BASES - 1, "t"), &[hash], None).unwrap();
            writer.finish([depth + 1; 32]).unwrap()
        };
        // Each has the one before 40 times as its base.
        let mut given = BaseModel::from_source(plain).unwrap();
        // To follow each way through them would take 40^12 steps, which do not end.
        for depth in 0..12 {
            given = BaseModel::from_source(shard(depth)).unwrap().with_base(given);
        }
        let shard = Shard::open(shard(12)).unwrap();
        let found = find(&shard, given.files(), &Progress::default()).unwrap();
        let base = found.tensor(&shard, 0).unwrap();
        assert!(!base.waits());
        let mut byte = [0];
        base.read_exact_at(0, &mut byte).unwrap();
        assert_eq!(byte, [7]);
    }
}
