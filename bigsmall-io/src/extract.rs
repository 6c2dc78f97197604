//! Some tensors of a model, as a safetensors file of their own.

use std::ops::Range;
use std::path::{Path, PathBuf};

use bigsmall_format::internal::set_len;
use bigsmall_format::{Header, TensorSpec};

use crate::base::model::BaseModel;
use crate::checkpoint::{Checkpoint, Picked};
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::restore::bounds::Expansion;
use crate::stage::atomic::AtomicFile;
use crate::stage::output::Output as _;
use crate::{FolderOptions, Progress, RestoreOptions, os};

/// Which tensors to extract, and how.
///
/// ```
/// let options = bigsmall_io::ExtractOptions::new().tensor("lm_head.weight").prefix("layers.0");
/// assert!(!options.replace);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExtractOptions {
    /// Names of tensors.
    pub tensors: Vec<String>,
    /// Names of modules, whose tensors are all extracted: `model.layers.1` is the tensors whose
    /// name begins with `model.layers.1.`, and not those of `model.layers.10`.
    pub prefixes: Vec<String>,
    /// Replace an existing output.
    pub replace: bool,
    /// As [`RestoreOptions::max_expansion`](RestoreOptions#structfield.max_expansion).
    pub max_expansion: Option<u64>,
    /// As [`RestoreOptions::bases`](RestoreOptions#structfield.bases).
    pub bases: Vec<PathBuf>,
}

impl ExtractOptions {
    /// No tensors; an existing output is an error.
    #[must_use]
    pub fn new() -> Self {
        ExtractOptions::default()
    }

    /// Adds one of the [`tensors`](Self#structfield.tensors).
    #[must_use]
    pub fn tensor(mut self, name: impl Into<String>) -> Self {
        self.tensors.push(name.into());
        self
    }

    /// Adds one of the [`prefixes`](Self#structfield.prefixes).
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefixes.push(prefix.into());
        self
    }

    /// Sets [`replace`](Self#structfield.replace).
    #[must_use]
    pub fn replace(mut self, replace: bool) -> Self {
        self.replace = replace;
        self
    }

    /// Sets [`max_expansion`](Self#structfield.max_expansion).
    #[must_use]
    pub fn max_expansion(mut self, max_expansion: impl Into<Option<u64>>) -> Self {
        self.max_expansion = max_expansion.into();
        self
    }

    /// Adds one of the [`bases`](Self#structfield.bases).
    #[must_use]
    pub fn base(mut self, path: impl Into<PathBuf>) -> Self {
        self.bases.push(path.into());
        self
    }
}

/// The report of [`extract`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extracted {
    /// Tensors in the file that was written.
    pub n_tensors: u64,
    /// Bytes of that file.
    pub byte_len: u64,
}

/// Original bytes that are decoded and written at a time.
const STEP: u64 = 32 << 20;

/// Writes some tensors of a model to the safetensors file `output`. The model may be a shard, a
/// safetensors file, a folder of either, or a URL as in [`Model::open`](crate::Model::open). Of its
/// files only the needed bytes are read. The file is the one that safetensors writes of these
/// tensors and of the model's `__metadata__`.
///
/// Checksums of blocks are compared, and the output is renamed into place when it is complete.
/// Memory: 64 MiB and 4 times the index, for tensors of any size.
///
/// # Errors
/// [`ErrorKind::TensorMissing`] for what the model does not have, with the names that are nearest;
/// [`ErrorKind::Argument`] if no tensor is asked for, or one that two files have;
/// [`ErrorKind::OutputExists`], [`ErrorKind::SameFile`]; those of [`restore`](crate::restore).
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("bigsmall-doc-extract-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let path = |name| dir.join(name);
/// use bigsmall_io::{ExtractOptions, Progress, TensorView, extract, save};
/// let tensor = |values: &'static [u8]| TensorView::from_slice(&[2], values);
/// save(path("m.bs"), [("a.w", tensor(&[1, 2])), ("b.w", tensor(&[3, 4]))], None)?;
/// let options = ExtractOptions::new().prefix("b");
/// extract(path("m.bs"), path("b.safetensors"), &options, &Progress::default())?;
/// assert!(std::fs::read(path("b.safetensors"))?.ends_with(&[3, 4]));
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn extract(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &ExtractOptions,
    progress: &Progress,
) -> Result<Extracted> {
    let (input, output) = (input.as_ref(), output.as_ref());
    let mut model = Checkpoint::open(input, progress)?;
    let is_base = options.bases.iter().any(|base| os::same_file(base, output));
    if is_base || model.has_file(input, output) {
        return Err(Error::new(ErrorKind::SameFile).in_file(output));
    }
    if !options.bases.is_empty() {
        model = model.with_base(BaseModel::open_all(
            &options.bases,
            FolderOptions::new(),
            &progress.stop(),
        )?)?;
    }
    let mut picked = model.pick(&options.tensors, &options.prefixes)?;
    // As safetensors: wide elements first, so that all are aligned, then by name.
    picked.sort_by(|a, b| {
        let (a, b) = (a.spec, b.spec);
        b.dtype().cmp(&a.dtype()).then_with(|| a.name().cmp(b.name()))
    });
    let specs: Vec<TensorSpec> = picked.iter().map(|tensor| tensor.spec.clone()).collect();
    let metadata = Some(model.metadata()?).filter(|metadata| !metadata.is_empty());
    let json = Header::synthesise_with(&specs, metadata.as_ref())?;
    let byte_len = 8 + json.len() as u64 + specs.iter().map(TensorSpec::byte_len).sum::<u64>();

    let mut expansion = Expansion::default();
    expansion.add_bytes(model.byte_len()?, byte_len, options.max_expansion)?;
    expansion.check_room(output, &RestoreOptions::default(), progress)?;
    progress.expect(byte_len);
    let target = AtomicFile::create(output, options.replace)?;
    let append = |bytes: &[u8]| -> Result<()> {
        target.append(bytes).in_file(output)?;
        progress.advance(bytes.len() as u64);
        Ok(())
    };
    append(&(json.len() as u64).to_le_bytes())?;
    append(&json)?;
    let mut buffer = Vec::new();
    for step in steps(&picked) {
        progress.check()?;
        let sum = step.iter().map(|(_, range)| range.end - range.start).sum::<u64>();
        set_len(&mut buffer, sum as usize)?;
        model.read(&step, &mut buffer)?;
        append(&buffer)?;
    }
    model.check_unchanged()?;
    target.commit()?;
    Ok(Extracted { n_tensors: picked.len() as u64, byte_len })
}

/// The tensors in their order, cut into pieces of at most [`STEP`] bytes: some whole tensors, or a
/// range of a larger one.
fn steps<'a>(picked: &'a [Picked<'a>]) -> impl Iterator<Item = Vec<(&'a Picked<'a>, Range<u64>)>> {
    let (mut next, mut at) = (0, 0);
    std::iter::from_fn(move || {
        let (mut step, mut room) = (Vec::new(), STEP);
        while let Some(tensor) = picked.get(next) {
            let len = tensor.spec.byte_len();
            if len > STEP {
                if !step.is_empty() {
                    break;
                }
                let range = at..len.min(at + STEP);
                at = if range.end == len { 0 } else { range.end };
                next += usize::from(at == 0);
                step.push((tensor, range));
                break;
            }
            if len > room {
                break;
            }
            room -= len;
            next += 1;
            step.push((tensor, 0..len));
        }
        (!step.is_empty()).then_some(step)
    })
}
