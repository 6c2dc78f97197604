//! A worker: follows the trainer, and keeps its weights in a file for the time after a kill.

use std::path::Path;
use std::time::{Duration, Instant};

use bigsmall_examples::Result;
use bigsmall_io::{Subscriber, Weights, hex};
use sha2::{Digest as _, Sha256};

use crate::Role;
use crate::run::{DONE, Log};

pub(crate) fn run(role: Role, place: &Path, scratch: &Path) -> Result<()> {
    let kept = scratch.join(format!("{}.safetensors", role.name()));
    let mut log = Log::append(&scratch.join(format!("{}.log", role.name())))?;
    let mut subscriber = Subscriber::open(place)?;
    if let Ok(bytes) = std::fs::read(&kept) {
        subscriber.resume(Weights::from_safetensors(bytes)?)?;
    }
    loop {
        let done = scratch.join(DONE).exists();
        let begin = Instant::now();
        // Generation goes on here: nothing that it uses is touched.
        let Some(update) = subscriber.prepare()? else {
            if done {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        let (step, fetched, files) =
            (update.step(), update.fetched_bytes(), update.fetched_files());
        let prepared = begin.elapsed().as_micros();
        let begin = Instant::now();
        // And pauses here.
        let old = subscriber.commit(update)?;
        let committed = begin.elapsed().as_micros();
        drop(old);

        let Some(weights) = subscriber.weights() else { return Err("no weights".into()) };
        // Not the digest that the library computed: that of the bytes that are used from now on.
        let digest = hex(&Sha256::digest(weights.as_bytes()));
        log.line(&format!("{step} {digest} {fetched} {files} {prepared} {committed}"))?;
        let new = kept.with_extension("new");
        std::fs::write(&new, weights.as_bytes())?;
        std::fs::rename(&new, &kept)?;
    }
}
