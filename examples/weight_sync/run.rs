//! Starts the processes, kills some of them, and judges what they wrote down.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bigsmall_examples::Result;
use bigsmall_io::hex;
use bigsmall_testing::Random;
use sha2::{Digest as _, Sha256};

use crate::steps::Steps;
use crate::{Args, Role};

/// The file that tells the trainer to stop, and the one that tells the workers that it has.
pub(crate) const STOP: &str = "stop";
pub(crate) const DONE: &str = "done";

/// Lines that survive a kill: each is written at once, and a line that was cut stands alone.
pub(crate) struct Log(File);

impl Log {
    pub(crate) fn append(path: &Path) -> Result<Log> {
        let mut file = File::options().create(true).append(true).open(path)?;
        file.write_all(b"\n")?;
        Ok(Log(file))
    }

    pub(crate) fn line(&mut self, text: &str) -> Result<()> {
        Ok(self.0.write_all(format!("{text}\n").as_bytes())?)
    }

    /// The lines of `n` words.
    fn read(path: &Path, n: usize) -> Result<Vec<Vec<String>>> {
        let text = std::fs::read_to_string(path)?;
        let whole = &text[..text.rfind('\n').unwrap_or(0)];
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        Ok(whole.lines().map(words).filter(|words| words.len() == n).collect())
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let steps = Steps::of(args)?;
    let temporary = tempfile::tempdir()?;
    let scratch = temporary.path().join("scratch");
    std::fs::create_dir(&scratch)?;
    let place = args.place.clone().unwrap_or_else(|| temporary.path().join("sync"));
    if place.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(format!("{} is not empty", place.display()).into());
    }
    // Workers wait for the folder's first step, and the folder for nobody.
    if !place.to_string_lossy().contains("://") {
        std::fs::create_dir_all(&place)?;
    }
    let start = |role: Role| -> Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(std::env::args_os().skip(1));
        if args.place.is_none() {
            command.arg("--place").arg(&place);
        }
        let errors = scratch.join(format!("{}.err", role.name()));
        let errors = File::options().create(true).append(true).open(errors)?;
        command.arg("--role").arg(role.name()).arg("--scratch").arg(&scratch);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn()?)
    };
    let begin = Instant::now();
    let mut children = Vec::new();
    for role in Role::ALL {
        children.push((role, start(role)?));
    }
    let mut random = Random::new(begin.elapsed().as_nanos() as u64 ^ u64::from(std::process::id()));
    let mut kills = BTreeMap::new();
    let outcome = (|| -> Result<()> {
        while kills.values().sum::<usize>() < args.kills {
            std::thread::sleep(Duration::from_millis(20 + random.below(500)));
            let (role, child) = &mut children[random.below(3) as usize];
            check(child, *role, &scratch)?;
            child.kill()?;
            child.wait()?;
            *kills.entry(role.name()).or_default() += 1;
            *child = start(*role)?;
        }
        while Log::read(&scratch.join("trainer.log"), 5).map_or(0, |l| l.len())
            < args.steps as usize
        {
            std::thread::sleep(Duration::from_millis(20));
            for (role, child) in &mut children {
                check(child, *role, &scratch)?;
            }
        }
        File::create(scratch.join(STOP))?;
        finish(&mut children[0].1, Role::Trainer, &scratch)?;
        File::create(scratch.join(DONE))?;
        for (role, child) in &mut children[1..] {
            finish(child, *role, &scratch)?;
        }
        Ok(())
    })();
    for (_, child) in &mut children {
        let _ = child.kill();
        let _ = child.wait();
    }
    outcome?;
    println!("{:.1} s, killed: {kills:?}", begin.elapsed().as_secs_f64());
    judge(&steps, &scratch)
}

/// An error if a process has ended by itself.
fn check(child: &mut Child, role: Role, scratch: &Path) -> Result<()> {
    match child.try_wait()? {
        None => Ok(()),
        Some(status) => Err(ended(role, scratch, &status.to_string()).into()),
    }
}

fn finish(child: &mut Child, role: Role, scratch: &Path) -> Result<()> {
    match child.wait()? {
        status if status.success() => Ok(()),
        status => Err(ended(role, scratch, &status.to_string()).into()),
    }
}

fn ended(role: Role, scratch: &Path, status: &str) -> String {
    let errors = std::fs::read_to_string(scratch.join(format!("{}.err", role.name())));
    format!("{} ended with {status}: {}", role.name(), errors.unwrap_or_default().trim())
}

/// Compares what the workers held with the weights of each step, which are made once more.
fn judge(steps: &Steps, scratch: &Path) -> Result<()> {
    let published = Log::read(&scratch.join("trainer.log"), 5)?;
    let mut held = Vec::new();
    for role in [Role::WorkerA, Role::WorkerB] {
        held.push((role, Log::read(&scratch.join(format!("{}.log", role.name())), 6)?));
    }
    let number = |word: &String| -> Result<u64> { Ok(word.parse()?) };
    let mut newest = 0;
    for line in published.iter().chain(held.iter().flat_map(|(_, lines)| lines)) {
        newest = newest.max(number(&line[0])?);
    }
    let (mut digests, mut before) = (Vec::new(), None);
    for step in 0..=newest {
        let bytes = steps.bytes(step, before.as_deref())?;
        digests.push(hex(&Sha256::digest(&bytes)));
        before = Some(bytes);
    }

    let column = |lines: &[Vec<String>], i: usize| -> Result<Vec<u64>> {
        let mut values = lines.iter().map(|line| number(&line[i])).collect::<Result<Vec<_>>>()?;
        values.retain(|&value| value > 0);
        values.sort_unstable();
        Ok(values)
    };
    let median = |values: &[u64]| values.get(values.len() / 2).copied().unwrap_or(0);
    let ms = |micros: u64| micros as f64 / 1000.0;
    let all = median(&column(&published, 1)?);
    let (anchors, deltas) = (column(&published, 2)?, column(&published, 3)?);
    println!("{} steps of {all} bytes; medians:", newest + 1);
    println!(
        "  a step {} bytes ({:.2} %), all weights {} bytes ({:.2} %), published in {:.1} ms",
        median(&deltas),
        100.0 * median(&deltas) as f64 / all as f64,
        median(&anchors),
        100.0 * median(&anchors) as f64 / all as f64,
        ms(median(&column(&published, 4)?)),
    );
    let mut wrong = 0;
    for (role, lines) in &held {
        let mut last = 0;
        for line in lines {
            let step = number(&line[0])?;
            wrong += usize::from(digests[step as usize] != line[1] || step < last);
            last = step;
        }
        let ends = lines.last().map(|line| line[1].as_str());
        if ends != digests.last().map(String::as_str) {
            return Err(format!("{} does not end with the newest weights", role.name()).into());
        }
        println!(
            "  {}: {} updates, {} files, prepared in {:.1} ms, committed in {:.3} ms",
            role.name(),
            lines.len(),
            column(lines, 3)?.iter().sum::<u64>(),
            ms(median(&column(lines, 4)?)),
            ms(median(&column(lines, 5)?)),
        );
    }
    println!("newest: step {newest}, SHA-256 {}", digests.last().map_or("", String::as_str));
    println!("{wrong} wrong weights");
    if wrong > 0 { Err("a worker held weights that no step has".into()) } else { Ok(()) }
}
