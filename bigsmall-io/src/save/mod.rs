//! From tensors in memory to a shard.

pub(crate) mod options;
pub(crate) mod view;
pub(crate) mod writer;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use bigsmall_format::{Header, ReadAt, Rule, TensorSpec};

use crate::base::matches::Against;
use crate::base::model::BaseModel;
use crate::compress::walk::{Origin, compress_walk};
use crate::error::{Error, ErrorKind, Result};
use crate::report::file_name;
use crate::stage::atomic::AtomicFile;
use crate::stage::output::{Output, Sink};
use crate::{FileReport, Progress, SaveOptions, TensorView};

/// Saves tensors as the shard `path`. It restores, byte for byte, to the file that
/// `safetensors::serialize` makes of the same tensors and metadata. The order of several metadata
/// keys may differ: safetensors writes them in any order, this function sorts them.
///
/// Uses the default [`SaveOptions`]: an existing file is replaced. The written bytes are read back,
/// decoded and compared before the file is renamed into place. So the file is absent, unchanged, or
/// complete. Memory: at most 256 MiB and 4 times the index, beside the tensors themselves.
///
/// # Errors
/// [`Rule::BufferLength`] where the values of a tensor are not as long as its shape says,
/// [`Rule::HeaderDuplicate`] for a name that comes twice, [`ErrorKind::Argument`] for the name
/// `__metadata__`, [`Rule::ShapeOverflow`], [`Rule::SubByteTotal`], [`ErrorKind::Io`],
/// [`ErrorKind::ReadBack`], [`ErrorKind::Memory`].
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("bigsmall-doc-save-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let path = dir.join("model.bs");
/// use bigsmall_io::{Model, TensorView, save};
///
/// let weight = [0.5f32, 1.0, 1.5, 2.0, 2.5, 3.0];
/// let bias = [1f32, -1.0];
/// let tensors = [
///     ("fc.weight", TensorView::from_slice(&[2, 3], &weight)),
///     ("fc.bias", TensorView::from_slice(&[2], &bias)),
/// ];
/// save(&path, tensors, None)?;
///
/// assert_eq!(Model::open(&path)?.tensor("fc.bias")?.to_vec::<f32>()?, bias);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn save<'a, N: AsRef<str>, T: Into<TensorView<'a>>>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (N, T)>,
    metadata: Option<HashMap<String, String>>,
) -> Result<FileReport> {
    save_with(path, tensors, metadata, &SaveOptions::default(), &Progress::default())
}

/// Saves tensors as the shard `path`, like [`save`], with the encoding and whatever else `options`
/// say.
///
/// # Errors
/// Those of [`save`]; [`ErrorKind::OutputExists`] where an existing file is not to be replaced;
/// [`ErrorKind::Cancelled`].
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("bigsmall-doc-save-with-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let path = dir.join("model.bs");
/// use std::collections::HashMap;
/// use bigsmall_io::{Dtype, Encoding, Progress, SaveOptions, TensorView, save_with};
///
/// let tensors = [("mask", TensorView::new(Dtype::BOOL, &[3], vec![1, 0, 1]))];
/// let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
/// let options = SaveOptions::default().encoding(Encoding::Tbe3).replace(false);
/// let report = save_with(&path, tensors, Some(metadata), &options, &Progress::default())?;
/// assert_eq!(report.n_tensors, 1);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn save_with<'a, N: AsRef<str>, T: Into<TensorView<'a>>>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (N, T)>,
    metadata: Option<HashMap<String, String>>,
    options: &SaveOptions,
    progress: &Progress,
) -> Result<FileReport> {
    let path = path.as_ref();
    let source = InMemory::new(tensors, metadata)?;
    let target = AtomicFile::create(path, options.replace)?;
    let mut report = source.save(&target, options, progress)?;
    target.commit()?;
    report.name = file_name(path);
    Ok(report)
}

/// Saves tensors to any writer, such as memory or a socket. It cannot be read back; instead,
/// encoded tensors are decoded and compared before they are written.
///
/// # Errors
/// Those of [`save`] and of `sink`. After an error, `sink` may have received a part of the shard.
///
/// ```
/// use bigsmall_io::{Model, Progress, SaveOptions, TensorView, save_to};
/// let mut shard = Vec::new();
/// let tensors = [("w", TensorView::from_slice(&[3], &[1u8, 2, 3]))];
/// save_to(&mut shard, tensors, None, &SaveOptions::default(), &Progress::default())?;
/// assert_eq!(Model::from_source(shard)?.tensor("w")?.bytes(), [1, 2, 3]);
/// # Ok::<(), bigsmall_io::Error>(())
/// ```
pub fn save_to<'a, N: AsRef<str>, T: Into<TensorView<'a>>>(
    sink: impl Write + Send,
    tensors: impl IntoIterator<Item = (N, T)>,
    metadata: Option<HashMap<String, String>>,
    options: &SaveOptions,
    progress: &Progress,
) -> Result<FileReport> {
    let source = InMemory::new(tensors, metadata)?;
    let target = Sink::new(sink);
    let report = source.save(&target, options, progress)?;
    target.flush()?;
    Ok(report)
}

/// Metadata in the order in which it is written.
fn sorted(metadata: Option<HashMap<String, String>>) -> Option<BTreeMap<String, String>> {
    metadata.map(|metadata| metadata.into_iter().collect())
}

/// A spec under a name that a tensor can have.
fn named(spec: TensorSpec) -> Result<TensorSpec> {
    match spec.name() {
        "__metadata__" => Err(Error::new(ErrorKind::Argument)
            .in_tensor(spec.name())
            .expected("a name that the header does not use itself")),
        _ => Ok(spec),
    }
}

/// The safetensors file of tensors in memory. It never exists as a whole.
pub(crate) struct InMemory<'a> {
    /// The header with its length.
    prefix: Vec<u8>,
    /// Values and the place of their end in the file, in the order of the file.
    tensors: Vec<(Cow<'a, [u8]>, u64)>,
}

impl<'a> InMemory<'a> {
    pub(crate) fn new<N: AsRef<str>, T: Into<TensorView<'a>>>(
        tensors: impl IntoIterator<Item = (N, T)>,
        metadata: Option<HashMap<String, String>>,
    ) -> Result<Self> {
        let mut tensors: Vec<(N, TensorView<'a>)> =
            tensors.into_iter().map(|(name, tensor)| (name, tensor.into())).collect();
        // As safetensors: wide elements first, so that all are aligned, then by name.
        tensors.sort_by(|(a_name, a), (b_name, b)| {
            b.dtype().cmp(&a.dtype()).then_with(|| a_name.as_ref().cmp(b_name.as_ref()))
        });
        let mut specs = Vec::with_capacity(tensors.len());
        for (name, tensor) in &tensors {
            let spec = named(TensorSpec::new(name.as_ref(), tensor.dtype(), tensor.shape())?)?;
            if tensor.bytes().len() as u64 != spec.byte_len() {
                let (dtype, shape) = (spec.dtype(), spec.shape());
                return Err(Error::new(Rule::BufferLength)
                    .in_tensor(spec.name())
                    .expected(format!("{} bytes of {dtype} {shape:?}", spec.byte_len()))
                    .found(tensor.bytes().len()));
            }
            specs.push(spec);
        }
        let json = Header::synthesise_with(&specs, sorted(metadata).as_ref())?;
        let prefix = [&(json.len() as u64).to_le_bytes()[..], &json].concat();
        let mut end = prefix.len() as u64;
        let placed = |(_, tensor): (N, TensorView<'a>)| {
            let bytes = tensor.into_bytes();
            end += bytes.len() as u64;
            (bytes, end)
        };
        Ok(InMemory { tensors: tensors.into_iter().map(placed).collect(), prefix })
    }

    fn save(
        &self,
        output: &dyn Output,
        options: &SaveOptions,
        progress: &Progress,
    ) -> Result<FileReport> {
        progress.expect(self.byte_len()?);
        let (base, options) = (BaseModel::default(), options.compress());
        let base = Against::new(&base);
        compress_walk(self, Origin::Memory, base, output, &options, progress)
    }

    /// The piece that contains the byte `at`, and the position where the piece begins.
    fn piece(&self, at: u64) -> Option<(&[u8], u64)> {
        if at < self.prefix.len() as u64 {
            return Some((&self.prefix, 0));
        }
        let index = self.tensors.partition_point(|&(_, end)| end <= at);
        let (bytes, end) = self.tensors.get(index)?;
        Some((bytes, end - bytes.len() as u64))
    }
}

impl ReadAt for InMemory<'_> {
    fn byte_len(&self) -> std::io::Result<u64> {
        Ok(self.tensors.last().map_or(self.prefix.len() as u64, |&(_, end)| end))
    }

    fn read_exact_at(&self, offset: u64, mut buf: &mut [u8]) -> std::io::Result<()> {
        let mut at = offset;
        while !buf.is_empty() {
            let Some((piece, begin)) = self.piece(at) else {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            };
            let rest = &piece[(at - begin) as usize..];
            let n = rest.len().min(buf.len());
            let (to, after) = buf.split_at_mut(n);
            to.copy_from_slice(&rest[..n]);
            buf = after;
            at += n as u64;
        }
        Ok(())
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        let (piece, begin) = self.piece(range.start)?;
        piece.get((range.start - begin) as usize..usize::try_from(range.end - begin).ok()?)
    }
}
