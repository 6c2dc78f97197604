//! `bigsmall inspect`: what a model has in it, row by row. Nothing of the output is kept in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufWriter, Write};

use bigsmall_format::internal::Shown;
use bigsmall_io::internal::{Checkpoint, json_line};
use bigsmall_io::{Base, Dtype, Error, ErrorKind, Progress, Result, TensorSpec, hex};
use serde_core::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Value, json};

use crate::args::Inspect;
use crate::page::write_page;
use crate::rows::{FileRow, Row, files, for_each_row, is_equal};
use crate::size::bytes;

/// Prints the table, or the JSON, of a model.
pub(crate) fn inspect(args: &Inspect, progress: &Progress) -> Result<()> {
    let model = Checkpoint::open(&args.input, progress)?;
    if let Some(name) = &args.tensor {
        model.find(name)?;
    }
    if let Some(output) = &args.html {
        if model.has_file(&args.input, output) {
            return Err(Error::new(ErrorKind::SameFile).in_file(output));
        }
        return write_page(&model, &args.input, output, args.force, progress);
    }
    let view = View { model: &model, args, files: files(&model)? };
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let printed = match args.json {
        true => view.print_json(&mut out),
        false => view.print_table(&mut out),
    };
    match printed.and_then(|()| Ok(out.flush()?)) {
        // The reader of the output has closed it.
        Err(e) if is_closed(&e) => Ok(()),
        other => other,
    }
}

fn is_closed(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<io::Error>());
    source.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// A model, and what is to be shown of it.
struct View<'a> {
    model: &'a Checkpoint,
    args: &'a Inspect,
    files: Vec<FileRow<'a>>,
}

impl View<'_> {
    fn wants(&self, spec: &TensorSpec) -> bool {
        self.args.tensor.as_ref().is_none_or(|name| name == spec.name())
    }

    /// Bytes of all files: original, stored, and stored / original.
    fn sums(&self) -> (u64, u64, f64) {
        let original: u64 = self.files.iter().map(|file| file.original).sum();
        let stored: u64 = self.files.iter().map(|file| file.stored).sum();
        (original, stored, if original == 0 { 1.0 } else { stored as f64 / original as f64 })
    }

    fn print_table(&self, out: &mut impl Write) -> Result<()> {
        writeln!(
            out,
            "{:>12} {:>12}  {:<5} {:<8} name, shape",
            "original", "stored", "as", "dtype"
        )?;
        let mut common = InCommon::default();
        let mut dtypes: BTreeMap<Dtype, (u64, u64)> = BTreeMap::new();
        for_each_row(
            self.model,
            |spec| self.wants(spec),
            |row| {
                common.add(&row);
                let (n, sum) = dtypes.entry(row.spec.dtype()).or_default();
                (*n, *sum) = (*n + 1, *sum + row.spec.byte_len());
                write!(out, "{:>12} {:>12}  ", row.spec.byte_len(), row.stored)?;
                match (&row.owner, &row.base) {
                    (Some(owner), _) => write!(out, "as {}", Shown::name(owner))?,
                    (None, Some(base)) if is_equal(base) => write!(out, "{:<5}", "base")?,
                    (None, _) => write!(out, "{:<5}", row.encoding)?,
                }
                let (dtype, name) = (row.spec.dtype().name(), Shown::name(row.spec.name()));
                Ok(writeln!(out, " {dtype:<8} {name} {:?}", row.spec.shape())?)
            },
        )?;
        if self.args.tensor.is_none() {
            self.print_metadata(out)?;
            for (dtype, (n, sum)) in &dtypes {
                let s = if *n == 1 { "" } else { "s" };
                writeln!(out, "{dtype}: {n} tensor{s}, {}", bytes(*sum))?;
            }
        }
        for base in self.files.iter().flat_map(|file| file.bases) {
            let (sha256, hint) = (hex(&base.sha256), Shown::name(&base.hint));
            writeln!(out, "base sha256 {sha256} {hint}, {} behind it", base.depth)?;
        }
        common.print(out)?;
        let (original, stored, ratio) = self.sums();
        match self.model {
            Checkpoint::Shards(_) => {
                writeln!(out, "{} <-> {}: {:.2} %", bytes(original), bytes(stored), 100.0 * ratio)?;
            }
            Checkpoint::Plain(_) => {
                let n = self.files.len();
                let s = if n == 1 { "" } else { "s" };
                writeln!(out, "{} in {n} safetensors file{s}, not compressed", bytes(original))?;
            }
        }
        Ok(())
    }

    /// The `__metadata__` of all files. What several files say is printed once.
    fn print_metadata(&self, out: &mut impl Write) -> Result<()> {
        let entries: BTreeSet<_> = self.files.iter().flat_map(|file| &file.metadata).collect();
        for (key, value) in entries {
            writeln!(out, "metadata {:?}: {:?}", Shown::name(key), Shown::message(value))?;
        }
        Ok(())
    }

    fn print_json(&self, out: &mut impl Write) -> Result<()> {
        let (original, stored, ratio) = self.sums();
        write!(out, "{{\"original_bytes\":{original},\"compressed_bytes\":{stored},")?;
        write!(out, "\"ratio\":{},\"files\":[", json!(ratio))?;
        for (i, file) in self.files.iter().enumerate() {
            element(out, i, file)?;
        }
        write!(out, "],\"tensors\":[")?;
        let mut i = 0;
        for_each_row(
            self.model,
            |spec| self.wants(spec),
            |row| {
                let value = json!({
                    "name": row.spec.name(),
                    "dtype": row.spec.dtype().name(),
                    "shape": row.spec.shape(),
                    "encoding": row.encoding,
                    "original_bytes": row.spec.byte_len(),
                    "compressed_bytes": row.stored,
                    "shares": row.owner,
                    "base": row.base.map(|base| json!({
                        "base": base.base,
                        "tensor": base.tensor,
                        "blocks": base.n_blocks,
                        "same_blocks": base.n_same_blocks,
                    })),
                    "shard": row.file,
                    "md5": row.md5.map(|m| hex(&m)),
                });
                element(out, i, &value)?;
                i += 1;
                Ok(())
            },
        )?;
        Ok(writeln!(out, "]}}")?)
    }
}

// Not by a value of `json!`, which would copy the metadata.
impl Serialize for FileRow<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        let base = |base: &Base| {
            let (sha256, hint) = (hex(&base.sha256), &base.hint);
            json!({ "sha256": sha256, "hint": hint, "bases_behind": base.depth })
        };
        let mut map = s.serialize_map(Some(4))?;
        map.serialize_entry("name", self.name)?;
        map.serialize_entry("sha256", &self.sha256.map(|sha256| hex(&sha256)))?;
        map.serialize_entry("bases", &self.bases.iter().map(base).collect::<Vec<Value>>())?;
        map.serialize_entry("metadata", &self.metadata)?;
        map.end()
    }
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
                self.equal += u64::from(is_equal(base));
                self.blocks += base.n_blocks;
                self.same_blocks += base.n_same_blocks;
            }
        }
    }

    fn print(&self, out: &mut impl Write) -> Result<()> {
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
        )?;
        Ok(())
    }
}

/// Prints the `i`-th element of an array.
fn element(out: &mut impl Write, i: usize, value: &impl Serialize) -> Result<()> {
    if i > 0 {
        out.write_all(b",")?;
    }
    Ok(out.write_all(json_line(value).trim_end().as_bytes())?)
}
