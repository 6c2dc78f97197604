//! Writes a shard tensor by tensor.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use bigsmall_format::internal::xxh3;
use bigsmall_format::{Class, Dtype, ReadAt, Rule, Shard, ShardWriter, TensorSpec};

use crate::base::tensor::Bases;
use crate::error::{Error, ErrorKind, Result};
use crate::report::file_name;
use crate::restore::walk::restore_shard;
use crate::save::{named, sorted};
use crate::stage::atomic::AtomicFile;
use crate::stage::output::Output as _;
use crate::{Encoding, FileReport, Progress, RestoreOptions, SaveOptions};

/// Writes a shard tensor by tensor, for models that are never in memory as a whole: dtypes and
/// shapes first, then the values of one tensor after the other, then [`finish`](Self::finish).
///
/// The shard restores to the safetensors file with the tensors in that order. A tensor whose dtype
/// and values are those of an earlier one shares its payload. [`finish`](Self::finish) reads the
/// file back, decodes it and compares the SHA-256 with that of the tensors. Only then is the file
/// renamed into place. A writer that is dropped earlier leaves nothing behind.
///
/// Memory: one encoded tensor, 12 bytes a block and some 100 bytes a tensor; in
/// [`finish`](Self::finish) at most 256 MiB and 4 times the index.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("bigsmall-doc-writer-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let path = dir.join("model.bs");
/// use bigsmall_io::{Dtype, Model, SaveOptions, TensorSpec, Writer};
///
/// let specs = (0..3).map(|n| TensorSpec::new(&format!("layers.{n}.w"), Dtype::U8, &[2, 2]));
/// let specs = specs.collect::<Result<Vec<_>, _>>()?;
/// let mut writer = Writer::create(&path, specs, None, &SaveOptions::default())?;
/// while let Some(spec) = writer.due() {
///     let name = spec.name().to_owned();
///     let values = vec![7; spec.byte_len() as usize];
///     writer.tensor(&name, &values)?;
/// }
/// let report = writer.finish()?;
///
/// assert_eq!((report.n_tensors, report.n_shared), (3, 2));
/// assert_eq!(Model::open(&path)?.tensor("layers.2.w")?.bytes(), [7, 7, 7, 7]);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Writer {
    writer: ShardWriter<BufWriter<Appender>>,
    file: Arc<AtomicFile>,
    name: String,
    encoding: Encoding,
    /// How many tensors are written.
    done: usize,
    /// The first tensor with that dtype, length and hash.
    first: HashMap<(Dtype, u64, u64), usize>,
}

impl Writer {
    /// Begins the shard `path` of the tensors `specs`, in that order.
    ///
    /// # Errors
    /// [`Rule::HeaderDuplicate`] for a name that comes twice, [`ErrorKind::Argument`] for the name
    /// `__metadata__`, [`ErrorKind::OutputExists`] where an existing file is not to be replaced,
    /// [`ErrorKind::Io`].
    pub fn create(
        path: impl AsRef<Path>,
        specs: impl IntoIterator<Item = TensorSpec>,
        metadata: Option<HashMap<String, String>>,
        options: &SaveOptions,
    ) -> Result<Self> {
        let path = path.as_ref();
        let specs = specs.into_iter().map(named).collect::<Result<Vec<_>>>()?;
        let file = Arc::new(AtomicFile::create(path, options.replace)?);
        let sink = BufWriter::with_capacity(64 << 10, Appender(Arc::clone(&file)));
        Ok(Writer {
            writer: ShardWriter::synthesised_with(sink, &specs, sorted(metadata).as_ref())?,
            file,
            name: file_name(path),
            encoding: options.encoding,
            done: 0,
            first: HashMap::new(),
        })
    }

    /// The next tensor to write; `None` once all are written.
    #[must_use]
    pub fn due(&self) -> Option<&TensorSpec> {
        self.writer.tensors().get(self.done)
    }

    /// Encodes and writes the tensor `name` with the little-endian values `bytes`.
    ///
    /// # Errors
    /// [`Rule::WriterMisuse`] when another tensor is due and [`Rule::BufferLength`] when `bytes` is
    /// not as long as the tensor; after both the writer goes on with the tensor that is due.
    /// [`ErrorKind::Io`], [`ErrorKind::Memory`].
    pub fn tensor(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let tensors = self.writer.tensors();
        let due = tensors.get(self.done).filter(|due| due.name() == name);
        let Some(due) = due.cloned() else {
            let due = tensors.get(self.done);
            return Err(Error::new(Rule::WriterMisuse).in_tensor(name).expected(
                due.map_or("no more tensors".into(), |due| format!("{:?}", due.name())),
            ));
        };
        let key = (due.dtype(), due.byte_len(), xxh3(bytes));
        let owner = self.first.get(&key).filter(|_| !bytes.is_empty());
        let owner = owner.map(|&owner| tensors[owner].name().to_owned());
        match owner {
            // Somebody may have made tensors with the same hash of 64 bits.
            Some(owner) if self.writer.has_values(&owner, bytes)? => {
                self.writer.share(&due, bytes, &owner)?;
            }
            _ => {
                self.writer.write(&due, bytes, self.encoding.implementation())?;
                self.first.entry(key).or_insert(self.done);
            }
        }
        self.done += 1;
        Ok(())
    }

    /// Writes the index, reads the whole file back and gives it its name.
    ///
    /// # Errors
    /// [`Rule::WriterMisuse`] when tensors are missing, [`ErrorKind::ReadBack`] when what was
    /// written is not what was given, [`ErrorKind::Io`], [`ErrorKind::Memory`].
    pub fn finish(self) -> Result<FileReport> {
        self.finish_with(&Progress::default())
    }

    /// As [`finish`](Self::finish), with progress. If it is cancelled, nothing is left behind.
    ///
    /// # Errors
    /// Those of [`finish`](Self::finish); [`ErrorKind::Cancelled`].
    pub fn finish_with(self, progress: &Progress) -> Result<FileReport> {
        let Writer { writer, file, name, .. } = self;
        let sink = writer.finish()?;
        drop(sink.into_inner().map_err(|e| Error::from(e.into_error()))?);
        let checked = Shard::open(Written(&file)).map_err(Error::from).and_then(|shard| {
            progress.expect(shard.original_len());
            let (none, options) = (Bases::default(), RestoreOptions::default());
            restore_shard(&shard, &none, false, None, &options, progress)
        });
        let mut report = checked.map_err(|e| match e.class() {
            Class::Corrupt => Error::new(ErrorKind::ReadBack).caused_by(e),
            _ => e,
        })?;
        // The sink, which had the file too, is gone.
        let file = Arc::into_inner(file).ok_or_else(|| Error::new(Rule::WriterMisuse))?;
        file.commit()?;
        report.name = name;
        Ok(report)
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("name", &self.name)
            .field("encoding", &self.encoding)
            .field("done", &self.done)
            .field("tensors", &self.writer.tensors().len())
            .finish()
    }
}

/// The end of a file that is being written.
struct Appender(Arc<AtomicFile>);

impl Write for Appender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.append(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that is written but has no name yet.
struct Written<'a>(&'a AtomicFile);

impl ReadAt for Written<'_> {
    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.0.written())
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_back(offset, buf)?;
        Ok(())
    }
}
