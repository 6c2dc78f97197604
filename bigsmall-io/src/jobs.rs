//! Jobs over a file or a folder.

use std::io::Write;
use std::path::Path;

use bigsmall_format::{ReadAt, Shard};

use crate::base::find::find;
use crate::base::matches::Against;
use crate::base::model::BaseModel;
use crate::base::tensor::Bases;
use crate::compress::file::{compress_opened, compress_to};
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::folder::against::{Compared, compare};
use crate::folder::compress::compress_folder;
use crate::folder::restore::{restore_folder, verify_folder};
use crate::restore::bounds::Expansion;
use crate::restore::walk::{restore_file, restore_shard};
use crate::source::file::Source;
use crate::source::folder::{Folder, Input};
use crate::source::memory::Files;
use crate::source::open::{names_of_hub, open, open_original};
use crate::source::url::{shown, url};
use crate::stage::output::Sink;
use crate::{CompressOptions, Progress, Report, RestoreOptions, os};

/// Compresses the safetensors file `input` to the shard `output`, or the model folder `input` to
/// the folder `output` (weights compressed, everything else copied). `input` may be a URL as in
/// [`Model::open`](crate::Model::open): one shard after the other is read, in pieces, and no more
/// of it is kept. What comes from the Hub is compared with the SHA-256 of the Hub's list.
///
/// If no tensor is stored as differences from a base that was given, that is a warning
/// ([`Progress::on_warning`](crate::Progress::on_warning)).
///
/// The written bytes are read back, decoded and compared with the original before the output is
/// renamed into place. So `output` is absent, unchanged, or complete. Memory: at most 256 MiB and
/// 4 times the index, for a model of any size.
///
/// # Errors
/// Header rules of [`Rule`](crate::Rule) for a bad input; [`ErrorKind::OutputExists`],
/// [`ErrorKind::SameFile`], [`ErrorKind::Io`], [`ErrorKind::SourceChanged`],
/// [`ErrorKind::ReadBack`], [`ErrorKind::Cancelled`], [`ErrorKind::Memory`].
///
/// ```no_run
/// use bigsmall_io::{CompressOptions, Progress, compress};
/// let report = compress(
///     "model.safetensors",
///     "model.bs",
///     &CompressOptions::default(),
///     &Progress::default(),
/// )?;
/// println!("{:.1} %", 100.0 * report.ratio());
/// # Ok::<(), bigsmall_io::Error>(())
/// ```
pub fn compress(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<Report> {
    let (input, output) = (input.as_ref(), output.as_ref());
    if os::same_file(input, output) {
        return Err(Error::new(ErrorKind::SameFile).in_file(output));
    }
    options.check_output(output)?;
    let source = match open_original(input, progress)? {
        Input::Folder(folder) => {
            let report = compress_folder(input, &folder, output, options, progress)?;
            say_unused(options, &report, progress);
            return Ok(report);
        }
        Input::File(source) => source,
    };
    progress.expect(source.byte_len().in_file(shown(input))?);
    let base = BaseModel::open_all(&options.bases, options.folder, &progress.stop())?;
    let (base, name) = (Against::new(&base).named(&options.base_names), shown(input));
    let report = compress_opened(&source, Path::new(&name), base, output, options, progress);
    let mut report = report.map_err(|e| e.in_input(name))?;
    report.name = crate::report::file_name(input);
    let report = Report::of(vec![report]);
    say_unused(options, &report, progress);
    Ok(report)
}

/// Warns if the bases were of no use.
fn say_unused(options: &CompressOptions, report: &Report, progress: &Progress) {
    if !options.bases.is_empty() && report.files.iter().all(|f| f.n_deltas + f.n_inherited == 0) {
        progress.warn(
            "no tensor is stored as differences: the base has none of the same name, dtype and \
             shape, or they differ too much",
        );
    }
}

/// Compresses the safetensors file in `source` to the shard `output`. The source may be bytes in
/// memory, or a file that the program reads in its own way. No temporary copy is made.
///
/// The report's one file has no name. Everything else is as in [`compress`].
///
/// # Errors
/// Those of [`compress`] and of `source`. If `source` changes meanwhile, the result is an error or
/// the shard of one consistent reading.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("bigsmall-doc-from-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let path = dir.join("m.bs");
/// use bigsmall_io::{CompressOptions, Model, Progress, compress_from};
/// let header = br#"{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
/// let file = [&(header.len() as u64).to_le_bytes(), &header[..], &[7, 8]].concat();
/// compress_from(&file, &path, &CompressOptions::default(), &Progress::default())?;
/// assert_eq!(Model::open(&path)?.tensor("w")?.bytes(), [7, 8]);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn compress_from(
    source: &dyn ReadAt,
    output: impl AsRef<Path>,
    options: &CompressOptions,
    progress: &Progress,
) -> Result<Report> {
    let unchecked = |_: &_| Ok(());
    progress.expect(source.byte_len()?);
    options.check_output(output.as_ref())?;
    let base = BaseModel::open_all(&options.bases, options.folder, &progress.stop())?;
    let base = Against::new(&base).named(&options.base_names);
    let report = compress_to(source, None, base, output.as_ref(), options, progress, unchecked)?;
    let report = Report::of(vec![report]);
    say_unused(options, &report, progress);
    Ok(report)
}

/// Restores the shard `input` to the safetensors file `output`, or a folder of shards to the model
/// folder it was made from; `input` may be a URL as in [`Model::open`](crate::Model::open). The
/// SHA-256 of every file is compared with that of the original before the file is renamed into
/// place. If a shard has MD5s of its tensors, they are compared too, at about 0.6 GB/s.
///
/// A shard that restores to more than a million times its bytes is refused
/// ([`RestoreOptions::max_expansion`]), and so is one that restores to more bytes than the file
/// system has free.
///
/// Memory: at most 256 MiB and 4 times the index, for a model of any size.
///
/// # Errors
/// Those of [`Shard::open`]; [`ErrorKind::Expansion`], [`ErrorKind::Space`];
/// [`Rule::BlockChecksum`](crate::Rule::BlockChecksum) and the rules
/// of the encodings; [`Rule::ContentDigest`](crate::Rule::ContentDigest);
/// [`ErrorKind::OutputExists`], [`ErrorKind::SameFile`],
/// [`ErrorKind::Io`], [`ErrorKind::Cancelled`], [`ErrorKind::Memory`].
///
/// ```no_run
/// use bigsmall_io::{Progress, RestoreOptions, restore};
/// restore(
///     "model.bs",
///     "model.safetensors",
///     &RestoreOptions::default(),
///     &Progress::default(),
/// )?;
/// # Ok::<(), bigsmall_io::Error>(())
/// ```
pub fn restore(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<Report> {
    let (input, output) = (input.as_ref(), output.as_ref());
    if os::same_file(input, output) {
        return Err(Error::new(ErrorKind::SameFile).in_file(output));
    }
    let source = match open(input, &progress.stop())? {
        Input::Folder(from) => {
            return restore_folder(input, &from, output, options, progress);
        }
        Input::File(source) => source,
    };
    let (shard, bases, expansion) = opened(source, input, options, progress)?;
    expansion.check_room(output, options, progress)?;
    let remote = url(input).is_some();
    let report = restore_file(&shard, &bases, remote, input, output, options, progress);
    Ok(Report::of(vec![report.map_err(|e| e.in_input(shown(input)))?]))
}

/// Opens a shard that is to be decoded, and finds its bases.
fn opened(
    source: Source,
    input: &Path,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<(Shard<Source>, Bases, Expansion)> {
    let shard = Shard::open(source).in_file(shown(input))?;
    let mut expansion = Expansion::default();
    expansion.add(&shard, options.max_expansion).in_file(shown(input))?;
    let base = BaseModel::open_all(&options.bases, options.folder, &progress.stop())?;
    let bases = find(&shard, base.files(), progress).in_file(shown(input))?;
    progress.expect(shard.original_len());
    Ok((shard, bases, expansion))
}

/// Restores the shard `input` into any writer, such as standard output or a socket. `input` may be
/// a URL as in [`Model::open`](crate::Model::open), but not a folder.
///
/// Each block is checked before it is written, and the SHA-256 of all of them only at the end: what
/// was written is the original file if this returns `Ok`, and not before.
///
/// # Errors
/// Those of [`restore`] and of `sink`; [`ErrorKind::Argument`] for a folder. After an error `sink`
/// may have received a part of the file, or all of it.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("bigsmall-doc-to-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let path = dir.join("m.bs");
/// use bigsmall_io::{Progress, RestoreOptions, TensorView, restore_to, save};
/// save(&path, [("w", TensorView::from_slice(&[3], &[1u8, 2, 3]))], None)?;
/// let mut file = Vec::new();
/// restore_to(&path, &mut file, &RestoreOptions::default(), &Progress::default())?;
/// assert!(file.ends_with(&[1, 2, 3]));
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn restore_to(
    input: impl AsRef<Path>,
    sink: impl Write + Send,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<Report> {
    let input = input.as_ref();
    let Input::File(source) = open(input, &progress.stop())? else {
        return Err(Error::new(ErrorKind::Argument)
            .in_file(shown(input))
            .expected("one shard: a folder restores to several files"));
    };
    let (shard, bases, _) = opened(source, input, options, progress)?;
    let sink = Sink::new(sink);
    let remote = url(input).is_some();
    let report = restore_shard(&shard, &bases, remote, Some(&sink), options, progress);
    let mut report = report.map_err(|e| e.in_input(shown(input)))?;
    sink.flush()?;
    report.name = crate::report::file_name(input);
    Ok(Report::of(vec![report]))
}

/// Restores the folder of the files `files`, names and contents, to the folder `output`: as
/// [`restore`] does with one on another machine.
///
/// # Errors
/// Those of [`restore`].
pub fn restore_files(
    files: Vec<(String, Vec<u8>)>,
    output: impl AsRef<Path>,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<Report> {
    let from = Folder::remote(Files(files));
    restore_folder(Path::new("memory://"), &from, output.as_ref(), options, progress)
}

/// Checks every byte of the shard `input`, or of every shard in a folder. Decodes all tensors and
/// compares the SHA-256 of the resulting file with that of the original. Compares stored MD5s too.
/// Writes nothing. The error is that of the first damaged shard; of a folder the others are checked
/// all the same, and each further damaged one is a warning
/// ([`Progress::on_warning`](crate::Progress::on_warning)).
///
/// Memory: at most 256 MiB and 4 times the index.
///
/// # Errors
/// Those of [`restore`], except the output's.
pub fn verify(
    input: impl AsRef<Path>,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<Report> {
    let input = input.as_ref();
    let source = match open(input, &progress.stop())? {
        Input::Folder(from) => return verify_folder(&from, options, progress),
        Input::File(source) => source,
    };
    let (shard, bases, _) = opened(source, input, options, progress)?;
    let report = restore_shard(&shard, &bases, url(input).is_some(), None, options, progress);
    let mut report = report.in_file(shown(input))?;
    report.name = crate::report::file_name(input);
    Ok(Report::of(vec![report]))
}

/// [`verify`] of a folder of shards. Before it, compares the SHA-256 of what they restore to, and
/// of the other files, with the list of the repository `hub`, hf://owner/name, of which nothing
/// else is read.
///
/// # Errors
/// Those of [`verify`]; [`ErrorKind::Differs`] with the names of files that are others, or lacking;
/// [`ErrorKind::Remote`].
pub fn verify_against(
    input: impl AsRef<Path>,
    hub: impl AsRef<Path>,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<(Report, Compared)> {
    let (input, hub) = (input.as_ref(), hub.as_ref());
    let theirs = names_of_hub(hub, &progress.stop())?;
    let Input::Folder(folder) = open(input, &progress.stop())? else {
        return Err(Error::new(ErrorKind::Argument)
            .in_file(shown(input))
            .expected("a folder of shards, to compare it with a repository"));
    };
    let compared = compare(&folder, &theirs, options.folder, progress);
    let compared = compared.map_err(|e| match e.kind() {
        ErrorKind::Differs => e.in_file(shown(hub)),
        _ => e,
    })?;
    Ok((verify_folder(&folder, options, progress)?, compared))
}
