//! The trainer: makes a step from the one before, publishes it, and so on until it is told to stop.

use std::path::Path;
use std::time::Instant;

use bigsmall_examples::Result;
use bigsmall_io::{PublishOptions, Publisher, Weights};

use crate::Args;
use crate::run::{Log, STOP};
use crate::steps::Steps;

pub(crate) fn run(args: &Args, place: &Path, scratch: &Path) -> Result<()> {
    let steps = Steps::of(args)?;
    let options = PublishOptions::default().anchor_every(args.anchor_every);
    // A trainer that was killed goes on from the newest step that is visible.
    let mut publisher = Publisher::open(place, &options)?;
    let mut log = Log::append(&scratch.join("trainer.log"))?;
    while !scratch.join(STOP).exists() {
        let next = publisher.step().map_or(0, |step| step + 1);
        let before = publisher.weights().map(Weights::as_bytes);
        if next > 0 && before.is_none() {
            return Err("the newest step cannot be rebuilt".into());
        }
        let weights = Weights::from_safetensors(steps.bytes(next, before)?)?;
        let byte_len = weights.as_bytes().len();
        let begin = Instant::now();
        let published = publisher.publish(weights)?;
        let micros = begin.elapsed().as_micros();
        let [anchor, delta] =
            [published.anchor_bytes, published.delta_bytes].map(Option::unwrap_or_default);
        log.line(&format!("{} {byte_len} {anchor} {delta} {micros}", published.step))?;
    }
    Ok(())
}
