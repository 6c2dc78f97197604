//! From one encoding to another without the original: the compress walk over a shard that poses as
//! the file it restores to.

use std::path::Path;
use std::sync::{Arc, Mutex};

use bigsmall_format::{BlockDecoder, Error, ReadAt, Result, Rule, Shard};

use crate::compress::walk::compress_source;
use crate::restore::walk::decoder;
use crate::stage::atomic::{AtomicFile, Discard};
use crate::stage::thread::lock;
use crate::{CompressOptions, Progress, Report, hex, os};

/// Writes the shard `input` anew as `output` with the encoding of `options`. The new shard restores
/// to the identical file: the SHA-256 of what is decoded on the way is compared with that of the
/// original. MD5 sums are kept.
///
/// Memory: at most 256 MiB and twice the index.
///
/// # Errors
/// Those of [`restore`](crate::restore) and [`compress`](crate::compress).
pub fn transcode(
    input: &Path,
    output: &Path,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<Report> {
    if os::same_file(input, output) {
        return Err(Error::new(Rule::SameFile).in_file(output));
    }
    let shard = Shard::open(os::open_regular(input)?)?;
    progress.expect(shard.original_len());
    let had_md5 =
        (0..shard.tensors().len()).any(|i| shard.entry(i).is_ok_and(|e| e.md5().is_some()));
    let options = CompressOptions { md5: options.md5 || had_md5, ..*options };
    let source = Original::new(&shard);
    let target = match options.dry_run {
        true => None,
        false => Some(AtomicFile::create(output, options.replace)?),
    };
    let mut report = match &target {
        Some(target) => compress_source(&source, target, &options, progress)?,
        None => compress_source(&source, &Discard, &options, progress)?,
    };
    if report.sha256 != shard.sha256() {
        return Err(Error::new(Rule::ContentDigest)
            .expected(hex(&shard.sha256()))
            .found(hex(&report.sha256)));
    }
    if let Some(target) = target {
        target.commit()?;
    }
    report.name = crate::report::file_name(input);
    Ok(Report::of(vec![report]))
}

/// The safetensors file that a shard restores to, decoded where it is read.
pub(crate) struct Original<'a, R> {
    shard: &'a Shard<R>,
    prefix: Vec<u8>,
    /// The decoder of the tensor that was read last: reading goes on there more often than not.
    last: Mutex<Option<(usize, Arc<dyn BlockDecoder>)>>,
}

impl<'a, R: ReadAt> Original<'a, R> {
    pub(crate) fn new(shard: &'a Shard<R>) -> Self {
        let json = shard.header_json();
        let prefix = [&(json.len() as u64).to_le_bytes()[..], json].concat();
        Original { shard, prefix, last: Mutex::new(None) }
    }

    fn decoder(&self, index: usize) -> Result<Arc<dyn BlockDecoder>> {
        if let Some((at, found)) = &*lock(&self.last)
            && *at == index
        {
            return Ok(Arc::clone(found));
        }
        let found: Arc<dyn BlockDecoder> = decoder(self.shard, index)?.into();
        *lock(&self.last) = Some((index, Arc::clone(&found)));
        Ok(found)
    }
}

impl<R: ReadAt> ReadAt for Original<'_, R> {
    fn byte_len(&self) -> u64 {
        self.shard.original_len()
    }

    fn read_exact_at(&self, offset: u64, mut buf: &mut [u8]) -> Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.byte_len()) {
            return Err(Error::new(Rule::Io).at(offset).expected(format!("{} bytes", buf.len())));
        }
        let prefix_len = self.prefix.len() as u64;
        let mut at = offset;
        if at < prefix_len {
            let n = buf.len().min((prefix_len - at) as usize);
            let (start, rest) = buf.split_at_mut(n);
            start.copy_from_slice(&self.prefix[at as usize..at as usize + n]);
            buf = rest;
            at += n as u64;
        }
        // Still before the data only where the buffer is full.
        let mut data = at.saturating_sub(prefix_len);
        let tensors = self.shard.tensors();
        let mut index = tensors.partition_point(|t| t.data_range().end <= data);
        while !buf.is_empty() {
            let range = tensors[index].data_range();
            let n = buf.len().min((range.end - data) as usize);
            let (piece, rest) = buf.split_at_mut(n);
            let from = data - range.start;
            let decoder = self.decoder(index)?;
            self.shard.decode(index, &*decoder, from..from + n as u64, piece, 1)?;
            buf = rest;
            data += n as u64;
            index += 1;
        }
        Ok(())
    }
}
