//! The progress bar on a terminal.

use std::io::IsTerminal;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bigsmall_io::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// Runs `job`. If stderr is a terminal, a thread shows the progress.
pub(crate) fn with_bar<T>(progress: &Progress, job: impl FnOnce() -> T) -> T {
    if !std::io::stderr().is_terminal() {
        return job();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let shown = std::thread::Builder::new().spawn_scoped(scope, || show(progress, &done));
        let result = job();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        // Without a thread there is no bar; the job still runs.
        if let Ok(thread) = shown {
            thread.thread().unpark();
        }
        result
    })
}

fn show(progress: &Progress, done: &AtomicBool) {
    let template = "{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
    let style = ProgressStyle::with_template(template);
    let bar = ProgressBar::new(0);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    while !done.load(std::sync::atomic::Ordering::Relaxed) {
        bar.set_length(progress.total_bytes());
        bar.set_position(progress.done_bytes());
        std::thread::park_timeout(Duration::from_millis(100));
    }
    bar.finish_and_clear();
}
