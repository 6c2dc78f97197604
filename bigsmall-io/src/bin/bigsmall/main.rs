//! The command `bigsmall`.

mod arch;
mod args;
mod bar;
mod inspect;
mod measure;
mod page;
mod passes;
mod products;
mod rows;
mod sample;
mod signals;
mod size;

use std::io::{IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use bigsmall_format::internal::{Chain, Shown};
use bigsmall_io::internal::{Compared, json_line, verify_against};
use bigsmall_io::{
    Class, CompressOptions, Error, ErrorKind, ExtractOptions, IndexOptions, Progress, Report,
    RestoreOptions, Result, Rule, hex,
};
use clap::{CommandFactory as _, Parser as _};
use serde_json::{Value, json};

use args::{Cli, Command};
use measure::{MeasureOptions, Rates};
use size::bytes;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let warn = |text: &str| drop(writeln!(std::io::stderr(), "bigsmall: warning: {text}"));
    let progress = Progress::default().on_warning(warn);
    let to_stdout = matches!(&cli.command, Command::Restore(a) if a.output.as_os_str() == "-");
    let result = signals::stop_on_signals(&progress).map_err(Error::from).and_then(|()| {
        if arch::stdout_is_closed() && is_for_stdout(&cli.command) {
            return Err(Error::new(ErrorKind::Io).in_file(STDOUT).found("it is closed"));
        }
        let pool = pool(cli.command.threads())?;
        let text = bar::with_bar(&progress, || pool.install(|| run(cli.command, &progress)))?;
        if to_stdout {
            return Ok(std::io::stderr().write_all(text.as_bytes())?);
        }
        match std::io::stdout().lock().write_all(text.as_bytes()) {
            // The reader of the output has closed it.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(Error::from),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error);
            if error.kind() == ErrorKind::Cancelled {
                signals::end_by_signal();
            }
            ExitCode::from(match error.class() {
                Class::Usage => 2,
                Class::Corrupt => 3,
                Class::Unsupported => 4,
                Class::Limit => 5,
                _ => 1,
            })
        }
    }
}

/// Whether what a command prints is all that it is for.
fn is_for_stdout(command: &Command) -> bool {
    match command {
        Command::Restore(a) => a.output.as_os_str() == "-",
        Command::Inspect(a) => a.html.is_none(),
        Command::Estimate(_) | Command::Bench(_) | Command::Completions { .. } => true,
        _ => false,
    }
}

/// The threads that encode and decode; 0 means one for each core. One thread hashes, so more than a
/// few hundred others would be idle.
fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.min(256));
    pool.build()
        .map_err(|e| Error::new(ErrorKind::Memory).expected("threads to work on").caused_by(e))
}

/// Prints an error, and what the user can do about it.
fn say(error: &Error) {
    let hint = hint(error).unwrap_or_default();
    let _ = writeln!(std::io::stderr(), "bigsmall: {}{hint}", Chain(error));
}

/// What the user can do about an error, if the command has the option for it.
fn hint(error: &Error) -> Option<String> {
    let (option, what) = match error.kind() {
        ErrorKind::OutputExists => ("force", " replaces it"),
        ErrorKind::Expansion => ("max-expansion", " N allows more"),
        ErrorKind::Space => ("ignore-free-space", " begins all the same"),
        ErrorKind::TooManyFiles => ("max-files", " N allows more"),
        ErrorKind::FolderTooDeep => ("max-depth", " N allows more"),
        ErrorKind::Format(Rule::BaseMissing) => ("base", " BASE gives it"),
        ErrorKind::OutputHoldsMore => {
            return Some(" (remove them, or choose another output)".to_owned());
        }
        _ => return None,
    };
    let cli = Cli::command();
    let command = cli.find_subcommand(std::env::args_os().nth(1)?)?;
    let has = command.get_arguments().any(|argument| argument.get_long() == Some(option));
    has.then(|| format!(" (--{option}{what})"))
}

/// Runs the command; returns the text to print.
fn run(command: Command, progress: &Progress) -> Result<String> {
    let begin = Instant::now();
    match command {
        Command::Compress(a) => {
            let options = a.against.options();
            let options = options
                .encoding(a.coding.encoding())
                .md5(a.md5)
                .replace(a.force)
                .dry_run(a.dry_run)
                .ignore_free_space(a.ignore_free_space)
                .folder(a.folder.options());
            // A dry run does not use the output.
            let output = a.output.unwrap_or_default();
            let report = bigsmall_io::compress(&a.input, &output, &options, progress)?;
            Ok(show("compressed", &report, begin, a.json))
        }
        Command::Restore(a) => {
            let mut options = RestoreOptions::new()
                .replace(a.force)
                .max_expansion(a.max_expansion)
                .ignore_free_space(a.ignore_free_space)
                .folder(a.folder.options());
            options.bases = a.bases.base;
            let report = match a.output.as_os_str() == "-" {
                true => restore_to_stdout(&a.input, &options, progress)?,
                false => bigsmall_io::restore(&a.input, &a.output, &options, progress)?,
            };
            Ok(show("restored", &report, begin, a.json))
        }
        Command::Extract(a) => extract(a, progress),
        Command::Verify(a) => {
            let mut options = RestoreOptions::new()
                .md5(a.md5)
                .max_expansion(a.max_expansion)
                .folder(a.folder.options());
            options.bases = a.bases.base;
            let Some(hub) = &a.against else {
                let report = verify_all(&a.inputs, &options, progress)?;
                return Ok(show("verified", &report, begin, a.json));
            };
            let [input] = &a.inputs[..] else {
                return Err(Error::new(ErrorKind::Argument)
                    .expected("one folder to compare with --against")
                    .found(a.inputs.len()));
            };
            let (report, compared) = verify_against(input, hub, &options, progress)?;
            let shown = show("verified", &report, begin, a.json);
            Ok(if a.json { shown } else { shown + &same_as(hub, compared) })
        }
        Command::Inspect(a) => inspect::inspect(&a, progress).map(|()| String::new()),
        Command::Index(a) => {
            let mut options = IndexOptions::new().replace(a.force).folder(a.folder.options());
            options.original = a.original;
            let report = bigsmall_io::index(&a.dir, &options, progress)?;
            Ok(show("indexed", &report, begin, a.json))
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "bigsmall", &mut script);
            Ok(String::from_utf8_lossy(&script).into_owned())
        }
        Command::Estimate(a) => estimate(a, progress),
        Command::Transcode(a) => {
            let options = transcoding(&a);
            let report = bigsmall_io::transcode(&a.input, &a.output, &options, progress)?;
            Ok(show("transcoded", &report, begin, a.json))
        }
        Command::Rebase(args::Rebase { onto, to: a }) => {
            let options = transcoding(&a);
            let report = bigsmall_io::rebase(&a.input, onto, &a.output, &options, progress)?;
            Ok(show("rebased", &report, begin, a.json))
        }
        Command::Bench(a) => bench(&a, progress),
    }
}

/// Verifies several inputs, also after one that is damaged or missing. The first error is returned,
/// the others are printed.
fn verify_all(inputs: &[PathBuf], options: &RestoreOptions, progress: &Progress) -> Result<Report> {
    let (mut all, mut first) = (Report::default(), None);
    for input in inputs {
        match bigsmall_io::verify(input, options, progress) {
            Ok(mut report) if inputs.len() > 1 => {
                // Of which input a file is.
                let is_folder = report.files.len() != 1 || input.is_dir();
                for file in &mut report.files {
                    file.name = match is_folder {
                        true => input.join(&file.name).to_string_lossy().into_owned(),
                        false => input.to_string_lossy().into_owned(),
                    };
                }
                all.original_bytes += report.original_bytes;
                all.compressed_bytes += report.compressed_bytes;
                all.files.append(&mut report.files);
                all.left_out.append(&mut report.left_out);
                all.links_out.append(&mut report.links_out);
            }
            Ok(report) => all = report,
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) if first.is_none() => first = Some(error),
            Err(error) => say(&error),
        }
    }
    first.map_or(Ok(all), Err)
}

/// Why shards are larger than their originals, if they are.
fn overhead(what: &str, report: &Report) -> String {
    let n: u64 = report.files.iter().map(|f| f.n_tensors).sum();
    if report.compressed_bytes <= report.original_bytes || what != "compressed" || n < 1000 {
        return String::new();
    }
    let mean = report.original_bytes / n;
    format!(
        "larger than the original: each of the {n} tensors takes some 50 bytes of index, and \
         {mean} in the original\n"
    )
}

/// What was compared with a repository of the Hub.
fn same_as(hub: &Path, compared: Compared) -> String {
    let Compared { same, not_listed } = compared;
    let (hub, s) = (hub.to_string_lossy(), if same == 1 { "" } else { "s" });
    format!(
        "{same} file{s} with the SHA-256 that {} lists; it lists none for {not_listed} more\n",
        Shown::message(&hub)
    )
}

/// What was left out, for people to know.
fn left_out(report: &Report) -> String {
    let n = report.left_out.len();
    if n == 0 {
        return String::new();
    }
    let first = report.left_out.iter().take(3).map(|name| Shown::name(name).to_string());
    let more = if n > 3 { format!(" and {} more", n - 3) } else { String::new() };
    let names = first.collect::<Vec<String>>().join(", ");
    let hint = "--hidden takes hidden files, but never a .git or what interrupted downloads left";
    format!("left out {names}{more} ({hint})\n")
}

/// Which links led out of the folder, and where: what they lead to is in the output.
fn links_out(report: &Report) -> String {
    let mut out = String::new();
    for (name, to) in report.links_out.iter().take(LINKS) {
        out +=
            &format!("{} is a link out of the folder, to {}\n", Shown::name(name), Shown::name(to));
    }
    if report.links_out.len() > LINKS {
        out += &format!("and {} more links out of the folder\n", report.links_out.len() - LINKS);
    }
    out
}

/// The most links that are named.
const LINKS: usize = 20;

/// What was copied as it is, so that the ratio is not taken for that of the folder.
fn copied(report: &Report) -> String {
    let Report { original_bytes, compressed_bytes, copied_files, copied_bytes, .. } = *report;
    if copied_files == 0 {
        return String::new();
    }
    let (original, compressed) = (original_bytes + copied_bytes, compressed_bytes + copied_bytes);
    let s = if copied_files == 1 { "" } else { "s" };
    format!(
        "copied unchanged: {copied_files} other file{s}, {}; with them {} <-> {}: {:.2} %\n",
        bytes(copied_bytes),
        bytes(original),
        bytes(compressed),
        100.0 * compressed as f64 / original.max(1) as f64,
    )
}

/// Restores a shard to standard output, unless that is a terminal.
fn restore_to_stdout(
    input: &Path,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<Report> {
    if std::io::stdout().is_terminal() {
        return Err(Error::new(ErrorKind::Argument)
            .in_file(STDOUT)
            .expected("a file or another program")
            .found("a terminal"));
    }
    bigsmall_io::restore_to(input, Stdout(std::io::stdout()), options, progress)
}

const STDOUT: &str = "standard output";

/// Standard output, which its errors name.
struct Stdout(std::io::Stdout);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes).map_err(|e| Error::from(e).in_file(STDOUT).into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush().map_err(|e| Error::from(e).in_file(STDOUT).into())
    }
}

fn extract(a: args::Extract, progress: &Progress) -> Result<String> {
    let mut options = ExtractOptions::new().replace(a.force).max_expansion(a.max_expansion);
    (options.tensors, options.prefixes, options.bases) = (a.tensor, a.prefix, a.bases.base);
    let done = bigsmall_io::extract(&a.input, &a.output, &options, progress)?;
    if a.json {
        return Ok(json_line(&json!({ "tensors": done.n_tensors, "bytes": done.byte_len })));
    }
    let s = if done.n_tensors == 1 { "" } else { "s" };
    Ok(format!("extracted {} tensor{s}, {}\n", done.n_tensors, bytes(done.byte_len)))
}

fn transcoding(a: &args::Transcode) -> CompressOptions {
    let options = CompressOptions::new()
        .encoding(a.coding.encoding())
        .md5(a.md5)
        .replace(a.force)
        .max_expansion(a.max_expansion);
    a.bases.base.iter().fold(options, CompressOptions::base)
}

fn show(what: &str, report: &Report, begin: Instant, as_json: bool) -> String {
    let seconds = begin.elapsed().as_secs_f64();
    if as_json {
        let files = report.files.iter().map(|f| {
            let md5: serde_json::Map<String, Value> =
                f.md5s.iter().map(|(name, md5)| (name.clone(), hex(md5).into())).collect();
            let mut value = json!({
                "name": f.name,
                "original_bytes": f.original_bytes,
                "compressed_bytes": f.compressed_bytes,
                "sha256": hex(&f.sha256),
                "tensors": f.n_tensors,
                "shared_tensors": f.n_shared,
                "delta_tensors": f.n_deltas,
                "inherited_tensors": f.n_inherited,
            });
            if !md5.is_empty() {
                value["md5"] = md5.into();
            }
            value
        });
        let value = json!({
            "original_bytes": report.original_bytes,
            "compressed_bytes": report.compressed_bytes,
            "ratio": report.ratio(),
            "seconds": seconds,
            "files": files.collect::<Vec<Value>>(),
            "copied_files": report.copied_files,
            "copied_bytes": report.copied_bytes,
            "left_out": report.left_out,
            "links_out": report.links_out,
        });
        return json_line(&value);
    }
    let mut out = String::new();
    for f in &report.files {
        out += &format!("{}  sha256 {}\n", Shown::name(&f.name), hex(&f.sha256));
        if f.n_deltas + f.n_inherited > 0 {
            out += &format!(
                "  of {} tensors, {} are differences from a base and {} are equal to it\n",
                f.n_tensors, f.n_deltas, f.n_inherited,
            );
        }
        for (name, md5) in &f.md5s {
            out += &format!("  {}  md5 {}\n", Shown::name(name), hex(md5));
        }
    }
    out += &overhead(what, report);
    out += &left_out(report);
    out += &links_out(report);
    out += &copied(report);
    out += &format!(
        "{what} {} <-> {}: {:.2} % in {seconds:.2} s ({:.2} GB/s)\n",
        bytes(report.original_bytes),
        bytes(report.compressed_bytes),
        100.0 * report.ratio(),
        report.original_bytes as f64 / 1e9 / seconds.max(1e-9),
    );
    out
}

fn estimate(a: args::Estimate, progress: &Progress) -> Result<String> {
    let options = a.against.options();
    let options = options.encoding(a.coding.encoding()).folder(a.folder.options());
    let found = bigsmall_io::estimate(&a.input, &options, progress)?;
    if a.json {
        let value = json!({
            "original_bytes": found.original_bytes,
            "compressed_bytes": found.compressed_bytes,
            "ratio": found.ratio(),
            "seconds": found.seconds,
        });
        return Ok(json_line(&value));
    }
    Ok(format!(
        "{} -> about {}: {:.1} % in about {:.1} s\n",
        bytes(found.original_bytes),
        bytes(found.compressed_bytes),
        100.0 * found.ratio(),
        found.seconds,
    ))
}

fn bench(a: &args::Bench, progress: &Progress) -> Result<String> {
    let options = MeasureOptions {
        encoding: a.coding.encoding(),
        backend: a.backend.clone(),
        no_checksum: a.no_checksum,
        batch: a.batch,
    };
    let m = measure::measure(&a.input, &options, progress)?;
    if a.json {
        let mut value = rates_json(&m.all);
        let of_dtype = |(dtype, rates): &(bigsmall_format::Dtype, Rates)| {
            let mut value = rates_json(rates);
            value["dtype"] = json!(dtype.to_string());
            value
        };
        value["dtypes"] = m.dtypes.iter().map(of_dtype).collect();
        value["backend"] = json!(m.backend);
        value["threads"] = json!(m.threads);
        return Ok(json_line(&value));
    }
    let mut out = format!("{}, {} threads\n", m.backend, m.threads);
    if m.dtypes.len() > 1 {
        out += &rates_text(&m.all);
    }
    for (dtype, rates) in &m.dtypes {
        out += &format!("{dtype}\n{}", rates_text(rates));
    }
    Ok(out)
}

fn rates_json(rates: &Rates) -> serde_json::Value {
    let products = rates.products;
    let batch = products.and_then(|p| p.batch);
    json!({
        "original_bytes": rates.original_bytes,
        "compressed_bytes": rates.compressed_bytes,
        "ratio": rates.ratio(),
        "encode_gbps": rates.encode_gbps,
        "decode_gbps": rates.decode_gbps,
        "memcpy_gbps": rates.memcpy_gbps,
        "decode_vs_memcpy": rates.decode_vs_memcpy(),
        "resident": products.map(|p| p.form.name()),
        "matvec_gbps": products.map(|p| p.gbps),
        "plain_matvec_gbps": products.map(|p| p.plain_gbps),
        "matvec_vs_plain": products.map(|p| p.vs_plain()),
        "batch": batch.map(|b| b.columns),
        "matmul_gflops": batch.map(|b| b.gflops),
        "plain_matmul_gflops": batch.map(|b| b.plain_gflops),
        "gemm_gflops": batch.and_then(|b| b.gemm_gflops),
    })
}

fn rates_text(rates: &Rates) -> String {
    let mut out = format!(
        "  size    {} -> {}: {:.2} %\n  \
           encode  {:.2} GB/s\n  \
           decode  {:.2} GB/s, {:.2} of memcpy\n  \
           memcpy  {:.2} GB/s\n",
        bytes(rates.original_bytes),
        bytes(rates.compressed_bytes),
        100.0 * rates.ratio(),
        rates.encode_gbps,
        rates.decode_gbps,
        rates.decode_vs_memcpy(),
        rates.memcpy_gbps,
    );
    if let Some(p) = rates.products {
        out += &format!(
            "  matvec  {:.2} GB/s as {}, {:.2} of plain weights\n  plain   {:.2} GB/s\n",
            p.gbps,
            p.form,
            p.vs_plain(),
            p.plain_gbps,
        );
        if let Some(b) = p.batch {
            out += &format!(
                "  matmul  {:.1} GFLOP/s with {} columns, plain {:.1}",
                b.gflops, b.columns, b.plain_gflops
            );
            out += &b.gemm_gflops.map_or_else(String::new, |gemm| format!(", gemm {gemm:.1}"));
            out += "\n";
        }
    }
    out
}
