//! Tensors of shards, ready to be decoded: each with its decoder and its base. A base may be a
//! shard with bases of its own, so this file refers to itself.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use bigsmall_format::internal::{len_of, read_at, set_len};
use bigsmall_format::{Base, BaseTensor, BlockDecoder, Header, ReadAt, Rule, Shard, TensorSpec};

use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::source::file::Source;
use crate::stage::digest::FileDigest;
use crate::stage::lock::lock;
use crate::{encoding, hex};

/// A file of a base: safetensors, or a shard that restores to it.
pub(crate) struct BaseFile {
    /// Its path or URL, for errors.
    pub(crate) shown: String,
    /// Where it is, for people who have a shard without its base. Stored in the shard.
    pub(crate) hint: String,
    /// The folder that it lies in, within the folder of the base.
    pub(crate) folder: PathBuf,
    /// Whether reading it waits for another machine.
    pub(crate) remote: bool,
    /// How many bases lie one behind the other.
    pub(crate) depth: u32,
    pub(crate) content: Content,
    /// Whether the file is as it was when it was opened. A remote source checks this itself.
    pub(crate) is_unchanged: Box<dyn Fn() -> bool + Send + Sync>,
    /// SHA-256 of the safetensors file, once it is known.
    pub(crate) sha256: Mutex<Option<[u8; 32]>>,
}

pub(crate) enum Content {
    Safetensors {
        source: Source,
        header: Header,
        /// Where the data begins.
        data_at: u64,
    },
    Shard {
        shard: Arc<Shard<Source>>,
        /// Set when they are found.
        bases: OnceLock<Bases>,
    },
}

impl Content {
    /// How many bases lie one behind the other. Looks at each base.
    pub(crate) fn depth(&self) -> u32 {
        match self {
            Content::Safetensors { .. } => 0,
            Content::Shard { shard, .. } => shard.base_depth(),
        }
    }
}

/// Bytes of a base that are hashed at a time.
const HASHED: u64 = 4 << 20;

impl BaseFile {
    pub(crate) fn header(&self) -> &Header {
        match &self.content {
            Content::Safetensors { header, .. } => header,
            Content::Shard { shard, .. } => shard.header(),
        }
    }

    pub(crate) fn tensors(&self) -> &[TensorSpec] {
        self.header().tensors()
    }

    /// Bytes of the safetensors file.
    pub(crate) fn original_len(&self) -> u64 {
        match &self.content {
            Content::Safetensors { header, data_at, .. } => data_at + header.data_len(),
            Content::Shard { shard, .. } => shard.original_len(),
        }
    }

    /// Whether reading the file or one of its bases waits for another machine.
    pub(crate) fn waits(&self) -> bool {
        let behind = match &self.content {
            Content::Safetensors { .. } => None,
            Content::Shard { bases, .. } => bases.get(),
        };
        self.remote || behind.is_some_and(Bases::wait)
    }

    /// The SHA-256 of the safetensors file, if it is known without reading the file.
    pub(crate) fn known_sha256(&self) -> Option<[u8; 32]> {
        match &self.content {
            Content::Safetensors { .. } => *lock(&self.sha256),
            Content::Shard { shard, .. } => Some(shard.sha256()),
        }
    }

    /// The SHA-256 of the safetensors file. The first call for a safetensors file reads all of it.
    /// It ends with [`ErrorKind::Cancelled`] soon after `stopped` says so.
    pub(crate) fn sha256(&self, stopped: impl Fn() -> bool) -> Result<[u8; 32]> {
        let source = match &self.content {
            Content::Safetensors { source, .. } => source,
            Content::Shard { shard, .. } => return Ok(shard.sha256()),
        };
        let mut known = lock(&self.sha256);
        if let Some(known) = *known {
            return Ok(known);
        }
        let (mut digest, mut buffer, mut at) = (FileDigest::new(), Vec::new(), 0);
        let byte_len = len_of(source).in_file(&self.shown)?;
        while at < byte_len {
            if stopped() {
                return Err(Error::new(ErrorKind::Cancelled));
            }
            set_len(&mut buffer, HASHED.min(byte_len - at) as usize)?;
            read_at(source, at, &mut buffer).in_file(&self.shown)?;
            digest.update(&buffer);
            at += buffer.len() as u64;
        }
        let found = digest.finish();
        *known = Some(found);
        Ok(found)
    }

    /// An error if someone wrote to the file since it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        match (self.is_unchanged)() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::SourceChanged).in_file(&self.shown)),
        }
    }
}

/// The bases of a shard, in the order of [`Shard::bases`]. Empty if the shard stands alone, or if
/// its bases were not given.
#[derive(Clone, Default)]
pub(crate) struct Bases {
    files: Arc<[Arc<BaseFile>]>,
    wait: bool,
}

impl Bases {
    /// `files` know their own bases, if these were given.
    pub(crate) fn new(files: Vec<Arc<BaseFile>>) -> Self {
        // Once: who asks each of them, and these their own, may ask for ever.
        let wait = files.iter().any(|file| file.waits());
        Bases { files: files.into(), wait }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether reading one of them waits for another machine.
    pub(crate) fn wait(&self) -> bool {
        self.wait
    }

    /// The base of tensor `index` of `shard`.
    pub(crate) fn tensor<R: ReadAt>(&self, shard: &Shard<R>, index: usize) -> Result<TensorBase> {
        let Some(base) = shard.base_of(index)? else { return Ok(TensorBase::default()) };
        let spec = &shard.tensors()[index];
        match self.files.get(base.base) {
            Some(file) => TensorBase::new(file, base.name, spec).in_tensor(spec.name()),
            None => Err(missing(&shard.bases()[base.base]).in_tensor(spec.name())),
        }
    }
}

/// The error for a base that was not given.
pub(crate) fn missing(base: &Base) -> Error {
    Error::new(Rule::BaseMissing).expected(described(base)).found("no base")
}

/// A base as a shard names it, for errors.
pub(crate) fn described(base: &Base) -> String {
    let hint = match &*base.hint {
        "" => String::new(),
        hint => format!(", which was {hint:?}"),
    };
    format!("the base with SHA-256 {}{hint}", hex(&base.sha256))
}

/// The base of a tensor, as the tensor sees it (see [`BaseTensor`]). Nothing can be read if the
/// tensor has none.
#[derive(Default)]
pub(crate) struct TensorBase(Option<InFile>);

struct InFile {
    file: Arc<BaseFile>,
    bytes: BaseTensor<Original>,
}

impl TensorBase {
    /// The tensor `name` of `file`, as `tensor` sees it.
    pub(crate) fn new(file: &Arc<BaseFile>, name: &str, tensor: &TensorSpec) -> Result<Self> {
        let index = file.header().index_of(name).ok_or_else(|| {
            let error = Error::new(Rule::BaseMismatch).expected(format!("tensor {name:?}"));
            error.found(format!("{:?}, which does not have it", file.shown))
        })?;
        let opened = match &file.content {
            Content::Safetensors { .. } => None,
            Content::Shard { shard, bases } => {
                let bases = bases.get().cloned().unwrap_or_default();
                let opened = Opened::new(shard, &bases, index);
                Some(Box::new(opened.in_tensor(name).in_file(&file.shown)?))
            }
        };
        let spec = &file.tensors()[index];
        let original = Original { file: Arc::clone(file), index, opened };
        let bytes = BaseTensor::new(tensor, spec, original)?;
        Ok(TensorBase(Some(InFile { file: Arc::clone(file), bytes })))
    }

    fn file(&self) -> Option<&BaseFile> {
        self.0.as_ref().map(|base| &*base.file)
    }

    /// Whether reading it waits for another machine.
    pub(crate) fn waits(&self) -> bool {
        self.file().is_some_and(BaseFile::waits)
    }

    /// Names both files in an error about this base, the base of tensor `index` of `shard`.
    fn explain<R: ReadAt>(&self, shard: &Shard<R>, index: usize, error: Error) -> Error {
        let (Some(file), Some(Rule::BaseMismatch), None) =
            (self.file(), error.rule(), error.file())
        else {
            return error;
        };
        if let Err(changed) = file.check_unchanged() {
            return changed;
        }
        let base = shard.base_of(index).ok().flatten();
        let Some(base) = base.and_then(|base| shard.bases().get(base.base)) else { return error };
        let found = error.found_text().unwrap_or_default().to_owned();
        let found = format!("{:?} with other bytes, checksum {found}", file.shown);
        error.expected(described(base)).found(found)
    }
}

impl ReadAt for TensorBase {
    fn byte_len(&self) -> io::Result<u64> {
        self.0.as_ref().map_or(Ok(0), |base| base.bytes.byte_len())
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match &self.0 {
            Some(base) => base.bytes.read_exact_at(offset, buf),
            None => Err(Error::new(Rule::BaseMissing).into()),
        }
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        self.0.as_ref()?.bytes.bytes_at(range)
    }
}

/// The original bytes of a tensor of a base.
struct Original {
    file: Arc<BaseFile>,
    index: usize,
    /// For a tensor of a shard.
    opened: Option<Box<Opened>>,
}

impl Original {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let spec = &self.file.tensors()[self.index];
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= spec.byte_len());
        let end = end.ok_or_else(|| Error::new(Rule::RangeOutOfBounds))?;
        match (&self.file.content, &self.opened) {
            (Content::Safetensors { source, header, data_at }, _) => {
                let at = data_at + header.data_range(self.index).start;
                Ok(read_at(source, at + offset, buf)?)
            }
            (Content::Shard { shard, .. }, Some(opened)) => {
                let mut scratch = Scratch::default();
                opened.decode_part(shard, self.index, offset..end, buf, &mut scratch)
            }
            _ => Err(Error::new(Rule::BaseMissing)),
        }
    }
}

impl ReadAt for Original {
    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.file.tensors()[self.index].byte_len())
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let named = |e: Error| {
            let name = self.file.tensors()[self.index].name();
            e.in_tensor(name).in_file(&self.file.shown)
        };
        self.read(offset, buf).map_err(|e| named(e).into())
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        let Content::Safetensors { source, header, data_at } = &self.file.content else {
            return None;
        };
        let data = header.data_range(self.index);
        let at = data_at + data.start;
        let end = at.checked_add(range.end).filter(|&end| end <= data_at + data.end)?;
        source.bytes_at(at + range.start..end)
    }
}

/// A tensor of a shard, ready to be decoded.
pub(crate) struct Opened {
    decoder: Box<dyn BlockDecoder>,
    base: TensorBase,
}

/// What a thread reuses.
#[derive(Default)]
pub(crate) struct Scratch {
    encoded: Vec<u8>,
    base: Vec<u8>,
}

impl Opened {
    /// Opens tensor `index` of `shard`. Reads its head.
    pub(crate) fn new<R: ReadAt>(shard: &Shard<R>, bases: &Bases, index: usize) -> Result<Self> {
        let base = bases.tensor(shard, index)?;
        let decoder = shard.decoder(index, encoding(shard.encoding(index)?)?)?;
        Ok(Opened { decoder, base })
    }

    /// The same from the first bytes of its payload.
    pub(crate) fn from_head<R: ReadAt>(
        shard: &Shard<R>,
        bases: &Bases,
        index: usize,
        head: &[u8],
    ) -> Result<Self> {
        let base = bases.tensor(shard, index)?;
        let decoder = shard.decoder_from(index, encoding(shard.encoding(index)?)?, head)?;
        Ok(Opened { decoder, base })
    }

    pub(crate) fn decoder(&self) -> &dyn BlockDecoder {
        &*self.decoder
    }

    /// Whether reading its base waits for another machine.
    pub(crate) fn waits(&self) -> bool {
        self.base.waits()
    }

    /// Decodes the original bytes `range`, in the caller's pool.
    pub(crate) fn decode_in_pool<R: ReadAt>(
        &self,
        shard: &Shard<R>,
        index: usize,
        range: Range<u64>,
        dst: &mut [u8],
    ) -> Result<()> {
        let done = shard.decode_with_base(index, &*self.decoder, &self.base, range, dst);
        done.map_err(|e| self.base.explain(shard, index, e.into()))
    }

    /// Decodes the original bytes `range` on this thread, with one read of the shard.
    pub(crate) fn decode_part<R: ReadAt>(
        &self,
        shard: &Shard<R>,
        index: usize,
        range: Range<u64>,
        dst: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (spec, table) = (&shard.tensors()[index], shard.table(index)?);
        let block = spec.block_bytes() as u64;
        let blocks = table.blocks_range(range.start / block..range.end.div_ceil(block));
        let payload = shard.payload_range(index)?.start;
        set_len(&mut scratch.encoded, (blocks.end - blocks.start) as usize)?;
        read_at(shard.source(), payload + blocks.start, &mut scratch.encoded)?;
        let window = Window { at: blocks.start, bytes: &scratch.encoded };
        self.decode_from(shard, index, &window, range, dst, &mut scratch.base)
    }

    /// The same from `payload`, the tensor's payload or the needed part of it.
    pub(crate) fn decode_from<R: ReadAt>(
        &self,
        shard: &Shard<R>,
        index: usize,
        payload: &Window<'_>,
        range: Range<u64>,
        dst: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        let decode = |base: &dyn ReadAt, dst: &mut [u8]| {
            let (decoder, range) = (&*self.decoder, range.clone());
            shard.decode_from(index, decoder, payload, base, range, dst)
        };
        let done = if self.base.waits() {
            // One request for the blocks of the base, too.
            let spec = &shard.tensors()[index];
            let block = spec.block_bytes() as u64;
            let at = range.start / block * block;
            let end = spec.byte_len().min(range.end.next_multiple_of(block));
            set_len(scratch, (end - at) as usize)?;
            read_at(&self.base, at, scratch).in_tensor(spec.name())?;
            decode(&Window { at, bytes: scratch }, dst)
        } else {
            decode(&self.base, dst)
        };
        done.map_err(|e| self.base.explain(shard, index, e.into()))
    }
}

/// A piece of a payload or of a tensor in memory.
pub(crate) struct Window<'a> {
    /// Its offset.
    pub(crate) at: u64,
    pub(crate) bytes: &'a [u8],
}

impl ReadAt for Window<'_> {
    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.at + self.bytes.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let offset =
            offset.checked_sub(self.at).ok_or_else(|| Error::new(Rule::RangeOutOfBounds))?;
        self.bytes.read_exact_at(offset, buf)
    }

    fn bytes_at(&self, range: Range<u64>) -> Option<&[u8]> {
        self.bytes.bytes_at(range.start.checked_sub(self.at)?..range.end.checked_sub(self.at)?)
    }
}
