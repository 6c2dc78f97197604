//! Ctrl-C and the other signals that end the command.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bigsmall_io::Progress;
use signal_hook::flag::{register, register_conditional_default, register_usize};

/// How often the watching thread looks.
const LOOK: Duration = Duration::from_millis(50);
/// How long a job that is asked to stop has to do so.
const PATIENCE: Duration = Duration::from_millis(600);

/// The signal that came last; 0 for none.
static CAUGHT: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);

/// The first Ctrl-C (or the signal of a shutdown, or of a terminal that is closed) asks the job to
/// stop and clean up. If it does not within a second, because the system makes it wait or because
/// of a long computation, the program removes the temporary files and ends. A second signal ends it
/// at once.
pub(crate) fn stop_on_signals(progress: &Progress) -> std::io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let flag = progress.cancel_flag();
    let signals = [
        SIGINT,
        SIGTERM,
        #[cfg(unix)]
        signal_hook::consts::SIGHUP,
    ];
    let ignored = ignored();
    for signal in signals.into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0) {
        register_conditional_default(signal, Arc::clone(&flag))?;
        register_usize(signal, Arc::clone(&CAUGHT), signal as usize)?;
        register(signal, Arc::clone(&flag))?;
    }
    // Report a file above the system's size limit as an error. By default the signal would end the
    // program and leave the temporary file behind.
    #[cfg(unix)]
    register(signal_hook::consts::SIGXFSZ, Arc::default())?;
    let watch = std::thread::Builder::new().name("signals".into()).spawn(move || {
        while !flag.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
        }
        std::thread::sleep(PATIENCE);
        bigsmall_io::internal::remove_temporaries();
        let _ = writeln!(std::io::stderr(), "bigsmall: cancelled");
        end_by_signal();
        std::process::exit(1);
    });
    // Without that thread a job still stops where it looks at the flag.
    let _ = watch;
    Ok(())
}

/// Ends the process as the signal that was caught would have, if there was one: so a shell sees
/// why, and ends its loop after Ctrl-C.
pub(crate) fn end_by_signal() {
    #[cfg(unix)]
    if let Ok(signal @ 1..) = i32::try_from(CAUGHT.load(Ordering::Relaxed)) {
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
}

/// The signals that this process was started to ignore, as a bit each: `nohup` does so.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
