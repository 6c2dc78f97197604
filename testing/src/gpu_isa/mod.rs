//! Compiles every kernel of the GPU crate for GPUs that are not there, and counts instructions.
//!
//! Mesa's driver for AMD GPUs compiles for any of them without one (`RADV_FORCE_FAMILY`). So the
//! numbers below come from a compiler that ships, for the shaders that the crate gives to wgpu,
//! with the options that wgpu uses. `tools/mesa.sh` fetches a Mesa that can do this.
//!
//! ```text
//! tools/mesa.sh target/mesa
//! cargo run -p bigsmall-testing --features isa --bin gpu_isa -- --mesa target/mesa
//! ```
//!
//! A slot is one turn of a vector unit for one lane: 1 for an instruction, 4 for one that runs at a
//! quarter of the rate. The counts are those of one turn of the main loop, for each weight.
//! `escapes` is the expected cost of the loops that replace escapes: lanes run in step, so the
//! longest loop of a subgroup counts. It assumes 2.56 % of escapes with 3 bits and 0.015 % with 4
//! bits, as in matrices whose rows are normally distributed with different scales. For tiled
//! products (`gemm`) slots include those of the multiplication.

mod assembly;
mod driver;
mod roofline;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use assembly::{Loop, loops};
use bigsmall_gpu::internal::{KernelSource, kernel_sources};
use driver::{Compiled, Driver};

/// Compiles the GPU kernels for GPUs that are not there, and counts instructions.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "gpu_isa")]
pub struct Options {
    /// The folder that `tools/mesa.sh` has made.
    #[arg(long, value_name = "FOLDER")]
    mesa: PathBuf,
    /// The GPUs, by the names that Mesa gives them.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    #[arg(default_values_t = ["navi31", "navi21", "gfx940"].map(String::from))]
    families: Vec<String>,
    /// Only kernels whose names contain this text.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Fail if a kernel has grown by more than 3 % compared with this file.
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// Write the file for `--check`.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Also write the assembly of each kernel into this folder.
    #[arg(long, value_name = "FOLDER")]
    assembly: Option<PathBuf>,
    /// Print the rates that these counts predict for ten GPUs, instead of the counts.
    #[arg(long)]
    roofline: bool,
    /// Compile for one family in this process, whose environment is prepared.
    #[arg(long, hide = true)]
    family: Option<String>,
}

/// What can go wrong, as text.
type Error = Box<dyn std::error::Error>;

/// The numbers of one kernel on one GPU.
#[derive(Clone, Copy, Debug, Default)]
struct Numbers {
    /// Slots a weight without and with escapes; without a main loop 0.
    slots: f64,
    escapes: f64,
    loads: u32,
    in_flight: u32,
    bytes: u32,
    lds: u32,
    lanes: u64,
    registers: u64,
    memory: u64,
    spilled: u64,
    occupancy: u64,
    instructions: u64,
}

/// By family and kernel.
type Table = BTreeMap<(String, String), Numbers>;

/// Compiles, prints a table, and compares it with a baseline.
///
/// # Errors
/// If a kernel cannot be compiled, or a file cannot be read or written.
pub fn run(options: &Options) -> Result<ExitCode, Error> {
    if let Some(family) = &options.family {
        for (kernel, numbers) in compile(options, family)? {
            println!("{}", line(family, &kernel, &numbers));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    for family in &options.families {
        table.extend(in_a_process(options, family)?);
    }
    if options.roofline {
        roofline::print(|kernel| {
            let at = ("navi31".to_owned(), kernel.to_owned());
            table.get(&at).map(|n| n.slots + n.escapes)
        });
        return Ok(ExitCode::SUCCESS);
    }
    println!("{HEAD}");
    for ((family, kernel), numbers) in &table {
        println!("{}", line(family, kernel, numbers));
    }
    if let Some(path) = &options.write {
        std::fs::write(path, baseline(&table))?;
    }
    let all = options.only.is_empty();
    let grown = options.check.as_deref().map_or(Ok(0), |path| check(&table, path, all))?;
    Ok(if grown == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Compiles for one family in a process of its own: the driver reads its name once.
fn in_a_process(options: &Options, family: &str) -> Result<Table, Error> {
    let mesa = std::path::absolute(&options.mesa)?;
    let icd = mesa.join("radeon.json");
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--mesa").arg(&mesa).args(["--family", family, "--only", &options.only]);
    if let Some(folder) = &options.assembly {
        command.arg("--assembly").arg(folder);
    }
    let done = command
        .env("LD_LIBRARY_PATH", mesa.join("usr/lib/x86_64-linux-gnu"))
        .env("VK_DRIVER_FILES", &icd)
        .env("VK_ICD_FILENAMES", &icd)
        .env("RADV_FORCE_FAMILY", family)
        .env("MESA_SHADER_CACHE_DISABLE", "true")
        .output()?;
    let text = String::from_utf8(done.stdout)?;
    if !done.status.success() {
        return Err(format!("{family}: {}", String::from_utf8_lossy(&done.stderr)).into());
    }
    text.lines().map(|line| parse(line).ok_or_else(|| format!("{line:?}").into())).collect()
}

fn compile(options: &Options, family: &str) -> Result<Vec<(String, Numbers)>, Error> {
    let driver = Driver::open()?;
    eprintln!("{family}: {}", driver.name);
    let mut table = Vec::new();
    for kernel in kernel_sources() {
        // Only Apple's GPUs have matrices of 8 x 8.
        let offered = match kernel.entry {
            "cooperative" if kernel.name.ends_with("_8") => false,
            "cooperative" if kernel.name.ends_with("_16") => driver.cooperative,
            _ => true,
        };
        if !offered || !kernel.name.contains(&options.only) {
            continue;
        }
        let compiled = driver.compile(&kernel).map_err(|e| format!("{}: {e}", kernel.name))?;
        if let Some(folder) = &options.assembly {
            std::fs::create_dir_all(folder)?;
            let path = folder.join(format!("{family}.{}.txt", kernel.name));
            std::fs::write(path, &compiled.assembly)?;
        }
        let numbers = numbers(&kernel, &compiled).map_err(|e| format!("{}: {e}", kernel.name))?;
        table.push((kernel.name, numbers));
    }
    Ok(table)
}

fn numbers(kernel: &KernelSource, compiled: &Compiled) -> Result<Numbers, Error> {
    let statistic = |name: &str| compiled.statistics.get(name).copied().unwrap_or(0);
    let loops = loops(&compiled.assembly);
    let mut numbers = Numbers {
        lanes: statistic("lanes"),
        registers: statistic("VGPRs"),
        memory: statistic("LDS size"),
        spilled: statistic("Spilled VGPRs") + statistic("Scratch size"),
        occupancy: statistic("Subgroups per SIMD"),
        instructions: statistic("Instructions"),
        ..Numbers::default()
    };
    if numbers.instructions == 0 || !compiled.assembly.contains("s_endpgm") {
        return Err("no disassembly; Mesa needs LLVM for it".into());
    }
    let Some(main) = main_loop(kernel, &loops) else { return Ok(numbers) };
    let inner: Vec<&Loop> = loops.iter().filter(|l| main.holds(l)).collect();
    numbers.in_flight = main.own.in_flight;
    (numbers.loads, numbers.bytes, numbers.lds) = (main.own.loads, main.own.bytes, main.own.lds);
    if kernel.weights == 0 {
        return Ok(numbers);
    }
    let weights = f64::from(kernel.weights);
    // The loop that multiplies a step runs eight times.
    let multiplying: u32 = inner.iter().map(|l| 8 * l.own.slots * u32::from(l.own.fmas > 0)).sum();
    let multiplying = if kernel.entry == "gemm" { multiplying } else { 0 };
    numbers.slots = f64::from(main.own.slots + multiplying) / weights;
    // The loops that replace escapes do not multiply.
    let replacing = inner.iter().filter(|l| l.own.fmas == 0);
    let lanes = numbers.lanes as i32;
    let cost: f64 = if kernel.name.contains("dense3") {
        let at_once = if kernel.weights.is_multiple_of(32) { 32 } else { 4 };
        let turns = expected_most(0.0256, at_once, lanes);
        replacing.map(|l| f64::from(l.own.slots) * turns).sum()
    } else if kernel.name.contains("dense4") && kernel.weights.is_multiple_of(32) {
        // One test for 32 weights of all lanes; then eight loops, of which one runs once.
        let any = 1.0 - (1.0f64 - 0.00015).powi(32 * lanes);
        replacing.map(|l| any * (f64::from(l.own.slots) / 8.0 + 4.0)).sum()
    } else {
        0.0
    };
    numbers.escapes = cost / weights;
    Ok(numbers)
}

/// The loop that reads weights, or else the one that reads most.
fn main_loop<'a>(kernel: &KernelSource, loops: &'a [Loop]) -> Option<&'a Loop> {
    if kernel.entry == "gemm" {
        // The loop that decodes a step is the one around the loop that multiplies.
        let run = loops.iter().max_by_key(|l| l.own.fmas)?;
        return loops.iter().filter(|l| l.holds(run)).max_by_key(|l| l.depth);
    }
    if kernel.entry == "cooperative" {
        // The loop that decodes a step into workgroup memory.
        return loops.iter().max_by_key(|l| l.own.lds);
    }
    loops.iter().max_by_key(|l| l.own.bytes)
}

/// The expected largest number of escapes that one of `lanes` lanes has among `n` weights.
fn expected_most(p: f64, n: i32, lanes: i32) -> f64 {
    let (mut below, mut term, mut sum) = (0.0, (1.0 - p).powi(n), 0.0);
    for k in 0..n {
        below += term;
        sum += 1.0 - below.min(1.0f64).powi(lanes);
        term *= f64::from(n - k) / f64::from(k + 1) * p / (1.0 - p);
    }
    sum
}

const HEAD: &str = "family kernel                   lanes regs   lds spill occ instr  slots \
                    escapes loads flight bytes ldsops";

fn line(family: &str, kernel: &str, n: &Numbers) -> String {
    format!(
        "{family:6} {kernel:24} {:5} {:4} {:5} {:5} {:3} {:5} {:6.2} {:7.2} {:5} {:6} {:5} {:6}",
        n.lanes,
        n.registers,
        n.memory,
        n.spilled,
        n.occupancy,
        n.instructions,
        n.slots,
        n.escapes,
        n.loads,
        n.in_flight,
        n.bytes,
        n.lds,
    )
}

/// Reads a line of the table.
fn parse(line: &str) -> Option<((String, String), Numbers)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [family, kernel, numbers @ ..] = &words[..] else { return None };
    let n: Vec<f64> = numbers.iter().map(|word| word.parse().ok()).collect::<Option<_>>()?;
    let &[lanes, registers, memory, spilled, occupancy, instructions, ..] = &n[..] else {
        return None;
    };
    let &[slots, escapes, loads, in_flight, bytes, lds] = n.get(6..)? else { return None };
    let numbers = Numbers {
        slots,
        escapes,
        loads: loads as u32,
        in_flight: in_flight as u32,
        bytes: bytes as u32,
        lds: lds as u32,
        lanes: lanes as u64,
        registers: registers as u64,
        memory: memory as u64,
        spilled: spilled as u64,
        occupancy: occupancy as u64,
        instructions: instructions as u64,
    };
    Some((((*family).into(), (*kernel).into()), numbers))
}

/// The number that must not grow: slots a weight, or the instructions of a kernel without weights.
fn size(n: &Numbers) -> f64 {
    if n.slots > 0.0 { n.slots + n.escapes } else { n.instructions as f64 }
}

fn baseline(table: &Table) -> String {
    let mut text =
        "# family, kernel, slots a weight (or instructions), loads of the main loop\n".to_owned();
    for ((family, kernel), n) in table {
        text += &format!("{family} {kernel} {:.2} {}\n", size(n), n.loads);
    }
    text
}

/// Prints what has grown since the baseline was written; returns how many kernels did. `all`: every
/// kernel was compiled, so each one of the baseline has to be there.
fn check(table: &Table, path: &Path, all: bool) -> Result<usize, Error> {
    let text = std::fs::read_to_string(path)?;
    let mut wrong = 0;
    let mut seen = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[family, kernel, size_then, loads_then] = &words[..] else {
            return Err(format!("{line:?} in {}", path.display()).into());
        };
        let Some(n) = table.get(&(family.to_owned(), kernel.to_owned())) else {
            if all && table.keys().any(|(compiled, _)| compiled == family) {
                println!("missing: {family} {kernel}");
                wrong += 1;
            }
            continue;
        };
        seen += 1;
        let then: [f64; 2] = [size_then.parse()?, loads_then.parse()?];
        let now = [size(n), f64::from(n.loads)];
        if now[0] > 1.03 * then[0] + 0.005 || now[1] > 1.03 * then[1] {
            println!("grown: {family} {kernel}: {now:.2?}, was {then:.2?} (size, loads)");
            wrong += 1;
        }
    }
    let new = table.len() - seen;
    if new > 0 {
        println!("{new} kernels are not in {}: write it with --write", path.display());
        wrong += new;
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_grown_is_found() {
        let numbers = Numbers { slots: 10.0, escapes: 1.0, loads: 20, ..Numbers::default() };
        let line = line("navi31", "matvec", &numbers);
        let (key, read) = parse(&line).unwrap();
        assert_eq!((size(&read), read.loads, key.1.as_str()), (11.0, 20, "matvec"));
        let table = Table::from([(key, read)]);
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, grown) in [
            (baseline(&table), 0),
            ("navi31 matvec 10.70 20".to_owned(), 0),
            ("navi31 matvec 10.60 20".to_owned(), 1),
            ("navi31 matvec 11.00 19".to_owned(), 1),
            // One is missing, and one is new.
            ("navi31 other 11.00 19".to_owned(), 2),
            ("navi21 other 11.00 19".to_owned(), 1),
        ] {
            std::fs::write(file.path(), &text).unwrap();
            assert_eq!(check(&table, file.path(), true).unwrap(), grown, "{text}");
        }
        std::fs::write(file.path(), "navi31 matvec").unwrap();
        assert!(check(&table, file.path(), true).is_err());
    }

    #[test]
    fn the_longest_of_many_loops_is_expected() {
        // One lane: the mean number of escapes.
        assert!((expected_most(0.25, 8, 1) - 2.0).abs() < 1e-12);
        assert!((expected_most(0.5, 1, 2) - 0.75).abs() < 1e-12);
    }
}
