//! `bigsmall inspect`: what a model has in it, row by row. Nothing of the output is kept in memory.

use std::io::{self, BufWriter, Write};

use bigsmall_format::internal::Shown;
use bigsmall_io::internal::json_line;
use bigsmall_io::{Base, Error, Model, Progress, ReadAt, Result, Shard, TensorSpec, hex};
use serde_json::{Value, json};

use crate::args::Inspect;
use crate::size::bytes;

/// Prints the table, or the JSON, of a model.
pub(crate) fn inspect(args: &Inspect, progress: &Progress) -> Result<()> {
    let model = Model::open_with(&args.input, progress)?;
    if let Some(name) = &args.tensor {
        model.spec(name)?;
    }
    let (mut original, mut compressed) = (0, 0);
    for (_, shard) in model.shards() {
        original += shard.original_len();
        compressed += shard.source().byte_len()?;
    }
    let summary = Summary { original, compressed };
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let printed = match args.json {
        true => print_json(&model, args, &summary, &mut out),
        false => print_table(&model, args, &summary, &mut out),
    };
    match printed.and_then(|()| out.flush()) {
        // The reader of the output has closed it.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Error::from),
    }
}

/// The sums over all shards.
struct Summary {
    original: u64,
    compressed: u64,
}

impl Summary {
    fn ratio(&self) -> f64 {
        match self.original {
            0 => 1.0,
            original => self.compressed as f64 / original as f64,
        }
    }
}

/// How a tensor is stored.
struct Row<'a> {
    spec: &'a TensorSpec,
    shard: &'a str,
    encoding: &'static str,
    compressed: u64,
    /// The tensor whose payload it shares.
    owner: Option<&'a str>,
    /// The tensor that it is stored as differences from.
    base: Option<OfBase<'a>>,
    md5: Option<[u8; 16]>,
}

/// What a tensor has in common with its base.
struct OfBase<'a> {
    /// The base's place in the shard.
    base: usize,
    tensor: &'a str,
    blocks: u64,
    same_blocks: u64,
}

impl OfBase<'_> {
    fn is_equal(&self) -> bool {
        self.blocks == self.same_blocks
    }
}

/// Calls `print` for each tensor that is to be shown.
fn for_each_row<'a>(
    model: &'a Model,
    args: &Inspect,
    mut print: impl FnMut(Row<'a>) -> io::Result<()>,
) -> io::Result<()> {
    for (name, shard) in model.shards() {
        let wanted = |spec: &TensorSpec| args.tensor.as_ref().is_none_or(|t| t == spec.name());
        for (index, spec) in shard.tensors().iter().enumerate().filter(|(_, spec)| wanted(spec)) {
            print(row(name, shard, index, spec)?)?;
        }
    }
    Ok(())
}

fn row<'a>(
    name: &'a str,
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
        shard: name,
        encoding: shard.encoding(index).map_or("unknown", |e| e.name()),
        compressed: if owner.is_some() { 0 } else { payload.end - payload.start },
        owner: owner.map(TensorSpec::name),
        md5: entry.md5(),
    })
}

fn print_table(
    model: &Model,
    args: &Inspect,
    summary: &Summary,
    out: &mut impl Write,
) -> io::Result<()> {
    writeln!(out, "{:>12} {:>12}  {:<5} {:<8} name, shape", "original", "stored", "as", "dtype")?;
    let mut common = InCommon::default();
    for_each_row(model, args, |row| {
        common.add(&row);
        write!(out, "{:>12} {:>12}  ", row.spec.byte_len(), row.compressed)?;
        match (row.owner, &row.base) {
            (Some(owner), _) => write!(out, "as {}", Shown::name(owner))?,
            (None, Some(base)) if base.is_equal() => write!(out, "{:<5}", "base")?,
            (None, _) => write!(out, "{:<5}", row.encoding)?,
        }
        let (dtype, name) = (row.spec.dtype().name(), Shown::name(row.spec.name()));
        writeln!(out, " {dtype:<8} {name} {:?}", row.spec.shape())
    })?;
    for base in model.shards().flat_map(|(_, shard)| shard.bases()) {
        let (sha256, hint) = (hex(&base.sha256), Shown::name(&base.hint));
        writeln!(out, "base sha256 {sha256} {hint}, {} behind it", base.depth)?;
    }
    common.print(out)?;
    let (original, compressed) = (bytes(summary.original), bytes(summary.compressed));
    writeln!(out, "{original} <-> {compressed}: {:.2} %", 100.0 * summary.ratio())
}

/// What the tensors of a model have in common with their bases.
#[derive(Default)]
struct InCommon {
    tensors: u64,
    equal: u64,
    alone: u64,
    /// Blocks of tensors with a base.
    blocks: u64,
    same_blocks: u64,
}

impl InCommon {
    fn add(&mut self, row: &Row<'_>) {
        self.tensors += 1;
        match &row.base {
            None => self.alone += 1,
            Some(base) => {
                self.equal += u64::from(base.is_equal());
                self.blocks += base.blocks;
                self.same_blocks += base.same_blocks;
            }
        }
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let InCommon { tensors, equal, alone, blocks, .. } = *self;
        if alone == tensors {
            return Ok(());
        }
        let changed = blocks - self.same_blocks;
        let share = 100.0 * changed as f64 / blocks.max(1) as f64;
        writeln!(
            out,
            "of {tensors} tensors {equal} are equal to the base and {alone} stand alone; of \
             {blocks} blocks with a base {changed} ({share:.1} %) differ from it"
        )
    }
}

fn print_json(
    model: &Model,
    args: &Inspect,
    summary: &Summary,
    out: &mut impl Write,
) -> io::Result<()> {
    let Summary { original, compressed } = summary;
    write!(out, "{{\"original_bytes\":{original},\"compressed_bytes\":{compressed},")?;
    write!(out, "\"ratio\":{},\"files\":[", json!(summary.ratio()))?;
    for (i, (name, shard)) in model.shards().enumerate() {
        let base = |base: &Base| {
            let (sha256, hint) = (hex(&base.sha256), &base.hint);
            json!({ "sha256": sha256, "hint": hint, "bases_behind": base.depth })
        };
        let bases: Vec<Value> = shard.bases().iter().map(base).collect();
        let value = json!({ "name": name, "sha256": hex(&shard.sha256()), "bases": bases });
        element(out, i, &value)?;
    }
    write!(out, "],\"tensors\":[")?;
    let mut i = 0;
    for_each_row(model, args, |row| {
        let value = json!({
            "name": row.spec.name(),
            "dtype": row.spec.dtype().name(),
            "shape": row.spec.shape(),
            "encoding": row.encoding,
            "original_bytes": row.spec.byte_len(),
            "compressed_bytes": row.compressed,
            "shares": row.owner,
            "base": row.base.map(|base| json!({
                "base": base.base,
                "tensor": base.tensor,
                "blocks": base.blocks,
                "same_blocks": base.same_blocks,
            })),
            "shard": row.shard,
            "md5": row.md5.map(|m| hex(&m)),
        });
        element(out, i, &value)?;
        i += 1;
        Ok(())
    })?;
    writeln!(out, "]}}")
}

/// Prints the `i`-th element of an array.
fn element(out: &mut impl Write, i: usize, value: &Value) -> io::Result<()> {
    if i > 0 {
        out.write_all(b",")?;
    }
    out.write_all(json_line(value).trim_end().as_bytes())
}
